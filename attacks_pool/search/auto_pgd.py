"""Auto-PGD for all losses and norms (Croce and Hein, arXiv:2003.01690; in l1 arXiv:2103.01208)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import (
    PartGenerator,
    draw_seed,
    drawn_for,
    keyed_generator,
    keyed_like,
    normal,
)
from attacks_pool.losses import LOSSES, Loss, targeted_dlr
from attacks_pool.metadata import Knob
from attacks_pool.norms import l2_norm, project, random_point
from attacks_pool.search.auto_pgd_run import AscentOutcome, AscentPlan, ascend, checkpoints

__all__ = [
    "KNOBS",
    "adaptive_ascent",
    "checkpoints",
    "cost",
    "ranked_ascent",
    "ranked_cost",
    "targeted_ascent",
    "targeted_cost",
]

ELEMENTS = 2**21
"""Number of values per batch that a targeted search sends through the model, unless the input has more."""
KNOBS = {
    "steps": metadata.steps(100, training=10),
    "restarts": metadata.restarts(),
    "rho": Knob(0.75, "share of steps between checkpoints that must raise the loss", high=1.0),
    "eot_steps": Knob(1, "number of draws of a stochastic model to average each gradient over", low=1),
}
"""The knobs that the Auto-PGD attacks share."""


def cost(norm: str) -> Callable[[Mapping[str, Any], int], tuple[int, int]]:
    """Cost of one search in ``norm``: a forward and a backward pass at each start and after each step."""

    def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
        looks = int(knobs["steps"]) + len(_plan_of(norm, int(knobs["steps"])).phases())
        found = looks * int(knobs["restarts"]) * int(knobs.get("eot_steps", 1))
        return found, found

    return passes


def targeted_cost(norm: str) -> Callable[[Mapping[str, Any], int], tuple[int, int]]:
    """Cost of a search towards several classes: one pass of the clean points, then one run per class."""
    run = cost(norm)

    def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
        found = min(int(knobs["targets"]), classes - 1) * run(knobs, classes)[0]
        return found + 1, found

    return passes


def adaptive_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    loss: str | Loss,
    rho: float,
    generator: torch.Generator,
    early_stop: bool,
    eot_steps: int = 1,
    first: bool = False,
) -> Tensor:
    """z = Π(x_k + η·d), x_{k+1} = Π(x_k + 0.75·(z − x_k) + 0.25·(x_k − x_{k−1})), initially η = 2·eps.

    The paper defines checkpoints. If fewer than ``rho`` of the steps since the last one raised the loss, or
    if neither η nor the best loss changed, η halves and the search returns to its best point. In l1, steps
    are sparse and have no momentum: d moves only the steepest coordinates, fewer as the best point becomes
    sparser; initially η = eps, and the ball shrinks from 3·eps over 2·eps to eps.

    Returns:
        For each point, the fooling iterate of highest loss (with ``first`` or ``early_stop`` the first
        fooling one), otherwise the iterate of highest loss, with the shape of ``x``. A stochastic model is
        fooled if the mean softmax over ``eot_steps`` draws is wrong.
    """
    objective = LOSSES[loss] if isinstance(loss, str) else loss
    base, best = draw_seed(generator), AscentOutcome.begin(x)
    plan = AscentPlan(
        norm, eps, steps, rho, lambda logits, y, _target: objective(logits, y), early_stop, first, eot_steps
    )
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        start = _start(x, plan, keyed_like(generator, base, restart))
        best.take(active, ascend(model, plan, x[active], y[active], start[active], y[active]))
        if early_stop:
            active = (~best.fooled).nonzero().flatten()
        if not len(active):
            break
    return best.x_adv


def targeted_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    rho: float,
    targets: int,
    generator: torch.Generator,
    early_stop: bool,
    eot_steps: int = 1,
) -> Tensor:
    """Auto-PGD on the targeted DLR loss, towards the ``targets`` likeliest wrong classes of the clean point.

    All targets of a point are searched in one batch of bounded size. With ``early_stop``, the likeliest class
    is searched before the others, and the first success ends the search of its point. Otherwise like
    :func:`adaptive_ascent`.
    """
    base, best = draw_seed(generator), AscentOutcome.begin(x)
    plan = AscentPlan(norm, eps, steps, rho, targeted_dlr, early_stop, eot_steps=eot_steps)
    with torch.no_grad():
        classes = likeliest_others(model(x), y, targets)
    ranks = list(range(classes.shape[1]))
    # Most points that can be fooled at all are fooled by the likeliest class, so it goes first.
    waves = [ranks[:1], ranks[1:]] if early_stop and len(ranks) > 1 else [ranks]
    total, places = drawn_for(generator, x)
    portion, drawn = (max(1, max(n, ELEMENTS // x[0].numel()) // len(ranks)) for n in (len(x), total))
    for restart, begin in product(range(restarts), range(0, len(x), portion)):
        part = torch.arange(begin, min(begin + portion, len(x)), device=x.device)
        for wave in waves:
            left = (~(best.fooled[part] & early_stop)).nonzero().flatten()
            if not len(left):
                break
            points = part[left]
            starts = [
                _starts(x[points], plan, places[points], total, drawn, (base, restart, rank)) for rank in wave
            ]
            start = torch.stack(starts, 1).flatten(0, 1)
            aims = classes[points][:, wave].flatten()
            best.take(points, ascend(model, plan, x[points], y[points], start, aims))
    return best.x_adv


def ranked_cost(norm: str) -> Callable[[Mapping[str, Any], int], tuple[int, int]]:
    """Cost of :func:`ranked_ascent`: one pass of the clean points, the short runs and the long ones."""
    run = cost(norm)

    def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
        short = {**knobs, "steps": knobs["scout_steps"], "restarts": min(int(knobs["targets"]), classes - 1)}
        found = run(short, classes)[0] + run(knobs, classes)[0]
        return found + 1, found

    return passes


def ranked_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    rho: float,
    targets: int,
    scout_steps: int,
    generator: torch.Generator,
    early_stop: bool,
    eot_steps: int = 1,
) -> Tensor:
    """Short searches towards each likely class, then long searches towards the most promising one.

    The ``targets`` likeliest wrong classes get ``scout_steps`` of Auto-PGD on the targeted DLR loss. The
    class of highest loss is then the target of a search of ``steps`` from each of ``restarts`` random starts.
    Otherwise like :func:`adaptive_ascent`.
    """
    base, best = draw_seed(generator), AscentOutcome.begin(x)
    plan = AscentPlan(norm, eps, steps, rho, targeted_dlr, early_stop, eot_steps=eot_steps)
    scout = replace(plan, steps=scout_steps)
    with torch.no_grad():
        classes = likeliest_others(model(x), y, targets)
    nearness = torch.full(classes.shape, -torch.inf, device=x.device)

    def search(plan: AscentPlan, aims: Tensor, *key: object) -> tuple[Tensor, Tensor]:
        points = (~(best.fooled & early_stop)).nonzero().flatten()
        if not len(points):
            return points, nearness[:0, 0]
        start = _start(x, plan, keyed_like(generator, base, *key))[points]
        found = ascend(model, plan, x[points], y[points], start, aims[points])
        best.take(points, found)
        return points, found.value

    for rank in range(classes.shape[1]):
        points, value = search(scout, classes[:, rank], "scout", rank)
        nearness[points, rank] = value
    nearest = classes.gather(1, nearness.argmax(1, keepdim=True)).flatten()
    for restart in range(restarts):
        search(plan, nearest, restart)
    return best.x_adv


def likeliest_others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """(N, T) the ``count`` classes of highest logit other than ``y``, or all of them if there are fewer."""
    others = torch.nan_to_num(logits.float()).scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _start(x: Tensor, plan: AscentPlan, generator: torch.Generator) -> Tensor:
    """Draw starts: uniform in the linf ball, on the l2 sphere, or x + N(0, I) projected onto the l1 ball."""
    eps = plan.phases()[0].eps
    if plan.norm == "l2":
        direction = normal(x, generator)
        return project(x + eps * direction / l2_norm(direction).clamp_min(1e-12), x, eps, "l2")
    return random_point(x, eps, plan.norm, generator)


def _starts(
    x: Tensor, plan: AscentPlan, places: Tensor, total: int, drawn: int, key: tuple[int, int, int]
) -> Tensor:
    """Draw starts for points ``x`` at ``places`` in a batch of ``total``, in portions of ``drawn`` points.

    ``key`` is (base, restart, rank); each portion of the whole batch is drawn with its own key.
    """
    base, restart, rank = key
    found = []
    for begin in range(0, total, drawn):
        here = (places >= begin) & (places < begin + drawn)
        if bool(here.any()):
            keyed = keyed_generator(base, restart, begin, rank)
            part = PartGenerator.of(keyed, min(drawn, total - begin), places[here] - begin)
            found.append(_start(x[here], plan, part))
    return torch.cat(found)


def _plan_of(norm: str, steps: int) -> AscentPlan:
    return AscentPlan(norm, 1.0, steps, 0.75, targeted_dlr, early_stop=False)
