"""Stores finished pieces of an evaluation on disk, keyed by everything that they depend on."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import Piece, Setting, Shard
from advbench.runtime.hashing import digest
from leaderboards import CLEAN, Cell, RecordError, write_bytes
from leaderboards.errors import os_errors

CRAFTED, EXAMPLES = "x_adv", ".safetensors"
"""The tensor of crafted points in the file beside a piece, and that file's suffix."""


class Pieces:
    """Stores pieces as files of one directory.

    A piece's name is a hash over the run's identity, the digest of the measured weights, and the shard: row,
    seed, attack with all its knobs, test points, draws and surrogate. Crafted points, if they are kept, are
    in a safetensors file beside it, whose checksum the piece has.
    """

    def __init__(self, directory: Path, identity: str, weights: str) -> None:
        self.directory, self.identity, self.weights = directory, identity, weights

    def get(self, shard: Shard, setting: Setting) -> Piece | None:
        """The piece of this shard, without its crafted points.

        None if it is missing, damaged, of another shard, or lacks crafted points that the setting asks for.
        """
        key = self._key(shard, setting)
        try:
            found = unseal(self._path(key).read_bytes())
        except OSError:
            return None
        if found is None or found["key"] != key or len(found["right"]) != shard.stop - shard.start:
            return None
        if setting.examples and shard.attack is not None and self._crafted(key, found) is None:
            return None
        own = ("key", "right", "changed", "examples")
        values = {name: value for name, value in found.items() if name not in own}
        return Piece(right=bools(found["right"]), changed=tuple(found["changed"]), **values)

    def put(self, shard: Shard, setting: Setting, piece: Piece) -> None:
        """Store the piece of a shard.

        Raises:
            RecordError: the piece cannot be written.
        """
        key = self._key(shard, setting)
        self.directory.mkdir(parents=True, exist_ok=True)
        values = {**vars(piece), "right": bits(piece.right), "changed": list(piece.changed), "key": key}
        del values["examples"]
        if piece.examples is not None:
            crafted = save({CRAFTED: piece.examples.contiguous()})
            write_bytes(self._path(key).with_suffix(EXAMPLES), crafted)
            values["examples"] = hashlib.sha256(crafted).hexdigest()
        write_bytes(self._path(key), seal(values))

    def examples(self, shard: Shard, setting: Setting) -> Tensor:
        """The crafted points of a stored piece, (points, C, H, W).

        Raises:
            RecordError: they are missing or damaged.
        """
        key = self._key(shard, setting)
        with os_errors(f"cannot read {self._path(key)}"):
            found = unseal(self._path(key).read_bytes())
        crafted = None if found is None else self._crafted(key, found)
        if crafted is None:
            raise RecordError(f"the crafted points in {self.directory} are damaged")
        return load(crafted)[CRAFTED]

    def _crafted(self, key: dict[str, Any], found: dict[str, Any]) -> bytes | None:
        """The file of crafted points, if its checksum is the one in the piece ``found``."""
        try:
            crafted = self._path(key).with_suffix(EXAMPLES).read_bytes()
        except OSError:
            return None
        return crafted if hashlib.sha256(crafted).hexdigest() == found.get("examples") else None

    def _path(self, key: dict[str, Any]) -> Path:
        return self.directory / f"{digest(key)[:32]}.json"

    def _key(self, shard: Shard, setting: Setting) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "weights": self.weights,
            "stage": setting.stage,
            "seed": setting.seed,
            "attack": shard.text,
            "points": [shard.start, shard.stop],
            "draws": setting.draws,
            "surrogate": setting.surrogate_key,
        }


def holds_attack(path: Path) -> bool:
    """Whether a file is an undamaged piece of an attack, not of clean points."""
    found = unseal(path.read_bytes())
    return found is not None and found["key"]["attack"] != CLEAN


def seal(value: dict[str, Any]) -> bytes:
    """The JSON of a value with a checksum of itself."""
    return json.dumps({"sha256": digest(value), "value": value}, allow_nan=False).encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """The value that `seal` wrote; None if the checksum does not match."""
    try:
        tree = json.loads(data)
        value = tree["value"]
        return value if isinstance(value, dict) and tree["sha256"] == digest(value) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def row_tree(row: MatrixRow) -> dict[str, Any]:
    """A row as JSON values."""
    return {
        **vars(row),
        "clean": bits(row.clean),
        "robust": [bits(outcome) for outcome in row.robust],
        "cells": [cell.model_dump(mode="json") for cell in row.cells],
    }


def row_of(tree: dict[str, Any]) -> MatrixRow:
    """The row of JSON values that `row_tree` made."""
    clean = bools(tree["clean"])
    robust = np.array([bools(outcome) for outcome in tree["robust"]], dtype=bool).reshape(-1, len(clean))
    cells = [Cell.model_validate(cell) for cell in tree["cells"]]
    return MatrixRow(**{**tree, "clean": clean, "robust": robust, "cells": cells})


def bits(outcome: Iterable[Any]) -> str:
    """Convert outcomes to a text of ``0`` and ``1``."""
    return "".join("1" if right else "0" for right in outcome)


def bools(text: str) -> NDArray[np.bool_]:
    """Convert a text of ``0`` and ``1`` to outcomes."""
    return np.array([letter == "1" for letter in text], dtype=bool)
