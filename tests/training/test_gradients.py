"""The gradient and the step: stock nnU-Net's with one micro-batch, the big batch's with several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_ext.training.gradients import backward, backward_as_one_batch, forward_context, take_step
from nnunetv2_ext.training.network_levers import checkpoint_activations
from tests.transfer.networks import resenc

CPU = torch.device("cpu")
IGNORE = 3
Backward = Callable[..., torch.Tensor]
BOTH = pytest.mark.parametrize("run", [backward, backward_as_one_batch])


def tiny_network(seed: int = 0) -> ResidualEncoderUNet:
    torch.manual_seed(seed)
    return resenc(features=(4, 8), blocks=(1, 1))


def batches(count: int = 4, size: int = 2, seed: int = 0, labels: int = 3) -> list[dict[str, Any]]:
    """Micro-batches of 8 voxels per axis; how much of each case is foreground differs, or batch Dice would be Dice."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        share = (torch.arange(i * size, (i + 1) * size) / (count * size)).view(-1, 1, 1, 1, 1)
        drawn = torch.randint(1, labels, (size, 1, 8, 8, 8), generator=generator)
        target = torch.where(torch.rand(drawn.shape, generator=generator) < share, drawn, 0)
        data = torch.randn(size, 1, 8, 8, 8, generator=generator) + target
        made.append({"data": data, "target": target.float(), "keys": [f"case_{i}_{j}" for j in range(size)]})
    return made


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "data": torch.cat([p["data"] for p in parts]),
        "target": torch.cat([p["target"] for p in parts]),
        "keys": [key for p in parts for key in p["keys"]],
    }


def dice_and_ce(**settings: Any) -> DC_and_CE_loss:
    """nnU-Net's loss, as its trainer makes it."""
    dice = {"batch_dice": settings.pop("batch_dice", False), "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss, **settings)


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dice": dice_and_ce,
    "batch_dice": lambda: dice_and_ce(batch_dice=True),
    "ignore": lambda: dice_and_ce(ignore_label=IGNORE),
    "topk": lambda: TopKLoss(k=10),
}


def batches_for(loss: str) -> list[dict[str, Any]]:
    return batches(labels=IGNORE + 1 if loss == "ignore" else 3)


def without_keys(loss: nn.Module) -> Callable[[Any, Any, list[str]], torch.Tensor]:
    return lambda output, target, keys: loss(output, target)


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def gradient_of_the_big_batch(network: nn.Module, loss: nn.Module, parts: list[dict[str, Any]]) -> torch.Tensor:
    """By autograd alone, on a copy."""
    network, batch = copy.deepcopy(network), joined(parts)
    loss(network(batch["data"]), batch["target"]).backward()
    return gradient(network)


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).norm() / truth.norm()).item()


def run_on_cpu(run: Backward, network: nn.Module, loss: nn.Module, parts: list[dict[str, Any]], **options: Any) -> Any:
    options = {"precision": "fp16", "scaler": None, **options}
    return run(network, without_keys(loss), parts, device=CPU, **options)


def stock_optimizer(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)


@pytest.mark.parametrize("weight", [1, 1000])  # the gradient's norm is below 12, and above
def test_one_micro_batch_is_stock_nnunets_train_step_bit_for_bit(weight: int) -> None:
    ours, theirs = tiny_network(), tiny_network()
    loss = dice_and_ce(weight_ce=weight)
    optimizer, stock = stock_optimizer(ours), stock_optimizer(theirs)
    trainer = SimpleNamespace(device=CPU, network=theirs, optimizer=stock, loss=loss, grad_scaler=None)
    for batch in batches(3):
        optimizer.zero_grad(set_to_none=True)
        value = run_on_cpu(backward, ours, loss, [batch])
        take_step(optimizer, None, ours.parameters(), 12)
        assert value.numpy() == nnUNetTrainer.train_step(trainer, batch)["loss"]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(ours.encoder.stem.convs[0].conv.weight, tiny_network().encoder.stem.convs[0].conv.weight)


@pytest.mark.parametrize(
    ("run", "loss"),
    [(backward, "dice"), *((backward_as_one_batch, loss) for loss in LOSSES)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_four_micro_batches_give_the_big_batchs_gradient_and_loss(run: Backward, loss: str) -> None:
    network, parts, criterion = tiny_network(), batches_for(loss), LOSSES[loss]()
    truth = gradient_of_the_big_batch(network, criterion, parts)
    batch = joined(parts)
    value = run_on_cpu(run, network, criterion, parts)
    assert difference(gradient(network), truth) < 1e-5
    assert value.item() == pytest.approx(criterion(network(batch["data"]), batch["target"]).item(), rel=1e-5)
    assert not value.requires_grad


@pytest.mark.parametrize("loss", ["batch_dice", "ignore", "topk"])
def test_the_mean_over_micro_batches_is_not_enough_for_losses_of_the_whole_batch(loss: str) -> None:
    network, parts, criterion = tiny_network(), batches_for(loss), LOSSES[loss]()
    truth = gradient_of_the_big_batch(network, criterion, parts)
    run_on_cpu(backward, network, criterion, parts)
    assert difference(gradient(network), truth) > 5e-3


def test_micro_batches_of_different_sizes_are_one_batch_too() -> None:
    network, criterion = tiny_network(), dice_and_ce()
    parts = [*batches(1, 1), *batches(1, 3, seed=1)]
    truth = gradient_of_the_big_batch(network, criterion, parts)
    run_on_cpu(backward_as_one_batch, network, criterion, parts)
    assert difference(gradient(network), truth) < 1e-5


@BOTH
def test_gradients_are_added_to_those_there_are(run: Backward) -> None:
    network, parts = tiny_network(), batches(2)
    run_on_cpu(run, network, dice_and_ce(), parts)
    once = gradient(network)
    run_on_cpu(run, network, dice_and_ce(), parts)
    torch.testing.assert_close(gradient(network), 2 * once)


@BOTH
def test_deep_supervision_with_a_level_of_weight_zero(run: Backward) -> None:
    network = resenc(features=(4, 8, 8), blocks=(1, 1, 1))
    network.decoder.deep_supervision = True
    loss = DeepSupervisionWrapper(dice_and_ce(), (0.7, 0.3))
    parts = [{**b, "target": [b["target"], b["target"][..., ::2, ::2, ::2]]} for b in batches()]
    truth = copy.deepcopy(network)
    full = [torch.cat([p["target"][level] for p in parts]) for level in range(2)]
    loss(truth(torch.cat([p["data"] for p in parts])), full).backward()
    run_on_cpu(run, network, loss, parts)
    assert difference(gradient(network), gradient(truth)) < 1e-5

    truth.zero_grad()
    network.zero_grad()
    loss.weight_factors = (1.0, 0.0)
    loss(truth(torch.cat([p["data"] for p in parts])), full).backward()
    run_on_cpu(run, network, loss, parts)
    assert difference(gradient(network), gradient(truth)) < 1e-5
    assert network.decoder.seg_layers[0].weight.grad is None


def test_the_loss_gets_the_names_of_its_cases() -> None:
    parts, seen = batches(2), []

    def loss(output: torch.Tensor, target: torch.Tensor, keys: list[str]) -> torch.Tensor:
        seen.append(keys)
        return output.mean()

    options = {"device": CPU, "precision": "off", "scaler": None}
    backward(tiny_network(), loss, parts, **options)
    backward_as_one_batch(tiny_network(), loss, parts, **options)
    assert seen == [parts[0]["keys"], parts[1]["keys"], parts[0]["keys"] + parts[1]["keys"]]


class WithDropout(nn.Module):
    """Draws random numbers in the middle of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_network()
        self.network.encoder.stages[0].blocks.register_forward_hook(lambda _, __, x: nn.functional.dropout(x, 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def test_dropout_of_the_second_forward_pass_is_that_of_the_first() -> None:
    parts = batches()
    one, other = WithDropout(), WithDropout()
    torch.manual_seed(1)
    run_on_cpu(backward, one, dice_and_ce(), parts)
    after = torch.rand(1)
    torch.manual_seed(1)
    run_on_cpu(backward_as_one_batch, other, dice_and_ce(), parts)
    assert difference(gradient(other), gradient(one)) < 1e-5
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    other.zero_grad()
    run_on_cpu(backward_as_one_batch, other, dice_and_ce(), parts)
    assert difference(gradient(other), gradient(one)) > 1e-2


def test_what_is_drawn_next_is_as_after_one_forward_pass_and_the_loss() -> None:
    def drawing_loss(output: torch.Tensor, target: torch.Tensor, keys: list[str]) -> torch.Tensor:
        return (output * torch.rand(output.shape)).mean()

    drawn = []
    for run in (backward, backward_as_one_batch):
        torch.manual_seed(1)
        run(WithDropout(), drawing_loss, batches(1), device=CPU, precision="off", scaler=None)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_so_it_is_where_gradient_checkpointing_computes_a_third_time() -> None:
    gradients = []
    for change in (lambda network: None, checkpoint_activations):
        network = WithDropout()
        change(network.network)
        torch.manual_seed(1)
        run_on_cpu(backward_as_one_batch, network, dice_and_ce(), batches())
        gradients.append(gradient(network))
    assert torch.equal(*gradients)


@BOTH
@pytest.mark.parametrize("max_norm", [1e-2, 1e3])
def test_with_a_scaler_the_update_is_the_same_bit_for_bit(run: Backward, max_norm: float) -> None:
    """A power of two changes no digit; clipping before un-scaling, or un-scaling for every micro-batch, would."""
    networks = tiny_network(), tiny_network()
    for network, scaler in zip(networks, (None, torch.amp.GradScaler("cpu", init_scale=1024.0)), strict=True):
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        for _ in range(2):
            optimizer.zero_grad()
            value = run_on_cpu(run, network, dice_and_ce(), batches(), scaler=scaler)
            take_step(optimizer, scaler, network.parameters(), max_norm)
        assert abs(value.item()) < 10  # not scaled
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


@pytest.mark.parametrize("max_norm", [1e-2, 1e3])
def test_the_step_is_as_long_as_the_clipped_gradient(max_norm: float) -> None:
    network = tiny_network()
    before = nn.utils.parameters_to_vector(network.parameters()).detach()
    run_on_cpu(backward, network, dice_and_ce(), batches())
    norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]).item()
    assert 0.1 < norm < 100
    take_step(torch.optim.SGD(network.parameters(), 1.0), None, network.parameters(), max_norm)
    moved = (nn.utils.parameters_to_vector(network.parameters()) - before).norm().item()
    assert moved == pytest.approx(min(norm, max_norm), rel=1e-3)


@BOTH
def test_a_gradient_that_is_not_finite_skips_the_step_and_lowers_the_scale(run: Backward) -> None:
    network, scaler = tiny_network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    parts = batches()
    parts[2]["data"][0, 0, 0, 0, 0] = torch.inf
    run_on_cpu(run, network, dice_and_ce(), parts, scaler=scaler)
    take_step(optimizer, scaler, network.parameters(), 12)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), tiny_network().parameters(), strict=True))
    assert scaler.get_scale() == 512.0


@BOTH
def test_mixed_precision_gives_the_big_batchs_gradient_in_it(run: Backward) -> None:
    network, parts, criterion = tiny_network(), batches(), dice_and_ce()
    truth, single, batch = copy.deepcopy(network), gradient_of_the_big_batch(network, criterion, parts), joined(parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = truth(batch["data"])
        criterion(output, batch["target"]).backward()
    run_on_cpu(run, network, criterion, parts, precision="bf16", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    ours = gradient(network) / 1024
    assert difference(ours, gradient(truth)) < 1e-2
    assert difference(ours, single) > 3 * difference(ours, gradient(truth))


@BOTH
def test_outputs_and_loss_are_computed_in_mixed_precision(run: Backward) -> None:
    seen = []

    def loss(output: torch.Tensor, target: torch.Tensor, keys: list[str]) -> torch.Tensor:
        seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
        return output.float().mean()

    for precision in ("bf16", "off"):
        run(tiny_network(), loss, batches(1), device=CPU, precision=precision, scaler=None)
    assert seen == [(torch.bfloat16, True), (torch.float32, False)]


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "fp16", None), ("cpu", "bf16", torch.bfloat16), ("cpu", "off", None),
        ("cuda", "fp16", torch.float16), ("cuda", "bf16", torch.bfloat16), ("cuda", "off", None),
        ("mps", "fp16", None), ("mps", "bf16", None), ("mps", "off", None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_precision_by_device(device: str, precision: str, expected: torch.dtype | None) -> None:
    context = forward_context(torch.device(device), precision)
    if expected is None:
        assert isinstance(context, nullcontext)
    else:
        assert isinstance(context, torch.autocast)
        assert (context.device, context.fast_dtype) == (device, expected)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(KeyError, match="tf32"):
        forward_context(CPU, "tf32")


def test_the_data_come_in_channels_last_if_asked() -> None:
    seen = []
    network = tiny_network()
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    part = {**batches(1)[0], "data": torch.randn(2, 3, 8, 8, 8)}
    network.encoder.stem.convs[0].all_modules[0] = nn.Conv3d(3, 4, 3, padding=1)
    run_on_cpu(backward, network, dice_and_ce(), [part], channels_last=True)
    run_on_cpu(backward, network, dice_and_ce(), [part])
    assert [x.is_contiguous(memory_format=torch.channels_last_3d) for x in seen] == [True, False]
    assert torch.equal(seen[0], seen[1])


class SavedMemory:
    """Counts the bytes that autograd keeps for the backward pass: at present, and at the most."""

    def __init__(self) -> None:
        self.bytes = self.peak = 0

    def __enter__(self) -> SavedMemory:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(self, t), lambda saved: saved.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


class _Saved:
    def __init__(self, memory: SavedMemory, tensor: torch.Tensor) -> None:
        self.memory, self.tensor, self.size = memory, tensor.detach(), tensor.numel() * tensor.element_size()
        memory.bytes += self.size
        memory.peak = max(memory.peak, memory.bytes)

    def __del__(self) -> None:
        self.memory.bytes -= self.size


@BOTH
def test_there_is_the_graph_of_one_micro_batch_at_a_time(run: Backward) -> None:
    peaks = []
    for parts in ([joined(batches())], batches()[:1], batches()):
        with SavedMemory() as memory:
            run_on_cpu(run, tiny_network(), dice_and_ce(), parts)
        peaks.append(memory.peak)
    big, small, accumulated = peaks
    assert big > 3 * small
    assert accumulated < 1.2 * small


@BOTH
def test_a_frozen_encoder_gets_no_gradient_and_no_graph(run: Backward) -> None:
    network = tiny_network()
    network.encoder.requires_grad_(False)
    graphs = []
    network.encoder.register_forward_hook(lambda _, __, skips: graphs.extend(skip.requires_grad for skip in skips))
    run_on_cpu(run, network, dice_and_ce(), batches())
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.decoder.stages.parameters())
    assert graphs
    assert not any(graphs)
    truth = tiny_network()
    run_on_cpu(run, truth, dice_and_ce(), batches())
    for (name, ours), full in zip(network.decoder.named_parameters(), truth.decoder.parameters(), strict=True):
        assert ours.grad is None or torch.equal(ours.grad, full.grad), name


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@BOTH
@pytest.mark.usefixtures("process_group")
def test_ranks_average_their_gradients_once_for_all_micro_batches(run: Backward) -> None:
    network, reductions = tiny_network(), []
    truth = gradient_of_the_big_batch(network, dice_and_ce(), batches())
    distributed = nn.parallel.DistributedDataParallel(network)

    def count(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
        reductions.append(bucket.is_last())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    distributed.register_comm_hook(None, count)
    run_on_cpu(run, distributed, dice_and_ce(), batches())
    assert reductions.count(True) == 1
    assert difference(gradient(network), truth) < 1e-5
