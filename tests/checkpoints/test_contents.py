"""Weights are found under every key that training frameworks use, whatever else a file holds."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_ext.checkpoints.reading import WEIGHTS, PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError

CONTAINERS = ["network_weights", "state_dict", "model", "model_state_dict", "teacher"]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.conv.weight": torch.randn(4, 2, 3, 3, 3, generator=generator),
        "encoder.conv.bias": torch.randn(4, generator=generator),
        "encoder.norm.num_batches_tracked": torch.tensor(7),
    }


def read(path: Path, content: Any) -> PretrainedCheckpoint:
    torch.save(content, path)
    return read_checkpoint(resolve_checkpoint_source(str(path)))


def refusal(path: Path, content: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, content)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def assert_same(found: PretrainedCheckpoint, weights: dict[str, torch.Tensor]) -> None:
    assert list(found.network_weights) == list(weights)
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)
    assert all(found.network_weights[name].dtype == weights[name].dtype for name in weights)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin", ""])
@pytest.mark.parametrize("container", [None, *CONTAINERS])
def test_weights_are_read_under_every_key_and_ending(
    tmp_path: Path, weights: dict[str, torch.Tensor], container: str | None, ending: str
) -> None:
    content = weights if container is None else {"epoch": 3, container: weights, "optimizer": {"state": {}}}
    found = read(tmp_path / f"weights{ending}", content)
    assert_same(found, weights)
    assert (found.kind, found.adaptation_plan) == (WEIGHTS, None)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, weights: dict[str, torch.Tensor], ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    save_file(weights, path)
    found = read_checkpoint(resolve_checkpoint_source(str(path)))
    assert found.network_weights.keys() == weights.keys()
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)


def test_pytorch_s_older_format_is_read_too(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": weights}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(resolve_checkpoint_source(str(tmp_path / "x.ckpt"))), weights)


def test_the_state_dict_of_a_module_is_read_with_its_parameters(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    assert_same(read(tmp_path / "x.pt", network.state_dict()), network.state_dict())


def test_a_checkpoint_in_the_manner_of_mae_is_read(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    content = {
        "model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "epoch": 799,
        "scaler": {"scale": 65536.0}, "args": argparse.Namespace(model="mae_vit_base", norm_pix_loss=True),
    }  # fmt: skip
    assert_same(read(tmp_path / "x.pth", content), weights)


def test_the_teacher_is_taken_of_a_self_distillation(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    student = {name: tensor + 1 for name, tensor in weights.items()}
    assert_same(read(tmp_path / "x.pth", {"student": student, "teacher": weights, "dino_loss": {}}), weights)


def test_of_several_containers_nnunet_s_own_is_taken(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    others = {key: {"other.weight": torch.ones(1)} for key in reversed(CONTAINERS)}
    assert_same(read(tmp_path / "x.pth", {**others, "network_weights": weights}), weights)


@pytest.mark.parametrize("empty", [{}, None, 3, [], {"name": "vit"}, "unet"])
def test_a_key_without_weights_is_passed_over(tmp_path: Path, weights: dict[str, torch.Tensor], empty: Any) -> None:
    assert_same(read(tmp_path / "x.pth", {"state_dict": empty, "model": empty, "teacher": weights}), weights)


def test_parameters_and_tensors_with_gradients_are_tensors_without(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    content = {"a": torch.nn.Parameter(weights["encoder.conv.bias"]), "b": torch.ones(2, requires_grad=True)}
    found = read(tmp_path / "x.pth", content).network_weights
    assert torch.equal(found["a"], weights["encoder.conv.bias"])
    assert not any(tensor.requires_grad for tensor in found.values())
    assert {type(tensor) for tensor in found.values()} == {torch.Tensor}


def test_names_that_share_a_tensor_still_do(tmp_path: Path) -> None:
    shared = torch.ones(5, requires_grad=True)
    found = read(tmp_path / "x.pth", {"state_dict": {"a": shared, "b": shared}}).network_weights
    assert found["a"].data_ptr() == found["b"].data_ptr()


pytestmark = pytest.mark.filterwarnings("ignore:.*[Ss]parse")

UNUSUAL = {
    "a counter": 3,
    "an extra state": {"scale": 2.0},
    "nothing": None,
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a complex tensor": torch.ones(3, dtype=torch.complex64),
    "an eight-bit float": torch.ones(3).to(torch.float8_e4m3fn),
    "a tensor without values": torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("container", [None, *CONTAINERS[1:]])
def test_what_is_no_tensor_of_numbers_is_left_out_of_other_frameworks_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], container: str | None, value: Any
) -> None:
    unusual = {"zz.unusual": value, **weights, 5: weights["encoder.conv.bias"], ("a", 1): 2}
    assert_same(read(tmp_path / "x.pth", unusual if container is None else {container: unusual}), weights)


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_no_tensor_of_numbers_is_named_in_nnunet_s_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], value: Any
) -> None:
    assert "'zz.unusual'" in refusal(tmp_path / "x.pth", {"network_weights": {**weights, "zz.unusual": value}})


@pytest.mark.parametrize("name", [5, ("a", 1), None, 2.5])
def test_a_name_that_is_none_is_named_in_nnunet_s_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], name: Any
) -> None:
    assert f"'{name}'" in refusal(tmp_path / "x.pth", {"network_weights": {**weights, name: torch.ones(1)}})


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"epoch": 3},
        {5: torch.ones(1)},
        {"model": {"name": "vit"}, "state_dict": {}},
        {"state_dict": {5: torch.ones(1)}},
        {"network_weights": {}},
        {"network_weights": None, "optimizer_state": {"state": {0: torch.ones(1)}}},
        {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    ],
)
def test_a_file_without_weights_is_refused_with_what_it_has(tmp_path: Path, content: dict[Any, Any]) -> None:
    message = refusal(tmp_path / "x.pth", content)
    assert "no weights" in message
    assert (str(next(iter(content))) if content else "nothing") in message


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text", 3, None, {1, 2}])
def test_what_is_no_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    assert "no checkpoint" in refusal(tmp_path / "x.pth", content)


def test_a_very_long_state_dict_takes_seconds_not_minutes(tmp_path: Path) -> None:
    value = torch.ones(1)
    content = {f"blocks.{i}.weight": value for i in range(50_000)}
    torch.save(content, tmp_path / "x.pth")
    started = time.monotonic()
    found = read_checkpoint(resolve_checkpoint_source(str(tmp_path / "x.pth")))
    assert len(found.network_weights) == 50_000
    assert time.monotonic() - started < 20
