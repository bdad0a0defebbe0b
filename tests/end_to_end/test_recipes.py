"""Recipes by name: two epochs, a phase each, and stock nnU-Net predicts with the name that the command has printed."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_ext.cli import train_pretrained
from nnunetv2_ext.recipes.resolving import shipped_names
from tests.commands import TINY_TRAINING, run_command
from tests.conftest import DATASET_ID, Model, Workplace, copy_of, train
from tests.end_to_end.refusal import Refuses
from tests.training.test_loggers import scalars, wandb_history

SHORT = ("num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1", "mirroring=false")
"""Without mirroring every prediction takes an eighth of the time."""


@dataclass(frozen=True)
class Run:
    """A finished training of a recipe, with what the command has printed."""

    model: Model
    recipe: str
    output: str

    @property
    def log(self) -> str:
        (path,) = self.model.fold.glob("training_log_*.txt")
        return path.read_text()

    @property
    def record(self) -> dict:
        return json.loads((self.model.fold / "finetuning.json").read_text())


@pytest.fixture(scope="module")
def place(planned_resenc: Model, planned_primus: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The planned dataset, for the trainings of this module."""
    return copy_of(planned_primus.workplace, tmp_path_factory.mktemp("recipes"))


def train_recipe(planned: Model, place: Workplace, recipe: str, *options: object, suffix: str | None = None) -> Run:
    """Two epochs under the recipe's name, be it a shipped recipe or a trainer."""
    is_trainer = recipe.startswith("PretrainedTrainer")
    chosen = ("-tr" if is_trainer else "-r", recipe)
    output = train(place, planned.long_name, *SHORT, *options, *chosen)
    suffix = ("" if is_trainer else f"_{recipe}") if suffix is None else suffix
    trainer = recipe if is_trainer else "PretrainedTrainer"
    model = replace(planned, workplace=place, inner_name=planned.inner_name + suffix, trainer=trainer)
    return Run(model, recipe, output)


@pytest.fixture(scope="module")
def sawtooth(planned_resenc: Model, place: Workplace) -> Run:
    return train_recipe(planned_resenc, place, "sawtooth", "num_epochs=3")


@pytest.fixture(scope="module")
def lora(planned_primus: Model, place: Workplace) -> Run:
    return train_recipe(planned_primus, place, "lora")


@pytest.fixture(scope="module")
def named(planned_resenc: Model, place: Workplace) -> Run:
    return train_recipe(planned_resenc, place, "PretrainedTrainer_150ep")


QUICK = ("sawtooth", "lora", pytest.param("named", marks=pytest.mark.slow))


@pytest.fixture(params=QUICK)
def run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


def predict_as_printed(run: Run, output: Path) -> np.ndarray:
    """Run the command that the training has printed last, with two folders filled in."""
    (line,) = re.findall(r"^ *(nnUNetv2_predict .*)$", run.output, re.MULTILINE)
    images = run.model.workplace.raw / "imagesTs"
    folders = {"INPUT_FOLDER": images, "OUTPUT_FOLDER": output}
    name, *arguments = [folders.get(word, word) for word in shlex.split(line)]
    run_command(str(name), *arguments, "-npp", 1, "-nps", 1, env=run.model.workplace.env)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "MNI_006.nii.gz")))
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(images / "MNI_006_0000.nii.gz")))
    assert labels.shape == image.shape
    return labels


def test_stock_nnunet_predicts_with_the_name_that_the_training_has_printed(run: Run, tmp_path: Path) -> None:
    assert set(np.unique(predict_as_printed(run, tmp_path))) <= {0, 1, 2}


def test_every_phase_is_trained_and_named_in_the_log(run: Run) -> None:
    phases = re.findall(r"Phase (\d) of (\d) \(", run.log)
    assert len(phases) >= 2
    assert phases == [(str(i + 1), str(len(phases))) for i in range(len(phases))]
    assert run.record["recipe"]["name"] == run.recipe
    plans = json.loads((run.model.folder / "plans.json").read_text())
    assert plans["finetuning"]["recipe"] == run.record["recipe"]


def test_the_phases_of_sawtooth_are_its_decoder_and_then_everything(sawtooth: Run) -> None:
    parts = re.findall(r"Phase \d of 3 \((.*): \w+\)", sawtooth.log)
    assert parts == ["decoder + adapted_input_projection"] * 2 + ["all"]
    assert len(re.findall("the optimizer begins anew", sawtooth.log)) == 1


@pytest.mark.parametrize("name", ["sawtooth", "lora"])
def test_the_plan_lies_in_the_preprocessed_folder_under_the_runs_name(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name).model
    plan = model.workplace.plan(model.inner_name)
    assert plan["plans_name"] == model.inner_name
    assert plan["plans_name"].endswith(f"_Z_{name}")
    assert plan["finetuning"]["recipe"]["name"] == name


@pytest.mark.slow
def test_a_trainers_name_is_in_the_folders_name_and_leaves_the_plan_alone(named: Run, planned_resenc: Model) -> None:
    assert named.model.folder.name == f"PretrainedTrainer_150ep__{planned_resenc.inner_name}__3d_fullres"
    assert named.model.workplace.plan(planned_resenc.inner_name) == planned_resenc.workplace.plan(
        planned_resenc.inner_name
    )


def test_a_link_with_the_long_name_and_the_recipe_lies_beside_the_results(
    sawtooth: Run, planned_resenc: Model, place: Workplace
) -> None:
    link = place.results / f"PretrainedTrainer__{planned_resenc.long_name}_sawtooth__3d_fullres"
    assert link.is_symlink()
    assert link.resolve() == sawtooth.model.folder.resolve()


def test_lora_says_what_it_trains_and_leaves_an_adapter_beside_a_plain_model(lora: Run) -> None:
    plain = torch.load(lora.model.checkpoint, weights_only=True)["network_weights"]
    final = torch.load(lora.model.fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert not [name for name in final if "lora" in name or "base_layer" in name]
    encoder = [name for name in plain if name.startswith("eva.")]
    assert {name: final[name].shape for name in encoder} == {name: plain[name].shape for name in encoder}
    assert {p.name for p in (lora.model.fold / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert re.search(r"[\d,]+ of [\d,]+ parameters train \(\d+\.\d%\)", lora.output)


def test_another_recipe_under_the_same_name_is_refused(sawtooth: Run, planned_resenc: Model, refused: Refuses) -> None:
    arguments = ["-d", 999, "-c", "3d_fullres", "-p", planned_resenc.long_name, "-device", "cpu"]
    other = ["-r", "frozen_encoder", "-rn", "sawtooth", "--set", *TINY_TRAINING]
    for fold in (0, 1):
        message = refused(train_pretrained.main, [*arguments, "-f", fold, *other])
        assert "recipe sawtooth" in message
        assert "frozen_encoder" in message
        assert "-rn NAME" in message


def test_find_best_configuration_compares_runs_of_two_recipes(sawtooth: Run, lora: Run) -> None:
    place = sawtooth.model.workplace
    run_command(
        "nnUNetv2_find_best_configuration", DATASET_ID, "-p", sawtooth.model.inner_name, lora.model.inner_name,
        "-c", "3d_fullres", "-tr", "PretrainedTrainer", "-f", 0, "-np", 1, "--disable_ensembling", env=place.env,
    )  # fmt: skip
    found = json.loads((place.results / "inference_information.json").read_text())["all_results"]
    assert set(found) == {sawtooth.model.folder.name, lora.model.folder.name}


ALL = [
    (name, planned) for name in shipped_names() for planned in ("planned_resenc", "planned_primus")
]  # default on a Primus is its SGD and primus on a U-Net its AdamW, which users may want


@pytest.mark.slow
@pytest.mark.parametrize(("name", "planned"), ALL)
def test_every_shipped_recipe_trains_two_phases_and_stock_nnunet_predicts(
    name: str, planned: str, request: pytest.FixtureRequest, place: Workplace, tmp_path: Path
) -> None:
    model: Model = request.getfixturevalue(planned)
    done = train_recipe(model, place, name, "-rn", f"all-{name}", suffix=f"_all-{name}")
    assert len(re.findall(r"Phase [12] of 2 \(", done.log)) == 2
    predict_as_printed(done, tmp_path)


@pytest.mark.slow
def test_both_loggers_get_rates_scores_and_phases(planned_resenc: Model, place: Workplace) -> None:
    offline = {
        "nnUNet_wandb_mode": "offline",
        **{f"WANDB_{kind}_DIR": str(place.root / "wandb") for kind in ("CACHE", "CONFIG", "DATA")},
        "WANDB_ERROR_REPORTING": "false",
    }
    logged = replace(place, env={**place.env, **offline})
    run = train_recipe(planned_resenc, logged, "short", "-logger", "wandb", "tensorboard")
    truth = torch.load(run.model.fold / "checkpoint_final.pth", weights_only=True)["logging"]
    events, history = scalars(run.model.fold), wandb_history(run.model.fold)
    for key in ("lrs", "train_losses", "mean_fg_dice"):
        expected = dict(enumerate(truth[key]))
        assert dict(events[key]) == pytest.approx(expected, rel=1e-6)
        assert history[key] == pytest.approx(expected, rel=1e-6)
    assert dict(events["phase"]) == history["phase"] == {0: 0, 1: 1}
