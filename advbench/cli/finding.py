"""Find runs by directory, by record, or by name in a runs directory."""

from __future__ import annotations

from pathlib import Path

from advbench.cli.options import runs_dirs
from advbench.runs.named import find_run


def named_run(path: Path, runs_dir: list[Path] | None) -> Path:
    """The path itself if it exists, otherwise the run of this name in the runs directories.

    Raises:
        RecordError: there is no such run.
    """
    return path if path.exists() else find_run(str(path), runs_dirs(runs_dir))


def surrogate_run(path: Path | None, runs_dir: list[Path] | None) -> Path | None:
    """Apply `named_run` to an optional path."""
    return None if path is None else named_run(path, runs_dir)


def named_model(text: str, runs_dir: Path) -> str:
    """A model's name, or the directory of the run of this name in ``runs_dir`` where no model has it."""
    from advbench.models.listed import MODELS

    found = kept_in(Path(text), runs_dir)
    return text if text in MODELS or ":" in text or found == Path(text) else str(found)


def kept_in(path: Path, runs_dir: Path) -> Path:
    """The run of this name in ``runs_dir`` if only that exists, otherwise the path itself."""
    inside = runs_dir / path
    return inside if inside.exists() and not path.exists() else path
