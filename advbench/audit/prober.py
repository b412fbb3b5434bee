"""The measurements of an audit: queries of the networks of one defense, and searches on them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.audit.battery import battery, brief, budget, enough, reference, searched, transfers
from advbench.audit.consistency import asked_points, consistency_flags
from advbench.audit.fresh import Fresh
from advbench.audit.memorisation import (
    CRAFTED,
    composed,
    composed_flags,
    memorisation_flags,
    unseen_flags,
    withstands,
)
from advbench.audit.networks import Network
from advbench.audit.planted import planted_flags
from advbench.audit.slope import slope_flags
from advbench.data import Split
from advbench.evaluation.evaluate import Kept, evaluate, measure_some
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import View
from advbench.runtime.hashing import weights_digest
from attacks_pool import Attack, pool
from leaderboards import Flag

Rows = list[tuple[MatrixRow, list[Attack]]]
"""Rows, each with its attacks."""


@dataclass(frozen=True)
class Prober:
    """What the measurements of an audit share.

    Attributes:
        few: the test points that probes attack.
        attacks: the run's attacks.
        surrogate: another model, to craft points on.
        key: the seed of every draw.
        random: whether the defense is randomised. Its gradients are then not compared with its answers.
        place: the device.
        stage, kept, attack_timeout: arguments of `evaluate`.
    """

    few: Split
    attacks: Sequence[Attack]
    surrogate: nn.Module | None
    key: int
    random: bool
    place: torch.device
    stage: int
    kept: Kept | None
    attack_timeout: float | None

    @cached_property
    def eps(self) -> float:
        """The linf budget of probes."""
        return budget(self.attacks, "linf")

    @cached_property
    def whose(self) -> str:
        """A digest of the surrogate, which distinguishes cached pieces."""
        if self.kept is None or self.surrogate is None:
            return ""
        return weights_digest(self.surrogate.state_dict())

    def consistency(self, network: Network, fresh: Fresh) -> Iterator[Flag]:
        """Flags if answers depend on more than the image; ``fresh`` is a copy that was never queried."""
        models = [] if self.surrogate is None else [self.surrogate]
        models += [] if self.random else [network.module]
        searches = [(model, searched(self.attacks)) for model in models]
        points = asked_points(self.few.x, self.few.y, searches, self.eps, self.key)
        return consistency_flags(
            network.module, points, self.key, stochastic=self.random, fresh=fresh, network=network.label
        )

    def gradients(self, network: Network, met: Sequence[Attack], right: Tensor) -> Iterator[Flag]:
        """Flags if gradients are false, or if attacks miss adversarial points that certainly exist.

        Args:
            network: the network to query.
            met: the run's attacks on this network.
            right: (n,) points that are classified correctly when clean.
        """
        if self.random:
            return
        x, y = self.few.x[right], self.few.y[right]
        yield from slope_flags(network.module, x, y, self.eps, self.key)
        yield from planted_flags(network.module, x, met, points=len(self.few), seed=self.key)

    def row(
        self,
        view: View,
        data: Split,
        pairs: Sequence[tuple[Attack, int]],
        labels: Mapping[str, str | None],
        *,
        moved: bool = False,
        name: str = "",
    ) -> MatrixRow:
        """A row of attacks, crafted on the surrogate if ``moved``.

        Args:
            view, data, pairs: arguments of `evaluate`.
            labels: the label of the network that each attack is on, by its text; None for others.
            moved: whether to craft on the surrogate.
            name: distinguishes cached pieces.
        """
        other = self.surrogate if moved else None
        row = evaluate(
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
        clean, *cells = row.cells
        cells = [cell.model_copy(update={"network": labels.get(cell.attack)}) for cell in cells]
        return replace(row, cells=[clean, *cells])

    def searches(self, met: Sequence[Network], own: Sequence[Attack]) -> Rows:
        """Rows of the battery and of transferred points, by network; ``own`` are transferred separately."""
        searches = [(False, battery(self.attacks, brief=self.random))]
        if self.surrogate is not None:
            texts = {attack.text for attack in own}
            searches.append((True, [one for one in transfers(self.attacks) if one.text not in texts]))
        rows: Rows = []
        for network, (moved, given) in itertools.product(met, searches):
            if given:
                name = "" if network.label is None else f"on {network.label} "
                pairs = [(one, enough(one, self.attacks, len(self.few))) for one in given]
                labels = {one.text: network.label for one in given}
                row = self.row(network.view, self.few, pairs, labels, moved=moved, name=name)
                rows.append((row, given))
        return rows

    def again(self, network: Network, clean: NDArray[np.bool_]) -> None:
        """Run a single step on correctly classified points, as for a row, and ignore its result."""
        made = measure_some(
            network.view,
            self.few,
            [(pool.get("fgsm", eps=self.eps), len(self.few))],
            clean,
            lambda shard: shard.attack is not None,
            stage=self.stage,
            seed=self.key,
            stochastic=self.random,
            device=self.place,
        )
        deque(made, maxlen=0)

    def memorised(
        self, network: Network, row: MatrixRow, made: Sequence[Attack], held_out: Split
    ) -> list[Flag]:
        """``better-on-measured-points``, from a row of ``made`` attacks and the same on held-out points."""
        others = Split(held_out.x[:CRAFTED].to(self.place), held_out.y[:CRAFTED].to(self.place))
        # Compare transferred points first, before the model is queried near held-out points.
        if self.surrogate is not None:
            short = searched(self.attacks)
            found = list(unseen_flags(network.clean, self.surrogate, self.few, others, short, self.key))
            if found:
                return found
        attack = reference(self.attacks)
        there = self.row(network.view, others, [(attack, len(others))], {}, name="held out ")
        here = _outcome(row, made, attack)
        return list(memorisation_flags(row.clean, here, there.clean, there.robust[0], attack))

    def composed(self, network: Network, row: MatrixRow, made: Sequence[Attack]) -> Iterator[Flag]:
        """``worse-on-new-images``: new images under a quick search, against known ones under a longer one."""
        new, places = composed(self.few, self.key)
        if not len(new):
            return
        quick, long = brief(self.attacks), reference(self.attacks)
        # Do not cache this search: a resumed audit must watch it again.
        there = replace(self, kept=None).row(network.view, new, [(quick, len(new))], {})
        here, clean = (known[places.cpu().numpy()] for known in (_outcome(row, made, long), row.clean))
        known = Split(self.few.x[places], self.few.y[places])
        robust, robust_new = (
            outcome & withstands(network.module, points, self.few, str(long.info.norm), long.eps, self.key)
            for outcome, points in ((here, known), (there.robust[0], new))
        )
        yield from composed_flags(clean, robust, there.clean, robust_new, quick.text)


def _outcome(row: MatrixRow, made: Sequence[Attack], attack: Attack) -> NDArray[np.bool_]:
    """The row's outcome of one of the ``made`` attacks."""
    found: NDArray[np.bool_] = row.robust[[one.text for one in made].index(attack.text)]
    return found
