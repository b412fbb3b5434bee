"""RobustBench's rows as tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from leaderboards.peers.robustbench import ABSENT, Number, ZooEntry

if TYPE_CHECKING:
    from rich.table import Table


def to_reference_tables(entries: Iterable[ZooEntry]) -> "list[Table]":
    """One table of unranked reference rows for each data set and threat, sorted by robust accuracy."""
    groups: dict[tuple[str, str], list[ZooEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.dataset, entry.threat), []).append(entry)
    return [_table(key, group) for key, group in sorted(groups.items())]


def _table(key: tuple[str, str], entries: Sequence[ZooEntry]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    dataset, threat = key
    table = Table(
        title=Text(f"RobustBench · {dataset} · {threat} · reference rows, not ranked with runs"),
        caption=Text("as published, not measured here; * = extra data, ! = flagged as unreliable there"),
    )
    for heading in ("model", "architecture", "eps", "clean", "robust", "venue"):
        table.add_column(heading, justify="right" if heading in ("eps", "clean", "robust") else "left")
    for entry in sorted(entries, key=lambda one: (one.robust is None, -(one.robust or 0.0), one.id)):
        marks = ("*" if entry.get("additional_data") is True else "") + ("!" if entry.flagged else "")
        eps = entry.get("eps")
        cells = [
            f"{entry.id} {marks}".rstrip(),
            _plain(entry.get("architecture")),
            "–" if eps in ABSENT else _plain(eps),
            _percent(entry.clean),
            _percent(entry.robust),
            _plain(entry.get("venue")).replace("<br>", " "),
        ]
        table.add_row(*map(Text, cells))
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _plain(value: Any) -> str:
    return value.text if isinstance(value, Number) else "–" if value is None else str(value)
