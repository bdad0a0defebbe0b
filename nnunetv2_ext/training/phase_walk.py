"""Walking through a recipe's phases: what trains in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from nnunetv2_ext.recipes.phases import OptimizerState, Span, span_at
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.training.parts import selected_parameters, train_only
from nnunetv2_ext.training.schedule import recipe_spans


class PhaseWalk:
    """The phases of a training with the parameters that train in each.

    It has no state but the phase it is in: a training that is continued enters the phase that holds its epoch.

    Args:
        network: neither compiled nor wrapped, with its adapters.
        recipe: whose phases are walked.
        adapted_input: whether the pre-training had another number of input channels.
        never: names of parameters that have no part in the output.

    Raises:
        UserError: a part matches nothing.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, adapted_input: bool = False, never: Sequence[str] = ()
    ) -> None:
        self.spans = recipe_spans(recipe)
        self._network = network
        self._names = {
            span.index: selected_parameters(network, span.phase.parts, adapted_input=adapted_input) - set(never)
            for span in self.spans
        }
        self._present: Span | None = None

    @property
    def ever_trained(self) -> set[str]:
        """Names of the parameters that train in some phase."""
        return set().union(*self._names.values())

    @property
    def most_trained(self) -> int:
        """The largest number of values that train in one phase."""
        sizes = {name: parameter.numel() for name, parameter in self._network.named_parameters()}
        return max(sum(sizes[name] for name in names) for names in self._names.values())

    def let_train(self, epoch: int) -> int:
        """Let train what the phase that holds the epoch says, and nothing else. Returns how many values that are."""
        return train_only(self._network, self._names[span_at(self.spans, epoch).index])

    def enter(self, epoch: int, optimizer: torch.optim.Optimizer, log: Callable[[str], object]) -> Span:
        """Let train what the phase that holds the epoch says, and nothing else; begin the optimizer anew if it says so.

        Does nothing within a phase.
        """
        span = span_at(self.spans, epoch)
        if span is not self._present:
            self._present = span
            count = self.let_train(epoch)
            restarted = span.phase.optimizer is OptimizerState.restarted and epoch == span.start
            if restarted:
                optimizer.state.clear()
            total = sum(parameter.numel() for parameter in self._network.parameters())
            log(
                f"Phase {self.spans.index(span) + 1} of {len(self.spans)} ({span.label}), epochs {span.start} to "
                f"{span.end - 1}: {count:,} of {total:,} parameters train ({count / total:.1%})"
                + (", the optimizer begins anew" if restarted else "")
            )
        return span


def phase_lines(recipe: Recipe) -> list[str]:
    """The phases as lines for the log, those that have no epoch among them."""
    spans = {span.index: span for span in recipe_spans(recipe)}
    lines = []
    for index, phase in enumerate(recipe.phases):
        parts = " + ".join(phase.parts)
        if index not in spans:
            lines.append(f"  no epoch is left for {parts}: {phase.curve.value}")
            continue
        span = spans[index]
        rate = (phase.initial_lr or recipe.initial_lr) * phase.lr_scale
        lines.append(f"  epochs {span.start} to {span.end - 1}: {span.label}, peak {rate:g}")
    return lines
