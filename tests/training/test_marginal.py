"""The marginal loss against numpy, nnU-Net's loss of a smaller network, and finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.losses import make_loss
from nnunetv2_ext.training.marginal import MarginalLoss, check_merged_cases, read_merged_classes, tell_cases

LABELS = {"background": 0, "CA1": 1, "CA2": 2, "CA3": 3, "DG": 4}
CLASSES = 5
IGNORE = 5
SHAPE = (3, 4, 5)
MERGED = {
    "two": [[1, 2]],
    "pairs": [[4, 2], [1, 3]],
    "unlabelled": [[0, 3]],
    "both": [[1, 0], [2, 4]],
    "other": [[1, 2], [0, 4]],
    "all": [[0, 1, 2, 3, 4]],
}
BATCHES = [
    ["plain", "plain"],
    ["two", "two"],
    ["two", "plain"],
    ["plain", "pairs", "other"],
    ["two", "other", "unlabelled"],
    ["both", "all"],
    ["unlabelled", "both", "plain", "two"],
]


def sample(b: int, seed: int = 0, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits (b, classes, 3, 4, 5) in float64 and labels (b, 1, 3, 4, 5)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((b, classes, *SHAPE), generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (b, 1, *SHAPE), generator=generator)


def with_ignored(labels: torch.Tensor) -> torch.Tensor:
    chance = torch.rand(labels.shape, generator=torch.Generator().manual_seed(7))
    return torch.where(chance < 0.3, IGNORE, labels)


def marginal(
    cases: Sequence[str], *, batch_dice: bool = False, ignore_label: int | None = None, classes: int = CLASSES
) -> MarginalLoss:
    loss = MarginalLoss(classes, MERGED, batch_dice=batch_dice, ignore_label=ignore_label)
    loss.for_cases(cases)
    return loss


def stock(batch_dice: bool = False, ignore_label: int | None = None) -> DC_and_CE_loss:
    """As nnUNetTrainer._build_loss makes it."""
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def numpy_loss(logits: torch.Tensor, labels: torch.Tensor, cases: Sequence[str], batch_dice: bool) -> float:
    """Sum softmax probabilities over sets of labels; cross-entropy; Dice of every set, pooled by set in a batch."""
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    y = labels.numpy()[:, 0]
    cross_entropy: list[float] = []
    sums: list[dict[frozenset[int], npt.NDArray[Any]]] = []
    for probabilities, truth, case in zip(p, y, cases, strict=True):
        merged = [frozenset(group) for group in MERGED.get(case, [])]
        alone = set(range(CLASSES)).difference(*merged)
        sums.append({})
        for members in [*merged, *(frozenset([label]) for label in alone)]:
            predicted = probabilities[list(members)].sum(0)[truth != IGNORE]
            annotated = np.isin(truth, list(members))[truth != IGNORE]
            cross_entropy += list(-np.log(predicted[annotated]))
            if 0 not in members:
                sums[-1][members] = np.array([2 * predicted[annotated].sum(), predicted.sum() + annotated.sum()])
    dice_of_samples = []
    for of_sample in sums:
        dices = []
        for members, own in of_sample.items():
            twice, sizes = sum((other[members] for other in sums if members in other), 0) if batch_dice else own
            dices.append((twice + 1e-5) / (sizes + 1e-5))
        dice_of_samples.append(np.mean(dices) if dices else 0)
    return float(np.mean(cross_entropy) - np.mean(dice_of_samples))


def value_and_gradient(loss: torch.nn.Module, logits: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    return value.item(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("cases", BATCHES, ids="+".join)
def test_equals_summing_the_probabilities_in_numpy(cases: list[str], batch_dice: bool) -> None:
    logits, labels = sample(len(cases))
    expected = numpy_loss(logits, labels, cases, batch_dice)
    assert marginal(cases, batch_dice=batch_dice)(logits, labels).item() == pytest.approx(expected, rel=1e-9)
    labels = with_ignored(labels)
    expected = numpy_loss(logits, labels, cases, batch_dice)
    loss = marginal(cases, batch_dice=batch_dice, ignore_label=IGNORE)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ignore_label", [None, IGNORE])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("case", ["plain", "another"])
def test_cases_without_groups_equal_nnunets_loss(case: str, batch_dice: bool, ignore_label: int | None) -> None:
    logits, labels = sample(3)
    labels = with_ignored(labels) if ignore_label else labels
    loss = marginal([case] * 3, batch_dice=batch_dice, ignore_label=ignore_label)
    value, gradient = value_and_gradient(loss, logits.float(), labels)
    expected, expected_gradient = value_and_gradient(stock(batch_dice, ignore_label), logits.float(), labels)
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(
    ("case", "classes", "merged_into"),
    [
        ("two", 3, [[0], [1, 2]]),
        ("two", 5, [[0], [1, 2], [3], [4]]),
        ("pairs", 5, [[0], [1, 3], [2, 4]]),
        ("both", 5, [[0, 1], [2, 4], [3]]),
    ],
)
def test_equals_nnunets_loss_of_a_network_of_the_merged_classes_alone(
    case: str, classes: int, merged_into: list[list[int]], batch_dice: bool
) -> None:
    class Smaller(torch.nn.Module):
        """nnU-Net's loss of logits that are the log-sum-exp of the members'."""

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            outputs = torch.cat([logits[:, members].logsumexp(1, keepdim=True) for members in merged_into], 1)
            return stock(batch_dice)(outputs, number_of[target])

    number_of = torch.tensor([next(i for i, m in enumerate(merged_into) if label in m) for label in range(classes)])
    logits, labels = sample(2, classes=classes)
    loss = MarginalLoss(classes, {case: MERGED[case]}, batch_dice=batch_dice)
    loss.for_cases([case, case])
    value, gradient = value_and_gradient(loss, logits.float(), labels)
    expected, expected_gradient = value_and_gradient(Smaller(), logits.float(), labels)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_any_label_of_the_group_gives_the_same_loss() -> None:
    logits, labels = sample(2)
    loss = marginal(["pairs", "both"])
    value = loss(logits, labels)
    swapped = labels.clone()
    swapped[0] = torch.tensor([0, 3, 4, 1, 2])[labels[0]]
    swapped[1] = torch.tensor([1, 0, 4, 3, 2])[labels[1]]
    assert torch.equal(loss(logits, swapped), value)
    assert not torch.equal(marginal(["plain", "plain"])(logits, swapped), marginal(["plain"] * 2)(logits, labels))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_equals_finite_differences(batch_dice: bool) -> None:
    logits, labels = sample(3)
    logits, labels = logits[..., :2, :2, :1], with_ignored(labels)[..., :2, :2, :1]
    loss = marginal(["plain", "both", "two"], batch_dice=batch_dice, ignore_label=IGNORE)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.clone().requires_grad_())


def test_far_off_logits_are_summed_without_overflow() -> None:
    logits = torch.tensor([-300.0, 200.0, 200.0, -400.0, 500.0]).view(1, 5, 1, 1, 1).requires_grad_()
    loss = marginal(["two"])(logits, torch.tensor([[[[[2]]]]]))
    loss.backward()
    assert loss.item() == pytest.approx(
        300 - np.log(2) - 1 / 3, rel=1e-6
    )  # Dice 1 of class 3, which is absent, 0 of two
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0, -0.5, -0.5, 0, 1], rel=1e-5)


def test_each_sample_is_merged_by_its_own_case() -> None:
    logits, labels = sample(2)
    loss = marginal(["two", "plain"])
    straight = loss(logits, labels)
    loss.for_cases(np.array(["plain", "two"]))  # as nnU-Net's loader hands names over
    torch.testing.assert_close(loss(logits.flip(0), labels.flip(0)), straight)
    assert not torch.isclose(loss(logits, labels), straight, rtol=1e-4)


def test_a_case_in_which_all_is_one_class_teaches_nothing() -> None:
    logits, labels = sample(1)
    value, gradient = value_and_gradient(marginal(["all"]), logits, labels)
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_batch_dice_pools_a_class_over_the_samples_that_have_it() -> None:
    # Two voxels, hard predictions. Classes: {1, 2} merged, 3, 4 in the first sample; 1, 2, 3, 4 in the second.
    logits = torch.full((2, CLASSES, 1, 1, 2), -1e3)
    for i, (voxel, predicted) in [(0, (0, 2)), (0, (1, 3)), (1, (0, 1)), (1, (1, 1))]:
        logits[i, predicted, 0, 0, voxel] = 1e3
    labels = torch.tensor([[1, 3], [1, 3]]).view(2, 1, 1, 1, 2)
    loss = marginal(["two", "plain"], batch_dice=True)
    first = (1 + 2 / 3 + 1) / 3  # {1, 2}: its own voxel alone; 3: one of two found in the batch; 4: nowhere
    second = (2 / 3 + 1 + 2 / 3 + 1) / 4  # 1: one voxel, and one too many; 2: nowhere; 3, 4 as above
    cross_entropy = 2e3 / 4  # one voxel of four is wrong
    assert loss(logits, labels).item() - cross_entropy == pytest.approx(-(first + second) / 2, abs=1e-4)


def test_inputs_stay_as_they_are() -> None:
    logits, labels = sample(2)
    before = logits.clone(), labels.clone()
    marginal(["two", "both"], batch_dice=True, ignore_label=IGNORE)(logits, labels)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_tell_cases_reaches_the_loss_within_deep_supervision() -> None:
    pairs = [sample(2, seed) for seed in range(2)]
    loss = marginal([])
    wrapper = DeepSupervisionWrapper(loss, [0.75, 0.25])
    tell_cases(wrapper, ["two", "both"])
    expected = sum(w * numpy_loss(*pair, ["two", "both"], False) for w, pair in zip([0.75, 0.25], pairs, strict=True))
    outputs, targets = zip(*pairs, strict=True)
    assert wrapper(outputs, targets).item() == pytest.approx(expected, rel=1e-9)


def test_a_batch_whose_cases_were_not_told_is_refused() -> None:
    loss = MarginalLoss(CLASSES, MERGED, batch_dice=False)
    with pytest.raises(ValueError, match="for_cases"):
        loss(*sample(2))
    loss.for_cases(["two"])
    with pytest.raises(ValueError, match="for_cases"):
        loss(*sample(2))


def train_on_rank(rank: int, folder: str) -> None:
    """One of two processes: the loss and gradient of its two samples, written to the folder."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    try:
        logits, labels = sample(4)
        own = slice(2 * rank, 2 * rank + 2)
        label_manager = LabelManager(LABELS, None)
        loss = make_loss(
            "marginal", stock(batch_dice=True), label_manager, batch_dice=True, is_ddp=True, merged_classes=MERGED
        )
        tell_cases(loss, ["two", "plain", "other", "both"][own])
        torch.save(value_and_gradient(loss, logits[own], labels[own]), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def train_other_rank(_: int, folder: str) -> None:
    train_on_rank(1, folder)


def test_two_processes_with_different_groupings_train_as_one_with_the_big_batch(tmp_path: Path) -> None:
    other = torch.multiprocessing.spawn(train_other_rank, (str(tmp_path),), nprocs=1, join=False)
    train_on_rank(0, str(tmp_path))
    other.join()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    loss = marginal(["two", "plain", "other", "both"], batch_dice=True)
    value, gradient = value_and_gradient(loss, *sample(4))
    assert np.mean([part[0] for part in parts]) == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient)  # DDP averages over processes


def read(groups: object, **labels: object) -> dict[str, tuple[tuple[int, ...], ...]]:
    label_manager = LabelManager(LABELS | labels, [1, 2, 3, 4, 5] if "hippocampus" in labels else None)
    return read_merged_classes({"labels": LABELS | labels, "merged_classes": groups}, label_manager)


def test_groups_are_read_by_number_and_by_name() -> None:
    entry = {"c_01": [[3, "CA2"], ["DG", 0]], "c_02": [], "c_03": [["background", "CA1", 2, 3]]}
    assert read(entry, ignore=5) == {"c_01": ((2, 3), (0, 4)), "c_02": (), "c_03": ((0, 1, 2, 3),)}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1, 7]], "unknown label 7; write .* 0 .background., 1 .CA1."),
        ([[1, "CA4"]], "unknown label 'CA4'"),
        ([["1", "2"]], "unknown label '1'"),
        ([[1, -1]], "unknown label -1"),
        ([[1, 2], [2, 3]], "label 2 stands in it more than once"),
        ([[1, "CA1"]], "label 1 stands in it more than once"),
        ([[1]], "fewer than two labels"),
        ([[]], "fewer than two labels"),
        ([[1, 5]], "the ignore label cannot be merged"),
        ([[1, "ignore"]], "the ignore label cannot be merged"),
        ([1, 2], r"expected a list of groups, each a list of labels, such as \[\[1, 2\]\]"),
        ({"a": [1, 2]}, "expected a list of groups"),
        ("1/23", "expected a list of groups"),
        ([[1, True]], "a number or a name, not True"),
        ([[1, 2.0]], "a number or a name, not 2.0"),
        ([[1, [2]]], r"a number or a name, not \[2\]"),
        ([[1, None]], "a number or a name, not None"),
    ],
)
def test_bad_groups_are_named_with_their_case(groups: object, message: str) -> None:
    with pytest.raises(UserError, match=f"case c_02: .*{message}"):
        read({"c_01": [[1, 2]], "c_02": groups}, ignore=5)


def test_an_entry_that_is_no_object_is_an_error() -> None:
    with pytest.raises(UserError, match=r"must be an object .* not of type list"):
        read([["c_01", [1, 2]]])


def test_regions_are_an_error() -> None:
    with pytest.raises(UserError, match="region-based"):
        read({"c_01": [[1, 2]]}, hippocampus=[1, 2, 3, 4])


def test_without_the_entry_it_says_what_to_write() -> None:
    with pytest.raises(UserError, match=r'"merged_classes": \{"case_001": \[\[1, 2\]\]\}'):
        read_merged_classes({"labels": LABELS}, LabelManager(LABELS, None))


def test_a_case_that_the_dataset_has_not_is_named() -> None:
    check_merged_cases({"c_01": ((1, 2),)}, ["c_01", "c_02"])
    with pytest.raises(UserError, match=r"names c_03.nii.gz, which is no preprocessed case .* \(1 such"):
        check_merged_cases({"c_01": ((1, 2),), "c_03.nii.gz": ()}, ["c_01", "c_02"])
