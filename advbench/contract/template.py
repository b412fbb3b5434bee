"""A template: a small package with a working defense, for authors to adapt."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from string import Template

from advbench.data.registry import DATASETS, plugged
from attacks_pool import pool
from attacks_pool.errors import InputError
from defenses import registry
from defenses.registry import ENTRY_POINTS

FORM = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 100
"""Letters of a name: files, which are called by it, have no more than 255."""
COMMANDS = ("list", "new", "check", "sample")
"""Words that ``advbench defenses`` or ``advbench attacks`` reads as commands."""

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "advbench-$name"
version = "0.1.0"
description = "The $kind $name for advbench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["advbench"]

[project.entry-points."$group"]
$name = "$target"

[tool.setuptools]
py-modules = ["$module"]
"""

README = """# $name

${Kind} for advbench, in `$module.py`: replace its $part with your own.

```sh
pip install -e .                              # registers it with advbench
advbench ${kind}s check $name
advbench run $example
python -m pytest                              # the same contract, as a test
```

Before it is installed: `advbench ${kind}s check $module:$object`, in this directory.
"""

DEFENSE = '''"""$name: a defense for advbench."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses import Defense, DefenseInfo, Stage
from defenses.parts.mixing import craft_batch


class $object(Defense):
    """Adversarial training with paired logits: L = CE(f(x̃), y) + λ · ‖f(x̃) − f(x)‖².

    x̃ is crafted on the current f by the stage's attack; several attacks share the batch. The second term is
    the mean over the batch (Kannan et al., arXiv:1803.06373). Replace the loss with your own.

    Args:
        model: the classifier, from images (N, C, H, W) in [0, 1] to logits (N, K).
        pairing: λ, the weight of the second term.
        seed: determines every draw.
    """

    info = DefenseInfo(name="$name", paper=None, regimes=("continual", "joint"))

    def __init__(self, model: nn.Module, *, pairing: float = 0.5, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.pairing = pairing

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms."""
        x_adv, _ = craft_batch(
            self.craft, stage.attacks, x, y, mix="split", generator=self.generator, predict=self
        )
        clean, attacked = self(torch.cat([x, x_adv])).chunk(2)
        ce = F.cross_entropy(attacked, y)
        pairing = (attacked - clean).square().sum(1).mean()
        return {"loss": ce + self.pairing * pairing, "ce": ce, "pairing": pairing}
'''

TEST = '''"""The contract that every defense of advbench must keep."""

from advbench.contract import check_defense
from $module import $object


def test_contract() -> None:
    """Shapes, gradients, determinism, saving, resuming, no test data, flat memory."""
    broken = [str(check) for check in check_defense($object) if not check.holds]
    assert not broken, "\\n".join(broken)
'''


def write_package(name: str, parent: Path) -> list[Path]:
    """Write ``parent/name/``: a project file, a working defense, its test and a README.

    Args:
        name: the name of the defense, such as ``my-defense``; the module is then ``my_defense`` and the
            class ``MyDefense``.
        parent: where to create the directory; ``parent`` itself is created if missing.

    Returns:
        The files.

    Raises:
        InputError: the name is invalid or taken, or the directory exists or cannot be written.
    """
    check_name(name, "defense")
    module, class_name = name.replace("-", "_"), "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(class_name):
        raise InputError(f"{name!r} is a Python keyword: its module could not be imported")
    if registry.class_named(class_name) is not None or class_name in ("Defense", "DefenseInfo", "Stage"):
        raise InputError(f"the class name {class_name!r}, which {name!r} would get, is taken")
    words = {
        "Kind": "A defense",
        "part": "loss",
        "object": class_name,
        "group": ENTRY_POINTS,
        "target": f"{module}:{class_name}",
        "example": f"--defense {name} --sequence fgsm,pgd",
    }
    return write_template(name, "defense", parent, DEFENSE, TEST, words)


def write_template(
    name: str, kind: str, parent: Path, code: str, test: str, words: dict[str, str]
) -> list[Path]:
    """Write a new folder ``parent/name`` with a package, whole or not at all.

    Args:
        name: the name of the package, the folder and the registered object.
        kind: ``defense``, ``attack`` or ``dataset``.
        parent: where the folder is created.
        code, test: the templates of the module and of its test.
        words: what ``$Kind``, ``$part``, ``$object``, ``$group``, ``$target`` and ``$example`` stand for.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    module, folder = name.replace("-", "_"), parent / name
    texts = {
        "pyproject.toml": PROJECT,
        f"{module}.py": code,
        f"test_{module}.py": test,
        "README.md": README,
    }
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already: choose another name or --dir")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Write beside the target and rename, so that the package appears complete or not at all.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as beside:
            made = Path(beside) / name
            made.mkdir()
            for file, text in texts.items():
                filled = Template(text).substitute(words, name=name, module=module, kind=kind)
                (made / file).write_text(filled, encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    return [folder / file for file in texts]


def check_name(name: str, kind: str) -> None:
    """Check that a new package, its module and its ``kind`` can be called ``name``.

    Raises:
        InputError: they cannot.
    """
    module = name.replace("-", "_")
    what = {"attack": "an attack", "defense": "a defense", "dataset": "a data set"}[kind]
    if not FORM.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for {what}: lower-case letters, digits, single hyphens, a letter first"
        )
    if len(name) > LONGEST:
        raise InputError(f"a name of {len(name)} letters is too long for {what}: at most {LONGEST}")
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise InputError(f"{name!r} is a Python keyword: its module could not be imported")
    if name in COMMANDS:
        raise InputError(f"{name!r} is a command of advbench {kind}s: choose another name")
    taken: dict[str, Callable[[str], bool]] = {
        "defense": registry.is_taken,
        "attack": lambda one: one in pool.names() or one in pool.problems,
        "dataset": lambda one: one in DATASETS or one in plugged(),
    }
    if taken[kind](name):
        raise InputError(f"the name {name!r} is taken: advbench {kind}s {name} describes it")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"a module {module!r} is installed already: choose another name")
