"""RCRT: regularised continual robust training, which fine-tunes a robust classifier to each new attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import uniform
from attacks_pool.errors import unknown
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import NORMS, ascend
from defenses.parts.checks import above_zero, because, not_negative, single_stage
from defenses.parts.met import noted, recalled
from defenses.parts.mixing import craft_batch
from defenses.registry import register
from defenses.training.processes import whole
from defenses.training.tally import Report, Tally

Regulariser = Literal["alr", "ur", "none"]
During = Literal["always", "initial", "tuning"]
Known = Literal["weighted", "random", "newest", "average", "max"]
CIFAR = 3 * 32 * 32
"""The number of values of an image for which the paper chose σ."""
USE = "attack "
"""Begins the name of a count of batches that an attack was used for."""


@register
class RCRT(Defense):
    """Regularised continual robust training (Dai et al., arXiv:2502.04248).

    The defender knows a set of attacks that grows by one in each stage. Stage 1 is the initial training; each
    later stage fine-tunes f. With x̃ crafted on f by known attacks,

        L = CE(f(x̃), y) + λ · R,
        adversarial ℓ2 regularisation (ALR):   R = 1/N Σ ‖f(x̃_i) − f(x_i)‖₂,
        uniform regularisation (UR):           R = 1/N Σ ‖f(clip(x_i + u_i)) − f(x_i)‖₂.

    u is uniform in [−1, 1]^d, shortened to the ℓ2 norm σ·√(d/3072) where it is longer. Gradients flow through
    both terms of a difference. The paper bounds the gap in robustness between two attacks by how far they
    move the logits. In the joint regime all attacks are known from the start.

    With ``known=weighted``, one attack is drawn for each batch, with probability proportional to 1 minus its
    robust accuracy so far in this epoch, and uniformly until all have been met; this is the fine-tuning of
    Croce and Hein (arXiv:2105.12508) that the authors use. ``random`` draws uniformly, ``newest`` trains
    against the latest attack alone, and ``average`` and ``max`` craft with every known attack.

    From the authors' code: R as the mean of the distances, separate train-mode forward passes, the draw of u
    with σ = 2 for CIFAR-10, and λ from 0.5 to 1. ALR there is the maximum of the distance, found by a search
    of its own of one step of length eps; ``alr_steps=1`` does that for attacks that are bounded in linf or
    l2. Ours: by default ALR uses x̃, which costs no search and works with every attack; σ is scaled to the
    size of the images; fine-tuning has the plan of any other stage, while the authors fine-tune CIFAR-10 for
    a tenth of the epochs with a hundredth of the learning rate (``rate``).

    ``report`` gives the mean of R, the robust accuracy on x̃ in training, and the share of the batches for
    which each attack was chosen, by stage.

    Args:
        model: the classifier.
        weight: λ.
        regularise: ``alr``, ``ur`` or ``none``.
        during: regularise ``always``, only in the ``initial`` training or only in ``tuning``.
        known: how a batch is attacked, see above.
        sigma: σ.
        alr_steps: the steps of a search that maximises the distance; 0 uses x̃.
        rate: the factor on the learning rate in fine-tuning.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range.
    """

    info = DefenseInfo(name="rcrt", paper="2502.04248", regimes=("continual", "joint"))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: float = 0.5,
        regularise: Regulariser = "alr",
        during: During = "always",
        known: Known = "weighted",
        sigma: float = 2.0,
        alr_steps: int = 0,
        rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(weight=weight, alr_steps=alr_steps)
        above_zero(sigma=sigma, rate=rate)
        for name, value, kind in (
            ("regulariser", regularise, Regulariser),
            ("time to regularise", during, During),
            ("use of known attacks", known, Known),
        ):
            if value not in get_args(kind):
                raise unknown(name, value, get_args(kind))
        self.weight, self.regularise, self.during, self.known = weight, regularise, during, known
        self.sigma, self.alr_steps, self.rate = sigma, alr_steps, rate
        self._met: list[Attack] = []
        self._epoch = -1
        self._right: list[float] = []
        self._shown: list[float] = []
        self._tally = Tally()
        self._counts: dict[str, float] = {}

    def begin(self, stage: Stage) -> None:  # noqa: ARG002 - the same in every stage
        """Begin to count epochs anew."""
        self._epoch = -1

    def end(self, stage: Stage) -> None:
        """Add the stage's attacks to the known ones."""
        self._met += stage.attacks

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """Parameters of regularisers that are not in use, and those of fine-tuning without any."""
        found = {}
        if self.regularise == "none" or self.weight == 0:
            off = "since nothing is regularised with " + ("regularise=none" if self.weight else "weight=0")
            found = because(off, "weight", "regularise", "during", "sigma", "alr_steps")
            found.pop("regularise" if self.weight else "weight")
        elif self.regularise == "alr":
            found = because("since only regularise=ur draws noise", "sigma")
        else:
            found = because("since only regularise=alr searches", "alr_steps")
        return {**found, **single_stage(stages, "rate")}

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train on one batch; the first of an epoch starts the robust accuracies of the attacks anew."""
        if stage.index > 1:
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = self.rate * stage.plan.learning_rate(stage.done)
        epoch = math.floor(stage.done * stage.plan.epochs + 1e-6)
        if epoch != self._epoch:
            count = len(self._met) + len(stage.attacks)
            self._epoch, self._right, self._shown = epoch, [0.0] * count, [0.0] * count
        self._counts = {}
        losses = super().step(x, y, stage, optimizer)
        if optimizer is not None:
            self._tally.add(stage.index, self._counts)
        return losses

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``regulariser``, without λ."""
        attacks = (*self._met, *stage.attacks)
        place = self.chosen(len(attacks), len(stage.attacks))
        several = attacks if place is None else (attacks[place],)
        x_adv, labels = craft_batch(
            self.craft,
            several,
            x,
            y,
            mix="max" if self.known == "max" else "average",
            generator=self.generator,
            predict=self,
        )
        logits = self(x_adv)
        self._note(attacks, place, by_image(logits.detach().argmax(1) == labels, len(x)))
        ce = self.label_loss(logits, labels)
        now = {"always": True, "initial": stage.index == 1, "tuning": stage.index > 1}[self.during]
        if self.regularise == "none" or self.weight == 0 or not now:
            return {"loss": ce, "ce": ce}
        distance = self.distance(x, y, logits, several)
        self._counts |= {
            "distance": float(whole(distance.detach()).sum()),
            "regularised": len(whole(distance)),
        }
        penalty = distance.mean()
        return {"loss": ce + self.weight * penalty, "ce": ce, "regulariser": penalty}

    def chosen(self, count: int, new: int) -> int | None:
        """The place of the attack for a batch among ``count`` known ones, the last ``new`` of them new.

        None if every attack is used.
        """
        if self.known in ("average", "max"):
            return None
        if self.known == "newest":
            return count - 1 - int(torch.randint(new, (1,), generator=self.generator))
        weights = [1.0] * count
        if self.known == "weighted" and len(self._shown) == count and all(self._shown):
            weights = [1 - right / shown for right, shown in zip(self._right, self._shown, strict=True)]
        if not any(weights):
            weights = [1.0] * count
        draw = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.generator)
        return int(draw)

    def distance(self, x: Tensor, y: Tensor, logits: Tensor, attacks: tuple[Attack, ...]) -> Tensor:
        """‖f(x̃) − f(x)‖₂ or ‖f(x + u) − f(x)‖₂ of each attacked image (M,).

        Args:
            x: clean images (N, C, H, W).
            y: labels (N,).
            logits: f(x̃) (M, K); M = N, or N·k if each of k attacks gives a point.
            attacks: those that crafted x̃.
        """
        clean = self(x)
        if self.regularise == "ur":
            return lengths(self(self.noisy(x)) - clean)
        if self.alr_steps and all(attack.info.norm in NORMS for attack in attacks):
            furthest = [self.furthest(attack, x, y) for attack in attacks]
            logits = self(torch.cat(furthest))
        return lengths(logits - clean.repeat(len(logits) // len(x), 1))

    def noisy(self, x: Tensor) -> Tensor:
        """clip(x + u), with the shape of ``x``."""
        u = uniform(x, self.generator, -1, 1)
        radius = self.sigma * math.sqrt(x[0].numel() / CIFAR)
        length = u.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        noisy: Tensor = (x + u * (radius / length).clamp_max(1)).clamp(0, 1)
        return noisy

    def furthest(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Points in the ball of ``attack`` that maximise ‖f(x') − f(x)‖₂; labels are not used."""
        with torch.no_grad(), evaluation_mode(self):
            clean = self(x)

        def distance(logits: Tensor, rows: Tensor) -> Tensor:
            return lengths(logits - clean[rows])

        return ascend(self, attack, x, y, steps=self.alr_steps, objective=distance)

    def report(self) -> Report:
        """The means of R and of the robust accuracy, and the use of each attack by stage."""
        ratios = {"logit_distance": ("distance", "regularised"), "robust_in_training": ("right", "images")}
        names = [name for name in self._tally.names() if name.startswith(USE)]
        uses = self._tally.by_stage({name.removeprefix(USE): (name, "batches") for name in names})
        return {**self._tally.ratios(ratios), "attacks_by_stage": uses} if uses else {}

    def training_state(self) -> dict[str, Any]:
        """Adds the known attacks with their training knobs, and their accuracies in this epoch."""
        more = {
            "met": noted(self._met),
            "epoch": self._epoch,
            "right": list(self._right),
            "shown": list(self._shown),
            "tally": self._tally.state(),
        }
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them; attacks are looked up in the pool.

        Raises:
            InputError: the pool has no attack of such a name.
        """
        super().load_training_state(state)
        self._met = recalled(state["met"])
        self._epoch, self._right, self._shown = state["epoch"], list(state["right"]), list(state["shown"])
        self._tally.load(state["tally"])

    def _note(self, attacks: tuple[Attack, ...], place: int | None, right: Tensor) -> None:
        """Count the use of attacks, and whether each image is right under them, (N,) or (N, k)."""
        total, images = float(right.sum()), right.numel()
        self._counts |= {"batches": 1, "right": total, "images": images}
        for number, attack in enumerate(attacks):
            if place in (None, number):
                self._counts[f"{USE}{number + 1} {attack.name}"] = 1
        if place is not None and place < len(self._shown):
            self._right[place] += total
            self._shown[place] += images


def lengths(values: Tensor) -> Tensor:
    """The ℓ2 norms (N,) of rows (N, K); the gradient at 0 is 0."""
    found: Tensor = torch.linalg.vector_norm(values, dim=1)
    return found


def by_image(values: Tensor, count: int) -> Tensor:
    """Values (k·n,) of k points for each of ``count`` = n images, as rows (N, k) of the whole batch."""
    return whole(values.view(-1, count).T.contiguous())
