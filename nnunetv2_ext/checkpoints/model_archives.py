"""Zip files as `nnUNetv2_export_model_to_zip` writes them: the model in them, unpacked to a cache."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.checkpoints.nnunet_models import CHECKPOINTS, DATASET_FILE, PLANS_FILE
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import cache_folder, whole_or_absent

_PREFERRED = "__3d_fullres"
_CHECKPOINT = re.compile(rf"fold_(?:\d+|all)/(?:{'|'.join(map(re.escape, CHECKPOINTS))})")


def is_model_archive(path: Path) -> bool:
    """Whether a file is a zip with a `plans.json`, and not one of PyTorch's own zip files."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name).name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return PLANS_FILE in names and "data.pkl" not in names


def unpack_model(path: Path) -> Path:
    """The model folder of an archive, unpacked to the cache unless it is there already.

    Only plans, dataset description and checkpoints are unpacked, each file whole or not at all.

    Args:
        path: the zip file.

    Returns:
        `$XDG_CACHE_HOME/nnunetv2_ext/models/SHA256[:16]/TRAINER__PLANS__CONFIGURATION`.

    Raises:
        UserError: a member would leave the target folder, the archive is damaged, or holds more than one model; the
            cache cannot be written.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _refuse_unsafe(member, path)
        folder = _model_in(archive, path)
        target = _cached_models(path) / sha256_of_file(path)[:16] / (folder.name or path.stem)
        for member in archive.infolist():
            inside = PurePosixPath(member.filename)
            if member.is_dir() or not inside.is_relative_to(folder):
                continue
            name = str(inside.relative_to(folder))
            if name not in (PLANS_FILE, DATASET_FILE) and not _CHECKPOINT.fullmatch(name):
                continue
            _unpack(archive, member, target / name, path)
    return target


def _cached_models(path: Path) -> Path:
    try:
        return cache_folder() / "models"
    except RuntimeError:
        raise UserError(
            f"'{path}' cannot be unpacked, there is no home folder: set XDG_CACHE_HOME to a folder for it."
        ) from None


def _refuse_unsafe(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename.replace("\\", "/")
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name) or is_link:
        raise UserError(
            f"'{path}' was refused and nothing of it unpacked: its member '{member.filename}' would be written outside "
            "the target folder. Take the model from a source you trust."
        )


def _model_in(archive: zipfile.ZipFile, path: Path) -> PurePosixPath:
    """The folder of the one model, or of the one 3d_fullres model, in an archive."""
    folders = [p.parent for p in map(PurePosixPath, archive.namelist()) if p.name == PLANS_FILE]
    chosen = folders if len(folders) == 1 else [f for f in folders if f.name.endswith(_PREFERRED)]
    if len(chosen) != 1:
        raise UserError(
            f"'{path}' holds {len(folders)} models ({', '.join(map(str, folders))}): unpack it, and give the "
            "folder of one of them."
        )
    return chosen[0]


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path) -> None:
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    try:
        with whole_or_absent(target) as temporary, archive.open(member) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, 8 * 1024 * 1024)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged at '{member.filename}' ({error}): download or copy it again.") from error
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be unpacked to '{target.parent}' ({error.strerror}): make room there, or set "
            "XDG_CACHE_HOME to a folder that has it."
        ) from error
