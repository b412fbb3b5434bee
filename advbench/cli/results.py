"""Output of finished runs: a headline and tables, or the records as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from advbench.cli.echo import echo, warn
from advbench.cli.shading import has_shades, shaded
from advbench.runs.saved import Run
from advbench.runs.tables import (
    abstained_text,
    audit_text,
    bracket_table,
    class_table,
    headline,
    matrix_table,
    metrics_text,
    report_tables,
    report_text,
    threat_table,
    transfer_table,
)
from advbench.runtime.console import COMPACT, in_blocks, output
from leaderboards import Record, result_of, rows, to_table, trust_of
from leaderboards.audits.proofs import certified
from leaderboards.printable import in_line
from leaderboards.records.trust import Trust

MANY_CLASSES = 20
"""From this number of classes on, the table by class is shown only with ``--per-class``."""
TRUST: Mapping[Trust, str] = {
    "retrained": "retrained: trained again from its record, with the same outcomes",
    "re-evaluated": "re-evaluated: its weights were attacked again, with the same outcomes; "
    "their training was not checked",
    "self-reported": "self-reported: check it with advbench verify",
    "refuted": "refuted: advbench verify found other numbers",
}


def print_run(run: Run, *, per_class: bool | None = None) -> None:
    """Print a finished run: headline, matrix, metrics and audit, then details and the run's directory.

    Args:
        run: the run.
        per_class: show the table by class; None shows it below :data:`MANY_CLASSES` classes.
    """
    proofs = certified(run.path, run.record)
    for line in proofs.problems:
        warn(in_line(f"not shown: {line}"))
    console, record = output(), proofs.judged(run.record)
    console.print(Text(headline(record), style="bold"), soft_wrap=True)
    for table in in_blocks(matrix_table(record), console.width):
        console.print(shaded(table) if has_shades(console) else table)
    console.print(metrics_text(record), soft_wrap=True)
    if text := report_text(record):
        console.print(f"The defense reports about its training:\n{text}", soft_wrap=True)
    for reported in report_tables(record):
        for table in in_blocks(reported, console.width):
            console.print(table)
    console.print(audit_text(record), soft_wrap=True)
    if (transferred := transfer_table(record)) is not None:
        console.print(transferred)
    if (threats := threat_table(record, run.path)) is not None:
        console.print(threats)
    if proofs.brackets:
        console.print(bracket_table(proofs.brackets))
    if len(record.per_class) < MANY_CLASSES if per_class is None else per_class:
        for table in in_blocks(class_table(record), console.width):
            console.print(table)
    if record.config.get("abstain"):
        console.print("abstains   by its last output: right on attacked points, wrong on clean ones")
        if shares := abstained_text(record):
            console.print(f"abstained  {shares}", soft_wrap=True)
    console.print(f"trust      {TRUST[trust_of(run.path)]}", soft_wrap=True)
    console.print(in_line(f"run        {run.path}"), soft_wrap=True)
    console.print(in_line(f"show again advbench show {shlex.quote(str(run.path))}"), soft_wrap=True)


def print_seeds(runs: Sequence[Run], runs_dir: Path) -> None:
    """Print mean and standard deviation over the seeds just run."""
    console = output()
    results = [result_of(run.record, run.path) for run in runs]
    for table in to_table(rows(results, intervals=["average"]), compact=console.width < COMPACT):
        console.print(table)
    command = f"advbench leaderboard --runs-dir {shlex.quote(str(runs_dir))}"
    console.print(in_line(f"all runs   {command}"), soft_wrap=True)


def write_json(records: Sequence[Record], *, several: bool) -> None:
    """Print one record, or a list of them, as JSON, with the content of ``record.json``.

    Args:
        records: the records of finished runs.
        several: write a list, even for one record.
    """
    trees = [record.dump() for record in records]
    echo(json.dumps(trees if several else trees[0], indent=1, allow_nan=False))
