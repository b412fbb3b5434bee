"""DI2-FGSM: momentum over gradients of randomly resized and padded images."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.attacks.nim import KNOBS
from attacks_pool.calling.randomness import drawn
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent, input_gradient


@register(
    AttackInfo(
        name="dim",
        family="momentum",
        norm="linf",
        access="white-box",
        paper="1803.06978",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={
            **KNOBS,
            "resize_rate": Knob(0.9, "smallest side, as a share of the full side", high=1.0, open_low=True),
            "diversity_prob": Knob(0.5, "probability that an image is transformed", high=1.0),
        },
    )
)
def dim(
    model: nn.Module, x: Tensor, y: Tensor, *, resize_rate: float, diversity_prob: float, **knobs: Any
) -> Tensor:
    """Diverse inputs: v_{k+1} = decay · v_k + g/‖g‖₁, g = ∇ CE(f(T(x_k)), y), a signed step along v_{k+1}.

    Xie et al., arXiv:1803.06978 (M-DI²-FGSM). With probability ``diversity_prob``, T shrinks the image to a
    random side of at least resize_rate · side and places it at random on black; otherwise T(x) = x. The paper
    enlarges the model's input; here its size stays the same, so that any model accepts it. Each point draws
    its own T at each step. Shapes as in :class:`attacks_pool.Attack`.
    """

    def slope(model: nn.Module, points: Points, draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        numbers = drawn(torch.rand, (len(x), 4), draws).to(x.device)[points.index]
        rows, columns = resize_and_pad(numbers, x.shape[2], x.shape[3], resize_rate, diversity_prob)

        rows, columns = rows.to(x.dtype)[:, None], columns.to(x.dtype)[:, None]
        shown = rows @ points.x_adv @ columns.mT
        # First the gradient at T(x), then through T: one combined matrix product would turn inf into NaN.
        gradient, _logits, _values = input_gradient(model, shown, points.y, cross_entropy)
        return rows.mT @ (gradient @ columns), None

    return gradient_ascent(model, x, y, norm="linf", ways=Ways(slope=slope), **knobs)


def resize_and_pad(
    drawn: Tensor, height: int, width: int, resize_rate: float, probability: float
) -> tuple[Tensor, Tensor]:
    """R (n, H, H) and C (n, W, W): R · image · Cᵀ is the image, bilinearly shrunk and placed on black.

    ``drawn`` (n, 4) in [0, 1) determines whether to shrink, the size, the row and the column.
    """
    smallest = max(1, int(resize_rate * height))
    size = smallest + (drawn[:, 1] * (height - smallest + 1)).floor()
    size = torch.where(drawn[:, 0] < probability, size, height)
    across = (size * width / height).round().clamp(1, width)
    return _interpolation(size, drawn[:, 2], height), _interpolation(across, drawn[:, 3], width)


def _interpolation(size: Tensor, offset: Tensor, side: int) -> Tensor:
    """(n, side, side) weights: row i holds the weight of each input pixel in output pixel i."""
    at = torch.arange(side, device=size.device, dtype=size.dtype)
    first = (offset * (side - size + 1)).floor()[:, None]
    size = size[:, None]
    source = ((at - first + 0.5) * side / size - 0.5).clamp(0, side - 1)
    weights = (1 - (source[:, :, None] - at).abs()).clamp_min(0)
    inside = (at >= first) & (at < first + size)
    return weights * inside[:, :, None]
