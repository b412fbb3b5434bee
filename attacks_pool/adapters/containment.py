"""Isolates attacks of other libraries: wraps the model that they see and repairs their results.

:class:`attacks_pool.Attack` already isolates the global random state, module modes and gradients; this
module adds the protection that only other libraries need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.slopes import usable
from attacks_pool.errors import InputError
from attacks_pool.norms import per_sample, project

ROUNDING = 1e-6
"""How far beyond a bound counts as rounding and is corrected; larger violations are left for the verifier."""
RULED_OUT = 1e4
"""How far below the other logits of its row a masked class is set, so that its softmax is zero."""


class Contained(nn.Module):
    """Wraps the model for another library: float32 logits without shared memory, finite gradients.

    Its first parameter is on the device of ``x``, because libraries determine the device from it. Logits
    always depend on the images, so that a model without gradients yields zeros instead of an error. NaN
    gradients become zero, and infinite ones are measured slightly inside the box. A logit of −∞, as masked
    classes have, is set to ``RULED_OUT`` below the lowest other logit of the image, because libraries
    subtract logits.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, device=x.device))
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            logits: Tensor = self.model(x)
            return _finite(logits.float().clone())
        seen: list[Tensor] = []
        logits = self.model(_Tame.apply(x, self.model, seen))
        logits = _finite(_Noted.apply(logits, seen).float())
        return logits + 0 * x.flatten(1).sum(1, keepdim=True)

    def classes(self, x: Tensor) -> int:
        """The number of classes of the model, found from its logits for one image."""
        with torch.no_grad():
            return int(self(x[:1]).shape[1])


def _finite(logits: Tensor) -> Tensor:
    """Replace −∞ by a value ``RULED_OUT`` below the lowest finite logit of the row."""
    masked = logits == -torch.inf
    if not bool(masked.any()):
        return logits
    lowest = logits.detach().masked_fill(masked, torch.inf).amin(1, keepdim=True)
    known = torch.isfinite(lowest)
    return torch.where(masked & known, torch.where(known, lowest, 0.0) - RULED_OUT, logits)


class _Noted(torch.autograd.Function):
    """The identity; its backward pass records the gradient with respect to the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.seen[:] = [gradient]
        return gradient, None


class _Tame(torch.autograd.Function):
    """The identity; its backward pass makes the gradient finite.

    An infinite slope is measured with the recorded gradient with respect to the logits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, seen: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.seen = model, seen
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors

        def again(near: Tensor) -> Tensor:
            with torch.enable_grad():
                near = near.detach().requires_grad_()
                (found,) = torch.autograd.grad(ctx.model(near), near, ctx.seen[0])
            return found

        slope = usable(gradient, x, again, boxed=False)
        # Most libraries ascend, and entries that the box blocks must not outweigh the rest. Some descend.
        stopped = gradient.isinf() & torch.where(gradient > 0, x >= 1, x <= 0)
        if bool(stopped.any()):
            ordinary = gradient.masked_fill(~torch.isfinite(gradient), 0.0).abs().flatten(1).amax(1)
            most = per_sample(torch.where(ordinary > 0, ordinary, torch.inf))
            slope = torch.where(stopped, slope.clamp(-most, most), slope)
        return slope, None, None


@contextmanager
def trace_kept() -> Iterator[None]:
    """Restore the trace hook of debuggers and coverage tools, which one library removes at every call."""
    before = sys.gettrace()
    try:
        yield
    finally:
        if sys.gettrace() is not before:
            sys.settrace(before)


def mend(found: object, x: Tensor, eps: float, norm: str | None, kind: str) -> Tensor:
    """Make ``found`` a valid result like ``x``; a point with a NaN or infinite pixel becomes the clean point.

    Points outside the box, or a budgeted ball, by no more than rounding are moved back. Larger violations
    remain, so that the verifier detects them.

    Raises:
        InputError: ``found`` is not a tensor with the shape of ``x``.
    """
    if not isinstance(found, Tensor) or found.shape != x.shape:
        raise InputError(f"the library returned no tensor like x, {tuple(x.shape)}")
    x_adv = found.detach().to(x.device, x.dtype)
    finite = torch.isfinite(x_adv).flatten(1).all(1).view(-1, 1, 1, 1)
    x_adv = torch.where(finite, x_adv, x)
    inside = x_adv.clamp(0, 1)
    x_adv = torch.where((x_adv - inside).abs() <= ROUNDING, inside, x_adv)
    if kind != "budgeted" or norm not in ("linf", "l2", "l1"):
        return x_adv
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    length = (x_adv.double() - x.double()).flatten(1).norm(p=order, dim=1)
    barely = (length > eps) & (length <= eps + ROUNDING * max(1.0, eps))
    if barely.any():
        x_adv[barely] = project(x_adv[barely], x[barely], eps, norm)
    return x_adv
