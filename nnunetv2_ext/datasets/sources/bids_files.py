"""Files of a BIDS dataset with what their names say, and the folder of the pipeline that has the label maps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.datasets.wording import listed
from nnunetv2_ext.errors import UserError

_EXTENSIONS = (".nii.gz", ".nii")
_NOT_DATA = ("derivatives", "sourcedata", "code", "stimuli", "models", re.compile(r"/\."))
"""Folders of a dataset that are not part of it (pybids's own list goes where one gives it another)."""
_ENDINGS = {"name": "endings", "entities": [{"name": "extension", "pattern": r"(\.nii(?:\.gz)?)$"}]}
"""All that pybids is asked about a file; it would write some 40 entities into its database."""
DATATYPES = ("anat", "dwi", "fmap", "func", "micr", "mrs", "perf", "pet")
_INDICES = ("run", "echo", "flip", "inv", "split", "chunk")
"""Entities that are numbers: `run-1` and `run-01` are the same."""
ABSENT = "none"
"""As the value of a condition: the name does not have this entity."""
_DEPTH = 3
"""How many folders below `derivatives/` a pipeline is looked for."""


@dataclass(frozen=True)
class BidsFile:
    """One NIfTI file.

    Attributes:
        path: absolute.
        suffix: `T1w`, `dseg`.
        entities: of its name, in BIDS's short names; numbers without leading zeros. `datatype` is the folder (`anat`).
    """

    path: Path
    suffix: str
    entities: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        """Without suffix and ending, which is what tells two images of one suffix apart."""
        return _bare(self.name).removesuffix(f"_{self.suffix}")

    @property
    def visit(self) -> tuple[str, str | None]:
        """Subject and session."""
        return self.entities["sub"], self.entities.get("ses")

    def has(self, conditions: Mapping[str, str]) -> bool:
        """Whether it has these entities; `none` is fulfilled by a name without the entity."""
        return all(self.entities.get(k, ABSENT) == normal(k, value) for k, value in conditions.items())


def normal(key: str, value: str) -> str:
    """The value of an entity with which others are compared."""
    return str(int(value)) if key in _INDICES and value.isdecimal() else value


def read_folder(folder: Path) -> list[BidsFile]:
    """All NIfTI files of subjects in a dataset or pipeline, by path; those of no subject (a template) are left out.

    pybids finds the files. Their names are read here, each once: its `get_entities` asks its database with every call.

    Raises:
        UserError: pybids is missing.
    """
    try:
        from bids import BIDSLayout, BIDSLayoutIndexer
    except ImportError as error:
        raise UserError('BIDS datasets need pybids: pip install "nnunetv2-ext[datasets]"') from error
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=list(_NOT_DATA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = BIDSLayout(folder, validate=False, indexer=indexer, config=[_ENDINGS])
    paths = sorted(Path(file.path) for file in layout.get(extension=list(_EXTENSIONS)))
    files = (_read_name(path, folder) for path in paths)
    return [file for file in files if file is not None]


def entities_of(filename: str) -> dict[str, str]:
    """`{"sub": "01", "run": "1"}` for `sub-01_run-01_T1w.nii.gz`."""
    parts = (part.partition("-") for part in _bare(filename).split("_")[:-1])
    return {key: normal(key, value) for key, dash, value in parts if dash}


def _bare(filename: str) -> str:
    return re.sub(r"\.(nii|tsv)(\.gz)?$", "", filename)


def _read_name(path: Path, folder: Path) -> BidsFile | None:
    suffix = _bare(path.name).rpartition("_")[2]
    entities = entities_of(path.name)
    if path.parent.name in DATATYPES:
        entities["datatype"] = path.parent.name
    sessions = [part.removeprefix("ses-") for part in path.relative_to(folder).parts[:-1] if part.startswith("ses-")]
    if sessions:
        entities.setdefault("ses", sessions[0])  # some tools leave it out of the name
    return BidsFile(path, suffix, entities) if "sub" in entities else None


def check_dataset(root: Path) -> None:
    """Raises UserError for a folder that is no BIDS dataset."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    if not (root / "dataset_description.json").is_file():
        raise UserError(f"{root} is no BIDS dataset: it has no dataset_description.json")


def pipeline_folder(root: Path, wanted: str | None) -> Path:
    """The folder with the label maps: below `derivatives/`, or anywhere if `wanted` is an absolute path.

    A pipeline may lie in a folder of others, and needs no `dataset_description.json`.

    Raises:
        UserError: there is none, or several and none was chosen.
    """
    base = root / "derivatives"
    if wanted is None:
        found = sorted(_pipelines(base, _DEPTH))
        if not found:
            raise UserError(f"{base} has no pipeline with label maps: name the folder that has them (-derivatives)")
        if len(found) > 1:
            raise UserError(f"{base} has {_names(found, base)}: say which has the labels (-derivatives)")
        return found[0]
    folder = base / wanted
    if not folder.is_dir():
        found = sorted(_pipelines(base, _DEPTH))
        raise UserError(f"there is no folder {folder} (-derivatives); {base} has {_names(found, base)}")
    return folder


def _pipelines(folder: Path, depth: int) -> Iterator[Path]:
    """The uppermost folders that hold subjects."""
    inside = sorted(folder.glob("[!.]*"))
    if any(path.name.startswith("sub-") for path in inside):
        yield folder
    elif depth:
        for path in inside:
            if path.is_dir() and path.name not in _NOT_DATA:
                yield from _pipelines(path, depth - 1)


def _names(folders: list[Path], base: Path) -> str:
    return listed([folder.relative_to(base).as_posix() for folder in folders]) or "none"
