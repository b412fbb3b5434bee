"""The final model of a run, as one network that attacks and certificates meet like any other model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from advbench.runs.saved import Run, load_run
from attacks_pool.errors import InputError
from defenses import Defense
from leaderboards.records.layout import RECORD

RUN = "run:"
"""Before the identifier of a run, where a record names it as the model."""


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run's directory, or the record in it."""
    return (path / RECORD).is_file() if path.is_dir() else path.name == RECORD and path.is_file()


def network_of(run: Run) -> nn.Module:
    """The final model of a run: images (N, C, H, W) in [0, 1] to logits (N, K), in eval mode on the CPU.

    Raises:
        InputError: the model cannot be read, or the run is target-aware.
    """
    if run.record.config.get("target_aware"):
        raise InputError(
            f"run {run.record.id} is target-aware: each attack meets another network, and no single one "
            "stands for the run"
        )
    network: nn.Module = run.model.view(None)
    if isinstance(network, Defense) and type(network).forward is Defense.forward:
        # It only hands images to its classifier, in a way that cannot be traced.
        return network.model
    return network


def model_of_run(path: Path, *, trust: bool) -> tuple[nn.Module, str, Path]:
    """The final model of the run at ``path``, ``run:`` and its identifier, and the file with the weights.

    Raises:
        RecordError: the record cannot be read.
        InputError: see :func:`network_of`; or the run names code and ``trust`` is False.
    """
    run = load_run(path, trust=trust)
    return network_of(run), f"{RUN}{run.record.id}", run.path / run.record.stages[-1].weights
