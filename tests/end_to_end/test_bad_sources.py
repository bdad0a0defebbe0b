"""Sources that are not what they should be, and flags that do not fit them: one line, exit code 1, nothing written."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.cli import (
    convert_pretrained_checkpoint,
    inspect_pretrained_checkpoint,
    plan_like_dynamic,
    preprocess_like_nnssl,
)
from tests.conftest import TINY_RESENC, StockModel, Workplace, copy_of
from tests.end_to_end.refusal import Harmful, Refuses

FIRST = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.fixture(scope="module")
def place(anisotropic_workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two channels, labels background and brain."""
    return copy_of(anisotropic_workplace, tmp_path_factory.mktemp("bad_sources"))


@pytest.fixture
def plan_refused(refused: Refuses) -> Refuses:
    """By nnUNetv2_plan_like_dynamic."""

    def call(*expected: str, pc: object, d: object = 998, n: str = "bad", more: tuple = ()) -> str:
        return refused(plan_like_dynamic.main, ["-d", d, "-n", n, "-pc", pc, "-np", 1, "--no_pbar", *more], *expected)

    return call


def model_with(plain_model: StockModel, folder: Path, content: Mapping[str, Any] | None = None) -> Path:
    """A copy of the trained model's folder, under its own name, without its validation."""
    copy = folder / plain_model.folder.name
    (copy / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(plain_model.folder / name, copy)
    if content is None:
        shutil.copy(plain_model.checkpoint, copy / "fold_0")
    else:
        torch.save(content, copy / "fold_0" / "checkpoint_final.pth")
    return copy


def weights_changed(plain_model: StockModel, path: Path, change: Callable[[dict], object]) -> Path:
    """The model's tensors, changed, as a bare state dict."""
    weights = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    once = {k: v.clone() for k, v in weights.items() if "all_modules" not in k and not k.startswith("decoder.encoder")}
    torch.save(change(once) or once, path)
    return path


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "harmful",
    [
        member("../outside.txt"),
        member("Model__Plans__3d_fullres/../../outside.txt"),
        member("/tmp/outside.txt"),
        member("..\\outside.txt"),
        member("C:\\outside.txt"),
        member("Model__Plans__3d_fullres/fold_0", stat.S_IFLNK | 0o777),
    ],
    ids=lambda info: info.filename,
)
def test_a_zip_whose_members_would_leave_the_folder_is_refused_and_not_unpacked(
    harmful: zipfile.ZipInfo, plan_refused: Refuses, refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in model_with(plain_model, tmp_path / "model").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "model"))
        archive.writestr(harmful, "/tmp")
    cache = Path(plain_model.workplace.env["XDG_CACHE_HOME"])
    before = sorted(cache.rglob("*"))
    plan_refused("model.zip", harmful.filename, "outside the target folder", pc=path)
    refused(inspect_pretrained_checkpoint.main, ["-pc", path], "outside the target folder")
    refused(convert_pretrained_checkpoint.main, ["-pc", path, "-o", tmp_path / "new"], "outside the target folder")
    assert sorted(cache.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.zip"]


@pytest.mark.parametrize("missing", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_a_model_folder_that_is_not_whole(
    missing: str, plan_refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    folder = model_with(plain_model, tmp_path)
    (folder / missing).unlink()
    plan_refused(str(folder), "no checkpoint" if missing.startswith("fold") else f"no {missing}", pc=folder)


def test_a_folder_of_several_models_names_them(plan_refused: Refuses, plain_model: StockModel, tmp_path: Path) -> None:
    folder = model_with(plain_model, tmp_path)
    plan_refused("give one of them", folder.name, pc=tmp_path)


@pytest.mark.parametrize("wrapped", ["model folder", "zip", "lightning"])
def test_code_in_any_kind_of_source_is_not_executed(
    wrapped: str, plan_refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    content = {"network_weights": {}, "state_dict": {}, "init_args": Harmful(touched)}
    if wrapped == "lightning":
        source = tmp_path / "epoch=3.ckpt"
        torch.save(content, source)
    else:
        source = model_with(plain_model, tmp_path / "model", content)
    if wrapped == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "model"))
    plan_refused("refused and nothing of it executed", pc=source)
    assert not touched.exists()


def test_a_pickle_with_the_ending_of_safetensors(plan_refused: Refuses, tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Harmful(touched), protocol=2))
    plan_refused("model.safetensors", pc=path)
    assert not touched.exists()


def test_a_safetensors_file_that_was_cut_off(plan_refused: Refuses, tmp_path: Path) -> None:
    from safetensors.torch import save

    path = tmp_path / "model.safetensors"
    path.write_bytes(save({FIRST: torch.zeros(32, 4, 3, 3, 3)})[:1000])
    plan_refused("model.safetensors", "download or copy it again", pc=path)


def test_names_that_match_nothing_are_answered_with_the_five_nearest(
    plan_refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    def rename(weights: dict) -> dict:
        return {n.replace("encoder.stages", "encoder.levels"): v for n, v in weights.items() if "decoder" not in n}

    message = plan_refused("nothing in common", pc=weights_changed(plain_model, tmp_path / "other.pth", rename))
    nearest = message.partition(" nearest to ")[2].partition(" are ")[2].partition(". ")[0].split(", ")
    assert len(nearest) == 5
    assert "encoder.levels.1.0.convs.0.conv.weight" in nearest
    assert "nnUNetv2_convert_pretrained_checkpoint" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(
    value: float, plan_refused: Refuses, refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    name = "encoder.stages.2.0.convs.1.conv.weight"
    path = weights_changed(plain_model, tmp_path / "diverged.pth", lambda w: w[name].view(-1)[7].fill_(value) and None)
    plan_refused(f"{name} holds NaN or inf", pc=path)
    plans = plain_model.folder / "plans.json"
    new = tmp_path / "new"
    refused(convert_pretrained_checkpoint.main, ["-pc", path, "-o", new, "-arch", plans], f"{name} holds NaN or inf")
    own = ["-d", 998, "-n", "bad", "-pc", path, "-arch", plans, "-am", "like_pretrained"]
    refused(preprocess_like_nnssl.main, own, f"{name} holds NaN or inf")
    assert not new.exists()


def test_a_2d_model(plan_refused: Refuses, plain_model: StockModel, tmp_path: Path) -> None:
    folder = model_with(plain_model, tmp_path)
    plan_refused("is 2D", "give a 3D model", pc=folder.rename(tmp_path / "nnUNetTrainerTiny__nnUNetPlans__2d"))


def test_weights_of_a_2d_network(plan_refused: Refuses, plain_model: StockModel, tmp_path: Path) -> None:
    def flatten(weights: dict) -> dict:
        return {name: value[..., 0] if value.ndim == 5 else value for name, value in weights.items()}

    path = weights_changed(plain_model, tmp_path / "flat.pth", flatten)
    plan_refused("2D network", "(32, 4, 3, 3)", pc=path)


def test_weights_of_another_width_are_no_match(plan_refused: Refuses, plain_model: StockModel, tmp_path: Path) -> None:
    def widen(weights: dict) -> dict:
        return {k: torch.cat([v, v]) if k.startswith("encoder.stages.3") else v for k, v in weights.items()}

    path = weights_changed(plain_model, tmp_path / "wide.pth", widen)
    plan_refused("must (-min_coverage)", "of another width", "encoder.stages.3", pc=path)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((0,), "-cm has 1 entries and the dataset 2"),
        ((0, 1, 2), "-cm has 3 entries and the dataset 2"),
        ((0, 4), "-cm names channel 4, and the checkpoint has 4 (0 to 3)"),
        (("none", "none"), "-cm maps no channel"),
        ((0, "T1"), "-cm takes the checkpoint's channels, counted from 0, or none, not 'T1'"),
        ((0, "1.5"), "'1.5'"),
        ((0, -1), "-1"),
    ],
)
def test_a_channel_map_that_does_not_fit(
    channels: tuple, expected: str, plan_refused: Refuses, plain_model: StockModel
) -> None:
    plan_refused(expected, pc=plain_model.folder, more=("-cm", *channels))


def test_the_head_of_other_labels(plan_refused: Refuses, plain_model: StockModel) -> None:
    plan_refused("-keep_head", "other labels", "brain: 1 here", pc=plain_model.folder, more=("-keep_head",))


def test_the_head_of_weights_that_do_not_say_their_labels(
    plan_refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    path = weights_changed(plain_model, tmp_path / "plain.pth", lambda weights: None)
    plan_refused("-keep_head", "does not say which labels", pc=path, more=("-keep_head", "-load", "encoder+decoder"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("-min_coverage", 1.5), "-min_coverage is a share from 0 to 1, not 1.5"),
        (("-min_coverage", -0.1), "-0.1"),
        (("-min_coverage", "nan"), "-min_coverage is a share from 0 to 1"),
        (("-min_coverage", "half"), "-min_coverage"),
        (("-load", "decoder"), "encoder+decoder"),
        (("-bs", 0), "-bs must be at least 1"),
        (("-np", 0), "-np must be at least 1"),
        (("-ps", 15, 48, 48), "each axis must be a multiple of"),
        (("-ps", 16, 48), "three positive numbers"),
        (("-pl", "nnUNetPlan"), "nnUNetPlan"),
        (("-norm", "ct"), "default_nnunet"),
        (("-am", "like_pretrained"), "-am"),
    ],
)
def test_options_of_the_dynamic_route(
    more: tuple, expected: str, plan_refused: Refuses, plain_model: StockModel
) -> None:
    plan_refused(expected.replace("three", "3"), pc=plain_model.folder, more=more)


@pytest.mark.parametrize(("d", "n"), [(123, "bad"), (998, "a__b"), (998, "../a")])
def test_dataset_or_name_of_the_dynamic_route(d: int, n: str, plan_refused: Refuses) -> None:
    plan_refused("123" if d == 123 else "(-n)", pc=TINY_RESENC, d=d, n=n)


def test_weights_without_a_description_need_another_route(
    refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    path = weights_changed(plain_model, tmp_path / "plain.pth", lambda weights: None)
    arguments = ["-d", 998, "-n", "bad", "-pc", path]
    refused(
        preprocess_like_nnssl.main, arguments,
        "-arch", "nnUNetv2_plan_like_dynamic", "nnUNetv2_convert_pretrained_checkpoint",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "more", "expected"),
    [
        ("ResEncXL", ("-ps", 32, 32, 32), "'ResEncXL' is not known; did you mean"),
        ("os.system", ("-ps", 32, 32, 32), "'os.system' is not known"),
        ("nothing.json", (), "there is no file nothing.json (-arch)"),
        ("dataset.json", (), "neither an adaptation plan"),
        ("ResEncL", (), "give -ps Z Y X"),
        ("ResEncL", ("-ps", 64, 64, 64), "key_to_stem"),
    ],
)
def test_an_architecture_that_cannot_be(
    arch: str, more: tuple, expected: str, refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    path = weights_changed(plain_model, tmp_path / "plain.pth", lambda weights: None)
    given = plain_model.folder / arch if arch == "dataset.json" else arch
    refused(preprocess_like_nnssl.main, ["-d", 998, "-n", "bad", "-pc", path, "-arch", given, *more], expected)


def test_an_architecture_for_a_checkpoint_that_says_its_own(refused: Refuses, plain_model: StockModel) -> None:
    for source in (TINY_RESENC, plain_model.folder):
        arguments = ["-d", 998, "-n", "bad", "-pc", source, "-arch", "ResEncL"]
        refused(preprocess_like_nnssl.main, arguments, "leave -arch out")
        refused(inspect_pretrained_checkpoint.main, ["-pc", source, "-arch", "ResEncL"], "leave -arch out")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("-d", 998), "-d and -p go together"),
        (("-p", "nnUNetPlans"), "-d and -p go together"),
        (("-d", 123, "-p", "nnUNetPlans"), "123"),
        (("-d", 998, "-p", "ptPlans__nobody"), "no plan ptPlans__nobody"),
    ],
)
def test_a_plan_that_cannot_be_inspected(more: tuple, expected: str, refused: Refuses) -> None:
    refused(inspect_pretrained_checkpoint.main, ["-pc", TINY_RESENC, *more], expected)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "give -arch"),
        (("-arch", "ResEncL"), "give -patch_size Z Y X"),
        (("-arch", "PLANS", "-spacing", 1, 1), "-spacing"),
        (("-arch", "PLANS", "-spacing", 1, 0, 1), "three positive numbers"),
        (("-arch", "PLANS", "-spacing", "nan", 1, 1), "three positive numbers"),
        (("-arch", "PLANS", "-patch_size", 32, -32, 32), "patch"),
        (("-arch", "PLANS", "-channels", 0), "-channels must be at least 1"),
        (("-arch", "PLANS", "-key_to_encoder", "encoder.stage"), "encoder.stages"),
        (("-arch", "PLANS", "-key_to_stem", "stem"), "key_to_stem"),
        (("-arch", "PLANS", "-keys_to_in_proj", "first"), "keys_to_in_proj"),
        (("-arch", "PLANS", "-key_to_lpe", "eva.pos_embed"), "key_to_lpe"),
    ],
)
def test_a_conversion_that_lacks_something_writes_nothing(
    more: tuple, expected: str, refused: Refuses, plain_model: StockModel, tmp_path: Path
) -> None:
    path = weights_changed(plain_model, tmp_path / "plain.pth", lambda weights: None)
    arguments = [plain_model.folder / "plans.json" if m == "PLANS" else m for m in more]
    refused(convert_pretrained_checkpoint.main, ["-pc", path, "-o", tmp_path / "new", *arguments], expected)
    assert not (tmp_path / "new").exists()


def test_a_conversion_never_writes_over_something(refused: Refuses, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(convert_pretrained_checkpoint.main, ["-pc", TINY_RESENC, "-o", tmp_path / "file"], "is a file")
    shutil.copytree(TINY_RESENC, tmp_path / "there")
    before = (tmp_path / "there" / "checkpoint_final.pth").stat().st_mtime_ns
    refused(convert_pretrained_checkpoint.main, ["-pc", TINY_RESENC, "-o", tmp_path / "there"], "already")
    assert (tmp_path / "there" / "checkpoint_final.pth").stat().st_mtime_ns == before


def test_a_plans_json_that_is_none(plan_refused: Refuses, plain_model: StockModel, tmp_path: Path) -> None:
    folder = model_with(plain_model, tmp_path)
    (folder / "plans.json").write_text("{")
    plan_refused("plans.json is not valid JSON", pc=folder)
    plans = json.loads((plain_model.folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(plans))
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint.unlink(missing_ok=True)
    weights = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    torch.save({"network_weights": weights}, checkpoint)  # without the plans of its own, which would win
    plan_refused("'os.system' is not known", pc=folder)
