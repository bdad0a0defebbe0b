"""How a planning command goes about it; what is planned is in the options of the plans."""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_ext.errors import UserError

LOCAL, DASK = "local", "dask"
EXECUTORS = (LOCAL, DASK)


@dataclass(frozen=True)
class RunOptions:
    """What the planning commands have in common.

    Attributes:
        base_plan: `-pl`.
        num_processes: `-np`.
        preprocess: False plans only (`--no_pp`).
        overwrite: preprocess cases again that are there (`--overwrite_pp`).
        preview: draw some cases before and after (`--preview`).
        executor: `-executor`, where the cases are made.
        scheduler: `-scheduler`, address of a Dask scheduler.
        part: `-part`, which part of the cases is this run's, from 0.
        num_parts: `-num_parts`, in how many parts the cases are made.
        verbose: more output.
        show_progress: progress bars on a terminal.
    """

    base_plan: str | None = None
    num_processes: int = 4
    preprocess: bool = True
    overwrite: bool = False
    preview: bool = False
    executor: str = LOCAL
    scheduler: str | None = None
    part: int | None = None
    num_parts: int | None = None
    verbose: bool = False
    show_progress: bool = True

    def check(self) -> None:
        """Raises UserError for options that do not go together, or numbers that cannot be."""
        if self.num_processes < 1:
            raise UserError(f"-np must be at least 1, not {self.num_processes}")
        if (self.executor == DASK) != (self.scheduler is not None):
            raise UserError("-executor dask and -scheduler ADDRESS go together: give both or neither")
        if (self.part is None) != (self.num_parts is None):
            raise UserError("-part I and -num_parts N go together: give both or neither")
        if self.num_parts is not None and self.num_parts < 1:
            raise UserError(f"-num_parts must be at least 1, not {self.num_parts}")
        if self.part is not None and self.num_parts is not None and not 0 <= self.part < self.num_parts:
            raise UserError(
                f"-part counts from 0 to {self.num_parts - 1} of -num_parts {self.num_parts}, not {self.part}"
            )
        if not self.preprocess:
            without = {
                "--overwrite_pp": self.overwrite,
                "--preview": self.preview,
                "-part": self.part is not None,
                "-executor dask": self.executor == DASK,
            }
            if useless := [flag for flag, given in without.items() if given]:
                raise UserError(f"{useless[0]} is about preprocessing, which --no_pp leaves out")
