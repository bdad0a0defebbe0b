"""LoRA in nnU-Net's networks: effective under every name, merged without loss, saved as peft does."""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.eva import EvaAttention
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training import lora
from tests.transfer.networks import (
    PATCH,
    anisotropic_unet,
    copies,
    of_encoder,
    plain_unet,
    primus,
    random_values,
    resenc,
)

MakeNetwork = Callable[[], nn.Module]
NETWORKS = [resenc, plain_unet, anisotropic_unet, primus]
every_network = pytest.mark.parametrize("make", NETWORKS)


def image() -> torch.Tensor:
    return torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))


def encoder_modules(network: nn.Module) -> list[str]:
    return lora.adaptable_modules(network, [n for n in network.state_dict() if of_encoder(n)])


def all_modules(network: nn.Module) -> list[str]:
    return lora.adaptable_modules(network, list(network.state_dict()))


def base_network(make: MakeNetwork) -> nn.Module:
    """Always with the same random values, and without dropout or drop path."""
    network = make().eval()
    random_values(network)
    return network


def adapted(make: MakeNetwork, rank: int = 4) -> nn.Module:
    """With LoRA in all modules, B too drawn at random, as after a training."""
    network = base_network(make)
    lora.inject(network, all_modules(network), rank=rank, alpha=3 * rank, dropout=0.0)
    generator = torch.Generator().manual_seed(2)
    for matrix in lora.adapter_state(network).values():
        matrix.copy_(torch.randn(matrix.shape, generator=generator) * 0.05)
    return network


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@every_network
def test_the_output_at_the_start_is_that_of_the_network_bit_by_bit(make: MakeNetwork) -> None:
    network = base_network(make)
    with torch.no_grad():
        before = network(image())
        lora.inject(network, all_modules(network), rank=4, alpha=8.0, dropout=0.0)
        assert torch.equal(network(image()), before)


@every_network
def test_every_adapter_takes_part_in_the_forward_pass(make: MakeNetwork) -> None:
    network = base_network(make)
    if hasattr(network, "decoder"):
        network.decoder.deep_supervision = True  # all heads
    modules = all_modules(network)
    lora.inject(network, modules, rank=2, alpha=4.0, dropout=0.0)
    outputs = network(image())
    sum(((o - 1) ** 2).mean() for o in (outputs if isinstance(outputs, list) else [outputs])).backward()
    parameters = dict(network.named_parameters())
    assert len([n for n in parameters if ".lora_B." in n]) == len(modules)
    for name in modules:
        assert parameters[f"{name}.lora_A.default.weight"].grad is not None, name
        gradient = parameters[f"{name}.lora_B.default.weight"].grad  # that of A is zero as long as B is
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        assert parameters[f"{name}.base_layer.weight"].grad is None, name


@every_network
def test_the_merged_network_computes_what_the_adapted_one_does(make: MakeNetwork) -> None:
    network, plain = adapted(make), base_network(make)
    with torch.no_grad():
        unadapted, expected = plain(image()), network(image())
        plain.load_state_dict(lora.merged_state_dict(network), strict=True)
        merged = plain(image())
    assert distance(unadapted, expected) > 1e-3
    assert distance(merged, expected) < 1e-5


@every_network
def test_merging_gives_the_names_shapes_and_dtypes_from_before_in_their_order(make: MakeNetwork) -> None:
    before = base_network(make).state_dict()
    merged = lora.merged_state_dict(adapted(make))
    assert list(merged) == list(before)
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert not any(tensor.requires_grad for tensor in merged.values())


@every_network
def test_all_names_of_a_merged_tensor_share_its_memory(make: MakeNetwork) -> None:
    before = base_network(make).state_dict()
    merged = lora.merged_state_dict(adapted(make))
    sharing = [{n: t.data_ptr() for n, t in state.items() if t.numel()} for state in (before, merged)]
    groups = [
        {frozenset(n for n, p in pointers.items() if p == pointer) for pointer in pointers.values()}
        for pointers in sharing
    ]
    assert groups[0] == groups[1]


def test_merging_leaves_the_network_alone_and_copies_nothing_but_merged_weights() -> None:
    network = adapted(resenc)
    state, before = network.state_dict(), copies(network.state_dict())
    merged = lora.merged_state_dict(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    own = {tensor.data_ptr() for tensor in state.values()}
    wrapped = [name.removesuffix(".base_layer.weight") for name in state if name.endswith(".base_layer.weight")]
    copied = [name for name, tensor in merged.items() if tensor.data_ptr() not in own]
    assert sorted(copied) == sorted(f"{name}.weight" for name in wrapped)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 1, 1), (1, 1, 3), (1, 3, 3)])
def test_a_merged_kernel_is_the_weight_and_the_scaled_product(kernel: tuple[int, int, int]) -> None:
    network = nn.Sequential(nn.Conv3d(5, 7, kernel, stride=2, padding=1))
    lora.inject(network, ["0"], rank=3, alpha=12.0, dropout=0.0)
    for matrix in lora.adapter_state(network).values():
        nn.init.normal_(matrix)
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    a, b = state["0.lora_A.default.weight"], state["0.lora_B.default.weight"][:, :, 0, 0, 0]
    expected = state["0.base_layer.weight"] + 12 / 3 * np.einsum("or,rizyx->oizyx", b, a)
    np.testing.assert_allclose(lora.merged_state_dict(network)["0.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_network_in_half_precision_is_merged_in_single_precision() -> None:
    network = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    base = network[0].weight.detach().double().numpy()
    lora.inject(network, ["0"], rank=4, alpha=4.0, dropout=0.0)
    a, b = lora.adapter_state(network).values()
    nn.init.normal_(b)
    merged = lora.merged_state_dict(network)["0.weight"]
    exact = torch.from_numpy(base + b.double().numpy() @ a.double().numpy())
    assert merged.dtype == torch.bfloat16
    assert (merged.float() != exact.bfloat16().float()).float().mean() < 0.01  # rounded once, but for near ties


def test_without_lora_merging_is_the_state_dict_and_needs_no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    network = base_network(plain_unet)
    merged = lora.merged_state_dict(network)
    assert list(merged) == list(network.state_dict())
    assert all(tensor.data_ptr() == network.state_dict()[name].data_ptr() for name, tensor in merged.items())


def test_without_peft_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    network = plain_unet()
    with pytest.raises(UserError, match=r"pip install .*nnunetv2-ext\[lora\]"):
        lora.inject(network, all_modules(network), rank=4, alpha=8.0, dropout=0.0)
    with pytest.raises(UserError, match=r"pip install .*nnunetv2-ext\[lora\]"):
        lora.check_installed()


@pytest.mark.parametrize("make", [resenc, primus])
def test_what_trained_or_not_outside_of_the_wrapped_modules_still_does(make: MakeNetwork) -> None:
    network = make()
    for index, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = {id(p): p.requires_grad for p in network.parameters()}
    names = encoder_modules(network)
    wrapped = {id(p) for name in names for p in network.get_submodule(name).parameters()}
    lora.inject(network, names, rank=2, alpha=4.0, dropout=0.0)
    for name, parameter in network.named_parameters():
        if id(parameter) in wrapped:
            assert not parameter.requires_grad, name
        else:
            assert parameter.requires_grad == before.get(id(parameter), True), name
    assert len(wrapped) < len(before)


class TestAdaptableModules:
    """Which modules LoRA is for."""

    @every_network
    def test_are_all_convolutions_and_linear_layers_once(self, make: MakeNetwork) -> None:
        network = make()
        expected = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv3d, nn.Linear))]
        assert all_modules(network) == expected
        assert len({id(network.get_submodule(name)) for name in expected}) == len(expected)

    def test_are_found_by_any_name_of_their_weight(self) -> None:
        network = resenc()
        first = "stem.convs.0"
        aliases = [
            f"{encoder}.{first}.{conv}.weight"
            for encoder, conv in itertools.product(("encoder", "decoder.encoder"), ("conv", "all_modules.0"))
        ]
        assert set(aliases) <= set(network.state_dict())
        for alias in aliases:
            assert lora.adaptable_modules(network, [alias]) == [f"encoder.{first}.conv"]

    def test_are_those_of_the_parameters_alone(self) -> None:
        network = plain_unet()
        names = encoder_modules(network)
        assert len(names) == 6  # 3 stages of 2 convolutions
        assert all(name.startswith("encoder.") for name in names)

    def test_without_any_it_is_said(self) -> None:
        network = primus()
        with pytest.raises(UserError, match=r"no convolution or linear layer .*lora\.targets"):
            lora.adaptable_modules(network, [n for n in network.state_dict() if n.startswith("up_projection.")])

    def test_leave_out_a_projection_that_attention_takes_the_weight_of(self) -> None:
        def attention(**options: bool) -> nn.Module:
            return EvaAttention(8, num_heads=2, norm_layer=nn.LayerNorm, num_prefix_tokens=0, **options)

        assert all_modules(attention()) == ["proj"]
        for called in (attention(qkv_bias_separate=True), attention(qkv_bias=False), attention(qkv_fused=False)):
            names = all_modules(called)
            assert "qkv" in names or {"q_proj", "k_proj", "v_proj"} <= set(names)
            lora.inject(called, names, rank=2, alpha=4.0, dropout=0.0)
            called(torch.randn(1, 4, 8)).sum().backward()
            assert all(p.grad is not None for n, p in called.named_parameters() if "lora_" in n)

    def test_leave_out_what_cannot_be_merged_or_is_not_called(self) -> None:
        network = nn.ModuleDict({
            "groups": nn.Conv3d(4, 4, 3, groups=2),
            "dilation": nn.Conv3d(4, 4, 3, dilation=(1, 2, 2)),
            "padding": nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"),
            "attention": nn.MultiheadAttention(4, 2),
            "transposed": nn.ConvTranspose3d(4, 4, 2, 2),
            "plain": nn.Conv3d(4, 4, 3),
        })  # fmt: skip
        assert all_modules(network) == ["plain"]


def test_only_the_named_modules_are_wrapped_whatever_others_are_called() -> None:
    inner = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    network = nn.ModuleDict({"proj": nn.Linear(4, 4), "xproj": nn.Linear(4, 4), "inner": inner})
    lora.inject(network, ["proj"], rank=2, alpha=4.0, dropout=0.0)
    assert [n for n in network.state_dict() if "lora_A" in n] == ["proj.lora_A.default.weight"]


def test_a_second_injection_and_unknown_modules_are_refused_before_anything_changes() -> None:
    network = plain_unet()
    with pytest.raises(ValueError, match=r"encoder\.nothing"):
        lora.inject(network, [*all_modules(network), "encoder.nothing"], rank=2, alpha=4.0, dropout=0.0)
    assert list(network.state_dict()) == list(plain_unet().state_dict())
    lora.inject(network, all_modules(network), rank=2, alpha=4.0, dropout=0.0)
    with pytest.raises(ValueError, match="already"):
        lora.inject(network, ["encoder.stages.0.0.convs.0.conv.base_layer"], rank=2, alpha=4.0, dropout=0.0)


def test_dropout_acts_in_training_only_also_in_a_network_that_was_not_training() -> None:
    network = base_network(plain_unet)
    lora.inject(network, all_modules(network), rank=2, alpha=4.0, dropout=0.5)
    for matrix in lora.adapter_state(network).values():
        matrix.fill_(0.1)
    with torch.no_grad():
        assert torch.equal(network(image()), network(image()))
        network.train()
        assert not torch.equal(network(image()), network(image()))


def test_under_autocast_adapters_compute_on_the_activations_as_they_are() -> None:
    """A copy in single precision would be kept for the backward pass: more memory than the layer itself needs."""
    network = base_network(plain_unet)
    lora.inject(network, all_modules(network), rank=2, alpha=4.0, dropout=0.0)
    seen: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        if name.endswith("lora_A.default") and not name.startswith("encoder.stages.0.0.convs.0."):  # not the image
            module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].dtype}))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(image())
    assert len(seen) >= 8
    assert set(seen.values()) == {torch.bfloat16}


def test_a_few_steps_move_the_adapters_and_nothing_of_the_wrapped_layers() -> None:
    network = resenc()
    names = encoder_modules(network)
    lora.inject(network, names, rank=2, alpha=4.0, dropout=0.0)
    before = copies(network.state_dict())
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # in the first one B alone moves, since A's gradient is zero
        optimizer.zero_grad()
        network(image()).square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {f"{n}.{f}.default.weight" for n in names for f in ("lora_A", "lora_B")} <= moved
    assert not [name for name in moved if ".base_layer." in name]


def test_trained_and_all_numbers_are_counted_once() -> None:
    shared = nn.Linear(3, 5)
    network = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(5, 2, bias=False)})
    assert lora.trainable_share(network) == (20 + 10, 20 + 10)
    lora.inject(network, ["a"], rank=2, alpha=2.0, dropout=0.0)
    assert lora.trainable_share(network) == (10 + 2 * (3 + 5), 20 + 10 + 2 * (3 + 5))


class TestAdapterFiles:
    """The adapter alone, in peft's format."""

    @every_network
    def test_loaded_onto_the_same_weights_gives_the_same_output(self, make: MakeNetwork, tmp_path: Path) -> None:
        network, other = adapted(make), base_network(make)
        lora.save_adapter(network, tmp_path)
        lora.load_adapter(other, tmp_path)
        with torch.no_grad():
            assert torch.equal(other(image()), network(image()))

    def test_is_read_by_peft_itself(self, tmp_path: Path) -> None:
        """Primus has no modules with two names, so that peft's own way of loading works there."""
        network = adapted(primus)
        lora.save_adapter(network, tmp_path)
        theirs = peft.PeftModel.from_pretrained(base_network(primus), str(tmp_path)).eval()
        with torch.no_grad():
            assert torch.equal(theirs(image()), network(image()))

    def test_carries_the_dropout_to_train_on_with(self, tmp_path: Path) -> None:
        network, other = base_network(plain_unet), base_network(plain_unet)
        modules = all_modules(network)
        lora.inject(network, modules, rank=2, alpha=4.0, dropout=0.25)
        lora.save_adapter(network, tmp_path)
        lora.load_adapter(other, tmp_path)
        assert [m.p for m in other.modules() if isinstance(m, nn.Dropout)] == [0.25] * len(modules)
        assert all(p.requires_grad for n, p in other.named_parameters() if "lora_" in n)

    @every_network
    def test_holds_the_matrices_as_peft_names_them(self, make: MakeNetwork, tmp_path: Path) -> None:
        network = adapted(make)
        lora.save_adapter(network, tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        expected = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
        assert saved.keys() == {f"base_model.model.{name}" for name in expected}
        assert all(torch.equal(saved[f"base_model.model.{name}"], tensor) for name, tensor in expected.items())
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["target_modules"] == all_modules(base_network(make))
        assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 12, "LORA")

    def test_has_the_size_of_the_matrices(self, tmp_path: Path) -> None:
        network = adapted(plain_unet, rank=3)
        lora.save_adapter(network, tmp_path)
        weights = [base_network(plain_unet).get_submodule(n).weight for n in all_modules(base_network(plain_unet))]
        numbers = sum(3 * (w.shape[1] * w[0, 0].numel() + w.shape[0]) for w in weights)
        file = tmp_path / "adapter_model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size == header + 4 * numbers

    def test_of_resenc_l_has_eleven_megabytes_at_rank_8(self) -> None:
        architecture = downstream_architecture("ResEncL", None, (192, 192, 192))
        network = build_on_meta_device(architecture, 1, 2)
        lora.inject(network, encoder_modules(network), rank=8, alpha=16.0, dropout=0.0)
        numbers = 8 * (27 * 1 + 32)  # stem
        channels = 32
        for features, blocks in zip((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6), strict=True):
            numbers += 8 * (27 * channels + features) + 8 * (27 * features + features) * (2 * blocks - 1)
            numbers += 8 * (channels + features) * (channels != features)  # 1 x 1 x 1 beside the first block
            channels = features
        assert sum(matrix.numel() for matrix in lora.adapter_state(network).values()) == numbers
        assert round(4 * numbers / 1e6, 1) == 10.7

    def test_of_a_network_with_the_channels_last_is_saved_too(self, tmp_path: Path) -> None:
        network = adapted(plain_unet)
        network.to(memory_format=torch.channels_last_3d)
        lora.save_adapter(network, tmp_path)
        other = base_network(plain_unet)
        lora.load_adapter(other, tmp_path)
        for name, matrix in lora.adapter_state(network).items():
            assert torch.equal(lora.adapter_state(other)[name], matrix), name

    def test_appears_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def power_cut(_: object, path: str | os.PathLike[str], **__: object) -> None:
            Path(path).write_bytes(b"half")
            raise OSError("no space left on device")

        network = adapted(plain_unet)
        monkeypatch.setattr(lora, "save_file", power_cut)
        with pytest.raises(OSError, match="no space left"):
            lora.save_adapter(network, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_of_a_network_without_adapters_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no LoRA layers"):
            lora.save_adapter(plain_unet(), tmp_path)


class TestAnAdapterThatDoesNotFit:
    """Is refused in one line, and the network is left as it was."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lora.save_adapter(adapted(plain_unet), tmp_path)
        return tmp_path

    def refused(self, folder: Path, match: str, make: MakeNetwork = plain_unet) -> None:
        network = base_network(make)
        before = copies(network.state_dict())
        with pytest.raises(UserError, match=match):
            lora.load_adapter(network, folder)
        assert list(network.state_dict()) == list(before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def configure(self, folder: Path, **settings: object) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    def replace_tensors(self, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    def test_of_other_widths(self, folder: Path) -> None:
        """The first that differs: 4 to 12 features in the second stage, 4 x 4 x 27 for A as before, so B."""
        match = (
            r"lora_B of encoder\.stages\.1\.0\.convs\.0\.conv is 8 x 4 x 1 x 1 x 1, and should be 12 x 4 x 1 x 1 x 1"
        )
        self.refused(folder, match, lambda: plain_unet(features=(4, 12, 16)))

    def test_of_other_channels(self, folder: Path) -> None:
        match = r"lora_A of encoder\.stages\.0\.0\.convs\.0\.conv is 4 x 1 x 3 x 3 x 3, and should be 4 x 2 x 3 x 3 x 3"
        self.refused(folder, match, lambda: plain_unet(channels=2))

    def test_of_another_rank_than_it_says(self, folder: Path) -> None:
        self.configure(folder, r=2)
        self.refused(folder, r"lora_A of encoder\S+ is 4 x 1 x 3 x 3 x 3, and should be 2 x 1 x 3 x 3 x 3")

    def test_of_another_network(self, folder: Path) -> None:
        self.refused(folder, r"has no convolution or linear layer decoder\.seg_layers\.0 ", primus)

    def test_with_a_matrix_missing(self, folder: Path) -> None:
        name = "decoder.seg_layers.0"
        self.replace_tensors(folder, lambda t: t.pop(f"base_model.model.{name}.lora_B.weight"))
        self.refused(folder, rf"lora_B of {name} is missing, and should be 3 x 4 x 1 x 1 x 1")

    def test_with_other_tensors(self, folder: Path) -> None:
        self.replace_tensors(folder, lambda t: t.update({"base_model.model.head.weight": torch.zeros(1)}))
        self.refused(folder, r"holds head\.weight: only plain LoRA")

    def test_with_no_tensors(self, folder: Path) -> None:
        self.replace_tensors(folder, lambda t: t.clear())
        self.refused(folder, "holds nothing")

    @pytest.mark.parametrize("setting", [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"conv": 3}}])
    def test_of_a_variant_of_lora(self, folder: Path, setting: dict[str, object]) -> None:
        self.configure(folder, **setting)
        self.refused(folder, rf"sets {next(iter(setting))}: only plain LoRA")

    def test_of_another_kind(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
        self.refused(folder, "another kind than LoRA")

    @pytest.mark.parametrize("text", ["", "[]", '{"peft_type": "NONE"}', '{"r": 4}'])
    def test_with_a_configuration_that_is_none(self, folder: Path, text: str) -> None:
        (folder / "adapter_config.json").write_text(text)
        self.refused(folder, r"adapter_config\.json (is not the configuration of|describes) an adapter")

    def test_with_broken_weights(self, folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(folder, r"adapter_model\.safetensors cannot be read")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_with_a_file_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        self.refused(folder, f"holds no LoRA adapter: {name} is missing")


def test_gradients_are_the_same_with_gradient_checkpointing() -> None:
    gradients = []
    for checkpointed in (False, True):
        network = adapted(plain_unet)
        if checkpointed:
            for stage in network.encoder.stages:
                stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)
        network(image()).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[1][name], gradient, rtol=1e-5) for name, gradient in gradients[0].items())


def test_a_copy_of_an_adapted_network_is_independent_and_keeps_its_aliases() -> None:
    """As for a moving average of the weights."""
    network = adapted(resenc)
    twin = copy.deepcopy(network)
    for matrix in lora.adapter_state(twin).values():
        matrix.zero_()
    with torch.no_grad():
        assert torch.equal(twin(image()), base_network(resenc)(image()))
        assert distance(network(image()), twin(image())) > 1e-3
