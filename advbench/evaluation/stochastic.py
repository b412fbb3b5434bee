"""Randomised defenses: their detection, and judging and attacking them with many draws."""

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
"""How many draws judge a stochastic defense."""
CRAFTED_BY = 20
"""How many draws each gradient of a search against a stochastic defense averages over."""
TOLERANCE = 1e-4
"""The largest difference of logits, relative to the largest logit, that rounding explains."""


class MeanOfDraws(nn.Module):
    """The scores (N, K) that judge a stochastic model: the mean softmax over fresh draws.

    Each draw is seeded by ``key`` and its number. After a call, ``single`` (N,) holds the predictions of the
    first draw, and ``outputs`` is K.
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
    """The scores (N, K) for a search against a stochastic model: log of the mean softmax over fresh draws.

    Its gradient averages those of the draws (expectation over transformation, arXiv:1707.07397), each
    weighted by its probability of the true class: this is the gradient of the judge's scores. Draws come from
    the global random state, which every attack seeds for itself.
    """

    def __init__(self, model: nn.Module, draws: int = CRAFTED_BY) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Log of mean probabilities."""
        each = [log_probabilities(self.model(x).float()) for _ in range(self.draws)]
        # Values are kept finite until here: the gradient of a sum of exp(−∞) is NaN.
        mean = torch.logsumexp(torch.stack(each), 0) - math.log(self.draws)
        return mean.masked_fill(mean < RULED_OUT / 2, -torch.inf)


def logits_of(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Exact logits under a seeded global random state, which is restored afterwards."""
    with isolated_randomness(seed, x.device):
        return predict_exactly(model, x)


def gap(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest logit; rounding explains it up to `TOLERANCE`.

    A number and NaN, or two different infinities, differ by infinity.
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

    A model whose answers depend on earlier queries is not random: see `history_gap`.
    """
    if not len(x):
        return False
    first, second = (logits_of(model, x, key_seed("pass", seed, number)) for number in range(2))
    return gap(first, second) > TOLERANCE and history_gap(model, x, seed) <= TOLERANCE


def history_gap(model: nn.Module, x: Tensor, seed: int = 0) -> float:
    """How much the logits of ``x`` depend on earlier queries of a copy of the model; 0 if not at all.

    The histories have equal shapes and all passes equal seeds, so that chance does not count. If equal
    histories give different answers, seeds do not control the randomness, and the result is 0.
    """
    noise = uniform(x, keyed_generator("history", seed))
    near = (x + 0.02 * (noise - 0.5)).clamp(0, 1)
    try:
        reference = _after(model, noise, x, seed)
        if gap(reference, _after(model, noise, x, seed)) > TOLERANCE:
            return 0.0
        return max(gap(reference, _after(model, before, x, seed)) for before in (x, near, x.flip(0)))
    except Exception:  # a foreign module may not be copyable
        return 0.0


def _after(model: nn.Module, before: Tensor, x: Tensor, seed: int) -> Tensor:
    """The logits of ``x`` from a copy of the model that was first queried twice with ``before``."""
    fresh = copy.deepcopy(model)
    for number in range(2):
        logits_of(fresh, before, key_seed("before", seed, number))
    return logits_of(fresh, x, key_seed("after", seed))
