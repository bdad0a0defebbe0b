"""Every command answers --help at once, and by both of its names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from nnunetv2_ext.__main__ import COMMANDS
from nnunetv2_ext.cli import train_pretrained
from nnunetv2_ext.recipes.resolving import shipped_names
from tests.commands import SCRIPTS

SCRIPT_COMMANDS = [name for name in COMMANDS if name != "demo"]

FLAGS = {
    "plan_like_dynamic": "-d -n -pc -pl -ps -bs -norm -load -keep_head -cm -min_coverage -np --no_pp --overwrite_pp",
    "preprocess_like_nnssl": "-d -n -pc -pl -am -os -ps -arch -bs -norm -load -keep_head -cm -min_coverage -np --no_pp",
    "inspect_pretrained_checkpoint": "-pc -d -p -arch --json",
    "convert_pretrained_checkpoint": "-pc -o -arch -spacing -patch_size -channels -key_to_encoder -key_to_stem "
    "-keys_to_in_proj -key_to_lpe",
    "train_pretrained": "-d -c -f -p -tr -r -rn --set --list_recipes --print_recipe --from_scratch "
    "-overwrite_ckpt_path --c --val --npz -device -num_gpus -parallel_folds -gpus -ddp_timeout -logger",
    "torchrun_pretrained": "--nnodes --nproc_per_node --rdzv_backend --rdzv_endpoint --rdzv_id --shutdown_timeout",
    "compare_finetuning": "-d -c -p -tr -o",
    "import_dataset": "zarr-csv patterns csv bids KIND",
}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", SCRIPT_COMMANDS)
def test_the_script_shows_its_help(command: str) -> None:
    result = run(SCRIPTS / f"nnUNetv2_{command}", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: nnUNetv2_{command}")
    words = result.stdout.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert set(FLAGS[command].split()) <= set(words)


@pytest.mark.parametrize("name", [*COMMANDS, *(f"nnUNetv2_{c}" for c in SCRIPT_COMMANDS)])
def test_the_module_runs_it_under_its_name_with_and_without_the_prefix(name: str) -> None:
    result = run(sys.executable, "-m", "nnunetv2_ext", name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage:")


def test_the_module_lists_its_commands() -> None:
    result = run(sys.executable, "-m", "nnunetv2_ext")
    assert all(f"  {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", SCRIPT_COMMANDS)
def test_help_imports_neither_torch_nor_nnunet(command: str) -> None:
    code = (
        f"import sys, contextlib\nfrom nnunetv2_ext.cli.{command} import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "sys.exit(', '.join({'torch', 'nnunetv2', 'batchgenerators'} & set(sys.modules)) or 0)"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", SCRIPT_COMMANDS)
def test_a_missing_argument_is_one_line_without_torch(command: str) -> None:
    result = run(SCRIPTS / f"nnUNetv2_{command}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "--help" in result.stderr


@pytest.mark.parametrize("name", ["nnUNetTrainer", "pretrainedtrainer", "PretrainedTrainer_mirroring", ""])
def test_trainer_names_other_than_ours_and_the_forks_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        train_pretrained.main(["999", "3d_fullres", "0", "-p", "any", "-tr", name, "-device", "cpu"])
    message = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert message.count("\n") == 1
    assert "-tr takes PretrainedTrainer, DynamicPretrainedTrainer or one of the nnssl fork's names" in message
    assert f"not {name!r}" in message


def test_the_recipes_are_listed_without_torch_or_any_other_argument() -> None:
    code = (
        "import sys\nfrom nnunetv2_ext.cli.train_pretrained import main\nmain(['--list_recipes'])\n"
        "sys.exit(', '.join({'torch', 'nnunetv2'} & set(sys.modules)) or 0)"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == shipped_names()
    assert all(len(line.split(maxsplit=1)) == 2 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("command", "arguments", "unknown"),
    [
        ("plan_like_dynamic", ["-d", "1", "-n", "A", "-pc", "x.pth", "-c", "2"], "-c 2"),
        ("plan_like_dynamic", ["-d", "1", "-n", "A", "-pc", "x.pth", "-min_cov", "0.3"], "-min_cov 0.3"),
        ("train_pretrained", ["1", "3d_fullres", "0", "-p", "A", "-dev", "cpu"], "-dev cpu"),
    ],
)
def test_flags_with_one_dash_cannot_be_abbreviated_either(
    command: str, arguments: list[str], unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = importlib.import_module(f"nnunetv2_ext.cli.{command}").parser()
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert f"unrecognized arguments: {unknown}" in capsys.readouterr().err
