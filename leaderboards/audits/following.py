"""Derives flags from stored outcomes, and the verdict from flags, without running a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from leaderboards.audits.comparisons import (
    OVERCLAIMED,
    WEAK,
    Probed,
    cliff,
    rises_with_eps,
    weak_beats_strong,
    weak_suite,
)
from leaderboards.records.entries import CLEAN, Audit, Flag, Verdict

STEPS: Final = 40
BRIEF_STEPS: Final = 15
"""Steps of a gradient probe; the smaller number applies if each step averages many draws."""
PGD: Final = {"linf": "pgd", "l2": "pgd-l2"}
DID_NOT_TRAIN: Final = "did-not-train"
CHECK_NORMALISATION: Final = "check-normalisation"
UNTAUGHT: Final = (DID_NOT_TRAIN, CHECK_NORMALISATION)
NEWEST = "planted-not-found"
"""A check that older audits did not run."""
INVALIDATING = ("nan-logits",)
FROM_OUTCOMES = (
    *(code for code, _ in WEAK),
    "accuracy-rises-with-eps",
    "unbounded-attack-fails",
    "cliff",
    "weak-suite",
)
ONLY_SAID = ("weak-suite",)
"""Faults of the run's attacks, not of the model: reported only, unless they make the run overclaim."""
UNBOUNDED_LEFT = 0.05
"""The share of correctly classified points that may survive an unbounded attack."""


def older(audit: Audit) -> bool:
    """Whether the audit was made by a version with fewer probes and checks."""
    return bool(audit.probes) and NEWEST not in audit.checks


def verdict_of(flags: Sequence[Flag]) -> Verdict:
    """``invalid``, ``suspect`` or ``ok``, from the codes of the flags."""
    codes = {flag.code for flag in flags if flag.code not in ONLY_SAID or OVERCLAIMED in flag.evidence}
    return "invalid" if codes & set(INVALIDATING) else "suspect" if codes else "ok"


def from_outcomes(measured: Sequence[Probed], right: int, *, older: bool = False) -> list[Flag]:
    """The flags that follow from outcomes alone, with the codes :data:`FROM_OUTCOMES`, network by network.

    Args:
        measured: the run's own attacks on the final model, then the probes.
        right: how many of the points that probes attacked are classified correctly when clean.
        older: compare as an older audit did: see `older`.
    """
    found: list[Flag] = []
    for network in dict.fromkeys(one.network for one in measured):
        here = [one for one in measured if one.network == network]
        weak = weak_suite(here, alone=count_networks(measured) == 1)
        beaten = weak_beats_strong(here, together=not older)
        raised = [*beaten, *_ladder(here), *_unbounded(here, right), *weak]
        found += [found_on(flag, network, count_networks(measured)) for flag in raised]
    return found


def count_networks(measured: Sequence[Probed]) -> int:
    """How many networks the defense has; the network for clean images always counts."""
    return len({None, *(one.network for one in measured)})


def by_loss(measured: Sequence[Probed], norm: str = "linf") -> dict[str, list[Probed]]:
    """The PGD probes of a norm on the model itself, by loss, without repeated attacks of the run."""
    found = [
        one
        for one in measured
        if one.probe
        and one.iterative
        and one.attack.name == PGD[norm]
        and one.attack.knobs["steps"] in (STEPS, BRIEF_STEPS)
    ]
    return {loss: [one for one in found if one.attack.knobs["loss"] == loss] for loss in ("ce", "margin")}


def _ladder(measured: Sequence[Probed]) -> Iterator[Flag]:
    for norm in ("linf", "l2"):
        found = by_loss(measured, norm)
        yield from rises_with_eps(found["ce"])
        # The margin loss is searched at the run's budget, and without a bound.
        for eps in {one.attack.eps for one in found["margin"] if norm == "l2" or one.attack.eps < 1}:
            yield from cliff(found["ce"], eps)


def _unbounded(measured: Sequence[Probed], right: int) -> Iterator[Flag]:
    """A flag if too many points survive attacks that may produce any image."""
    unbounded = [one for ones in by_loss(measured).values() for one in ones if one.attack.eps == 1.0]
    if not unbounded:
        return
    left = int(np.stack([one.robust for one in unbounded]).all(0).sum())
    if right and left / right > UNBOUNDED_LEFT and left > 1:
        texts = [one.attack.text for one in unbounded]
        message = f"{left} of {right} points survive attacks that may change every pixel without limit"
        evidence = {"attacks": texts, "right": right, "robust": left, "points": unbounded[0].points}
        yield Flag(code="unbounded-attack-fails", message=message, evidence=evidence)


def found_on(flag: Flag, label: str | None, among: int) -> Flag:
    """The flag, with the network that it was raised on if there are several (``among``)."""
    if among < 2:
        return flag
    name = label or CLEAN
    return flag.model_copy(
        update={
            "message": f"{flag.message} (on the network for {name})",
            "evidence": {**flag.evidence, "network": name},
        }
    )
