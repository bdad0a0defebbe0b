"""One dataset, one plan, one set of preprocessed cases and one trained model of each kind for the whole session."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunetv2_ext.datasets.mni import make_mni_dataset
from nnunetv2_ext.launching.stopping import SIGNALS
from tests.commands import TINY_TRAINING, nnunet_environment, run_command

DATASET_ID = 999
DATASET = "Dataset999_MNI"
TINY_RESENC = Path(__file__).parent.parent / "nnunetv2_ext" / "data" / "tiny_resenc"
TINY_PRIMUS = Path(__file__).parent / "data" / "tiny_primus"


@dataclass(frozen=True)
class Workplace:
    """A user's nnU-Net folders with a dataset in them."""

    root: Path
    env: dict[str, str]
    dataset: str = DATASET

    @property
    def dataset_id(self) -> int:
        return int(self.dataset[len("Dataset") :][:3])

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results" / self.dataset

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
    trainer: str = "PretrainedTrainer"

    @property
    def folder(self) -> Path:
        return self.workplace.results / f"{self.trainer}__{self.inner_name}__3d_fullres"

    @property
    def fold(self) -> Path:
        return self.folder / "fold_0"


@pytest.fixture(autouse=True)
def signals_of_pytest() -> Iterator[None]:
    """Ctrl-C stops the tests as ever, also after one has called a training command's main in this process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def copy_of(workplace: Workplace, root: Path, *, results: bool = False) -> Workplace:
    """A workplace of its own for a test that changes things."""
    env = nnunet_environment(root)
    for source in ("nnUNet_raw", "nnUNet_preprocessed", *(("nnUNet_results",) if results else ())):
        shutil.rmtree(root / source)
        shutil.copytree(workplace.root / source, root / source, symlinks=True)
    return Workplace(root, {**env, "XDG_CACHE_HOME": workplace.env["XDG_CACHE_HOME"]}, workplace.dataset)


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
        "nnUNetv2_preprocess_like_nnssl", "-d", workplace.dataset_id, "-n", name, "-pc", checkpoint, "-np", 1, *options,
        env=workplace.env,
    ).stdout  # fmt: skip


def plan_dynamic(workplace: Workplace, name: str, source: Path, *options: object) -> Model:
    """Plan and preprocess the dataset's own network by our command."""
    run_command(
        "nnUNetv2_plan_like_dynamic", "-d", workplace.dataset_id, "-n", name, "-pc", source, "-np", 1, *options,
        env=workplace.env,
    )  # fmt: skip
    return Model(workplace, source, f"ptPlans_dynamic__{name}", f"ptPlans_dynamic_{name}")


def predict(model: Model, output: Path, *options: object, plans: str = "", images: Path | None = None) -> Path:
    """Predict the dataset's unseen images by stock nnU-Net's command; returns the folder.

    In the command's own process: each that it starts imports torch anew, which takes longer than these predictions.
    """
    place = model.workplace
    run_command(
        "nnUNetv2_predict", "-i", images or place.raw / "imagesTs", "-o", output, "-d", place.dataset_id,
        "-c", "3d_fullres", "-f", 0, "-p", plans or model.inner_name, "-tr", model.trainer, "-device", "cpu",
        "-npp", 0, "-nps", 0, *options, env=place.env,
    )  # fmt: skip
    return output


def train(workplace: Workplace, plans: str, *options: object) -> str:
    """Train two tiny epochs of fold 0 on the CPU, by our command; returns its output."""
    env = {**workplace.env, "nnUNet_n_proc_DA": "0"}
    return run_command(
        "nnUNetv2_train_pretrained", "-d", workplace.dataset_id, "-c", "3d_fullres", "-f", 0, "-p", plans,
        "-device", "cpu", "--set", *TINY_TRAINING, *options, env=env,
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
    """The tiny ResEnc, trained and validated with probabilities, mirrored as nnU-Net does by default."""
    output = train(planned_resenc.workplace, planned_resenc.long_name, "mirroring=true", "--npz")
    return Model(**{**planned_resenc.__dict__, "training_output": output})


@pytest.fixture(scope="session")
def primus_model(planned_primus: Model) -> Model:
    """The tiny Primus, trained and validated with probabilities."""
    output = train(planned_primus.workplace, planned_primus.inner_name, "--npz")
    return Model(**{**planned_primus.__dict__, "training_output": output})


STOCK_TRAINER = '''
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)


class nnUNetTrainerTiny(nnUNetTrainerNoMirroring):
    """Stock nnU-Net, for two epochs of three steps, without mirroring."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 3, 2
'''


@dataclass(frozen=True)
class StockModel:
    """A model that stock nnU-Net has planned, preprocessed and trained; this package had no part in it."""

    workplace: Workplace
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "fold_0" / "checkpoint_final.pth"


def _stock_model(workplace: Workplace, plans: str) -> StockModel:
    run_command(
        "nnUNetv2_train", workplace.dataset_id, "3d_fullres", 0, "-p", plans, "-tr", "nnUNetTrainerTiny",
        "-device", "cpu", env={**workplace.env, "nnUNet_n_proc_DA": "0"},
    )  # fmt: skip
    return StockModel(workplace, workplace.results / f"nnUNetTrainerTiny__{plans}__3d_fullres")


@pytest.fixture(scope="session")
def source_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Another user's folders: a dataset of four channels and three labels, isotropic, and a stock trainer."""
    root = tmp_path_factory.mktemp("source")
    trainers = root / "trainers"
    trainers.mkdir()
    (trainers / "nnUNetTrainerTiny.py").write_text(STOCK_TRAINER)
    env = {**nnunet_environment(root), "nnUNet_extTrainer": str(trainers)}
    place = Workplace(root, env, "Dataset997_Source")
    make_mni_dataset(place.raw, num_subjects=5, crop=(32, 32, 32), num_channels=4, spacings=((1.0, 1.0, 1.0),))
    return place


@pytest.fixture(scope="session")
def plain_model(source_workplace: Workplace) -> StockModel:
    """A PlainConvUNet, nnU-Net's default."""
    run_command(
        "nnUNetv2_plan_and_preprocess", "-d", 997, "-c", "3d_fullres", "-np", 1, "-npfp", 1, env=source_workplace.env
    )
    return _stock_model(source_workplace, "nnUNetPlans")


@pytest.fixture(scope="session")
def residual_model(source_workplace: Workplace, plain_model: StockModel) -> StockModel:
    """A ResidualEncoderUNet, nnU-Net's recommendation, on the same cases."""
    run_command("nnUNetv2_plan_experiment", "-d", 997, "-pl", "nnUNetPlannerResEncM", env=source_workplace.env)
    path = source_workplace.preprocessed / "nnUNetResEncUNetMPlans.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["3d_fullres"]["data_identifier"] = "nnUNetPlans_3d_fullres"
    path.write_text(json.dumps(plan))
    return _stock_model(source_workplace, "nnUNetResEncUNetMPlans")


@pytest.fixture(scope="session")
def anisotropic_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two channels, two labels and 4 mm slices, so other strides and kernels; planned by stock nnU-Net alone."""
    root = tmp_path_factory.mktemp("anisotropic")
    place = Workplace(root, nnunet_environment(root), "Dataset998_Target")
    make_mni_dataset(place.raw, num_subjects=5, crop=(16, 48, 48), num_channels=2, spacings=((4.0, 1.0, 1.0),))
    for label in [*(place.raw / "labelsTr").iterdir(), *(place.raw / "labelsTs").iterdir()]:
        _merge_labels(label)
    description = json.loads((place.raw / "dataset.json").read_text())
    description["labels"] = {"background": 0, "brain": 1}
    (place.raw / "dataset.json").write_text(json.dumps(description))
    run_command("nnUNetv2_plan_and_preprocess", "-d", 998, "--no_pp", "-npfp", 1, env=place.env)
    return place


def _merge_labels(path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    merged = sitk.Cast(image > 0, image.GetPixelID())
    merged.CopyInformation(image)
    sitk.WriteImage(merged, str(path))
