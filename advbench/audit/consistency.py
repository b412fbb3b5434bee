"""Checks that a model's answer to an image depends only on the image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from advbench.audit.fresh import Fresh
from advbench.evaluation.shards import blocks
from advbench.evaluation.stochastic import TOLERANCE, gap, logits_of
from attacks_pool import Attack
from attacks_pool.calling.guard import buffers_kept
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator, uniform
from attacks_pool.verifier import exact_arithmetic
from leaderboards import Flag

ASKED = 64
"""The number of points of each kind: clean, noisy, crafted on the model, crafted on a surrogate."""
ALONE = 8
"""How many points are also queried one by one."""
PORTIONS = (7, 64)
"""Batch sizes that the judge never uses."""
COARSE: dict[torch.dtype, float] = {torch.float16: 5e-3, torch.bfloat16: 5e-2}
"""The relative difference of logits that rounding explains if the model computes in 16 bits."""
WORDS = {
    "company": "the rest of the batch",
    "history": "earlier queries",
    "order": "the order of the batch",
    "size": "the size of the batch",
    "gradients": "whether gradients are recorded",
}


def asked_points(
    x: Tensor, y: Tensor, searches: list[tuple[nn.Module, Attack]], eps: float, seed: int
) -> Tensor:
    """The images (P, C, H, W) to query a model with: transferred ones first, clean ones last.

    Args:
        x, y: test points and labels, of which the first are used.
        searches: attacks, each with the model that it runs on, those on a surrogate first.
        eps: the size of uniform noise.
        seed: the key of every draw.
    """
    x, y = x[:ASKED], y[:ASKED]
    crafted = [
        attack(model, x, y, generator=keyed_generator("asked", seed, number), exact=True)
        for number, (model, attack) in enumerate(searches)
    ]
    noise = uniform(x, keyed_generator("asked", seed), -eps, eps)
    return torch.cat([*crafted, (x + noise).clamp(0, 1), x])


def consistency_flags(
    model: nn.Module,
    points: Tensor,
    seed: int,
    *,
    stochastic: bool,
    fresh: Fresh | None = None,
    network: str | None = None,
) -> Iterator[Flag]:
    """``batch-dependent``: a logit depends on more than the image and, for a randomised model, the seed.

    One batch of the judge's size is compared with the same points in small batches, in other orders, with
    other points in the batch, with gradients recorded, and with the answers of a copy of the model made
    before the first query. For a stochastic model only batches of equal shape are compared, with equal seeds,
    so that chance is not mistaken for the effect of other points.

    Args:
        model: maps images to logits.
        points: the query images, from `asked_points`.
        seed: the key of every draw.
        stochastic: whether the model is randomised.
        fresh: the copy, whose network must not have been queried before.
        network: which network of the copy ``model`` is.
    """
    if not len(points):
        return
    gaps = _gaps(model, points, seed, stochastic)
    if fresh is not None:
        gaps["history"] = max(
            gaps.get("history", 0.0), _history(model, points, seed, fresh, network, stochastic)
        )
    allowed = tolerance(model)
    found = {way: size for way, size in gaps.items() if size > allowed}
    if found:
        message = f"logits change with {' and '.join(WORDS[way] for way in found)}"
        # JSON has no infinity; values that cannot be compared get a huge difference.
        sizes = {way: min(size, 1e9) for way, size in found.items()}
        yield Flag.of("batch-dependent", message, relative_difference=sizes, points=len(points))


def _gaps(model: nn.Module, points: Tensor, seed: int, stochastic: bool) -> dict[str, float]:
    gaps = {}
    with buffers_kept(model):
        if stochastic:
            gaps["company"] = _company(model, points, seed)
            return gaps
        size = _judged_together(points)
        together = _in_batches(model, points, size, seed)
        straight, backwards = (_in_turn(model, one, size, seed) for one in (points, points.flip(0)))
        gaps["order"] = gap(backwards.flip(0), straight)
        gaps["size"] = max(gap(_in_batches(model, points, other, seed), together) for other in PORTIONS)
        alone = torch.cat(
            [_in_batches(model, points[:ALONE], 1, seed), _in_batches(model, points[-ALONE:], 1, seed)]
        )
        gaps["size"] = max(gaps["size"], gap(alone, torch.cat([together[:ALONE], together[-ALONE:]])))
        recorded = torch.cat([_with_gradients(model, part, seed) for part in torch.split(points, size)])
        gaps["gradients"] = gap(recorded, straight)
        gaps["company"] = _company(model, points, seed)
    return gaps


def _judged_together(points: Tensor) -> int:
    """The number of images in a block of the judge."""
    size: int = next(block.stop for block in blocks(points.shape[1:], 10**9))
    return size


def _in_batches(model: nn.Module, points: Tensor, size: int, seed: int) -> Tensor:
    """The logits of the points in batches of ``size``, the last one filled up with the first points."""
    count = len(points)
    filled = points.repeat(-(-size // count) + 1, *[1] * (points.ndim - 1))[: -(-count // size) * size]
    return torch.cat([logits_of(model, part, seed) for part in torch.split(filled, size)])[:count]


def _in_turn(model: nn.Module, points: Tensor, size: int, seed: int) -> Tensor:
    """The logits of the points in batches of at most ``size``."""
    return torch.cat([logits_of(model, part, seed) for part in torch.split(points, size)])


def _company(model: nn.Module, points: Tensor, seed: int) -> float:
    """How much the first points' logits depend on the points that fill the batch."""
    rows = points[-ASKED:]
    others = [rows, uniform(rows, keyed_generator("company", seed)), points[: len(rows)]]
    key = key_seed("company", seed)
    answers = [logits_of(model, torch.cat([rows, other]), key)[: len(rows)] for other in others]
    again = logits_of(model, torch.cat([rows, others[0]]), key)[: len(rows)]
    if gap(answers[0], again) > TOLERANCE:
        return 0.0  # caused by chance or history, which the other comparisons report
    return max(gap(answers[0], answer) for answer in answers[1:])


def _with_gradients(model: nn.Module, points: Tensor, seed: int) -> Tensor:
    """The logits with the graph recorded, as a search gets them."""
    with (
        isolated_randomness(seed, points.device),
        torch.inference_mode(False),
        torch.enable_grad(),
        exact_arithmetic(points.device),
    ):
        logits: Tensor = model(points.detach().clone().requires_grad_())
    return logits.detach().float()


def _history(
    model: nn.Module, points: Tensor, seed: int, fresh: Fresh, network: str | None, stochastic: bool
) -> float:
    """How far the model's answers differ from those of the copy that was never queried.

    The copy gets crafted points before clean ones, in small batches: a model that repeats its first answer
    near an image then has no clean answer to repeat.
    """
    parts = torch.split(points, PORTIONS[-1] // 2)
    # Reverse the order, so that the preceding batch is never the same.
    now = [logits_of(model, part, seed) for part in reversed(parts)][::-1]
    if stochastic and gap(logits_of(model, parts[0], seed), now[0]) > TOLERANCE:
        return 0.0  # randomness that seeds do not control
    answers = []
    for part in parts:
        answer = fresh.logits(network, part, seed)
        if answer is None:
            return 0.0
        answers.append(answer)
    return gap(torch.cat(answers), torch.cat(now))


def tolerance(model: nn.Module) -> float:
    types = {tensor.dtype for tensor in model.parameters()}
    return max([TOLERANCE, *(COARSE[kind] for kind in types if kind in COARSE)])
