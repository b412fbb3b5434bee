"""Data sets that Hugging Face's ``datasets`` saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advbench.data.formats.objects import from_object
from advbench.data.splits import RawData
from attacks_pool.errors import InputError

TESTS = ("test", "validation", "val")


def load(path: Path) -> RawData:
    """Load a folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.

    A dictionary's ``train`` is trained on, and its ``test``, or else ``validation``, is evaluated on.

    Raises:
        InputError: The library is missing, or the folder is not one that it wrote.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise InputError(f"no folder {path}: expected one that datasets' save_to_disk wrote")
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(
            f"data set 'hf:{path.name}' needs the library datasets, which is not installed ({error}): "
            "install it "
            "in an environment without torchattacks, whose pin of requests excludes it"
        ) from error
    try:
        found: Any = load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a data set on disk: {str(error).partition(chr(10))[0]}") from error
    if isinstance(found, dict):
        test = next((found[name] for name in TESTS if name in found), None)
        if test is None:
            raise InputError(f"{path} has the parts {', '.join(found)}: expected train and test")
        found = {"train": found.get("train"), "test": test}
    return from_object(found, f"hf:{path.name}")
