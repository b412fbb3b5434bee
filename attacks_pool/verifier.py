"""Judges adversarial points. It shares no code with any attack, so that no error can affect both.

A budgeted point that violates its bound is invalid: it is counted, projected back and judged again. A
minimal-norm point beyond eps is unsuccessful, but not invalid, and it is not projected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

RELATIVE_SLACK = 1e-5
ABSOLUTE_SLACK = 1e-7
ROUNDING = 1e-6
"""How far rounding may move clean pixels out of [0, 1]; such pixels are clamped."""
NORMS = (None, "linf", "l2", "l1", "l0")
KINDS = ("budgeted", "minimal-norm")
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """The result for each point, as boolean masks (N,), and the points that were judged."""

    robust: Tensor
    invalid: Tensor
    not_a_number: Tensor
    false_claim: Tensor
    points: Tensor
    bound: Literal["norm", "box-only"]


def verify(
    model: nn.Module | Predict,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    *,
    norm: str | None,
    eps: float,
    kind: str = "budgeted",
    claimed: Tensor | None = None,
) -> Verdict:
    """Check every adversarial point again and predict it again in float32.

    Args:
        model: a module, or a function from images to scores (N, K), which is used as it is.
        x: clean points (N, C, H, W) in [0, 1]; ``y`` their labels (N,).
        x_adv: adversarial points; with a wrong shape or type, every point is invalid.
        norm: ``None`` checks only the [0, 1] box, which ``bound`` then states.
        eps: the budget; the check is ‖x_adv − x‖ ≤ eps·(1 + 1e-5) + 1e-7 with the norm in float64.
        kind: ``budgeted`` or ``minimal-norm``.
        claimed: (N,) points that the attack reports as fooled; a robust point among them is a false claim.

    Returns:
        A verdict; ``robust`` marks points that are still classified correctly. Scores that cannot be used
        (:func:`no_number`) count as wrong.

    Raises:
        ValueError: unknown norm or kind, eps is negative or not finite, or x or y is not a tensor.
    """
    if norm not in NORMS or kind not in KINDS or not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"cannot verify norm={norm!r}, eps={eps}, kind={kind!r}")
    for name, given in (("x", x), ("y", y)):
        if not isinstance(given, Tensor):
            raise ValueError(f"cannot verify: {name} must be a torch.Tensor, not {type(given).__name__}")
    bound: Literal["norm", "box-only"] = "box-only" if norm is None else "norm"
    if x.numel() and float(x.min()) >= -ROUNDING and float(x.max()) <= 1 + ROUNDING:
        x = x.clamp(0, 1)  # attacks clamp these pixels too
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or not x_adv.is_floating_point():
        x_adv, invalid = x, ~none
    else:
        x_adv = x_adv.detach().to(x.device)
        finite = torch.isfinite(x_adv)
        inside = (x_adv >= 0) & (x_adv <= 1)
        invalid = ~(finite & inside).flatten(1).all(1)
        x_adv = torch.where(finite, x_adv, x).clamp(0, 1).to(x.dtype)
    beyond = _beyond(x_adv, x, norm, eps)
    if kind == "minimal-norm":
        x_adv = torch.where(beyond.view(-1, 1, 1, 1), x, x_adv)
    else:
        invalid = invalid | beyond
        if norm is not None:
            x_adv = torch.where(beyond.view(-1, 1, 1, 1), _bring_back(x_adv, x, norm, eps), x_adv)
    if not len(x):
        return Verdict(none, none, none, none, x, bound)
    scores = predict_exactly(model, x_adv)
    not_a_number = no_number(scores)
    robust = (scores.argmax(1) == y) & ~not_a_number
    false_claim = none if claimed is None else claimed.to(x.device) & robust
    return Verdict(robust, invalid, not_a_number, false_claim, x_adv, bound)


def predict_exactly(model: nn.Module | Predict, x: Tensor) -> Tensor:
    """Compute scores (N, K) in at least float32, in eval mode, without autocast, TF32 or gradients."""
    with exact_arithmetic(x.device), torch.no_grad():
        if not isinstance(model, nn.Module):
            return model(x).float()
        flags = {module: module.training for module in model.modules()}
        model.eval()
        try:
            return _scores(model, x)
        finally:
            for module, training in flags.items():
                module.training = training


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    """The scores of ``model`` for float32 images, which are converted to its weights' type if necessary.

    If it returns an object with ``.logits`` or a mapping with ``"logits"``, those are the scores.
    """
    own = {one.dtype: None for one in model.parameters() if one.is_floating_point() and one.dtype != x.dtype}
    for kind in (x.dtype, *own):
        try:
            found: Any = model(x.to(kind))
            break
        except RuntimeError:
            if kind == [x.dtype, *own][-1]:
                raise
    if not isinstance(found, Tensor):
        found = found["logits"] if isinstance(found, Mapping) else getattr(found, "logits", found)
    return torch.as_tensor(found).float()


def no_number(scores: Tensor) -> Tensor:
    """(N,) mask of rows of scores (N, K) without a usable prediction: they contain NaN or +∞, or are all −∞.

    A single −∞ is allowed: it is the usual score of a masked class, and the other classes decide.
    """
    return (scores.isnan() | (scores == torch.inf)).any(1) | (scores == -torch.inf).all(1)


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in full float32 inside, without TF32 or autocast; restore the settings afterwards."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    # Torch has two generations of settings. A model may read either, and torch refuses to read the older
    # one while they disagree. So both are set, and both are restored.
    settings = (matmul, cudnn.conv, cudnn.rnn)
    before = [setting.fp32_precision for setting in settings]
    older = [
        (backend, allowed) for backend in (matmul, cudnn) if (allowed := _allows_tf32(backend)) is not None
    ]
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in older:
            backend.allow_tf32 = allowed
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _allows_tf32(backend: Any) -> bool | None:
    """The older TF32 flag, or None if torch cannot read it because the two generations disagree."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """(N,) distances in float64; l0 counts pixels in which any channel differs."""
    delta = (x_adv.double() - x.double()).abs()
    if norm == "l0":
        return (delta.amax(1) > 0).flatten(1).sum(1).double()
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.amax(1)
    return flat.sum(1) if norm == "l1" else flat.square().sum(1).sqrt()


def _beyond(x_adv: Tensor, x: Tensor, norm: str | None, eps: float) -> Tensor:
    if norm is None or not len(x):
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return distance(x_adv, x, norm) > eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK


def _bring_back(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Move ``x_adv`` into ball and box; both are convex, so ``x`` + t·delta is in both for small t."""
    delta = x_adv - x
    if norm == "linf":
        return (x + delta.clamp(-eps, eps)).clamp(0, 1)
    if norm == "l0":
        size = delta.abs().amax(1).flatten(1)
        kept = size.argsort(1, descending=True).argsort(1) < int(eps)
        return x + delta * kept.view(len(x), 1, *x.shape[2:])
    length = distance(x_adv, x, norm).clamp_min(1e-30)
    shrink = (eps / length).clamp_max(1.0).to(x.dtype)
    return (x + delta * shrink.view(-1, 1, 1, 1)).clamp(0, 1)


class ModelState:
    """The state that an attack must leave unchanged: flags, buffers, parameters and their gradients."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._flags = {name: module.training for name, module in model.named_modules()}
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._tensors = {name: tensor.detach().clone() for name, tensor in _tensors(model)}

    def changes(self) -> list[str]:
        """Describe each difference from the saved state: ``train mode of 'conv1'``, ``buffer 'bn.mean'``."""
        found = [
            f"{'train' if module.training else 'eval'} mode of {repr(name) if name else 'the model'}"
            for name, module in self._model.named_modules()
            if self._flags.get(name) != module.training
        ]
        found += [
            f"requires_grad of {name!r}"
            for name, parameter in self._model.named_parameters()
            if self._trained.get(name) != parameter.requires_grad
        ]
        now = dict(_tensors(self._model))
        for name in {**self._tensors, **now}:
            before, after = self._tensors.get(name), now.get(name)
            if before is None or after is None or not _same(before, after):
                found.append(name)
        return found

    def restore(self) -> None:
        """Restore flags, buffers, parameters and gradients; remove gradients that did not exist before."""
        for name, module in self._model.named_modules():
            module.training = self._flags.get(name, module.training)
        with torch.no_grad():
            for name, tensor in _tensors(self._model):
                before = self._tensors.get(name)
                if before is not None and not _same(before, tensor):
                    tensor.copy_(before)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._trained.get(name, parameter.requires_grad))
            before = self._tensors.get(f"gradient of {name!r}")
            if before is None:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = before.clone()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"parameter {name!r}", parameter
        if parameter.grad is not None:
            yield f"gradient of {name!r}", parameter.grad
    for name, buffer in model.named_buffers():
        yield f"buffer {name!r}", buffer


def _same(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    # Compare NaN masks too: a NaN that was there before is no change.
    return torch.equal(torch.nan_to_num(before), torch.nan_to_num(after.detach())) and torch.equal(
        before.isnan(), after.detach().isnan()
    )
