"""Evaluates models that were trained elsewhere: any attacks, the same verifier, the same audit."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from advbench.external.job import evaluate_job, prepare_job
from advbench.external.processes import shared_row, take_part
from advbench.external.request import EvalRequest
from advbench.external.workers import MOST_WORKERS, share
from advbench.runs.saved import Run
from advbench.runtime.device import reproducible, undisturbed
from advbench.runtime.events import Listener
from advbench.runtime.launch import launched, own_threads
from advbench.runtime.progress import watched
from advbench.runtime.ray_client import check_address, load_ray
from advbench.runtime.team import together
from attacks_pool import InputError
from attacks_pool.metadata import whole_number


@undisturbed()
@together(take_part)
def evaluate_model(
    model: str | Callable[[Tensor], Any],
    dataset: Any = "digits",
    *,
    runs_dir: str | Path = "runs",
    listeners: Sequence[Listener] = (),
    resume: bool | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Evaluate a model that was trained elsewhere, as ``advbench eval`` does.

    Args:
        model: a text, a module, or a function from images (N, C, H, W) in [0, 1] to logits (N, K); see
            :class:`advbench.EvalRequest`.
        dataset: a name that ``advbench datasets`` lists, ``package.module:factory``, or an object: a torch
            data set, a ``DataLoader``, or a pair of images and labels.
        runs_dir: where the run's directory is created.
        listeners: called with every :class:`advbench.runtime.events.Event`.
        resume: None resumes an unfinished evaluation in ``runs_dir`` with exactly the same options and
            weights; False always starts a new one. Only a model given as text can be recognised again.
        workers: processes that share the blocks of all attacks, each with one thread unless ``threads`` is
            set; the numbers do not depend on it.
        ray: a Ray cluster that shares them instead: ``auto``, ``local`` or ``host:port``; ``workers`` is then
            the number of tasks, one a CPU by default.
        progress: show on stderr how far it is; None, the default, shows it in notebooks alone.
        options: the other attributes of :class:`advbench.EvalRequest`: ``attacks``, ``preset``, ``points``,
            ``seed``, ``weights``, ``abstain``, …

    Where ``torchrun`` started several processes, all of them call this with the same arguments, and share the
    blocks of a model and a data set given as text. Process 0 alone writes.

    Returns:
        The evaluation; ``.record`` has all measurements.

    Raises:
        InputError, RecordError: the request cannot be run; nothing is left on disk.
        RunFailedError: something failed during the evaluation; finished parts are kept.
    """
    workers = None if workers is None else whole_number("workers", workers)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers={workers} is out of range: it must be from 1 to {MOST_WORKERS}")
    shared = ray is not None or (workers or 1) > 1
    if shared and not isinstance(model, str):
        raise InputError("workers and ray need a model given as text, which others can load too")
    if shared and not isinstance(dataset, str):
        raise InputError("workers and ray need a data set given as text, which others can load too")
    launch = launched()
    if shared and launch is not None:
        raise InputError("workers and ray do not go with torchrun, whose processes share the blocks already")
    if options.get("threads") is None and (shared or launch is not None):
        options["threads"] = 1 if launch is None else own_threads(launch)
    request = EvalRequest.of({"model": model, "dataset": dataset, **options})
    if ray is not None:
        check_address(ray)
        load_ray()
    with reproducible(request.threads):
        job, identity = prepare_job(request)
        share_out = None
        if shared and identity is not None:
            share_out = functools.partial(share, request, identity, workers=workers, ray=ray)
        others = shared_row(request, identity)
        how: dict[str, Any] = {"identity": identity, "fresh": resume is False}
        with watched(listeners, progress) as told:
            return evaluate_job(job, Path(runs_dir), told, share_out=share_out, others=others, **how)
