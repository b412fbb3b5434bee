"""Settings that would change nothing in a run are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from advbench.config.options import Options, RunConfig
from advbench.config.resolve import resolve
from advbench.data import DataSet
from attacks_pool import Attack, InputError
from defenses import Defense
from defenses.training.plan import TrainPlan

WITHOUT_ATTACKS = ("eps_warmup", "select", "joint_epochs")
"""Settings of a plan that concern attacks or stages, neither of which pretraining has."""
Reasons = Mapping[str, str]
"""Why settings have no effect, by the key of ``--set`` or ``--train-set``."""


def check_effects(
    options: Options,
    config: RunConfig,
    defense: Defense,
    stages: Sequence[Sequence[Attack]],
    data: DataSet,
    *,
    sample_seed: int | None = None,
) -> None:
    """Reject values of ``--set`` and ``--train-set`` that change nothing.

    A value that the run would have without the setting is allowed, so that a command may spell out defaults.

    Args:
        options: what the user gave.
        config: the configuration that it was resolved to.
        defense: the defense of the run.
        stages: the attacks of each stage.
        data: the data set of the run.
        sample_seed: as for ``resolve``.

    Raises:
        InputError: a value has no effect.
    """
    again = partial(resolve, data=data, sample_seed=sample_seed)
    reasons = {**_plan(config, defense), **_pretraining(options, config), **defense.idle(stages)}
    for option, found in (("set", reasons), ("train_set", _knobs(options, defense))):
        for key, value in _given(options, config, option, found, again):
            raise InputError(
                f"{key}={value} has no effect on {config.defense} here, {found[key]}: leave it out"
            )


def _given(
    options: Options, config: RunConfig, option: str, reasons: Reasons, again: Callable[[Options], RunConfig]
) -> Iterator[tuple[str, Any]]:
    """The settings of ``option`` among ``reasons`` whose value differs from the one without the setting."""
    given: dict[str, Any] = getattr(options, option)
    for key in filter(reasons.__contains__, given):
        rest = {name: value for name, value in given.items() if name != key}
        default = again(options.model_copy(update={option: rest}))
        value = _settings(config, key)
        # Without a warm-up, nothing is asked for that could be missing.
        if value != _settings(default, key) and not (key == "eps_warmup" and value == 0):
            yield key, given[key]


def _settings(config: RunConfig, key: str) -> object:
    """The value that a setting has in ``config``; for a knob, all training texts."""
    if key in config.params:
        return config.params[key]
    field = key.removeprefix("pretrain.")
    if field in TrainPlan.model_fields:
        return getattr(config.plan if field == key else config.pretrain, field)
    return config.training


def _plan(config: RunConfig, defense: Defense) -> Reasons:
    """Settings of the stages' plan without effect."""
    found = {}
    if config.plan.optimizer != "sgd":
        found["momentum"] = f"since optimizer={config.plan.optimizer} has no momentum to set"
    if defense.knobs_in_use() == ():
        found["eps_warmup"] = "since its training runs no attack"
    if config.regime == "continual":
        found["joint_epochs"] = "since the regime is continual, not joint or meta"
    elif len(config.sequence) == 1:
        found["joint_epochs"] = "since the sequence has one attack"
    return found


def _pretraining(options: Options, config: RunConfig) -> Reasons:
    """Settings of pretraining without effect."""
    plan = config.pretrain
    found = {f"pretrain.{field}": "since pretraining runs no attack" for field in WITHOUT_ATTACKS}
    if plan.optimizer != "sgd":
        found["pretrain.momentum"] = f"since pretrain.optimizer={plan.optimizer} has no momentum to set"
    if plan.epochs == 0:
        keys = [key for key in options.set if key.startswith("pretrain.") and key != "pretrain.epochs"]
        found |= dict.fromkeys(keys, "since pretrain.epochs=0 leaves pretraining out")
    return found


def _knobs(options: Options, defense: Defense) -> Reasons:
    """Training knobs of attacks that the defense does not use."""
    used = defense.knobs_in_use()
    if used is None:
        return {}
    reads = (
        f"whose training uses only {' and '.join(used)} of an attack" if used else "whose training runs none"
    )
    return {key: reads for key in options.train_set if key.rpartition(".")[2] not in used}
