"""Options and arguments that several commands share, and commands that take their options as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from advbench.cli.completion import attack_lists, dataset_names, defense_names, model_names

MOST_WORKERS = 1024
Asked = TypeVar("Asked")


def option(help: str, *names: str, unset: str | bool = True, **how: Any) -> Any:
    """Declare an option; ``unset`` says what applies if it is not given, by default its default value."""
    return typer.Option(*names, help=help, show_default=unset, **how)


def takes(kind: type[Asked]) -> Callable[[Callable[[Asked], None]], Callable[..., None]]:
    """Decorator for a command with one parameter, a dataclass whose fields declare the options."""

    def decorate(command: Callable[[Asked], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            command(kind(**given))

        hints = get_type_hints(kind, include_extras=True)
        fields = inspect.signature(kind).parameters.values()
        declared = [field.replace(annotation=hints[field.name]) for field in fields]
        call.__annotations__ = hints
        vars(call)["__signature__"] = inspect.Signature(declared)
        return call

    return decorate


class Format(StrEnum):
    """Output formats of a result."""

    table = "table"
    json = "json"


Attacks = Annotated[
    str | None,
    option("Attacks to run: fgsm,pgd:steps=50,square.", unset="--preset", autocompletion=attack_lists),
]
AttackTimeout = Annotated[
    float | None,
    option("Stop if an attack takes longer than this on a batch or block, in seconds.", unset="no limit"),
]
DataDir = Annotated[
    str | None, option("Folder with the data sets' files.", unset="the data set's standard folder")
]
Dataset = Annotated[
    str | None,
    option("Data set; advbench datasets lists them.", unset="digits", autocompletion=dataset_names),
]
Defense = Annotated[
    str | None,
    option(
        "Defense to train: one that advbench defenses lists, or package.module:Class.",
        unset="air",
        autocompletion=defense_names,
    ),
]
FormatOption = Annotated[Format, option("table or json.", "--format")]
Device = Annotated[str | None, option("auto, cpu, cuda, cuda:1.", unset="auto")]
DryRun = Annotated[bool, option("Print the plan without running it.", "--dry-run", "--plan")]
Model = Annotated[
    str | None,
    option(
        "A model that advbench models lists, torchvision:NAME or package.module:factory.",
        unset="the data set's",
        autocompletion=model_names,
    ),
]
Points = Annotated[str | None, option("Test points: 1000, cw=1000 or 5000,cw=1000.", unset="all")]
PerClass = Annotated[
    bool | None,
    option("Show the table by class.", "--per-class/--no-per-class", unset="shown below 20 classes"),
]
RecordedData = Annotated[str | None, option("Folder with the data set's files.", unset="from the record")]
RunPath = Annotated[
    Path, typer.Argument(help="A run's directory, its record.json, or its name in --runs-dir.")
]
RunsDir = Annotated[Path, option("Directory of runs.")]
RunsDirs = Annotated[
    list[Path] | None,
    option("Directory of runs; repeatable, to combine several.", "--runs-dir", unset="runs"),
]
Select = Annotated[str | None, option("Which epoch to keep: last or val-robust.", unset="last")]
Settings = Annotated[
    list[str] | None,
    option(
        "Set a parameter of the defense or the training plan: key=value; repeatable.",
        "--set",
        unset="the defense's and the data set's defaults",
    ),
]
TrainSet = Annotated[
    list[str] | None,
    option(
        "Set an attack's knob for training: pgd.steps=7; repeatable.", unset="each attack's training values"
    ),
]
Workers = Annotated[
    int | None,
    option("Processes on this machine.", unset="one per core or GPU", min=1, max=MOST_WORKERS),
]


def runs_dirs(given: list[Path] | None) -> list[Path]:
    """The directories given as `RunsDirs`, without duplicates."""
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
    return {name: given[name] for name in Options.model_fields if given.get(name) is not None}


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
