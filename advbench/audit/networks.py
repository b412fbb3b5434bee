"""Which network answers which attack: a target-aware defense has several, and each is judged for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.evaluation.evaluate import View
from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack


@dataclass(frozen=True)
class Network:
    """One of the networks behind a view.

    ``label`` is the text of the first attack of the run that meets it, None where clean images do.
    """

    label: str | None
    module: nn.Module
    clean: nn.Module

    def view(self, attack: Attack | None) -> nn.Module:
        """This network for every attack; who is right clean is asked as in the run."""
        return self.clean if attack is None else self.module


def networks(
    view: View, attacks: Sequence[Attack], x: Tensor, seed: int = 0
) -> tuple[list[Network], dict[str, str | None]]:
    """The different networks that ``attacks`` meet, that of clean images first, and which one each meets.

    Two modules are one network if they give images ``x`` (N, C, H, W) the very same logits: views may be
    built anew each time they are asked for.

    Returns:
        The networks, and for the text of each attack the label of its own.
    """
    clean = view(None)
    found, labels = [Network(None, clean, clean)], dict[str, str | None]()
    answers: list[Tensor] = []
    for attack in attacks:
        module = view(attack)
        if module is clean:
            labels[attack.text] = None
            continue
        answers = answers or [logits_of(clean, x, seed)]
        answer = logits_of(module, x, seed)
        same = [one.label for one, known in zip(found, answers, strict=True) if torch.equal(known, answer)]
        if not same:
            found.append(Network(attack.text, module, clean))
            answers.append(answer)
        labels[attack.text] = same[0] if same else attack.text
    return found, labels
