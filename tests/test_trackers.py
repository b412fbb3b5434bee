"""Weights & Biases and MLflow: what they get, that they are optional, and that no run depends on them.

The calls are tested with modules that have the libraries' calls, and with the libraries themselves where they
are installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers import python

from advbench import run
from advbench.cli import doctor
from advbench.cli.main import invoke
from advbench.runtime.events import Event
from advbench.runtime.trackers import TRACKERS, Tracker, flat
from attacks_pool import InputError
from leaderboards import verify_checksums

Sent = list[tuple[Any, ...]]
BRIEF: dict[str, Any] = {
    "sequence": "fgsm,pgd:steps=2",
    "unseen": "none",
    "epochs": 2,
    "points": 20,
    "threads": 1,
    "device": "cpu",
    "set": {"pretrain.epochs": 1, "eps_warmup": 0},
}


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's own."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """A module with the calls of Weights & Biases; what it is sent."""
    sent: Sent = []
    module = ModuleType("wandb")
    made = SimpleNamespace(
        define_metric=lambda *_, **__: None,
        log=lambda values: sent.append(("log", values)),
        summary=SimpleNamespace(update=lambda values: sent.append(("summary", values))),
        finish=lambda exit_code: sent.append(("finish", exit_code)),
    )

    def init(**options: Any) -> Any:
        sent.append(("init", options))
        return made

    vars(module).update(init=init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return sent


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """A module with the calls of MLflow that keeps runs over clients; what it is sent."""
    sent: Sent = []
    experiments: dict[str, Any] = {}
    runs: dict[str, str] = {}

    def info(run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            sent.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return experiments.get(name)

        def create_experiment(self, name: str, **_: Any) -> str:
            experiments[name] = SimpleNamespace(experiment_id="7")
            return "7"

        def search_runs(self, ids: list[str], text: str, max_results: int) -> list[Any]:
            assert (ids, max_results) == (["7"], 1)
            return [info(known) for known, name in runs.items() if f"= '{name}'" in text]

        def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
            assert (experiment, tags) == ("7", {"advbench.run": run_name})
            runs[f"id{len(runs)}"] = run_name
            return info(f"id{len(runs) - 1}")

        def update_run(self, run_id: str, status: str) -> None:
            sent.append(("update", run_id, status))

        def log_param(self, run_id: str, name: str, value: str) -> None:
            sent.append(("param", run_id, name, value))

        def log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
            sent.append(("metric", run_id, name, value, step))

        def set_terminated(self, run_id: str, status: str) -> None:
            sent.append(("end", run_id, status))

    module = ModuleType("mlflow")
    vars(module).update(MlflowClient=MlflowClient)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return sent


@pytest.mark.usefixtures("short_probes")
def test_both_get_what_is_measured(wandb: Sent, mlflow: Sent, tmp_path: Path) -> None:
    """Losses by epoch, accuracies by stage, the configuration, and the metrics of the record."""
    made = run("standard", **BRIEF, runs_dir=tmp_path, wandb=True, mlflow=True)
    record = made.record
    ((_, options),) = (one for one in wandb if one[0] == "init")
    assert (options["mode"], options["project"], options["name"]) == ("offline", "advbench", made.path.name)
    assert (options["config"]["defense"], options["config"]["plan.epochs"]) == ("standard", 2)
    logged = [one[1] for one in wandb if one[0] == "log"]
    assert [one["epoch"] for one in logged if "train/loss" in one] == [1, 2, 3, 4, 5]
    for name, attack in (("clean", "clean"), ("fgsm", "fgsm"), ("pgd", "pgd")):
        expected = [cell.accuracy for cell in record.cells if cell.attack.partition(":")[0] == attack]
        assert [one[f"robust/{name}"] for one in logged if f"robust/{name}" in one] == expected
    known = {name: value for name, value in record.metrics.items() if value is not None}
    assert wandb[-2:] == [("summary", known), ("finish", 0)]
    assert ("uri", f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}") in mlflow
    assert ("param", "id0", "defense", "standard") in mlflow
    losses = [(one[3], one[4]) for one in mlflow if one[0] == "metric" and one[2] == "train/loss"]
    assert [step for _, step in losses] == [1, 2, 3, 4, 5]
    assert [loss for loss, _ in losses] == [one["train/loss"] for one in logged if "train/loss" in one]
    assert ("metric", "id0", "clean_accuracy", record.metrics["clean_accuracy"], 0) in mlflow
    assert mlflow[-1] == ("end", "id0", "FINISHED")


class StoppedError(Exception):
    """Ends a run in the middle."""


@pytest.mark.usefixtures("short_probes")
def test_a_resumed_run_goes_on_in_the_same_place(wandb: Sent, mlflow: Sent, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "stage" and event.stage == 1:
            raise StoppedError

    with pytest.raises(RuntimeError):
        run("standard", **BRIEF, runs_dir=tmp_path, wandb=True, mlflow=True, listeners=[stop])
    assert (wandb[-1], mlflow[-1]) == (("finish", 1), ("end", "id0", "FAILED"))
    made = run("standard", **BRIEF, runs_dir=tmp_path, wandb=True, mlflow=True)
    assert {one[1]["id"] for one in wandb if one[0] == "init"} == {made.path.name}
    assert ("update", "id0", "RUNNING") in mlflow
    assert (wandb[-1], mlflow[-1]) == (("finish", 0), ("end", "id0", "FINISHED"))
    assert {one[1] for one in mlflow if one[0] in ("metric", "end")} == {"id0"}


def test_settings_of_the_environment(
    wandb: Sent, mlflow: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "elsewhere")
    for name in TRACKERS:
        Tracker(name, tmp_path, {}, print)
    assert (wandb[0][1]["mode"], wandb[0][1]["project"]) == ("online", "mine")
    assert mlflow[0] == ("uri", "elsewhere")


def test_a_tracker_that_fails_is_left_alone(wandb: Sent, tmp_path: Path, monkeypatch: Any) -> None:
    """After one note; the record is that of any other run."""
    told: list[str] = []
    tracker = Tracker("wandb", tmp_path, {}, told.append)
    backend: Any = tracker._backend

    def fail(*_: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(backend._run, "log", fail)
    for _ in range(3):
        tracker(Event("epoch", losses={"loss": 1.0}, step=1))
    tracker.finish({"a": 1.0})
    tracker.close()
    assert told == ["warning: wandb failed and is not used any more: ConnectionError: no route"]
    assert [one[0] for one in wandb] == ["init"]


def test_one_that_cannot_start_costs_one_line(wandb: Sent, tmp_path: Path, monkeypatch: Any) -> None:
    """And leaves nothing behind."""

    def refuse(**_: object) -> None:
        raise ValueError("no api key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match=r"^wandb cannot start: ValueError: no api key$"):
        run("standard", **BRIEF, runs_dir=tmp_path / "runs", wandb=True)
    assert wandb == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_without_the_package_one_line_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Before anything runs, with exit code 2; ``doctor`` names it."""
    monkeypatch.setitem(sys.modules, name, None)
    assert invoke(["run", f"--{name}", "--runs-dir", str(tmp_path / "runs")]) == 2
    line = f"error: {name} is not installed: pip install 'advbench[{name}]'"
    assert line in capfd.readouterr().err.splitlines()
    assert not (tmp_path / "runs").exists()
    absent = doctor._optional(name, {}, lambda _name: None)
    assert (absent.status, absent.mend) == ("absent", f'pip install "advbench[{name}]"')
    assert f"advbench run --{name}" in absent.detail


def test_the_light_mlflow_is_enough_for_the_doctor(tmp_path: Path) -> None:
    info = tmp_path / "mlflow_skinny-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlflow-skinny\nVersion: 3.1\n")
    found = doctor._optional("mlflow", doctor.installed_packages([str(tmp_path)]), lambda _name: None)
    assert (found.status, found.detail.partition(",")[0]) == ("ok", "3.1")


@pytest.mark.slow
def test_nothing_imports_them_unasked() -> None:
    code = "import sys, advbench.benchmark.run; print({'wandb', 'mlflow'} & set(sys.modules))"
    assert python("-c", code).stdout.splitlines()[-1] == "set()"


def test_flat() -> None:
    nested = {"seed": 0, "plan": {"lr": 0.1, "more": {"a": None}}, "eval": ["fgsm", "pgd"], "params": {}}
    expected = [("seed", 0), ("plan.lr", 0.1), ("plan.more.a", None), ("eval", "fgsm,pgd")]
    assert flat(nested) == expected


# With the libraries themselves, offline.


def installed(name: str) -> Callable[[Any], Any]:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.usefixtures("short_probes")
@installed("wandb")
def test_weights_and_biases_itself(tmp_path: Path) -> None:
    """Its files are in the run's directory, and no part of what the checksums cover."""
    made = run("standard", **BRIEF, runs_dir=tmp_path, wandb=True)
    (log,) = (made.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert log.stat().st_size > 1000
    assert verify_checksums(made.path) == []


@pytest.mark.usefixtures("short_probes")
@installed("mlflow")
def test_mlflow_itself(tmp_path: Path) -> None:
    """Its database is beside the run."""
    from mlflow import MlflowClient

    made = run("standard", **BRIEF, runs_dir=tmp_path, mlflow=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("advbench").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_name, found.info.status) == (made.path.name, "FINISHED")
    assert found.data.params["plan.epochs"] == "2"
    assert found.data.metrics["clean_accuracy"] == pytest.approx(made.record.metrics["clean_accuracy"])
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 5
    assert verify_checksums(made.path) == []
