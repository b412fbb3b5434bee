"""Reads presets: the built-in YAML files of this folder, and files that a user names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from advbench.config.files import kind_of, read_yaml
from advbench.config.options import explain
from attacks_pool.errors import InputError, unknown

FOLDER = Path(__file__).parent
DEFAULT = "standard"
ALL = "all"
"""The points of a preset that is measured on the whole test set."""
SUFFIXES = (".yaml", ".yml", ".json")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"


class _Content(BaseModel):
    """The content of a preset's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=NAME)
    about: str = Field(default="", max_length=400)
    attacks: list[str] = Field(min_length=1)
    points: int | dict[str, int] | Literal["all"] | None = None
    datasets: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Preset:
    """A list of attacks with the points that they are measured on.

    Attributes:
        name: the name in records: that of a built-in file, or the one that the user's file gives.
        about: one line on what it is for.
        attacks: the attacks, as ``--attacks`` takes them; budgets that they omit come from the data set.
        points: the test points, as ``--points`` takes them, or ``all``; None leaves them to the user.
        datasets: the data sets that it is for; empty for any.
        sha256: the SHA-256 of the file, which tells whether two presets of one name are the same.
        file: the file.
    """

    name: str
    about: str
    attacks: tuple[str, ...]
    points: int | str | Mapping[str, int] | None
    datasets: tuple[str, ...]
    sha256: str
    file: Path

    @property
    def builtin(self) -> bool:
        """Whether it comes with this package."""
        return self.file.parent == FOLDER


def builtin_names() -> list[str]:
    """The names of the built-in presets, the default first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))


def find_preset(given: str | Path) -> Preset:
    """The built-in preset of this name, or the preset in this YAML file.

    Raises:
        InputError: no preset has this name, the file cannot be read, has an unknown key or a wrong value, or
            takes the name of a built-in preset.
    """
    text, names = str(given), builtin_names()
    if text in names:
        return _read(FOLDER / f"{text}.yaml")
    path = Path(text).expanduser()
    if not (path.suffix.lower() in SUFFIXES or path.is_file()):
        raise unknown("preset", text, names, see="or give a YAML file of attacks")
    found = _read(path)
    if found.name in names and found.sha256 != _read(FOLDER / f"{found.name}.yaml").sha256:
        raise InputError(
            f"preset {path} has the name of the built-in preset {found.name!r}: add another, name: my-preset"
        )
    return found


def _read(path: Path) -> Preset:
    content = read_yaml(path, "preset")
    if not isinstance(content, dict):
        raise InputError(f"preset {path} must hold attacks: [fgsm, pgd], not {kind_of(content)}")
    for key in content:
        if key not in _Content.model_fields:
            raise unknown(f"key of preset {path}", str(key), _Content.model_fields)
    try:
        values = _Content.model_validate({"name": path.stem, **_listed(content)})
    except ValidationError as error:
        raise InputError(f"preset {path}: {explain(error)}") from None
    return Preset(
        values.name,
        " ".join(values.about.split()),
        tuple(values.attacks),
        values.points,
        tuple(values.datasets),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        path,
    )


def _listed(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """The content with single texts as lists: ``attacks: fgsm,pgd`` is one text of two attacks."""
    lists = ("attacks", "datasets")
    return {
        key: [value] if key in lists and isinstance(value, str) else value for key, value in content.items()
    }
