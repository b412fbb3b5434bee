"""A class under test: its training data and attacks, and trainings that several promises share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.contract.compare import copied, global_state, logits
from advbench.models.blocks import network as split_network
from attacks_pool import Attack, pool
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from defenses import Defense, DefenseInfo, TrainPlan
from defenses.metadata import parse_parameters
from defenses.registry import construct

Batches = list[tuple[Tensor, Tensor]]
BATCH_SIZE = 32


class Images(NamedTuple):
    """The shape of images and number of classes of a classifier."""

    channels: int = 1
    classes: int = 3
    height: int = 8
    width: int = 8

    def __str__(self) -> str:
        return f"{self.channels}×{self.height}×{self.width} images of {self.classes} classes"


BASE = Images()
KINDS = (BASE, Images(channels=3), Images(classes=10), Images(width=12))
"""The usual images of the contract, and three variants that each differ in one respect."""

Network = Callable[[Images], nn.Module]


def small_network(images: Images) -> nn.Module:
    """Two convolutions with batch norm and one linear layer, in two parts like every model of the zoo."""
    height, width = (-(-side // 2) for side in (images.height, images.width))
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(images.channels, 8, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
    }
    head = {"flatten": nn.Flatten(), "linear": nn.Linear(16 * height * width, images.classes)}
    return split_network(features, head, mean=None, std=None)


def easy_images(images: Images, points: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Images where each class is a fixed pattern of 2×2 blocks of 0.2 or 0.8, with noise N(0, 0.1²).

    Returns:
        x float32 (points, C, H, W) in [0, 1] and y int64 (points,), cycling through the classes.
    """
    channels, classes, height, width = images
    blocks = (classes, channels, -(-height // 2), -(-width // 2))
    patterns = torch.randint(0, 2, blocks, generator=keyed_generator("contract", "patterns", images))
    pixels = F.interpolate(0.2 + 0.6 * patterns.float(), scale_factor=2)[..., :height, :width]
    y = torch.arange(points) % classes
    noise = torch.randn((points, *pixels.shape[1:]), generator=keyed_generator("contract", seed, images))
    return (pixels[y] + 0.1 * noise).clamp(0, 1), y


def batches(images: Images, points: int, *, seed: int = 0) -> Batches:
    """Training batches of the easy images."""
    x, y = easy_images(images, points, seed=seed)
    starts = range(0, points, BATCH_SIZE)
    return [(x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]) for start in starts]


Mode = Literal["continual", "several"]
"""One attack per stage, or one stage with several attacks, as joint and meta train."""

EPS = 0.1
"""The linf budget of the contract's attacks; pixels of two classes are 0.6 apart."""
ATTACKS = ",".join(f"{name}:eps={EPS}" for name in ("fgsm", "pgd", "mim", "ffgsm"))
"""The stages of the continual mode; the other mode uses the first three, which are of three families."""
FEW_STEPS = {name: {"steps": 2} for name in ("pgd", "mim")}
PLAN = TrainPlan(
    epochs=2,
    batch_size=BATCH_SIZE,
    lr=0.05,
    schedule="one-cycle",
    max_grad_norm=1.0,
    augmentation=("crop",),
    mixed_precision="off",
)
SEED, OTHER_SEED = 5, 6


@dataclass
class TrialReference:
    """An uninterrupted training, for comparison with other ways to the same weights.

    Attributes:
        defense: the defense at the end.
        weights: the state dict after each stage.
        losses: the return value of ``fit`` for each stage.
        moved: the parts of the process's global state that the training changed.
    """

    defense: Defense
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    losses: list[list[dict[str, float]]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)


class Trial:
    """One class under test.

    Args:
        kind: the class.
        parameters: values of its own parameters, as text or values; others have their defaults.
        network: makes the classifiers to wrap.
    """

    def __init__(
        self, kind: type[Defense], parameters: Mapping[str, Any], network: Network = small_network
    ) -> None:
        self.kind, self.network = kind, network
        self.parameters = parse_parameters(kind, kind.info.name, parameters)
        self._references: dict[tuple[Mode, int, int], TrialReference] = {}

    @property
    def info(self) -> DefenseInfo:
        """The metadata of the class."""
        return self.kind.info

    @cached_property
    def modes(self) -> list[Mode]:
        """The modes of its regimes, that of the default regime first."""
        found: list[Mode] = ["continual" if one == "continual" else "several" for one in self.info.regimes]
        return list(dict.fromkeys(found))

    @cached_property
    def attacks(self) -> list[Attack]:
        """Four attacks of three families."""
        return pool.sequence(ATTACKS, budget="digits", training=FEW_STEPS)

    def stages(self, mode: Mode) -> list[list[Attack]]:
        """The attacks of each stage."""
        return [[attack] for attack in self.attacks] if mode == "continual" else [self.attacks[:3]]

    def classifier(self, images: Images = BASE, *, start: int = 0) -> nn.Module:
        """An untrained classifier; its weights depend only on ``start``."""
        with isolated_randomness(key_seed("contract", "network", start), torch.device("cpu")):
            return self.network(images)

    def build(self, images: Images = BASE, *, seed: int = SEED, start: int = 0) -> Defense:
        """The defense around a new classifier."""
        model = self.classifier(images, start=start)
        return construct(self.kind, model, seed=seed, parameters=self.parameters)

    @cached_property
    def data(self) -> Batches:
        """Three training batches."""
        return batches(BASE, 96)

    def copied_data(self) -> Batches:
        """A copy of ``data``, for a training that may write into it."""
        return [(x.clone(), y.clone()) for x, y in self.data]

    def fit(self, defense: Defense, attacks: Sequence[Attack], **more: Any) -> list[dict[str, float]]:
        """Train one stage on a copy of ``data``."""
        return defense.fit(self.copied_data(), attacks, plan=PLAN, **more)

    def views(self, defense: Defense) -> list[nn.Module]:
        """The modules that evaluation would attack: the views for clean images and for two attacks."""
        return [defense.view(attack) for attack in (None, *self.attacks[:2])]

    def reference(self, mode: Mode, *, stages: int = 4, seed: int = SEED, noise: int = 0) -> TrialReference:
        """An uninterrupted training; equal trainings are done only once.

        Args:
            mode: how the stages use the attacks.
            stages: the most stages.
            seed: the defense's seed.
            noise: the seed of the global generators, which must make no difference.
        """
        key = (mode, seed, noise)
        if key not in self._references:
            self._references[key] = self._train(mode, stages, seed, noise)
        return self._references[key]

    def _train(self, mode: Mode, stages: int, seed: int, noise: int) -> TrialReference:
        with isolated_randomness(key_seed("contract", "noise", noise), torch.device("cpu")):
            state = global_state()
            found = TrialReference(self.build(seed=seed))
            for attacks in self.stages(mode)[:stages]:
                found.losses.append(self.fit(found.defense, attacks))
                found.weights.append(copied(found.defense))
            logits(found.defense, self.data[0][0])
            found.moved = [name for name, value in global_state().items() if value != state[name]]
        return found


Tried = TypeVar("Tried")


@dataclass(frozen=True)
class Promise(Generic[Tried]):
    """One promise of a contract, about what a trial of type ``Tried`` tries.

    ``attempt`` returns the measurement and raises BrokenPromiseError if the promise does not hold; ``needs``
    lists the promises without which it cannot be tested.
    """

    name: str
    attempt: Callable[[Tried], str]
    needs: tuple[str, ...]
