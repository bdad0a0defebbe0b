"""Every shipped recipe against the figures of the issue and of the nnssl fork: curves, parts, optimizers."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import numpy as np
import pytest
import yaml

from nnunetv2_ext.recipes.listing import list_recipes
from nnunetv2_ext.recipes.phases import OptimizerState
from nnunetv2_ext.recipes.recipe import Lora, Optimizer, Recipe
from nnunetv2_ext.recipes.resolving import recipe_for, shipped_names
from nnunetv2_ext.training.schedule import learning_rate, recipe_spans
from tests.recipes.curves import Segment, closed_form, sawtooth, warmed_up
from tests.recipes.refused import refused

NAMES = ["default", "short", "primus", "sawtooth", "gradual_unfreezing", "layer_decay", "lora", "frozen_encoder",
         "from_scratch"]  # fmt: skip
ADAMW = {"primus", "layer_decay"}
LAYER_DECAY: list[Segment] = [("linear", 50, 1e-3), ("cosine", 950, 1e-3)]

CURVES: dict[tuple[str, str], list[Segment]] = {
    ("default", "cnn"): warmed_up(1e-3, 50, 1000),
    ("default", "primus"): warmed_up(1e-3, 50, 1000),
    ("primus", "cnn"): warmed_up(1e-4, 50, 1000),
    ("primus", "primus"): warmed_up(1e-4, 50, 1000),
    ("short", "cnn"): warmed_up(1e-3, 15, 150),
    ("short", "primus"): warmed_up(1e-4, 15, 150),
    ("sawtooth", "cnn"): sawtooth(1e-3, (25, 25), 50, 1000),
    ("sawtooth", "primus"): sawtooth(1e-4, (25, 25), 50, 1000, scales=(0.01, 0.1)),
    ("gradual_unfreezing", "cnn"): [("constant", 16, 1e-3)],
    ("gradual_unfreezing", "primus"): [("constant", 16, 1e-4)],
    ("layer_decay", "cnn"): LAYER_DECAY,
    ("layer_decay", "primus"): LAYER_DECAY,
    ("lora", "cnn"): warmed_up(1e-3, 50, 1000),
    ("lora", "primus"): warmed_up(1e-4, 50, 1000),
    ("frozen_encoder", "cnn"): warmed_up(1e-3, 50, 1000),
    ("frozen_encoder", "primus"): warmed_up(1e-4, 50, 1000),
    ("from_scratch", "cnn"): warmed_up(1e-2, 50, 1000),
    ("from_scratch", "primus"): warmed_up(3e-4, 50, 1000),
}


def rates(recipe: Recipe, effective_batch: int) -> list[float]:
    return [learning_rate(recipe, epoch, effective_batch) for epoch in range(recipe.num_epochs)]


def test_these_are_the_shipped_recipes() -> None:
    assert sorted(shipped_names()) == sorted(NAMES)
    assert {name for name, _ in CURVES} == set(NAMES)


@pytest.mark.parametrize(("name", "family"), CURVES)
def test_the_learning_rate_equals_its_closed_form_at_every_epoch(name: str, family: str) -> None:
    recipe = recipe_for(family, chosen=name)
    expected = closed_form(*CURVES[name, family])
    assert recipe.num_epochs == len(expected)
    for batch in (1, 2, 8, 256):
        factor = batch / 256 if name == "layer_decay" else 1
        np.testing.assert_allclose(rates(recipe, batch), factor * expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "family"), CURVES)
def test_the_peak_from_scratch_is_the_one_for_random_weights(name: str, family: str) -> None:
    if name in ("gradual_unfreezing", "lora", "frozen_encoder"):
        assert "never trains the encoder" in refused(family, chosen=name, from_scratch=True)
        return
    scratch = {"primus": 3e-4, "default": 1e-2, "layer_decay": 1e-3}.get(name, 1e-2 if family == "cnn" else 3e-4)
    plain, fresh = recipe_for(family, chosen=name), recipe_for(family, chosen=name, from_scratch=True)
    assert fresh == dataclasses.replace(plain, initial_lr=scratch, from_scratch=True)


@pytest.mark.parametrize(("name", "family"), CURVES)
def test_the_optimizer_is_the_one_of_the_papers(name: str, family: str) -> None:
    recipe = recipe_for(family, chosen=name)
    if name in ADAMW or (family == "primus" and name != "default"):
        betas = [0.9, 0.999] if name == "layer_decay" else [0.9, 0.98]
        assert (recipe.optimizer, recipe.betas) == (Optimizer.adamw, betas)
        assert (recipe.weight_decay, recipe.gradient_clipping) == (5e-2, 1)
    else:
        assert (recipe.optimizer, recipe.momentum, recipe.nesterov) == (Optimizer.sgd, 0.99, True)
        assert (recipe.weight_decay, recipe.gradient_clipping) == (3e-5, 12)
    assert recipe.deep_supervision is False


@pytest.mark.parametrize("family", ["cnn", "primus"])
@pytest.mark.parametrize("name", ["default", "primus", "short", "layer_decay", "from_scratch"])
def test_recipes_that_freeze_nothing_train_everything(name: str, family: str) -> None:
    recipe = recipe_for(family, chosen=name)
    assert [phase.parts for phase in recipe.phases] == [["all"], ["all"]]
    assert recipe.lora is None


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_the_sawtooth_trains_the_decoder_and_an_adapted_input_first_and_begins_anew_with_everything(
    family: str,
) -> None:
    decoder = ["decoder", "adapted_input_projection"]
    spans = recipe_spans(recipe_for(family, chosen="sawtooth"))
    assert [span.phase.parts for span in spans] == [decoder, decoder, ["all"], ["all"]]
    assert [(span.start, span.end) for span in spans] == [(0, 25), (25, 50), (50, 100), (100, 1000)]
    restarted = [span.phase.optimizer is OptimizerState.restarted for span in spans]
    assert restarted == [False, False, True, False]


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_a_frozen_encoder_stays_frozen(family: str) -> None:
    recipe = recipe_for(family, chosen="frozen_encoder")
    assert [phase.parts for phase in recipe.phases] == [["decoder"], ["decoder"]]


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_lora_trains_the_encoders_adapters_and_the_decoder(family: str) -> None:
    recipe = recipe_for(family, chosen="lora")
    assert recipe.lora == Lora(rank=8, alpha=16, dropout=0, targets=["encoder"])
    for phase in recipe.phases:
        assert phase.parts == ["lora", "decoder", "adapted_input_projection"]


@pytest.mark.parametrize(("family", "drop_path"), [("cnn", None), ("primus", 0.2)])
def test_layer_decay_has_the_figures_of_the_issue(family: str, drop_path: float | None) -> None:
    recipe = recipe_for(family, chosen="layer_decay")
    assert (recipe.layer_decay, recipe.initial_lr, recipe.lr_batch) == (0.85, 1e-3, 256)
    assert (recipe.warmup_epochs, recipe.weight_decay, recipe.drop_path) == (50, 0.05, drop_path)
    assert recipe.accumulation > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_levers_that_a_recipe_does_not_name_are_off(name: str, family: str) -> None:
    recipe = recipe_for(family, chosen=name)
    off = {"layer_decay": None, "lr_batch": None, "drop_path": None, "accumulation": 1, "lora": None,
           "gradual_unfreezing": None, "ema": None, "early_stop": None, "seed": None, "channels_last": False,
           "gradient_checkpointing": False, "mirroring": True, "from_scratch": False}  # fmt: skip
    own = {"layer_decay": {"layer_decay", "lr_batch", "drop_path", "accumulation"}, "lora": {"lora"},
           "gradual_unfreezing": {"gradual_unfreezing"}, "from_scratch": {"from_scratch"}}  # fmt: skip
    changed = {key for key, value in off.items() if getattr(recipe, key) != value}
    assert changed <= own.get(name, set())
    assert (recipe.precision.value, recipe.loss.value) == ("fp16", "default")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_when_to_use_it_and_where_it_is_from_and_holds_only_fields(name: str) -> None:
    text = files("nnunetv2_ext.recipes").joinpath(f"{name}.yaml").read_text()
    comment = [line for line in text.splitlines() if line.startswith("# ")]
    assert any(line.startswith("# When: ") for line in comment)
    assert text.startswith(comment[0])
    content = yaml.safe_load(text)
    assert content["name"] == name
    fields = {f.name for f in dataclasses.fields(Recipe)}
    assert set(content) - {"primus"} <= fields
    assert set(content.get("primus", {})) <= fields


def test_the_list_has_a_line_for_each_the_default_ones_first() -> None:
    lines = list_recipes().splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["default", "primus"]
    assert sorted(line.split()[0] for line in lines) == sorted(NAMES)
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)
    assert all(len(line) <= 120 for line in lines)
