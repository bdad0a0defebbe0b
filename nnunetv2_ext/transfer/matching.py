"""Which tensor of the checkpoint belongs to which tensor of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


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
    """One tensor of a network with all its names in the state dict; `part` is `stem`, `encoder` or `decoder`."""

    names: tuple[str, ...]
    tensor: torch.Tensor
    part: str


def network_tensors(network: nn.Module, keys: PartKeys) -> list[NetworkTensor]:
    """All tensors of a network's state dict, each once, with all its names."""
    by_identity: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(tensor), (tensor, []))[1].append(name)
    return [NetworkTensor(tuple(names), tensor, _part(names, keys)) for tensor, names in by_identity.values()]


def source_name(
    target: NetworkTensor, weights: Mapping[str, torch.Tensor], own: PartKeys, theirs: PartKeys
) -> str | None:
    """The checkpoint's name for an encoder or stem tensor of the network; None where it has none.

    A tensor may have several names on both sides. `all_modules` names win: where they do not share storage with the
    others (SparkMAE), they are what the forward pass used.
    """
    for name in sorted(target.names, key=lambda n: "all_modules" not in n):
        for own_prefix, their_prefix in _prefixes(own, theirs):
            if _below(name, own_prefix):
                candidate = their_prefix + name[len(own_prefix) :]
                if candidate in weights:
                    return candidate
    return None


def is_input_projection(target: NetworkTensor, own: PartKeys) -> bool:
    """Whether the tensor is a weight that depends on the number of input channels."""
    return any(name == f"{key}.weight" for name in target.names for key in own.keys_to_in_proj)


def is_positional_embedding(target: NetworkTensor, own: PartKeys) -> bool:
    """Whether the tensor is the learned positional embedding."""
    return own.key_to_lpe is not None and own.key_to_lpe in target.names


def unused_names(weights: Mapping[str, torch.Tensor], used: Sequence[str]) -> tuple[str, ...]:
    """Names in the checkpoint whose values went nowhere; a second name of a tensor that was used counts as used."""
    taken = {_storage(weights[name]) for name in used}
    return tuple(name for name, tensor in weights.items() if _storage(tensor) not in taken)


def _part(names: Sequence[str], keys: PartKeys) -> str:
    if any(_below(n, keys.key_to_stem) for n in names):
        return "stem"
    return "encoder" if any(_below(n, keys.key_to_encoder) for n in names) else "decoder"


def _prefixes(own: PartKeys, theirs: PartKeys) -> list[tuple[str, str]]:
    """Pairs (ours, theirs), the longest of ours first: a stem may lie inside the encoder."""
    pairs = [(own.key_to_encoder, theirs.key_to_encoder), (own.key_to_stem, theirs.key_to_stem)]
    if own.key_to_lpe and theirs.key_to_lpe:
        pairs.append((own.key_to_lpe, theirs.key_to_lpe))
    return sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _storage(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
