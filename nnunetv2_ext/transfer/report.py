"""What became of every tensor of a network: copied, adapted (how) or fresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

COPIED = "copied"
ADAPTED = "adapted"
FRESH = "fresh"


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the network.

    Attributes:
        name: its first name in the network's state dict.
        aliases: further names of the same tensor (nnU-Net's networks hold convolutions under several).
        part: `stem`, `encoder` or `decoder` (everything after the encoder, the segmentation head included).
        shape: of the network's tensor.
        action: `copied`, `adapted` or `fresh` (as the network was initialised).
        source: the checkpoint's name of the tensor it came from.
        how: the rule, for an adapted tensor.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    action: str
    source: str | None = None
    how: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of values in the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class TransferReport:
    """The records of all tensors of a network, in the order of its state dict, and what the checkpoint had left over.

    Attributes:
        records: one for every tensor of the network.
        unused: the checkpoint's tensors that nothing took (its decoder, as a rule).
    """

    records: Sequence[TensorRecord]
    unused: Sequence[str] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """For `transfer_report.json`: a summary, the records and the unused names."""
        return {
            "summary": self.summary_table(),
            "tensors": [{k: v for k, v in asdict(r).items() if v not in (None, ())} for r in self.records],
            "unused_checkpoint_tensors": list(self.unused),
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
        return [table[key] for key in sorted(table, key=lambda k: (_PARTS.index(k[0]), _ACTIONS.index(k[1])))]

    def summary_lines(self) -> list[str]:
        """A few lines for the log: counts per part, and every adapted tensor with its rule."""
        lines = [
            f"  {row['part']:<8} {row['action']:<8} {row['tensors']:>5} tensors {row['parameters']:>13,} parameters"
            for row in self.summary_table()
        ]
        lines += [f"  adapted: {r.name}: {r.how}" for r in self.records if r.action == ADAPTED]
        if self.unused:
            lines.append(f"  {len(self.unused)} tensors of the checkpoint are not used (its own decoder or head)")
        return lines


_PARTS = ("stem", "encoder", "decoder")
_ACTIONS = (COPIED, ADAPTED, FRESH)
