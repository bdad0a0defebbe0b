"""Which parameters of a network the parts in a recipe mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence

from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.parts import STAGE
from nnunetv2_ext.recipes.scaling import Blocks
from nnunetv2_ext.transfer.matching import (
    DECODER,
    ENCODER,
    HEAD,
    STEM,
    NetworkTensor,
    PartKeys,
    is_below,
    is_input_projection,
    network_tensors,
)

_PARTS_OF_WORD = {"stem": (STEM,), "encoder": (ENCODER,), "decoder": (DECODER, HEAD), "head": (HEAD,)}


def blocks_of(network: nn.Module) -> Blocks:
    """How many stages, or blocks of a Primus, there are on each side; the head is none of them."""
    return Blocks(encoder=len(_encoder_blocks(network)), decoder=len(_decoder_blocks(network)))


def selected_parameters(network: nn.Module, parts: Iterable[str], *, adapted_input: bool = False) -> set[str]:
    """The names, as `named_parameters` has them, of what the parts of a recipe mean.

    Weights that low-rank adapters stand in for never train, and the adapters belong to `lora` and `all` alone.

    Args:
        network: neither compiled nor wrapped.
        parts: words, stages or patterns (`recipes.parts`).
        adapted_input: whether the pre-training had another number of input channels.

    Raises:
        UserError: a part matches nothing.
    """
    keys = PartKeys.of_network(network)
    tensors = [t for t in network_tensors(network, keys) if isinstance(t.tensor, nn.Parameter)]
    own_name = {id(parameter): name for name, parameter in network.named_parameters()}
    selected: set[str] = set()
    for part in parts:
        found = _matching(network, part, tensors, keys, adapted_input=adapted_input)
        if not found and part != "adapted_input_projection":
            raise UserError(f"recipe: {part} matches nothing in this network")
        selected |= {own_name[id(t.tensor)] for t in found}
    return selected


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a low-rank adapter of peft."""
    return ".lora_" in name


def train_only(network: nn.Module, names: Collection[str]) -> int:
    """Let these parameters train and fix all others, which need neither gradient nor graph.

    Returns:
        How many values train.
    """
    count = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            count += parameter.numel()
        else:
            parameter.grad = None
    return count


def _matching(
    network: nn.Module, part: str, tensors: Sequence[NetworkTensor], keys: PartKeys, *, adapted_input: bool
) -> list[NetworkTensor]:
    if part == "lora":
        return [t for t in tensors if is_adapter(t.names[0])]
    free = [t for t in tensors if ".base_layer." not in t.names[0]]
    if part == "all":
        return free
    free = [t for t in free if not is_adapter(t.names[0])]
    if part in _PARTS_OF_WORD:
        return [t for t in free if t.part in _PARTS_OF_WORD[part]]
    if part in ("input_projection", "adapted_input_projection"):
        wanted = adapted_input or part == "input_projection"
        return [t for t in free if wanted and is_input_projection(t, keys)]
    if STAGE.fullmatch(part):
        prefixes = _stage_prefixes(network, part)
        return [t for t in free if any(is_below(name, prefix) for name in t.names for prefix in prefixes)]
    return [t for t in free if any(fnmatch.fnmatchcase(name, part) for name in t.names)]


def _stage_prefixes(network: nn.Module, part: str) -> list[str]:
    match = STAGE.fullmatch(part)
    assert match is not None
    blocks = _encoder_blocks(network) if match["side"] == "stage" else _decoder_blocks(network)
    first = int(match["first"])
    last = first if match["range"] is None else len(blocks) - 1 if match["last"] is None else int(match["last"])
    if not first <= last < len(blocks):
        raise UserError(f"recipe: {part} matches nothing: this network has {match['side']}:0..{len(blocks) - 1}")
    return [prefix for block in blocks[first : last + 1] for prefix in block]


def _encoder_blocks(network: nn.Module) -> list[list[str]]:
    """Prefixes of names for every block of the encoder, from the input side."""
    eva = getattr(network, "eva", None)
    prefix, blocks = ("encoder.stages", network.encoder.stages) if eva is None else ("eva.blocks", eva.blocks)  # type: ignore[union-attr]
    return [[f"{prefix}.{i}"] for i in range(len(blocks))]  # type: ignore[arg-type]


def _decoder_blocks(network: nn.Module) -> list[list[str]]:
    """The same of the decoder, from the output side, the upsampling in front of each among it; without the head."""
    up_projection = getattr(network, "up_projection", None)
    if up_projection is None:
        count = len(network.decoder.stages)  # type: ignore[union-attr,arg-type]
        return [[f"decoder.stages.{i}", f"decoder.transpconvs.{i}"] for i in reversed(range(count))]
    return [[f"up_projection.decode.{i}"] for i in reversed(range(len(up_projection.decode) - 1))]
