"""PrimusForSegmentation is Primus in every tensor, and can be called and found as nnU-Net's plans do it."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

import nnunetv2_ext.architectures
from nnunetv2_ext.architectures.presets import PRIMUS_CLASS
from nnunetv2_ext.architectures.primus import PrimusForSegmentation

ARGUMENTS = {
    "embed_dim": 96, "patch_embed_size": [8, 8, 8], "eva_depth": 2, "eva_numheads": 4, "input_shape": [16, 24, 32],
    "init_values": 0.1, "scale_attn_inner": True, "num_register_tokens": 2,
}  # fmt: skip


def test_has_the_names_and_shapes_of_primus() -> None:
    ours = PrimusForSegmentation(input_channels=2, num_classes=3, deep_supervision=False, **ARGUMENTS)
    stock = Primus(input_channels=2, num_classes=3, **ARGUMENTS)
    assert [(n, t.shape) for n, t in ours.state_dict().items()] == [(n, t.shape) for n, t in stock.state_dict().items()]


def test_computes_what_primus_computes() -> None:
    ours = PrimusForSegmentation(input_channels=2, num_classes=3, deep_supervision=False, **ARGUMENTS).eval()
    stock = Primus(input_channels=2, num_classes=3, **ARGUMENTS).eval()
    stock.load_state_dict(ours.state_dict())
    image = torch.randn(1, 2, 16, 24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), stock(image))


def test_is_found_under_the_name_that_plans_use() -> None:
    assert pydoc.locate(PRIMUS_CLASS) is PrimusForSegmentation


def test_no_class_in_dynamic_network_architectures_ends_in_the_same_name() -> None:
    from dynamic_network_architectures.architectures import primus

    assert not hasattr(primus, PRIMUS_CLASS.rsplit(".", 1)[-1])


def test_refuses_deep_supervision() -> None:
    with pytest.raises(ValueError, match="no deep supervision"):
        PrimusForSegmentation(input_channels=1, num_classes=2, deep_supervision=True, **ARGUMENTS)


def test_other_names_of_the_package_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="SegFormer"):
        _ = nnunetv2_ext.architectures.SegFormer


def test_the_package_does_not_import_torch_before_primus_is_asked_for() -> None:
    code = "import sys, nnunetv2_ext.architectures.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
