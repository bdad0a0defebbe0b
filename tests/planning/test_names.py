"""Names are the fork's, and stock nnU-Net takes the inner ones apart again."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.names import (
    FROM_SCRATCH_SUFFIX,
    check_pretraining_name,
    data_identifier,
    inner_plans_name,
    plans_file_stem,
)

SCHEMES = sorted(
    name
    for name, found in inspect.getmembers(default_normalization_schemes, inspect.isclass)
    if issubclass(found, ImageNormalization) and found is not ImageNormalization
)
VALID_NAMES = st.from_regex(r"[A-Za-z0-9.-]{1,6}(_[A-Za-z0-9.-]{1,6}){0,3}", fullmatch=True).filter(
    lambda name: set(name) - {"."}
)
SPACINGS = st.none() | st.tuples(*[st.floats(0.01, 99)] * 3)


@pytest.mark.parametrize(
    ("spacing", "schemes", "expected"),
    [
        ((1, 1, 1), ["ZScoreNormalization"], "Spacing__1.00_1.00_1.00___Norm__Z"),
        ((3.0, 0.7871, 0.999), ["CTNormalization"], "Spacing__3.00_0.79_1.00___Norm__CT"),
        ((1, 1, 1), ["ZScoreNormalization"] * 3, "Spacing__1.00_1.00_1.00___Norm__Z_Z_Z"),
        ((1, 1, 1), ["ZScoreNormalization", "NoNormalization"], "Spacing__1.00_1.00_1.00___Norm__Z_No"),
        (None, ["ZScoreNormalization"], "Spacing__None_None_None___Norm__Z"),
    ],
)
def test_the_folder_of_cases_is_called_as_in_the_fork(
    spacing: tuple[float, ...] | None, schemes: list[str], expected: str
) -> None:
    assert data_identifier(spacing, schemes) == expected


def test_the_plans_file_is_called_as_in_the_fork() -> None:
    stem = plans_file_stem("MAE", "Spacing__1.00_1.00_1.00___Norm__Z")
    assert stem == "ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z"
    assert inner_plans_name(stem) == "ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z"


def test_every_normalisation_of_nnunet_has_letters_of_its_own() -> None:
    assert len(SCHEMES) >= 5
    letters = {data_identifier((1, 1, 1), [scheme]).split("Norm__")[1] for scheme in SCHEMES}
    assert len(letters) == len(SCHEMES)


@given(name=VALID_NAMES, spacing=SPACINGS, schemes=st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=4))
@pytest.mark.parametrize("suffix", ["", FROM_SCRATCH_SUFFIX])
def test_stock_nnunet_reads_the_inner_name_out_of_a_results_folder(
    suffix: str, name: str, spacing: tuple[float, ...] | None, schemes: list[str]
) -> None:
    check_pretraining_name(name)
    inner = inner_plans_name(plans_file_stem(name, data_identifier(spacing, schemes))) + suffix
    folder = convert_trainer_plans_config_to_identifier("PretrainedTrainer", inner, "3d_fullres")
    assert tuple(convert_identifier_to_trainer_plans_config(folder)) == ("PretrainedTrainer", inner, "3d_fullres")
    assert not inner.startswith("_")  # ensembles are split at three underscores
    assert not inner.endswith("_")


@given(name=VALID_NAMES)
def test_the_inner_name_of_an_inner_name_is_itself(name: str) -> None:
    inner = inner_plans_name(plans_file_stem(name, "Spacing__1.00_1.00_1.00___Norm__Z"))
    assert inner_plans_name(inner) == inner


@given(name=VALID_NAMES, other=VALID_NAMES)
def test_two_names_never_share_an_inner_name(name: str, other: str) -> None:
    identifier = "Spacing__1.00_1.00_1.00___Norm__Z"
    inners = {inner_plans_name(plans_file_stem(n, identifier)) for n in (name, other)}
    assert len(inners) == len({name, other})


@pytest.mark.parametrize("name", ["MAE", "VoCo_2026-07", "a.b-c_d", "7", "ResEncL_OpenMind.v1"])
def test_letters_digits_points_hyphens_and_single_underscores_are_taken(name: str) -> None:
    assert check_pretraining_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        "a/b",
        "/a",
        "../a",
        "a\\b",
        "a b",
        " a",
        "a\n",
        "a__b",
        "_a",
        "a_",
        "a:b",
        "a*",
        "ä",
        "a\0b",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"\(-n\) becomes part of file and folder names"):
        check_pretraining_name(name)
