"""``advbench sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advbench.cli.options import (
    ATTACK_TIMEOUT,
    DRY_RUN,
    FORMAT,
    RUNS_DIR,
    WORKERS,
    Format,
    argument,
    flag,
    option,
)

if TYPE_CHECKING:
    from advbench.sweep.outcome import SweepOutcome
    from advbench.sweep.plan import SweepPlan

UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}


def sweep(
    grid: Path = argument("YAML or JSON: defenses, sequences, datasets, models, seeds.", default=...),
    runs_dir: Path = RUNS_DIR,
    workers: int | None = WORKERS,
    ray: str | None = option("Use a Ray cluster: auto, local or host:port.", unset="this machine"),
    cpus: float = option("CPUs per cell, on Ray.", default=1.0, min=0.0),
    gpus: float = option("GPUs per cell, on Ray.", default=0.0, min=0.0),
    memory: str | None = option("Memory per cell, on Ray: 500MB or 4GiB.", unset="no limit"),
    attack_timeout: float | None = ATTACK_TIMEOUT,
    trust: bool = flag("Import model factories (package.module:factory) that the grid names.", "--trust"),
    dry_run: bool = DRY_RUN,
    format: Format = FORMAT,
) -> None:
    """Run every cell of a grid of defenses, sequences, data sets, models and seeds.

    Prints the plan first, skips finished cells and resumes interrupted ones; repeat the command to do the
    rest. A failed cell does not stop the others and is listed at the end. --format json prints the records
    of all finished cells as a list, or with --dry-run the cells.
    """
    from advbench.cli import tables_sweep as sweepshow
    from advbench.runtime.timeouts import check_timeout
    from advbench.sweep.grid import read_grid
    from advbench.sweep.local import default_workers, run_here
    from advbench.sweep.outcome import SweepOutcome
    from advbench.sweep.plan import make_plan
    from attacks_pool.errors import InputError

    if ray is None and (cpus != 1.0 or gpus or memory is not None):
        raise InputError("--cpus, --gpus and --memory need --ray: on this machine use --workers")
    if ray is not None and workers is not None:
        raise InputError("--workers is for this machine: with --ray, use --cpus and --gpus")
    check_timeout(attack_timeout)
    size = None if memory is None else _bytes(memory)
    if ray is not None:
        from advbench.runtime.ray_client import check_address, load_ray
        from advbench.sweep.cluster import Resources, run_on_ray

        check_address(ray)
        load_ray()
    plan = make_plan(read_grid(grid, trust=trust), runs_dir, elsewhere=ray is not None, gpus=gpus)
    cards = 0 if ray is not None else plan.gpus
    count = workers or default_workers(plan.to_do, cards)
    as_json = format is Format.json
    if not as_json:
        sweepshow.print_plan(plan, runs_dir, workers=None if ray is not None else count, ray=ray)
    if as_json and dry_run:
        sweepshow.write_plan(plan)
    if dry_run:
        return
    if not plan.to_do:
        if as_json:
            sweepshow.write_records(plan, SweepOutcome(), runs_dir)
        return
    with sweepshow.reporter(plan, 0 if ray is not None else count) as tell:
        if ray is not None:
            outcome = run_on_ray(
                plan.to_do,
                runs_dir,
                address=ray,
                resources=Resources(cpus, gpus, size),
                attack_timeout=attack_timeout,
                tell=tell,
            )
        else:
            outcome = run_here(
                plan.to_do, runs_dir, workers=count, gpus=cards, attack_timeout=attack_timeout, tell=tell
            )
    finish(plan, outcome, runs_dir, as_json=as_json)


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


def _bytes(text: str) -> int:
    """Parse ``500MB``, ``4GiB`` or ``1e9`` as a number of bytes."""
    from attacks_pool.errors import InputError

    plain = text.strip().upper().removesuffix("B")
    number = plain.rstrip("KMGI")
    try:
        size = float(number) * UNITS[plain[len(number) :]]
        if not 0 < size < 2**60:
            raise ValueError
    except (ValueError, KeyError):
        raise InputError(f"--memory {text!r} cannot be read: write 500MB or 4GiB") from None
    return int(size)
