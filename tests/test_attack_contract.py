"""The contract of attacks: what the pool has keeps it, and each planted fault breaks its promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.cli.main import invoke
from advbench.contract import ATTACK_CONTRACT, check_attack, write_attack_package
from attacks_pool import AttackInfo, InputError, pool

SHIFT = "shift-for-tests"


@pytest.fixture
def planted() -> Iterator[Callable[..., list[str]]]:
    """Registers a function as an attack, and tells which promises it breaks."""

    def tried(function: Callable[..., Any], **info: Any) -> list[str]:
        what = {"family": "noise", "norm": "linf", "access": "white-box", "paper": None, **info}
        pool._entries.pop(SHIFT, None)
        pool.register(AttackInfo(name=SHIFT, **what))(function)
        return [check.name for check in check_attack(SHIFT) if check.status == "fails"]

    pool.names()
    threads = torch.get_num_threads()
    yield tried
    torch.set_num_threads(threads)
    pool._entries.pop(SHIFT, None)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def honest(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """A signed step."""
    return (x + eps * _gradient(model, x, y).sign()).clamp(0, 1)


def far(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Beyond the ball."""
    return (x + 1.5 * eps * _gradient(model, x, y).sign()).clamp(0, 1)


def outside(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Outside [0, 1]."""
    return x + eps * _gradient(model, x, y).sign()


def fixed(model: nn.Module, x: Tensor, y: Tensor, **_more: Any) -> Tensor:
    """One budget for all."""
    return (x + 0.2 * _gradient(model, x, y).sign()).clamp(0, 1)


def stopping(
    _model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, early_stop: bool, **_more: Any
) -> Tensor:
    """Wrong only where it stops early."""
    return (x + eps * (3 if early_stop else 1)).clamp(0, 1)


def nothing(_model: nn.Module, x: Tensor, _y: Tensor, **_more: Any) -> Tensor:
    """The points as they were."""
    return x


calls = iter(range(10**6))


def fickle(_model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Another shift at each call."""
    return (x + eps * (next(calls) % 7) / 7).clamp(0, 1)


def together(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """A step by the mean over the batch."""
    return (x + eps * _gradient(model, x, y).mean(0, keepdim=True).sign()).clamp(0, 1)


def learning(model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Moves the weights."""
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    return (x + eps).clamp(0, 1)


def threading(_model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Changes the number of threads."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    return (x + eps).clamp(0, 1)


def graph(_model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    """Keeps the graph."""
    return (x.requires_grad_() + eps).clamp(0, 1)


def flat(_model: nn.Module, x: Tensor, _y: Tensor, **_more: Any) -> Tensor:
    """Another shape."""
    return x.flatten(1)


def silent(_model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
    return (x + eps).clamp(0, 1)


@pytest.mark.parametrize(
    ("function", "broken", "info"),
    [
        (honest, [], {}),
        (honest, [], {"cost": lambda _knobs, _classes: (1, 1)}),
        (honest, ["cost"], {"cost": lambda _knobs, _classes: (1, 0)}),
        (far, ["bounds"], {}),
        (outside, ["bounds"], {}),
        (fixed, ["bounds"], {}),
        (stopping, ["bounds"], {}),
        (nothing, ["strength"], {}),
        (fickle, ["determinism"], {}),
        (together, ["batch independence"], {}),
        (learning, ["state"], {}),
        (threading, ["state"], {}),
        (graph, ["images"], {}),
        (flat, ["images"], {}),
        (silent, ["metadata"], {}),
    ],
)
def test_each_fault_breaks_its_promise(
    planted: Callable[..., list[str]], function: Callable[..., Any], broken: list[str], info: dict[str, Any]
) -> None:
    """And an honest attack keeps them all."""
    assert planted(function, **info) == broken


@pytest.mark.parametrize("name", ["fgsm", "hue", "gaussian-noise", "pgd-l2", "mim"])
def test_attacks_of_the_pool_keep_it(name: str) -> None:
    """One of several families, with few steps."""
    steps = {"steps": 2} if "steps" in pool.info(name).knobs else {}
    checks = check_attack(name, knobs=steps)
    assert [check.name for check in checks] == [promise.name for promise in ATTACK_CONTRACT]
    assert [str(check) for check in checks if not check.holds] == []


def test_wrong_knobs_are_the_caller_s() -> None:
    with pytest.raises(InputError, match="unknown knob of fgsm 'steps'"):
        check_attack("fgsm", knobs={"steps": 2})


def test_a_new_package_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is written; its test runs it."""
    written = write_attack_package("begun-here", tmp_path)
    assert {path.name for path in written} == {
        "pyproject.toml",
        "begun_here.py",
        "test_begun_here.py",
        "README.md",
    }
    project = (tmp_path / "begun-here" / "pyproject.toml").read_text("utf-8")
    assert '[project.entry-points."advbench.attacks"]\nbegun-here = "begun_here"' in project
    monkeypatch.chdir(tmp_path / "begun-here")
    assert invoke(["attacks", "check", "begun_here:begun_here"]) == 0
    assert "begun-here keeps 8 of 8 promises" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"exists already|is taken"):
        write_attack_package("begun-here", tmp_path)
    pool._entries.pop("begun-here")
    sys.modules.pop("begun_here")


def test_its_own_test_passes(tmp_path: Path) -> None:
    """With pytest, in its directory."""
    write_attack_package("begun-there", tmp_path)
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "begun-there",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stdout + done.stderr
