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
from nnunetv2_ext.preprocessing.dataset import PreprocessingSummary, preprocess_dataset
from tests.conftest import DATASET, TINY_RESENC, Workplace

CASES = ("MNI_000", "MNI_001", "MNI_002")
ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")


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
    def folder(self) -> Path:
        """Of the cases."""
        return self.preprocessed / self.plan["configurations"]["3d_fullres"]["data_identifier"]

    def run(self, **options: Any) -> PreprocessingSummary:
        return preprocess_dataset(DATASET, self.plan, **{"num_processes": 1, "show_progress": False, **options})

    def files(self) -> dict[str, int]:
        """Files beside one another in the folder of cases, and the file on the disk that each is."""
        return {p.name: p.stat().st_ino for p in self.folder.iterdir() if p.is_file()}


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
