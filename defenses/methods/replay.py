"""Replay: a small memory of clean images, attacked anew by every attack met so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import draw_seed, isolated_randomness
from attacks_pool.registry import pool
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import at_least_one, needs_attack
from defenses.parts.mixing import craft_batch
from defenses.registry import register
from defenses.training.stage import once_more


@register
class Replay(Defense):
    """Experience replay (Chaudhry et al., arXiv:1902.10486) of adversarial training.

    Stage 1 is adversarial training. Then, with M a batch drawn from the memory, as large as the present one,

        L = CE(f(z̃), y) over z̃ in x̃ ∪ M̃,

    x̃ crafted by the stage's attack, M̃ by those of the earlier stages, each on an equal share of M. The memory
    keeps clean images and labels, and M̃ is crafted on the present f: stored adversarial examples would be
    those of a model that is gone. x̃ and M̃ share one train-mode forward.

    The memory is filled at the end of each stage, from one pass over its unaugmented data: as many images of
    each class as there is room for, those of a class drawn evenly from all that were ever seen of it. An
    image that comes again in a later stage counts as another.

    What a run kept stands in its record: the room as the parameter ``memory``, the images that were really
    held after each stage as ``memory`` in that stage's ``spec``.

    Args:
        model: the classifier.
        memory: images that are kept, at most.
        seed: determines every draw.

    Raises:
        InputError: no room for an image.
    """

    info = DefenseInfo(name="replay", paper="1902.10486", regimes=("continual",), memory=200)

    def __init__(self, model: nn.Module, *, memory: int = info.memory, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        at_least_one(memory=memory)
        self.memory = memory
        self.held = 0
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        self._met: list[Attack] = []

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """One attack a stage.

        Raises:
            InputError: none, or several.
        """
        super().check_attacks(attacks)
        needs_attack(self.info.name, attacks)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE of x̃ and M̃ together."""
        x_adv = self.craft(stage.attacks[0], x, y)
        if self._kept is None:
            return F.cross_entropy(self(x_adv), y)
        x_old, y_old = self.draw(len(x))
        m_adv, _ = craft_batch(
            self.craft,
            tuple(self._met),
            x_old,
            y_old,
            mix="split",
            generator=self.generator,
            predict=self,
        )
        return F.cross_entropy(self(torch.cat([x_adv, m_adv])), torch.cat([y, y_old]))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """M: ``count`` different images of the memory with their labels, or all if there are fewer."""
        assert self._kept is not None
        images, labels, _ = self._kept
        chosen = torch.randperm(len(labels), generator=self.generator)[:count]
        return images[chosen].to(self.device), labels[chosen].to(self.device)

    def end(self, stage: Stage) -> None:
        """Look at the stage's data once more, and remember its attack."""
        # In isolation: a loader that shuffles by the global state draws the same again after resuming.
        with isolated_randomness(draw_seed(self.generator), self.device):
            for x, y in once_more(stage, torch.device("cpu")):
                self.remember(x, y)
        self._met.append(stage.attacks[0])

    def remember(self, x: Tensor, y: Tensor) -> None:
        """Offer a clean batch to the memory."""
        keys = torch.rand(len(y), generator=self.generator, dtype=torch.float64)
        images, labels = x, y
        if self._kept is not None:
            images, labels, keys = (
                torch.cat([old, new]) for old, new in zip(self._kept, (x, y, keys), strict=True)
            )
        keep = balanced(labels, keys, self.memory)
        self._kept = (images[keep], labels[keep], keys[keep])
        self.held = len(keep)

    def spec(self) -> dict[str, Any]:
        """Adds how many images the memory holds."""
        return {**super().spec(), "memory": self.held}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """How many images it held; they themselves are training state."""
        self.held = int(spec["memory"])

    def training_state(self) -> dict[str, Any]:
        """Adds the memory, and the attacks met with the knobs that they trained with."""
        met = [{"name": attack.name, "knobs": dict(attack.knobs)} for attack in self._met]
        return {**super().training_state(), "kept": self._kept, "met": met}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Puts them back; the attacks are taken from the pool.

        Raises:
            InputError: an attack that the pool does not have.
        """
        super().load_training_state(state)
        self._kept = None if state["kept"] is None else tuple(state["kept"])
        self.held = 0 if self._kept is None else len(self._kept[1])
        self._met = [replace(pool.bind(one["name"], one["knobs"]), training=True) for one in state["met"]]


def balanced(labels: Tensor, keys: Tensor, room: int) -> Tensor:
    """The indices of at most ``room`` points, evenly over the classes: of each those with the lowest keys.

    With keys (N,) drawn evenly from [0, 1), and kept with their points, what a class keeps is an even draw
    from all of its points, in however many batches they come.
    """
    rank = torch.empty_like(keys)
    for label in set(labels.tolist()):
        mine = labels == label
        rank[mine] = keys[mine].argsort().argsort().to(keys.dtype)
    return (rank + keys).argsort()[:room]
