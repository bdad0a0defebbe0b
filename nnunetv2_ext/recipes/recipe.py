# ruff: noqa: RUF009  _field is dataclasses.field with the help in its place
"""The recipe: every hyper-parameter of a fine-tuning, as typed configuration with its help and its checks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.parts import check_part
from nnunetv2_ext.recipes.phases import REST, WARMUP, Curve, Phase, phase_lengths

STOCK_GRADIENT_CLIPPING = 12.0
"""nnU-Net's `train_step` clips the gradient's norm at 12."""


class Optimizer(Enum):
    """Optimizers a recipe can name."""

    sgd = "sgd"
    adamw = "adamw"


class Precision(Enum):
    """What the forward pass computes in on CUDA; on the CPU `fp16` is single precision, as in stock nnU-Net."""

    fp16 = "fp16"
    bf16 = "bf16"
    off = "off"


class Loss(Enum):
    """Losses a recipe can name; `default` is nnU-Net's Dice and cross-entropy."""

    default = "default"
    ce = "ce"
    dice = "dice"
    topk = "topk"
    focal = "focal"
    marginal = "marginal"


class Side(Enum):
    """What gradual unfreezing works through."""

    encoder = "encoder"
    decoder = "decoder"


def _field(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class GradualUnfreezing:
    """Phases made from the network's depth (hippocampal segmentation, HSF's fine-tuning guide)."""

    mode: Side = _field(
        Side.decoder, "what is unfrozen: the encoder from the input side, or the decoder from the output"
    )
    depth: int = _field(-1, "how many blocks after the head; -1 for all, 0 for the head alone")
    unfreeze_frequency: int = _field(4, "epochs from one block to the next")


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by the peft library."""

    rank: int = _field(8, "rank of the adapters")
    alpha: float = _field(16.0, "their output is multiplied by alpha / rank")
    dropout: float = _field(0.0, "of their input, in training")
    targets: list[str] = _field(["encoder"], "parts whose convolutions and linear layers get one")


@dataclass
class Recipe:
    """How a network is trained.

    Each field's meaning stands in its metadata (`help`), which is also what the documentation shows.
    """

    name: str = _field("default", "name of the recipe, part of the results folder's name unless it is the default one")
    description: str = _field("", "a line for --list_recipes")
    num_epochs: int = _field(1000, "epochs in all")
    warmup_epochs: int = _field(50, "epochs of the phases that say so, part of num_epochs")
    phases: list[Phase] = field(
        default_factory=lambda: [Phase(epochs=WARMUP, curve=Curve.linear), Phase(epochs=REST, curve=Curve.poly)],
        metadata={"help": "what trains when, and at which rate"},
    )
    gradual_unfreezing: GradualUnfreezing | None = _field(None, "make the phases from the network's depth")
    num_iterations_per_epoch: int = _field(250, "updates in an epoch")
    num_val_iterations_per_epoch: int = _field(50, "validation steps after each epoch")
    optimizer: Optimizer = _field(Optimizer.sgd, "sgd or adamw")
    initial_lr: float = _field(1e-3, "peak learning rate")
    initial_lr_from_scratch: float = _field(1e-2, "the peak with from_scratch")
    lr_batch: int | None = _field(None, "the effective batch that initial_lr is meant for: it is scaled in proportion")
    layer_decay: float | None = _field(None, "factor on the rate from a block to the one before it (0 to 1)")
    weight_decay: float = _field(3e-5, "L2 (sgd) or decoupled (adamw) weight decay")
    momentum: float = _field(0.99, "momentum of sgd")
    nesterov: bool = _field(True, "Nesterov momentum for sgd")
    betas: list[float] = _field([0.9, 0.98], "betas of adamw")
    poly_exponent: float = _field(0.9, "exponent of the poly curve")
    gradient_clipping: float = _field(STOCK_GRADIENT_CLIPPING, "largest norm of the gradient")
    accumulation: int = _field(1, "batches for one update")
    precision: Precision = _field(Precision.fp16, "fp16, bf16 or off: mixed precision")
    channels_last: bool = _field(False, "memory layout with the channels last")
    gradient_checkpointing: bool = _field(False, "compute activations again in the backward pass: less memory, slower")
    ema: float | None = _field(None, "decay of the moving average of the weights that is validated and saved")
    drop_path: float | None = _field(None, "stochastic depth of a Primus; none: as its architecture says")
    deep_supervision: bool = _field(False, "loss on lower resolutions of a U-Net's decoder too (not for Primus)")
    mirroring: bool = _field(True, "mirror images in training and in inference")
    oversample_foreground_percent: float = _field(0.33, "share of patches that hold foreground for certain (0 to 1)")
    loss: Loss = _field(Loss.default, "default (nnU-Net's), ce, dice, topk, focal or marginal")
    lora: Lora | None = _field(None, "train low-rank adapters in place of the weights")
    early_stop: int | None = _field(None, "epochs of the last phase without a new best pseudo Dice before it ends")
    seed: int | None = _field(None, "of the random numbers")
    save_every: int = _field(50, "epochs between two checkpoint_latest.pth")
    from_scratch: bool = _field(False, "do not load the pre-trained weights")

    def validate(self) -> None:
        """Refuse values that cannot be trained with. Raises UserError; the message names the field."""
        for key, ok, rule in self._rules():
            if not ok:
                raise UserError(f"recipe: {key} must be {rule}, not {_value(self, key)}")
        for phase in self.phases:
            for part in phase.parts:
                check_part(part)
        if any(part == "lora" for phase in self.phases for part in phase.parts) and self.lora is None:
            raise UserError("recipe: a phase trains lora, but the recipe has none: -r lora, or --set lora.rank=8")
        phase_lengths(self.phases, self.num_epochs, self.warmup_epochs)

    def _rules(self) -> list[tuple[str, bool, str]]:
        at_least_one = (
            "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every", "accumulation",
            *(k for k in ("lr_batch", "early_stop") if getattr(self, k) is not None),
        )  # fmt: skip
        positive = ("initial_lr", "initial_lr_from_scratch", "poly_exponent", "gradient_clipping")
        shares = ("momentum", "oversample_foreground_percent")
        rules = [
            *((k, getattr(self, k) >= 1, "at least 1") for k in at_least_one),
            *((k, 0 < getattr(self, k) < math.inf, "a positive number") for k in positive),
            *((k, 0 <= getattr(self, k) <= 1, "between 0 and 1") for k in shares),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or a positive number"),
            ("warmup_epochs", self._warmup_fits(), f"0 to num_epochs ({self.num_epochs})"),
            ("momentum", self.momentum > 0 or not self.nesterov, "above 0 with nesterov"),
            ("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
            ("layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, both excluded"),
            ("drop_path", self.drop_path is None or 0 <= self.drop_path < 1, "from 0 to below 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("phases", bool(self.phases), "a list with at least one phase"),
        ]
        if self.gradual_unfreezing is not None:
            rules += [
                ("gradual_unfreezing.depth", self.gradual_unfreezing.depth >= -1, "-1 (all blocks), 0 or more"),
                (
                    "gradual_unfreezing.unfreeze_frequency",
                    self.gradual_unfreezing.unfreeze_frequency >= 1,
                    "at least 1",
                ),
            ]
        if self.lora is not None:
            rules += [
                ("lora.rank", self.lora.rank >= 1, "at least 1"),
                ("lora.alpha", 0 < self.lora.alpha < math.inf, "a positive number"),
                ("lora.dropout", 0 <= self.lora.dropout < 1, "from 0 to below 1"),
                ("lora.targets", bool(self.lora.targets), "a list of at least one part"),
            ]
        for index, phase in enumerate(self.phases):
            key = f"phases.{index}"
            number = phase.epochs if isinstance(phase.epochs, int) else 1
            rules += [
                (f"{key}.epochs", number >= 1, f"at least 1, {REST} or {WARMUP}"),
                (f"{key}.lr_scale", 0 < phase.lr_scale < math.inf, "a positive number"),
                (f"{key}.initial_lr", phase.initial_lr is None or 0 < phase.initial_lr < math.inf, "a positive number"),
                (f"{key}.parts", bool(phase.parts), "a list of at least one part"),
            ]
        return rules

    def _warmup_fits(self) -> bool:
        used = any(phase.epochs == WARMUP for phase in self.phases)
        return 0 <= self.warmup_epochs <= (self.num_epochs if used else math.inf)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, every field."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _value(recipe: Recipe, key: str) -> Any:
    """A field by its dotted name."""
    value: Any = recipe
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value
