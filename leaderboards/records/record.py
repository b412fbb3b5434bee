"""The run record: the contents of ``record.json``, and how to read it."""

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from leaderboards.errors import RecordError
from leaderboards.records.entries import (
    CLEAN,
    AttackEntry,
    Audit,
    Cell,
    Cost,
    Entries,
    Frozen,
    JsonDict,
    Name,
    PerClass,
    RecordedStage,
    Role,
    TrainingReport,
)
from leaderboards.records.limits import MOST_ATTACK, MOST_ENTRIES, MOST_NAME, MOST_SETTING

SCHEMA: Final = 1
LONGEST: Final = 400
"""The most characters that an error quotes from a record."""

# The config keys that tables read, with the types that they need.
_CONFIG: Final[dict[str, tuple[type, ...]]] = {
    "defense": (str,),
    "params": (dict,),
    "sequence": (list,),
    "training": (list,),
    "regime": (str,),
    "dataset": (str,),
    "model": (str, dict),
    "plan": (dict,),
    "pretrain": (dict, int),
    "seed": (int,),
}
_LONGEST_SETTINGS: Final = {
    **dict.fromkeys(("defense", "regime", "dataset"), MOST_NAME),
    **dict.fromkeys(("sequence", "training", "unseen", "eval"), MOST_ATTACK),
}
"""The config keys that tables and pictures show."""
_ENVIRONMENT: Final = ("versions", "commit", "device", "threads", "data", "python", "platform")


class Record(Frozen):
    """A finished run. ``schema_number`` is ``schema`` in JSON and as a constructor argument.

    ``config`` and ``environment`` may have any keys, but must have those that tables and ``verify`` read:
    defense, params, sequence, training, regime, dataset, model, plan, pretrain and an integer seed;
    versions, commit, device, threads, python, platform and data with its name and fingerprint. ``report`` is
    None if the defense reports nothing about its training.
    """

    schema_number: Literal[1] = Field(alias="schema")
    id: Name = Field(min_length=1)
    created: str
    status: Literal["complete"]
    config: JsonDict
    protocol: str
    regime: str
    attacks: list[AttackEntry] = Entries
    stages: list[RecordedStage] = Entries
    environment: JsonDict
    cells: list[Cell] = Entries
    metrics: dict[Name, float | None]
    per_class: list[PerClass] = Entries
    cost: Cost
    audit: Audit
    report: TrainingReport | None = None

    @model_serializer(mode="wrap")
    def _as_it_was(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Omit a missing report, so that records that predate reports are written unchanged.
        values: dict[str, Any] = write(self)
        return {key: value for key, value in values.items() if key != "report" or value is not None}

    @field_validator("schema_number", mode="before")
    @classmethod
    def _plain_number(cls, value: object) -> object:
        # 1.0 and true are equal to 1.
        if type(value) is not int:
            raise ValueError(f"unknown record schema {value!r}: this version reads schema {SCHEMA}")
        return value

    @field_validator("created")
    @classmethod
    def _utc(cls, value: str) -> str:
        try:
            offset = datetime.fromisoformat(value).utcoffset()
        except ValueError:
            offset = None
        if offset != timedelta(0):
            raise ValueError(f"created must be an ISO 8601 time in UTC, not {value!r}")
        return value

    @field_validator("config")
    @classmethod
    def _config_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in _CONFIG if key not in value]:
            raise ValueError(f"missing {', '.join(missing)}")
        for key, kinds in _CONFIG.items():
            # isinstance accepts a bool as an int, but a bool is not a seed.
            if not isinstance(value[key], kinds) or isinstance(value[key], bool):
                raise ValueError(f"{key} must be {kinds[0].__name__}, not {value[key]!r}")
        for key, text in value.items():
            _check_lengths(key, text, _LONGEST_SETTINGS.get(key, MOST_SETTING))
        return value

    @field_validator("environment")
    @classmethod
    def _environment_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in _ENVIRONMENT if key not in value]:
            raise ValueError(f"missing {', '.join(missing)}")
        data = value["data"] if isinstance(value["data"], dict) else {}
        if not (isinstance(data.get("name"), str) and isinstance(data.get("fingerprint"), str)):
            raise ValueError("data must hold a name and a fingerprint, both text")
        _check_lengths("data", data["name"], MOST_NAME)
        return value

    @model_validator(mode="after")
    def _cells_are_a_matrix(self) -> Self:
        # The matrix has a row for each stage up to the last, even for stages without a cell.
        if (size := (self._last + 1) * (len(self.attacks) + 1)) > MOST_ENTRIES:
            raise ValueError(f"stages and attacks make a matrix of {size} cells, {MOST_ENTRIES} are allowed")
        known = {entry.text for entry in self.attacks} | {CLEAN}
        places: set[tuple[int, str]] = set()
        for cell in self.cells:
            if cell.attack not in known:
                raise ValueError(f"a cell names attack {cell.attack!r}, which is not in attacks")
            if (cell.stage, cell.attack) in places:
                raise ValueError(f"two cells for stage {cell.stage}, attack {cell.attack!r}")
            places.add((cell.stage, cell.attack))
        return self

    @model_validator(mode="after")
    def _one_regime(self) -> Self:
        if self.regime != self.config["regime"]:
            raise ValueError(f"regime {self.regime!r} is not the config's {self.config['regime']!r}")
        return self

    def matrix(self, *roles: Role) -> NDArray[np.float64]:
        """R of shape (T+1, A): robust accuracies, NaN where a cell is missing.

        Columns follow ``attacks``, restricted to ``roles`` when any are given.
        """
        texts = [entry.text for entry in self.attacks if not roles or entry.role in roles]
        return self._columns(texts)

    def worst_case_points(self) -> int | None:
        """The number of test points in the worst case: those that all attacks share.

        None if an attack was not measured after the last stage, or if there are no attacks.
        """
        counts = {attack: cell.n for attack, cell in self.last_cells().items()}
        return min((counts.get(entry.text, 0) for entry in self.attacks), default=0) or None

    def last_cells(self) -> dict[str, Cell]:
        """The cells of the last measured stage, by attack."""
        last = max((cell.stage for cell in self.cells), default=0)
        return {cell.attack: cell for cell in self.cells if cell.stage == last}

    def clean_column(self) -> NDArray[np.float64]:
        """Clean accuracy after each stage, shape (T+1,), NaN where the cell is missing."""
        column: NDArray[np.float64] = self._columns([CLEAN])[:, 0]
        return column

    @property
    def _last(self) -> int:
        return max([cell.stage for cell in self.cells] + [stage.index for stage in self.stages], default=0)

    def _columns(self, texts: list[str]) -> NDArray[np.float64]:
        last = self._last
        accuracy = {(cell.stage, cell.attack): cell.accuracy for cell in self.cells}
        values = [[accuracy.get((t, text), np.nan) for text in texts] for t in range(last + 1)]
        return np.array(values, dtype=np.float64).reshape(last + 1, len(texts))


def comparable(record: Record) -> dict[str, Any]:
    """The parts of a record that two runs of one command on one machine must share, as JSON values.

    This is the record without its id, its creation time, all durations, and the commit, since the checkout
    may change between two runs of the same code.
    """
    tree = record.dump()
    del tree["id"], tree["created"], tree["cost"]["training_seconds"], tree["cost"]["evaluation_seconds"]
    del tree["environment"]["commit"]
    for cell in (*tree["cells"], *tree["audit"].get("probes", [])):
        del cell["seconds"]
    return tree


def parse_record(data: Mapping[str, Any] | bytes | str, source: str) -> Record:
    """Parse a record from JSON text or its decoded mapping; ``source`` names the file in errors.

    Raises:
        RecordError: it is not JSON, its schema number is unknown (checked first, because the keys of other
            schemas are unknown here), or a key is missing, unknown or has a wrong value.
    """
    if isinstance(data, bytes):
        # This is more than twice as fast as the code below, which explains the fault.
        with contextlib.suppress(ValidationError):
            return Record.model_validate_json(data)
    try:
        tree = dict(data) if isinstance(data, Mapping) else json.loads(data)
        text = json.dumps(tree, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{source}: not a JSON record: {_one_line(str(error))}") from error
    if not isinstance(tree, dict):
        raise RecordError(f"{source}: a record is a JSON object, not a {type(tree).__name__}")
    if "schema" not in tree:
        raise RecordError(f"{source}: missing key 'schema': expected schema {SCHEMA}")
    if type(tree["schema"]) is not int or tree["schema"] != SCHEMA:
        found = _one_line(json.dumps(tree["schema"]))[:40]
        raise RecordError(f"{source}: unknown record schema {found}: this version reads schema {SCHEMA}")
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{source}: {explain(error)}") from error


def _check_lengths(key: str, value: object, most: int) -> None:
    """Check the length of every text in a value of a configuration, including keys."""
    found = [value]
    while found:
        one = found.pop()
        if isinstance(one, str) and len(one) > most:
            raise ValueError(f"{key} has a text of {len(one)} characters, {most} are allowed")
        if isinstance(one, dict):
            found += [*one, *one.values()]
        elif isinstance(one, list):
            found += one


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    # The text quotes the record, which may contain anything.
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def explain(error: ValidationError) -> str:
    """The first fault of a validation error with its key, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    key = _one_line(".".join(str(part) for part in first["loc"]))
    if first["type"] == "missing":
        said = f"missing key {key!r}"
    elif first["type"] == "extra_forbidden":
        said = f"unknown key {key!r}"
    else:
        message = _one_line(first["msg"].removeprefix("Value error, "))
        said = f"key {key!r}: {message}" if key else message
    return said if len(faults) == 1 else f"{said} (and {len(faults) - 1} more)"
