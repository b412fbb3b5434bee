"""Square attack: random search with square patches."""

import math

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import project
from attacks_pool.randomness import draw_seed, keyed_generator, uniform
from attacks_pool.registry import register

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register(
    AttackInfo(
        name="square",
        family="query",
        norm="linf",
        access="black-box",
        paper="1912.00049",
        knobs={
            "steps": metadata.steps(1000, training=50),
            "restarts": metadata.restarts(),
            "p_init": Knob(0.8, "share of pixels changed by the first squares", high=1.0, open_low=True),
        },
    )
)
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    restarts: int,
    p_init: float,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """Square attack, linf: keep a random ±eps square whenever it lowers the margin of the true class.

    Andriushchenko et al., arXiv:1912.00049, with the margin loss; it sees logits only. A step is one query.
    Each point draws its own squares. Shapes as in :class:`attacks_pool.Attack`.
    """
    base = draw_seed(generator)
    best, best_gap = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        for restart in range(restarts):
            draws = keyed_generator(base, restart)
            found, gap = _search(model, x, y, active, eps, steps, p_init, draws, early_stop)
            better = gap > best_gap[active]
            best[active[better]], best_gap[active[better]] = found[better], gap[better]
            if early_stop:
                active = active[gap <= 0]
            if not len(active):
                break
    return best


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    eps: float,
    steps: int,
    p_init: float,
    generator: torch.Generator,
    early_stop: bool,
) -> tuple[Tensor, Tensor]:
    """One run on ``points`` of the batch; draws are made for the whole batch, so none depends on the rest."""
    _, channels, height, width = x.shape
    stripes = uniform(x[:, :, :1, :], generator).sub(0.5).sign()
    found = project(x + eps * stripes, x, eps, "linf")[points]
    gap = _gap(model, found, y[points])
    running = torch.arange(len(points), device=x.device)
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    for step in range(1, steps):
        if early_stop:
            running = running[gap[running] <= 0]
        if not len(running):
            break
        draws = torch.rand(len(x), channels + 2, generator=generator, device=generator.device).to(x.device)
        side = _side(p_init, step, steps, height, width)
        here = points[running]
        top = (draws[here, 0] * (height - side + 1)).long().view(-1, 1, 1)
        left = (draws[here, 1] * (width - side + 1)).long().view(-1, 1, 1)
        patch = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        sign = (draws[here, 2:] - 0.5).sign().view(-1, channels, 1, 1)
        # The window goes to a corner of the ball; a corner it already occupies is worth no query, so flip it.
        corner = (x[here] + eps * sign).clamp(0, 1)
        same = ((corner == found[running]) | ~patch[:, None]).flatten(1).all(1)
        corner = torch.where(same.view(-1, 1, 1, 1), (x[here] - eps * sign).clamp(0, 1), corner)
        tried = torch.where(patch[:, None], corner, found[running])
        new_gap = _gap(model, tried, y[here])
        better = new_gap > gap[running]
        found[running[better]], gap[running[better]] = tried[better], new_gap[better]
    return found, gap


def _gap(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The margin, positive where the model is fooled; scores that are not numbers count as fooled."""
    return torch.nan_to_num(margin(model(x), y), nan=torch.inf)


def _side(p_init: float, step: int, steps: int, height: int, width: int) -> int:
    """The square's side: the share of pixels halves on the paper's schedule for 10,000 queries."""
    progress = int(step / steps * 10_000)
    share = p_init / 2 ** sum(progress > bound for bound in HALVINGS)
    side = round(math.sqrt(share * height * width))
    return max(1, min(side, height - 1, width - 1))
