"""Every kind of source into every kind of network with one, two and four channels: what arrives, by numpy's account.

Plans are made as the commands make them, networks are built by stock nnU-Net and loaded as training loads them. What
every tensor of stem and encoder must be then is worked out here from the source's own tensors.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.planning.given_architecture import read_with_architecture
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.conftest import TINY_PRIMUS, TINY_RESENC, StockModel
from tests.planning.networks import built, loaded
from tests.planning.variants import plain_base_plan, residual_base_plan
from tests.planning.weights_files import adaptation_plan_file, plain_file

CHANNELS = (1, 2, 4)
ENCODER = ("encoder.", "eva.", "down_projection.")


@dataclass(frozen=True)
class Source:
    """What a user gives after `-pc`, and where torch alone finds its tensors.

    Attributes:
        path: `-pc`.
        weights: the file of the tensors, and under which key of it.
        root: in front of all names.
        family: `resenc`, `plain` or `primus`.
        features: of the network's stages.
        described: whether the file says which network it is of.
    """

    path: Path
    weights: tuple[Path, str]
    family: str
    root: str = ""
    features: tuple[int, ...] = (8, 16, 32)
    described: bool = True

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        content = torch.load(self.weights[0], weights_only=False, mmap=True)[self.weights[1]]
        return {name.removeprefix(self.root): tensor.numpy() for name, tensor in content.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    plain_file(folder / "plain.pth")
    plain_file(folder / "module.pth", root="module.")
    adaptation_plan_file(folder / "plan.json")
    return folder


@pytest.fixture(params=["tiny_resenc", "tiny_primus", "plain_model", "residual_model", "plain.pth", "module.pth"])
def source(request: pytest.FixtureRequest, files: Path) -> Source:
    name = request.param
    if name.endswith(".pth"):
        root = "module." if name == "module.pth" else ""
        return Source(files / name, (files / name, "state_dict"), "resenc", root, described=False)
    if name.startswith("tiny"):
        folder = TINY_RESENC if name == "tiny_resenc" else TINY_PRIMUS
        family = "resenc" if name == "tiny_resenc" else "primus"
        return Source(folder, (folder / "checkpoint_final.pth", "network_weights"), family)
    model: StockModel = request.getfixturevalue(name)
    family = "plain" if name == "plain_model" else "resenc"
    return Source(model.folder, (model.checkpoint, "network_weights"), family, features=(32, 64, 128))


def with_channels(plan: dict[str, Any], num_channels: int) -> dict[str, Any]:
    """A plan of a dataset with so many channels."""
    plan = copy.deepcopy(plan)
    configuration = plan["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = ["ZScoreNormalization"] * num_channels
    configuration["use_mask_for_norm"] = [False] * num_channels
    return plan


def transferred(plan: dict[str, Any], checkpoint: PretrainedCheckpoint, num_channels: int) -> Any:
    """The network before and after, and the report; through a plans file."""
    plan = json.loads(json.dumps(plan))
    network = built(plan, num_channels, 3)
    before = {name: tensor.clone().numpy() for name, tensor in network.state_dict().items()}
    report = loaded(network, plan, checkpoint)
    return before, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, report


def by_numpy(source: np.ndarray | None, target: np.ndarray, projects_input: bool) -> np.ndarray | None:
    """The rules, written again: None where there is none and the tensor is to stay as it was."""
    if source is None or source.ndim != target.ndim or source.shape[0] != target.shape[0]:
        return None
    if source.shape == target.shape:
        return source
    if source.ndim != 5 or (source.shape[1] != target.shape[1] and not projects_input):
        return None
    value = source.astype(np.float64)
    for axis in (2, 3, 4):
        if value.shape[axis] == 3 and target.shape[axis] == 1:
            value = value.mean(axis, keepdims=True)
    if value.shape[1] != target.shape[1]:
        value = np.repeat(value.sum(1, keepdims=True) / target.shape[1], target.shape[1], axis=1)
    return value if value.shape == target.shape else None


def assert_as_numpy_says(source: Source, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Every tensor of stem and encoder; returns the names that arrived."""
    tensors, arrived = source.tensors, set()
    for name in (n for n in after if n.startswith(ENCODER)):
        at_the_image = source.family == "plain" and name.startswith("encoder.stages.0.0.convs.0.")
        projects = at_the_image or name.startswith(("encoder.stem.", "down_projection."))
        expected = by_numpy(tensors.get(name), after[name], projects)
        if expected is None:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
            continue
        arrived.add(name)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
        if after[name].shape == tensors[name].shape:
            np.testing.assert_array_equal(after[name], tensors[name], err_msg=name)
    return arrived


def read(source: Source, files: Path) -> PretrainedCheckpoint:
    arch = None if source.described else str(files / "plan.json")
    if source.root:  # the plan's keys are those of the bare names
        keyless = {k: v for k, v in json.loads((files / "plan.json").read_text()).items() if not k.startswith("key")}
        (files / "keyless.json").write_text(json.dumps(keyless))
        arch = str(files / "keyless.json")
    return read_with_architecture(resolve_checkpoint_source(str(source.path)), arch, None)


@pytest.mark.parametrize("num_channels", CHANNELS)
def test_into_its_own_network_all_of_the_encoder_arrives(
    source: Source, num_channels: int, files: Path, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    checkpoint = read(source, files)
    base = with_channels(base_plan, num_channels)
    plan, rehearsed = make_plan(base, dataset_json, checkpoint, TargetSpacing((1, 1, 1)), PlanOptions("own"), "0" * 64)
    before, after, report = transferred(plan, checkpoint, num_channels)
    arrived = assert_as_numpy_says(source, before, after)
    assert arrived == {n for n in after if n.startswith(ENCODER)}
    assert report.as_dict() == rehearsed.as_dict()
    assert report.coverage == 1


@pytest.mark.parametrize("num_channels", CHANNELS)
@pytest.mark.parametrize("target", ["plain", "resenc"])
def test_into_the_datasets_own_network_what_fits_arrives_or_nothing_starts(
    source: Source, target: str, num_channels: int, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    """The dataset's network has three stages, flat kernels in the first, and other strides than the sources."""
    base = {"plain": plain_base_plan, "resenc": residual_base_plan}[target](base_plan, source.features)
    base = with_channels(base, num_channels)
    checkpoint = read_with_architecture(resolve_checkpoint_source(str(source.path)), None, None)
    if source.family != target:
        with pytest.raises(UserError, match=r"nothing in common.*not in the checkpoint.*names nearest to encoder\."):
            make_dynamic_plan(base, dataset_json, checkpoint, DynamicPlanOptions("dyn"), "0" * 64)
        return
    plan, rehearsed = make_dynamic_plan(base, dataset_json, checkpoint, DynamicPlanOptions("dyn"), "0" * 64)
    before, after, report = transferred(plan, checkpoint, num_channels)
    arrived = assert_as_numpy_says(source, before, after)
    encoder = {n for n in after if n.startswith("encoder.")}
    parameters = {r.name: r.numel for r in report.records if r.part in ("stem", "encoder")}
    expected = sum(n for name, n in parameters.items() if name in arrived) / sum(parameters.values())
    assert report.coverage == pytest.approx(expected)
    assert report.as_dict() == rehearsed.as_dict()
    missing = {n for n in encoder if n not in source.tensors}
    assert encoder - arrived == missing
    assert f"{source.root}encoder.stages.3" in report.as_dict()["surplus_checkpoint_stages"]


@pytest.mark.parametrize("num_channels", CHANNELS)
def test_a_network_of_other_widths_keeps_its_own_values_and_says_so(
    num_channels: int, tiny_resenc: PretrainedCheckpoint, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    base = with_channels(residual_base_plan(base_plan, (16, 16, 32)), num_channels)
    plan, _ = make_dynamic_plan(base, dataset_json, tiny_resenc, DynamicPlanOptions("dyn"), "0" * 64)
    before, after, report = transferred(plan, tiny_resenc, num_channels)
    source = Source(TINY_RESENC, (TINY_RESENC / "checkpoint_final.pth", "network_weights"), "resenc")
    arrived = assert_as_numpy_says(source, before, after)
    assert not any(name.startswith(("encoder.stem.", "encoder.stages.0.")) for name in arrived)
    assert any(name.startswith("encoder.stages.2.") for name in arrived)
    fresh = "; ".join(report.reasons())
    assert "stem: 4 tensors of another width" in fresh
    assert "encoder.stages.0" in fresh
