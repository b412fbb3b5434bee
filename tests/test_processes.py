"""Several processes that train one model: equal to one process, for every defense and a stranger's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import nn

from advbench.data import TensorLoader, load_dataset
from attacks_pool import pool
from attacks_pool.calling.randomness import PartGenerator, keyed_generator
from defenses import Defense, registry
from defenses.training import processes
from defenses.training.processes import Part, current, part_of, working_on

ROUNDING = 1e-6
"""Largest difference of a gradient: mola-router's contrast is float32, the others are below 1e-14."""


def together(*words: str, count: int = 2) -> list[dict[str, Any]]:
    """The lines that ``tests/together.py`` writes as ``count`` processes started by torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(Path(__file__).with_name("together.py")), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def agree(found: list[dict[str, Any]]) -> bool:
    """Whether gradients, weights and losses are those of one process."""
    return all(one[name] < ROUNDING for one in found for name in ("gradients", "weights", "losses"))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one() -> None:
    found = together("gradients", "at", "stranger")
    assert [case for case, _ in (one["case"] for one in found)] == ["at", "at", "stranger"]
    assert agree(found)


@pytest.mark.slow
def test_every_defense_takes_the_steps_of_one_process() -> None:
    found = together("gradients", *registry.names())
    assert {one["case"][0] for one in found} == set(registry.names())
    assert agree(found), found


@pytest.mark.slow
def test_three_processes_with_uneven_parts() -> None:
    assert agree(together("gradients", "at", "free", "replay", "air", "mid", "mola-router", count=3))


@pytest.mark.slow
def test_what_happens_to_a_stage() -> None:
    """Process 0 stops and resumes it; averages, selected epochs and batch norm are alike; faults are said."""
    found = {one["case"]: one for one in together("stages")}
    assert found["stopped"]["others"] == "StoppedElsewhereError"
    assert found["stopped"]["resumed"] == 0
    for case in ("ema", "swa", "val-robust", "batch norm"):
        assert found[case]["between processes"] == 0
    assert found["ema"]["from one process"] < 1e-5
    assert "come apart" in found["by hand"]["error"]
    assert "different batches" in found["other batches"]["error"]
    assert "not a number" in found["one diverges"]["error"]
    assert found["sampler"]["between processes"] == 0
    assert found["tiny batches"]["from one process"] < ROUNDING


def test_no_defense_has_a_fit_of_its_own() -> None:
    """Such a defense trains in one process alone."""
    assert all(registry.resolve(name)[0].fit is Defense.fit for name in registry.names())


def test_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "rank", lambda number=number: number)
        parts.append(part_of(11))
    assert [(part.start, part.stop) for part in parts] == [(0, 3), (3, 7), (7, 11)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    # Fewer images than processes: each computes all of them.
    assert part_of(2) == Part(0, 2, 2, 1 / 3)
    assert current(5) == Part(0, 5, 5)
    with working_on(parts[1]):
        assert current(4) is parts[1]


def test_a_loader_reads_a_part_of_each_batch() -> None:
    split = load_dataset("digits").train
    loader = TensorLoader(split, 100, seed=0)
    whole, half = list(loader), list(TensorLoader(split, 100, seed=0).parts(lambda n: slice(n // 2, n)))
    assert len(whole) == len(half) == len(loader)
    for (x, y), (x_part, y_part, total) in zip(whole, half, strict=True):
        assert total == len(y)
        assert torch.equal(x_part, x[total // 2 :])
        assert torch.equal(y_part, y[total // 2 :])


@pytest.mark.quick(r"pgd|dim|glass-blur|mt-pgd-l2")
@pytest.mark.parametrize(
    "name", [name for name in pool.names() if pool.info(name).channels in (None, 1, (1,))]
)
def test_a_part_gets_the_points_of_the_whole_batch(name: str) -> None:
    """An attack on some rows, with the draws of the whole batch, gives those rows of the attack on all."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)).eval()
    x, y, rows = torch.rand(10, 1, 8, 8), torch.randint(4, (10,)), torch.arange(3, 8)
    attack = pool.get(name, budget="digits")
    if "steps" in attack.knobs:
        attack = pool.bind(name, {**attack.knobs, "steps": min(int(attack.knobs["steps"]), 5)})
    whole = attack(net, x, y, generator=keyed_generator("part"))
    draws = PartGenerator.of(keyed_generator("part"), 10, rows)
    part = attack(net, x[rows], y[rows], generator=draws)
    assert torch.allclose(part, whole[rows], atol=1e-5)
