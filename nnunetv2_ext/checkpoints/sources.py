"""From what the user wrote after `-pc`, or from what a plan recorded, to one checkpoint file on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.checkpoints.hub import MODELS_VARIABLE, download_from_hub, models_folder
from nnunetv2_ext.checkpoints.hub_address import CHECKPOINT_FILE, HubAddress, is_url, parse_hub_url, parse_short_form
from nnunetv2_ext.checkpoints.hub_client import PLAN_FILE
from nnunetv2_ext.checkpoints.model_archives import is_model_archive, unpack_model
from nnunetv2_ext.checkpoints.nnunet_models import (
    checkpoint_in,
    checkpoint_in_fold,
    is_model_folder,
    model_folder_of,
    model_folders_in,
)
from nnunetv2_ext.errors import UserError

WEIGHT_FILE_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class CheckpointFile:
    """One checkpoint file and where it came from.

    Attributes:
        path: The file, absolute.
        source: As the user gave it; of a zip the absolute path, since what is unpacked of it lies in a cache.
        adaptation_plan_path: The `adaptation_plan.json` beside it, if there is one.
        hub_repo: `ORG/NAME` if it came from the hub.
        hub_revision: The commit it was, if that is known.
        model_folder: The nnU-Net model folder (`plans.json`, `fold_X`) that it lies in, if it does.
    """

    path: Path
    source: str
    adaptation_plan_path: Path | None = None
    hub_repo: str | None = None
    hub_revision: str | None = None
    model_folder: Path | None = None


def resolve_checkpoint_source(source: str) -> CheckpointFile:
    """Find the checkpoint that a user names, downloading it if need be.

    Args:
        source: A file; a folder with `checkpoint_final.pth`; a trained nnU-Net model's folder, or the zip that
            `nnUNetv2_export_model_to_zip` makes of it; or a hub repository: `https://huggingface.co/ORG/NAME` (also
            `.../tree/REV`), `hf://ORG/NAME[@REV]`, or `ORG/NAME[@REV]` where no local path has that name.

    Raises:
        UserError: Nothing is there, or the hub does not give it.
    """
    source = str(source)
    if not source.strip():
        raise UserError("The checkpoint source is empty: give a file, a folder or a hub repository (ORG/NAME).")
    if is_url(source):
        return _from_hub(parse_hub_url(source), source)
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return _from_folder(path, source)
    if path.exists():
        return _from_file(path, source)
    address = parse_short_form(source)
    if address is None:
        raise UserError(
            f"There is no file or folder '{source}': check the path, or give a hub repository as ORG/NAME or hf://ORG/NAME."
        )
    try:
        return _from_hub(address, source)
    except UserError as error:
        raise UserError(f"There is no file or folder '{source}' in {Path.cwd()}, and on the hub: {error}") from error


def locate_recorded_checkpoint(pretrain_info: Mapping[str, Any], overwrite: str | None = None) -> CheckpointFile:
    """Find the weights that a plan was made with, also on another machine or after a move.

    Looked at in turn: `checkpoint_path`; the source as it was given; the hub repository at the recorded commit; the
    same name under `$nnssl_pretrained_models`. Plans of the nnssl fork record only the path and the name.

    Args:
        pretrain_info: The `pretrain_info` of a ptPlans file.
        overwrite: `-overwrite_ckpt_path`: any source; it alone is looked at.

    Raises:
        UserError: Nothing is found (the message lists what was looked for), or the file found is not the one recorded.
    """
    if overwrite is not None:
        found = resolve_checkpoint_source(overwrite)
        _check_hash(found, pretrain_info)
        return found
    looked_for = []
    for description, look in _recorded_places(pretrain_info):
        try:
            found = look()
        except UserError as error:
            looked_for.append(f"{description} ({str(error).rstrip('.')})")
            continue
        _check_hash(found, pretrain_info)
        return found
    raise UserError(
        f"The pre-trained weights of this plan are not where it says. Looked for: {'; '.join(looked_for)}. "
        "Give their place with -overwrite_ckpt_path (a file, a folder or a hub repository)."
    )


def _from_file(path: Path, source: str) -> CheckpointFile:
    if is_model_archive(path):
        source = str(path)
        try:
            path = checkpoint_in(unpack_model(path))
        except UserError as error:
            raise error if source in str(error) else UserError(f"'{source}': {error}") from error
    plan = path.parent / PLAN_FILE
    return CheckpointFile(path, source, plan if plan.is_file() else None, model_folder=model_folder_of(path))


def _from_folder(folder: Path, source: str) -> CheckpointFile:
    checkpoint = folder / CHECKPOINT_FILE
    if not checkpoint.is_file():
        checkpoint = checkpoint_in_fold(folder) or checkpoint
    if checkpoint.is_file():
        return _from_file(checkpoint, source)
    if is_model_folder(folder):
        return _from_file(checkpoint_in(folder), source)
    if models := model_folders_in(folder):
        raise UserError(
            f"The folder '{source}' holds nnU-Net models: give one of them ({', '.join(m.name for m in models)})."
        )
    others = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(WEIGHT_FILE_ENDINGS))
    hint = f"give one of its files itself ({', '.join(others[:5])})" if others else "give the folder that does"
    raise UserError(f"The folder '{source}' holds no {CHECKPOINT_FILE}: {hint}.")


def _from_local_path(path: Path, source: str) -> CheckpointFile:
    if path.is_dir():
        return _from_folder(path, source)
    if path.exists():
        return _from_file(path, source)
    raise UserError("not there")


def _from_hub(address: HubAddress, source: str) -> CheckpointFile:
    files = download_from_hub(address)
    return CheckpointFile(
        files.checkpoint.absolute(), source, files.adaptation_plan, hub_repo=address.repo_id, hub_revision=files.commit
    )


def _recorded_places(pretrain_info: Mapping[str, Any]) -> list[tuple[str, Callable[[], CheckpointFile]]]:
    """Where the weights of a plan may lie, best first: a description, and a look that raises if nothing is there."""
    path, source, repo, revision, name = (
        value if isinstance(value := pretrain_info.get(key), str) and value else None
        for key in ("checkpoint_path", "checkpoint_source", "hub_repo", "hub_revision", "checkpoint_name")
    )
    places: list[tuple[str, Callable[[], CheckpointFile]]] = []
    if path is not None:
        recorded = Path(path).expanduser().absolute()
        places.append((f"'{path}'", partial(_from_recorded_path, recorded, source or path, repo, revision)))
    if repo is not None:
        at = f"at commit {revision[:8]}" if revision else "on its default branch"
        places.append((f"{repo} on the hub {at}", partial(_from_hub, HubAddress(repo, revision), source or repo)))
    elif source is not None and source != path:
        # without a repository in the record it was local: never ask the hub for a folder that has gone
        here = Path(source).expanduser().absolute()
        places.append((f"the source '{source}'", partial(_from_local_path, here, source)))

    models = models_folder()
    if models is None:
        return [*places, (f"${MODELS_VARIABLE}", _models_variable_not_set)]
    same_names = [Path(name)] if name is not None else []
    if path is not None:
        same_names.append(Path(*Path(path).parts[-2:]))  # ORG_NAME/checkpoint_final.pth
    for same_name in dict.fromkeys(same_names):
        if not same_name.is_absolute() and ".." not in same_name.parts:
            there = models / same_name
            places.append((f"'{there}'", partial(_from_local_path, there, str(there))))
    return places


def _from_recorded_path(path: Path, source: str, repo: str | None, revision: str | None) -> CheckpointFile:
    return replace(_from_local_path(path, source), hub_repo=repo, hub_revision=revision)


def _models_variable_not_set() -> CheckpointFile:
    raise UserError("not set")


def _check_hash(found: CheckpointFile, pretrain_info: Mapping[str, Any]) -> None:
    recorded = pretrain_info.get("checkpoint_sha256")
    if not isinstance(recorded, str) or not recorded:
        return  # plans of the nnssl fork
    actual = sha256_of_file(found.path)
    if actual != recorded.lower():
        raise UserError(
            f"'{found.path}' is not the checkpoint that this plan was made with (sha256 {actual[:12]}, recorded "
            f"{recorded[:12].lower()}): give the right one with -overwrite_ckpt_path, or plan anew with this one."
        )
