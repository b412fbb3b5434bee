"""The text form of attacks: ``pgd``, ``pgd:eps=4/255,steps=50``, several joined by commas."""

from __future__ import annotations

from attacks_pool.errors import InputError
from attacks_pool.metadata import Value


def parse_attacks(text: str) -> list[tuple[str, dict[str, Value]]]:
    """Names and knobs, in order; knob values stay text.

    A piece with ``=`` and no name continues the attack before it, so commas may part both.

    >>> parse_attacks("fgsm,pgd:eps=4/255,steps=50,cw")
    [('fgsm', {}), ('pgd', {'eps': '4/255', 'steps': '50'}), ('cw', {})]

    Raises:
        InputError: empty text, an empty piece, a knob without an attack or given twice.
    """
    if not text.strip():
        raise InputError("the list of attacks is empty: write for example fgsm,pgd,cw")
    attacks: list[tuple[str, dict[str, Value]]] = []
    for piece in (part.strip() for part in text.split(",")):
        head, equals, value = piece.partition("=")
        name, colon, knob = head.rpartition(":") if equals else (piece, "", "")
        if not equals or colon:
            if not name.strip():
                raise InputError(f"{text!r} has an attack without a name")
            attacks.append((name.strip().lower() if ":" not in name else name.strip(), {}))
        else:
            knob = head
        if not equals:
            continue
        if not attacks:
            raise InputError(f"{piece!r} stands before any attack: write NAME:{piece}")
        if not knob.strip() or not value.strip():
            raise InputError(f"{piece!r} cannot be read: write knob=value")
        if knob.strip() in attacks[-1][1]:
            raise InputError(f"{attacks[-1][0]}: knob {knob.strip()!r} is given twice")
        attacks[-1][1][knob.strip()] = value.strip()
    return attacks


def attack_name(text: str) -> str:
    """The name in the text of one attack; names of other libraries have a colon of their own.

    >>> attack_name("pgd:eps=0.1"), attack_name("ta:PGD:eps=0.1"), attack_name("ta:PGD")
    ('pgd', 'ta:PGD', 'ta:PGD')
    """
    head, equals, _ = text.partition("=")
    return head.rpartition(":")[0] if equals else head
