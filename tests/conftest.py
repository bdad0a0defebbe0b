"""One dataset, one plan, one set of preprocessed cases and one trained model of each kind for the whole session."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunetv2_ext.datasets.mni import make_mni_dataset
from tests.commands import TINY_TRAINING, nnunet_environment, run_command

DATASET_ID = 999
DATASET = "Dataset999_MNI"
TINY_RESENC = Path(__file__).parent.parent / "nnunetv2_ext" / "data" / "tiny_resenc"
TINY_PRIMUS = Path(__file__).parent / "data" / "tiny_primus"


@dataclass(frozen=True)
class Workplace:
    """A user's nnU-Net folders with the MNI dataset in them."""

    root: Path
    env: dict[str, str]

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / DATASET

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results" / DATASET

    def plan(self, stem: str) -> dict:
        return json.loads((self.preprocessed / f"{stem}.json").read_text())


@dataclass(frozen=True)
class Model:
    """A plan with its preprocessed cases, and the model folder of its training (fold 0)."""

    workplace: Workplace
    checkpoint: Path
    long_name: str
    inner_name: str
    training_output: str = ""

    @property
    def folder(self) -> Path:
        return self.workplace.results / f"PretrainedTrainer__{self.inner_name}__3d_fullres"

    @property
    def fold(self) -> Path:
        return self.folder / "fold_0"


def copy_of(workplace: Workplace, root: Path, *, results: bool = False) -> Workplace:
    """A workplace of its own for a test that changes things; large files are hard links."""
    env = nnunet_environment(root)
    for source in ("nnUNet_raw", "nnUNet_preprocessed", *(("nnUNet_results",) if results else ())):
        shutil.rmtree(root / source)
        shutil.copytree(workplace.root / source, root / source, symlinks=True)
    return Workplace(root, {**env, "XDG_CACHE_HOME": workplace.env["XDG_CACHE_HOME"]})


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Six crops of MNI subjects of 48 voxels per axis, planned by stock nnU-Net."""
    root = tmp_path_factory.mktemp("workplace")
    env = nnunet_environment(root)
    place = Workplace(root, env)
    make_mni_dataset(place.raw, num_subjects=6, crop=(48, 48, 48))
    run_command("nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "--no_pp", "-npfp", 1, env=env)
    return place


def preprocess(workplace: Workplace, name: str, checkpoint: Path, *options: object) -> str:
    """Plan and preprocess by our command; returns its output."""
    return run_command(
        "nnUNetv2_preprocess_like_nnssl", "-d", DATASET_ID, "-n", name, "-pc", checkpoint, "-np", 1, *options,
        env=workplace.env,
    ).stdout  # fmt: skip


def train(workplace: Workplace, plans: str, *options: object) -> str:
    """Train two tiny epochs of fold 0 on the CPU, by our command; returns its output."""
    env = {**workplace.env, "nnUNet_n_proc_DA": "0"}
    return run_command(
        "nnUNetv2_train_pretrained", "-d", DATASET_ID, "-c", "3d_fullres", "-f", 0, "-p", plans, "-device", "cpu",
        "--set", *TINY_TRAINING, *options, env=env,
    ).stdout  # fmt: skip


@pytest.fixture(scope="session")
def planned_resenc(workplace: Workplace) -> Model:
    """The tiny ResEnc planned `like_pretrained`, cases preprocessed."""
    preprocess(workplace, "tiny", TINY_RESENC, "-am", "like_pretrained")
    return Model(
        workplace, TINY_RESENC / "checkpoint_final.pth",
        "ptPlans__tiny____Spacing__1.00_1.00_1.00___Norm__Z", "ptPlans_tiny_Spacing_1.00_1.00_1.00_Norm_Z",
    )  # fmt: skip


@pytest.fixture(scope="session")
def planned_primus(workplace: Workplace, planned_resenc: Model) -> Model:
    """The tiny Primus planned `like_pretrained`, on the same cases."""
    preprocess(workplace, "prim", TINY_PRIMUS, "-am", "like_pretrained")
    return Model(
        workplace, TINY_PRIMUS / "checkpoint_final.pth",
        "ptPlans__prim____Spacing__1.00_1.00_1.00___Norm__Z", "ptPlans_prim_Spacing_1.00_1.00_1.00_Norm_Z",
    )  # fmt: skip


@pytest.fixture(scope="session")
def resenc_model(planned_resenc: Model) -> Model:
    """The tiny ResEnc, trained and validated with probabilities."""
    output = train(planned_resenc.workplace, planned_resenc.long_name, "--npz")
    return Model(**{**planned_resenc.__dict__, "training_output": output})


@pytest.fixture(scope="session")
def primus_model(planned_primus: Model) -> Model:
    """The tiny Primus, trained and validated with probabilities."""
    output = train(planned_primus.workplace, planned_primus.inner_name, "--npz")
    return Model(**{**planned_primus.__dict__, "training_output": output})
