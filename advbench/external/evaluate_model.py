"""Evaluation of models that were trained elsewhere: any attacks, the same verifier, the same audit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from advbench.config.options import MOST_THREADS, attack_texts
from advbench.external.job import evaluate_job, prepare_job
from advbench.external.workers import MOST_WORKERS, share
from advbench.runs.saved import Run
from advbench.runtime.device import reproducible, undisturbed
from advbench.runtime.events import Listener
from advbench.runtime.ray_client import check_address, load_ray
from advbench.runtime.timeouts import check_timeout
from attacks_pool import InputError
from attacks_pool.metadata import whole_number


@undisturbed()
def evaluate_model(
    model: str | Callable[[Tensor], Any],
    dataset: str = "digits",
    *,
    attacks: str | Sequence[str] | None = None,
    preset: str | None = None,
    name: str | None = None,
    points: int | str | dict[str, int] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    weights: str | Path | None = None,
    model_dir: str | Path | None = None,
    threat: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    surrogate: str | Path | None = None,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    resume: bool | None = None,
    attack_timeout: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    abstain: str | None = None,
    trust: bool = False,
) -> Run:
    """Measure what a model that was trained elsewhere withstands; what ``advbench eval`` does.

    Args:
        model: ``package.module:factory``, a TorchScript (``.pt``) or exported (``.pt2``) file that is
            trusted, ``torchvision:NAME``, ``robustbench:NAME``; or a module, or a function, from images
            (N, C, H, W) in [0, 1] to logits (N, K).
        dataset: a name that ``advbench datasets`` lists.
        attacks: ``fgsm,pgd:steps=50`` or a list of such texts.
        preset: a ready list of attacks instead; ``standard`` when neither is given.
        name: how tables call the model.
        points: test points: ``1000``, ``"cw=1000"``, all by default.
        seed: determines every draw.
        device: ``auto`` leaves a module where it is; a module is moved to any other.
        threads: CPU threads.
        weights: safetensors, or a state dict without other pickles, for a model built from code.
        model_dir: where RobustBench's checkpoints are.
        threat: of RobustBench's models: ``linf`` (the default), ``l2`` or ``corruptions``.
        mean, std: normalisation to put before the model, one value a channel.
        surrogate: a run whose model the audit crafts transferred points on, or ``none``; by default a small
            plain model is trained for it on the data set's training images.
        runs_dir: where the run's directory is made.
        data_dir: where the data sets' files are.
        listeners: called with every :class:`advbench.runtime.events.Event`.
        resume: None goes on with an unfinished evaluation of ``runs_dir`` that was asked to do the very same
            on the same weights; False always begins a new one. Only a model given as text can be known again.
        attack_timeout: seconds that an attack may take for a block of points.
        workers: processes that share the blocks of all attacks, each on one thread unless ``threads`` says
            otherwise; the numbers do not depend on it.
        ray: a Ray cluster that shares them instead: ``auto``, ``local`` or ``host:port``; ``workers`` is then
            the number of tasks, one a CPU by default.
        abstain: ``last`` for a model that has one output more than there are classes, by which it abstains:
            right on attacked points, wrong on clean ones. Attacks are searched for against exactly that.
        trust: load a TorchScript or exported file: such a program can run any code.

    Returns:
        The evaluation; ``.record`` has everything that was measured.

    Raises:
        InputError, RecordError: anything that cannot be run; nothing is left on disk then.
        RunFailedError: anything that went wrong on the way; what was finished is kept.
    """
    check_timeout(attack_timeout)
    seed = whole_number("seed", seed)
    threads = None if threads is None else whole_number("threads", threads)
    workers = None if workers is None else whole_number("workers", workers)
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads={threads} is out of range: it must be from 1 to {MOST_THREADS}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed} is out of range: a seed is at least 0 and below 2**63")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers={workers} is out of range: it must be from 1 to {MOST_WORKERS}")
    shared = ray is not None or (workers or 1) > 1
    if shared and not isinstance(model, str):
        raise InputError("workers and ray need a model given as text, which others can load too")
    if shared and threads is None:
        threads = 1
    asked: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "attacks": attack_texts("attacks", attacks),
        "preset": preset,
        "name": name,
        "points": points,
        "seed": seed,
        "device": device,
        "threads": threads,
        "weights": weights,
        "model_dir": model_dir,
        "threat": threat,
        "mean": mean,
        "std": std,
        "surrogate": surrogate,
        "data_dir": data_dir,
        "attack_timeout": attack_timeout,
        "abstain": abstain,
        "trust": trust,
    }
    if ray is not None:
        check_address(ray)
        load_ray()
    with reproducible(threads):
        job, identity = prepare_job(**asked)
        share_out = None
        if shared and identity is not None:
            share_out = functools.partial(share, asked, identity, workers=workers, ray=ray)
        return evaluate_job(
            job, Path(runs_dir), listeners, identity=identity, fresh=resume is False, share_out=share_out
        )
