"""From a recipe's `loss` to the loss to train with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.recipe import Loss
from nnunetv2_ext.training.marginal import NO_ENTRY, MarginalLoss, refuse_regions

LOSSES = tuple(loss.value for loss in Loss)


def make_loss(
    name: str,
    stock: nn.Module,
    label_manager: LabelManager,
    *,
    batch_dice: bool,
    is_ddp: bool,
    merged_classes: Mapping[str, Sequence[Sequence[int]]] | None,
) -> nn.Module:
    """The loss called `name`.

    All take logits (b, c, z, y, x) of any floating type, compute in float32, and respect nnU-Net's ignore label; a
    batch in which everything is ignored has a finite loss and a gradient of zero. The target is nnU-Net's: labels
    (b, 1, z, y, x), float or integer, or with region-based labels one channel for each region and, where there is an
    ignore label, a last one that says what to ignore.

    - `default`: nnU-Net's own, untouched.
    - `ce`: its cross-entropy alone (binary cross-entropy for regions). `ce` and `dice` add up to `default`.
    - `dice`: its Dice alone.
    - `topk`: cross-entropy over the worst 10 % of the voxels, as nnU-Net's variant nnUNetTrainerTopk10Loss.
    - `focal`: the focal loss (`focal_from_cross_entropy`), of softmax or, for regions, of sigmoid.
    - `marginal`: `MarginalLoss`; it must be told the cases of every batch (`marginal.tell_cases`).

    Args:
        name: one of `LOSSES`.
        stock: what `nnUNetTrainer._build_loss` returned. Its parts are used, and a DeepSupervisionWrapper around it is
            kept, with its weights, and given the new loss in place.
        label_manager: nnU-Net's.
        batch_dice: the configuration's setting, which `stock` was built with.
        is_ddp: the training is distributed.
        merged_classes: for `marginal`, what `read_merged_classes` returns.

    Raises:
        UserError: the name is unknown, the loss is not defined for region-based labels, or `marginal` has no
            `merged_classes`.
    """
    if name == "default":
        return stock
    wrapped = isinstance(stock, DeepSupervisionWrapper)
    parts: Any = stock.loss if wrapped else stock
    loss: nn.Module
    if name == "ce":
        loss = _mean_over_voxels(label_manager, _unchanged)
    elif name == "focal":
        loss = _mean_over_voxels(label_manager, focal_from_cross_entropy)
    elif name == "dice":
        loss = Dice(parts.dc, label_manager)
    elif name == "topk":
        if label_manager.has_regions:
            raise UserError('The loss "topk" is not defined for region-based labels; train with another, "ce" say.')
        loss = InFloat32(TopKLoss(ignore_index=_ignore_index(label_manager), k=10))
    elif name == "marginal":
        refuse_regions(label_manager)
        if merged_classes is None:
            raise UserError(NO_ENTRY)
        loss = MarginalLoss(
            label_manager.num_segmentation_heads,
            merged_classes,
            batch_dice=batch_dice,
            ignore_label=label_manager.ignore_label,
            ddp=is_ddp,
        )
    else:
        raise UserError(f"There is no loss {name!r}; choose one of {', '.join(LOSSES)}.")
    if not wrapped:
        return loss
    stock.loss = loss
    return stock


def is_mean_over_samples(name: str, label_manager: LabelManager, batch_dice: bool) -> bool:
    """Whether the loss of a batch is always the mean of the losses of its samples.

    Only then is the gradient accumulated over parts of a batch, each divided by their number, that of the batch. Not
    so: a Dice of the whole batch, an average over the voxels that are not ignored (of which samples have different
    numbers), the worst voxels of the whole batch.
    """
    if name == "topk":
        return False
    if name in ("default", "dice", "marginal") and batch_dice:
        return False
    return name == "dice" or not label_manager.has_ignore_label


def focal_from_cross_entropy(cross_entropy: torch.Tensor) -> torch.Tensor:
    """The focal loss of each voxel, from its cross-entropy: `-(1 - p)^2 log(p)`, p the probability of the truth.

    Lin et al. 2017, "Focal loss for dense object detection", equation 4 with gamma 2 and without alpha. `-log(p)` is
    the cross-entropy, of softmax and of sigmoid alike; `expm1` keeps the digits of 1 - p where p is close to 1.
    """
    return torch.expm1(-cross_entropy).square() * cross_entropy


def _unchanged(cross_entropy: torch.Tensor) -> torch.Tensor:
    return cross_entropy


def _mean_over_voxels(
    label_manager: LabelManager, of_cross_entropy: Callable[[torch.Tensor], torch.Tensor]
) -> nn.Module:
    if label_manager.has_regions:
        return MeanOverRegions(of_cross_entropy, label_manager)
    return MeanOverVoxels(of_cross_entropy, label_manager)


def _ignore_index(label_manager: LabelManager) -> int:
    """As nnU-Net's variants give it to their cross-entropy: -100, torch's own, ignores nothing."""
    return label_manager.ignore_label if label_manager.has_ignore_label else -100


def _in_float32(logits: torch.Tensor) -> torch.Tensor:
    """Half precision to float32. Autocast does not do it for sigmoid, whose gradient overflows in an empty Dice."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _labels_and_valid(target: torch.Tensor, label_manager: LabelManager) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The target without what is ignored (as 0, or without its last channel), and where it counts (None: all)."""
    if not label_manager.has_ignore_label:
        return target, None
    if label_manager.has_regions:
        return target[:, :-1], ~target[:, -1:].bool()
    valid = target != label_manager.ignore_label
    return torch.where(valid, target, 0), valid


class InFloat32(nn.Module):
    """A loss of logits, computed in float32."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The wrapped loss, (b, c, ...) and its target to a number."""
        return self.loss(_in_float32(logits), target)


class Dice(nn.Module):
    """The Dice of nnU-Net's default loss by itself.

    Args:
        dc: that Dice, compiled where nnU-Net compiles it.
        label_manager: nnU-Net's.
    """

    def __init__(self, dc: nn.Module, label_manager: LabelManager) -> None:
        super().__init__()
        self.dc = dc
        self.label_manager = label_manager

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Minus the mean Dice, of logits (b, c, ...) and nnU-Net's target."""
        labels, valid = _labels_and_valid(target, self.label_manager)
        return self.dc(_in_float32(logits), labels, loss_mask=valid)


class MeanOverVoxels(nn.Module):
    """The mean, over the voxels that are not ignored, of a function of the cross-entropy of each.

    Args:
        of_cross_entropy: elementwise, 0 at 0 (the cross-entropy of an ignored voxel).
        label_manager: nnU-Net's, without regions.
    """

    def __init__(self, of_cross_entropy: Callable[[torch.Tensor], torch.Tensor], label_manager: LabelManager) -> None:
        super().__init__()
        self.of_cross_entropy = of_cross_entropy
        self.label_manager = label_manager
        self.ce = RobustCrossEntropyLoss(ignore_index=_ignore_index(label_manager), reduction="none")

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean, 0 where all is ignored, of logits (b, c, ...) and labels (b, 1, ...)."""
        loss = self.of_cross_entropy(self.ce(_in_float32(logits), target))
        _, valid = _labels_and_valid(target, self.label_manager)
        return loss.mean() if valid is None else loss.sum() / valid.sum().clamp_min(1)


class MeanOverRegions(nn.Module):
    """As `MeanOverVoxels` for region-based labels, with the binary cross-entropy of each region.

    The scale is that of nnU-Net's DC_and_BCE_loss: with an ignore label a sum over the regions of the mean over
    voxels, without one a mean over both.

    Args:
        of_cross_entropy: elementwise.
        label_manager: nnU-Net's, with regions.
    """

    def __init__(self, of_cross_entropy: Callable[[torch.Tensor], torch.Tensor], label_manager: LabelManager) -> None:
        super().__init__()
        self.of_cross_entropy = of_cross_entropy
        self.label_manager = label_manager
        self.ce = nn.BCEWithLogitsLoss(reduction="none")

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean, 0 where all is ignored, of logits (b, regions, ...) and one channel for each region."""
        logits = _in_float32(logits)
        regions, valid = _labels_and_valid(target, self.label_manager)
        loss = self.of_cross_entropy(self.ce(logits, regions.to(logits.dtype)))
        return loss.mean() if valid is None else (loss * valid).sum() / valid.sum().clamp_min(1)
