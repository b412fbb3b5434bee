"""Reference tables: the best accuracy known against each attack alone at each strength.

Two formats are read. Ours is what ``advbench reference`` writes::

    {"reference": 1, "dataset": "digits", "fingerprint": "…", "model": "digits-cnn", "required": ["pgd"],
     "clean": null, "terms": [{"attack": "pgd", "eps": 0.1, "text": "pgd:eps=0.1,…,steps=50",
       "accuracy": 0.9, "robust": 324, "n": 360, "source": {"run": "…", "defense": "at", "seed": 0}}]}

The other is the table published with MultiRobustBench (arXiv:2302.10980), ``{"what", "leaderboard_set",
"ata"}``, in percent, for CIFAR-10. `PUBLISHED` says which of our attacks measure which of its threats.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.entries import AttackEntry, Frozen, JsonDict
from leaderboards.records.limits import read_bounded
from leaderboards.records.record import explain
from leaderboards.records.store import write_json

FORMAT: Final = 1
PUBLISHED_PAPER: Final = "arXiv:2302.10980"
VERSIONS: Final = ("version=standard", "version=plus")

PUBLISHED: Final[Mapping[str, str]] = MappingProxyType(
    {"AutoLinfAttack": "autoattack", "AutoL2Attack": "autoattack-l2", "AutoL1Attack": "autoattack-l1"}
)
"""The threats of the published table that one of our attacks measures, with eps on the same scale.

Theirs are the worst case in an lp ball, searched by APGD-T and FAB-T of AutoAttack; our AutoAttack runs both
and two more, in the versions ``standard`` and ``plus``. A weaker attack at the same eps, such as PGD, would
flatter the model and does not match. No other threats match. Their Contrast scales about black, their
Brightness only brightens, their Hue counts in radians, and their ElasticAttack and Saturation use other
transformations than our attacks of these names; their remaining attacks have no counterpart here.
"""


class Term(Frozen):
    """The best accuracy known against one attack at one eps.

    ``text`` is the canonical text of the attack that measures it; without one, any attack named ``attack``
    at exactly this eps does. ``accuracy`` is a share: ``robust`` / ``n`` points, if these are known.
    ``source`` says where the accuracy comes from.
    """

    attack: str = Field(min_length=1)
    eps: float = Field(gt=0)
    text: str | None = None
    accuracy: float = Field(ge=0, le=1)
    robust: int | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1)
    source: JsonDict

    @model_validator(mode="after")
    def _counts_are_the_accuracy(self) -> Self:
        if (self.robust is None) != (self.n is None):
            raise ValueError("robust and n are given together or not at all")
        if self.robust is not None and self.n is not None and self.robust / self.n != self.accuracy:
            raise ValueError(f"accuracy {self.accuracy} is not robust / n = {self.robust} / {self.n}")
        return self

    def measured_by(self, entry: AttackEntry) -> bool:
        """Whether an attack of a run is exactly the attack of this term, at exactly its eps."""
        if entry.access == "transfer":
            return False
        if self.text is not None:
            return entry.text == self.text
        if entry.eps != self.eps:
            return False
        if self.source.get("paper") != PUBLISHED_PAPER:
            return entry.name == self.attack
        return entry.name == PUBLISHED.get(self.attack) and entry.text.endswith(VERSIONS)


class Reference(Frozen):
    """A reference table. ``format_number`` is ``reference`` in JSON and as a constructor argument.

    ``dataset`` names the data, ``fingerprint`` identifies it exactly (None: known by name only); ``model`` is
    the architecture (None: any). ``required`` lists the attacks that a ratio averages over; a ratio needs a
    measured term of each. ``clean`` is the best clean accuracy known.
    """

    format_number: Literal[1] = Field(alias="reference")
    dataset: str = Field(min_length=1)
    fingerprint: str | None
    model: str | None
    required: list[str] = Field(min_length=1)
    clean: float | None = Field(default=None, ge=0, le=1)
    terms: list[Term] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def _no_term_twice(cls, value: list[Term]) -> list[Term]:
        places: set[tuple[str, float]] = set()
        for term in value:
            if (term.attack, term.eps) in places:
                raise ValueError(f"two terms for attack {term.attack!r} at eps {term.eps}")
            places.add((term.attack, term.eps))
        return value

    @model_validator(mode="after")
    def _required_have_terms(self) -> Self:
        for name in self.required:
            if name not in self.attacks:
                raise ValueError(f"required attack {name!r} has no term")
        return self

    @property
    def attacks(self) -> list[str]:
        """The attacks that have terms, in the order of the terms."""
        return list(dict.fromkeys(term.attack for term in self.terms))


def read_reference(path: Path) -> Reference:
    """Read a reference table in our format or in that of MultiRobustBench.

    Raises:
        RecordError: the file is missing or damaged, or is not a reference table.
    """
    path = Path(path)
    with os_errors(f"cannot read reference {path}"):
        data = read_bounded(path)
    return parse_reference(data, str(path))


def parse_reference(data: Mapping[str, Any] | bytes | str, source: str) -> Reference:
    """Parse a reference from JSON text or its decoded mapping; ``source`` names the file in errors.

    Raises:
        RecordError: it is not JSON, has neither format, or holds a wrong value.
    """
    try:
        tree = dict(data) if isinstance(data, Mapping) else json.loads(data)
        text = json.dumps(tree, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"reference {source}: not JSON: {' '.join(str(error).split())}") from error
    if isinstance(tree, dict) and {"ata", "leaderboard_set"} <= tree.keys():
        text = json.dumps(_published(tree, source))
    elif not isinstance(tree, dict) or "reference" not in tree:
        raise RecordError(
            f"reference {source}: neither a table of advbench reference nor MultiRobustBench's table"
        )
    elif type(tree["reference"]) is not int or tree["reference"] != FORMAT:
        found = json.dumps(tree["reference"])[:40]
        raise RecordError(f"reference {source}: unknown format {found}: this version reads {FORMAT}")
    try:
        return Reference.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"reference {source}: {explain(error)}") from error


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference in our format, atomically.

    Raises:
        RecordError: the file cannot be written, or it exists and is not a reference in our format.
    """
    check_target(path)
    write_json(path, reference.dump())


def check_target(path: Path) -> None:
    """Check that a reference may be written to ``path``.

    Raises:
        RecordError: the folder does not exist, or the file exists and is not a reference in our format.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise RecordError(f"cannot write reference {path}: the folder {path.parent} does not exist")
    if not path.exists():
        return
    try:
        ours = "reference" in json.loads(read_bounded(path)) and bool(read_reference(path))
    except (OSError, ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise RecordError(f"{path} exists and was not written by advbench reference: name another file")


def _published(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Convert MultiRobustBench's table to our format; attacks outside its leaderboard set become optional."""
    table, names = tree["ata"], tree["leaderboard_set"]
    if not isinstance(table, dict) or not isinstance(names, list):
        raise RecordError(
            f"reference {source}: ata must map attacks to accuracies, leaderboard_set must list attacks"
        )
    terms = []
    for attack, strengths in table.items():
        if attack == "NoAttack":
            continue
        if not isinstance(strengths, dict):
            raise RecordError(f"reference {source}: {attack}: expected accuracies by eps")
        for eps, percent in strengths.items():
            where = f"reference {source}: {attack} at {eps}"
            share = _share(percent, where)
            terms.append({"attack": attack, "eps": _eps(eps, where), "accuracy": share, "source": _SOURCE})
    clean = table.get("NoAttack")
    return {
        "reference": FORMAT,
        "dataset": "cifar10",
        "fingerprint": None,
        "model": None,
        "required": names,
        "clean": None if clean is None else _share(clean, f"reference {source}: NoAttack"),
        "terms": terms,
    }


_SOURCE: Final = {"paper": PUBLISHED_PAPER}


def _share(percent: Any, where: str) -> float:
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise RecordError(f"{where}: expected an accuracy in percent, not {percent!r}")
    return percent / 100


def _eps(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecordError(f"{where}: expected a number for eps") from None
