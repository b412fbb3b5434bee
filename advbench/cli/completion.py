"""Names for shell completion. Nothing here loads torch or imports a plug-in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r'(?:register\(\s*(?:\w+\(\s*)?|[Ii]nfo\(\s*)(?:name=)?"([^"]+)"')
CORRUPTION = re.compile(r'^    "([a-z-]+)": (?:blur|digital|noise|weather)\.', re.MULTILINE)
"""How the files of defenses and attacks declare names; tests compare what is found with the registries."""


def defense_names(incomplete: str) -> list[str]:
    """Names of defenses: built-in ones, read from their files, and those of plug-ins."""
    return _starting({*_declared("defenses/methods", NAME), *_plugins("defenses")}, incomplete)


def attack_names(incomplete: str) -> list[str]:
    """Names of attacks: built-in ones, read from their files, and those of plug-ins."""
    corruptions = (f"corruption-{name}" for name in _declared("attacks_pool/attacks", CORRUPTION))
    names = {*_declared("attacks_pool/attacks", NAME), *corruptions, *_plugins("attacks")}
    return _starting(names, incomplete)


def attack_lists(incomplete: str) -> list[str]:
    """The list of attacks with its last name completed: ``fgsm,pg`` becomes ``fgsm,pgd``."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in attack_names(last)]


def dataset_names(incomplete: str) -> list[str]:
    """Names of data sets."""
    from advbench.data.registry import every_info

    return _starting(every_info(), incomplete)


def model_names(incomplete: str) -> list[str]:
    """Names of the built-in models."""
    from advbench.models import MODELS

    return _starting(MODELS, incomplete)


def preset_names(incomplete: str) -> list[str]:
    """Names of the built-in presets: those of their files."""
    folder = ROOT / "advbench" / "external" / "presets"
    return _starting((path.stem for path in folder.glob("*.yaml")), incomplete)


def _declared(folder: str, pattern: re.Pattern[str]) -> set[str]:
    return {
        name for path in (ROOT / folder).glob("*.py") for name in pattern.findall(path.read_text("utf-8"))
    }


def _plugins(kind: str) -> list[str]:
    # Imported here because this takes longer than any other import of --help.
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group=f"advbench.{kind}")]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
