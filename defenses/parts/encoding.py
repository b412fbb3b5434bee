"""Splits a classifier into an encoder and its last linear layer; a small decoder from features to images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from attacks_pool.calling.guard import buffers_kept, evaluation_mode
from attacks_pool.calling.logits import ask
from attacks_pool.errors import InputError

WIDTH = 32
"""Number of channels in the decoder's hidden layers."""
SMALLEST = 4
"""Largest side, in pixels, of the decoder's first feature map."""


def linear_layers(model: nn.Module, user: str) -> dict[str, nn.Linear]:
    """The linear layers of ``model`` by name; ``user`` is the defense to name in the error.

    Raises:
        InputError: the model has no linear layer.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not found:
        kind = type(model).__name__
        raise InputError(f"{user} splits a classifier at its last nn.Linear, and this {kind} has none")
    return found


def find_head(model: nn.Module, x: Tensor, user: str) -> str:
    """The name of the linear layer that computes the logits, found by a pass of images ``x`` (N, C, H, W).

    Everything before this layer is the encoder. The model is not changed.

    Raises:
        InputError: no linear layer computes the logits, or nothing before it has parameters to train.
    """
    layers = linear_layers(model, user)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs.pop(name, None)
            # Copied, because later operations may write into it.
            outputs[name] = output.clone()

        return layers[name].register_forward_hook(hook)

    handles = [keep(name) for name in layers]
    try:
        with torch.no_grad(), evaluation_mode(model), buffers_kept(model):
            logits = model(x.to(next(iter(layers.values())).weight.dtype))
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    for name in reversed(outputs):
        if torch.equal(outputs[name], logits):
            if not encoder_parameters(model, name):
                raise InputError(f"{user} trains the layers before the last nn.Linear: there are none here")
            return name
    kind = type(model).__name__
    raise InputError(f"{user} needs an nn.Linear that gives the logits, and no layer of this {kind} does")


def encoder_parameters(model: nn.Module, head: str) -> dict[str, nn.Parameter]:
    """Parameters by name that require gradients, except those of the layer named ``head``."""
    own = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in own
    }


def encode(
    model: nn.Module, head: str, x: Tensor, tensors: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Flattened features (N, F), the input of the layer named ``head``, and logits (N, K).

    ``tensors`` replace the model's own parameters and buffers of the same names. Both results are at least
    float32, even under autocast.
    """
    found: list[Tensor] = []
    x = x.to(next(model.get_submodule(head).parameters()).dtype)

    def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    handle = model.get_submodule(head).register_forward_pre_hook(keep)
    try:
        logits = model(x) if tensors is None else functional_call(model, dict(tensors), (x,))
    finally:
        handle.remove()
    return at_least_float32(found[-1].flatten(1)), at_least_float32(logits)


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """The flattened input (N, D) of the last linear layer that a pass of ``x`` reaches, at least float32.

    The logits, if there is no such layer or its input has not one row for each image.
    """
    inputs: list[Tensor] = []

    def keep(_layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0])

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(keep) for module in linear]
    try:
        logits = ask(model, x, "the classifier")
    finally:
        for handle in handles:
            handle.remove()
    fits = inputs and len(inputs[-1]) == len(x)
    return at_least_float32((inputs[-1] if fits else logits).flatten(1))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert 16-bit tensors to float32, because they are too coarse for a softmax."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class Decoder(nn.Module):
    """Maps features (N, F) to images (N, C, H, W) in [0, 1].

    A linear map to at most 4×4 pixels, then layers that double the size with a 3×3 convolution each. It is
    smooth and has no batch norm, so that it computes the same in train and eval mode.

    Args:
        features: F.
        image: (C, H, W).
    """

    def __init__(self, features: int, image: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *size = image
        sizes = [(size[0], size[1])]
        while max(sizes[0]) > SMALLEST:
            sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
        self.sizes = sizes[1:]
        # On one pixel this is a linear map, but not an nn.Linear: the classifier's must stay the last one.
        self.first = nn.ConvTranspose2d(features, WIDTH, sizes[0])
        self.layers = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in self.sizes)
        self.last = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Images (N, C, H, W)."""
        hidden = F.silu(self.first(features[:, :, None, None]))
        for size, layer in zip(self.sizes, self.layers, strict=True):
            hidden = F.silu(layer(F.interpolate(hidden, size=size)))
        return at_least_float32(torch.sigmoid(self.last(hidden)))
