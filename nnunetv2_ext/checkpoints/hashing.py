"""The sha256 of a file, computed once per file: a checkpoint's identity from planning to training."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2_ext.files import cache_folder, sha256, write_json

PROGRESS_FROM_BYTES = 64 * 1024 * 1024
"""Files below this are hashed before a bar could be read."""
REMEMBERED_FILES = 256
UNSETTLED_SECONDS = 2.0
"""A file changed this recently is not remembered: another write in the same tick of the clock would go unseen."""


def sha256_of_file(path: Path) -> str:
    """Hash a file, or recall the hash if the file has not changed since (same place, size and modification time).

    Large files show a progress bar on a terminal. Hashes are remembered in `nnunetv2_ext/sha256.json` under
    `$XDG_CACHE_HOME` (`~/.cache`); where that cannot be read or written, the file is simply hashed again.

    Returns:
        64 lower-case hexadecimal digits.
    """
    path = Path(path).resolve()
    started = time.time()
    before = path.stat()
    identity = {"size": before.st_size, "mtime_ns": before.st_mtime_ns}
    known = _remembered().get(str(path))
    if isinstance(known, dict) and {key: known.get(key) for key in identity} == identity:
        recalled = known.get("sha256")
        if isinstance(recalled, str) and len(recalled) == 64:
            return recalled

    digest = _hash(path, before.st_size)

    after = path.stat()
    unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if unchanged and started - before.st_mtime > UNSETTLED_SECONDS:
        _remember(str(path), {**identity, "sha256": digest})
    return digest


def _hash(path: Path, size: int) -> str:
    from tqdm import tqdm

    # disable=None: tqdm's own switch for "only on a terminal"
    disable = None if size >= PROGRESS_FROM_BYTES else True
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"Hashing {path.name}", disable=disable, leave=False)
    with bar:
        return sha256(path, bar.update)


def _cache_file() -> Path:
    return cache_folder() / "sha256.json"


def _remembered() -> dict[str, Any]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home directory
        return {}
    return content if isinstance(content, dict) else {}


def _remember(path: str, entry: dict[str, Any]) -> None:
    entries = {**{key: value for key, value in _remembered().items() if key != path}, path: entry}
    entries = dict(list(entries.items())[-REMEMBERED_FILES:])
    with suppress(OSError, RuntimeError):  # a read-only home, or none
        write_json(_cache_file(), entries)
