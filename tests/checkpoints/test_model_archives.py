"""A zip of a model is the model in it, and nothing that a zip holds is ever written outside the cache."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import SUPERVISED, PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import locate_recorded_checkpoint, resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.checkpoints.models import copy_of_model, edit_plans, trained_weights, zip_of
from tests.commands import run_command
from tests.conftest import StockModel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("nnssl_pretrained_models", raising=False)
    return tmp_path / "cache" / "nnunetv2_ext" / "models"


@pytest.fixture(scope="module")
def exported(plain_model: StockModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by stock nnU-Net's own command."""
    path = tmp_path_factory.mktemp("exported") / "Task 997.zip"
    run_command(
        "nnUNetv2_export_model_to_zip", "-d", 997, "-o", path, "-c", "3d_fullres", "-f", 0,
        "-tr", "nnUNetTrainerTiny", "-p", "nnUNetPlans", env=plain_model.workplace.env,
    )  # fmt: skip
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model folder with a checkpoint that is quick to pack."""
    folder = tmp_path / "made" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text('{"configurations": {"3d_fullres": {}}}')
    (folder / "dataset.json").write_text("{}")
    torch.save({"network_weights": {"a": torch.arange(2000.0)}}, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def read(source: Path) -> PretrainedCheckpoint:
    return read_checkpoint(resolve_checkpoint_source(str(source)))


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(source)
    message = str(caught.value)
    assert str(source) in message
    assert "\n" not in message
    return message


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def test_an_exported_model_is_the_model(exported: Path, plain_model: StockModel) -> None:
    found, folder = read(exported), read(plain_model.folder)
    weights = trained_weights(plain_model.checkpoint)
    assert list(found.network_weights) == list(weights)
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)
    assert found.kind == SUPERVISED
    assert (found.plan, found.dataset_json) == (folder.plan, folder.dataset_json)


def test_only_what_is_needed_is_unpacked(exported: Path, cache: Path) -> None:
    found = resolve_checkpoint_source(str(exported))
    assert found.path.is_relative_to(cache)
    assert found.model_folder is not None
    assert found.model_folder.name == "nnUNetTrainerTiny__nnUNetPlans__3d_fullres"
    assert files_below(found.model_folder) == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth"}
    assert any(name.endswith("progress.png") for name in zipfile.ZipFile(exported).namelist())


def test_a_zip_is_unpacked_once(exported: Path) -> None:
    inodes = [resolve_checkpoint_source(str(exported)).path.stat().st_ino for _ in range(2)]
    assert inodes[0] == inodes[1]


def test_a_moved_or_renamed_zip_is_not_unpacked_again(exported: Path, tmp_path: Path) -> None:
    first = resolve_checkpoint_source(str(exported)).path
    assert resolve_checkpoint_source(shutil.copy(exported, tmp_path / "other name")).path == first


def test_another_zip_of_the_same_name_is_another_model(small: Path, tmp_path: Path) -> None:
    first = resolve_checkpoint_source(str(zip_of(tmp_path / "m.zip", small))).path
    torch.save({"network_weights": {"a": torch.zeros(2000)}}, small / "fold_0" / "checkpoint_final.pth")
    second = resolve_checkpoint_source(str(zip_of(tmp_path / "m.zip", small))).path
    assert first != second
    assert first.read_bytes() != second.read_bytes() == (small / "fold_0" / "checkpoint_final.pth").read_bytes()


def test_what_is_gone_from_the_cache_is_unpacked_again(exported: Path, cache: Path, plain_model: StockModel) -> None:
    resolve_checkpoint_source(str(exported))
    shutil.rmtree(cache)
    assert resolve_checkpoint_source(str(exported)).path.read_bytes() == plain_model.checkpoint.read_bytes()


def test_a_half_emptied_cache_is_completed(exported: Path) -> None:
    found = resolve_checkpoint_source(str(exported))
    whole = found.path.read_bytes()
    found.path.write_bytes(whole[: len(whole) // 2])
    assert resolve_checkpoint_source(str(exported)).path.read_bytes() == whole


def test_the_weights_of_a_plan_are_found_again_through_the_zip(
    exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(exported.parent)
    found = resolve_checkpoint_source(exported.name)
    recorded = {
        "checkpoint_path": str(found.path),
        "checkpoint_source": found.source,
        "checkpoint_sha256": hashlib.sha256(found.path.read_bytes()).hexdigest(),
    }
    monkeypatch.chdir(tmp_path)
    assert locate_recorded_checkpoint(recorded).path == found.path
    shutil.rmtree(cache)
    again = locate_recorded_checkpoint(recorded)
    assert again.path == found.path
    assert again.path.is_file()


def test_the_zip_may_be_named_as_the_new_place_of_the_weights(exported: Path, plain_model: StockModel) -> None:
    sha256 = hashlib.sha256(plain_model.checkpoint.read_bytes()).hexdigest()
    recorded = {"checkpoint_path": "/gone/checkpoint_final.pth", "checkpoint_sha256": sha256}
    found = locate_recorded_checkpoint(recorded, overwrite=str(exported))
    assert found.path.read_bytes() == plain_model.checkpoint.read_bytes()


@pytest.mark.parametrize("root", ["Dataset997_Source", "a/b/c", "."])
def test_the_model_may_lie_at_any_depth(small: Path, tmp_path: Path, root: str) -> None:
    found = resolve_checkpoint_source(str(zip_of(tmp_path / "m.zip", small, root=root)))
    assert found.path.read_bytes() == (small / "fold_0" / "checkpoint_final.pth").read_bytes()


def test_a_zip_of_the_folder_s_content_takes_its_configuration_from_the_checkpoint(
    plain_model: StockModel, tmp_path: Path
) -> None:
    path = tmp_path / "content.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
            archive.write(plain_model.folder / name, name)
    assert read(path).plan == read(plain_model.folder).plan


UNSAFE = [
    "../evil",
    "Dataset997_Source/../../../evil",
    "fold_0/..",
    "/evil",
    "//evil",
    "..\\..\\evil",
    "a\\..\\..\\evil",
    "\\evil",
    "C:\\evil",
    "c:evil",
    "C:/evil",
    "../plans.json",
    "Dataset997_Source/nnUNetTrainer__nnUNetPlans__3d_fullres/../../../../fold_0/checkpoint_final.pth",
]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("first", [True, False])
def test_a_member_that_would_leave_the_folder_refuses_the_zip_before_anything_is_unpacked(
    small: Path, tmp_path: Path, cache: Path, name: str, first: bool
) -> None:
    path = tmp_path / "m.zip"
    if first:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), b"evil")
    else:
        zip_of(path, small)
    with zipfile.ZipFile(path, "a") as archive:
        if first:
            for file in files_below(small):
                archive.write(small / file, f"Dataset997_Source/{small.name}/{file}")
        else:
            archive.writestr(zipfile.ZipInfo(name), b"evil")
    before = files_below(tmp_path)
    assert "nothing of it unpacked" in refusal(path)
    assert files_below(tmp_path) == before
    assert not cache.exists()
    assert not Path("/evil").exists()


@pytest.mark.parametrize("target", ["/etc", "../../..", "plans.json"])
def test_a_link_in_a_zip_refuses_it(small: Path, tmp_path: Path, cache: Path, target: str) -> None:
    path = zip_of(tmp_path / "m.zip", small)
    link = zipfile.ZipInfo(f"Dataset997_Source/{small.name}/fold_1")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, target)
    assert "nothing of it unpacked" in refusal(path)
    assert not cache.exists()


def test_a_zip_of_nothing_but_a_plan_outside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("../plans.json", "{}")
    assert "nothing of it unpacked" in refusal(tmp_path / "m.zip")


def test_of_several_configurations_full_resolution_is_taken(small: Path, tmp_path: Path) -> None:
    others = [copy_of_model(small, small.with_name(f"nnUNetTrainer__nnUNetPlans__{c}")) for c in ("2d", "3d_lowres")]
    found = resolve_checkpoint_source(str(zip_of(tmp_path / "m.zip", *others, small)))
    assert found.model_folder is not None
    assert found.model_folder.name == small.name


@pytest.mark.parametrize("names", [("A__P__3d_fullres", "B__P__3d_fullres"), ("A__P__2d", "A__P__3d_lowres")])
def test_a_zip_of_two_models_is_refused_with_their_names(small: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    message = refusal(zip_of(tmp_path / "m.zip", *(copy_of_model(small, tmp_path / name) for name in names)))
    assert "holds 2 models" in message
    assert all(f"Dataset997_Source/{name}" in message for name in names)


@pytest.mark.parametrize(
    ("missing", "said"), [("dataset.json", "no dataset.json"), ("fold_0/checkpoint_final.pth", "no checkpoint")]
)
def test_an_incomplete_model_in_a_zip_is_refused(small: Path, tmp_path: Path, missing: str, said: str) -> None:
    (small / missing).unlink()
    assert said in refusal(zip_of(tmp_path / "m.zip", small))


def test_a_zip_without_a_model_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no plans.json" in refusal(tmp_path / "m.zip")


def test_a_2d_model_in_a_zip_is_refused(plain_model: StockModel, tmp_path: Path) -> None:
    folder = copy_of_model(plain_model.folder, tmp_path / "nnUNetTrainer__nnUNetPlans__2d")
    edit_plans(folder, **{"3d_fullres": None})
    with pytest.raises(UserError, match="is 2D"):
        read(zip_of(tmp_path / "m.zip", folder))


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9, 0.9999])
def test_a_zip_cut_off_is_called_so(exported: Path, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "m.zip"
    with exported.open("rb") as file:
        path.write_bytes(file.read(int(kept * exported.stat().st_size)))
    assert "is cut off" in refusal(path)


def test_a_damaged_member_is_named_and_no_part_of_it_kept(small: Path, tmp_path: Path, cache: Path) -> None:
    path = zip_of(tmp_path / "m.zip", small)
    with zipfile.ZipFile(path) as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith(".pth"))
    content = bytearray(path.read_bytes())
    content[member.header_offset + 4000] ^= 1
    path.write_bytes(content)
    message = refusal(path)
    assert "is damaged" in message
    assert "checkpoint_final.pth" in message
    assert not any("checkpoint" in name for name in files_below(cache))


def test_a_zip_damaged_anywhere_is_read_or_refused_but_never_raises_otherwise(small: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files_below(small)):
            archive.write(small / file, f"{small.name}/{file}")
    whole = (tmp_path / "packed.zip").read_bytes()
    dice, messages, path = random.Random(0), [], tmp_path / "m.zip"
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] = dice.randrange(256)
        damaged[-dice.randrange(1, 700)] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            resolve_checkpoint_source(str(path))
        except UserError as error:
            messages.append(str(error))
    assert 20 < len(messages) < 200
    assert not any("\n" in message for message in messages)


def test_a_cache_that_cannot_be_written_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert "XDG_CACHE_HOME" in refusal(zip_of(tmp_path / "m.zip", small))


class RunsCodeWhenLoaded:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("packed", [True, False])
def test_a_checkpoint_in_a_model_that_would_run_code_is_refused_unexecuted(
    plain_model: StockModel, tmp_path: Path, packed: bool
) -> None:
    folder = copy_of_model(plain_model.folder, tmp_path / plain_model.folder.name)
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    checkpoint.unlink()  # a link to the session's model
    torch.save({**content, "logging": RunsCodeWhenLoaded(f"touch '{tmp_path}/executed'")}, checkpoint)
    with pytest.raises(UserError, match=r"nothing of it executed: it asks for 'posix\.system'"):
        read(zip_of(tmp_path / "m.zip", folder) if packed else folder)
    assert not (tmp_path / "executed").exists()


def test_processes_may_unpack_the_same_zip_at_once(exported: Path, plain_model: StockModel, cache: Path) -> None:
    code = (
        "import sys; from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source as resolve\n"
        "sys.stdin.readline(); print(resolve(sys.argv[1]).path)"
    )
    command = [sys.executable, "-c", code, str(exported)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    (path,) = paths
    assert Path(path).read_bytes() == plain_model.checkpoint.read_bytes()
    assert not [name for name in files_below(cache) if name.endswith(".tmp")]
