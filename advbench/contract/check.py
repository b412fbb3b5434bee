"""The contract that every defense must keep, as a list of promises that are tested one by one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from advbench.config.plugins import import_defense
from advbench.contract import answers, keeping, learning, secrecy
from advbench.contract.compare import BrokenPromiseError, described
from advbench.contract.trial import Network, Promise, Trial, Tried, small_network
from attacks_pool.errors import InputError
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
    Promise("test data", secrecy.no_test_data, REPEATED),
    Promise("memory", keeping.memory, TRAINED),
)
"""Every promise, with the promises that must hold before it is tested."""


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
    return try_promises(CONTRACT, Trial(defense, parameters or {}, network), defense, progress)


def try_promises(
    promises: Sequence[Promise[Tried]],
    trial: Tried,
    subject: Callable[..., Any],
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Try promises in order; one that builds on a broken promise is not tried.

    Args:
        promises: what is promised.
        trial: what they are tried on.
        subject: the class or function under test, in whose file errors are located.
        progress: called with the name of each promise before it is tried.
    """
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
