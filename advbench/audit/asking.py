"""Checks that only query a network: consistent answers, true gradients, planted points that are found."""

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
    """The inputs of the checks, which all networks of a defense share.

    Attributes:
        few: test points.
        attacks: the run's attacks.
        surrogate: another model, to craft points on.
        key: the seed of every draw.
        random: whether the defense is randomised. Its gradients are then not compared with its answers.
    """

    few: Split
    attacks: Sequence[Attack]
    surrogate: nn.Module | None
    key: int
    random: bool

    def consistency(self, network: Network, fresh: Fresh) -> Iterator[Flag]:
        """Flags if answers depend on more than the image; ``fresh`` is a copy that was never queried."""
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
        """Flags if gradients are false, or if attacks miss adversarial points that certainly exist.

        Args:
            network: the network to query.
            met: the run's attacks on this network.
            right: (n,) points that are classified correctly when clean.
        """
        if self.random:
            return
        x, y = self.few.x[right], self.few.y[right]
        yield from slope_flags(network.module, x, y, budget(self.attacks, "linf"), self.key)
        yield from planted_flags(network.module, x, met, points=len(self.few), seed=self.key)
