"""What certificates beside a run add to it on a leaderboard: bounds from both sides, and a check."""

from dataclasses import replace
from pathlib import Path

from leaderboards.audits.proofs import certified
from leaderboards.records.layout import CERTIFICATES
from leaderboards.records.store import read_record
from leaderboards.statistics.brackets import is_bound
from leaderboards.statistics.results import Result


def with_certificates(result: Result, problems: list[str]) -> Result:
    """The result with the metrics of its certificates, and suspect if an attack broke a proved point.

    Certificates are made after a run, so they are read each time. Those that cannot be used add a line each
    to ``problems``.

    Raises:
        RecordError: the record cannot be read.
    """
    if forged := [name for name in result.metrics if is_bound(name)]:
        # Only certificates give bounds, not the record.
        kept = {name: value for name, value in result.metrics.items() if name not in forged}
        result = replace(result, metrics=kept)
    directory = Path(result.directory)
    if not (directory / CERTIFICATES).is_dir():
        return result
    record = read_record(directory)
    found = certified(directory, record)
    problems += found.problems
    metrics = {name: value for one in found.brackets for name, value in one.metrics().items()}
    audit = found.added_to(record.audit)
    flags = sorted({flag.code for flag in audit.flags})
    return replace(result, metrics={**result.metrics, **metrics}, flags=flags, verdict=audit.verdict)
