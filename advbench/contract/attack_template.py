"""A small package with an attack in it that works, to be changed into one's own."""

from __future__ import annotations

from pathlib import Path
from string import Template

from advbench.contract.template import PROJECT, check_free_module, check_plain_name, write_files
from attacks_pool import pool
from attacks_pool.errors import InputError
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

README = """# $name

An attack for advbench, in `$module.py`: change its step into yours.

```sh
pip install -e .                              # makes it known to advbench
advbench attacks check $name
advbench run --defense at --sequence fgsm,$name
python -m pytest                              # the same contract, as a test
```

Before it is installed: `advbench attacks check $module:$module`, in this directory.
"""


def write_attack_package(name: str, parent: Path) -> list[Path]:
    """Write ``parent/name/``: a project file, an attack that works, its test and a README.

    Args:
        name: the name of the attack, such as ``my-attack``; module and function are then ``my_attack``.
        parent: where the directory goes; it is made where it is missing.

    Returns:
        The files.

    Raises:
        InputError: a name that will not do or is taken, a directory that exists or cannot be written.
    """
    module = name.replace("-", "_")
    check_plain_name(name, "attack")
    if name in pool.names() or name in pool.problems:
        raise InputError(f"the name {name!r} is taken: advbench attacks {name} describes it")
    check_free_module(module)
    words = {"name": name, "module": module, "group": ENTRY_POINTS, "kind": "attack", "target": module}
    texts = {
        "pyproject.toml": PROJECT,
        f"{module}.py": ATTACK,
        f"test_{module}.py": TEST,
        "README.md": README,
    }
    return write_files(
        parent / name, {file: Template(text).substitute(words) for file, text in texts.items()}
    )
