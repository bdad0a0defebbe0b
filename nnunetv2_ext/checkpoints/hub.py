"""A hub repository's files: in the hub's own cache or, as in the nnssl fork, in `$nnssl_pretrained_models/ORG_NAME`."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_ext.checkpoints.hub_address import CHECKPOINT_FILE, HubAddress
from nnunetv2_ext.checkpoints.hub_client import CONFIG_FILE, PLAN_FILE, HubFiles, fetch, fetch_if_present
from nnunetv2_ext.checkpoints.hub_folder import download_into_folder

MODELS_VARIABLE = "nnssl_pretrained_models"


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
    return download_into_folder(address, models / address.folder_name)


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
