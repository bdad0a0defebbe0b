"""Checkpoints that Lightning itself wrote, after a training of one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_ext.checkpoints.reading import WEIGHTS, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.given_architecture import GivenArchitecture, described
from tests.checkpoints.test_roots import ARCHITECTURE, tiny_network

L = pytest.importorskip("lightning.pytorch")

pytestmark = pytest.mark.filterwarnings("ignore")


def train_one_step(folder: Path, compiled: bool = False, **hyper_parameters: Any) -> tuple[Path, nn.Module]:
    """The checkpoint of the ModelCheckpoint callback, and the network as it was after the step."""

    class Segmentation(L.LightningModule):
        def __init__(self, **hyper_parameters: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            network = tiny_network()
            self.model = torch.compile(network, backend="eager") if compiled else network
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss = self.loss(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.randn(2, 2, 8, 8, 8), torch.randint(3, (2, 8, 8, 8)))
    module = Segmentation(**hyper_parameters)
    before = module.model.state_dict()["encoder.stages.0.0.convs.0.conv.weight"].clone() if not compiled else None
    saver = L.callbacks.ModelCheckpoint(dirpath=folder, filename="last step", monitor="loss", every_n_train_steps=1)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    network = getattr(module.model, "_orig_mod", module.model)
    if before is not None:
        assert not torch.equal(before, network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"])
    return folder / "last step.ckpt", network


def test_the_weights_of_a_lightning_training_are_read(tmp_path: Path) -> None:
    path, network = train_one_step(tmp_path, lr=0.1, name="tiny", patch=[8, 8, 8])
    assert "pytorch-lightning_version" in torch.load(path, weights_only=False)
    found = read_checkpoint(resolve_checkpoint_source(str(path)))
    assert found.kind == WEIGHTS
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.network_weights[f"model.{name}"], tensor)


@pytest.mark.parametrize("compiled", [False, True])
def test_its_network_is_found_behind_lightning_s_prefixes(tmp_path: Path, compiled: bool) -> None:
    path, _ = train_one_step(tmp_path, compiled=compiled)
    (tmp_path / "arch.json").write_text(ARCHITECTURE)
    checkpoint = read_checkpoint(resolve_checkpoint_source(str(path)))
    plan = described(checkpoint, GivenArchitecture(str(tmp_path / "arch.json"), patch_size=(8, 8, 8))).plan
    root = "model._orig_mod." if compiled else "model."
    assert plan.key_to_encoder == f"{root}encoder.stages"
    assert plan.pretrain_num_input_channels == 2


def test_hyper_parameters_that_are_objects_are_refused_by_name_with_the_way_out(tmp_path: Path) -> None:
    path, _ = train_one_step(tmp_path, data=Path("/data"))
    with pytest.raises(UserError, match=r"pathlib.*state_dict\(\)"):
        read_checkpoint(resolve_checkpoint_source(str(path)))
