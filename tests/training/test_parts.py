"""What the words of a recipe select, against names, shapes and the order in which data flow through the networks."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Recipe, Side
from nnunetv2_ext.recipes.scaling import Blocks, gradually_unfrozen
from nnunetv2_ext.training.lora import adaptable_modules, inject
from nnunetv2_ext.training.parts import blocks_of, is_adapter, selected_parameters, train_only
from tests.training.architectures import CHANNELS, CLASSES, PATCH, PRIMUSES, U_NETS, network
from tests.transfer.networks import plain_unet, primus, resenc

PREFIXES = {
    "ResEncL": {
        "stem": ("encoder.stem.",),
        "encoder": ("encoder.stages.",),
        "decoder": ("decoder.stages.", "decoder.transpconvs.", "decoder.seg_layers."),
        "head": ("decoder.seg_layers.",),
    },
    "PlainConvUNet": {  # its first stage is the stem
        "stem": ("encoder.stages.0.",),
        "encoder": tuple(f"encoder.stages.{i}." for i in range(1, 5)),
        "decoder": ("decoder.stages.", "decoder.transpconvs.", "decoder.seg_layers."),
        "head": ("decoder.seg_layers.",),
    },
    "Primus": {
        "stem": ("down_projection.",),
        "encoder": ("eva.", "register_tokens"),
        "decoder": ("up_projection.",),
        "head": ("up_projection.decode.2.",),
    },
}
PREFIXES["PrimusS"] = PREFIXES["Primus"]
BLOCKS = {**U_NETS, **PRIMUSES}
every_network = pytest.mark.parametrize("name", BLOCKS)


def names_of(net: nn.Module) -> set[str]:
    return {name for name, _ in net.named_parameters()}


def below(net: nn.Module, *prefixes: str) -> set[str]:
    return {name for name in names_of(net) if name.startswith(prefixes)}


def refusal(net: nn.Module, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        selected_parameters(net, parts)
    assert "\n" not in str(error.value)
    return str(error.value)


# words


@every_network
def test_all_selects_everything_once(name: str) -> None:
    assert selected_parameters(network(name), ["all"]) == names_of(network(name))


@pytest.mark.parametrize(("name", "word"), [(name, word) for name in PREFIXES for word in PREFIXES[name]])
def test_a_word_selects_what_lies_below_its_prefixes(name: str, word: str) -> None:
    expected = below(network(name), *PREFIXES[name][word])
    assert expected
    assert selected_parameters(network(name), [word]) == expected


@every_network
def test_stem_encoder_and_decoder_are_all_and_share_nothing(name: str) -> None:
    parts = [selected_parameters(network(name), [word]) for word in ("stem", "encoder", "decoder")]
    assert set().union(*parts) == names_of(network(name))
    assert sum(map(len, parts)) == len(names_of(network(name)))


@every_network
def test_the_head_is_what_has_a_value_for_each_class(name: str) -> None:
    expected = {n for n, p in network(name).named_parameters() if CLASSES in p.shape}
    assert expected
    assert selected_parameters(network(name), ["head"]) == expected


@every_network
def test_the_input_projection_is_the_weight_with_a_value_for_each_channel(name: str) -> None:
    (expected,) = [n for n, p in network(name).named_parameters() if CHANNELS in p.shape]
    assert selected_parameters(network(name), ["input_projection"]) == {expected}


@every_network
def test_an_adapted_input_projection_is_selected_only_where_it_was_adapted(name: str) -> None:
    net, word = network(name), "adapted_input_projection"
    assert selected_parameters(net, [word], adapted_input=True) == selected_parameters(net, ["input_projection"])
    assert selected_parameters(net, [word]) == set()
    assert selected_parameters(net, ["decoder", word]) == selected_parameters(net, ["decoder"])
    assert selected_parameters(net, ["decoder"], adapted_input=True) == selected_parameters(net, ["decoder"])


@every_network
def test_parts_add_up(name: str) -> None:
    net = network(name)
    both = selected_parameters(net, ["head", "stem"])
    assert both == selected_parameters(net, ["head"]) | selected_parameters(net, ["stem"])


# stages, in the order of the data


@cache
def flow(name: str) -> tuple[dict[str, int], list[str]]:
    """For every parameter whose module runs, how many voxels an axis of its output has; and their order."""
    net = copy.deepcopy(network(name)).eval()
    own_name = {id(parameter): name for name, parameter in net.named_parameters()}
    resolution: dict[str, int] = {}

    def hook(module: nn.Module, _: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        output = output[0] if isinstance(output, tuple) else output
        for parameter in module.parameters(recurse=False):
            resolution[own_name[id(parameter)]] = output.shape[-1]

    for module in net.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(hook)
    net(torch.zeros(1, CHANNELS, PATCH, PATCH, PATCH, device="meta"))
    return resolution, list(resolution)


@every_network
def test_the_number_of_blocks_is_the_architectures(name: str) -> None:
    assert blocks_of(network(name)) == Blocks(*BLOCKS[name])


@pytest.mark.parametrize(("name", "stage"), [(name, i) for name, (n, _) in U_NETS.items() for i in range(n)])
def test_a_stage_of_a_u_nets_encoder_is_what_computes_at_its_resolution(name: str, stage: int) -> None:
    resolution, _ = flow(name)
    found = selected_parameters(network(name), [f"stage:{stage}"])
    expected = {n for n in below(network(name), "encoder.stages.") if resolution[n] == PATCH // 2**stage}
    assert expected
    assert found == expected


@pytest.mark.parametrize(("name", "stage"), [(name, i) for name, (_, n) in U_NETS.items() for i in range(n)])
def test_a_stage_of_a_u_nets_decoder_counts_from_the_full_resolution_and_has_no_head(name: str, stage: int) -> None:
    resolution, _ = flow(name)
    found = selected_parameters(network(name), [f"decoder_stage:{stage}"])
    candidates = below(network(name), "decoder.stages.", "decoder.transpconvs.")
    assert found == {n for n in candidates if resolution[n] == PATCH // 2**stage}
    assert not found & selected_parameters(network(name), ["head"])
    assert any(n.startswith("decoder.transpconvs.") for n in found)


@pytest.mark.parametrize("name", PRIMUSES)
def test_a_stage_of_a_primus_encoder_is_the_block_that_is_run_in_its_turn(name: str) -> None:
    _, order = flow(name)
    turns = list(dict.fromkeys(match[0] for n in order if (match := re.match(r"eva\.blocks\.\d+\.", n))))
    assert len(turns) == PRIMUSES[name][0]
    for turn, prefix in enumerate(turns):
        assert selected_parameters(network(name), [f"stage:{turn}"]) == below(network(name), prefix)


@pytest.mark.parametrize("name", PRIMUSES)
def test_a_stage_of_a_primus_decoder_counts_from_the_output_side_without_the_head(name: str) -> None:
    resolution, _ = flow(name)
    decoder = below(network(name), "up_projection.")
    for stage in range(PRIMUSES[name][1]):
        found = selected_parameters(network(name), [f"decoder_stage:{stage}"])
        assert found == {n for n in decoder if resolution[n] == PATCH // 2 ** (stage + 1)}


@every_network
@pytest.mark.parametrize("side", ["stage", "decoder_stage"])
def test_ranges_hold_both_ends_or_go_on_to_the_last(name: str, side: str) -> None:
    net, count = network(name), BLOCKS[name][side == "decoder_stage"]
    single = [selected_parameters(net, [f"{side}:{i}"]) for i in range(count)]
    assert sum(map(len, single)) == len(set().union(*single))
    for first in range(count):
        assert selected_parameters(net, [f"{side}:{first}.."]) == set().union(*single[first:])
        for last in range(first, count):
            assert selected_parameters(net, [f"{side}:{first}..{last}"]) == set().union(*single[first : last + 1])


@every_network
@pytest.mark.parametrize("part", ["stage:{}", "stage:{}..", "stage:0..{}", "stage:{}..{}", "stage:3..1"])
@pytest.mark.parametrize("side", ["stage", "decoder_stage"])
def test_a_stage_that_a_network_has_not_is_refused_with_those_that_it_has(name: str, part: str, side: str) -> None:
    count = BLOCKS[name][side == "decoder_stage"]
    wanted = part.format(count, count).replace("stage", side)
    message = refusal(network(name), "head", wanted)
    assert message == f"recipe: {wanted} matches nothing: this network has {side}:0..{count - 1}"


@every_network
@pytest.mark.parametrize("mode", [Side.encoder, Side.decoder])
def test_gradual_unfreezing_goes_from_the_head_over_ever_more_parameters_to_the_whole_side(
    name: str, mode: Side
) -> None:
    net, count = network(name), BLOCKS[name][mode is Side.decoder]
    recipe = gradually_unfrozen(Recipe(gradual_unfreezing=GradualUnfreezing(mode, count, 1)), blocks_of(net))
    selected = [selected_parameters(net, phase.parts) for phase in recipe.phases]
    assert len(selected) == count + 1
    assert selected[0] == selected_parameters(net, ["head"])
    assert all(before < after for before, after in itertools.pairwise(selected))
    whole = ["stem", "encoder", "head"] if mode is Side.encoder else ["decoder"]
    assert selected[-1] == selected_parameters(net, whole)


# patterns


@pytest.mark.parametrize(
    ("name", "pattern", "expression"),
    [
        ("ResEncL", "encoder.stages.*.norm*", r"encoder\.stages\..*\.norm.*"),
        ("ResEncL", "*.bias", r".*\.bias"),
        ("ResEncL", "encoder.stages.[01].*", r"encoder\.stages\.[01]\..*"),
        ("ResEncL", "decoder.seg_layers.4.weight", r"decoder\.seg_layers\.4\.weight"),
        ("PlainConvUNet", "decoder.transpconvs.?.weight", r"decoder\.transpconvs\.\d\.weight"),
        ("PrimusS", "eva.blocks.*.attn.*", r"eva\.blocks\.\d+\.attn\..*"),
        ("PrimusS", "eva.pos_embed", r"eva\.pos_embed"),
    ],
)
def test_a_pattern_selects_the_names_that_it_matches_as_a_whole(name: str, pattern: str, expression: str) -> None:
    expected = {n for n in names_of(network(name)) if re.fullmatch(expression, n)}
    assert expected
    assert selected_parameters(network(name), [pattern]) == expected


@pytest.mark.parametrize(
    ("alias", "own"),
    [
        ("encoder.stem.convs.0.all_modules.0.*", "encoder.stem.convs.0.conv.*"),
        ("decoder.encoder.stages.2.*", "encoder.stages.2.*"),
        ("decoder.encoder.stem.*.all_modules.1.weight", "encoder.stem.convs.0.norm.weight"),
    ],
)
def test_a_parameter_is_found_by_any_of_its_names(alias: str, own: str) -> None:
    net = network("ResEncL")
    assert selected_parameters(net, [alias]) == selected_parameters(net, [own])


@every_network
@pytest.mark.parametrize("pattern", ["encoder.nothing.*", "*.Bias", "xyz.*", "norm.*", "eva.block.*"])
def test_a_pattern_that_matches_nothing_is_refused(name: str, pattern: str) -> None:
    assert refusal(network(name), "all", pattern) == f"recipe: {pattern} matches nothing in this network"


@every_network
def test_adapters_are_nothing_in_a_network_without(name: str) -> None:
    assert refusal(network(name), "decoder", "lora") == "recipe: lora matches nothing in this network"


# low-rank adapters


@pytest.fixture(scope="module", params=[resenc, plain_unet, primus])
def adapted(request: pytest.FixtureRequest) -> nn.Module:
    """With adapters in the encoder."""
    pytest.importorskip("peft")
    make: Callable[[], nn.Module] = request.param
    net = make()
    inject(net, adaptable_modules(net, selected_parameters(net, ["encoder"])), rank=2, alpha=4.0, dropout=0.0)
    return net


def test_adapters_belong_to_lora_and_all_alone_and_what_they_stand_in_for_never_trains(adapted: nn.Module) -> None:
    names = names_of(adapted)
    adapters = {n for n in names if ".lora_A." in n or ".lora_B." in n}
    replaced = {n for n in names if ".base_layer." in n}
    assert adapters
    assert len([n for n in replaced if n.endswith(".weight")]) == len(adapters) / 2
    assert selected_parameters(adapted, ["lora"]) == adapters == {n for n in names if is_adapter(n)}
    assert selected_parameters(adapted, ["all"]) == names - replaced
    prefixes = PREFIXES["Primus" if hasattr(adapted, "eva") else "ResEncL"]
    if "encoder.stem.convs.0.conv.weight" not in names and not hasattr(adapted, "eva"):
        prefixes = {**prefixes, "stem": ("encoder.stages.0.",), "encoder": ("encoder.stages.1.", "encoder.stages.2.")}
    for word in ("stem", "encoder", "decoder", "head"):
        expected = {n for n in names if n.startswith(prefixes[word])} - adapters - replaced
        assert selected_parameters(adapted, [word]) == expected
    assert selected_parameters(adapted, ["stage:1"]).isdisjoint(adapters | replaced)
    assert selected_parameters(adapted, ["*weight"]) == {n for n in names if n.endswith("weight")} - adapters - replaced


def test_adapters_do_not_change_how_many_blocks_there_are() -> None:
    pytest.importorskip("peft")
    net = resenc()
    before = blocks_of(net)
    inject(net, adaptable_modules(net, selected_parameters(net, ["all"])), rank=1, alpha=1.0, dropout=0.0)
    assert blocks_of(net) == before == Blocks(4, 3)


# what trains


@pytest.mark.parametrize("make", [resenc, plain_unet, primus])
def test_only_what_is_named_trains_and_what_is_fixed_keeps_no_gradient(make: Callable[[], nn.Module]) -> None:
    net = make()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    names = selected_parameters(net, ["decoder"])
    count = train_only(net, names)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == names
    assert {n for n, p in net.named_parameters() if p.grad is not None} == names
    assert count == sum(p.numel() for n, p in net.named_parameters() if n in names)
    assert train_only(net, names_of(net)) == sum(p.numel() for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("part", ["decoder", "head", "stage:1..", "stem"])
def test_a_fixed_part_costs_no_graph(part: str) -> None:
    net = resenc(features=(4, 8, 16))
    names = selected_parameters(net, [part])
    train_only(net, names)
    skips = net.encoder(torch.zeros(1, 1, 16, 16, 16))
    assert [skip.requires_grad for skip in skips] == {
        "decoder": [False] * 3, "head": [False] * 3, "stage:1..": [False, True, True], "stem": [True] * 3,
    }[part]  # fmt: skip
    net(torch.zeros(1, 1, 16, 16, 16)).sum().backward()
    has_gradient = {n for n, p in net.named_parameters() if p.grad is not None}
    assert has_gradient == names - below(net, "decoder.seg_layers.0.")  # no part in the output
