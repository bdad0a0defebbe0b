"""What a plan says of its pre-trained weights, and the rehearsal of bringing them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.checkpoints.describe import keys_of_architecture
from nnunetv2_ext.checkpoints.pages import page_releaser
from nnunetv2_ext.checkpoints.reading import SUPERVISED, PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.pretrained import Transfer, plan_transfer
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.request import ENCODER, ENCODER_AND_DECODER, TransferRequest

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TransferOptions:
    """What the user chose of a transfer; None for the default of the source and the route.

    Attributes:
        load: `-load`.
        keep_head: `-keep_head`.
        channel_map: `-cm`.
        min_coverage: `-min_coverage`.
    """

    load: str | None = None
    keep_head: bool = False
    channel_map: tuple[int | None, ...] | None = None
    min_coverage: float | None = None

    def request(
        self, checkpoint: PretrainedCheckpoint, dataset_json: Mapping[str, Any], default_coverage: float
    ) -> TransferRequest:
        """The options with their defaults: of a supervised source the decoder comes too.

        Raises:
            UserError: `-keep_head` where the labels are not the same, or not known; a value out of range.
        """
        supervised = checkpoint.kind == SUPERVISED
        if self.keep_head:
            check_same_labels(checkpoint, dataset_json)
        return TransferRequest(
            load=self.load or (ENCODER_AND_DECODER if supervised else ENCODER),
            keep_head=self.keep_head,
            channel_map=self.channel_map,
            min_coverage=default_coverage if self.min_coverage is None else self.min_coverage,
        )


def keys_in(checkpoint: PretrainedCheckpoint, architecture: Mapping[str, Any]) -> PartKeys:
    """Where the checkpoint's parts lie: as its plan says or, without one, where a network has them.

    Args:
        checkpoint: its names decide which wrappers' prefixes stand in front (`module.`).
        architecture: the plan's network, whose own keys are looked for.
    """
    plan = checkpoint.adaptation_plan
    if plan is not None:
        return PartKeys(plan.key_to_encoder, plan.key_to_stem, plan.keys_to_in_proj, plan.key_to_lpe)
    return recorded_keys(keys_of_architecture(architecture, checkpoint.network_weights)[1])


def check_same_labels(checkpoint: PretrainedCheckpoint, dataset_json: Mapping[str, Any]) -> None:
    """A segmentation head is carried only between equal label sets: same names, same values, same regions.

    Raises:
        UserError: names the difference.
    """
    if checkpoint.dataset_json is None:
        raise UserError(
            f"-keep_head: '{checkpoint.file.path}' does not say which labels its head is for; only nnU-Net models do"
        )
    theirs, ours = (_labels(d) for d in (checkpoint.dataset_json, dataset_json))
    if theirs != ours:
        different = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        named = ", ".join(f"{k}: {ours.get(k, 'none')} here, {theirs.get(k, 'none')} there" for k in different[:3])
        raise UserError(f"-keep_head: the model was trained on other labels ({named}): leave the flag out")


def pretrain_info(
    checkpoint: PretrainedCheckpoint,
    name: str,
    keys: PartKeys,
    patch_size: Sequence[int],
    request: TransferRequest,
    sha256: str,
) -> dict[str, Any]:
    """The keys that the nnssl fork and nnU-Net's development branch read, then those that find the weights again."""
    pretraining = checkpoint.adaptation_plan
    return {
        "checkpoint_path": str(checkpoint.file.path),
        "checkpoint_name": name,
        "key_to_encoder": keys.key_to_encoder,
        "key_to_stem": keys.key_to_stem,
        "keys_to_in_proj": list(keys.keys_to_in_proj),
        "key_to_lpe": keys.key_to_lpe,
        "pt_num_in_channels": pretraining.pretrain_num_input_channels
        if pretraining
        else _num_channels(checkpoint, keys),
        "pt_used_patchsize": list(pretraining.pretrain_patch_size) if pretraining else None,
        # the fork takes this for the patch size of the network that it builds, so it has to be the plan's
        "pt_recommended_downstream_patchsize": list(patch_size),
        "citations": checkpoint.citations,
        "checkpoint_source": checkpoint.file.source,
        "checkpoint_sha256": sha256,
        "hub_repo": checkpoint.file.hub_repo,
        "hub_revision": checkpoint.file.hub_revision,
        "architecture_name": pretraining.architecture_name if pretraining else None,
        "trainer_name": checkpoint.trainer_name,
        "transfer": request.as_dict(),
    }


def rehearse_transfer(
    plan: Mapping[str, Any], dataset_json: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path
) -> TransferReport:
    """Do what training will do with a plan's weights, but for the network's memory.

    The network is built on the meta device, matched against the checkpoint, and every value that it will get is
    computed once, so that weights that do not fit, or hold NaN, are found before hours of preprocessing, and before a
    training writes anything.

    Args:
        plan: a ptPlan.
        dataset_json: the dataset's description.
        weights: the checkpoint's tensors by name.
        path: the file that they are mapped from.

    Raises:
        UserError: as `plan_transfer` and `Transfer.value`.
    """
    network = network_without_values(plan, dataset_json)
    release = page_releaser(path)
    transfer = recorded_transfer(plan, network, weights, release)
    for _ in transfer.values():
        release()
    return transfer.report


def network_without_values(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> nn.Module:
    """A plan's network for its dataset on the meta device. Raises UserError as `build_on_meta_device`."""
    configuration = plan["configurations"][CONFIGURATION]
    num_channels = len(configuration["normalization_schemes"])
    return build_on_meta_device(configuration["architecture"], num_channels, _num_outputs(plan, dataset_json))


def recorded_transfer(
    plan: Mapping[str, Any], network: nn.Module, weights: Mapping[str, torch.Tensor], release: Callable[[], None]
) -> Transfer:
    """The transfer that a plan's `pretrain_info` asks for; plans of the nnssl fork say less, and get the defaults.

    Args:
        plan: a ptPlan.
        network: as the plan describes it, neither compiled nor wrapped.
        weights: the checkpoint's tensors by name.
        release: as in `plan_transfer`.

    Raises:
        UserError: as `plan_transfer`.
    """
    info = plan["pretrain_info"]
    return plan_transfer(
        network,
        weights,
        recorded_keys(info),
        pretrain_patch_size=info.get("pt_used_patchsize"),
        patch_size=plan["configurations"][CONFIGURATION]["patch_size"],
        request=TransferRequest.from_dict(info.get("transfer")),
        release=release,
    )


def recorded_keys(info: Mapping[str, Any]) -> PartKeys:
    """The checkpoint's keys as a plan's `pretrain_info` has them."""
    return PartKeys(info["key_to_encoder"], info["key_to_stem"], tuple(info["keys_to_in_proj"]), info.get("key_to_lpe"))


def _num_outputs(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> int:
    """Segmentation heads as nnU-Net counts them: regions have their own, an ignore label has none."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return int(PlansManager(dict(plan)).get_label_manager(dict(dataset_json)).num_segmentation_heads)


def _num_channels(checkpoint: PretrainedCheckpoint, keys: PartKeys) -> int | None:
    for key in keys.keys_to_in_proj:
        if (weight := checkpoint.network_weights.get(f"{key}.weight")) is not None:
            return int(weight.shape[1])
    return None


def _labels(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    labels = {str(k): _plain(v) for k, v in (dataset_json.get("labels") or {}).items()}
    more: dict[str, Any] = {"regions_class_order": _plain(dataset_json.get("regions_class_order"))}
    if more["regions_class_order"] is not None:  # the head has a channel for each region, in the file's order
        more["order of regions"] = list(labels)
    return {**labels, **more}


def _plain(value: Any) -> Any:
    """Label values are integers, or lists of them for regions; some files have them as text."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if value is None else int(value)
