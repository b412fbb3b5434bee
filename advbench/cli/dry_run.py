"""``advbench run --dry-run``: check the options, say what a run would do, and write nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advbench.benchmark.prepare import Prepared, prepare
from advbench.cli.echo import echo, warn
from advbench.cli.options import Format
from advbench.config.resolve import bound_attacks, points_of
from advbench.runtime.console import output
from advbench.runtime.pace import LONG
from advbench.runtime.progress import duration
from advbench.sweep.estimate import Speed, measured_speed, parts_of, recorded_speed, sizes_of, work_of
from advbench.sweep.footprint import disk_of, memory_of
from advbench.sweep.plan import states_of
from leaderboards import find_records
from leaderboards.printable import in_line
from leaderboards.records.inventory import inventory


def show_plan(
    runs: Sequence[dict[str, Any]],
    runs_dir: Path,
    sample_seed: int,
    surrogate: Path | None,
    format: Format,
    *,
    several: bool,
) -> None:
    """Print what each run would train and measure, its identity, and what it would take: time, memory, disk.

    Args:
        runs: the options of each run; only their seeds differ.
        runs_dir: where to look for existing runs; the directory need not exist.
        sample_seed: the seed with which ``sample:k`` is drawn.
        surrogate: the run whose model crafts the transferred points.
        format: table, or JSON: one object, or a list if ``several`` is set.
        several: whether ``--seeds`` was given.

    Raises:
        InputError, RecordError: the run is not possible.
    """
    prepared: list[Prepared] = []
    for options in runs:
        data = prepared[0].data if prepared else None
        prepared.append(
            prepare(options, sample_seed=sample_seed, surrogate=surrogate, data=data, runs_dir=runs_dir)
        )
    plans = _plans(prepared, runs_dir)
    _warn(plans[0]["estimate"])
    if format is Format.json:
        echo(json.dumps(plans if several else plans[0], indent=1))
        return
    console = output()
    for key, value in plans[0].items():
        if key not in ("identity", "state", "seed"):
            console.print(in_line(f"{key.replace('_', ' '):<18} {_shown(key, value)}"), soft_wrap=True)
    for plan in plans:
        seed = f"seed {plan['seed']}"
        line = f"{seed:<18} identity {plan['identity'][:16]}, {plan['state']} in {runs_dir}"
        console.print(in_line(line), soft_wrap=True)
    if len(plans) > 1:
        console.print(f"{'all seeds':<18} {_shown('estimate', _total(plans))}", soft_wrap=True)
    console.print("nothing was trained or written: leave out --dry-run to start")


def _plans(prepared: Sequence[Prepared], runs_dir: Path) -> list[dict[str, Any]]:
    """The plan of each run as plain values."""
    first = prepared[0]
    config, data = first.config, first.data
    exists = runs_dir.is_dir()
    states = states_of(inventory(runs_dir)) if exists else {}
    records = find_records(runs_dir)[0] if exists else []
    speed = recorded_speed(records, config, data.fingerprint) or measured_speed(config, data, first.device)
    held = {"memory": memory_of(config, data, first.device), "disk": disk_of(config, data)}
    return [
        {
            **_resolved(one),
            "passes": {"forwards": work.forwards, "backwards": work.backwards},
            "estimate": _estimate(one, speed),
            **held,
            "seed": one.config.seed,
            "identity": one.identity,
            "state": states.get(one.identity, "new"),
        }
        for one in prepared
        for work in [work_of(one.config, sizes_of(data))]
    ]


def _estimate(one: Prepared, speed: Speed) -> dict[str, Any]:
    """The seconds of a run and of its parts."""
    parts = parts_of(one.config, sizes_of(one.data))
    found = {
        "pretraining": round(speed.seconds(parts.pretraining), 1),
        "stages": [round(speed.seconds(stage), 1) for stage in parts.stages],
        "evaluation": round(speed.seconds(parts.evaluation), 1),
    }
    whole = speed.seconds(work_of(one.config, sizes_of(one.data)))
    return {"seconds": round(whole, 1), "source": speed.source, **found}


def _warn(estimate: dict[str, Any]) -> None:
    """Warn on stderr of each part of the training that takes more than an hour."""
    names = ["pretraining", *(f"stage {number}" for number in range(1, len(estimate["stages"]) + 1))]
    for name, seconds in zip(names, [estimate["pretraining"], *estimate["stages"]], strict=True):
        if seconds > LONG:
            warn(f"warning: {name} takes about {duration(seconds)}")


def _resolved(one: Prepared) -> dict[str, Any]:
    """The settings that a run's options resolve to."""
    config = one.config
    every = [attack for role in bound_attacks(config).values() for attack in role]
    return {
        "defense": config.defense,
        "parameters": config.params,
        "regime": config.regime,
        "sequence": config.sequence,
        "training": config.training,
        "unseen": config.unseen,
        "eval": config.eval,
        "dataset": one.data.name,
        "model": config.network,
        **({} if config.weights is None else {"weights": config.weights.name}),
        "pretrain_epochs": config.pretrain.epochs,
        "stages": config.stages,
        "stage_epochs": config.stage_plan.epochs,
        "training_points": len(one.data.train),
        "test_points": {attack.text: points_of(config, attack, len(one.data.test)) for attack in every},
        "device": str(one.device),
        "threads": one.threads,
        **({} if one.processes == 1 else {"processes": one.processes}),
    }


def _total(plans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    estimates = [plan["estimate"] for plan in plans]
    return {"source": estimates[0]["source"], "seconds": sum(one["seconds"] for one in estimates)}


def _shown(key: str, value: Any) -> str:
    """A value of `_resolved` or an estimate as readable text."""
    if key == "estimate":
        parts = f" ({_parts(value)})" if "stages" in value else ""
        return f"about {duration(value['seconds'])}{parts}, {value['source']}"
    if key == "memory":
        named = ", ".join(f"{name} {_bytes(size)}" for name, size in value.items() if name != "total")
        return f"about {_bytes(value['total'])} beside Python and torch ({named})"
    if key == "disk":
        return f"about {_bytes(value['finished'])}, up to {_bytes(value['most'])} while it goes on"
    if key == "passes":
        return f"at most {value['forwards']:,} images forward and {value['backwards']:,} backward"
    if key == "test_points" and len(set(value.values())) == 1:
        return str(next(iter(value.values())))
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value)


def _parts(estimate: dict[str, Any]) -> str:
    """The time of each part: ``pretraining 2m, stages 5m + 7m, evaluation 1m``."""
    stages = " + ".join(map(duration, estimate["stages"]))
    before, after = duration(estimate["pretraining"]), duration(estimate["evaluation"])
    return f"pretraining {before}, stages {stages}, evaluation {after}"


def _bytes(count: float) -> str:
    """A number of bytes with a unit: ``1.5 GB``, ``20 MB``."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5 or unit == "GB":
            break
    return f"{count:.2g} {unit}" if count < 99.5 else f"{count:.0f} {unit}"
