"""Places names in a picture so that they cover neither each other nor other marks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.text import Annotation

from leaderboards.pictures.style import SMALL

Point = tuple[float, float]
Box = tuple[float, float, float, float]
SIDES: Final = (
    (7, 0),
    (-7, 0),
    (0, 8),
    (0, -8),
    (7, 8),
    (-7, 8),
    (7, -8),
    (-7, -8),
    (12, 16),
    (-12, 16),
    (12, -16),
    (-12, -16),
)
"""Candidate positions of a name, in points from its mark, in order of preference."""
NEAR: Final = 10
"""A name with a larger vertical distance from its mark is connected to it by a line."""


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels near their ``values``, between low and high, at least ``gap`` apart."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    places: list[float] = []
    for index in order:
        places.append(max(values[index], places[-1] + gap if places else low))
    ceiling = max(high, low + gap * (len(places) - 1))
    for position in reversed(range(len(places))):
        places[position] = min(places[position], ceiling)
        ceiling = places[position] - gap
    found = [0.0] * len(values)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found


def name_marks(
    axes: Axes,
    points: Sequence[Point],
    errors: Sequence[Point],
    stairs: Sequence[Point],
    names: Sequence[str],
    colour: str,
) -> None:
    """Write each name beside its mark, where it covers the least of names, marks, bars and the front."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    taken = [box for point, error in zip(points, errors, strict=True) for box in _cross(axes, point, error)]
    corners = [tuple(map(float, place)) for place in axes.transData.transform(stairs)] if stairs else []
    for (x, y), (a, b) in pairwise(corners):
        taken.append((min(x, a) - 2, min(y, b) - 2, max(x, a) + 2, max(y, b) + 2))
    for point, name in zip(points, names, strict=True):
        found: list[tuple[float, int, Annotation, Box]] = []
        for number, (right, up) in enumerate(SIDES):
            text = axes.annotate(
                name,
                point,
                xytext=(right, up),
                textcoords="offset points",
                fontsize=SMALL,
                ha="left" if right > 0 else "right" if right else "center",
                va="center",
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colour, "shrinkB": 5}
                if abs(up) > NEAR
                else None,
            )
            extent = text.get_window_extent()
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            covered = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, axes)
            found.append((covered, number, text, box))
        best = min(found, key=lambda one: one[:2])
        for one in found:
            if one is not best:
                one[2].remove()
        taken.append(best[3])


def _cross(axes: Axes, point: Point, error: Point) -> list[Box]:
    """The boxes of a mark and its error bars, in pixels."""
    (x, y), (dx, dy) = point, error
    corners = [(x, y), (x - dx, y), (x + dx, y), (x, y - dy), (x, y + dy)]
    at, left, right, low, high = (tuple(map(float, place)) for place in axes.transData.transform(corners))
    bars = [(left[0], left[1] - 3, right[0], right[1] + 3), (low[0] - 3, low[1], high[0] + 3, high[1])]
    return [(at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6), *bars]


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(place: Box, axes: Axes) -> float:
    """The area of a box outside the panel."""
    box = axes.get_window_extent()
    inside = _overlap(place, (box.x0, box.y0, box.x1, box.y1))
    return max(0.0, (place[2] - place[0]) * (place[3] - place[1]) - inside)
