"""What a case was made from: a file or label that has changed is noticed, a new time or place alone is not one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunetv2_ext.preprocessing.dataset import PreprocessingSummary
from nnunetv2_ext.preprocessing.sources import Record
from tests.conftest import DATASET
from tests.preprocessed_folders import assert_same_folder, inodes
from tests.preprocessing.conftest import CASES, ENDINGS, WHOLE, Dataset
from tests.preprocessing.test_cases import change_voxels


@pytest.fixture
def made(dataset: Dataset) -> Dataset:
    """All cases are there."""
    dataset.run()
    return dataset


def counts(summary: PreprocessingSummary) -> tuple[int, list[str], int, int]:
    return summary.made, list(summary.remade), summary.kept, len(summary.failures)


def assert_as_made_from_scratch(place: Dataset, tmp_path: Path) -> None:
    """What is there equals what an empty folder would be filled with now."""
    for folder in (place.folder, place.records):
        shutil.copytree(folder, tmp_path / "kept" / folder.name)
        shutil.rmtree(folder)
    assert place.run().made == len(CASES)
    for folder in (place.folder, place.records):
        assert_same_folder(tmp_path / "kept" / folder.name, folder)


def test_the_record_of_a_case_has_the_hashes_of_its_files_and_the_labels(made: Dataset) -> None:
    record = made.record(CASES[0])
    files = [made.image(CASES[0]), made.label(CASES[0])]
    assert record["complete"] is True
    assert record["labels"] == json.loads((made.raw / "dataset.json").read_text())["labels"]
    assert [s["file"] for s in record["sources"]] == [f.name for f in files]
    assert [s["sha256"] for s in record["sources"]] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


@pytest.mark.parametrize("changed", ["image", "label"])
def test_a_case_whose_file_has_changed_is_made_again_and_named(changed: str, made: Dataset, tmp_path: Path) -> None:
    before = made.files()
    path = getattr(made, changed)(CASES[1])
    change_voxels(path, lambda voxels: voxels[:, :, ::-1].copy())
    summary = made.run()
    assert counts(summary) == (0, [CASES[1]], 2, 0)
    assert f"1 again whose files or labels had changed ({CASES[1]})" in str(summary)
    after = made.files()
    assert {n for n in WHOLE if before[n] != after[n]} == {f"{CASES[1]}{e}" for e in ENDINGS}
    assert_as_made_from_scratch(made, tmp_path)


def test_a_file_replaced_by_an_older_one_of_the_same_size_is_noticed(made: Dataset) -> None:
    label = made.label(CASES[1])
    time = label.stat().st_mtime_ns
    content = bytearray(label.read_bytes())
    content[4] ^= 1  # the time in the header of gzip: other bytes of the same length
    label.write_bytes(content)
    os.utime(label, ns=(time, time - 10**12))
    assert counts(made.run()) == (0, [CASES[1]], 2, 0)


def test_when_the_datasets_labels_have_changed_all_cases_are_made_again(made: Dataset, tmp_path: Path) -> None:
    path = made.raw / "dataset.json"
    description = json.loads(path.read_text())
    description["labels"]["lesion"] = max(description["labels"].values()) + 1
    path.write_text(json.dumps(description))
    assert counts(made.run()) == (0, list(CASES), 0, 0)
    assert_as_made_from_scratch(made, tmp_path)


def test_a_case_with_another_time_and_the_same_content_is_kept_and_its_record_follows(made: Dataset) -> None:
    before, record = made.files(), made.record(CASES[1])
    os.utime(made.image(CASES[1]))
    assert made.record(CASES[1]) == record
    assert counts(made.run()) == (0, [], 3, 0)
    assert made.files() == before
    expected = made.image(CASES[1]).stat().st_mtime_ns
    assert made.record(CASES[1])["sources"][0].pop("mtime_ns") == expected != record["sources"][0].pop("mtime_ns")


def test_a_dataset_that_was_copied_elsewhere_is_kept(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = made.root / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(made.root / "nnUNet_raw", elsewhere / "raw", copy_function=shutil.copyfile)
    shutil.copytree(made.root / "nnUNet_preprocessed", elsewhere / "pre", copy_function=shutil.copyfile)
    for path in (elsewhere / "raw").rglob("*.nii.gz"):
        os.utime(path, (0, 0))
    monkeypatch.setenv("nnUNet_raw", str(elsewhere / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(elsewhere / "pre"))
    folder = elsewhere / "pre" / DATASET / made.identifier
    before = inodes(folder)
    assert counts(made.run()) == (0, [], 3, 0)
    assert inodes(folder) == before


@pytest.fixture
def stock_made(dataset: Dataset) -> Dataset:
    """All cases are there, by stock nnU-Net, under the plan's identifier."""
    dataset.preprocessed.mkdir()
    (dataset.preprocessed / "stockPlans.json").write_text(json.dumps(dataset.plan))
    shutil.copy(dataset.raw / "dataset.json", dataset.preprocessed)
    stock = DefaultPreprocessor(verbose=False)
    stock.show_progress_bar = False
    stock.run(DATASET, "3d_fullres", "stockPlans", 1)
    return dataset


def test_cases_of_stock_nnunet_are_kept_and_named_where_their_files_are_newer(
    stock_made: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stock_made.files()
    assert counts(stock_made.run()) == (0, [], 3, 0)
    assert "not preprocessed by this command" not in capsys.readouterr().out
    later = (stock_made.folder / f"{CASES[2]}.pkl").stat().st_mtime + 10
    os.utime(stock_made.label(CASES[2]), (later, later))
    assert counts(stock_made.run()) == (0, [], 3, 0)
    assert stock_made.files() == before
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not preprocessed by this command" in line]
    assert line.startswith("1 cases ")
    assert CASES[2] in line
    assert "--overwrite_pp" in line
    assert not any(case in line for case in CASES[:2])


def test_overwriting_replaces_every_file_of_stock_nnunet(stock_made: Dataset, tmp_path: Path) -> None:
    before = stock_made.files()
    for name in before:  # so that no file's number is free to be used again
        (tmp_path / name).hardlink_to(stock_made.folder / name)
    assert counts(stock_made.run(overwrite=True)) == (3, [], 0, 0)
    after = stock_made.files()
    assert set(after) == set(before) == WHOLE
    assert not set(after.values()) & set(before.values()), "no file is the one of before"
    assert_as_made_from_scratch(stock_made, tmp_path)


def test_a_replacement_that_was_interrupted_is_taken_up_again(made: Dataset, tmp_path: Path) -> None:
    record = made.record(CASES[0])
    (made.records / f"{CASES[0]}.json").write_text(json.dumps({**record, "complete": False}))
    for array in made.folder.glob(f"{CASES[0]}*.b2nd"):
        shutil.copy(made.folder / array.name.replace(CASES[0], CASES[1]), array)  # of another version
    summary = made.run()
    assert summary.made + len(summary.remade) == 1
    assert summary.kept == 2
    assert_as_made_from_scratch(made, tmp_path)


def test_a_record_is_made_elsewhere_so_that_a_kill_leaves_nothing_beside_it(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in made.records.iterdir()}
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent == made.records:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    record = Record.read(made.folder, CASES[0])
    assert record is not None
    with pytest.raises(KeyboardInterrupt):
        Record([], {"background": 0}).write(made.folder, CASES[0], tmp_path)
    assert {p.name: p.read_bytes() for p in made.records.iterdir()} == before
    assert Record.read(made.folder, CASES[0]) == record


def test_a_case_that_left_the_raw_dataset_is_named_and_kept(made: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    made.image(CASES[0]).unlink()
    made.label(CASES[0]).unlink()
    assert counts(made.run()) == (0, [], 2, 0)
    assert set(made.files()) == WHOLE
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not in the raw dataset" in line]
    assert CASES[0] in line
    assert not any(case in line for case in CASES[1:])
