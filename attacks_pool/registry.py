"""Finds attacks by name: the attacks of this package, and those that other packages add by entry points."""

from __future__ import annotations

import copyreg
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from attacks_pool import adapters
from attacks_pool.attack import Attack, AttackFunction
from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import AttackInfo, Value, default_eps, in_budgets
from attacks_pool.sequences import from_lists, from_text, parse_attacks, sample, split_families

ENTRY_POINTS = "advbench.attacks"
SAMPLE, CURRICULUM = "sample", "curriculum"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered attack: its metadata, its function and where the function is defined."""

    info: AttackInfo
    function: AttackFunction
    source: str
    said: str | None = None

    @property
    def summary(self) -> str:
        """One-line description; by default the first line of the function's docstring."""
        return self.said or (inspect.getdoc(self.function) or "").partition("\n")[0]


class Pool:
    """The registry of attacks. The first look-up imports ``attacks_pool.attacks`` and loads entry points."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._loaded = False
        self.problems: dict[str, str] = {}
        """Entry points that failed to load, each with its one-line cause."""

    def register(self, info: AttackInfo) -> Callable[[Function], Function]:
        """Decorator that registers ``function(model, x, y, *, eps, generator, early_stop, **knobs)``.

        Raises:
            InputError: the name is taken, or the function lacks a declared knob.
        """

        def add(function: Function) -> Function:
            taken = self._entries.get(info.name)
            source = f"{function.__module__}:{function.__qualname__}"
            if taken is not None and taken.source != source:
                raise InputError(f"attack {info.name!r} is registered twice: by {taken.source} and {source}")
            if info.name in (SAMPLE, CURRICULUM):
                raise InputError(f"an attack cannot be called {info.name!r}: sequences use that name")
            if info.norm is None and "eps" not in info.knobs:
                raise InputError(f"attack {info.name!r} has no norm, so it must declare its own knob 'eps'")
            _check_signature(info, function)
            self._entries[info.name] = Entry(info, function, source)
            return function

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def adapters(self) -> list[str]:
        """Names of the attacks in other installed libraries: ``ta:PGD``, ``fb:LinfPGD``, ``aa:square``.

        These names work wherever an attack is named, but sampled sequences never contain them.
        """
        return adapters.names()

    def entry(self, name: str) -> Entry:
        """The registered attack of this name, or an attack of another library (``ta:PGD``).

        Raises:
            InputError: no attack has this name; the message suggests the nearest one.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        if name in self.problems:
            raise InputError(f"attack {name!r} could not be loaded: {self.problems[name]}")
        if name.partition(":")[0].lower() in adapters.LIBRARIES:
            peer = adapters.find(name)
            return Entry(peer.info, peer.run, f"attacks_pool.adapters:{name}", peer.summary)
        raise unknown("attack", name, self._entries, see=f"advbench attacks lists all {len(self._entries)}")

    def info(self, name: str) -> AttackInfo:
        """The metadata of an attack."""
        return self.entry(name).info

    def get(
        self,
        name: str,
        *,
        budget: str | None = None,
        training: Mapping[str, Value] | None = None,
        **knobs: Value,
    ) -> Attack:
        """Return an attack with fixed knobs: ``pool.get("pgd", eps=0.2)``.

        Without ``eps``, its value comes from the ``budget``'s row of the table; other knobs take their
        defaults. ``training`` overrides the training knobs. Values may be numbers or text (``"8/255"``).

        Raises:
            InputError: unknown attack, knob or budget, or a value out of range.
        """
        return self.bind(name, knobs, budget=budget, training=training)

    def bind(
        self,
        name: str,
        knobs: Mapping[str, Value],
        *,
        budget: str | None = None,
        training: Mapping[str, Value] | None = None,
    ) -> Attack:
        """Like :meth:`get`, with the knobs in a mapping."""
        entry = self.entry(name)
        evaluation = _resolve(entry.info, knobs, budget, training=False)
        given = {"eps": evaluation["eps"], **(training or {})}
        return Attack(
            entry.info, entry.function, evaluation, _resolve(entry.info, given, budget, training=True)
        )

    def sequence(
        self,
        text: str,
        *,
        budget: str | None = None,
        training: Mapping[str, Mapping[str, Value]] | None = None,
        seed: int = 0,
        images: tuple[int, int, int] | None = None,
    ) -> list[Attack]:
        """Return the attacks that a text such as ``fgsm,pgd:eps=4/255,steps=50,cw`` names, in order.

        ``sample:4`` or ``sample:4,family=noise+query,norm=linf`` draws four attacks with ``seed`` (see
        :meth:`sample_sequence`), which support ``images`` of shape (C, H, W) if given.
        ``curriculum:pgd:eps=0.05..0.2,stages=3`` is one attack of growing strength (see :meth:`curriculum`).
        ``training`` maps attack names to training knobs.

        Raises:
            InputError: empty text, unknown attack or knob, or an attack that is listed twice.
        """
        attacks: list[Attack] = []
        overrides = dict(training or {})
        for name, knobs in parse_attacks(text):
            if name == SAMPLE or name.startswith(SAMPLE + ":"):
                attacks += self._sampled(name, knobs, budget, seed, overrides, images)
            elif name == CURRICULUM or name.startswith(CURRICULUM + ":"):
                moved = name.partition(":")[2].lower()
                attacks += from_text(self, moved, knobs, budget, overrides.get(moved))
            else:
                attacks.append(self.bind(name, knobs, budget=budget, training=overrides.get(name)))
        _refuse_repeats(attacks)
        stray = sorted(set(overrides) - {attack.name for attack in attacks})
        if stray:
            raise unknown("attack in training knobs", stray[0], {attack.name for attack in attacks})
        return attacks

    def sample_sequence(
        self,
        k: int,
        seed: int,
        families: Iterable[str] | None = None,
        norms: Iterable[str] | None = None,
        *,
        budget: str | None = None,
        training: Mapping[str, Mapping[str, Value]] | None = None,
        images: tuple[int, int, int] | None = None,
    ) -> list[Attack]:
        """Draw ``k`` different attacks with ``seed``; no family repeats before every family was used.

        The same arguments give the same sequence on every machine, as long as the pool contains the same
        attacks. ``families``, ``norms`` and the shape (C, H, W) of ``images`` restrict the choice. Ensembles
        are never drawn.

        Raises:
            InputError: ``k`` is below 1 or exceeds the number of attacks, or a family or norm is unknown.
        """
        names = sample(self._infos(), k, seed, families, norms, images)
        return [self.get(name, budget=budget, training=(training or {}).get(name)) for name in names]

    def split_families(
        self,
        seed: int,
        unseen: int = 1,
        families: Iterable[str] | None = None,
        norms: Iterable[str] | None = None,
        *,
        images: tuple[int, int, int] | None = None,
    ) -> tuple[list[str], list[str]]:
        """Split the families into seen and unseen; see :func:`attacks_pool.sequences.split_families`."""
        return split_families(self._infos(), seed, unseen, families, norms, images)

    def curriculum(
        self,
        name: str,
        *,
        budget: str | None = None,
        training: Mapping[str, Value] | None = None,
        **knobs: Value | Sequence[Value],
    ) -> list[Attack]:
        """Return one attack at several strengths: ``pool.curriculum("pgd", eps=[0.05, 0.1, 0.2])``.

        Knobs given as lists, all of the same length, take one value per stage, in training too unless
        ``training`` overrides them; the other knobs stay the same.

        Raises:
            InputError: no list, lists of different lengths, a strength that occurs twice, or anything that
                :meth:`get` rejects.
        """
        return from_lists(self, name, knobs, budget, training)

    def _infos(self) -> list[AttackInfo]:
        self._load()
        return [entry.info for entry in self._entries.values()]

    def _sampled(
        self,
        name: str,
        knobs: Mapping[str, Value],
        budget: str | None,
        seed: int,
        training: Mapping[str, Mapping[str, Value]],
        images: tuple[int, int, int] | None,
    ) -> list[Attack]:
        count = name.partition(":")[2]
        if set(knobs) - {"family", "norm"} or not count.isdecimal():
            raise InputError(f"{name!r} cannot be read: write sample:4 for four attacks drawn with the seed")
        families, norms = (str(knobs[key]).split("+") if key in knobs else None for key in ("family", "norm"))
        return self.sample_sequence(
            int(count), seed, families, norms, budget=budget, training=training, images=images
        )

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module("attacks_pool.attacks")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)):
            try:
                point.load()
            except (Exception, SystemExit) as error:  # third-party modules may raise anything
                whose = f" (package {point.dist.name})" if point.dist is not None else ""
                said = f"{type(error).__name__}: {error}".partition("\n")[0]
                self.problems[point.name] = f"{said}{whose}"


def _resolve(
    info: AttackInfo, given: Mapping[str, Value], budget: str | None, *, training: bool
) -> dict[str, Value]:
    declared = info.all_knobs()
    for knob in given:
        if knob not in declared:
            raise unknown(f"knob of {info.name}", knob, declared)
    resolved: dict[str, Value] = {}
    for knob in sorted(declared, key=lambda knob: (knob != "eps", callable(declared[knob].default))):
        spec = declared[knob]
        if knob in given:
            value: Any = given[knob]
        elif knob == "eps" and "eps" not in info.knobs:
            value = default_eps(info.name, info.norm, budget)
        else:
            value = spec.training if training and spec.training is not None else spec.default
            value = value(resolved) if callable(value) else value
        if spec.scales and knob != "eps":
            value = in_budgets(f"{info.name}.{knob}", value, float(resolved["eps"]))
        resolved[knob] = spec.parse(f"{info.name}.{knob}", value)
    return resolved


def _check_signature(info: AttackInfo, function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for knob in ("generator", "early_stop", *info.all_knobs()):
        if knob not in parameters:
            raise InputError(f"attack {info.name!r}: its function does not take {knob!r}")


def _refuse_repeats(attacks: Iterable[Attack]) -> None:
    seen: set[str] = set()
    for attack in attacks:
        if attack.text in seen:
            raise InputError(f"attack {attack.name!r} is listed twice: change the budget or a knob of one")
        seen.add(attack.text)


pool = Pool()
"""The pool that the command line and the benchmark use."""

register = pool.register

sample_sequence = pool.sample_sequence


def _from_pool(
    name: str, knobs: Mapping[str, Value], training_knobs: Mapping[str, Value], training: bool
) -> Attack:
    """Rebuild a pickled attack; process-specific limits (``within``) are not restored."""
    entry = pool.entry(name)
    return Attack(entry.info, entry.function, knobs, training_knobs, training)


def _reduced(attack: Attack) -> tuple[Any, ...]:
    """Pickle an attack by its name, because its metadata hold functions that cannot be pickled."""
    return _from_pool, (attack.name, dict(attack.knobs), dict(attack.training_knobs), attack.training)


copyreg.pickle(Attack, _reduced)
