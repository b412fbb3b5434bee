"""A defense in the middle of its training, as plain values: enough to go on elsewhere, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from attacks_pool.errors import InputError
from defenses.training.packing import PackingError, detached, map_tensors, pack, unpack
from defenses.training.trainable import Trainable


@dataclass(frozen=True)
class DefenseState:
    """A defense between two steps.

    Attributes:
        spec: JSON that rebuilds the structure.
        weights: the state dict.
        trained: which parameters ask for gradients, by name.
        training: what ``training_state()`` gives.
    """

    spec: dict[str, Any]
    weights: dict[str, Tensor]
    trained: dict[str, bool]
    training: dict[str, Any]

    @classmethod
    def of(cls, defense: Trainable) -> Self:
        """A copy of the present state; further training does not move it."""
        return cls(
            spec=defense.spec(),
            weights=map_tensors(dict(defense.state_dict()), detached),
            trained={name: parameter.requires_grad for name, parameter in defense.named_parameters()},
            training=map_tensors(defense.training_state(), detached),
        )

    def restore(self, defense: Trainable) -> None:
        """Put it into ``defense``, newly built with the same parameters around a classifier of its kind.

        Raises:
            InputError: it is the state of another structure.
        """
        device = defense.device
        try:
            defense.load_spec(self.spec)
            # What a stage added was made anew, on the CPU.
            defense.to(device)
            defense.load_state_dict(self.weights)
            for name, parameter in defense.named_parameters():
                parameter.requires_grad_(self.trained[name])
            defense.load_training_state(map_tensors(self.training, detached))
        except (KeyError, RuntimeError) as error:
            problem = " ".join(str(error).split())
            raise InputError(f"this is no state of {defense.info.name}: {problem}") from error


@dataclass(frozen=True)
class Snapshot:
    """A stage under way, after some batch.

    Attributes:
        state: the defense.
        stage: the stage that is trained, from 1.
        epoch: epochs that are finished.
        batch: batches that are done in the epoch under way; 0 at its border.
        optimizer: its state dict, and under ``names`` the parameters in its order; None without one.
        history: mean losses of the finished epochs.
        sums: sums of the losses of the epoch under way.
        passes: sample-passes of this stage so far, forward and backward.
        best: with ``select="val-robust"``, the best epoch's accuracy and weights.
    """

    state: DefenseState
    stage: int
    epoch: int
    batch: int
    optimizer: dict[str, Any] | None
    history: list[dict[str, float]]
    sums: dict[str, float]
    passes: tuple[int, int]
    best: dict[str, Any] | None

    def pack(self) -> bytes:
        """One safetensors file.

        Raises:
            PackingError: the training state of the defense holds something else than values and tensors.
        """
        return pack(to_tree(self))

    @classmethod
    def unpack(cls, data: bytes, device: torch.device | str = "cpu") -> Self:
        """From `pack`'s bytes; ``device`` is where a GPU's tensors go.

        Raises:
            PackingError: the bytes are damaged or something else.
        """
        found: Self = snapshot_of(cls, unpack(data, device))
        return found


def to_tree(value: Snapshot | DefenseState) -> dict[str, Any]:
    """The fields, nested ones too, for `pack`."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: to_tree(one) if isinstance(one, DefenseState) else one for name, one in found.items()}


def snapshot_of(kind: Any, tree: Any) -> Any:
    """A ``Snapshot`` or ``DefenseState`` from `to_tree`'s fields.

    Raises:
        PackingError: other fields.
    """
    if not isinstance(tree, dict) or set(tree) != {field.name for field in fields(kind)}:
        raise PackingError(f"not the fields of a {kind.__name__}")
    values = dict(tree)
    if "state" in values:
        values["state"] = snapshot_of(DefenseState, values["state"])
    return kind(**values)
