"""Write weights of any origin in nnssl's format: what nnUNetv2_convert_pretrained_checkpoint does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.checkpoints.contents import WEIGHTS_KEY
from nnunetv2_ext.checkpoints.describe import KEYS
from nnunetv2_ext.checkpoints.hub_address import CHECKPOINT_FILE
from nnunetv2_ext.checkpoints.hub_client import CONFIG_FILE, PLAN_FILE
from nnunetv2_ext.checkpoints.reading import PLAN_KEY, PretrainedCheckpoint, read_checkpoint, read_without_plan
from nnunetv2_ext.checkpoints.roots import WRAPPERS
from nnunetv2_ext.checkpoints.sources import CheckpointFile, resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent, write_json
from nnunetv2_ext.planning.given_architecture import GivenArchitecture, described
from nnunetv2_ext.planning.pretrain_info import keys_in
from nnunetv2_ext.transfer.pretrained import is_finite, plan_transfer
from nnunetv2_ext.transfer.request import TransferRequest

if TYPE_CHECKING:
    import torch


def convert_checkpoint(source: str, folder: Path, given: GivenArchitecture) -> PretrainedCheckpoint:
    """Write `checkpoint_final.pth`, `adaptation_plan.json` and `config.json` for weights of any origin.

    The plan in the checkpoint, if there is one, is completed, and what the user says put in its place; wrappers'
    prefixes (`module.`) are taken off the names.

    Args:
        source: `-pc`.
        folder: `-o`; made if need be.
        given: what the user says of the network.

    Returns:
        The new checkpoint, read back.

    Raises:
        UserError: the folder holds a checkpoint already; the network is not known or not that one; NaN or inf in a
            weight. Nothing is written then.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} (-o) is a file: give a folder")
    if (folder / CHECKPOINT_FILE).exists():
        raise UserError(f"{folder} (-o) holds a {CHECKPOINT_FILE} already: give another folder")
    file = resolve_checkpoint_source(source)
    checkpoint, raw = read_without_plan(file)
    if not raw and given.arch is None:
        known = read_checkpoint(file).adaptation_plan  # an nnU-Net model describes itself
        raw = {} if known is None else known.raw
    converted = described(checkpoint, given, raw)
    for name, tensor in converted.network_weights.items():
        if not is_finite(tensor):
            raise UserError(f"the checkpoint's {name} holds NaN or inf: its pre-training diverged, or it is damaged")
    _check_network(converted)
    root = _root_of(converted)
    weights = _owned({name.removeprefix(root): tensor for name, tensor in converted.network_weights.items()})
    plan = {k: _without(root, v) if k in KEYS else v for k, v in converted.plan.raw.items()}
    _write(folder, weights, plan, checkpoint)
    return read_checkpoint(CheckpointFile(folder / CHECKPOINT_FILE, str(folder), folder / PLAN_FILE))


def _check_network(checkpoint: PretrainedCheckpoint) -> None:
    """Refuse weights that do not fill encoder and stem of the network that they are said to be of."""
    plan = checkpoint.plan
    architecture = downstream_architecture(plan.architecture_name, plan.architecture_kwargs, plan.pretrain_patch_size)
    report = plan_transfer(
        build_on_meta_device(architecture, plan.pretrain_num_input_channels, 2),
        checkpoint.network_weights,
        keys_in(checkpoint, architecture),
        pretrain_patch_size=plan.pretrain_patch_size,
        patch_size=plan.pretrain_patch_size,
        request=TransferRequest(min_coverage=0.0),
    ).report
    if report.coverage < 1:
        raise UserError(
            f"the weights are not those of the network {plan.architecture_name} (-arch, -patch_size), of whose encoder "
            f"and stem they have {report.coverage:.1%}: {'; '.join(report.reasons())}"
        )
    if adapted := [r for r in report.records if r.how and "kernel" in r.how]:
        raise UserError(
            f"the weights are not those of the network {plan.architecture_name} (-arch): {adapted[0].name} would have "
            f"to be adapted ({adapted[0].how})"
        )
    if channels := [r for r in report.records if r.how and "input channel" in r.how]:
        raise UserError(f"-channels {plan.pretrain_num_input_channels}: the weights have another number "
                        f"({channels[0].name}, {channels[0].how})")  # fmt: skip


def _root_of(checkpoint: PretrainedCheckpoint) -> str:
    """The wrappers' prefix in front of the encoder's key, where all names can do without it."""
    key, root = checkpoint.plan.key_to_encoder, ""
    while any(key[len(root) :].startswith(wrapper) for wrapper in WRAPPERS):
        root += key[len(root) :].partition(".")[0] + "."
    names = {name.removeprefix(root) for name in checkpoint.network_weights}
    return root if len(names) == len(checkpoint.network_weights) else ""


def _without(root: str, value: Any) -> Any:
    """A key, or a list of them, without a prefix."""
    if isinstance(value, str):
        return value.removeprefix(root)
    return [_without(root, v) for v in value] if isinstance(value, (list, tuple)) else value


def _owned(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with storage of their own, so that none is saved with the whole file that it is mapped from.

    Names that share one tensor still do.
    """
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in weights.values():
        if (key := _values_of(tensor)) not in made:
            made[key] = tensor.detach().clone()
    return {name: made[_values_of(tensor)] for name, tensor in weights.items()}


def _values_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _write(
    folder: Path, weights: Mapping[str, torch.Tensor], plan: Mapping[str, Any], checkpoint: PretrainedCheckpoint
) -> None:
    """The checkpoint last: a folder without it is no source."""
    import torch

    content: dict[str, Any] = {WEIGHTS_KEY: weights, PLAN_KEY: json.loads(json.dumps(plan))}
    if checkpoint.trainer_name:
        content["trainer_name"] = checkpoint.trainer_name
    if checkpoint.citations:
        content["citations"] = checkpoint.citations
    write_json(folder / CONFIG_FILE, {"model_type": "nnssl"})
    write_json(folder / PLAN_FILE, content[PLAN_KEY])
    with whole_or_absent(folder / CHECKPOINT_FILE) as temporary:
        torch.save(content, temporary)
