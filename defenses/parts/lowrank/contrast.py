"""Task separation of routers: a loss that increases it, and a measure of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def task_contrast(weights: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss on router weights with the task as label (TwD).

    With z_i = w_i / ‖w_i‖ and P(i) the other samples of i's task,

        TwD = mean_i  −1/|P(i)| · Σ_{p ∈ P(i)} log( exp(z_i·z_p/τ) / Σ_{k ≠ i} exp(z_i·z_k/τ) ),

    over the samples i with non-empty P(i); 0 if there are none.

    Args:
        weights: (N, E) router weights.
        tasks: int64 (N,).
        temperature: τ.
    """
    z = F.normalize(weights.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (tasks[:, None] == tasks) & ~itself
    log_share = similar.log_softmax(1).masked_fill(~positive, 0)
    count = positive.sum(1)
    anchors = count > 0
    if not bool(anchors.any()):
        return z.sum() * 0
    return -(log_share.sum(1)[anchors] / count[anchors]).mean()


def nmi(weights: Tensor, tasks: Tensor) -> float:
    """Normalised mutual information, in [0, 1], between each sample's heaviest adapter and its task.

    I(argmax w; task), divided by the mean of the two entropies.

    Args:
        weights: (N, E) router weights.
        tasks: (N,) the attack of each sample, as a number.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(tasks.cpu().numpy(), weights.argmax(1).cpu().numpy()))
