"""The probe attacks of the audit and their budgets."""

from __future__ import annotations

from collections.abc import Sequence

from attacks_pool import Attack, pool
from leaderboards.audits.following import BRIEF_STEPS, PGD, STEPS

QUERIES, BRIEF_QUERIES = 300, 60
LABELS = 150
"""Queries of the probe that sees only predicted labels."""
DRAWS = 20
"""Draws of the noise probe."""
WITHOUT_ATTACKS = 0.1
"""The linf eps of probes if the run has no linf attack to take it from."""
DEAREST = 200
"""The most backward passes per point of an attack of the run that the audit repeats."""
FEW, FEWEST = 100, 50
"""Points of probes that only look for large differences, and of the other budgets of a ladder."""
NEAR = 0.05
"""How far below and above eps, relative to eps, a search looks for a cliff."""


def budget(attacks: Sequence[Attack], norm: str) -> float:
    """The largest eps of this norm among ``attacks``; without any, a default for linf and 0 for others."""
    found = [attack.eps for attack in attacks if attack.info.norm == norm]
    return max(found, default=WITHOUT_ATTACKS if norm == "linf" else 0.0)


def battery(attacks: Sequence[Attack], *, brief: bool = False) -> list[Attack]:
    """The probes that attack the model itself.

    They are a single step, PGD with two losses at a ladder of eps up to unbounded, an adaptive search, random
    search and plain noise.
    """
    eps = budget(attacks, "linf")
    steps = BRIEF_STEPS if brief else STEPS
    found = [pool.get("fgsm", eps=eps)]
    found += [_pgd("linf", rung, "ce", steps) for rung in ([eps, 1.0] if brief else ladder(eps))]
    found += [_pgd("linf", rung, "margin", steps) for rung in (eps, 1.0)]
    if not brief:
        found.append(pool.get("apgd", eps=eps, steps=steps, loss="margin"))
    found.append(pool.get("square", eps=eps, steps=BRIEF_QUERIES if brief else QUERIES))
    found.append(pool.get("rays", eps=eps, steps=BRIEF_QUERIES if brief else LABELS))
    found.append(pool.get("gaussian-noise", eps=eps, restarts=DRAWS))
    if other := budget(attacks, "l2"):
        rungs = [other] if brief else [_near(other, -NEAR), other, _near(other, NEAR)]
        found += [_pgd("l2", rung, "ce", steps) for rung in rungs]
        found.append(_pgd("l2", other, "margin", steps))
    found += [] if brief else again(attacks)
    return list({attack.text: attack for attack in found}.values())


def again(attacks: Sequence[Attack]) -> list[Attack]:
    """The cheapest iterative attack of the run, for repeating it after the run; none if all are expensive."""
    costs = [(attack, attack.info.passes(attack.knobs)) for attack in attacks if attack.info.norm is not None]
    found = [
        (sum(cost), attack)
        for attack, cost in costs
        if cost is not None and 1 < cost[1] <= DEAREST and attack.info.access == "white-box"
    ]
    return [min(found, key=lambda one: one[0])[1]] if found else []


def enough(attack: Attack, attacks: Sequence[Attack], most: int) -> int:
    """How many of ``most`` points a probe uses: few if it only looks for large differences.

    Probes at the run's own eps are compared together, so none of them uses the smallest number.
    """
    if attack.name in PGD.values():
        eps = budget(attacks, str(attack.info.norm))
        if attack.eps in (eps / 2, _near(eps, -NEAR), _near(eps, NEAR)):
            return min(most, FEWEST)
    made_again = attack.text in {one.text for one in again(attacks)} and attack.knobs.get("steps") != STEPS
    return min(most, FEW) if made_again or attack.name == "rays" else most


def transfers(attacks: Sequence[Attack]) -> list[Attack]:
    """The probes that are crafted on a surrogate."""
    eps = budget(attacks, "linf")
    found = [_pgd("linf", eps, "ce", STEPS), pool.get("mim", eps=eps)]
    if other := budget(attacks, "l2"):
        found.append(_pgd("l2", other, "ce", STEPS))
    return found


def searched(attacks: Sequence[Attack]) -> Attack:
    """A short search that crafts points to query a model with."""
    return _pgd("linf", budget(attacks, "linf"), "margin", BRIEF_STEPS)


def reference(attacks: Sequence[Attack]) -> Attack:
    """The probe that compares the points that the run measured with other points."""
    norm = "linf" if any(one.info.norm == "linf" for one in attacks) or not budget(attacks, "l2") else "l2"
    return _pgd(norm, budget(attacks, norm), "margin", STEPS)


def brief(attacks: Sequence[Attack]) -> Attack:
    """`reference` with fewer steps."""
    full = reference(attacks)
    return _pgd(str(full.info.norm), full.eps, "margin", BRIEF_STEPS)


def ladder(eps: float) -> list[float]:
    """The budgets of a ladder: half of eps, eps, 5 % below and above it, and the whole box."""
    rungs = (eps / 2, _near(eps, -NEAR), eps, _near(eps, NEAR))
    return sorted({rung for rung in rungs if rung < 1} | {1.0})


def _near(eps: float, share: float) -> float:
    """``eps`` · (1 + ``share``), rounded to 6 digits."""
    return float(f"{eps * (1 + share):.6g}")


def _pgd(norm: str, eps: float, loss: str, steps: int) -> Attack:
    return pool.get(PGD[norm], eps=eps, steps=steps, loss=loss)
