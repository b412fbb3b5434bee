"""Attacks of foolbox 3.3.4 as ``fb:CLASS``, and foolbox's own short names for some (``fb:LinfPGD``).

The library's relative step size times eps is the step size here. BinarizationRefinementAttack and
DatasetAttack are left out because they need points from other attacks, GenAttack because it needs targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from attacks_pool.adapters.peer import Cost, Peer, PeerCall, refused
from attacks_pool.errors import InputError
from attacks_pool.metadata import gradient_steps

STEP = "alpha"
"""Replaces the name rel_stepsize, so that it becomes the knob step_size."""
NO_DEFAULT: Mapping[str, Any] = {"steps": 10}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "decision_rule": ("EN", "L1"),
    "loss": ("logits", "crossentropy"),
    "stepsize_search": ("geometric_progression", "grid_search"),
}
STOPS_TOGETHER = {"EADAttack", "L2CarliniWagnerAttack"}
START = "init_attack failed"
"""Part of the library's error message if it found no starting point for some of the points."""


def _arguments(name: str, budget: str | None) -> Mapping[str, Any]:
    foolbox = import_module("foolbox")
    parameters = inspect.signature(getattr(foolbox.attacks, name).__init__).parameters
    empty = inspect.Parameter.empty
    found: dict[str, Any] = {"eps": 1.0} if budget == "eps" else {}
    for argument, spec in parameters.items():
        if spec.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        if argument != "constraint" and (spec.default is not empty or argument in NO_DEFAULT):
            default = NO_DEFAULT[argument] if spec.default is empty else spec.default
            found[STEP if argument == "rel_stepsize" else argument] = default
    return found


def _make(name: str, fixed: Mapping[str, Any], job: PeerCall) -> Any:
    foolbox = import_module("foolbox")
    given = {**fixed, **job.arguments}
    given.pop("eps", None)
    if STEP in given:
        given["abs_stepsize"] = given.pop(STEP)
    try:
        return getattr(foolbox.attacks, name)(**given)
    except ImportError as error:
        raise InputError(f"attack 'fb:{name}' needs {error.name}, which is not installed") from None
    except (ValueError, TypeError, AssertionError) as error:
        raise refused(f"fb:{name}", error) from None


def _craft(name: str, fixed: Mapping[str, Any], job: PeerCall) -> object:
    foolbox, attack = import_module("foolbox"), _make(name, fixed, job)
    network = foolbox.PyTorchModel(job.model, bounds=(0, 1), device=job.x.device)

    def run(x: Tensor, y: Tensor) -> Tensor:
        criterion = foolbox.criteria.Misclassification(y)
        if name == "SpatialAttack":
            return attack(network, x, criterion)[0]  # type: ignore[no-any-return]
        if isinstance(attack, foolbox.attacks.base.FixedEpsilonAttack):
            return attack.run(network, x, criterion, epsilon=job.eps)  # type: ignore[no-any-return]
        return attack.run(network, x, criterion)  # type: ignore[no-any-return]

    try:
        return run(job.x, job.y)
    except ValueError as error:
        if START not in str(error):
            raise
    return torch.cat([_alone(run, job.x[i : i + 1], job.y[i : i + 1]) for i in range(len(job.x))])


def _alone(run: Any, x: Tensor, y: Tensor) -> Tensor:
    """Attack one point; return it clean if the library finds no starting point."""
    try:
        found: Tensor = run(x, y)
    except ValueError as error:
        if START not in str(error):
            raise
        return x
    return found


PGD, MIM, BIM, FGM = "1706.06083", "1710.06081", "1607.02533", "1412.6572"
_DESCENT = "ProjectedGradientDescentAttack"
# Class, family, norm, paper.
Row = tuple[str, str, str | None, str | None]


def _gradient_rows() -> Iterator[Row]:
    for prefix, norm in (("L1", "l1"), ("L2", "l2"), ("Linf", "linf")):
        yield f"{prefix}{_DESCENT}", "projected-gradient", norm, PGD
        yield f"{prefix}PGD", "projected-gradient", norm, PGD
        yield f"{prefix}Adam{_DESCENT}", "projected-gradient", norm, PGD
        yield f"{prefix}AdamPGD", "projected-gradient", norm, PGD
        yield f"{prefix}BasicIterativeAttack", "projected-gradient", norm, BIM
        yield f"{prefix}AdamBasicIterativeAttack", "projected-gradient", norm, BIM
        yield f"{prefix}MomentumIterativeFastGradientMethod", "momentum", norm, MIM
        yield f"{prefix}FastGradientAttack", "single-step", norm, FGM


_BUDGETED: tuple[Row, ...] = (
    *_gradient_rows(),
    ("PGD", "projected-gradient", "linf", PGD),
    ("AdamPGD", "projected-gradient", "linf", PGD),
    ("MIFGSM", "momentum", "linf", MIM),
    ("FGSM", "single-step", "linf", FGM),
    ("FGM", "single-step", "l2", FGM),
    ("SparseL1DescentAttack", "projected-gradient", "l1", "1904.13000"),
    ("VirtualAdversarialAttack", "projected-gradient", "l2", "1507.00677"),
    ("L2ContrastReductionAttack", "colour", "l2", None),
    ("LinfAdditiveUniformNoiseAttack", "noise", "linf", None),
    ("LinfRepeatedAdditiveUniformNoiseAttack", "noise", "linf", None),
    *(
        (f"L2{aware}{repeated}Additive{noise}NoiseAttack", "noise", "l2", None)
        for aware in ("", "ClippingAware")
        for repeated in ("", "Repeated")
        for noise in ("Gaussian", "Uniform")
    ),
)
_MINIMAL: tuple[Row, ...] = (
    ("DDNAttack", "minimal-norm", "l2", "1811.09600"),
    ("EADAttack", "minimal-norm", "l1", "1709.04114"),
    ("L2CarliniWagnerAttack", "minimal-norm", "l2", "1608.04644"),
    ("L2DeepFoolAttack", "minimal-norm", "l2", "1511.04599"),
    ("LinfDeepFoolAttack", "minimal-norm", "linf", "1511.04599"),
    ("NewtonFoolAttack", "minimal-norm", "l2", None),
    ("L0FMNAttack", "minimal-norm", "l0", "2102.12827"),
    ("L1FMNAttack", "minimal-norm", "l1", "2102.12827"),
    ("L2FMNAttack", "minimal-norm", "l2", "2102.12827"),
    ("LInfFMNAttack", "minimal-norm", "linf", "2102.12827"),
    ("L0BrendelBethgeAttack", "minimal-norm", "l0", "1907.01003"),
    ("L1BrendelBethgeAttack", "minimal-norm", "l1", "1907.01003"),
    ("L2BrendelBethgeAttack", "minimal-norm", "l2", "1907.01003"),
    ("LinfinityBrendelBethgeAttack", "minimal-norm", "linf", "1907.01003"),
    ("BoundaryAttack", "query", "l2", "1712.04248"),
    ("HopSkipJumpAttack", "query", "l2 linf", "1904.02144"),
    ("PointwiseAttack", "query", "l0", "1805.09190"),
    ("SaltAndPepperNoiseAttack", "noise", "l2", None),
    ("LinearSearchBlendedUniformNoiseAttack", "noise", "l2", None),
    ("BinarySearchContrastReductionAttack", "colour", "l2", None),
    ("LinearSearchContrastReductionAttack", "colour", "l2", None),
    ("InversionAttack", "colour", "l2", None),
    ("GaussianBlurAttack", "corruption", "l2", None),
)
_WHITE = ("single-step", "projected-gradient", "momentum", "minimal-norm")


def _peer(name: str, family: str, norm: Any, paper: str | None, kind: Any, *, bare: bool = True) -> Peer:
    together = "; early stopping considers the whole batch" if name in STOPS_TOGETHER else ""
    budget = {"budgeted": "eps" if norm else "max_translation"}.get(kind)
    gradient = kind == "budgeted" and family in ("projected-gradient", "momentum", "single-step")
    cost: Cost | None = gradient_steps if gradient and name != "VirtualAdversarialAttack" else None
    fixed = {"constraint": norm} if name == "HopSkipJumpAttack" else {}
    return Peer(
        name=f"fb:{name}" if bare else f"fb:{name}-{norm}",
        summary=f"{name} of foolbox{f', {norm}' if norm else ''}{together}.",
        family=family,
        norm=norm,
        kind=kind,
        access="white-box" if family in _WHITE else "black-box",
        paper=paper,
        craft=partial(_craft, name, fixed),
        make=partial(_make, name, fixed),
        arguments=partial(_arguments, name, budget),
        budget=budget,
        choices=CHOICES,
        cost=cost,
    )


def _table() -> dict[str, Peer]:
    found = [_peer("SpatialAttack", "spatial", None, "1712.02779", "budgeted")]
    found += [_peer(name, family, norm, paper, "budgeted") for name, family, norm, paper in _BUDGETED]
    for name, family, norms, paper in _MINIMAL:
        every = str(norms).split()
        found += [_peer(name, family, norm, paper, "minimal-norm", bare=norm == every[0]) for norm in every]
    return {peer.name: peer for peer in found}


PEERS = _table()
