"""A line about crops of which nothing is stored, and none where all is there."""

from __future__ import annotations

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.chunk_remarks import remark_on_missing_chunks


def test_the_first_case_is_named_and_the_other_crops_are_counted() -> None:
    findings = [
        Finding("a"),
        Finding("b", not_stored=("no chunk of x is stored", "y")),
        Finding("c", not_stored=("z",)),
    ]
    assert remark_on_missing_chunks(findings) == [
        "b: no chunk of x is stored (2 more crops alike): if it is not empty there, copy the array again"
    ]
    assert remark_on_missing_chunks(findings[:1]) == []
