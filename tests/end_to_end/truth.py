"""What should come out, computed with numpy and stock classes alone: nothing of this package is called here."""

from __future__ import annotations

import json
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

NO_CHANGE = ("--set", "initial_lr=1e-30", "weight_decay=0")
"""A recipe whose steps are too small for float32: the final weights are those that the training started from."""

Arrays = Mapping[str, np.ndarray]

_DECODER_STAGE = re.compile(r"(decoder\.(?:stages|transpconvs|seg_layers)\.)(\d+)(\..*)")


def weights_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that this session's tests have made."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    return {name: tensor.numpy() for name, tensor in content["network_weights"].items()}


def num_stages(weights: Arrays) -> int:
    """Resolutions of the encoder of one of nnU-Net's U-Nets."""
    stages = {m[1] for name in weights if (m := re.match(r"encoder\.stages\.(\d+)\.", name))}
    return len(stages)


def name_in_source(name: str, shift: int) -> str:
    """Decoder stages count from the bottleneck: those that restore the same resolution belong together."""
    match = _DECODER_STAGE.fullmatch(name)
    return name if match is None else f"{match[1]}{int(match[2]) + shift}{match[3]}"


def by_the_rules(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels 3 to 1: the mean along the axis. Input channels M to N: the sum over channels kept, shared equally."""
    result = value.astype(np.float64)
    for axis in range(2, len(shape)):
        if result.shape[axis] != shape[axis]:
            assert shape[axis] == 1, "these networks need no other rule"
            result = result.mean(axis=axis, keepdims=True)
    if result.shape[1:2] != shape[1:2]:
        result = np.repeat(result.sum(axis=1, keepdims=True), shape[1], axis=1) / shape[1]
    assert result.shape == shape
    return result


def unchanged(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for what a learning rate of 1e-30 adds to zeros."""
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-20)


def read(path: Path) -> np.ndarray:
    """Voxels (z, y, x)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def network_of(model_folder: Path, num_channels: int, num_classes: int) -> nn.Module:
    """The network that a model folder's plans.json describes, built by its class, with fold 0's final weights."""
    plan = json.loads((model_folder / "plans.json").read_text())
    architecture = plan["configurations"]["3d_fullres"]["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        arguments[key] = arguments[key] and pydoc.locate(arguments[key])
    network = pydoc.locate(architecture["network_class_name"])(
        input_channels=num_channels, num_classes=num_classes, deep_supervision=False, **arguments
    )
    content = torch.load(model_folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    network.load_state_dict(content["network_weights"])
    return network.eval()


def logits_in_one_window(network: nn.Module, images: list[np.ndarray]) -> np.ndarray:
    """(classes, z, y, x) of a case as large as the patch and at the plan's spacing: one pass, z-scored per channel."""
    normalised = [(image - image.mean()) / image.std() for image in (i.astype(np.float32) for i in images)]
    with torch.no_grad():
        return network(torch.from_numpy(np.stack(normalised)[None]))[0].numpy()


def assert_segments(segmentation: np.ndarray, logits: np.ndarray) -> None:
    """Each voxel has the class with the largest logit.

    nnU-Net keeps logits in half precision, so near ties may turn, and weighs them by a Gaussian, which leaves next to
    none of that precision at the border: the inner half of each axis is compared.
    """
    inner = tuple(slice(n // 4, n - n // 4) for n in segmentation.shape)
    segmentation, logits = segmentation[inner], logits[(slice(None), *inner)]
    second, first = np.sort(logits, axis=0)[-2:]
    certain = first - second > 2**-8 * np.abs(logits).max()
    assert certain.mean() > 0.9
    assert len(np.unique(logits.argmax(0)[certain])) > 1, "a network that sees one class alone proves nothing"
    assert np.array_equal(segmentation[certain], logits.argmax(0)[certain])
