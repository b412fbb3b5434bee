"""Short names of attacks, from their canonical texts."""

from collections.abc import Collection, Sequence


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
