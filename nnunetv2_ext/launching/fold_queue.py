"""Several folds of one training command, each in a process of its own: one after another, or some at a time.

A fold that fails takes no other down. Every process leads a session, so that Ctrl-C in a terminal reaches the queue
alone, which passes it on once; and what a fold has started (data loaders) ends when the fold does.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.fold_outcomes import FoldOutcome, last_line
from nnunetv2_ext.launching.fold_progress import PROGRESS_FILE_VARIABLE, Lines, display_of, read_progress
from nnunetv2_ext.launching.parent_watch import LAUNCHER
from nnunetv2_ext.launching.stopping import EXIT_STOPPED, deferred, requested_by

THREADS_VARIABLE = "NNUNETV2_EXT_THREADS"
"""In the environment of a fold's process on the CPU: its share of the cores."""
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_SAVE = 60.0
"""What folds get to finish an iteration and save when the queue itself breaks."""


def parse_gpus(text: str | None, *, visible: str | None = None, num_gpus: int | None = None) -> list[str]:
    """The devices of `-gpus`, as `CUDA_VISIBLE_DEVICES` names them.

    Numbers count the GPUs that this process sees, as torch and `-num_gpus` do: under `CUDA_VISIBLE_DEVICES=4,5`, which
    a cluster may have set for the job, 0 is GPU 4.

    Args:
        text: numbers, or names (`GPU-...`, `MIG-...`) as `nvidia-smi -L` prints them, separated by commas.
        visible: `CUDA_VISIBLE_DEVICES` of this process, None where it is not set.
        num_gpus: that this process sees, None where that is not known.

    Raises:
        UserError: not such a list, a device twice, or a number that no GPU has.
    """
    if text is None:
        return []
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+", entry):
            raise UserError(
                f"-gpus takes numbers or names (GPU-..., MIG-...) of GPUs, separated by commas, as in 0,1, not {text!r}"
            )
    entries = [str(int(entry)) if entry.isdigit() else entry for entry in entries]
    names = [] if visible is None else [name.strip() for name in visible.split(",")]
    seen = list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA stops reading there
    limits = [count for count in (num_gpus, None if visible is None else len(seen)) if count is not None]
    for entry in entries:
        if entry.isdigit() and limits and int(entry) >= min(limits):
            because = "" if visible is None else f" under CUDA_VISIBLE_DEVICES={visible}"
            there = "no GPU" if min(limits) == 0 else f"{min(limits)} GPU(s), counted from 0"
            raise UserError(f"-gpus {text}, but there is no GPU {entry}: torch sees {there}{because}")
    devices = [seen[int(entry)] if entry.isdigit() and visible is not None else entry for entry in entries]
    if len(set(devices)) != len(devices):
        raise UserError(
            f"-gpus names a GPU twice: {text} (folds share one where -parallel_folds is more than the GPUs)"
        )
    return devices


def train_in_processes(
    command: Sequence[str],
    folds: Sequence[int | str],
    *,
    skipped: Sequence[int | str] = (),
    parallel: int | None = None,
    gpus: Sequence[str] = (),
    logs: Path,
    cpu_cores: int | None = None,
) -> list[FoldOutcome]:
    """Train folds, each by a command of its own, and wait for all of them.

    A signal that asks to stop (`stopping.listen` is the caller's) is passed on once to every fold that runs; no other
    is begun. Ctrl-C for the second time kills them.

    Args:
        command: of one fold, without `-f`, which is appended.
        folds: to be trained, in this order.
        skipped: those that need no training, for the closing table.
        parallel: so many at a time, the output of each into `logs/fold_X.log`; None: one after another, with the
            output on the screen.
        gpus: from `parse_gpus`. Beside each other, each fold gets one of them, those with the fewest folds first; one
            after another, all. Empty: whatever this process sees.
        logs: a folder; made if needed.
        cpu_cores: for folds beside each other to share on the CPU, `OMP_NUM_THREADS` and `NNUNETV2_EXT_THREADS`; None
            where the CPU does not train.

    Returns:
        An outcome for each of `folds` and `skipped`, in the order of their numbers.

    Raises:
        KeyboardInterrupt: the second Ctrl-C.
        OSError: the folder of logs cannot be made.
    """
    at_once = 1 if parallel is None else max(1, min(parallel, len(folds)))
    variables = {LAUNCHER: str(os.getpid())}
    if parallel is None:
        display, slots = Lines(), [",".join(gpus) or None]
    else:
        logs.mkdir(parents=True, exist_ok=True)
        display, slots = display_of(folds), [gpus[i % len(gpus)] if gpus else None for i in range(at_once)]
        variables["PYTHONUNBUFFERED"] = "1"  # so that the log of a fold that is killed ends where the fold did
        if cpu_cores is not None:
            variables[THREADS_VARIABLE] = str(max(1, cpu_cores // at_once))
            variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or variables[THREADS_VARIABLE]
    with tempfile.TemporaryDirectory(prefix="nnunetv2_ext_folds_") as scratch, display:
        queue = _Queue(
            command, list(folds), slots, variables, logs if parallel is not None else None, Path(scratch), display
        )
        with suppress(Stopped), deferred():  # the outcomes say it
            queue.work()
    done = {fold: FoldOutcome(fold, "skipped") for fold in skipped} | queue.outcomes
    left = {fold: FoldOutcome(fold, "stopped") for fold in folds if fold not in done}
    return sorted((done | left).values(), key=lambda outcome: (isinstance(outcome.fold, str), outcome.fold))


@dataclass
class _Running:
    """A fold's process, and where it runs."""

    fold: int | str
    process: subprocess.Popen[bytes]
    slot: int
    log: Path | None
    log_start: int
    progress_file: Path
    began: float
    asked: int | None = None
    """The signal that it was sent."""


@dataclass
class _Queue:
    """Folds that wait, run and have ended; `slots` are the devices, one for each fold that may run at a time."""

    command: Sequence[str]
    waiting: list[int | str]
    slots: Sequence[str | None]
    variables: Mapping[str, str]
    logs: Path | None
    scratch: Path
    display: Lines
    running: list[_Running] = field(default_factory=list)
    outcomes: dict[int | str, FoldOutcome] = field(default_factory=dict)

    def work(self) -> None:
        """Until nothing runs and nothing is to be begun. No process is left, however it ends."""
        asked = False
        try:
            while self.running or (self.waiting and not requested_by()):
                name = requested_by()
                if name and not asked:
                    asked = True
                    self._pass_on(name)
                while self.waiting and not requested_by() and len(self.running) < len(self.slots):
                    self._begin(self.waiting.pop(0))
                for run in list(self.running):
                    if run.process.poll() is None:
                        if progress := read_progress(run.progress_file):
                            self.display.progressed(run.fold, progress)
                    else:
                        self._end(run)
                self.display.refresh()
                if self.running:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        except Exception:
            self._ask_all(signal.SIGTERM)
            _wait_for([run.process for run in self.running], _SECONDS_TO_SAVE)
            raise
        finally:
            for run in self.running:
                _kill_session(run.process)
            for run in self.running:
                run.process.wait()

    def _begin(self, fold: int | str) -> None:
        slot = self._freest_slot()
        device = self.slots[slot]
        command = [*self.command, "-f", str(fold)]
        progress_file = self.scratch / f"fold_{fold}.json"
        environment = {**os.environ, **self.variables}
        environment.pop(PROGRESS_FILE_VARIABLE, None)
        if self.logs is not None:
            environment[PROGRESS_FILE_VARIABLE] = str(progress_file)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        log = None if self.logs is None else self.logs / f"fold_{fold}.log"
        self.display.started(fold, device, log)
        try:
            process, log_start = _start(command, environment, log)
        except OSError as error:  # too many processes, a full disk: the other folds may get through
            outcome = FoldOutcome(fold, "failed", log=log, note=f"{error.strerror}: {error.filename or command[0]}")
            self._note(outcome)
            return
        self.running.append(_Running(fold, process, slot, log, log_start, progress_file, time.monotonic()))

    def _freest_slot(self) -> int:
        taken = {run.slot for run in self.running}
        folds_on = [self.slots[run.slot] for run in self.running]
        free = [slot for slot in range(len(self.slots)) if slot not in taken]
        return min(free, key=lambda slot: (folds_on.count(self.slots[slot]), slot))

    def _end(self, run: _Running) -> None:
        _kill_session(run.process)  # data loaders of a fold that was killed would wait for ever
        code = run.process.returncode
        # sent before the fold listened: nothing was begun, nothing is lost
        stopped = code == EXIT_STOPPED or (run.asked is not None and code == -run.asked)
        state = "finished" if code == 0 else "stopped" if stopped else "failed"
        note = last_line(run.log, run.log_start) if run.log is not None and state == "failed" else ""
        if state != "failed" and (progress := read_progress(run.progress_file)):
            self.display.progressed(run.fold, progress)
        self.running.remove(run)
        self._note(FoldOutcome(run.fold, state, code, time.monotonic() - run.began, run.log, note))

    def _note(self, outcome: FoldOutcome) -> None:
        self.outcomes[outcome.fold] = outcome
        how = outcome.how if outcome.state == "failed" else ""
        self.display.ended(outcome.fold, outcome.state, how, outcome.seconds)

    def _pass_on(self, name: str) -> None:
        """SIGINT as SIGTERM: whoever sends the first to whole sessions would have a fold take it for the second."""
        number = signal.SIGTERM if name == "SIGINT" else signal.Signals[name]
        self._ask_all(number)
        folds = ", ".join(str(run.fold) for run in self.running)
        again = "; Ctrl-C again kills them" if name == "SIGINT" else ""
        self.display.say(f"{name}: waiting for fold {folds} to save and stop{again}")

    def _ask_all(self, number: signal.Signals) -> None:
        """Ask the folds' own processes, not what they have started, to stop."""
        for run in self.running:
            run.process.send_signal(number)
            run.asked = number


def _start(
    command: Sequence[str], environment: dict[str, str], log: Path | None
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, in a session of its own, and where its own output begins in its log (bytes)."""
    if log is None:
        return _popen(command, environment, None), 0
    with log.open("ab") as file:
        header = f"# {datetime.now():%Y-%m-%d %H:%M:%S} {shlex.join(command)}\n"
        file.write(header.encode(errors="backslashreplace"))
        file.flush()
        begin = file.tell()
        return _popen(command, environment, file.fileno()), begin


def _popen(command: Sequence[str], environment: dict[str, str], output: int | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=True,
    )


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and whatever of its group is left; nothing where nothing is."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
