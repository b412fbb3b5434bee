"""The manifest of a run, ``run.json``: the requested configuration, written before anything else."""

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from leaderboards.errors import RecordError
from leaderboards.records.entries import Frozen, JsonDict
from leaderboards.records.layout import MANIFEST
from leaderboards.records.limits import read_bounded
from leaderboards.records.record import explain
from leaderboards.records.store import write_json

MANIFEST_SCHEMA: Final = 1


class Manifest(Frozen):
    """The request of a run. ``schema_number`` is ``schema`` in JSON and as a constructor argument.

    ``identity`` is a hash of everything that the run's numbers depend on: two runs with the same identity
    give the same record. ``more`` holds what some kinds of run need in addition to the config.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    id: str = Field(min_length=1)
    kind: Literal["run", "eval"]
    identity: str
    created: str
    config: JsonDict
    more: JsonDict = Field(default_factory=dict)


def write_manifest(run_dir: Path, manifest: Manifest) -> Path:
    """Write ``run.json`` into a run directory, atomically; returns its path.

    Raises:
        RecordError: the file cannot be written.
    """
    return write_json(Path(run_dir) / MANIFEST, manifest.dump())


def read_manifest(run_dir: Path) -> Manifest:
    """Read ``run.json`` of a run directory.

    Raises:
        RecordError: the manifest is missing or damaged, or its schema is unknown.
    """
    path = Path(run_dir) / MANIFEST
    try:
        tree = json.loads(read_bounded(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(
            f"no manifest at {path}: this is not a run, or a run that predates manifests"
        ) from error
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a JSON manifest: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecordError(f"{path}: a manifest is a JSON object, not a {type(tree).__name__}")
    # Check the schema first: the keys of other schemas are unknown here.
    number = tree.get("schema")
    if type(number) is not int or number != MANIFEST_SCHEMA:
        found = " ".join(json.dumps(number).split())[:40]
        raise RecordError(f"{path}: unknown run schema {found}: this version reads schema {MANIFEST_SCHEMA}")
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise RecordError(f"{path}: {explain(error)}") from error
