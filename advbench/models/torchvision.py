"""Architectures of torchvision, with fresh weights; nothing is downloaded."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import nn

from advbench.models.arguments import refuse_arguments
from advbench.runtime.factory import one_line
from attacks_pool.errors import InputError, unknown

SIZED = {"vit_": "image_size", "maxvit": "input_size"}
"""How the constructors of networks for one size of images call it, by the start of their names."""
NOT_ARGUMENTS = ("weights", "num_classes", *SIZED.values())
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""The heads with which GoogLeNet and Inception return several outputs in training."""


def from_torchvision(
    name: str, num_classes: int, in_channels: int = 3, image_size: int | tuple[int, int] = 224, **more: Any
) -> nn.Module:
    """A classifier of ``torchvision.models`` with ``num_classes`` logits and fresh weights.

    Its first convolution is replaced if images have another number of channels than 3. Networks that are made
    for one size of images, such as ViT, are made for ``image_size``. ``more`` goes to its constructor.

    Raises:
        InputError: there is no such classifier, or it cannot be built with these arguments.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise unknown("torchvision model", name, names, see=f"torchvision has {len(names)} classifiers")
    refuse_arguments(f"torchvision:{name}", more, NOT_ARGUMENTS)
    for start, key in SIZED.items():
        if name.startswith(start):
            if not isinstance(image_size, int) and key == "image_size":
                height, width = image_size
                raise InputError(f"model 'torchvision:{name}' takes square images, got {height}×{width}")
            pair = (image_size, image_size) if isinstance(image_size, int) else image_size
            more[key] = pair if key == "input_size" else image_size
    try:
        with offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **more)
    except Exception as error:
        raise InputError(f"model 'torchvision:{name}' cannot be built: {one_line(error)}") from error
    if in_channels != 3:
        _take_channels(model, in_channels)
    return model


def _take_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, which every classifier of torchvision has, by one for ``channels``."""
    path, first = next((path, one) for path, one in model.named_modules() if isinstance(one, nn.Conv2d))
    how = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **how)
    model.set_submodule(path, new)


def without_auxiliary(model: nn.Module) -> nn.Module:
    """The same model without auxiliary heads, so that it returns only logits in training too."""
    if getattr(model, "aux_logits", False) is True:
        changed: dict[str, Any] = {"aux_logits": False}
        changed |= {head: None for head in AUXILIARY if hasattr(model, head)}
        for name, value in changed.items():
            setattr(model, name, value)
    return model


@contextmanager
def offline() -> Iterator[None]:
    """Block downloads, since some architectures fetch weights while they are built."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("it needs a download, and nothing is downloaded")

    before = socket.getaddrinfo, socket.create_connection
    socket.getaddrinfo, socket.create_connection = refuse, refuse
    try:
        yield
    finally:
        socket.getaddrinfo, socket.create_connection = before
