"""The trainers of the nnssl fork against the table of what their classes do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.recipes.phases import OptimizerState
from nnunetv2_ext.recipes.recipe import Optimizer
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.recipes.trainer_names import named_recipe
from nnunetv2_ext.training.schedule import learning_rate, recipe_spans
from tests.recipes.curves import closed_form, sawtooth, warmed_up
from tests.recipes.refused import refused


@dataclass(frozen=True)
class Theirs:
    """What a class of theirs does.

    Attributes:
        optimizer: theirs.
        peak: learning rate with weights,
        scratch: without.
        decay: weight decay.
        warmup: W, epochs.
        epochs: E.
    """

    optimizer: Optimizer
    peak: float
    scratch: float
    decay: float
    warmup: int
    epochs: int


SGD, ADAMW = Optimizer.sgd, Optimizer.adamw
BASE = Theirs(SGD, 1e-3, 1e-2, 3e-5, 50, 1000)
SHORT = Theirs(SGD, 1e-3, 1e-2, 3e-5, 15, 150)
PRIMUS = Theirs(ADAMW, 1e-4, 3e-4, 5e-2, 50, 1000)
PRIMUS_SHORT = Theirs(ADAMW, 1e-4, 3e-4, 5e-2, 15, 150)
DYNAMIC_ADAM = Theirs(ADAMW, 1e-4, 3e-4, 3e-5, 15, 150)
TABLE = {
    "PretrainedTrainer": BASE,
    "PretrainedTrainer_nomirroring": BASE,
    "PretrainedTrainer_adam__nomirroring": BASE,
    "PretrainedTrainer_150ep": SHORT,
    "PretrainedTrainer_150ep_nomirroring": SHORT,
    "PretrainedTrainer_300ep": Theirs(SGD, 1e-3, 1e-2, 3e-5, 15, 300),
    "PretrainedTrainer_smallerlr": Theirs(SGD, 3e-5, 1e-4, 5e-2, 50, 1000),
    "PretrainedTrainer_Primus": PRIMUS,
    "PretrainedTrainer_Primusx": PRIMUS,
    "PretrainedTrainer_Primusx_nomirroring": PRIMUS,
    "PretrainedTrainer_Primus_150ep": PRIMUS_SHORT,
    "PretrainedTrainer_Primusx_150ep": PRIMUS_SHORT,
    "PretrainedTrainer_Primusx_150ep_nomirroring": PRIMUS_SHORT,
    "PretrainedTrainer_adam_150ep": PRIMUS_SHORT,
    "PretrainedTrainer_adam_150ep_nomirroring": PRIMUS_SHORT,
    "PretrainedTrainer_Primusx_30ep": Theirs(ADAMW, 1e-4, 3e-4, 5e-2, 3, 30),
    "PretrainedTrainer_Primusx_300ep": Theirs(ADAMW, 1e-4, 3e-4, 5e-2, 15, 300),
    "PretrainedTrainer_Primusx_smallerlr": Theirs(ADAMW, 3e-5, 1e-4, 5e-2, 50, 1000),
    "PretrainedTrainer_Primusx_150ep_lr3e4": Theirs(ADAMW, 3e-4, 3e-4, 5e-2, 50, 150),
    "DynamicPretrainedTrainer": BASE,
    "DynamicPretrainedTrainer_nomirroring": BASE,
    "DynamicPretrainedTrainer_adam_150ep": DYNAMIC_ADAM,
    "DynamicPretrainedTrainer_adam_150ep_nomirroring": DYNAMIC_ADAM,
}
OF_PRIMUS = [name for name, theirs in TABLE.items() if theirs.optimizer is ADAMW]
SAWTOOTHS = {  # optimizer, peak, decoder's epochs, warm-up of everything, all epochs, scales of the decoder's rates
    "PretrainedTrainer_sawtooth": (SGD, 1e-3, (25, 25), 50, 1000, (1, 1)),
    "PretrainedTrainer_sawtooth_150ep": (SGD, 1e-3, (7, 8), 15, 150, (1, 1)),
    "PretrainedTrainer_Primus_sawtooth": (ADAMW, 1e-4, (25, 25), 50, 1000, (0.01, 0.1)),
    "PretrainedTrainer_Primus_sawtooth_150ep": (ADAMW, 1e-4, (7, 8), 50, 150, (0.01, 0.1)),
}


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "cnn") for name in TABLE), *((name, "primus") for name in OF_PRIMUS)]
)
def test_a_name_means_what_their_class_does(name: str, family: str) -> None:
    theirs, recipe = TABLE[name], recipe_for(family, trainer=name)
    assert recipe.optimizer is theirs.optimizer
    assert (recipe.num_epochs, recipe.warmup_epochs) == (theirs.epochs, theirs.warmup)
    assert (recipe.initial_lr, recipe.initial_lr_from_scratch) == (theirs.peak, theirs.scratch)
    assert recipe.weight_decay == theirs.decay
    assert recipe.mirroring is ("nomirroring" not in name)
    assert recipe.deep_supervision is False
    if theirs.optimizer is SGD:
        assert (recipe.momentum, recipe.nesterov) == (0.99, True)
    else:
        assert (recipe.betas, recipe.gradient_clipping) == ([0.9, 0.98], 1)
    for scratch, peak in ((False, theirs.peak), (True, theirs.scratch)):
        recipe = recipe_for(family, trainer=name, from_scratch=scratch)
        expected = closed_form(*warmed_up(peak, theirs.warmup, theirs.epochs))
        found = [learning_rate(recipe, epoch) for epoch in range(recipe.num_epochs)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert {part for phase in recipe.phases for part in phase.parts} == {"all"}


@pytest.mark.parametrize("name", SAWTOOTHS)
@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_a_sawtooth_has_their_four_phases_and_reaches_the_peak_again(name: str, family: str) -> None:
    optimizer, peak, decoder, warmup, epochs, scales = SAWTOOTHS[name]
    recipe = recipe_for(family, trainer=name)
    assert recipe.optimizer is optimizer
    found = np.array([learning_rate(recipe, epoch) for epoch in range(recipe.num_epochs)])
    np.testing.assert_allclose(found, closed_form(*sawtooth(peak, decoder, warmup, epochs, scales)), rtol=1e-12)
    assert found.max() == found[sum(decoder) + warmup - 1] == pytest.approx(peak, rel=1e-12)
    first = ["decoder", "adapted_input_projection"]
    spans = recipe_spans(recipe)
    assert [span.phase.parts for span in spans] == [first, first, ["all"], ["all"]]
    assert [span.phase.optimizer for span in spans][2] is OptimizerState.restarted


@pytest.mark.parametrize("name", [*list(TABLE), *list(SAWTOOTHS)])
def test_a_name_that_says_something_is_the_recipes_name_and_one_that_does_not_is_not(name: str) -> None:
    plain = name in ("PretrainedTrainer", "DynamicPretrainedTrainer")
    assert named_recipe(name).is_plain is plain
    assert recipe_for("cnn", trainer=name).name == ("default" if plain else name)


@settings(max_examples=15, deadline=None)
@given(epochs=st.integers(1, 3000).filter(lambda n: n not in (150, 300)))
def test_any_number_of_epochs_has_a_tenth_of_warm_up(epochs: int) -> None:
    recipe = recipe_for("cnn", trainer=f"PretrainedTrainer_{epochs}ep")
    assert recipe.num_epochs == epochs
    assert recipe.warmup_epochs >= 1
    assert recipe.warmup_epochs == 1 or abs(recipe.warmup_epochs - epochs / 10) < 1
    assert (recipe.optimizer, recipe.initial_lr) == (SGD, 1e-3)
    found = [learning_rate(recipe, epoch) for epoch in range(epochs)]
    np.testing.assert_allclose(found, closed_form(*warmed_up(1e-3, recipe.warmup_epochs, epochs)), rtol=1e-12)


@pytest.mark.parametrize(("epochs", "warmup"), [(15, 1), (500, 50), (10, 1), (1, 1), (2000, 200)])
def test_numbers_of_epochs_that_users_have_made_up(epochs: int, warmup: int) -> None:
    recipe = recipe_for("primus", trainer=f"PretrainedTrainer_{epochs}ep_nomirroring")
    assert (recipe.num_epochs, recipe.warmup_epochs, recipe.mirroring) == (epochs, warmup, False)
    assert (recipe.optimizer, recipe.initial_lr) == (ADAMW, 1e-4)  # the architecture's default recipe


def test_overrides_come_on_top_of_a_name() -> None:
    recipe = recipe_for("cnn", ["initial_lr=5e-4", "num_epochs=300"], trainer="PretrainedTrainer_sawtooth_150ep")
    assert recipe.initial_lr == 5e-4
    assert [span.end - span.start for span in recipe_spans(recipe)] == [14, 16, 30, 240]


@pytest.mark.parametrize(
    "name",
    ["nnUNetTrainer", "Pretrainedtrainer", "PretrainedTrainer_", "PretrainedTrainer__150ep", "PretrainedTrainer_ep",
     "PretrainedTrainer_0ep", "PretrainedTrainer_-5ep", "PretrainedTrainer_1.5ep", "PretrainedTrainer_150epochs",
     "PretrainedTrainer_150ep_", "PretrainedTrainer_150epnomirroring", "PretrainedTrainernomirroring",
     "PretrainedTrainer__nomirroring", "PretrainedTrainer_nomirroring_nomirroring", "PretrainedTrainer_adam_",
     "PretrainedTrainer_nomirroring_150ep", "PretrainedTrainer_primus", "PretrainedTrainer_lora", "../../x", "",
     "PretrainedTrainer_150ep\n", "PretrainedTrainer_\u0661\u0665ep", "DynamicPretrainedTrainer_nothing",
     "Trainer_sawtooth"],
)  # fmt: skip
def test_names_that_none_of_them_has_are_refused(name: str) -> None:
    message = refused(trainer=name)
    assert "-tr takes PretrainedTrainer, DynamicPretrainedTrainer or one of the nnssl fork's names" in message
    assert repr(name) in message


def test_a_name_and_a_recipe_contradict_each_other() -> None:
    message = refused(trainer="PretrainedTrainer_150ep", chosen="sawtooth")
    assert message == "-tr PretrainedTrainer_150ep is a recipe, and so is -r sawtooth: give one of the two"
    assert recipe_for("cnn", trainer="DynamicPretrainedTrainer", chosen="sawtooth").name == "sawtooth"
