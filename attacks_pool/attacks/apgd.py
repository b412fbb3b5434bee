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
            "loss": Knob("ce", "loss to maximise", choices=tuple(LOSSES)),
        },
    )
)
def apgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD, linf: momentum; halves its step size and returns to the best point when progress stalls.

    Croce and Hein, arXiv:2003.01690; it returns the first iterate that fools the model. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", first=True, **knobs)
