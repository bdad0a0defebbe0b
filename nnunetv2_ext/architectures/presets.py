"""Presets: from an architecture's name (and arguments) in a checkpoint to the `architecture` entry of a plan.

Names are looked up in the table below and never imported: a checkpoint is data, not code. What an entry names as a
class to import (`conv_op`, `norm_op`, ...) must stand in `IMPORTABLE`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_ext.errors import UserError

RESENC_CLASS = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
PLAIN_CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
PRIMUS_CLASS = "nnunetv2_ext.architectures.PrimusForSegmentation"

_TORCH_IMPORTABLE = {
    "conv_op": ("Conv3d", "modules.conv.Conv3d"),
    "norm_op": (
        "InstanceNorm3d", "modules.instancenorm.InstanceNorm3d",
        "BatchNorm3d", "modules.batchnorm.BatchNorm3d",
    ),
    "dropout_op": ("Dropout3d", "modules.dropout.Dropout3d"),
    "nonlin": (
        "LeakyReLU", "modules.activation.LeakyReLU", "ReLU", "modules.activation.ReLU",
        "GELU", "modules.activation.GELU", "SiLU", "modules.activation.SiLU",
    ),
}  # fmt: skip
_RESIDUAL = "dynamic_network_architectures.building_blocks.residual"
IMPORTABLE: dict[str, tuple[str, ...]] = {
    **{argument: tuple(f"torch.nn.{name}" for name in names) for argument, names in _TORCH_IMPORTABLE.items()},
    "block": (f"{_RESIDUAL}.BasicBlockD", f"{_RESIDUAL}.BottleneckD"),
}
"""For every argument that names a class: the names that a plan may hold."""

_CONV_ARGUMENTS = (
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias",
    "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs",
)  # fmt: skip
_RESENC_ARGUMENTS = (*_CONV_ARGUMENTS, "n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels")
_PLAIN_ARGUMENTS = (*_CONV_ARGUMENTS, "n_conv_per_stage", "nonlin_first")
_PRIMUS_ARGUMENTS = (
    "embed_dim", "patch_embed_size", "eva_depth", "eva_numheads", "input_shape", "num_register_tokens",
    "use_rot_pos_emb", "use_abs_pos_embed", "mlp_ratio", "drop_path_rate", "proj_drop_rate", "attn_drop_rate",
    "rope_kwargs", "init_values", "scale_attn_inner",
)  # fmt: skip
_REQUIRED = {
    RESENC_CLASS: ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_blocks_per_stage",
                   "n_conv_per_stage_decoder"),
    PLAIN_CLASS: ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage",
                  "n_conv_per_stage_decoder"),
    PRIMUS_CLASS: ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads"),
}  # fmt: skip
_ARGUMENTS = {RESENC_CLASS: _RESENC_ARGUMENTS, PLAIN_CLASS: _PLAIN_ARGUMENTS, PRIMUS_CLASS: _PRIMUS_ARGUMENTS}

# What nnU-Net gives every 3D convolutional network, spelt as in its own plans
_CONV_DEFAULTS: dict[str, Any] = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
# Downstream values of nnssl's named Primus sizes (facts read off nnssl; Wald et al. 2025, arXiv 2503.01835)
_PRIMUS_DEFAULTS: dict[str, Any] = {"drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}
# Arguments that belong to the pre-training task, or that nnU-Net sets itself
_NOT_DOWNSTREAM = frozenset({
    "input_channels", "num_classes", "output_channels", "deep_supervision", "patch_drop_rate",
    "decoder_eva_depth", "decoder_eva_numheads", "decoder_embed_dim", "do_up_projection",
})  # fmt: skip
_NNSSL_SPELLING = {"encoder_eva_depth": "eva_depth", "encoder_eva_numheads": "eva_numheads"}

_RESENC_L: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
}
_PRIMUS_SIZES = {  # embedding, depth, heads
    "S": (396, 12, 6),
    "B": (792, 12, 12),
    "M": (864, 16, 12),
    "L": (1056, 24, 16),
}

PRESETS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "ResEncL": (RESENC_CLASS, _RESENC_L),
    "NoSkipResEncL": (RESENC_CLASS, _RESENC_L),  # pre-trained without skip connections: the encoder is the same
    "ResidualEncoderUNet": (RESENC_CLASS, None),
    "PlainConvUNet": (PLAIN_CLASS, None),
    "Primus": (PRIMUS_CLASS, None),
    **{
        f"Primus{size}": (
            PRIMUS_CLASS,
            {"embed_dim": embed_dim, "patch_embed_size": [8, 8, 8], "eva_depth": depth, "eva_numheads": heads},
        )
        for size, (embed_dim, depth, heads) in _PRIMUS_SIZES.items()
    },
}
"""Name in a checkpoint: class path and, for the named sizes, its arguments (None: they stand in the checkpoint)."""


def downstream_architecture(
    name: str, arch_kwargs: Mapping[str, Any] | None, patch_size: Sequence[int]
) -> dict[str, Any]:
    """The `architecture` entry of a plan's configuration, complete, for a network that segments.

    Args:
        name: the checkpoint's `arch_class_name`, or the full path of one of our classes (as our own plans have it).
        arch_kwargs: its `arch_kwargs`; None for the named sizes.
        patch_size: voxels, network axis order; Primus is built for one patch size.

    Returns:
        `network_class_name`, `arch_kwargs`, `_kw_requires_import`, as nnU-Net's plans have them.

    Raises:
        UserError: the name is not in the table, an argument is unknown or missing, or names a class that is not known.
    """
    check_name(name)
    class_path, preset = PRESETS.get(name, (name, None))
    given = {_NNSSL_SPELLING.get(k, k): _plain(v) for k, v in (arch_kwargs or {}).items() if k not in _NOT_DOWNSTREAM}
    defaults = _PRIMUS_DEFAULTS if class_path == PRIMUS_CLASS else _CONV_DEFAULTS
    arguments = {**(preset or {}), **defaults, **given}
    _check_arguments(name, class_path, arguments)
    if class_path == PRIMUS_CLASS:
        arguments["input_shape"] = [int(p) for p in patch_size]
        arguments["patch_embed_size"] = _per_axis(arguments["patch_embed_size"])
    requires_import = [k for k in (*_TORCH_IMPORTABLE, "block") if k in arguments]
    return {
        "network_class_name": class_path,
        "arch_kwargs": {k: copy.deepcopy(arguments[k]) for k in _ARGUMENTS[class_path] if k in arguments},
        "_kw_requires_import": requires_import,
    }


def check_name(name: str) -> None:
    """Raises UserError for a name that is neither in `PRESETS` nor the class path of one of them."""
    if name not in PRESETS and name not in _ARGUMENTS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"the architecture {name!r} is not known{hint} (known: {', '.join(PRESETS)})")


def short_name(class_path: str) -> str:
    """The name of `PRESETS` for the class path in an nnU-Net plan; anything else as it is.

    nnU-Net's oldest plans name modules of dynamic-network-architectures that are gone; the class's own name is what
    nnU-Net itself goes by then.
    """
    own = {PRIMUS_CLASS: "Primus"}
    if class_path.startswith("dynamic_network_architectures."):
        return class_path.rpartition(".")[2]
    return own.get(class_path, class_path)


def class_of(name: str) -> str:
    """The class path of a name in `PRESETS`; anything else as it is."""
    return PRESETS[name][0] if name in PRESETS else name


def family(architecture: Mapping[str, Any]) -> str:
    """`primus` or `cnn`: what decides between the recipes and whether there is a U-Net decoder."""
    return "primus" if architecture["network_class_name"] == PRIMUS_CLASS else "cnn"


def _check_arguments(name: str, class_path: str, arguments: Mapping[str, Any]) -> None:
    if missing := [a for a in _REQUIRED[class_path] if arguments.get(a) is None]:
        raise UserError(f"the arguments of {name} (arch_kwargs) lack {', '.join(missing)}")
    # None stands for a default in some files; an argument that we do not know may change what the weights mean
    if unknown := [k for k, v in arguments.items() if k not in _ARGUMENTS[class_path] and v is not None]:
        raise UserError(f"{name} takes no argument {', '.join(sorted(unknown))} (arch_kwargs)")
    for argument, known in IMPORTABLE.items():
        value = arguments.get(argument)
        if value is not None and value not in known:
            raise UserError(f"{argument} of {name} (arch_kwargs) is {value!r}; known are {', '.join(known)}")


def _per_axis(value: Any) -> list[int]:
    return [int(value)] * 3 if isinstance(value, int) else [int(v) for v in value]


def _plain(value: Any) -> Any:
    """JSON's types, integers where a file has 32.0 for 32; tuples and lists are used interchangeably by nnssl."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
