"""Patch sizes: what is accepted trains, what is refused names sizes that are accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

import nnunetv2_ext
from nnunetv2_ext.architectures.patch_size import check_patch_size, patch_granularity
from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY_RESENC = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
TINY_PRIMUS = DATA / "tiny_primus"
ANISOTROPIC = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]}  # one bottleneck voxel for 2 x 8 x 8


def architecture_of(folder: Path, patch_size: tuple[int, ...] = (32, 32, 32), **changes: Any) -> dict[str, Any]:
    plan = json.loads((folder / "adaptation_plan.json").read_text())["architecture_plans"]
    return downstream_architecture(plan["arch_class_name"], {**plan["arch_kwargs"], **changes}, patch_size)


def train_one_step(architecture: dict[str, Any], patch_size: tuple[int, ...]) -> torch.Tensor:
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
        1, 2, deep_supervision=False,
    ).train()  # fmt: skip
    output = network(torch.randn(1, 1, *patch_size))
    output.mean().backward()
    return output


def refusal(architecture: dict[str, Any], patch_size: tuple[int, ...]) -> str | None:
    try:
        check_patch_size(architecture, patch_size, "the network")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("patch_size", [(16, 8, 8), (8, 16, 8), (8, 8, 16)])
def test_a_cnn_trains_on_the_smallest_patches_that_are_accepted(patch_size: tuple[int, ...]) -> None:
    architecture = architecture_of(TINY_RESENC)
    check_patch_size(architecture, patch_size, "the network")
    assert train_one_step(architecture, patch_size).shape == (1, 2, *patch_size)


def test_an_anisotropic_cnn_trains_on_the_smallest_patch_that_is_accepted() -> None:
    architecture = architecture_of(TINY_RESENC, **ANISOTROPIC)
    assert patch_granularity(architecture) == (2, 8, 8)
    check_patch_size(architecture, (4, 8, 8), "the network")
    assert train_one_step(architecture, (4, 8, 8)).shape == (1, 2, 4, 8, 8)


def test_primus_trains_on_the_smallest_patch_that_is_accepted() -> None:
    architecture = architecture_of(TINY_PRIMUS, (8, 8, 8))
    check_patch_size(architecture, (8, 8, 8), "the network")
    assert train_one_step(architecture, (8, 8, 8)).shape == (1, 2, 8, 8, 8)


def test_primus_with_a_patch_embedding_of_thick_slices_trains_on_the_smallest_patch_that_is_accepted() -> None:
    architecture = architecture_of(TINY_PRIMUS, (2, 8, 8), patch_embed_size=[2, 8, 8])
    assert patch_granularity(architecture) == (2, 8, 8)
    check_patch_size(architecture, (2, 8, 8), "the network")
    assert train_one_step(architecture, (2, 8, 8)).shape == (1, 2, 2, 8, 8)


def test_a_patch_with_one_voxel_at_the_bottleneck_is_refused_as_torch_does() -> None:
    architecture = architecture_of(TINY_RESENC)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        train_one_step(architecture, (8, 8, 8))
    with pytest.raises(UserError, match=r"single voxel.*16 x 8 x 8"):
        check_patch_size(architecture, (8, 8, 8), "the network")


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_a_patch_that_is_not_a_multiple_names_the_sizes_below_and_above(folder: Path) -> None:
    message = refusal(architecture_of(folder), (30, 32, 36))
    assert message is not None
    assert "multiple of 8 x 8 x 8" in message
    assert "24 x 32 x 32 or 32 x 32 x 40 (-ps)" in message


@pytest.mark.parametrize("patch_size", [(32, 32), (32, 32, 32, 32), (0, 32, 32), (32, -8, 32), ()])
def test_anything_but_three_positive_numbers_is_refused(patch_size: tuple[int, ...]) -> None:
    assert "3 positive numbers" in (refusal(architecture_of(TINY_RESENC), patch_size) or "")


@pytest.mark.parametrize(
    "architecture",
    [architecture_of(TINY_RESENC), architecture_of(TINY_RESENC, **ANISOTROPIC), architecture_of(TINY_PRIMUS)],
    ids=["resenc", "anisotropic", "primus"],
)
@settings(max_examples=150, deadline=None)
@given(patch_size=st.tuples(*[st.integers(1, 40)] * 3))
def test_every_refusal_names_only_sizes_that_are_accepted(
    architecture: dict[str, Any], patch_size: tuple[int, ...]
) -> None:
    message = refusal(architecture, patch_size)
    if message is not None:
        named = re.findall(r"\d+ x \d+ x \d+", message.split("nearest valid")[1])
        assert named
        for size in named:
            assert refusal(architecture, tuple(map(int, size.split(" x ")))) is None


def test_strides_may_be_one_number_for_all_axes() -> None:
    assert patch_granularity(architecture_of(TINY_RESENC, strides=[1, 2, 2, 2])) == (8, 8, 8)
