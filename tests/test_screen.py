"""Results and progress in Python and in notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

import advbench
from advbench.runs.saved import Run
from advbench.runs.screen import MOST_ROWS, html_of, text_of
from advbench.runs.tables import headline
from advbench.runtime.events import Event
from advbench.runtime.progress import watched
from defenses import AT, Progress, TrainPlan
from defenses.training.shown import in_notebook

PLAN = TrainPlan(epochs=2, batch_size=64)


class ZMQInteractiveShell:
    """Called as the shell of a notebook is."""


class TerminalInteractiveShell:
    """Called as IPython's shell on a terminal is."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says that it is a notebook's."""
    _shell(monkeypatch, ZMQInteractiveShell)


def _shell(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    module = ModuleType("IPython")
    module.get_ipython = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)


class _Tags(HTMLParser):
    """Checks that every tag is closed, and collects text and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002 - the base class says so
        self.seen.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_result_is_one_screen(small_run: Run) -> None:
    """Headline, matrix, metrics, audit, and where it is."""
    text = repr(small_run)
    lines = text.splitlines()
    assert lines[0] == headline(small_run.record)
    assert len(lines) <= 40
    assert "after stage" in text
    assert "average robust accuracy" in text
    assert f"audit: {small_run.record.audit.verdict}" in text
    assert str(small_run.path) in lines[-1]
    assert "\x1b" not in text


def test_notebooks_get_tables(small_run: Run) -> None:
    """Well-formed HTML with every number of the matrix."""
    page = _Tags()
    page.feed(small_run._repr_html_())
    assert page.open == []
    assert {"table", "th", "td"} <= set(page.seen)
    assert page.text.startswith(headline(small_run.record))
    for value in (*small_run.record.clean_column(), *small_run.record.matrix().ravel()):
        assert f"{100 * value:.1f}" in page.text
    assert f"audit: {small_run.record.audit.verdict}" in page.text


def test_what_a_record_says_is_text(small_run: Run) -> None:
    """Names of strangers are neither tags nor what a terminal obeys."""
    config = {**small_run.record.config, "defense": "<script>alert(1)</script>\x1b[31m"}
    record = small_run.record.model_copy(update={"config": config})
    assert "<script" not in html_of(record)
    assert "&lt;script&gt;" in html_of(record)
    assert "\x1b" not in html_of(record) + text_of(record)


def test_a_long_matrix_is_shortened(small_run: Run) -> None:
    """The last rows, and the title says so."""
    record = small_run.record
    stages = [record.stages[0].model_copy(update={"index": index}) for index in range(MOST_ROWS + 5)]
    cells = [
        cell.model_copy(update={"stage": stage.index})
        for stage in stages
        for cell in record.cells
        if cell.stage == 0
    ]
    long = record.model_copy(update={"stages": stages, "cells": cells})
    text = text_of(long)
    assert f"(last {MOST_ROWS} of {MOST_ROWS + 5} rows)" in " ".join(text.split())
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize(
    ("shell", "expected"), [(ZMQInteractiveShell, True), (TerminalInteractiveShell, False), (None, False)]
)
def test_what_is_a_notebook(shell: type | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's shell, not the one of a terminal; without IPython nothing is."""
    if shell is None:
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
    else:
        _shell(monkeypatch, shell)
    assert in_notebook() == expected


class TestFit:
    """``fit(..., progress=…)``."""

    @pytest.fixture
    def fit(self, network: Callable[..., nn.Sequential], loader: Any) -> Callable[..., Any]:
        """Trains on a hundred images."""
        return lambda **how: AT(network()).fit(loader(128), [], plan=PLAN, **how)

    def test_true_writes_lines(self, fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
        """On stderr, with the loss; the last is the end of the stage."""
        fit(progress=True)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith("stage 1  epoch 2/2  batch 2/2  loss ")

    def test_by_default_there_is_none(
        self, fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit()
        assert capsys.readouterr().err == ""

    @pytest.mark.usefixtures("notebook")
    def test_notebooks_show_it(self, fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
        """Unless it is refused."""
        fit()
        assert "epoch 2/2" in capsys.readouterr().err
        fit(progress=False)
        assert capsys.readouterr().err == ""

    def test_a_function_is_called(self, fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
        """After each batch, and nothing is written."""
        told: list[Progress] = []
        fit(progress=told.append)
        assert [(one.epoch, one.batch) for one in told] == [(1, 1), (1, 2), (2, 1), (2, 2)]
        assert capsys.readouterr().err == ""


class TestWatched:
    """``run(..., progress=…)`` and ``evaluate_model(..., progress=…)``."""

    def test_run_and_evaluate_model(
        self, tmp_path: Path, network: Callable[..., nn.Sequential], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Lines on stderr when asked for, none otherwise."""
        options: dict[str, Any] = {
            "attacks": "fgsm",
            "points": 10,
            "runs_dir": tmp_path,
            "surrogate": "none",
            "device": "cpu",
        }
        advbench.evaluate_model(network(), progress=True, **options)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "fgsm" in captured.err
        assert captured.err.splitlines()[-1].endswith("finished")
        advbench.evaluate_model(network(), **options)
        assert capsys.readouterr().err == ""

    def test_run_hands_it_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """To whoever listens while the run goes on."""

        def go(_prepared: Any, _runs_dir: Any, _named: Any, _fresh: Any, told: Any, *_more: Any) -> Path:
            for listener in told:
                listener(Event("note", text="on the way"))
            return tmp_path

        prepared = SimpleNamespace(config=SimpleNamespace(data_dir=None), data=None)
        monkeypatch.setattr("advbench.benchmark.run._go", go)
        monkeypatch.setattr("advbench.benchmark.run.load_run", lambda *_args, **_how: SimpleNamespace())
        monkeypatch.setattr("advbench.benchmark.run.prepare", lambda *_args, **_how: prepared)
        advbench.run("at", progress=True, runs_dir=tmp_path)
        assert "on the way" in capsys.readouterr().err
        advbench.run("at", runs_dir=tmp_path)
        assert capsys.readouterr().err == ""

    @pytest.mark.usefixtures("notebook")
    def test_listeners_stay(self, capsys: pytest.CaptureFixture[str]) -> None:
        """And a notebook shows progress beside them, unless it is refused."""
        told: list[Event] = []
        for progress in (None, False):
            with watched([told.append], progress) as listeners:
                for listener in listeners:
                    listener(Event("note", text="on the way"))
            assert ("on the way" in capsys.readouterr().err) == (progress is None)
        assert len(told) == 2
