"""Checks batches of images and labels, and describes what is wrong with them."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import torch
from torch import Tensor

from attacks_pool.errors import InputError

ROUNDING = 1e-6
"""How far pixels may leave [0, 1], since resizing and undoing a normalisation round."""


def check_batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check a batch's shapes, types and range; return it detached and out of inference mode.

    Pixels that rounding moved out of [0, 1] are clamped.

    Raises:
        InputError: the batch is not valid; the message says what was given and what is allowed.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.float32:
        raise InputError(f"x must be float32 (N, C, H, W), not {described(x)}{_images_hint(x)}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise InputError(f"y must be int64 ({len(x)},), not {described(y)}{_labels_hint(y)}")
    if len(y) and int(y.min()) < 0:
        raise InputError(f"y must hold classes from 0 on, not {int(y.min())}")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(f"x must lie in [0, 1], not in [{np.float32(low)!s}, {np.float32(high)!s}]")
    with torch.inference_mode(False):
        x, y = x.detach(), y.detach()
        if low < 0 or high > 1:
            x = x.clamp(0, 1)
        return (x.clone(), y.clone()) if x.is_inference() or y.is_inference() else (x, y)


def described(given: object) -> str:
    """Describe in words a value given in place of a tensor: ``float64 (1, 1, 8, 8)``, ``a list of 3``."""
    if isinstance(given, Tensor):
        return f"{str(given.dtype)[6:]} {tuple(given.shape)}"
    if isinstance(given, np.ndarray):
        return f"a numpy array of {given.dtype} {given.shape}"
    if isinstance(given, Sized) and not isinstance(given, type):
        return f"{kind_of(given)} of {len(given)}"
    return "None" if given is None else kind_of(given)


def _images_hint(given: object) -> str:
    """Say how to correct common mistakes."""
    if isinstance(given, np.ndarray):
        return ": torch.from_numpy converts it to a tensor"
    if not isinstance(given, Tensor):
        return ""
    if given.ndim == 3:
        return ": x[None] is a batch of one"
    if given.dtype == torch.uint8:
        return ": x.float() / 255 is"
    return ": x.float() is" if given.is_floating_point() and given.ndim == 4 else ""


def _labels_hint(given: object) -> str:
    if isinstance(given, np.ndarray | list | tuple):
        return ": torch.as_tensor converts it to a tensor"
    if not isinstance(given, Tensor) or given.is_floating_point():
        return ""
    if given.ndim == 2 and given.shape[1] == 1:
        return ": y[:, 0] is"
    return ": y.long() is" if given.ndim == 1 and given.dtype != torch.int64 else ""


def kind_of(given: object) -> str:
    """The type of a value, in words: ``a list``, ``the class Linear``."""
    name = type(given).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"the class {given.__name__}" if isinstance(given, type) else f"{article} {name}"
