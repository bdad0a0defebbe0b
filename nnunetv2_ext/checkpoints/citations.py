"""What a checkpoint asks to be cited, as lines to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CITATION_LISTS = ("apa_citations", "bibtex_citations")


def format_citations(citations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines to print: a heading per entry (`Architecture: ResEncL`), its references indented below.

    Entries are dicts with `type`, `name` and `apa_citations` or `bibtex_citations` (lists of strings), as nnssl writes
    them. Whatever else someone put there is shown if it can be and skipped if not: a reference is no reason to stop.
    """
    lines: list[str] = []
    for entry in citations if isinstance(citations, (list, tuple)) else ():
        if isinstance(entry, str):
            lines.append(_one_line(entry))
        if not isinstance(entry, Mapping):
            continue
        heading = ": ".join(_one_line(entry[key]) for key in ("type", "name") if isinstance(entry.get(key), str))
        references = [_one_line(text) for key in CITATION_LISTS for text in _texts(entry.get(key))]
        if heading or references:
            lines.append(heading or "Reference")
            lines.extend(f"  {reference}" for reference in references)
    return [line for line in lines if line.strip()]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    return [text for text in value if isinstance(text, str) and text.strip()]


def _one_line(text: str) -> str:
    return " ".join(text.split())
