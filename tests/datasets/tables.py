"""A table of small scans, as a user has them, that tests import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (6, 7, 8)
SPACING = (1.0, 0.75, 2.5)


def scan(array: np.ndarray) -> sitk.Image:
    """An image of these voxels (z, y, x), away from the origin."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-10, 20, 30.5))
    return image


@dataclass
class Table:
    """`table.csv` with the columns image, label and part, and the files that it names, in one folder.

    Attributes:
        folder: of all of it.
        rows: the line of each case.
    """

    folder: Path
    rows: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "table.csv"

    def add(
        self,
        name: str,
        *,
        values: Sequence[int] = (0, 1, 2),
        part: str = "train",
        seed: int = 0,
        ending: str = ".nii.gz",
        shape: tuple[int, int, int] = SHAPE,
    ) -> Table:
        """Another case, or new files for one; all `values` are in its label map."""
        self.folder.mkdir(exist_ok=True)
        rng = np.random.default_rng([seed, *name.encode()])
        label = rng.choice(values, shape).astype(np.int16)
        label.flat[: len(values)] = values
        sitk.WriteImage(scan(rng.integers(0, 4000, shape, np.int16)), str(self.image(name, ending)), True)
        sitk.WriteImage(scan(label), str(self.label(name)), True)
        self.rows[name] = f"{name}{ending},{name}_seg.nii.gz,{part}"
        return self.write()

    def remove(self, name: str) -> Table:
        del self.rows[name]
        return self.write()

    def write(self) -> Table:
        self.path.write_text("\n".join(["image,label,part", *self.rows.values()]))
        return self

    def image(self, name: str, ending: str = ".nii.gz") -> Path:
        return self.folder / f"{name}{ending}"

    def label(self, name: str) -> Path:
        return self.folder / f"{name}_seg.nii.gz"


def damage(path: Path, num_bytes: int = 200) -> None:
    """Cut off the end of a file; its header stays."""
    path.write_bytes(path.read_bytes()[:-num_bytes])


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content; links with what they lead to."""
    return {
        p.relative_to(folder).as_posix(): f"-> {p.readlink()}".encode() if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def on_disk(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file on the disk each is (inode), and when it was written."""
    stats = {p.relative_to(folder).as_posix(): p.lstat() for p in folder.rglob("*") if not p.is_dir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def renumbered(array: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    return np.vectorize(numbers.__getitem__)(array)
