"""The marks that a verification leaves beside a record, and what is enough for each."""

from __future__ import annotations

import advbench
from advbench.opening import now
from advbench.verifying.report import Report
from leaderboards import (
    Refuted,
    Verified,
    digests_of,
    remove_refuted,
    remove_verified,
    trust_of,
    write_refuted,
    write_verified,
)

MOST_FAULTS, LONGEST = 1000, 2000
"""Lines that a mark keeps, and letters of each: they repeat what the record holds, which may be anything."""


def mark(report: Report) -> str:
    """Leave the mark of what a verification found; returns a line that says what was done.

    ``re-evaluated`` needs every stage and every attack, each on at least one whole block of test points, and
    the audit repeated. ``retrained`` needs an exact repetition, and says more: no later re-evaluation
    replaces it. A partial check confirms the run but does not mark it. A run that is refuted loses its mark
    and is marked as refuted, so that leaderboards do not rank it.

    Raises:
        RecordError: the mark cannot be written or removed.
    """
    if not report.confirmed:
        return _refute(report)
    if not report.complete and report.how == "retrained":
        return "not marked as retrained: the repetition was no exact one"
    if not report.complete:
        return "not marked as re-evaluated: that needs every stage and every attack"
    before = trust_of(report.path)
    remove_refuted(report.path)
    if before == "retrained" and report.how != "retrained":
        return "its mark as retrained stays, which says more than re-evaluated"
    write_verified(
        report.path,
        Verified(
            run=report.run,
            how="retrained" if report.how == "retrained" else "re-evaluated",
            when=now(),
            files=digests_of(report.path),
            sample={
                **report.sample,
                "compared": report.compared,
                "discordant": report.discordant,
                "not_looked_at": report.not_looked_at,
            },
            machine=report.machine,
            version=advbench.__version__,
        ),
    )
    return f"marked as {report.how}"


def _refute(report: Report) -> str:
    before = trust_of(report.path)
    removed = remove_verified(report.path)
    write_refuted(
        report.path,
        Refuted(
            run=report.run,
            when=now(),
            files=digests_of(report.path),
            faults=[_cut(fault) for fault in report.faults[:MOST_FAULTS]],
            version=advbench.__version__,
        ),
    )
    lost = before if before in ("retrained", "re-evaluated") else "verified"
    return (
        f"its mark as {lost} was taken away, and it is marked as refuted" if removed else "marked as refuted"
    )


def _cut(fault: str) -> str:
    half = LONGEST // 2
    return fault if len(fault) <= LONGEST else f"{fault[:half]} … {fault[-half:]}"
