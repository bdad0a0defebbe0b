"""Datasets are found as stock nnU-Net finds them, and what is missing is a line for the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import (
    dataset_id,
    dataset_name,
    nnunet_folder,
    preprocessed_folder,
    raw_folder,
    read_json,
)

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "nnUNet_raw" / "Dataset004_Hippocampus").mkdir()
    (tmp_path / "nnUNet_preprocessed" / "Dataset004_Hippocampus").mkdir()
    (tmp_path / "nnUNet_preprocessed" / "Dataset017_AbdominalOrgans").mkdir()
    (tmp_path / "nnUNet_results" / "Dataset123_Foo_Bar").mkdir()
    return tmp_path


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable} is not set.*export {variable}="):
        nnunet_folder(variable)


@pytest.mark.parametrize("given", ["4", "004", "Dataset004_Hippocampus", "17", "123", "Dataset123_Foo_Bar"])
def test_ids_and_names_mean_what_they_mean_to_nnunet(given: str, folders: Path) -> None:
    name = dataset_name(given)
    assert name == maybe_convert_to_dataset_name(given)
    assert dataset_id(name) == convert_dataset_name_to_id(name)


@pytest.mark.parametrize("given", ["5", "12", "Dataset004_Liver", "Dataset005_Hippocampus", "Dataset004"])
def test_an_unknown_dataset_lists_those_that_exist(given: str, folders: Path) -> None:
    with pytest.raises(UserError, match=f"no dataset {given}.*Dataset004_Hippocampus, Dataset017_AbdominalOrgans"):
        dataset_name(given)


@pytest.mark.parametrize("given", ["Hippocampus", "4.0", "-4", "", "²", "nnUNet_raw/Dataset004_Hippocampus"])
def test_what_is_neither_an_id_nor_a_name_is_refused(given: str, folders: Path) -> None:
    with pytest.raises(UserError, match="dataset ids or names"):
        dataset_name(given)


def test_two_datasets_of_one_id_are_both_named_and_the_full_name_helps(folders: Path) -> None:
    (folders / "nnUNet_raw" / "Dataset004_Liver").mkdir()
    with pytest.raises(UserError, match="Dataset004_Hippocampus, Dataset004_Liver; give the full name"):
        dataset_name("4")
    assert dataset_name("Dataset004_Liver") == "Dataset004_Liver"


def test_without_any_variable_the_first_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        dataset_name("4")


def test_a_raw_folder_without_its_description_is_refused(folders: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset\.json.*nnUNet_raw"):
        raw_folder("Dataset004_Hippocampus")
    description = folders / "nnUNet_raw" / "Dataset004_Hippocampus" / "dataset.json"
    description.write_text("{}")
    assert raw_folder("Dataset004_Hippocampus") == description.parent


def test_a_preprocessed_folder_need_not_exist(folders: Path) -> None:
    assert preprocessed_folder("Dataset999_New") == folders / "nnUNet_preprocessed" / "Dataset999_New"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no file"), (b"", "not valid JSON"), (b'{"a": ', "not valid JSON"),
     (b"\xff\xfe", "not valid JSON"), (b"[1, 2]", "holds a list where nnU-Net has a JSON object")],
)  # fmt: skip
def test_a_file_that_is_no_json_object_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
