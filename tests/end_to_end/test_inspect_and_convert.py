"""What a checkpoint is, and making one of weights that do not say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import convert_pretrained_checkpoint, inspect_pretrained_checkpoint
from tests.commands import run_command
from tests.conftest import TINY_PRIMUS, TINY_RESENC, Model, StockModel, Workplace, copy_of, preprocess

Inspected = Converted = Callable[..., dict]
ARCH = TINY_RESENC / "adaptation_plan.json"


@pytest.fixture(scope="module")
def place(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return copy_of(planned_resenc.workplace, tmp_path_factory.mktemp("inspected"))


@pytest.fixture
def inspected(place: Workplace, output_of: Callable[..., str]) -> Inspected:
    """What nnUNetv2_inspect_pretrained_checkpoint --json prints."""

    def call(source: Path, *options: object) -> dict:
        return json.loads(output_of(place, inspect_pretrained_checkpoint.main, "-pc", source, "--json", *options))

    return call


@pytest.fixture
def converted(place: Workplace, output_of: Callable[..., str]) -> Converted:
    """The adaptation plan that nnUNetv2_convert_pretrained_checkpoint writes."""

    def call(source: Path, folder: Path, *options: object) -> dict:
        output_of(place, convert_pretrained_checkpoint.main, "-pc", source, "-o", folder, *options)
        return json.loads((folder / "adaptation_plan.json").read_text())

    return call


def files(place: Workplace) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in place.root.rglob("*")}


def own_parameters(checkpoint: Path, prefix: str) -> tuple[int, int]:
    """Tensors and parameters below a name, each once, by the storage that they have in the file."""
    weights = torch.load(checkpoint, weights_only=True)["network_weights"]
    once = {tensor.data_ptr(): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return len(once), sum(tensor.numel() for tensor in once.values())


def test_the_table_says_what_an_nnssl_checkpoint_is(place: Workplace) -> None:
    table = run_command("nnUNetv2_inspect_pretrained_checkpoint", "-pc", TINY_RESENC, env=place.env).stdout
    for words in ("nnssl checkpoint", "TinyResEncMAETrainer", "ResidualEncoderUNet", "1 x 1 x 1", "32 x 32 x 32"):
        assert words in table
    assert "Revisiting MAE pre-training for 3D medical image segmentation" in table
    assert "@article{fonov2011unbiased" in table


@pytest.mark.parametrize(
    ("folder", "encoder", "stem"),
    [(TINY_RESENC, "encoder.stages.", "encoder.stem."), (TINY_PRIMUS, "eva.", "down_projection.")],
)
def test_json_counts_every_parameter_of_a_part_once(
    folder: Path, encoder: str, stem: str, inspected: Inspected
) -> None:
    found = inspected(folder)
    parts = {row["part"]: (row["tensors"], row["parameters"]) for row in found["parts"]}
    checkpoint = folder / "checkpoint_final.pth"
    assert parts["encoder"] == own_parameters(checkpoint, encoder)
    assert parts["stem"] == own_parameters(checkpoint, stem)
    assert found["pretrain_spacing"] == [1.0, 1.0, 1.0]
    assert found["pretrain_patch_size"] == [32, 32, 32]
    assert found["pretrain_num_input_channels"] == 1


def test_json_of_an_nnunet_model_has_what_its_plans_say(plain_model: StockModel, inspected: Inspected) -> None:
    found = inspected(plain_model.folder)
    configuration = json.loads((plain_model.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert found["kind"] == "nnU-Net model"
    assert found["trainer_name"] == "nnUNetTrainerTiny"
    assert found["architecture"] == "PlainConvUNet"
    assert found["pretrain_num_input_channels"] == 4
    assert found["pretrain_patch_size"] == configuration["patch_size"]
    assert found["pretrain_spacing"] == configuration["spacing"]
    assert found["labels"] == {"background": 0, "grey_matter": 1, "white_matter": 2}


def test_with_a_plan_for_the_checkpoint_all_of_it_arrives_and_nothing_is_written(
    planned_resenc: Model, place: Workplace, inspected: Inspected
) -> None:
    before = files(place)
    found = inspected(TINY_RESENC, "-d", 999, "-p", planned_resenc.long_name)
    assert found["transfer"]["coverage"] == 1.0
    actions = {t["part"]: set() for t in found["transfer"]["tensors"]}
    for tensor in found["transfer"]["tensors"]:
        actions[tensor["part"]].add(tensor["action"])
    assert actions == {"stem": {"copied"}, "encoder": {"copied"}, "decoder": {"fresh"}, "head": {"fresh"}}
    assert files(place) == before


def test_with_nnunets_own_plan_it_shows_what_the_dynamic_route_would_take(
    plain_model: StockModel, place: Workplace, output_of: Callable[..., str]
) -> None:
    options = ("-pc", plain_model.folder, "-d", "Dataset999_MNI", "-p", "nnUNetPlans")
    table = output_of(place, inspect_pretrained_checkpoint.main, *options)
    assert "of encoder and stem arrive" in table
    assert "4 input channels to 1" in table


def test_an_architecture_is_taken_for_weights_that_do_not_say(inspected: Inspected, tmp_path: Path) -> None:
    weights = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)["network_weights"]
    torch.save(weights, tmp_path / "weights.pth")
    assert inspected(tmp_path / "weights.pth")["architecture"] is None
    found = inspected(tmp_path / "weights.pth", "-arch", ARCH)
    assert found["architecture"] == "ResidualEncoderUNet"
    assert found["key_to_stem"] == "encoder.stem"


def test_nan_is_shown_not_refused(inspected: Inspected, tmp_path: Path) -> None:
    content = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)
    name = "encoder.stages.2.blocks.0.conv1.conv.bias"
    content["network_weights"][name][3] = float("nan")
    torch.save(content, tmp_path / "diverged.pth")
    assert inspected(tmp_path / "diverged.pth")["not_finite"] == [name]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_weights_are_converted_to_what_nnssl_wrote_and_planned_from(
    prefix: str, place: Workplace, tmp_path: Path
) -> None:
    original = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)
    weights, folder = original["network_weights"], tmp_path / "new"
    torch.save({"state_dict": {f"{prefix}{k}": v for k, v in weights.items()}}, tmp_path / "weights.pth")
    run_command(
        "nnUNetv2_convert_pretrained_checkpoint", "-pc", tmp_path / "weights.pth", "-o", folder, "-arch", ARCH,
        env=place.env,
    )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in TINY_RESENC.iterdir())
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert list(content["network_weights"]) == list(weights)
    assert all(torch.equal(v, weights[k]) for k, v in content["network_weights"].items())
    plan = json.loads((folder / "adaptation_plan.json").read_text())
    assert content["nnssl_adaptation_plan"] == plan
    for key in ("key_to_encoder", "key_to_stem", "pretrain_num_input_channels"):
        assert plan[key] == original["nnssl_adaptation_plan"][key]
    output = preprocess(place, "converted", folder, "-am", "like_pretrained", "--no_pp")
    assert "100.0% of encoder and stem arrive" in output


def test_wrappers_prefixes_are_taken_off_the_names(
    plain_model: StockModel, converted: Converted, tmp_path: Path
) -> None:
    weights = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    torch.save({"model": {f"_orig_mod.module.{k}": v for k, v in weights.items()}}, tmp_path / "weights.pth")
    plan = converted(tmp_path / "weights.pth", tmp_path / "new", "-arch", plain_model.folder / "plans.json")
    assert plan["key_to_encoder"] == "encoder.stages"
    content = torch.load(tmp_path / "new" / "checkpoint_final.pth", weights_only=True)
    assert list(content["network_weights"]) == list(weights)
    assert (tmp_path / "new" / "checkpoint_final.pth").stat().st_size < 1.1 * plain_model.checkpoint.stat().st_size


def test_the_converted_checkpoint_is_understood_without_the_files_beside_it(
    inspected: Inspected, converted: Converted, tmp_path: Path
) -> None:
    weights = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)["network_weights"]
    torch.save(weights, tmp_path / "weights.pth")
    converted(tmp_path / "weights.pth", tmp_path / "new", "-arch", ARCH)
    alone = shutil.copy(tmp_path / "new" / "checkpoint_final.pth", tmp_path / "alone.pth")
    assert inspected(alone)["architecture"] == "ResidualEncoderUNet"


def test_a_missing_key_is_completed_and_flags_win(converted: Converted, tmp_path: Path) -> None:
    content = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)
    del content["nnssl_adaptation_plan"]["key_to_stem"]
    torch.save(content, tmp_path / "incomplete.pth")
    plan = converted(tmp_path / "incomplete.pth", tmp_path / "new", "-spacing", 2, 1, 1.5, "-patch_size", 64, 32, 32)
    assert plan["key_to_stem"] == "encoder.stem"
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert (configuration["spacing"], configuration["patch_size"]) == ([2.0, 1.0, 1.5], [64, 32, 32])


def test_an_nnunet_model_becomes_an_nnssl_checkpoint(
    plain_model: StockModel, inspected: Inspected, converted: Converted, tmp_path: Path
) -> None:
    plan = converted(plain_model.folder, tmp_path / "new")
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"
    assert plan["pretrain_num_input_channels"] == 4
    assert inspected(tmp_path / "new")["kind"] == "nnssl checkpoint"
