"""Bad input: one line on stderr that says what is wrong and what to do, exit code 1, and nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import preprocess_like_nnssl, train_pretrained
from tests.commands import TINY_TRAINING, run_command
from tests.conftest import TINY_PRIMUS, TINY_RESENC, Model, Workplace, copy_of
from tests.end_to_end.refusal import Harmful, Refuses


@pytest.fixture(scope="module")
def place(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A planned dataset that has never been trained on, whatever ran before."""
    copy = copy_of(planned_resenc.workplace, tmp_path_factory.mktemp("bad_input"))
    (copy.preprocessed / "splits_final.json").unlink(missing_ok=True)
    return copy


@pytest.fixture
def plan_refused(refused: Refuses) -> Refuses:
    def call(*expected: str, d: object = 999, n: str = "bad", pc: object = TINY_RESENC, more: tuple = ()) -> str:
        return refused(preprocess_like_nnssl.main, ["-d", d, "-n", n, "-pc", pc, "--no_pbar", *more], *expected)

    return call


@pytest.fixture
def train_refused(refused: Refuses, planned_resenc: Model) -> Refuses:
    def call(
        *expected: str, d: object = 999, c: str = "3d_fullres", f: tuple = (0,), p: str = "", more: tuple = ()
    ) -> str:
        plans = p or planned_resenc.long_name
        device = () if "-device" in more else ("-device", "cpu")
        more = more if "--set" in more else (*more, "--set", *TINY_TRAINING)  # a refusal that fails ends soon
        return refused(train_pretrained.main, ["-d", d, "-c", c, "-f", *f, "-p", plans, *device, *more], *expected)

    return call


@pytest.mark.parametrize("dataset", [123, "Dataset123_Nobody", "nobody"])
def test_unknown_dataset(dataset: object, plan_refused: Refuses, train_refused: Refuses) -> None:
    plan_refused(str(dataset), d=dataset)
    train_refused(str(dataset), d=dataset)


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_raw"])
def test_missing_environment_variable_for_planning(
    variable: str, plan_refused: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable)
    plan_refused(f"the environment variable {variable} is not set", f"export {variable}=")


def test_missing_environment_variable_for_training(train_refused: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    train_refused("the environment variable nnUNet_results is not set")


def test_missing_checkpoint_file(plan_refused: Refuses, tmp_path: Path) -> None:
    plan_refused(str(tmp_path / "nothing.pth"), pc=tmp_path / "nothing.pth")


def test_a_pickle_that_would_execute_code_is_refused_and_nothing_is_executed(
    plan_refused: Refuses, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    torch.save({"network_weights": {}, "extra": Harmful(touched)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(touched), protocol=2))
    for name in ("zip.pth", "plain.pth"):
        plan_refused(name, pc=tmp_path / name)
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>log in</html>", (TINY_RESENC / "checkpoint_final.pth").read_bytes()[:50_000]],
)
def test_empty_html_or_truncated_checkpoint(content: bytes, plan_refused: Refuses, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)
    plan_refused("checkpoint_final.pth", pc=path)


def changed_checkpoint(tmp_path: Path, change: Callable[[dict], object], source: Path = TINY_RESENC) -> Path:
    checkpoint = torch.load(source / "checkpoint_final.pth", weights_only=True)
    change(checkpoint)
    path = tmp_path / "changed.pth"
    torch.save(checkpoint, path)
    return path


def test_no_adaptation_plan(plan_refused: Refuses, tmp_path: Path) -> None:
    plan_refused(
        "nnssl_adaptation_plan", "-arch", pc=changed_checkpoint(tmp_path, lambda c: c.pop("nnssl_adaptation_plan"))
    )


@pytest.mark.parametrize("key", ["key_to_encoder", "key_to_stem", "keys_to_in_proj", "architecture_plans"])
def test_plan_key_missing(key: str, plan_refused: Refuses, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path, lambda c: c["nnssl_adaptation_plan"].pop(key))
    plan_refused(key, "nnUNetv2_convert_pretrained_checkpoint", pc=path)


def test_plan_key_pointing_nowhere(plan_refused: Refuses, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path, lambda c: c["nnssl_adaptation_plan"].update(key_to_encoder="encoder.stage"))
    plan_refused("key_to_encoder", "encoder.stages", pc=path)


def test_unknown_architecture_is_not_imported(plan_refused: Refuses, tmp_path: Path) -> None:
    def rename(checkpoint: dict) -> None:
        checkpoint["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] = "os.system"

    plan_refused("'os.system' is not known", "ResEncL", pc=changed_checkpoint(tmp_path, rename))


def test_weights_that_do_not_fit_the_architecture(plan_refused: Refuses, tmp_path: Path) -> None:
    def widen(checkpoint: dict) -> None:
        checkpoint["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]["features_per_stage"][1] = 24

    path = changed_checkpoint(tmp_path, widen)
    plan_refused("100.0% must (-min_coverage)", "of another width (encoder.stages.1", "(24, 8, 3, 3, 3)", pc=path)


@pytest.mark.parametrize(
    ("checkpoint", "patch", "nearest"),
    [
        (TINY_RESENC, (30, 32, 32), "24 x 32 x 32 or 32 x 32 x 32"),
        (TINY_PRIMUS, (32, 36, 32), "32 x 32 x 32 or 32 x 40 x 32"),
    ],
)
def test_patch_that_the_architecture_cannot_take(
    checkpoint: Path, patch: tuple[int, ...], nearest: str, plan_refused: Refuses
) -> None:
    plan_refused(nearest, pc=checkpoint, more=("-ps", *patch))


@pytest.mark.parametrize("patch", [(32, 32), (0, 32, 32), (-8, 32, 32)])
def test_patch_that_is_none(patch: tuple[int, ...], plan_refused: Refuses) -> None:
    plan_refused("patch", more=("-ps", *patch))


@pytest.mark.parametrize("spacing", [(), (1, 1), (1, 0, 1), ("nan", 1, 1), ("inf", 1, 1), (1, 1, 1, 1)])
def test_fixed_without_three_positive_finite_numbers(spacing: tuple, plan_refused: Refuses) -> None:
    more = ("-os", *spacing) if spacing else ()
    plan_refused("three positive finite numbers", more=("-am", "fixed", *more))


def test_os_without_fixed(plan_refused: Refuses) -> None:
    plan_refused("-os goes with -am fixed", more=("-am", "like_pretrained", "-os", 1, 1, 1))


def test_unknown_adaptation_mode(plan_refused: Refuses) -> None:
    plan_refused("like_pretrained", more=("-am", "like_pretraining"))


@pytest.mark.parametrize("name", ["a/b", "../a", "a__b", "a b", "_a", "a_", ".."])
def test_name_that_is_no_part_of_a_file_name(name: str, plan_refused: Refuses) -> None:
    plan_refused("(-n)", n=name)


def test_unknown_base_plan(plan_refused: Refuses) -> None:
    plan_refused("nnUNetPlan ", "nnUNetPlans", more=("-pl", "nnUNetPlan"))


def test_a_plan_for_a_checkpoint_as_base_plan(plan_refused: Refuses, planned_resenc: Model) -> None:
    plan_refused("nnU-Net's own plans", more=("-pl", planned_resenc.inner_name))


@pytest.mark.parametrize("option", ["-np", "-bs"])
def test_zero_processes_or_batch(option: str, plan_refused: Refuses) -> None:
    plan_refused("at least 1", more=(option, 0))


def test_a_2d_dataset(place: Workplace, plan_refused: Refuses) -> None:
    plan = place.plan("nnUNetPlans")
    del plan["configurations"]["3d_fullres"]
    (place.preprocessed / "nnUNetPlans2D.json").write_text(json.dumps(plan))
    plan_refused("3d_fullres", "2D", more=("-pl", "nnUNetPlans2D"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("num_epoch=3", "num_epochs"),
        ("num_epochs=three", "num_epochs"),
        ("num_epochs", "key=value"),
        ("num_epochs=0", "num_epochs"),
        ("initial_lr=-1", "initial_lr"),
        ("weight_decay=true", "weight_decay"),
        ("deep_supervision=maybe", "deep_supervision"),
    ],
)
def test_recipe_key_or_value(word: str, expected: str, train_refused: Refuses) -> None:
    train_refused(expected, more=("--set", word))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_asked_for_and_absent(train_refused: Refuses) -> None:
    train_refused("-device cuda", "-device cpu", more=("-device", "cuda"))


def test_fold_beyond_the_split(train_refused: Refuses) -> None:
    train_refused("no fold 5", "0 to 4", f=(0, 5))


@pytest.mark.parametrize("fold", ["first", "-1"])
def test_fold_that_is_none(fold: str, train_refused: Refuses) -> None:
    train_refused("-f", f=(fold,))


def test_fewer_than_five_cases(place: Workplace, train_refused: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    labels = sorted((place.preprocessed / "gt_segmentations").iterdir())
    for label in labels[4:]:
        label.rename(place.root / label.name)
    try:
        train_refused("4 training cases", "at least 5")
    finally:
        for label in labels[4:]:
            (place.root / label.name).rename(label)


def test_cases_that_are_not_preprocessed(place: Workplace, train_refused: Refuses) -> None:
    image = place.preprocessed / "Spacing__1.00_1.00_1.00___Norm__Z" / "MNI_002.b2nd"
    image.rename(place.root / image.name)
    try:
        train_refused("1 of 6 cases (MNI_002)", "nnUNetv2_preprocess_like_nnssl")
    finally:
        (place.root / image.name).rename(image)


def test_c_with_val(train_refused: Refuses) -> None:
    train_refused("--c", "--val", more=("--c", "--val"))


def test_val_before_the_training_is_finished(train_refused: Refuses) -> None:
    train_refused("checkpoint_final.pth", more=("--val",))


def test_unknown_plan(train_refused: Refuses, planned_resenc: Model) -> None:
    train_refused("no plan ptPlans__other", planned_resenc.long_name, p="ptPlans__other")


def test_nnunets_own_plan(train_refused: Refuses) -> None:
    train_refused("nnUNetPlans (-p) is nnU-Net's own plan", "nnUNetv2_preprocess_like_nnssl", p="nnUNetPlans")


def test_a_plan_of_which_one_file_was_edited(place: Workplace, train_refused: Refuses, planned_resenc: Model) -> None:
    path = place.preprocessed / f"{planned_resenc.long_name}.json"
    before = path.read_text()
    plan = json.loads(before)
    plan["configurations"]["3d_fullres"]["batch_size"] = 4
    path.write_text(json.dumps(plan))
    try:
        for name in (planned_resenc.long_name, planned_resenc.inner_name):
            train_refused("configurations.3d_fullres.batch_size", "4", "2", p=name)
    finally:
        path.write_text(before)


def test_unknown_configuration(train_refused: Refuses) -> None:
    train_refused("3d_fullres", "2d", c="2d")


def test_unknown_trainer(train_refused: Refuses) -> None:
    train_refused("PretrainedTrainer", "nnUNetTrainer", more=("-tr", "nnUNetTrainer"))


def test_pretrained_weights_that_changed_since_planning(
    place: Workplace, train_refused: Refuses, tmp_path: Path
) -> None:
    other = changed_checkpoint(tmp_path, lambda c: c.update(citations=[]))
    train_refused("sha256", more=("-overwrite_ckpt_path", other))


def test_pretrained_weights_that_are_nowhere(place: Workplace, train_refused: Refuses, planned_resenc: Model) -> None:
    paths = [place.preprocessed / f"{n}.json" for n in (planned_resenc.long_name, planned_resenc.inner_name)]
    before = [p.read_text() for p in paths]
    for path in paths:
        path.write_text(path.read_text().replace(str(TINY_RESENC), "/moved/away"))
    try:
        train_refused("/moved/away/checkpoint_final.pth", "-overwrite_ckpt_path")
    finally:
        for path, text in zip(paths, before, strict=True):
            path.write_text(text)


def test_folds_of_two_plans_in_one_results_folder(
    place: Workplace, train_refused: Refuses, plan_refused: Refuses, planned_resenc: Model
) -> None:
    folder = place.results / planned_resenc.folder.name
    plan = place.plan(planned_resenc.inner_name)
    plan["configurations"]["3d_fullres"]["patch_size"] = [64, 64, 64]
    (folder / "fold_1").mkdir(parents=True)
    (folder / "fold_1" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps(plan))
    train_refused("fold_1", "configurations.3d_fullres.patch_size ([64, 64, 64] and [32, 32, 32])")
    train_refused("fold_1", "patch_size", f=(1,), more=("--c",))
    plan_refused("was trained with an earlier plan", "patch_size", n="tiny", more=("-am", "like_pretrained"))


@pytest.mark.parametrize("main", [preprocess_like_nnssl.main, train_pretrained.main])
def test_arguments_that_are_missing_or_unknown(main: Callable, refused: Refuses) -> None:
    refused(main, [], "--help")
    refused(main, ["-d", 999, "--nonsense"], "--help")


def test_the_module_names_its_commands_when_one_is_unknown(place: Workplace) -> None:
    result = run_command("python", "-m", "nnunetv2_ext", "trane", env=place.env, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "train_pretrained" in result.stderr


def test_verbose_shows_the_traceback(place: Workplace) -> None:
    arguments = ("-d", 999, "-n", "a", "-pc", "/nothing.pth", "--verbose")
    result = run_command("nnUNetv2_preprocess_like_nnssl", *arguments, env=place.env, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
