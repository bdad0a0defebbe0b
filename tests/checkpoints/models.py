"""Folders and zips of nnU-Net models to change at will."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch


def copy_of_model(folder: Path, target: Path) -> Path:
    """A copy whose checkpoints are links to the same files; its JSON files may be written to."""

    def copy(source: str, destination: str) -> None:
        if source.endswith(".pth"):
            os.link(source, destination)
        else:
            shutil.copy(source, destination)

    return Path(shutil.copytree(folder, target, copy_function=copy))


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What stock nnU-Net would load; for files that the tests trained themselves."""
    return torch.load(checkpoint, weights_only=False, map_location="cpu")["network_weights"]


def configuration(folder: Path, name: str = "3d_fullres") -> dict[str, Any]:
    return json.loads((folder / "plans.json").read_text())["configurations"][name]


def edit_plans(folder: Path, **configurations: dict[str, Any] | None) -> None:
    """Put configurations into a model's plans (None takes one out)."""
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"] |= configurations
    plans["configurations"] = {k: v for k, v in plans["configurations"].items() if v is not None}
    (folder / "plans.json").write_text(json.dumps(plans))


def zip_of(path: Path, *models: Path, root: str = "Dataset997_Source") -> Path:
    """A zip with the files of models as the export writes them."""
    with zipfile.ZipFile(path, "w") as archive:
        for model in models:
            for file in sorted(model.rglob("*")):
                if file.is_file():
                    archive.write(file, f"{root}/{model.name}/{file.relative_to(model)}")
    return path
