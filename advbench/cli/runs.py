"""``advbench runs``: list, check and clean up the runs of a directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advbench.cli.echo import echo
from advbench.cli.options import FORMAT, RUNS_DIRS, Format, argument, flag, runs_dirs
from advbench.runs.named import find_run

if TYPE_CHECKING:
    from leaderboards import Garbage, RunEntry

app = typer.Typer(
    help="List the runs of a directory, check them, or remove unfinished ones.",
    invoke_without_command=True,
    no_args_is_help=False,
)
DAMAGED = 1
"""The exit code of ``check`` if a run is damaged."""


@app.callback()
def list_runs(
    context: typer.Context, runs_dir: list[Path] | None = RUNS_DIRS, format: Format = FORMAT
) -> None:
    """List the runs of a directory, check them (check), or remove unfinished ones (gc)."""
    if context.invoked_subcommand is not None:
        if format is not Format.table:
            raise typer.BadParameter(f"--format is for the list, not for {context.invoked_subcommand}")
        context.obj = runs_dir
        return
    from leaderboards import inventory, size_of

    places = runs_dirs(runs_dir)
    entries = [(entry, size_of(entry.path)) for place in places for entry in inventory(place)]
    if format is Format.json:
        echo(json.dumps([_as_json(entry, size) for entry, size in entries], indent=2))
        return
    _print_list(entries, places)


def check(
    context: typer.Context,
    runs: list[str] | None = argument("Names or directories of runs; all by default."),
    runs_dir: list[Path] | None = RUNS_DIRS,
) -> None:
    """Check that runs are intact: checksums, schema, and every count against the stored outcomes."""
    from leaderboards import check_run, inventory
    from leaderboards.printable import in_line

    where = runs_dirs(runs_dir or context.obj)
    if runs:
        paths = [find_run(name, where) for name in runs]
    else:
        paths = [entry.path for place in where for entry in inventory(place)]
    damaged = 0
    for path in paths:
        found = check_run(path)
        damaged += bool(found.problems)
        for problem in found.problems:
            echo(in_line(f"{path.name}: damaged: {problem}"))
        if not found.problems:
            echo(in_line(f"{path.name}: {'; '.join(found.notes) or 'whole'}"))
    count = f"{len(paths)} run" if len(paths) == 1 else f"{len(paths)} runs"
    echo(f"{count} checked, {damaged or 'none'} damaged")
    if damaged:
        raise typer.Exit(DAMAGED)


def gc(
    context: typer.Context,
    runs_dir: list[Path] | None = RUNS_DIRS,
    yes: bool = flag("Do not ask for confirmation.", "--yes", "-y"),
) -> None:
    """Remove inactive unfinished runs and leftovers of killed processes, after confirmation."""
    from leaderboards import RecordError, find_garbage, remove
    from leaderboards.printable import in_line

    where = runs_dirs(runs_dir or context.obj)
    garbage = [(place, find_garbage(place)) for place in where]
    found = [one for _, some in garbage for one in some]
    if not found:
        echo(in_line(f"nothing to remove in {_named(where)}"))
        return
    for place, some in garbage:
        if some:
            _print_garbage(some, place)
    if not yes:
        if not sys.stdin.isatty():
            raise RecordError("nothing was removed: no terminal to ask for confirmation; use --yes")
        if not typer.confirm("Remove them? The unfinished runs can then not be resumed."):
            echo("nothing was removed")
            return
    freed = 0
    for one in found:
        if remove(one):
            freed += one.size
        else:
            echo(in_line(f"kept {one.path}: it has changed in the meantime"))
    echo(f"{_bytes(freed)} freed")


app.command("check")(check)
app.command("gc")(gc)


def _named(places: Sequence[Path]) -> str:
    return " or ".join(map(str, places))


def _print_list(entries: list[tuple[RunEntry, int]], places: Sequence[Path]) -> None:
    from rich.table import Table

    from advbench.runtime.console import output
    from leaderboards.printable import in_line

    console = output()
    if not entries:
        console.print(in_line(f"no runs in {_named(places)}: advbench run makes one"))
        return
    table = Table("run", "state", "kind", "defense or model", "data set", "finished", "trust")
    table.add_column("size", justify="right")
    for entry, size in entries:
        values = (entry.kind, entry.subject, entry.dataset, entry.summary, entry.trust)
        table.add_row(
            *map(in_line, (entry.id, entry.state, *(value or "-" for value in values))), _bytes(size)
        )
    console.print(table)
    for entry, _ in entries:
        if entry.problem:
            console.print(in_line(f"{entry.id}: {entry.problem}"), soft_wrap=True)


def _print_garbage(found: list[Garbage], runs_dir: Path) -> None:
    from leaderboards.printable import in_line

    echo(in_line(f"to be removed from {runs_dir}:"))
    for garbage in found:
        place = garbage.path.relative_to(runs_dir)
        echo(in_line(f"  {_bytes(garbage.size):>9}  {garbage.what}  {place}"))
    echo(f"  {_bytes(sum(garbage.size for garbage in found)):>9}  in all")


def _as_json(entry: RunEntry, size: int) -> dict[str, object]:
    return {**vars(entry), "path": str(entry.path), "bytes": size}


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
