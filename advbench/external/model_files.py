"""Loads programs from files: TorchScript (``torch.jit.save``) and exported (``torch.export.save``)."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from advbench.external.wrapper import ForeignModel, probed_batch
from advbench.models.archives import PROGRAM, SCRIPT, kind_of, members
from advbench.runtime.factory import one_line
from attacks_pool.errors import InputError

SCRIPTS = (".pt", ".pth", ".ts")
EXPORTED = ".pt2"
WITH_FACTORY = "--model package.module:factory --weights FILE.safetensors"


def load_program(path: Path, shape: tuple[int, ...], classes: int, *, trust: bool) -> ForeignModel:
    """Load a model from a file with its program, which torch runs; an untrusted file is not opened.

    Args:
        path: a TorchScript file or one of ``torch.export.save``; its content decides which.
        shape: (C, H, W) of its input images.
        classes: the number of its logits.
        trust: whether it may be loaded.

    Raises:
        InputError: the file is missing, a pickle, damaged or not trusted, or is for images of another shape.
    """
    if not path.is_file():
        raise InputError(f"model {str(path)!r}: there is no such file; nothing is downloaded")
    kind = kind_of(members(path, f"model {str(path)!r}"))
    if kind is None and path.suffix == EXPORTED:
        raise InputError(f"model {str(path)!r} is not a program of torch.export.save")
    if kind is None:
        raise InputError(
            f"model {str(path)!r} is not a TorchScript file, and a pickle could run any code: "
            f"save its state_dict() as safetensors and give {WITH_FACTORY}"
        )
    if not trust:
        raise InputError(
            f"model {str(path)!r} is {kind}, and loading it can run any code: add --trust if you trust it, "
            f"or save its state_dict() as safetensors and give {WITH_FACTORY}"
        )
    with _quiet():
        try:
            return {SCRIPT: _load_script, PROGRAM: _load_exported}[kind](path, shape, classes)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"model {str(path)!r} cannot be loaded: {one_line(error)}") from None


def _load_script(path: Path, shape: tuple[int, ...], classes: int) -> ForeignModel:
    load: Any = torch.jit.load
    script = load(str(path), map_location="cpu").eval()
    return ForeignModel(script, str(path), classes, batch=probed_batch(script, shape))


def _load_exported(path: Path, shape: tuple[int, ...], classes: int) -> ForeignModel:
    """Load a program of ``torch.export.save``; its batch size is that of the export."""
    with _tensors_only():
        program = torch.export.load(str(path))
        module = program.module()
    inputs = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(nodes) != 1 or not isinstance(nodes[0].meta.get("val"), torch.Tensor):
        raise InputError(f"model {str(path)!r} takes {len(nodes)} inputs, expected one batch of images")
    expected = nodes[0].meta["val"].shape
    if len(expected) != 4 or any(
        isinstance(side, int) and side != given for side, given in zip(expected[1:], shape, strict=True)
    ):
        wanted = ", ".join(str(side) for side in expected[1:])
        raise InputError(
            f"model {str(path)!r} was exported for images of shape ({wanted}), the data set has {shape}"
        )
    batch = _batch(expected[0], program.range_constraints)
    return ForeignModel(module, str(path), classes, batch=batch, modal=False)


def _batch(size: Any, ranges: Any) -> tuple[int, int | None]:
    if isinstance(size, int):
        return size, size
    found = ranges.get(size.node.expr)
    if found is None:
        return 1, None
    least, most = max(int(found.lower), 1), str(found.upper)
    return least, int(most) if most.isdecimal() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings that these formats are old, or new, but not its errors."""
    with warnings.catch_warnings(action="ignore"):
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Restrict ``torch.load`` to tensors; torch has other ways to run code, so files still need trust."""
    load = torch.load

    @functools.wraps(load)
    def careful(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "weights_only": True})

    torch.load = careful
    try:
        yield
    finally:
        torch.load = load
