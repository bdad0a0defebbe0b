"""A checkpoint from the hub through the commands: planned, found again for training, and faults in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.conftest import DATASET_ID, TINY_RESENC, Model, Workplace, copy_of, train
from tests.hub_server import HubServer

FILES = {p.name: p.read_bytes() for p in TINY_RESENC.iterdir()}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def place(planned_resenc: Model, hub: HubServer, tmp_path: Path) -> Workplace:
    copy = copy_of(planned_resenc.workplace, tmp_path)
    return Workplace(copy.root, {**copy.env, **hub.environment(tmp_path)})


def plan_from(place: Workplace, source: str, *, check: bool = True) -> tuple[int, str]:
    result = run_command(
        "nnUNetv2_preprocess_like_nnssl", "-d", DATASET_ID, "-n", "hub", "-pc", source, "-am", "like_pretrained",
        "--no_pp", env=place.env, check=check,
    )  # fmt: skip
    return result.returncode, result.stderr


def test_planned_from_the_hub_and_trained_where_the_download_is_gone(
    place: Workplace, hub: HubServer, tmp_path: Path
) -> None:
    commit = hub.add_repo("org/tiny", FILES)
    plan_from(place, f"{hub.url}/org/tiny")
    stem = "ptPlans__hub____Spacing__1.00_1.00_1.00___Norm__Z"
    info = place.plan(stem)["pretrain_info"]
    assert (info["hub_repo"], info["hub_revision"]) == ("org/tiny", commit)
    shutil.rmtree(tmp_path / "huggingface")
    assert not Path(info["checkpoint_path"]).exists()
    train(place, stem)
    (model,) = (p for p in place.results.glob("PretrainedTrainer__ptPlans_hub_*") if not p.is_symlink())
    found = json.loads((model / "plans.json").read_text())["pretrain_info"]["checkpoint_path"]
    assert Path(found).resolve().read_bytes() == FILES["checkpoint_final.pth"]


@pytest.mark.parametrize(
    ("source", "gated", "expected"),
    [("org/nothing", False, "org/nothing"), ("org/gated", True, "HF_TOKEN")],
)
def test_a_fault_of_the_hub_is_one_line_and_writes_nothing(
    source: str, gated: bool, expected: str, place: Workplace, hub: HubServer
) -> None:
    hub.add_repo("org/gated", FILES, gated=gated)
    before = sorted(p.name for p in place.preprocessed.iterdir())
    code, message = plan_from(place, source, check=False)
    assert (code, message.count("\n")) == (1, 1), message
    assert expected in message
    assert sorted(p.name for p in place.preprocessed.iterdir()) == before
