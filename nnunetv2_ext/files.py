"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHUNK_BYTES = 256 * 1024
"""Read at once; more leaves the processor's cache before it is hashed and written, which takes far longer."""


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an error it is flushed to disk and renamed to `path`.

    The temporary file lies on the same file system, so that the rename is atomic: a reader sees the old file or the
    new one, never a part. After an error the temporary file is gone and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; nnU-Net's folders are shared by groups
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, indented and in its own key order like nnU-Net's plans; whole or not at all."""
    with whole_or_absent(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Where this package keeps what it can make again: `nnunetv2_ext` under `$XDG_CACHE_HOME` (`~/.cache`).

    Raises:
        RuntimeError: there is no home directory.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "nnunetv2_ext"


def sha256(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Hash a file; `progress` is told the bytes of each chunk. Returns 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for piece in _pieces(file):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def copy_and_hash(source: Path, target: Path) -> str:
    """Copy a file, reading it once, and return its sha256 as `sha256` does. Raises OSError, of a full disk too."""
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        for piece in _pieces(reading):
            digest.update(piece)
            while piece:  # a disk that fills up takes a part, and refuses the rest
                piece = piece[writing.write(piece) :]
    return digest.hexdigest()


def _pieces(file: io.FileIO) -> Iterator[memoryview]:
    """What an open file holds, piece by piece, each valid until the next."""
    # whole pages of memory: from others some systems copy to files several times more slowly
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    while count := file.readinto(buffer):
        yield buffer[:count]


def flush_to_disk(path: Path) -> None:
    """Block until a file's content, or a folder's list of files, has reached the disk (fsync).

    A file, so that its rename cannot overtake it; a folder, so that the renames in it are there after a power cut.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
