"""Optimizer steps with the mean gradient of several batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.errors import InputError


class Accumulator(torch.optim.Optimizer):
    """Stands in for an optimizer while a defense's ``step`` is called once for each batch of a group.

    It shares parameter groups and state with the optimizer. Each call of ``step`` adds the gradients,
    weighted by the batch's share of the group's images; the last call clips their sum and steps the
    optimizer with it. A batch for which a defense takes no step adds nothing.

    Args:
        optimizer: the optimizer.
        sizes: the number of images of each batch of the group.
        max_grad_norm: the largest norm of the mean gradient, or None.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, sizes: list[int], max_grad_norm: float | None
    ) -> None:
        # Without Optimizer.__init__: groups and state are those of the optimizer.
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.shares = [size / sum(sizes) for size in sizes]
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.place, self.stepped = 0, False

    def __getattr__(self, name: str) -> Any:
        """Everything else is the optimizer's."""
        return getattr(self.__dict__["optimizer"], name)

    def begin(self, place: int) -> None:
        """Begin with the group's batch ``place``, from 0."""
        self.place, self.stepped = place, False

    def finish(self) -> None:
        """Step the optimizer if the last batch did not."""
        if self.sums:
            self._apply()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the batch; the sum is kept."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the optimizer."""
        self.optimizer.add_param_group(param_group)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Add the gradients of a batch; after the last one, step the optimizer.

        Raises:
            InputError: the defense takes several steps for a batch.
        """
        if self.stepped or closure is not None:
            raise InputError(
                "grad_accumulation joins the one optimizer step of each batch, and this defense takes several"
            )
        self.stepped = True
        share = self.shares[self.place]
        for parameter in self._parameters():
            if parameter.grad is not None:
                part = share * parameter.grad.detach()
                self.sums[parameter] = self.sums[parameter] + part if parameter in self.sums else part
        if self.place + 1 == len(self.shares):
            self._apply()

    def _apply(self) -> None:
        parameters = self._parameters()
        for parameter in parameters:
            parameter.grad = self.sums.get(parameter)
        self.sums = {}
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def next_step(optimizer: torch.optim.Optimizer) -> tuple[float, bool]:
    """The weight of the next batch's gradient in a step, and whether the step is taken after it."""
    if not isinstance(optimizer, Accumulator):
        return 1.0, True
    return optimizer.shares[optimizer.place], optimizer.place + 1 == len(optimizer.shares)
