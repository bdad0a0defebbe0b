"""The real hub client against a hub of our own: what arrives, and what a user reads when nothing does.

Each download runs in a process of its own, since the client reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.synthesis import DATA

TINY = DATA / "tiny_primus"
CHECKPOINT = (TINY / "checkpoint_final.pth").read_bytes()
PLAN = (TINY / "adaptation_plan.json").read_bytes()
FILES = {"checkpoint_final.pth": CHECKPOINT, "adaptation_plan.json": PLAN, "config.json": b"{}"}

# The client waits between its retries: here it need not.
RESOLVE = """
import json, sys, time
time.sleep = lambda seconds: None
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
try:
    found = resolve_checkpoint_source(sys.argv[1])
    print(json.dumps({key: value and str(value) for key, value in vars(found).items()}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


@dataclass
class Found:
    path: Path
    source: str
    adaptation_plan_path: Path | None
    hub_repo: str
    hub_revision: str | None
    model_folder: None


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def ask(hub: HubServer, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Resolve a source in a new process with a home of its own; returns the fields or the error."""

    def ask(source: str, **environment: str) -> dict[str, Any]:
        inherited = {key: value for key, value in os.environ.items() if key != "nnssl_pretrained_models"}
        run = subprocess.run(
            [sys.executable, "-c", RESOLVE, source],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**inherited, **hub.environment(tmp_path / "home"), **environment},
        )
        assert run.returncode == 0, run.stderr
        answer: dict[str, Any] = json.loads(run.stdout)
        assert "\n" not in answer.get("error", "")
        return answer

    return ask


@pytest.fixture
def fetch(ask: Callable[..., dict[str, Any]]) -> Callable[..., Found]:
    def fetch(source: str, **environment: str) -> Found:
        answer = ask(source, **environment)
        assert "error" not in answer, answer
        plan = answer.pop("adaptation_plan_path")
        return Found(Path(answer.pop("path")), adaptation_plan_path=plan and Path(plan), **answer)

    return fetch


@pytest.fixture
def refused(ask: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    def refused(source: str, **environment: str) -> str:
        answer = ask(source, **environment)
        assert "error" in answer, answer
        return str(answer["error"])

    return refused


def checkpoints_under(folder: Path) -> list[Path]:
    """Every file there that a later command could take for a checkpoint."""
    named = [path for path in folder.rglob("checkpoint_final.pth") if path.exists()]
    return named + [path for path in folder.rglob("blobs/*") if len(path.name) == 64]


@pytest.mark.parametrize("form", ["org/model", "hf://org/model", "{url}/org/model", "https://huggingface.co/org/model"])
def test_every_form_of_a_source_fetches_into_the_hub_cache(
    hub: HubServer, fetch: Any, tmp_path: Path, form: str
) -> None:
    commit = hub.add_repo("org/model", FILES)
    source = form.format(url=hub.url)
    found = fetch(source)
    assert found.path.read_bytes() == CHECKPOINT
    assert found.adaptation_plan_path.read_bytes() == PLAN
    assert (found.source, found.hub_repo, found.hub_revision) == (source, "org/model", commit)
    assert found.path.is_relative_to(tmp_path / "home" / "huggingface" / "hub")
    assert (found.path.parent / "config.json").exists()


@pytest.mark.parametrize("form", ["org/model@{rev}", "hf://org/model@{rev}", "{url}/org/model/tree/{rev}"])
@pytest.mark.parametrize("by_commit", [True, False])
def test_a_revision_is_fetched_as_asked(hub: HubServer, fetch: Any, form: str, by_commit: bool) -> None:
    old = hub.add_repo("org/model", FILES)
    hub.repos["org/model"].refs["v1"] = old
    hub.push("org/model", {**FILES, "checkpoint_final.pth": CHECKPOINT[::-1]})
    found = fetch(form.format(url=hub.url, rev=old if by_commit else "v1"))
    assert found.path.read_bytes() == CHECKPOINT
    assert found.hub_revision == old


def test_all_files_come_from_the_commit_of_the_checkpoint(hub: HubServer, fetch: Any) -> None:
    commit = hub.add_repo("org/model", FILES)
    fetch("org/model")
    asked = [request for request in hub.requests if "/resolve/" in request and "checkpoint_final" not in request]
    assert asked
    assert all(f"/resolve/{commit}/" in request for request in asked)


def test_the_second_time_nothing_is_downloaded(hub: HubServer, fetch: Any) -> None:
    hub.add_repo("org/model", FILES)
    first = fetch("org/model")
    hub.requests.clear()
    assert fetch("org/model") == first
    assert hub.requests == ["HEAD /org/model/resolve/main/checkpoint_final.pth"]


@pytest.mark.parametrize("models", [True, False])
def test_neither_plan_nor_config_need_exist(hub: HubServer, fetch: Any, tmp_path: Path, models: bool) -> None:
    hub.add_repo("org/model", {"checkpoint_final.pth": CHECKPOINT})
    folder = {"nnssl_pretrained_models": str(tmp_path / "models")} if models else {}
    found = fetch("org/model", **folder)
    assert found.path.read_bytes() == CHECKPOINT
    assert found.adaptation_plan_path is None
    assert fetch("org/model", HF_HUB_OFFLINE="1", **folder) == found


def test_the_models_folder_is_filled_as_the_nnssl_fork_does(hub: HubServer, fetch: Any, tmp_path: Path) -> None:
    commit = hub.add_repo("org/model", FILES)
    found = fetch("org/model", nnssl_pretrained_models=str(tmp_path / "models"))
    assert found.path == tmp_path / "models" / "org_model" / "checkpoint_final.pth"
    assert found.path.read_bytes() == CHECKPOINT
    assert found.adaptation_plan_path == found.path.with_name("adaptation_plan.json")
    assert (found.path.with_name("config.json")).read_bytes() == b"{}"
    assert found.hub_revision == commit
    assert not checkpoints_under(tmp_path / "home")


def test_the_models_folder_follows_the_branch(hub: HubServer, fetch: Any, tmp_path: Path) -> None:
    models = str(tmp_path / "models")
    hub.add_repo("org/model", FILES)
    fetch("org/model", nnssl_pretrained_models=models)
    newer = hub.push("org/model", {"checkpoint_final.pth": CHECKPOINT[::-1]})
    found = fetch("org/model", nnssl_pretrained_models=models)
    assert found.path.read_bytes() == CHECKPOINT[::-1]
    assert found.hub_revision == newer
    assert found.adaptation_plan_path is None  # the older commit's plan still lies there


@pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
def test_the_models_folder_knows_its_commit_offline(hub: HubServer, fetch: Any, tmp_path: Path, revision: str) -> None:
    models = str(tmp_path / "models")
    commit = hub.add_repo("org/model", FILES)
    first = fetch("org/model", nnssl_pretrained_models=models)
    found = fetch(f"org/model{revision.format(commit=commit)}", nnssl_pretrained_models=models, HF_HUB_OFFLINE="1")
    assert (found.path, found.adaptation_plan_path) == (first.path, first.adaptation_plan_path)
    assert found.hub_revision == commit


def test_the_models_folder_is_not_taken_for_another_revision_offline(
    hub: HubServer, fetch: Any, refused: Any, tmp_path: Path
) -> None:
    models = str(tmp_path / "models")
    old = hub.add_repo("org/model", FILES)
    hub.push("org/model", {**FILES, "checkpoint_final.pth": CHECKPOINT[::-1]})
    fetch("org/model", nnssl_pretrained_models=models)
    for revision in ("v1", old):
        message = refused(f"org/model@{revision}", nnssl_pretrained_models=models, HF_HUB_OFFLINE="1")
        assert f"not known to be revision '{revision}'" in message


def test_files_put_into_the_models_folder_by_hand_serve_offline(hub: HubServer, fetch: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org_model"
    folder.mkdir(parents=True)
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    found = fetch("org/model", nnssl_pretrained_models=str(folder.parent), HF_HUB_OFFLINE="1")
    assert (found.path, found.hub_revision) == (folder / "checkpoint_final.pth", None)
    assert found.adaptation_plan_path == folder / "adaptation_plan.json"


def test_two_repositories_of_one_folder_name_do_not_overwrite_each_other(
    hub: HubServer, fetch: Any, refused: Any, tmp_path: Path
) -> None:
    models = str(tmp_path / "models")
    hub.add_repo("a_b/c", FILES)
    hub.add_repo("a/b_c", {"checkpoint_final.pth": CHECKPOINT[::-1]})
    found = fetch("a_b/c", nnssl_pretrained_models=models)
    assert "holds the files of a_b/c" in refused("a/b_c", nnssl_pretrained_models=models)
    assert found.path.read_bytes() == CHECKPOINT


def test_a_warm_cache_serves_offline_without_a_request(hub: HubServer, fetch: Any) -> None:
    hub.add_repo("org/model", FILES)
    first = fetch("org/model")
    hub.requests.clear()
    assert fetch("org/model", HF_HUB_OFFLINE="1") == first
    assert hub.requests == []


@pytest.mark.parametrize("files", [FILES, {"checkpoint_final.pth": CHECKPOINT}], ids=["all files", "checkpoint alone"])
@pytest.mark.parametrize("models", [True, False])
def test_what_was_downloaded_serves_at_once_while_the_hub_is_down(
    hub: HubServer, fetch: Any, tmp_path: Path, files: dict[str, bytes], models: bool
) -> None:
    hub.add_repo("org/model", files)
    folder = {"nnssl_pretrained_models": str(tmp_path / "models")} if models else {}
    first = fetch("org/model", **folder)
    hub.requests.clear()
    hub.fail_first = 1000
    assert fetch("org/model", **folder) == first
    assert hub.requests == ["HEAD /org/model/resolve/main/checkpoint_final.pth"]  # no waiting for retries


@pytest.mark.parametrize("models", [True, False])
def test_a_cold_cache_offline_is_explained(hub: HubServer, refused: Any, tmp_path: Path, models: bool) -> None:
    hub.add_repo("org/model", FILES)
    folder = {"nnssl_pretrained_models": str(tmp_path / "models")} if models else {}
    message = refused("org/model", HF_HUB_OFFLINE="1", **folder)
    assert "HF_HUB_OFFLINE" in message
    assert "org/model" in message
    assert hub.requests == []


def test_an_unknown_repository_is_explained(refused: Any) -> None:
    message = refused("org/nothing")
    assert "no model repository org/nothing" in message
    assert "There is no file or folder" in message


def test_an_unknown_revision_is_explained(hub: HubServer, refused: Any) -> None:
    hub.add_repo("org/model", FILES)
    assert "no revision 'v9'" in refused("org/model@v9")


def test_a_name_that_no_repository_can_have_is_explained(refused: Any) -> None:
    assert "cannot be the name of a hub repository" in refused("org/model--x")


def test_a_repository_without_a_checkpoint_is_explained(hub: HubServer, refused: Any) -> None:
    hub.add_repo("org/model", {"adaptation_plan.json": PLAN})
    assert "org/model holds no checkpoint_final.pth" in refused("org/model")


@pytest.mark.parametrize("token", ["", "hf_of_somebody_else"])
def test_a_gated_repository_says_how_to_get_in(hub: HubServer, refused: Any, token: str) -> None:
    hub.add_repo("org/gated", FILES, gated=True, token="hf_right")
    message = refused("org/gated", HF_TOKEN=token)
    assert f"accept its conditions on {hub.url}/org/gated" in message
    assert "HF_TOKEN" in message


def test_the_token_opens_a_gated_repository_and_is_shown_to_nobody_else(hub: HubServer, fetch: Any) -> None:
    hub.add_repo("org/gated", FILES, gated=True, token="hf_right")
    assert fetch("org/gated", HF_TOKEN="hf_right").path.read_bytes() == CHECKPOINT
    shown = dict(zip(hub.requests, hub.headers_seen, strict=True))
    assert {token for request, token in shown.items() if "/resolve/" in request} == {"Bearer hf_right"}
    assert {token for request, token in shown.items() if "/cdn/" in request} == {None}


def test_errors_of_the_server_that_pass_do_no_harm(hub: HubServer, fetch: Any) -> None:
    hub.add_repo("org/model", FILES)
    hub.fail_first = 3
    assert fetch("org/model").path.read_bytes() == CHECKPOINT
    assert hub.fail_first == 0


def test_errors_of_the_server_that_stay_are_explained(hub: HubServer, refused: Any) -> None:
    hub.add_repo("org/model", FILES)
    hub.fail_first = 1000
    assert "HTTP 500" in refused("org/model")


def test_a_hub_out_of_reach_is_explained(refused: Any) -> None:
    nobody = "http://127.0.0.1:9"
    assert f"{nobody} cannot be reached" in refused("org/model", HF_ENDPOINT=nobody)


def test_something_that_is_no_hub_is_explained(hub: HubServer, refused: Any) -> None:
    hub.add_repo("org/model", FILES)
    hub.commit_header = False
    assert "does not answer as a Hugging Face hub" in refused("org/model")


@pytest.mark.parametrize("models", [True, False])
def test_a_body_cut_off_is_resumed_where_it_broke(hub: HubServer, fetch: Any, tmp_path: Path, models: bool) -> None:
    body = os.urandom(24_000_000)  # the client works in steps of 10 MiB
    hub.add_repo("org/model", {"checkpoint_final.pth": body})
    hub.cut_body_after = len(body) // 2
    folder = {"nnssl_pretrained_models": str(tmp_path / "models")} if models else {}
    found = fetch("org/model", **folder)
    assert hashlib.sha256(found.path.read_bytes()).hexdigest() == hashlib.sha256(body).hexdigest()
    assert hub.ranges_seen


@pytest.mark.parametrize("models", [True, False])
def test_a_body_cut_off_for_good_leaves_no_half_file(
    hub: HubServer, fetch: Any, refused: Any, tmp_path: Path, models: bool
) -> None:
    hub.add_repo("org/model", FILES)
    hub.cut_body_after, hub.stop_after_cut = len(CHECKPOINT) // 2, True
    folder = {"nnssl_pretrained_models": str(tmp_path / "models")} if models else {}
    assert "was cut off" in refused("org/model", **folder)
    assert checkpoints_under(tmp_path) == []
    hub.cut_body_after = None
    assert fetch("org/model", **folder).path.read_bytes() == CHECKPOINT


def test_a_models_folder_that_cannot_be_written_is_explained(hub: HubServer, refused: Any, tmp_path: Path) -> None:
    hub.add_repo("org/model", FILES)
    (tmp_path / "models").write_text("a file in the way")
    assert str(tmp_path / "models") in refused("org/model", nnssl_pretrained_models=str(tmp_path / "models"))
