"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

MOST_WORKERS = 1024


class Format(StrEnum):
    """How a result is written."""

    table = "table"
    json = "json"


AttackTimeout = Annotated[float | None, typer.Option(help="Seconds after which an attack counts as hanging.")]
DataDir = Annotated[str | None, typer.Option(help="Where the data sets' files are.")]
Dataset = Annotated[
    str | None, typer.Option(help="Data set; advbench datasets lists them.  [default: digits]")
]
FormatOption = Annotated[Format, typer.Option("--format", help="table or json.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.  [default: auto]")]
DryRun = Annotated[bool, typer.Option("--dry-run", "--plan", help="Say what there is to do, and leave it.")]
Model = Annotated[
    str | None, typer.Option(help="A model of the zoo or package.module:factory; by the data by default.")
]
Points = Annotated[
    str | None, typer.Option(help="Test points: 1000, cw=1000 or 5000,cw=1000; all by default.")
]
RunPath = Annotated[Path, typer.Argument(help="A run directory or its record.json.")]
RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.")]
RunsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--runs-dir",
        help="Where runs are kept; given again, the runs of all directories together.",
        show_default="runs",
    ),
]
Select = Annotated[str | None, typer.Option(help="Which epoch to keep: last or val-robust.  [default: last]")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own by default.")]
TrainingThreads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; one for a small model, else torch's own by default.")
]
TrainSet = Annotated[
    list[str] | None, typer.Option(help="attack.knob=value for training, such as pgd.steps=7; repeatable.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_WORKERS, help="Processes on this machine; one a core, or one a GPU, by default."
    ),
]


def runs_dirs(given: list[Path] | None) -> list[Path]:
    """The directories of `RunsDirs`, each once."""
    found = {path.resolve(): path for path in reversed(given or [Path("runs")])}
    return list(reversed(found.values()))
