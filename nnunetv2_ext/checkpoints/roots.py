"""What wrappers put in front of the names in a state dict: `module.`, `_orig_mod.`, `model.` and their like."""

from __future__ import annotations

from collections.abc import Collection, Iterable

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""DistributedDataParallel, `torch.compile`, and what Lightning modules and self-supervised methods call a network."""
_MAX_DEPTH = 4


def network_root(names: Iterable[str], expected: Collection[str]) -> str:
    """The chain of wrapper prefixes under which a network's names are found, as many of them as possible.

    Args:
        names: in the checkpoint.
        expected: of the network.

    Returns:
        For example `module._orig_mod.`; empty where stripping prefixes does not make more names fit.
    """
    names = list(names)
    known = set(expected)
    roots = frontier = [""]
    for _ in range(_MAX_DEPTH):
        frontier = [r + w for r in frontier for w in WRAPPERS if any(n.startswith(r + w) for n in names)]
        roots = roots + frontier

    def num_found(root: str) -> int:
        return sum(n.startswith(root) and n[len(root) :] in known for n in names)

    return max(roots, key=lambda root: (num_found(root), -len(root)))
