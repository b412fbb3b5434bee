"""Wraps a foreign model as a module that gives logits, or an error in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advbench.runtime.factory import one_line
from attacks_pool.calling.logits import image_types, logits_in
from attacks_pool.errors import InputError

PROBED = (*range(1, 17), 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512)
"""Batch sizes to try on a model that refuses batches of two or of three."""

Answer = TypeVar("Answer")
UNKNOWN_TYPES = [torch.float64, torch.bfloat16, torch.float16]
"""Types to try for a function that does not take float32 images, since its weights are not visible."""


class ForeignModel(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, ``classes``), by any module or function ``inner``.

    Args:
        inner: the model; a module may be a loaded TorchScript or exported program.
        label: its name in errors.
        classes: the number of logits per image.
        batch: the least and the most images it takes at once. Larger batches are split; smaller ones are
            filled up with copies of their first image, whose logits are dropped.
        abstains: whether the last of the ``classes`` logits means abstaining.
        modal: whether ``inner`` has train and eval modes; exported programs are fixed in one.

    With ``copies``, ``inner`` gets a copy of the images, in case it writes into its input; ``dtype`` is the
    type of the images, see :meth:`in_its_type`. If the output has ``.logits``, or is a mapping with
    ``"logits"``, these are used. ``forward`` raises InputError if the output is not logits of that shape, and
    for any error of ``inner``.
    """

    def __init__(
        self,
        inner: Callable[[Tensor], Any],
        label: str,
        classes: int,
        *,
        batch: tuple[int, int | None] = (1, None),
        modal: bool = True,
        abstains: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.label, self.classes, self.batch, self.modal = label, classes, batch, modal
        self.abstains = abstains
        self.copies, self.dtype = False, torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, ``classes``)."""
        if isinstance(x, torch.fx.Proxy):
            # The checks below need values, which a trace does not have.
            return self.inner(self._given(x))
        least, most = self.batch
        if least <= len(x) <= (most or len(x)):
            return self._ask(x)
        return torch.cat([self._fill(part, least) for part in torch.split(x, most or len(x))])

    def in_its_type(self, attempt: Callable[[], Answer]) -> Answer:
        """The result of ``attempt``, which calls this model, with the first type of images that works.

        This sets ``dtype``: to float32 if ``inner`` accepts it, or else to a type of its weights.

        Raises:
            InputError: no type works.
        """
        kinds = image_types(self)
        if len(kinds) == 1 and not isinstance(self.inner, nn.Module):
            kinds += UNKNOWN_TYPES
        refused = []
        for kind in kinds:
            self.dtype = kind
            try:
                return attempt()
            except InputError as error:
                refused.append(error)
        # For a function, report the error for float32, because the other types were only guesses.
        raise refused[-1 if isinstance(self.inner, nn.Module) else 0]

    def train(self, mode: bool = True) -> ForeignModel:
        """Set the mode of ``inner``, if it has modes."""
        if self.modal:
            return super().train(mode)
        self.training = mode
        return self

    def _fill(self, x: Tensor, least: int) -> Tensor:
        copies = x[:1].expand(max(least - len(x), 0), *x.shape[1:])
        return self._ask(torch.cat([x, copies]))[: len(x)]

    def _given(self, x: Tensor) -> Tensor:
        x = x.clone() if self.copies else x
        return x if self.dtype == torch.float32 else x.to(self.dtype)

    def _ask(self, x: Tensor) -> Tensor:
        try:
            output = self.inner(self._given(x))
        except (InputError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"model {self.label!r} fails on images of shape {tuple(x.shape)}: {one_line(error)}"
            ) from error
        logits: Tensor = logits_in(output, f"model {self.label!r}")
        if not logits.is_floating_point():
            raise InputError(f"model {self.label!r} gives {str(logits.dtype)[6:]} numbers, expected logits")
        self._check_shape(logits, len(x))
        if type(logits) is not Tensor:
            logits = logits.as_subclass(Tensor)
        # 16 bits are too coarse for a loss or a margin.
        coarse = logits.dtype in (torch.bfloat16, torch.float16)
        return logits.float() if coarse or self.dtype != torch.float32 else logits

    def _check_shape(self, logits: Tensor, points: int) -> None:
        shape = tuple(logits.shape)
        if shape == (points, self.classes):
            return
        start = f"model {self.label!r} gives"
        if len(shape) == 2 and shape[0] == points:
            more, hint = "more" if shape[1] > self.classes else "fewer", ""
            known = f"{self.classes - self.abstains} classes of the data set"
            if self.abstains:
                known += " and one that abstains"
            elif shape[1] == self.classes + 1:
                hint = ": if the last one abstains, give --abstain last"
            raise InputError(f"{start} {shape[1]} logits an image, {more} than the {known}{hint}")
        raise InputError(f"{start} a tensor of shape {shape}, expected logits {(points, self.classes)}")


def probed_batch(model: Callable[[Tensor], Any], shape: tuple[int, ...]) -> tuple[int, int | None]:
    """The least and the most images of ``shape`` (C, H, W) that ``model`` takes at once.

    A trace may have a fixed batch size. A model that takes batches of two and of three takes any size.
    """
    if _takes(model, shape, 2) and _takes(model, shape, 3):
        return (1, None) if _takes(model, shape, 1) else (2, None)
    found = next((size for size in PROBED if _takes(model, shape, size)), None)
    # If no size works, the caller's first query reports the reason.
    return (1, None) if found is None else (found, found)


def _takes(model: Callable[[Tensor], Any], shape: tuple[int, ...], size: int) -> bool:
    for kind in image_types(model) if isinstance(model, nn.Module) else [torch.float32]:
        try:
            with torch.no_grad():
                logits = model(torch.zeros(size, *shape, dtype=kind))
        except Exception:
            continue
        return not isinstance(logits, Tensor) or logits.shape[:1] == (size,)
    return False
