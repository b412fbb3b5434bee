"""Promises about the state of a defense: in files, in snapshots, in memory."""

from __future__ import annotations

import inspect
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from advbench.contract.compare import BrokenPromiseError, differing, logits, require
from advbench.contract.holdings import held_bytes
from advbench.contract.trial import BASE, PLAN, Mode, Trial, easy_images
from advbench.runs.saved import load_weights, weights_of
from attacks_pool.errors import InputError
from defenses import Defense, Progress, Snapshot
from defenses.registry import construct
from defenses.training.packing import PackingError

OTHER_START = 1
SLACK = 0.05
"""Growth below this share of the parameters counts as bookkeeping."""


class _Stop(Exception):  # noqa: N818 - not an error: it ends a training on purpose
    pass


def save_and_load(trial: Trial) -> str:
    """A defense rebuilt from ``spec()`` as JSON and the weights in a file gives the same logits."""
    for mode in trial.modes:
        defense = trial.reference(mode).defense
        spec = _as_json(defense)
        model = trial.classifier(start=OTHER_START)
        rebuilt = construct(trial.kind, model, seed=defense.seed, parameters=spec["parameters"])
        rebuilt.load_spec(spec)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(weights_of(defense))
            try:
                load_weights(rebuilt, path)
            except InputError as error:
                text = str(error).replace(str(path), "").replace("weights  ", "the saved weights ")
                raise BrokenPromiseError(f"{text} that spec() rebuilds") from error
        x, _ = easy_images(BASE, 24, seed=1)
        for before, after in zip(trial.views(defense), trial.views(rebuilt), strict=True):
            one, other = logits(before, x), logits(after, x)
            apart = float((one - other).abs().max())
            require(
                torch.equal(one, other),
                f"logits after loading differ by up to {apart:.2g}: something that forward uses is neither "
                "in the state dict nor in spec()",
            )
        require(rebuilt.spec() == defense.spec(), "the loaded defense has a different spec()")
    return "the same logits through a file, in every view"


def _as_json(defense: Defense) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(defense.spec(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BrokenPromiseError(f"spec() is not JSON: {error}") from error
    return found


def resume(trial: Trial) -> str:
    """Training stopped in the middle of an epoch and resumed from the snapshot's bytes gives equal bits."""
    for mode in trial.modes:
        reference, stages = trial.reference(mode), trial.stages(mode)
        stage = min(1, len(stages) - 1)
        snapshot = _interrupted(trial, mode, stage)
        defense = trial.build(start=OTHER_START)
        losses = trial.fit(defense, stages[stage], resume=snapshot)
        place = f"after epoch 2, batch 1 of stage {stage + 1}"
        found = differing(defense.state_dict(), reference.weights[stage])
        require(
            not found,
            f"interrupted {place} and resumed: {found}; training_state() and load_training_state() must keep "
            "all that training uses beside the weights",
        )
        same = losses == reference.losses[stage]
        require(same, f"interrupted {place}: fit returns other losses than uninterrupted")
        for later in range(stage + 1, len(stages)):
            trial.fit(defense, stages[later])
            found = differing(defense.state_dict(), reference.weights[later])
            require(
                not found,
                f"interrupted {place} and resumed: after stage {later + 1} {found}; "
                "training_state() misses what later stages need",
            )
    return "stopped in the middle of an epoch and resumed: equal bit for bit"


def _interrupted(trial: Trial, mode: Mode, stage: int) -> Snapshot:
    """A snapshot of epoch 2, batch 1, after conversion to bytes and back."""

    def stop(now: Progress) -> None:
        if (now.epoch, now.batch) == (2, 1):
            raise _Stop

    kept: list[Snapshot] = []
    defense, stages = trial.build(), trial.stages(mode)
    require(
        {"checkpoint", "resume"} <= inspect.signature(defense.fit).parameters.keys(),
        "its fit takes no checkpoint and resume, so an interrupted run repeats the stage: "
        "write loss or step, and leave fit as it is",
    )
    for attacks in stages[:stage]:
        trial.fit(defense, attacks)
    try:
        trial.fit(defense, stages[stage], progress=stop, checkpoint=kept.append)
    except _Stop:
        pass
    else:
        raise BrokenPromiseError("fit does not stop when progress raises")
    try:
        return Snapshot.unpack(kept[-1].pack())
    except PackingError as error:
        raise BrokenPromiseError(f"training_state() cannot be saved: {error}") from error


def memory(trial: Trial) -> str:
    """Memory grows neither over stages nor over epochs, beyond what ``info`` declares."""
    told = []
    for mode in trial.modes:
        sizes = _stage_sizes(trial) if mode == "continual" else _epoch_sizes(trial)
        what = "stages" if mode == "continual" else "epochs"
        shown = ", ".join(f"{size / 1000:.1f}" for size in sizes)
        told.append(f"{shown} kB after {what} 1 to {len(sizes)}")
        # A second stage may keep a frozen copy of the first; so may the second half of a single stage.
        _flat(trial, sizes, told[-1], from_place=1 if mode == "continual" else 2)
    return "; ".join(told)


def _flat(trial: Trial, sizes: list[int], told: str, from_place: int) -> None:
    """Check that sizes from this index on do not grow."""
    info, parameters = trial.info, sum(one.numel() for one in trial.classifier().parameters())
    pixels = BASE.channels * BASE.height * BASE.width
    # A stored sample has pixels, a label, perhaps logits and a little bookkeeping.
    declared = info.memory * (4 * (pixels + BASE.classes) + 64)
    steps = [later - earlier for earlier, later in pairwise(sizes[from_place:])]
    # Mere variation, for example with the size of the last batch, is not growth.
    growth = max(sizes[from_place + 1 :], default=0) - max(sizes[: from_place + 1])
    if info.grows:
        # Each stage may add an equal share; growing shares are not covered by the declaration.
        declared += int(len(steps) * 1.1 * min(steps, default=0))
    flat = growth <= declared + SLACK * 4 * parameters
    require(flat, f"memory grows: {told}; info declares memory={info.memory}, grows={info.grows}")


def _stage_sizes(trial: Trial) -> list[int]:
    defense, sizes = trial.build(), []
    for attacks in trial.stages("continual"):
        trial.fit(defense, attacks)
        sizes.append(held_bytes(defense))
    return sizes


def _epoch_sizes(trial: Trial) -> list[int]:
    defense, sizes = trial.build(), list[int]()

    def measure(now: Progress) -> None:
        if now.batch == len(trial.data):
            sizes.append(held_bytes(defense))

    plan = PLAN.model_copy(update={"epochs": 4})
    defense.fit(trial.copied_data(), trial.stages("several")[0], plan=plan, progress=measure)
    return sizes
