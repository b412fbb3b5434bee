"""Promises about an attack: its bounds, its draws, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.contract.compare import copied, differing, global_state, require
from advbench.contract.trial import Images, easy_images, small_network
from attacks_pool import Attack, pool
from attacks_pool.calling.guard import count_passes
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from attacks_pool.metadata import BUDGETS, AttackInfo, Value
from attacks_pool.registry import Entry
from attacks_pool.verifier import verify

POINTS = 8
STEPS = 40
"""Training steps of the usual classifier, so that there is something to fool."""
STRENGTHS = (0.25, 2.0)
"""Budgets that bounds are tried at, as multiples of the usual one."""


@dataclass(frozen=True)
class AttackTrial:
    """One attack under test, and the images and classifiers that it is tried on."""

    entry: Entry
    knobs: Mapping[str, Value]

    @property
    def info(self) -> AttackInfo:
        """Its metadata."""
        return self.entry.info

    @cached_property
    def attack(self) -> Attack:
        """The attack with the knobs that were given; the others have their defaults on digits."""
        return pool.bind(self.info.name, self.knobs, budget="digits")

    @cached_property
    def kinds(self) -> list[Images]:
        """Images that the attack says it can treat, the usual ones first."""
        classes, side = max(3, self.info.min_classes), max(8, self.info.min_side)
        channels = self.info.channels or (1, 3)
        found = [Images(one, classes, side, side) for one in channels]
        return [
            *found,
            Images(channels[0], classes + 4, side, side),
            Images(channels[0], classes, side, side + 4),
        ]

    def target(self, images: Images, steps: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
        """A classifier in eval mode, after so many steps of training, with points and labels."""
        with isolated_randomness(key_seed("attack contract", str(images)), torch.device("cpu")):
            model = small_network(images).train()
            x, y = easy_images(images, 4 * POINTS, seed=0)
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.zero_grad()
        points, labels = easy_images(images, POINTS, seed=1)
        return model.eval(), points, labels

    @cached_property
    def usual(self) -> tuple[nn.Module, Tensor, Tensor]:
        """A classifier that has learnt the usual images."""
        return self.target(self.kinds[0], STEPS)

    @cached_property
    def first(self) -> Tensor:
        """What is crafted with the usual generator."""
        return self.crafted()

    def crafted(self, x: Tensor | None = None, *, seed: int = 0, early_stop: bool = False) -> Tensor:
        """Crafted points of the usual target."""
        model, points, labels = self.usual
        generator = keyed_generator("attack contract", seed)
        points = points if x is None else x
        return self.attack(model, points, labels[: len(points)], generator=generator, early_stop=early_stop)


def metadata(trial: AttackTrial) -> str:
    """A docstring, defaults that are in their own ranges, and a budget on every data set."""
    info = trial.info
    require(trial.entry.summary, "its function has no docstring, of which the first line is its summary")
    for budget in BUDGETS:
        pool.bind(info.name, trial.knobs, budget=budget)
    where = "no norm" if info.norm is None else info.norm
    return f"{info.name}: {info.family}, {where}, {info.access}, {len(info.knobs)} knobs of its own"


def images(trial: AttackTrial) -> str:
    """Points like the images, without a gradient, for all images that it says it can treat."""
    for kind in trial.kinds:
        model, x, y = trial.target(kind)
        found = trial.entry.function(
            model,
            x.clone(),
            y.clone(),
            generator=keyed_generator("attack contract"),
            early_stop=False,
            **trial.attack.knobs,
        )
        alike = isinstance(found, Tensor) and found.shape == x.shape and found.is_floating_point()
        require(alike, f"for {kind} it returns no floating-point tensor like the images")
        require(not found.requires_grad, "what it returns still has a gradient: return x_adv.detach()")
    one = trial.crafted(trial.usual[1][:1])
    return f"{len(trial.kinds)} kinds of images, and a single one: {tuple(one.shape)}"


def bounds(trial: AttackTrial) -> str:
    """Inside [0, 1] and inside the ball at several strengths, in training, warming up and stopping early."""
    model, x, y = trial.usual
    usual, fooled, norm = trial.attack, 0, trial.info.norm
    ball = "" if norm is None else f" and the {norm} ball"
    forms = [(_bound_at(trial, usual.eps * factor), False) for factor in STRENGTHS]
    forms += [(usual.for_training(), False), (usual.scaled(0.5), False), (usual, True)]
    for form, early_stop in forms:
        generator = keyed_generator("attack contract", "bounds")
        found = form(model, x, y, generator=generator, early_stop=early_stop)
        judged = verify(model, x, y, found, norm=norm, eps=form.eps, kind=trial.info.kind)
        outside = int(judged.invalid.sum())
        points = f"{outside} of {len(x)} points at eps={form.eps:g}"
        require(not outside, f"{points} are not in [0, 1]{ball}, or not numbers")
        fooled = max(fooled, int((~judged.robust).sum()))
    return f"every point is in [0, 1]{ball} in {len(forms)} forms; up to {fooled} of {len(x)} are fooled"


def _bound_at(trial: AttackTrial, eps: float) -> Attack:
    """The attack at another budget, as far as its metadata allow that."""
    highest = trial.info.all_knobs()["eps"].high
    return pool.bind(trial.info.name, {**trial.knobs, "eps": min(eps, highest)}, budget="digits")


def strength(trial: AttackTrial) -> str:
    """It changes the points that it is given."""
    _, x, _ = trial.usual
    moved = int((trial.first != x).flatten(1).any(1).sum())
    require(moved, "it returns every point as it was")
    return f"{moved} of {len(x)} points are changed"


def determinism(trial: AttackTrial) -> str:
    """One generator gives the same points, bit for bit, whatever the global random state is."""
    with isolated_randomness(key_seed("attack contract", "elsewhere"), torch.device("cpu")):
        torch.rand(7)
        again = trial.crafted()
    same = torch.equal(trial.first, again)
    require(same, "two calls with one generator differ: draw everything from the generator that is given")
    drawn = not torch.equal(trial.first, trial.crafted(seed=1))
    return f"the same bits again; another generator gives {'other' if drawn else 'the same'} points"


def independence(trial: AttackTrial) -> str:
    """What becomes of a point does not depend on the others of its batch."""
    _, x, _ = trial.usual
    half = len(x) // 2
    others = torch.cat([x[:half], 1 - x[half:]])
    gap = float((trial.first - trial.crafted(others))[:half].abs().max())
    require(
        gap <= 1e-5,
        f"with other images in the second half of the batch, points of the first move by up to {gap:.2g}: "
        "take no mean, maximum or norm over the batch",
    )
    return "the first half of a batch is the same beside other images"


def state(trial: AttackTrial) -> str:
    """Weights, gradients, flags and the process's state are as they were."""
    model, x, y = trial.usual
    weights, points, labels = copied(model), x.clone(), y.clone()
    known, before = _marks(model), global_state()
    trial.crafted()
    after = global_state()
    wrong = differing(weights, copied(model))
    require(not wrong, f"the model's weights change: {wrong}")
    unwritten = torch.equal(points, x) and torch.equal(labels, y)
    require(unwritten, "it writes into the images or labels that it is given")
    for what, found in _marks(model).items():
        require(found == known[what], what)
    moved = [name for name, value in before.items() if value != after[name]]
    require(not moved, f"it changes {' and '.join(moved)}")
    return "weights, gradients, modes, hooks, images and the process are as they were"


def _marks(model: nn.Module) -> dict[str, list[Any]]:
    """What an attack must leave as it is, by the fault if it does not."""
    gradients = [(one.requires_grad, one.grad is None) for one in model.parameters()]
    return {
        "the model's gradients or requires_grad change": gradients,
        "it leaves modules in another mode": [module.training for module in model.modules()],
        "it leaves hooks on the model": [len(module._forward_hooks) for module in model.modules()],
    }


def cost(trial: AttackTrial) -> str:
    """It takes at most the passes that its metadata declare."""
    model, x, _ = trial.usual
    declared = trial.info.passes(trial.attack.knobs, trial.kinds[0].classes)
    with count_passes(model) as passes:
        trial.crafted()
    forwards, backwards = passes.forwards / len(x), passes.backwards / len(x)
    found = f"{forwards:g} forward and {backwards:g} backward passes a point"
    if declared is None:
        return f"{found}; none are declared"
    measured = f"{found}; declared are at most {declared[0]} and {declared[1]}"
    require(forwards <= declared[0] and backwards <= declared[1], measured)
    return measured
