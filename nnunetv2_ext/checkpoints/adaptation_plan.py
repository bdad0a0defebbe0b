"""What a pre-trained checkpoint says about itself: the `nnssl_adaptation_plan`, checked and typed.

nnssl writes the plan into the checkpoint and, for the hub, into `adaptation_plan.json` beside it. Converters of other
checkpoints write the same dict by hand, with fewer keys and with lists for tuples or `32.0` for `32`. This module takes
all of these and nothing that a later step could stumble over. Names in the plan stay names: nothing is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.errors import UserError

NOT_RESAMPLED = "noresample"
"""nnssl's word for a pre-training that left every image its spacing."""

CONFIGURATIONS_BY_PREFERENCE = ("3d_fullres", "onemmiso")
"""Which configuration of the pre-training counts where a plan lists several: nnU-Net's default, then nnssl's."""


@dataclass(frozen=True)
class AdaptationPlan:
    """How a network was pre-trained and which of its weights a downstream network takes over.

    Patch sizes (voxels) and the spacing (millimetres) are in the axis order of the pre-training's network input.

    Attributes:
        architecture_name: As the checkpoint names it, e.g. `ResEncL`; to be looked up in a table, never imported.
        architecture_kwargs: Arguments of the architecture, `None` where the name says it all (`PrimusM`).
        architecture_kwargs_requiring_import: Arguments that hold the dotted name of a class.
        pretrain_num_input_channels: Channels of the images seen in pre-training.
        pretrain_patch_size: Patch of the pre-training; a learned positional embedding belongs to it.
        recommended_downstream_patchsize: Patch to fine-tune with; the pre-training's where the plan has none.
        key_to_encoder: Prefix of the encoder's tensors in `network_weights`.
        key_to_stem: Prefix of the stem's tensors.
        keys_to_in_proj: Every name (nnU-Net's networks alias modules) of the layer that sees the image.
        key_to_lpe: Name of the learned positional embedding, `None` for CNNs.
        spacing: Target spacing of the pre-training, `None` where it did not resample.
        spacing_style: nnssl's word for it: `onemmiso`, `median`, `noresample`.
        normalization_schemes: One per channel, nnU-Net's class names.
        use_mask_for_norm: One per channel.
        raw: The whole dict, as read.
    """

    architecture_name: str
    architecture_kwargs: dict[str, Any] | None
    architecture_kwargs_requiring_import: tuple[str, ...]
    pretrain_num_input_channels: int
    pretrain_patch_size: tuple[int, ...]
    recommended_downstream_patchsize: tuple[int, ...]
    key_to_encoder: str
    key_to_stem: str
    keys_to_in_proj: tuple[str, ...]
    key_to_lpe: str | None
    spacing: tuple[float, ...] | None
    spacing_style: str | None
    normalization_schemes: tuple[str, ...] | None
    use_mask_for_norm: tuple[bool, ...] | None
    raw: dict[str, Any]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> AdaptationPlan:
        """Read the dict that nnssl or a converter wrote.

        Raises:
            UserError: A required key is missing or of the wrong type; the message names it.
        """
        if not isinstance(raw, Mapping):
            raise UserError(f"The adaptation plan is {_shown(raw)} where a dictionary is needed.")
        architecture = _architecture(raw)
        kwargs = architecture.get("arch_kwargs")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise _wrong("architecture_plans.arch_kwargs", kwargs, "a dictionary or null")
        configuration = _pretraining_configuration(raw)

        if raw.get("pretrain_patch_size") is not None:
            patch = _sizes(raw["pretrain_patch_size"], "pretrain_patch_size")
        elif configuration.get("patch_size") is not None:
            patch = _sizes(configuration["patch_size"], "patch_size")
        else:
            raise _missing("patch_size", "in the configuration of its 'pretrain_plan', nor 'pretrain_patch_size'")
        recommended = raw.get("recommended_downstream_patchsize")

        spacing_style = _text_or_none(configuration.get("spacing_style"), "spacing_style")
        return cls(
            architecture_name=_text(architecture.get("arch_class_name"), "architecture_plans.arch_class_name"),
            architecture_kwargs=None if kwargs is None else dict(kwargs),
            architecture_kwargs_requiring_import=_texts(
                architecture.get("arch_kwargs_requiring_import") or (),
                "architecture_plans.arch_kwargs_requiring_import",
            ),
            pretrain_num_input_channels=_channels(raw.get("pretrain_num_input_channels")),
            pretrain_patch_size=patch,
            recommended_downstream_patchsize=(
                patch if recommended is None else _sizes(recommended, "recommended_downstream_patchsize")
            ),
            key_to_encoder=_text(raw.get("key_to_encoder"), "key_to_encoder"),
            key_to_stem=_text(raw.get("key_to_stem"), "key_to_stem"),
            keys_to_in_proj=_input_projections(raw.get("keys_to_in_proj")),
            key_to_lpe=_text_or_none(raw.get("key_to_lpe"), "key_to_lpe"),
            spacing=None if spacing_style == NOT_RESAMPLED else _spacing(configuration.get("spacing")),
            spacing_style=spacing_style,
            normalization_schemes=_texts_or_none(configuration.get("normalization_schemes"), "normalization_schemes"),
            use_mask_for_norm=_flags_or_none(configuration.get("use_mask_for_norm"), "use_mask_for_norm"),
            raw=dict(raw),
        )


def _architecture(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    architecture = raw.get("architecture_plans")
    if isinstance(architecture, str):
        return {"arch_class_name": architecture}
    if architecture is None:
        raise _missing("architecture_plans.arch_class_name")
    if not isinstance(architecture, Mapping):
        raise _wrong("architecture_plans", architecture, "a dictionary with 'arch_class_name'")
    return architecture


def _pretraining_configuration(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one configuration of the pre-training, whatever it is called; the plan itself for the most minimal ones."""
    plan = raw.get("pretrain_plan")
    if plan is None:
        return {}
    if not isinstance(plan, Mapping):
        raise _wrong("pretrain_plan", plan, "a dictionary")
    configurations = plan.get("configurations")
    if configurations is None:
        return plan
    if not isinstance(configurations, Mapping):
        raise _wrong("pretrain_plan.configurations", configurations, "a dictionary")
    if not configurations:
        return {}
    if len(configurations) == 1:
        name = next(iter(configurations))
    else:
        preferred = [name for name in CONFIGURATIONS_BY_PREFERENCE if name in configurations]
        if not preferred:
            raise UserError(
                f"The adaptation plan lists {len(configurations)} pre-training configurations "
                f"({', '.join(map(str, configurations))}) and does not say which one made the weights: "
                "leave only that one in 'pretrain_plan.configurations'."
            )
        name = preferred[0]
    if not isinstance(configurations[name], Mapping):
        raise _wrong(f"pretrain_plan.configurations.{name}", configurations[name], "a dictionary")
    return configurations[name]


def _channels(value: Any) -> int:
    key = "pretrain_num_input_channels"
    if value is None:
        raise _missing(key)
    number = _whole_number(value)
    if number is None or number < 1:
        raise _wrong(key, value, "a whole number of at least 1")
    return number


def _sizes(value: Any, key: str) -> tuple[int, ...]:
    numbers = [_whole_number(entry) for entry in value] if _is_list(value) else []
    sizes = tuple(number for number in numbers if number is not None and number > 0)
    if len(sizes) != 3 or len(numbers) != 3:
        raise _wrong(key, value, "three positive whole numbers (voxels)")
    return sizes


def _spacing(value: Any) -> tuple[float, ...] | None:
    if value is None or (_is_list(value) and any(entry is None for entry in value)):
        return None
    spacing = tuple(float(entry) for entry in value if _is_number(entry)) if _is_list(value) else ()
    if len(spacing) != 3 or len(value) != 3 or not all(math.isfinite(entry) and entry > 0 for entry in spacing):
        raise _wrong("spacing", value, "three positive numbers (mm) or null")
    return spacing


def _input_projections(value: Any) -> tuple[str, ...]:
    keys = _texts(value, "keys_to_in_proj") if value is not None else ()
    if not keys:
        raise _missing("keys_to_in_proj")
    return keys


def _text(value: Any, key: str) -> str:
    if value is None:
        raise _missing(key)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(key, value, "a name")
    return value


def _text_or_none(value: Any, key: str) -> str | None:
    return None if value is None or value == "" else _text(value, key)


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not _is_list(value) or not all(isinstance(entry, str) and entry for entry in value):
        raise _wrong(key, value, "a list of names")
    return tuple(value)


def _texts_or_none(value: Any, key: str) -> tuple[str, ...] | None:
    return None if value is None else _texts(value, key)


def _flags_or_none(value: Any, key: str) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return (value,)
    if not _is_list(value) or not all(entry in (True, False) for entry in value):
        raise _wrong(key, value, "a list of true or false")
    return tuple(bool(entry) for entry in value)


def _whole_number(value: Any) -> int | None:
    return int(value) if _is_number(value) and float(value).is_integer() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _missing(key: str, where: str = "") -> UserError:
    return UserError(
        f"The adaptation plan has no '{key}'{' ' if where else ''}{where}: add it, or let "
        "nnUNetv2_convert_pretrained_checkpoint write a checkpoint with a complete plan."
    )


def _wrong(key: str, value: Any, needed: str) -> UserError:
    return UserError(f"The adaptation plan's '{key}' is {_shown(value)} where {needed} is needed: correct it.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
