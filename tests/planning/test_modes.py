"""Adaptation modes: which spacing, and which arguments are refused."""

from __future__ import annotations

import math

import pytest

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.modes import ADAPTATION_MODES, TargetSpacing, target_spacing
from tests.planning.variants import pretrained_with

OWN = (1.5, 1.0, 1.2)


def test_the_modes_are_those_of_the_fork_and_no_resample() -> None:
    assert set(ADAPTATION_MODES) == {"like_pretrained", "default_nnunet", "fixed", "no_resample"}


def test_like_pretrained_takes_the_spacing_of_the_pre_training_in_its_own_order(
    tiny_resenc: PretrainedCheckpoint,
) -> None:
    pretraining = pretrained_with(tiny_resenc, spacing=[3, 0.8, 1]).adaptation_plan
    assert target_spacing("like_pretrained", pretraining, OWN) == TargetSpacing((3.0, 0.8, 1.0))


def test_default_nnunet_takes_the_datasets_spacing(tiny_resenc: PretrainedCheckpoint) -> None:
    assert target_spacing("default_nnunet", tiny_resenc.adaptation_plan, OWN) == TargetSpacing(OWN)


def test_fixed_takes_the_users_spacing(tiny_resenc: PretrainedCheckpoint) -> None:
    assert target_spacing("fixed", tiny_resenc.adaptation_plan, OWN, [2, 1.1, 0.9]) == TargetSpacing((2.0, 1.1, 0.9))


def test_no_resample_keeps_the_datasets_spacing_as_a_number(tiny_resenc: PretrainedCheckpoint) -> None:
    found = target_spacing("no_resample", tiny_resenc.adaptation_plan, OWN)
    assert found == TargetSpacing(OWN, resample=False)


@pytest.mark.parametrize("spacing", [None, [None, None, None], [1, 1, 1]])
def test_a_pre_training_without_a_spacing_falls_back_to_the_datasets_and_says_so(
    tiny_resenc: PretrainedCheckpoint, spacing: list[float | None] | None
) -> None:
    pretraining = pretrained_with(tiny_resenc, spacing=spacing, spacing_style="noresample").adaptation_plan
    found = target_spacing("like_pretrained", pretraining, OWN)
    assert (found.spacing, found.resample) == (OWN, True)
    assert "did not resample" in str(found.note)
    assert "1.5 x 1 x 1.2 mm" in str(found.note)


@pytest.mark.parametrize("mode", ADAPTATION_MODES)
def test_there_is_no_note_where_the_mode_does_what_its_name_says(mode: str, tiny_resenc: PretrainedCheckpoint) -> None:
    override = (1, 1, 1) if mode == "fixed" else None
    assert target_spacing(mode, tiny_resenc.adaptation_plan, OWN, override).note is None


@pytest.mark.parametrize(
    "override",
    [
        None,
        (),
        (1,),
        (1, 1),
        (1, 1, 1, 1),
        (0, 1, 1),
        (1, -1, 1),
        (1, 1, math.nan),
        (math.inf, 1, 1),
        (1, 1, -math.inf),
    ],
)
def test_fixed_without_three_positive_finite_numbers_is_refused(
    override: tuple[float, ...] | None, tiny_resenc: PretrainedCheckpoint
) -> None:
    with pytest.raises(UserError, match="-am fixed needs -os Z Y X: three positive finite numbers"):
        target_spacing("fixed", tiny_resenc.adaptation_plan, OWN, override)


@pytest.mark.parametrize("mode", sorted(set(ADAPTATION_MODES) - {"fixed"}))
def test_a_spacing_for_another_mode_is_refused(mode: str, tiny_resenc: PretrainedCheckpoint) -> None:
    with pytest.raises(UserError, match=f"-os goes with -am fixed, not with -am {mode}"):
        target_spacing(mode, tiny_resenc.adaptation_plan, OWN, (1, 1, 1))


def test_an_unknown_mode_lists_those_that_exist(tiny_resenc: PretrainedCheckpoint) -> None:
    with pytest.raises(UserError, match="like_pretrained, default_nnunet, fixed, no_resample, not 'isotropic'"):
        target_spacing("isotropic", tiny_resenc.adaptation_plan, OWN)
