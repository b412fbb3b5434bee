"""A run of ours as a row of RobustBench's."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from leaderboards.entries import CLEAN, AttackEntry, Cell
from leaderboards.errors import RecordError
from leaderboards.record import Record
from leaderboards.robustbench import THREATS, Entry, Number

THEIR_EPS: Final[Mapping[tuple[str, str], float]] = MappingProxyType(
    {
        ("cifar10", "Linf"): 8 / 255,
        ("cifar10", "L2"): 0.5,
        ("cifar100", "Linf"): 8 / 255,
        ("imagenet", "Linf"): 4 / 255,
    }
)
"""The budgets of its leaderboards."""
AUTOATTACK: Final = {"linf": "autoattack", "l2": "autoattack-l2", "l1": "autoattack-l1"}
"""The attacks that spend exactly the published budgets, in the version ``standard``."""


def entry_of(
    record: Record,
    *,
    norm: str | None = None,
    name: str | None = None,
    link: str = "",
    authors: str = "",
    venue: str = "",
    additional_data: bool = False,
) -> Entry:
    """A run after its last stage as RobustBench's row for one norm.

    ``autoattack_acc`` stands there only where AutoAttack was run in its published version ``standard`` on all
    test points, which is the only thing that a reader may take it for. What else there is to know stands in
    ``footnote``: the run, other attacks, fewer points, another eps than the leaderboard's, the audit.

    Args:
        record: the run.
        norm: ``linf``, ``l2`` or ``l1``; that of AutoAttack, else of the attacks, if there is but one.
        name: title of the paper; the defense's name by default.
        link: of the paper.
        authors: as RobustBench writes them, parted by commas.
        venue: as RobustBench writes it: ``ICLR 2020``.
        additional_data: whether training used more than the data set.

    Raises:
        RecordError: no attack of this norm, several norms and none chosen, or no clean accuracy.
    """
    last = max((cell.stage for cell in record.cells), default=0)
    cells = {cell.attack: cell for cell in record.cells if cell.stage == last}
    if CLEAN not in cells:
        raise RecordError(f"run {record.id} has no clean accuracy after its last stage")
    norm = _norm(record, norm)
    ours = [entry for entry in record.attacks if entry.norm == norm and entry.text in cells]
    if not ours:
        have = ", ".join(sorted({entry.norm for entry in record.attacks if entry.norm})) or "none"
        raise RecordError(f"run {record.id} has no attack of norm {norm} (its norms: {have})")
    published = _published(ours, norm)
    total = _test_points(record)
    whole = published is not None and cells[published.text].n == total
    lowest = min(ours, key=lambda entry: cells[entry.text].accuracy)
    eps = (published or lowest).eps
    dataset, threat = str(record.environment["data"]["name"]), THREATS[norm]
    pairs: list[tuple[str, Any]] = [
        ("link", link),
        ("name", name or str(record.config["defense"])),
        ("authors", authors),
        ("additional_data", additional_data),
        ("number_forward_passes", Number(str(_passes(record)))),
        ("dataset", dataset),
        ("venue", venue),
        ("architecture", str(record.config["model"])),
        ("eps", None if eps is None else eps_text(eps)),
        ("clean_acc", _percent(cells[CLEAN])),
        ("reported", None),
    ]
    if published is not None and whole:
        pairs.append(("autoattack_acc", _percent(cells[published.text])))
    notes = [
        f"Measured by advbench, run {record.id}.",
        *_about(cells, published, lowest, norm, total, whole=whole),
        *_eps_note(eps, dataset, threat),
        *_audit_note(record),
    ]
    pairs += [("footnote", " ".join(notes)), ("unreliable", record.audit.verdict != "ok")]
    return Entry(record.id, dataset, threat, tuple(pairs))


def eps_text(eps: float) -> str:
    """A budget as RobustBench writes it: the decimal where it is short, else ``8/255`` where it is that.

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


def _published(ours: list[AttackEntry], norm: str) -> AttackEntry | None:
    """AutoAttack in its published version; of two budgets the larger."""
    found = [
        entry for entry in ours if entry.name == AUTOATTACK[norm] and entry.text.endswith("version=standard")
    ]
    return max(found, key=lambda entry: entry.eps or 0.0, default=None)


def _test_points(record: Record) -> int | None:
    """The size of the test set; None where a record does not say."""
    size = record.environment["data"].get("test")
    return size if isinstance(size, int) else None


def _passes(record: Record) -> int:
    """Forward passes of one prediction: a model that answers at random was judged by several."""
    draws = [flag.evidence.get("draws") for flag in record.audit.flags if flag.code == "stochastic"]
    return next((draw for draw in draws if isinstance(draw, int)), 1)


def _about(
    cells: Mapping[str, Cell],
    published: AttackEntry | None,
    lowest: AttackEntry,
    norm: str,
    total: int | None,
    *,
    whole: bool,
) -> list[str]:
    """What was attacked with, and on how many points."""
    notes = []
    clean, every = cells[CLEAN], "an unknown number" if total is None else str(total)
    if clean.n != total:
        notes.append(f"Clean accuracy is on {clean.n} of {every} test points.")
    if published is not None and not whole:
        cell = cells[published.text]
        notes.append(f"AutoAttack leaves {_percent(cell)}% on {cell.n} of {every} test points.")
    elif published is None:
        cell = cells[lowest.text]
        notes.append(
            f"AutoAttack was not run: of the run's {norm} attacks {lowest.text} is the strongest, and leaves "
            f"{_percent(cell)}% of {cell.n} of {every} test points."
        )
    return notes


def _eps_note(eps: float | None, dataset: str, threat: str) -> list[str]:
    theirs = THEIR_EPS.get((dataset, threat))
    if theirs is None:
        return [f"RobustBench has no leaderboard for {dataset}, {threat}."]
    if eps != theirs:
        return [f"The leaderboard's eps is {eps_text(theirs)}."]
    return []


def _audit_note(record: Record) -> list[str]:
    codes = ", ".join(sorted({flag.code for flag in record.audit.flags}))
    return [f"Audit: {record.audit.verdict}{f' ({codes})' if codes else ''}."]


def _percent(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.2f}"
