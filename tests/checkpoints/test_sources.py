"""Which file, folder or repository a source means, and how the weights of a plan are found again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.checkpoints import sources
from nnunetv2_ext.checkpoints.hub_address import HubAddress, parse_hub_url, parse_short_form
from nnunetv2_ext.checkpoints.hub_client import HubFiles
from nnunetv2_ext.checkpoints.sources import CheckpointFile, locate_recorded_checkpoint, resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY = DATA / "tiny_primus"
SHA256 = hashlib.sha256((TINY / "checkpoint_final.pth").read_bytes()).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: HubAddress) -> HubFiles:
        raise UserError(f"asked the hub for {address}")

    monkeypatch.setattr(sources, "download_from_hub", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("nnssl_pretrained_models", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "models" / "tiny"))


def test_a_file_is_itself_with_the_plan_beside_it(folder: Path) -> None:
    path = folder / "checkpoint_final.pth"
    assert resolve_checkpoint_source(str(path)) == CheckpointFile(path, str(path), folder / "adaptation_plan.json")


def test_a_folder_means_its_checkpoint_final(folder: Path) -> None:
    (folder / "adaptation_plan.json").unlink()
    assert resolve_checkpoint_source(str(folder)) == CheckpointFile(folder / "checkpoint_final.pth", str(folder))


def test_relative_paths_and_the_home_folder_become_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve_checkpoint_source("tiny").path == folder / "checkpoint_final.pth"
    monkeypatch.setenv("HOME", str(folder))
    assert resolve_checkpoint_source("~/checkpoint_final.pth").path == folder / "checkpoint_final.pth"


def test_a_local_path_wins_over_a_repository_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[1])
    found = resolve_checkpoint_source("models/tiny")
    assert (found.path, found.hub_repo) == (folder / "checkpoint_final.pth", None)


def test_a_folder_without_checkpoint_final_names_what_it_holds(folder: Path) -> None:
    (folder / "checkpoint_final.pth").rename(folder / "epoch_10.pth")
    with pytest.raises(UserError, match=r"no checkpoint_final\.pth.*epoch_10\.pth"):
        resolve_checkpoint_source(str(folder))


@pytest.mark.parametrize(
    "source",
    [
        *("/not/there", "/not/there.pth", "./org/model", "../org/model", "~/model.pth", "org/model.pth", "org/model/"),
        *("a/b/c", "word", ".", "org\\model", "C:/x/y.pth"),
    ],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no file or folder|holds no checkpoint_final"):
        resolve_checkpoint_source(source)


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="empty"):
        resolve_checkpoint_source(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://huggingface.co/AnonRes/ResEncL-OpenMind", HubAddress("AnonRes/ResEncL-OpenMind")),
        ("https://huggingface.co/org/model/", HubAddress("org/model")),
        ("https://huggingface.co/org/model/tree/main", HubAddress("org/model", "main")),
        ("https://huggingface.co/org/model/tree/v1.0/", HubAddress("org/model", "v1.0")),
        ("https://huggingface.co/org/model/tree/refs%2Fpr%2F3", HubAddress("org/model", "refs/pr/3")),
        (f"https://huggingface.co/org/model/tree/{COMMIT}", HubAddress("org/model", COMMIT)),
        ("https://huggingface.co/org/model?library=x#files", HubAddress("org/model")),
        ("https://huggingface.co/org/model/blob/v1/checkpoint_final.pth", HubAddress("org/model", "v1")),
        (
            "https://huggingface.co/org/model/resolve/v1/checkpoint_final.pth?download=true",
            HubAddress("org/model", "v1"),
        ),
        ("https://hf.co/org/model", HubAddress("org/model")),
        ("hf://org/model", HubAddress("org/model")),
        ("hf://models/org/model@v1", HubAddress("org/model", "v1")),
        ("hf://org/model@refs/pr/3", HubAddress("org/model", "refs/pr/3")),
    ],
)
def test_addresses_of_the_hub(source: str, expected: HubAddress) -> None:
    assert parse_hub_url(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/model", HubAddress("org/model")),
        ("My-Org_1/model.v2-x", HubAddress("My-Org_1/model.v2-x")),
        ("org/model@v1.0", HubAddress("org/model", "v1.0")),
        ("org/model@refs/pr/3", HubAddress("org/model", "refs/pr/3")),
        ("org/model@", None),
        ("@v1", None),
        ("org /model", None),
    ],
)
def test_short_forms(source: str, expected: HubAddress | None) -> None:
    assert parse_short_form(source) == expected


def test_a_mirror_is_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hub/")
    expected = HubAddress("org/model", "v1")
    assert parse_hub_url("http://mirror.example:8080/hub/org/model/tree/v1") == expected
    assert parse_hub_url("https://huggingface.co/org/model/tree/v1") == expected


@pytest.mark.parametrize(
    "source",
    [
        "https://example.org/org/model",
        "https://huggingface.co.evil.example/org/model",
        "https://huggingface.co/org",
        "https://huggingface.co/datasets/org/data",
        "https://huggingface.co/org/model/discussions/1",
        "https://huggingface.co/org/model/blob/main/other.pth",
        "hf://org",
        "hf://org/model/sub/folder",
        "s3://bucket/model",
        "ftp://huggingface.co/org/model",
    ],
)
def test_other_urls_are_refused_in_one_line(source: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_checkpoint_source(source)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "asked the hub" not in str(caught.value)


def record(path: Path, **more: Any) -> dict[str, Any]:
    return {"checkpoint_path": str(path), "checkpoint_name": "Tiny", "checkpoint_sha256": SHA256, **more}


def test_recorded_weights_are_taken_from_the_recorded_path(folder: Path) -> None:
    path = folder / "checkpoint_final.pth"
    found = locate_recorded_checkpoint(
        record(path, checkpoint_source="org/model", hub_repo="org/model", hub_revision=COMMIT)
    )
    assert found == CheckpointFile(path, "org/model", folder / "adaptation_plan.json", "org/model", COMMIT)


def test_a_plan_of_the_fork_records_only_the_path(folder: Path) -> None:
    path = folder / "checkpoint_final.pth"
    assert locate_recorded_checkpoint({"checkpoint_path": str(path), "checkpoint_name": "x"}).path == path


def test_moved_weights_are_found_by_the_recorded_source(folder: Path) -> None:
    assert locate_recorded_checkpoint(record(Path("/gone.pth"), checkpoint_source=str(folder))).path.parent == folder


def test_lost_weights_are_fetched_from_the_hub_at_the_recorded_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def give(address: HubAddress) -> HubFiles:
        asked.append(address)
        return HubFiles(folder / "checkpoint_final.pth", folder / "adaptation_plan.json", address.revision)

    monkeypatch.setattr(sources, "download_from_hub", give)
    found = locate_recorded_checkpoint(
        record(Path("/gone.pth"), checkpoint_source="org/model@main", hub_repo="org/model", hub_revision=COMMIT)
    )
    assert asked == [HubAddress("org/model", COMMIT)]
    assert (found.path.parent, found.hub_revision, found.source) == (folder, COMMIT, "org/model@main")


@pytest.mark.parametrize(
    ("path", "name"), [("/gone/tiny/checkpoint_final.pth", "Other"), ("/gone/x.pth", "tiny"), (None, "tiny")]
)
def test_lost_weights_are_found_under_the_models_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str | None, name: str
) -> None:
    monkeypatch.setenv("nnssl_pretrained_models", str(folder.parent))
    found = locate_recorded_checkpoint(
        {"checkpoint_path": path, "checkpoint_name": name, "checkpoint_sha256": SHA256, "hub_repo": "org/model"}
    )
    assert found.path == folder / "checkpoint_final.pth"


def test_a_recorded_name_cannot_lead_out_of_the_models_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "inner").mkdir()
    monkeypatch.setenv("nnssl_pretrained_models", str(folder.parent / "inner"))
    with pytest.raises(UserError, match="-overwrite_ckpt_path"):
        locate_recorded_checkpoint({"checkpoint_path": "/gone.pth", "checkpoint_name": "../tiny"})


def test_weights_found_nowhere_list_every_place_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_pretrained_models", str(tmp_path))
    with pytest.raises(UserError) as caught:
        locate_recorded_checkpoint(record(Path("/gone/a.pth"), hub_repo="org/model", hub_revision=COMMIT))
    message = str(caught.value)
    for part in ("/gone/a.pth", "org/model", COMMIT[:8], str(tmp_path / "Tiny"), "-overwrite_ckpt_path"):
        assert part in message
    assert "\n" not in message


def test_an_unset_models_folder_is_mentioned() -> None:
    with pytest.raises(UserError, match=r"\$nnssl_pretrained_models \(not set\)"):
        locate_recorded_checkpoint(record(Path("/gone/a.pth")))


@pytest.mark.parametrize("info", [{}, {"checkpoint_path": None, "checkpoint_name": 3}])
def test_a_record_of_nothing_is_no_crash(info: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="-overwrite_ckpt_path"):
        locate_recorded_checkpoint(info)


def test_the_user_s_own_place_wins(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    found = locate_recorded_checkpoint(record(folder / "checkpoint_final.pth"), overwrite=str(other))
    assert (found.path.parent, found.source) == (other, str(other))


@pytest.mark.parametrize("overwrite", [True, False])
def test_other_weights_than_the_recorded_ones_are_refused(folder: Path, overwrite: bool) -> None:
    path = folder / "checkpoint_final.pth"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        locate_recorded_checkpoint(record(path), overwrite=str(path) if overwrite else None)
    assert SHA256[:12] in str(caught.value)
    assert hashlib.sha256(content).hexdigest()[:12] in str(caught.value)


def test_looking_for_a_checkpoint_imports_neither_torch_nor_the_hub_client(folder: Path) -> None:
    code = (
        "import sys; from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source as resolve;"
        "from nnunetv2_ext.checkpoints import reading; resolve(sys.argv[1]);"
        "print(sorted({'torch', 'huggingface_hub', 'numpy', 'tqdm'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert run.stdout.strip() == "[]"
