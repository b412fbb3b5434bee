"""An evaluation whose blocks the processes that ``torchrun`` started share."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from advbench.evaluation.sharing import SharedRow, ShareOfRow
from advbench.external.job import Evaluation, prepare_job
from advbench.external.request import EvalRequest
from advbench.runs.saved import Run
from advbench.runtime.device import reproducible
from advbench.runtime.team import Leader, Member, joined
from attacks_pool import InputError


@dataclass(frozen=True)
class BeginEval:
    """The first order of an evaluation: load its model and its data."""

    request: EvalRequest
    identity: str


def shared_row(request: EvalRequest, identity: str | None) -> SharedRow | None:
    """The other processes, ready to measure blocks; None without any, or if they cannot load the model."""
    leader = joined()
    texts = isinstance(request.model, str) and isinstance(request.dataset, str)
    if not isinstance(leader, Leader) or identity is None or not texts:
        return None
    leader.order(BeginEval(request, identity))
    leader.answers()
    return SharedRow(leader, None)


def take_part(member: Member, _options: Any = None) -> Run:
    """Do what process 0 orders until the end of an evaluation; return it.

    Raises:
        Exception: process 0 raised it.
    """
    jobs: list[Evaluation] = []

    def do(order: Any) -> None:
        if isinstance(order, BeginEval):
            stack.enter_context(reproducible(order.request.threads))
            job, identity = prepare_job(order.request)
            if identity != order.identity:
                raise InputError("the evaluation would differ: code, versions, device or files differ here")
            jobs.append(job)
        elif isinstance(order, ShareOfRow):
            job = jobs[0]
            order.measure(
                member,
                job.view,
                job.test,
                job.attacks,
                device=job.device,
                attack_timeout=job.attack_timeout,
            )

    with ExitStack() as stack:
        run: Run = member.serve(do)
    return run
