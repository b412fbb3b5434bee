"""Exports one of our runs as a RobustBench row."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from leaderboards.errors import RecordError
from leaderboards.peers.robustbench import THREATS, Number, ZooEntry
from leaderboards.records.entries import CLEAN, AttackEntry, Cell
from leaderboards.records.layout import EVALUATED
from leaderboards.records.record import Record
from leaderboards.statistics.naming import model_name

THEIR_EPS: Final[Mapping[tuple[str, str], float]] = MappingProxyType(
    {
        ("cifar10", "Linf"): 8 / 255,
        ("cifar10", "L2"): 0.5,
        ("cifar100", "Linf"): 8 / 255,
        ("imagenet", "Linf"): 4 / 255,
    }
)
"""The budgets of RobustBench's leaderboards."""
AUTOATTACK: Final = {"linf": "autoattack", "l2": "autoattack-l2", "l1": "autoattack-l1"}
"""The attacks that use exactly the published budgets, in the version ``standard``."""


def entry_of(
    record: Record,
    *,
    norm: str | None = None,
    name: str | None = None,
    link: str = "",
    authors: str = "",
    venue: str = "",
    additional_data: bool = False,
) -> ZooEntry:
    """Convert a run, after its last stage, to a RobustBench row for one norm.

    ``autoattack_acc`` is set only if AutoAttack was run in its published version ``standard`` on all test
    points, because readers will assume that. ``footnote`` holds everything else: the run, other attacks,
    fewer points, an eps other than the leaderboard's, the audit.

    Args:
        record: the run.
        norm: ``linf``, ``l2`` or ``l1``; by default AutoAttack's norm, or else the only norm of the attacks.
        name: the title of the paper; the defense's name by default.
        link: a link to the paper.
        authors: the authors as RobustBench writes them, separated by commas.
        venue: the venue as RobustBench writes it: ``ICLR 2020``.
        additional_data: whether training used more than the data set.

    Raises:
        RecordError: there is no attack of this norm, there are several norms and none was chosen, or there is
            no clean accuracy.
    """
    found = _find(record, norm)
    config = record.config
    pairs: list[tuple[str, Any]] = [
        ("link", link),
        ("name", name or str(config["defense"])),
        ("authors", authors),
        ("additional_data", additional_data),
        ("number_forward_passes", Number(str(_passes(record)))),
        ("dataset", found.dataset),
        ("venue", venue),
        # In an evaluation, the field "defense" names the evaluated model.
        ("architecture", str(config["defense"] if record.regime == EVALUATED else model_name(config))),
        ("eps", None if found.eps is None else eps_text(found.eps)),
        ("clean_acc", _percent(found.cells[CLEAN])),
        ("reported", None),
    ]
    abstains = config.get("abstain") is not None
    if found.published is not None and found.whole and not abstains:
        pairs.append(("autoattack_acc", _percent(found.cells[found.published.text])))
    notes = [
        f"Measured by advbench, run {record.id}.",
        *_about(found),
        *_eps_note(found),
        *_audit_note(record),
        *(["Its last output abstains, which counts as right on attacked points."] if abstains else []),
    ]
    pairs += [("footnote", " ".join(notes)), ("unreliable", record.audit.verdict != "ok")]
    return ZooEntry(record.id, found.dataset, THREATS[found.norm], tuple(pairs))


@dataclass(frozen=True)
class _Found:
    """A run's results for one norm: cells after the last stage, AutoAttack if it ran, the best attack."""

    dataset: str
    norm: str
    cells: Mapping[str, Cell]
    published: AttackEntry | None
    lowest: AttackEntry
    test_points: int | None
    theirs: float | None
    """The budget of RobustBench's leaderboard; None if it has none for this data set and norm."""

    @property
    def eps(self) -> float | None:
        return (self.published or self.lowest).eps

    @property
    def whole(self) -> bool:
        """Whether AutoAttack was run on all test points."""
        return self.published is not None and self.cells[self.published.text].n == self.test_points

    @property
    def all_points(self) -> str:
        return "an unknown number of" if self.test_points is None else str(self.test_points)


def _find(record: Record, norm: str | None) -> _Found:
    cells = record.last_cells()
    if CLEAN not in cells:
        raise RecordError(f"run {record.id} has no clean accuracy after its last stage")
    norm = _norm(record, norm)
    ours = [entry for entry in record.attacks if entry.norm == norm and entry.text in cells]
    if not ours:
        have = ", ".join(sorted({entry.norm for entry in record.attacks if entry.norm})) or "none"
        raise RecordError(f"run {record.id} has no attack of norm {norm} (its norms: {have})")
    data = record.environment["data"]
    dataset, size = str(data["name"]), data.get("test")
    theirs = THEIR_EPS.get((dataset, THREATS[norm]))
    return _Found(
        dataset=dataset,
        norm=norm,
        cells=cells,
        published=_published(ours, norm, theirs),
        lowest=min(ours, key=lambda entry: cells[entry.text].accuracy),
        test_points=size if isinstance(size, int) else None,
        theirs=theirs,
    )


def eps_text(eps: float) -> str:
    """A budget as RobustBench writes it: the decimal if it is short, or else a fraction such as ``8/255``.

    >>> eps_text(8 / 255), eps_text(0.5), eps_text(0.031)
    ('8/255', '0.5', '0.031')
    """
    decimal, steps = repr(eps), round(eps * 255)
    return f"{steps}/255" if len(decimal) > 7 and steps / 255 == eps else decimal


def _norm(record: Record, norm: str | None) -> str:
    if norm is not None:
        if norm not in THREATS:
            raise RecordError(f"unknown norm {norm!r}: expected one of {', '.join(THREATS)}")
        return norm
    strong = {entry.norm for entry in record.attacks if entry.name in AUTOATTACK.values()}
    found = sorted(str(one) for one in strong or {entry.norm for entry in record.attacks} if one in THREATS)
    if len(found) != 1:
        have = f"attacks of {', '.join(found)}" if found else f"no attack of {', '.join(THREATS)}"
        raise RecordError(f"run {record.id} has {have}: a row is about one norm, choose it with --norm")
    return found[0]


def _published(ours: list[AttackEntry], norm: str, theirs: float | None) -> AttackEntry | None:
    """AutoAttack in its published version; among several budgets, the leaderboard's or else the largest."""
    found = [
        entry for entry in ours if entry.name == AUTOATTACK[norm] and entry.text.endswith("version=standard")
    ]
    return max(found, key=lambda entry: (entry.eps == theirs, entry.eps or 0.0), default=None)


def _passes(record: Record) -> int:
    """Forward passes per prediction; a randomised model is evaluated with several."""
    draws = [flag.evidence.get("draws") for flag in record.audit.flags if flag.code == "stochastic"]
    return next((draw for draw in draws if isinstance(draw, int)), 1)


def _about(found: _Found) -> list[str]:
    """Footnotes on the attacks, and on how many points they used."""
    notes = []
    if (clean := found.cells[CLEAN].n) != found.test_points:
        notes.append(f"Clean accuracy is on {clean} of {found.all_points} test points.")
    if found.published is None:
        cell = found.cells[found.lowest.text]
        notes.append(
            f"AutoAttack was not run: of the run's {found.norm} attacks {found.lowest.text} is the strongest "
            f"and leaves {_percent(cell)}% of {cell.n} of {found.all_points} test points."
        )
    elif not found.whole:
        cell = found.cells[found.published.text]
        notes.append(f"AutoAttack leaves {_percent(cell)}% on {cell.n} of {found.all_points} test points.")
    return notes


def _eps_note(found: _Found) -> list[str]:
    if found.theirs is None:
        return [f"RobustBench has no leaderboard for {found.dataset}, {THREATS[found.norm]}."]
    return [] if found.eps == found.theirs else [f"The leaderboard's eps is {eps_text(found.theirs)}."]


def _audit_note(record: Record) -> list[str]:
    codes = ", ".join(sorted({flag.code for flag in record.audit.flags}))
    return [f"Audit: {record.audit.verdict}{f' ({codes})' if codes else ''}."]


def _percent(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.2f}"
