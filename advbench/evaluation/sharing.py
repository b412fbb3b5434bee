"""Shares the blocks of a row among the processes that ``torchrun`` started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from advbench.data import Split
from advbench.evaluation.evaluate import Kept, measure_share
from advbench.evaluation.shards import Piece, Setting, Shard, View, shards
from advbench.runtime.team import Leader, Member
from attacks_pool import Attack


@dataclass(frozen=True)
class ShareOfRow:
    """An order to measure shards of a row.

    Attributes:
        what: what they are measured on.
        stage, seed, stochastic, examples: see :func:`advbench.evaluation.evaluate.evaluate`.
        parts: for each process, the numbers of its shards, counted over the shards of all attacks.
    """

    what: Any
    stage: int
    seed: int
    stochastic: bool
    examples: bool
    parts: dict[int, frozenset[int]]

    def measure(
        self,
        member: Member,
        view: View,
        data: Split,
        attacks: Sequence[tuple[Attack, int]],
        *,
        device: torch.device,
        attack_timeout: float | None,
    ) -> None:
        """Measure this process's part, and send each piece to process 0.

        Raises:
            AttackTimeoutError: an attack took longer than ``attack_timeout``.
        """
        mine = self.parts[member.launch.rank]
        measure_share(
            view,
            data,
            attacks,
            stage=self.stage,
            seed=self.seed,
            kept=_Sending(member, [shard for shard in shards(data, attacks) if shard.attack is not None]),
            mine=mine.__contains__,
            stochastic=self.stochastic,
            device=device,
            attack_timeout=attack_timeout,
            examples=self.examples,
        )


class SharedRow:
    """Process 0's side: orders the shares of rows and receives their pieces.

    Args:
        leader: the other processes.
        what: goes into every order.
    """

    def __init__(self, leader: Leader, what: Any) -> None:
        self.leader, self.what = leader, what

    def share(self, attacked: Sequence[Shard], setting: Setting, kept: Kept) -> Kept:
        """Divide the shards that ``kept`` lacks evenly among all processes, this one included."""
        missing = [number for number, shard in enumerate(attacked) if kept.get(shard, setting) is None]
        count = self.leader.launch.count
        parts = {rank: frozenset(missing[rank::count]) for rank in range(1, count)}
        stochastic = setting.draws > 1
        self.leader.order(
            ShareOfRow(self.what, setting.stage, setting.seed, stochastic, setting.examples, parts)
        )
        awaited = {_key(attacked[number]) for part in parts.values() for number in part}
        return _Awaiting(kept, self.leader, attacked, awaited)


class _Awaiting:
    """A store that waits for pieces which other processes measure."""

    def __init__(
        self, kept: Kept, leader: Leader, attacked: Sequence[Shard], awaited: set[tuple[str, int]]
    ) -> None:
        self.kept, self.leader, self.attacked, self.awaited = kept, leader, attacked, awaited

    def get(self, shard: Shard, setting: Setting) -> Piece | None:
        """The piece of this shard; waits for it if another process measures it."""
        while _key(shard) in self.awaited:
            found = self.leader.answer()
            if found is None:
                # A process has finished its part.
                continue
            number, piece = found
            arrived = self.attacked[number]
            self.kept.put(arrived, setting, piece)
            self.awaited.discard(_key(arrived))
        return self.kept.get(shard, setting)

    def put(self, shard: Shard, setting: Setting, piece: Piece) -> None:
        """Keep a piece of this process."""
        self.kept.put(shard, setting, piece)


class _Sending:
    """Another process's store: it sends the pieces of attacks to process 0, and keeps those of clean points.

    Args:
        member: this process.
        attacked: the shards of all attacks.
    """

    def __init__(self, member: Member, attacked: Sequence[Shard]) -> None:
        self.member, self._clean = member, dict[int, Piece]()
        self._numbers = {_key(shard): number for number, shard in enumerate(attacked)}

    def get(self, shard: Shard, setting: Setting) -> Piece | None:  # noqa: ARG002 - a store knows its setting
        """The piece of clean points, if it is measured."""
        return self._clean.get(shard.index) if shard.attack is None else None

    def put(self, shard: Shard, setting: Setting, piece: Piece) -> None:  # noqa: ARG002
        """Send the piece."""
        if shard.attack is None:
            self._clean[shard.index] = piece
        else:
            self.member.answer((self._numbers[_key(shard)], piece))


def _key(shard: Shard) -> tuple[str, int]:
    return shard.text, shard.index
