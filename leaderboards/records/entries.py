"""The parts of a run record: cells, attacks, stages, audit, cost."""

import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from leaderboards.records.limits import (
    MOST_ATTACK,
    MOST_COUNT,
    MOST_ENTRIES,
    MOST_NAME,
    MOST_POINTS,
    MOST_STAGE,
    MOST_STRING,
)

CLEAN: Final = "clean"

Norm = Literal["linf", "l2", "l1", "l0"]
Access = Literal["white-box", "black-box", "transfer", "none"]
Role = Literal["seen", "unseen", "eval"]
Verdict = Literal["ok", "suspect", "invalid"]


def _as_json(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # Check this when an entry is built, not when a long run ends and is written. The copy also isolates the
    # entry from later changes by the caller, and turns tuples into the lists that a reader will get.
    try:
        text = json.dumps(value, allow_nan=False)
        # No caller can change a value that was just read from JSON, so it needs no copy.
        copy: dict[str, Any] = value if info.mode == "json" else json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    return copy


JsonDict = Annotated[dict[str, Any], AfterValidator(_as_json)]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Name = Annotated[str, Field(max_length=MOST_NAME)]
AttackText = Annotated[str, Field(max_length=MOST_ATTACK)]
"""An attack's name with its knobs, or ``clean``."""
Entries = Field(max_length=MOST_ENTRIES)
"""A list with a maximum length, so that a record full of faults cannot produce gigabytes of errors."""


class Frozen(BaseModel):
    """The base of all models: immutable, no unknown keys, no coercion, no NaN or infinity, bounded texts."""

    # strict makes a number that is written as a string an error.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_max_length=MOST_STRING
    )

    def dump(self) -> dict[str, Any]:
        """The contents as JSON values, under the keys of the file."""
        return self.model_dump(mode="json", by_alias=True)


class Threat(Frozen):
    """A threat model: norm and eps (None for attacks without one) and access."""

    norm: Norm | None
    eps: float | None = Field(ge=0)
    access: Access


class Cell(Frozen):
    """One entry of the stage × attack matrix, in integer counts of test points.

    ``n`` points were measured, ``clean_correct`` of them are classified correctly when clean, ``robust`` of
    those also after the attack; ``invalid`` crafted examples broke a bound. ``attack`` is canonical text, or
    ``clean`` (then ``robust`` equals ``clean_correct``). ``forwards`` and ``backwards`` are sample-passes.
    For a probe of a target-aware defense, ``network`` is the attack of the run whose network was probed; None
    means the network for clean images. For a model that may abstain, ``abstained`` counts the points on which
    it does: these count as wrong if ``attack`` is ``clean``, and are otherwise part of ``robust``. It is None
    for models that cannot abstain, and for records made before it was counted.
    """

    stage: int = Field(ge=0, le=MOST_STAGE)
    attack: AttackText
    threat: Threat
    n: int = Field(ge=1, le=MOST_POINTS)
    clean_correct: int
    robust: int
    invalid: Count
    seconds: float = Field(ge=0)
    forwards: Count
    backwards: Count
    bound: Literal["norm", "box-only", "none"] = "norm"
    network: AttackText | None = None
    abstained: int | None = None

    @model_serializer(mode="wrap")
    def _as_it_was(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Omit unset keys that older versions did not write, so that older cells are written unchanged.
        values: dict[str, Any] = write(self)
        later = ("network", "abstained")
        return {key: value for key, value in values.items() if value is not None or key not in later}

    @model_validator(mode="after")
    def _counts_nest(self) -> Self:
        counts = f"robust {self.robust}, clean_correct {self.clean_correct}, n {self.n}"
        if not 0 <= self.robust <= self.clean_correct <= self.n:
            raise ValueError(f"counts must satisfy 0 <= robust <= clean_correct <= n, not {counts}")
        if self.attack == CLEAN and self.robust != self.clean_correct:
            raise ValueError(f"a clean cell has robust equal to clean_correct, not {counts}")
        most = self.n - self.clean_correct if self.attack == CLEAN else self.robust
        if self.abstained is not None and not 0 <= self.abstained <= most:
            raise ValueError(f"abstained must be between 0 and {most}, not {self.abstained}")
        return self

    @property
    def accuracy(self) -> float:
        """robust / n: the share of all points that are classified correctly, clean and after the attack."""
        return self.robust / self.n


class Flag(Frozen):
    """One finding of the audit, with its evidence."""

    code: Name
    message: str
    evidence: JsonDict

    @classmethod
    def of(cls, code: str, message: str, **evidence: Any) -> Self:
        """A flag with each item of its evidence by name."""
        return cls(code=code, message=message, evidence=evidence)


class Audit(Frozen):
    """The audit's verdict, its flags, and the codes of the checks that were run.

    ``probes`` are the cells of the attacks that only the audit made, on the last stage. Transferred probes
    were crafted on ``surrogate``, which may instead say why there are none. For a defense that uses different
    networks for different attacks, ``networks`` maps the text of each attack to its network: see
    `Cell.network`. Records made before probes existed have none.
    """

    verdict: Verdict
    flags: list[Flag] = Entries
    checks: list[Name] = Entries
    probes: list[Cell] = Field(default_factory=list, max_length=MOST_ENTRIES)
    surrogate: str | None = None
    networks: dict[AttackText, AttackText | None] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_it_was(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Omit unset keys that older versions did not write, so that older audits are written unchanged.
        values: dict[str, Any] = write(self)
        later = ("probes", "surrogate", "networks")
        return {key: value for key, value in values.items() if value or key not in later}


class AttackEntry(Frozen):
    """A resolved attack: canonical evaluation text, metadata, role, canonical training text."""

    text: AttackText
    name: Name
    family: Name
    norm: Norm | None
    eps: float | None = Field(ge=0)
    access: Access
    kind: Name
    role: Role
    training: AttackText | None


class RecordedStage(Frozen):
    """A trained stage: its attacks, its weights (a file inside the run directory), its structure."""

    index: int = Field(ge=0, le=MOST_STAGE)
    attacks: list[AttackText] = Entries
    weights: str
    spec: JsonDict

    @field_validator("weights")
    @classmethod
    def _inside_the_run(cls, value: str) -> str:
        # Records may come from anyone: a weights path must not lead out of the run directory.
        path = PurePosixPath(value)
        if not value or path.is_absolute() or PureWindowsPath(value).anchor or ".." in path.parts:
            raise ValueError(f"weights must be a relative path inside the run directory, not {value!r}")
        return value


class PerClass(Frozen):
    """Counts of one class after the last stage; ``robust`` maps attack text to points that survive it.

    In JSON the label's key is ``class``, a reserved word in Python: use `PerClass.of` to build one.
    """

    label: Name = Field(alias="class")
    n: int = Field(ge=0, le=MOST_POINTS)
    clean_correct: int
    robust: dict[AttackText, int]
    worst_case: int

    @classmethod
    def of(cls, label: str, *, n: int, clean_correct: int, robust: dict[str, int], worst_case: int) -> Self:
        """Build from keywords; counts are test points of the class ``label``."""
        counts = {"n": n, "clean_correct": clean_correct, "robust": robust, "worst_case": worst_case}
        return cls.model_validate({"class": label, **counts})

    @model_validator(mode="after")
    def _counts_nest(self) -> Self:
        survivors = [self.clean_correct, *self.robust.values()]
        if not (0 <= self.worst_case <= min(survivors) and max(survivors) <= self.clean_correct <= self.n):
            raise ValueError("counts must satisfy 0 <= worst_case <= each robust <= clean_correct <= n")
        return self


class TrainingReport(Frozen):
    """What a defense reported about its training: numbers, and tables of numbers by row and column."""

    version: Literal[1] = 1
    numbers: dict[Name, float] = Field(max_length=MOST_ENTRIES)
    tables: dict[Name, dict[Name, dict[Name, float]]] = Field(default_factory=dict, max_length=MOST_ENTRIES)


class Cost(Frozen):
    """The cost of a run: training includes pretraining and teachers; passes are sample-passes."""

    training_seconds: float = Field(ge=0)
    training_forwards: Count
    training_backwards: Count
    evaluation_seconds: float = Field(ge=0)
    parameters: Count
    multiply_adds: Count
