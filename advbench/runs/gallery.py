"""Grids of images: test points clean, attacked, their difference and, if the defense can, regenerated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.config.resolve import bound_attacks
from advbench.evaluation.extras import Regenerates, pixels
from advbench.evaluation.stochastic import AveragedDraws, MeanOfDraws
from advbench.runs.saved import Run
from advbench.runtime.device import reproducible, undisturbed
from attacks_pool import Attack, verify
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import InputError, unknown
from attacks_pool.verifier import predict_exactly
from defenses import Defense
from leaderboards.pictures import LIGHT, ImageRow, Picture, Theme, difference, image_grid
from leaderboards.statistics.naming import short_names

POINTS = 8
"""The default number of columns of a grid."""
MOST_ATTACKS = 8
"""The most attacks in one grid."""
TOO_FAR = ", too far"


@dataclass(frozen=True, eq=False)
class Attacked:
    """The points that one attack crafted.

    Attributes:
        name: its short name, with its budget.
        x: (n, C, H, W) crafted points; budgeted ones that broke their bound are projected back.
        predicted: (n,) the defense's predictions for them.
        too_far: (n,) minimal-norm points beyond eps: evaluation counts them as failures of the attack.
        regenerated: (n, C, H, W) the defense's regenerated images, or None if it cannot make any.
    """

    name: str
    x: Tensor
    predicted: Tensor
    too_far: Tensor
    regenerated: Tensor | None


@dataclass(frozen=True, eq=False)
class Gallery:
    """Correctly classified test points (n, C, H, W), their labels (n,), and the results of each attack."""

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    attacked: list[Attacked]


@undisturbed()
def gallery(run: Run, *, points: int = POINTS, attacks: Sequence[str] = ()) -> Gallery:
    """Attack a run's final model again, with the run's own attacks, on a few of its test points.

    The points are the first correct ones, one of each class in turn, independent of the success of attacks.
    Draws are keyed by the run's seed and the attack, so that a grid is the same each time; they are not those
    of the evaluation. A stochastic defense is attacked and judged as in evaluation.

    Args:
        run: a finished run, whose weights and data are read.
        points: how many test points.
        attacks: names of the run's attacks; those of its sequence by default.

    Raises:
        InputError: the run lacks an attack, there are too many attacks or too few correct points, or weights
            or data cannot be read.
    """
    chosen = _chosen(run, attacks)
    names = short_names([attack.text for attack in chosen])
    defense, classes = run.model, run.data.classes
    # More threads than in the run would change rounding, and a grid is too small to benefit from them.
    with reproducible(min(int(run.record.environment["threads"]), torch.get_num_threads())):
        x, y = _points(run, defense, points)
        made = [
            _attacked(run, defense, attack, name, x, y) for attack, name in zip(chosen, names, strict=True)
        ]
    return Gallery(x, y, classes, made)


def draw(run: Run, found: Gallery, *, theme: Theme = LIGHT, title: str | None = None) -> Picture:
    """Draw the grid of a gallery, with a column per test point."""
    clean = pixels(found.x)
    true = [found.classes[label] for label in found.y.tolist()]
    rows = [ImageRow("clean", clean, true)]
    for one in found.attacked:
        answers = [found.classes[label] for label in one.predicted.tolist()]
        marks = [TOO_FAR if far else "" for far in one.too_far.tolist()]
        wrong = (one.predicted != found.y).tolist()
        captions = [answer + mark for answer, mark in zip(answers, marks, strict=True)]
        rows += [
            ImageRow(one.name, pixels(one.x), captions, wrong),
            difference("difference", clean, pixels(one.x)),
        ]
        if one.regenerated is not None:
            rows.append(ImageRow("regenerated", pixels(one.regenerated.clamp(0, 1))))
    config = run.config
    return image_grid(
        rows,
        heading=f"{config.defense}: what attacks change, and what the model sees",
        about=f"{run.data.name} · {config.model} · seed {config.seed}",
        theme=theme,
        title=title,
        said=_said(found),
    )


def _said(found: Gallery) -> list[str]:
    far = any(bool(one.too_far.any()) for one in found.attacked)
    change = "red is brighter, blue darker" if found.x.shape[1] == 1 else "unchanged is grey"
    return [
        "under clean images: the true class; under attacked ones: the prediction, framed where it is wrong",
        f"difference: {change}, in full at the value beside the row",
        "too far: beyond eps, which counts as a failure of the attack" * far,
    ]


def _chosen(run: Run, names: Sequence[str]) -> list[Attack]:
    bound = bound_attacks(run.config)
    own = [attack for role in ("seen", "unseen", "eval") for attack in bound[role]]
    if not names:
        chosen = bound["seen"] or own
    else:
        for name in names:
            if name not in {attack.name for attack in own}:
                raise unknown(f"attack of run {run.record.id}", name, {attack.name for attack in own})
        chosen = [attack for name in dict.fromkeys(names) for attack in own if attack.name == name]
    if len(chosen) > MOST_ATTACKS:
        raise InputError(f"{len(chosen)} attacks are too many for one grid: name up to {MOST_ATTACKS}")
    return chosen


def _points(run: Run, defense: Defense, count: int) -> tuple[Tensor, Tensor]:
    """The first correctly classified point of every class, then the second of every class, and so on."""
    x, y = run.test_data
    judge = _judge(defense, defense.view(None), ("clean", run.config.seed))
    right = (predict_exactly(judge, x).argmax(1) == y).nonzero().flatten().tolist()
    if len(right) < count:
        raise InputError(f"run {run.record.id} is right on {len(right)} test points, {count} are requested")
    seen: dict[int, int] = {}
    places = []
    for index in right:
        label = int(y[index])
        seen[label] = seen.get(label, 0) + 1
        places.append((seen[label], index))
    rows = sorted(sorted(places)[:count], key=lambda place: (place[0], int(y[place[1]])))
    chosen = [index for _, index in rows]
    return x[chosen], y[chosen]


def _attacked(run: Run, defense: Defense, attack: Attack, name: str, x: Tensor, y: Tensor) -> Attacked:
    view = defense.view(attack)
    draws = keyed_generator("gallery", run.config.seed, attack.text)
    stochastic = defense.info.stochastic
    search = AveragedDraws(view) if stochastic else view
    # As in evaluation, points that fool the model already stay unchanged.
    crafted = attack(search, x, y, generator=draws, early_stop=not stochastic, exact=stochastic)
    judge = _judge(defense, view, (attack.text, run.config.seed))
    verdict = verify(judge, x, y, crafted, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
    moved = (verdict.points != crafted).flatten(1).any(1)
    minimal = attack.info.kind == "minimal-norm"
    shown = crafted if minimal else verdict.points
    with torch.no_grad():
        regenerated = defense.regenerate(shown) if isinstance(defense, Regenerates) else None
    return Attacked(
        name if "eps" in name else f"{name} eps={attack.eps:.3g}",
        shown,
        predict_exactly(judge, shown).argmax(1),
        moved if minimal else torch.zeros_like(moved),
        regenerated,
    )


def _judge(defense: Defense, view: nn.Module, key: tuple[object, ...]) -> nn.Module:
    return MeanOfDraws(view, ("gallery", *key)) if defense.info.stochastic else view
