"""The losses against nnU-Net's own, torchvision's and numpy, on every kind of labels."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerTopk10Loss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torchvision.ops import sigmoid_focal_loss

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.losses import LOSSES, is_mean_over_samples, make_loss
from nnunetv2_ext.training.marginal import tell_cases

IGNORE = 3
LABELS = {
    "labels": LabelManager({"background": 0, "a": 1, "b": 2}, None),
    "labels+ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": IGNORE}, None),
    "regions": LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
    "regions+ignore": LabelManager({"background": 0, "whole": [1, 2], "core": 2, "ignore": IGNORE}, [1, 2]),
}
DEFINED = [  # every loss with every kind of labels it is defined for
    (name, kind)
    for name, kind in itertools.product(LOSSES, LABELS)
    if not (name in ("topk", "marginal") and "regions" in kind)
]
OURS = [(name, kind) for name, kind in DEFINED if name != "default"]
SHAPE = (4, 5, 6)


def stock_loss(
    kind: str, batch_dice: bool = False, scales: int = 0, trainer: type[nnUNetTrainer] = nnUNetTrainer
) -> torch.nn.Module:
    """What a trainer of nnU-Net builds."""
    settings = SimpleNamespace(
        label_manager=LABELS[kind],
        configuration_manager=SimpleNamespace(batch_dice=batch_dice),
        is_ddp=False,
        enable_deep_supervision=scales > 0,
        _get_deep_supervision_scales=lambda: [[1 / 2**i] * 3 for i in range(scales)],
        _do_i_compile=lambda: False,
    )
    return trainer._build_loss(settings)


def loss_of(name: str, kind: str, batch_dice: bool = False, scales: int = 0, cases: int = 2) -> torch.nn.Module:
    """Ours; of the marginal loss's cases the first has merged classes."""
    with warnings.catch_warnings():  # of torch, about how nnU-Net's TopKLoss calls it
        warnings.simplefilter("ignore")
        loss = make_loss(
            name, stock_loss(kind, batch_dice, scales), LABELS[kind],
            batch_dice=batch_dice, is_ddp=False, merged_classes={"case_0": [[1, 2]]} if name == "marginal" else None,
        )  # fmt: skip
    tell_cases(loss, [f"case_{i}" for i in range(cases)])
    return loss


def sample(kind: str, seed: int = 0, shape: tuple[int, ...] = SHAPE, b: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits (b, c, z, y, x) and the target as nnU-Net's transforms hand it over."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (b, 1, *shape), generator=generator)
    if "ignore" in kind:  # more and more from sample to sample
        chance = torch.rand(labels.shape, generator=generator)
        labels[chance < torch.linspace(0.1, 0.8, b).view(b, 1, 1, 1, 1)] = IGNORE
    logits = 3 * torch.randn((b, LABELS[kind].num_segmentation_heads, *shape), generator=generator)
    return logits, as_target(labels, kind)


def as_target(labels: torch.Tensor, kind: str) -> torch.Tensor:
    if "regions" not in kind:
        return labels.to(torch.int16)
    channels = [(labels == 1) | (labels == 2), labels == 2]
    return torch.cat([*channels, labels == IGNORE] if "ignore" in kind else channels, 1)


def ignored_in(target: torch.Tensor, kind: str) -> torch.Tensor:
    return target[:, -1:].bool() if "regions" in kind else target == IGNORE


def value_and_gradient(loss: torch.nn.Module, logits: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    return value.item(), torch.autograd.grad(value, logits)[0]


def assert_same(first: torch.nn.Module, second: torch.nn.Module, logits: torch.Tensor, target: torch.Tensor) -> None:
    value, gradient = value_and_gradient(first, logits, target)
    expected, expected_gradient = value_and_gradient(second, logits, target)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_default_is_nnunets_loss_itself() -> None:
    stock = stock_loss("labels")
    assert make_loss("default", stock, LABELS["labels"], batch_dice=False, is_ddp=False, merged_classes=None) is stock


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("kind", LABELS)
def test_ce_and_dice_add_up_to_nnunets_loss(kind: str, batch_dice: bool) -> None:
    logits, target = sample(kind)
    parts = [value_and_gradient(loss_of(name, kind, batch_dice), logits, target) for name in ("ce", "dice")]
    value, gradient = value_and_gradient(stock_loss(kind, batch_dice), logits, target)
    assert parts[0][0] > 0 > parts[1][0]
    assert parts[0][0] + parts[1][0] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(parts[0][1] + parts[1][1], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "trainer", "kind"),
    [
        ("ce", nnUNetTrainerCELoss, "labels"),
        ("ce", nnUNetTrainerCELoss, "labels+ignore"),
        ("topk", nnUNetTrainerTopk10Loss, "labels"),
        ("topk", nnUNetTrainerTopk10Loss, "labels+ignore"),
        ("dice", nnUNetTrainerDiceLoss, "labels"),
        ("dice", nnUNetTrainerDiceLoss, "regions"),
    ],
)
@pytest.mark.filterwarnings("ignore:size_average")
def test_equals_nnunets_variant_trainer(name: str, trainer: type[nnUNetTrainer], kind: str) -> None:
    for batch_dice in (False, True):
        assert_same(loss_of(name, kind, batch_dice), stock_loss(kind, batch_dice, 0, trainer), *sample(kind))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("kind", ["labels", "labels+ignore"])
def test_marginal_without_a_merged_case_equals_nnunets_loss(kind: str, batch_dice: bool) -> None:
    loss = loss_of("marginal", kind, batch_dice)
    tell_cases(loss, ["case_8", "case_9"])
    assert_same(loss, stock_loss(kind, batch_dice), *sample(kind))


def test_ce_of_regions_is_the_mean_binary_cross_entropy() -> None:
    logits, target = sample("regions")
    p, y = torch.sigmoid(logits.double()).numpy(), target.numpy()
    expected = -np.where(y, np.log(p), np.log(1 - p)).mean()
    assert loss_of("ce", "regions")(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_focal_of_regions_equals_torchvisions() -> None:
    class Reference(torch.nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return sigmoid_focal_loss(logits, target.float(), alpha=-1, gamma=2, reduction="mean")

    assert_same(loss_of("focal", "regions"), Reference(), *sample("regions"))


def test_focal_of_labels_equals_the_papers_formula() -> None:
    logits, target = sample("labels")
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    p_true = np.take_along_axis(p, target.numpy().astype(int), 1)
    expected = -((1 - p_true) ** 2 * np.log(p_true)).mean()
    assert loss_of("focal", "labels")(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ce", "focal"])
@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_with_an_ignore_label_it_is_the_mean_over_the_other_voxels(name: str, kind: str) -> None:
    logits, target = sample(f"{kind}+ignore")
    keep = ~ignored_in(target, f"{kind}+ignore")[:, 0]
    only_logits = logits.movedim(1, -1)[keep].T[None, :, :, None, None]
    only_target = target.movedim(1, -1)[keep].T[None, :, :, None, None]
    if kind == "regions":
        only_target = only_target[:, :-1]
    expected = loss_of(name, kind)(only_logits, only_target).item()
    # nnU-Net sums over the regions where there is an ignore label, and averages where there is none
    expected *= logits.shape[1] if kind == "regions" else 1
    assert loss_of(name, f"{kind}+ignore")(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_the_binary_cross_entropy_is_scaled_as_nnunets_with_an_ignore_label() -> None:
    logits, target = sample("regions+ignore")
    stock = DC_and_BCE_loss({}, {"do_bg": True, "ddp": False}, weight_dice=0, use_ignore_label=True)
    assert_same(loss_of("ce", "regions+ignore"), stock, logits, target)


@pytest.mark.parametrize(("name", "kind"), [pair for pair in OURS if "ignore" in pair[1]])
def test_predictions_in_ignored_voxels_change_nothing(name: str, kind: str) -> None:
    for batch_dice in (False, True):
        loss = loss_of(name, kind, batch_dice)
        logits, target = sample(kind)
        ignored = ignored_in(target, kind)
        value, gradient = value_and_gradient(loss, logits, target)
        other = torch.where(ignored, -5 * logits + 1, logits)
        assert value_and_gradient(loss, other, target)[0] == pytest.approx(value, rel=1e-6)
        assert not gradient[ignored.expand_as(gradient)].any()
        assert gradient[~ignored.expand_as(gradient)].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), [pair for pair in OURS if "ignore" in pair[1]])
def test_a_wholly_ignored_batch_has_a_finite_loss_and_no_gradient(name: str, kind: str, dtype: torch.dtype) -> None:
    logits, _ = sample(kind)
    target = as_target(torch.full((2, 1, *SHAPE), IGNORE), kind)
    for batch_dice in (False, True):
        value, gradient = value_and_gradient(loss_of(name, kind, batch_dice), logits.to(dtype), target)
        assert np.isfinite(value)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("name", "kind"), OURS)
def test_the_type_of_the_target_does_not_matter(name: str, kind: str) -> None:
    logits, target = sample(kind)
    loss = loss_of(name, kind)
    expected = loss(logits, target).item()
    for dtype in (torch.float32, torch.int16, torch.int64, torch.uint8):
        assert loss(logits, target.to(dtype)).item() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), OURS)
def test_logits_in_half_precision_are_computed_in_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    logits, target = sample(kind)
    logits = logits.to(dtype)
    loss = loss_of(name, kind)
    expected, expected_gradient = value_and_gradient(loss, logits.float(), target)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            assert loss(logits, target).dtype == torch.float32
            value, gradient = value_and_gradient(loss, logits, target)
        assert value == expected
        assert gradient.dtype == dtype
        assert torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize(("name", "kind"), OURS)
def test_far_off_logits_give_a_finite_loss_and_gradient(name: str, kind: str) -> None:
    logits, target = sample(kind)
    value, gradient = value_and_gradient(loss_of(name, kind), 1e4 * logits, target)
    assert np.isfinite(value)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", LABELS)
def test_the_gradient_of_focal_equals_finite_differences(kind: str) -> None:
    logits, target = sample(kind, shape=(2, 1, 2))
    loss = loss_of("focal", kind)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.double().requires_grad_())


@pytest.mark.parametrize(("name", "kind"), OURS)
def test_deep_supervision_keeps_nnunets_weights(name: str, kind: str) -> None:
    pairs = [sample(kind, seed, shape) for seed, shape in enumerate([(4, 4, 8), (4, 4, 4), (2, 2, 2)])]
    outputs, targets = zip(*pairs, strict=True)
    loss = loss_of(name, kind, scales=3)
    assert isinstance(loss, DeepSupervisionWrapper)
    single = loss_of(name, kind)
    expected = (2 * single(*pairs[0]) + single(*pairs[1])) / 3  # nnU-Net: 1, 1/2 and, for the lowest, 0
    assert loss(outputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(("name", "kind"), DEFINED)
def test_is_mean_over_samples_says_what_the_numbers_say(name: str, kind: str, batch_dice: bool) -> None:
    logits, target = sample(kind, b=3)
    whole = loss_of(name, kind, batch_dice, cases=3)(logits, target).item()
    single = []
    for i in range(3):
        loss = loss_of(name, kind, batch_dice)
        tell_cases(loss, [f"case_{i}"])
        single.append(loss(logits[i : i + 1], target[i : i + 1]).item())
    difference = abs(whole - np.mean(single))
    assert difference < 1e-6 or difference > 1e-4  # rounding, or clearly another number
    assert is_mean_over_samples(name, LABELS[kind], batch_dice) == (difference < 1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("topk", "regions", 'The loss "topk" is not defined for region-based labels'),
        ("marginal", "regions+ignore", "with region-based labels it is not defined"),
        ("tversky", "labels", "There is no loss 'tversky'; choose one of default, ce, dice, topk, focal, marginal"),
    ],
)
def test_a_loss_that_there_is_not_is_an_error(name: str, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loss_of(name, kind)


def test_marginal_without_merged_classes_says_what_to_write() -> None:
    with pytest.raises(UserError, match=r'"merged_classes": \{"case_001": \[\[1, 2\]\]\}'):
        make_loss(
            "marginal", stock_loss("labels"), LABELS["labels"], batch_dice=False, is_ddp=False, merged_classes=None
        )
