"""The price of a run is said first: time, memory and disk, and how far training is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advbench import run
from advbench.benchmark.stage import Trainer
from advbench.cli import dry_run
from advbench.data import DataSet, Split
from advbench.data.pixels import ArraySource, Pixels
from advbench.runs.saved import Run
from advbench.runtime import pace as pacing
from advbench.runtime.events import Event
from advbench.runtime.pace import LONG, WARM, Pace
from advbench.runtime.progress import _Plain, describe
from advbench.sweep import estimate, footprint
from advbench.sweep.estimate import Speed, parts_of, sizes_of, work_of
from advbench.sweep.footprint import disk_of, memory_of
from attacks_pool import Passes

Call = Callable[..., tuple[str, str]]
BRIEF: dict[str, Any] = {"epochs": 1, "points": 20, "threads": 1, "device": "cpu", "unseen": "none"}
ASKED = ["run", "--defense", "at", "--sequence", "fgsm,pgd:steps=2", "--unseen", "none"]
ASKED += ["--epochs", "1", "--points", "20", "--device", "cpu"]


def clock(step: float) -> Callable[[], float]:
    """A clock that goes on by ``step`` seconds each time it is read."""
    times: Iterator[int] = iter(range(10**9))
    return lambda: next(times) * step


def config_of(run: Run, **changes: Any) -> Any:
    """The run's configuration with other values."""
    return run.config.model_copy(update=changes)


# How far training is.


def test_pace_is_that_of_the_last_batches() -> None:
    times = iter([0.0, 1.0, 2.0, 12.0])
    pace = Pace(1000, now=lambda: next(times))
    pace.reach(100)
    assert (pace.rate, pace.rest) == (None, None)
    pace.reach(200)
    assert (pace.rate, pace.rest) == (100.0, 8.0)
    pace.reach(300)
    pace.reach(400)
    assert (pace.rate, pace.rest) == (25.0, 24.0)


def test_pace_follows_a_machine_that_gets_slower() -> None:
    seconds = [*range(100), *range(100, 1100, 10)]
    times = iter(map(float, seconds))
    pace = Pace(10**6, now=lambda: next(times))
    for number in range(len(seconds)):
        pace.reach(number)
    assert pace.rate == pytest.approx(0.1)


def test_a_clock_that_stands_still_gives_no_speed() -> None:
    pace = Pace(100, now=lambda: 5.0)
    for done in range(0, 100, 10):
        pace.reach(done)
    assert (pace.rate, pace.rest, pace.warns()) == (None, None, False)


@pytest.mark.parametrize(("images", "expected"), [(3000, []), (20_000, [WARM])])
def test_an_hour_is_worth_one_warning(images: int, expected: list[int]) -> None:
    """Once, and only after a few batches."""
    pace, warned = Pace(images, now=clock(1.0)), []
    for batch in range(1, 20):
        pace.reach(batch)
        if pace.warns():
            warned.append(batch)
    assert warned == expected
    assert pacing.LONG == 3600


def test_lines_say_batch_speed_and_time_left() -> None:
    now: dict[str, Any] = {"stage": 1, "stages": 3, "epoch": 2, "epochs": 20, "attack": "pgd", "elapsed": 65}
    batch = Event("batch", **now, batch=17, batches=391, losses={"loss": 1.5}, rate=812.4, rest=754.0)
    line = describe(batch)
    assert line.endswith(
        "stage 1/3  pgd  epoch 2/20  batch 17/391  loss 1.500  812 images/s  (12m34s left in this stage)"
    )
    both = describe(Event("epoch", **now, rate=0.123, rest=10.0, left=7200.0))
    assert both.endswith("epoch 2/20  0.12 images/s  (10s left in this stage, 2h00m in all)")
    assert describe(Event("epoch", **now, left=60.0)).endswith("epoch 2/20  (1m00s left)")
    assert describe(Event("batch", **now, batch=3)).endswith("epoch 2/20  batch 3")


def test_plain_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """By the clock that is given: the first batch, and one each five seconds."""
    listen = _Plain(clock(1.0))
    for batch in range(1, 13):
        listen(Event("batch", epoch=1, epochs=2, batch=batch, batches=20))
    shown = re.findall(r"batch (\d+)/20", capsys.readouterr().err)
    assert shown == ["1", "6", "11"]


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_stage_that_takes_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them once, on stderr, while it trains; the numbers are those of a fast machine."""
    given: dict[str, Any] = {**BRIEF, "sequence": "fgsm,pgd:steps=2", "set": {"pretrain.epochs": 1}}
    told: list[Event] = []
    fast = run("standard", **given, runs_dir=tmp_path / "fast")
    monkeypatch.setattr(Trainer, "now", staticmethod(clock(1000.0)))
    slow = run("standard", **given, runs_dir=tmp_path / "slow", listeners=[told.append], progress=True)
    notes = [event.text for event in told if event.kind == "note"]
    images = len(slow.data.train)
    bs = slow.config.stage_plan.batch_size
    left = f"{(images - WARM * bs) * 1000 / bs / 3600:.0f}h"
    assert [note.partition(" takes")[0] for note in notes] == [
        "warning: pretraining",
        "warning: stage 1 (fgsm)",
        "warning: stage 2 (pgd)",
    ]
    assert all("images a second; advbench run --dry-run" in note for note in notes)
    assert re.search(rf"takes about {int(left[:-1])}h|takes about {int(left[:-1]) - 1}h", notes[1])
    assert capsys.readouterr().err.count("warning: ") == 3
    assert [cell.robust for cell in slow.record.cells] == [cell.robust for cell in fast.record.cells]
    batches = [event for event in told if event.kind == "batch"]
    assert batches[-1].rate == pytest.approx(bs / 1000)
    lines = [json.loads(line) for line in (slow.path / "log.jsonl").read_text().splitlines()]
    assert all(line["rate"] > 0 for line in lines if line["kind"] == "epoch")
    assert "warning" not in (fast.path / "log.jsonl").read_text()


# What a run takes.


def test_parts_make_up_the_whole(small_run: Run, digits: DataSet) -> None:
    """Pretraining costs a pass forward and backward an image; each stage adds its attack's."""
    sizes = sizes_of(digits)
    for regime in ("continual", "joint"):
        config = config_of(small_run, regime=regime)
        parts = parts_of(config, sizes)
        assert len(parts.stages) == (len(config.sequence) if regime == "continual" else 1)
        every = [parts.pretraining, *parts.stages, parts.evaluation]
        total = Passes(sum(part.forwards for part in every), sum(part.backwards for part in every))
        assert work_of(config, sizes) == total
        images = config.pretrain.epochs * sizes.train
        assert parts.pretraining == Passes(images, images)


def test_memory_is_counted(small_run: Run, digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network whose tensors can be counted by hand: a linear layer keeps its input, ReLU its output."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    monkeypatch.setattr(footprint, "new_classifier", lambda *_: network)
    plan = small_run.config.stage_plan.model_copy(update={"optimizer": "adam", "batch_size": 1000})
    config = config_of(small_run, plan=plan)
    found = memory_of(config, digits, torch.device("cpu"))
    weights = 4 * (64 * 100 + 100 + 100 * 10 + 10)
    # A byte for each pixel, and eight for each label.
    assert found["images"] == (1293 + 144 + 360) * (64 + 8)
    assert found["weights"] == weights * (1 + 1 + 2 + footprint.COPIES)
    batch = min(1000, len(digits.train))
    assert found["activations"] == 4 * batch * (64 + 100)
    assert found["total"] == found["images"] + found["weights"] + found["activations"]
    small = config_of(small_run, plan=plan.model_copy(update={"batch_size": 2}))
    fewer = memory_of(small, digits, torch.device("cpu"))
    assert fewer["activations"] == 4 * 360 * (64 + 100)


def test_disk_covers_what_a_run_writes(small_run: Run) -> None:
    """A finished run has a file of weights for each stage; the estimate is of these."""
    found = disk_of(small_run.config, small_run.data)
    written = sum(path.stat().st_size for path in small_run.path.rglob("*.safetensors"))
    assert written == pytest.approx(found["finished"], rel=0.25)
    assert found["most"] > found["finished"]


def test_a_dry_run_says_all_of_it(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours by part, memory and disk, and a warning for each part that takes more than an hour."""
    where = ("--runs-dir", tmp_path / "runs")
    monkeypatch.setattr(dry_run, "measured_speed", lambda *_: Speed(0.1, 0.2, "by the test"))
    out, err = call(*ASKED, *where, "--set", "pretrain.epochs=20", "--dry-run", "--format", "json")
    plan = json.loads(out)
    found = plan["estimate"]
    assert found["seconds"] == pytest.approx(
        found["pretraining"] + sum(found["stages"]) + found["evaluation"], abs=1
    )
    assert found["pretraining"] == pytest.approx(20 * plan["training_points"] * 0.3, abs=0.1)
    assert set(plan["memory"]) == {"images", "weights", "activations", "total"}
    assert plan["disk"]["most"] > plan["disk"]["finished"] > 0
    assert err.splitlines() == ["warning: pretraining takes about 2h09m"]
    assert found["pretraining"] > LONG > max(found["stages"])
    out, _ = call(*ASKED, *where, "--set", "pretrain.epochs=20", "--dry-run")
    assert re.search(
        r"estimate +about \S+ \(pretraining 2h09m, stages \S+ \+ \S+, evaluation \S+\), by the test", out
    )
    assert re.search(r"memory +about \S+ [kMG]B beside Python and torch \(images \S+ [kM]B, weights", out)
    assert re.search(r"disk +about \S+ [kMG]B, up to \S+ [kMG]B while it goes on", out)
    assert not (tmp_path / "runs").exists()


def test_timed_batches_use_the_runs_own_threads(
    small_run: Run, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small network takes one, however many torch would take."""
    seen = []

    def timed(*_: object) -> tuple[float, float]:
        seen.append(torch.get_num_threads())
        return 1.0, 2.0

    monkeypatch.setattr(estimate, "_timed", timed)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = estimate.measured_speed(config_of(small_run, threads=None), digits, torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert (found.forward, found.backward) == (1 / estimate.FEW, 2 / estimate.FEW)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 kB"), (1500, "1.5 kB"), (999_400, "999 kB"), (2_000_000, "2 MB"), (123_456_789_000, "123 GB")],
)
def test_sizes_have_a_unit(count: int, text: str) -> None:
    assert dry_run._bytes(count) == text


def test_images_that_are_read_from_files_hold_no_memory(digits: DataSet) -> None:
    """Labels do, and so do tensors and arrays in memory."""
    pixels = np.zeros((50, 1, 8, 8), np.uint8)
    for resident, stored in ((True, 50 * 64), (False, 0)):
        split = Split(Pixels(ArraySource(pixels, resident=resident)), digits.test.y[:50])
        assert footprint._held(split) == stored + 50 * 8
    assert footprint._held(Split(digits.test.x[:50], digits.test.y[:50])) == 50 * (4 * 64 + 8)
