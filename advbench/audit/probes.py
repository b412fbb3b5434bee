"""Further measurements on a model, cheap compared with a run: its behaviour, and probe attacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.audit.competence import competence_flags, logit_flags
from advbench.audit.fresh import Fresh
from advbench.audit.networks import networks
from advbench.audit.prober import Prober
from advbench.audit.slope import Gradients, gradients
from advbench.audit.watching import Watched, watched_flags
from advbench.data import Split
from advbench.evaluation.evaluate import LOOKED_AT, Kept
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import View
from advbench.evaluation.stochastic import is_stochastic
from attacks_pool import Attack
from attacks_pool.calling.randomness import key_seed
from leaderboards import Cell, Flag
from leaderboards.audits.comparisons import Probed
from leaderboards.audits.following import found_on

POINTS = 200
"""Test points that probes are measured on; a quarter of them if each answer takes many draws."""


@dataclass(frozen=True)
class Probes:
    """The measurements on the first ``points`` test points.

    For each network (see `networks`), ``rows`` holds the probe attacks on it and, with a surrogate, those
    crafted on the surrogate; the last row holds requested transfer attacks. ``attacks`` lists the attacks of
    each row. ``gradients`` maps the labels of networks, ``networks`` maps each attack of the run to a label.
    ``surrogate`` names the surrogate, or says why there is none. ``flags`` are those from behaviour alone.
    The gradients of a model that has not ``learned`` are not checked. ``held_out`` says whether the points
    were compared with held-out points.
    """

    points: int
    rows: list[MatrixRow]
    attacks: list[list[Attack]]
    gradients: dict[str | None, Gradients]
    networks: dict[str, str | None]
    stochastic: bool
    surrogate: str | None = None
    flags: list[Flag] = field(default_factory=list)
    learned: bool = True
    held_out: bool = False

    @property
    def clean(self) -> NDArray[np.bool_]:
        """(points,) whether each point is classified correctly when clean."""
        return self.rows[0].clean

    @property
    def cells(self) -> list[Cell]:
        """One cell per probe attack; the threat of transferred ones says so."""
        return [cell for row in self.rows for cell in row.cells[1:]]

    @property
    def transferred(self) -> bool:
        """Whether there are transferred points."""
        return any(cell.threat.access == "transfer" for cell in self.cells)

    @property
    def robust(self) -> NDArray[np.bool_]:
        """(P, most points) which points survive each probe attack, in the order of ``cells``."""
        most = max(row.robust.shape[1] for row in self.rows)
        return np.concatenate(
            [np.pad(row.robust, ((0, 0), (0, most - row.robust.shape[1]))) for row in self.rows]
        )

    @property
    def measured(self) -> list[Probed]:
        """The probe attacks in the form for comparisons."""
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
    fresh: Fresh | None = None,
    held_out: Split | None = None,
) -> Probes:
    """Measure what an audit needs beyond a run.

    If attacks face several networks, as with a target-aware defense, each network is probed, so that probes
    attack the same networks as the run.

    Args:
        view: returns the module for an attack (``Defense.view``; ``lambda _: model`` for a plain model).
        data: test points; all are predicted clean, the first ``points`` are attacked.
        attacks: the run's attacks, whose norms and budgets the probes use.
        surrogate: another model for the same images and classes, to craft transferred points on.
        surrogate_name: its name in the record (by default: another model), or why there is none.
        seed: the run's seed, the key of every draw.
        stage: the stage of the cells.
        points: how many test points to attack.
        stochastic: whether the model is randomised; ``None`` queries it twice to find out.
        device: the device of the model; by default that of ``data``.
        kept, attack_timeout: passed to the evaluator.
        transferred: further attacks to craft on the surrogate, each with its number of points.
        fresh: a copy of the model from before its first query; by default a copy of its present state.
        held_out: points of the data set that the run did not measure.
    """
    place, key = device or data.images.device, key_seed("probe", seed)
    with ExitStack() as stack:
        fresh = fresh or stack.enter_context(Fresh(view, attacks, place))
        asked = data.images[:LOOKED_AT].to(place)
        random = is_stochastic(view(None), asked, key) if stochastic is None else stochastic
        count = min(max(points // 4, 1) if random else points, len(data))
        few = data.take(slice(count)).to(place)
        every, labels = networks(view, attacks, asked, key)
        prober = Prober(few, attacks, surrogate, key, random, place, stage, kept, attack_timeout)
        # Do this before the probe attacks, while a model with memory has seen only the run's points.
        watched = {network.label: Watched(network.module, key, place) for network in every}
        flags: dict[str | None, list[Flag]] = {}
        for network in every:
            with watched[network.label].listening():
                flags[network.label] = list(prober.consistency(network, fresh))
    met = [network for network in every if network.label in labels.values()] or every
    rows = prober.searches(met, [attack for attack, _ in transferred])
    if transferred and surrogate is not None:
        most = max(limit for _, limit in transferred)
        row = prober.row(view, data.first(most), transferred, labels, moved=True)
        rows.append((row, [attack for attack, _ in transferred]))
    first, made = rows[0]
    right = few.x.new_tensor(first.clean).bool()
    untaught = list(competence_flags(view(None), few.x, few.y, int(right.sum()), key))
    for network in every:
        flags[network.label] += logit_flags(network.module, data.images, key, place)
        if not untaught:
            own = [attack for attack in attacks if labels[attack.text] == network.label]
            flags[network.label] += prober.gradients(network, own, right)
    memorised: list[Flag] | None = None
    if not random and not untaught:
        with watched[met[0].label].listening():
            flags[met[0].label] += prober.composed(met[0], first, made)
        for network in every:
            with watched[network.label].listening():
                # Use the other loss, and as many points at once as the probes.
                prober.again(network, first.clean)
            said = {flag.code for flag in flags[network.label]}
            heard = watched_flags(watched[network.label])
            flags[network.label] += [flag for flag in heard if flag.code not in said]
        if held_out is not None and len(held_out):
            memorised = prober.memorised(met[0], first, made, held_out)
    found = {
        network.label: gradients(network.module, few.x[right], few.y[right], prober.eps, key)
        for network in every
    }
    on_networks = [found_on(flag, label, len(every)) for label, some in flags.items() for flag in some]
    return Probes(
        points=count,
        rows=[row for row, _ in rows],
        attacks=[made for _, made in rows],
        gradients=found,
        networks=labels,
        stochastic=random,
        surrogate=surrogate_name or (None if surrogate is None else "another model"),
        flags=[*untaught, *on_networks, *(memorised or [])],
        learned=not untaught,
        held_out=memorised is not None,
    )
