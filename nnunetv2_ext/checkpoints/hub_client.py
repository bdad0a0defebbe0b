"""The hub's own client, one file at a time: its progress bar, retries, token and offline mode hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.checkpoints.hub_address import HubAddress
from nnunetv2_ext.checkpoints.hub_errors import explain_hub_error

PLAN_FILE = "adaptation_plan.json"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class HubFiles:
    """Where the files of one commit lie. The plan may be absent: most checkpoints hold it themselves."""

    checkpoint: Path
    adaptation_plan: Path | None
    commit: str | None


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
