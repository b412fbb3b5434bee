"""Certificates of a finished run: what ``advbench certify`` proved about its final model, point by point."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.entries import Frozen, JsonDict, Name
from leaderboards.records.layout import CERTIFICATES
from leaderboards.records.limits import MOST_POINTS, read_bounded
from leaderboards.records.record import Record, explain

Points = Annotated[int, Field(ge=0, le=MOST_POINTS)]
MOST_FILES: Final = 100
"""The most certificates of one run that are read."""


class _Part(Frozen):
    """A part of a certificate; keys that readers do not need are ignored."""

    model_config = ConfigDict(extra="ignore")


class CertifiedCounts(_Part):
    """How many points there are, how many of them are right without any change, and how many are proved."""

    points: Points
    clean_correct: Points
    certified: Points

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if not self.certified <= self.clean_correct <= self.points or not self.points:
            counts = f"{self.certified}, {self.clean_correct} and {self.points}"
            raise ValueError(f"certified <= clean_correct <= points must hold, not {counts}")
        return self


class CertifiedOutcomes(_Part):
    """Whether each point is right without any change, and whether it is proved."""

    clean: list[bool] = Field(max_length=MOST_POINTS)
    certified: list[bool] = Field(max_length=MOST_POINTS)


class Certificate(_Part):
    """One file of ``certificates/``.

    ``eps`` is the radius of the balls in the units of the images. A certificate of a ``smoothed model`` says
    nothing about the model that the run's attacks met.
    """

    schema_number: Literal[1] = Field(alias="schema")
    subject: JsonDict
    fingerprint: str
    norm: Literal["linf", "l2", "l1"]
    eps: float = Field(ge=0)
    method: Name
    certifies: Literal["model", "smoothed model"]
    counts: CertifiedCounts
    outcomes: CertifiedOutcomes

    @model_validator(mode="after")
    def _counted(self) -> Self:
        clean, proved, counts = self.outcomes.clean, self.outcomes.certified, self.counts
        if not len(clean) == len(proved) == counts.points:
            lengths = f"{len(clean)} and {len(proved)}"
            raise ValueError(f"outcomes must have {counts.points} points as counts says, not {lengths}")
        if (sum(clean), sum(proved)) != (counts.clean_correct, counts.certified):
            found = f"{sum(clean)} and {sum(proved)}"
            raise ValueError(
                f"clean_correct {counts.clean_correct} and certified {counts.certified} do not fit the "
                f"outcomes, which have {found}"
            )
        if any(sure and not right for sure, right in zip(proved, clean, strict=True)):
            raise ValueError("outcomes: a point is certified that is wrong without any change")
        return self

    @property
    def ball(self) -> str:
        """The threat model in a short text: ``linf-0.2``."""
        return f"{self.norm}-{self.eps:g}"


def read_certificate(path: Path) -> Certificate:
    """Read one file.

    Raises:
        RecordError: it is missing or no certificate, or it is impossible: more points are certified than are
            right, or counts and outcomes differ.
    """
    with os_errors(f"cannot read {path}"):
        data = read_bounded(path)
    try:
        return Certificate.model_validate_json(data)
    except ValidationError as error:
        raise RecordError(f"{path}: not a certificate: {explain(error)}") from error


def certificates_of(run_dir: Path, record: Record) -> tuple[list[Certificate], list[str]]:
    """The certificates of a run's model, one for each ball, and a line for each file that cannot be used.

    Those of the smoothed model are left out. Of several for one ball, that of the most points counts, and
    among equals that which proves most.
    """
    found: dict[str, Certificate] = {}
    problems: list[str] = []
    for path in _files(Path(run_dir)):
        try:
            one = read_certificate(path)
            _check_subject(one, record, path)
        except RecordError as error:
            problems.append(str(error))
            continue
        if one.certifies == "model":
            known = found.get(one.ball)
            if known is None or _size(known) < _size(one):
                found[one.ball] = one
    return sorted(found.values(), key=lambda one: (one.norm, one.eps)), problems


def _size(one: Certificate) -> tuple[int, int]:
    return one.counts.points, one.counts.certified


def _check_subject(one: Certificate, record: Record, path: Path) -> None:
    if one.subject.get("run") != record.id:
        raise RecordError(f"{path}: certifies {one.subject.get('run')!r}, not run {record.id!r}")
    if one.fingerprint != record.environment["data"]["fingerprint"]:
        raise RecordError(f"{path}: certifies points of other data than those of run {record.id}")


def _files(run_dir: Path) -> Iterator[Path]:
    folder = run_dir / CERTIFICATES
    if folder.is_dir():
        with os_errors(f"cannot read {folder}"):
            yield from sorted(path for path in folder.iterdir() if path.suffix == ".json")[:MOST_FILES]
