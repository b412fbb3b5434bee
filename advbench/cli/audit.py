"""``advbench audit``."""

from __future__ import annotations

from pathlib import Path

import typer

from advbench.cli.echo import echo
from advbench.cli.finding import named_run, surrogate_run
from advbench.cli.options import FORMAT, RECORDED_DATA, RUN_PATH, RUNS_DIRS, Format, flag, option


def audit(
    run: Path = RUN_PATH,
    surrogate: Path | None = option(
        "Run whose final model crafts the transferred points.", unset="row 0's model"
    ),
    points: int = option("Number of test points to probe.", default=200, min=1),
    data_dir: str | None = RECORDED_DATA,
    runs_dir: list[Path] | None = RUNS_DIRS,
    trust: bool = flag("Import the model factory that the record names.", "--trust"),
    format: Format = FORMAT,
) -> None:
    """Audit a finished run again for false robustness, on its saved weights; exit 1 unless it is ok."""
    from advbench.audit.stored import audit_run
    from advbench.runs.saved import load_run

    saved = load_run(named_run(run, runs_dir), trust=trust, data_dir=data_dir)
    crafted_on = surrogate_run(surrogate, runs_dir)
    other = load_run(crafted_on, trust=trust, data_dir=data_dir) if crafted_on is not None else None
    found = audit_run(saved, surrogate=other, points=points)
    if format is Format.json:
        echo(found.model_dump_json(indent=1))
    else:
        from advbench.runs.tables import flag_lines, probe_table
        from advbench.runtime.console import output
        from leaderboards.printable import in_line

        console = output()
        if found.probes:
            console.print(probe_table(found))
        for line in flag_lines(found):
            console.print(in_line(line), soft_wrap=True)
    if found.verdict != "ok":
        raise typer.Exit(1)
