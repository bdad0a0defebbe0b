"""The marginal loss: train on cases in which several classes were annotated as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunetv2_ext.errors import UserError

Groups = tuple[tuple[int, ...], ...]

# What nnUNetTrainer._build_loss gives to its Dice.
SMOOTH = 1e-5
NO_ENTRY = (
    'The loss "marginal" needs "merged_classes" in dataset.json: for every case annotated with merged classes, the '
    'groups of labels (numbers or names) that were annotated as one, such as "merged_classes": {"case_001": [[1, 2]]}. '
    'Add it there and in the preprocessed folder\'s dataset.json, or train with "loss=default".'
)


def read_merged_classes(dataset_json: Mapping[str, Any], label_manager: LabelManager) -> dict[str, Groups]:
    """The groups of merged classes of `dataset.json`, checked, as label numbers.

    The entry is `"merged_classes": {CASE: [[LABEL, LABEL, ...], ...]}`, a label being a number or a name of
    `"labels"`. In such a case a voxel of the merged structure may carry any label of its group.

    Args:
        dataset_json: nnU-Net's description of the dataset.
        label_manager: nnU-Net's, of the same dataset.

    Returns:
        For every case named, its groups, each in ascending order.

    Raises:
        UserError: there is no such entry, the labels are regions, or a case's groups are not of the form above: a
            wrong type, an unknown label, the ignore label, a label twice, a group of fewer than two labels.
    """
    if "merged_classes" not in dataset_json:
        raise UserError(NO_ENTRY)
    refuse_regions(label_manager)
    entry = dataset_json["merged_classes"]
    if not isinstance(entry, Mapping):
        raise UserError(
            'merged_classes in dataset.json must be an object such as {"case_001": [[1, 2]]}, '
            f"not of type {type(entry).__name__}."
        )
    numbers = {
        name: int(value[0] if isinstance(value, (list, tuple)) else value)
        for name, value in label_manager.label_dict.items()
    }
    return {case: _read_groups(case, groups, numbers, label_manager.ignore_label) for case, groups in entry.items()}


def _read_groups(case: str, groups: Any, numbers: Mapping[str, int], ignore_label: int | None) -> Groups:
    where = f"merged_classes in dataset.json, case {case}:"
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise UserError(f"{where} expected a list of groups, each a list of labels, such as [[1, 2]], got {groups!r}.")
    seen: set[int] = set()
    result = []
    for group in groups:
        labels = tuple(sorted(_read_label(where, label, numbers) for label in group))
        if ignore_label in labels:
            raise UserError(f"{where} the ignore label cannot be merged with other labels; take it out of {group}.")
        for label in labels:
            if label in seen:
                raise UserError(f"{where} label {label} stands in it more than once; a label is in one group at most.")
            seen.add(label)
        if len(labels) < 2:
            raise UserError(f"{where} the group {group} has fewer than two labels; leave it out or complete it.")
        result.append(labels)
    return tuple(result)


def _read_label(where: str, label: Any, numbers: Mapping[str, int]) -> int:
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, int) and not isinstance(label, bool) and label in numbers.values():
        return label
    known = ", ".join(f"{number} ({name})" for name, number in numbers.items())
    if isinstance(label, (int, str)) and not isinstance(label, bool):
        raise UserError(f"{where} unknown label {label!r}; write the number or the name of one of: {known}.")
    raise UserError(f"{where} a label is a number or a name, not {label!r}; there are: {known}.")


def refuse_regions(label_manager: LabelManager) -> None:
    """Raises UserError for region-based labels, whose outputs overlap: their probabilities cannot be summed."""
    if label_manager.has_regions:
        raise UserError(
            'The loss "marginal" sums the probabilities of classes that exclude each other; with region-based labels '
            "it is not defined. Train with another loss."
        )


def check_merged_cases(merged_classes: Mapping[str, object], cases: Iterable[str]) -> None:
    """Raises UserError for a case with merged classes that the dataset has not: a misspelt case would not be merged.

    Args:
        merged_classes: by case, as `read_merged_classes` returns it.
        cases: the names of all preprocessed cases.
    """
    unknown = sorted(set(merged_classes) - set(cases))
    if unknown:
        raise UserError(
            f"merged_classes in dataset.json names {unknown[0]}, which is no preprocessed case of this dataset "
            f"({len(unknown)} such names in all). Write the cases without file ending or channel."
        )


def tell_cases(loss: nn.Module, cases: Sequence[str]) -> None:
    """Tell every marginal loss in `loss` (itself, or inside nnU-Net's DeepSupervisionWrapper) a batch's cases."""
    for module in loss.modules():
        if isinstance(module, MarginalLoss):
            module.for_cases(cases)


def merge_logits(logits: torch.Tensor, groups: Iterable[Sequence[int]]) -> torch.Tensor:
    """Logits whose softmax has the sum of each group's probabilities at its first label, and 0 at its others.

    The logit of a sum of softmax probabilities is the log-sum-exp of their logits; -inf stands for a class that is
    not there.

    Args:
        logits: (classes, ...), of one sample.
        groups: of label numbers.
    """
    channels = list(logits.unbind(0))
    for group in groups:
        channels[group[0]] = torch.logsumexp(torch.stack([logits[label] for label in group]), dim=0)
        for label in group[1:]:
            channels[label] = torch.full_like(logits[label], -torch.inf)
    return torch.stack(channels)


def merge_labels(labels: torch.Tensor, groups: Iterable[Sequence[int]]) -> torch.Tensor:
    """Labels with every label of a group replaced by the group's first one."""
    for group in groups:
        for label in group[1:]:
            labels = torch.where(labels == label, group[0], labels)
    return labels


class MarginalLoss(nn.Module):
    """Dice and cross-entropy after the predictions of classes that were annotated as one are summed.

    Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation" (Medical
    Image Analysis 70): the probability of a merged class is the sum of its classes' softmax probabilities, and Dice
    and cross-entropy compare merged with merged. The parts, their weights and the smoothing are those of nnU-Net's
    default loss, which this loss equals where nothing is merged.

    A group that holds the background (0) counts as background, which the Dice leaves out as nnU-Net's does. The Dice
    is averaged over the classes of each sample, then over samples; a sample in which everything is background adds 0.

    With `batch_dice` a class (merged or not) is summed over all samples of the batch, on all GPUs, in which it exists
    as such: in a batch of {1}, {2}, {3} and {1}, {2, 3} class 1 over both samples, each other over its own. The
    average over classes and samples stays as above, so that every sample weighs the same, however many classes are
    left in it.

    Args:
        num_classes: outputs of the network, background included.
        merged_classes: by case, the groups of label numbers. Cases not listed are not merged.
        batch_dice: nnU-Net's setting: the Dice of the batch instead of each sample's.
        ignore_label: voxels of this label count nowhere; None where there is none.
        ddp: the training is distributed. The classes to sum over all GPUs are those of `merged_classes`, which must
            therefore be the same everywhere.
    """

    def __init__(
        self,
        num_classes: int,
        merged_classes: Mapping[str, Sequence[Sequence[int]]],
        *,
        batch_dice: bool,
        ignore_label: int | None = None,
        ddp: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_dice = batch_dice
        self.ignore_label = ignore_label
        self.ddp = ddp
        self._groups: dict[str, Groups] = {
            case: tuple(tuple(sorted(group)) for group in groups) for case, groups in merged_classes.items()
        }
        # Every class that exists as such in some case, with its place in the sums of the batch.
        classes: set[tuple[int, ...]] = {(label,) for label in range(1, num_classes)}
        classes |= {group for groups in self._groups.values() for group in groups}
        self._places = {members: place for place, members in enumerate(sorted(classes))}
        self._batch: list[Groups] | None = None
        self._places_of_batch = torch.empty(0, dtype=torch.long)

    def for_cases(self, cases: Sequence[str]) -> None:
        """Say which cases the samples of the coming batch are from, in their order; call it before each forward."""
        self._batch = [self._groups.get(case, ()) for case in cases]
        self._places_of_batch = torch.tensor([self._places_for(groups) for groups in self._batch])

    def _places_for(self, groups: Groups) -> list[int]:
        """The place of each foreground label's class; one past the last for labels that are no class of their own."""
        first = {group[0]: group for group in groups}
        gone = {label for group in groups for label in group[1:]}
        nowhere = len(self._places)
        labels = range(1, self.num_classes)
        return [nowhere if label in gone else self._places[first.get(label, (label,))] for label in labels]

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch.

        Args:
            logits: (b, classes, z, y, x), of any floating type; computed in float32 at least.
            target: (b, 1, z, y, x), labels as float or integer.

        Raises:
            ValueError: `for_cases` was not called for a batch of this size.
        """
        groups_of_batch = self._batch
        if groups_of_batch is None or len(groups_of_batch) != len(logits):
            raise ValueError("for_cases must be called with the cases of the batch before its loss is computed")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        labels = target.long()
        valid = None if self.ignore_label is None else labels != self.ignore_label
        if any(groups_of_batch):
            logits = torch.stack([merge_logits(*pair) for pair in zip(logits, groups_of_batch, strict=True)])
            labels = torch.stack([merge_labels(*pair) for pair in zip(labels, groups_of_batch, strict=True)])
        if valid is not None:
            labels = torch.where(valid, labels, 0)
        log_probabilities = torch.log_softmax(logits, 1)
        return _cross_entropy(log_probabilities, labels, valid) + self._dice(log_probabilities, labels, valid)

    def _dice(self, log_p: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Minus the mean Dice. `log_p` (b, classes, ...), `labels` and `valid` (b, 1, ...)."""
        axes = tuple(range(2, log_p.ndim))
        predicted = log_p[:, 1:].exp()
        with torch.no_grad():
            annotated = torch.zeros_like(log_p).scatter_(1, labels, 1)[:, 1:]  # what is ignored is background here
        overlap = (predicted * annotated).sum(axes)
        if valid is not None:
            predicted = predicted * valid
        sums = torch.stack([overlap, predicted.sum(axes), annotated.sum(axes)])  # each (b, classes - 1)
        places = self._places_of_batch.to(log_p.device)
        if self.batch_dice:
            sums = self._sum_over_batch(sums, places)
        overlap, size_predicted, size_annotated = sums
        dice = (2 * overlap + SMOOTH) / (size_predicted + size_annotated + SMOOTH).clamp_min(1e-8)
        exists = (places < len(self._places)).to(dice.dtype)
        return -((dice * exists).sum(1) / exists.sum(1).clamp_min(1)).mean()

    def _sum_over_batch(self, sums: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Replace each sample's sums by those of its classes over the batch: (3, b, classes - 1) to the same shape."""
        totals = sums.new_zeros(len(sums), len(self._places) + 1).index_add(1, places.flatten(), sums.flatten(1))
        if self.ddp:
            totals = AllGatherGrad.apply(totals).sum(0)
        return totals[:, places]


def _cross_entropy(log_p: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """The mean over valid voxels, 0 where there is none. `log_p` (b, classes, ...), the others (b, 1, ...)."""
    voxelwise = F.nll_loss(log_p, labels[:, 0], reduction="none")
    if valid is None:
        return voxelwise.mean()
    return torch.where(valid[:, 0], voxelwise, 0).sum() / valid.sum().clamp_min(1)
