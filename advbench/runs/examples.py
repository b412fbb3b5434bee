"""The points that attacks crafted in an evaluation: one safetensors file, written block by block."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advbench.data import Split
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import Shard, blocks, shards
from attacks_pool import Attack
from attacks_pool.errors import InputError, unknown
from leaderboards import CLEAN
from leaderboards.records.limits import weights_fault
from leaderboards.records.store import replacing_file
from leaderboards.statistics.naming import attack_name

SUFFIX = ".safetensors"
X, LABELS, CRAFTED, OUTCOMES = "x", "labels", "x_adv", "outcomes"
"""The tensors: ``x``, ``labels``, and ``x_adv/ATTACK`` and ``outcomes/ATTACK`` for every attack."""


@dataclass(frozen=True)
class _Part:
    """One tensor of the file: its name, type and shape, and the arrays that follow each other in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    arrays: Callable[[], Iterator[NDArray[Any]]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * {"F32": 4, "I64": 8, "BOOL": 1}[self.dtype]


def check_target(path: Path) -> None:
    """Check a file to write examples to before anything is measured.

    Raises:
        InputError: its name has another suffix, its folder does not exist, or it is a folder.
    """
    if path.suffix != SUFFIX:
        raise InputError(f"save_examples={path}: the file's name must end with {SUFFIX}")
    if path.is_dir():
        raise InputError(f"save_examples={path} is a folder: name a file")
    if not path.parent.is_dir():
        raise InputError(f"save_examples={path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"save_examples={path}: the folder {path.parent} is read-only")


def check_room(path: Path, data: Split, attacks: Sequence[tuple[Attack, int]]) -> None:
    """Refuse a file that does not fit on its disk.

    Raises:
        InputError: the disk has less free space than the examples take.
    """
    image = 4 * int(np.prod(data.shape))
    needed = image * (len(data) + sum(count for _, count in attacks))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"save_examples={path}: the examples take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def write_examples(
    path: Path,
    data: Split,
    attacks: Sequence[tuple[Attack, int]],
    row: MatrixRow,
    crafted: Callable[[Shard], Tensor],
    about: Mapping[str, str],
) -> str:
    """Write the examples of a row atomically, holding one block at a time in memory.

    Args:
        path: the file.
        data: the test points of the row.
        attacks: each with its number of points.
        row: the outcomes.
        crafted: returns the points (block, C, H, W) of a shard that the verifier judged; clean ones where
            the model was wrong already.
        about: texts for the file's metadata.

    Returns:
        The file's SHA-256.

    Raises:
        RecordError: the file cannot be written; an existing file is then unchanged.
    """
    parts = list(_parts(data, attacks, row, crafted))
    header: dict[str, Any] = {"__metadata__": dict(about)}
    place = 0
    for part in parts:
        offsets = [place, place + part.size]
        header[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": offsets}
        place += part.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    summed = hashlib.sha256()
    with replacing_file(path) as temporary, temporary.open("xb") as file:
        for piece in _bytes(text, parts):
            summed.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return summed.hexdigest()


def _bytes(header: bytes, parts: Sequence[_Part]) -> Iterator[bytes]:
    yield len(header).to_bytes(8, "little")
    yield header
    kinds = {"F32": "<f4", "I64": "<i8", "BOOL": "?"}
    for part in parts:
        for array in part.arrays():
            yield np.ascontiguousarray(array, dtype=kinds[part.dtype]).tobytes()


def _parts(
    data: Split, attacks: Sequence[tuple[Attack, int]], row: MatrixRow, crafted: Callable[[Shard], Tensor]
) -> Iterator[_Part]:
    """The tensors, those of larger numbers first, so that each begins at a multiple of its numbers' size."""
    count, image = len(data), data.shape

    def clean() -> Iterator[NDArray[Any]]:
        for block in blocks(image, count):
            yield data.images[block].cpu().numpy()

    def attacked(attack: Attack, points: int) -> Callable[[], Iterator[NDArray[Any]]]:
        return lambda: (crafted(shard).numpy() for shard in shards(data, [(attack, points)], clean=False))

    yield _Part(LABELS, "I64", (count,), lambda: iter([data.y.cpu().numpy()]))
    yield _Part(X, "F32", (count, *image), clean)
    for attack, points in attacks:
        yield _Part(f"{CRAFTED}/{attack.text}", "F32", (points, *image), attacked(attack, points))
    outcomes = [(CLEAN, row.clean), *((a.text, r[:n]) for (a, n), r in zip(attacks, row.robust, strict=True))]
    for name, right in outcomes:
        yield _Part(f"{OUTCOMES}/{name}", "BOOL", right.shape, lambda right=right: iter([right]))  # type: ignore[misc]


class Examples:
    """A file of examples; tensors are read when they are asked for.

    Args:
        path: the file.
        sha256: the file's SHA-256 in the record.

    Raises:
        InputError: the file is missing, damaged or another one.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path = path
        try:
            if fault := weights_fault(path):
                raise ValueError(fault)
            if sha256 is not None:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise ValueError("its SHA-256 is not the one in the record")
            with safe_open(path, framework="pt") as file:
                self._names = tuple(file.keys())
                self.about: dict[str, str] = dict(file.metadata() or {})
        except FileNotFoundError:
            raise InputError(f"examples {path} are missing: the evaluation saved them there") from None
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"examples {path} cannot be read: {' '.join(str(error).split())}") from None
        if X not in self._names or LABELS not in self._names:
            raise InputError(f"examples {path} lack {X!r} or {LABELS!r}: advbench eval did not write them")

    def __repr__(self) -> str:
        """The file and the attacks in it."""
        return f"Examples({str(self.path)!r}, {', '.join(self.attacks)})"

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """The attacks, as the record names them."""
        start = f"{CRAFTED}/"
        listed: list[str] = json.loads(self.about.get("attacks", "[]"))
        return tuple(listed) or tuple(n.removeprefix(start) for n in self._names if n.startswith(start))

    @property
    def x(self) -> Tensor:
        """The clean points, float32 (n, C, H, W)."""
        return self._tensor(X)

    @property
    def labels(self) -> Tensor:
        """Their labels, int64 (n,)."""
        return self._tensor(LABELS)

    def x_adv(self, attack: str) -> Tensor:
        """The judged points of an attack, float32 (m, C, H, W): of the first m of ``x``.

        Points that the model gets wrong clean are not attacked, and stay clean. So do points of a
        minimal-norm attack that found nothing within eps.

        Args:
            attack: its text in the record, or its name if only one attack has it.

        Raises:
            InputError: there is no such attack, or several have the name.
        """
        return self._tensor(f"{CRAFTED}/{self._attack(attack)}")

    def outcomes(self, attack: str = CLEAN) -> Tensor:
        """Which points are right after an attack, or clean: bool (m,).

        Raises:
            InputError: there is no such attack, or several have the name.
        """
        return self._tensor(f"{OUTCOMES}/{attack if attack == CLEAN else self._attack(attack)}")

    def _attack(self, given: str) -> str:
        found = [text for text in self.attacks if given in (text, attack_name(text))]
        if not found:
            raise unknown(f"attack of {self.path}", given, map(attack_name, self.attacks))
        if len(found) > 1:
            raise InputError(f"{len(found)} attacks of {self.path} are called {given!r}: give the whole text")
        return found[0]

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
