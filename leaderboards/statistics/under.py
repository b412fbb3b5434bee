"""Accuracy under a single attack: the metrics ``robust.ATTACK``."""

from collections.abc import Sequence
from typing import Final

from leaderboards.errors import RecordError, unknown
from leaderboards.statistics.naming import attack_name, knobs_of, meant, short_names

PREFIX: Final = "robust."
"""The prefix: ``robust.autoattack`` is the accuracy under AutoAttack after the last stage, on its points."""


def attack_of(metric: str) -> str | None:
    """The attack in the name of a metric, as the user wrote it; None for the metrics of a whole run."""
    return metric.removeprefix(PREFIX) or None if metric.startswith(PREFIX) else None


def spoken(metric: str) -> str:
    """A metric's name for display."""
    return metric if attack_of(metric) else metric.replace("_", " ")


def check_attack(metric: str, runs: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Check that the attack of a metric matches an attack of some run, and never several of one run.

    Args:
        metric: ``robust.ATTACK``.
        runs: names, and the canonical texts of the attacks of each run.

    Raises:
        RecordError: no run has the attack, or a run has several that match.
    """
    attack = attack_of(metric) or ""
    found = False
    for name, attacks in runs:
        places = meant(attacks, attack)
        found = found or bool(places)
        if len(places) > 1:
            short = short_names(attacks)
            choices = " or ".join(PREFIX + _written(short[place]) for place in places)
            raise RecordError(
                f"{metric} matches several attacks of {name}: write {choices}, or show fewer rows"
            )
    if runs and not found:
        every = sorted({text for _, attacks in runs for text in attacks})
        alike = [text for text in every if attack_name(text) == attack_name(attack)]
        there = sorted({_budgeted(text) for text in alike} or {*map(attack_name, every)})
        raise RecordError(f"no row has the attack {unknown(attack, there)}")


def _budgeted(text: str) -> str:
    """The name and eps of a canonical text."""
    eps = knobs_of(text).get("eps")
    return attack_name(text) if eps is None else f"{attack_name(text)}:eps={eps}"


def _written(short: str) -> str:
    """An attack in user syntax, from its short name: ``pgd:eps=0.1`` from ``pgd eps=0.1``."""
    name, *knobs = short.split(" ")
    return f"{name}:{','.join(knobs)}" if knobs else name
