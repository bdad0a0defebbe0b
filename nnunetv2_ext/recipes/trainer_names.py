"""The trainers of the nnssl fork and of nnU-Net's development branch, whose classes are recipes here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nnunetv2_ext.errors import UserError

TRAINER = "PretrainedTrainer"
DYNAMIC_TRAINER = "DynamicPretrainedTrainer"


@dataclass(frozen=True)
class NamedRecipe:
    """What a trainer's name means.

    Attributes:
        chosen: the shipped recipe; None for the architecture's default.
        form: the architecture family whose form of the recipe it is; None for the plan's own.
        overrides: as `--set` takes them.
    """

    chosen: str | None = None
    form: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the name says nothing: what else the user asks for decides."""
        return self == NamedRecipe()


def _epochs(num_epochs: int, warmup_epochs: int) -> tuple[str, ...]:
    return f"num_epochs={num_epochs}", f"warmup_epochs={warmup_epochs}"


_WITHOUT_MIRRORING = "mirroring=false"
_LOW_RATE = ("initial_lr=3e-5", "initial_lr_from_scratch=1e-4")
_PRIMUS = NamedRecipe("primus")
_PRIMUS_SHORT = NamedRecipe("primus", overrides=_epochs(150, 15))
_SHORT_SAWTOOTH = ("phases.0.epochs=7", "phases.1.epochs=8")

# Read off the classes of the nnssl fork and of nnU-Net's development branch of July 2026; those without mirroring are
# called as the others with `_nomirroring` behind, but for one. Warm-up and epochs are theirs, not in proportion.
_RECIPES = {
    "": NamedRecipe(),
    "150ep": NamedRecipe("short"),
    "300ep": NamedRecipe(overrides=_epochs(300, 15)),
    "smallerlr": NamedRecipe(overrides=(*_LOW_RATE, "weight_decay=5e-2")),
    "adam__nomirroring": NamedRecipe(form="cnn", overrides=(_WITHOUT_MIRRORING,)),  # SGD in spite of its name
    "adam_150ep": _PRIMUS_SHORT,
    "Primus": _PRIMUS,
    "Primusx": _PRIMUS,
    "Primus_150ep": _PRIMUS_SHORT,
    "Primusx_150ep": _PRIMUS_SHORT,
    "Primusx_30ep": NamedRecipe("primus", overrides=_epochs(30, 3)),
    "Primusx_300ep": NamedRecipe("primus", overrides=_epochs(300, 15)),
    "Primusx_smallerlr": NamedRecipe("primus", overrides=_LOW_RATE),
    "Primusx_150ep_lr3e4": NamedRecipe("primus", overrides=(*_epochs(150, 50), "initial_lr=3e-4")),
    "sawtooth": NamedRecipe("sawtooth", form="cnn"),
    "sawtooth_150ep": NamedRecipe("sawtooth", "cnn", (*_epochs(150, 15), *_SHORT_SAWTOOTH)),
    "Primus_sawtooth": NamedRecipe("sawtooth", form="primus"),
    "Primus_sawtooth_150ep": NamedRecipe("sawtooth", "primus", (*_epochs(150, 50), *_SHORT_SAWTOOTH)),
}
_OF_DYNAMIC = {"adam_150ep": NamedRecipe("primus", overrides=(*_epochs(150, 15), "weight_decay=3e-5"))}
_NO_MIRRORING = re.compile(r"(?:(.*[^_])_)?nomirroring")
_ANY_EPOCHS = re.compile(r"([0-9]+)ep")


def named_recipe(trainer: str) -> NamedRecipe:
    """What `-tr` means.

    Names such as `PretrainedTrainer_15ep`, which users made, are the default recipe with a tenth of warm-up.

    Raises:
        UserError: no trainer of theirs, and none of this pattern.
    """
    family, underscore, suffix = trainer.partition("_")
    if family in (TRAINER, DYNAMIC_TRAINER) and bool(underscore) == bool(suffix):
        known = {**_RECIPES, **_OF_DYNAMIC} if family == DYNAMIC_TRAINER else _RECIPES
        found = _of_suffix(suffix, known)
        if found is None and (match := _NO_MIRRORING.fullmatch(suffix)):
            found = _of_suffix(match[1] or "", known)
            found = found and replace(found, overrides=(*found.overrides, _WITHOUT_MIRRORING))
        if found is not None:
            return found
    raise UserError(
        f"-tr takes {TRAINER}, {DYNAMIC_TRAINER} or one of the nnssl fork's names (PretrainedTrainer_150ep, "
        f"_nomirroring, _sawtooth, _Primus, ...), not {trainer!r}; other settings are recipes: -r and --set"
    )


def _of_suffix(suffix: str, known: Mapping[str, NamedRecipe]) -> NamedRecipe | None:
    if match := _ANY_EPOCHS.fullmatch(suffix) if suffix not in known else None:
        epochs = int(match[1])
        return NamedRecipe(overrides=_epochs(epochs, max(1, epochs // 10))) if epochs else None
    return known.get(suffix)
