"""Records as tables and lines of text: the headline, the stage × attack matrix, metrics, classes, audit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from leaderboards import CLEAN, Audit, Record
from leaderboards.boards.row import WORST_CASE
from leaderboards.errors import RecordError
from leaderboards.printable import in_line
from leaderboards.records.layout import EVALUATED, OUTCOMES
from leaderboards.records.store import read_outcomes
from leaderboards.statistics.brackets import Bracket, spoken_ball
from leaderboards.statistics.naming import attack_name, model_name, short_names
from leaderboards.statistics.reported import number_text
from leaderboards.statistics.threats import worst_cases


def _table(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table; the columns in ``left`` are aligned left, as texts are, and the others right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def threat_table(record: Record, directory: Path) -> Table | None:
    """The worst case by norm, family and access after the last stage; None without stored outcomes."""
    try:
        _, robust = read_outcomes(directory / OUTCOMES)
    except RecordError:
        return None
    last = record.stages[-1].index if record.stages else 0
    counts = {cell.attack: cell.n for cell in record.cells if cell.stage == last}
    if robust.shape[1] != len(record.attacks) or any(entry.text not in counts for entry in record.attacks):
        return None
    cases = worst_cases(record.attacks, robust[-1], [counts[entry.text] for entry in record.attacks])
    if not cases:
        return None
    after = " after the last stage" if record.stages and record.stages[-1].index else ""
    columns = ("by", "group", "attacks", "points", "survive all")
    table = _table(f"Worst case{after}, in %", columns, ("by", "group"))
    for case in cases:
        share = f"{100 * case.accuracy:.1f}"
        table.add_row(case.grouping, case.group, str(len(case.attacks)), str(case.n), share)
    return table


def bracket_table(brackets: Sequence[Bracket]) -> Table:
    """Bounds of the robust accuracy within each budget that certificates speak about."""
    columns = ("within", "points", "certified", "attacked", "robust accuracy")
    table = _table("Certified points, and points that survive every attack", columns, ("within",))
    for one in brackets:
        shares = f"{100 * one.low / one.points:.1f} to {100 * one.high / one.points:.1f} %"
        counts = (one.points, one.low, one.high)
        table.add_row(spoken_ball(one.ball), *map(str, counts), shares)
    return table


def probe_table(audit: Audit) -> Table:
    """What each probe attack left."""
    crafted = f"; transferred ones crafted on {audit.surrogate}" if audit.surrogate else ""
    several = any(cell.network is not None for cell in audit.probes)
    columns = ["attack", "norm", "eps", "loss", "access", "points", "right clean", "robust"]
    columns += ["network"] if several else []
    left = ("attack", "norm", "loss", "access", "network")
    table = _table(f"Probes of the final model{crafted}", columns, left)
    for cell in audit.probes:
        name, _, knobs = cell.attack.partition(":")
        loss = next((knob[5:] for knob in knobs.split(",") if knob.startswith("loss=")), "-")
        eps = "-" if cell.threat.eps is None else f"{cell.threat.eps:g}"
        counts = (str(cell.n), str(cell.clean_correct), str(cell.robust))
        network = [(cell.network or "clean").partition(":")[0]] if several else []
        threat = (cell.threat.norm or "-", eps, loss, cell.threat.access)
        table.add_row(*map(in_line, (name, *threat, *counts, *network)))
    return table


def flag_lines(audit: Audit) -> Iterator[str]:
    """The verdict, then each flag and, indented, its evidence."""
    yield f"audit: {audit.verdict} ({len(audit.checks)} checks)"
    for flag in audit.flags:
        yield f"  {flag.code}: {flag.message}"
        for key, value in flag.evidence.items():
            yield f"    {key.replace('_', ' ')}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


HEADLINE = {
    WORST_CASE: "worst case",
    "average_robust_accuracy": "average robust accuracy",
    "clean_accuracy": "clean accuracy",
}
"""The metrics of the headline, in order, and what it calls them."""
ROLES = {"seen": "seen", "unseen": "unseen", "eval": "eval only"}


def headline(record: Record) -> str:
    """The result in one line: what was measured, the worst case, the averages and the audit's verdict."""
    config, trained = record.config, record.regime != EVALUATED
    what = f"{config['defense']} on {config['dataset']}"
    if trained:
        joined = " → " if record.regime == "continual" else " + "
        regime = "" if record.regime == "continual" else f" ({record.regime})"
        names = short_names([entry.text for entry in record.attacks])
        seen = [name for name, entry in zip(names, record.attacks, strict=True) if entry.role == "seen"]
        what += f"{regime}, {joined.join(seen)}"
    shares = [
        f"{words} {_with_unit(name, value)}"
        for name, words in HEADLINE.items()
        if (value := record.metrics.get(name)) is not None
    ]
    return in_line(f"{what}: {', '.join([*shares, f'audit {record.audit.verdict}'])}")


def labels(texts: Sequence[str]) -> list[str]:
    """Short column names: the attack's name, with the knobs that tell it from another of that name."""
    return [in_line(name) for name in short_names(texts)]


def _labels_of(record: Record) -> dict[str, str]:
    """The short name of each attack of a record, by its text."""
    texts = [entry.text for entry in record.attacks]
    return dict(zip(texts, labels(texts), strict=True))


def matrix_table(record: Record) -> Table:
    """R in percent: a row a stage, clean accuracy and a column an attack."""
    config = record.config
    trained = record.regime != EVALUATED
    named = [config["defense"], record.regime, config["dataset"], str(model_name(config))]
    parts = [*map(in_line, named), f"seed {config['seed']}"]
    title = " · ".join(parts if trained else [parts[0], parts[2], parts[4]])
    after = " after each stage" if trained else ""
    names = _labels_of(record)
    columns = [f"{names[entry.text]}\n{ROLES[entry.role]}" for entry in record.attacks]
    first = "after stage" if trained else "model"
    table = _table(f"Robust accuracy in %{after}: {title}", (first, "clean", *columns), (first,))
    matrix, clean = record.matrix(), record.clean_column()
    for stage in record.stages:
        met = in_line("+".join(attack_name(text) for text in stage.attacks)) or "plain"
        cells = [f"{100 * value:.1f}" for value in (clean[stage.index], *matrix[stage.index])]
        table.add_row(f"{stage.index} {met}" if trained else parts[0], *cells)
    return table


def metrics_text(record: Record) -> str:
    """The metrics that apply, one a line, and what the run cost."""
    lines = []
    points, most = record.worst_case_points(), max((cell.n for cell in record.cells), default=0)
    for name, value in record.metrics.items():
        if value is None and record.regime == EVALUATED:
            continue
        shown = "-" if value is None else _with_unit(name, value)
        if name == WORST_CASE and value is not None and points is not None and points < most:
            # Other metrics are of more points, so that it may be above one of them.
            shown = f"{shown:>8} on {points:,} points"
        lines.append(f"{in_line(name).replace('_', ' '):<24} {shown:>8}")
    cost = record.cost
    size = f"{cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds an image"
    if record.regime == EVALUATED:
        return "\n".join([*lines, f"cost: evaluated {cost.evaluation_seconds:.1f} s, {size}"])
    lines.append(
        f"cost: trained {cost.training_seconds:.1f} s, evaluated {cost.evaluation_seconds:.1f} s, "
        f"training took {cost.training_forwards:,} forward and {cost.training_backwards:,} backward passes, "
        + size
    )
    return "\n".join(lines)


def report_text(record: Record) -> str:
    """The numbers that the defense reports about its training, one a line; empty without a report."""
    numbers = record.report.numbers if record.report else {}
    return "\n".join(
        f"{in_line(name).replace('_', ' '):<24} {number_text(value):>8}" for name, value in numbers.items()
    )


def report_tables(record: Record) -> Iterator[Table]:
    """The tables that the defense reports about its training."""
    for name, rows in (record.report.tables if record.report else {}).items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        heads = [in_line(column).replace("_", " ") for column in columns]
        table = _table(in_line(name).replace("_", " ").capitalize(), ("", *heads), ("",))
        for label, row in rows.items():
            cells = [number_text(row[column]) if column in row else "-" for column in columns]
            table.add_row(in_line(label), *cells)
        yield table


def abstained_text(record: Record) -> str:
    """The share of points on which the model abstains, clean and by attack; empty where none was counted."""
    cells = [cell for cell in record.cells if cell.abstained is not None]
    shown = {CLEAN: CLEAN, **_labels_of(record)}
    return ", ".join(f"{shown[cell.attack]} {100 * (cell.abstained or 0) / cell.n:.1f} %" for cell in cells)


def _with_unit(name: str, value: float) -> str:
    if name.endswith("psnr"):
        return f"{value:.1f} dB"
    if name.endswith("overhead"):
        return f"{value:.2f} ×"
    return f"{value:.3f}" if name.endswith(("ssim", "nmi")) else f"{100 * value:.1f} %"


def transfer_table(record: Record) -> Table | None:
    """The run's attacks on the final model beside the same attacks from the surrogate, if those were made."""
    found = {cell.attack: cell for cell in record.audit.probes if cell.threat.access == "transfer"}
    last = record.stages[-1].index if record.stages else 0
    own = {cell.attack: cell for cell in record.cells if cell.stage == last}
    entries = [entry for entry in record.attacks if entry.text in found and entry.text in own]
    if not entries:
        return None
    other = in_line(record.audit.surrogate or "another model")
    title = "Crafted on the model itself, and elsewhere, in %"
    table = _table(title, ("attack", "the model", other), ("attack",))
    for entry, label in zip(entries, labels([entry.text for entry in entries]), strict=True):
        shares = [f"{100 * cells[entry.text].accuracy:.1f}" for cells in (own, found)]
        table.add_row(label, *shares)
    return table


def class_table(record: Record) -> Table:
    """Robust accuracy by class after the last stage."""
    after = "" if record.regime == EVALUATED else " after the last stage"
    table = _table(f"By class{after}, in %", ("class", "points", "clean"), ("class",))
    # An attack measured on fewer points has no share of a class's points; its counts stay in the record.
    full = {cell.attack for cell in record.cells if cell.n == max(cell.n for cell in record.cells)}
    texts = [entry.text for entry in record.attacks if entry.text in full]
    shown = _labels_of(record)
    for text in texts:
        table.add_column(shown[text], justify="right")
    complete = len(texts) == len(record.attacks)
    if complete:
        table.add_column("worst case", justify="right")
    for row in record.per_class:
        counts = [row.clean_correct, *(row.robust[text] for text in texts)]
        counts += [row.worst_case] if complete else []
        table.add_row(
            in_line(row.label),
            str(row.n),
            *(f"{100 * count / row.n:.1f}" if row.n else "-" for count in counts),
        )
    return table


def audit_text(record: Record) -> str:
    """The verdict and its flags."""
    flags = [in_line(f"  {flag.code}: {flag.message}") for flag in record.audit.flags]
    checked = f"{len(record.audit.checks)} checks"
    return "\n".join([f"audit: {record.audit.verdict} ({checked})", *flags])
