"""From what users have to what stock nnU-Net takes, by the command; when killed, it goes on to the same files."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.commands import nnunet_environment, run_command
from tests.conftest import Workplace
from tests.datasets.tables import on_disk, tree
from tests.end_to_end import importable
from tests.end_to_end.importable import KINDS, Source, scan
from tests.end_to_end.refusal import contents
from tests.processes import end_all, in_session, start, wait_for, workers_of

COMMAND = "nnUNetv2_import_dataset"
pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
IDS = {kind: 121 + number for number, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Imported:
    """A source and the dataset that the command made of it.

    Attributes:
        source: as it lies.
        place: nnU-Net's folders, with the datasets of all kinds.
        output: what the command has printed.
    """

    source: Source
    place: Workplace
    output: str

    def image(self, name: str) -> sitk.Image:
        return sitk.ReadImage(str(self.place.raw / name))

    def voxels(self, name: str) -> np.ndarray:
        return sitk.GetArrayFromImage(self.image(name))

    @property
    def description(self) -> dict:
        return json.loads((self.place.raw / "dataset.json").read_text())

    @property
    def splits(self) -> list[dict[str, list[str]]]:
        return json.loads((self.place.preprocessed / "splits_final.json").read_text())


def dataset_of(kind: str) -> str:
    return f"Dataset{IDS[kind]}_{kind}"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imported]:
    """Every kind, imported by the command."""
    root = tmp_path_factory.mktemp("imported")
    env = nnunet_environment(root)
    made = {}
    for kind, build in KINDS.items():
        source = build(root / "sources" / kind)
        result = run_command(COMMAND, *source.arguments(IDS[kind], kind), "-np", 2, env=env)
        assert result.stderr == ""
        made[kind] = Imported(source, Workplace(root, env, dataset_of(kind)), result.stdout)
    return made


@pytest.mark.parametrize(
    "kinds", [("zarr-csv", "csv"), pytest.param(("patterns", "bids", "tiff"), marks=pytest.mark.slow)], ids=" ".join
)
def test_stock_nnunet_plans_every_kind_and_finds_no_fault(
    kinds: tuple[str, ...], everything: dict[str, Imported], output_of: Callable[..., str]
) -> None:
    from nnunetv2_ext.cli import import_dataset

    place = everything["csv"].place
    result = run_command(
        "nnUNetv2_plan_and_preprocess", "-d", *(IDS[kind] for kind in kinds), "--verify_dataset_integrity", "--no_pp",
        "-npfp", 1, env=place.env,
    )  # fmt: skip
    good = "If you didn't see any error messages then your dataset is most likely OK!"
    assert result.stdout.count(good) == len(kinds)
    for word in ("Error", "Warning: ", "WARNING", "Traceback"):
        assert word not in result.stdout, result.stdout
    assert "Traceback" not in result.stderr
    for kind in kinds:
        plans = json.loads((everything[kind].place.preprocessed / "nnUNetPlans.json").read_text())
        assert plans["image_reader_writer"] == ("Tiff3DIO" if kind == "tiff" else "SimpleITKIO")
        assert "3d_fullres" in plans["configurations"]
    if "csv" in kinds:  # with other names of labels all of that is out of date
        made = everything["csv"]
        arguments = [str(a).replace("3=liver", "3=spleen") for a in made.source.arguments(IDS["csv"], "csv")]
        output = output_of(place, import_dataset.main, *arguments, "--dry_run", "-np", 1)
        (remark,) = [line for line in output.splitlines() if "plan and preprocess again: " in line]
        there = f"{made.place.preprocessed} holds dataset_fingerprint.json, nnUNetPlans.json of the dataset before"
        assert remark.startswith(f"{there} a change of labels: ")
        assert remark.endswith(f": nnUNetv2_plan_and_preprocess -d {IDS['csv']} --clean")


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_that_comes_next_is_printed(kind: str, everything: dict[str, Imported]) -> None:
    last = everything[kind].output.splitlines()[-1]
    assert last == f"next: nnUNetv2_plan_and_preprocess -d {IDS[kind]} --verify_dataset_integrity --no_pp"


def test_crops_of_zarr_lie_in_the_dataset_with_their_masks(everything: dict[str, Imported]) -> None:
    made = everything["zarr-csv"]
    size = importable.SIZE
    names = ["train_00007", "train_00008", "train_00009", "val_00001", "test_00002"]
    for crop, name in enumerate(names):
        tail = "Ts" if name.startswith("test") else "Tr"
        image, label = scan(crop, (size,) * 3)
        np.testing.assert_array_equal(made.voxels(f"images{tail}/{name}_0000.nii.gz"), image[::-1])
        np.testing.assert_array_equal(made.voxels(f"images{tail}/{name}_0001.nii.gz"), image)
        np.testing.assert_array_equal(made.voxels(f"labels{tail}/{name}.nii.gz"), label)
        header = made.image(f"images{tail}/{name}_0001.nii.gz")
        assert (header.GetSpacing(), header.GetOrigin()) == ((1, 1, 2), (3, 2, 2 * size * crop))
    assert made.splits == [{"train": names[:3], "val": names[3:4]}]
    assert made.description["channel_names"] == {"0": "reference", "1": "signal"}


def test_both_sides_of_a_subject_are_on_one_side_of_the_split_of_patterns(everything: dict[str, Imported]) -> None:
    made = everything["patterns"]
    assert made.description["labels"] == {"background": 0, "DG": 1, "CA1": 2}
    (fold,) = made.splits
    subjects = {part: {name.rpartition("_")[0] for name in names} for part, names in fold.items()}
    assert (len(subjects["train"]), len(subjects["val"])) == (2, 1)
    assert not subjects["train"] & subjects["val"]
    assert len(fold["train"]) == 4
    _, label = scan(len("left"))
    label[-4:, -4:, -4:] = 0
    np.testing.assert_array_equal(made.voxels("labelsTr/clinic_sub00_left.nii.gz"), label)


def test_a_dicom_series_of_a_table_lies_in_the_dataset_as_simpleitk_reads_it(everything: dict[str, Imported]) -> None:
    made = everything["csv"]
    folder = made.source.path.parent / "scans" / "p1"
    expected = sitk.ReadImage(sorted(map(str, folder.iterdir())))
    image = made.image("imagesTr/p1_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    for what in ("GetOrigin", "GetDirection", "GetSpacing"):
        np.testing.assert_allclose(getattr(image, what)(), getattr(expected, what)(), atol=1e-4)
    mask = np.load(made.source.path.parent / "p1.npy")
    np.testing.assert_array_equal(made.voxels("labelsTr/p1.nii.gz"), mask // 3)
    assert made.description["labels"] == {"background": 0, "liver": 1, "cyst": 2}
    assert made.splits == [{"train": ["p1", "p2", "p3"], "val": ["p4"]}]
    assert sorted(p.name for p in (made.place.raw / "imagesTs").iterdir()) == ["t1_0000.nii.gz"]


def test_the_channels_of_bids_are_copies_and_its_subjects_are_not_divided(everything: dict[str, Imported]) -> None:
    made = everything["bids"]
    for session in ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a", "sub-03_ses-a"):
        subject, _, _ = session.partition("_")
        folder = made.source.path / subject / session.partition("_")[2] / "anat"
        for channel, suffix in enumerate(("T1w", "T2w")):
            copied = made.place.raw / "imagesTr" / f"{session}_{channel:04d}.nii.gz"
            assert copied.read_bytes() == (folder / f"{session}_{suffix}.nii.gz").read_bytes()
    assert made.description["labels"] == {"background": 0, "caudate": 1, "putamen": 2}
    assert len(made.splits) == 3
    for fold in made.splits:
        assert len({name.startswith("sub-01") for name in fold["val"]}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_lists_every_case_and_writes_nothing(
    kind: str, everything: dict[str, Imported], output_of: Callable[..., str], tmp_path: Path
) -> None:
    from nnunetv2_ext.cli import import_dataset

    source = everything[kind].source
    place = Workplace(tmp_path, nnunet_environment(tmp_path), dataset_of(kind))
    before = contents(place)
    output = output_of(place, import_dataset.main, *source.arguments(IDS[kind], kind), "--dry_run", "-np", 1)
    assert contents(place) == before
    raw = everything[kind].place.raw
    images = [path.name for part in ("imagesTr", "imagesTs") for path in (raw / part).glob("*_0000.*")]
    assert len(images) >= 4
    for name in images:
        case = name.rpartition("_0000.")[0]
        assert re.search(rf"^[ \d]*{re.escape(case)} ", output, flags=re.MULTILINE), case
    assert output.count("train") >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_command_again_has_nothing_to_do(
    kind: str, everything: dict[str, Imported], output_of: Callable[..., str]
) -> None:
    from nnunetv2_ext.cli import import_dataset

    made = everything[kind]
    before = on_disk(made.place.raw)
    output = output_of(made.place, import_dataset.main, *made.source.arguments(IDS[kind], kind), "-np", 1)
    assert "nothing to do" in output
    assert on_disk(made.place.raw) == before


# ---- killed ----

NAME = "Dataset130_Cells"


@dataclass(frozen=True)
class Undisturbed:
    """A source of fourteen crops, and all files of an import that nothing has disturbed."""

    source: Source
    files: dict[str, bytes]
    seconds: float

    def arguments(self) -> list[object]:
        return [*self.source.arguments(130, "Cells"), "-np", 2]


@pytest.fixture(scope="module")
def undisturbed_import(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed_import")
    source = importable.zarr_csv(root / "source", num_train=12, size=64)
    started = time.monotonic()
    run_command(COMMAND, *source.arguments(130, "Cells"), "-np", 2, env=nnunet_environment(root))
    seconds = time.monotonic() - started
    return Undisturbed(source, all_files(root), seconds)


def all_files(root: Path) -> dict[str, bytes]:
    return {
        f"{v}/{name}": content
        for v in ("nnUNet_raw", "nnUNet_preprocessed")
        for name, content in tree(root / v).items()
    }


def done(root: Path) -> dict[str, tuple[int, int]]:
    """The images and labels of an unfinished import that have their names."""
    folder = root / "nnUNet_raw" / f".{NAME}.importing"
    return {name: which for name, which in on_disk(folder).items() if name.endswith(".nii.gz") and "/." not in name}


def recorded(root: Path) -> set[str]:
    return {p.stem for p in (root / "nnUNet_raw" / f".{NAME}.importing" / ".cases").glob("*.json")}


def kill_when(root: Path, whole: Undisturbed, seen: Callable[[], object]) -> None:
    """Start the command and kill it, not its workers, as soon as something is seen."""
    process = start(COMMAND, *whole.arguments(), env=nnunet_environment(root), log=root / "log")
    try:
        wait_for(seen, process)
        process.kill()
        process.wait()
        wait_for(lambda: not in_session(process.pid), seconds=10)
    finally:
        end_all(process)


def test_an_import_that_is_killed_is_continued_to_the_same_files_and_nothing_is_done_twice(
    undisturbed_import: Undisturbed, tmp_path: Path
) -> None:
    rng = random.Random(5)
    before: dict[str, tuple[int, int]] = {}
    cases: set[str] = set()
    for count in (1, 5, 9):
        kill_when(tmp_path, undisturbed_import, lambda count=count: len(recorded(tmp_path)) >= count)
        assert not (tmp_path / "nnUNet_raw" / NAME).exists()
        now = done(tmp_path)
        kept = {name: which for name, which in before.items() if any(case in name for case in cases)}
        assert {name: now[name] for name in kept} == kept
        before, cases = now, recorded(tmp_path)
        assert count <= len(cases) < 14
    leftover = tmp_path / "nnUNet_raw" / f".{NAME}.importing" / "imagesTr" / f".{rng.randint(1, 999)}.x_0000.nii.gz"
    leftover.write_bytes(b"half")
    run_command(COMMAND, *undisturbed_import.arguments(), env=nnunet_environment(tmp_path))
    after = on_disk(tmp_path / "nnUNet_raw" / NAME)
    kept = {name: which for name, which in before.items() if any(case in name for case in cases)}
    assert len(kept) >= 27, "two images and a label of nine cases"
    assert {name: after[name] for name in kept} == kept
    assert all_files(tmp_path) == undisturbed_import.files
    assert [p.name for p in (tmp_path / "nnUNet_raw").iterdir()] == [NAME]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_of_the_import(undisturbed_import: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(20)
    met = 0
    for number in range(20):
        root = tmp_path / str(number)
        root.mkdir()
        process = start(COMMAND, *undisturbed_import.arguments(), env=nnunet_environment(root), log=root / "log")
        try:
            if number % 4:  # the others are met while they read the source's tables
                wait_for((root / "nnUNet_raw" / f".{NAME}.importing").is_dir, process)
            time.sleep(rng.uniform(0, 0.5) * undisturbed_import.seconds)
            workers = workers_of(process.pid)
            if rng.random() < 0.3 and workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                process.wait(60)
            else:
                process.kill()
                process.wait()
            wait_for(lambda pid=process.pid: not in_session(pid), seconds=10)
        finally:
            end_all(process)
        if (root / "nnUNet_raw" / NAME).exists():
            files = all_files(root)
            expected = undisturbed_import.files
            assert {k: v for k, v in files.items() if f"/{NAME}/" in k and "/." not in k}.items() <= expected.items()
        met += (root / "nnUNet_raw" / f".{NAME}.importing").is_dir()
        run_command(COMMAND, *undisturbed_import.arguments(), env=nnunet_environment(root))
        assert all_files(root) == undisturbed_import.files
    print(f"{met} of 20 kills met cases in the making")
    assert met >= 5


@pytest.mark.slow
def test_a_killed_worker_is_reported_with_its_case_and_only_that_is_missing(
    undisturbed_import: Undisturbed, tmp_path: Path
) -> None:
    env = nnunet_environment(tmp_path)
    process = start(COMMAND, *undisturbed_import.arguments(), env=env, log=tmp_path / "log")
    try:
        wait_for(lambda: recorded(tmp_path), process)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        assert process.wait(timeout=120) == 1
    finally:
        end_all(process)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "could not be imported: its process was killed (SIGKILL)" in line
    assert line.endswith("what is done is kept, and the same command goes on")
    assert len(recorded(tmp_path)) == 13
    assert "(13 were there)" in run_command(COMMAND, *undisturbed_import.arguments(), env=env).stdout
    assert all_files(tmp_path) == undisturbed_import.files


def test_ctrl_c_ends_the_command_and_its_workers_with_a_line(undisturbed_import: Undisturbed, tmp_path: Path) -> None:
    env = nnunet_environment(tmp_path)
    process = start(COMMAND, *undisturbed_import.arguments(), env=env, log=tmp_path / "log")
    try:
        wait_for(lambda: recorded(tmp_path), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        wait_for(lambda: not in_session(process.pid), seconds=10)
    finally:
        end_all(process)
    assert (tmp_path / "log").read_text().splitlines() == [
        "nnUNetv2_import_dataset: error: interrupted: what is imported is kept: the same command goes on"
    ]
    assert not (tmp_path / "nnUNet_raw" / NAME).exists()
    run_command(COMMAND, *undisturbed_import.arguments(), env=env)
    assert all_files(tmp_path) == undisturbed_import.files


def test_a_second_import_beside_the_first_is_refused_and_the_first_ends_well(
    undisturbed_import: Undisturbed, tmp_path: Path
) -> None:
    env = nnunet_environment(tmp_path)
    first = start(COMMAND, *undisturbed_import.arguments(), env=env, log=tmp_path / "log")
    try:
        lock = tmp_path / "nnUNet_raw" / f".{NAME.partition('_')[0]}.importing.lock"
        wait_for(lock.exists, first)
        second = run_command(COMMAND, *undisturbed_import.arguments(), env=env, check=False)
        assert first.wait(timeout=120) == 0
    finally:
        end_all(first)
    assert second.returncode == 1
    said = f"another process is importing a dataset with the id {int(NAME[7:10])}: wait for it, or choose another (-d)"
    assert second.stderr == f"{COMMAND}: error: {said}\n"
    assert all_files(tmp_path) == undisturbed_import.files
