"""What survives the worst of several attacks, point by point, as a small table."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from leaderboards import Record
from leaderboards.errors import RecordError
from leaderboards.records.store import read_outcomes
from leaderboards.statistics.threats import worst_cases

OUTCOMES = "outcomes.npz"


def threat_table(record: Record, directory: Path) -> Table | None:
    """The worst case by norm, family and access after the last stage; None without stored outcomes."""
    try:
        _, robust = read_outcomes(directory / OUTCOMES)
    except RecordError:
        return None
    last = record.stages[-1].index if record.stages else 0
    counts = {cell.attack: cell.n for cell in record.cells if cell.stage == last}
    if robust.shape[1] != len(record.attacks) or any(entry.text not in counts for entry in record.attacks):
        return None
    cases = worst_cases(record.attacks, robust[-1], [counts[entry.text] for entry in record.attacks])
    if not cases:
        return None
    after = " after the last stage" if record.stages and record.stages[-1].index else ""
    table = Table(title=f"Worst case{after}, in %", title_justify="left")
    for column in ("by", "group", "attacks", "points", "survive all"):
        table.add_column(column, justify="left" if column in ("by", "group") else "right")
    for case in cases:
        share = f"{100 * case.accuracy:.1f}"
        table.add_row(case.grouping, case.group, str(len(case.attacks)), str(case.n), share)
    return table
