"""A small segmentation dataset of real anatomy, without a download: subjects made from the MNI ICBM152 2009a template.

The template and its grey- and white-matter maps lie inside the nilearn wheel. Every subject is the template under a
random affine and a smooth elastic deformation, on a grid of its own, with its own gain, bias field and noise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}

#: Millimetres in nnU-Net's order (z, y, x). The median has its coarsest axis last, so that nnU-Net transposes.
SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.2, 1.5), (1.2, 1.0, 1.5))

#: Where crops are centred, in MNI millimetres (x, y, z): within reach of cortex, white matter and the outside.
_CROP_CENTRE = (-34.0, -20.0, 42.0)

#: Mean intensity of background fluid, grey and white matter in the made-up contrasts beyond T1 (T2-like, PD-like).
_CONTRASTS = ((1.0, 0.65, 0.4), (0.8, 1.0, 0.7))


def make_mni_dataset(
    folder: Path,
    *,
    num_subjects: int = 6,
    num_test_subjects: int = 1,
    seed: int = 2009,
    crop: tuple[int, int, int] | None = None,
    spacings: Sequence[tuple[float, float, float]] = SPACINGS,
    num_channels: int = 1,
) -> None:
    """Write a raw nnU-Net dataset of subjects made from the MNI template, the same for the same arguments.

    Args:
        folder: The dataset's own folder, `nnUNet_raw/DatasetXXX_Name`; must not exist or be empty. It appears whole
            or not at all. Holds `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json`.
        num_subjects: Cases to train with.
        num_test_subjects: Further cases, in `imagesTs` with their truth in `labelsTs`.
        seed: Start of the random numbers; each subject draws from its own stream.
        crop: Voxels per case in nnU-Net's order (z, y, x), around a point in the left parietal lobe. Without it every
            case covers the whole template, 189 x 233 x 197 mm.
        spacings: Millimetres in the same order, one per case in turn.
        num_channels: 1 for T1 alone; each further channel is a contrast made up from the tissue maps.

    Raises:
        UserError: nilearn is missing, the folder is in use, or a case would not hold every label.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty: remove it or choose another folder")
    if any(not np.isfinite(value) or value <= 0 for spacing in spacings for value in spacing):
        raise UserError(f"spacings must be positive millimetres, got {list(spacings)}")
    if crop is not None and min(crop) < 1:
        raise UserError(f"crop must be three positive numbers of voxels, got {crop}")

    channels, tissues = _load_template(num_channels)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        unfinished = Path(scratch) / "dataset"
        for split, first, count in (("Tr", 0, num_subjects), ("Ts", num_subjects, num_test_subjects)):
            (unfinished / f"images{split}").mkdir(parents=True)
            (unfinished / f"labels{split}").mkdir()
            for index in range(first, first + count):
                rng = np.random.default_rng([seed, index])
                spacing = spacings[index % len(spacings)]
                images, label = _make_subject(channels, tissues, spacing, crop, rng)
                case = f"MNI_{index:03d}"
                _check_labels(label, case)
                for channel, image in enumerate(images):
                    sitk.WriteImage(image, unfinished / f"images{split}" / f"{case}_{channel:04d}.nii.gz")
                sitk.WriteImage(label, unfinished / f"labels{split}" / f"{case}.nii.gz")
        (unfinished / "dataset.json").write_text(json.dumps(_description(num_subjects, num_channels), indent=4) + "\n")
        unfinished.replace(folder)  # an empty folder of that name gives way


def _description(num_subjects: int, num_channels: int) -> dict[str, object]:
    """The content of dataset.json."""
    return {
        "channel_names": {str(i): "T1" if i == 0 else f"contrast_{i}" for i in range(num_channels)},
        "labels": LABELS,
        "numTraining": num_subjects,
        "file_ending": ".nii.gz",
        "name": "Subjects made from the MNI ICBM152 2009a nonlinear symmetric template",
        "reference": "Fonov et al., Unbiased average age-appropriate brain templates, NeuroImage 47 (2009) S102",
    }


def _load_template(num_channels: int) -> tuple[list[sitk.Image], list[sitk.Image]]:
    """The channels and the probability maps (background, grey matter, white matter), 1 mm isotropic."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError('the MNI template comes with nilearn: pip install "nnunetv2-ext[demo]"') from error
    t1, grey, white = (
        _to_sitk(load(resolution=1))
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    channels = [t1]
    brain = sitk.Cast(t1 > 0, sitk.sitkFloat32)
    for index in range(1, num_channels):
        fluid, in_grey, in_white = _CONTRASTS[(index - 1) % len(_CONTRASTS)]
        channels.append(brain * fluid + grey * (in_grey - fluid) + white * (in_white - fluid))
    return channels, [1.0 - grey - white, grey, white]


def _to_sitk(image: Nifti1Image) -> sitk.Image:
    """A nibabel image (RAS+ millimetres, array order x, y, z, axes along the world's) as SimpleITK's (LPS+)."""
    converted = sitk.GetImageFromArray(np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    converted.SetSpacing(spacing.tolist())
    converted.SetOrigin((to_lps @ image.affine[:3, 3]).tolist())
    converted.SetDirection((to_lps @ image.affine[:3, :3] / spacing).ravel().tolist())
    return converted


def _make_subject(
    channels: Sequence[sitk.Image],
    tissues: Sequence[sitk.Image],
    spacing: tuple[float, float, float],
    crop: tuple[int, int, int] | None,
    rng: np.random.Generator,
) -> tuple[list[sitk.Image], sitk.Image]:
    """One deformed, resampled and degraded copy of the template: its channels and its label map."""
    template = channels[0]
    deformation = _random_deformation(template, rng)
    grid = _grid(template, spacing, crop)
    probabilities = [sitk.GetArrayFromImage(sitk.Resample(tissue, grid, deformation)) for tissue in tissues]
    # Where the grid leaves the template every map is 0, and the first maximum, background, wins.
    label = sitk.GetImageFromArray(np.argmax(probabilities, axis=0).astype(np.uint8))
    label.CopyInformation(grid)

    images = []
    for channel in channels:
        clean = sitk.GetArrayFromImage(sitk.Resample(channel, grid, deformation))
        image = sitk.GetImageFromArray(_degrade(clean, rng))
        image.CopyInformation(grid)
        images.append(image)
    return images, label


def _grid(template: sitk.Image, spacing: tuple[float, float, float], crop: tuple[int, int, int] | None) -> sitk.Image:
    """An empty image with the case's geometry; `spacing` and `crop` as (z, y, x), SimpleITK's own order is reversed."""
    spacing_xyz = np.array(spacing[::-1], dtype=float)
    extent = np.array(template.GetSize()) * template.GetSpacing()
    direction = np.array(template.GetDirection()).reshape(3, 3)
    if crop is None:
        size = np.round(extent / spacing_xyz).astype(int)
        centre = np.array(template.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in template.GetSize()]))
    else:
        size = np.array(crop[::-1])
        centre = np.array([-1.0, -1.0, 1.0]) * _CROP_CENTRE
    grid = sitk.Image(size.tolist(), sitk.sitkFloat32)
    grid.SetSpacing(spacing_xyz.tolist())
    grid.SetDirection(template.GetDirection())
    grid.SetOrigin((centre - direction @ ((size - 1) / 2 * spacing_xyz)).tolist())
    return grid


def _random_deformation(template: sitk.Image, rng: np.random.Generator) -> sitk.Transform:
    """Up to 10 degrees, 10 % and 4 mm, then an elastic part of 2.5 mm (standard deviation) on knots 30 mm apart."""
    centre = template.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in template.GetSize()])
    rigid = sitk.Euler3DTransform(centre, *np.deg2rad(rng.uniform(-10, 10, 3)).tolist(), rng.uniform(-4, 4, 3).tolist())
    scale = sitk.ScaleTransform(3, rng.uniform(0.9, 1.1, 3).tolist())
    scale.SetCenter(centre)
    extent = np.array(template.GetSize()) * template.GetSpacing()
    elastic = sitk.BSplineTransformInitializer(template, np.round(extent / 30).astype(int).tolist(), 3)
    elastic.SetParameters(rng.normal(0, 2.5, len(elastic.GetParameters())).tolist())
    return sitk.CompositeTransform([elastic, scale, rigid])


def _degrade(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a scanner adds: a gain, a smooth bias of up to about 20 %, and the Rician noise of magnitude images."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in clean.shape), indexing="ij", sparse=True)
    bias = sum(rng.uniform(-0.1, 0.1) * axis + rng.uniform(-0.1, 0.1) * axis**2 for axis in axes)
    signal = clean * np.exp(bias)
    noise = rng.normal(0, rng.uniform(0.01, 0.03), (2, *clean.shape))
    return (rng.uniform(600, 1400) * np.hypot(signal + noise[0], noise[1])).astype(np.float32)


def _check_labels(label: sitk.Image, case: str) -> None:
    found = set(np.unique(sitk.GetArrayViewFromImage(label)).tolist())
    missing = [name for name, value in LABELS.items() if value not in found]
    if missing:
        raise UserError(f"{case} would hold no {' and no '.join(missing)}: choose a larger crop")
