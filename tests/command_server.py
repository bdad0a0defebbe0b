"""Commands as copies of a process that has already imported what they import of others' (torch, SimpleITK, ...).

To import torch and all that nnU-Net needs takes seconds, to leave such a process too, and the tests run hundreds of
commands. A copy is a process of its own, with the arguments, environment and folder of its command, and imports nnU-Net
and this package itself.
"""

from __future__ import annotations

import gc
import json
import multiprocessing.process
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

OTHERS = (
    "SimpleITK", "acvl_utils", "batchgenerators", "batchgenerators.utilities.file_and_folder_operations",
    "batchgeneratorsv2", "blosc2", "cc3d", "dynamic_network_architectures.architectures.primus",
    "dynamic_network_architectures.architectures.unet", "huggingface_hub", "matplotlib.pyplot", "nibabel", "numpy",
    "omegaconf", "pandas", "requests", "rich.console", "rich.table", "safetensors", "scipy.ndimage", "seaborn",
    "skimage.transform", "sklearn.model_selection", "tifffile", "timm", "torch", "torch._dynamo", "tqdm",
)  # fmt: skip
FIXED = ("PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
"""Variables that take effect when libraries are loaded, so that a copy cannot have others."""


class CommandServer:
    """The process, and the socket on which it is told what to run. It ends when the socket is closed."""

    def __init__(self, env: Mapping[str, str]) -> None:
        here, there = socket.socketpair()
        self.fixed = {name: env.get(name) for name in FIXED}
        self._socket = here
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())], env=dict(env), pass_fds=[there.fileno()]
        )
        there.close()

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Whether the libraries are loaded as this environment would have them loaded."""
        return {name: env.get(name) for name in FIXED} == self.fixed

    def run(self, command: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int, timeout: float) -> int:
        """The exit code of a Python script; output goes to two file descriptors.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
        """
        content = json.dumps({"command": list(command), "env": dict(env), "folder": os.getcwd()}).encode()
        socket.send_fds(self._socket, [len(content).to_bytes(8, "little")], [stdout, stderr])
        self._socket.sendall(content)
        pid = int(self._line())
        self._socket.settimeout(timeout)
        try:
            return int(self._line())
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
            self._socket.settimeout(None)
            self._line()
            raise subprocess.TimeoutExpired(list(command), timeout) from None
        finally:
            self._socket.settimeout(None)

    def end(self) -> None:
        self._socket.close()
        self._process.wait()

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            received = self._socket.recv(1)
            if not received:
                raise AssertionError(f"the commands' server ended with {self._process.wait()}")
            line += received
        return line.decode()


def _serve(connection: socket.socket) -> dict[str, object] | None:
    """Run what is asked for; returns in the copy with what it is to run, and in the server when the tests end."""
    while True:
        size, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        if not size:
            return None
        content = json.loads(_received(connection, int.from_bytes(size, "little")))
        pid = os.fork()
        if pid == 0:
            connection.close()
            for descriptor, standard in zip(descriptors, (1, 2), strict=True):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            return dict(content)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _received(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        content += connection.recv(size - len(content))
    return content


def _become(command: list[str], env: Mapping[str, str], folder: str) -> None:
    """What the interpreter does before a script begins."""
    import numpy as np

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    for module in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[module]  # timm imports it; it reads the environment when it is imported
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    np.random.seed()  # else all copies would draw the same numbers, and tests of seeds could not fail


if __name__ == "__main__":
    for module in OTHERS:
        __import__(module)
    gc.collect()
    gc.freeze()  # else every copy would go through all that is imported when it ends
    given = _serve(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        _become(**given)  # type: ignore[arg-type]
        runpy.run_path(sys.argv[0], run_name="__main__")
