"""Per-sample losses that attacks maximise; logits (N, K), labels (N,), result (N,).

They are float32 whatever the logits are: a search compares them over many steps, and a model under autocast
answers in a type that can't tell neighbouring steps apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y: positive where the prediction is wrong (arXiv:1608.04644)."""
    logits = logits.float()
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, −(z_y − max_{k≠y} z_k) / (z_π1 − z_π3) (arXiv:2003.01690).

    Needs three classes; with two, the denominator falls back to z_π1 − z_π2.
    """
    ranked = logits.float().sort(dim=1, descending=True).values
    spread = ranked[:, 0] - ranked[:, min(2, logits.shape[1] - 1)]
    return margin(logits, y) / (spread + 1e-12)


def sloping_dlr(logits: Tensor, y: Tensor) -> Tensor:
    """:func:`dlr`, with two classes :func:`margin`: the ratio would be ±1, without a gradient."""
    return margin(logits, y) if logits.shape[1] == 2 else dlr(logits, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2), of the ``target`` class t (N,) (arXiv:2003.01690).

    Needs four classes. With three the denominator is z_π1 − (z_π2 + z_π3)/2. With two classes there is one
    difference of logits, which divided by itself would be constant, so the loss is z_t − z_y.
    """
    logits = logits.float()
    ahead = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    classes = logits.shape[1]
    if classes == 2:
        return ahead
    ranked = logits.topk(min(4, classes), dim=1).values
    return ahead / (ranked[:, 0] - ranked[:, -2:].mean(1) + 1e-12)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} p_k − p_y with p = softmax(z): between −1 and 1 (arXiv:2411.15210)."""
    return margin(logits.float().softmax(1), y)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability-margin": probability_margin,
}
