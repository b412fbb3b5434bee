"""What merely asking a network shows: consistent answers, true gradients, planted points that are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from advbench.audit.battery import budget, searched
from advbench.audit.consistency import asked_points, consistency_flags
from advbench.audit.fresh import Fresh
from advbench.audit.networks import Network
from advbench.audit.planted import planted_flags
from advbench.audit.slope import slope_flags
from advbench.data import Split
from attacks_pool import Attack
from leaderboards import Flag


@dataclass(frozen=True)
class Asking:
    """What all networks of a defense are asked with.

    Attributes:
        few: test points.
        attacks: those of the run.
        surrogate: another model, to craft points on.
        key: of every draw.
        random: whether the defense answers at random. Its gradients are then not compared with its answers.
    """

    few: Split
    attacks: Sequence[Attack]
    surrogate: nn.Module | None
    key: int
    random: bool

    def consistency(self, network: Network, fresh: Fresh) -> Iterator[Flag]:
        """Whether answers depend on the image alone; ``fresh`` is a copy that was never asked anything."""
        models = [] if self.surrogate is None else [self.surrogate]
        models += [] if self.random else [network.module]
        short, eps = searched(self.attacks), budget(self.attacks, "linf")
        searches = [(model, short) for model in models]
        points = asked_points(self.few.x, self.few.y, searches, eps, self.key)
        return consistency_flags(
            network.module,
            points,
            self.key,
            stochastic=self.random,
            fresh=fresh,
            network=network.label,
        )

    def gradients(self, network: Network, met: Sequence[Attack], right: Tensor) -> Iterator[Flag]:
        """Whether gradients are true and lead to what is certainly there.

        Args:
            network: what is asked.
            met: the run's attacks that meet it.
            right: (n,) points that are right clean.
        """
        if self.random:
            return
        x, y = self.few.x[right], self.few.y[right]
        yield from slope_flags(network.module, x, y, budget(self.attacks, "linf"), self.key)
        yield from planted_flags(network.module, x, met, points=len(self.few), seed=self.key)
