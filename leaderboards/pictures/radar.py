"""A radar chart of attack families: the final model's accuracy against each."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.projections.polar import PolarAxes

from leaderboards.errors import RecordError
from leaderboards.pictures.canvas import Picture, note, picture
from leaderboards.pictures.series import Floats, Series, Spread, common, headed, series_of
from leaderboards.pictures.style import LIGHT, SMALL, WIDTH, Theme, drawing
from leaderboards.records.record import Record

LEAST = 2
"""The least number of families; with clean accuracy they make a polygon."""


def families(series: Series) -> tuple[list[str], Spread]:
    """``clean`` and the families of a series' attacks, and the lowest accuracy of each after the last stage.

    The lowest accuracy over the attacks of a family is taken for each seed. It is an upper bound of the
    accuracy under all of them together.
    """
    names = sorted({entry.family for entry in series.first.attacks})
    return ["clean", *names], Spread.of([_lowest(record, names) for record in series.records])


def radar(records: Iterable[Record], *, theme: Theme = LIGHT, title: str | None = None) -> Picture:
    """Accuracy after the last stage by attack family, clean accuracy at the top; a polygon per defense.

    Several seeds are shown as their mean, with the standard deviation as bars.

    Raises:
        RecordError: there are no records, too many, fewer than two families, or different attacks or data.
    """
    found = series_of(records)
    names, _ = families(found[0])
    if len(names) <= LEAST:
        raise RecordError(f"a radar needs attacks of at least {LEAST} families: these are all {names[-1]}")
    _refuse_unlike(found)
    heading = headed(found, "accuracy in % by attack family")
    handles = [Line2D([], [], label=series.label, **theme.line(place)) for place, series in enumerate(found)]
    with drawing(theme):
        legend = handles if len(found) > 1 else []
        figure = picture(theme, heading, 0.85 * WIDTH, 4.9, title=title, about=common(found), legend=legend)
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
        words = []
        for place, series in enumerate(found):
            values = families(series)[1]
            style = theme.line(place)
            around = np.append(angles, angles[0])
            mean = np.append(values.mean, values.mean[0])
            spread = None if values.std is None else np.append(values.std, values.std[0])
            axes.errorbar(around, mean, spread, label=series.label, clip_on=False, zorder=3, **style)
            if len(found) == 1:
                axes.fill(around, mean, color=style["color"], alpha=0.12, lw=0)
            words.append(f"{series.label}: {_words(names, values)}")
        axes.set_ylim(0, 100)
        _spokes(axes, angles, names, theme)
        axes.spines["polar"].set_color(theme.faint)
        seeds = any(len(series.records) > 1 for series in found)
        note(figure, _said(found[0]), "bars: standard deviation over seeds" * seeds)
        figure.description = f"Accuracy in percent after the last stage by attack family, {'; '.join(words)}."
    return figure


def _spokes(axes: PolarAxes, angles: Floats, names: Sequence[str], theme: Theme) -> None:
    """Write the numbers of the rings, and each spoke's name outside its end."""
    axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], fontsize=SMALL, color=theme.muted)
    axes.set_rlabel_position(180 / len(names))
    for label in axes.get_yticklabels():
        label.set_path_effects([withStroke(linewidth=2.5, foreground=theme.paper)])
    axes.set_xticks(angles, [""] * len(names))
    for angle, name in zip(angles, names, strict=True):
        side, up = np.sin(angle), np.cos(angle)
        axes.text(
            angle,
            106,
            name.replace("-", "-\n") if len(name) > 12 else name,
            fontsize=8,
            ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right",
            va="center" if abs(up) < 0.3 else "bottom" if up > 0 else "top",
        )


def _lowest(record: Record, names: Sequence[str]) -> Floats:
    last = record.matrix()[-1]
    members = [[at for at, entry in enumerate(record.attacks) if entry.family == name] for name in names]
    return np.array([record.clean_column()[-1], *(last[columns].min() for columns in members)])


def _refuse_unlike(found: Sequence[Series]) -> None:
    """Refuse series with different data sets or attacks: their polygons cannot be compared."""

    def conditions(series: Series) -> tuple[str, frozenset[tuple[str, int]]]:
        measured = series.first.last_cells().values()
        return series.row.fingerprint, frozenset((cell.attack, cell.n) for cell in measured)

    for series in found[1:]:
        if conditions(series) != conditions(found[0]):
            raise RecordError(
                f"{series.label} and {found[0].label} were not measured by the same attacks on the same "
                "points: a radar compares runs of one protocol"
            )


def _words(names: Sequence[str], values: Spread) -> str:
    return ", ".join(f"{name} {values.said(at)}" for at, name in enumerate(names))


def _said(series: Series) -> str:
    sizes = [sum(entry.family == name for entry in series.first.attacks) for name in families(series)[0][1:]]
    return "Of a family's attacks the strongest counts" if max(sizes) > 1 else "One attack a family"
