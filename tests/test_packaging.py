"""What a user gets from the wheel: the commands, the demo's weights, the recipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest

import nnunetv2_ext
from tests.conftest import DATASET_ID, Workplace, copy_of

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "nnUNetv2_preprocess_like_nnssl",
    "nnUNetv2_plan_like_dynamic",
    "nnUNetv2_inspect_pretrained_checkpoint",
    "nnUNetv2_convert_pretrained_checkpoint",
    "nnUNetv2_train_pretrained",
    "nnUNetv2_compare_finetuning",
    "nnUNetv2_import_dataset",
)


def run(command: Sequence[object], cwd: Path, **variables: str) -> str:
    """The output of a command that knows nothing of this checkout; fails the test with it if the command fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "nnUNet_"))}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**env, **variables}, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools puts files of earlier builds in the same folder into it again."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "nnunetv2_ext", folder / "nnunetv2_ext", ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", folder], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a fresh environment that holds the wheel and sees this one's other packages."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    # Before the .pth file: with it, pip would find this checkout's editable installation and leave it at that.
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_demo_weights_the_recipes_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunetv2_ext" / "data").rglob("*") if path.is_file()}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunetv2_ext" / "recipes").glob("*.yaml")}
    assert "nnunetv2_ext/data/tiny_resenc/checkpoint_final.pth" in data
    assert recipes
    assert names >= data | recipes | {"nnunetv2_ext/py.typed"}


def test_the_wheel_holds_every_module_and_no_test(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert names == {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunetv2_ext").rglob("*.py")}


def test_the_metadata_names_version_licence_and_the_nnunet_that_was_tried(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == nnunetv2_ext.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.13"}
    requirements = metadata.get_all("Requires-Dist", [])
    assert any(r.startswith("nnunetv2<2.9,>=2.8.1") for r in requirements)
    assert all(">=" in r for r in requirements if not r.startswith("nnunetv2-ext"))


def test_the_installed_commands_answer_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run([installed / "python", "-c", "import nnunetv2_ext; print(nnunetv2_ext.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    for command in COMMANDS:
        assert run([installed / command, "--help"], tmp_path).startswith(f"usage: {command}")
    assert "demo" in run([installed / "python", "-m", "nnunetv2_ext", "--help"], tmp_path)


def test_the_installed_command_inspects_the_weights_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    (weights,) = installed.parent.glob("lib/python*/site-packages/nnunetv2_ext/data/tiny_resenc")
    facts = json.loads(run([installed / COMMANDS[2], "-pc", weights, "--json"], tmp_path))
    plan = json.loads((weights / "adaptation_plan.json").read_text())
    assert facts["architecture"] == plan["architecture_plans"]["arch_class_name"]
    assert facts["key_to_encoder"] == plan["key_to_encoder"]


def test_the_installed_command_plans_with_the_weights_and_recipes_in_the_wheel(
    installed: Path, workplace: Workplace, tmp_path: Path
) -> None:
    place = copy_of(workplace, tmp_path)
    (weights,) = installed.parent.glob("lib/python*/site-packages/nnunetv2_ext/data/tiny_resenc")
    options = ["-d", DATASET_ID, "-n", "wheel", "-pc", weights, "-am", "like_pretrained", "--no_pp"]
    run([installed / COMMANDS[0], *options], tmp_path, **place.env)
    plan = place.plan("ptPlans__wheel____Spacing__1.00_1.00_1.00___Norm__Z")
    assert Path(plan["pretrain_info"]["checkpoint_path"]).is_relative_to(weights)


@pytest.mark.slow
def test_from_nothing_the_wheel_brings_its_dependencies_and_the_demo_learns(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", f"nnunetv2-ext[demo] @ {wheel.as_uri()}"], tmp_path)
    run([python, "-m", "pip", "check"], tmp_path)
    output = run([python, "-m", "nnunetv2_ext", "demo"], tmp_path, OMP_WAIT_POLICY="passive")
    (row,) = (line for line in output.splitlines() if "MNI_006" in line and "│" in line)
    dice = [float(cell) for cell in row.strip("│ ").split("│")[1:]]
    assert len(dice) == 2
    assert min(dice) > 0.5
