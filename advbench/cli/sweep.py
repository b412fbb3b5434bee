"""``advbench sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advbench.cli.options import (
    ATTACK_TIMEOUT,
    DRY_RUN,
    FORMAT,
    MOST_WORKERS,
    RUNS_DIR,
    WORKERS,
    Format,
    Given,
    argument,
    flag,
    option,
    takes,
)

if TYPE_CHECKING:
    from advbench.sweep.outcome import SweepOutcome
    from advbench.sweep.plan import SweepPlan

UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}


class SweepOptions(Given):
    """The options of ``advbench sweep``."""

    grid: Path = argument("YAML or JSON: defenses, sequences, datasets, models, seeds.", default=...)
    runs_dir: Path = RUNS_DIR
    workers: int | None = WORKERS
    ray: str | None = option("Use a Ray cluster: auto, local or host:port.", unset="this machine")
    cpus: float = option("CPUs for each process of a cell, on Ray.", default=1.0, min=0.0)
    gpus: float = option(
        "GPUs for each cell, on Ray; above one, a process for each.",
        "--gpus-per-run",
        "--gpus",
        default=0.0,
        min=0.0,
    )
    processes: int | None = option(
        "Processes that train each cell together, on Ray.",
        "--processes-per-run",
        unset="one, or one for each GPU",
        min=1,
        max=MOST_WORKERS,
    )
    memory: str | None = option("Memory for each process, on Ray: 500MB or 4GiB.", unset="no limit")
    attack_timeout: float | None = ATTACK_TIMEOUT
    trust: bool = flag("Import model factories (package.module:factory) that the grid names.", "--trust")
    dry_run: bool = DRY_RUN
    format: Format = FORMAT


@takes(SweepOptions)
def sweep(options: SweepOptions) -> None:
    """Run every cell of a grid of defenses, sequences, data sets, models and seeds.

    Prints the plan first, skips finished cells and resumes interrupted ones; repeat the command to do the
    rest. A failed cell does not stop the others and is listed at the end. --format json prints the records
    of all finished cells as a list, or with --dry-run the cells.
    """
    from advbench.cli import tables_sweep as sweepshow
    from advbench.sweep.grid import read_grid
    from advbench.sweep.local import default_workers
    from advbench.sweep.outcome import SweepOutcome
    from advbench.sweep.plan import make_plan

    _check(options)
    cells, on_ray = read_grid(options.grid, trust=options.trust), options.ray is not None
    processes = _processes(options)
    plan = make_plan(cells, options.runs_dir, elsewhere=on_ray, gpus=options.gpus, processes=processes)
    workers = None if on_ray else options.workers or default_workers(plan.to_do, plan.gpus)
    as_json = options.format is Format.json
    if not as_json:
        sweepshow.print_plan(plan, options.runs_dir, workers=workers, ray=options.ray)
    elif options.dry_run:
        sweepshow.write_plan(plan)
    if not options.dry_run and (plan.to_do or as_json):
        outcome = _run(plan, options, workers) if plan.to_do else SweepOutcome()
        finish(plan, outcome, options.runs_dir, as_json=as_json)


def _check(options: SweepOptions) -> None:
    """Refuse options that contradict each other or cannot be used, before the grid is read."""
    from advbench.runtime.timeouts import check_timeout
    from attacks_pool.errors import InputError

    several = _processes(options) > 1
    if options.ray is None and several:
        raise InputError(
            "several processes for each run need --ray: add --ray local for this machine, or start one run "
            "with torchrun -m advbench run"
        )
    if options.ray is None and (options.cpus != 1.0 or options.gpus or options.memory is not None):
        raise InputError("--cpus, --gpus-per-run and --memory need --ray: on this machine use --workers")
    if options.ray is not None and options.workers is not None:
        raise InputError("--workers is for this machine: with --ray, use --cpus and --gpus-per-run")
    check_timeout(options.attack_timeout)
    _bytes(options.memory)
    if options.ray is not None:
        from advbench.runtime.ray_client import check_address, check_train, load_ray

        check_address(options.ray)
        (check_train if several else load_ray)()


def _processes(options: SweepOptions) -> int:
    """The processes that train each cell.

    Raises:
        InputError: its GPUs are not one for each process.
    """
    from attacks_pool.errors import InputError

    gpus, asked = options.gpus, options.processes
    if gpus > 1 and not gpus.is_integer():
        raise InputError(f"--gpus-per-run {gpus:g} must be a whole number above 1: write {round(gpus)}")
    if asked is not None and gpus and asked != max(gpus, 1):
        raise InputError(
            f"--processes-per-run {asked} and --gpus-per-run {gpus:g} contradict each other: each process "
            f"takes one GPU, so leave out --processes-per-run or write --gpus-per-run {asked}"
        )
    return asked or max(int(gpus), 1)


def _run(plan: SweepPlan, options: SweepOptions, workers: int | None) -> SweepOutcome:
    """Run the cells that are left, in ``workers`` processes or on the cluster."""
    from advbench.cli import tables_sweep as sweepshow
    from advbench.sweep.local import run_here

    timeout, where = options.attack_timeout, options.runs_dir
    with sweepshow.reporter(plan, workers or 0) as tell:
        if options.ray is None:
            return run_here(
                plan.to_do, where, workers=workers or 1, gpus=plan.gpus, attack_timeout=timeout, tell=tell
            )
        from advbench.sweep.cluster import Resources, run_on_ray

        need = Resources(options.cpus, options.gpus, _bytes(options.memory), plan.processes)
        return run_on_ray(
            plan.to_do, where, address=options.ray, resources=need, attack_timeout=timeout, tell=tell
        )


def finish(plan: SweepPlan, outcome: SweepOutcome, runs_dir: Path, *, as_json: bool = False) -> None:
    """Print the outcome of the cells, or the records of the finished ones, and set the exit code."""
    from advbench.cli import tables_sweep as sweepshow
    from advbench.runtime.interrupts import Interrupted

    sweepshow.print_failures(plan, outcome)
    if as_json:
        sweepshow.write_records(plan, outcome, runs_dir)
    else:
        sweepshow.print_outcome(plan, outcome, runs_dir)
    if outcome.signal is not None:
        stop = Interrupted(128 + outcome.signal)
        stop.how = "repeat the command to do the rest"
        raise stop
    if outcome.failed:
        raise typer.Exit(1)


def _bytes(text: str | None) -> int | None:
    """Parse ``500MB``, ``4GiB`` or ``1e9`` as a number of bytes."""
    from attacks_pool.errors import InputError

    if text is None:
        return None
    plain = text.strip().upper().removesuffix("B")
    number = plain.rstrip("KMGI")
    try:
        size = float(number) * UNITS[plain[len(number) :]]
        if not 0 < size < 2**60:
            raise ValueError
    except (ValueError, KeyError):
        raise InputError(f"--memory {text!r} cannot be read: write 500MB or 4GiB") from None
    return int(size)
