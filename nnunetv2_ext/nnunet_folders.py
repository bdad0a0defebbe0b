"""Where nnU-Net keeps a dataset: its three folders and dataset names, with errors a user can read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError

CONFIGURATION = "3d_fullres"
"""The one configuration of a ptPlans file: pre-trained networks are 3D and see full resolution."""
NO_RESAMPLING = "no_resampling_hack"
"""nnU-Net's function that leaves data, labels and probabilities as they are; it takes no arguments."""


def nnunet_folder(variable: str) -> Path:
    """The folder that an nnU-Net environment variable (`nnUNet_raw`, `nnUNet_preprocessed`, `nnUNet_results`) names.

    Raises:
        UserError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"the environment variable {variable} is not set; point it to your nnU-Net folder, "
            f"for example: export {variable}=/path/to/{variable}"
        )
    return Path(value)


def dataset_name(name_or_id: str) -> str:
    """`Dataset004_Hippocampus` for `4`, `004` or the name itself, looked up in nnU-Net's folders.

    Raises:
        UserError: no dataset, or more than one, has this id or name.
    """
    folders = [Path(f) for v in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results") if (f := os.environ.get(v))]
    if not folders:
        nnunet_folder("nnUNet_raw")
    known = sorted({p.name for f in folders if f.is_dir() for p in f.glob("Dataset???_*") if p.is_dir()})
    if name_or_id.startswith("Dataset"):
        matches = [n for n in known if n == name_or_id]
    elif name_or_id.isdecimal():
        matches = [n for n in known if n.startswith(f"Dataset{int(name_or_id):03d}_")]
    else:
        raise UserError(f"-d takes dataset ids or names (4, Dataset004_Hippocampus), not {name_or_id!r}")
    if not matches:
        there = f"; there are {', '.join(known)}" if known else ""
        raise UserError(f"no dataset {name_or_id} in {', '.join(map(str, folders))}{there}")
    if len(matches) > 1:
        raise UserError(f"more than one dataset has the id {name_or_id}: {', '.join(matches)}; give the full name")
    return matches[0]


def dataset_id(name: str) -> int:
    """`4` for `Dataset004_Hippocampus`."""
    return int(name[len("Dataset") :].split("_", 1)[0])


def raw_folder(name: str) -> Path:
    """The raw dataset's folder. Raises UserError where it, or its dataset.json, is missing."""
    folder = nnunet_folder("nnUNet_raw") / name
    if not (folder / "dataset.json").is_file():
        raise UserError(f"{folder} has no dataset.json: the raw dataset is needed to preprocess; check nnUNet_raw")
    return folder


def preprocessed_folder(name: str) -> Path:
    """The dataset's folder below `nnUNet_preprocessed`; it need not exist yet."""
    return nnunet_folder("nnUNet_preprocessed") / name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError where the file is absent, unreadable or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where nnU-Net has a JSON object")
    return content
