"""The scripts that check a machine: ``benchmarks/gpu.py`` in short form, and the memory that is counted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from advbench.models import MODELS
from attacks_pool import pool
from defenses import registry

ROOT = Path(__file__).resolve().parents[1]
HOLDING = """
import os, sys, time
held = bytearray(os.urandom(1)) * {size}
if {fork} and os.fork() == 0:
    time.sleep(0.5)
    os._exit(0)
time.sleep(0.8)
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name, imported as if they were started in their folder."""
    import importlib

    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield {name: importlib.import_module(name) for name in ("gpu", "memory")}
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a function as a part of the short form on the CPU, within a time limit in seconds."""
    gpu = scripts["gpu"]

    def as_part(measure: Any, seconds: float = 60.0) -> dict[str, Any]:
        monkeypatch.setitem(gpu.PARTS, "trial", gpu.Part(measure, seconds))
        result: dict[str, Any] = gpu.run_part("trial", "cpu", True, seconds)
        return result

    return as_part


def test_the_full_form_names_attacks_defenses_and_networks_that_exist(scripts: dict[str, ModuleType]) -> None:
    full = scripts["gpu"].FULL
    assert len(pool.sequence(full.attacks, budget="digits")) == 24
    assert set(full.defenses) == set(registry.names())
    assert {*full.networks, full.network} <= set(MODELS)


@pytest.mark.slow
def test_logits_agree_with_the_cpu(scripts: dict[str, ModuleType]) -> None:
    result = scripts["gpu"].run_part("logits", "cpu", True, 60.0)
    assert result["state"] == "passed"
    assert [check["found"] for check in result["checks"]] == [0.0, 0.0]


def test_streamed_resident_and_cpu_batches_agree(scripts: dict[str, ModuleType]) -> None:
    result = scripts["gpu"].run_part("batches", "cpu", True, 60.0)
    assert result["state"] == "passed"
    assert len(result["checks"]) == 2


def test_a_part_that_is_cut_off_keeps_its_results(run: Any) -> None:
    def slow(report: Any) -> None:
        report.check("first", True, 1, 1)
        time.sleep(60)

    began = time.perf_counter()
    result = run(slow, 1.0)
    assert time.perf_counter() - began < 30
    assert result["state"] == "cut off"
    assert [check["name"] for check in result["checks"]] == ["first"]


def test_a_part_that_fails_is_told_from_one_that_cannot_run(run: Any, scripts: dict[str, ModuleType]) -> None:
    def broken(_report: Any) -> None:
        raise RuntimeError("no kernel\nfor this device")

    def absent(_report: Any) -> None:
        raise scripts["gpu"].SkippedError("the peer is not installed")

    def killed(_report: Any) -> None:
        import os

        os._exit(9)

    def wrong(report: Any) -> None:
        report.check("sum", False, 3, 4)

    found = [run(part) for part in (broken, absent, killed, wrong)]
    assert [one["state"] for one in found] == ["error", "skipped", "error", "failed"]
    assert [one.get("reason") for one in found[:3]] == [
        "RuntimeError: no kernel",
        "the peer is not installed",
        "the process ended with code 9",
    ]


def test_the_report_has_every_part_and_the_exit_code_says_whether_all_hold(
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = scripts["gpu"]
    monkeypatch.setattr(
        gpu,
        "PARTS",
        {
            "good": gpu.Part(lambda report: report.figure("rate", 2.5), 60.0),
            "bad": gpu.Part(lambda report: report.check("sum", False, 3, 4), 60.0),
        },
    )
    out = tmp_path / "gpu.json"
    for parts, code in (("good", 0), ("good,bad", 1)):
        words = ["gpu.py", "--short", "--device", "cpu", "--parts", parts, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        assert gpu.main() == code
    written = json.loads(out.read_text())["parts"]
    assert {name: one["state"] for name, one in written.items()} == {"good": "passed", "bad": "failed"}
    assert written["good"]["figures"] == {"rate": 2.5}
    assert "FAILED sum: 3 (allowed: 4)" in capsys.readouterr().out


def test_a_part_without_time_left_is_not_started(scripts: dict[str, ModuleType]) -> None:
    result = scripts["gpu"].run_part("logits", "cpu", True, 0.0)
    assert (result["state"], result["checks"]) == ("cut off", [])


def test_a_part_may_be_cut_off_before_it_starts(run: Any) -> None:
    assert run(lambda _report: time.sleep(60), 1e-3)["state"] == "cut off"


@pytest.mark.parametrize("fork", [False, True])
def test_pages_that_processes_share_count_once(scripts: dict[str, ModuleType], fork: bool) -> None:
    size = 200_000_000
    peak = scripts["memory"].peak_of([sys.executable, "-c", HOLDING.format(size=size, fork=fork)], ROOT)
    assert size < peak < 1.2 * size


@pytest.mark.slow
def test_the_short_form_passes_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--short", "--device", "cpu"]
    command += ["--minutes", "40", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 10
    assert {one["state"] for one in parts.values()} <= {"passed", "skipped"}
    assert sum(len(one["checks"]) for one in parts.values()) >= 20
