"""Build a plan's network the way stock nnU-Net does, without memory for its weights."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_ext.errors import UserError


def build_on_meta_device(architecture: Mapping[str, Any], num_input_channels: int, num_classes: int) -> nn.Module:
    """The network of a plan's `architecture` entry with names and shapes but no values, in a fraction of a second.

    Raises:
        UserError: the class refuses the arguments.
    """
    # imported outside the `with`: modules that make tensors at import would be left with empty ones
    pydoc.locate(architecture["network_class_name"])
    try:
        with torch.device("meta"):
            return get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                num_input_channels,
                num_classes,
                allow_init=False,
                deep_supervision=False,
            )
    except (AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        name = architecture["network_class_name"].rsplit(".", 1)[-1]
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be built with the arguments in the plan ({reason})") from error
