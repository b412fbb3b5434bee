"""Further measurements on a model, cheap compared with a run: its behaviour, and probe attacks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.audit.asking import Asking
from advbench.audit.battery import battery, brief, budget, enough, reference, searched, transfers
from advbench.audit.behaviour import Gradients, gradients, logit_flags
from advbench.audit.between import composed, composed_flags, withstands
from advbench.audit.competence import competence_flags
from advbench.audit.fresh import Fresh
from advbench.audit.memorisation import CRAFTED, memorisation_flags, unseen_flags
from advbench.audit.networks import Network, networks
from advbench.audit.watching import Watched, watched_flags
from advbench.data import Split
from advbench.evaluation.evaluate import LOOKED_AT, Kept, evaluate, measure_some
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import View
from advbench.evaluation.stochastic import is_stochastic
from advbench.runtime.hashing import weights_digest
from attacks_pool import Attack, pool
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
    place, key = device or data.x.device, key_seed("probe", seed)
    with ExitStack() as stack:
        if fresh is None:
            fresh = stack.enter_context(Fresh(view, attacks, place))
        asked = data.x[:LOOKED_AT].to(place)
        random = is_stochastic(view(None), asked, key) if stochastic is None else stochastic
        count = min(max(points // 4, 1) if random else points, len(data))
        few = Split(data.x[:count].to(place), data.y[:count].to(place))
        every, labels = networks(view, attacks, asked, key)
        asking = Asking(few, attacks, surrogate, key, random)
        # Do this before the probe attacks, while a model with memory has seen only the run's points.
        watched = {network.label: Watched(network.module, key, place) for network in every}
        flags: dict[str | None, list[Flag]] = {}
        for network in every:
            with watched[network.label].listening():
                flags[network.label] = list(asking.consistency(network, fresh))
    whose = weights_digest(surrogate.state_dict()) if kept is not None and surrogate is not None else ""
    measure = _Measure(stage, key, random, place, kept, attack_timeout, surrogate, whose)
    met = [network for network in every if network.label in labels.values()] or every
    rows, made = _searches(measure, met, few, attacks, [attack for attack, _ in transferred])
    if transferred and surrogate is not None:
        most = max(limit for _, limit in transferred)
        row = measure.row(view, Split(data.x[:most], data.y[:most]), transferred, moved=True)
        rows.append(_labelled(row, labels))
        made.append([one for one, _ in transferred])
    right = few.x.new_tensor(rows[0].clean).bool()
    untaught = list(competence_flags(view(None), few.x, few.y, int(right.sum()), key))
    for network in every:
        flags[network.label] += logit_flags(network.module, data.x, key, place)
        if not untaught:
            own = [attack for attack in attacks if labels[attack.text] == network.label]
            flags[network.label] += asking.gradients(network, own, right)
    if not random and not untaught:
        step = pool.get("fgsm", eps=budget(attacks, "linf"))
        with watched[met[0].label].listening():
            flags[met[0].label] += _composed(measure, met[0], rows[0], made[0], few, attacks)
        for network in every:
            with watched[network.label].listening():
                # Use the other loss, and as many points at once as the probes.
                measure.again(network.view, few, step, rows[0].clean)
            said = {flag.code for flag in flags[network.label]}
            heard = watched_flags(watched[network.label])
            flags[network.label] += [flag for flag in heard if flag.code not in said]
    memorised: list[Flag] | None = None
    if held_out is not None and len(held_out) and not random and not untaught:
        others = Split(held_out.x[:CRAFTED].to(place), held_out.y[:CRAFTED].to(place))
        # Do this first, before the model is queried near these points.
        memorised, short = [], searched(attacks)
        if surrogate is not None:
            memorised += unseen_flags(view(None), surrogate, few, others, short, key)
        if not memorised:
            memorised += _memorised(measure, met[0], rows[0], made[0], others, reference(attacks))
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
            *untaught,
            *(found_on(flag, label, len(every)) for label, found in flags.items() for flag in found),
            *(memorised or []),
        ],
        learned=not untaught,
        held_out=memorised is not None,
    )


@dataclass(frozen=True)
class _Measure:
    """How the rows of an audit are measured: arguments of `evaluate`, and the surrogate with its digest."""

    stage: int
    key: int
    random: bool
    place: torch.device
    kept: Kept | None
    attack_timeout: float | None
    surrogate: nn.Module | None
    whose: str

    def row(
        self,
        view: View,
        data: Split,
        pairs: Sequence[tuple[Attack, int]],
        *,
        moved: bool = False,
        name: str = "",
    ) -> MatrixRow:
        """A row of attacks, crafted on the surrogate if ``moved``; ``name`` distinguishes cached pieces."""
        other = self.surrogate if moved else None
        return evaluate(
            view,
            data,
            pairs,
            stage=self.stage,
            seed=self.key,
            stochastic=self.random,
            surrogate=None if other is None else lambda _attack: other,
            surrogate_key=name + self.whose if moved else name,
            device=self.place,
            kept=self.kept,
            attack_timeout=self.attack_timeout,
        )

    def again(self, view: View, data: Split, attack: Attack, clean: NDArray[np.bool_]) -> None:
        """Run an attack on correctly classified points, as for a row, and ignore its result."""
        made = measure_some(
            view,
            data,
            [(attack, len(data))],
            clean,
            lambda shard: shard.attack is not None,
            stage=self.stage,
            seed=self.key,
            stochastic=self.random,
            device=self.place,
        )
        deque(made, maxlen=0)


def _searches(
    measure: _Measure, met: Sequence[Network], few: Split, attacks: Sequence[Attack], own: Sequence[Attack]
) -> tuple[list[MatrixRow], list[list[Attack]]]:
    """The rows of the battery and of transferred points, by network, and the attacks of each row."""
    searches = [(False, battery(attacks, brief=measure.random))]
    if measure.surrogate is not None:
        texts = {attack.text for attack in own}
        searches.append((True, [one for one in transfers(attacks) if one.text not in texts]))
    rows, made = [], []
    for network, (moved, given) in itertools.product(met, searches):
        if given:
            name = "" if network.label is None else f"on {network.label} "
            pairs = [(one, enough(one, attacks, len(few))) for one in given]
            row = measure.row(network.view, few, pairs, moved=moved, name=name)
            rows.append(_labelled(row, network.label))
            made.append(given)
    return rows, made


def _memorised(
    measure: _Measure, network: Network, row: MatrixRow, made: Sequence[Attack], others: Split, attack: Attack
) -> Iterator[Flag]:
    """``better-on-measured-points``, from a row with ``attack`` and the same attack on held-out points."""
    there = measure.row(network.view, others, [(attack, len(others))], name="held out ")
    here = row.robust[[one.text for one in made].index(attack.text)]
    return memorisation_flags(row.clean, here, there.clean, there.robust[0], attack)


def _composed(
    measure: _Measure,
    network: Network,
    row: MatrixRow,
    made: Sequence[Attack],
    few: Split,
    attacks: Sequence[Attack],
) -> Iterator[Flag]:
    """``worse-on-new-images``: new images under a quick search, against ``few`` under a longer one."""
    new, places = composed(few, measure.key)
    if not len(new):
        return
    quick, long = brief(attacks), reference(attacks)
    # Do not cache this search: a resumed audit must watch it again.
    there = replace(measure, kept=None).row(network.view, new, [(quick, len(new))])
    here = row.robust[[one.text for one in made].index(long.text)]
    known = Split(few.x[places], few.y[places])
    robust, robust_new = (
        outcome & withstands(network.module, points, few, str(long.info.norm), long.eps, measure.key)
        for outcome, points in ((here[places.cpu().numpy()], known), (there.robust[0], new))
    )
    clean = row.clean[places.cpu().numpy()]
    yield from composed_flags(clean, robust, there.clean, robust_new, quick.text)


def _labelled(row: MatrixRow, network: str | Mapping[str, str | None] | None) -> MatrixRow:
    """The row with the network of each cell set: one network for all, or each attack's own."""

    def label(cell: Cell) -> str | None:
        return network.get(cell.attack) if isinstance(network, Mapping) else network

    clean, *cells = row.cells
    return replace(row, cells=[clean, *(cell.model_copy(update={"network": label(cell)}) for cell in cells)])
