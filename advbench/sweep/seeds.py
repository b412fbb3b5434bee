"""Seeds as a grid writes them."""

from __future__ import annotations

from typing import Any

from attacks_pool.errors import InputError

MOST_SEEDS = 1000


def parse_seeds(given: Any, *, counts: bool = True) -> list[int]:
    """The seeds that a number, a list or text such as ``0-4`` and ``0,3,7`` means.

    Args:
        given: the value in the file.
        counts: whether a single number is how many there are (``seeds: 5``) or the one seed (``seed: 5``).

    Raises:
        InputError: nothing that can be read so, a seed twice, below 0 or from 2**63 on, more than 1,000.
    """
    wrong = InputError(f"seeds: {given!r} cannot be read: write 5, [0, 3, 7] or 0-4")
    seeds = _listed(given, counts, wrong)
    if not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds: {given!r} must name 1 to {MOST_SEEDS:,} different seeds")
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed < 2**63:
            raise InputError(f"seeds: {seed} must be at least 0 and below 2**63")
    return list(seeds)


def _listed(given: Any, counts: bool, wrong: InputError) -> range | list[int]:
    if isinstance(given, list):
        if not all(_is_number(one) for one in given):
            raise wrong
        return given
    if _is_number(given):
        return _up_to(0, given) if counts else [given]
    if not isinstance(given, str):
        raise wrong
    try:
        if "-" in given:
            low, high = (int(part) for part in given.split("-"))
            return _up_to(low, high + 1)
        if "," in given:
            return [int(part) for part in given.split(",")]
        return _up_to(0, int(given)) if counts else [int(given)]
    except ValueError:
        raise wrong from None


def _up_to(low: int, end: int) -> range:
    # Never longer than what is refused anyway: len() of a longer one may overflow.
    return range(low, min(end, low + MOST_SEEDS + 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
