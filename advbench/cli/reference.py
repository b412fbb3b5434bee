"""``advbench reference``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advbench.cli.completion import attack_lists
from advbench.cli.echo import warn
from advbench.cli.options import (
    ATTACK_TIMEOUT,
    DATA_DIR,
    DATASET,
    DEVICE,
    DRY_RUN,
    MODEL,
    MODEL_ARG,
    RUNS_DIR,
    SELECT,
    SETTINGS,
    TRAIN_SET,
    WORKERS,
    Given,
    option,
    run_options,
    takes,
)

if TYPE_CHECKING:
    from advbench.sweep.reference import ReferencePlan
    from leaderboards.peers.reference import Reference


class ReferenceOptions(Given):
    """The options of ``advbench reference``."""

    attacks: str = option(
        "Attacks, one for each eps: pgd:eps=0.1,pgd:eps=0.2,pgd-l2:eps=0.5.",
        default=...,
        autocompletion=attack_lists,
    )
    out: Path = option("The file to write.", default=...)
    defenses: str = option(
        "Defenses to train against each attack alone, separated by commas.", default="at,trades"
    )
    dataset: str | None = DATASET
    data_dir: str | None = DATA_DIR
    model: str | None = MODEL
    model_arg: list[str] | None = MODEL_ARG
    epochs: int | None = option("Training epochs.", unset="set by the data set", min=1)
    points: int | None = option("Test points.", unset="all", min=1)
    seeds: str = option(
        "Number of seeds (5), a list (0,3,7) or a range (0-4); the best is kept.", default="1"
    )
    device: str | None = DEVICE
    threads: int | None = option("CPU threads of a run.", unset="1", min=1)
    runs_dir: Path = RUNS_DIR
    set_: list[str] | None = SETTINGS
    train_set: list[str] | None = TRAIN_SET
    select: str | None = SELECT
    workers: int | None = WORKERS
    attack_timeout: float | None = ATTACK_TIMEOUT
    dry_run: bool = DRY_RUN


@takes(ReferenceOptions)
def reference(asked: ReferenceOptions) -> None:
    """Build a table for leaderboard --reference: the best accuracy reached against each attack alone.

    Trains every defense against each attack alone, evaluates it on that attack, and keeps the best accuracy
    of any finished run in the store on this data and model, with its source. Repeat the command to finish
    an interrupted sweep.
    """
    from advbench.cli import tables_sweep as sweepshow
    from advbench.cli.sweep import finish
    from advbench.runtime.timeouts import check_timeout
    from advbench.sweep.grid import parse_seeds
    from advbench.sweep.local import default_workers, run_here
    from advbench.sweep.reference import plan_reference
    from leaderboards.peers.reference import check_target

    check_timeout(asked.attack_timeout)
    check_target(asked.out)
    seeds, runs_dir = parse_seeds(asked.seeds, name="--seeds"), asked.runs_dir
    plan = plan_reference(asked.attacks, asked.defenses, seeds, runs_dir, run_options(asked))
    sweep = plan.sweep
    count = asked.workers or default_workers(sweep.to_do, sweep.gpus)
    sweepshow.print_plan(sweep, runs_dir, workers=count, ray=None)
    if asked.dry_run:
        return
    if sweep.to_do:
        timeout = asked.attack_timeout
        with sweepshow.reporter(sweep, count) as tell:
            outcome = run_here(
                sweep.to_do, runs_dir, workers=count, gpus=sweep.gpus, attack_timeout=timeout, tell=tell
            )
        finish(sweep, outcome, runs_dir)
    _write(plan, runs_dir, asked.out)


def _write(plan: ReferencePlan, runs_dir: Path, out: Path) -> None:
    """Write the best finished results; write nothing if an attack has none.

    Raises:
        RunFailedError: no run qualifies for some attack.
    """
    from advbench.runtime.failures import RunFailedError
    from advbench.sweep.reference import build_reference
    from leaderboards import find_records
    from leaderboards.peers.reference import write_reference

    records, problems = find_records(runs_dir, measured=True)
    for problem in problems:
        warn(f"warning: {problem}")
    table, missing = build_reference(plan, records)
    if missing or table is None:
        names = ", ".join(f"{name} eps={eps:g}" for name, eps in missing)
        raise RunFailedError(
            f"{out} is not written: no suitable run with audit verdict ok for {names}; "
            "train other defenses, seeds or longer"
        )
    write_reference(out, table)
    _print(table, out)


def _print(table: Reference, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from advbench.runtime.console import output
    from leaderboards.printable import in_line

    console = output()
    title = Text(in_line(f"Best known on {table.dataset} with {table.model}"))
    shown = Table("attack", title=title, title_justify="left")
    for heading in ("eps", "robust", "points"):
        shown.add_column(heading, justify="right")
    shown.add_column("defense")
    shown.add_column("seed", justify="right")
    shown.add_column("run")
    for term in table.terms:
        source = term.source
        numbers = (f"{term.eps:g}", f"{100 * term.accuracy:.1f}", str(term.n))
        cells = (term.attack, *numbers, source["defense"], str(source["seed"]), source["run"])
        shown.add_row(*(Text(in_line(cell)) for cell in cells))
    console.print(shown)
    console.print(in_line(f"reference  {out}"), soft_wrap=True)
    console.print(in_line(f"compare    advbench leaderboard --reference {out}"), soft_wrap=True)
