"""``build_model``, which builds a model of the zoo, of another library, or the user's own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from advbench.models.arguments import check_arguments
from advbench.models.listed import FORMS, LIBRARIES, MODELS, TIMM, TORCHVISION
from advbench.runtime.factory import accepted, find_factory, one_line
from attacks_pool.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn


def imports_code(text: str) -> bool:
    """Whether building the model ``text`` imports code of the user's, ``package.module:factory``."""
    return ":" in text and not text.startswith(LIBRARIES)


def build_model(
    text: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int],
    seed: int,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised classifier from [0, 1] images (N, C, H, W) to logits (N, ``num_classes``).

    Args:
        text: A name in ``MODELS``, ``torchvision:NAME``, ``timm:NAME``, or ``package.module:factory``, which
            may be below the current directory. The factory gets those of ``num_classes``, ``in_channels`` and
            ``image_size`` that its signature names, and ``num_classes`` also if it takes ``**kwargs``.
        num_classes: The number of classes.
        in_channels: The channels of an image.
        image_size: The side of an image in pixels, or (height, width).
        seed: Determines the initial weights; the global random state is unchanged.
        model_args: Further arguments of the factory, or of the network of torchvision or timm.

    Raises:
        InputError: There is no such model, it does not take an argument, building it fails, or its logits
            have another shape.
    """
    factory = _factory(text)
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    offered = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": pair[0] if pair[0] == pair[1] else pair,
    }
    given = accepted(factory, offered, always="num_classes")
    if model_args:
        check_arguments(text, factory, model_args, taken=given)
    with _seeded(seed):
        model = _call(text, factory, {**given, **(model_args or {})})
        _check_logits(text, model, (2, in_channels, *pair), num_classes)
    return model


def _factory(text: str) -> Callable[..., Any]:
    if text in MODELS:
        module, _, name = MODELS[text].factory.partition(":")
        built_in: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return built_in
    if text.startswith(TORCHVISION):
        from advbench.models.torchvision import from_torchvision

        return functools.partial(from_torchvision, text.removeprefix(TORCHVISION))
    if text.startswith(TIMM):
        from advbench.models.timm import from_timm

        return functools.partial(from_timm, text.removeprefix(TIMM))
    if ":" not in text:
        raise unknown("model", text, MODELS, see=f"allowed: {FORMS}")
    return find_factory(text)


def _call(text: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    from torch import nn

    if isinstance(factory, nn.Module):
        raise InputError(f"model {text!r} is a module already: name a function or a class that makes one")
    try:
        model = factory(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"model {text!r}: the factory failed: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {text!r}: the factory gave {type(model).__name__}, expected a torch.nn.Module"
        )
    return model


def _check_logits(text: str, model: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    """Run one pass over zeros in eval mode, which changes no batch-norm statistics; modes are restored."""
    import torch

    from attacks_pool.calling.logits import ask

    training = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), None)
    model.eval()
    try:
        with torch.no_grad():
            logits = ask(model, torch.zeros(shape, device=device), f"model {text!r}")
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"model {text!r} fails on images of shape {shape}: {one_line(error)}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    if tuple(logits.shape) != (shape[0], num_classes):
        raise InputError(
            f"model {text!r} gives logits of shape {tuple(logits.shape)} for images of shape {shape}, "
            f"expected {(shape[0], num_classes)}"
        )


def changes_images(model: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Whether ``model`` writes into the images ``x`` (N, C, H, W) that it is given."""
    import torch

    given = x.clone()
    before = given._version
    with torch.no_grad():
        model(given)
    # The counter also detects in-place operations that change no value, which autograd refuses.
    return given._version != before or not torch.equal(given, x)


def _seeded(seed: int) -> AbstractContextManager[None]:
    """Seed random numbers within the block, and restore the global random state afterwards."""
    import torch

    from attacks_pool.calling.randomness import isolated_randomness

    # Building a model must not initialise a GPU that is not in use yet.
    gpu_in_use: Callable[[], bool] = torch.cuda.is_initialized
    device = torch.device("cuda", torch.cuda.current_device()) if gpu_in_use() else torch.device("cpu")
    return isolated_randomness(seed, device)
