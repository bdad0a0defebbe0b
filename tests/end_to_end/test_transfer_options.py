"""What the flags of the planning commands change in the transfer, by the plans and reports that the commands leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import plan_like_dynamic, preprocess_like_nnssl
from tests.commands import nnunet_environment, run_command
from tests.conftest import TINY_RESENC, StockModel, Workplace, copy_of

Plans = Callable[..., str]


@pytest.fixture
def planned(output_of: Callable[..., str]) -> Plans:
    """What nnUNetv2_plan_like_dynamic prints."""

    def call(place: Workplace, name: str, source: Path, *options: object) -> str:
        arguments = ("-d", place.dataset_id, "-n", name, "-pc", source, "--no_pp", *options)
        return output_of(place, plan_like_dynamic.main, *arguments)

    return call


def request(place: Workplace, name: str) -> dict:
    return place.plan(f"ptPlans_dynamic__{name}")["pretrain_info"]["transfer"]


def rows(output: str) -> set[tuple[str, str]]:
    """Part and action in the printed table."""
    found, part = set(), ""
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) == 4 and cells[1] in ("copied", "adapted", "fresh"):
            part = cells[0] or part
            found.add((part, cells[1]))
    return found


def test_a_supervised_model_brings_its_decoder_by_default(
    planned: Plans, plain_model: StockModel, target: Workplace
) -> None:
    output = planned(target, "default", plain_model.folder)
    assert request(target, "default")["load"] == "encoder+decoder"
    assert ("decoder", "copied") in rows(output)
    assert ("head", "fresh") in rows(output)


def test_load_encoder_leaves_the_decoder_fresh(planned: Plans, plain_model: StockModel, target: Workplace) -> None:
    output = planned(target, "encoder", plain_model.folder, "-load", "encoder")
    assert {row for row in rows(output) if row[0] == "decoder"} == {("decoder", "fresh")}
    assert ("encoder", "copied") in rows(output)


def test_a_self_supervised_checkpoint_brings_all_of_its_encoder_and_no_more_by_default(
    output_of: Callable[..., str], target: Workplace
) -> None:
    output = output_of(
        target, preprocess_like_nnssl.main, "-d", 998, "-n", "tiny", "-pc", TINY_RESENC, "-ps", 16, 32, 32, "--no_pp"
    )
    assert {row for row in rows(output) if row[0] == "decoder"} == {("decoder", "fresh")}
    (path,) = target.preprocessed.glob("ptPlans__tiny____*.json")
    transfer = json.loads(path.read_text())["pretrain_info"]["transfer"]
    assert transfer == {"load": "encoder", "keep_head": False, "channel_map": None, "min_coverage": 1.0}


@pytest.fixture(scope="module")
def same_labels(
    source_workplace: Workplace, plain_model: StockModel, tmp_path_factory: pytest.TempPathFactory
) -> Workplace:
    """The dataset that the model was trained on, in folders of their own."""
    return copy_of(source_workplace, tmp_path_factory.mktemp("same_labels"))


def test_keep_head_brings_the_head_where_the_labels_are_equal(
    planned: Plans, plain_model: StockModel, same_labels: Workplace
) -> None:
    output = planned(same_labels, "head", plain_model.folder, "-keep_head")
    assert rows(output) == {(part, "copied") for part in ("stem", "encoder", "decoder", "head")}
    assert request(same_labels, "head")["keep_head"] is True


def test_without_keep_head_it_is_fresh_even_where_the_labels_are_equal(
    planned: Plans, plain_model: StockModel, same_labels: Workplace
) -> None:
    assert ("head", "fresh") in rows(planned(same_labels, "no-head", plain_model.folder))


def test_a_channel_map_is_in_the_plan_and_said(planned: Plans, plain_model: StockModel, target: Workplace) -> None:
    output = planned(target, "channels", plain_model.folder, "-cm", 3, "none")
    assert request(target, "channels")["channel_map"] == [3, None]
    assert "channels 3 none of 4" in output


def test_min_coverage_is_in_the_plan_and_lets_less_through(
    planned: Plans, plain_model: StockModel, target: Workplace, tmp_path: Path
) -> None:
    weights = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    first = {name: value for name, value in weights.items() if name.startswith("encoder.stages.0.")}
    torch.save(first, tmp_path / "stem.pth")
    with pytest.raises(SystemExit):
        planned(target, "little", tmp_path / "stem.pth")
    output = planned(target, "little", tmp_path / "stem.pth", "-min_coverage", 0.001)
    assert request(target, "little")["min_coverage"] == 0.001
    assert ("encoder", "fresh") in rows(output)


def test_half_precision_is_converted_and_said(
    planned: Plans, plain_model: StockModel, target: Workplace, tmp_path: Path
) -> None:
    weights = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    torch.save({"model": {name: value.half() for name, value in weights.items()}}, tmp_path / "half.pth")
    assert "float16 as float32" in planned(target, "half", tmp_path / "half.pth")


def test_the_dynamic_route_takes_another_batch_patch_and_normalisation(
    planned: Plans, plain_model: StockModel, target: Workplace
) -> None:
    planned(target, "other", plain_model.folder, "-bs", 3, "-ps", 8, 64, 48, "-norm", "zscore")
    configuration = target.plan("ptPlans_dynamic__other")["configurations"]["3d_fullres"]
    assert (configuration["batch_size"], configuration["patch_size"]) == (3, [8, 64, 48])


@pytest.fixture
def two_datasets(anisotropic_workplace: Workplace, workplace: Workplace, tmp_path: Path) -> Workplace:
    """Two channels and two labels; one channel and three labels."""
    place = Workplace(tmp_path, nnunet_environment(tmp_path), anisotropic_workplace.dataset)
    for other in (anisotropic_workplace, workplace):
        (tmp_path / "nnUNet_raw" / other.dataset).symlink_to(other.raw)
        folder = tmp_path / "nnUNet_preprocessed" / other.dataset
        folder.mkdir()
        for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            (folder / name).write_bytes((other.preprocessed / name).read_bytes())
    return place


def test_one_checkpoint_is_planned_for_two_datasets_at_once(plain_model: StockModel, two_datasets: Workplace) -> None:
    result = run_command(
        "nnUNetv2_plan_like_dynamic", "-d", 998, "Dataset999_MNI", "-n", "both", "-pc", plain_model.folder, "--no_pp",
        env=two_datasets.env,
    )  # fmt: skip
    for dataset, channels in ((998, 2), (999, 1)):
        command = f"nnUNetv2_train_pretrained -d {dataset} -c 3d_fullres -f 0 -p ptPlans_dynamic__both"
        assert command in result.stdout
        assert f"4 input channels to {channels}" in result.stdout
