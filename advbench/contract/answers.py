"""Promises about a defense as a classifier: its metadata, its logits, gradients to the image, eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advbench.contract.compare import (
    BrokenPromiseError,
    copied,
    described,
    differing,
    logits,
    refuses,
    require,
)
from advbench.contract.trial import BASE, KINDS, PLAN, Images, Trial, batches, easy_images
from defenses import Defense, Registry, registry
from defenses.metadata import parameters_of

POINTS = 12
SHORT = "1 and 3 channels, 3 and 10 classes, 8×8 and 8×12 pixels"


def metadata(trial: Trial) -> str:
    """The name is free or its own, ``spec`` gives the class and its parameters, the classifier is kept."""
    name, kind = trial.info.name, trial.kind
    registry.names()
    for taken in (name, *trial.info.aliases):
        if not refuses(f"the name {taken!r}", registry.resolve, taken):
            other = registry.resolve(taken)[0]
            place, own = (f"{one.__module__}:{one.__qualname__}" for one in (other, kind))
            require(place == own, f"the name {taken!r} is taken by {place}")
    require(not refuses("registering it", Registry().register, kind), "the registry refuses it")
    spec = trial.build().spec()
    said = spec.get("defense")
    require(said == name, f"spec()['defense'] is {said!r}, expected {name!r}")
    named, expected = sorted(spec.get("parameters", {})), sorted(parameters_of(kind))
    require(named == expected, f"spec()['parameters'] names {named}, the constructor {expected}")
    return f"{name}, regimes {', '.join(trial.info.regimes)}, {len(trial.parameters)} parameters of its own"


def output_shapes(trial: Trial) -> str:
    """Logits (N, K) in float32 for 1 and 3 channels, 3 and 10 classes, square images and others."""
    for images in KINDS:
        with _on(images, trial):
            check_answers(trial, trial.build(images).eval(), images)
    return f"(N, K) float32 for {SHORT}"


def input_gradients(trial: Trial) -> str:
    """The logits of each image have a gradient to that image."""
    for images in KINDS:
        with _on(images, trial):
            check_gradients(trial, trial.build(images).eval(), images)
    return "for every image, through every view"


def other_images(trial: Trial) -> str:
    """It trains on colour, ten classes and non-square images, and its answers keep their promises."""
    plan = PLAN.model_copy(update={"epochs": 1})
    for images in KINDS[1:]:
        for mode in trial.modes:
            with _on(images, trial):
                defense = trial.build(images)
                for attacks in trial.stages(mode)[:2]:
                    defense.fit(batches(images, 64), attacks, plan=plan)
                check_answers(trial, defense, images)
                check_gradients(trial, defense, images)
    return f"trained on {SHORT}"


def eval_mode(trial: Trial) -> str:
    """After training it is in eval mode, where answering and crafting change neither weights nor buffers."""
    for mode in trial.modes:
        defense = trial.reference(mode).defense
        for name, module in defense.named_modules():
            require(not module.training, f"fit leaves {name or 'it'} in train mode")
        before, trained = copied(defense), _trained(defense)
        x, y = easy_images(BASE, POINTS, seed=1)
        for view in trial.views(defense):
            _same_answers(trial, view, x)
            view(x.clone().requires_grad_()).sum().backward()
        _unmoved("answering in eval mode", defense, before)
        defense.zero_grad(set_to_none=True)
        defense.train()
        before, modes = copied(defense), _modes(defense)
        x_adv = defense.craft(trial.attacks[1].for_training(), x, y)
        _unmoved("craft", defense, before)
        require(_modes(defense) == modes, "craft changes the mode of a module")
        inside = x_adv.shape == x.shape and float((x_adv - x).abs().max()) <= trial.attacks[1].eps + 1e-5
        require(inside, "craft gives points outside the attack's budget")
        defense.eval()
        require(_trained(defense) == trained, "answering changes which parameters require gradients")
    same = "" if trial.info.stochastic else ", answers the same whatever else is in the batch"
    return f"moves nothing{same}"


@contextmanager
def _on(images: Images, trial: Trial) -> Iterator[None]:
    """Report errors within the block as concerning these images."""
    try:
        yield
    except BrokenPromiseError as broken:
        raise BrokenPromiseError(f"{images}: {broken}") from broken
    except Exception as error:
        raise BrokenPromiseError(f"{images}: {described(error, trial.kind)}") from error


def check_answers(trial: Trial, defense: Defense, images: Images) -> None:
    """Check that every view gives float32 logits (N, K), all finite.

    Raises:
        BrokenPromiseError: a view does not.
    """
    x, _ = easy_images(images, POINTS, seed=1)
    for view in trial.views(defense):
        given = logits(view, x)
        expected = (POINTS, images.classes)
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        require(shape == expected, f"expected logits {expected}, got {shape}")
        require(given.dtype == torch.float32, f"expected float32 logits, got {str(given.dtype)[6:]}")
        require(given.isfinite().all(), "a logit is not finite")


def check_gradients(trial: Trial, defense: Defense, images: Images) -> None:
    """Check that through every view, each image's logits have a gradient to the image.

    Raises:
        BrokenPromiseError: an image gets no gradient.
    """
    x, _ = easy_images(images, POINTS, seed=1)
    weights = torch.linspace(1, 2, images.classes)
    for view in trial.views(defense):
        point = x.clone().requires_grad_()
        given = view(point)
        require(given.requires_grad, "logits have no gradient: forward detaches, or runs under no_grad")
        (gradient,) = torch.autograd.grad((given * weights).sum(), point, allow_unused=True)
        require(gradient is not None, "logits have no gradient to the image: forward detaches it")
        require(gradient.isfinite().all(), "the gradient to the image is not finite")
        none = int((gradient.abs().amax(dim=(1, 2, 3)) == 0).sum())
        require(not none, f"{none} of {POINTS} images get no gradient")


def _same_answers(trial: Trial, view: nn.Module, x: Tensor) -> None:
    if trial.info.stochastic:
        return
    with torch.no_grad():
        first, again = view(x), view(x)
        halves = torch.cat([view(x[: POINTS // 2]), view(x[POINTS // 2 :])])
    same = torch.equal(first, again)
    require(same, "two answers to the same images differ, and info says stochastic=False")
    close = float((halves - first).abs().max()) <= 1e-4 * max(1.0, float(first.abs().max()))
    require(close, "an image's logits depend on the rest of its batch")


def _modes(defense: Defense) -> list[bool]:
    return [module.training for module in defense.modules()]


def _trained(defense: Defense) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in defense.named_parameters()}


def _unmoved(what: str, defense: Defense, before: dict[str, Tensor]) -> None:
    found = differing(before, copied(defense))
    require(not found, f"{what} changes weights or buffers: {found}")
