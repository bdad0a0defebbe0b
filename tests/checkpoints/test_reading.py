"""What a checkpoint holds is read as it is, never executed, and every bad file is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnunetv2_ext
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, read_checkpoint, read_network_weights
from nnunetv2_ext.checkpoints.sources import CheckpointFile, resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY_RESENC = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
TINY_PRIMUS = DATA / "tiny_primus"


class RunsCodeWhenLoaded:
    """Pickles as an instruction to create a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.evidence),)


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
    assert found.adaptation_plan.raw == expected["nnssl_adaptation_plan"]


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
    assert found.adaptation_plan.key_to_encoder == "eva"
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
    assert found.adaptation_plan.recommended_downstream_patchsize == (32, 32, 32)


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


def test_no_plan_anywhere_is_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = saved(tmp_path / "x.pth", {"network_weights": tiny["network_weights"]})
    assert "carries no 'nnssl_adaptation_plan'" in refusal(path)


def test_a_sparkmae_checkpoint_is_refused_by_name(tmp_path: Path, tiny: dict[str, Any]) -> None:
    weights = tiny["network_weights"]
    path = saved(tmp_path / "x.pth", {"network_weights": weights, "spark_weights": weights})
    assert "SparkMAE" in refusal(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "nothing.pth")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.touch()
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_file_cut_off_is_called_so(tmp_path: Path, kept: float) -> None:
    content = (TINY_PRIMUS / "checkpoint_final.pth").read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(content[: int(kept * len(content))])
    assert "is cut off" in refusal(path)


@pytest.mark.parametrize("kept", [2, 20, 0.01, 0.5, 0.999])
def test_a_file_of_the_older_format_cut_off_is_refused(tmp_path: Path, tiny: dict[str, Any], kept: float) -> None:
    path = saved(tmp_path / "x.pth", tiny, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    refusal(path)


@pytest.mark.parametrize(
    ("content", "called"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <html lang='en'>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git-lfs pointer"),
        (b"hello", "not a PyTorch checkpoint"),
        (b'{"a": 1}', "not a PyTorch checkpoint"),
        (bytes(4096), "not a PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, content: bytes, called: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert called in refusal(path)


def test_a_zip_of_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fold_0/checkpoint_final.pth", b"x")
    assert "is a zip archive" in refusal(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("where", ["whole", "network_weights", "nnssl_adaptation_plan", "citations"])
def test_a_pickle_that_would_run_code_is_refused_unexecuted(
    tmp_path: Path, tiny: dict[str, Any], where: str, new_format: bool
) -> None:
    evidence = tmp_path / "executed"
    trap = RunsCodeWhenLoaded(evidence)
    content = trap if where == "whole" else {**tiny, where: trap}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=new_format)
    message = refusal(path)
    assert "refused" in message
    assert "mkdir" in message
    assert not evidence.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_refused_unexecuted(tmp_path: Path, protocol: int) -> None:
    evidence = tmp_path / "executed"
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(RunsCodeWhenLoaded(evidence), protocol=protocol))
    refusal(path)
    assert not evidence.exists()


def test_a_checkpoint_damaged_anywhere_is_read_or_refused_but_never_raises_otherwise(tmp_path: Path) -> None:
    whole = (TINY_PRIMUS / "checkpoint_final.pth").read_bytes()
    with zipfile.ZipFile(TINY_PRIMUS / "checkpoint_final.pth") as archive:
        pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    dice = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[pickled.header_offset + dice.randrange(pickled.file_size)] = dice.randrange(256)
        path = tmp_path / "x.pth"
        path.write_bytes(damaged)
        try:
            read_checkpoint(CheckpointFile(path, str(path)))
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text"])
def test_what_is_no_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    assert "no checkpoint" in refusal(saved(tmp_path / "x.pth", content))


def test_weights_under_another_key_are_refused_with_the_keys_there_are(tmp_path: Path) -> None:
    assert "epoch, state_dict" in refusal(saved(tmp_path / "x.pth", {"state_dict": {}, "epoch": 3}))


@pytest.mark.parametrize("weights", [{}, [], None, 3])
def test_no_weights_at_all_are_refused(tmp_path: Path, tiny: dict[str, Any], weights: Any) -> None:
    assert "has no 'network_weights'" in refusal(saved(tmp_path / "x.pth", {**tiny, "network_weights": weights}))


def test_something_else_among_the_weights_is_named(tmp_path: Path, tiny: dict[str, Any]) -> None:
    weights = {**tiny["network_weights"], "eva.extra": 3}
    assert "'eva.extra'" in refusal(saved(tmp_path / "x.pth", {**tiny, "network_weights": weights}))


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("key_to_encoder", "encoder.eva", "'eva'"),
        ("key_to_encoder", "evaa", "'eva'"),
        ("key_to_encoder", "ev", None),
        ("key_to_stem", "proj", "'down_projection.proj'"),
        ("keys_to_in_proj", ["down_projection.proj", "down_projection.conv"], "'down_projection.proj'"),
        ("key_to_lpe", "pos_embed", "'eva.pos_embed'"),
    ],
)
def test_a_key_that_points_nowhere_is_named_with_the_nearest_there_is(
    tmp_path: Path, tiny: dict[str, Any], key: str, value: Any, hint: str | None
) -> None:
    plan = {**tiny["nnssl_adaptation_plan"], key: value}
    message = refusal(saved(tmp_path / "x.pth", {**tiny, "nnssl_adaptation_plan": plan}))
    assert f"'{key}'" in message
    assert f"'{value if isinstance(value, str) else value[-1]}'" in message
    assert hint is None or hint in message


def test_a_plan_without_a_required_key_is_refused_with_the_file(tmp_path: Path, tiny: dict[str, Any]) -> None:
    plan = {key: value for key, value in tiny["nnssl_adaptation_plan"].items() if key != "key_to_stem"}
    assert "'key_to_stem'" in refusal(saved(tmp_path / "x.pth", {**tiny, "nnssl_adaptation_plan": plan}))
