"""What ``advbench leaderboard`` compares runs with: a reference table, RobustBench's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from leaderboards import Result


def compared(
    results: Sequence[Result], reference: Path | None, attacks: str | None
) -> tuple[list[Result], list[str]]:
    """Runs with their competitiveness ratios, and lines that say why some have none.

    Args:
        results: finished runs.
        reference: the table; without one, nothing is added.
        attacks: the attacks of the table that the ratios are over, parted by commas.

    Raises:
        RecordError: the table cannot be read, lacks one of ``attacks``, or there is none for them.
    """
    from leaderboards import RecordError

    names = None if attacks is None else attacks.split(",")
    if reference is None:
        if names is not None:
            raise RecordError("--reference-attacks are attacks of a --reference: give that too")
        return list(results), []
    from leaderboards.peers.competitiveness import with_competitiveness
    from leaderboards.peers.reference import read_reference

    return with_competitiveness(results, read_reference(reference), attacks=names)


def published(folder: Path | None, datasets: Sequence[str] | None, *, tables: bool) -> list[Table]:
    """RobustBench's rows as tables of their own.

    Args:
        folder: its ``model_info``, or a folder in it; None for no tables.
        datasets: only these data sets.
        tables: whether tables are what is shown.

    Raises:
        RecordError: the folder cannot be read, or another format is written.
    """
    if folder is None:
        return []
    from leaderboards import RecordError
    from leaderboards.peers.robustbench import find_entries
    from leaderboards.peers.robustbench_tables import to_reference_tables

    if not tables:
        raise RecordError("--robustbench shows tables, beside those of runs: leave out --format and --out")
    return to_reference_tables(find_entries(folder, datasets))


def show(tables: Sequence[Table]) -> None:
    """Print them after those of runs."""
    from advbench.cli.console import output

    for table in tables:
        output().print(table)
