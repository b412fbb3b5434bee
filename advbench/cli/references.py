"""What ``advbench leaderboard`` compares runs with: a reference table, RobustBench's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from leaderboards import Record


def compared(records: Sequence[Record], reference: Path | None, attacks: str | None) -> list[Record]:
    """Records with their competitiveness ratios; why some have none is said on stderr.

    Args:
        records: finished runs.
        reference: the table; without one, nothing is added.
        attacks: the attacks of the table that the ratios are over, parted by commas.

    Raises:
        RecordError: the table cannot be read, lacks one of ``attacks``, or there is none for them.
    """
    from leaderboards import RecordError
    from leaderboards.competitiveness import chosen_attacks, with_competitiveness
    from leaderboards.reference import read_reference

    names = None if attacks is None else attacks.split(",")
    if reference is None:
        if names is not None:
            raise RecordError("--reference-attacks are attacks of a --reference: give that too")
        return list(records)
    table = read_reference(reference)
    chosen = chosen_attacks(table, names)
    found, notes = with_competitiveness(records, table, attacks=chosen)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return found


def published(folder: Path | None, dataset: str | None, *, tables: bool) -> list[Table]:
    """RobustBench's rows as tables of their own.

    Args:
        folder: its ``model_info``, or a folder in it; None for no tables.
        dataset: only this data set.
        tables: whether tables are what is written.

    Raises:
        RecordError: the folder cannot be read, or another format is written.
    """
    from leaderboards import RecordError
    from leaderboards.robustbench import find_entries, to_reference_tables

    if folder is None:
        return []
    if not tables:
        raise RecordError("--robustbench shows tables, beside those of runs: leave out --format")
    return to_reference_tables(find_entries(folder, dataset))
