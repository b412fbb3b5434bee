"""APGD: PGD whose step size adapts to progress."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.losses import LOSSES
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, adaptive_ascent, cost


@register(
    AttackInfo(
        name="apgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=cost("linf"),
        knobs={
            **{name: knob for name, knob in KNOBS.items() if name != "eot_steps"},
            "loss": Knob("ce", "what is maximised", choices=tuple(LOSSES)),
        },
    )
)
def apgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD, linf: momentum, a step size that halves when progress stalls, return to the best point.

    Croce and Hein, arXiv:2003.01690; of the iterates that fool the model it keeps the first. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", first=True, **knobs)
