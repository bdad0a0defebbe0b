"""Files of a hub repository, fetched with the hub's own client: its progress bar, retries, token and offline mode hold.

They go into the hub's cache or, as the nnssl fork has it, into `$nnssl_pretrained_models/ORG_NAME` if that is set.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.checkpoints.hub_address import CHECKPOINT_FILE, HubAddress
from nnunetv2_ext.checkpoints.hub_errors import explain_hub_error

PLAN_FILE = "adaptation_plan.json"
CONFIG_FILE = "config.json"
MODELS_VARIABLE = "nnssl_pretrained_models"


@dataclass(frozen=True)
class HubFiles:
    """Where the files of one commit lie. The plan may be absent: most checkpoints hold it themselves."""

    checkpoint: Path
    adaptation_plan: Path | None
    commit: str | None


def models_folder() -> Path | None:
    """`$nnssl_pretrained_models`, if it is set."""
    value = os.environ.get(MODELS_VARIABLE)
    return Path(value).expanduser().absolute() if value else None


def download_from_hub(address: HubAddress) -> HubFiles:
    """Fetch `checkpoint_final.pth`, `adaptation_plan.json` and `config.json` of one commit, unless here already.

    The checkpoint comes first, since it must exist; the others are then taken from the very same commit, so that a
    push in between cannot mix two versions.

    Raises:
        UserError: The repository, revision or checkpoint is not there or may not be read, or the hub is out of reach.
    """
    models = models_folder()
    if models is None:
        return _into_cache(address)
    from nnunetv2_ext.checkpoints.hub_folder import download_into_folder

    return download_into_folder(address, models / address.folder_name)


def fetch(address: HubAddress, file_name: str, folder: Path | None = None) -> Path:
    """Fetch one file that must exist, into the hub's cache or a folder. Every fault is a `UserError`."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(address.repo_id, file_name, revision=address.revision, local_dir=folder))
    except Exception as error:
        raise explain_hub_error(error, address, file_name) from error


def fetch_if_present(address: HubAddress, file_name: str, folder: Path | None = None) -> Path | None:
    """Fetch one file that the repository may lack. Out of reach counts as lacking: the checkpoint is here already."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(address.repo_id, file_name, revision=address.revision, local_dir=folder))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise explain_hub_error(error, address, file_name) from error


def _into_cache(address: HubAddress) -> HubFiles:
    checkpoint = fetch(address, CHECKPOINT_FILE)
    commit = checkpoint.parent.name  # the cache's layout: snapshots/COMMIT/FILE
    pinned = HubAddress(address.repo_id, commit)
    plan = _cached_or_fetched(pinned, PLAN_FILE)
    _cached_or_fetched(pinned, CONFIG_FILE)
    return HubFiles(checkpoint, plan, commit)


def _cached_or_fetched(pinned: HubAddress, file_name: str) -> Path | None:
    """A commit never changes, so what the cache knows of it (absence included) needs no question to the hub."""
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(pinned.repo_id, file_name, revision=pinned.revision)
    if isinstance(known, str):
        return Path(known)
    return None if known is not None else fetch_if_present(pinned, file_name)
