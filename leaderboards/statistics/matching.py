"""Matches attacks as users write them, ``pgd:eps=0.1``, to canonical texts, which name every knob."""

import math
from collections.abc import Sequence

Attack = tuple[str, dict[str, str]]


def meant(attacks: Sequence[str], wanted: str) -> list[int]:
    """The indices of the canonical texts that match ``wanted``; knobs that it does not name match any value.

    >>> meant(["fgsm:eps=0.2", "pgd:eps=0.1,steps=50", "pgd:eps=0.2,steps=50"], "pgd:eps=1/5")
    [2]
    """
    asked = _attacks(wanted)
    if len(asked) != 1:
        return []
    return [index for index, text in enumerate(attacks) if _covers(_attacks(text)[0], asked[0])]


def same_attacks(sequence: Sequence[str], wanted: str) -> bool:
    """Whether the attacks match those of ``wanted``, in its order; knobs that it does not name match any."""
    asked = _attacks(wanted)
    return len(asked) == len(sequence) and all(
        _covers(_attacks(attack)[0], one) for attack, one in zip(sequence, asked, strict=True)
    )


def number(text: str) -> float | None:
    """Parse a finite number, which may be a fraction; None for any other text.

    >>> number("8/255"), number("1e400"), number("many")
    (0.03137254901960784, None, None)
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _attacks(text: str) -> list[Attack]:
    """Names and knobs of ``fgsm,pgd:eps=0.1,steps=5``: a part without a name belongs to the attack before."""
    found: list[Attack] = []
    for part in text.split(","):
        head, equals, value = part.strip().partition("=")
        # A name may contain a colon: ta:PGD:eps=0.2
        name, colon, knob = head.rpartition(":") if equals else (head, "", "")
        if equals and not colon and found:
            found[-1][1][head] = value
        else:
            found.append((name, {knob: value} if equals else {}))
    return found


def _covers(attack: Attack, asked: Attack) -> bool:
    (name, knobs), (wanted, values) = attack, asked
    return name == wanted and all(_same_knob(knobs.get(knob), value) for knob, value in values.items())


def _same_knob(own: str | None, wanted: str) -> bool:
    if own is None or own == wanted:
        return own is not None
    first, second = number(own), number(wanted)
    return first is not None and second is not None and abs(first - second) < 1e-9
