"""Experiment trackers as listeners of a run: Weights & Biases and MLflow, imported only when used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from advbench.runtime.events import Event
from advbench.runtime.reasons import reason
from attacks_pool.errors import InputError
from leaderboards.statistics.naming import attack_name

PROJECT = "advbench"
"""The project of Weights & Biases, and the experiment of MLflow."""
TAG = "advbench.run"
"""The tag by which a resumed run finds its MLflow run again."""
LONGEST = 500
"""The most characters of a parameter that every MLflow server takes."""


class Backend(Protocol):
    """One run of one tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars at a step, which counts epochs in ``train/…`` and stages in ``robust/…``."""

    def summarise(self, values: Mapping[str, float]) -> None:
        """Set the final metrics."""

    def close(self, finished: bool) -> None:
        """End the run, as finished or as failed."""


class Tracker:
    """Sends losses by epoch, accuracies by stage and final metrics to a tracker.

    A tracker that fails while the run goes on is left alone after one note: the run does not depend on it.

    Args:
        name: ``wandb`` or ``mlflow``.
        directory: the run's directory; its name is the name of the run in the tracker.
        config: the run's configuration.
        note: called with a message for the user.

    Raises:
        InputError: the package is not installed, or cannot start.
    """

    def __init__(
        self, name: str, directory: Path, config: Mapping[str, Any], note: Callable[[str], None]
    ) -> None:
        check_tracker(name)
        self.name, self._note, self._working, self._finished = name, note, True, False
        try:
            self._backend = _BACKENDS[name](directory, dict(flat(config)))
        except Exception as error:  # a library of others may raise anything
            raise InputError(f"{name} cannot start: {reason(error)}") from error

    def __call__(self, event: Event) -> None:
        """Send the measurements of the event."""
        if event.kind == "epoch":
            losses = {f"train/{name}": value for name, value in event.losses.items()}
            self._try(lambda: self._backend.log(losses, event.step))
        elif event.kind == "cell" and event.cell is not None:
            accuracy = {f"robust/{attack_name(event.cell.attack)}": event.cell.accuracy}
            self._try(lambda: self._backend.log(accuracy, event.stage))

    def finish(self, metrics: Mapping[str, float | None]) -> None:
        """Send the final metrics of a finished run."""
        self._finished = True
        known = {name: value for name, value in metrics.items() if value is not None}
        self._try(lambda: self._backend.summarise(known))

    def close(self) -> None:
        """End the tracker's run, as failed unless it was finished."""
        self._try(lambda: self._backend.close(self._finished))

    def _try(self, send: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            send()
        except Exception as error:
            self._working = False
            self._note(f"warning: {self.name} failed and is not used any more: {reason(error)}")


def check_tracker(name: str) -> None:
    """Raise InputError if a tracker's package is missing, before a run starts."""
    try:
        import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed: pip install 'advbench[{name}]'") from None
    except Exception as error:
        raise InputError(f"{name} is installed, but does not load: {reason(error)}") from error


def flat(config: Mapping[str, Any], start: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by dotted names; lists become texts.

    >>> flat({"seed": 0, "plan": {"lr": 0.1}, "eval": ["fgsm", "pgd"]})
    [('seed', 0), ('plan.lr', 0.1), ('eval', 'fgsm,pgd')]
    """
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{start}{key}.")
        else:
            listed = isinstance(value, list | tuple)
            found.append((f"{start}{key}", ",".join(map(str, value)) if listed else value))
    return found


class _Wandb:
    """Weights & Biases: offline in the run's directory, unless WANDB_MODE says otherwise."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            id=directory.name,
            resume="allow",
            dir=str(directory),
            config=config,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        # Epochs and stages are counted apart.
        self._run.define_metric("epoch")
        self._run.define_metric("stage")
        self._run.define_metric("train/*", step_metric="epoch")
        self._run.define_metric("robust/*", step_metric="stage")

    def log(self, values: Mapping[str, float], step: int) -> None:
        axis = "epoch" if all(name.startswith("train/") for name in values) else "stage"
        self._run.log({**values, axis: step})

    def summarise(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """MLflow: where MLFLOW_TRACKING_URI says, by default a database file beside the run's directory."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        place = directory.resolve().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(place / 'mlflow.db').as_posix()}")
        self._client = MlflowClient(tracking_uri=uri)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(project)
        if known is None:
            own = {} if "MLFLOW_TRACKING_URI" in os.environ else {"artifact_location": place.as_uri()}
            experiment = self._client.create_experiment(project, **own)
        else:
            experiment = known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{directory.name}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, tags={TAG: directory.name}, run_name=directory.name)
        self._id = made.info.run_id
        for name, value in config.items():
            self._client.log_param(self._id, _plain(name), str(value)[:LONGEST])

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, _plain(name), value, step=step)

    def summarise(self, values: Mapping[str, float]) -> None:
        self.log(values, 0)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


def _plain(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name)


_BACKENDS: dict[str, Callable[[Path, dict[str, Any]], Backend]] = {"wandb": _Wandb, "mlflow": _MLflow}
TRACKERS = tuple(_BACKENDS)
"""The names of the trackers, which are those of their packages and extras."""
