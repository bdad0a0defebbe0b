"""What a checkpoint says of itself is read as it is, and every plan that does not fit is refused in one line."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnunetv2_ext
from nnunetv2_ext.checkpoints.reading import (
    SELF_SUPERVISED,
    WEIGHTS,
    PretrainedCheckpoint,
    read_checkpoint,
    read_network_weights,
    read_without_plan,
)
from nnunetv2_ext.checkpoints.sources import CheckpointFile, resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY_RESENC = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
TINY_PRIMUS = DATA / "tiny_primus"


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return torch.load(TINY_PRIMUS / "checkpoint_final.pth", weights_only=True)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read(path: Path) -> PretrainedCheckpoint:
    return read_checkpoint(resolve_checkpoint_source(str(path)))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(CheckpointFile(path, str(path)))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS])
def test_weights_equal_a_plain_load_of_the_file(folder: Path) -> None:
    expected = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    found = read(folder)
    assert list(found.network_weights) == list(expected["network_weights"])
    assert all(
        torch.equal(found.network_weights[key], expected["network_weights"][key]) for key in found.network_weights
    )
    assert found.trainer_name == expected["trainer_name"]
    assert found.citations == expected["citations"]
    assert found.plan.raw == expected["nnssl_adaptation_plan"]


def test_plan_inside_and_beside_agree_in_published_checkpoints() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(TINY_RESENC)
        read(TINY_PRIMUS)


def test_aliases_still_share_their_storage() -> None:
    weights = read(TINY_RESENC).network_weights
    one, other = (weights[f"encoder.stem.convs.0.{name}.weight"] for name in ("conv", "all_modules.0"))
    assert one.data_ptr() == other.data_ptr()


def test_changing_a_tensor_does_not_change_the_file(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "checkpoint_final.pth", tiny)
    before = path.read_bytes()
    read(path).network_weights["eva.pos_embed"].zero_()
    assert path.read_bytes() == before


def test_the_older_format_of_pytorch_is_read_too(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "old.pth", tiny, _use_new_zipfile_serialization=False)
    weights = read(path).network_weights
    assert all(torch.equal(weights[key], tiny["network_weights"][key]) for key in tiny["network_weights"])


def test_numpy_scalars_as_nnunet_writes_them_are_let_through(tmp_path: Path, tiny: dict[str, Any]) -> None:
    numbers = [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)]
    path = saved(tmp_path / "numbers.pth", {**tiny, "_best_ema": numbers[0], "logging": {"losses": numbers}})
    assert read(path).trainer_name == tiny["trainer_name"]


def test_numpy_arrays_of_objects_are_not(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "objects.pth", {**tiny, "logging": np.array([{}], dtype=object)})
    assert "refused" in refusal(path)


def test_a_plan_beside_the_file_serves_where_the_file_has_none(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "checkpoint_final.pth", {"network_weights": tiny["network_weights"]})
    (tmp_path / "adaptation_plan.json").write_bytes((TINY_PRIMUS / "adaptation_plan.json").read_bytes())
    found = read(tmp_path)
    assert found.plan.key_to_encoder == "eva"
    assert found.trainer_name == "TinyEvaMAETrainer"
    assert found.citations == []
    assert path.exists()


def test_the_plan_inside_wins_over_one_beside_with_a_warning(tmp_path: Path, tiny: dict[str, Any]) -> None:
    saved(tmp_path / "checkpoint_final.pth", tiny)
    other = json.loads((TINY_PRIMUS / "adaptation_plan.json").read_text())
    other["recommended_downstream_patchsize"] = [64, 64, 64]
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(other))
    with pytest.warns(UserWarning, match="recommended_downstream_patchsize"):
        found = read(tmp_path)
    assert found.plan.recommended_downstream_patchsize == (32, 32, 32)


def test_a_broken_plan_beside_is_named(tmp_path: Path, tiny: dict[str, Any]) -> None:
    saved(tmp_path / "checkpoint_final.pth", {"network_weights": tiny["network_weights"]})
    (tmp_path / "adaptation_plan.json").write_text("{")
    with pytest.raises(UserError, match=r"adaptation_plan\.json' is not valid JSON"):
        read(tmp_path)


@pytest.mark.parametrize("citations", [None, "text", 3, {"a": 1}, [None, 3]])
def test_odd_citations_are_left_out(tmp_path: Path, tiny: dict[str, Any], citations: Any) -> None:
    path = saved(tmp_path / "x.pth", {**tiny, "citations": citations})
    assert read(path).citations == []


def test_weights_alone_need_no_plan(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "x.pth", {"network_weights": tiny["network_weights"]})
    weights = read_network_weights(CheckpointFile(path, str(path)))
    assert list(weights) == list(tiny["network_weights"])
    assert all(torch.equal(tensor, tiny["network_weights"][name]) for name, tensor in weights.items())


@pytest.mark.parametrize("more", [{}, {"spark_weights": {}}], ids=["weights", "SparkMAE"])
def test_where_there_is_no_plan_asking_for_it_says_what_can_be_done(
    tmp_path: Path, tiny: dict[str, Any], more: dict[str, Any]
) -> None:
    path = saved(tmp_path / "x.pth", {"network_weights": tiny["network_weights"], **more})
    found = read(path)
    assert (found.kind, found.adaptation_plan) == (WEIGHTS, None)
    with pytest.raises(UserError) as caught:
        _ = found.plan
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), "-arch", "nnUNetv2_plan_like_dynamic", "nnUNetv2_convert_pretrained_checkpoint"):
        assert part in message


def test_a_plan_of_nnssl_makes_a_checkpoint_self_supervised(tmp_path: Path, tiny: dict[str, Any]) -> None:
    assert read(TINY_PRIMUS).kind == SELF_SUPERVISED
    assert read(saved(tmp_path / "x.pth", tiny)).kind == SELF_SUPERVISED


def test_a_plan_of_nnssl_counts_before_that_of_an_nnunet_training(tmp_path: Path, tiny: dict[str, Any]) -> None:
    flat = {"configurations": {"2d": {"patch_size": [8, 8]}}}
    arguments = {"plans": flat, "dataset_json": {}, "configuration": "2d"}
    assert read(saved(tmp_path / "x.pth", {**tiny, "init_args": arguments})).kind == SELF_SUPERVISED


def test_a_file_without_weights_names_what_it_has(tmp_path: Path, tiny: dict[str, Any]) -> None:
    assert "citations" in refusal(saved(tmp_path / "x.pth", {**tiny, "network_weights": {}}))


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("key_to_encoder", "encoder.eva", "'eva'"),
        ("key_to_encoder", "evaa", "'eva'"),
        ("key_to_encoder", "ev", "'eva'"),
        ("key_to_stem", "proj", "'down_projection.proj'"),
        ("keys_to_in_proj", ["down_projection.proj", "down_projection.conv"], "'down_projection.proj'"),
        ("key_to_lpe", "pos_embed", "'eva.pos_embed'"),
    ],
)
def test_a_key_that_points_nowhere_is_named_with_the_nearest_there_is(
    tmp_path: Path, tiny: dict[str, Any], key: str, value: Any, hint: str
) -> None:
    plan = {**tiny["nnssl_adaptation_plan"], key: value}
    message = refusal(saved(tmp_path / "x.pth", {**tiny, "nnssl_adaptation_plan": plan}))
    assert f"'{key}'" in message
    assert f"'{value if isinstance(value, str) else value[-1]}'" in message
    assert hint in message
    assert message.count("', '") == 4  # five names


def test_the_names_shown_are_the_checkpoint_s(tmp_path: Path, tiny: dict[str, Any]) -> None:
    plan = {**tiny["nnssl_adaptation_plan"], "key_to_encoder": "encoder.stages"}
    message = refusal(saved(tmp_path / "x.pth", {**tiny, "nnssl_adaptation_plan": plan}))
    shown = re.findall(r"'([^']+)'", message.partition("nearest are")[2])
    assert len(shown) == 5
    assert all(any(f"{name}.".startswith(f"{prefix}.") for name in tiny["network_weights"]) for prefix in shown)


def test_a_key_is_a_whole_component_of_a_name(tmp_path: Path, tiny: dict[str, Any]) -> None:
    weights = {name.replace("eva.", "evaluator."): tensor for name, tensor in tiny["network_weights"].items()}
    assert "'eva'" in refusal(saved(tmp_path / "x.pth", {**tiny, "network_weights": weights}))


@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize(
    "key", ["architecture_plans", "pretrain_num_input_channels", "key_to_encoder", "key_to_stem", "keys_to_in_proj"]
)
def test_a_plan_without_a_required_key_is_refused_with_the_command_that_completes_it(
    tmp_path: Path, tiny: dict[str, Any], key: str, where: str
) -> None:
    plan = {k: v for k, v in tiny["nnssl_adaptation_plan"].items() if k != key}
    content = {**tiny, "nnssl_adaptation_plan": plan}
    if where == "beside":
        del content["nnssl_adaptation_plan"]
        (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
    saved(tmp_path / "checkpoint_final.pth", content)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), f"'{key}", "nnUNetv2_convert_pretrained_checkpoint"):
        assert part in message


@pytest.mark.parametrize("where", ["inside", "beside", "nowhere"])
def test_without_its_plan_a_checkpoint_is_opened_whatever_the_plan_lacks(
    tmp_path: Path, tiny: dict[str, Any], where: str
) -> None:
    plan = {"key_to_encoder": "eva"}
    content = {"network_weights": tiny["network_weights"]}
    if where == "inside":
        content["nnssl_adaptation_plan"] = plan
    if where == "beside":
        (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
    saved(tmp_path / "checkpoint_final.pth", content)
    found, raw = read_without_plan(resolve_checkpoint_source(str(tmp_path)))
    assert raw == ({} if where == "nowhere" else plan)
    assert found.adaptation_plan is None
    assert list(found.network_weights) == list(tiny["network_weights"])
