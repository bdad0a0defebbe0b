"""What the user should know of the spacing: a flag that is not used, headers that say two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import Case
from nnunetv2_ext.datasets.wording import counted

_TOLERANCE = 1e-6
"""Relative: the 32 bits of NIfTI."""


def remark_on_spacing(
    given: tuple[float, float, float] | None, cases: Sequence[Case], findings: Mapping[str, Finding]
) -> list[str]:
    """A line about `-spacing` where images say another of their own, and one about headers that say two.

    Args:
        given: (z, y, x) in mm, by the user.
        cases: all.
        findings: of each, by its name.
    """
    return [*_unused(given, cases, findings), *_doubtful([findings[case.name] for case in cases])]


def _unused(
    given: tuple[float, float, float] | None, cases: Sequence[Case], findings: Mapping[str, Finding]
) -> list[str]:
    if given is None:
        return []
    # pairs end with the images: the last of a case's own geometries is that of its label
    images = [pair for case in cases for pair in zip(case.images, findings[case.name].own, strict=False)]
    others = [
        (volume.where, own.spacing[::-1])
        for volume, own in images
        if own.spacing is not None and not np.allclose(own.spacing[::-1], given, rtol=_TOLERANCE, atol=0)
    ]
    if not others:
        return []
    where, first = others[0]
    own_spacing = f"the first: {_listed(first)}, {where}"
    if len(others) == len(images):
        whose = "the only image says its" if len(images) == 1 else f"all {len(images):,} images say their"
        return [f"-spacing {_listed(given)} is not used: {whose} own ({own_spacing})"]
    what = "which says its" if len(others) == 1 else "which say their"
    number = f"{len(others):,} of {len(images):,} images"
    return [f"-spacing {_listed(given)} is not used for {number}, {what} own ({own_spacing})"]


def _doubtful(findings: Sequence[Finding]) -> list[str]:
    remarks = [remark for finding in findings for remark in finding.remarks]
    if not remarks:
        return []
    more = f" ({counted(len(remarks) - 1, 'more file')} alike)" if len(remarks) > 1 else ""
    return [f"{remarks[0]}{more}: nnU-Net takes the first; correct the header where that is wrong"]


def _listed(spacing: Sequence[float]) -> str:
    return " ".join(f"{step:.6g}" for step in spacing)
