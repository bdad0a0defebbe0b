"""From a checkpoint's tensors to a network's: what fits is taken by a stated rule, what does not is named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.matching import (
    ENCODER,
    HEAD,
    STEM,
    NetworkTensor,
    PartKeys,
    SourceNames,
    is_in_decoder_stage,
    is_input_projection,
    network_tensors,
    unused_names,
)
from nnunetv2_ext.transfer.report import ADAPTED, COPIED, FRESH, TensorRecord, TransferReport
from nnunetv2_ext.transfer.request import TransferRequest
from nnunetv2_ext.transfer.rules import Fit, Surroundings, fit

NOT_THERE = "not in the checkpoint"
NEAREST = 5
"""How many of the checkpoint's names are shown where none fits."""


class MisfitError(UserError):
    """Less of the checkpoint fits the network than must, or nothing."""


@dataclass(frozen=True)
class Step:
    """One tensor that arrives: its name in the network and in the checkpoint, and the rules on the way."""

    name: str
    source: str
    rules: tuple[Callable[[torch.Tensor], torch.Tensor], ...]

    def apply(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The value, on the CPU and in the network's type."""
        value = weights[self.source]
        for rule in self.rules:
            value = rule(value)
        return value


@dataclass(frozen=True)
class Transfer:
    """What comes from where. No value is computed before it is asked for, one tensor at a time.

    Attributes:
        steps: the tensors that arrive.
        report: what becomes of every tensor of the network.
        weights: the checkpoint's tensors.
    """

    steps: Sequence[Step]
    report: TransferReport
    weights: Mapping[str, torch.Tensor]

    def value(self, step: Step) -> torch.Tensor:
        """A step's value, on the CPU and in the network's type.

        Raises:
            UserError: the checkpoint's tensor holds NaN or inf.
        """
        if not is_finite(self.weights[step.source]):
            raise UserError(
                f"the checkpoint's {step.source} holds NaN or inf: its pre-training diverged, or the file is damaged"
            )
        return step.apply(self.weights)

    def values(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names in the network's state dict and their new values, one at a time."""
        for step in self.steps:
            yield step.name, self.value(step)


def plan_transfer(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    keys: PartKeys,
    *,
    pretrain_patch_size: Sequence[int] | None,
    patch_size: Sequence[int],
    request: TransferRequest = TransferRequest(),  # noqa: B008  frozen
    release: Callable[[], None] | None = None,
) -> Transfer:
    """Find, for every tensor of `network` that is asked for, its value in a checkpoint.

    Nothing is written into the network (it may live on the meta device); see `loading.load_and_verify`.

    Args:
        network: a network of dynamic-network-architectures, neither compiled nor wrapped.
        weights: the checkpoint's tensors by name.
        keys: where the parts lie in the checkpoint (the network knows its own).
        pretrain_patch_size: voxels, the patch that the checkpoint was trained with; None where it is not known.
        patch_size: voxels, the patch that the network is built for; both in network axis order.
        request: what to bring over.
        release: called after values were compared (names of one tensor that may disagree); may give back memory that
            reading the checkpoint took.

    Raises:
        UserError: less of encoder and stem has a match than the request's `min_coverage`, or nothing has; a 2D
            checkpoint; a channel map that does not fit. Nothing starts at random unsaid.
    """
    own = PartKeys.of_network(network)
    targets = network_tensors(network, own)
    names = SourceNames(weights, own, keys, targets)
    surroundings = _surroundings(targets, names, weights, own, pretrain_patch_size, patch_size, request)
    steps: list[Step] = []
    records: list[TensorRecord] = []
    used: list[str] = []
    looked_at: set[str] = set()
    for target in targets:
        if not _is_asked_for(target, request):
            records.append(_record(target, FRESH))
            continue
        sources = names.of(target)
        if not sources:
            records.append(_record(target, FRESH, reason=NOT_THERE))
            continue
        looked_at.update(sources)
        source, value = sources[0], weights[sources[0]]
        found = fit(target, value, surroundings)
        if isinstance(found, str):
            records.append(_record(target, FRESH, reason=found))
            continue
        steps.append(Step(target.names[0], source, found.rules))
        used.extend(sources)
        action = ADAPTED if found.how else COPIED
        note = _note(found, sources, weights, release)
        records.append(_record(target, action, source=source, how=found.how, note=note))
    unused = unused_names(weights, used)
    surplus = tuple(
        name
        for name in unused
        if name not in looked_at and (names.is_encoder(name) or (request.decoder and is_in_decoder_stage(name)))
    )
    report = TransferReport(records, unused, surplus)
    _check_coverage(report, weights, request, own)
    return Transfer(steps, report, weights)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor inf; reads it once, without a copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # NaN passes through both
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _surroundings(
    targets: Sequence[NetworkTensor],
    names: SourceNames,
    weights: Mapping[str, torch.Tensor],
    own: PartKeys,
    pretrain_patch_size: Sequence[int] | None,
    patch_size: Sequence[int],
    request: TransferRequest,
) -> Surroundings:
    """What the rules have to know of the two networks; refuses a 2D checkpoint and a channel map that does not fit."""
    projection = next(t for t in targets if is_input_projection(t, own))
    source = next(iter(names.of(projection)), None)
    shape = projection.shape if source is None else tuple(weights[source].shape)
    if len(shape) == 4:
        raise UserError(
            f"the checkpoint is of a 2D network ({source} is {shape}), and the network here is 3D: 2D weights cannot "
            "be brought over"
        )
    if len(shape) != 5:
        raise UserError(f"the checkpoint's {source} is {shape}, which is no convolution's weight")
    if request.channel_map is not None:
        _check_channel_map(request.channel_map, projection.shape[1], shape[1])
    return Surroundings(
        own, tuple(projection.shape[2:]), tuple(shape[2:]), pretrain_patch_size, patch_size, request.channel_map
    )


def _check_channel_map(channel_map: Sequence[int | None], num_channels: int, num_pretrained: int) -> None:
    if len(channel_map) != num_channels:
        raise UserError(
            f"-cm has {len(channel_map)} entries and the dataset {num_channels} channel(s): give one for each, a "
            "channel of the checkpoint or none"
        )
    if beyond := [c for c in channel_map if c is not None and not 0 <= c < num_pretrained]:
        raise UserError(
            f"-cm names channel {beyond[0]}, and the checkpoint has {num_pretrained} (0 to {num_pretrained - 1})"
        )


def _is_asked_for(target: NetworkTensor, request: TransferRequest) -> bool:
    if target.part in (STEM, ENCODER):
        return True
    return request.keep_head if target.part == HEAD else request.decoder


def _record(target: NetworkTensor, action: str, **more: str | None) -> TensorRecord:
    return TensorRecord(target.names[0], target.part, target.shape, action, aliases=target.names[1:], **more)


def _note(
    found: Fit, sources: Sequence[str], weights: Mapping[str, torch.Tensor], release: Callable[[], None] | None
) -> str | None:
    """What was converted, and names of one tensor that disagree in the checkpoint."""
    notes = [found.note] if found.note else []
    first = weights[sources[0]]
    different = [
        name
        for name in sources[1:]
        if weights[name].data_ptr() != first.data_ptr() and not torch.equal(weights[name], first)
    ]
    if release is not None and any(weights[name].data_ptr() != first.data_ptr() for name in sources[1:]):
        release()
    if different and "all_modules" in sources[0] and "all_modules" not in different[0]:
        notes.append(
            "its all_modules and its plain name disagree in the checkpoint: all_modules is what the forward pass used, "
            "and is taken"
        )
    elif different:
        notes.append("its names in the checkpoint disagree: the first is taken, that of the encoder by itself")
    return "; ".join(notes) or None


def _check_coverage(
    report: TransferReport, weights: Mapping[str, torch.Tensor], request: TransferRequest, own: PartKeys
) -> None:
    reasons = "; ".join(report.reasons())
    if report.coverage == 0:
        unnamed = [r.name for r in report.records if r.part == ENCODER and r.reason == NOT_THERE]
        hint = ""
        if unnamed and all(r.reason == NOT_THERE for r in report.records if r.part == ENCODER):
            known = {name for r in report.records for name in (r.name, *r.aliases)}
            others = [name for name in weights if name not in known] or list(weights)
            near = difflib.get_close_matches(unnamed[0], others, n=NEAREST, cutoff=0.0)
            hint = f". The checkpoint's names nearest to {unnamed[0]} are {', '.join(near)}"
        raise MisfitError(
            f"the checkpoint and the network ({own.key_to_encoder}, {own.key_to_stem}) have nothing in common: "
            f"{reasons}{hint}"
        )
    if report.coverage < request.min_coverage:
        raise MisfitError(
            f"{report.coverage:.1%} of the encoder's and stem's parameters have a match in the checkpoint, and "
            f"{request.min_coverage:.1%} must (-min_coverage): {reasons}"
        )
    if request.keep_head and any(r.part == HEAD and r.action == FRESH for r in report.records):
        raise UserError(f"-keep_head: the segmentation head does not fit: {reasons}")
