"""Checks whether another run in the same directory has the same weights under another training seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from advbench.runtime.hashing import weights_digest
from advbench.verify.subject import Subject
from leaderboards import Result, find_results, result_of
from leaderboards.boards.refusing import same_model


def check_siblings(subject: Subject) -> Iterator[str]:
    """A line for each run of the same directory that differs only in seed and has the same final weights.

    Two seeds do not train one model. Only retraining shows which seed gave the weights, so both runs are
    refuted. Evaluated models are exempt: their seeds are those of the evaluation.
    """
    if subject.evaluated:
        return
    own = subject.run.path.resolve()
    mine = result_of(subject.record, own)
    digest = _digest(subject, mine)
    for other in find_results(own.parent)[0]:
        if other.group != mine.group or other.seed == mine.seed:
            continue
        if same_model(mine, other) or (digest and digest == _digest(subject, other)):
            yield (
                f"weights: those of run {other.id}, which says seed {other.seed} where this one says "
                f"{mine.seed}: one training has one seed (advbench verify --retrain shows whose they are)"
            )


def _digest(subject: Subject, result: Result) -> str:
    """A digest of the tensors, independent of the file format; empty if they are not stored."""
    path = Path(result.directory) / subject.record.stages[-1].weights
    try:
        return weights_digest(load_file(path))
    except (OSError, SafetensorError):
        return ""
