"""The page of one run: its record as tables, the matrix as a heat map."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.audits.proofs import NO_CERTIFICATES, Proofs
from leaderboards.boards.row import WORST_CASE
from leaderboards.records.entries import CLEAN, AttackEntry, Cell, Flag
from leaderboards.records.layout import EVALUATED
from leaderboards.records.record import Record
from leaderboards.site.command import Command, from_record, spelled_out
from leaderboards.site.fields import scale_of, shown
from leaderboards.statistics.brackets import Bracket
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.naming import model_name, short_names
from leaderboards.statistics.reported import number_text
from leaderboards.statistics.threats import WorstCase, worst_cases

LEVELS: Final = 20
"""The number of colours of the heat map, in addition to the first: one for each 5 %."""
ROLES: Final = {"seen": "seen", "unseen": "unseen", "eval": "eval only"}


@dataclass(frozen=True)
class Heat:
    """A share in a heat map: percent, colour 0 to 20, a remark, and whether it is outlined."""

    text: str
    level: int | None = None
    note: str = ""
    own: bool = False


@dataclass(frozen=True)
class HeatTable:
    """A table of shares: columns as (name, remark), rows as (name, cells)."""

    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Heat]]]
    left_out: int = 0
    caption: str = ""


@dataclass(frozen=True)
class RunPage:
    """The data for the template of a run page."""

    record: Record
    title: str
    trained: bool
    trust: str
    matrix: HeatTable
    metrics: list[tuple[str, str]]
    classes: HeatTable
    worst: list[WorstCase]
    flags: list[tuple[Flag, list[tuple[str, str]]]]
    probes: list[tuple[Cell, Heat]]
    config: list[tuple[str, str]]
    plans: list[tuple[str, str, str]]
    environment: list[tuple[str, str]]
    cost: list[tuple[str, str]]
    commands: list[tuple[str, Command]]
    reported: list[tuple[str, str]]
    tables: list[HeatTable]
    brackets: list[Bracket]


def make_page(
    record: Record, robust: NDArray[np.bool_] | None, trust: str, proofs: Proofs = NO_CERTIFICATES
) -> RunPage:
    """The page of a record.

    Args:
        record: the record.
        robust: its stored outcomes (T+1, A, n), None if not available.
        trust: how far its numbers were verified.
        proofs: what its certificates say.
    """
    record = proofs.judged(record)
    config = record.config
    trained = record.regime != EVALUATED
    model = as_text(model_name(config))
    parts = [config["defense"], record.regime, config["dataset"], model, f"seed {config['seed']}"]
    return RunPage(
        record=record,
        title=" · ".join(parts if trained else [parts[0], parts[2], parts[4]]),
        trained=trained,
        trust=trust,
        matrix=_matrix(record, trained),
        metrics=_metrics(record),
        classes=_classes(record),
        worst=_worst(record, robust),
        flags=[(flag, _pairs(flag.evidence)) for flag in record.audit.flags],
        probes=[(cell, _heat(cell)) for cell in record.audit.probes],
        config=[(key, as_text(value)) for key, value in config.items() if key not in ("plan", "pretrain")],
        plans=_plans(config),
        environment=_environment(record.environment),
        cost=_cost(record, trained),
        commands=[("From the record", from_record(config)), ("Spelled out", spelled_out(config))],
        reported=_reported(record),
        tables=_tables(record),
        brackets=proofs.brackets,
    )


def as_text(value: Any) -> str:
    """A JSON value as readable text: texts unquoted, lists of texts separated by commas, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if (
        isinstance(value, dict)
        and value
        and not any(isinstance(inner, dict | list) for inner in value.values())
    ):
        return ", ".join(f"{key}={as_text(inner)}" for key, inner in value.items())
    if value in (None, [], {}):
        return "none"
    return json.dumps(value, ensure_ascii=False)


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), as_text(value)) for key, value in values.items()]


def _heat(cell: Cell, *, own: bool = False) -> Heat:
    notes = [f"{cell.invalid} invalid"] if cell.invalid else []
    notes += ["box only"] if cell.bound == "box-only" else []
    return _share(cell.accuracy, ", ".join(notes), own)


def _share(share: float, note: str = "", own: bool = False) -> Heat:
    return Heat(f"{100 * share:.1f}", round(share * LEVELS), note, own)


def budget_of(entry: AttackEntry) -> str:
    """The threat model in two words: ``linf 0.2``, ``eps 0.5`` or nothing."""
    if entry.eps is None:
        return entry.norm or ""
    return f"{entry.norm or 'eps'} {entry.eps:g}"


def _matrix(record: Record, trained: bool) -> HeatTable:
    """R: a row per stage, clean accuracy and a column per attack; a stage's own attacks are outlined."""
    cells = {(cell.stage, cell.attack): cell for cell in record.cells}
    texts = [entry.text for entry in record.attacks]
    columns = [("clean", "")]
    for entry, label in zip(record.attacks, short_names(texts), strict=True):
        columns.append((label, " · ".join(filter(None, [ROLES[entry.role], budget_of(entry)]))))
    rows = []
    for stage in record.stages:
        names = " + ".join(short_names(stage.attacks)) or "plain"
        line = []
        for text in (CLEAN, *texts):
            cell = cells.get((stage.index, text))
            line.append(Heat("–") if cell is None else _heat(cell, own=text in stage.attacks))
        rows.append((f"{stage.index} {names}" if trained else str(record.config["defense"]), line))
    return HeatTable(columns, rows)


def _metrics(record: Record) -> list[tuple[str, str]]:
    """The names of the metrics that are defined, and their values with units."""
    order = [*METRICS, *(name for name in record.metrics if name not in METRICS)]
    found = []
    for name in order:
        value = record.metrics.get(name)
        if value is not None:
            text = f"{shown(value, name)} {scale_of(name)[2]}".strip()
            if name == WORST_CASE and (points := record.worst_case_points()):
                text += f" on {points:,} points"
            found.append((name.replace("_", " "), text))
    return found


def _reported(record: Record) -> list[tuple[str, str]]:
    """The numbers that the defense reported about its training."""
    numbers = record.report.numbers if record.report else {}
    return [(name.replace("_", " "), number_text(value)) for name, value in numbers.items()]


def _tables(record: Record) -> list[HeatTable]:
    """The tables that the defense reported, uncoloured."""
    found = []
    for name, rows in (record.report.tables if record.report else {}).items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [
            (label, [Heat(number_text(row[column]) if column in row else "–") for column in columns])
            for label, row in rows.items()
        ]
        heads = [(column.replace("_", " "), "") for column in columns]
        found.append(HeatTable(heads, lines, caption=name.replace("_", " ")))
    return found


def _classes(record: Record) -> HeatTable:
    """Accuracies by class after the last stage, without attacks that were measured on fewer points."""
    most = max((cell.n for cell in record.cells), default=0)
    full = {cell.attack for cell in record.cells if cell.n == most}
    texts = [entry.text for entry in record.attacks]
    shown_texts = [text for text in texts if text in full]
    names = dict(zip(texts, short_names(texts), strict=True))
    whole = len(shown_texts) == len(texts)
    columns = ["points", "clean", *(names[text] for text in shown_texts), *(["worst case"] if whole else [])]
    rows = []
    for entry in record.per_class:
        counts = [entry.clean_correct, *(entry.robust.get(text, 0) for text in shown_texts)]
        counts += [entry.worst_case] if whole else []
        shares = [Heat("–") if not entry.n else _share(count / entry.n) for count in counts]
        rows.append((entry.label, [Heat(str(entry.n)), *shares]))
    return HeatTable([(name, "") for name in columns], rows, len(texts) - len(shown_texts))


def _worst(record: Record, robust: NDArray[np.bool_] | None) -> list[WorstCase]:
    """The worst cases by norm, family and access, if the outcomes give the counts of the record's cells."""
    last = record.stages[-1].index if record.stages else 0
    cells = {cell.attack: cell for cell in record.cells if cell.stage == last}
    own = [cells.get(entry.text) for entry in record.attacks]
    if robust is None or not own or robust.shape[:2] != (len(record.stages), len(own)):
        return []
    counts = [(cell.n, cell.robust) for cell in own if cell is not None]
    if len(counts) < len(own) or max(n for n, _ in counts) > robust.shape[2]:
        return []
    if [int(kept.sum()) for kept in robust[-1]] != [count for _, count in counts]:
        return []
    return worst_cases(record.attacks, robust[-1], [n for n, _ in counts])


def _plans(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each setting with its value in a stage and in pretraining."""
    plan, before = config["plan"], config["pretrain"]
    if not isinstance(before, dict):
        return [(key, as_text(value), "") for key, value in plan.items()] + [
            ("pretrain", "", as_text(before))
        ]
    keys = list(dict.fromkeys([*plan, *before]))
    return [
        (key, as_text(plan[key]) if key in plan else "–", as_text(before[key]) if key in before else "–")
        for key in keys
    ]


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, versions = environment["data"], environment["versions"]
    first = ("device", "threads", "commit", "python", "platform")
    found = [("Python" if key == "python" else key, environment[key]) for key in first]
    found += [(f"data: {key}", value) for key, value in data.items()]
    found += [(key, value) for key, value in environment.items() if key not in (*first, "data", "versions")]
    if isinstance(versions, dict):
        found += [(f"{package} version", number) for package, number in versions.items()]
    else:
        found.append(("versions", versions))
    return [(key, as_text(value)) for key, value in found]


def _cost(record: Record, trained: bool) -> list[tuple[str, str]]:
    cost = record.cost
    training = [
        ("training", f"{cost.training_seconds:,.1f} s"),
        ("forward passes of single images in training", f"{cost.training_forwards:,}"),
        ("backward passes of single images in training", f"{cost.training_backwards:,}"),
    ]
    return [
        *(training if trained else []),
        ("evaluation", f"{cost.evaluation_seconds:,.1f} s"),
        ("parameters", f"{cost.parameters:,}"),
        ("multiply-adds per image", f"{cost.multiply_adds:,}"),
    ]
