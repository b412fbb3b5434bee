"""The mark that a verification leaves beside a record, and what is enough for one."""

from __future__ import annotations

import advbench
from advbench.opening import now
from advbench.verifying.report import Report
from leaderboards import Verified, digests_of, remove_verified, write_verified


def mark(report: Report) -> str:
    """Leave the mark of a confirmed run, or take it away from a refuted one; says what was done.

    Enough was looked at when no stage and no attack was left out, each in one whole block of test points at
    least, and the audit was repeated; or when the run was trained again on a machine that rounds as the
    record's did. Less confirms a run, and marks it not; a mark that is there already stays.

    Raises:
        RecordError: the mark cannot be written or removed.
    """
    if not report.confirmed:
        return "its mark as verified was taken away" if remove_verified(report.path) else ""
    if not report.complete and report.how == "retrained":
        return "not marked as verified: the repetition was no exact one"
    if not report.complete:
        return "not marked as verified: that needs every stage and every attack"
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
    return "marked as verified"
