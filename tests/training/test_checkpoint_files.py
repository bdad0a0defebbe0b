"""Checkpoints are whole or absent, one good copy is always there, and what is damaged is noticed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.checkpoint_files import (
    BEST,
    DAMAGED,
    FINAL,
    LATEST,
    PREVIOUS,
    continuing_from,
    held_in_memory,
    read_to_continue,
    read_training_checkpoint,
    remove_leftovers,
    save_whole,
    set_aside_damaged,
    without_numpy,
)
from tests.disks import fill, mounted


def content(epoch: int, *, size: int = 100) -> dict:
    generator = torch.Generator().manual_seed(epoch)
    return {"network_weights": {"a": torch.randn(size, generator=generator)}, "current_epoch": epoch}


def same(a: dict, b: dict) -> bool:
    weights = torch.equal(a["network_weights"]["a"], b["network_weights"]["a"])
    return weights and a["current_epoch"] == b["current_epoch"]


def flip(path: Path, position: int | None = None) -> None:
    """One bit of a byte, in the middle of the file unless told otherwise."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 128
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def epoch_in(folder: Path) -> int:
    found = read_to_continue(folder)
    assert found is not None
    return found.content["current_epoch"]


# written


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save_whole(content(3), tmp_path / LATEST)
    assert same(torch.load(tmp_path / LATEST, weights_only=True), content(3))
    assert os.listdir(tmp_path) == [LATEST]


def test_latest_becomes_previous_and_the_one_before_goes(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_whole(content(epoch), tmp_path / LATEST)
    assert same(torch.load(tmp_path / LATEST, weights_only=True), content(3))
    assert same(torch.load(tmp_path / PREVIOUS, weights_only=True), content(2))
    assert sorted(os.listdir(tmp_path)) == [LATEST, PREVIOUS]


@pytest.mark.parametrize("name", [BEST, FINAL])
def test_others_replace_themselves_alone(tmp_path: Path, name: str) -> None:
    save_whole(content(1), tmp_path / LATEST)
    for epoch in (1, 2):
        save_whole(content(epoch), tmp_path / name)
    assert same(torch.load(tmp_path / name, weights_only=True), content(2))
    assert sorted(os.listdir(tmp_path)) == sorted([LATEST, name])


def test_at_every_step_of_a_save_a_whole_checkpoint_is_there_and_the_new_one_is_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (1, 2):
        save_whole(content(epoch), tmp_path / LATEST)
    steps: list[str] = []

    def watched(name: str):
        real = getattr(os, name)

        def call(*arguments, **options):
            assert epoch_in(tmp_path) in (2, 3)
            result = real(*arguments, **options)
            assert epoch_in(tmp_path) in (2, 3)
            target = Path(arguments[-1]).name if name == "replace" else ""
            steps.append(f"{name} {target}".strip())
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, watched(name))
        save_whole(content(3), tmp_path / LATEST)
    assert epoch_in(tmp_path) == 3
    assert steps[0] == "fsync"
    assert [step for step in steps if step != "fsync"] == [f"replace {PREVIOUS}", f"replace {LATEST}"]
    assert steps[-1] == "fsync"  # the folder: the names are there after a power cut


class Unsaveable:
    def __reduce__(self) -> tuple:
        raise ValueError("cannot be saved")


def test_a_save_that_breaks_leaves_all_as_it_was(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_whole(content(epoch), tmp_path / LATEST)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="cannot be saved"):
        save_whole({**content(3, size=10**6), "last": Unsaveable()}, tmp_path / LATEST)
    assert files(tmp_path) == before


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path, umask: int) -> None:
    for epoch in (1, 2):
        save_whole(content(epoch), tmp_path / LATEST)
    (tmp_path / "ordinary").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (LATEST, PREVIOUS, "ordinary")}
    assert modes == {0o666 & ~umask}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=2m") as folder:
        yield folder


@pytest.mark.parametrize("left", [0, 4096, 300_000])  # not even a name, the beginning, nearly all
def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_is_as_it_was(small_disk: Path, left: int) -> None:
    for epoch in (1, 2):
        save_whole(content(epoch, size=100_000), small_disk / LATEST)
    before = {name: (small_disk / name).read_bytes() for name in (LATEST, PREVIOUS)}
    filling = fill(small_disk, leave=left)
    with pytest.raises(UserError, match=LATEST) as caught:
        save_whole(content(3, size=100_000), small_disk / LATEST)
    message = str(caught.value)
    assert f"{LATEST} and {PREVIOUS} are as they were" in message
    assert "--c" in message
    assert "\n" not in message
    filling.unlink()
    assert files(small_disk) == before
    save_whole(content(3, size=100_000), small_disk / LATEST)
    assert epoch_in(small_disk) == 3


def test_a_full_disk_at_the_first_checkpoint_does_not_name_others(small_disk: Path) -> None:
    fill(small_disk, leave=4096)
    with pytest.raises(UserError, match="make room; the same command with --c continues") as caught:
        save_whole(content(1, size=100_000), small_disk / LATEST)
    assert "No space left on device" in str(caught.value) or "write" in str(caught.value)
    assert os.listdir(small_disk) == ["filling"]


def test_an_error_that_is_none_of_the_disks_keeps_its_traceback(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> tuple:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        save_whole({**content(1), "last": Broken()}, tmp_path / LATEST)


# damaged


def test_a_flipped_bit_in_the_weights_is_noticed_though_pytorch_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / LATEST
    save_whole(content(1, size=10_000), path)
    flip(path)
    assert not same(torch.load(path, weights_only=True), content(1, size=10_000)), "a bit of the weights is wrong"
    with pytest.raises(UserError, match="checksum") as caught:
        read_training_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / LATEST
    save_whole(content(1, size=4), path)
    whole = path.read_bytes()
    refused = 0
    positions = range(0, len(whole), 7)
    for position in positions:
        flip(path, position)
        try:
            assert same(read_training_checkpoint(path), content(1, size=4)), position
        except UserError:
            refused += 1
        path.write_bytes(whole)
    assert refused > len(positions) / 4


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / LATEST
    save_whole(content(1), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UserError, match="damaged"):
        read_training_checkpoint(path)


@pytest.mark.parametrize("other", [{"state_dict": {}}, [1, 2]])
def test_another_file_of_pytorch_is_no_checkpoint_of_a_training(tmp_path: Path, other: object) -> None:
    torch.save(other, tmp_path / LATEST)
    with pytest.raises(UserError, match="no checkpoint of a training"):
        read_training_checkpoint(tmp_path / LATEST)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    torch.save({**content(1), "extra": Harmful(tmp_path / "harm")}, tmp_path / LATEST)
    with pytest.raises(UserError, match="refused"):
        read_training_checkpoint(tmp_path / LATEST)
    assert not (tmp_path / "harm").exists()


# which one


def put(folder: Path, **epochs: int) -> None:
    for name, epoch in epochs.items():
        torch.save(content(epoch), folder / f"checkpoint_{name}.pth")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"latest": 3, "previous": 2, "best": 1}, LATEST),
        ({"latest": 3, "previous": 2, "best": 4}, LATEST),
        ({"previous": 2, "best": 1}, PREVIOUS),
        ({"best": 1}, BEST),
        ({"final": 4, "best": 2}, FINAL),
        ({"final": 4, "latest": 3, "previous": 2}, FINAL),  # killed before these were removed
        ({"final": 4, "latest": 6, "previous": 5, "best": 2}, LATEST),  # extended, and stopped
        ({"final": 4, "latest": 6}, LATEST),
        ({"final": 4, "latest": 4}, FINAL),
    ],
)
def test_the_newest_is_continued_from(tmp_path: Path, there: dict[str, int], expected: str) -> None:
    put(tmp_path, **there)
    found = read_to_continue(tmp_path)
    assert found is not None
    assert found.path.name == expected
    assert same(found.content, content(there[expected.removeprefix("checkpoint_").removesuffix(".pth")]))
    assert not found.passed_over


def test_without_any_there_is_nothing_to_continue_from(tmp_path: Path) -> None:
    (tmp_path / f"{LATEST}{DAMAGED}").write_bytes(b"x")
    assert read_to_continue(tmp_path) is None
    assert read_to_continue(tmp_path / "absent") is None


def test_a_damaged_one_is_passed_over_and_then_kept_under_another_name(tmp_path: Path) -> None:
    put(tmp_path, latest=3, previous=2)
    flip(tmp_path / LATEST)
    before = files(tmp_path)
    found = read_to_continue(tmp_path)
    assert found is not None
    assert found.path.name == PREVIOUS
    assert list(found.passed_over) == [tmp_path / LATEST]
    assert files(tmp_path) == before, "reading changes nothing"
    lines: list[str] = []
    set_aside_damaged(found.passed_over, lines.append)
    assert len(lines) == 1
    assert "damaged" in lines[0]
    assert f"{LATEST}{DAMAGED}" in lines[0]
    assert files(tmp_path) == {f"{LATEST}{DAMAGED}": before[LATEST], PREVIOUS: before[PREVIOUS]}
    save_whole(content(3), tmp_path / LATEST)
    assert (tmp_path / PREVIOUS).read_bytes() == before[PREVIOUS], "the good one is not replaced by the damaged one"


def test_of_an_extended_training_a_damaged_latest_leaves_its_previous_before_final(tmp_path: Path) -> None:
    put(tmp_path, final=4, latest=6, previous=5)
    flip(tmp_path / LATEST)
    assert epoch_in(tmp_path) == 5
    flip(tmp_path / PREVIOUS)
    assert epoch_in(tmp_path) == 4


def test_if_all_are_damaged_one_line_names_them_and_nothing_is_touched(tmp_path: Path) -> None:
    put(tmp_path, latest=3, previous=2, best=1)
    flip(tmp_path / LATEST)
    (tmp_path / PREVIOUS).write_bytes(b"")
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:700])
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        read_to_continue(tmp_path)
    message = str(caught.value)
    assert all(name in message for name in (LATEST, PREVIOUS, BEST))
    assert "\n" not in message
    assert files(tmp_path) == before


def test_half_written_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, latest=3)
    (tmp_path / f".{LATEST}.abc.tmp").write_bytes(b"half")
    (tmp_path / ".starting_abc").mkdir()
    (tmp_path / ".starting_abc" / "plans.json").write_text("{}")
    for name in ("progress.png", "a.tmp", ".keep"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path, ".starting")
    assert set(files(tmp_path)) == {LATEST, "progress.png", "a.tmp", ".keep"}


# in memory


def test_what_is_held_in_memory_no_later_step_changes() -> None:
    weight = torch.ones(3)
    state = {"w": weight, "list": [weight, {"n": 1}], "pair": (weight, "a"), "empty": torch.zeros(0)}
    held = held_in_memory(state)
    weight += 1
    state["list"][1]["n"] = 2
    assert torch.equal(held["w"], torch.ones(3))
    assert held["list"][1] == {"n": 1}
    assert isinstance(held["pair"], tuple)
    assert held["empty"].shape == (0,)


def test_a_tensor_under_several_names_is_held_once_and_views_stay_apart() -> None:
    weight = torch.arange(6.0)
    held = held_in_memory({"a": weight, "b": weight, "first": weight[:3], "folded": weight.view(2, 3)})
    assert held["a"].data_ptr() == held["b"].data_ptr()
    assert torch.equal(held["first"], torch.arange(3.0))
    assert torch.equal(held["folded"], torch.arange(6.0).view(2, 3))


def test_tensors_of_two_types_on_the_same_memory_stay_apart() -> None:
    weight = torch.ones(4)
    held = held_in_memory({"a": weight, "bits": weight.view(torch.int32)})
    assert held["bits"].dtype is torch.int32
    assert held["a"].dtype is torch.float32


def test_numpy_is_turned_into_what_loads_as_data(tmp_path: Path) -> None:
    state = {"loss": [np.float32(0.5)], np.str_("key"): (np.int64(3), np.arange(2)), "w": torch.ones(1)}
    torch.save(without_numpy(state), tmp_path / "a.pth")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded == {"loss": [0.5], "key": (3, [0, 1]), "w": torch.ones(1)}
    assert type(loaded["loss"][0]) is float


@pytest.mark.parametrize("error", [RuntimeError("size mismatch\nfor a"), KeyError("logging"), ValueError("groups")])
def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError, match="cannot be continued from") as caught, continuing_from(tmp_path / LATEST):
        raise error
    assert "\n" not in str(caught.value)
