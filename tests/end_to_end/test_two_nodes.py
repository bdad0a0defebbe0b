"""One training on two nodes: two network namespaces of this machine, joined by a virtual cable. Needs root."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.commands import SCRIPTS
from tests.conftest import Model, copy_of
from tests.processes import end_all, wait_for

pytestmark = pytest.mark.slow

MARK = "NNUNETV2_EXT_TEST"
SHORT = (
    "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "mirroring=false", "seed=1", "save_every=1",
)  # fmt: skip
PORT = 29400


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)


@dataclass(frozen=True)
class Node:
    """A network namespace with one cable to the other node and no way out."""

    name: str
    address: str
    interface: str

    def start(self, env: dict[str, str], log: Path, *command: object) -> subprocess.Popen[str]:
        """A console script on this node; `ip netns exec` becomes the script."""
        name, *arguments = map(str, command)
        with log.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, str(SCRIPTS / name), *arguments],
                env=env, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    run = uuid.uuid4().hex[:8]
    number = int(run[:4], 16)
    subnet = f"10.{100 + number // 256 % 100}.{number % 256}"
    both = [Node(f"nnunet{i}-{run}", f"{subnet}.{i}", f"nn{i}{run}") for i in (1, 2)]
    try:
        steps = [("netns", "add", node.name) for node in both]
        steps.append(("link", "add", both[0].interface, "type", "veth", "peer", "name", both[1].interface))
        for node in both:
            inside = ("-n", node.name)
            steps += [
                ("link", "set", node.interface, "netns", node.name),
                (*inside, "addr", "add", f"{node.address}/24", "dev", node.interface),
                (*inside, "link", "set", node.interface, "up"),
                (*inside, "link", "set", "lo", "up"),
            ]
        for step in steps:
            try:
                result = ip(*step)
            except FileNotFoundError:
                pytest.skip("there is no `ip` on this machine to make network namespaces with")
            if result.returncode:
                pytest.skip(f"network namespaces need root: ip {' '.join(step)}: {result.stderr.strip()}")
        yield both[0], both[1]
    finally:
        with suppress(FileNotFoundError):
            ip("link", "del", both[0].interface)
            for node in both:
                ip("netns", "del", node.name)  # and the cable with it


class TwoNodes:
    """A training of fold 0 with a launcher on each node, both with the same folders."""

    def __init__(self, model: Model, root: Path, nodes: tuple[Node, Node], num_epochs: int) -> None:
        self.place = copy_of(model.workplace, root)
        self.model = Model(self.place, model.checkpoint, model.long_name, model.inner_name)
        self.nodes = nodes
        self.mark = uuid.uuid4().hex
        self.env = {**self.place.env, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", MARK: self.mark}
        self.recipe = ("--set", f"num_epochs={num_epochs}", *SHORT)
        self.logs: list[Path] = []

    def start(self, *options: object) -> list[subprocess.Popen[str]]:
        """The same command on both nodes.

        They have this machine's name, which resolves to none of their addresses: torch and Gloo are told what they find
        out by it elsewhere, which node is the first, the node's address, and the interface.
        """
        launchers = []
        self.logs = [self.place.root / f"{node.name}.log" for node in self.nodes]
        for node, log in zip(self.nodes, self.logs, strict=True):
            env = {**self.env, "GLOO_SOCKET_IFNAME": node.interface}
            launchers.append(node.start(
                env, log, "nnUNetv2_torchrun_pretrained", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend",
                "c10d", "--rdzv_endpoint", f"{self.nodes[0].address}:{PORT}", "--rdzv_id", self.mark,
                "--local_addr", node.address, "--rdzv_conf",
                f"join_timeout=120,is_host={int(node is self.nodes[0])}", "--",
                "-d", self.place.dataset_id, "-c", "3d_fullres", "-f", 0, "-p", self.model.inner_name,
                "-device", "cpu", *options,
            ))  # fmt: skip
        return launchers

    @property
    def output(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)

    def clean_up(self, launchers: list[subprocess.Popen[str]]) -> None:
        for launcher in launchers:
            end_all(launcher)
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)


def test_two_nodes_are_stopped_by_a_signal_to_one_and_continue_over_the_wire(
    nodes: tuple[Node, Node], planned_resenc: Model, tmp_path: Path
) -> None:
    job = TwoNodes(planned_resenc, tmp_path, nodes, num_epochs=3)
    launchers = job.start(*job.recipe)
    try:
        wait_for(lambda: re.search(r"Learning rate .*epoch 2 of", job.output), launchers[0], seconds=200)
        launchers[1].send_signal(signal.SIGTERM)
        codes = [launcher.wait(timeout=120) for launcher in launchers]
        assert codes == [75, 75], job.output
        assert "Stopped by SIGTERM in epoch 1: its start is in checkpoint_latest.pth" in job.output
        latest = torch.load(job.model.fold / "checkpoint_latest.pth", weights_only=True)
        assert latest["current_epoch"] == 1
        job.clean_up(launchers)
        launchers = job.start("--c")
        codes = [launcher.wait(timeout=300) for launcher in launchers]
        assert codes == [0, 0], job.output
    finally:
        job.clean_up(launchers)
    assert "Continuing from checkpoint_latest.pth: epoch 1" in job.output
    final = torch.load(job.model.fold / "checkpoint_final.pth", weights_only=True)
    assert len(final["logging"]["train_losses"]) == 3
    assert len(final["finetuning"]["random_states"]) == 2, "a rank on each node"
    assert (job.model.fold / "validation" / "summary.json").is_file()
    assert "nnUNetv2_predict" in job.logs[0].read_text() + job.logs[1].read_text()
