"""nnU-Net's trainer on any number of processes: GPUs or CPUs, one node or several."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import flush_to_disk
from nnunetv2_ext.launching.ranks import present_ranks
from nnunetv2_ext.training.readiness import check_shares

STARTING = ".starting"
"""Prefix of the folder that nnU-Net writes the model's shared files into, before they are moved to their place."""


class DistributedTrainer(nnUNetTrainer):
    """nnU-Net's trainer for `present_ranks`.

    Stock takes the global rank for the index of a GPU, which holds on one node only, and knows no DDP on CPUs. Here the
    device is the local rank's; `local_rank` keeps nnU-Net's meaning, the global rank. DDP is built anew when other
    parameters train, and only the first rank writes.
    """

    is_ddp: bool
    network: nn.Module
    device: torch.device
    output_folder_base: str
    output_folder: str
    dataloader_train: Any
    dataloader_val: Any
    _wrapped_for: frozenset[str]

    def __init__(self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device):
        self.ranks = present_ranks()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*GradScaler is enabled, but CUDA is not available")
            super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            self.device = self.ranks.device(device.type)
            if self.device.type != "cuda":
                self.grad_scaler = None
        self._share = 1.0

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and `torch.compile`."""
        network = self._without_ddp
        plain: nn.Module = getattr(network, "_orig_mod", network)
        return plain

    @property
    def _without_ddp(self) -> nn.Module:
        """The network that DDP wraps, compiled or not."""
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    @property
    def global_batch_size(self) -> int:
        """Samples of all processes in one forward pass: the plan's, or one for each process."""
        return max(int(self.configuration_manager.batch_size), self.ranks.size)

    def initialize(self) -> Any:
        """As nnU-Net, with DDP for the device that this process has."""
        if self.was_initialized or not self.is_ddp:
            return super().initialize()
        self.is_ddp = False  # nnU-Net would wrap the network for the GPU with the global rank's index
        scales = super().initialize()
        self.is_ddp = True
        self.loss = self._build_loss()
        self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self._wrap()
        return scales

    def _build_loss(self) -> nn.Module:
        """As nnU-Net in one process: for DDP it would give the lowest output of deep supervision a weight of 1e-6."""
        loss: nn.Module = super()._build_loss()
        if self.is_ddp and isinstance(loss, DeepSupervisionWrapper):
            *weights, _ = loss.weight_factors
            loss.weight_factors = (*(weight / sum(weights) for weight in weights), 0.0)
        return loss

    def _wrap(self) -> None:
        """Put the network into DDP, which must know what trains: anew, if that has changed."""
        if not self.is_ddp:
            return
        inner = self._without_ddp
        if isinstance(self.loss, DeepSupervisionWrapper):  # DDP would wait for the output that has no weight
            lowest: nn.Module = self.plain_network.get_submodule("decoder.seg_layers.0")
            lowest.requires_grad_(False)
        trained = frozenset(name for name, p in inner.named_parameters() if p.requires_grad)
        if isinstance(self.network, DistributedDataParallel):
            if trained == self._wrapped_for:
                return
            self.network = inner
            gc.collect()  # the earlier wrapper's hooks go with it
        self._wrapped_for = trained
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated")
            # buffers of these networks never change, and exchanging them would have ranks that validate another number
            # of patches wait for each other
            self.network = DistributedDataParallel(
                inner, device_ids=[self.device] if self.device.type == "cuda" else None, broadcast_buffers=False
            )

    def share_weights(self, network: nn.Module) -> None:
        """Have all ranks take the first rank's weights."""
        if self.ranks.are_several:
            for tensor in [*network.parameters(), *network.buffers()]:
                shared = tensor.detach().contiguous()  # not so in the memory format channels_last
                dist.broadcast(shared, src=0)
                tensor.detach().copy_(shared)

    def _set_batch_size_and_oversample(self) -> None:
        """As nnU-Net shares the batch out; where there are more processes than samples, one sample for each.

        Raises:
            UserError: batch Dice with unequal shares, which nnU-Net's loss cannot exchange.
        """
        self.is_ddp = self.ranks.are_several
        configuration = self.configuration_manager.configuration
        planned, configuration["batch_size"] = configuration["batch_size"], self.global_batch_size
        try:
            super()._set_batch_size_and_oversample()
        finally:
            configuration["batch_size"], self.is_ddp = planned, False
        if not self.ranks.are_several:
            return
        total, world = self.global_batch_size, self.ranks.size
        self._share = self.batch_size * world / total
        if total > planned:
            self.print_to_log_file(
                f"{world} processes are more than the plan's batch size of {planned}: each trains one sample, and the "
                f"effective batch is {total}"
            )
        if total % world:
            self.ranks.agreed(lambda: check_shares(planned, self.configuration_manager.batch_dice, world))
            self.print_to_log_file(f"The batch of {total} is shared unequally by {world} processes, weighted by shares")

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """As nnU-Net, from the first rank alone."""
        if self.ranks.is_first:
            super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def on_train_start(self) -> None:
        """As nnU-Net; what all folds share (`plans.json` and others) is whole or absent, and of the first rank."""
        with self._shared_files_elsewhere() as folder:
            super().on_train_start()
            if self.ranks.is_first:
                for file in folder.iterdir():
                    flush_to_disk(file)
                    os.replace(file, Path(self._shared_folder) / file.name)

    @contextmanager
    def _shared_files_elsewhere(self) -> Iterator[Path]:
        Path(self.output_folder).mkdir(parents=True, exist_ok=True)
        place = self.output_folder if self.ranks.is_first else None  # renaming needs the same file system
        folder = Path(tempfile.mkdtemp(prefix=f"{STARTING}_", dir=place))
        self._shared_folder, self.output_folder_base = self.output_folder_base, str(folder)
        try:
            yield folder
        finally:
            self.output_folder_base = self._shared_folder
            shutil.rmtree(folder, ignore_errors=True)

    def do_split(self) -> tuple[list[str], list[str]]:
        """As nnU-Net."""
        training, validation = super().do_split()
        self._validation_cases = list(validation)
        return training, validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, which shares the cases out.

        Raises:
            UserError: predictions of other ranks do not arrive in the results folder.
        """
        super().perform_actual_validation(save_probabilities)
        if self.ranks.is_first and self.is_ddp:
            ending = self.dataset_json["file_ending"]
            cases = self._validation_cases
            folder = Path(self.output_folder) / "validation"
            if missing := [case for case in cases if not (folder / f"{case}{ending}").is_file()]:
                (folder / "summary.json").unlink(missing_ok=True)
                raise UserError(
                    f"{folder} lacks {len(missing)} of {len(cases)} predictions ({', '.join(missing[:3])}): all nodes "
                    "must write to the same nnUNet_results folder; --val validates again"
                )
