"""The smallest units of an evaluation: one attack on one block of test points, in any order, anywhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.data import Split
from advbench.evaluation.abstaining import AbstainingIsRight, AbstentionsSeen, abstains, last_is_largest
from advbench.evaluation.stochastic import AveragedDraws, MeanOfDraws
from attacks_pool import Attack, ModelState, Passes, count_passes, verify
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.fast.copy import search_model
from attacks_pool.verifier import exact_arithmetic, no_number, predict_exactly
from leaderboards import CLEAN

BLOCK_ELEMENTS = 2**20
"""The pixels in a block. Random draws, and so all numbers, depend on the blocks."""
WORTH_PREPARING = 8
"""From this number of forward passes per point on, a search is worth preparing a faster form of the model."""
View = Callable[[Attack | None], nn.Module]
"""Returns the module to attack and judge for an attack, or the module for clean points for ``None``."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """The settings that all shards of one row share.

    Attributes:
        stage: the row; together with ``seed``, the attack's text and the block, the key of every draw.
        seed: the run's seed.
        draws: how many draws of the model judge each point: 1 unless it is stochastic.
        device: the device that blocks are moved to; by default that of the data.
        surrogate: the model that attacks search instead; access is then ``transfer``.
        surrogate_key: distinguishes surrogates in the store of pieces.
        examples: keep the crafted points in each piece.
    """

    stage: int
    seed: int
    draws: int = 1
    device: torch.device | None = None
    surrogate: View | None = None
    surrogate_key: str = ""
    examples: bool = False


@dataclass(frozen=True)
class Shard:
    """One attack (``None``: clean) on the test points from ``start`` to ``stop``, the ``index``-th block."""

    attack: Attack | None
    index: int
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The attack's canonical text, or ``clean``."""
        return CLEAN if self.attack is None else self.attack.text

    @property
    def block(self) -> slice:
        """The slice of the test points."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Piece:
    """The result of one shard.

    Attributes:
        right: (points,) correct clean or, for an attack, correct clean and after it.
        invalid: how many crafted points break a bound.
        not_a_number: how many points have NaN scores.
        seconds, forwards, backwards: the cost; passes are sample-passes.
        changed: what the search changed in the model, in words.
        single: for a stochastic model, how many points are right by a single draw.
        abstained: for a model that may abstain, on how many points it does; for an attack, of those that are
            ``right``.
        examples: (points, C, H, W) on the CPU, the points of an attack that were judged, clean ones where the
            model is wrong clean; only if the setting asks for them.
    """

    right: Bools
    invalid: int = 0
    not_a_number: int = 0
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    changed: tuple[str, ...] = ()
    single: int | None = None
    abstained: int | None = None
    examples: Tensor | None = None


def blocks(shape: Sequence[int], points: int) -> Iterator[slice]:
    """The blocks of test points, each of a power of two between 16 and 512, set by the image shape."""
    size = 16
    while size < 512 and 2 * size * int(np.prod(shape)) <= BLOCK_ELEMENTS:
        size *= 2
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))


def shards(data: Split, attacks: Sequence[tuple[Attack, int]], *, clean: bool = True) -> Iterator[Shard]:
    """All shards of a row: first the clean ones, which the others need, then those of each attack."""
    wanted: list[tuple[Attack | None, int]] = [(None, len(data))] if clean else []
    for attack, limit in [*wanted, *attacks]:
        for index, block in enumerate(blocks(data.shape, limit)):
            yield Shard(attack, index, block.start, block.stop)


def compute(shard: Shard, view: View, data: Split, setting: Setting, clean: Bools) -> Piece:
    """Measure one shard.

    An attack gets only points that are correct clean; every crafted point is verified and predicted again in
    float32 on the unmodified model.

    Args:
        shard: the shard to measure.
        view: returns the module to attack and judge for an attack, or ``None`` for clean.
        data: test points, of which only the shard's block is moved to the device.
        setting: the settings of the row.
        clean: for an attack, (points,) which points of the block are correct clean.
    """
    began = time.perf_counter()
    place = setting.device or data.images.device
    x, y = data.images[shard.block].to(place), data.y[shard.block].to(place)
    if shard.attack is None:
        found = _clean(view(None), x, y, shard, setting)
    else:
        model = view(shard.attack)
        measure = _class_by_class if abstains(model) else _attacked
        found = measure(shard.attack, model, x, y, shard, setting, clean)
        if setting.examples and found.examples is None:
            found = replace(found, examples=x.cpu().clone())
    return replace(found, seconds=time.perf_counter() - began)


def _judge(model: nn.Module, shard: Shard, setting: Setting) -> nn.Module:
    """The module whose scores give the verdict; its draws have other keys than those of any search."""
    if setting.draws == 1:
        return model
    return MeanOfDraws(model, (setting.stage, setting.seed, shard.text, shard.index), setting.draws)


def _single(judge: nn.Module, y: Tensor, label: int | None = None) -> int | None:
    """How many points a single draw gets right; with a ``label`` of all points, abstaining is right."""
    if isinstance(judge, AbstainingIsRight):
        return _single(judge.model, y, judge.label)
    if not isinstance(judge, MeanOfDraws):
        return None
    right = judge.single == y
    return int((right if label is None else right | (judge.single == judge.outputs - 1)).sum())


def _clean(model: nn.Module, x: Tensor, y: Tensor, shard: Shard, setting: Setting) -> Piece:
    judge = _judge(model, shard, setting)
    scores = predict_exactly(judge, x)
    not_a_number = no_number(scores)
    return Piece(
        right=((scores.argmax(1) == y) & ~not_a_number).cpu().numpy(),
        not_a_number=int(not_a_number.sum()),
        forwards=len(x) * setting.draws,
        single=_single(judge, y),
        abstained=int((last_is_largest(scores) & ~not_a_number).sum()) if abstains(model) else None,
    )


def _class_by_class(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, shard: Shard, setting: Setting, clean: Bools
) -> Piece:
    """Like :func:`_attacked`, for a model that abstains: which outputs are right depends on the class."""
    labels = y.cpu().numpy()
    pieces = [
        _attacked(attack, model, x, y, shard, setting, clean & (labels == label), int(label))
        for label in np.unique(labels[clean])
    ]
    singles = [piece.single for piece in pieces if piece.single is not None]
    examples = x.cpu().clone() if setting.examples else None
    for label, piece in zip(np.unique(labels[clean]), pieces, strict=True):
        if examples is not None and piece.examples is not None:
            own = torch.as_tensor(clean & (labels == label))
            examples[own] = piece.examples[own]
    return Piece(
        right=np.logical_or.reduce([np.zeros(len(x), dtype=bool), *(piece.right for piece in pieces)]),
        invalid=sum(piece.invalid for piece in pieces),
        not_a_number=sum(piece.not_a_number for piece in pieces),
        forwards=sum(piece.forwards for piece in pieces),
        backwards=sum(piece.backwards for piece in pieces),
        changed=tuple(dict.fromkeys(change for piece in pieces for change in piece.changed)),
        single=sum(singles) if singles else None,
        abstained=sum(piece.abstained or 0 for piece in pieces),
        examples=examples,
    )


def _attacked(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    shard: Shard,
    setting: Setting,
    clean: Bools,
    label: int | None = None,
) -> Piece:
    """Run one attack on one view; with a surrogate, the whole search runs on the surrogate.

    If ``label`` is given, all points have it, and the last output means abstaining.
    """
    survived = np.zeros(len(x), dtype=bool)
    if not clean.any():
        return Piece(survived)
    right, every = torch.as_tensor(clean, device=x.device), x
    x, y = x[right], y[right]
    state = ModelState(model)
    own = () if label is None else (label,)
    draws = keyed_generator("evaluate", setting.seed, setting.stage, attack.text, shard.index, *own)
    if setting.surrogate is not None:
        x_adv, passes = _craft(attack, setting.surrogate(attack), x, y, draws, early_stop=False)
    else:
        x_adv, passes = _craft(attack, model, x, y, draws, stochastic=setting.draws > 1, label=label)
    changes = state.changes()
    if changes:
        # The search may have changed the model; the verdict must not depend on that.
        state.restore()
    judge = _judge(model, shard, setting)
    if label is not None:
        judge = AbstentionsSeen(judge, label)
    verdict = verify(judge, x, y, x_adv, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
    survived[clean] = verdict.robust.cpu().numpy()
    noticed = judge.abstained & verdict.robust if isinstance(judge, AbstentionsSeen) else None
    examples = None
    if setting.examples:
        examples = every.clone()
        examples[right] = verdict.points
    return Piece(
        right=survived,
        invalid=int(verdict.invalid.sum()),
        not_a_number=int(verdict.not_a_number.sum()),
        forwards=passes.forwards,
        backwards=passes.backwards,
        changed=tuple(changes),
        single=_single(judge, y),
        abstained=None if noticed is None else int(noticed.sum()),
        examples=None if examples is None else examples.cpu(),
    )


def _craft(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    draws: torch.Generator,
    *,
    stochastic: bool = False,
    early_stop: bool = True,
    label: int | None = None,
) -> tuple[Tensor, Passes]:
    """The points that the attack crafts, and its sample-passes; may use a faster form of the model."""
    cost = attack.info.passes(attack.knobs)
    plain: nn.Module = AveragedDraws(model) if stochastic else model
    plain = searched = plain if label is None else AbstainingIsRight(plain, label)
    # A point that barely fools these draws may not fool others, so its search continues to the end.
    early_stop = early_stop and not stochastic
    if not stochastic and cost is not None and cost[0] >= WORTH_PREPARING:
        searched = search_model(plain, x, reduced=attack.info.reduced_precision)
    with exact_arithmetic(x.device), count_passes(model) as exact:
        if searched is plain:
            return attack(searched, x, y, generator=draws, early_stop=early_stop, exact=True), exact
        with count_passes(searched) as fast:
            x_adv = attack(searched, x, y, generator=draws, early_stop=early_stop)
    return x_adv, Passes(exact.forwards + fast.forwards, exact.backwards + fast.backwards)
