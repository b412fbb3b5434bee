"""A template: a small package with a working attack, for authors to adapt."""

from __future__ import annotations

from pathlib import Path

from advbench.contract.template import check_name, write_template
from attacks_pool.registry import ENTRY_POINTS

ATTACK = '''"""$name: an attack for advbench."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import AttackInfo, Knob, register


@register(
    AttackInfo(
        name="$name",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper=None,
        knobs={"steps": Knob(10, "steps of the search", training=3, low=1)},
        cost=lambda knobs, classes: (knobs["steps"], knobs["steps"]),
    )
)
def $module(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    early_stop: bool,
    steps: int,
) -> Tensor:
    """Signed gradient steps, 2 · eps / steps long, projected onto the linf ball. Change the step into yours.

    Args:
        model: maps images in [0, 1] to logits (N, K).
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        eps: the budget.
        generator: draw everything random from it.
        early_stop: points that are fooled may stay as they are.
        steps: steps of the search.
    """
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        moved = x_adv.detach() + 2 * eps / steps * gradient.sign()
        x_adv = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return x_adv
'''

TEST = '''"""The contract that every attack of advbench keeps."""

import $module  # registers it
from advbench.contract import check_attack


def test_contract() -> None:
    """Images, bounds, determinism, independence within a batch, nothing left changed."""
    assert $module.$module is not None
    broken = [str(check) for check in check_attack("$name") if not check.holds]
    assert not broken, "\\n".join(broken)
'''


def write_attack_package(name: str, parent: Path) -> list[Path]:
    """Write ``parent/name/``: a project file, an attack that works, its test and a README.

    Args:
        name: the name of the attack, such as ``my-attack``; module and function are then ``my_attack``.
        parent: where to create the directory; ``parent`` itself is created if missing.

    Returns:
        The files.

    Raises:
        InputError: the name is invalid or taken, or the directory exists or cannot be written.
    """
    check_name(name, "attack")
    module = name.replace("-", "_")
    words = {
        "Kind": "An attack",
        "part": "step",
        "object": module,
        "group": ENTRY_POINTS,
        "target": module,
        "example": f"--defense at --sequence fgsm,{name}",
    }
    return write_template(name, "attack", parent, ATTACK, TEST, words)
