"""Per-sample losses that attacks maximise; logits (N, K), labels (N,), result (N,).

The losses are float32 for logits of any type: a search compares them over many steps, and the 16-bit logits
of a model under autocast are too coarse to distinguish neighbouring steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]

RULED_OUT = -1e30
"""Stands in for the log-probability of a class whose logit is −∞, since 0 · ∞ is NaN."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax(z) (N, K), with ``RULED_OUT`` in place of −∞, so that divergences stay finite."""
    return logits.log_softmax(1).clamp_min(RULED_OUT)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y: positive where the prediction is wrong (arXiv:1608.04644)."""
    logits = logits.float()
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, −(z_y − max_{k≠y} z_k) / (z_π1 − z_π3) (arXiv:2003.01690).

    If only two classes have finite logits, or z_π2 = z_π3, the ratio would be constant; the loss is then
    :func:`margin`.
    """
    classes = logits.shape[1]
    if classes < 3:
        return margin(logits, y)
    ranked = logits.float().sort(dim=1, descending=True).values
    return _over(margin(logits, y), ranked[:, 0], ranked[:, 1], ranked[:, 2])


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2) for the ``target`` class t (N,) (arXiv:2003.01690).

    If only three classes have finite logits, the denominator is z_π1 − (z_π2 + z_π3)/2. If only two have, or
    if the logits in the denominator equal z_π2, the ratio would be constant; the loss is then z_t − z_y.
    """
    logits = logits.float()
    ahead = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    classes = logits.shape[1]
    if classes < 3:
        return ahead
    ranked = logits.topk(min(4, classes), dim=1).values
    lower = ranked[:, -2:].mean(1)
    if classes > 3:
        lower = torch.where(torch.isfinite(lower), lower, ranked[:, 1:3].mean(1))
    return _over(ahead, ranked[:, 0], ranked[:, 1], lower)


def _over(values: Tensor, first: Tensor, second: Tensor, lower: Tensor) -> Tensor:
    """values / (first − lower), or ``values`` where ``lower`` is −∞ or not below ``second``."""
    spread = first - lower
    divides = torch.isfinite(spread) & (lower < second)
    return values / torch.where(divides, spread + 1e-12, 1.0)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} p_k − p_y with p = softmax(z): between −1 and 1 (arXiv:2411.15210)."""
    return margin(logits.float().softmax(1), y)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability-margin": probability_margin,
}
