"""Snapshots of a defense during training, as plain values from which training can resume bit for bit."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from attacks_pool.errors import InputError
from defenses.training.packing import PackingError, detached, map_tensors, pack, unpack
from defenses.training.trainable import Trainable


@dataclass(frozen=True)
class DefenseState:
    """The state of a defense between two steps.

    Attributes:
        spec: JSON data from which the structure can be rebuilt.
        weights: the state dict.
        trained: for each parameter name, whether it requires gradients.
        training: the result of ``training_state()``.
    """

    spec: dict[str, Any]
    weights: dict[str, Tensor]
    trained: dict[str, bool]
    training: dict[str, Any]

    @classmethod
    def of(cls, defense: Trainable) -> Self:
        """Copy the current state; further training does not change the copy."""
        return cls(
            spec=defense.spec(),
            weights=map_tensors(dict(defense.state_dict()), detached),
            trained={name: parameter.requires_grad for name, parameter in defense.named_parameters()},
            training=map_tensors(defense.training_state(), detached),
        )

    def restore(self, defense: Trainable) -> None:
        """Load the state into ``defense``, a new one with the same parameters and kind of classifier.

        Raises:
            InputError: the state belongs to another structure.
        """
        device = defense.device
        try:
            defense.load_spec(self.spec)
            # Modules that a stage added are created on the CPU.
            defense.to(device)
            defense.load_state_dict(self.weights)
            for name, parameter in defense.named_parameters():
                parameter.requires_grad_(self.trained[name])
            defense.load_training_state(map_tensors(self.training, detached))
        except (KeyError, RuntimeError) as error:
            problem = " ".join(str(error).split())
            raise InputError(f"this is not a state of {defense.info.name}: {problem}") from error


@dataclass(frozen=True)
class Snapshot:
    """The state of training in a stage after some batch.

    Attributes:
        state: the state of the defense.
        stage: number of the current stage, from 1.
        epoch: number of finished epochs.
        batch: number of finished batches in the current epoch; 0 between two epochs.
        optimizer: its state dict, with the names of its parameters in order under ``names``, or None.
        history: mean losses of the finished epochs.
        sums: sums of the losses in the current epoch.
        passes: forward and backward sample-passes of this stage so far.
        best: with ``select="val-robust"``, accuracy and weights of the best epoch.
        average: with ``average``, the averaged weights and their number.
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
    average: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """Return the snapshot as the bytes of one safetensors file.

        Raises:
            PackingError: the training state of the defense holds something other than values and tensors.
        """
        return pack(to_tree(self))

    @classmethod
    def unpack(cls, data: bytes, device: torch.device | str = "cpu") -> Self:
        """Restore a snapshot from `pack`'s bytes; tensors that were on a GPU are moved to ``device``.

        Raises:
            PackingError: the bytes are damaged or not a snapshot.
        """
        found: Self = snapshot_of(cls, unpack(data, device))
        return found


def to_tree(value: Snapshot | DefenseState) -> dict[str, Any]:
    """Convert to nested dicts of fields, as `pack` needs them; fields left at None may be missing."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    optional = _optional(type(value))
    return {
        name: to_tree(one) if isinstance(one, DefenseState) else one
        for name, one in found.items()
        if one is not None or name not in optional
    }


def snapshot_of(kind: Any, tree: Any) -> Any:
    """Build a ``Snapshot`` or ``DefenseState`` from the result of `to_tree`.

    Raises:
        PackingError: the fields are not those of ``kind``.
    """
    names = {field.name for field in fields(kind)}
    if not isinstance(tree, dict) or not names - _optional(kind) <= set(tree) <= names:
        raise PackingError(f"not the fields of a {kind.__name__}")
    values = dict(tree)
    if "state" in values:
        values["state"] = snapshot_of(DefenseState, values["state"])
    return kind(**values)


def _optional(kind: Any) -> set[str]:
    """The fields with a default."""
    return {field.name for field in fields(kind) if field.default is not MISSING}
