"""Resolves a user's options to a configuration, and finds every mistake before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from advbench.config.options import DEFAULT_UNSEEN, DataOptions, Options, RunConfig, as_text, explain
from advbench.data import DataSet
from advbench.models import FORMS, MODELS
from attacks_pool import Attack, InputError, pool
from attacks_pool.attack import check_task
from attacks_pool.errors import unknown
from attacks_pool.metadata import Value, parse_number, whole_number
from attacks_pool.sequences import parse_attacks
from defenses import TrainPlan, registry
from defenses.metadata import parameters_of, parse_parameters
from defenses.training.plan import PretrainPlan

SMALL = {"lr": 0.1, "schedule": "one-cycle", "max_grad_norm": 1.0}
"""For small networks: warm-up and gradient clipping soften a new attack or a strong distillation."""

PLANS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 64, **SMALL},
    "mnist": {"epochs": 3, "batch_size": 128, **SMALL},
    "cifar10": {"epochs": 30, "batch_size": 128, "lr": 0.1},
    "imagenet": {"epochs": 30, "batch_size": 128, "lr": 0.1},
}
"""The plan of a stage for each row of budgets; other values are the defaults of ``TrainPlan``."""

WARMUPS: Mapping[str, float] = {"digits": 1 / 4, "mnist": 1 / 3, "cifar10": 0.0, "imagenet": 0.0}
"""The share of a stage over which eps grows, for any number of epochs."""

PRETRAIN_EPOCHS: Mapping[str, int] = {"digits": 20, "mnist": 2, "cifar10": 30, "imagenet": 30}
"""The epochs of clean pretraining, before row 0."""


Plan = TypeVar("Plan", bound=TrainPlan)
Parsed = list[tuple[str, dict[str, Value]]]
"""The names of attacks, each with its knobs."""


def resolve(options: Options, data: DataSet, *, sample_seed: int | None = None) -> RunConfig:
    """Resolve ``options`` for ``data`` to a configuration.

    Args:
        options: the user's options.
        data: the loaded data set that they name.
        sample_seed: the seed for drawing ``--sequence sample:k``; the run's seed by default.

    Raises:
        InputError: an option is unknown, out of range or contradictory.
    """
    defense, regime = registry.resolve(options.defense, options.regime)
    name = defense.info.name
    params, plan_set, pretrain_set = _sort_settings(options.set, name, defense)
    seed = options.seed if sample_seed is None else sample_seed
    sequence = _sequence(options, data, seed)
    unseen, extra = _others(options, data.budget, sequence)
    every = [*sequence, *unseen, *extra]
    check_task(every, data.image_shape, data.num_classes)
    check_task([attack.for_training() for attack in sequence], data.image_shape, data.num_classes)
    if regime == "meta" and len(sequence) < 2:
        raise InputError("regime 'meta' needs two attacks or more in the sequence")
    plan = _plan(options, data, plan_set)
    return RunConfig(
        defense=name,
        params=parse_parameters(defense, name, {**options.params, **params}),
        sequence=[attack.text for attack in sequence],
        training=[attack.training_text for attack in sequence],
        regime=regime,
        unseen=[attack.text for attack in unseen],
        eval=[attack.text for attack in extra],
        dataset=options.dataset,
        data_dir=options.data_dir,
        model=_model(options.model or data.default_model),
        plan=plan,
        pretrain=_pretrain(options, data, plan, pretrain_set),
        points=parse_points(options.points, data, every),
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        target_aware=defense.info.target_aware,
        plugins=options.plugins,
        **{key: getattr(options, key) for key in DataOptions.model_fields},
        model_args=options.model_args,
    )


def bound_attacks(config: RunConfig) -> dict[str, list[Attack]]:
    """The attacks of a resolved configuration by role: ``seen`` (in order), ``unseen``, ``eval``.

    Raises:
        InputError: an attack is not in the pool, or ``training`` and ``sequence`` name different attacks.
    """
    sequence, training = parsed(config.sequence), parsed(config.training)
    _check_training(sequence, training)
    seen = [
        pool.bind(name, knobs, training=trained)
        for (name, knobs), (_, trained) in zip(sequence, training, strict=True)
    ]
    roles = {"unseen": config.unseen, "eval": config.eval}
    others = {
        role: [pool.bind(name, knobs) for name, knobs in parsed(texts)] for role, texts in roles.items()
    }
    return {"seen": seen, **others}


def attacks_of_stage(config: RunConfig, seen: list[Attack], stage: int) -> list[Attack]:
    """The attacks of the sequence ``seen`` that a stage trains against; none in stage 0, pretraining."""
    if stage == 0:
        return []
    return [seen[stage - 1]] if config.regime == "continual" else seen


def measured_attacks(config: RunConfig, available: int) -> list[tuple[Attack, int]]:
    """Every attack of a run, each with the number of test points that it is measured on."""
    attacks = bound_attacks(config)
    every = [attack for role in ("seen", "unseen", "eval") for attack in attacks[role]]
    return [(attack, points_of(config, attack, available)) for attack in every]


def points_of(config: RunConfig, attack: Attack, available: int) -> int:
    """The number of test points, from the first on, that ``attack`` is measured on."""
    return min(config.points.get(attack.name, config.points.get("default", available)), available)


def parsed(texts: list[str]) -> Parsed:
    """The name and knobs of each text, which must be of one attack."""
    return [parse_attacks(text)[0] for text in texts]


def _sequence(options: Options, data: DataSet, seed: int) -> list[Attack]:
    text = as_text(options.sequence)
    if options.training is None:
        knobs = _training_knobs(options.train_set)
        return pool.sequence(text, budget=data.budget, training=knobs, seed=seed, images=data.image_shape)
    seen = parse_attacks(text)
    training = parsed(options.training)
    _check_training(seen, training)
    return [
        pool.bind(name, evaluation, budget=data.budget, training=knobs)
        for (name, evaluation), (_, knobs) in zip(seen, training, strict=True)
    ]


def _check_training(sequence: Parsed, training: Parsed) -> None:
    if [name for name, _ in sequence] != [name for name, _ in training]:
        raise InputError("training: must name the attacks of the sequence, in its order")


def _others(options: Options, budget: str, sequence: list[Attack]) -> tuple[list[Attack], list[Attack]]:
    """The unseen attacks, and further attacks that are only measured."""
    taken = {attack.text: "the sequence" for attack in sequence}
    extra = _optional(options.eval, budget)
    if options.unseen == "auto":
        names = {attack.name for attack in [*sequence, *extra]}
        unseen = [pool.get(name, budget=budget) for name in DEFAULT_UNSEEN if name not in names]
    else:
        unseen = _optional(options.unseen, budget)
    for attack in unseen:
        if attack.text in taken:
            raise InputError(f"unseen attack {attack.name!r} is in the sequence: it would be seen")
        taken[attack.text] = "unseen"
    for attack in extra:
        if attack.text in taken:
            raise InputError(f"eval: {attack.name!r} is measured already, as part of {taken[attack.text]}")
    return unseen, extra


def _optional(text: str | list[str], budget: str) -> list[Attack]:
    joined = as_text(text).strip()
    return pool.sequence(joined, budget=budget) if joined not in ("", "none") else []


def _training_knobs(given: Mapping[str, Any]) -> dict[str, dict[str, Value]]:
    """Convert ``{"pgd.steps": 7}`` to ``{"pgd": {"steps": 7}}``."""
    knobs: dict[str, dict[str, Value]] = {}
    for key, value in given.items():
        attack, dot, knob = key.rpartition(".")
        if not dot or not attack or not knob:
            raise InputError(f"train-set {key}={value} cannot be read: write attack.knob=value")
        knobs.setdefault(attack, {})[knob] = value
    return knobs


def _sort_settings(
    given: Mapping[str, Any], name: str, defense: type
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split settings into those of the defense, of the plan and, with ``pretrain.``, of pretraining."""
    own, plan = parameters_of(defense), TrainPlan.model_fields
    params: dict[str, Any] = {}
    plan_set: dict[str, Any] = {}
    pretrain_set: dict[str, Any] = {}
    for key, value in given.items():
        field = key.removeprefix("pretrain.")
        if key in own:
            params[key] = value
        elif field in plan:
            (plan_set if field == key else pretrain_set)[field] = value
        else:
            allowed = [*own, *plan]
            see = f"of the defense: {', '.join(own) or 'none'}; of the plan: {', '.join(plan)}"
            if field != key:
                allowed += [f"pretrain.{field}" for field in plan]
                see = "pretrain.KEY takes a plan's keys"
            raise unknown(f"setting for {name}", key, allowed, see=see)
    return params, plan_set, pretrain_set


def _plan(options: Options, data: DataSet, settings: Mapping[str, Any]) -> TrainPlan:
    chosen: dict[str, Any] = {"augmentation": data.augmentation, **PLANS[data.budget], **options.plan}
    if options.epochs is not None:
        chosen["epochs"] = options.epochs
    if options.select is not None:
        chosen["select"] = options.select
    chosen.update(settings)
    if "eps_warmup" not in chosen:
        epochs = parse_number("epochs", chosen.get("epochs", TrainPlan().epochs))
        chosen["eps_warmup"] = epochs * WARMUPS[data.budget]
    return _checked_plan(chosen, TrainPlan)


def _pretrain(options: Options, data: DataSet, plan: TrainPlan, settings: Mapping[str, Any]) -> PretrainPlan:
    """The plan of pretraining: the stage's plan, with its own epochs and without settings for attacks.

    The warm-up of the learning rate keeps its share of the epochs.
    """
    given = {**options.pretrain, **settings}
    epochs = given.get("epochs", PRETRAIN_EPOCHS[data.budget])
    inherited = {**plan.model_dump(), "epochs": epochs, "eps_warmup": 0.0, "select": "last"}
    inherited.pop("joint_epochs", None)
    if "warmup" in inherited:
        inherited["warmup"] = plan.warmup / plan.epochs * parse_number("pretrain.epochs", epochs)
    if given.get("average", plan.average) != plan.average:
        inherited = {key: value for key, value in inherited.items() if not key.startswith("average_")}
    if given.get("schedule") == "one-cycle":
        inherited.pop("warmup", None)
    return _checked_plan({**inherited, **given}, PretrainPlan, "pretrain.")


def _checked_plan(values: Mapping[str, Any], kind: type[Plan], prefix: str = "") -> Plan:
    """The plan with ``values``; errors name a key as the user writes it, with its ``prefix``."""
    for key in values:
        if key not in TrainPlan.model_fields:
            raise unknown("plan key", prefix + key, [prefix + name for name in TrainPlan.model_fields])
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(prefix + explain(error)) from None


def _model(text: str) -> str:
    if text.startswith("robustbench:") or Path(text).suffix in (".pt", ".ts", ".pt2", ".safetensors"):
        raise InputError(
            f"model {text!r} has weights already, and a run builds its model: name {FORMS}, and give weights "
            "to start from with --weights FILE; advbench eval measures trained models"
        )
    if ":" not in text and text not in MODELS:
        raise unknown("model", text, MODELS, see=f"allowed: {FORMS}")
    return text


def parse_points(given: object, data: DataSet, attacks: list[Attack]) -> dict[str, int]:
    """Parse ``1000``, ``cw=1000``, ``5000,cw=1000`` or a mapping; the key ``default`` covers other attacks.

    Raises:
        InputError: the value is anything else, names an attack not in ``attacks``, or exceeds ``data``.
    """
    points: dict[str, int] = {}
    names = {attack.name for attack in attacks}
    for key, value in _point_pieces(given).items():
        if key != "default" and key not in names:
            raise unknown("attack in points", str(key), names)
        number = _count(value)
        if number is None or not 1 <= number <= len(data.test):
            raise InputError(
                f"points={value}: {data.name} has {len(data.test)} test points; give a number from 1 to that"
            )
        points[key] = number
    return points


def _point_pieces(given: object) -> dict[str, object]:
    """The given numbers, by attack or ``default``."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    if not isinstance(given, str):
        return {"default": given}
    pieces: dict[str, object] = {}
    for piece in given.split(","):
        key, equals, value = piece.strip().rpartition("=")
        key = key if equals else "default"
        if key in pieces:
            whose = key if equals else "all attacks"
            raise InputError(f"points={given}: two numbers for {whose}, {pieces[key]} and {value}")
        pieces[key] = value
    return pieces


def _count(value: object) -> int | None:
    """Parse a whole number, or the text of one; None if it is not one."""
    if not isinstance(value, str):
        try:
            return whole_number("points", value)
        except InputError:
            return None
    try:
        number = parse_number("points", value)
    except InputError:
        raise InputError(f"points={value} is not a number: write 1000, cw=1000 or 5000,cw=1000") from None
    return int(number) if number.is_integer() else None
