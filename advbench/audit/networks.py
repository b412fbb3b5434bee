"""The networks of a defense: a target-aware one has several, and each is audited separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.evaluation.shards import View
from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack


@dataclass(frozen=True)
class Network:
    """One of the networks behind a view.

    ``label`` is the text of the run's first attack on it, or None for the network of clean images.
    """

    label: str | None
    module: nn.Module
    clean: nn.Module

    def view(self, attack: Attack | None) -> nn.Module:
        """This network for every attack; clean predictions use the same network as in the run."""
        return self.clean if attack is None else self.module


def networks(
    view: View, attacks: Sequence[Attack], x: Tensor, seed: int = 0
) -> tuple[list[Network], dict[str, str | None]]:
    """The different networks that ``attacks`` face, the network of clean images first.

    Two modules are one network if they give exactly the same logits for images ``x`` (N, C, H, W), because a
    defense may build a new view for each call.

    Returns:
        The networks, and a mapping from the text of each attack to the label of its network.
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
