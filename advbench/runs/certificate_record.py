"""The record of certificates, as JSON, and what attacks of a run left of the same points."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from advbench.data import DataSet
from advbench.evaluation.certificates.certified import Certified, accepted_radius
from advbench.runs.directory import now, plain_name
from leaderboards import Record, write_json
from leaderboards.errors import os_errors
from leaderboards.records.layout import CERTIFICATES, OUTCOMES
from leaderboards.records.store import read_outcomes
from leaderboards.statistics.brackets import attacks_inside

SCHEMA = 1


def attacked(
    run_dir: Path, record: Record, norm: str, eps: float, points: int
) -> tuple[list[str], list[bool]]:
    """The attacks of a run that stay inside a ball, and whether each point survives all of them.

    Args:
        run_dir: the run's directory.
        record: its record.
        norm: the norm of the ball.
        eps: its radius.
        points: the number of points, from the first on; attacks on fewer are left out.

    Returns:
        the texts of the attacks, and one outcome for each point; none without such an attack.

    Raises:
        RecordError: stored outcomes cannot be read.
    """
    inside = attacks_inside(record, (norm, eps), points)
    if not inside:
        return [], []
    _, robust = read_outcomes(run_dir / OUTCOMES)
    survived = robust[-1][inside, :points].min(axis=0)
    return [record.attacks[number].text for number in inside], survived.tolist()


def certificate_tree(
    found: Certified,
    data: DataSet,
    subject: dict[str, Any],
    environment: dict[str, Any],
    *,
    attacks: list[str],
    survived: list[bool],
) -> dict[str, Any]:
    """The record as JSON values.

    Args:
        found: the certificates.
        data: the data set of the points.
        subject: what was certified: the id of a run, or the origin of a model.
        environment: versions and device, as run records have them.
        attacks: the attacks that stay inside the ball.
        survived: whether each point survives all of them; empty if there are none.
    """
    counts: dict[str, Any] = found.counts()
    counts["robust"] = sum(survived) if attacks else None
    # A certificate of the smoothed classifier does not speak about the model that was attacked.
    same = bool(attacks) and found.smoothing is None
    pairs = zip(found.proved, survived, strict=True) if same else ()
    broken = [point for point, (proved, robust) in enumerate(pairs) if proved and not robust]
    return {
        "schema": SCHEMA,
        "kind": "certificates",
        "created": now(),
        "subject": subject,
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "norm": found.norm,
        "eps": found.eps,
        "radius": accepted_radius(found.eps),
        "method": found.method,
        "certifies": "model" if found.smoothing is None else "smoothed model",
        "smoothing": None if found.smoothing is None else asdict(found.smoothing),
        "counts": counts,
        "attacks": attacks,
        "attack_below_certificate": broken,
        "outcomes": {
            "clean": found.clean,
            "certified": found.proved,
            "margin": found.margin,
            "by": found.by,
            "survived": survived,
        },
        "seconds": found.seconds,
        "environment": environment,
    }


def write_certificates(path: Path, tree: dict[str, Any]) -> Path:
    """Write a record, atomically; the folder is created.

    Raises:
        RecordError: it cannot be written.
    """
    with os_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, tree)


def certificate_path(directory: Path, found: Certified, name: str = "") -> Path:
    """Where the record of these certificates goes below a run or a directory of runs."""
    parts = [plain_name(name, 60), found.norm, f"{found.eps:.6g}"]
    parts += ["smoothing"] if found.smoothing is not None else []
    return directory / CERTIFICATES / f"{'-'.join(part for part in parts if part)}.json"
