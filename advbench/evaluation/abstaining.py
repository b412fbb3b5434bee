"""Models that can abstain, by one output more than there are classes.

Abstaining is wrong on clean points, and right on attacked points, because the attack was noticed. An attack
succeeds only with a class other than the true one, and searches for exactly that.
"""

import torch
from torch import Tensor, nn

from attacks_pool.errors import unknown

LAST = "last"
"""The only way to abstain: by the last output."""


def check_abstain(given: str | None) -> bool:
    """Whether a model abstains, from the value of ``--abstain``.

    Raises:
        InputError: the value is unknown.
    """
    if given not in (None, LAST):
        raise unknown("way to abstain", str(given), [LAST])
    return given is not None


def abstains(model: nn.Module) -> bool:
    """Whether the last output of ``model`` means abstaining, by its attribute ``abstains``."""
    return bool(getattr(model, "abstains", False))


class AbstainingIsRight(nn.Module):
    """K scores of a model of K + 1, for points of one class, which gets the larger of its own and the last.

    The prediction is ``label`` if the model predicts that class or abstains, and another class if the model
    is wrong, so that every attack and the verifier can treat it like any model.

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
    """The same for a verdict: ``abstained`` (N,) marks the points of the last batch where it abstained."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__(model, label)
        self.abstained = torch.zeros(0, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        scores: Tensor = self.model(x)
        self.abstained = last_is_largest(scores)
        return self._merged(scores)


def last_is_largest(scores: Tensor) -> Tensor:
    """(N,) whether each row of scores (N, K + 1) means abstaining."""
    return scores.argmax(1) == scores.shape[1] - 1
