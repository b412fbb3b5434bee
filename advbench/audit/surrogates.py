"""The model that an evaluation crafts transferred points on: a run's, or a plain one trained for this."""

from __future__ import annotations

from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import DataSet, Split, TensorLoader
from advbench.data.pixels import ImageArray
from advbench.models import build_model
from advbench.runs.saved import Run, load_run
from attacks_pool import InputError
from attacks_pool.calling.randomness import key_seed, keyed_generator
from attacks_pool.verifier import predict_exactly
from defenses import TrainPlan, registry

Surrogate = tuple[str | None, nn.Module | None]
"""The model's name in the record, and the model; without a model, the name says why or is None."""

NONE = "none"
IMAGES = 5000
"""The most training images for a surrogate, and the most validation images to measure it on."""
PLAN = TrainPlan(epochs=5, batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0.0, mixed_precision="off")
"""A surrogate's training plan, which takes a few seconds on one core for digits, MNIST and CIFAR-10."""
PORTION = 250
"""The number of images in a batch."""
SIDE = 32
"""Images with at least twice this side are averaged down towards it for the surrogate."""
SMALLEST = {"digits-cnn": 4, "lenet": 12}
"""The zoo's small models, each with the smallest image side that it accepts."""
LEAST_GAIN, LARGEST_P = 0.1, 0.01
"""A surrogate is useful if it gets this share right of what chance gets wrong, significantly."""


def given_surrogate(given: str | Path | None, data: DataSet) -> Surrogate | None:
    """The surrogate of ``--surrogate``: a run's final model, no model (``none``), or None for training one.

    Raises:
        RecordError, InputError: there is no such run, or it is for other images or classes.
    """
    if given is None:
        return None
    return (None, None) if str(given) == NONE else surrogate_of(load_run(given), data)


def plain_surrogate(data: DataSet, seed: int, device: torch.device) -> Surrogate:
    """A small classifier, trained on clean images of the training split; determined by the seed.

    Transfer says something about a model only if the surrogate has learned to classify the images. A
    surrogate that hardly beats chance is not used, and its name says so. The global random state is kept.

    Args:
        data: at most :data:`IMAGES` of its training images are used for training; the accuracy in the name
            is on validation images. Test images are not used.
        seed: determines weights, images and their order.
        device: where the surrogate is trained, and stays.
    """
    channels, height, width = data.image_shape
    factor = max(1, min(height, width) // SIDE)
    size = (height // factor, width // factor)
    fitting = [name for name, least in SMALLEST.items() if least <= min(size)]
    if not fitting or not len(data.train):
        lacking = f"a model for {height}×{width} pixels" if not fitting else "training images"
        return f"none, for want of {lacking}", None
    # The other default models are deep; training one would take longer than the whole evaluation.
    text = data.default_model if data.default_model in fitting else fitting[-1]
    key = key_seed("surrogate", seed)
    drawn = torch.randperm(len(data.train), generator=keyed_generator(key))[:IMAGES]
    small = Split(_averaged(data.train.images, drawn, factor), data.train.y[drawn])
    # The caller may be in a mode without gradients.
    with torch.inference_mode(False), torch.enable_grad():
        network = build_model(
            text, num_classes=data.num_classes, in_channels=channels, image_size=size, seed=key
        )
        plain = registry.build("standard", network.to(device), seed=key)
        batches = TensorLoader(small, PLAN.batch_size, seed=key, device=device)
        plain.fit(batches, [], plan=PLAN, progress=False)
    model = nn.Sequential(nn.AvgPool2d(factor), network).eval()
    right, asked = _right(model, data.validation, device)
    name = f"plain {text}, {PLAN.epochs} epochs on {len(small):,} images, clean {100 * right / asked:.1f} %"
    if not _learned(right, asked, data.validation.y):
        return f"{name}: too near to chance to transfer anything", None
    return name, model


def _averaged(x: ImageArray, rows: Tensor, factor: int) -> Tensor:
    """The images ``rows``, scaled down by ``factor``, in portions to limit the memory for large images."""
    return torch.cat([F.avg_pool2d(x[part], factor) for part in torch.split(rows, PORTION)])


def _right(model: nn.Module, data: Split, device: torch.device) -> tuple[int, int]:
    """How many of the first validation images are right, and how many were predicted."""
    y = data.y[:IMAGES]
    parts = [slice(start, min(start + PORTION, len(y))) for start in range(0, len(y), PORTION)]
    found = [predict_exactly(model, data.images[part].to(device)).argmax(1).cpu() for part in parts]
    return int((torch.cat(found) == y).sum()), len(y)


def _learned(right: int, asked: int, y: Tensor) -> bool:
    """Whether that is better than always predicting the most common class."""
    chance = float(y.bincount().max()) / len(y)
    p = binomtest(right, asked, chance, alternative="greater").pvalue
    return right / asked >= chance + LEAST_GAIN * (1 - chance) and bool(p < LARGEST_P)


def surrogate_of(other: Run, data: DataSet) -> tuple[str, nn.Module]:
    """The name and the final model of a finished run, to craft transferred points on.

    Raises:
        InputError: it is for other images or classes.
    """
    facts = other.record.environment["data"]
    if (tuple(facts["shape"]), facts["classes"]) != (data.image_shape, data.num_classes):
        raise InputError(
            f"surrogate {other.record.id} takes images {tuple(facts['shape'])} of {facts['classes']} "
            f"classes, not {data.image_shape} of {data.num_classes}"
        )
    return f"run {other.record.id}", other.model
