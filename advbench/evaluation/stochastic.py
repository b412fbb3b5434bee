"""Defenses that answer at random: how they are found, judged by many draws and attacked by many draws."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator, uniform
from attacks_pool.losses import RULED_OUT, log_probabilities
from attacks_pool.verifier import predict_exactly

JUDGED_BY = 16
"""Draws that a stochastic defense is judged by."""
CRAFTED_BY = 20
"""Draws that each gradient of a search against a stochastic defense is averaged over."""
TOLERANCE = 1e-4
"""Difference of logits, relative to the largest one, that rounding explains."""


class MeanOfDraws(nn.Module):
    """Scores by which a stochastic model is judged: the mean softmax over fresh draws, (N, K).

    Each draw is seeded by ``key`` and its number. After a call ``single`` (N,) holds what the first draw
    alone predicts, and ``outputs`` is K.
    """

    def __init__(self, model: nn.Module, key: tuple[Any, ...], draws: int = JUDGED_BY) -> None:
        super().__init__()
        self.model, self.key, self.draws = model, key, draws
        self.single, self.outputs = torch.empty(0, dtype=torch.int64), 0

    def forward(self, x: Tensor) -> Tensor:
        """Mean probabilities."""
        total = torch.zeros(())
        for draw in range(self.draws):
            with isolated_randomness(key_seed("judge", *self.key, draw), x.device):
                scores = self.model(x).float()
            if draw == 0:
                self.single, self.outputs = scores.argmax(1), scores.shape[1]
            total = total.to(x.device) + F.softmax(scores, 1)
        return total / self.draws


class AveragedDraws(nn.Module):
    """What a search against a stochastic model looks at: log of the mean softmax over fresh draws, (N, K).

    Its gradient averages those of the draws (expectation over transformation, arXiv:1707.07397), each
    weighted by the probability that it gives the true class: the gradient of what the judge looks at. Draws
    come from the global random state, which every attack seeds for itself.
    """

    def __init__(self, model: nn.Module, draws: int = CRAFTED_BY) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Log of mean probabilities."""
        each = [log_probabilities(self.model(x).float()) for _ in range(self.draws)]
        # Finite until here: the gradient of a sum of exp(−∞) is no number.
        mean = torch.logsumexp(torch.stack(each), 0) - math.log(self.draws)
        return mean.masked_fill(mean < RULED_OUT / 2, -torch.inf)


def logits_of(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Exact logits under a seeded global random state, which is put back."""
    with isolated_randomness(seed, x.device):
        return predict_exactly(model, x)


def gap(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest logit; above `TOLERANCE` it is no rounding.

    A number against NaN, and an infinity against another, differ by infinity.
    """
    if first.shape != second.shape:
        return math.inf
    if not first.numel() or torch.equal(first.nan_to_num(), second.nan_to_num()):
        return 0.0
    finite = torch.isfinite(first) & torch.isfinite(second)
    strange = ~finite & ~((first == second) | (first.isnan() & second.isnan()))
    if bool(strange.any()):
        return math.inf
    size = float(torch.maximum(first[finite].abs().max(), second[finite].abs().max()))
    return float((first - second)[finite].abs().max()) / max(size, 1e-12)


def is_stochastic(model: nn.Module, x: Tensor, seed: int = 0) -> bool:
    """Whether two passes over ``x`` in eval mode differ by chance.

    A model that merely remembers what it was asked before is not random: see `history_gap`.
    """
    if not len(x):
        return False
    first, second = (logits_of(model, x, key_seed("pass", seed, number)) for number in range(2))
    return gap(first, second) > TOLERANCE and history_gap(model, x, seed) <= TOLERANCE


def history_gap(model: nn.Module, x: Tensor, seed: int = 0) -> float:
    """How far the logits of ``x`` depend on what a copy of the model was asked before, else 0.

    The histories have equal shapes and all passes equal seeds, so that chance does not count. Where equal
    histories give unequal answers, chance has hidden itself from seeding, and nothing can be told.
    """
    noise = uniform(x, keyed_generator("history", seed))
    near = (x + 0.02 * (noise - 0.5)).clamp(0, 1)
    try:
        reference = _after(model, noise, x, seed)
        if gap(reference, _after(model, noise, x, seed)) > TOLERANCE:
            return 0.0
        return max(gap(reference, _after(model, before, x, seed)) for before in (x, near, x.flip(0)))
    except Exception:  # a stranger's module may refuse to be copied
        return 0.0


def _after(model: nn.Module, before: Tensor, x: Tensor, seed: int) -> Tensor:
    """Logits of ``x`` from a copy of the model that was asked ``before``, twice, first."""
    fresh = copy.deepcopy(model)
    for number in range(2):
        logits_of(fresh, before, key_seed("before", seed, number))
    return logits_of(fresh, x, key_seed("after", seed))
