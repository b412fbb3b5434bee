"""Certifies trained models: those of runs, and those that were trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from advbench.config.options import DataOptions
from advbench.data import DataSet, load_dataset
from advbench.evaluation.certificates.certified import (
    CHOICES,
    SMOOTHING,
    Certified,
    Told,
    certify_points,
)
from advbench.evaluation.certificates.proving import check_ball
from advbench.evaluation.certificates.smoothing import ALPHA, DRAWS, Smoothing
from advbench.external.load import load_foreign
from advbench.external.request import EvalRequest
from advbench.external.run_models import network_of
from advbench.runs.certificate_record import attacked, certificate_path, certificate_tree, write_certificates
from advbench.runs.directory import plain_name
from advbench.runs.machine import describe
from advbench.runs.saved import Run
from advbench.runtime.device import choose_device, reproducible, undisturbed
from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import BUDGETS, whole_number


@dataclass(frozen=True)
class CertifyRequest:
    """What to prove.

    Attributes:
        norm: linf, l2 or l1.
        eps: the radius in the units of the images; None takes the data set's budget.
        points: test points, from the first on; None takes all.
        method: ``auto``, ``ibp``, ``crown``, ``alpha-crown`` or ``smoothing``.
        sigma: deviation of the noise of ``smoothing``, in the units of the images.
        draws: number of noisy copies of each image.
        alpha: probability that a certificate of ``smoothing`` is wrong.
        seed: determines the draws.
        device: as the other commands take it.
        threads: CPU threads; None leaves torch's.
        save: the file to write; None takes a place beside the run.
    """

    norm: str = "linf"
    eps: float | None = None
    points: int | None = None
    method: str = "auto"
    sigma: float | None = None
    draws: int | None = None
    alpha: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    save: Path | None = None

    def __post_init__(self) -> None:
        check_ball(self.norm, 0.0 if self.eps is None else self.eps)
        if self.method not in CHOICES:
            raise unknown("method", self.method, CHOICES)
        if self.points is not None and whole_number("points", self.points) < 1:
            raise InputError(f"points={self.points} is out of range: it must be at least 1")
        for name in ("sigma", "draws", "alpha"):
            if getattr(self, name) is not None and self.method != SMOOTHING:
                raise InputError(f"--{name} goes with --method smoothing")

    def radius(self, data: DataSet) -> float:
        """eps, by default from the table of budgets.

        Raises:
            InputError: none is given, and the data set has no budget.
        """
        if self.eps is not None:
            return self.eps
        if data.budget not in BUDGETS:
            raise InputError(f"data set {data.name!r} has no budget of its own: give --eps")
        return BUDGETS[data.budget][self.norm]

    def noise(self) -> Smoothing | None:
        """The noise, if the method is smoothing.

        Raises:
            InputError: its deviation is not given.
        """
        if self.method != SMOOTHING:
            return None
        if self.sigma is None:
            raise InputError(
                "--method smoothing needs the deviation of its noise: give --sigma, such as 0.25"
            )
        draws = DRAWS if self.draws is None else self.draws
        return Smoothing(self.sigma, draws, ALPHA if self.alpha is None else self.alpha, self.seed)


@undisturbed()
def certify_run(run: Run, asked: CertifyRequest, told: Told | None = None) -> tuple[Path, dict[str, Any]]:
    """Certify the final model of a run, and write the record into the run's folder ``certificates``.

    Args:
        run: the run; its record and checksums stay as they are.
        asked: what to prove.
        told: called with the number of points done and proved.

    Returns:
        the file and its contents.

    Raises:
        InputError: the model cannot be read, has no bounds, is stochastic or target-aware.
        RecordError: the run's outcomes cannot be read, or the record cannot be written.
    """
    model = network_of(run)
    if run.model.info.stochastic and asked.method != SMOOTHING:
        raise InputError(
            f"run {run.record.id} answers at random, which bounds do not cover: --method smoothing "
            "certifies a smoothed version of any model"
        )
    found, tree = _certified(model, run.data, asked, {"run": run.record.id}, run, told)
    return write_certificates(asked.save or certificate_path(run.path, found), tree), tree


@undisturbed()
def certify_model(
    request: EvalRequest, asked: CertifyRequest, runs_dir: Path, told: Told | None = None
) -> tuple[Path, dict[str, Any]]:
    """Certify a model that was trained elsewhere; the record goes to ``runs_dir/certificates``.

    Args:
        request: the model and its data; attacks are not used.
        asked: what to prove.
        runs_dir: where the record is written unless ``asked.save`` names a file.
        told: called with the number of points done and proved.

    Raises:
        InputError: the model or the data cannot be loaded, or the model has no bounds.
        RecordError: the record cannot be written.
    """
    choices = DataOptions.among(vars(request)).choices(request.data_memory)
    data = load_dataset(request.dataset, request.data_dir, choices)
    foreign = load_foreign(request.source, data, seed=request.seed, name=request.name)
    subject = {"name": foreign.name, **foreign.origin}
    found, tree = _certified(foreign.model, data, asked, subject, None, told)
    name = f"{plain_name(foreign.name, 60)}-{plain_name(data.name, 30)}"
    return write_certificates(asked.save or certificate_path(runs_dir, found, name), tree), tree


def _certified(
    model: nn.Module,
    data: DataSet,
    asked: CertifyRequest,
    subject: dict[str, Any],
    run: Run | None,
    told: Told | None,
) -> tuple[Certified, dict[str, Any]]:
    eps, device = asked.radius(data), choose_device(asked.device)
    points = len(data.test) if asked.points is None else min(asked.points, len(data.test))
    attacks: list[str] = []
    survived: list[bool] = []
    if run is not None:
        attacks, survived = attacked(run.path, run.record, asked.norm, eps, points)
    with reproducible(asked.threads):
        found = certify_points(
            model.to(device),
            data.test.first(points),
            norm=asked.norm,
            eps=eps,
            method=asked.method,
            smoothing=asked.noise(),
            told=told,
        )
        environment = describe(device, data)
    return found, certificate_tree(found, data, subject, environment, attacks=attacks, survived=survived)
