"""``advbench reference``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli.echo import warn
from advbench.cli.options import (
    AttackTimeout,
    DataDir,
    Dataset,
    Device,
    DryRun,
    Model,
    RunsDir,
    Select,
    TrainSet,
    Workers,
)
from advbench.cli.run import pairs

if TYPE_CHECKING:
    from advbench.sweep.reference import ReferencePlan
    from leaderboards.peers.reference import Reference


def reference(
    attacks: Annotated[
        str, typer.Option(help="Attacks, one for each eps: pgd:eps=0.1,pgd:eps=0.2,pgd-l2:eps=0.5.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    defenses: Annotated[
        str, typer.Option(help="Defenses to train against each attack alone, separated by commas.")
    ] = "at,trades",
    dataset: Dataset = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs.", show_default="set by the data set")
    ] = None,
    points: Annotated[int | None, typer.Option(min=1, help="Test points.", show_default="all")] = None,
    seeds: Annotated[
        str, typer.Option(help="Number of seeds (5), a list (0,3,7) or a range (0-4); the best is kept.")
    ] = "1",
    device: Device = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a run.", show_default="1")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a parameter of the defenses or the training plan: key=value; repeatable.",
            show_default="the defenses' and the data set's defaults",
        ),
    ] = None,
    train_set: TrainSet = None,
    select: Select = None,
    workers: Workers = None,
    attack_timeout: AttackTimeout = None,
    dry_run: DryRun = False,
) -> None:
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

    check_timeout(attack_timeout)
    check_target(out)
    given: dict[str, Any] = {
        "dataset": dataset,
        "data_dir": data_dir,
        "model": model,
        "epochs": epochs,
        "points": points,
        "device": device,
        "threads": threads,
        "select": select,
        "set": pairs("set", set_),
        "train_set": pairs("train-set", train_set),
    }
    options = {key: value for key, value in given.items() if value is not None}
    plan = plan_reference(attacks, defenses, parse_seeds(seeds, name="--seeds"), runs_dir, options)
    sweep = plan.sweep
    count = workers or default_workers(sweep.to_do, sweep.gpus)
    sweepshow.print_plan(sweep, runs_dir, workers=count, ray=None)
    if dry_run:
        return
    if sweep.to_do:
        with sweepshow.reporter(sweep, count) as tell:
            outcome = run_here(
                sweep.to_do,
                runs_dir,
                workers=count,
                gpus=sweep.gpus,
                attack_timeout=attack_timeout,
                tell=tell,
            )
        finish(sweep, outcome, runs_dir)
    _write(plan, runs_dir, out)


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
    shown = Table(
        title=Text(in_line(f"Best known on {table.dataset} with {table.model}")), title_justify="left"
    )
    for heading in ("attack", "eps", "robust", "points", "defense", "seed", "run"):
        shown.add_column(
            heading, justify="right" if heading in ("eps", "robust", "points", "seed") else "left"
        )
    for term in table.terms:
        source = term.source
        numbers = (f"{term.eps:g}", f"{100 * term.accuracy:.1f}", str(term.n))
        cells = (term.attack, *numbers, source["defense"], str(source["seed"]), source["run"])
        shown.add_row(*(Text(in_line(cell)) for cell in cells))
    console.print(shown)
    console.print(in_line(f"reference  {out}"), soft_wrap=True)
    console.print(in_line(f"compare    advbench leaderboard --reference {out}"), soft_wrap=True)
