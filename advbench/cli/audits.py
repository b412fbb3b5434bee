"""An audit on the terminal: its probes, and its flags with their evidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from leaderboards import Audit
from leaderboards.printable import in_line


def probe_table(audit: Audit) -> Table:
    """What each probe attack left."""
    crafted = f"; transferred ones crafted on {audit.surrogate}" if audit.surrogate else ""
    table = Table(title=f"Probes of the final model{crafted}", title_justify="left")
    for column in ("attack", "norm", "eps", "loss", "access", "points", "right clean", "robust"):
        table.add_column(
            column, justify="left" if column in ("attack", "norm", "loss", "access") else "right"
        )
    several = any(cell.network is not None for cell in audit.probes)
    if several:
        table.add_column("network")
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
