"""Checks of a model's answers to clean images: that they are logits, and better than chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from advbench.data.pixels import ImageArray
from advbench.evaluation.shards import blocks
from advbench.evaluation.stochastic import logits_of
from attacks_pool.calling.guard import buffers_kept
from attacks_pool.verifier import no_number
from leaderboards import Flag
from leaderboards.audits.following import CHECK_NORMALISATION, DID_NOT_TRAIN

POINTS = 200
"""How many points are predicted again with other scales of the images."""
LEAST_GAIN, LARGEST_P, FEW = 0.1, 0.01, 30
"""A model has learned if it gets this share right of what chance gets wrong, and the result is significant.

Below this number of points significance cannot be tested, and only the share decides.
"""
EXPLAINED = 0.5
"""Another scale or class order explains a failure if it gets this share right of what chance gets wrong."""
ONE_CLASS = 0.9
"""From this share of predictions in one class on, a model counts as collapsed."""
SCALES = (1 / 255, 0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0, 100.0, 255.0)
SHIFTS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0)


def logit_flags(
    model: nn.Module, x: ImageArray, seed: int, device: torch.device | None = None
) -> Iterator[Flag]:
    """``nan-logits`` and ``probabilities-not-logits``, over all unattacked points ``x`` (N, C, H, W).

    Only one block of points is moved to ``device`` at a time.
    """
    broken, probable = 0, bool(len(x))
    for block in blocks(x.shape[1:], len(x)):
        logits = logits_of(model, x[block].to(device or x.device), seed)
        finite = ~no_number(logits)
        broken += int((~finite).sum())
        known = logits[finite]
        sums = (known.sum(1) - 1).abs() < 1e-3
        probable &= bool(sums.all()) and bool(((known >= -1e-6) & (known <= 1 + 1e-6)).all())
    if broken:
        message = f"{broken} of {len(x)} clean points have logits that are not numbers"
        yield Flag.of("nan-logits", message, count=broken, points=len(x), where="clean")
    if probable and broken < len(x):
        message = "outputs lie in [0, 1] and sum to 1: they are probabilities, which flatten gradients"
        yield Flag.of("probabilities-not-logits", message, points=len(x) - broken)


def learned(right: int, y: Tensor) -> bool:
    """Whether ``right`` of the labels ``y`` (N,) is better than always predicting the most common class."""
    if not len(y):
        return True
    chance = float(y.bincount().max()) / len(y)
    if chance == 1:
        return right > 0
    p = binomtest(right, len(y), chance, alternative="greater").pvalue
    return right / len(y) >= chance + LEAST_GAIN * (1 - chance) and (len(y) < FEW or bool(p < LARGEST_P))


def competence_flags(model: nn.Module, x: Tensor, y: Tensor, right: int, seed: int) -> Iterator[Flag]:
    """``did-not-train`` or ``check-normalisation``, if clean accuracy is near or below chance.

    Possible explanations are tested: other scales and shifts of the images, and another order of classes.

    Args:
        model: maps images to logits.
        x, y: test points (N, C, H, W) and labels (N,).
        right: how many of them the model gets right.
        seed: the seed of a stochastic model's draws.
    """
    if learned(right, y):
        return
    x, y, total = x[:POINTS], y[:POINTS], len(y)
    with buffers_kept(model):
        found = logits_of(model, x, seed).argmax(1)
        start = f"{right} of {total} clean points are classified correctly, which is no better than chance"
        evidence = {"points": total, "right": right, "chance": round(float(y.bincount().max()) / len(y), 4)}
        if order := _other_order(found, y):
            message = f"{start}; if classes are reordered, {order} of {len(y)} are: check their order"
            yield Flag.of(
                CHECK_NORMALISATION, message, **evidence, explained_by="class order", explained=order
            )
        elif scale := _other_scale(model, x, y, seed):
            words, count = scale
            message = f"{start}; with {words}, {count} of {len(y)} are: check the normalisation"
            yield Flag.of(CHECK_NORMALISATION, message, **evidence, explained_by=words, explained=count)
        else:
            counts = found.bincount()
            common, share = int(counts.argmax()), float(counts.max()) / len(found)
            said = f"; {100 * share:.0f} % of predictions are class {common}" if share >= ONE_CLASS else ""
            message = f"{start}{said}: check the learning rate, the normalisation and the order of classes"
            more = {"commonest_prediction": common, "share": round(share, 4)}
            yield Flag.of(DID_NOT_TRAIN, message, **evidence, **more)


def _enough(count: int, y: Tensor) -> bool:
    chance = float(y.bincount().max()) / len(y)
    return count / len(y) >= chance + EXPLAINED * (1 - chance)


def _other_order(found: Tensor, y: Tensor) -> int:
    """How many predictions are right with the best permutation of classes; 0 if it explains too little."""
    size = int(max(found.max(), y.max())) + 1
    table = (found.cpu() * size + y.cpu()).bincount(minlength=size * size).view(size, size)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    count = int(table[rows, columns].sum())
    return count if _enough(count, y) else 0


def _other_scale(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[str, int] | None:
    """The scaling a·x + b of images with which the model is right, in words, and on how many points."""
    best: tuple[str, int] | None = None
    for sign, scale, shift in itertools.product((1.0, -1.0), SCALES, SHIFTS):
        with suppress(Exception):  # a model may refuse images outside [0, 1]
            count = int((logits_of(model, sign * scale * x + shift, seed).argmax(1) == y).sum())
            if _enough(count, y) and (best is None or count > best[1]):
                best = f"images × {sign * scale:.3g} {'+' if shift >= 0 else '−'} {abs(shift):g}", count
    return best
