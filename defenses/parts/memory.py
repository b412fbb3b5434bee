"""A memory of images in groups, and choices of images for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memory:
    """Images (N, C, H, W) and labels (N,) by the name of their group, on the CPU."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.groups.values())

    def at(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels of ``rows`` (n,) of all groups together."""
        images = torch.cat([images for images, _ in self.groups.values()])
        labels = torch.cat([labels for _, labels in self.groups.values()])
        return images[rows].to(device), labels[rows].to(device)

    def state(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The groups, for :meth:`load`."""
        return dict(self.groups)

    def load(self, state: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Restore the groups."""
        self.groups = {name: (images, labels) for name, (images, labels) in state.items()}


def evenly_spaced(labels: Tensor, score: Tensor, room: int) -> Tensor:
    """Rows (n,) of at most ``room`` points, with equally many of each class as far as it has them.

    Of n points of a class, ordered by ``score`` (N,), q are chosen: those at the places ⌊(j + ½)·n/q⌋.

    Args:
        labels: (N,).
        score: (N,).
        room: how many points to choose.
    """
    order = score.argsort(stable=True)
    members = {label: order[labels[order] == label] for label in sorted(set(labels.tolist()))}
    quotas = dict.fromkeys(members, 0)
    left = min(room, len(labels))
    # Classes with few points leave their share to the others.
    for rank, label in enumerate(sorted(members, key=lambda label: len(members[label]))):
        quotas[label] = min(len(members[label]), left // (len(members) - rank))
        left -= quotas[label]
    rows = []
    for label, mine in members.items():
        places = (torch.arange(quotas[label]) + 0.5) * len(mine) / max(quotas[label], 1)
        rows.append(mine[places.long()])
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


def of_each_class(labels: Tensor, keys: Tensor, count: int) -> Tensor:
    """Rows (n,), in order, of the ``count`` points with the lowest keys of each class, or all of fewer.

    If keys (N,) are drawn uniformly and kept with their points, the points kept of a class are a uniform
    sample of all its points, no matter how many batches they came in.
    """
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        mine = (labels == label).nonzero().flatten()
        kept[mine[keys[mine].argsort()[:count]]] = True
    return kept.nonzero().flatten()
