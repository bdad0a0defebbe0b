"""Recipes against the values of the papers and of nnU-Net, and every way in which a user can get them wrong."""

from __future__ import annotations

import dataclasses
import inspect
import json
from importlib.resources import files
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.recipe import Optimizer, Recipe
from nnunetv2_ext.recipes.resolving import recipe_for, recipe_from_dict

FIELDS = [f.name for f in dataclasses.fields(Recipe)]


def test_a_cnn_is_trained_as_pretrained_trainer_does() -> None:
    recipe = recipe_for("cnn")
    assert recipe.optimizer is Optimizer.sgd
    assert (recipe.num_epochs, recipe.warmup_epochs) == (1000, 50)
    assert (recipe.initial_lr, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (1e-3, 0.99, True, 3e-5)
    assert (recipe.poly_exponent, recipe.gradient_clipping, recipe.deep_supervision) == (0.9, 12, False)


def test_primus_is_trained_as_in_its_paper() -> None:
    recipe = recipe_for("primus")
    assert recipe.optimizer is Optimizer.adamw
    assert (recipe.num_epochs, recipe.warmup_epochs) == (1000, 50)
    assert (recipe.initial_lr, recipe.betas, recipe.weight_decay) == (1e-4, [0.9, 0.98], 5e-2)
    assert (recipe.poly_exponent, recipe.gradient_clipping, recipe.deep_supervision) == (0.9, 1, False)


@pytest.mark.parametrize(("family", "peak"), [("cnn", 1e-2), ("primus", 3e-4)])
def test_from_scratch_starts_higher_and_changes_nothing_else(family: str, peak: float) -> None:
    pretrained, scratch = recipe_for(family).as_dict(), recipe_for(family, from_scratch=True).as_dict()
    assert scratch == {**pretrained, "initial_lr": peak, "from_scratch": True}


def test_iterations_and_oversampling_are_nnunets_own() -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    source = inspect.getsource(nnUNetTrainer.__init__)
    recipe = recipe_for("cnn")
    assert f"self.oversample_foreground_percent = {recipe.oversample_foreground_percent}" in source
    assert f"self.num_iterations_per_epoch = {recipe.num_iterations_per_epoch}" in source
    assert f"self.num_val_iterations_per_epoch = {recipe.num_val_iterations_per_epoch}" in source
    assert f"self.save_every = {recipe.save_every}" in source


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_means(name: str) -> None:
    (found,) = [f for f in dataclasses.fields(Recipe) if f.name == name]
    assert len(found.metadata["help"]) > 5


@pytest.mark.parametrize("shipped", ["default", "primus"])
def test_the_shipped_files_hold_only_fields(shipped: str) -> None:
    content = yaml.safe_load(files("nnunetv2_ext.recipes").joinpath(f"{shipped}.yaml").read_text())
    assert content["name"] == shipped
    assert set(content) <= set(FIELDS)


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("num_epochs=300", "num_epochs", 300),
        ("warmup_epochs=0", "warmup_epochs", 0),
        ("initial_lr=1e-4", "initial_lr", 1e-4),
        ("initial_lr=3", "initial_lr", 3.0),
        ("weight_decay=0", "weight_decay", 0.0),
        ("deep_supervision=true", "deep_supervision", True),
        ("nesterov=false", "nesterov", False),
        ("optimizer=adamw", "optimizer", Optimizer.adamw),
        ("betas=[0.8, 0.9]", "betas", [0.8, 0.9]),
        ("num_iterations_per_epoch=3", "num_iterations_per_epoch", 3),
        ("num_val_iterations_per_epoch=2", "num_val_iterations_per_epoch", 2),
    ],
)
def test_an_override_sets_its_field_alone(word: str, name: str, value: Any) -> None:
    changed, usual = recipe_for("cnn", [word]), recipe_for("cnn")
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    others = [f for f in FIELDS if f != name and not (name == "num_epochs" and f == "warmup_epochs")]
    assert all(getattr(changed, f) == getattr(usual, f) for f in others)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("num_epoch=5", "num_epochs"), ("lr=1", "initial_lr"), ("warmup=5", "warmup_epochs"), ("beta=1", "betas"),
     ("deepsupervision=1", "deep_supervision"), ("Optimizer=sgd", "optimizer")],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"there is no {word.split('=')[0]}; did you mean {nearest}"):
        recipe_for("cnn", [word])


def test_a_key_like_no_other_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no zzz; known: .*num_epochs.*save_every"):
        recipe_for("cnn", ["zzz=1"])


@pytest.mark.parametrize(
    "word",
    ["num_epochs=many", "num_epochs=1.5", "num_epochs=true", "num_epochs=null", "num_epochs=[1]", "num_epochs.x=1",
     "initial_lr=high", "nesterov=perhaps", "betas=0.9", "betas=[a,b]", "optimizer=adam", "deep_supervision=[true]"],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_the_fields_name(word: str) -> None:
    with pytest.raises(UserError, match=f"recipe: {word.split('=')[0].split('.')[0]}"):
        recipe_for("cnn", [word])


@pytest.mark.parametrize(
    "word",
    ["num_epochs=0", "num_epochs=-5", "num_iterations_per_epoch=0", "num_val_iterations_per_epoch=0", "save_every=0",
     "initial_lr=0", "initial_lr=-1", "initial_lr=.inf", "initial_lr=.nan", "initial_lr_from_scratch=0",
     "weight_decay=-1", "weight_decay=.nan", "momentum=1.5", "momentum=-0.1", "momentum=0", "poly_exponent=0",
     "gradient_clipping=0", "warmup_epochs=-1", "warmup_epochs=1001",
     "oversample_foreground_percent=33", "betas=[0.9]", "betas=[0.9, 1.0]", "betas=[-0.1, 0.9]"],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_the_fields_name(word: str) -> None:
    with pytest.raises(UserError, match=f"recipe: {word.split('=')[0]} must be"):
        recipe_for("cnn", [word])


@pytest.mark.parametrize("word", ["num_epochs", "num_epochs=", "=5", "", "--set"])
def test_words_that_are_not_key_and_value_are_refused(word: str) -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        recipe_for("cnn", [word])


@pytest.mark.parametrize("word", ["betas=[0.9", "betas=[0.9,${x}]", "name={", "betas=[0.9,]]"])
def test_values_that_are_no_yaml_are_a_line_for_the_user(word: str) -> None:
    with pytest.raises(UserError, match=r"--set|recipe: "):
        recipe_for("cnn", [word])


def test_a_refused_momentum_is_one_that_torch_refuses() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="Nesterov"):
        torch.optim.SGD([parameter], lr=0.1, momentum=0, nesterov=True)
    recipe = recipe_for("cnn", ["momentum=0", "nesterov=false"])
    torch.optim.SGD([parameter], lr=0.1, momentum=recipe.momentum, nesterov=recipe.nesterov)


@pytest.mark.parametrize(("epochs", "warmup"), [(1000, 50), (300, 15), (150, 8), (2000, 100), (10, 1), (2, 1), (1, 1)])
def test_the_warm_up_follows_the_number_of_epochs(epochs: int, warmup: int) -> None:
    assert recipe_for("cnn", [f"num_epochs={epochs}"]).warmup_epochs == warmup


@settings(max_examples=20, deadline=None)
@given(epochs=st.integers(1, 5000), planned_warmup=st.integers(1, 200))
def test_a_scaled_warm_up_is_within_a_half_of_its_share_and_one_epoch_at_least(
    epochs: int, planned_warmup: int
) -> None:
    planned = {"num_epochs": 200, "warmup_epochs": planned_warmup}
    warmup = recipe_for("cnn", [f"num_epochs={epochs}"], planned=planned).warmup_epochs
    share = planned_warmup * epochs / 200  # exact where it ends in a half
    assert 1 <= warmup <= epochs
    assert warmup == 1 or abs(warmup - share) <= 0.5


def test_a_warm_up_that_is_given_is_not_scaled() -> None:
    recipe = recipe_for("cnn", ["num_epochs=100", "warmup_epochs=50"])
    assert (recipe.num_epochs, recipe.warmup_epochs) == (100, 50)


def test_an_override_of_the_peak_wins_from_scratch_too() -> None:
    assert recipe_for("cnn", ["initial_lr=5e-3"], from_scratch=True).initial_lr == 5e-3
    assert recipe_for("cnn", ["initial_lr_from_scratch=5e-3"], from_scratch=True).initial_lr == 5e-3


def test_deep_supervision_is_refused_for_primus() -> None:
    with pytest.raises(UserError, match="deep_supervision is for U-Nets"):
        recipe_for("primus", ["deep_supervision=true"])


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_a_recipe_goes_through_json_unchanged(family: str) -> None:
    recipe = recipe_for(family, ["num_epochs=7"], from_scratch=True)
    stored = json.loads(json.dumps(recipe.as_dict()))
    assert sorted(stored) == sorted(FIELDS)
    assert recipe_from_dict(stored) == recipe
    assert recipe_for(family, planned=stored) == recipe


def test_a_planned_recipe_that_a_user_edited_counts() -> None:
    planned = recipe_for("primus").as_dict() | {"num_epochs": 420, "weight_decay": 0.1}
    recipe = recipe_for("primus", ["weight_decay=0.2"], planned=planned)
    assert (recipe.num_epochs, recipe.warmup_epochs, recipe.weight_decay) == (420, 50, 0.2)


def test_a_planned_recipe_may_hold_some_fields_only() -> None:
    recipe = recipe_for("primus", planned={"initial_lr": 3e-5})
    assert recipe == dataclasses.replace(recipe_for("primus"), initial_lr=3e-5)


@pytest.mark.parametrize(
    ("edited", "words"),
    [({"num_epoch": 5}, "there is no num_epoch; did you mean num_epochs"), ({"num_epochs": "many"}, "num_epochs"),
     ({"num_epochs": -1, "warmup_epochs": 0}, "num_epochs must be at least 1"), ({"optimizer": "lion"}, "optimizer")],
)  # fmt: skip
def test_a_mistake_in_an_edited_plan_is_refused(edited: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe_for("cnn", planned=edited)
    with pytest.raises(UserError, match=words):
        recipe_from_dict(edited)


def test_stored_recipes_take_overrides_without_scaling_anything() -> None:
    recipe = recipe_from_dict(recipe_for("cnn").as_dict(), ["num_epochs=500"])
    assert (recipe.num_epochs, recipe.warmup_epochs) == (500, 50)


def test_one_recipe_does_not_change_another() -> None:
    recipe_for("primus").betas.append(7)
    assert recipe_for("primus").betas == [0.9, 0.98]
