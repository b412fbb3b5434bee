"""Selects which epoch of a stage to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.search.ascent import wrong
from defenses.training import processes
from defenses.training.stage import Batches, Stage
from defenses.training.trainable import Trainable


class Best:
    """Remembers the epoch with the highest robust accuracy against the stage's attacks on validation data."""

    def __init__(self, defense: Trainable, stage: Stage, validation: Batches) -> None:
        self.defense, self.stage, self.validation = defense, stage, validation
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def consider(self) -> None:
        """Measure the current epoch, and remember it if it is better than all before."""
        accuracy = self._robust_accuracy()
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.state = {name: value.detach().clone() for name, value in self.defense.state_dict().items()}

    def restore(self) -> None:
        """Restore the best epoch's weights."""
        self.defense.load_state_dict(self.state)

    def _robust_accuracy(self) -> float:
        right = total = 0
        self.defense.eval()
        for batch, (images, labels) in enumerate(self.validation):
            if batch % processes.count() != processes.rank():
                continue
            x, y = images.to(self.defense.device), labels.to(self.defense.device)
            survived = torch.ones(len(x), dtype=torch.bool, device=x.device)
            with torch.no_grad():
                survived &= ~wrong(self.defense(x), y)
            for number, attack in enumerate(self.stage.attacks):
                draws = keyed_generator("validation", self.defense.seed, self.stage.index, batch, number)
                x_adv = attack(self.defense, x, y, generator=draws)
                with torch.no_grad():
                    survived &= ~wrong(self.defense(x_adv), y)
            right, total = right + int(survived.sum()), total + len(x)
        every = processes.everyone((right, total))
        return sum(right for right, _ in every) / max(sum(total for _, total in every), 1)
