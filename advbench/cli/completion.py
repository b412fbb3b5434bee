"""Names for shell completion. Nothing here loads torch or imports a plug-in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

NAME = re.compile(r'DefenseInfo\(\s*name="([^"]+)"')


def defense_names(incomplete: str) -> list[str]:
    """Names of defenses: built-in ones, read from their files, and those of plug-ins."""
    spec = find_spec("advbench")
    found = {point.name for point in entry_points(group="advbench.defenses")}
    if spec is not None and spec.origin is not None:
        for path in (Path(spec.origin).parents[1] / "defenses" / "methods").glob("*.py"):
            found.update(NAME.findall(path.read_text("utf-8")))
    return _starting(found, incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Names of data sets."""
    from advbench.data.registry import DATASETS

    return _starting(DATASETS, incomplete)


def model_names(incomplete: str) -> list[str]:
    """Names of the built-in models."""
    from advbench.models import MODELS

    return _starting(MODELS, incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
