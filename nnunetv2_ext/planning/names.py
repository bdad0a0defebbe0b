"""Names of plans, plans files and folders of preprocessed data, as users of the nnssl fork know them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nnunetv2_ext.errors import UserError

FROM_SCRATCH_SUFFIX = "_from_scratch"
_NAME = re.compile(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*")
_NORMALIZATION_LETTERS = {
    "ZScoreNormalization": "Z",
    "CTNormalization": "CT",
    "NoNormalization": "No",
    "RescaleTo01Normalization": "01",
    "RGBTo01Normalization": "RGB",
}


def check_pretraining_name(name: str, *, flag: str = "-n") -> str:
    """`-n`, `-rn`: letters, digits, `-`, `.` and single underscores between them.

    Stock nnU-Net commands split the names of results folders at double underscores.

    Raises:
        UserError: the name has anything else (a path separator, a space, a double underscore).
    """
    if not _NAME.fullmatch(name) or set(name) <= {"."}:
        raise UserError(
            f"the name {name!r} ({flag}) becomes part of file and folder names: use letters, digits, '-', '.' and "
            "single underscores between them"
        )
    return name


def data_identifier(spacing: Sequence[float] | None, normalization_schemes: Sequence[str]) -> str:
    """`Spacing__1.00_1.00_1.00___Norm__Z`, the fork's name of a folder of preprocessed cases.

    Args:
        spacing: mm, network axis order; None for no resampling.
        normalization_schemes: one class name of nnU-Net's for each channel.
    """
    numbers = ["None"] * 3 if spacing is None else [f"{s:.2f}" for s in spacing]
    letters = [_NORMALIZATION_LETTERS.get(s, s.removesuffix("Normalization")) for s in normalization_schemes]
    return f"Spacing__{'_'.join(numbers)}___Norm__{'_'.join(letters)}"


def plans_file_stem(name: str, identifier: str) -> str:
    """The long name: `ptPlans__NAME____Spacing__1.00_1.00_1.00___Norm__Z`."""
    return f"ptPlans__{name}____{identifier}"


def dynamic_file_stem(name: str) -> str:
    """The long name of a plan that keeps the dataset's own network: `ptPlans_dynamic__NAME`."""
    return f"ptPlans_dynamic__{name}"


def inner_plans_name(stem: str) -> str:
    """The `plans_name` inside the file: every run of underscores is one, none at the ends."""
    return re.sub("_+", "_", stem).strip("_")
