"""Names of models, and texts of attacks: parts, short names, and which attacks a user's text matches.

A canonical text names every knob; a user writes ``pgd:eps=0.1``.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Attack = tuple[str, dict[str, str]]


def model_name(config: Mapping[str, Any]) -> Any:
    """The model of a record's config, with its further arguments if it has any.

    >>> model_name({"model": "mine:net", "model_args": {"width": 2, "act": "gelu"}})
    'mine:net(act="gelu",width=2)'
    """
    model, more = config["model"], config.get("model_args")
    if not isinstance(model, str) or not isinstance(more, Mapping) or not more:
        return model
    pairs = (f"{key}={json.dumps(more[key], sort_keys=True, ensure_ascii=False)}" for key in sorted(more))
    return f"{model}({','.join(pairs)})"


def attack_name(text: str) -> str:
    """The name in the text of one attack; names from other libraries contain a colon.

    >>> attack_name("pgd:eps=0.1"), attack_name("ta:PGD:eps=0.1"), attack_name("ta:PGD")
    ('pgd', 'ta:PGD', 'ta:PGD')
    """
    head, equals, _ = text.partition("=")
    return head.rpartition(":")[0] if equals else head


def knobs_of(text: str) -> dict[str, str]:
    """The knobs in the text of one attack.

    >>> knobs_of("ta:PGD:eps=0.1,steps=5")
    {'eps': '0.1', 'steps': '5'}
    """
    listed = text.removeprefix(attack_name(text)).removeprefix(":")
    pairs = (knob.partition("=") for knob in listed.split(",") if knob)
    return {name: value for name, _, value in pairs}


def brief(text: str, knobs: Collection[str] = ("eps",)) -> str:
    """The name of an attack with only the given knobs.

    >>> brief("ta:PGD:eps=0.1,steps=5")
    'ta:PGD eps=0.1'
    """
    shown = [f"{knob}={value}" for knob, value in knobs_of(text).items() if knob in knobs]
    return " ".join([attack_name(text), *shown])


def short_names(texts: Sequence[str], dull: Collection[str] = ("step_size",)) -> list[str]:
    """Each attack's name, with the knobs that distinguish it from others of that name.

    Knobs in ``dull``, which follow from others, are named only if nothing else distinguishes two attacks.

    >>> short_names(["pgd:eps=0.1,step_size=0.1", "pgd:eps=0.2,step_size=0.2", "fgsm:eps=0.2"])
    ['pgd eps=0.1', 'pgd eps=0.2', 'fgsm']
    """
    brief = [_told_apart(text, texts, dull) for text in texts]
    return brief if len(set(brief)) == len(set(texts)) else [_told_apart(text, texts, ()) for text in texts]


def _told_apart(text: str, texts: Sequence[str], dull: Collection[str]) -> str:
    name, knobs = attack_name(text), knobs_of(text)
    twins = [knobs_of(other) for other in texts if attack_name(other) == name]
    own = [
        f"{knob}={value}"
        for knob, value in knobs.items()
        if knob not in dull and any(twin.get(knob) != value for twin in twins)
    ]
    return " ".join([name, *own])


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
