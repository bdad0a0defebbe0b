"""Which recipe a training gets from plan and options, what its results are called, and what it is kept from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_ext.architectures.presets import PRIMUS_CLASS, RESENC_CLASS
from nnunetv2_ext.cli.train_pretrained import main
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.resolving import recipe_for, shipped_names
from nnunetv2_ext.training.recipe_choice import (
    RecipeOptions,
    check_recipe,
    recipe_as_text,
    refuse_another_recipe,
    requested_recipe,
    run_suffix,
)
from tests.training.architectures import network

NAME = "ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z"
INNER = "ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z"
CLASSES = {"cnn": RESENC_CLASS, "primus": PRIMUS_CLASS}
NETWORKS = {"cnn": "ResEncL", "primus": "PrimusS"}


def plan_of(family: str = "cnn", name: str = NAME, **finetuning: Any) -> dict[str, Any]:
    """What is read of a ptPlan here; as planning leaves it, its recipe is the architecture's default."""
    return {
        "plans_name": name,
        "configurations": {"3d_fullres": {"architecture": {"network_class_name": CLASSES[family]}}},
        "finetuning": {"recipe": recipe_for(family).as_dict(), **finetuning},
    }


def after_a_run(plan: dict[str, Any], options: RecipeOptions) -> tuple[dict[str, Any], str]:
    """The plan that a training leaves for stock commands, and the suffix that it got."""
    family = (
        "primus"
        if plan["configurations"]["3d_fullres"]["architecture"]["network_class_name"] == PRIMUS_CLASS
        else "cnn"
    )
    recipe = requested_recipe(plan, network(NETWORKS[family]), options)
    suffix = run_suffix(plan, recipe, options)
    finetuning = {"trainer": options.trainer, "from_scratch": recipe.from_scratch, "recipe": recipe.as_dict()}
    return {**plan, "plans_name": plan["plans_name"] + suffix, "finetuning": finetuning}, suffix


# what results are called


@pytest.mark.parametrize(
    ("family", "options", "suffix"),
    [
        ("cnn", RecipeOptions(), ""),
        ("cnn", RecipeOptions(recipe="default"), ""),
        ("primus", RecipeOptions(), ""),
        ("primus", RecipeOptions(recipe="primus"), ""),
        ("primus", RecipeOptions(recipe="default"), "_default"),
        ("cnn", RecipeOptions(recipe="primus"), "_primus"),
        ("cnn", RecipeOptions(recipe="sawtooth"), "_sawtooth"),
        ("cnn", RecipeOptions(recipe="sawtooth", overrides=("num_epochs=9",)), "_sawtooth"),
        ("cnn", RecipeOptions(overrides=("num_epochs=9",)), ""),
        ("cnn", RecipeOptions(run_name="mine"), "_mine"),
        ("cnn", RecipeOptions(recipe="sawtooth", run_name="saw_9.5-b"), "_saw_9.5-b"),
        ("cnn", RecipeOptions(from_scratch=True), "_from_scratch"),
        ("cnn", RecipeOptions(recipe="from_scratch"), "_from_scratch"),
        ("cnn", RecipeOptions(recipe="from_scratch", from_scratch=True), "_from_scratch"),
        ("cnn", RecipeOptions(recipe="short", from_scratch=True), "_short_from_scratch"),
        ("cnn", RecipeOptions(run_name="mine", from_scratch=True), "_mine_from_scratch"),
        ("cnn", RecipeOptions(trainer="PretrainedTrainer_150ep"), ""),
        ("cnn", RecipeOptions(trainer="PretrainedTrainer_nomirroring"), ""),
        ("cnn", RecipeOptions(trainer="PretrainedTrainer_150ep", run_name="mine"), "_mine"),
        ("cnn", RecipeOptions(trainer="PretrainedTrainer_150ep", from_scratch=True), "_from_scratch"),
        ("cnn", RecipeOptions(trainer="DynamicPretrainedTrainer"), ""),
        ("cnn", RecipeOptions(trainer="DynamicPretrainedTrainer", recipe="short"), "_short"),
    ],
)
def test_results_carry_the_name_of_a_recipe_that_is_not_the_usual_one(
    family: str, options: RecipeOptions, suffix: str
) -> None:
    assert after_a_run(plan_of(family), options)[1] == suffix


@pytest.mark.parametrize("run_name", ["Z", "Norm_Z", "1.00_Norm_Z", "MAE"])
def test_a_run_is_called_as_the_user_says_even_if_the_plan_ends_so(run_name: str) -> None:
    for name in (NAME, INNER):
        assert after_a_run(plan_of(name=name), RecipeOptions(run_name=run_name))[1] == f"_{run_name}"


@pytest.mark.parametrize(
    "options",
    [RecipeOptions(recipe="sawtooth"), RecipeOptions(run_name="mine"), RecipeOptions(recipe="short", run_name="x_y"),
     RecipeOptions(from_scratch=True), RecipeOptions(recipe="short", from_scratch=True),
     RecipeOptions(run_name="mine", from_scratch=True), RecipeOptions(recipe="from_scratch"),
     RecipeOptions(trainer="PretrainedTrainer_150ep"), RecipeOptions()],
)  # fmt: skip
def test_the_plan_of_a_run_keeps_its_name_when_the_run_goes_on(options: RecipeOptions) -> None:
    plan, _ = after_a_run(plan_of(), options)
    assert after_a_run(plan, options)[1] == ""  # the same command with the new plan
    if options.run_name is None and not options.trainer.endswith("150ep"):
        again, suffix = after_a_run(plan, RecipeOptions())  # the new plan alone, whose recipe it is
        assert suffix == ""
        assert again["finetuning"]["recipe"] == plan["finetuning"]["recipe"]


def test_from_scratch_comes_behind_the_name_that_a_plan_has_already() -> None:
    plan, _ = after_a_run(plan_of(), RecipeOptions(recipe="short"))
    assert after_a_run(plan, RecipeOptions(from_scratch=True))[0]["plans_name"] == f"{NAME}_short_from_scratch"


def test_a_recipe_that_cannot_be_part_of_a_folders_name_needs_a_name_for_the_run(tmp_path: Path) -> None:
    file = tmp_path / "two words.yaml"
    file.write_text("num_epochs: 3")
    with pytest.raises(UserError, match=r"the name 'two words' \(recipe: name\) becomes part of file and folder names"):
        after_a_run(plan_of(), RecipeOptions(recipe=str(file)))
    assert after_a_run(plan_of(), RecipeOptions(recipe=str(file), run_name="two_words"))[1] == "_two_words"


@pytest.mark.parametrize("name", ["a/b", "a b", "a__b", "_a", "a_", "", "..", "a\n"])
def test_a_name_of_a_run_that_breaks_stock_commands_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="-rn"):
        RecipeOptions(run_name=name).check()


def test_an_unknown_trainer_is_refused() -> None:
    with pytest.raises(UserError, match="-tr takes PretrainedTrainer"):
        RecipeOptions(trainer="nnUNetTrainer").check()


# which recipe it is


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_the_plans_own_recipe_counts_where_none_is_chosen(family: str) -> None:
    plan = plan_of(family)
    plan["finetuning"]["recipe"]["weight_decay"] = 0.125
    assert requested_recipe(plan, network(NETWORKS[family]), RecipeOptions()).weight_decay == 0.125
    chosen = requested_recipe(plan, network(NETWORKS[family]), RecipeOptions(recipe="short"))
    assert chosen == recipe_for(family, chosen="short")
    named = requested_recipe(plan, network(NETWORKS[family]), RecipeOptions(trainer="PretrainedTrainer_150ep"))
    assert named.weight_decay == chosen.weight_decay


def test_a_plan_without_a_recipe_has_the_architectures_own() -> None:
    plan = plan_of("primus")
    del plan["finetuning"]
    assert requested_recipe(plan, network("PrimusS"), RecipeOptions()) == recipe_for("primus")


def test_a_plan_from_scratch_stays_so() -> None:
    plan = plan_of(from_scratch=True)
    recipe = requested_recipe(plan, network("ResEncL"), RecipeOptions())
    assert (recipe.from_scratch, recipe.initial_lr) == (True, 1e-2)


@pytest.mark.parametrize(("family", "blocks"), [("cnn", 5), ("primus", 2)])
def test_gradual_unfreezing_is_made_for_the_plans_network(family: str, blocks: int) -> None:
    net = network(NETWORKS[family])
    options = RecipeOptions("gradual_unfreezing", overrides=(f"gradual_unfreezing.depth={blocks}",))
    assert requested_recipe(plan_of(family), net, options).num_epochs == 4 * (blocks + 1)
    options = RecipeOptions("gradual_unfreezing", overrides=(f"gradual_unfreezing.depth={blocks + 1}",))
    with pytest.raises(UserError, match=f"depth is {blocks + 1}, but the decoder has {blocks} blocks"):
        requested_recipe(plan_of(family), net, options)


# printed


@pytest.mark.parametrize("name", shipped_names())
def test_what_print_recipe_prints_is_a_file_with_the_same_recipe(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["--print_recipe", "-r", name, "--set", "num_epochs=20", "save_every=3"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    family = "primus" if name == "primus" else "cnn"
    expected = recipe_for(family, ["num_epochs=20", "save_every=3"], chosen=name)
    assert recipe_for(family, chosen=str(file)) == expected


def test_list_recipes_needs_no_other_argument(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list_recipes"])
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(shipped_names())


def test_a_recipe_is_printed_as_a_trainers_name_means_it() -> None:
    text = recipe_as_text(RecipeOptions(trainer="PretrainedTrainer_Primusx_30ep", overrides=("seed=1",)))
    assert "name: PretrainedTrainer_Primusx_30ep\n" in text
    assert "num_epochs: 30\nwarmup_epochs: 3\n" in text
    assert "seed: 1\n" in text


# what a network, a dataset, a machine cannot do


def check(*overrides: str, has_regions: bool = False, chosen: str | None = None, family: str = "cnn") -> None:
    net = network(NETWORKS[family])
    recipe = requested_recipe(plan_of(family), net, RecipeOptions(chosen, overrides=overrides))
    check_recipe(recipe, net, SimpleNamespace(has_regions=has_regions), {}, [])


@pytest.mark.parametrize("family", ["cnn", "primus"])
@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_fits_every_network(name: str, family: str) -> None:
    check(chosen=name, family=family)


@pytest.mark.parametrize("part", ["xyz.*", "stage:6", "decoder_stage:5", "stage:0..6", "eva.blocks.*"])
def test_a_part_that_matches_nothing_is_refused_before_anything_is_written(part: str) -> None:
    with pytest.raises(UserError, match="matches nothing"):
        check(f"phases.1.parts=[head, '{part}']")


@pytest.mark.parametrize("target", ["xyz.*", "stage:6", "*.norm.*"])
def test_targets_that_no_adapter_fits_are_refused(target: str) -> None:
    with pytest.raises(UserError, match=r"matches nothing|hold no convolution or linear layer"):
        check(f"lora.targets=['{target}']", chosen="lora")


def test_topk_is_refused_for_regions_alone() -> None:
    check("loss=topk")
    check("loss=focal", has_regions=True)
    with pytest.raises(UserError, match="loss=topk is not defined for region-based labels: use ce, dice or focal"):
        check("loss=topk", has_regions=True)


# another recipe's results


def run_of(folder: Path, recipe: str, checkpoint: str | None = "checkpoint_latest.pth") -> None:
    folder.mkdir(parents=True)
    (folder / "finetuning.json").write_text(json.dumps({"recipe": recipe_for("cnn", chosen=recipe).as_dict()}))
    if checkpoint is not None:
        (folder / checkpoint).touch()


@pytest.mark.parametrize("checkpoint", ["checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"])
@pytest.mark.parametrize(("fold", "where"), [(0, "this fold"), (3, "fold_3"), ("all", "fold_all")])
def test_a_run_of_another_recipe_is_left_alone_and_the_error_names_both_and_the_flag(
    fold: int | str, where: str, checkpoint: str, tmp_path: Path
) -> None:
    run_of(tmp_path / f"fold_{fold}", "sawtooth", checkpoint)
    with pytest.raises(UserError) as error:
        refuse_another_recipe(tmp_path, recipe_for("cnn", chosen="short"), [0, 1])
    assert str(error.value) == (
        f"{tmp_path} holds a run of the recipe sawtooth ({where}), and this one is of short: name it with -rn NAME, "
        "or move that folder away"
    )


def test_a_run_of_the_same_recipe_is_no_hindrance(tmp_path: Path) -> None:
    run_of(tmp_path / "fold_0", "short")
    refuse_another_recipe(tmp_path, recipe_for("cnn", ["num_epochs=3"], chosen="short"), [0, 1])


@pytest.mark.parametrize("family", ["cnn", "primus"])
def test_the_two_ways_to_train_from_scratch_share_their_results(family: str, tmp_path: Path) -> None:
    by_recipe, by_flag = recipe_for(family, chosen="from_scratch"), recipe_for(family, from_scratch=True)
    for place, stored, wanted in ((tmp_path / "a", by_recipe, by_flag), (tmp_path / "b", by_flag, by_recipe)):
        (place / "fold_0").mkdir(parents=True)
        (place / "fold_0" / "checkpoint_final.pth").touch()
        (place / "fold_0" / "finetuning.json").write_text(json.dumps({"recipe": stored.as_dict()}))
        refuse_another_recipe(place, wanted, [0])
        with pytest.raises(UserError, match="holds a run"):
            refuse_another_recipe(place, recipe_for(family, chosen="short", from_scratch=True), [0])


def test_a_fold_without_a_checkpoint_or_without_a_record_is_no_hindrance(tmp_path: Path) -> None:
    run_of(tmp_path / "fold_0", "sawtooth", checkpoint=None)  # stopped before its first checkpoint
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "checkpoint_final.pth").touch()
    refuse_another_recipe(tmp_path, recipe_for("cnn"), [0])
    refuse_another_recipe(tmp_path / "not_there", recipe_for("cnn"), [0])
