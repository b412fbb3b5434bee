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


def signs(model: nn.Module, x: Tensor, y: Tensor, *, over: int | None = None) -> Tensor:
    """The signs of the gradient, or of its mean over a dimension."""
    x = x.detach().clone().requires_grad_()
    slope = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]
    return (slope if over is None else slope.mean(over, keepdim=True)).sign()


def learning(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    return x + eps


def threading(x: Tensor, eps: float) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return x + eps


calls = iter(range(10**6))
honest = lambda m, x, y, eps, **_: (x + eps * signs(m, x, y)).clamp(0, 1)  # noqa: E731
FAULTS: dict[str, tuple[Callable[..., Tensor], list[str], dict[str, Any]]] = {
    "none": (honest, [], {}),
    "none, with a cost": (honest, [], {"cost": lambda _knobs, _classes: (1, 1)}),
    "a cost too low": (honest, ["cost"], {"cost": lambda _knobs, _classes: (1, 0)}),
    "beyond the ball": (lambda m, x, y, eps, **_: honest(m, x, y, 1.5 * eps), ["bounds"], {}),
    "outside [0, 1]": (lambda m, x, y, eps, **_: x + eps * signs(m, x, y), ["bounds"], {}),
    "one budget for all": (lambda m, x, y, **_: (x + 0.2 * signs(m, x, y)).clamp(0, 1), ["bounds"], {}),
    "wrong where it stops early": (
        lambda _m, x, _y, eps, early_stop, **_: (x + eps * (3 if early_stop else 1)).clamp(0, 1),
        ["bounds"],
        {},
    ),
    "the points as they were": (lambda _m, x, _y, **_: x, ["strength"], {}),
    "another shift at each call": (
        lambda _m, x, _y, eps, **_: (x + eps * (next(calls) % 7) / 7).clamp(0, 1),
        ["determinism"],
        {},
    ),
    "the mean over the batch": (
        lambda m, x, y, eps, **_: (x + eps * signs(m, x, y, over=0)).clamp(0, 1),
        ["batch independence"],
        {},
    ),
    "moves the weights": (lambda m, x, _y, eps, **_: learning(m, x, eps).clamp(0, 1), ["state"], {}),
    "other threads": (lambda _m, x, _y, eps, **_: threading(x, eps).clamp(0, 1), ["state"], {}),
    "keeps the graph": (lambda _m, x, _y, eps, **_: (x.requires_grad_() + eps).clamp(0, 1), ["images"], {}),
    "another shape": (lambda _m, x, _y, **_: x.flatten(1), ["images"], {}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_breaks_its_promise(planted: Callable[..., list[str]], fault: str) -> None:
    """And an honest attack keeps them all."""
    rule, broken, info = FAULTS[fault]

    def attack(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        """Follows the rule."""
        return rule(model, x, y, **given)

    assert planted(attack, **info) == broken


def test_a_docstring_is_promised(planted: Callable[..., list[str]]) -> None:
    def silent(_model: nn.Module, x: Tensor, _y: Tensor, *, eps: float, **_more: Any) -> Tensor:
        return (x + eps).clamp(0, 1)

    assert planted(silent) == ["metadata"]


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


@pytest.mark.slow
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
