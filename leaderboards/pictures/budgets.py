"""Robust accuracy against eps, for attacks measured at several budgets by the run or its audit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from leaderboards.errors import RecordError
from leaderboards.pictures.canvas import Picture, note, percent_axis, picture
from leaderboards.pictures.series import Floats, Series, Spread, common, headed, series_of
from leaderboards.pictures.style import LIGHT, WIDTH, Theme, drawing
from leaderboards.records.entries import CLEAN, Cell
from leaderboards.records.record import Record
from leaderboards.statistics.naming import attack_name, knobs_of

FOLLOWS_EPS = ("eps", "step_size")
"""Knobs that may differ between two budgets of one attack."""
Kind = tuple[str, str, tuple[tuple[str, str], ...], bool]
"""Norm, attack, its other knobs, and whether the audit made it."""


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """One attack of one series after the last stage: robust accuracy at each eps (eps 0: clean accuracy)."""

    series: Series
    norm: str
    name: str
    probe: bool
    points: int
    eps: Floats
    values: Spread

    @property
    def attack(self) -> str:
        """The attack, and whether the run or the audit made it."""
        return f"{self.name} (audit)" if self.probe else self.name


def curves(found: Sequence[Series]) -> list[BudgetCurve]:
    """Attacks at two or more budgets (the audit's at three), with equal points and equal other knobs."""
    return [one for series in found for one in _of(series)]


def eps_curves(records: Iterable[Record], *, theme: Theme = LIGHT, title: str | None = None) -> Picture:
    """Robust accuracy of the final model against eps: a panel per norm, a line per attack and defense.

    Lines show attacks that a run was evaluated with at several eps, and the audit's probes, which use a
    series of eps. They begin at eps 0, which is clean accuracy. Several seeds are shown as their mean, with
    the standard deviation as bars.

    Raises:
        RecordError: there are no records, too many, or no attack at two eps.
    """
    found = series_of(records)
    lines = curves(found)
    if not lines:
        raise RecordError(
            "no attack was measured at two eps or more: add some, like --eval pgd:eps=0.1,pgd:eps=0.2"
        )
    norms = sorted({one.norm for one in lines})
    attacks = list(dict.fromkeys(one.attack for one in sorted(lines, key=lambda one: one.probe)))
    heading = headed(found, "robust accuracy against the budget of the attack")
    with drawing(theme):
        size = (WIDTH if len(norms) > 1 else 0.72 * WIDTH, 3.7)
        legend = _legend(found, attacks, theme)
        figure = picture(theme, heading, *size, title=title, about=common(found), legend=legend)
        panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
        for axes, norm in zip(panels, norms, strict=True):
            _panel(axes, norm, [one for one in lines if one.norm == norm], found, attacks, theme)
            percent_axis(axes, "" if axes is not panels[0] else "robust accuracy, %")
        seeds = any(len(series.records) > 1 for series in found)
        note(figure, "eps 0 is clean accuracy", _probed(lines), "bars: standard deviation over seeds" * seeds)
        figure.description = "Robust accuracy in percent: " + "; ".join(map(_words, lines)) + "."
    return figure


def _legend(found: Sequence[Series], attacks: Sequence[str], theme: Theme) -> list[Line2D]:
    """Colours of defenses, then markers of attacks; for a single defense, each attack has its own colour."""
    colours = [theme.line(at)["color"] for at in range(len(found))]
    defenses = [
        Line2D([], [], label=series.label, color=colour, lw=3)
        for series, colour in zip(found, colours, strict=True)
    ]
    styles = [theme.line(at) for at in range(len(attacks))]
    if len(found) == 1:
        return [Line2D([], [], label=name, **style) for name, style in zip(attacks, styles, strict=True)]
    muted = {"color": theme.muted}
    marks = [Line2D([], [], label=name, **style | muted) for name, style in zip(attacks, styles, strict=True)]
    return [*defenses, *marks]


def _probed(lines: Sequence[BudgetCurve]) -> str:
    counts = sorted({one.points for one in lines if one.probe})
    return f"the audit's probes attack {' or '.join(map(str, counts))} points" if counts else ""


def _of(series: Series) -> Iterator[BudgetCurve]:
    tables = [_budgets(record) for record in series.records]
    for kind, cells in tables[0].items():
        norm, name, knobs, probe = kind
        shared = sorted(set(cells).intersection(*(table.get(kind, {}) for table in tables[1:])))
        # Only two budgets of the audit, the run's eps and the unbounded one, do not make a curve.
        if len(shared) < (3 if probe else 2):
            continue
        values = []
        for table in tables:
            mine = [table[kind][eps] for eps in shared]
            clean = mine[0].clean_correct / mine[0].n
            values.append(np.array([clean, *(cell.accuracy for cell in mine)]))
        siblings = [
            others
            for (_, other, others, made), its in tables[0].items()
            if (other, made) == (name, probe) and len(its) > 1
        ]
        telling = [
            f"{knob}={value}"
            for knob, value in knobs
            if any((knob, value) not in other for other in siblings)
        ]
        full, points, eps = " ".join([name, *telling]), cells[shared[0]].n, np.array([0.0, *shared])
        yield BudgetCurve(series, norm, full, probe, points, eps, Spread.of(values))


def _budgets(record: Record) -> dict[Kind, dict[float, Cell]]:
    """The cells after the last stage, by eps, for each attack of the run and of the audit."""
    found: dict[Kind, dict[float, Cell]] = {}
    own = [cell for cell in record.last_cells().values() if cell.attack != CLEAN]
    for probe, cells in ((False, own), (True, record.audit.probes)):
        for cell in cells:
            if cell.threat.eps is None or cell.threat.access == "transfer":
                continue
            others = tuple(sorted((k, v) for k, v in knobs_of(cell.attack).items() if k not in FOLLOWS_EPS))
            kind = (
                cell.threat.norm or "no norm",
                attack_name(cell.attack),
                (*others, ("points", str(cell.n))),
                probe,
            )
            found.setdefault(kind, {})[cell.threat.eps] = cell
    return found


def _panel(
    axes: Axes,
    norm: str,
    lines: Sequence[BudgetCurve],
    found: Sequence[Series],
    attacks: Sequence[str],
    theme: Theme,
) -> None:
    for one in lines:
        style = theme.line(attacks.index(one.attack))
        if len(found) > 1:
            style["color"] = theme.line(found.index(one.series))["color"]
        name, values = f"{one.series.label} {one.attack}", one.values
        axes.errorbar(one.eps, values.mean, values.std, label=name, clip_on=False, zorder=3, **style)
    axes.set_xlabel(f"eps ({norm})")
    axes.set_xlim(left=0)


def _words(one: BudgetCurve) -> str:
    pairs = [f"{one.values.said(at)} at eps {eps:g}" for at, eps in enumerate(one.eps)]
    return f"{one.series.label}, {one.attack}, {one.norm}: {', '.join(pairs)}"
