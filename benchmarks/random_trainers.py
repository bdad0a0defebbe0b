"""Stock nnU-Net's trainer and this package's, initialized on random weights and batches: for `training_step.py`."""

from __future__ import annotations

import pydoc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DATASET, CONFIGURATION = "Dataset999_Random", "3d_fullres"
NUM_LABELS = 4


@dataclass(frozen=True)
class Size:
    """What is trained. `settings` are overrides for every recipe, and the like of them for stock."""

    features: tuple[int, ...]
    blocks: tuple[int, ...]
    patch: int
    steps: int
    warm_up: int
    deep_supervision: bool
    precision: str
    published: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        return f"deep_supervision={str(self.deep_supervision).lower()}", f"precision={self.precision}"

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of the network, as a checkpoint names them."""
        n = len(self.features)
        return {
            "n_stages": n,
            "features_per_stage": list(self.features),
            "kernel_sizes": [[3, 3, 3]] * n,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (n - 1),
            "n_blocks_per_stage": list(self.blocks),
            "n_conv_per_stage_decoder": [1] * (n - 1),
        }


SIZES = {
    "small": Size((16, 32, 64, 128), (1, 3, 4, 6), 48, 5, 2, deep_supervision=False, precision="fp16"),
    "full": Size(
        (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6), 192, 20, 5, deep_supervision=True, precision="bf16",
        published="Published for an H200: batch 2 in 0.310 s and 18.3 GiB, batch 4 in 0.499 s and 35.6 GiB.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to train; `recipe` None is stock nnU-Net."""

    recipe: str | None = "default"
    overrides: tuple[str, ...] = ()
    batch_size: int = 2
    batch_dice: bool = False


def prepare(folder: Path, size: Size) -> None:
    """Write what the trainers look for on the disk: a checkpoint in nnssl's layout, and a data folder with a case."""
    torch.manual_seed(0)
    plan = {
        "architecture_plans": {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": size.architecture},
        "pretrain_plan": {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": [size.patch] * 3}}},
        "pretrain_num_input_channels": 1,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }
    weights = network_of(size).state_dict()
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": plan}, folder / "checkpoint_final.pth")
    data = folder / "nnUNet_preprocessed" / DATASET / "data"
    data.mkdir(parents=True)
    (data / "x.b2nd").touch()  # nnU-Net infers from the names what wrote the cases


def network_of(size: Size) -> torch.nn.Module:
    """The network as stock nnU-Net builds it."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans_for(size, Path(), Arm())["configurations"][CONFIGURATION]["architecture"]
    pydoc.locate(architecture["network_class_name"])
    network: torch.nn.Module = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
        1, NUM_LABELS, allow_init=True, deep_supervision=size.deep_supervision,
    )  # fmt: skip
    return network


def plans_for(size: Size, folder: Path, arm: Arm) -> dict[str, Any]:
    """A ptPlan, without what planning and preprocessing alone read."""
    from nnunetv2_ext.architectures.presets import downstream_architecture
    from nnunetv2_ext.recipes.resolving import recipe_for
    from nnunetv2_ext.recipes.scaling import Blocks

    stages = len(size.features)
    patch = [size.patch] * 3
    overrides = (*size.settings, *arm.overrides)
    blocks = Blocks(encoder=stages, decoder=stages - 1)
    recipe = recipe_for("cnn", overrides, chosen=arm.recipe or "default", blocks=blocks)
    return {
        "dataset_name": DATASET,
        "plans_name": "ptPlans_random",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "none",
        "label_manager": "LabelManager",
        "configurations": {
            CONFIGURATION: {
                "data_identifier": "data",
                "batch_size": arm.batch_size,
                "patch_size": patch,
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "batch_dice": arm.batch_dice,
                "architecture": downstream_architecture("ResidualEncoderUNet", size.architecture, patch),
            }
        },
        "pretrain_info": {
            "checkpoint_path": str(folder / "checkpoint_final.pth"),
            "checkpoint_name": "random",
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
            "key_to_lpe": None,
            "pt_num_in_channels": 1,
            "pt_used_patchsize": patch,
            "pt_recommended_downstream_patchsize": patch,
            "citations": [],
        },
        "finetuning": {"recipe": recipe.as_dict()},
        "continue_training": False,
    }


def make_trainer(arm: Arm, size: Size, device: str, folder: Path) -> Any:
    """The arm's trainer, initialized and at the start of its first epoch."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_ext.training.trainer import PretrainedTrainer

    labels = {"background": 0, **{f"label_{i}": i for i in range(1, NUM_LABELS)}}
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    trainer_class = nnUNetTrainer if arm.recipe is None else PretrainedTrainer
    trainer: Any = trainer_class(plans_for(size, folder, arm), CONFIGURATION, 0, dataset_json, torch.device(device))
    if arm.recipe is None:
        trainer.enable_deep_supervision = size.deep_supervision
        if size.precision == "bf16":
            torch.set_autocast_dtype(device, torch.bfloat16)
            trainer.grad_scaler = None
    trainer.initialize()
    trainer.on_train_epoch_start()
    return trainer


def make_batch(trainer: Any, arm: Arm, size: Size) -> dict[str, Any]:
    """Random values as nnU-Net's loaders give them, the same ones for all trainers of a batch size."""
    generator = torch.Generator().manual_seed(0)
    shape = (arm.batch_size, 1, *[size.patch] * 3)
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else [[1.0] * 3]
    shapes = [(*shape[:2], *(round(n * s) for n, s in zip(shape[2:], scale, strict=True))) for scale in scales]
    target = [torch.randint(0, NUM_LABELS, s, generator=generator).to(torch.int16) for s in shapes]
    data = torch.randn(shape, generator=generator)
    if trainer.device.type == "cuda":  # as nnU-Net's loaders
        data, target = data.pin_memory(), [level.pin_memory() for level in target]
    return {
        "data": data,
        "target": target if trainer.enable_deep_supervision else target[0],
        "keys": [f"case_{i}" for i in range(arm.batch_size)],
    }
