"""Which tensor of the checkpoint belongs to which tensor of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

STEM, ENCODER, DECODER, HEAD = "stem", "encoder", "decoder", "head"
PARTS = (STEM, ENCODER, DECODER, HEAD)
"""The parts of a network in the order of the data; `head` are the layers that make the segmentation."""

_REGISTERS = "register_tokens"
_DECODER_STAGE = re.compile(r"(?P<list>.*\bdecoder\.(?:stages|transpconvs|seg_layers)\.)(?P<index>\d+)(?P<rest>\..*)")


@dataclass(frozen=True)
class PartKeys:
    """Where the parts of a network lie in its state dict, in nnssl's words.

    Attributes:
        key_to_encoder: prefix of the encoder (`encoder.stages`, `eva`).
        key_to_stem: prefix of the stem (`encoder.stem`, `down_projection`); may lie inside the encoder.
        keys_to_in_proj: modules whose weight depends on the number of input channels.
        key_to_lpe: the learned positional embedding, or None.
    """

    key_to_encoder: str
    key_to_stem: str
    keys_to_in_proj: tuple[str, ...]
    key_to_lpe: str | None = None

    @classmethod
    def of_network(cls, network: nn.Module) -> PartKeys:
        """The keys that the classes of dynamic-network-architectures carry as attributes."""
        return cls(
            key_to_encoder=str(network.key_to_encoder),
            key_to_stem=str(network.key_to_stem),
            keys_to_in_proj=tuple(network.keys_to_in_proj),  # type: ignore[arg-type]
            key_to_lpe=getattr(network, "key_to_lpe", None),
        )


@dataclass(frozen=True)
class NetworkTensor:
    """One tensor of a network with all its names in the state dict, and its part, one of `PARTS`."""

    names: tuple[str, ...]
    tensor: torch.Tensor
    part: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)


def network_tensors(network: nn.Module, keys: PartKeys) -> list[NetworkTensor]:
    """All tensors of a network's state dict, each once, with all its names."""
    by_identity: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(tensor), (tensor, []))[1].append(name)
    head = _key_to_head(network)
    return [NetworkTensor(tuple(names), tensor, _part(names, keys, head)) for tensor, names in by_identity.values()]


class SourceNames:
    """The checkpoint's names, looked up for tensors of the network.

    Args:
        weights: the checkpoint's tensors by name.
        own: the network's keys.
        theirs: the checkpoint's keys.
        tensors: of the network; how many decoder stages it has decides which of the checkpoint's is which.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], own: PartKeys, theirs: PartKeys, tensors: Sequence[NetworkTensor]
    ) -> None:
        self._weights = weights
        self._prefixes = _prefixes(own, theirs)
        self._root = theirs.key_to_encoder[: -len(own.key_to_encoder)] if _ends(theirs, own) else ""
        ours = [f"{self._root}{name}" for target in tensors for name in target.names]
        self._more_stages = _num_decoder_stages(weights) - _num_decoder_stages(ours)

    def of(self, target: NetworkTensor) -> tuple[str, ...]:
        """All names that the tensor has in the checkpoint, best first; empty where it has none.

        A tensor may have several names on both sides. `all_modules` names come first: where they do not share storage
        with the others (SparkMAE), they are what the forward pass used.
        """
        candidates = (
            self._in_encoder(target.names) if target.part in (STEM, ENCODER) else self._in_decoder(target.names)
        )
        found = dict.fromkeys(name for name in candidates if name in self._weights)
        return tuple(sorted(found, key=lambda name: "all_modules" not in name))

    def is_encoder(self, name: str) -> bool:
        """Whether a name of the checkpoint lies in its encoder or stem; the decoder's copy only where it is alone."""
        for _, prefix in self._prefixes:
            own, copy = self._copies(prefix)
            if is_below(name, own) or (is_below(name, copy) and own + name[len(copy) :] not in self._weights):
                return True
        return False

    def _in_encoder(self, names: Sequence[str]) -> Iterable[str]:
        for name in names:
            longest = next(((own, their) for own, their in self._prefixes if is_below(name, own)), None)
            if longest is not None:
                own_prefix, their_prefix = longest
                yield from (prefix + name[len(own_prefix) :] for prefix in self._copies(their_prefix))

    def _copies(self, prefix: str) -> tuple[str, str]:
        """nnU-Net's decoders hold the encoder too; a file without shared storage may have that name alone."""
        return prefix, f"{self._root}decoder.{prefix[len(self._root) :]}"

    def _in_decoder(self, names: Sequence[str]) -> Iterable[str]:
        """Decoder stages count from the bottleneck, but belong together by the resolution that they restore."""
        for name in names:
            stage = _DECODER_STAGE.fullmatch(name)
            if stage is None:
                yield f"{self._root}{name}"
            elif (index := int(stage["index"]) + self._more_stages) >= 0:
                yield f"{self._root}{stage['list']}{index}{stage['rest']}"


def is_input_projection(target: NetworkTensor, own: PartKeys) -> bool:
    """Whether the tensor is a weight that depends on the number of input channels."""
    return any(name == f"{key}.weight" for name in target.names for key in own.keys_to_in_proj)


def is_positional_embedding(target: NetworkTensor, own: PartKeys) -> bool:
    """Whether the tensor is the learned positional embedding."""
    return own.key_to_lpe is not None and own.key_to_lpe in target.names


def unused_names(weights: Mapping[str, torch.Tensor], used: Iterable[str]) -> tuple[str, ...]:
    """Tensors of the checkpoint whose values went nowhere, each once, by its first name."""
    names = set(used)
    taken = {_storage(weights[name]) for name in names}
    unused: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in weights.items():
        if name not in names and _storage(tensor) not in taken:
            unused.setdefault(_storage(tensor), name)
    return tuple(unused.values())


def is_in_decoder_stage(name: str) -> bool:
    """Whether a name lies in a stage of a U-Net's decoder: its convolutions or the upsampling in front of them."""
    stage = _DECODER_STAGE.fullmatch(name)
    return stage is not None and not stage["list"].endswith("seg_layers.")


def is_below(name: str, prefix: str) -> bool:
    """Whether a name is a prefix or lies below it, component by component: `eva` does not hold `evaluator.weight`."""
    return name == prefix or name.startswith(f"{prefix}.")


def _part(names: Sequence[str], keys: PartKeys, head: str) -> str:
    if any(is_below(n, keys.key_to_stem) for n in names):
        return STEM
    if any(is_below(n, keys.key_to_encoder) or n == _REGISTERS for n in names):
        return ENCODER
    return HEAD if any(is_below(n, head) for n in names) else DECODER


def _key_to_head(network: nn.Module) -> str:
    """nnU-Net's segmentation layers, one for each resolution; in a Primus the last layer of its patch decoder."""
    up_projection = getattr(network, "up_projection", None)
    if up_projection is None:
        return "decoder.seg_layers"
    return f"up_projection.decode.{len(up_projection.decode) - 1}"


def _prefixes(own: PartKeys, theirs: PartKeys) -> list[tuple[str, str]]:
    """Pairs (ours, theirs), the longest of ours first: a stem may lie inside the encoder."""
    parent = theirs.key_to_encoder.rpartition(".")[0]
    pairs = [
        (own.key_to_encoder, theirs.key_to_encoder),
        (own.key_to_stem, theirs.key_to_stem),
        (_REGISTERS, f"{parent}.{_REGISTERS}" if parent else _REGISTERS),
    ]
    if own.key_to_lpe and theirs.key_to_lpe:
        pairs.append((own.key_to_lpe, theirs.key_to_lpe))
    return sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)


def _ends(theirs: PartKeys, own: PartKeys) -> bool:
    """Whether the checkpoint's encoder has the network's own name below some root (`module.encoder.stages`)."""
    return theirs.key_to_encoder.endswith(f".{own.key_to_encoder}")


def _num_decoder_stages(names: Iterable[str]) -> int:
    stages = (_DECODER_STAGE.fullmatch(name) for name in names)
    return 1 + max((int(stage["index"]) for stage in stages if stage), default=-1)


def _storage(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
