"""The recipe: every hyper-parameter of a fine-tuning, in one place."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nnunetv2_ext.errors import UserError

STOCK_GRADIENT_CLIPPING = 12.0
"""nnU-Net's `train_step` clips the gradient's norm at 12, literally; a recipe can clip harder, not less."""


class Optimizer(Enum):
    """Optimizers a recipe can name."""

    sgd = "sgd"
    adamw = "adamw"


@dataclass
class Recipe:
    """How a network is trained.

    Each field's meaning stands in its metadata (`help`), which is also what the documentation and `--help` show.

    Raises:
        UserError: from `validate`, a value makes no sense; the message names the field.
    """

    name: str = field(default="default", metadata={"help": "name of the recipe"})
    num_epochs: int = field(default=1000, metadata={"help": "epochs in all"})
    warmup_epochs: int = field(default=50, metadata={"help": "epochs of linear warm-up, part of num_epochs"})
    num_iterations_per_epoch: int = field(default=250, metadata={"help": "training steps in an epoch"})
    num_val_iterations_per_epoch: int = field(default=50, metadata={"help": "validation steps after each epoch"})
    optimizer: Optimizer = field(default=Optimizer.sgd, metadata={"help": "sgd or adamw"})
    initial_lr: float = field(default=1e-3, metadata={"help": "peak learning rate, at the end of the warm-up"})
    initial_lr_from_scratch: float = field(default=1e-2, metadata={"help": "the peak with --from_scratch"})
    weight_decay: float = field(default=3e-5, metadata={"help": "L2 (sgd) or decoupled (adamw) weight decay"})
    momentum: float = field(default=0.99, metadata={"help": "momentum of sgd"})
    nesterov: bool = field(default=True, metadata={"help": "Nesterov momentum for sgd"})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98], metadata={"help": "betas of adamw"})
    poly_exponent: float = field(default=0.9, metadata={"help": "exponent of the decay after the warm-up"})
    gradient_clipping: float = field(
        default=STOCK_GRADIENT_CLIPPING, metadata={"help": "largest norm of the gradient, at most nnU-Net's own 12"}
    )
    deep_supervision: bool = field(
        default=False, metadata={"help": "loss on lower resolutions of a U-Net's decoder too (not for Primus)"}
    )
    oversample_foreground_percent: float = field(
        default=0.33, metadata={"help": "share of patches that hold foreground for certain (0 to 1)"}
    )
    save_every: int = field(default=50, metadata={"help": "epochs between two checkpoint_latest.pth"})

    def validate(self) -> None:
        """Refuse values that cannot be trained with; the message names the field."""
        at_least_one = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every")
        positive = ("initial_lr", "initial_lr_from_scratch", "poly_exponent", "gradient_clipping")
        shares = ("momentum", "oversample_foreground_percent")
        for key, ok, rule in [
            *((k, getattr(self, k) >= 1, "at least 1") for k in at_least_one),
            *((k, 0 < getattr(self, k) < math.inf, "a positive number") for k in positive),
            *((k, 0 <= getattr(self, k) <= 1, "between 0 and 1") for k in shares),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or a positive number"),
            ("warmup_epochs", 0 <= self.warmup_epochs <= self.num_epochs, f"0 to num_epochs ({self.num_epochs})"),
            ("momentum", self.momentum > 0 or not self.nesterov, "above 0 with nesterov"),
            ("gradient_clipping", self.gradient_clipping <= STOCK_GRADIENT_CLIPPING, "at most 12, nnU-Net's own limit"),
            ("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
        ]:
            if not ok:
                raise UserError(f"recipe: {key} must be {rule}, not {getattr(self, key)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, every field."""
        return {k: v.value if isinstance(v, Enum) else v for k, v in dataclasses.asdict(self).items()}


def recipe_for(
    family: str,
    overrides: Sequence[str] = (),
    *,
    from_scratch: bool = False,
    planned: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a new training: the shipped one for an architecture family, what the plan says, the overrides.

    `num_epochs` alone scales the warm-up in proportion (at least one epoch). With `from_scratch` the peak is the
    recipe's `initial_lr_from_scratch`, unless an override names `initial_lr`.

    Args:
        family: `cnn` or `primus`.
        overrides: as `--set` takes them.
        from_scratch: train without the pre-trained weights.
        planned: the recipe in a plans file, which a user may have edited.

    Raises:
        UserError: an unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    shipped = "primus" if family == "primus" else "default"
    text = files("nnunetv2_ext.recipes").joinpath(f"{shipped}.yaml").read_text(encoding="utf-8")
    recipe = _merged(_merged(Recipe(), OmegaConf.create(text)), OmegaConf.create(_known(dict(planned or {}))))
    given = _parsed(overrides)
    if "num_epochs" in given and "warmup_epochs" not in given and recipe.num_epochs > 0:
        scaled = _merged(recipe, OmegaConf.create({"num_epochs": given["num_epochs"]})).num_epochs
        share = recipe.warmup_epochs / recipe.num_epochs
        given["warmup_epochs"] = min(max(1, round(share * scaled)), max(scaled, 0))
    if from_scratch and "initial_lr" not in given:
        given["initial_lr"] = given.get("initial_lr_from_scratch", recipe.initial_lr_from_scratch)
    recipe = _merged(recipe, OmegaConf.create(given))
    if recipe.deep_supervision and family == "primus":
        raise UserError("recipe: deep_supervision is for U-Nets; Primus has one output")
    recipe.validate()
    return recipe


def recipe_from_dict(stored: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe as it was stored in a plan or a fold, with `key=value` overrides on top.

    Raises:
        UserError: as `recipe_for`.
    """
    recipe = _merged(Recipe(), OmegaConf.create(_known(dict(stored))))
    recipe = _merged(recipe, OmegaConf.create(_parsed(overrides)))
    recipe.validate()
    return recipe


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict with YAML's types."""
    for word in overrides:
        key, _, value = word.partition("=")
        if not key or not value or value == "???":  # OmegaConf's word for a value that is missing
            raise UserError(f"--set takes key=value, not {word!r}")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"--set {' '.join(overrides)}: {_first_line(error)}") from error
    assert isinstance(content, dict)
    return _known({str(k): v for k, v in content.items()})


def _known(content: dict[str, Any]) -> dict[str, Any]:
    """`content`, if every key is a field of a recipe."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or [k for k in known if str(key) in k]
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"recipe: there is no {key}; {hint}")
    return content


def _merged(recipe: Recipe, changes: Any) -> Recipe:
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(recipe), changes))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", "")
        raise UserError(f"recipe: {key}: {_first_line(error)}") from error
    assert isinstance(merged, Recipe)
    return merged


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
