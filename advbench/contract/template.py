"""A template: a small package with a working defense, for authors to adapt."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from string import Template

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

DEFENSE = '''"""$name: a defense for advbench."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses import Defense, DefenseInfo, Stage
from defenses.parts.mixing import craft_batch


class $class_name(Defense):
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
from $module import $class_name


def test_contract() -> None:
    """Shapes, gradients, determinism, saving, resuming, no test data, flat memory."""
    broken = [str(check) for check in check_defense($class_name) if not check.holds]
    assert not broken, "\\n".join(broken)
'''

README = """# $name

A defense for advbench, in `$module.py`: replace its loss with your own.

```sh
pip install -e .                              # registers it with advbench
advbench defenses check $name
advbench run --defense $name --sequence fgsm,pgd
python -m pytest                              # the same contract, as a test
```

Before it is installed: `advbench defenses check $module:$class_name`, in this directory.
"""


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
    module, class_name = name.replace("-", "_"), "".join(part.capitalize() for part in name.split("-"))
    _check_name(name, module, class_name)
    words = {
        "name": name,
        "module": module,
        "class_name": class_name,
        "group": ENTRY_POINTS,
        "kind": "defense",
        "target": f"{module}:{class_name}",
    }
    texts = {
        "pyproject.toml": PROJECT,
        f"{module}.py": DEFENSE,
        f"test_{module}.py": TEST,
        "README.md": README,
    }
    return write_files(
        parent / name, {file: Template(text).substitute(words) for file, text in texts.items()}
    )


def write_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write a new folder of text files, whole or not at all.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    parent, name = folder.parent, folder.name
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already: choose another name or --dir")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Write beside the target and rename, so that the package appears complete or not at all.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as beside:
            made = Path(beside) / name
            made.mkdir()
            for file, text in texts.items():
                (made / file).write_text(text, encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    return [folder / file for file in texts]


def check_plain_name(name: str, kind: str) -> None:
    """Whether a package, a module and a registered name can be called ``name``.

    Args:
        name: such as ``my-defense``.
        kind: ``defense`` or ``attack``, for the error.

    Raises:
        InputError: they cannot.
    """
    module = name.replace("-", "_")
    if not FORM.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a{'n' if kind == 'attack' else ''} {kind}: lower-case letters, digits, "
            "single hyphens, a letter first"
        )
    if len(name) > LONGEST:
        raise InputError(
            f"a name of {len(name)} letters is too long for a{'n' if kind == 'attack' else ''} {kind}: "
            f"at most {LONGEST}"
        )
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise InputError(f"{name!r} is a Python keyword: its module could not be imported")
    if name in COMMANDS:
        raise InputError(f"{name!r} is a command of advbench {kind}s: choose another name")


def check_free_module(module: str) -> None:
    """Whether no module is called ``module``.

    Raises:
        InputError: one is installed.
    """
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"a module {module!r} is installed already: choose another name")


def _check_name(name: str, module: str, class_name: str) -> None:
    check_plain_name(name, "defense")
    if keyword.iskeyword(class_name):
        raise InputError(f"{name!r} is a Python keyword: its module could not be imported")
    if registry.is_taken(name):
        raise InputError(f"the name {name!r} is taken: advbench defenses {name} describes it")
    check_free_module(module)
    if registry.class_named(class_name) is not None or class_name in ("Defense", "DefenseInfo", "Stage"):
        raise InputError(f"the class name {class_name!r}, which {name!r} would get, is taken")
