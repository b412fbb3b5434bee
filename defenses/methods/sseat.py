"""SSEAT: replays attacked images chosen by uncertainty, and stays consistent with the old model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import count_passes, evaluation_mode
from attacks_pool.calling.randomness import draw_seed, isolated_randomness, normal, part_drawn
from attacks_pool.errors import InputError
from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, at_least_one, because, not_negative, single_stage
from defenses.parts.frozen import OldModelDefense
from defenses.parts.memory import Memory, evenly_spaced
from defenses.parts.pool import gathered, keys_of
from defenses.registry import register
from defenses.training.augment import shift
from defenses.training.processes import current, part_of
from defenses.training.stage import once_more
from defenses.training.tally import Report

CLEAN = "clean"
AT_ONCE = 500
"""How many images of the memory pass through the classifier at once."""


@register
class SSEAT(OldModelDefense):
    """Sustainable self-evolution adversarial training (Wang et al., arXiv:2412.02270).

    Stage 1 is adversarial training. Later stages also draw images m from a memory, as many as the batch has,
    and compare f with f_old, its frozen copy from the end of the previous stage. With m₁ and m₂ two random
    views of m, p_T = softmax(·/T) and x̃ crafted on f by the stage's attack,

        L = CE(f(x̃), y) + ½ · CE(f(m₁), y_m) + λ · JS(p_T(f_old(m₂)) ‖ p_T(f(m₁))),
        JS(p ‖ q) = ½ KL(p ‖ (p + q)/2) + ½ KL(q ‖ (p + q)/2).

    x̃ and m₁ share one train-mode forward pass. The memory holds clean images and, for each attack met,
    images as they were crafted at the end of its stage; these are not crafted again. It chooses them by

        u(x̃) = 1 − (the votes for the most frequent answer of f to V views of x̃) / V:

    of each class equally many, at equal distances in the order of u, so that certain and uncertain images
    are both kept. When a stage ends, earlier attacks give up room, and u of their images is measured again.

    From the paper and its code: the memory of attacked and clean images, u with V = 12, the choice at equal
    distances, a tenth of clean images, the loss, and T = λ = 1. Ours: each attack has the same room, while in
    the authors' code images of all stages compete for it; f_old is that of the previous stage, while that
    code loads one fixed model; a view shifts the image by up to an eighth and adds noise, clip(shift(x) +
    σ·N(0, I)), while their views are cutouts, flips, rotations, inversion and solarisation; and one step is
    taken for the new images and the memory together.

    A run's record contains the capacity as the parameter ``memory``, and the number of images actually held
    after each stage as ``memory`` in that stage's ``spec``. ``report`` gives that number for clean images and
    for each attack, with the mean of u when they were last measured.

    Args:
        model: the classifier.
        memory: maximum number of images to keep.
        clean_share: the share of the memory for clean images.
        weight: λ.
        temperature: T.
        views: V.
        sigma: σ, the standard deviation of the noise of views in image units.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range.
    """

    info = DefenseInfo(name="sseat", paper="2412.02270", regimes=("continual",), memory=200)
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        memory: int = info.memory,
        clean_share: float = 0.1,
        weight: float = 1.0,
        temperature: float = 1.0,
        views: int = 12,
        sigma: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        at_least_one(memory=memory)
        if views < 2:
            raise InputError(f"views={views} must be at least 2")
        if not 0 <= clean_share < 1:
            raise InputError(f"clean_share={clean_share} must be at least 0 and below 1")
        not_negative(weight=weight, sigma=sigma)
        above_zero(temperature=temperature)
        self.memory, self.clean_share, self.weight = memory, clean_share, weight
        self.temperature, self.views, self.sigma = temperature, views, sigma
        self.held = 0
        self._memory = Memory()
        self._uncertain: dict[str, float] = {}

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """The temperature with λ = 0; all parameters where there is one stage."""
        found = {} if self.weight else because("since weight=0 leaves out consistency", "temperature")
        names = ("memory", "clean_share", "weight", "temperature", "views", "sigma")
        return {**found, **single_stage(stages, *names)}

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce``, ``replay`` and ``consistency``, without their factors."""
        x_adv = self.craft(stage.attacks[0], x, y)
        if not len(self._memory):
            return {"loss": self.label_loss(self(x_adv), y)}
        part = current(len(x))
        rows = torch.randperm(len(self._memory), generator=self.generator)[: part.total]
        mine = part if len(rows) == part.total else part_of(len(rows))
        images, labels = self._memory.at(rows[mine.slice], self.device)
        with part_drawn(self.generator, len(rows), mine.rows):
            first, second = self.view_of(images), self.view_of(images)
        logits = self(torch.cat([x_adv, first]))
        ce = self.label_loss(logits[: len(x)], y)
        # Losses are weighted by this process's part of the batch, which may differ from that of the memory.
        share = mine.weight / part.weight
        replay = self.label_loss(logits[len(x) :], labels) * share
        terms = {"ce": ce, "replay": replay}
        total = ce + replay / 2
        if self.weight:
            with torch.no_grad():
                old = self._old[0](second)
            self.passes.forwards += len(second)
            terms["consistency"] = jensen_shannon(old, logits[len(x) :], self.temperature) * share
            total = total + self.weight * terms["consistency"]
        return {"loss": total, **terms}

    def view_of(self, x: Tensor) -> Tensor:
        """clip(shift(x) + σ·N(0, I)), with the shape of ``x`` (N, C, H, W)."""
        moved = shift(x, max(1, x.shape[-1] // 8), self.generator)
        return (moved + self.sigma * normal(x, self.generator)).clamp(0, 1)

    def uncertainty(self, x: Tensor) -> Tensor:
        """u (N,) of images (N, C, H, W) in eval mode, float32."""
        with torch.no_grad(), evaluation_mode(self):
            answers = torch.stack([self(self.view_of(x)).argmax(1) for _ in range(self.views)], 1)
        same = (answers[:, :, None] == answers[:, None]).sum(2).amax(1)
        return 1 - same / self.views

    def end(self, stage: Stage) -> None:
        """Choose the images of this stage for the memory, and measure u of the others again."""
        super().end(stage)
        clean_room = round(self.clean_share * self.memory)
        name = f"{stage.index} {stage.attacks[0].name}"
        names = [one for one in self._memory.groups if one != CLEAN] + [name]
        each, more = divmod(self.memory - clean_room, len(names))
        # The latest attacks get what cannot be divided equally.
        rooms = {one: each + (place >= len(names) - more) for place, one in enumerate(names)}
        rooms[CLEAN] = clean_room
        # Isolated, so that a shuffling loader draws the same order after resuming.
        with isolated_randomness(draw_seed(self.generator), self.device), count_passes(self) as passes:
            for group in list(self._memory.groups):
                images, labels = self._memory.groups[group]
                found = torch.cat(
                    [self.uncertainty(one.to(self.device)).cpu() for one in torch.split(images, AT_ONCE)]
                )
                self._keep(group, images, labels, found, rooms[group])
            if CLEAN not in self._memory.groups and clean_room:
                self._choose(stage, CLEAN, None, clean_room)
            self._choose(stage, name, stage.attacks[0], rooms[name])
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        self.held = len(self._memory)

    def _choose(self, stage: Stage, group: str, attack: Attack | None, room: int) -> None:
        """Fill a group of the memory from the stage's data, attacked unless ``attack`` is None."""
        keys: list[bytes] = []
        labels, found = [], []
        for x, y in once_more(stage, self.device):
            keys += keys_of(x)
            labels.append(y.cpu())
            found.append(self.uncertainty(x if attack is None else self.craft(attack, x, y)).cpu())
        u = torch.cat(found)
        chosen = evenly_spaced(torch.cat(labels), u, room)
        if not len(chosen):
            return
        # Only the chosen images are held at any time; they are found again and crafted again.
        wanted = list(dict.fromkeys(keys[row] for row in chosen.tolist()))
        images, truth = gathered(once_more(stage, self.device), wanted)
        if attack is not None:
            parts = zip(torch.split(images, AT_ONCE), torch.split(truth, AT_ONCE), strict=True)
            made = [self.craft(attack, x.to(self.device), y.to(self.device)).cpu() for x, y in parts]
            images = torch.cat(made)
        self._memory.groups[group] = (images, truth)
        self._uncertain[group] = float(u[chosen].mean())

    def _keep(self, group: str, images: Tensor, labels: Tensor, u: Tensor, room: int) -> None:
        """Reduce a group of the memory to its room."""
        chosen = evenly_spaced(labels, u, room)
        if not len(chosen):
            del self._memory.groups[group], self._uncertain[group]
            return
        self._memory.groups[group] = (images[chosen], labels[chosen])
        self._uncertain[group] = float(u[chosen].mean())

    def report(self) -> Report:
        """The number of images held of each group of the memory, and their mean u."""
        sizes = {group: float(len(labels)) for group, (_, labels) in self._memory.groups.items()}
        table = {
            group: {"images": size, "uncertainty": self._uncertain[group]} for group, size in sizes.items()
        }
        return {"memory_held": float(self.held), "memory_by_attack": table} if table else {}

    def spec(self) -> dict[str, Any]:
        """Adds the number of images in the memory."""
        return {**super().spec(), "memory": self.held}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Restore the number of images; the images themselves are part of the training state."""
        self.held = int(spec["memory"])

    def training_state(self) -> dict[str, Any]:
        """Adds the memory."""
        more = {"memory": self._memory.state(), "uncertain": dict(self._uncertain)}
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores the memory."""
        super().load_training_state(state)
        self._memory.load(state["memory"])
        self._uncertain = dict(state["uncertain"])
        self.held = len(self._memory)


def jensen_shannon(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """JS of softmax(first / T) and softmax(second / T), mean over the batch of logits (N, K)."""
    p, q = (log_probabilities(logits / temperature) for logits in (first.to(second.dtype), second))
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    found: Tensor = (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1).mean() / 2
    return found
