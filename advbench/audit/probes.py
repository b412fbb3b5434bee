"""Further measurements on a model, cheap next to a run: how it behaves, and what probe attacks find."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.audit.behaviour import Gradients, company_flags, gradients, logit_flags
from advbench.audit.comparisons import Probed
from advbench.audit.networks import found_on, networks
from advbench.data import Split
from advbench.evaluate import LOOKED_AT, Kept, Row, View, evaluate
from advbench.identity import weights_digest
from advbench.stochastic import is_stochastic
from attacks_pool import Attack, pool
from attacks_pool.randomness import key_seed
from leaderboards import Cell, Flag

POINTS = 200
"""Test points that probes are measured on; a quarter of them where each answer takes many draws."""
STEPS, BRIEF_STEPS = 40, 15
"""Steps of a gradient probe; the fewer ones where each step takes many draws."""
QUERIES, BRIEF_QUERIES = 300, 60
DRAWS = 20
"""Draws of the noise probe."""
PGD = {"linf": "pgd", "l2": "pgd-l2"}
WITHOUT_ATTACKS = 0.1
"""The linf eps of probes where the run has no linf attack to take one from."""


@dataclass(frozen=True)
class Probes:
    """What was measured on the first ``points`` test points.

    For each network (see `networks`) ``rows`` are the probe attacks searched on it and, with a surrogate, on
    that; a last row is of the attacks that were asked for from there. ``attacks`` are those of each row.
    ``gradients`` are by the label of the network, ``networks`` has the label for each attack of the run.
    ``surrogate`` names that, or says why there is none. ``flags`` are what behaviour alone shows.
    """

    points: int
    rows: list[Row]
    attacks: list[list[Attack]]
    gradients: dict[str | None, Gradients]
    networks: dict[str, str | None]
    stochastic: bool
    surrogate: str | None = None
    flags: list[Flag] = field(default_factory=list)

    @property
    def clean(self) -> NDArray[np.bool_]:
        """(points,) right clean."""
        return self.rows[0].clean

    @property
    def cells(self) -> list[Cell]:
        """A cell a probe attack; transferred ones say so in their threat."""
        return [cell for row in self.rows for cell in row.cells[1:]]

    @property
    def transferred(self) -> bool:
        """Whether there are transferred points."""
        return any(cell.threat.access == "transfer" for cell in self.cells)

    @property
    def robust(self) -> NDArray[np.bool_]:
        """(P, most points) what survives each probe attack, in the order of ``cells``."""
        most = max(row.robust.shape[1] for row in self.rows)
        return np.concatenate(
            [np.pad(row.robust, ((0, 0), (0, most - row.robust.shape[1]))) for row in self.rows]
        )

    @property
    def measured(self) -> list[Probed]:
        """The probe attacks, ready to be compared."""
        bound = [attack for attacks in self.attacks for attack in attacks]
        return [
            Probed(attack, robust, cell.n, cell.threat.access, probe=True, network=cell.network)
            for attack, robust, cell in zip(bound, self.robust, self.cells, strict=True)
        ]


def probe(
    view: View,
    data: Split,
    *,
    attacks: Sequence[Attack] = (),
    surrogate: nn.Module | None = None,
    surrogate_name: str | None = None,
    seed: int = 0,
    stage: int = 0,
    points: int = POINTS,
    stochastic: bool | None = None,
    device: torch.device | None = None,
    kept: Kept | None = None,
    attack_timeout: float | None = None,
    transferred: Sequence[tuple[Attack, int]] = (),
) -> Probes:
    """Measure what an audit needs beyond a run.

    Where attacks meet several networks, as those of a target-aware defense do, each of them is probed, so
    that a probe looks at the very network that cells of the run were measured on.

    Args:
        view: the module to look at for an attack (``Defense.view``; ``lambda _: model`` for a plain model).
        data: test points; all are asked clean, the first ``points`` are attacked.
        attacks: those of the run, whose norms and budgets the probes take.
        surrogate: another model of the same images and classes, to craft transferred points on.
        surrogate_name: how the record calls it (by default: another model), or why there is none.
        seed: of the run; keys every draw.
        stage: what the cells call the row.
        points: how many test points to attack.
        stochastic: whether the model answers at random; ``None`` asks it twice.
        device: where the model is; where ``data`` lie by default.
        kept, attack_timeout: of the evaluator.
        transferred: attacks to craft on the surrogate beside the probes, each with its number of points.
    """
    place, key = device or data.x.device, key_seed("probe", seed)
    asked = data.x[:LOOKED_AT].to(place)
    random = is_stochastic(view(None), asked, key) if stochastic is None else stochastic
    count = min(max(points // 4, 1) if random else points, len(data))
    few = Split(data.x[:count].to(place), data.y[:count].to(place))
    every, labels = networks(view, attacks, asked, key)
    whose = weights_digest(surrogate.state_dict()) if kept is not None and surrogate is not None else ""
    own = [attack.text for attack, _ in transferred]
    searches: list[tuple[nn.Module | None, list[Attack]]] = [(None, battery(attacks, brief=random))]
    if surrogate is not None:
        searches.append((surrogate, [one for one in transfers(attacks) if one.text not in own]))

    def measure(
        looked_at: View,
        split: Split,
        pairs: Sequence[tuple[Attack, int]],
        other: nn.Module | None,
        name: str = "",
    ) -> Row:
        return evaluate(
            looked_at,
            split,
            pairs,
            stage=stage,
            seed=key,
            stochastic=random,
            surrogate=None if other is None else lambda _attack: other,
            surrogate_key=name if other is None else name + whose,
            device=place,
            kept=kept,
            attack_timeout=attack_timeout,
        )

    rows, made = [], []
    met = [network for network in every if network.label in labels.values()] or every
    for network, (other, given) in itertools.product(met, searches):
        if given:
            name = "" if network.label is None else f"on {network.label} "
            row = measure(network.view, few, [(one, count) for one in given], other, name)
            rows.append(_labelled(row, network.label))
            made.append(given)
    if transferred and surrogate is not None:
        most = max(limit for _, limit in transferred)
        row = measure(view, Split(data.x[:most], data.y[:most]), transferred, surrogate)
        rows.append(_labelled(row, labels))
        made.append([one for one, _ in transferred])
    right = few.x.new_tensor(rows[0].clean).bool()
    eps = budget(attacks, "linf")
    return Probes(
        points=count,
        rows=rows,
        attacks=made,
        gradients={
            network.label: gradients(network.module, few.x[right], few.y[right], eps, key)
            for network in every
        },
        networks=labels,
        stochastic=random,
        surrogate=surrogate_name or (None if surrogate is None else "another model"),
        flags=[
            found_on(flag, network.label, len(every))
            for network in every
            for flag in _behaviour(network.module, data, key, place, random)
        ],
    )


def _labelled(row: Row, network: str | Mapping[str, str | None] | None) -> Row:
    """The row, its cells saying which network they were measured on: one for all, or each attack's own."""

    def label(cell: Cell) -> str | None:
        return network.get(cell.attack) if isinstance(network, Mapping) else network

    clean, *cells = row.cells
    return replace(row, cells=[clean, *(cell.model_copy(update={"network": label(cell)}) for cell in cells)])


def _behaviour(model: nn.Module, data: Split, key: int, place: torch.device, random: bool) -> Iterator[Flag]:
    """What merely asking a model shows."""
    yield from logit_flags(model, data.x, key, place)
    yield from company_flags(model, data.x[: LOOKED_AT * 2].to(place), key, stochastic=random)


def budget(attacks: Sequence[Attack], norm: str) -> float:
    """The largest eps of this norm among ``attacks``; 0 if there is none, but for linf a default."""
    found = [attack.eps for attack in attacks if attack.info.norm == norm]
    return max(found, default=WITHOUT_ATTACKS if norm == "linf" else 0.0)


def battery(attacks: Sequence[Attack], *, brief: bool = False) -> list[Attack]:
    """The probes that look at the model itself: one step, PGD by two losses, up and down the ladder of eps to
    the unbounded, an adaptive search, random search and plain noise."""
    eps = budget(attacks, "linf")
    steps = BRIEF_STEPS if brief else STEPS
    found = [pool.get("fgsm", eps=eps)]
    found += [_pgd("linf", rung, "ce", steps) for rung in ([eps, 1.0] if brief else ladder(eps))]
    found += [_pgd("linf", rung, "margin", steps) for rung in (eps, 1.0)]
    if not brief:
        found.append(pool.get("apgd", eps=eps, steps=steps, loss="margin"))
    found.append(pool.get("square", eps=eps, steps=BRIEF_QUERIES if brief else QUERIES))
    found.append(pool.get("gaussian-noise", eps=eps, restarts=DRAWS))
    if other := budget(attacks, "l2"):
        found += [_pgd("l2", other, loss, steps) for loss in ("ce", "margin")]
    return list({attack.text: attack for attack in found}.values())


def transfers(attacks: Sequence[Attack]) -> list[Attack]:
    """The probes that are crafted on a surrogate."""
    eps = budget(attacks, "linf")
    found = [_pgd("linf", eps, "ce", STEPS), pool.get("mim", eps=eps)]
    if other := budget(attacks, "l2"):
        found.append(_pgd("l2", other, "ce", STEPS))
    return found


def ladder(eps: float) -> list[float]:
    """Half of eps, eps, twice eps, and the whole box."""
    return sorted({rung for rung in (eps / 2, eps, 2 * eps) if rung < 1} | {1.0})


def _pgd(norm: str, eps: float, loss: str, steps: int) -> Attack:
    return pool.get(PGD[norm], eps=eps, steps=steps, loss=loss)
