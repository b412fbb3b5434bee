"""The checkpoint of an unfinished run: training snapshots, finished rows and pieces of rows."""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from advbench.evaluation.row import MatrixRow
from advbench.runs.pieces import Pieces, row_of, row_tree, seal, unseal
from advbench.runtime.hashing import weights_digest
from defenses import DefenseState, Snapshot
from defenses.training.packing import PackingError, pack, unpack
from defenses.training.snapshot import snapshot_of, to_tree
from leaderboards import RecordedStage, write_bytes
from leaderboards.records.layout import CHECKPOINT

KEPT = 2
"""How many snapshots of a stage, and states between stages, are kept, in case the newest is damaged."""
Seconds = dict[str, float]


@dataclass(frozen=True)
class MeasuredRow:
    """A finished row: its measurements, its weights, and the seconds that the run took until then."""

    row: MatrixRow
    stage: RecordedStage
    weights: str
    seconds: Seconds


Trained = tuple[DefenseState, Seconds]
"""The state after a finished stage, and the seconds that the run took until then."""
UnderWay = tuple[Snapshot, Seconds]
"""The same within an unfinished stage."""


class Checkpoint:
    """The directory ``checkpoint`` of a run.

    Every file in it names the run's identity and has a checksum: files that are damaged, or belong to another
    run, count as missing and are reported to ``note``.

    Args:
        run_dir: the run's directory.
        identity: the run's identity.
        note: called with one line for each damaged file.
    """

    def __init__(self, run_dir: Path, identity: str, note: Callable[[str], None]) -> None:
        self.run_dir, self.identity, self.note = run_dir, identity, note
        self.directory = run_dir / CHECKPOINT

    def keep_snapshot(self, snapshot: Snapshot, *, stage: int, before: str, seconds: Seconds) -> None:
        """Save a snapshot of ``stage``; ``before`` is the digest of the weights that the stage began with.

        Raises:
            RecordError: the snapshot cannot be written.
            PackingError: the defense's training state contains something that cannot be saved.
        """
        name = f"stage-{stage}-{snapshot.epoch:05d}-{snapshot.batch:07d}"
        self._keep(name, "snapshot", snapshot, {"before": before, "seconds": seconds})
        self._prune(f"stage-{stage}-*")

    def snapshot(self, stage: int, before: str, device: torch.device) -> UnderWay | None:
        """The newest undamaged snapshot of a stage that began with the weights ``before``."""
        for path in reversed(self._files(f"stage-{stage}-*")):
            found = self._read(path, Snapshot, device)
            if found is not None and found["before"] == before:
                return found["state"], found["seconds"]
        return None

    def keep_trained(self, state: DefenseState, *, stage: int, seconds: Seconds) -> None:
        """Save the state after a finished stage, and remove its snapshots.

        Raises:
            RecordError, PackingError: see `keep_snapshot`.
        """
        self._keep(f"trained-{stage:05d}", "state", state, {"stage": stage, "seconds": seconds})
        if stage:
            # Keep stage 0: the first stage begins with it, and transferred points are crafted on it.
            self._prune("trained-*", keep=(f"trained-{0:05d}.safetensors",))
        for path in self._files(f"stage-{stage}-*"):
            _remove(path)

    def trained(self, stage: int, device: torch.device) -> Trained | None:
        """The state after a finished stage, if it is stored and undamaged."""
        path = self.directory / f"trained-{stage:05d}.safetensors"
        found = self._read(path, DefenseState, device) if path.exists() else None
        return None if found is None else (found["state"], found["seconds"])

    def keep_row(self, measured: MeasuredRow) -> None:
        """Save a finished row in one file, and remove its pieces.

        Raises:
            RecordError: the row cannot be written.
        """
        tree = {
            **vars(measured),
            "identity": self.identity,
            "row": row_tree(measured.row),
            "stage": measured.stage.model_dump(mode="json"),
        }
        self.directory.mkdir(exist_ok=True)
        write_bytes(self._row(measured.row.stage), seal(tree))
        shutil.rmtree(self.directory / "pieces", ignore_errors=True)

    def rows(self) -> list[MeasuredRow]:
        """The finished rows from 0 on, as far as they and the weights of their stages are undamaged."""
        found: list[MeasuredRow] = []
        while (path := self._row(len(found))).exists():
            tree = unseal(path.read_bytes())
            if tree is None:
                self.note(f"{path} is damaged: its row is measured again")
                break
            stage = RecordedStage.model_validate(tree["stage"])
            measured = MeasuredRow(row_of(tree["row"]), stage, tree["weights"], tree["seconds"])
            if tree["identity"] != self.identity:
                break
            if self._weights(measured.stage) != measured.weights:
                self.note(f"{self.run_dir / measured.stage.weights} is damaged: its stage is trained again")
                break
            found.append(measured)
        return found

    def pieces(self, weights: str) -> Pieces:
        """The store for pieces of measurements on these weights."""
        return Pieces(self.directory / "pieces", self.identity, weights)

    def clear(self) -> None:
        """Remove the checkpoint of a finished run."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _row(self, stage: int) -> Path:
        return self.directory / f"row-{stage:05d}.json"

    def _weights(self, stage: RecordedStage) -> str:
        try:
            return weights_digest(load_file(self.run_dir / stage.weights))
        except (OSError, SafetensorError, ValueError):
            return ""

    def _files(self, pattern: str) -> list[Path]:
        return sorted(self.directory.glob(f"{pattern}.safetensors"))

    def _keep(self, name: str, kind: str, state: DefenseState | Snapshot, more: dict[str, Any]) -> None:
        data = pack({"identity": self.identity, "kind": kind, "state": to_tree(state), **more})
        self.directory.mkdir(exist_ok=True)
        path = self.directory / f"{name}.safetensors"
        # Write the checksum first: a checksum without a file is harmless, but a file needs its checksum.
        write_bytes(_checksum(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode())
        write_bytes(path, data)

    def _read(self, path: Path, kind: type, device: torch.device) -> dict[str, Any] | None:
        try:
            data = path.read_bytes()
            listed = re.match(r"[0-9a-f]{64}", _checksum(path).read_text("utf-8", errors="replace"))
            if listed is None or listed[0] != hashlib.sha256(data).hexdigest():
                raise PackingError("its checksum differs")
            tree: dict[str, Any] = unpack(data, device)
            tree["state"] = snapshot_of(kind, tree["state"])
        except (OSError, PackingError) as error:
            reason = getattr(error, "strerror", None) or error
            self.note(f"{path} is damaged ({reason}): the run resumes from an earlier state")
            return None
        return tree if tree["identity"] == self.identity else None

    def _prune(self, pattern: str, keep: tuple[str, ...] = ()) -> None:
        files = [path for path in self._files(pattern) if path.name not in keep]
        for path in files[:-KEPT]:
            _remove(path)


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _checksum(path).unlink(missing_ok=True)
