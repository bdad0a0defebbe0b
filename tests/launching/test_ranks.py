"""How processes that train together agree, with two or three real ones that do nothing else; everything on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.ranks import ALONE, Ranks, launched

TOGETHER = """
import json, multiprocessing, os, socket, sys, time
from pathlib import Path
from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.ranks import ALONE, joined, launched, present_ranks

def refuse(text):
    raise UserError(text)

def exchanges(ranks):
    assert present_ranks() is ranks
    ranks.wait_for_all()
    return {
        "gathered": ranks.gathered(["a", "b", "c"][ranks.rank]),
        "nobody": ranks.any_has(None),
        "second": ranks.any_has("SIGTERM" if ranks.rank == 1 else None),
        "all": ranks.any_has(f"of {ranks.rank}"),
        "from_first": ranks.from_first(lambda: f"made by {ranks.rank}"),
        "agreed": ranks.agreed(lambda: f"made by {ranks.rank}"),
        "compared": ranks.compare({"plan": {"a": 1}, "version": {"torch": "2.9"}}),
    }

def the_first_refuses(ranks):
    ranks.from_first(lambda: refuse(f"refused by {ranks.rank}"))

def the_last_refuses(ranks):
    ranks.agreed(lambda: refuse("no such folder") if ranks.rank == 2 else ranks.rank)

def all_refuse(ranks):
    ranks.agreed(lambda: refuse("no such folder"))

def another_plan(ranks):
    plan = {"configurations": {"3d_fullres": {"batch_size": 2, "spacing": [1, 1, 1 + (ranks.rank == 1)]}}}
    ranks.compare({"version": {"torch": "2.9"}, "plan": plan})

def another_version(ranks):
    ranks.compare({"version": {"torch": "2.9", "nnunetv2": f"2.8.{1 + (ranks.rank == 2)}"}, "plan": {}})

def a_bug(ranks):
    raise KeyError("neither the user's fault nor a lost process")

def one_is_killed(ranks):
    if ranks.rank == 2:
        os.kill(os.getpid(), 9)
    ranks.gathered(1)
    ranks.gathered(2)

def one_is_slow(ranks):
    if ranks.rank == 2:
        time.sleep(30)
    ranks.gathered(1)

def rank_of(name, rank, size, port, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(folder / f"{name}{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
    def command(_):
        with joined(launched(), "cpu", 4 if name == "one_is_slow" else 30) as ranks:
            result = globals()[name](ranks)
            (folder / f"{name}{rank}.json").write_text(json.dumps(result))
        assert present_ranks() is ALONE
    run(Parser(prog="training"), command, [], interrupted="--c continues")

if __name__ == "__main__":
    fork, folder, codes = multiprocessing.get_context("fork"), Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        ranks = [fork.Process(target=rank_of, args=(name, rank, 3, port, folder)) for rank in range(3)]
        start = time.monotonic()
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(max(0, start + 20 - time.monotonic()))
        codes[name] = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
    (folder / "codes.json").write_text(json.dumps(codes))
"""
SCENARIOS = (
    "exchanges", "the_first_refuses", "the_last_refuses", "all_refuse", "another_plan", "another_version", "a_bug",
    "one_is_killed", "one_is_slow",
)  # fmt: skip
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")
GOOD = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


class Three:
    """What three processes did in each scenario."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes = json.loads((folder / "codes.json").read_text())

    def results(self, name: str) -> list[Any]:
        return [json.loads((self.folder / f"{name}{rank}.json").read_text()) for rank in range(3)]

    def errors(self, name: str) -> list[str]:
        return [(self.folder / f"{name}{rank}.err").read_text() for rank in range(3)]

    def refusal(self, name: str) -> str:
        """The one line of a scenario in which all leave with code 1 and the first alone says why."""
        assert self.codes[name] == [1, 1, 1], self.errors(name)
        first, *others = self.errors(name)
        assert others == ["", ""]
        assert first.startswith("training: error: ")
        assert first.count("\n") == 1
        return first


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder = tmp_path_factory.mktemp("three")
    (folder / "together.py").write_text(TOGETHER)
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES} | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, folder / "together.py", folder, *SCENARIOS],
        env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return Three(folder)


def test_every_rank_has_what_was_exchanged(three: Three) -> None:
    assert three.codes["exchanges"] == [0, 0, 0], three.errors("exchanges")
    assert three.errors("exchanges") == ["", "", ""]
    for rank, result in enumerate(three.results("exchanges")):
        assert result == {
            "gathered": ["a", "b", "c"],
            "nobody": None,
            "second": "SIGTERM",
            "all": "of 0",
            "from_first": "made by 0",
            "agreed": f"made by {rank}",
            "compared": None,
        }


def test_what_the_first_refuses_ends_all_with_its_line(three: Three) -> None:
    assert three.refusal("the_first_refuses") == "training: error: refused by 0\n"


def test_what_one_refuses_ends_all_and_is_told_by_the_first_with_rank_and_host(three: Three) -> None:
    assert three.refusal("the_last_refuses") == f"training: error: rank 2 on {os.uname().nodename}: no such folder\n"


def test_what_all_refuse_is_told_once_without_a_rank(three: Three) -> None:
    assert three.refusal("all_refuse") == "training: error: no such folder\n"


def test_ranks_with_another_plan_are_refused_by_the_entry(three: Three) -> None:
    line = three.refusal("another_plan")
    assert "rank 0" in line
    assert "rank 1" in line
    assert "spacing" in line
    assert "batch_size" not in line


def test_ranks_with_another_package_version_are_refused_by_its_name(three: Three) -> None:
    line = three.refusal("another_version")
    assert "rank 2" in line
    assert "nnunetv2" in line
    assert "2.8.2" in line
    assert "torch" not in line


def test_a_bug_keeps_its_traceback(three: Three) -> None:
    assert three.codes["a_bug"] == [1, 1, 1]
    for text in three.errors("a_bug"):
        assert "Traceback" in text
        assert "KeyError" in text


def test_those_that_a_killed_process_leaves_behind_end_with_one_line(three: Three) -> None:
    assert three.codes["one_is_killed"] == [1, 1, -9]
    first, second, _ = three.errors("one_is_killed")
    assert first.startswith("training: error: another process of this training has ended")
    assert "--c continues" in first
    assert (first.count("\n"), second) == (1, "")


def test_a_process_waits_for_the_others_no_longer_than_it_may(three: Three) -> None:
    codes = three.codes["one_is_slow"]
    assert codes[:2] == [1, 1], "within 20 s"
    first, second, _ = three.errors("one_is_slow")
    assert first.startswith("training: error: another process of this training")
    assert (first.count("\n"), second) == (1, "")


# what torchrun has told


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `launched` makes of these variables and no others."""

    def call(**variables: str) -> Ranks | None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return launched()

    return call


def test_a_process_that_nothing_has_launched_is_alone(told: Any) -> None:
    assert told() is None
    assert told(MASTER_ADDR="node1", MASTER_PORT="29500", LOCAL_RANK="0") is None
    assert (ALONE.is_first, ALONE.are_several, ALONE.gathered(3), ALONE.any_has("x")) == (True, False, [3], "x")


def test_torchruns_variables_are_understood(told: Any) -> None:
    assert told(**GOOD, LOCAL_WORLD_SIZE="2") == Ranks(rank=1, size=4, local_rank=1, local_size=2)
    assert told(**GOOD) == Ranks(rank=1, size=4, local_rank=1, local_size=1)


@pytest.mark.parametrize("missing", GOOD)
def test_a_variable_that_is_missing_is_named(missing: str, told: Any) -> None:
    with pytest.raises(UserError, match=f"but not {missing}: start the processes with torchrun"):
        told(**{name: value for name, value in GOOD.items() if name != missing})


def test_rank_or_world_size_alone_is_refused(told: Any) -> None:
    with pytest.raises(UserError, match="the environment has RANK, but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR"):
        told(RANK="0")
    with pytest.raises(UserError, match="the environment has WORLD_SIZE, but not RANK, LOCAL_RANK, MASTER_ADDR"):
        told(WORLD_SIZE="2")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["one", "", "-1", "1.5"])
def test_a_variable_that_is_no_number_is_named(name: str, value: str, told: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is '{value}', and must be a whole number"):
        told(**(GOOD | {name: value}))


@pytest.mark.parametrize(("rank", "size"), [("4", "4"), ("7", "2"), ("0", "0")])
def test_a_rank_outside_the_world_is_refused(rank: str, size: str, told: Any) -> None:
    with pytest.raises(UserError, match=f"RANK is {rank} of WORLD_SIZE {size}"):
        told(**(GOOD | {"RANK": rank, "WORLD_SIZE": size}))
