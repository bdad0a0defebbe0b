"""The ways to write down a model repository of the Hugging Face hub. Text only: nothing is fetched."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from nnunetv2_ext.errors import UserError

HUB_URLS = ("https://huggingface.co", "http://huggingface.co", "https://www.huggingface.co", "https://hf.co")
CHECKPOINT_FILE = "checkpoint_final.pth"

_NAME = r"[A-Za-z0-9_][\w.-]*"
_REPOSITORY = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?")
_PAGE = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<view>tree|blob|resolve)/(?P<rest>[^\s]+?))?/?")
_FILE_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".zip", ".json")


@dataclass(frozen=True)
class HubAddress:
    """A model repository, `ORG/NAME`, and the branch, tag or commit asked for (`None`: the default branch)."""

    repo_id: str
    revision: str | None = None

    @property
    def folder_name(self) -> str:
        """`ORG_NAME`, the folder that the nnssl fork uses under `$nnssl_pretrained_models`."""
        return self.repo_id.replace("/", "_")

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def is_url(source: str) -> bool:
    """Whether the source says by its form that it is not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def parse_hub_url(source: str) -> HubAddress:
    """Read `hf://ORG/NAME[@REV]` or a page of the hub, `https://huggingface.co/ORG/NAME[/tree/REV]`.

    Pages may also lie under `$HF_ENDPOINT`, the variable by which the hub's client is sent to a mirror.

    Raises:
        UserError: Another site, or a page that is not a model's.
    """
    if source.startswith("hf://"):
        match = _REPOSITORY.fullmatch(source.removeprefix("hf://").removeprefix("models/").rstrip("/"))
        if match is None:
            raise UserError(
                f"'{source}' is not an address of a hub repository: write hf://ORG/NAME or hf://ORG/NAME@REV."
            )
        return HubAddress(match["repo"], match["revision"])

    page = _path_on_the_hub(source)
    if page is None:
        raise UserError(
            f"'{source}' is not on the Hugging Face hub: download the checkpoint from there and give its local path."
        )
    match = _PAGE.fullmatch(page)
    if match is None or match["repo"].split("/")[0] in ("datasets", "spaces", "collections", "papers"):
        raise UserError(
            f"'{source}' is not the page of a model: write https://huggingface.co/ORG/NAME, with /tree/REV for a "
            "revision."
        )
    revision = match["rest"]
    if match["view"] in ("blob", "resolve"):
        revision, _, file_name = revision.rpartition("/")
        if file_name != CHECKPOINT_FILE or not revision:
            raise UserError(
                f"'{source}' names a single file of a repository, but only {CHECKPOINT_FILE} is read from the hub: "
                f"write https://huggingface.co/{match['repo']}, or download the file and give its local path."
            )
    return HubAddress(match["repo"], unquote(revision) if revision else None)


def parse_short_form(source: str) -> HubAddress | None:
    """Read `ORG/NAME[@REV]`; `None` for what looks like a path, so that a typo in one never asks the hub."""
    match = _REPOSITORY.fullmatch(source)
    if match is None or source.lower().endswith(_FILE_ENDINGS):
        return None
    return HubAddress(match["repo"], match["revision"])


def _path_on_the_hub(source: str) -> str | None:
    """`ORG/NAME/...` of a URL on the hub or its mirror, without query and fragment; `None` for other sites."""
    parts = urlsplit(source)
    address = f"{parts.scheme}://{parts.netloc}{parts.path}"
    for hub in (*HUB_URLS, os.environ.get("HF_ENDPOINT", "").rstrip("/")):
        if hub and address.startswith(hub + "/"):
            return address[len(hub) + 1 :]
    return None
