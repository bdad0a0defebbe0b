"""Small BIDS datasets on disk, and files of them that are only names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.collection import Case, Collection
from nnunetv2_ext.datasets.sources.bids_files import DATATYPES, BidsFile, entities_of

DESCRIPTION = {"Name": "Brains", "BIDSVersion": "1.8.0"}
OF_DERIVATIVES = {**DESCRIPTION, "DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
MANUAL = "derivatives/manual"


def named(*names: str, folder: str = "anat") -> list[BidsFile]:
    """Files that are not there: `sub-01_T1w`."""
    return [
        BidsFile(
            Path("/data", folder, f"{name}.nii.gz"),
            name.rpartition("_")[2],
            {**entities_of(name), **({"datatype": folder} if folder in DATATYPES else {})},
        )
        for name in names
    ]


def add(root: Path, *names: str, values: tuple[int, ...] = (0, 1, 2)) -> None:
    """NIfTI files of 2 x 3 x 4 voxels; `sub-01_T1w` lies where BIDS has it."""
    for name in names:
        folder, _, file = name.rpartition("/")
        entities = entities_of(file)
        place = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
        path = root.joinpath(folder, *place, "anat", file if ".nii" in file else f"{file}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.resize(np.uint8(values), (2, 3, 4))), str(path))


def dataset(root: Path, *names: str) -> Path:
    """Images (`sub-01_T1w`) and label maps (`derivatives/manual/sub-01_dseg`), described as BIDS wants it."""
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    add(root, *names)
    if (root / MANUAL).is_dir():
        (root / MANUAL / "dataset_description.json").write_text(json.dumps(OF_DERIVATIVES))
    return root


def plain(root: Path, *subjects: str) -> Path:
    """One scan and one label map for each subject, without sessions."""
    return dataset(root, *(name for s in subjects for name in (f"sub-{s}_T1w", f"{MANUAL}/sub-{s}_dseg")))


def files(root: Path, case: Case) -> list[str]:
    """Of its images and its label map, below the root and without `.nii.gz`."""
    volumes = [*case.images, *([case.label] if case.label else [])]
    return [volume.files[0].relative_to(root).as_posix().removesuffix(".nii.gz") for volume in volumes]


def problems(collection: Collection) -> dict[str, tuple[str, ...]]:
    return {case.name: case.problems for case in collection.checked().cases if case.problems}
