"""Options and arguments that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.completion import dataset_names, model_names

MOST_WORKERS = 1024


class Format(StrEnum):
    """Output formats of a result."""

    table = "table"
    json = "json"


AttackTimeout = Annotated[
    float | None,
    typer.Option(
        help="Stop if an attack takes longer than this on a batch or block, in seconds.",
        show_default="no limit",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(help="Folder with the data sets' files.", show_default="the data set's standard folder"),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Data set; advbench datasets lists them.", show_default="digits", autocompletion=dataset_names
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="table or json.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.", show_default="auto")]
DryRun = Annotated[bool, typer.Option("--dry-run", "--plan", help="Print the plan without running it.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A model that advbench models lists, torchvision:NAME or package.module:factory.",
        show_default="the data set's",
        autocompletion=model_names,
    ),
]
Points = Annotated[
    str | None, typer.Option(help="Test points: 1000, cw=1000 or 5000,cw=1000.", show_default="all")
]
PerClass = Annotated[
    bool | None,
    typer.Option(
        "--per-class/--no-per-class",
        help="Show the table by class.",
        show_default="shown below 20 classes",
    ),
]
RecordedData = Annotated[
    str | None,
    typer.Option(help="Folder with the data set's files.", show_default="from the record"),
]
RunPath = Annotated[
    Path, typer.Argument(help="A run's directory, its record.json, or its name in --runs-dir.")
]
RunsDir = Annotated[Path, typer.Option(help="Directory of runs.")]
RunsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--runs-dir",
        help="Directory of runs; repeatable, to combine several.",
        show_default="runs",
    ),
]
Select = Annotated[
    str | None, typer.Option(help="Which epoch to keep: last or val-robust.", show_default="last")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's default")]
TrainingThreads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads.", show_default="1 for a small model, else torch's default"),
]
TrainSet = Annotated[
    list[str] | None,
    typer.Option(
        help="Set an attack's knob for training: pgd.steps=7; repeatable.",
        show_default="each attack's training values",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_WORKERS,
        help="Processes on this machine.",
        show_default="one per core or GPU",
    ),
]


def runs_dirs(given: list[Path] | None) -> list[Path]:
    """The directories given as `RunsDirs`, without duplicates."""
    found = {path.resolve(): path for path in reversed(given or [Path("runs")])}
    return list(reversed(found.values()))
