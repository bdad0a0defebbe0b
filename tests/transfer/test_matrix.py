"""Every kind of source into every kind of network with several numbers of channels: a refusal that says that there is
nothing in common, or a network whose every tensor is what the rules in numpy give, and that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.report import TransferReport
from tests.transfer import references
from tests.transfer.networks import (
    PLAIN_KEYS,
    PRIMUS_KEYS,
    RESENC_KEYS,
    anisotropic_unet,
    copies,
    of_encoder,
    plain_unet,
    primus,
    random_values,
    records_by_name,
    resenc,
    transfer_into,
)

Maker = Callable[..., nn.Module]
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A network with the size of the patch and the tokens that it is for; `make` takes `channels` and `classes`."""

    make: Maker
    keys: PartKeys
    patch: Sequence[int] = (32, 32, 32)
    token: Sequence[int] = (8, 8, 8)


def _primus(patch: Sequence[int], token: Sequence[int], **more: int) -> Kind:
    return Kind(partial(primus, patch_size=patch, token_size=token, **more), PRIMUS_KEYS, patch, token)


FIVES = [(5, 5, 5), (3, 3, 3), (3, 3, 3)]
SOURCES = {
    "plain": Kind(partial(plain_unet, channels=2), PLAIN_KEYS),
    "plain, thick slices": Kind(anisotropic_unet, PLAIN_KEYS),
    "plain, large kernels": Kind(partial(plain_unet, channels=4, kernels=FIVES), PLAIN_KEYS),
    "resenc": Kind(resenc, RESENC_KEYS),
    "primus": _primus((32, 32, 32), (8, 8, 8), channels=2),
    "primus, thick slices": _primus((8, 32, 32), (2, 8, 8)),
}
TARGETS = {
    "plain": Kind(plain_unet, PLAIN_KEYS),
    "plain, deeper": Kind(partial(plain_unet, features=(4, 8, 16, 16), convs=3), PLAIN_KEYS),
    "plain, shallower": Kind(partial(plain_unet, features=(4, 8)), PLAIN_KEYS),
    "plain, wider below": Kind(partial(plain_unet, features=(4, 8, 24)), PLAIN_KEYS),
    "plain, thick slices": Kind(anisotropic_unet, PLAIN_KEYS),
    "resenc": Kind(resenc, RESENC_KEYS),
    "resenc, deeper": Kind(partial(resenc, features=(8, 16, 32, 64, 64), blocks=(1, 3, 1, 2, 2)), RESENC_KEYS),
    "primus, larger patch": _primus((16, 48, 32), (8, 8, 8), depth=4),
    "primus, thick slices": _primus((8, 32, 48), (2, 8, 8)),
}
CASES = [(s, t, c) for s in SOURCES for t in TARGETS for c in (1, 2, 4)]


def families(source: str, target: str) -> bool:
    """Whether two networks are of one family: only then have their encoders anything in common."""
    return source.split(",")[0] == target.split(",")[0]


def expected_values(
    source: Kind, weights: Mapping[str, torch.Tensor], target: Kind, before: Mapping[str, torch.Tensor]
) -> tuple[Values, set[str]]:
    """What every tensor of the target is to be, and the names of those that come from the source, by numpy alone."""
    theirs = {name: tensor.numpy() for name, tensor in weights.items()}
    projections = tuple(target.keys.keys_to_in_proj)
    expected, arriving = {}, set()
    for name, tensor in before.items():
        expected[name] = tensor.numpy()
        alias = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        alias = alias.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")
        found = references.source_name(alias, theirs, list(before))
        if found is None:
            continue
        if name == target.keys.key_to_lpe:
            grids = [[p // t for p, t in zip(kind.patch, kind.token, strict=True)] for kind in (source, target)]
            value = references.position(theirs[found], *grids)
        else:
            projects = alias in {f"{p}.weight" for p in projections}
            value = references.weight(alias, theirs[found], tuple(tensor.shape), projects, None)
        if value is not None:
            expected[name] = value
            arriving.add(name)
    return expected, arriving


@pytest.mark.parametrize(("source", "target", "channels"), CASES)
def test_every_source_into_every_network(source: str, target: str, channels: int) -> None:
    theirs, ours = SOURCES[source], TARGETS[target]
    weights = random_values(theirs.make())
    network = ours.make(channels=channels)
    before = copies(network.state_dict())

    def bring(**request: object) -> TransferReport:
        return transfer_into(
            network, weights, theirs.keys, pretrain_patch_size=theirs.patch, patch_size=ours.patch, **request
        )

    if not families(source, target):
        with pytest.raises(UserError, match="have nothing in common"):
            bring(min_coverage=0.0, load="encoder+decoder")
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        return

    report = bring(min_coverage=0.0, load="encoder+decoder")
    records = records_by_name(report)
    heads = {name for name, record in records.items() if record.part == "head"}
    expected, arriving = expected_values(theirs, weights, ours, before)
    arriving -= heads
    assert any(of_encoder(name) for name in arriving)
    for name, tensor in network.state_dict().items():
        wanted = before[name].numpy() if name in heads else expected[name]
        np.testing.assert_allclose(tensor.numpy(), wanted, atol=2e-6, err_msg=name)
        assert (records[name].action != "fresh") == (name in arriving), name
        if records[name].action == "copied":
            assert any(torch.equal(tensor, weights[alias]) for alias in weights if alias == records[name].source), name
    assert report.coverage == pytest.approx(share(network, arriving))
    output = network(torch.randn(1, channels, *ours.patch, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (1, 3, *ours.patch)
    assert output.isfinite().all()


def share(network: nn.Module, arriving: set[str]) -> float:
    """The parameters of the encoder and stem that arrive, each parameter once."""
    encoder = {name: p.numel() for name, p in network.named_parameters() if of_encoder(name)}
    return sum(count for name, count in encoder.items() if name in arriving) / sum(encoder.values())
