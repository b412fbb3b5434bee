"""Several processes that train one model: shares of a batch, and what the processes exchange.

Outside ``torch.distributed``, or with one process, there is one share and nothing is exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

Value = TypeVar("Value")


class ProcessLostError(RuntimeError):
    """Another process of the run ended, or cannot be reached."""


class StoppedElsewhereError(RuntimeError):
    """Process 0 stopped the training."""


def count() -> int:
    """The number of processes: 1 without ``torch.distributed``."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if count() > 1 else 0


@dataclass(frozen=True)
class Part:
    """The rows of a batch that this process computes.

    Attributes:
        start: the first row.
        stop: the row after the last one.
        total: the images of the whole batch.
        weight: the share of this process in a mean over the batch; the weights of all processes sum to 1.
    """

    start: int
    stop: int
    total: int
    weight: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether these are all rows."""
        return self.stop - self.start == self.total

    @property
    def slice(self) -> slice:
        """The rows as a slice of the batch."""
        return slice(self.start, self.stop)

    @property
    def rows(self) -> Tensor:
        """The rows, int64 (n,)."""
        return torch.arange(self.start, self.stop)


def part_of(total: int) -> Part:
    """This process's part of a batch of ``total`` images.

    The parts are adjacent and differ by one image at most. A batch with fewer images than there are
    processes is computed whole by each of them.
    """
    processes = count()
    if total < processes:
        return Part(0, total, total, 1 / processes)
    start, stop = (total * number // processes for number in (rank(), rank() + 1))
    return Part(start, stop, total, (stop - start) / total)


def part_beside(size: int) -> Part:
    """The part of a process whose loader gave it ``size`` images of a batch that it shares with others."""
    sizes = everyone(size)
    start, total = sum(sizes[: rank()]), sum(sizes)
    return Part(start, start + size, total, size / total)


@dataclass
class _Now:
    """The current part, and the weight of this process in the next optimizer step."""

    part: Part
    weight: float


_now: list[_Now] = []


def current(size: int) -> Part:
    """The part of the batch that is being trained on; outside a step, all of a batch of ``size``."""
    return _now[-1].part if _now else Part(0, size, size)


@contextlib.contextmanager
def working_on(part: Part, weight: float | None = None) -> Iterator[None]:
    """Within the block ``part`` is the current one, and ``weight`` that of an optimizer step.

    ``weight`` differs from the part's where several batches share a step.
    """
    _now.append(_Now(part, part.weight if weight is None else weight))
    try:
        yield
    finally:
        _now.pop()


def step_weight() -> float:
    """The weight of this process's gradients in an optimizer step."""
    return _now[-1].weight if _now else 1 / count()


def everyone(value: Value) -> list[Value]:
    """The values of all processes, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with _exchange():
        distributed.all_gather_object(found, value)
    return found


def first(value: Value) -> Value:
    """The value of process 0."""
    if count() == 1:
        return value
    found = [value]
    with _exchange():
        distributed.broadcast_object_list(found, src=0)
    return found[0]


def whole(values: Tensor) -> Tensor:
    """Rows of the whole batch from each process's ``values`` (n, ...), in the batch's order.

    Gradients flow back to the process of a row from the losses of all processes, so that their mean gets its
    full gradient once the gradients are averaged; it may be a loss of the whole batch, alike in each, or the
    mean of losses of the parts.
    """
    part = current(len(values))
    if part.whole or count() == 1:
        return values
    found: Tensor = _Gather.apply(values, part)
    return found


def mean(values: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the batch from each process's means over its part; differentiable to any order."""
    if count() == 1:
        return list(values)
    weight = current(0).weight
    return [_Mean.apply(value, weight) for value in values]


def step_mean(values: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the images of an optimizer step from each process's means over its own; detached."""
    if count() == 1:
        return list(values)
    found = [value.detach() * step_weight() for value in values]
    for value in found:
        _add_up(value)
    return found


def average_gradients(parameters: Sequence[nn.Parameter], weight: float) -> None:
    """Replace the gradients of ``parameters`` by their weighted sum over the processes.

    A parameter that has a gradient in no process keeps none; missing ones count as zero.
    """
    for group in _alike(parameters):
        has = [0.0 if one.grad is None else 1.0 for one in group]
        parts = [
            torch.zeros_like(one).flatten()
            if one.grad is None
            else one.grad.detach().to_dense().flatten() * weight
            for one in group
        ]
        flat = torch.cat([*parts, torch.tensor(has, dtype=group[0].dtype, device=group[0].device)])
        _add_up(flat)
        present = (flat[-len(group) :] > 0).tolist()
        sizes = [one.numel() for one in group]
        for one, values, any_has in zip(group, torch.split(flat[: -len(group)], sizes), present, strict=True):
            if any_has:
                one.grad = values.view_as(one).clone()


class Buffers:
    """The floating-point buffers of a module, such as batch-norm statistics, as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    def average(self, weight: float) -> None:
        """Give all processes the weighted mean of their changes since then; constants stay as they are."""
        now = {
            name: buffer
            for name, buffer in self.module.named_buffers()
            if buffer.is_floating_point() and buffer.numel() and name in self.before
        }
        names = {id(buffer): name for name, buffer in now.items()}
        for group in _alike(list(now.values())):
            before = [self.before[names[id(buffer)]].flatten() for buffer in group]
            changes = [buffer.detach().flatten() - old for buffer, old in zip(group, before, strict=True)]
            flat = torch.cat(changes) * weight
            _add_up(flat)
            changes = list(torch.split(flat, [len(old) for old in before]))
            for buffer, old, change in zip(group, before, changes, strict=True):
                buffer.copy_((old + change).view_as(buffer))


def share_state(module: nn.Module) -> float:
    """Give every process the parameters and buffers of process 0.

    Returns:
        The largest difference that a parameter of this process had, relative to the largest weight of it.
    """
    furthest = 0.0
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            there = tensor.detach().contiguous().clone()
            with _exchange():
                distributed.broadcast(there, src=0)
            if isinstance(tensor, nn.Parameter) and tensor.numel():
                away = (there - tensor).abs().max() / there.abs().max().clamp_min(1e-12)
                furthest = max(furthest, float(torch.nan_to_num(away.double(), nan=0.0)))
            tensor.copy_(there)
    return furthest


def _alike(tensors: Sequence[Tensor]) -> list[list[Any]]:
    """The tensors in groups of one type and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[Any]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _add_up(flat: Tensor) -> None:
    with _exchange():
        distributed.all_reduce(flat)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Turn the many errors of a lost connection into one."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError("another process of this run ended") from error


class _Gather(torch.autograd.Function):
    """Rows of all processes; see :func:`whole`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, part: Part) -> Tensor:
        ctx.part = part
        whole = torch.zeros(part.total, *values.shape[1:], dtype=values.dtype, device=values.device)
        whole[part.start : part.stop] = values
        if whole.dtype == torch.bool:
            whole = whole.to(torch.uint8)
        _add_up(whole)
        return whole.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A row's gradient comes from the losses of all processes, each of which counts with its weight.
        total = gradients[0] * ctx.part.weight
        _add_up(total)
        return total[ctx.part.slice] / ctx.part.weight, None


class _Mean(torch.autograd.Function):
    """The weighted sum over processes; its gradient is the same sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        total = value.detach() * weight
        _add_up(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Mean.apply(gradients[0], ctx.weight), None
