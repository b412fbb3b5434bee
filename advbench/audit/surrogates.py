"""The model that an evaluation crafts its transferred points on: a run's, or a plain one trained for it."""

from __future__ import annotations

from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import DataSet, Split, TensorLoader
from advbench.models import build_model
from advbench.runs.saved import load_run
from attacks_pool import InputError
from attacks_pool.calling.randomness import key_seed, keyed_generator
from attacks_pool.verifier import predict_exactly
from defenses import TrainPlan, registry

Surrogate = tuple[str | None, nn.Module | None]
"""How the record calls the model, and the model; without one the name says why, None if none was wanted."""

NONE = "none"
IMAGES = 5000
"""Training images that a surrogate sees at most; it is measured on at most as many validation images."""
PLAN = TrainPlan(epochs=5, batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0.0, mixed_precision="off")
"""A surrogate's training: a few seconds on one core for digits, MNIST and CIFAR-10."""
PORTION = 250
"""Images looked at together."""
SIDE = 32
"""Images of twice this side or more are averaged down towards it before the surrogate looks at them."""
SMALLEST = {"digits-cnn": 4, "lenet": 12}
"""The zoo's small models, each with the least side that it takes."""
LEAST_GAIN, LARGEST_P = 0.1, 0.01
"""A surrogate is of use if it is right on this share of what chance gets wrong, and not by luck."""


def given_surrogate(given: str | Path | None, data: DataSet) -> Surrogate | None:
    """What ``--surrogate`` asks for: the final model of a run, no model (``none``), or None: train one.

    Raises:
        RecordError, InputError: no such run, or its images or classes are others.
    """
    if given is None:
        return None
    return (None, None) if str(given) == NONE else surrogate_of(given, data)


def plain_surrogate(data: DataSet, seed: int, device: torch.device) -> Surrogate:
    """A small classifier, trained on clean images of the data set's training split; the same for one seed.

    What transfers says something about a model only if the surrogate has learned what the images show. One
    that hardly beats chance is not used, and its name says so. The global random state stays as it was.

    Args:
        data: its training images, at most :data:`IMAGES` of them, are learned from; the accuracy in the name
            is on validation images. Test images are not looked at.
        seed: determines weights, images and their order.
        device: where it is trained, and stays.
    """
    channels, height, width = data.image_shape
    factor = max(1, min(height, width) // SIDE)
    size = (height // factor, width // factor)
    fitting = [name for name, least in SMALLEST.items() if least <= min(size)]
    if not fitting or not len(data.train):
        lacking = f"a model for {height}×{width} pixels" if not fitting else "training images"
        return f"none, for want of {lacking}", None
    # The other defaults are deep networks, which would take longer to train than the whole evaluation.
    text = data.default_model if data.default_model in fitting else fitting[-1]
    key = key_seed("surrogate", seed)
    drawn = torch.randperm(len(data.train), generator=keyed_generator(key))[:IMAGES]
    small = Split(_averaged(data.train.x, drawn, factor), data.train.y[drawn])
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


def _averaged(x: Tensor, rows: Tensor, factor: int) -> Tensor:
    """These rows, smaller by ``factor``; in portions, since large images must not be copied all at once."""
    parts = [rows[begin : begin + PORTION] for begin in range(0, len(rows), PORTION)]
    return torch.cat([F.avg_pool2d(x[part], factor) for part in parts])


def _right(model: nn.Module, data: Split, device: torch.device) -> tuple[int, int]:
    """How many of the first validation images are right, and how many were asked."""
    asked = min(len(data), IMAGES)
    right = 0
    for begin in range(0, asked, PORTION):
        part = slice(begin, min(begin + PORTION, asked))
        found = predict_exactly(model, data.x[part].to(device)).argmax(1).cpu()
        right += int((found == data.y[part]).sum())
    return right, asked


def _learned(right: int, asked: int, y: Tensor) -> bool:
    """Whether that is more than naming the commonest class every time."""
    chance = float(y.bincount().max()) / len(y)
    p = binomtest(right, asked, chance, alternative="greater").pvalue
    return right / asked >= chance + LEAST_GAIN * (1 - chance) and bool(p < LARGEST_P)


def surrogate_of(path: str | Path, data: DataSet) -> tuple[str, nn.Module]:
    """The final model of a finished run, and its name, to craft transferred points on.

    Raises:
        RecordError, InputError: no such run, or its images or classes are others.
    """
    other = load_run(path)
    facts = other.record.environment["data"]
    if (tuple(facts["shape"]), facts["classes"]) != (data.image_shape, data.num_classes):
        raise InputError(
            f"surrogate {other.record.id} takes images {tuple(facts['shape'])} of {facts['classes']} "
            f"classes, not {data.image_shape} of {data.num_classes}"
        )
    return f"run {other.record.id}", other.model
