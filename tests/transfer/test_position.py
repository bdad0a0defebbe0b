"""The positional embedding against linear functions of the token centres and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from nnunetv2_ext.transfer.position import adapt_positional_embedding
from tests.transfer import references

Grid = tuple[int, int, int]
GRIDS: list[tuple[Grid, Grid]] = [
    ((4, 4, 4), (6, 6, 6)),
    ((4, 4, 4), (3, 2, 4)),
    ((4, 8, 8), (8, 8, 4)),  # as many tokens, another grid
    ((5, 3, 7), (2, 9, 7)),
    ((20, 20, 20), (12, 24, 20)),
    ((2, 2, 2), (1, 1, 1)),
    ((1, 4, 4), (3, 4, 4)),
]
SIDES = st.tuples(*[st.integers(1, 6)] * 3)


def centres(grid: Grid) -> np.ndarray:
    """(z, y, x) of every token's centre in [0, 1], in the order of Primus's tokens; shape (tokens, 3)."""
    axes = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in grid], indexing="ij")
    # as Primus flattens its patch embedding
    return rearrange(torch.from_numpy(np.stack(axes, -1)), "w h d c -> (w h d) c").numpy()


def embedding_of(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values)[None].float()


def random_embedding(grid: Grid, channels: int = 5, prefix: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(grid))
    return torch.randn(1, prefix + int(np.prod(grid)), channels, generator=generator)


@pytest.mark.parametrize("grid", [(4, 4, 4), (3, 5, 2)])
def test_the_same_grid_keeps_the_very_values(grid: Grid) -> None:
    embedding = random_embedding(grid)
    assert torch.equal(adapt_positional_embedding(embedding, grid, grid), embedding)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_equals_scipys_linear_interpolation_at_aligned_token_centres(source: Grid, target: Grid) -> None:
    embedding = random_embedding(source)
    where = [c * n - 0.5 for c, n in zip(centres(target).T, source, strict=True)]
    expected = np.stack(
        [map_coordinates(v.reshape(source), where, order=1, mode="nearest") for v in embedding[0].T.double().numpy()]
    ).T
    adapted = adapt_positional_embedding(embedding, source, target)
    assert adapted.shape == (1, np.prod(target), 5)
    np.testing.assert_allclose(adapted[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_linear_functions_of_the_position_are_reproduced_in_the_interior(source: Grid, target: Grid) -> None:
    slopes = np.array([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, -3.0], [0.0, 0.0, 1.0, 0.5]])
    new = centres(target)
    margin = 0.5 / np.array(source)
    inside = np.all((new >= margin - 1e-9) & (new <= 1 - margin + 1e-9), axis=1)
    assert inside.any()
    adapted = adapt_positional_embedding(embedding_of(centres(source) @ slopes + 1), source, target)
    np.testing.assert_allclose(adapted[0].numpy()[inside], (new @ slopes + 1)[inside], atol=1e-5)


def test_as_many_tokens_on_another_grid_are_interpolated_not_copied() -> None:
    embedding = random_embedding((4, 8, 8))
    adapted = adapt_positional_embedding(embedding, (4, 8, 8), (8, 8, 4))
    assert adapted.shape == embedding.shape
    assert not torch.allclose(adapted, embedding)


def test_a_constant_stays_constant_on_every_grid() -> None:
    for source, target in GRIDS:
        adapted = adapt_positional_embedding(torch.full((1, int(np.prod(source)), 3), 0.7), source, target)
        torch.testing.assert_close(adapted, torch.full_like(adapted, 0.7))


def test_register_tokens_in_front_are_kept_and_the_rest_interpolated() -> None:
    embedding = random_embedding((4, 4, 4), prefix=3)
    adapted = adapt_positional_embedding(embedding, (4, 4, 4), (2, 6, 4), num_prefix_tokens=3)
    assert torch.equal(adapted[:, :3], embedding[:, :3])
    without = adapt_positional_embedding(embedding[:, 3:], (4, 4, 4), (2, 6, 4))
    assert torch.equal(adapted[:, 3:], without)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 5), st.integers(0, 2**31))
def test_any_grid_to_any_other_equals_scipy_with_any_prefix_dropped(
    source: Grid, target: Grid, prefix: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, prefix + int(np.prod(source)), 4, generator=generator)
    adapted = adapt_positional_embedding(embedding, source, target)
    np.testing.assert_allclose(adapted.numpy(), references.position(embedding.numpy(), source, target), atol=1e-5)


@pytest.mark.parametrize("pretrained", [0, 1, 5])
def test_another_number_of_prefix_tokens_starts_at_zero_and_moves_no_token(pretrained: int) -> None:
    embedding = random_embedding((4, 4, 4), prefix=pretrained)
    adapted = adapt_positional_embedding(embedding, (4, 4, 4), (4, 4, 4), num_prefix_tokens=2)
    assert torch.equal(adapted[:, :2], torch.zeros(1, 2, 5))
    assert torch.equal(adapted[:, 2:], embedding[:, pretrained:])


def test_the_type_stays() -> None:
    assert adapt_positional_embedding(random_embedding((2, 2, 2)).half(), (2, 2, 2), (3, 3, 3)).dtype == torch.half


def test_tokens_that_do_not_form_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="64 tokens do not form a grid"):
        adapt_positional_embedding(random_embedding((4, 4, 4)), (4, 4, 5), (2, 2, 2))


@pytest.mark.parametrize("target", [(2, 2, 2), (3, 3, 3)])
def test_the_pretrained_embedding_is_not_touched(target: Grid) -> None:
    embedding = random_embedding((2, 2, 2))
    before = embedding.clone()
    adapt_positional_embedding(embedding, (2, 2, 2), target).mul_(7)
    assert torch.equal(embedding, before)
