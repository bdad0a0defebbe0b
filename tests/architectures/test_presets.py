"""Presets against stock nnU-Net: what a checkpoint names becomes an entry that nnU-Net builds, or is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import _PRIMUS_CONFIGS
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

import nnunetv2_ext
from nnunetv2_ext.architectures import presets
from nnunetv2_ext.architectures.presets import downstream_architecture, family
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA, PRIMUS_M, RESENC_L, RESENC_L_SPARK, read_manifest

TINY_RESENC = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
TINY_PRIMUS = DATA / "tiny_primus"
PATCH = (32, 32, 32)


def stock_network(architecture: dict[str, Any], channels: int = 1, classes: int = 3) -> torch.nn.Module:
    """Built by nnU-Net itself from the entry as a plans file holds it, without memory for weights."""
    entry = json.loads(json.dumps(architecture))
    with torch.device("meta"):
        return get_network_from_plans(
            entry["network_class_name"], entry["arch_kwargs"], entry["_kw_requires_import"],
            channels, classes, allow_init=False, deep_supervision=False,
        )  # fmt: skip


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def manifest_shapes(manifest: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, (_, shape) in read_manifest(manifest)["network_weights"].items()}


def arguments_of(folder: Path) -> tuple[str, dict[str, Any]]:
    plan = json.loads((folder / "adaptation_plan.json").read_text())["architecture_plans"]
    return plan["arch_class_name"], plan["arch_kwargs"]


def as_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [as_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("name", ["ResEncL", "NoSkipResEncL"])
@pytest.mark.parametrize("manifest", [RESENC_L, RESENC_L_SPARK], ids=["MAE", "SparkMAE"])
def test_resenc_l_has_the_encoder_and_stem_of_real_checkpoints(name: str, manifest: Path) -> None:
    ours = shapes(stock_network(downstream_architecture(name, None, (160, 160, 160))))
    theirs = manifest_shapes(manifest)
    assert {n: s for n, s in ours.items() if n.startswith("encoder.")} == {
        n: s for n, s in theirs.items() if n.startswith("encoder.")
    }


def test_resenc_l_has_about_102_million_parameters() -> None:
    network = stock_network(downstream_architecture("ResEncL", None, (160, 160, 160)))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(102e6, rel=0.005)


def test_primus_m_has_the_encoder_and_stem_of_a_real_checkpoint() -> None:
    def encoder(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {n: s for n, s in names.items() if n.startswith(("eva.", "down_projection."))}

    network = stock_network(downstream_architecture("PrimusM", None, (160, 160, 160)))
    assert encoder(shapes(network)) == encoder(manifest_shapes(PRIMUS_M))


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_primus_sizes_are_those_of_dynamic_network_architectures(size: str) -> None:
    patch = (64, 96, 32)
    network = stock_network(downstream_architecture(f"Primus{size}", None, patch))
    expected = _PRIMUS_CONFIGS[size]
    assert len(network.eva.blocks) == expected["eva_depth"]
    assert {block.attn.num_heads for block in network.eva.blocks} == {expected["eva_numheads"]}
    assert tuple(network.eva.pos_embed.shape) == (1, 8 * 12 * 4, expected["embed_dim"])
    assert tuple(network.down_projection.proj.weight.shape) == (expected["embed_dim"], 1, 8, 8, 8)


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_primus_sizes_have_the_downstream_arguments_of_nnssl(size: str) -> None:
    arguments = downstream_architecture(f"Primus{size}", None, (64, 64, 64))["arch_kwargs"]
    assert (arguments["drop_path_rate"], arguments["scale_attn_inner"], arguments["init_values"]) == (0.2, True, 0.1)


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_explicit_arguments_give_the_tensors_of_the_checkpoint(folder: Path) -> None:
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
    name, arguments = arguments_of(folder)
    ours = shapes(stock_network(downstream_architecture(name, arguments, PATCH)))
    encoder = ("encoder.", "eva.", "down_projection.")
    expected = {n: tuple(t.shape) for n, t in weights.items() if n.startswith(encoder)}
    assert expected
    assert {n: s for n, s in ours.items() if n.startswith(encoder)} == expected


def test_a_plain_convolutional_unet_is_built_with_its_arguments() -> None:
    _, arguments = arguments_of(TINY_RESENC)
    arguments["n_conv_per_stage"] = arguments.pop("n_blocks_per_stage")
    network = stock_network(downstream_architecture("PlainConvUNet", arguments, PATCH))
    assert type(network).__name__ == "PlainConvUNet"
    assert tuple(network.encoder.stages[0][0].convs[0].conv.weight.shape) == (8, 1, 3, 3, 3)
    assert len(network.encoder.stages) == 4


def test_nnssl_spellings_of_depth_and_heads_mean_the_same() -> None:
    name, arguments = arguments_of(TINY_PRIMUS)
    assert "encoder_eva_depth" in arguments
    renamed = {key.removeprefix("encoder_"): value for key, value in arguments.items()}
    entry = downstream_architecture(name, arguments, PATCH)
    assert entry == downstream_architecture(name, renamed, PATCH)
    assert len(stock_network(entry).eva.blocks) == 3


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_whole_floats_stand_for_integers(folder: Path) -> None:
    name, arguments = arguments_of(folder)
    entry = downstream_architecture(name, {k: as_floats(v) for k, v in arguments.items()}, PATCH)
    assert shapes(stock_network(entry)) == shapes(stock_network(downstream_architecture(name, arguments, PATCH)))
    assert json.dumps(entry) == json.dumps(downstream_architecture(name, arguments, PATCH))


def test_a_patch_embedding_given_as_one_number_holds_for_all_axes() -> None:
    name, arguments = arguments_of(TINY_PRIMUS)
    entry = downstream_architecture(name, {**arguments, "patch_embed_size": 8}, PATCH)
    assert shapes(stock_network(entry)) == shapes(stock_network(downstream_architecture(name, arguments, PATCH)))


def test_arguments_of_the_pre_training_task_are_left_out() -> None:
    name, arguments = arguments_of(TINY_PRIMUS)
    task = {"decoder_eva_depth": 2, "decoder_eva_numheads": 4, "patch_drop_rate": 0.75, "num_classes": 1}
    assert downstream_architecture(name, {**arguments, **task}, PATCH) == downstream_architecture(
        name, arguments, PATCH
    )


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_an_entry_is_read_back_from_its_own_class_path(folder: Path) -> None:
    entry = downstream_architecture(*arguments_of(folder), PATCH)
    assert downstream_architecture(entry["network_class_name"], entry["arch_kwargs"], PATCH) == entry


def test_changing_an_entry_does_not_change_the_next_one() -> None:
    first = downstream_architecture("ResEncL", None, (160, 160, 160))
    untouched = copy.deepcopy(first)
    first["arch_kwargs"]["kernel_sizes"][0][0] = 99
    first["arch_kwargs"]["norm_op_kwargs"]["eps"] = 99
    assert downstream_architecture("ResEncL", None, (160, 160, 160)) == untouched


@pytest.mark.parametrize(
    ("name", "nearest"), [("ResEnc-L", "ResEncL"), ("PrimusXL", "PrimusL"), ("PlainConvUnet", "PlainConvUNet")]
)
def test_an_unknown_name_is_refused_and_the_nearest_named(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*did you mean {nearest}"):
        downstream_architecture(name, None, PATCH)


def test_a_name_that_could_be_imported_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydoc.locate", lambda name: pytest.fail(f"{name} was looked up"))
    with pytest.raises(UserError, match=r"os\.system.*not known.*ResEncL"):
        downstream_architecture("os.system", {}, PATCH)


@pytest.mark.parametrize("argument", ["conv_op", "norm_op", "dropout_op", "nonlin", "block"])
def test_a_class_that_is_not_in_the_table_is_refused(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydoc.locate", lambda name: pytest.fail(f"{name} was looked up"))
    name, arguments = arguments_of(TINY_RESENC)
    with pytest.raises(UserError, match=rf"{argument} of {name} \(arch_kwargs\) is 'os\.system'"):
        downstream_architecture(name, {**arguments, argument: "os.system"}, PATCH)


def test_a_class_that_belongs_to_another_argument_is_refused() -> None:
    name, arguments = arguments_of(TINY_RESENC)
    with pytest.raises(UserError, match="conv_op"):
        downstream_architecture(name, {**arguments, "conv_op": "torch.nn.LeakyReLU"}, PATCH)


@pytest.mark.parametrize("argument", sorted(presets.IMPORTABLE))
def test_every_class_in_the_table_can_be_imported_by_nnunet(argument: str) -> None:
    import pydoc

    assert all(isinstance(pydoc.locate(path), type) for path in presets.IMPORTABLE[argument])


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_an_argument_that_the_network_does_not_take_is_refused(folder: Path) -> None:
    name, arguments = arguments_of(folder)
    with pytest.raises(UserError, match=f"{name} takes no argument attention_everywhere"):
        downstream_architecture(name, {**arguments, "attention_everywhere": True}, PATCH)


@pytest.mark.parametrize(
    ("folder", "argument", "reported"),
    [(TINY_RESENC, "strides", "strides"), (TINY_RESENC, "n_blocks_per_stage", "n_blocks_per_stage"),
     (TINY_PRIMUS, "embed_dim", "embed_dim"), (TINY_PRIMUS, "encoder_eva_depth", "eva_depth")],
)  # fmt: skip
def test_a_missing_argument_is_named(folder: Path, argument: str, reported: str) -> None:
    name, arguments = arguments_of(folder)
    del arguments[argument]
    with pytest.raises(UserError, match=f"lack {reported}"):
        downstream_architecture(name, arguments, PATCH)


def test_an_explicit_architecture_without_arguments_is_refused() -> None:
    with pytest.raises(UserError, match="lack n_stages"):
        downstream_architecture("ResidualEncoderUNet", None, PATCH)


@pytest.mark.parametrize(("name", "expected"), [("ResEncL", "cnn"), ("NoSkipResEncL", "cnn"), ("PrimusM", "primus")])
def test_the_family_follows_from_the_class(name: str, expected: str) -> None:
    assert family(downstream_architecture(name, None, (64, 64, 64))) == expected
