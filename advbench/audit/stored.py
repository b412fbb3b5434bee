"""Audits a finished run again, from its saved weights and outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from advbench.audit import audit, held_out, probe
from advbench.audit.probes import POINTS
from advbench.audit.surrogates import surrogate_of
from advbench.config.resolve import bound_attacks, points_of
from advbench.data import Split
from advbench.evaluation.row import MatrixRow
from advbench.runs.saved import Run
from advbench.runtime.device import undisturbed
from attacks_pool import Attack
from leaderboards import Audit, Flag, RecordError, read_outcomes
from leaderboards.audits.following import verdict_of
from leaderboards.audits.proofs import certified

RECORDED = ("nan-logits", "changed-model", "stochastic")
"""Flags that were raised while the run was measured and do not follow from its stored outcomes."""


@undisturbed()
def audit_run(run: Run, *, surrogate: Run | None = None, points: int = POINTS) -> Audit:
    """Probe the final model of a run and audit it with the run's measurements; nothing is written.

    If ``advbench certify`` has proved points of the run, no attack of the record may break one of them.

    Args:
        run: the run, whose weights, data and stored outcomes are read.
        surrogate: the run whose final model transferred points are crafted on; row 0 of ``run`` by default.
        points: how many test points probes attack.

    Raises:
        InputError: weights or data cannot be read, or the surrogate is for other images or classes.
        RecordError: stored outcomes cannot be read or do not fit the record.
    """
    name, model = surrogate_of(surrogate, run.data) if surrogate else row_0(run)
    defense = run.model
    x, y = run.test_data
    bound = [attack for attacks in bound_attacks(run.config).values() for attack in attacks]
    attacks = [(attack, points_of(run.config, attack, len(x))) for attack in bound]
    probes = probe(
        defense.view,
        Split(x, y),
        attacks=bound,
        surrogate=model,
        surrogate_name=name,
        seed=run.config.seed,
        stage=run.record.stages[-1].index,
        points=points,
        stochastic=defense.info.stochastic or None,
        transferred=attacks if defense.info.transfer else (),
        held_out=held_out(run.data),
    )
    found = audit(list(stored_rows(run, attacks)), attacks, stochastic=defense.info.stochastic, probes=probes)
    known = {flag.code for flag in found.flags}
    kept = [flag for flag in run.record.audit.flags if flag.code in RECORDED and flag.code not in known]
    flags: list[Flag] = [*kept, *found.flags]
    whole = found.model_copy(update={"flags": flags, "verdict": verdict_of(flags)})
    return certified(run.path, run.record).added_to(whole)


def row_0(run: Run) -> tuple[str, nn.Module]:
    """The name and the model of the run's first row, the default surrogate."""
    return "row 0", run.stage(run.record.stages[0].index)


def stored_rows(run: Run, attacks: Sequence[tuple[Attack, int]]) -> Iterator[MatrixRow]:
    """The stored rows of R; ``attacks`` are the record's, each with its number of points.

    Raises:
        RecordError: stored outcomes cannot be read or do not fit.
    """
    clean, robust = read_outcomes(run.path / "outcomes.npz")
    stages = [stage.index for stage in run.record.stages]
    expected = (len(stages), len(attacks), max((count for _, count in attacks), default=clean.shape[1]))
    if robust.shape != expected:
        raise RecordError(f"outcomes of run {run.record.id} have shape {robust.shape}, the record {expected}")
    for index, stage in enumerate(stages):
        cells = [cell for cell in run.record.cells if cell.stage == stage]
        yield MatrixRow(stage, np.asarray(clean[index]), np.asarray(robust[index]), cells)
