"""Give back the memory of a memory-mapped checkpoint's pages that have been read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path


def page_releaser(path: Path) -> Callable[[], None]:
    """A function that drops this process's pages of a mapped file; they are read again when next touched.

    Reading a mapped tensor makes its pages resident, and they count as the process's memory until the system needs
    them elsewhere: reading a checkpoint through would cost its whole size. Mappings made after this call are not
    known to the function. Values written into mapped tensors are lost: they are copies of pages. Where a system has no
    `/proc/self/maps`, it does nothing.
    """
    path = Path(path).resolve()
    ranges = _mapped_ranges(path)
    if not ranges:
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def release() -> None:
        for start, length in ranges:
            if _is_still_mapped(path, start, length):
                libc.madvise(start, length, mmap.MADV_DONTNEED)

    return release


def _is_still_mapped(path: Path, start: int, length: int) -> bool:
    """Whether the file is where it was: once its tensors are gone, other memory may lie there."""
    try:
        return os.readlink(f"/proc/self/map_files/{start:x}-{start + length:x}") == str(path)
    except FileNotFoundError:
        return False
    except OSError:  # not for everyone in some containers
        return (start, length) in _mapped_ranges(path)


def _mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Address and length of every mapping of exactly this file; never anything else, whose content would be lost."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        # address perms offset dev inode path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            start, end = (int(bound, 16) for bound in fields[0].split("-"))
            ranges.append((start, end - start))
    return ranges
