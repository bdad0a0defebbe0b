"""What wrappers put in front of names is found, and nothing else is taken for it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunetv2_ext.checkpoints.reading import WEIGHTS, read_checkpoint
from nnunetv2_ext.checkpoints.roots import WRAPPERS, network_root
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.planning.given_architecture import GivenArchitecture, described

ARGUMENTS = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1],
}
ARCHITECTURE = json.dumps({"architecture_plans": {"arch_class_name": "PlainConvUNet", "arch_kwargs": ARGUMENTS}})


def tiny_network() -> nn.Module:
    return PlainConvUNet(
        input_channels=2, num_classes=3, conv_op=nn.Conv3d, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **ARGUMENTS,
    )  # fmt: skip


NAMES = list(tiny_network().state_dict())
CHAINS = st.lists(st.sampled_from(WRAPPERS), max_size=4).map("".join)


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process on its own, over the loopback interface."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        store = tmp_path_factory.mktemp("group") / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


def distributed(network: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network)


class Backbone(nn.Module):
    """As self-supervised methods hold a network, with a part of their own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.projector = nn.Linear(2, 2)
        self.backbone = network


class Model(nn.Module):
    """As Lightning modules hold a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network


class Net(nn.Module):
    """As many scripts hold a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network


WRAPPED: list[tuple[str, tuple[Callable[[nn.Module], nn.Module], ...]]] = [
    ("", ()),
    ("module.", (distributed,)),
    ("_orig_mod.", (torch.compile,)),
    ("module._orig_mod.", (torch.compile, distributed)),
    ("_orig_mod.module.", (distributed, torch.compile)),
    ("module.", (nn.DataParallel,)),
    ("model.", (Model,)),
    ("net.", (Net,)),
    ("backbone.", (Backbone,)),
    ("model.backbone.", (Backbone, Model)),
    ("module.model._orig_mod.net.", (Net, torch.compile, Model, distributed)),
]


@pytest.mark.parametrize(("root", "wrappers"), WRAPPED, ids=[f"{root}{len(w)}" for root, w in WRAPPED])
def test_the_names_of_a_really_wrapped_network_are_found(
    root: str, wrappers: tuple[Callable[[nn.Module], nn.Module], ...], tmp_path: Path
) -> None:
    network = tiny_network()
    wrapped = network
    for wrapper in wrappers:
        wrapped = wrapper(wrapped)
    torch.save(wrapped.state_dict(), tmp_path / "wrapped.pth")

    found = read_checkpoint(resolve_checkpoint_source(str(tmp_path / "wrapped.pth")))
    assert found.kind == WEIGHTS
    assert network_root(found.network_weights, NAMES) == root
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.network_weights[f"{root}{name}"], tensor)


@pytest.mark.parametrize(("root", "wrappers"), WRAPPED, ids=[f"{root}{len(w)}" for root, w in WRAPPED])
def test_a_plan_of_a_wrapped_network_points_at_its_parts(
    root: str, wrappers: tuple[Callable[[nn.Module], nn.Module], ...], tmp_path: Path
) -> None:
    wrapped = tiny_network()
    for wrapper in wrappers:
        wrapped = wrapper(wrapped)
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "wrapped.ckpt")
    (tmp_path / "arch.json").write_text(ARCHITECTURE)
    checkpoint = read_checkpoint(resolve_checkpoint_source(str(tmp_path / "wrapped.ckpt")))
    plan = described(checkpoint, GivenArchitecture(str(tmp_path / "arch.json"), patch_size=(16, 16, 16))).plan
    assert (plan.key_to_encoder, plan.key_to_stem) == (f"{root}encoder.stages", f"{root}encoder.stages.0")
    assert all(f"{key}.weight" in checkpoint.network_weights for key in plan.keys_to_in_proj)
    assert plan.pretrain_num_input_channels == 2


@given(chain=CHAINS)
def test_every_chain_of_wrappers_is_found(chain: str) -> None:
    assert network_root([chain + name for name in NAMES], NAMES) == chain


@given(chain=CHAINS, others=st.lists(st.text("abc._", min_size=1), max_size=20), data=st.data())
@settings(max_examples=50)
def test_other_names_among_them_change_nothing(chain: str, others: list[str], data: st.DataObject) -> None:
    names = data.draw(st.permutations([chain + name for name in NAMES] + others))
    assert network_root(names, NAMES) == chain


@given(chain=CHAINS, kept=st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_part_of_the_network_is_enough(chain: str, kept: set[str]) -> None:
    assert network_root([chain + name for name in kept], NAMES) == chain


@given(names=st.lists(st.tuples(CHAINS, st.sampled_from([*NAMES, "other.weight"])).map("".join), max_size=30))
def test_the_root_fits_at_least_as_many_names_as_any_chain(names: list[str]) -> None:
    found = network_root(names, NAMES)

    def num_fitting(chain: str) -> int:
        return len([name for name in names if name.startswith(chain) and name[len(chain) :] in NAMES])

    chains = ["".join(chain) for length in range(5) for chain in itertools.product(WRAPPERS, repeat=length)]
    assert num_fitting(found) == max(map(num_fitting, chains))


@pytest.mark.parametrize("names", [[], ["a.b", "c"], ["module.", "model.model"], ["modules.encoder", "mode.net"]])
def test_where_nothing_fits_nothing_is_stripped(names: list[str]) -> None:
    assert network_root(names, NAMES) == ""


def test_a_wrapper_is_a_whole_component() -> None:
    names = [f"mymodel.{name}" for name in NAMES]
    assert network_root(names, NAMES) == ""


def test_of_two_copies_of_a_network_the_more_complete_one_counts() -> None:
    half = NAMES[: math.ceil(len(NAMES) / 2)]
    names = [f"model.{name}" for name in half] + [f"backbone.{name}" for name in NAMES]
    assert network_root(names, NAMES) == "backbone."


def test_a_bare_network_wins_over_an_equal_copy_of_it() -> None:
    assert network_root([*(f"model.{name}" for name in NAMES), *NAMES], NAMES) == ""
