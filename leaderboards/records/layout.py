"""The names of the files of a run directory."""

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

EVALUATED: Final = "eval"
"""The regime of a model that was trained elsewhere."""
MANIFEST: Final = "run.json"
RECORD: Final = "record.json"
OUTCOMES: Final = "outcomes.npz"
CHECKSUMS: Final = "SHA256SUMS"
WEIGHTS: Final = "model.safetensors"
LOG: Final = "log.jsonl"
VERIFIED: Final = "verified.json"
REFUTED: Final = "refuted.json"
"""The marks that a verification adds to a finished run; see `leaderboards.records.trust`."""
CERTIFICATES: Final = "certificates"
"""Records of what ``advbench certify`` proved about a finished run."""
LOCK: Final = ".lock"
STAGES: Final = "stages"
CHECKPOINT: Final = "checkpoint"
"""Training snapshots and finished pieces of an evaluation, which a finished run no longer needs."""
TENSORBOARD: Final = "tensorboard"
WANDB: Final = "wandb"
"""Logs of trackers, which are no part of a finished run."""

_TEMPORARY: Final = re.compile(r"\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


def temporary_of(name: str) -> int | None:
    """The id of the process that made the temporary file of this name; None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return int(found["pid"]) if found else None


def temporary_for(path: Path) -> Path:
    """A new hidden path beside ``path``, whose name holds the id of this process; see `temporary_of`."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key that compares numbers in names by value: ``run-2`` comes before ``run-10``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def files_below(directory: Path) -> Iterator[Path]:
    """All files below a directory; links are not followed, and files that vanish meanwhile are skipped."""
    for root, _, names in os.walk(directory):
        yield from (Path(root) / name for name in names)
