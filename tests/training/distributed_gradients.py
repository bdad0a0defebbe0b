"""Train given cases on several processes, and leave what each had: run by `test_distributed_trainer.py`.

`python -m tests.training.distributed_gradients FOLDER 2 4` reads `FOLDER/cases.json` and trains on two processes, then
on four. They are forked from one that has nnU-Net loaded, which takes longer than all they do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.ranks import joined, launched, present_ranks
from nnunetv2_ext.training import fold_records
from nnunetv2_ext.training.trainer import PretrainedTrainer

TIMEOUT = 120
"""Seconds that processes wait for each other."""


class DoubleTrainer(PretrainedTrainer):
    """In double precision, so that what is left of a difference is not that between two orders of a sum."""

    def configure_optimizers(self) -> tuple[Any, Any]:
        self.network.double()
        return super().configure_optimizers()


class Exchanges:
    """Counts how often DDP exchanges gradients, and notes the count at every forward pass in training."""

    def __init__(self) -> None:
        self.count = 0
        self.at_forward_passes: list[int] = []

    def watch(self, trainer: PretrainedTrainer) -> None:
        trainer.plain_network.register_forward_pre_hook(lambda *_: self.at_forward_passes.append(self.count))
        if isinstance(trainer.network, DistributedDataParallel):
            trainer.network.register_comm_hook(self, _counted)


def _counted(exchanges, bucket):  # torch compares annotations with types, and finds strings
    exchanges.count += 1
    return allreduce_hook(dist.group.WORLD, bucket)


def batch(number: int, first: int, last: int, edge: int) -> dict[str, Any]:
    """The samples `first` to `last` of a batch of noise: the labels 0, 1 and 2, of another proportion in each."""
    samples, labels = [], []
    for sample in range(first, last):
        random = torch.Generator().manual_seed(100 * number + sample)
        samples.append(torch.randn(1, edge, edge, edge, generator=random).double())
        share = (sample + 1) / 10
        numbers = torch.rand(1, edge, edge, edge, generator=random)
        labels.append((numbers < share).float() + (numbers < share / 3).float())
    keys = [f"case {sample}" for sample in range(first, last)]
    return {"data": torch.stack(samples), "target": torch.stack(labels), "keys": keys}


def shares(trainer: PretrainedTrainer, edge: int) -> Iterator[dict[str, Any]]:
    """This rank's samples of one batch after the other, at the resolutions that the loss wants."""
    sizes = trainer.ranks.gathered(trainer.batch_size)
    first = sum(sizes[: trainer.ranks.rank])
    scales = trainer._get_deep_supervision_scales()
    number = 0
    while True:
        share = batch(number, first, first + trainer.batch_size, edge)
        if scales is not None:
            share["target"] = [F.interpolate(share["target"], [round(s * edge) for s in scale]) for scale in scales]
        yield share
        number += 1


def train_case(case: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Train a case by the trainer's own hooks, on the processes that there are.

    Args:
        case: `plan`, with a recipe and the name of the case in its name; `edge`, voxels of its cubes; `counts`, whether
            exchanges are counted.
        dataset_json: the dataset's.

    Returns:
        What this rank had: `start` (parameters), `steps` (gradients and loss of each), `epochs` (parameters after each,
        and the averaged ones), `rates` (learning rates of the epochs), `exchanges`.
    """
    torch.manual_seed(present_ranks().rank)  # each draws another fresh decoder
    trainer = DoubleTrainer(case["plan"], "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    exchanges = Exchanges()
    if case["counts"]:
        exchanges.watch(trainer)
    trainer.dataloader_train = shares(trainer, case["edge"])
    result: dict[str, Any] = {"start": _parameters(trainer), "steps": [], "epochs": [], "rates": []}
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        result["rates"].append(trainer.optimizer.param_groups[0]["lr"])
        for _ in range(trainer.num_iterations_per_epoch):
            loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
            gradients = {n: p.grad.clone() for n, p in trainer.plain_network.named_parameters() if p.grad is not None}
            result["steps"].append({"gradients": gradients, "loss": float(loss)})
        with trainer._averaged():
            averaged = _parameters(trainer)
        result["epochs"].append({"weights": _parameters(trainer), "averaged": averaged})
    result["exchanges"] = {"at_forward_passes": exchanges.at_forward_passes, "all": exchanges.count}
    return result


def _parameters(trainer: PretrainedTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.plain_network.named_parameters()}


def _rank(folder: Path, rank: int, size: int, port: int) -> None:
    environment = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "nnUNet_results": folder / f"results_{size}",
    }  # fmt: skip
    os.environ.update({key: str(value) for key, value in environment.items()})
    fold_records.draw_transfer = lambda *_: None  # has a test of its own, and takes longer than a training
    given = json.loads((folder / "cases.json").read_text())
    with joined(launched(), "cpu", TIMEOUT):
        for name, case in given["cases"].items():
            if size not in case["sizes"]:
                continue
            try:
                result = train_case(case, given["dataset_json"])
            except UserError as error:
                result = {"refused": str(error)}
            except SystemExit as end:
                result = {"refused": end.code}
            torch.save(result, folder / f"{name}_{size}_{rank}.pt")


def _train_together(folder: Path, size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_rank, args=(folder, rank, size, port)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{size} processes ended with {[p.exitcode for p in processes]}")


if __name__ == "__main__":
    for number_of_processes in map(int, sys.argv[2:]):
        _train_together(Path(sys.argv[1]), number_of_processes)
