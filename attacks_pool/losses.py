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


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
