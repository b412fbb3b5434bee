"""Paired comparisons of attacks on one model: if a weaker attack wins, the stronger one's search failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leaderboards.records.entries import Flag
from leaderboards.statistics.naming import knobs_of

LEAST_DIFFERENCE = 0.05
LARGEST_P = 0.01
LEAST_FALL, STEEPER = 0.2, 3.0
"""A cliff: accuracy falls by this share from eps to 5 % above it, this many times as far as just below."""
LEAST_BEFORE = 0.03
"""The least fall just below eps that counts, so that a flat stretch alone makes no cliff."""
FEW = 500
"""Up to this many points, integer arithmetic gives the p-value faster than scipy."""
OVERCLAIM, OVERCLAIMED = 0.25, "overclaimed"
"""The evidence of ``weak-suite`` has this key if all probes together leave less by at least this share."""


class Info(Protocol):
    """What is known of an attack before it runs."""

    @property
    def norm(self) -> str | None:
        """The norm that bounds the attack; None if no norm does."""

    @property
    def family(self) -> str:
        """The kind of attack, such as single-step or ensemble."""

    @property
    def access(self) -> str:
        """white-box, black-box or transfer."""


class ProbedAttack(Protocol):
    """An attack of the pool, or an attack as a record describes it."""

    @property
    def text(self) -> str:
        """Its name with all knobs."""

    @property
    def name(self) -> str:
        """Its name alone."""

    @property
    def eps(self) -> float:
        """Its budget."""

    @property
    def knobs(self) -> Mapping[str, Any]:
        """All knobs."""

    @property
    def info(self) -> Info:
        """Its metadata."""


@dataclass(frozen=True, eq=False)
class Probed:
    """One measured attack: which of the first ``points`` test points survive it, (n,), and its access.

    ``network`` names the attacked network of a target-aware defense; attacks on one network are compared.
    """

    attack: ProbedAttack
    robust: NDArray[np.bool_]
    points: int
    access: str
    probe: bool = False
    network: str | None = None

    @property
    def single_step(self) -> bool:
        """Whether the attack takes one gradient step on the model itself."""
        return self.access == "white-box" and self.attack.info.family == "single-step"

    @property
    def iterative(self) -> bool:
        """Whether the attack takes several gradient steps on the model itself."""
        return self.access == "white-box" and not self.single_step


WEAK: Sequence[tuple[str, Callable[[Probed], bool]]] = (
    ("single-step-beats-iterative", lambda one: one.single_step),
    ("black-box-beats-white-box", lambda one: one.access == "black-box"),
    ("transfer-beats-white-box", lambda one: one.access == "transfer"),
)


def weak_beats_strong(measured: Sequence[Probed], *, together: bool = True) -> Iterator[Flag]:
    """Weak attacks that fool more points than the best iterative attack of the same norm.

    The run's own attacks are compared with its attacks of the same or a larger budget. A probe, or an attack
    without such a rival, is compared with all attacks of exactly its budget. If a probe of that budget then
    does as well as the run's weak attack, gradients work and the run's own search was poor: ``weak-suite``.
    With ``together``, a weak probe must beat all rivals combined: each sound search misses a few points that
    another finds. If none of the run's attacks uses gradients, a probe that fails says nothing about them.
    """
    iterative = [one for one in measured if one.iterative]
    for code, is_weak in WEAK:
        for weak in filter(is_weak, measured):
            rivals = [one for one in iterative if _same_norm(one, weak)]
            own = [one for one in rivals if not one.probe and one.attack.eps >= weak.attack.eps]
            equal = [one for one in rivals if math.isclose(one.attack.eps, weak.attack.eps, rel_tol=1e-6)]
            among = own if own and not weak.probe else equal
            if not among or (together and not own and _is_known(weak, measured)):
                continue
            strong, than = _best(among, weak), "{}, which is stronger"
            if together and weak.probe and len(among) > 1:
                strong, than = _union(among, strong), "all gradient attacks together, of which {} is the best"
            flag = compare(code, weak, strong, than=than)
            if flag is None:
                continue
            probes = [one for one in equal if one.probe]
            if among is own and probes and _lead(weak, _best(probes, weak)) < LEAST_DIFFERENCE:
                flag = flag.model_copy(update={"code": "weak-suite"})
            yield flag


def _same_norm(one: Probed, other: Probed) -> bool:
    # Attacks without a norm have no common scale for their budgets.
    return one.attack.info.norm is not None and one.attack.info.norm == other.attack.info.norm


def _best(rivals: Sequence[Probed], weak: Probed) -> Probed:
    """The rival that leaves the smallest share of the points that it and ``weak`` both attacked."""
    return min(rivals, key=lambda one: _share(one, min(one.points, weak.points)))


def _is_known(weak: Probed, measured: Sequence[Probed]) -> bool:
    """Whether the run's attacks of at least its budget together leave about as few points as ``weak``."""
    own = [
        one
        for one in measured
        if not one.probe and _same_norm(one, weak) and one.attack.eps >= weak.attack.eps
    ]
    return bool(own) and _lead(weak, _union(own, _best(own, weak))) < LEAST_DIFFERENCE


def _union(rivals: Sequence[Probed], best: Probed) -> Probed:
    """The points that survive all rivals, of those that all attacked, as one attack named after the best."""
    points = min(one.points for one in rivals)
    left = np.logical_and.reduce([one.robust[:points] for one in rivals])
    return Probed(best.attack, left, points, best.access, network=best.network)


def _lead(weak: Probed, strong: Probed) -> float:
    """How much less ``weak`` leaves than ``strong``, as a share of the points that both attacked."""
    points = min(weak.points, strong.points)
    return _share(strong, points) - _share(weak, points)


def rises_with_eps(ladder: Sequence[Probed]) -> Iterator[Flag]:
    """The clearest case where one search fools fewer points with a larger budget."""
    flags = [
        flag
        for small in ladder
        for large in ladder
        if small.attack.eps < large.attack.eps
        and (flag := compare("accuracy-rises-with-eps", small, large, than="{}, whose budget is larger"))
    ]
    if flags:
        yield max(flags, key=lambda flag: float(flag.evidence["difference"]))


def cliff(ladder: Sequence[Probed], eps: float) -> Iterator[Flag]:
    """``cliff``: accuracy that holds at exactly ``eps`` falls just above it.

    A defense that knows the budget, or that looks up clean images within it, has such an edge; others lose
    accuracy evenly. ``ladder`` is one search at several budgets, including the nearest on either side of
    ``eps``.
    """
    below = max((one for one in ladder if one.attack.eps < eps), key=lambda one: one.attack.eps, default=None)
    above = min((one for one in ladder if one.attack.eps > eps), key=lambda one: one.attack.eps, default=None)
    at = next((one for one in ladder if math.isclose(one.attack.eps, eps)), None)
    if below is None or above is None or at is None or above.attack.eps > 1.1 * eps:
        return
    points = min(below.points, at.points, above.points)
    before, after = _share(below, points) - _share(at, points), _share(at, points) - _share(above, points)
    if after < max(LEAST_FALL, STEEPER * max(before, LEAST_BEFORE)):
        return
    if flag := compare("cliff", above, at, than="{}: what holds at the budget falls just beyond it"):
        falls = {"fall_before": round(before, 4), "fall_beyond": round(after, 4)}
        yield flag.model_copy(update={"evidence": {**flag.evidence, **falls}})


def weak_suite(measured: Sequence[Probed], *, alone: bool = True) -> Iterator[Flag]:
    """Norms in which a probe, or an ensemble, leaves far fewer points than all other attacks of the run.

    A network that is not ``alone`` faces only some of the run's attacks. It then overclaims nothing, because
    its row is marked as target-aware and ranked separately.
    """
    for norm in sorted({str(one.attack.info.norm) for one in measured if one.attack.info.norm}):
        here = [one for one in measured if one.attack.info.norm == norm]
        strong = [one for one in here if one.probe or one.attack.info.family == "ensemble"]
        found = []
        for one in strong:
            own = [
                other
                for other in here
                if other not in strong and not other.probe and other.attack.eps >= one.attack.eps
            ]
            if own:
                points = min(one.points, *(other.points for other in own))
                union = _union(own, min(own, key=lambda other: _share(other, points)))
                whose = "all of the run's own" if one.probe else "all other attacks of the run"
                than = f"{whose} together, of which {{}} is the best"
                if flag := compare("weak-suite", one, union, than=than):
                    probes = [other for other in strong if other.probe and other.attack.eps == one.attack.eps]
                    more = _lead(_union(probes, one), union) if one.probe else 0.0
                    said = {OVERCLAIMED: round(more, 4)} if alone and more >= OVERCLAIM else {}
                    found.append(flag.model_copy(update={"evidence": {**flag.evidence, **said}}))
        if found:
            yield max(found, key=lambda flag: float(flag.evidence["difference"]))


def made_again(measured: Sequence[Probed]) -> Iterator[Flag]:
    """``batch-dependent``: one of the run's attacks leaves far less when the audit repeats it.

    Only a model that has changed in the meantime behaves like this; random draws alone change few points.
    """
    for again in (one for one in measured if one.probe and one.access != "transfer"):
        for before in measured:
            if before.probe or before.attack.text != again.attack.text:
                continue
            than = "during the run: answers depend on earlier queries"
            if flag := compare("batch-dependent", again, before, than=than):
                message = flag.message.replace(" leaves", ", repeated after the run, leaves")
                yield flag.model_copy(update={"message": message})


def compare(code: str, weak: Probed, strong: Probed, *, than: str) -> Flag | None:
    """A flag if ``weak`` leaves at least 5 points less than ``strong`` with a paired p below 0.01.

    The test is McNemar's exact test on the points that both attacks tried. ``than`` ends the message; its
    ``{}`` is replaced by the strong attack.
    """
    points = min(weak.points, strong.points)
    left, right = weak.robust[:points], strong.robust[:points]
    only_weak, only_strong = int(np.count_nonzero(right & ~left)), int(np.count_nonzero(left & ~right))
    difference = (only_weak - only_strong) / points
    if difference < LEAST_DIFFERENCE:
        return None
    p = _p_value(only_weak, only_weak + only_strong)
    if p >= LARGEST_P:
        return None
    other = than.format(label(strong, weak))
    message = f"{label(weak, strong)} leaves {100 * difference:.1f} points less than {other}"
    evidence = {
        "weak": weak.attack.text,
        "weak_access": weak.access,
        "strong": strong.attack.text,
        "points": points,
        "robust_after_weak": int(left.sum()),
        "robust_after_strong": int(right.sum()),
        "difference": difference,
        "fooled_by_weak_only": only_weak,
        "fooled_by_strong_only": only_strong,
        "p": p,
    }
    return Flag(code=code, message=message, evidence=evidence)


def label(one: Probed, other: Probed) -> str:
    """The attack's name, its differences from ``other``, and whether its images came from another model."""
    name = one.attack.name
    if name == other.attack.name:
        knobs, others = knobs_of(one.attack.text), knobs_of(other.attack.text)
        told = [knob for knob in ("eps", "loss") if knobs.get(knob) != others.get(knob)]
        name += "".join(f" {knob}={knobs[knob]}" for knob in told if knob in knobs)
    return f"{name} from another model" if one.access == "transfer" else name


def _p_value(fooled: int, total: int) -> float:
    """P(X >= fooled) for X ~ Bin(total, 1/2)."""
    if total <= FEW:
        # Importing scipy takes longer than checking a hundred records.
        return float(sum(math.comb(total, count) for count in range(fooled, total + 1)) / 2**total)
    from scipy.special import bdtrc

    return float(bdtrc(fooled - 1, total, 0.5))


def _share(one: Probed, points: int) -> float:
    return int(np.count_nonzero(one.robust[:points])) / points
