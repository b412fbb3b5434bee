"""Leaderboard tables: rows as JSON, CSV, a data frame or text for a terminal."""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from leaderboards.metrics import METRICS
from leaderboards.ranking import COSTS, Row, canonical, rows
from leaderboards.statistics import Summary
from leaderboards.store import find_records

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["Row", "flat", "load", "rows", "to_csv", "to_json", "to_table"]

_PLAIN: Final = (
    "rank",
    "defense",
    "params",
    "regime",
    "target_aware",
    "verdict",
    "flags",
    "dataset",
    "fingerprint",
    "model",
    "sequence",
    "training",
    "plan",
    "pretrain",
    "protocol",
    "seeds",
    "runs",
)
_HEADINGS: Final = {
    "average_robust_accuracy": "robust",
    "clean_accuracy": "clean",
    "worst_case_accuracy": "worst case",
    "backward_transfer": "backward",
    "forgetting": "forgetting",
    "forward_transfer": "forward",
    "unseen_accuracy": "unseen",
    "unseen_gap": "gap",
    "competitiveness_average": "CR average",
    "competitiveness_worst": "CR worst",
    "competitiveness_measured": "CR terms",
}


def flat(row: Row) -> dict[str, Any]:
    """One row as scalars under stable names; lists and mappings as JSON text.

    Every metric and cost gives two columns, ``NAME_mean`` and ``NAME_std``. Metrics beyond the standard
    ones come last.
    """
    values: dict[str, Any] = {}
    for name in _PLAIN:
        value = getattr(row, name)
        values[name] = canonical(value) if isinstance(value, list | tuple | dict) else value
    extra = [name for name in row.metrics if name not in METRICS]
    summaries = row.metrics | row.cost
    for name in (*METRICS, *COSTS, *extra):
        summary = summaries[name]
        values[f"{name}_mean"] = None if summary is None else summary.mean
        values[f"{name}_std"] = None if summary is None else summary.std
    return values


def to_json(rows: Iterable[Row]) -> str:
    """Rows as a JSON list of objects, at full precision; metrics are ``{mean, std, n}`` or null."""
    return json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False)


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV, at full precision, with the columns of `flat`; an undefined value is empty."""
    table = [flat(row) for row in rows]
    standard = [*_PLAIN, *(f"{name}_{part}" for name in (*METRICS, *COSTS) for part in ("mean", "std"))]
    extra = sorted({name for line in table for name in line} - set(standard))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*standard, *extra], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def load(runs_dir: str | Path) -> "pd.DataFrame":
    """The ranked rows of all runs in a directory as a data frame, with the columns of `flat`.

    A record that cannot be read is a warning.

    Raises:
        RecordError: there is no such directory.
    """
    import pandas as pd

    records, problems = find_records(Path(runs_dir))
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return pd.DataFrame([flat(row) for row in rows(records)])


def to_table(rows: Iterable[Row]) -> "list[Table]":
    """One table for each comparison group, in percent, mean ± standard deviation over seeds.

    The title names data set, sequence, model and protocol; the caption spells the sequence out.
    Target-aware rows stand below a line, with ranks of their own. Metrics that no row has are left out.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.comparison, []).append(row)
    return [_table(group) for group in groups.values()]


def _table(rows: Sequence[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    first = rows[0]
    names = [name for name in _HEADINGS if any(row.metrics.get(name) for row in rows)]
    sequence = " → ".join(map(_brief, first.sequence))
    about = [f"{first.dataset} ({_short(first.fingerprint)})", sequence, first.model]
    title = Text(" · ".join([*filter(None, about), f"protocol {_short(first.protocol)}"]))
    table = Table(title=title, caption=Text(" → ".join(first.sequence)))
    for heading in ("rank", "defense", "regime", *(_HEADINGS[name] for name in names), "seeds", "audit"):
        table.add_column(heading, justify="left" if heading in ("defense", "regime", "audit") else "right")
    labels = _labels(rows)
    marked = sorted(zip(rows, labels, strict=True), key=lambda pair: pair[0].target_aware)
    for position, (row, label) in enumerate(marked):
        if row.target_aware and position and not marked[position - 1][0].target_aware:
            table.add_section()
        cells = [
            "–" if row.rank is None else str(row.rank),
            f"{label} (target-aware)" if row.target_aware else label,
            row.regime,
            *(_percent(row.metrics.get(name)) for name in names),
            str(len(row.seeds)),
            f"{row.verdict}: {', '.join(row.flags)}" if row.flags else row.verdict,
        ]
        # Text, not str: parameters may hold brackets, which rich would read as markup.
        table.add_row(*map(Text, cells))
    return table


def _percent(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _short(text: str) -> str:
    """The start of a hash, without the name of its algorithm."""
    return text.rpartition(":")[2][:8]


def _brief(attack: str) -> str:
    """Name and budget of a canonical attack text: ``pgd:eps=0.2,steps=50`` gives ``pgd eps=0.2``."""
    head, _, value = attack.partition("=")  # a name may hold a colon of its own: ta:PGD:eps=0.2
    name, _, knob = head.rpartition(":")
    name, knobs = (name, f"{knob}={value}") if name else (attack, "")
    return " ".join([name, *(knob for knob in knobs.split(",") if knob.startswith("eps="))])


def _labels(rows: Sequence[Row]) -> list[str]:
    """Each row's defense, with the settings in which rows of the same defense and regime differ."""

    def settings(row: Row) -> dict[str, str]:
        plan = {f"plan.{name}": value for name, value in row.plan.items()}
        other = {"training": row.training, "pretrain": row.pretrain}
        return {name: canonical(value) for name, value in (row.params | plan | other).items()}

    labels: list[str] = []
    for row in rows:
        own = settings(row)
        others = [
            settings(other) for other in rows if (other.defense, other.regime) == (row.defense, row.regime)
        ]
        differing = [
            f"{name}={value}"
            for name, value in own.items()
            if any(other.get(name) != value for other in others)
        ]
        labels.append(f"{row.defense}({', '.join(differing)})" if differing else row.defense)
    return labels
