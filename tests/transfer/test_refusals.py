"""What is refused before a network is touched, in words that say which tensors and why."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.loading import load_and_verify
from nnunetv2_ext.transfer.pretrained import is_finite
from tests.transfer.networks import (
    NETWORKS,
    PLAIN_KEYS,
    PRIMUS_KEYS,
    RESENC_KEYS,
    copies,
    keys_of,
    of_encoder,
    plain_unet,
    plan_into,
    primus,
    random_values,
    resenc,
    weights_of,
)

Damage = Callable[[dict[str, torch.Tensor], str], None]


def drop(weights: dict[str, torch.Tensor], part: str) -> None:
    for name in [n for n in weights if part in n]:
        del weights[name]


def halve(weights: dict[str, torch.Tensor], part: str) -> None:
    for name in [n for n in weights if part in n]:
        tensor = weights[name]
        weights[name] = tensor[..., : tensor.shape[-1] // 2] if "pos_embed" in name else tensor[: len(tensor) // 2]


@pytest.mark.parametrize(
    ("name", "part", "reported"),
    [
        ("tiny_resenc", "encoder.stages.1.blocks.0.conv1.", "encoder.stages.1.blocks.0.conv1.conv.weight"),
        ("tiny_resenc", "encoder.stem.convs.0.", "encoder.stem.convs.0.conv.weight"),
        ("tiny_primus", "eva.blocks.1.attn.q_proj.weight", "eva.blocks.1.attn.q_proj.weight"),
        ("tiny_primus", "down_projection.proj.weight", "down_projection.proj.weight"),
        ("tiny_primus", "eva.pos_embed", "eva.pos_embed"),
    ],
)
@pytest.mark.parametrize(("damage", "words"), [(drop, "not in the checkpoint"), (halve, "of another width")])
def test_with_the_whole_coverage_one_tensor_without_a_match_is_refused_by_name(
    name: str, part: str, reported: str, damage: Damage, words: str
) -> None:
    weights = weights_of(name)
    damage(weights, part)
    with pytest.raises(UserError, match=r"100\.0% must \(-min_coverage\)") as caught:
        plan_into(NETWORKS[name](), weights, keys_of(name))
    assert reported in str(caught.value)
    assert words in str(caught.value)


def share_of(network: nn.Module, arriving: Callable[[str], bool]) -> float:
    """The parameters of encoder and stem that a condition on the name holds for, each parameter once."""
    encoder = {n: p.numel() for n, p in network.named_parameters() if of_encoder(n)}
    return sum(count for name, count in encoder.items() if arriving(name)) / sum(encoder.values())


def test_the_coverage_is_the_share_of_encoder_and_stem_parameters_that_arrive() -> None:
    network, weights = plain_unet(features=(4, 8, 12)), random_values(plain_unet(features=(4, 8, 16)))
    expected = share_of(network, lambda name: not name.startswith("encoder.stages.2."))
    report = plan_into(network, weights, PLAIN_KEYS, min_coverage=0.0).report
    assert report.coverage == pytest.approx(expected)
    assert 0 < expected < 1
    plan_into(network, weights, PLAIN_KEYS, min_coverage=expected - 1e-6)
    with pytest.raises(UserError, match="-min_coverage"):
        plan_into(network, weights, PLAIN_KEYS, min_coverage=expected + 1e-6)


def test_too_little_coverage_says_how_much_and_why_grouped_by_part() -> None:
    weights = weights_of("tiny_resenc")
    drop(weights, "encoder.stages.1.blocks.1.")
    weights = {name: t[:4] if "encoder.stem." in name else t for name, t in weights.items()}
    with pytest.raises(UserError) as caught:
        plan_into(resenc(), weights, RESENC_KEYS, load="encoder+decoder")
    missing = ("encoder.stem.", "encoder.stages.1.blocks.1.")
    share = share_of(resenc(), lambda name: not name.startswith(missing))
    reasons = str(caught.value).partition("-min_coverage): ")[2].split("; ")
    assert str(caught.value).startswith(f"{share:.1%} of the encoder's and stem's parameters have a match")
    assert reasons == [
        "stem: 4 tensors of another width (encoder.stem.convs.0",
        "encoder.stem.convs.0.conv.weight is (8, 1, 3, 3, 3) here and (4, 1, 3, 3, 3) in the checkpoint)",
        "encoder: 8 tensors not in the checkpoint (encoder.stages.1.blocks.1",
        "encoder.stages.1.blocks.1.conv1.conv.weight)",
    ]


@pytest.mark.parametrize("min_coverage", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("source", ["tiny_resenc", "tiny_primus"])
def test_nothing_in_common_is_refused_whatever_the_coverage_with_the_five_nearest_names(
    source: str, min_coverage: float
) -> None:
    network, keys = (primus(), PRIMUS_KEYS) if source == "tiny_resenc" else (resenc(), RESENC_KEYS)
    weights = weights_of(source)
    with pytest.raises(UserError, match="have nothing in common") as caught:
        plan_into(network, weights, keys, min_coverage=min_coverage)
    near = re.search(r"nearest to \S+ are (.*)$", str(caught.value))
    assert near is not None
    named = near[1].split(", ")
    assert len(set(named)) == 5
    assert set(named) <= set(weights)


def test_names_are_not_shown_where_every_name_fits_and_no_width_does() -> None:
    weights = {name: torch.cat([tensor, tensor]) for name, tensor in weights_of("tiny_resenc").items()}
    with pytest.raises(UserError, match=r"nothing in common.*of another width") as caught:
        plan_into(resenc(), weights, RESENC_KEYS)
    assert "nearest" not in str(caught.value)


def test_names_that_fit_are_not_among_the_nearest() -> None:
    weights = {n.replace("encoder.", "trunk."): t for n, t in weights_of("tiny_resenc").items()}
    with pytest.raises(UserError, match="nearest to") as caught:
        plan_into(resenc(), weights, RESENC_KEYS)
    named = re.search(r"nearest to \S+ are (.*)$", str(caught.value))
    assert named is not None
    assert all(name.startswith(("trunk.", "decoder.trunk.")) for name in named[1].split(", "))


def test_the_nearest_names_are_those_that_differ_in_a_prefix() -> None:
    weights = {f"backbone_of_mine.{n}": t for n, t in weights_of("tiny_resenc").items()}
    weights |= {f"something.else.{i}": torch.zeros(1) for i in range(500)}
    with pytest.raises(UserError) as caught:
        plan_into(resenc(), weights, RESENC_KEYS)
    near = re.search(r"nearest to (\S+) are (.*)$", str(caught.value))
    assert near is not None
    assert f"backbone_of_mine.{near[1]}" in near[2].split(", ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(dtype: torch.dtype, value: float) -> None:
    weights = {name: tensor.to(dtype, copy=True) for name, tensor in weights_of("tiny_primus").items()}
    weights["eva.blocks.2.mlp.fc2.weight"][3, 5] = value
    network = primus()
    with pytest.raises(UserError, match=r"the checkpoint's eva\.blocks\.2\.mlp\.fc2\.weight holds NaN or inf"):
        load_and_verify(network, plan_into(network, weights, PRIMUS_KEYS))


def test_what_is_not_finite_but_not_taken_does_no_harm() -> None:
    weights = copies(weights_of("tiny_primus"))
    weights["decoder.norm.bias"].fill_(float("nan"))
    load_and_verify(primus(), plan_into(primus(), weights, PRIMUS_KEYS))


@pytest.mark.parametrize("tensor", [torch.zeros(0), torch.tensor(3.5), torch.arange(4), torch.tensor([True])])
def test_empty_and_integer_tensors_are_finite(tensor: torch.Tensor) -> None:
    assert is_finite(tensor)


def test_a_checkpoint_of_a_2d_network_is_refused() -> None:
    flat = {name: t[:, :, 0] if t.ndim == 5 else t for name, t in weights_of("tiny_resenc").items()}
    with pytest.raises(UserError, match=r"of a 2D network .*\(8, 1, 3, 3\).* 2D weights cannot be brought over"):
        plan_into(resenc(), flat, RESENC_KEYS, min_coverage=0.0)


@pytest.mark.parametrize(
    ("channel_map", "words"),
    [
        ((0,), r"-cm has 1 entries and the dataset 2 channel"),
        ((0, 1, 2), r"-cm has 3 entries and the dataset 2 channel"),
        ((0, 3), r"-cm names channel 3, and the checkpoint has 3 \(0 to 2\)"),
        ((-1, 0), r"-cm names channel -1, and the checkpoint has 3 \(0 to 2\)"),
        ((None, None), r"-cm maps no channel at all"),
    ],
)
def test_a_channel_map_that_does_not_fit_is_refused(channel_map: tuple[int | None, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_into(plain_unet(channels=2), random_values(plain_unet(channels=3)), PLAIN_KEYS, channel_map=channel_map)


def test_a_head_for_other_classes_is_refused_where_it_was_asked_for() -> None:
    weights = random_values(plain_unet(classes=4))
    network = plain_unet(classes=3)
    with pytest.raises(UserError, match=r"-keep_head: the segmentation head does not fit: head: .*seg_layers"):
        plan_into(network, weights, PLAIN_KEYS, load="encoder+decoder", keep_head=True)
    assert plan_into(network, weights, PLAIN_KEYS, load="encoder+decoder").report.coverage == 1


def test_a_refusal_leaves_the_network_alone() -> None:
    network, weights = resenc(), weights_of("tiny_resenc")
    drop(weights, "encoder.stages.1.")
    before = copies(network.state_dict())
    with pytest.raises(UserError):
        plan_into(network, weights, RESENC_KEYS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
