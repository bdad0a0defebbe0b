"""A hub repository in a folder of its own, `$nnssl_pretrained_models/ORG_NAME`, and which commit lies there.

Without the hub at hand its client takes any file of the right name in such a folder for the right one. So the revision
that was asked for and the commit that it meant are written down here, in `hub_source.json`, and compared.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_ext.checkpoints.hub_address import CHECKPOINT_FILE, HubAddress
from nnunetv2_ext.checkpoints.hub_client import CONFIG_FILE, PLAN_FILE, HubFiles, fetch, fetch_if_present
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import write_json

RECORD_FILE = "hub_source.json"
DEFAULT_BRANCH = "main"


@dataclass
class _Record:
    """Whose files a folder holds, and which commit each revision meant when it was last asked for."""

    repo: str | None = None
    commits: dict[str, str] = field(default_factory=dict)


def download_into_folder(address: HubAddress, folder: Path) -> HubFiles:
    """Fetch the files of a repository into a folder, or find that they lie there already.

    Raises:
        UserError: As for any download; or the folder holds another repository's or, with the hub out of reach, another
            revision's files.
    """
    record = _read_record(folder)
    if record.repo not in (None, address.repo_id):
        raise UserError(
            f"'{folder}' holds the files of {record.repo}, not of {address.repo_id}: move it away, or set "
            "nnssl_pretrained_models to another folder."
        )
    checkpoint = folder / CHECKPOINT_FILE
    asked_at = time.time()
    if not checkpoint.is_file() or os.access(folder, os.W_OK):  # a shared, read-only folder is taken as it is
        checkpoint = fetch(address, CHECKPOINT_FILE, folder)

    commit, confirmed_at = _commit_of(folder, CHECKPOINT_FILE)
    hub_answered = confirmed_at >= asked_at
    if not hub_answered:
        _check_unconfirmed(address, folder, commit, record)
        return HubFiles(checkpoint, _present(folder, PLAN_FILE, commit), commit)

    assert commit is not None
    pinned = HubAddress(address.repo_id, commit)
    plan = fetch_if_present(pinned, PLAN_FILE, folder)
    fetch_if_present(pinned, CONFIG_FILE, folder)
    record.repo = address.repo_id
    record.commits[address.revision or DEFAULT_BRANCH] = commit
    _write_record(folder, record)
    return HubFiles(checkpoint, plan, commit)


def _check_unconfirmed(address: HubAddress, folder: Path, commit: str | None, record: _Record) -> None:
    """The hub did not say what the revision means now: only what is known to be that revision will do."""
    if address.revision is None:
        return  # "whatever is newest", as far as one can know
    if commit is not None and commit in (address.revision, record.commits.get(address.revision)):
        return
    held = f"commit {commit[:8]}" if commit else "an unknown commit"
    raise UserError(
        f"'{folder}' holds {held} of {address.repo_id}, not known to be revision '{address.revision}', and the hub "
        "cannot be asked now: connect, or give the folder itself as the source."
    )


def _present(folder: Path, file_name: str, commit: str | None) -> Path | None:
    """A file that lies in the folder, unless it is known to be of another commit than the checkpoint."""
    path = folder / file_name
    if not path.is_file():
        return None
    return path if commit is None or _commit_of(folder, file_name)[0] in (None, commit) else None


def _commit_of(folder: Path, file_name: str) -> tuple[str | None, float]:
    """Which commit a file is of and when the hub last said so (seconds since the epoch), from the client's own note.

    The note has three lines: commit, ETag, time. It counts only if the file has not been touched since (a second's
    grace, as in the client).
    """
    note = folder / ".cache" / "huggingface" / "download" / f"{file_name}.metadata"
    try:
        commit, _, confirmed_at = note.read_text(encoding="utf-8").split()[:3]
        if (folder / file_name).stat().st_mtime - 1 > float(confirmed_at):
            return None, 0.0
    except (OSError, ValueError):
        return None, 0.0
    return (commit, float(confirmed_at)) if re.fullmatch(r"[0-9a-f]{40}", commit) else (None, 0.0)


def _read_record(folder: Path) -> _Record:
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return _Record(str(content["repo"]), {str(name): str(commit) for name, commit in content["commits"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Record()


def _write_record(folder: Path, record: _Record) -> None:
    write_json(folder / RECORD_FILE, {"repo": record.repo, "commits": record.commits})
