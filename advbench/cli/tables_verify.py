"""Output of a verification."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from advbench.cli.echo import warn
from advbench.runtime.console import output
from advbench.runtime.progress import duration
from advbench.verify import Report
from advbench.verify.memorised import shown
from leaderboards.printable import in_line
from leaderboards.statistics.naming import brief


def tell(line: str) -> None:
    """Report progress of a verification on stderr."""
    warn(line)


def print_report(report: Report, more: str) -> None:
    """Print the whole report, the verdict last; ``more`` is appended to it."""
    console = output()
    if report.comparisons:
        console.print(_table(report))
    for heading, lines in (
        ("checked", [", ".join(report.checked)] if report.checked else []),
        ("sample", [_sample(report)] if report.sample else []),
        ("accuracy", list(shown(report.accuracies))),
        ("not checked", report.not_looked_at),
        ("note", report.notes),
        ("fault", report.faults),
    ):
        for line in lines:
            console.print(in_line(f"{heading}: {line}"), soft_wrap=True)
    console.print(in_line(f"{headline(report)}{f'; {more}' if more else ''}"), soft_wrap=True)


def print_summary(report: Report, more: str) -> None:
    """Print one line, and the faults below it."""
    console = output()
    notes = [note for note in report.notes if note.startswith("weights")]
    console.print(in_line("; ".join([headline(report), *notes, *([more] if more else [])])), soft_wrap=True)
    for line in report.faults:
        console.print(in_line(f"  {line}"), soft_wrap=True)


def print_failure(place: Path, error: Exception) -> None:
    """Report a run that could not be verified."""
    warn(f"failed: {place}: {' '.join(str(error).split())}")


def headline(report: Report) -> str:
    """The verdict in one line."""
    what = "no model was run"
    if report.compared:
        what = f"{report.discordant} of {report.compared:,} outcomes differ"
    return f"{report.verdict}: {report.run} ({report.how}): {what}, {duration(report.seconds)}"


def _table(report: Report) -> Table:
    table = Table(title=in_line(f"{report.run}, {report.how}"), title_justify="left")
    for column in ("stage", "attack", "of points", "compared", "differ", "only in the record", "only here"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for one in report.comparisons:
        probe = "transferred probe " if one.transferred else "probe " if one.probe else ""
        attack = in_line(f"{probe}{brief(one.attack, ('eps', 'loss'))}")
        counts = (one.points, one.compared, one.discordant, len(one.record_only), len(one.here_only))
        table.add_row(str(one.stage), attack, *map(str, counts))
    return table


def _sample(report: Report) -> str:
    sample = report.sample
    if report.how == "retrained":
        return "every stage, attack and point"
    stages = ", ".join(map(str, sample["stages"]))
    return (
        f"stages {stages}; {len(sample['attacks'])} attacks; blocks of {sample['points']} points or more, "
        f"drawn with --seed {sample['seed']}"
    )
