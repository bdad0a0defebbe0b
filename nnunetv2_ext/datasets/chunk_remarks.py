"""What the user should know of images of which nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.wording import counted


def remark_on_missing_chunks(findings: Iterable[Finding]) -> list[str]:
    """A line with the first case that has such an image: it may be empty, or its copy is not complete."""
    found = [(finding.name, said) for finding in findings for said in finding.not_stored]
    if not found:
        return []
    more = f" ({counted(len(found) - 1, 'more crop')} alike)" if len(found) > 1 else ""
    return [f"{found[0][0]}: {found[0][1]}{more}: if it is not empty there, copy the array again"]
