"""Low-rank adapters (LoRA) in nnU-Net's networks, by the peft library.

A convolution or linear layer with the frozen weight W computes with `W + scaling * B A` (Hu et al. 2021,
arXiv 2106.09685, section 4.1; `scaling = alpha / rank`). For a convolution A has the layer's own kernel and stride
and `rank` output channels, and B is 1 x 1 x 1: still a single convolution with the kernel `B A`, to which it can be
merged without loss.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent, write_json

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import layer as peft_layer

    LoraModule: TypeAlias = peft_layer.Conv3d | peft_layer.Linear

Adaptable: TypeAlias = nn.Conv3d | nn.Linear
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
# peft's names, part of its file format
_ADAPTER = "default"
_FILE_PREFIX = "base_model.model."
_FACTORS = ("lora_A", "lora_B")
# settings of peft that change what the two matrices mean
_VARIANTS = ("use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern")


def check_installed() -> None:
    """Raises UserError with the command that installs peft where it is missing."""
    _peft()


def adaptable_modules(network: nn.Module, parameter_names: Collection[str]) -> list[str]:
    """The convolutions (3D) and linear layers whose weight is among the parameters.

    Left out are those where an adapter would do nothing or could not be merged: a fused `qkv` projection whose
    attention takes its weight and never calls it (timm's EvaAttention and BEiT), subclasses of the two layers (for
    the same reason: torch's multi-head attention has one), and convolutions with groups, dilation or another padding
    than zeros, which peft does not carry over to A.

    Args:
        network: as the plan describes it.
        parameter_names: any of the names that parameters have in `state_dict`; others are passed over.

    Returns:
        Names as in `named_modules()`, each module once, in its order.

    Raises:
        UserError: there is none.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    wanted = {id(parameters[name]) for name in parameter_names if name in parameters}
    names = [name for name, module in _candidates(network) if id(module.weight) in wanted]
    if not names:
        raise UserError(
            "the targets of LoRA hold no convolution or linear layer that it can adapt: name other parts (lora.targets)"
        )
    return names


def inject(network: nn.Module, modules: Sequence[str], *, rank: int, alpha: float, dropout: float) -> None:
    """Put LoRA layers around modules of a network, in place. The output does not change: B starts at zero.

    nnU-Net's networks hold most modules under several names (`conv` and `all_modules.0`, `encoder` and
    `decoder.encoder`); every one of them leads to the LoRA layer afterwards. The wrapped layers' own parameters are
    frozen, A and B are trained; everything else trains or not as before.

    Args:
        network: neither compiled nor wrapped; without LoRA so far.
        modules: what `adaptable_modules` returns, or some of it.
        rank: of B A, 1 or more.
        alpha: the adapters' output is multiplied by `alpha / rank`.
        dropout: of the adapters' input in training, 0 to 1.

    Raises:
        UserError: peft is not installed.
        ValueError: a module cannot be adapted, or the network has LoRA layers already.
    """
    peft = _peft()
    if _lora_layers(network):
        raise ValueError("the network has LoRA layers already")
    candidates = dict(_candidates(network))
    if unknown := [name for name in modules if name not in candidates]:
        raise ValueError(f"no modules that LoRA can adapt: {', '.join(unknown)}")
    wrapped = {id(parameter) for name in modules for parameter in candidates[name].parameters()}
    others = [(p, p.requires_grad) for p in network.parameters() if id(p) not in wrapped]
    # an expression, since peft compares the names in a list with the ends of names
    targets = "|".join(re.escape(name) for name in modules)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    layers = _lora_layers(network)
    _replace_everywhere(network, {id(candidates[name]): layers[name] for name in modules})
    for name, layer in layers.items():
        layer.train(candidates[name].training)
        # peft casts the input to the adapter's dtype: under autocast a copy of the activations in single precision,
        # only to be cast back
        layer.cast_input_dtype_enabled = candidates[name].weight.dtype != layer.lora_A[_ADAPTER].weight.dtype
    for parameter, requires_grad in others:
        parameter.requires_grad_(requires_grad)


def merged_state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the network would have without LoRA layers, the adapters merged into its weights.

    Names (aliases too), their order, shapes and dtypes are those from before `inject`. The network stays as it is.
    Merged weights are new tensors, one for all the names of a module; all others share memory with the network, as
    in `state_dict()`, which is also what a network without LoRA gives.
    """
    weights = {id(layer): _merged_weight(layer) for layer in _lora_layers(network).values()}
    modules = network.named_modules(remove_duplicate=False)
    weight_of = {name: weights[id(module)] for name, module in modules if id(module) in weights}
    merged: dict[str, torch.Tensor] = {}
    for key, tensor in network.state_dict().items():
        name, _, parameter = key.rpartition(".base_layer.")
        if name in weight_of:
            merged[f"{name}.{parameter}"] = weight_of[name] if parameter == "weight" else tensor
        elif key.rpartition(".lora_")[0] not in weight_of:
            merged[key] = tensor
    return merged


def adapter_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """A and B of every LoRA layer, named as in peft's files: `base_model.model.MODULE.lora_A.weight`.

    Each module once, under its name in `named_modules()`; the tensors share memory with the network. A layer with the
    weight `(out, in, *kernel)` contributes `rank * (in * prod(kernel) + out)` numbers.
    """
    return {
        f"{_FILE_PREFIX}{name}.{factor}.weight": getattr(layer, factor)[_ADAPTER].weight.detach()
        for name, layer in _lora_layers(network).items()
        for factor in _FACTORS
    }


def save_adapter(network: nn.Module, folder: Path) -> None:
    """Write the adapters alone, a few MB, as peft does: `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ValueError: the network has no LoRA layers.
    """
    layers = _lora_layers(network)
    if not layers:
        raise ValueError("the network has no LoRA layers")
    config: LoraConfig = copy.copy(vars(network)["peft_config"][_ADAPTER])
    config.target_modules = list(layers)
    # safetensors takes contiguous tensors only, which those of a channels_last network are not
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(network).items()}
    with whole_or_absent(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, config.to_dict())


def load_adapter(network: nn.Module, folder: Path) -> None:
    """Put the saved adapters into a network that holds the weights which they were trained on.

    To be used in place of `PeftModel.from_pretrained`, which replaces a module under one of its names only, so that in
    a U-Net the adapters would do nothing.

    Args:
        network: of the same architecture, neither compiled nor wrapped, without LoRA so far. Left alone on an error.
        folder: with peft's two files, from `save_adapter`.

    Raises:
        UserError: the files are missing or not LoRA, or do not fit the network; peft is not installed.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    _check_fit(tensors, network, config.r, folder)
    inject(network, _module_names(tensors), rank=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout)
    for name, parameter in adapter_state(network).items():  # detached, so that they can be written to
        parameter.copy_(tensors[name.removeprefix(_FILE_PREFIX)])


def trainable_share(network: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are; parameters with several names count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _peft() -> types.ModuleType:
    """Imported where it is needed: it brings transformers along, which takes seconds."""
    try:
        import peft
    except ImportError as error:
        raise UserError(f'LoRA needs the peft library ({error}): pip install "nnunetv2-ext[lora]"') from error
    return peft


def _candidates(network: nn.Module) -> Iterator[tuple[str, Adaptable]]:
    bypassed = {
        id(getattr(module, "qkv", None))
        for module in network.modules()
        if getattr(module, "q_bias", None) is not None and not getattr(module, "qkv_bias_separate", False)
    }
    for name, module in network.named_modules():
        if type(module) is nn.Linear:
            adaptable = id(module) not in bypassed
        elif type(module) is nn.Conv3d:
            adaptable = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        else:
            continue
        if adaptable:
            yield name, module


def _replace_everywhere(network: nn.Module, replacements: Mapping[int, LoraModule]) -> None:
    """Let every name of a wrapped module lead to its LoRA layer, except the layer's own `base_layer`."""
    layers = {id(layer) for layer in replacements.values()}
    for parent in [module for module in network.modules() if id(module) not in layers]:
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])


def _lora_layers(network: nn.Module) -> dict[str, LoraModule]:
    if not hasattr(network, "peft_config"):  # set by peft when it injects, so that this can be told without peft
        return {}
    from peft.tuners.lora import layer as peft_layer

    kinds = (peft_layer.Conv3d, peft_layer.Linear)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def _merged_weight(layer: LoraModule) -> torch.Tensor:
    """`W + scaling * B A` in W's dtype.

    Not peft's `get_delta_weight`: it fails for 3D kernels that start with 1 x 1, and its convolution is rounded to
    TF32 on recent GPUs.
    """
    base = layer.get_base_layer().get_parameter("weight").detach()
    a, b = (getattr(layer, factor)[_ADAPTER].weight.detach().float().flatten(1) for factor in _FACTORS)
    delta = (b @ a).reshape(base.shape) * layer.scaling[_ADAPTER]
    return (base.float() + delta).to(base.dtype)


def _read_config(folder: Path) -> LoraConfig:
    peft, path = _peft(), folder / CONFIG_FILE
    if not path.is_file():  # asked first: peft would look for it on the hub
        raise UserError(f"{folder} holds no LoRA adapter: {CONFIG_FILE} is missing")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the configuration of an adapter ({type(error).__name__}: {error})") from error
    if not isinstance(config, peft.LoraConfig):
        raise UserError(f"{path} describes an adapter of another kind than LoRA ({config.peft_type})")
    if variants := [name for name in _VARIANTS if getattr(config, name, None)]:
        raise UserError(f"{path} sets {', '.join(variants)}: only plain LoRA can be loaded")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no LoRA adapter: {WEIGHTS_FILE} is missing")
    try:
        tensors = {name.removeprefix(_FILE_PREFIX): tensor for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): save the adapter again") from error
    endings = tuple(f".{factor}.weight" for factor in _FACTORS)
    if not tensors or (strange := [name for name in tensors if not name.endswith(endings)]):
        raise UserError(f"{path} holds {strange[0] if tensors else 'nothing'}: only plain LoRA can be loaded")
    return tensors


def _check_fit(tensors: Mapping[str, torch.Tensor], network: nn.Module, rank: int, folder: Path) -> None:
    misfit = f"the adapter in {folder} does not fit this network"
    candidates, names = dict(_candidates(network)), _module_names(tensors)
    if unknown := [name for name in names if name not in candidates]:
        raise UserError(f"{misfit}, which has no convolution or linear layer {unknown[0]} that LoRA can adapt")
    for name in [name for name in candidates if name in names]:  # safetensors has an order of its own
        weight = candidates[name].weight
        expected = ((rank, *weight.shape[1:]), (weight.shape[0], rank, *(1 for _ in weight.shape[2:])))
        for factor, shape in zip(_FACTORS, expected, strict=True):
            tensor = tensors.get(f"{name}.{factor}.weight")
            found = "missing" if tensor is None else _text(tensor.shape)
            if found != _text(shape):
                raise UserError(f"{misfit}: {factor} of {name} is {found}, and should be {_text(shape)}")


def _module_names(tensors: Collection[str]) -> list[str]:
    return sorted({name.rpartition(".lora_")[0] for name in tensors})


def _text(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
