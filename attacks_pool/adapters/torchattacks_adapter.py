"""Every attack of torchattacks 3.5.1 as ``ta:CLASS``, or ``ta:CLASS-l2`` for a class with several norms.

LGV and MultiAttack are left out because they only wrap other attacks, FAB for l1 because the library cannot
run it, and targeted modes. JSMA compares every pair of pixels, so it suits only small images.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from attacks_pool.adapters.peer import Cost, Peer, PeerCall, refused

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
COLOUR = ("TIFGSM", "PIFGSM", "PIFGSMPP")
"""Attacks whose kernels require three channels."""
LEAST_SIDE = {"DIFGSM": 2, "TIFGSM": 2}
LEAST_SIDE_L2 = {"Square": 5, "AutoAttack": 5}
"""Smallest side for l2, where Square needs room for two adjacent windows."""
TELLS_CLASSES = {"APGDT", "FAB", "AutoAttack"}
TEN_CLASSES = {"JSMA"}
"""Attacks that target class (y + 1) mod 10; the adapter uses the model's number of classes instead of 10."""
STOPS_TOGETHER = {"CW", "EADL1", "EADEN"}
"""Attacks whose early stopping considers the loss of the whole batch."""
MAPPINGS = ("random", "similarity", "similarity_random", "distance", "distance_random")
CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "APGD": {"loss": ("ce", "dlr")},
    "AutoAttack": {"version": ("standard", "plus", "rand")},
    "Pixle": {"pixel_mapping": MAPPINGS},
    "Square": {"loss": ("margin", "ce")},
    "TIFGSM": {"kernel_name": ("gaussian", "linear", "uniform")},
    "UPGD": {"loss": ("ce", "dlr", "margin")},
    "PGDRS": {"noise_type": ("guassian", "uniform")},
    "PGDRSL2": {"noise_type": ("guassian", "uniform")},
}


def _arguments(name: str) -> Mapping[str, Any]:
    import torchattacks

    parameters = inspect.signature(getattr(torchattacks, name).__init__).parameters
    return {
        argument: spec.default
        for argument, spec in parameters.items()
        if spec.default is not inspect.Parameter.empty
    }


def _make(name: str, norm: str | None, job: PeerCall) -> Any:
    import torchattacks

    cls = getattr(torchattacks, name)
    takes = _arguments(name)
    extra = {"seed": job.seed, "n_classes": job.classes, "norm": norm}
    given = {**job.arguments, **{argument: value for argument, value in extra.items() if argument in takes}}
    try:
        attack = cls(job.model, **given)
    except (ValueError, TypeError, AssertionError, KeyError, NotImplementedError) as error:
        raise refused(f"ta:{name}", error) from None
    return attack


def _craft(name: str, norm: str | None, job: PeerCall) -> Tensor:
    attack = _make(name, norm, job)
    if name in TEN_CLASSES:
        attack.set_mode_targeted_by_function(lambda _images, labels: (labels + 1) % job.classes, quiet=True)
    found: Tensor = attack(job.x, job.y)
    return found


def _each_step(forwards: int = 1, backwards: int = 1, *, extra: int = 0, per: str | None = None) -> Cost:
    """Cost with so many passes per step, times the knob ``per`` if given, plus ``extra`` forward passes."""

    def cost(knobs: Mapping[str, Any], _classes: int) -> tuple[int, int]:
        runs = int(knobs.get("steps", 1)) * (int(knobs[per]) if per else 1)
        return runs * forwards + extra, runs * backwards

    return cost


def _free(_knobs: Mapping[str, Any], _classes: int) -> tuple[int, int]:
    return 0, 0


ONE = _each_step()
_COSTS: Mapping[str, Cost] = {
    **dict.fromkeys(("FGSM", "FFGSM", "BIM", "RFGSM", "PGD", "PGDL2", "MIFGSM", "NIFGSM", "DIFGSM"), ONE),
    **dict.fromkeys(("TIFGSM", "Jitter", "PIFGSM", "PIFGSMPP"), ONE),
    **dict.fromkeys(("EOTPGD", "UPGD"), _each_step(per="eot_iter")),
    **dict.fromkeys(("VANILA", "GN"), _free),
    "TPGD": _each_step(extra=1),
    "SINIFGSM": _each_step(per="m"),
}
# Class, family, norms, paper.
_BUDGETED: tuple[tuple[str, str, str, str | None], ...] = (
    ("VANILA", "noise", "linf", None),
    ("FGSM", "single-step", "linf", "1412.6572"),
    ("FFGSM", "single-step", "linf", "2001.03994"),
    ("BIM", "projected-gradient", "linf", "1607.02533"),
    ("RFGSM", "projected-gradient", "linf", "1705.07204"),
    ("PGD", "projected-gradient", "linf", "1706.06083"),
    ("PGDL2", "projected-gradient", "l2", "1706.06083"),
    ("EOTPGD", "projected-gradient", "linf", "1907.00895"),
    ("TPGD", "projected-gradient", "linf", "1901.08573"),
    ("UPGD", "projected-gradient", "linf", None),
    ("Jitter", "projected-gradient", "linf", "2105.10304"),
    ("PGDRS", "projected-gradient", "linf", "1906.04584"),
    ("PGDRSL2", "projected-gradient", "l2", "1906.04584"),
    ("APGD", "projected-gradient", "linf l2", "2003.01690"),
    ("APGDT", "projected-gradient", "linf l2", "2003.01690"),
    ("MIFGSM", "momentum", "linf", "1710.06081"),
    ("NIFGSM", "momentum", "linf", "1908.06281"),
    ("SINIFGSM", "momentum", "linf", "1908.06281"),
    ("VMIFGSM", "momentum", "linf", "2103.15571"),
    ("VNIFGSM", "momentum", "linf", "2103.15571"),
    ("DIFGSM", "momentum", "linf", "1803.06978"),
    ("TIFGSM", "momentum", "linf", "1904.02884"),
    ("PIFGSM", "momentum", "linf", "2007.06765"),
    ("PIFGSMPP", "momentum", "linf", "2012.15503"),
    ("SPSA", "query", "linf", "1802.05666"),
    ("Square", "query", "linf l2", "1912.00049"),
    ("AutoAttack", "ensemble", "linf l2", "2003.01690"),
)
_MINIMAL: tuple[tuple[str, str, str, str | None], ...] = (
    ("CW", "minimal-norm", "l2", "1608.04644"),
    ("DeepFool", "minimal-norm", "l2", "1511.04599"),
    ("EADL1", "minimal-norm", "l1", "1709.04114"),
    ("EADEN", "minimal-norm", "l1", "1709.04114"),
    ("FAB", "minimal-norm", "linf l2", "1907.02044"),
    ("JSMA", "minimal-norm", "l0", "1511.07528"),
    ("SparseFool", "minimal-norm", "l0", "1811.02248"),
    ("OnePixel", "query", "l0", "1710.08864"),
    ("Pixle", "query", "l0", "2202.02236"),
)
_OWN_BUDGET = {"PIFGSM": "max_epsilon", "PIFGSMPP": "max_epsilon", "GN": "std"}
_NO_BUDGET = {"VANILA"}


def _peer(name: str, family: str, norm: Any, paper: str | None, kind: Any, *, bare: bool) -> Peer:
    takes_eps = name not in _NO_BUDGET and (kind == "budgeted" or name == "FAB")
    together = "; early stopping considers the whole batch" if name in STOPS_TOGETHER else ""
    return Peer(
        name=f"ta:{name}" if bare else f"ta:{name}-{norm}",
        summary=f"{name} of torchattacks{f', {norm}' if norm else ''}{together}.",
        family=family,
        norm=norm,
        kind=kind,
        access="black-box" if family in ("query", "noise") else "white-box",
        paper=paper,
        craft=partial(_craft, name, NORMS.get(norm or "")),
        make=partial(_make, name, NORMS.get(norm or "")),
        arguments=partial(_arguments, name),
        budget=_OWN_BUDGET.get(name, "eps") if takes_eps else None,
        choices=CHOICES.get(name, {}),
        least_steps=10 if name in ("EADL1", "EADEN") else 1,
        channels=(3,) if name in COLOUR else None,
        min_side=(LEAST_SIDE_L2 if norm == "l2" else LEAST_SIDE).get(name, 1),
        least_classes=4 if name in ("APGDT", "AutoAttack") else 2,
        least_by_loss={"dlr": 3} if name in ("APGD", "UPGD") else {},
        asks_classes=name in TELLS_CLASSES | TEN_CLASSES,
        cost=_COSTS.get(name),
    )


def _table() -> dict[str, Peer]:
    found = [_peer("GN", "noise", None, None, "budgeted", bare=True)]
    for kind, rows in (("budgeted", _BUDGETED), ("minimal-norm", _MINIMAL)):
        for name, family, norms, paper in rows:
            found += [
                _peer(name, family, norm, paper, kind, bare=norm == norms.split()[0])
                for norm in norms.split()
            ]
    return {peer.name: peer for peer in found}


PEERS = _table()
