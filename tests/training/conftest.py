"""A trainer in this process, on the session's preprocessed cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.architectures.presets import family as family_of
from nnunetv2_ext.nnunet_folders import read_json
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training.trainer import PretrainedTrainer, trainer_class
from tests.conftest import DATASET, Model

MakeTrainer = Callable[..., PretrainedTrainer]


@pytest.fixture
def make_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeTrainer:
    """Builds a `PretrainedTrainer` for a planned model, with its results below the test's own folder."""

    def make(
        model: Model, *overrides: str, trainer: str = "PretrainedTrainer", **plan_changes: object
    ) -> PretrainedTrainer:
        for name, value in model.workplace.env.items():
            if name.startswith("nnUNet_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        plan = model.workplace.plan(model.inner_name)
        family = family_of(plan["configurations"]["3d_fullres"]["architecture"])
        tiny = ("num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1")
        plan["finetuning"] = {"recipe": recipe_for(family, (*tiny, *overrides)).as_dict()}
        plan |= {"continue_training": False, **plan_changes}
        dataset_json = read_json(model.workplace.root / "nnUNet_preprocessed" / DATASET / "dataset.json")
        return trainer_class(trainer)(plan, "3d_fullres", 0, dataset_json, torch.device("cpu"))

    return make
