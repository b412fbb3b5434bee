"""Promises about training: regimes, precision, learning, and determinism by seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench.contract.answers import check_answers
from advbench.contract.compare import differing, logits, refuses, require
from advbench.contract.trial import BASE, OTHER_SEED, PLAN, SEED, Trial, batches, easy_images
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import keyed_generator
from defenses import Defense, Registry, registry

REGIMES = ("continual", "joint", "meta")
ABOVE_CHANCE = 0.3
"""How far above chance robust accuracy on the easy images must be."""
LEARNING = PLAN.model_copy(update={"epochs": 4, "lr": 0.1, "augmentation": ()})
POINTS = 60


def regimes(trial: Trial) -> str:
    """Each declared regime trains; other regimes and unusable numbers of attacks are refused."""
    registry = Registry()
    registry.register(trial.kind)
    for regime in REGIMES:
        refused = refuses(f"the regime {regime!r}", registry.resolve, trial.info.name, regime)
        said = "refused, though declared" if refused else "accepted, though not declared"
        require(refused is (regime not in trial.info.regimes), f"the regime {regime!r} is {said}")
    for mode in trial.modes:
        reference = trial.reference(mode)
        counted, stages = reference.defense.stages, len(trial.stages(mode))
        require(counted == stages, f"stages is {counted} after {stages} calls of fit")
        for losses in reference.losses:
            told = len(losses) == PLAN.epochs and all("loss" in epoch for epoch in losses)
            require(told, f"fit must return one dict with 'loss' per epoch, not {losses}")
            finite = all(math.isfinite(value) for epoch in losses for value in epoch.values())
            require(finite, f"a loss is not finite: {losses}")
        require(differing(trial.build().state_dict(), reference.weights[0]), "training changes no weight")
        require(reference.defense.passes.forwards > 0, "training counts no sample-passes")
    _odd_numbers_of_attacks(trial)
    return f"{', '.join(trial.info.regimes)}: trained; the rest is refused"


def _odd_numbers_of_attacks(trial: Trial) -> None:
    """Training with no attack, one or several either works or is refused in one line."""
    only_continual = trial.modes == ["continual"]
    requests = {"no attack": [], "one attack": trial.attacks[:1], "two attacks": trial.attacks[:2]}
    for what, attacks in requests.items():
        if what == "one attack" and "continual" in trial.modes:
            continue
        defense = trial.build()
        refused = refuses(f"fit with {what}", defense.fit, trial.copied_data()[:1], attacks, plan=PLAN)
        allowed = refused or what != "two attacks" or not only_continual
        require(allowed, "fit takes two attacks, though continual is the only regime")


def mixed_precision(trial: Trial) -> str:
    """It trains in bfloat16 and answers in float32."""
    plan = PLAN.model_copy(update={"epochs": 1, "mixed_precision": "on"})
    for mode in trial.modes:
        defense = trial.build()
        for attacks in trial.stages(mode)[:2]:
            defense.fit(trial.copied_data(), attacks, plan=plan)
        check_answers(trial, defense, BASE)
    return "trained in bfloat16, answers in float32"


def learns(trial: Trial) -> str:
    """Robust accuracy under PGD on new easy images is well above chance after a short training."""
    defense = trial.build()
    if trial.info.employs:
        # It may learn from the classifier that it starts with, which a run has trained on clean images.
        registry.build("standard", defense.model).fit(batches(BASE, 192), [], plan=LEARNING)
    stages = trial.stages(trial.modes[0])[:2]
    losses = [defense.fit(batches(BASE, 192), attacks, plan=LEARNING) for attacks in stages]
    accuracy = robust_accuracy(trial, defense, *easy_images(BASE, POINTS, seed=1))
    first, last = losses[0][0]["loss"], losses[-1][-1]["loss"]
    bound = 1 / BASE.classes + ABOVE_CHANCE
    measured = (
        f"robust accuracy {100 * accuracy:.1f} % on easy images (at least {100 * bound:.1f} % expected), "
        f"loss {first:.3g} to {last:.3g}"
    )
    require(accuracy >= bound, measured)
    return measured


def robust_accuracy(trial: Trial, defense: Defense, x: Tensor, y: Tensor) -> float:
    """The share of points that are correct clean and under PGD, through the view for that attack."""
    attack = trial.attacks[1]
    steps = type(attack)(attack.info, attack.function, {**attack.knobs, "steps": 10}, attack.training_knobs)
    view = defense.view(attack)
    with evaluation_mode(view):
        x_adv = steps(view, x, y, generator=keyed_generator("contract", "pgd"))
        right = (logits(view, x).argmax(1) == y) & (logits(view, x_adv).argmax(1) == y)
    return float(right.float().mean())


def determinism(trial: Trial) -> str:
    """Equal seeds give equal bits under any global random state; another seed gives other bits."""
    for mode in trial.modes:
        reference = trial.reference(mode)
        again = trial.reference(mode, stages=2, noise=1)
        for stage, weights in enumerate(again.weights):
            found = differing(weights, reference.weights[stage])
            require(
                not found,
                f"trained twice with seed {SEED} under other global random states: after stage "
                f"{stage + 1} {found}; draw from self.generator, or inside step",
            )
        other = trial.reference(mode, stages=1, seed=OTHER_SEED).weights[0]
        require(
            differing(other, reference.weights[0]), f"seeds {SEED} and {OTHER_SEED} give the same weights"
        )
    return "equal bit for bit under two global random states; another seed differs"


def global_state_kept(trial: Trial) -> str:
    """Building, training and answering do not change the process's random state and modes."""
    for mode in trial.modes:
        moved = trial.reference(mode).moved
        require(not moved, f"it changes {', '.join(moved)}")
    return "random states of torch, NumPy and Python, modes, default type: unchanged"


def training_data(trial: Trial) -> str:
    """``fit`` does not change its batches, because later trainings use them too."""
    # Augmentation would make copies and hide changes.
    plan = PLAN.model_copy(update={"epochs": 1, "augmentation": ()})
    for mode in trial.modes:
        given, defense = trial.copied_data(), trial.build()
        for attacks in trial.stages(mode)[:2]:
            defense.fit(given, attacks, plan=plan)
        for (x, y), (now_x, now_y) in zip(trial.data, given, strict=True):
            same = torch.equal(x, now_x) and torch.equal(y, now_y)
            require(same, "training writes into the batches that fit is given")
    return "batches are unchanged"
