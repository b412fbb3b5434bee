"""Derives flags from measurements, and the verdict from flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from advbench.audit.memorisation import CODE as MEMORISED
from advbench.audit.memorisation import WORSE
from advbench.audit.probes import Probes
from advbench.audit.slope import LEAST_SHARE, Gradients
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.stochastic import CRAFTED_BY
from attacks_pool import Attack
from leaderboards import Audit, Flag
from leaderboards.audits.comparisons import OVERCLAIMED, Probed, compare, made_again, weak_suite
from leaderboards.audits.following import (
    UNTAUGHT,
    by_loss,
    count_networks,
    found_on,
    from_outcomes,
    verdict_of,
)
from leaderboards.audits.proofs import BELOW

IN_A_RUN = (
    "nan-logits",
    "invalid-examples",
    "changed-model",
    "stochastic",
    "single-step-beats-iterative",
    "black-box-beats-white-box",
    "weak-suite",
)
BY_PROBES = (
    "probabilities-not-logits",
    "batch-dependent",
    "zero-gradient",
    "accuracy-rises-with-eps",
    "unbounded-attack-fails",
    "cliff",
    "false-gradient",
    "planted-not-found",
    WORSE,
    *UNTAUGHT,
)
BY_TRANSFER = ("transfer-beats-white-box",)
BY_HELD_OUT = (MEMORISED,)
CHECKS = (*IN_A_RUN, *BY_PROBES, *BY_TRANSFER, *BY_HELD_OUT, BELOW)


def audit(
    rows: Sequence[MatrixRow],
    attacks: Sequence[tuple[Attack, int]],
    *,
    stochastic: bool = False,
    probes: Probes | None = None,
) -> Audit:
    """The audit: ``invalid`` for NaN logits, ``suspect`` for flags that affect the verdict, otherwise ``ok``.

    ``weak-suite`` affects the verdict only if all probes together leave 25 points less than all of the run's
    own attacks, so that the run overclaims heavily. For a model that has learned nothing, attacks are not
    compared, since its failure is not masking.

    Comparisons use the final row and the probes, and flag only a difference of at least 5 points with a
    paired p below 0.01 (exact McNemar test on the points that both attacks tried). Attacks on different
    networks of a target-aware defense are not compared. A stochastic defense stays ``suspect`` although many
    draws judge it: its numbers hold only for these draws.

    Args:
        rows: the rows of R, the last one for the audited model; may be empty if there are probes.
        attacks: the attacks of each row, with the number of points of each.
        stochastic: whether the defense is declared as randomised.
        probes: further measurements on the final model.
    """
    labels = {} if probes is None else probes.networks
    measured = [
        Probed(attack, robust, points, attack.info.access, network=labels.get(attack.text))
        for row in rows[-1:]
        for (attack, points), robust in zip(attacks, row.robust, strict=True)
    ]
    flags = list(_faults(rows))
    checks: list[str] = list(IN_A_RUN)
    if probes is not None:
        measured += probes.measured
        flags += [*probes.flags, *_faults_of_probes(probes)]
        checks += [*BY_PROBES, *(BY_TRANSFER if probes.transferred else ())]
        checks += BY_HELD_OUT if probes.held_out else ()
    if probes is None or probes.learned:
        flags += from_outcomes(measured, 0 if probes is None else int(probes.clean.sum()))
    if probes is not None and probes.learned:
        flags += _on_each_network(probes, measured)
    flags += _chance(rows, probes, stochastic)
    return Audit.model_validate(
        {
            "verdict": verdict_of(flags),
            "flags": flags,
            "checks": checks,
            "probes": [] if probes is None else probes.cells,
            "surrogate": None if probes is None else probes.surrogate,
            "networks": labels if any(labels.values()) else {},
        }
    )


def _faults(rows: Sequence[MatrixRow]) -> Iterator[Flag]:
    for row in rows:
        if row.not_a_number:
            message = f"{row.not_a_number} predictions after stage {row.stage} are not numbers"
            yield Flag.of("nan-logits", message, stage=row.stage, count=row.not_a_number)
        for cell in row.cells:
            if cell.invalid:
                message = f"{cell.invalid} points of {cell.attack} exceed its bound after stage {row.stage}"
                where = {"stage": row.stage, "attack": cell.attack}
                yield Flag.of("invalid-examples", message, **where, count=cell.invalid)
        for attack, changes in row.changed.items():
            message = f"{attack} changed the model that it attacked: {changes[0]}; the model was restored"
            yield Flag.of("changed-model", message, stage=row.stage, attack=attack, changes=changes[:10])


def _faults_of_probes(probes: Probes) -> Iterator[Flag]:
    """The same faults, each reported once, since many attacks on one model meet the same fault."""
    broken = sum(row.not_a_number for row in probes.rows)
    if broken:
        message = f"{broken} predictions on {probes.points} points, clean and under probes, are not numbers"
        yield Flag.of("nan-logits", message, count=broken, where="probes")
    invalid = {cell.attack: cell.invalid for cell in probes.cells if cell.invalid}
    if invalid:
        message = f"{sum(invalid.values())} points crafted by probes exceed their bound"
        yield Flag.of("invalid-examples", message, invalid=invalid)
    changed = {attack: changes for row in probes.rows for attack, changes in row.changed.items()}
    if changed:
        attack, changes = next(iter(changed.items()))
        message = f"{len(changed)} probe attacks changed the model: {changes[0]}; the model was restored"
        yield Flag.of("changed-model", message, attack=attack, attacks=len(changed), changes=changes[:10])


def _chance(rows: Sequence[MatrixRow], probes: Probes | None, stochastic: bool) -> Iterator[Flag]:
    """``stochastic``, with the result that a single draw gives for the last row."""
    found = probes.stochastic if probes is not None else any(row.draws > 1 for row in rows)
    if not (stochastic or found):
        return
    judged = [*rows[-1:], *(probes.rows if probes is not None else [])]
    draws = max((row.draws for row in judged), default=1)
    evidence: dict[str, object] = {"declared": stochastic, "draws": draws}
    if draws > 1:
        row = next(row for row in judged if row.draws > 1)
        by_mean = {cell.attack: cell.robust for cell in row.cells}
        evidence |= {"crafted_by": CRAFTED_BY, "right_by_mean": by_mean, "right_by_one_draw": row.single}
        how = f"judged by the mean of {draws} draws, attacked by that of {CRAFTED_BY} others"
        message = f"predictions are random: {how}"
    else:
        message = "predictions are random: single draws were judged, so these numbers are not comparable"
    yield Flag(code="stochastic", message=message, evidence=evidence)


def _on_each_network(probes: Probes, measured: Sequence[Probed]) -> Iterator[Flag]:
    """``zero-gradient``, and attacks that do better when repeated, for each network of the run."""
    for network in dict.fromkeys(one.network for one in measured):
        here = [one for one in measured if one.network == network]
        for flag in (*_zero_gradient(probes.gradients[network], here), *made_again(here)):
            yield found_on(flag, network, count_networks(measured))


def _zero_gradient(found: Gradients, measured: Sequence[Probed]) -> Iterator[Flag]:
    """``zero-gradient``: the margin has no gradient, or the CE has none and the run's attacks suffer from it.

    High confidence never explains a missing gradient of the margin, but the CE of an honest, very confident
    model underflows. So a missing CE gradient is flagged only if a search with the margin finds points that
    the CE search of the same budget misses, and leaves far less than the run's own attacks of that norm.
    """
    shares = {"points": found.points, "zero_by_ce": found.ce, "zero_by_margin": found.margin}
    if found.points and found.share("margin") >= LEAST_SHARE:
        message = f"{found.margin} of {found.points} points have no input gradient, whatever the loss"
        yield Flag.of("zero-gradient", message, **shares)
    elif found.points and found.share("ce") >= LEAST_SHARE:
        searches = by_loss(measured)
        for one in searches["ce"]:
            for other in searches["margin"]:
                if one.attack.eps != other.attack.eps or not _beats_own(other, measured):
                    continue
                if flag := compare("zero-gradient", other, one, than="{}, whose loss is flat"):
                    lacking = f"{found.ce} of {found.points} points have no gradient of the CE"
                    message, evidence = f"{lacking}: {flag.message}", {**shares, **flag.evidence}
                    yield Flag(code="zero-gradient", message=message, evidence=evidence)
                    return


def _beats_own(probe: Probed, measured: Sequence[Probed]) -> bool:
    """Whether a probe leaves far less than all of the run's own attacks of its norm, if there are any."""
    norm = probe.attack.info.norm
    own = [one for one in measured if not one.probe and one.attack.info.norm == norm]
    return not own or any(OVERCLAIMED in flag.evidence for flag in weak_suite([*own, probe]))
