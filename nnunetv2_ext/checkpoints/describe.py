"""Describe a network in nnssl's words: the adaptation plan of weights that carry none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.architectures.presets import downstream_architecture, short_name
from nnunetv2_ext.checkpoints.roots import network_root
from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    import torch

KEYS = ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")


def describe(
    weights: Mapping[str, torch.Tensor],
    architecture_name: str,
    arch_kwargs: Mapping[str, Any] | None,
    *,
    patch_size: Sequence[int],
    spacing: Sequence[float] | None,
    spacing_style: str | None = None,
    channels: int | None = None,
    keys: Mapping[str, Any] | None = None,
    configuration: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An adaptation plan, as `AdaptationPlan.from_dict` and nnssl's users read it.

    Args:
        weights: the tensors; their names decide what wrappers' prefixes the keys get, the stem's weight how many
            channels there are.
        architecture_name: a name of `PRESETS`, or the class path in an nnU-Net plan.
        arch_kwargs: the class's arguments; None for the named sizes.
        patch_size: voxels, network axis order.
        spacing: mm, the same order; None for no resampling, or where it is not known.
        spacing_style: nnssl's word for it (`noresample`).
        channels: where the stem's weight is not to be found by its name.
        keys: any of `KEYS` that is not the architecture's own.
        configuration: further entries of the pre-training's configuration (normalisation); lists are for channels,
            and left out where they are of another number of them.
        origin: further entries of the `pretrain_plan` (dataset, plans).

    Raises:
        UserError: the architecture is not known or cannot be built.
    """
    architecture_name = short_name(architecture_name)
    architecture = downstream_architecture(architecture_name, arch_kwargs, patch_size)
    root, own = keys_of_architecture(architecture, weights)
    given = {k: _below_root(root, v, weights) for k, v in (keys or {}).items() if v is not None}
    if "key_to_stem" in given and "keys_to_in_proj" not in given:  # the same layer of a stem under another name
        inside = [key[len(own["key_to_stem"]) :] for key in own["keys_to_in_proj"]]
        given["keys_to_in_proj"] = [f"{given['key_to_stem']}{key}" for key in inside]
    own |= given
    if own["key_to_lpe"] not in weights:  # a network without one, or with one that was not saved
        own["key_to_lpe"] = None if not (keys or {}).get("key_to_lpe") else own["key_to_lpe"]
    own["keys_to_in_proj"] = [k for k in own["keys_to_in_proj"] if f"{k}.weight" in weights] or own["keys_to_in_proj"]
    projection = weights.get(f"{own['keys_to_in_proj'][0]}.weight")
    channels = channels or (1 if projection is None else int(projection.shape[1]))
    entries = {k: v for k, v in (configuration or {}).items() if not isinstance(v, list) or len(v) == channels}
    return {
        "architecture_plans": {
            "arch_class_name": architecture_name,
            "arch_kwargs": None if arch_kwargs is None else dict(arch_kwargs),
            "arch_kwargs_requiring_import": None if arch_kwargs is None else architecture["_kw_requires_import"],
        },
        "pretrain_plan": {
            **(origin or {}),
            "configurations": {
                "3d_fullres": {
                    **entries,
                    "spacing": None if spacing is None else [float(s) for s in spacing],
                    "spacing_style": spacing_style or (None if spacing is None else "median"),
                    "patch_size": [int(p) for p in patch_size],
                }
            },
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": [int(p) for p in patch_size],
        **own,
    }


def keys_of_architecture(
    architecture: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, Any]]:
    """Where a network has its parts, below whatever wrappers put in front of the names of its weights.

    Args:
        architecture: a plan's `architecture` entry.
        weights: their names decide on the prefix.

    Returns:
        The prefix (`module.`, or nothing), and `KEYS` with it.
    """
    from nnunetv2_ext.architectures.build import build_on_meta_device  # imports torch

    network = build_on_meta_device(architecture, 1, 2)
    root = network_root(weights, network.state_dict().keys())
    return root, {
        "key_to_encoder": f"{root}{network.key_to_encoder}",
        "key_to_stem": f"{root}{network.key_to_stem}",
        "keys_to_in_proj": [f"{root}{key}" for key in network.keys_to_in_proj],  # type: ignore[union-attr]
        "key_to_lpe": f"{root}{network.key_to_lpe}" if getattr(network, "key_to_lpe", None) else None,
    }


def _below_root(root: str, key: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """A key, or a list of them, as given; with the wrappers' prefix where only that makes it fit."""
    if not isinstance(key, str):
        return [_below_root(root, k, weights) for k in key]
    fits = {start: any(n == start or n.startswith(f"{start}.") for n in weights) for start in (key, f"{root}{key}")}
    return f"{root}{key}" if fits[f"{root}{key}"] and not fits[key] else key


def check_three_dimensions(patch_size: Sequence[int], what: str) -> None:
    """Refuse a 2D model. Raises UserError."""
    if len(patch_size) != 3:
        raise UserError(
            f"{what} is 2D (its patch is {' x '.join(map(str, patch_size))}), and pre-trained weights are brought over "
            "to 3D networks only: give a 3D model"
        )
