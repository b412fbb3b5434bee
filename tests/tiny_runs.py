"""A run that is over in a second, and what can be compared of the records in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from advbench.audit import battery, competence, consistency
from leaderboards import comparable, find_records

TINY: dict[str, Any] = {
    "sequence": "fgsm",
    "unseen": "none",
    "epochs": 1,
    "set": {"pretrain.epochs": 1, "eps_warmup": 0},
    "points": 10,
    "threads": 1,
    "device": "cpu",
}


@contextmanager
def few_probes() -> Iterator[None]:
    """Audits ask little meanwhile, in this process and in its copies."""
    with pytest.MonkeyPatch.context() as changed:
        for name in ("STEPS", "BRIEF_STEPS", "QUERIES", "BRIEF_QUERIES", "LABELS", "DRAWS"):
            changed.setattr(battery, name, 2)
        changed.setattr(competence, "SCALES", (1.0,))
        changed.setattr(consistency, "ALONE", 1)
        changed.setattr(consistency, "ASKED", 2)
        yield


def records_of(runs_dir: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What can be compared of every record, by what was asked for."""
    records, problems = find_records(runs_dir)
    assert not problems
    keys = [(one.config["defense"], ",".join(one.config["sequence"]), one.config["seed"]) for one in records]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, map(comparable, records), strict=True))
