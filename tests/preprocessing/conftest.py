"""A raw dataset of three cases, planned for the tiny ResEnc, in nnU-Net folders of each test's own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from nnunetv2_ext.preprocessing.cases import CaseJob
from nnunetv2_ext.preprocessing.dataset import PreprocessingSummary, preprocess_dataset
from nnunetv2_ext.preprocessing.run_options import RunOptions
from nnunetv2_ext.preprocessing.sources import raw_cases
from tests.conftest import DATASET, TINY_RESENC, Workplace
from tests.preprocessed_folders import inodes

CASES = ("MNI_000", "MNI_001", "MNI_002")
ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")
WHOLE = {f"{case}{ending}" for case in CASES for ending in ENDINGS}
QUIETLY: dict[str, Any] = {"num_processes": 1, "show_progress": False}


@dataclass(frozen=True)
class Dataset:
    """Raw cases and the place of the preprocessed ones; nnU-Net's variables point here."""

    root: Path
    plan: dict[str, Any]

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / DATASET

    @property
    def identifier(self) -> str:
        return self.plan["configurations"]["3d_fullres"]["data_identifier"]

    @property
    def folder(self) -> Path:
        """Of the cases."""
        return self.preprocessed / self.identifier

    @property
    def records(self) -> Path:
        """Of what the cases were made from."""
        return self.preprocessed / f"{self.identifier}.sources"

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"

    def label(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def record(self, case: str) -> dict[str, Any]:
        return json.loads((self.records / f"{case}.json").read_text())

    def run(self, **options: Any) -> PreprocessingSummary:
        return preprocess_dataset(DATASET, self.plan, RunOptions(**{**QUIETLY, **options}))

    def jobs(self, *, overwrite: bool = False) -> list[CaseJob]:
        """One for each case, as `run` gives them to workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        description, cases = raw_cases(DATASET)
        workspace = self.folder / "unfinished" / "test"
        return [CaseJob(c, self.folder, workspace, self.plan, description, overwrite) for c in cases]

    def files(self) -> dict[str, int]:
        """Files beside one another in the folder of cases, and the file on the disk that each is."""
        return inodes(self.folder)


@pytest.fixture(scope="session")
def ptplan(workplace: Workplace) -> dict[str, Any]:
    """1 mm isotropic; not to be changed."""
    description = json.loads((workplace.raw / "dataset.json").read_text())
    checkpoint = read_checkpoint(resolve_checkpoint_source(str(TINY_RESENC)))
    base = workplace.plan("nnUNetPlans")
    return make_plan(base, description, checkpoint, TargetSpacing((1, 1, 1)), PlanOptions("MAE"), "0" * 64)[0]


@pytest.fixture
def dataset(workplace: Workplace, ptplan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    place = Dataset(tmp_path, ptplan)
    for folder in ("imagesTr", "labelsTr"):
        (place.raw / folder).mkdir(parents=True)
        for path in (workplace.raw / folder).iterdir():
            if path.name.startswith(CASES):
                shutil.copy2(path, place.raw / folder)
    shutil.copy2(workplace.raw / "dataset.json", place.raw)
    return place


@pytest.fixture
def planned(dataset: Dataset, workplace: Workplace) -> Dataset:
    """The dataset with its stock plan and nothing else in the preprocessed folder."""
    dataset.preprocessed.mkdir()
    for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(workplace.preprocessed / name, dataset.preprocessed)
    return dataset
