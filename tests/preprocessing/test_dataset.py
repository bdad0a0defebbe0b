"""Preprocessed cases are stock nnU-Net's; a run that was cut off is continued, nothing half is left."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.cases import Result
from nnunetv2_ext.preprocessing.dataset import failure_line, preprocess_dataset
from nnunetv2_ext.preprocessing.preprocessor import ExactPreprocessor
from nnunetv2_ext.preprocessing.run_options import RunOptions
from tests.conftest import DATASET
from tests.preprocessed_folders import assert_same_folder
from tests.preprocessing.conftest import CASES, ENDINGS, QUIETLY, WHOLE, Dataset

DATA_TOLERANCE = 1e-4
LABEL_TOLERANCE = 1e-5


def assert_as_stock_made_it(case: str, ours: Path, stock: Path) -> None:
    """Up to the stated tolerances of resampling."""
    for name, tolerance in ((f"{case}.b2nd", DATA_TOLERANCE), (f"{case}_seg.b2nd", 0)):
        a, b = (blosc2.open(urlpath=str(folder / name), mode="r") for folder in (ours, stock))
        assert (a.dtype, a.shape, a.chunks, a.blocks) == (b.dtype, b.shape, b.chunks, b.blocks)
        different = np.abs(a[:].astype(float) - b[:]) > tolerance
        assert np.mean(different) <= (0 if tolerance else LABEL_TOLERANCE)
    made, expected = (pickle.loads((folder / f"{case}.pkl").read_bytes()) for folder in (ours, stock))
    locations, stock_locations = made.pop("class_locations"), expected.pop("class_locations")
    np.testing.assert_equal(made, expected)
    assert {c: len(found) for c, found in locations.items()} == {c: len(found) for c, found in stock_locations.items()}
    labels = blosc2.open(urlpath=str(ours / f"{case}_seg.b2nd"), mode="r")[:]
    for c, found in locations.items():
        assert (labels[tuple(np.transpose(found))] == c).all()


def test_cases_equal_stock_nnunets(dataset: Dataset) -> None:
    summary = dataset.run(num_processes=2)
    assert (summary.made, summary.kept) == (3, 0)

    stock_plan = copy.deepcopy(dataset.plan)
    stock_plan["configurations"]["3d_fullres"]["data_identifier"] = "stock"
    (dataset.preprocessed / "stockPlans.json").write_text(json.dumps(stock_plan))
    shutil.copy(dataset.raw / "dataset.json", dataset.preprocessed)
    stock = DefaultPreprocessor(verbose=False)
    stock.show_progress_bar = False
    stock.run(DATASET, "3d_fullres", "stockPlans", 1)

    assert set(dataset.files()) == WHOLE
    for case in CASES:
        assert_as_stock_made_it(case, dataset.folder, dataset.preprocessed / "stock")


def test_stock_nnunet_reads_the_folder_and_finds_nothing_else_in_it(dataset: Dataset) -> None:
    dataset.run()
    assert set(os.listdir(dataset.folder)) == WHOLE
    assert infer_dataset_class(str(dataset.folder)) is nnUNetDatasetBlosc2
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(dataset.folder))) == sorted(CASES)


def test_the_labels_are_copied_for_validation(dataset: Dataset) -> None:
    dataset.run()
    copies = dataset.preprocessed / "gt_segmentations"
    assert sorted(os.listdir(copies)) == [f"{case}.nii.gz" for case in CASES]
    for path in copies.iterdir():
        assert path.read_bytes() == (dataset.raw / "labelsTr" / path.name).read_bytes()


def test_a_second_run_makes_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.run()
    before = dataset.files()
    monkeypatch.setattr(DefaultPreprocessor, "run_case", lambda *_: pytest.fail("a case was made again"))
    summary = dataset.run()
    assert (summary.made, summary.kept) == (0, 3)
    assert dataset.files() == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_case_that_lacks_a_file_is_made_again(ending: str, dataset: Dataset, tmp_path: Path) -> None:
    dataset.run()
    shutil.copytree(dataset.folder, tmp_path / "first")
    before = dataset.files()
    (dataset.folder / f"MNI_001{ending}").unlink()
    summary = dataset.run()
    assert (summary.made, summary.kept) == (1, 2)
    assert_same_folder(dataset.folder, tmp_path / "first")
    after = dataset.files()
    assert {n for n in WHOLE if after[n] == before[n]} >= {n for n in WHOLE if not n.startswith("MNI_001")}


def test_overwriting_makes_every_case_again(dataset: Dataset) -> None:
    dataset.run()
    for path in dataset.folder.glob("*.pkl"):
        path.write_bytes(b"of yesterday")
    summary = dataset.run(overwrite=True)
    assert (summary.made, summary.kept) == (3, 0)
    assert {p.name for p in dataset.folder.iterdir()} == WHOLE
    assert all("spacing" in pickle.loads(p.read_bytes()) for p in dataset.folder.glob("*.pkl"))


def test_while_a_case_is_made_only_whole_ones_lie_in_the_folder(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    save = ExactPreprocessor.run_case_save

    def watched(*arguments: Any) -> None:
        save(*arguments)
        if seen:
            infer_dataset_class(str(dataset.folder))
        seen.append(set(dataset.files()))

    monkeypatch.setattr(ExactPreprocessor, "run_case_save", watched)
    dataset.run()
    assert seen == [{f"{case}{e}" for case in CASES[:done] for e in ENDINGS} for done in range(3)]


def test_a_run_that_is_interrupted_leaves_whole_cases_and_is_continued(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ExactPreprocessor.run_case_save

    def interrupted(self: ExactPreprocessor, target: str, *arguments: Any) -> None:
        save(self, target, *arguments)
        if target.endswith("MNI_001"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExactPreprocessor, "run_case_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset.run()
    assert {p.name for p in dataset.folder.iterdir()} == {f"MNI_000{e}" for e in ENDINGS}
    summary = dataset.run()
    assert (summary.made, summary.kept) == (2, 1)
    assert {p.name for p in dataset.folder.iterdir()} == WHOLE


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_a_corrupted_image_is_named_and_the_other_cases_are_done(reader: str, dataset: Dataset) -> None:
    whole = dataset.image("MNI_001").read_bytes()
    dataset.image("MNI_001").write_bytes(b"<html>no image</html>")
    place = Dataset(dataset.root, {**dataset.plan, "image_reader_writer": reader})
    summary = place.run()
    assert [(o.case, o.result) for o in summary.failures] == [("MNI_001", Result.FAILED)]
    assert (summary.made, summary.kept) == (2, 0)
    assert set(os.listdir(dataset.folder)) == {n for n in WHOLE if not n.startswith("MNI_001")}
    dataset.image("MNI_001").write_bytes(whole)
    summary = place.run()
    assert (summary.made, summary.kept, summary.failures) == (1, 2, [])


def test_cases_that_failed_are_said_in_one_line_with_what_to_do(dataset: Dataset) -> None:
    for case in ("MNI_000", "MNI_002"):
        dataset.label(case).write_bytes(b"<html>log in</html>")
    summary = dataset.run()
    line = failure_line(DATASET, summary.failures)
    assert line.startswith(f"case MNI_000 of {DATASET} could not be preprocessed: MNI_000.nii.gz is damaged")
    assert "(2 cases failed: MNI_000, MNI_002)" in line
    assert line.endswith("the other cases are done, and the same command continues")
    assert "\n" not in line
    assert "1 cases preprocessed, 0 were there already, 2 failed" in str(summary)


def test_a_missing_label_is_named_before_anything_is_made(dataset: Dataset) -> None:
    (dataset.raw / "labelsTr" / "MNI_001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no label .*MNI_001\.nii\.gz for its images"):
        dataset.run()
    assert not dataset.preprocessed.exists()


@pytest.mark.parametrize("emptied", [True, False])
def test_a_dataset_without_training_cases_is_refused(emptied: bool, dataset: Dataset) -> None:
    shutil.rmtree(dataset.raw / "imagesTr")
    if emptied:
        (dataset.raw / "imagesTr").mkdir()
    with pytest.raises(UserError, match="no training cases"):
        dataset.run()


def test_without_the_raw_data_it_is_asked_for(dataset: Dataset) -> None:
    shutil.rmtree(dataset.raw)
    with pytest.raises(UserError, match="the raw dataset is needed"):
        dataset.run()


def test_a_plan_with_other_settings_does_not_mix_its_cases_with_those_there(dataset: Dataset) -> None:
    dataset.run()
    before = dataset.files()
    other = copy.deepcopy(dataset.plan)
    other["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(UserError, match="preprocessed with other settings"):
        preprocess_dataset(DATASET, other, RunOptions(**QUIETLY))
    assert dataset.files() == before


def test_a_label_that_was_corrected_is_copied_again_and_the_others_are_not(dataset: Dataset) -> None:
    dataset.run()
    copies = dataset.preprocessed / "gt_segmentations"
    before = {p.name: p.stat().st_ino for p in copies.iterdir()}
    label = dataset.raw / "labelsTr" / "MNI_001.nii.gz"
    label.write_bytes((dataset.raw / "labelsTr" / "MNI_000.nii.gz").read_bytes())
    later = (copies / label.name).stat().st_mtime + 10
    os.utime(label, (later, later))
    dataset.run()
    assert (copies / label.name).read_bytes() == label.read_bytes()
    assert {n for n, inode in before.items() if (copies / n).stat().st_ino != inode} == {label.name}


def test_cases_listed_in_dataset_json_are_found_as_stock_nnunet_finds_them(dataset: Dataset) -> None:
    description = json.loads((dataset.raw / "dataset.json").read_text())
    description["dataset"] = {"first": {"images": ["imagesTr/MNI_000_0000.nii.gz"], "label": "labelsTr/MNI_000.nii.gz"}}
    (dataset.raw / "dataset.json").write_text(json.dumps(description))
    assert dataset.run().made == 1
    assert set(dataset.files()) == {f"first{e}" for e in ENDINGS}
    assert os.listdir(dataset.preprocessed / "gt_segmentations") == ["first.nii.gz"]
