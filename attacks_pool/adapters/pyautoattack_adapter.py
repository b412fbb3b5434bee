"""AutoAttack's own code, pyautoattack 0.2.0: ``aa:apgd-ce``, ``aa:apgd-t``, …, ``aa:standard``.

A suffix names the norm (``aa:square-l2``, ``aa:apgd-ce-l1``); linf has no suffix. The parts have the same
settings as in the standard version. A model with fewer than 10 classes is attacked towards every wrong
class, although the library itself would refuse it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from attacks_pool.adapters.peer import Peer, PeerCall, refused

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
VERSIONS = ("standard", "plus", "rand")
CLASSES = {"apgd": ("autopgd_base", "APGDAttack"), "apgd-t": ("autopgd_base", "APGDAttack_targeted")}
CLASSES |= {"fab": ("fab_pt", "FABAttack_PT"), "square": ("square", "SquareAttack")}
FIXED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "apgd-ce": ("apgd", {"loss": "ce"}),
    "apgd-dlr": ("apgd", {"loss": "dlr"}),
    "apgd-t": ("apgd-t", {}),
    "fab": ("fab", {"targeted": False}),
    "fab-t": ("fab", {"targeted": True}),
    "square": ("square", {"targeted": False, "resc_schedule": False}),
}
"""Parts of AutoAttack: the class of each, and the arguments that its name fixes."""
INNER = {"predict", "use_largereps", "is_tf_model", "targeted", "resc_schedule", "topk", "loss_fn"}
_quiet = logging.getLogger(__name__)
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def _class(part: str) -> Any:
    from importlib import import_module

    module, name = CLASSES[FIXED[part][0]]
    return getattr(import_module(f"pyautoattack.{module}"), name)


def _arguments(part: str, norm: str) -> Mapping[str, Any]:
    parameters = inspect.signature(_class(part).__init__).parameters
    fixed = FIXED[part][1]
    found = {
        argument: spec.default
        for argument, spec in parameters.items()
        if spec.default is not inspect.Parameter.empty and argument not in INNER | set(fixed)
    }
    if norm == "l1":
        found |= {"apgd-ce": {"n_restarts": 5}, "apgd-t": {"n_target_classes": 5}}.get(part, {})
    if part == "fab":
        found.pop("n_target_classes")
    return found


def _make(part: str, norm: str, job: PeerCall) -> Any:
    takes = inspect.signature(_class(part).__init__).parameters
    extra = {"use_largereps": norm == "l1", "logger": _quiet, "device": job.x.device, "seed": job.seed}
    given = {**job.arguments, **FIXED[part][1], "norm": NORMS[norm], "verbose": False}
    given |= {argument: value for argument, value in extra.items() if argument in takes}
    if "n_target_classes" in given:
        given["n_target_classes"] = min(int(given["n_target_classes"]), job.classes - 1)
    try:
        return _class(part)(job.model, **given)
    except (ValueError, TypeError, AssertionError) as error:
        raise refused(f"aa:{part}", error) from None


def _craft(part: str, norm: str, job: PeerCall) -> object:
    return _make(part, norm, job).perturb(job.x, job.y)


def _whole(version: str, norm: str, job: PeerCall) -> Tensor:
    """Run every part in turn on the points that are still robust."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        job.model, device=job.x.device, eps=job.eps, norm=NORMS[norm], seed=job.seed, version=version
    )
    attack.logger = attack.apgd.logger = attack.apgd_targeted.logger = _quiet
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, job.classes - 1)
    found: Tensor = attack.run_standard_evaluation(job.x, job.y, batch_size=len(job.x))[0]
    return found


LEAST = {"apgd-dlr": 3, "apgd-t": 4, "standard": 4, "plus": 4, "rand": 3}
SQUARE_SIDE = 5
"""Smallest image side on which the library's Square attack has room for its windows in l2 and l1."""
WITH_SQUARE = ("square", "standard", "plus")
FAMILY = {"fab": "minimal-norm", "fab-t": "minimal-norm", "square": "query"}
PAPER = {"fab": "1907.02044", "fab-t": "1907.02044", "square": "1912.00049"}


def _peer(part: str, norm: Any) -> Peer:
    whole = part in VERSIONS
    family = FAMILY.get(part, "ensemble" if whole else "projected-gradient")
    return Peer(
        name=f"aa:{part}" if norm == "linf" else f"aa:{part}-{norm}",
        summary=f"{part} in AutoAttack's own code, {norm}.",
        family=family,
        norm=norm,
        kind="minimal-norm" if family == "minimal-norm" else "budgeted",
        access="black-box" if family == "query" else "white-box",
        paper=PAPER.get(part, "2003.01690" if norm != "l1" else "2103.01208"),
        craft=partial(_whole if whole else _craft, part, norm),
        make=None if whole else partial(_make, part, norm),
        arguments=dict if whole else partial(_arguments, part, norm),
        budget=None if whole else "eps",
        choices={"loss": ("margin", "ce")},
        min_side=SQUARE_SIDE if part in WITH_SQUARE and norm != "linf" else 1,
        least_classes=LEAST.get(part, 2),
        asks_classes=whole or part in ("apgd-t", "fab-t"),
    )


PEERS = {peer.name: peer for peer in (_peer(part, norm) for part in (*FIXED, *VERSIONS) for norm in NORMS)}
