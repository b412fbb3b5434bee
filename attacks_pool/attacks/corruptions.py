"""The fifteen common corruptions as attacks, with the severity as eps."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.rendering import blur, digital, noise, weather

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]

CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian-noise": noise.gaussian_noise,
    "shot-noise": noise.shot_noise,
    "impulse-noise": noise.impulse_noise,
    "defocus-blur": blur.defocus_blur,
    "glass-blur": blur.glass_blur,
    "motion-blur": blur.motion_blur,
    "zoom-blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg": digital.jpeg,
}
"""The corruptions by name; an attack's name is ``corruption-`` followed by this name."""


def _register(name: str, corruption: Corruption) -> None:
    def attack(
        model: nn.Module,  # noqa: ARG001 - not used, but part of every attack's signature
        x: Tensor,
        y: Tensor,  # noqa: ARG001
        *,
        eps: int,
        generator: torch.Generator,
        early_stop: bool,  # noqa: ARG001
    ) -> Tensor:
        return corruption(x, eps, generator)

    attack.__doc__ = corruption.__doc__
    attack.__name__ = attack.__qualname__ = f"corruption_{corruption.__name__}"
    register(
        AttackInfo(
            name=f"corruption-{name}",
            family="corruption",
            norm=None,
            access="black-box",
            paper="1903.12261",
            channels=(1, 3),
            min_side=8,
            cost=lambda _knobs, _classes: (0, 0),
            knobs={"eps": Knob(3, "severity", low=1, high=5)},
        )
    )(attack)


for _name, _corruption in CORRUPTIONS.items():
    _register(_name, _corruption)
