"""Phases that are made: in proportion to another number of epochs, and from the depth of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import Phase, Span, spans
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Recipe, Side
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.recipes.scaling import Blocks, gradually_unfrozen, scaled_to
from tests.recipes.refused import refused


@dataclass(frozen=True)
class Made:
    """A recipe with phases of these lengths, some said in words."""

    recipe: Recipe
    lengths: list[int]
    warmup: int | None


@st.composite
def made_recipes(draw: st.DrawFn) -> Made:
    lengths = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6))
    words: list[Any] = list(lengths)
    warmup = draw(st.none() | st.integers(0, len(words) - 1))
    rest = draw(st.none() | st.integers(0, len(words) - 1))
    if warmup is not None:
        words[warmup] = "warmup_epochs"
    if rest is not None and rest != warmup:
        words[rest] = "rest"
    recipe = Recipe(
        num_epochs=sum(lengths),
        warmup_epochs=0 if warmup is None else lengths[warmup],
        phases=[Phase(parts=[f"stage:{i}"], epochs=word, lr_scale=i + 1) for i, word in enumerate(words)],
    )
    return Made(recipe, lengths, warmup)


def spans_of(recipe: Recipe) -> list[Span]:
    return spans(recipe.phases, recipe.num_epochs, recipe.warmup_epochs)


def lengths_of(recipe: Recipe) -> list[int]:
    return [span.end - span.start for span in spans_of(recipe)]


@given(made=made_recipes(), num_epochs=st.integers(1, 3000))
def test_scaled_phases_fill_the_epochs_keep_their_order_and_lose_only_the_last_ones(
    made: Made, num_epochs: int
) -> None:
    scaled = scaled_to(made.recipe, num_epochs)
    kept = spans_of(scaled)
    assert scaled.num_epochs == num_epochs == sum(lengths_of(scaled))
    assert len(kept) == min(len(made.lengths), num_epochs)  # one epoch at least for each, while there are enough
    assert [span.phase.parts for span in kept] == [[f"stage:{i}"] for i in range(len(kept))]
    assert [span.phase.lr_scale for span in kept] == list(range(1, len(kept) + 1))
    scaled.validate()


@given(made=made_recipes(), factor=st.integers(1, 3000))
def test_scaled_phases_are_within_an_epoch_of_their_exact_share(made: Made, factor: int) -> None:
    before = sum(made.lengths)
    num_epochs = max(factor, -(-before // min(made.lengths)))  # so many that no share is below 1
    for found, length in zip(lengths_of(scaled_to(made.recipe, num_epochs)), made.lengths, strict=True):
        assert abs(found - length * num_epochs / before) <= 1


@given(made=made_recipes())
def test_the_same_number_of_epochs_changes_nothing(made: Made) -> None:
    assert lengths_of(scaled_to(made.recipe, made.recipe.num_epochs)) == made.lengths


@given(made=made_recipes(), factor=st.integers(2, 9))
def test_a_multiple_is_exact(made: Made, factor: int) -> None:
    scaled = scaled_to(made.recipe, factor * made.recipe.num_epochs)
    assert lengths_of(scaled) == [factor * n for n in made.lengths]


@given(made=made_recipes(), num_epochs=st.integers(1, 3000), warmup=st.integers(0, 200))
def test_a_warm_up_that_is_given_stays_and_the_others_share_what_is_left(
    made: Made, num_epochs: int, warmup: int
) -> None:
    if made.warmup is None or warmup > num_epochs or len(made.lengths) < 2:
        return
    others = [n for i, n in enumerate(made.lengths) if i != made.warmup]
    left = num_epochs - warmup
    found = {span.phase.lr_scale: span.end - span.start for span in spans_of(scaled_to(
        made.recipe, num_epochs, warmup_epochs=warmup))}  # fmt: skip
    assert found.pop(made.warmup + 1, 0) == warmup
    assert sum(found.values()) == left
    assert len(found) == min(len(others), left)
    if left * min(others) >= sum(others):
        for length, exact in zip(found.values(), (n * left / sum(others) for n in others), strict=True):
            assert abs(length - exact) <= 1


@pytest.mark.parametrize(
    ("num_epochs", "lengths"),
    [
        (1000, [25, 25, 50, 900]),
        (100, [2, 3, 5, 90]),  # 2.5, 2.5, 5, 90
        (40, [1, 1, 2, 36]),
        (20, [1, 1, 1, 17]),  # 0.5, 0.5, 1, 18
        (4, [1, 1, 1, 1]),
        (3, [1, 1, 1]),
        (2, [1, 1]),
        (1, [1]),
    ],
)
def test_num_epochs_alone_scales_the_sawtooth(num_epochs: int, lengths: list[int]) -> None:
    assert lengths_of(recipe_for("cnn", [f"num_epochs={num_epochs}"], chosen="sawtooth")) == lengths


@pytest.mark.parametrize(
    ("num_epochs", "warmup", "lengths"),
    [
        (100, 10, [2, 3, 10, 85]),
        (40, 10, [1, 1, 10, 28]),
        (12, 10, [1, 1, 10]),
        (10, 10, [10]),
        (950, 0, [25, 25, 900]),
    ],
)
def test_with_a_warm_up_too_the_other_phases_of_the_sawtooth_are_scaled(
    num_epochs: int, warmup: int, lengths: list[int]
) -> None:
    recipe = recipe_for("cnn", [f"num_epochs={num_epochs}", f"warmup_epochs={warmup}"], chosen="sawtooth")
    assert (recipe.num_epochs, recipe.warmup_epochs, lengths_of(recipe)) == (num_epochs, warmup, lengths)


def test_a_warm_up_alone_takes_from_the_rest() -> None:
    recipe = recipe_for("cnn", ["warmup_epochs=100"], chosen="sawtooth")
    assert lengths_of(recipe) == [25, 25, 100, 850]


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    words = refused(overrides=["num_epochs=40", "warmup_epochs=41"], chosen="sawtooth")
    assert words == "recipe: warmup_epochs must be 0 to num_epochs (40), not 41"


# gradual unfreezing: `(depth + 1) * unfreeze_frequency` epochs, or 16 with depth -1


def unfrozen_blocks(recipe: Recipe, blocks: Blocks, epoch: int) -> set[str]:
    """What trains in an epoch, block by block: `head`, `stem`, `encoder:0`, `decoder:0` (from the output side)."""
    sides = {"encoder": ("encoder", blocks.encoder), "stage": ("encoder", blocks.encoder),
             "decoder": ("decoder", blocks.decoder), "decoder_stage": ("decoder", blocks.decoder)}  # fmt: skip
    found = set()
    (parts,) = [span.phase.parts for span in spans_of(recipe) if span.start <= epoch < span.end]
    for part in parts:
        word, _, stages = part.partition(":")
        if word not in sides:
            found.add(word)
            continue
        side, count = sides[word]
        first, last = map(int, stages.split("..")) if stages else (0, count - 1)
        found |= {f"{side}:{i}" for i in range(first, last + 1)} | ({"head"} if part == "decoder" else set())
    return found


def expected_blocks(mode: Side, count: int) -> set[str]:
    return {"head", *(f"{mode.value}:{i}" for i in range(count)), *(["stem"] if mode is Side.encoder and count else [])}


@pytest.mark.parametrize("mode", [Side.encoder, Side.decoder])
@pytest.mark.parametrize("frequency", [1, 3, 4])
@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("blocks", [Blocks(encoder=6, decoder=5), Blocks(encoder=12, decoder=4)])
def test_every_unfreeze_frequency_epochs_one_more_block_trains(
    mode: Side, frequency: int, depth: int, blocks: Blocks
) -> None:
    recipe = Recipe(gradual_unfreezing=GradualUnfreezing(mode, depth, frequency))
    found = gradually_unfrozen(recipe, blocks)
    assert found.num_epochs == (depth + 1) * frequency
    found.validate()
    for epoch in range(found.num_epochs):
        assert unfrozen_blocks(found, blocks, epoch) == expected_blocks(mode, epoch // frequency)


@pytest.mark.parametrize("mode", [Side.encoder, Side.decoder])
@pytest.mark.parametrize("frequency", [1, 2, 4, 7, 40])
def test_depth_minus_one_unfreezes_all_that_sixteen_epochs_reach(mode: Side, frequency: int) -> None:
    blocks = Blocks(encoder=6, decoder=5)
    found = gradually_unfrozen(Recipe(gradual_unfreezing=GradualUnfreezing(mode, -1, frequency)), blocks)
    assert found.num_epochs == 16
    available = blocks.encoder if mode is Side.encoder else blocks.decoder
    for epoch in range(16):
        expected = expected_blocks(mode, min(epoch // frequency, available))
        assert unfrozen_blocks(found, blocks, epoch) == expected


def test_the_defaults_are_the_decoder_every_four_epochs_to_the_end() -> None:
    assert GradualUnfreezing() == GradualUnfreezing(Side.decoder, -1, 4)
    found = recipe_for("cnn", chosen="gradual_unfreezing", blocks=Blocks(6, 5))
    assert [(s.start, s.end, s.phase.parts) for s in spans_of(found)] == [
        (0, 4, ["head"]), (4, 8, ["head", "decoder_stage:0..0"]),
        (8, 12, ["head", "decoder_stage:0..1"]), (12, 16, ["head", "decoder_stage:0..2"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num_epochs", "lengths"),
    [(32, [8, 8, 8, 8]), (16, [4, 4, 4, 4]), (8, [2, 2, 2, 2]), (6, [2, 1, 1, 2]), (4, [1, 1, 1, 1]), (3, [1, 1, 1]),
     (1, [1])],
)  # fmt: skip
def test_num_epochs_alone_scales_the_unfreezing(num_epochs: int, lengths: list[int]) -> None:
    recipe = recipe_for("cnn", [f"num_epochs={num_epochs}"], chosen="gradual_unfreezing")
    assert lengths_of(recipe) == lengths


@given(depth=st.integers(0, 12), frequency=st.integers(1, 9), num_epochs=st.integers(1, 300))
def test_all_blocks_are_reached_in_another_number_of_epochs_while_there_are_enough(
    depth: int, frequency: int, num_epochs: int
) -> None:
    recipe = Recipe(gradual_unfreezing=GradualUnfreezing(Side.encoder, depth, frequency))
    found = gradually_unfrozen(recipe, Blocks(12, 5), num_epochs)
    lengths = lengths_of(found)
    assert sum(lengths) == found.num_epochs == num_epochs
    assert len(lengths) == min(depth + 1, num_epochs)
    if num_epochs > depth:
        assert all(abs(n - num_epochs / (depth + 1)) <= 1 for n in lengths)


def test_a_frequency_that_is_given_is_not_scaled_with_num_epochs() -> None:
    given = ["num_epochs=30", "gradual_unfreezing.unfreeze_frequency=3", "gradual_unfreezing.depth=2"]
    assert lengths_of(recipe_for("cnn", given, chosen="gradual_unfreezing")) == [3, 3, 24]


@pytest.mark.parametrize(("mode", "available"), [("encoder", 6), ("decoder", 5)])
def test_deeper_than_the_network_is_refused_with_both_numbers(mode: str, available: int) -> None:
    words = [f"gradual_unfreezing.mode={mode}", f"gradual_unfreezing.depth={available + 1}"]
    message = refused(overrides=words, chosen="gradual_unfreezing", blocks=Blocks(6, 5))
    assert message == (f"recipe: gradual_unfreezing.depth is {available + 1}, but the {mode} has {available} blocks")
    words[1] = f"gradual_unfreezing.depth={available}"
    assert len(spans_of(recipe_for("cnn", words, chosen="gradual_unfreezing", blocks=Blocks(6, 5)))) == available + 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("depth=-2", "recipe: gradual_unfreezing.depth must be -1 (all blocks), 0 or more, not -2"),
        ("unfreeze_frequency=0", "recipe: gradual_unfreezing.unfreeze_frequency must be at least 1, not 0"),
        ("mode=both", "recipe: gradual_unfreezing.mode: Invalid value 'both', expected one of [encoder, decoder]"),
        ("deep=2", "recipe: there is no gradual_unfreezing.deep; did you mean depth?"),
    ],
)
def test_a_wrong_value_of_the_unfreezing_is_refused_by_its_name(word: str, message: str) -> None:
    assert refused(overrides=[f"gradual_unfreezing.{word}"], chosen="gradual_unfreezing") == message


def test_unfreezing_can_be_asked_of_any_recipe() -> None:
    recipe = recipe_for(
        "primus", ["gradual_unfreezing.depth=1", "gradual_unfreezing.mode=encoder"], blocks=Blocks(3, 2)
    )
    assert (recipe.num_epochs, recipe.initial_lr) == (8, 1e-4)
    assert [s.phase.parts for s in spans_of(recipe)] == [["head"], ["head", "stem", "stage:0..0"]]


def test_a_gradual_phase_of_more_blocks_than_a_network_has_cannot_arise() -> None:
    with pytest.raises(UserError, match="the decoder has 0 blocks"):
        gradually_unfrozen(Recipe(gradual_unfreezing=GradualUnfreezing(Side.decoder, 1, 4)), Blocks(1, 0))
