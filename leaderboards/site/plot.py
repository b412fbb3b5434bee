"""The trade-off between clean and robust accuracy as a small SVG: no script, colours from the style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

MOST_POINTS: Final = 300
_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 42
_LABELLED: Final = 16
"""The most labels; more would overlap."""


@dataclass(frozen=True)
class Point:
    """One row: shares in [0, 1], spread over seeds (None: one seed), and how it is drawn."""

    index: int
    label: str
    clean: float
    robust: float
    clean_std: float | None
    robust_std: float | None
    kind: str


@dataclass(frozen=True)
class Mark:
    """A drawn point in image units; ``bar`` is the path of its spread, (``tx``, ``ty``) places its label."""

    index: int
    kind: str
    title: str
    x: float
    y: float
    bar: str
    label: str = ""
    tx: float = 0.0
    ty: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Plot:
    """The parts of the picture that the template draws."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    front: str
    marks: list[Mark]
    left_out: int


def trade_off(points: Sequence[Point]) -> Plot | None:
    """The picture of at least two rows, the best ranked first; None for fewer."""
    shown = list(points)[:MOST_POINTS]
    if len(shown) < 2:
        return None
    x_low, x_high, x_step = _range([(point.clean, point.clean_std) for point in shown])
    y_low, y_high, y_step = _range([(point.robust, point.robust_std) for point in shown])
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(value: float) -> float:
        return round(_LEFT + across * (value - x_low) / (x_high - x_low), 1)

    def y_of(value: float) -> float:
        return round(_TOP + down * (y_high - value) / (y_high - y_low), 1)

    def bar_of(point: Point) -> str:
        # Bars are cut at the axes: a share stays within [0, 1] whatever its deviation.
        dx, dy = point.clean_std or 0.0, point.robust_std or 0.0
        left, right = x_of(max(point.clean - dx, x_low)), x_of(min(point.clean + dx, x_high))
        low, high = y_of(max(point.robust - dy, y_low)), y_of(min(point.robust + dy, y_high))
        flat = f"M{left} {y_of(point.robust)}H{right}" if dx else ""
        return f"{flat}M{x_of(point.clean)} {low}V{high}" if dy else flat

    marks = [
        Mark(
            index=point.index,
            kind=point.kind,
            title=f"{point.label}: clean {100 * point.clean:.1f} %, robust {100 * point.robust:.1f} %",
            x=x_of(point.clean),
            y=y_of(point.robust),
            bar=bar_of(point),
        )
        for point in shown
    ]
    if len(shown) <= _LABELLED:
        marks = _labelled(marks, [point.label for point in shown])
    front = [(x_of(point.clean), y_of(point.robust)) for point in pareto(shown)]
    return Plot(
        width=_WIDTH,
        height=_HEIGHT,
        box=(_LEFT, _TOP, across, down),
        x_ticks=[(x_of(value), f"{100 * value:g}") for value in _ticks(x_low, x_high, x_step)],
        y_ticks=[(y_of(value), f"{100 * value:g}") for value in _ticks(y_low, y_high, y_step)],
        front=" ".join(f"{x},{y}" for x, y in front) if len(front) > 1 else "",
        marks=marks,
        left_out=len(points) - len(shown),
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of the ``ok`` points, sorted by clean accuracy."""
    front: list[Point] = []
    candidates = [point for point in points if point.kind == "ok"]
    for point in sorted(candidates, key=lambda point: (-point.clean, -point.robust)):
        if not front or point.robust > front[-1].robust:
            front.append(point)
    return front[::-1]


def _range(values: Sequence[tuple[float, float | None]]) -> tuple[float, float, float]:
    """The low end, high end and tick step of an axis for the values and their spreads, with some margin."""
    low = min(value - (spread or 0.0) for value, spread in values)
    high = max(value + (spread or 0.0) for value, spread in values)
    room = max((high - low) * 0.12, 0.01)
    low, high = max(low - room, 0.0), min(high + room, 1.0)
    steps = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    step = next((step for step in steps if (high - low) / step <= 6), steps[-1])
    return low, high, step


def _ticks(low: float, high: float, step: float) -> list[float]:
    first, last = -int(-low / step // 1), int(high / step + 1e-9)
    return [round(number * step, 6) for number in range(first, last + 1) if number * step >= low - 1e-9]


def _labelled(marks: Sequence[Mark], labels: Sequence[str]) -> list[Mark]:
    """Place labels beside their points if they cover no point or other label; leave out the rest."""
    taken = [(mark.x - 5, mark.y - 5, mark.x + 5, mark.y + 5) for mark in marks]
    found = []
    for mark, label in zip(marks, labels, strict=True):
        wide = 6.6 * len(label)
        placed = mark
        for tx, ty, anchor in (
            (mark.x + 9, mark.y + 4, "start"),
            (mark.x - 9, mark.y + 4, "end"),
            (mark.x, mark.y - 10, "middle"),
            (mark.x, mark.y + 19, "middle"),
        ):
            left = tx - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (left, ty - 11, left + wide, ty + 3)
            inside = box[0] >= _LEFT and box[2] <= _WIDTH - 2 and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed = replace(mark, label=label, tx=round(tx, 1), ty=round(ty, 1), anchor=anchor)
                break
        found.append(placed)
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
