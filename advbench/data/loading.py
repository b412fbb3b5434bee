"""Loads a data set by its name, or from a Python object."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.data.choices import DataChoices
from advbench.data.registry import DATASETS, FOLDER, plugged
from advbench.data.sets import DataSet
from advbench.runtime.factory import accepted, find_named, one_line
from attacks_pool.errors import InputError, unknown

if TYPE_CHECKING:
    from advbench.data.splits import RawData

_READERS = {FOLDER: "folder", "npz:": "npz", "hf:": "huggingface"}
_CORRUPTED = ("cifar10-c", "cifar100-c", "imagenet-c")
_OBJECT = "python:"


def load_dataset(
    dataset: Any, data_dir: str | Path | None = None, choices: DataChoices | None = None
) -> DataSet:
    """Load a data set from files on this machine, or from a Python object; nothing is ever downloaded.

    Args:
        dataset: One of ``DATASETS``; ``folder:``, ``npz:`` or ``hf:`` and a path;
            ``package.module:factory``; or an object for
            :func:`advbench.data.formats.objects.from_object`.
        data_dir: The directory of the files of a listed data set; ``digits`` needs none.
        choices: Size and channels of images, and which part of the data is used.

    Raises:
        InputError: The name is unknown, or files are missing or unusable.
    """
    from advbench.data.splits import assemble

    chosen = choices or DataChoices()
    place = Path(data_dir).expanduser() if data_dir is not None else None
    found = _find(dataset, place, chosen) if isinstance(dataset, str) else _from_object(dataset)
    if not isinstance(found, DataSet):
        return assemble(found, chosen)
    if not chosen.keep_all:
        raise InputError(
            f"data set {found.name!r} is a DataSet, which is used as it is: image_size, channels, "
            "classes and train_points do not apply to it"
        )
    return found


def imports_data(text: str) -> bool:
    """Whether loading the data set ``text`` imports code of the user's, ``package.module:factory``."""
    name = text.partition(":")[0]
    named = text in DATASETS or name in (*_CORRUPTED, "imagenet") or text.startswith((*_READERS, _OBJECT))
    return ":" in text and not named


def _find(text: str, data_dir: Path | None, choices: DataChoices) -> RawData | DataSet:
    for prefix, module in _READERS.items():
        if text.startswith(prefix):
            path = text.removeprefix(prefix)
            if not path:
                kind = "folder" if prefix != "npz:" else "file"
                raise InputError(f"data set {text!r} names no {kind}: expected {prefix}PATH")
            reader = _reader(module)
            return reader(Path(path), choices) if prefix == FOLDER else reader(Path(path))
    name, colon, _ = text.partition(":")
    if text.startswith(_OBJECT):
        raise InputError(
            f"data set {text!r} was a Python object: it can be loaded only where that object is given again"
        )
    if name in _CORRUPTED:
        return _reader("corrupted")(text, data_dir, choices)
    if name == "imagenet":
        return _reader("imagenet")(text, data_dir, choices)
    if text in DATASETS and not colon:
        return _listed(text, data_dir, choices)
    if text in plugged():
        return _made(text, plugged()[text].load, data_dir, choices)
    near = difflib.get_close_matches(f"{name}:", _READERS, n=1, cutoff=0.75)
    if imports_data(text) and not near:
        return _made(text, lambda: find_named(text, kind="data set"), data_dir, choices)
    if near:
        raise InputError(f"unknown data set {text!r}: did you mean {near[0]}{text.partition(':')[2]}?")
    here = Path(text).expanduser()
    kind = FOLDER if here.is_dir() else "npz:" if here.suffix == ".npz" and here.is_file() else ""
    if kind:
        raise InputError(f"unknown data set {text!r}: did you mean {kind}{text}?")
    raise unknown("data set", text, {*DATASETS, *plugged()})


def _reader(module: str) -> Callable[..., RawData]:
    """The function that reads one layout; its module loads numpy and torch, which listing must not do."""
    load: Callable[..., RawData] = importlib.import_module(f"advbench.data.formats.{module}").load
    return load


def _listed(name: str, data_dir: Path | None, choices: DataChoices) -> RawData:
    if name == "digits":
        return _reader("digits")()
    if name == "tiny-imagenet":
        return _reader("tiny_imagenet")(name, data_dir, choices)
    module = {"mnist": "idx", "fashion-mnist": "idx", "svhn": "svhn"}.get(name, "cifar")
    return _reader(module)(name, data_dir)


def _made(
    text: str, find: Callable[[], Any], data_dir: Path | None, choices: DataChoices
) -> RawData | DataSet:
    """What a factory of the user's makes; it gets those of its arguments that a data set needs."""
    try:
        factory = find()
        if callable(factory) and not isinstance(factory, DataSet):
            offered = {"data_dir": data_dir, "image_size": choices.image_size, "channels": choices.channels}
            given = {key: value for key, value in offered.items() if value is not None}
            factory = factory(**accepted(factory, given, always="data_dir"))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        raise InputError(f"data set {text!r}: the factory failed: {one_line(error)}") from error
    return _from_object(factory, text)


def _from_object(given: Any, name: str | None = None) -> RawData | DataSet:
    from advbench.data.formats.objects import from_object

    if isinstance(given, DataSet):
        return given
    return from_object(given, name or f"{_OBJECT}{type(given).__name__}")
