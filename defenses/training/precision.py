"""Whether a network can be trained in bfloat16 on a processor."""

import contextlib

import torch
from torch import Tensor, nn

from attacks_pool.calling.guard import evaluation_mode


def sound_in_bfloat16(model: nn.Module, x: Tensor) -> bool:
    """Whether no convolution of ``model`` maps images ``x`` (N, C, H, W) to one pixel with a larger kernel.

    For such a convolution torch can leave parts of the weights' gradient unwritten (seen in 2.15: 3×3 with
    stride 2, on maps of one pixel). A trial shows this only by chance, so the shapes decide: they are the
    same in every run.
    """
    sound = True

    def look(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal sound
        assert isinstance(layer, nn.Conv2d)
        if max(layer.kernel_size) > 1 and output.shape[-2:].numel() == 1:
            sound = False

    hooks = [one.register_forward_hook(look) for one in model.modules() if isinstance(one, nn.Conv2d)]
    try:
        # What fails here fails in training too, with an error of its own.
        with contextlib.suppress(Exception), torch.no_grad(), evaluation_mode(model):
            model(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return sound
