"""The words that name parts of a network in a recipe; what they select is found in `training.parts`."""

from __future__ import annotations

import re

from nnunetv2_ext.errors import UserError

PART_WORDS = ("all", "stem", "input_projection", "encoder", "decoder", "head", "adapted_input_projection", "lora")
"""
- `all`: everything
- `stem`: the first layers
- `input_projection`: the layer whose weights depend on the number of input channels
- `adapted_input_projection`: the same if that number was another one in the pre-training, else nothing
- `encoder`: the encoder without its stem
- `decoder`: everything after the encoder, the head among it
- `head`: the layers that make the segmentation
- `lora`: the adapters
"""
STAGE = re.compile(r"(?P<side>stage|decoder_stage):(?P<first>\d+)(?P<range>\.\.(?P<last>\d+)?)?")
"""`stage:2`, `stage:1..3` (both included), `stage:2..`: stages of a U-Net's encoder, or blocks of a Primus, from the
input side; `decoder_stage:` the same of the decoder, from the output side."""


def is_outside_encoder(part: str) -> bool:
    """Whether a part holds nothing of the encoder's stages or blocks, whatever the network."""
    return part.startswith("decoder") or part in (
        "head", "stem", "input_projection", "adapted_input_projection", "lora",
    )  # fmt: skip


def check_part(part: str) -> None:
    """Raises UserError for what is neither a word, nor stages, nor a pattern of parameter names (with `*` or `.`)."""
    if part in PART_WORDS or STAGE.fullmatch(part):
        return
    if part.startswith(("stage", "decoder_stage")) or not re.search(r"[*.]", part):
        raise UserError(
            f"recipe: there is no part {part!r}; known: {', '.join(PART_WORDS)}, stage:2, stage:1..3, stage:2.., "
            "decoder_stage:0.., or a pattern of parameter names such as encoder.stages.*.norm*"
        )
