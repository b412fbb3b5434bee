"""Architectures of timm, with fresh weights; nothing is downloaded."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

from torch import nn

from advbench.models.arguments import refuse_arguments
from advbench.models.torchvision import offline
from advbench.runtime.factory import one_line
from attacks_pool.errors import InputError, unknown

SIZE = "img_size"
NOT_ARGUMENTS = (
    *("model_name", "num_classes", "in_chans", SIZE, "checkpoint_path", "cache_dir"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
)
"""Arguments of ``timm.create_model`` that follow from the data set or read weights."""


def from_timm(
    name: str, num_classes: int, in_channels: int = 3, image_size: int | tuple[int, int] = 224, **more: Any
) -> nn.Module:
    """A classifier of timm with ``num_classes`` logits for ``in_channels``, and fresh weights.

    Networks that are made for one size of images, such as ViT, are made for ``image_size``. ``more`` goes to
    the constructor: ``patch_size``, ``depth``, ``drop_path_rate`` and others, as the network takes them.

    Raises:
        InputError: timm is not installed, there is no such classifier, or it cannot be built with these
            arguments.
    """
    timm = _timm()
    names = timm.list_models()
    if name not in names:
        see = f"timm has {len(names)} architectures, without the tags of weights: none are downloaded"
        raise unknown("timm model", name, names, see=see)
    refuse_arguments(f"timm:{name}", more, NOT_ARGUMENTS)
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **more}
    try:
        with offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model: nn.Module = timm.create_model(name, **{SIZE: image_size}, **arguments)
            except TypeError as error:
                # Convolutional networks take any size and have no such argument.
                if SIZE not in str(error):
                    raise
                model = timm.create_model(name, **arguments)
    except Exception as error:
        raise InputError(f"model 'timm:{name}' cannot be built: {one_line(error)}") from error
    return model


def _timm() -> ModuleType:
    """The package timm.

    Raises:
        InputError: it is not installed, or fails to import.
    """
    try:
        with offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise InputError("timm is not installed: pip install 'advbench[timm]'") from None
        raise InputError(f"timm cannot be imported: {one_line(error)}") from error
