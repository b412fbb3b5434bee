"""Replay: keeps a small memory of clean images and trains on it with every attack met so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import draw_seed, isolated_randomness, part_drawn
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import at_least_one, single_stage
from defenses.parts.met import noted, recalled
from defenses.parts.mixing import craft_batch
from defenses.registry import register
from defenses.training.processes import current, part_of
from defenses.training.stage import once_more


@register
class Replay(Defense):
    """Experience replay (Chaudhry et al., arXiv:1902.10486) of adversarial training.

    Stage 1 is adversarial training. Later stages draw a batch M from the memory, as large as the current one:

        L = CE(f(z̃), y) over z̃ in x̃ ∪ M̃.

    x̃ is crafted by the stage's attack, M̃ by the attacks of earlier stages, each on an equal share of M. The
    memory keeps clean images and labels, and M̃ is crafted on the current f, since stored adversarial
    examples would be those of an outdated model. x̃ and M̃ share one train-mode forward pass.

    The memory is filled at the end of each stage from one pass over its unaugmented data. Classes get equal
    room, and the images of a class are drawn uniformly from all images of it seen so far. An image that
    occurs again in a later stage counts as another image.

    A run's record contains the capacity as the parameter ``memory``, and the number of images actually held
    after each stage as ``memory`` in that stage's ``spec``.

    Args:
        model: the classifier.
        memory: maximum number of images to keep.
        seed: determines every random draw.

    Raises:
        InputError: ``memory`` is below 1.
    """

    info = DefenseInfo(name="replay", paper="1902.10486", regimes=("continual",), memory=200)
    needs_attack = True
    smooths_labels = True

    def __init__(self, model: nn.Module, *, memory: int = info.memory, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        at_least_one(memory=memory)
        self.memory = memory
        self.held = 0
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        self._met: list[Attack] = []

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``memory`` where there is one stage."""
        return single_stage(stages, "memory")

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE of x̃ and M̃ together."""
        x_adv = self.craft(stage.attacks[0], x, y)
        if self._kept is None:
            return self.label_loss(self(x_adv), y)
        part = current(len(x))
        x_old, y_old = self.draw(part.total)
        count = len(y_old)
        mine = part if count == part.total else part_of(count)
        x_old, y_old = x_old[mine.slice], y_old[mine.slice]
        with part_drawn(self.generator, count, mine.rows):
            m_adv, _ = craft_batch(
                self.craft,
                tuple(self._met),
                x_old,
                y_old,
                mix="split",
                generator=self.generator,
                predict=self,
            )
        loss = self.label_loss(self(torch.cat([x_adv, m_adv])), torch.cat([y, y_old]))
        # The mean over x̃ ∪ M̃ of all processes, where their shares of M̃ are not those of x̃.
        share = (len(x) + len(y_old)) / (part.total + count)
        return loss if part.whole or mine is part else loss * (share / part.weight)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """M: ``count`` different images of the memory with their labels, or all of them if fewer."""
        assert self._kept is not None
        images, labels, _ = self._kept
        chosen = torch.randperm(len(labels), generator=self.generator)[:count]
        return images[chosen].to(self.device), labels[chosen].to(self.device)

    def end(self, stage: Stage) -> None:
        """Fill the memory from the stage's data, and remember its attack."""
        # Isolated, so that a shuffling loader draws the same order after resuming.
        with isolated_randomness(draw_seed(self.generator), self.device):
            for x, y in once_more(stage, torch.device("cpu")):
                self.remember(x, y)
        self._met.append(stage.attacks[0])

    def remember(self, x: Tensor, y: Tensor) -> None:
        """Offer a clean batch to the memory, which keeps some of it."""
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
        """Adds the number of images in the memory."""
        return {**super().spec(), "memory": self.held}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Restore the number of images; the images themselves are part of the training state."""
        self.held = int(spec["memory"])

    def training_state(self) -> dict[str, Any]:
        """Adds the memory, and the attacks met so far with their training knobs."""
        return {**super().training_state(), "kept": self._kept, "met": noted(self._met)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores the memory and the attacks, which are looked up in the pool.

        Raises:
            InputError: the pool has no attack of such a name.
        """
        super().load_training_state(state)
        self._kept = None if state["kept"] is None else tuple(state["kept"])
        self.held = 0 if self._kept is None else len(self._kept[1])
        self._met = recalled(state["met"])


def balanced(labels: Tensor, keys: Tensor, room: int) -> Tensor:
    """Indices of at most ``room`` points, balanced over classes; each class keeps those of lowest keys.

    Keys (N,) are drawn uniformly from [0, 1) and stored with their points. The points kept of a class are
    then a uniform sample of all its points, no matter how many batches they came in.
    """
    rank = torch.empty_like(keys)
    for label in set(labels.tolist()):
        mine = labels == label
        rank[mine] = keys[mine].argsort().argsort().to(keys.dtype)
    return (rank + keys).argsort()[:room]
