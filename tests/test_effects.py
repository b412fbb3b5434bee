"""Settings that would change nothing are refused, and only those."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from by_hand import equal, small

from advbench.benchmark.prepare import prepare
from advbench.data import DataSet
from attacks_pool import InputError, pool
from defenses import Defense, TrainPlan, registry
from defenses.metadata import _hints, parameters_of

PLAN = TrainPlan(epochs=3, lr=0.1, eps_warmup=0)
SMALL: dict[str, dict[str, Any]] = {"assl": {"share": 0.4, "cells": 3, "neighbours": 2}, "cad": {"shots": 1}}
"""Parameters for tiny data."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "at, continual": (
        {"defense": "at", "set": {"mix": "max"}},
        "mix=max has no effect on at here, since it mixes",
    ),
    "at, one attack": (
        {"defense": "joint", "sequence": "pgd", "set": {"mix": "max"}},
        "mix=max has no effect",
    ),
    "mid, two attacks": ({"defense": "mid", "sequence": "fgsm,pgd", "set": {"mix": "random"}}, "mix=random"),
    "mid, no meta step": (
        {"defense": "mid", "set": {"inner_lr": 0, "first_order": "true"}},
        "first_order=true",
    ),
    "rcrt, joint": (
        {"defense": "rcrt", "regime": "joint", "set": {"rate": 0.1}},
        "rate=0.1 has no effect on rcrt",
    ),
    "rcrt, noise": ({"defense": "rcrt", "set": {"sigma": 1}}, "sigma=1 has no effect .* only regularise=ur"),
    "air, one stage": (
        {"defense": "air", "sequence": "pgd", "set": {"sigma": 0.2}},
        "sigma=0.2 .* second stage on",
    ),
    "air, no term": ({"defense": "air", "set": {"lambda_a": 0, "beta": 2}}, "beta=2 .* lambda_a=0"),
    "ewc": ({"defense": "ewc", "set": {"online": "false", "gamma": 0.5}}, "gamma=0.5 .* only online=true"),
    "replay, one stage": (
        {"defense": "replay", "sequence": "pgd", "set": {"memory": 5}},
        "memory=5 has no effect",
    ),
    "lorkd": (
        {"defense": "lorkd", "sequence": "fgsm,pgd", "set": {"router_width": 4}},
        "router_width=4 .* no router",
    ),
    "ta-loop": ({"defense": "ta-loop", "set": {"ask": "random", "views": 3}}, "views=3 .* ask=random"),
    "free": (
        {"defense": "free", "train_set": {"pgd.steps": 3}},
        "pgd.steps=3 has no effect on free .* only eps",
    ),
    "n-fgsm": (
        {"defense": "n-fgsm", "train_set": {"pgd.step_size": 0.01}},
        "pgd.step_size=0.01 has no effect",
    ),
    "trades": (
        {"defense": "trades", "train_set": {"pgd.step_size": 0.01}},
        "pgd.step_size=0.01 .* eps and steps",
    ),
    "mart": (
        {"defense": "mart", "set": {"steps": 4}, "train_set": {"pgd.steps": 3}},
        "pgd.steps=3 has no effect",
    ),
    "standard": (
        {"defense": "standard", "train_set": {"fgsm.eps": 0.1}},
        "fgsm.eps=0.1 .* training runs none",
    ),
    "no attack": ({"defense": "standard", "set": {"eps_warmup": 1}}, "eps_warmup=1 .* runs no attack"),
    "momentum": (
        {"defense": "at", "set": {"optimizer": "adam", "momentum": 0.5}},
        "momentum=0.5 .* optimizer=adam",
    ),
    "joint_epochs": (
        {"defense": "at", "set": {"joint_epochs": "one"}},
        "joint_epochs=one .* regime is continual",
    ),
    "pretrain.select": (
        {"set": {"pretrain.select": "val-robust"}},
        "pretrain.select=val-robust .* runs no attack",
    ),
    "no pretraining": (
        {"set": {"pretrain.epochs": 0, "pretrain.lr": 0.3}},
        "pretrain.lr=0.3 .* pretrain.epochs=0",
    ),
}

ALLOWED: list[dict[str, Any]] = [
    {"defense": "at", "set": {"mix": "split"}},
    {"defense": "joint", "set": {"mix": "max", "joint_epochs": "one"}},
    {"defense": "mid", "set": {"mix": "random", "first_order": "true"}},
    {"defense": "rcrt", "set": {"rate": 0.1, "regularise": "ur", "sigma": 1}},
    {"defense": "standard", "set": {"eps_warmup": 0.5, "pretrain.eps_warmup": 0}, "epochs": 2},
    {"defense": "standard", "set": {"eps_warmup": 0}},
    {
        "defense": "free",
        "train_set": {"pgd.steps": pool.info("pgd").all_knobs()["steps"].training, "pgd.eps": 0.1},
    },
    {"defense": "trades", "train_set": {"pgd.steps": 3}},
    {"set": {"optimizer": "adam", "momentum": 0.9, "pretrain.optimizer": "sgd", "pretrain.momentum": 0.5}},
    {"set": {"pretrain.epochs": 0, "pretrain.lr": 0.1}},
]
"""Settings with an effect, and others with the value that they have anyway."""


def stages_of(regime: str, sequence: str = "fgsm,pgd-l2,pgd") -> list[list[Any]]:
    """The attacks of each stage, with two steps."""
    steps = {one: {"steps": 2} for one in ("pgd", "pgd-l2") if one in sequence}
    attacks = pool.sequence(sequence, budget="digits", training=steps)
    return [[one] for one in attacks] if regime == "continual" else [attacks]


def trained(name: str, stages: Sequence[list[Any]], **given: Any) -> Defense:
    """A small network trained with these parameters."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(48, 1, 8, 8, generator=draws), torch.randint(10, (48,), generator=draws)
    data = list(zip(x.split(16), y.split(16), strict=True))
    few = SMALL.get(name, {}) | (
        {"coverage": 0.0} if "coverage" in parameters_of(registry.resolve(name)[0]) else {}
    )
    defense = registry.build(name, small(), seed=1, parameters=few | given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for stage in stages:
            defense.fit(data, stage, plan=PLAN)
    return defense


def others(default: Any, hint: Any) -> list[Any]:
    """Values of a parameter that are not the default, as far as its type gives some."""
    texts = [value for value in typing.get_args(hint) if isinstance(value, str) and value != default]
    if texts:
        return texts[::-1]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1]
    return [default * 0.5 or 0.3, default * 3] if isinstance(default, float) else []


@pytest.mark.parametrize("case", REFUSED)
def test_settings_without_effect_are_refused(case: str, digits: DataSet) -> None:
    options, said = REFUSED[case]
    with pytest.raises(InputError, match=f"^{said}.*: leave it out$"):
        prepare(options, data=digits)


@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_other_settings_are_not(options: dict[str, Any], digits: DataSet) -> None:
    prepare(options, data=digits)


def test_a_record_with_such_a_setting_can_be_repeated(digits: DataSet) -> None:
    """Its parameters are not ``--set``."""
    assert prepare({"defense": "at", "params": {"mix": "max"}}, data=digits).config.params == {"mix": "max"}


IDLE: list[tuple[str, str, str, dict[str, Any]]] = [
    ("at", "continual", "fgsm,pgd", {}),
    ("awp", "joint", "fgsm,pgd", {"gamma": 0.0}),
    ("mid", "meta", "fgsm,pgd", {"inner_lr": 0.0}),
    ("rcrt", "joint", "fgsm,pgd", {"regularise": "none"}),
    ("rcrt", "continual", "fgsm", {"regularise": "ur"}),
    ("sima", "joint", "fgsm,pgd", {"critic": "no-relation"}),
    ("sima", "joint", "fgsm,pgd", {"critic": "no-object"}),
    ("ta-loop", "joint", "fgsm,pgd", {"ask": "random", "threshold": 0.0}),
    ("lorkd", "joint", "fgsm,square:steps=3", {"lambda_kl": 0.0}),
    ("mola-router", "joint", "fgsm,pgd", {"lambda_twd": 0.0}),
    ("air", "continual", "fgsm", {}),
    ("air", "continual", "fgsm,pgd", {"lambda_i": 0.0, "lambda_a": 0.0, "lambda_r": 0.0}),
    ("ewc", "continual", "fgsm,pgd", {"strength": 0.0, "online": False}),
    ("si", "continual", "fgsm", {}),
    ("lwf", "continual", "fgsm,pgd", {"weight": 0.0}),
    ("replay", "continual", "fgsm", {}),
    ("assl", "joint", "fgsm,pgd", {"select": "random", "hard": True}),
]


@pytest.mark.quick(r"(at|air|rcrt)-.*")
@pytest.mark.parametrize(("name", "regime", "sequence", "given"), IDLE)
def test_what_is_called_idle_changes_no_bit(
    name: str, regime: str, sequence: str, given: dict[str, Any]
) -> None:
    stages = stages_of(regime, sequence)
    first = trained(name, stages, **given)
    idle = first.idle(stages)
    assert idle
    hints = _hints(type(first))
    for key in idle:
        for value in others(getattr(first, key), hints[key])[:1]:
            assert equal(first.model, trained(name, stages, **given | {key: value}).model), key


SLIGHT = {"steps", "channels", "adapt", "coverage", "teacher", "assistant"}
"""Parameters without another value to try here: None follows the model, the attack or the run."""
TOO_SMALL: dict[str, set[str]] = {
    # A network, a memory and data this small do not reach these limits, and two epochs have one division.
    "assl": {"rank", "neighbours"},
    "ewc": {"fisher_samples"},
    "lorkd": {"rank"},
    "mid": {"teacher"},
    "mola-grad": {"rank"},
    "mola-router": {"rank"},
    "replay": {"memory"},
    "sseat": {"memory"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in registry.names() if name != "ta-loop"])
def test_every_other_parameter_changes_something(name: str) -> None:
    """So that a new parameter that does nothing in a regime is noticed; of ta-loop, answers need training."""
    kind = registry.resolve(name)[0]
    for regime in kind.info.regimes:
        stages = stages_of(regime)
        plain = trained(name, stages)
        still = set(plain.idle(stages)) | SLIGHT | TOO_SMALL.get(name, set())
        for key, default in parameters_of(kind).items():
            if key not in still:
                values = others(default, _hints(kind).get(key))
                assert any(changes(plain, name, stages, key, value) for value in values), (regime, key)


def changes(plain: Defense, name: str, stages: Sequence[list[Any]], key: str, value: Any) -> bool:
    """Whether training with this value, if it is allowed, gives other weights."""
    try:
        found = trained(name, stages, **{key: value})
    except InputError:
        return False
    return not equal(dict(plain.state_dict()), dict(found.state_dict()))


def test_joint_training_with_the_epochs_of_one_stage(digits: DataSet) -> None:
    """By default it has those of all stages; pretraining does not know the setting."""
    for regime, epochs in ("all", 12), ("one", 4):
        config = prepare(
            {"defense": "joint", "epochs": 4, "set": {"joint_epochs": regime}}, data=digits
        ).config
        assert config.stage_plan.epochs == epochs
        assert config.pretrain.joint_epochs == "all"
        assert ("joint_epochs" in config.plan.model_dump()) == (regime == "one")
    assert prepare({"defense": "mid", "epochs": 4}, data=digits).config.stage_plan.epochs == 12
