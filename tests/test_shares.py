"""An evaluation that several processes share: the same numbers, whoever measures what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from advbench import evaluate_model
from advbench.evaluation import evaluate as evaluating
from advbench.evaluation.shards import compute, shards
from advbench.external.job import Evaluation, prepare_job, state_of
from advbench.external.request import EvalRequest
from advbench.external.workers import Share, measure, share
from advbench.runs.pieces import Pieces
from attacks_pool import InputError
from leaderboards import comparable

FACTORY = """
import torch
from torch import nn
def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
ASKED: dict[str, Any] = {
    "model": "shared_models:make",
    "dataset": "digits",
    "attacks": "fgsm,pgd:steps=2,gaussian-noise",
    "points": "30,fgsm=20",
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "surrogate": "none",
}
REQUEST = EvalRequest.of(ASKED)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Evaluation, str]:
    """An evaluation of a factory in the current directory, and its identity."""
    (tmp_path / "shared_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    found, identity = prepare_job(REQUEST)
    assert identity is not None
    return found, identity


def row_of(job: Evaluation, kept: Pieces | None = None) -> Any:
    return evaluating.evaluate(
        lambda _: job.foreign.model, job.test, job.attacks, stage=0, seed=0, kept=kept, device=job.device
    )


@pytest.mark.parametrize("of", [1, 2, 5])
def test_shares_make_up_the_whole(
    job: tuple[Evaluation, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    """More shares than shards too; nothing is measured twice, nothing is left to measure."""
    evaluation, identity = job
    alone = row_of(evaluation)
    measured: list[str] = []

    def counted(shard: Any, *more: Any) -> Any:
        measured.append(shard.text)
        return compute(shard, *more)

    monkeypatch.setattr(evaluating, "compute", counted)
    for number in range(of):
        measure(Share(REQUEST, identity, tmp_path / "pieces", number, of))
    every = list(shards(evaluation.test, evaluation.attacks))
    assert sorted(measured) == sorted(shard.text for shard in every)
    together = row_of(evaluation, Pieces(tmp_path / "pieces", identity, state_of(evaluation)))
    assert len(measured) == len(every)
    assert (together.clean == alone.clean).all()
    assert (together.robust == alone.robust).all()
    counts = [[cell.model_dump(exclude={"seconds"}) for cell in row.cells] for row in (together, alone)]
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_workers_change_no_number(job: tuple[Evaluation, str], tmp_path: Path) -> None:  # noqa: ARG001 - its place
    alone = evaluate_model(**ASKED, runs_dir=tmp_path / "alone")
    shared = evaluate_model(**ASKED, runs_dir=tmp_path / "shared", workers=2)
    assert comparable(shared.record) == comparable(alone.record)


@pytest.mark.slow
def test_processes_measure_what_they_are_asked(job: tuple[Evaluation, str], tmp_path: Path) -> None:
    """And say so where they could not."""
    evaluation, identity = job
    assert share(REQUEST, identity, tmp_path / "pieces", workers=2, ray=None) == []
    kept = Pieces(tmp_path / "pieces", identity, state_of(evaluation))
    assert len(list(kept.directory.glob("*.json"))) == len(list(shards(evaluation.test, evaluation.attacks)))
    assert share(REQUEST, "another", tmp_path / "none", workers=1, ray=None) == ["worker 1 ended with code 1"]
    assert not (tmp_path / "none").exists()


def test_another_evaluation_is_not_measured(job: tuple[Evaluation, str], tmp_path: Path) -> None:  # noqa: ARG001
    with pytest.raises(InputError, match="the evaluation would differ"):
        measure(Share(REQUEST, "another", tmp_path / "pieces", 0, 1))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": 2}, "need a model given as text"),
        ({"ray": "local"}, "need a model given as text"),
        ({"workers": 0}, "workers=0 is out of range"),
    ],
)
def test_what_cannot_be_shared(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        evaluate_model(nn.Flatten(), runs_dir=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()
