"""From names, files and changes to a recipe: what counts before what, and every way in which a file can be wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import Phase
from nnunetv2_ext.recipes.reading import is_file
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Lora, Recipe, Side
from nnunetv2_ext.recipes.resolving import as_yaml, recipe_for, recipe_from_dict, shipped, shipped_names
from nnunetv2_ext.recipes.scaling import Blocks
from nnunetv2_ext.training.schedule import recipe_spans
from tests.recipes.refused import refused

WriteFile = Callable[[str], str]
CHANGES = {  # one recipe each, with what makes it differ from its file
    "default": ["num_epochs=30", "initial_lr=2e-4", "betas=[0.8, 0.95]", "seed=7"],
    "primus": ["drop_path=0.1", "ema=0.99"],
    "short": ["warmup_epochs=3", "mirroring=false"],
    "sawtooth": ["num_epochs=3"],
    "gradual_unfreezing": ["gradual_unfreezing.depth=2", "gradual_unfreezing.mode=encoder", "num_epochs=7"],
    "layer_decay": ["accumulation=2", "phases.1.curve=constant"],
    "lora": ["lora.rank=2", "lora.targets=[encoder, 'stage:0..']"],
    "frozen_encoder": ["early_stop=5", "loss=focal"],
    "from_scratch": ["initial_lr=5e-3", "precision=bf16"],
}


@pytest.fixture
def written(tmp_path: Path) -> WriteFile:
    """Writes `mine.yaml` and returns its path, as `-r` takes it."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def lengths(recipe: Recipe) -> list[int]:
    return [span.end - span.start for span in recipe_spans(recipe)]


# names and what is laid over what


@pytest.mark.parametrize(("family", "name"), [("cnn", "default"), ("primus", "primus")])
def test_without_a_choice_the_architectures_own_recipe_counts(family: str, name: str) -> None:
    assert recipe_for(family) == recipe_for(family, chosen=name)
    assert recipe_for(family).name == name


@pytest.mark.parametrize("name", ["defualt", "saw_tooth", "Default"])
def test_an_unknown_name_names_the_nearest(name: str) -> None:
    nearest = {"saw_tooth": "sawtooth"}.get(name, "default")
    assert refused(chosen=name) == f"there is no recipe {name!r} (-r); did you mean {nearest}?"


@pytest.mark.parametrize("name", ["zzz", "", "x.json", "12"])
def test_a_name_like_no_other_lists_those_that_exist(name: str) -> None:
    message = refused(chosen=name)
    assert message.startswith(f"there is no recipe {name!r} (-r); there are default, primus, ")
    assert message.endswith("or give a .yaml file")


@pytest.mark.parametrize("name", ["__init__", "recipe", "phases"])
def test_modules_beside_the_files_are_no_recipes(name: str) -> None:
    assert name not in shipped_names()


def test_a_shipped_recipe_that_is_changed_stays_as_it_is_for_the_next_one() -> None:
    shipped("sawtooth", "cnn").phases[0].parts.append("stem")
    assert shipped("sawtooth", "cnn").phases[0].parts == ["decoder", "adapted_input_projection"]


@pytest.mark.parametrize("chosen", ["a.yaml", "a.yml", "./a", "folder/a.txt", "/a"])
def test_what_ends_as_yaml_or_has_a_folder_is_a_file(chosen: str) -> None:
    assert is_file(chosen)


@pytest.mark.parametrize("chosen", ["default", "layer_decay", "a.json"])
def test_anything_else_is_a_name(chosen: str) -> None:
    assert not is_file(chosen)


# overrides


def test_a_single_phase_can_be_changed_and_keeps_the_rest_of_itself() -> None:
    changes = [
        "phases.0.epochs=10",
        "phases.1.initial_lr=1e-4",
        "phases.2.parts=[encoder, head]",
        "phases.3.curve=cosine",
    ]
    plain, changed = recipe_for("cnn", chosen="sawtooth"), recipe_for("cnn", changes, chosen="sawtooth")
    expected = [
        dataclasses.replace(plain.phases[0], epochs=10),
        dataclasses.replace(plain.phases[1], initial_lr=1e-4),
        dataclasses.replace(plain.phases[2], parts=["encoder", "head"]),
        dataclasses.replace(plain.phases[3], curve=type(plain.phases[3].curve).cosine),
    ]
    assert changed == dataclasses.replace(plain, phases=expected)


def test_a_single_phase_of_the_gradual_unfreezing_can_be_changed() -> None:
    recipe = recipe_for("cnn", ["phases.2.lr_scale=0.5", "phases.0.epochs=6"], chosen="gradual_unfreezing")
    assert lengths(recipe) == [6, 4, 4, 2]
    assert [phase.lr_scale for phase in recipe.phases] == [1, 1, 0.5, 1]


@pytest.mark.parametrize("index", ["4", "40", "-1", "x", "0x0", "²"])
def test_a_phase_that_is_not_there_is_refused(index: str) -> None:
    message = refused(overrides=[f"phases.{index}.epochs=3"], chosen="sawtooth")
    assert message == f"recipe: there is no phases.{index}; the recipe has 0 to 3"


def test_a_single_phase_with_too_many_epochs_is_refused() -> None:
    message = refused(overrides=["phases.0.epochs=980"], chosen="sawtooth")
    assert message == "recipe: phases of 980 + 25 + 50 = 1055 epochs are more than num_epochs (1000)"


def test_phases_of_ones_own_can_be_set_whole() -> None:
    recipe = recipe_for("cnn", ["phases=[{parts: [head], epochs: 2, curve: constant}, {epochs: 5}]"])
    assert recipe.num_epochs == 7
    assert [(p.parts, p.epochs, p.curve.value) for p in recipe.phases] == [
        (["head"], 2, "constant"),
        (["all"], 5, "poly"),
    ]


@pytest.mark.parametrize(("epochs", "words"), [(6, "more"), (8, "fewer")])
def test_phases_of_ones_own_are_not_scaled(epochs: int, words: str) -> None:
    own = ["phases=[{parts: [head], epochs: 2}, {epochs: 5}]", f"num_epochs={epochs}"]
    assert f"phases of 2 + 5 = 7 epochs are {words} than num_epochs ({epochs})" in refused(overrides=own)


def test_phases_of_ones_own_stay_beside_another_num_epochs_and_instead_of_those_made_from_the_depth() -> None:
    own = "phases=[{epochs: warmup_epochs, curve: linear}, {epochs: rest}]"
    assert lengths(recipe_for("cnn", [own, "num_epochs=100"])) == [50, 50]
    recipe = recipe_for("cnn", ["phases=[{parts: [head], epochs: 3}]"], chosen="gradual_unfreezing")
    assert (recipe.num_epochs, recipe.phases) == (3, [Phase(parts=["head"], epochs=3)])


def test_a_value_may_refer_to_another() -> None:
    recipe = recipe_for("cnn", ["initial_lr_from_scratch=${initial_lr}", "num_epochs=6", "warmup_epochs=${num_epochs}"])
    assert (recipe.initial_lr_from_scratch, recipe.warmup_epochs) == (1e-3, 6)


@pytest.mark.parametrize(
    "words", [["initial_lr=${nothing}"], ["num_epochs=${num_epochs}"], ["initial_lr=${oc.env:NO_X}"]]
)
def test_a_reference_to_nothing_is_refused_by_the_fields_name(words: list[str]) -> None:
    assert refused(overrides=words).startswith(f"recipe: {words[0].split('=')[0]}: ")


def test_a_lever_of_its_own_is_switched_on_and_off_by_name() -> None:
    assert recipe_for("cnn", ["lora.rank=4"]).lora == Lora(rank=4)
    assert recipe_for("cnn", ["lora=null", "phases=[{parts: [decoder]}]"], chosen="lora").lora is None
    assert recipe_for("cnn", ["gradual_unfreezing=null"], chosen="gradual_unfreezing").num_epochs == 16


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("cnn", ["drop_path=0.1"], "recipe: drop_path is for Primus, and this plan's network is a U-Net: --set "
         "drop_path=0"),
        ("primus", ["drop_path=1"], "recipe: drop_path must be from 0 to below 1, not 1.0"),
        ("primus", ["drop_path=-0.1"], "recipe: drop_path must be from 0 to below 1, not -0.1"),
        ("cnn", ["accumulation=0"], "recipe: accumulation must be at least 1, not 0"),
        ("cnn", ["accumulation=-4"], "recipe: accumulation must be at least 1, not -4"),
        ("cnn", ["ema=0"], "recipe: ema must be between 0 and 1, both excluded, not 0.0"),
        ("cnn", ["ema=1"], "recipe: ema must be between 0 and 1, both excluded, not 1.0"),
        ("cnn", ["ema=1.5"], "recipe: ema must be between 0 and 1, both excluded, not 1.5"),
        ("cnn", ["ema=-1"], "recipe: ema must be between 0 and 1, both excluded, not -1.0"),
        ("cnn", ["ema=.nan"], "recipe: ema must be between 0 and 1, both excluded, not nan"),
        ("cnn", ["lr_batch=0"], "recipe: lr_batch must be at least 1, not 0"),
        ("cnn", ["layer_decay=0"], "recipe: layer_decay must be above 0 and at most 1, not 0.0"),
        ("cnn", ["layer_decay=1.1"], "recipe: layer_decay must be above 0 and at most 1, not 1.1"),
        ("cnn", ["early_stop=0"], "recipe: early_stop must be at least 1, not 0"),
        ("cnn", ["seed=-1"], "recipe: seed must be 0 to 4294967295, not -1"),
        ("cnn", ["seed=4294967296"], "recipe: seed must be 0 to 4294967295, not 4294967296"),
        ("cnn", ["lora.rank=0"], "recipe: lora.rank must be at least 1, not 0"),
        ("cnn", ["lora.alpha=0"], "recipe: lora.alpha must be a positive number, not 0.0"),
        ("cnn", ["lora.dropout=1"], "recipe: lora.dropout must be from 0 to below 1, not 1.0"),
        ("cnn", ["lora.targets=[]"], "recipe: lora.targets must be a list of at least one part, not []"),
        ("cnn", ["lora.targets=encoder"], "recipe: lora.targets: it takes a list, such as [a, b]"),
        ("cnn", ["lora.ranks=2"], "recipe: there is no lora.ranks; did you mean rank?"),
        ("cnn", ["lora=8"], "recipe: lora: "),
        ("cnn", ["accumulation=two"], "recipe: accumulation: Value 'two'"),
        ("cnn", ["ema=high"], "recipe: ema: Value 'high'"),
        ("cnn", ["mirroring=2.5"], "recipe: mirroring: Value '2.5'"),
        ("cnn", ["loss=jaccard"], "recipe: loss: Invalid value 'jaccard', expected one of [default, ce, dice, topk, "),
        ("cnn", ["precision=fp8"], "recipe: precision: Invalid value 'fp8', expected one of [fp16, bf16, off]"),
        ("cnn", ["optimizer=null"], "recipe: optimizer: "),
        ("cnn", ["betas=0.9"], "recipe: betas: it takes a list, such as [a, b]"),
        ("cnn", ["betas=[0.9, high]"], "recipe: betas.1: Value 'high'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line_by_its_name(family: str, words: list[str], message: str) -> None:
    assert refused(family, words).startswith(message)


@pytest.mark.parametrize(
    ("family", "words"),
    [("cnn", ["drop_path=0"]), ("primus", ["drop_path=0"]), ("primus", ["drop_path=0.3"]), ("cnn", ["drop_path=null"]),
     ("cnn", ["ema=0.999"]), ("cnn", ["layer_decay=1"]), ("cnn", ["seed=0"]), ("cnn", ["momentum=1"])],
)  # fmt: skip
def test_values_at_the_edge_of_what_can_be_are_taken(family: str, words: list[str]) -> None:
    key, value = words[0].split("=")
    assert getattr(recipe_for(family, words), key) == yaml.safe_load(value)


def test_drop_path_of_a_recipe_for_primus_is_switched_off_for_a_u_net_by_name_alone(written: WriteFile) -> None:
    file = written(as_yaml(recipe_for("primus", chosen="layer_decay")))
    assert refused("cnn", chosen=file).endswith("--set drop_path=0")
    assert recipe_for("cnn", ["drop_path=0"], chosen=file).drop_path == 0


def test_a_phase_of_adapters_needs_adapters() -> None:
    words = "recipe: a phase trains lora, but the recipe has none: -r lora, or --set lora.rank=8"
    assert refused(overrides=["phases.0.parts=[lora]"]) == words
    assert refused(overrides=["lora=null"], chosen="lora") == words
    assert recipe_for("cnn", ["phases.0.parts=[lora]", "lora.rank=8"]).lora == Lora()


# from scratch


@pytest.mark.parametrize("family", ["cnn", "primus"])
@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("frozen_encoder", []),
        ("lora", []),
        ("gradual_unfreezing", []),
        ("gradual_unfreezing", ["gradual_unfreezing.mode=encoder", "gradual_unfreezing.depth=0"]),
        ("sawtooth", ["num_epochs=2"]),  # nothing is left for the encoder
        ("default", ["phases=[{parts: [head, 'decoder_stage:0..', 'decoder.*', stem, input_projection]}]"]),
    ],
)
def test_a_recipe_that_never_trains_the_encoder_makes_no_sense_from_scratch(
    chosen: str, words: list[str], family: str
) -> None:
    message = f"recipe: {chosen} never trains the encoder, which makes no sense with from_scratch"
    assert refused(family, words, chosen=chosen, from_scratch=True) == message
    assert refused(family, [*words, "from_scratch=true"], chosen=chosen) == message
    assert recipe_for(family, words, chosen=chosen).from_scratch is False


@pytest.mark.parametrize(
    ("chosen", "words"),
    [("sawtooth", []), ("sawtooth", ["num_epochs=3"]), ("gradual_unfreezing", ["gradual_unfreezing.mode=encoder"]),
     ("default", ["phases=[{parts: [decoder]}, {parts: ['stage:2..'], epochs: 3}]"]),
     ("default", ["phases=[{parts: ['encoder.stages.1.*']}]"])],
)  # fmt: skip
def test_a_recipe_that_trains_some_of_the_encoder_is_taken_from_scratch(chosen: str, words: list[str]) -> None:
    recipe = recipe_for("cnn", words, chosen=chosen, from_scratch=True)
    assert (recipe.from_scratch, recipe.initial_lr) == (True, 1e-2)


def test_a_peak_that_a_file_names_for_random_weights_counts(written: WriteFile) -> None:
    assert recipe_for("cnn", chosen=written("from_scratch: true\ninitial_lr: 5e-3")).initial_lr == 5e-3
    assert recipe_for("cnn", chosen=written("from_scratch: true")).initial_lr == 1e-2


def test_a_peak_that_a_file_names_for_trained_weights_does_not(written: WriteFile) -> None:
    file = written("initial_lr: 1e-4")
    assert recipe_for("cnn", chosen=file, from_scratch=True).initial_lr == 1e-2
    assert recipe_for("cnn", ["initial_lr=2e-4"], chosen=file, from_scratch=True).initial_lr == 2e-4


def test_another_peak_for_random_weights_counts_over_the_one_in_a_file(written: WriteFile) -> None:
    file = written(as_yaml(recipe_for("cnn", from_scratch=True)))
    assert recipe_for("cnn", ["initial_lr_from_scratch=3e-3"], chosen=file).initial_lr == 3e-3


# files


@pytest.mark.parametrize("family", ["cnn", "primus"])
@pytest.mark.parametrize("name", sorted(CHANGES))
@pytest.mark.parametrize("is_changed", [False, True], ids=["plain", "changed"])
def test_a_recipe_comes_back_the_same_from_yaml_from_json_and_from_a_plan(
    name: str, family: str, is_changed: bool, written: WriteFile
) -> None:
    changes = [c for c in CHANGES[name] if is_changed and not (family == "cnn" and c.startswith("drop_path"))]
    recipe = recipe_for(family, changes, chosen=name)
    printed = as_yaml(recipe)
    assert yaml.safe_load(printed) == recipe.as_dict()
    assert recipe_for(family, chosen=written(printed)) == recipe
    stored = json.loads(json.dumps(recipe.as_dict()))
    assert recipe_from_dict(stored) == recipe
    assert recipe_for(family, planned=stored) == recipe


def test_a_file_is_called_as_its_stem_unless_it_says_otherwise(tmp_path: Path) -> None:
    for text, name in (("num_epochs: 3", "slow_start"), ("name: other", "other")):
        path = tmp_path / "slow_start.yml"
        path.write_text(text)
        assert recipe_for("cnn", chosen=str(path)).name == name


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_a_file_is_laid_over_the_architectures_default(family: str, written: WriteFile) -> None:
    recipe = recipe_for(family, chosen=written("weight_decay: 1e-4\nlora: {rank: 3}"))
    usual = recipe_for(family)
    assert recipe == dataclasses.replace(usual, name="mine", description="", weight_decay=1e-4, lora=Lora(rank=3))


def test_num_epochs_alone_in_a_file_scales_the_default_ones_phases(written: WriteFile) -> None:
    assert lengths(recipe_for("cnn", chosen=written("num_epochs: 200"))) == [10, 190]
    assert lengths(recipe_for("cnn", ["num_epochs=20"], chosen=written("num_epochs: 200"))) == [1, 19]


def test_phases_in_a_file_say_how_long_the_training_is(written: WriteFile) -> None:
    text = "phases:\n- {parts: [decoder], epochs: 3, curve: linear, lr_scale: 0.1}\n- {epochs: 4, optimizer: restarted}"
    recipe = recipe_for("cnn", chosen=written(text))
    assert (recipe.num_epochs, lengths(recipe)) == (7, [3, 4])
    assert recipe.phases[0].lr_scale == 0.1
    assert recipe.phases[1] == Phase(epochs=4, optimizer=type(recipe.phases[1].optimizer).restarted)


def test_phases_in_a_file_may_leave_the_rest_and_name_the_warm_up(written: WriteFile) -> None:
    text = (
        "num_epochs: 30\nwarmup_epochs: 5\nphases:\n"
        "- {epochs: warmup_epochs, curve: linear}\n- {epochs: rest}\n- {epochs: 7}"
    )
    assert lengths(recipe_for("cnn", chosen=written(text))) == [5, 18, 7]
    assert lengths(recipe_for("cnn", ["num_epochs=40"], chosen=written(text))) == [5, 28, 7]
    assert "phases of 5 + 7 = 12 epochs are more" in refused(overrides=["num_epochs=11"], chosen=written(text))


@pytest.mark.parametrize(("num_epochs", "words"), [(6, "more"), (20, "fewer")])
def test_phases_in_a_file_that_do_not_fit_are_refused_not_scaled(
    num_epochs: int, words: str, written: WriteFile
) -> None:
    text = "phases:\n- {parts: [decoder], epochs: 3}\n- {epochs: 4}"
    expected = f"recipe: phases of 3 + 4 = 7 epochs are {words} than num_epochs ({num_epochs})"
    assert refused(chosen=written(f"{text}\nnum_epochs: {num_epochs}")).startswith(expected)
    assert refused(overrides=[f"num_epochs={num_epochs}"], chosen=written(text)).startswith(expected)


def test_values_in_a_file_may_refer_to_others(written: WriteFile) -> None:
    text = (
        'num_epochs: 20\nphases:\n- {parts: [head], epochs: "${num_epochs}"}\ninitial_lr_from_scratch: ${initial_lr}\n'
    )
    recipe = recipe_for("cnn", chosen=written(text + "initial_lr: 2e-3"))
    assert recipe.phases == [Phase(parts=["head"], epochs=20)]
    assert recipe.initial_lr_from_scratch == recipe.initial_lr == 2e-3


def test_gradual_unfreezing_in_a_file_lasts_as_long_as_its_depth_or_as_the_file_says(written: WriteFile) -> None:
    text = "gradual_unfreezing: {depth: 2, mode: encoder}"
    assert lengths(recipe_for("cnn", chosen=written(text))) == [4, 4, 4]
    assert lengths(recipe_for("cnn", chosen=written(f"{text}\nnum_epochs: 24"))) == [8, 8, 8]
    assert lengths(recipe_for("cnn", ["num_epochs=6"], chosen=written(f"{text}\nnum_epochs: 24"))) == [2, 2, 2]
    text = "gradual_unfreezing: {depth: 2, unfreeze_frequency: 5}\nnum_epochs: 30"
    assert lengths(recipe_for("cnn", chosen=written(text))) == [5, 5, 20]


def test_a_printed_gradual_unfreezing_is_made_anew_where_the_user_changes_it(written: WriteFile) -> None:
    file = written(as_yaml(recipe_for("cnn", chosen="gradual_unfreezing")))
    recipe = recipe_for("cnn", ["gradual_unfreezing.depth=1"], chosen=file, blocks=Blocks(6, 5))
    assert recipe.gradual_unfreezing == GradualUnfreezing(Side.decoder, 1, 4)
    assert [(phase.parts, n) for phase, n in zip(recipe.phases, lengths(recipe), strict=True)] == [
        (["head"], 4),
        (["head", "decoder_stage:0..0"], 4),
    ]
    shorter = recipe_for("cnn", ["gradual_unfreezing.depth=1", "num_epochs=6"], chosen=file)
    assert lengths(shorter) == [3, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a recipe: it holds no keys, such as num_epochs: 150"),
        ("# nothing but a comment", "is not a recipe"),
        ("default", "is not a recipe"),
        ("150", "is not a recipe"),
        ("- num_epochs: 3\n- warmup_epochs: 1", "is not a recipe"),
        ("num_epochs: [3", "cannot be read as YAML: line 1: "),
        ("num_epochs: 3\n\twarmup_epochs: 1", "cannot be read as YAML: line 2: "),
        ("num_epochs: 3\n---\nnum_epochs: 4", "cannot be read as YAML: line 2: "),
        ("num_epochs: 3\0", "cannot be read as YAML: "),
        ("name: !!python/object/apply:os.getcwd []", "cannot be read as YAML: line 1: could not determine"),
        ("num_epochs: 3\nnum_epochs: 4", "cannot be read as YAML: line 2: found duplicate key num_epochs"),
        ("phases: {first: {parts: [all]}}", "is not a recipe: phases must be a list, each line of it beginning with -"),
        ("num_epochs: ???", "cannot be read as YAML: Missing mandatory value: num_epochs"),
        ("num_epochs: ${nothing}", "cannot be read as YAML: Interpolation key 'nothing' not found"),
        ("num_epochs: ${num_epochs}", "cannot be read as YAML: "),
        ("phases: &a [*a]", "cannot be read as YAML: "),
        ("[" * 800, "cannot be read as YAML: "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_a_line(text: str, words: str, written: WriteFile) -> None:
    file = written(text)
    assert refused(chosen=file).startswith(f"{file} (-r) {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_epoch: 3", "recipe: there is no num_epoch; did you mean num_epochs?"),
        ("epochs: 3", "recipe: there is no epochs; did you mean num_epochs?"),
        ("3: 4", "recipe: there is no 3; known: name, description, num_epochs, "),
        ("primus: {drop_path: 0.1}", "recipe: there is no primus; did you mean"),
        ("lora: {r: 8}", "recipe: there is no lora.r; "),
        ("phases: [{part: [all]}]", "recipe: there is no phases.0.part; did you mean parts?"),
        ("phases: 3", "recipe: phases must be a list with at least one phase, not 3"),
        ("phases: [all]", "recipe: phases.0 must be like {parts: [all], epochs: 10}, not 'all'"),
        ("num_epochs: many", "recipe: num_epochs: Value 'many'"),
        ("num_epochs: 1e2", "recipe: num_epochs: Value '100.0'"),
        ("num_epochs: 0", "recipe: num_epochs must be at least 1, not 0"),
        ("num_epochs:", "recipe: num_epochs: "),
        ("name:", "recipe: name: "),
        ("betas: 0.9", "recipe: betas: it takes a list, such as [a, b]"),
    ],
)
def test_a_mistake_in_a_file_is_refused_by_its_name(text: str, words: str, written: WriteFile) -> None:
    assert refused(chosen=written(text)).startswith(words)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", bytes(range(256)), b"\x80\x02}q\x00."])
def test_a_file_that_is_no_text_is_refused_in_a_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert refused(chosen=str(path)).startswith(f"{path} (-r) cannot be read as YAML: ")


def test_a_file_that_is_missing_is_named() -> None:
    assert refused(chosen="nowhere/mine.yaml") == "there is no file nowhere/mine.yaml (-r)"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refused(chosen=f"{tmp_path}/") == (
        f"{tmp_path} (-r) cannot be read as YAML: [Errno 21] Is a directory: '{tmp_path}'"
    )


# recipes that are stored


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_stored_recipe_takes_changes_and_scales_nothing(name: str) -> None:
    stored = recipe_for("cnn", chosen=name)
    changed = recipe_from_dict(stored.as_dict(), ["save_every=3", "phases.0.lr_scale=0.5"])
    expected = [dataclasses.replace(stored.phases[0], lr_scale=0.5), *stored.phases[1:]]
    assert changed == dataclasses.replace(stored, save_every=3, phases=expected)


def test_more_epochs_on_continuing_go_to_the_rest() -> None:
    stored = recipe_for("cnn", chosen="sawtooth").as_dict()
    assert lengths(recipe_from_dict(stored, ["num_epochs=1500"])) == [25, 25, 50, 1400]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_epochs=99"], "phases of 25 + 25 + 50 = 100 epochs are more than num_epochs (99)"),
        (["num_epoch=3"], "there is no num_epoch; did you mean num_epochs?"),
        (["num_epochs=three"], "num_epochs: Value 'three'"),
        (["from_scratch=true", "phases=[{parts: [decoder]}]"], "sawtooth never trains the encoder"),
        (["phases.4.epochs=1"], "there is no phases.4; the recipe has 0 to 3"),
    ],
)
def test_a_change_that_does_not_fit_a_stored_recipe_is_refused(words: Sequence[str], message: str) -> None:
    stored = recipe_for("cnn", chosen="sawtooth").as_dict()
    with pytest.raises(UserError) as error:
        recipe_from_dict(stored, words)
    assert str(error.value).startswith(f"recipe: {message}")


def test_a_recipe_from_before_there_were_phases_is_the_one_it_was() -> None:
    old = {"name": "default", "num_epochs": 30, "warmup_epochs": 5, "initial_lr": 2e-3, "optimizer": "sgd"}
    recipe = recipe_from_dict(old)
    assert lengths(recipe) == [5, 25]
    assert [(phase.parts, phase.curve.value) for phase in recipe.phases] == [(["all"], "linear"), (["all"], "poly")]
    assert recipe.initial_lr == 2e-3


def test_phases_in_a_plan_that_a_user_edited_are_not_scaled() -> None:
    planned = recipe_for("cnn").as_dict()
    assert lengths(recipe_for("cnn", ["num_epochs=100"], planned=planned)) == [5, 95]
    planned["phases"][0]["epochs"] = 20
    assert lengths(recipe_for("cnn", ["num_epochs=100"], planned=planned)) == [20, 80]
