"""Citations are shown whatever form they have, and none of them stops a training."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_ext.checkpoints.reading import format_citations


def test_apa_and_bibtex_are_both_shown() -> None:
    lines = format_citations(
        [
            {"type": "Architecture", "name": "ResEncL", "apa_citations": ["First, A. (2024).", "Second, B. (2025)."]},
            {"type": "Dataset", "name": "OpenMind", "bibtex_citations": ["@article{x,\n  title={A title}\n}"]},
        ]
    )
    assert lines == [
        "Architecture: ResEncL",
        "  First, A. (2024).",
        "  Second, B. (2025).",
        "Dataset: OpenMind",
        "  @article{x, title={A title} }",
    ]


@pytest.mark.parametrize(
    "odd",
    [
        [],
        None,
        3,
        "just text",
        {"type": "Architecture"},
        [None, 3, []],
        [{"apa_citations": None}, {"bibtex_citations": [None, 3, ""]}],
        [{"type": 3, "name": None, "apa_citations": {"a": "b"}}],
    ],
)
def test_odd_citations_give_no_lines_and_no_error(odd: Any) -> None:
    assert format_citations(odd) == []


def test_what_can_be_shown_of_an_odd_entry_is_shown() -> None:
    assert format_citations([{"apa_citations": "One, not in a list."}, "Only text"]) == [  # type: ignore[list-item]
        "Reference",
        "  One, not in a list.",
        "Only text",
    ]
