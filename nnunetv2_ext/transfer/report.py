"""What became of every tensor of a network: copied, adapted (how) or fresh (why)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunetv2_ext.transfer.matching import ENCODER, PARTS, STEM

COPIED = "copied"
ADAPTED = "adapted"
FRESH = "fresh"
ACTIONS = (COPIED, ADAPTED, FRESH)

_STAGE = re.compile(r"(.*?\.\d+)(?:\.|$)")
_BLOCK = re.compile(r"(.*?\.\d+(?:\.0)?\.(?:blocks|convs)\.(\d+))(?:\.|$)")


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the network.

    Attributes:
        name: its first name in the network's state dict.
        aliases: further names of the same tensor (nnU-Net's networks hold convolutions under several).
        part: `stem`, `encoder`, `decoder` or `head`.
        shape: of the network's tensor.
        action: `copied`, `adapted` or `fresh` (as the network was initialised).
        source: the checkpoint's name of the tensor it came from.
        how: the rule, for an adapted tensor.
        reason: why nothing was taken, for a fresh tensor that was looked for.
        note: what else there is to know: a type that was converted, names in the checkpoint that disagree.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    action: str
    source: str | None = None
    how: str | None = None
    aliases: tuple[str, ...] = ()
    reason: str | None = None
    note: str | None = None

    @property
    def numel(self) -> int:
        """Number of values in the tensor."""
        return math.prod(self.shape)

    @property
    def stage(self) -> str:
        """Its place in the network: the name up to the first number (`encoder.stages.3`), or the stem."""
        return self.part if self.part == STEM else stage_of(self.name)


def stage_of(name: str) -> str:
    """`encoder.stages.3` of `encoder.stages.3.blocks.0.conv1.conv.weight`; the first component without a number."""
    match = _STAGE.match(name)
    return match[1] if match else name.partition(".")[0]


@dataclass(frozen=True)
class TransferReport:
    """The records of all tensors of a network, in the order of its state dict, and what the checkpoint had left over.

    Attributes:
        records: one for every tensor of the network.
        unused: the checkpoint's tensors that nothing took, each by its first name.
        surplus: those of them that the network has no place for, in the parts that were asked for: stages and blocks
            that it does not have.
    """

    records: Sequence[TensorRecord]
    unused: Sequence[str] = field(default_factory=tuple)
    surplus: Sequence[str] = field(default_factory=tuple)

    @property
    def coverage(self) -> float:
        """The share of the encoder's and stem's parameters that arrived, copied or adapted."""
        wanted = [r for r in self.records if r.part in (STEM, ENCODER)]
        total = sum(r.numel for r in wanted)
        return sum(r.numel for r in wanted if r.action != FRESH) / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `transfer_report.json`: a summary, the records and the unused names."""
        return {
            "coverage": self.coverage,
            "summary": self.summary_table(),
            "tensors": [
                {k: v for k, v in asdict(r).items() if k == "shape" or v not in (None, ())} for r in self.records
            ],
            "unused_checkpoint_tensors": list(self.unused),
            "surplus_checkpoint_stages": stages(self.surplus),
        }

    def summary_table(self) -> list[dict[str, Any]]:
        """Tensors and parameters per part and action."""
        table: dict[tuple[str, str], dict[str, Any]] = {}
        for record in self.records:
            row = table.setdefault(
                (record.part, record.action),
                {"part": record.part, "action": record.action, "tensors": 0, "parameters": 0},
            )
            row["tensors"] += 1
            row["parameters"] += record.numel
        return [table[key] for key in sorted(table, key=lambda k: (PARTS.index(k[0]), ACTIONS.index(k[1])))]

    def stage_shares(self) -> dict[str, dict[str, float]]:
        """For every stage, in the network's order, the share of its parameters for each action."""
        parameters: dict[str, Counter[str]] = {}
        for record in self.records:
            parameters.setdefault(record.stage, Counter())[record.action] += record.numel
        return {
            stage: {action: counts[action] / max(1, sum(counts.values())) for action in ACTIONS}
            for stage, counts in parameters.items()
        }

    def reasons(self) -> list[str]:
        """Why tensors that were looked for are fresh, grouped by part and reason; an example for each."""
        groups: dict[tuple[str, str], list[TensorRecord]] = {}
        for record in self.records:
            if record.reason is not None:
                groups.setdefault((record.part, record.reason.partition(":")[0]), []).append(record)
        lines = []
        for (part, kind), records in sorted(groups.items(), key=lambda item: PARTS.index(item[0][0])):
            first = records[0]
            detail = (first.reason or "").partition(":")[2].strip()
            where = ", ".join(stages(r.name for r in records))
            lines.append(
                f"{part}: {len(records)} tensor{'s' * (len(records) > 1)} {kind} ({where}; "
                f"{first.name}{f' {detail}' if detail else ''})"
            )
        return lines

    def remarks(self) -> list[str]:
        """What a table does not say: adapted tensors with their rules, why others are fresh, what was left over."""
        rules: dict[str, list[str]] = {}
        for record in self.records:
            if record.action == ADAPTED:
                rules.setdefault(record.how or "", []).append(record.name)
        lines = [f"adapted: {_places(names)}: {rule}" for rule, names in rules.items()]
        lines += [f"fresh: {reason}" for reason in self.reasons()]
        notes = Counter(r.note for r in self.records if r.note)
        lines += [f"{note} ({count} tensor{'s' * (count > 1)})" for note, count in notes.items()]
        if self.surplus:
            lines.append(f"the checkpoint has more than the network: {_places(self.surplus)}")
        if others := len(self.unused) - len(self.surplus):
            lines.append(
                f"{others} other tensor{'s' * (others > 1)} of the checkpoint {'are' if others > 1 else 'is'} not used"
            )
        return lines


def stages(names: Iterable[str]) -> list[str]:
    """The stages that tensors lie in, each once; single blocks are named where a stage's first is not among them."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        match = _BLOCK.match(name)
        block = match[1] if match and match[2] != "0" else stage_of(name)
        blocks.setdefault(stage_of(name), []).append(block)
    return [b for stage, found in blocks.items() for b in ([stage] if stage in found else dict.fromkeys(found))]


def _places(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) == 1 else stages(names))
