"""Models with one output more than there are classes, by which they abstain.

To abstain is wrong on clean points, and right on attacked ones: the attack was noticed. An attack succeeds
only with a class that is not the true one, and searches for exactly that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks_pool.errors import unknown

LAST = "last"
"""The one way to abstain: by the last output."""


def check_abstain(given: str | None) -> bool:
    """Whether a model abstains, by what ``--abstain`` says.

    Raises:
        InputError: it says something else.
    """
    if given not in (None, LAST):
        raise unknown("way to abstain", str(given), [LAST])
    return given is not None


def abstains(model: nn.Module) -> bool:
    """Whether the last output of ``model`` abstains; its attribute ``abstains`` says so."""
    return bool(getattr(model, "abstains", False))


class AbstainingIsRight(nn.Module):
    """K scores of a model of K + 1, for points of one class: the larger of its own score and the last one.

    The prediction is ``label`` where the model predicts that class or abstains, and any other class where it
    is wrong, so that every attack and the verifier work on it as on any model.

    Args:
        model: maps images (N, C, H, W) to scores (N, K + 1).
        label: the class of all points.
    """

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        return self._merged(self.model(x))

    def _merged(self, scores: Tensor) -> Tensor:
        right = torch.maximum(scores[:, self.label], scores[:, -1])[:, None]
        return torch.cat([scores[:, : self.label], right, scores[:, self.label + 1 : -1]], 1)


class AbstentionsSeen(AbstainingIsRight):
    """The same for a verdict: ``abstained`` (N,) says where in the last batch the model abstained."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__(model, label)
        self.abstained = torch.zeros(0, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        scores: Tensor = self.model(x)
        self.abstained = last_is_largest(scores)
        return self._merged(scores)


def last_is_largest(scores: Tensor) -> Tensor:
    """(N,) rows of scores (N, K + 1) by which the model abstains."""
    return scores.argmax(1) == scores.shape[1] - 1
