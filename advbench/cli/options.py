"""Options and arguments that several commands share, and commands that take their options as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer

from advbench.cli.completion import attack_lists, dataset_names, defense_names, model_names

MOST_WORKERS = 1024


def option(help: str, *names: str, default: Any = None, unset: str | bool = True, **how: Any) -> Any:
    """Declare an option; ``unset`` says in ``--help`` what applies without it, by default ``default``."""
    return typer.Option(default, *names, help=help, show_default=unset, **how)


def flag(help: str, *names: str) -> Any:
    """Declare an option without a value, off by default."""
    return typer.Option(False, *names, help=help)


def argument(help: str, *, default: Any = None, **how: Any) -> Any:
    """Declare an argument; it is required if ``default`` is ``...``."""
    return typer.Argument(default, help=help, **how)


class Given:
    """What a command was given, as attributes; subclasses declare the command's options and arguments."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


Asked = TypeVar("Asked", bound=Given)


def takes(kind: type[Asked]) -> Callable[[Callable[[Asked], None]], Callable[..., None]]:
    """Decorator for a command whose only parameter is a value of ``kind``."""

    def decorate(command: Callable[[Asked], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            command(kind(**values))

        hints = get_type_hints(kind)
        declared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(kind, name), annotation=hint
            )
            for name, hint in hints.items()
        ]
        call.__annotations__ = hints
        vars(call)["__signature__"] = inspect.Signature(declared)
        return call

    return decorate


class Format(StrEnum):
    """Output formats of a result."""

    table = "table"
    json = "json"


ATTACKS = option("Attacks to run: fgsm,pgd:steps=50,square.", unset="--preset", autocompletion=attack_lists)
ATTACK_TIMEOUT = option(
    "Stop if an attack takes longer than this on a batch or block, in seconds.", unset="no limit"
)
DATA_DIR = option("Folder with the data sets' files.", unset="none; digits needs none")
DATASET = option(
    "Data set: one that advbench datasets lists, folder:PATH, npz:PATH, hf:PATH or package.module:factory.",
    unset="digits",
    autocompletion=dataset_names,
)
CHANNELS = option("1 makes images grey, 3 repeats grey images as colour.", unset="as the files are")
CLASSES = option("Classes to keep: a number, or names (cat,dog).", unset="all")
DATA_MEMORY = option(
    "Images to keep in memory (2GB, 500MB, 0); others are decoded when needed.", unset="a tenth of the memory"
)
DEFENSE = option(
    "Defense to train: one that advbench defenses lists, or package.module:Class.",
    unset="air",
    autocompletion=defense_names,
)
FORMAT = option("table or json.", "--format", default=Format.table)
DEVICE = option("auto, cpu, cuda, cuda:1.", unset="auto")
DRY_RUN = flag("Print the plan without running it.", "--dry-run", "--plan")
IMAGE_SIZE = option("Resize and cut every image to this side, in pixels.", unset="as the files are", min=4)
MODEL = option(
    "A model that advbench models lists, torchvision:NAME, timm:NAME or package.module:factory.",
    unset="the data set's",
    autocompletion=model_names,
)
MODEL_ARG = option(
    "Set an argument of the model's factory or network: width=2; repeatable.", unset="the model's defaults"
)
POINTS = option("Test points: 1000, cw=1000 or 5000,cw=1000.", unset="all")
PER_CLASS = option("Show the table by class.", "--per-class/--no-per-class", unset="shown below 20 classes")
RECORDED_DATA = option("Folder with the data set's files.", unset="from the record")
RUN_PATH = argument("A run's directory, its record.json, or its name in --runs-dir.", default=...)
RUNS_DIR = option("Directory of runs.", default=Path("runs"))
RUNS_DIRS = option("Directory of runs; repeatable, to combine several.", "--runs-dir", unset="runs")
SELECT = option("Which epoch to keep: last or val-robust.", unset="last")
SETTINGS = option(
    "Set a parameter of the defense or the training plan, such as average=ema: key=value; repeatable.",
    "--set",
    unset="the defense's and the data set's defaults",
)
TRAIN_SET = option(
    "Set an attack's knob for training: pgd.steps=7; repeatable.", unset="each attack's training values"
)
TRAIN_POINTS = option("Training images to use, each class in proportion.", unset="all", min=4)
WORKERS = option("Processes on this machine.", unset="one per core or GPU", min=1, max=MOST_WORKERS)


def runs_dirs(given: list[Path] | None) -> list[Path]:
    """The directories given as ``--runs-dir``, without duplicates."""
    found = {path.resolve(): path for path in reversed(given or [Path("runs")])}
    return list(reversed(found.values()))


def run_options(asked: object) -> dict[str, Any]:
    """The options of a run among the fields of ``asked``, as `advbench.run` takes them; only those given.

    Raises:
        InputError: a setting is not of the form key=value.
    """
    from advbench.config.options import Options

    given = {name.removesuffix("_"): value for name, value in vars(asked).items()}
    given |= {name: pairs(name.replace("_", "-"), given[name]) for name in ("set", "train_set")}
    given["model_args"] = model_arguments(given.get("model_arg"))
    return {name: given[name] for name in Options.model_fields if given.get(name) is not None}


def memory(text: str | None) -> float | None:
    """Parse ``--data-memory``: ``2GB``, ``500MB`` or bytes.

    Raises:
        InputError: the text is neither.
    """
    from attacks_pool.errors import InputError

    if text is None:
        return None
    units = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    number = text.upper().rstrip("BKMGT ")
    unit = text.upper()[len(number) :].strip()
    if not number.replace(".", "", 1).isdecimal() or unit not in units:
        raise InputError(f"--data-memory {text!r} cannot be read: write 2GB, 500MB or a number of bytes")
    return float(number) * units[unit]


def model_arguments(given: list[str] | None) -> dict[str, Any] | None:
    """Parse the values of ``--model-arg``, ``["width=2"]``, as arguments; None if there are none.

    Raises:
        InputError: a value is not of the form key=value.
    """
    from advbench.models.arguments import argument_of

    found = pairs("model-arg", given)
    return None if found is None else {key: argument_of(value) for key, value in found.items()}


def numbers(name: str, text: str | None) -> list[float] | None:
    """Parse ``0.49,0.48,0.45`` as numbers.

    Raises:
        InputError: a part is not a number.
    """
    from attacks_pool.metadata import parse_number

    return None if text is None else [parse_number(name, part.strip()) for part in text.split(",")]


def pairs(name: str, given: list[str] | None) -> dict[str, str] | None:
    """Parse the values of the option ``name``, ``["a=1", "b=2"]``, as a dict.

    Raises:
        InputError: a value is not of the form key=value.
    """
    from attacks_pool.errors import InputError

    found: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals or not value.strip():
            raise InputError(f"--{name} {text!r} cannot be read: write key=value")
        found[key.strip()] = value.strip()
    return found or None
