"""The contracts of defenses, attacks and data sets: lists of promises that are tested one by one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from advbench.config.plugins import import_attack, import_defense, names_code
from advbench.contract import answers, attack_trial, dataset_trial, holdings, keeping, learning
from advbench.contract.attack_trial import AttackTrial
from advbench.contract.compare import BrokenPromiseError, described
from advbench.contract.dataset_trial import DatasetTrial
from advbench.contract.trial import Network, Promise, Trial, Tried, small_network
from advbench.data import DataChoices, load_dataset
from attacks_pool import pool
from attacks_pool.errors import InputError
from attacks_pool.metadata import Value
from defenses import Defense, DefenseInfo, registry


def find_defense(text: str) -> type[Defense]:
    """Find a defense class by its registered name or by ``package.module:Class``.

    A module need not be installed: it may be below the current directory.

    Raises:
        InputError: the name, module or class does not exist, the module fails to import, or the class is not
            a defense.
    """
    return import_defense(text) if ":" in text else registry.resolve(text)[0]


Status = Literal["holds", "fails", "not run"]

TRAINED = ("regimes",)
REPEATED = ("determinism",)
CONTRACT: tuple[Promise[Trial], ...] = (
    Promise("metadata", answers.metadata, ()),
    Promise("output shapes", answers.output_shapes, ("metadata",)),
    Promise("input gradients", answers.input_gradients, ("output shapes",)),
    Promise("regimes", learning.regimes, ("input gradients",)),
    Promise("other images", answers.other_images, TRAINED),
    Promise("mixed precision", learning.mixed_precision, TRAINED),
    Promise("learns", learning.learns, TRAINED),
    Promise("eval mode", answers.eval_mode, TRAINED),
    Promise("global state", learning.global_state_kept, TRAINED),
    Promise("training data", learning.training_data, TRAINED),
    Promise("determinism", learning.determinism, TRAINED),
    Promise("save and load", keeping.save_and_load, TRAINED),
    Promise("resume", keeping.resume, REPEATED),
    Promise("test data", holdings.no_test_data, REPEATED),
    Promise("memory", keeping.memory, TRAINED),
)
ATTACK_CONTRACT: tuple[Promise[AttackTrial], ...] = (
    Promise("metadata", attack_trial.metadata, ()),
    Promise("images", attack_trial.images, ("metadata",)),
    Promise("bounds", attack_trial.bounds, ("images",)),
    Promise("strength", attack_trial.strength, ("images",)),
    Promise("determinism", attack_trial.determinism, ("images",)),
    Promise("batch independence", attack_trial.independence, ("determinism",)),
    Promise("state", attack_trial.state, ("images",)),
    Promise("cost", attack_trial.cost, ("images",)),
)
DATASET_CONTRACT: tuple[Promise[DatasetTrial], ...] = (
    Promise("sizes", dataset_trial.sizes, ()),
    Promise("images", dataset_trial.images, ("sizes",)),
    Promise("labels", dataset_trial.labels, ("sizes",)),
    Promise("order", dataset_trial.order, ("labels",)),
    Promise("splits", dataset_trial.splits, ("images",)),
    Promise("repeatable", dataset_trial.repeatable, ("images",)),
)
"""The promises of each, with those that must hold before one is tested."""


@dataclass(frozen=True)
class Check:
    """The result of testing one promise.

    Attributes:
        name: the promise.
        status: ``holds``, ``fails``, or ``not run`` if a promise that it depends on fails.
        detail: the measurement or the reason of the failure, in one line.
        seconds: the time of the test; trainings that several promises share count for the first.
    """

    name: str
    status: Status
    detail: str
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the promise was tested and holds."""
        return self.status == "holds"

    def to_json(self) -> dict[str, Any]:
        """The check as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} ({self.status}): {self.detail}"


def check_defense(
    defense: type[Defense],
    *,
    parameters: Mapping[str, Any] | None = None,
    network: Network = small_network,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Run the contract on a defense class, on easy generated 8×8 images; it takes seconds.

    ``assert all(check.holds for check in check_defense(MyDefense))`` is a test for your own package.

    Args:
        defense: a subclass of ``defenses.Defense``, registered or not.
        parameters: values of its parameters; required for parameters without a default.
        network: makes the classifier to wrap, from the channels, classes, height and width of images.
        progress: called with the name of each promise before it is tested.

    Returns:
        One check per promise, in the order of ``CONTRACT``.

    Raises:
        InputError: the class is not a subclass of Defense, has no metadata, or lacks a given parameter.
    """
    if not (inspect.isclass(defense) and issubclass(defense, Defense)):
        raise InputError(f"{defense!r} is not a subclass of defenses.Defense")
    if not isinstance(getattr(defense, "info", None), DefenseInfo):
        raise InputError(f"{defense.__name__} has no info = DefenseInfo(...)")
    return _try_promises(CONTRACT, Trial(defense, parameters or {}, network), defense, progress)


def check_attack(
    attack: str,
    *,
    knobs: Mapping[str, Value] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Run the contract on an attack, against a small classifier trained on the spot; it takes seconds.

    ``assert all(check.holds for check in check_attack("my-attack"))`` is a test for your own package.

    Args:
        attack: a registered name, or ``package.module:function``, which is imported.
        knobs: values of its knobs; the others have their defaults.
        progress: called with the name of each promise before it is tried.

    Returns:
        One check a promise, in the order of ``ATTACK_CONTRACT``.

    Raises:
        InputError: no such attack, or knobs that it does not take.
    """
    entry = pool.entry(import_attack(attack) if names_code(attack) else attack)
    trial = AttackTrial(entry, dict(knobs or {}))
    # Wrong knobs are a mistake of the caller's, not a promise that the attack breaks.
    pool.bind(entry.info.name, trial.knobs, budget="digits")
    return _try_promises(ATTACK_CONTRACT, trial, entry.function, progress)


def check_dataset(
    dataset: Any, *, data_dir: str | Path | None = None, progress: Callable[[str], None] | None = None
) -> list[Check]:
    """Run the contract on a data set; it reads 200 images of each split, and all labels.

    ``assert all(check.holds for check in check_dataset("my_photos:load"))`` is a test for your own package.

    Args:
        dataset: as :func:`advbench.run` takes it: a name, ``package.module:factory``, or an object.
        data_dir: the directory of its files.
        progress: called with the name of each promise before it is tried.

    Returns:
        One check a promise, in the order of ``DATASET_CONTRACT``.

    Raises:
        InputError: there is no such data set, or it cannot be loaded.
    """
    # Images are not kept, so that a second reading is one.
    data = load_dataset(dataset, data_dir, DataChoices(memory=0))
    return _try_promises(DATASET_CONTRACT, DatasetTrial(data), check_dataset, progress)


def _try_promises(
    promises: Sequence[Promise[Tried]],
    trial: Tried,
    subject: Callable[..., Any],
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Try promises in order, except those that depend on a broken one; ``subject`` locates errors."""
    found: dict[str, Check] = {}
    for promise in promises:
        if progress is not None:
            progress(promise.name)
        broken = [need for need in promise.needs if not found[need].holds]
        if broken:
            found[promise.name] = Check(promise.name, "not run", f"it depends on {broken[0]!r}")
        else:
            found[promise.name] = _try(promise, trial, subject)
    return list(found.values())


def _try(promise: Promise[Tried], trial: Tried, subject: Callable[..., Any]) -> Check:
    began = time.perf_counter()
    status: Status = "holds"
    try:
        detail = promise.attempt(trial)
    except BrokenPromiseError as broken:
        status, detail = "fails", str(broken)
    except Exception as error:
        status, detail = "fails", described(error, subject)
    return Check(promise.name, status, " ".join(detail.split()), time.perf_counter() - began)
