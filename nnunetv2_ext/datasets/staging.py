"""The folder in which a raw dataset is made, beside those that are finished, and the manifest that says from what.

`nnUNet_raw/.DatasetXXX_NAME.importing` holds what has been imported until all is there; then it takes its name. An
import that goes on with a finished dataset begins with a copy of it, whose files are links to the same content.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import flush_to_disk, write_json
from nnunetv2_ext.nnunet_folders import nnunet_folder, read_json

MANIFEST = "import_manifest.json"
_UNFINISHED = ".importing"
_RECORDS = ".cases"
_FLUSHED_AT_ONCE = 8
"""Files: a disk writes many sooner together than one after another."""
_PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
"""What else a user keeps in the dataset is none of the import's business."""


def check_free(dataset: str) -> None:
    """Refuse a name whose id another dataset has, in any of nnU-Net's folders: its commands could not tell them apart.

    So has one whose import is not finished; it could not go on any more.

    Raises:
        UserError: names the other dataset, or the folder of the other import.
    """
    identifier = _id_of(dataset)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = Path(os.environ[variable]) if os.environ.get(variable) else None
        for other in sorted(folder.glob(f"Dataset{identifier:03d}_*")) if folder else ():
            if other.name != dataset and other.is_dir():
                raise UserError(f"the id {identifier} is taken by {other}: choose another (-d)")
    for unfinished in sorted(nnunet_folder("nnUNet_raw").glob(f".Dataset{identifier:03d}_*{_UNFINISHED}")):
        begun = unfinished.name.removeprefix(".").removesuffix(_UNFINISHED)
        if begun != dataset and unfinished.is_dir():
            raise UserError(
                f"an unfinished import of {begun} has the id {identifier}: go on with it (-name "
                f"{begun.partition('_')[2]}), choose another (-d), or remove {unfinished}"
            )


def _id_of(dataset: str) -> int:
    """123 for `Dataset123_NAME`."""
    return int(dataset.partition("_")[0].removeprefix("Dataset"))


def _check_nothing_of_another(dataset: str) -> None:
    """Raises UserError where nnU-Net's other folders hold a dataset of this name, which is not to be imported."""
    for variable, sign in (("nnUNet_preprocessed", "dataset.json"), ("nnUNet_results", "*__*__*")):
        folder = Path(os.environ.get(variable, "")) / dataset
        if os.environ.get(variable) and any(folder.glob(sign)):
            raise UserError(f"{folder} is of another dataset of this name: choose another (-name), or move it away")


class Staging:
    """The folder of an import, and the records of the cases that are done.

    Attributes:
        folder: where the dataset is made.
        final: where it will be.
        before: the manifest of the finished dataset that the import goes on with, or None.
    """

    def __init__(self, dataset: str) -> None:
        raw = nnunet_folder("nnUNet_raw")
        self.final = raw / dataset
        self.folder = raw / f".{dataset}{_UNFINISHED}"
        self._previous = raw / f".{dataset}{_UNFINISHED}.previous"
        self.before = self._manifest()

    def _manifest(self) -> dict[str, Any] | None:
        return read_json(self.final / MANIFEST) if (self.final / MANIFEST).is_file() else None

    def check_source(self, kind: str, source: str) -> None:
        """Raises UserError where the finished dataset, or the unfinished import, is of something else."""
        if self.final.exists() and self.before is None:
            raise UserError(f"{self.final} exists and was not imported: choose another id (-d) or name (-name)")
        if not self.final.exists() and not self.folder.exists():
            _check_nothing_of_another(self.final.name)
        started = self.folder / MANIFEST
        for manifest in (self.before, read_json(started) if started.is_file() else None):
            if manifest is not None and (manifest.get("kind"), manifest.get("source")) != (kind, source):
                raise UserError(
                    f"{self.final.name} was imported from {manifest.get('source')} ({manifest.get('kind')}): choose "
                    f"another id (-d) or name (-name), or remove {self.final if self.before else self.folder}"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the dataset's id. Raises UserError while another process is at it, or has taken it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        identifier = _id_of(self.final.name)
        lock = FileLock(self.folder.with_name(f".Dataset{identifier:03d}.importing.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is importing a dataset with the id {identifier}: wait for it, or choose another (-d)"
            ) from None
        try:
            check_free(self.final.name)
            if self.final.exists():  # else a process was killed between the two renames of `publish`
                shutil.rmtree(self._previous, ignore_errors=True)
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def begin(self, kind: str, source: str) -> None:
        """Make the folder, unless an earlier import has left it."""
        if not self.folder.is_dir():
            filling = self.folder.with_name(f"{self.folder.name}.filling")
            shutil.rmtree(filling, ignore_errors=True)
            if self.before is not None:
                shutil.copytree(self.final, filling, symlinks=True, copy_function=_link_or_copy)
                for name, entry in self.before["cases"].items():
                    _write_record(filling, name, entry)
            filling.mkdir(exist_ok=True)
            (filling / MANIFEST).unlink(missing_ok=True)  # it may be a link to the finished dataset's
            write_json(filling / MANIFEST, {"kind": kind, "source": source, "finished": False})
            os.replace(filling, self.folder)

    def record(self, name: str) -> dict[str, Any] | None:
        """What was noted of a case that is done, here or in the finished dataset, if its files are as they were."""
        folder = self.folder if self.folder.is_dir() else self.final
        try:
            if folder == self.final:
                entry: dict[str, Any] = (self.before or {})["cases"][name]
            else:
                entry = read_json(folder / _RECORDS / f"{name}.json")
            whole = all((folder / file["file"]).stat().st_size == file["size"] for file in files_of(entry))
        except (UserError, KeyError, TypeError, OSError):
            return None
        return entry if whole else None

    def note(self, name: str, entry: Mapping[str, Any]) -> None:
        """A case is done."""
        _write_record(self.folder, name, entry)

    def publish(self, files: Mapping[str, Any]) -> None:
        """Give the folder the dataset's name, once all that is in it is on disk.

        Args:
            files: JSON to write into it, by name: `dataset.json`, the manifest, the split; None: no such file.
        """
        for name, content in files.items():
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                write_json(self.folder / name, content)
        wanted = _all_files(files[MANIFEST])
        gone = self._noted_files() - wanted
        shutil.rmtree(self.folder / _RECORDS, ignore_errors=True)
        for path in self.folder.glob(".*.tmp"):  # JSON that a killed process was writing
            path.unlink()
        kept = []
        for path in (path for part in _PARTS for path in (self.folder / part).glob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name in wanted:
                if not path.is_symlink():
                    kept.append(path)
            elif not path.is_dir() and (name in gone or path.name.startswith(".") or self.before is None):
                path.unlink()  # half-written, or of a case that is gone; others are the user's own
        with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
            list(pool.map(flush_to_disk, kept))
        shutil.rmtree(self._previous, ignore_errors=True)
        if self.final.exists():
            os.replace(self.final, self._previous)
        os.replace(self.folder, self.final)
        flush_to_disk(self.final.parent)
        shutil.rmtree(self._previous, ignore_errors=True)

    def _noted_files(self) -> set[str]:
        """Of all cases that were done here or in the finished dataset."""
        records = {path.stem: read_json(path) for path in (self.folder / _RECORDS).glob("*.json")}
        return _all_files({"cases": records}) | (_all_files(self.before) if self.before else set())


def files_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a case's entry in the manifest: its images in the order of their channels, then its label, if it has one."""
    return [*entry["images"], *([entry["label"]] if "label" in entry else [])]


def _all_files(manifest: Mapping[str, Any]) -> set[str]:
    """Those of the cases, and the spacings that nnU-Net reads beside TIFF."""
    wanted = set()
    for name, entry in manifest["cases"].items():
        for file in files_of(entry):
            wanted |= {file["file"], f"{file['file'].partition('/')[0]}/{name}.json"}
    return wanted


def _write_record(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / _RECORDS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(entry), encoding="utf-8")
    os.replace(temporary, path)


def _link_or_copy(source: str, target: str) -> None:
    with suppress(OSError):  # a file system without hard links
        os.link(source, target)
        return
    shutil.copy2(source, target)
