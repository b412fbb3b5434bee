"""One look for all pictures: themes, type, sizes, and files that are the same bytes each time."""

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from leaderboards.colours import SCALE

FORMATS: Final = ("svg", "png", "pdf")
WIDTH: Final = 7.0
"""Inches: the text width of a paper."""
SMALL: Final = 7.5
"""Points, of notes and of numbers in cells."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Theme:
    """Colours of a picture as ``#rrggbb``.

    ``ink`` is for text, ``muted`` for less of it, ``faint`` for grids. ``lines`` are Okabe and Ito's colours
    (Color Universal Design, 2008), those of them that keep a contrast of 3 against ``paper``.
    """

    name: str
    paper: str
    ink: str
    muted: str
    faint: str
    lines: tuple[str, ...]

    def line(self, index: int) -> dict[str, Any]:
        """Colour, marker and dashes of the ``index``-th line; no two of the first 140 share all three."""
        colours = len(self.lines)
        return {
            "color": self.lines[index % colours],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index % len(DASHES)],
        }


LIGHT: Final = Theme(
    "light",
    "#ffffff",
    "#1b1f24",
    "#57606a",
    "#d8dde3",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000"),
)
DARK: Final = Theme(
    "dark",
    "#14171c",
    "#e6e9ed",
    "#a4adb8",
    "#343a43",
    ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442"),
)
THEMES: Final[Mapping[str, Theme]] = {theme.name: theme for theme in (LIGHT, DARK)}
COLOURS: Final = LinearSegmentedColormap.from_list("accuracy", SCALE)
"""The scale of `leaderboards.colours`, for shares from 0 to 1."""


class Picture(Figure):
    """A figure with a theme, a title, and a description in words for those who cannot see it."""

    theme: Theme
    title: str
    description: str

    def savefig(self, fname: Any, **options: Any) -> None:
        """As of `matplotlib.figure.Figure`, in the look that the picture was drawn in."""
        with drawing(self.theme):
            super().savefig(fname, **options)

    def render(self, form: str, *, dpi: int = 200) -> bytes:
        """The picture as a file of ``FORMATS``; the same picture is always the same bytes.

        Title and description are in its metadata, in an SVG for screen readers too. ``dpi`` is of PNGs.
        """
        about = {"Title": self.title, "Description": self.description}
        metadata: dict[str, dict[str, Any]] = {
            "svg": {**about, "Date": None, "Creator": "advbench"},
            "png": {**about, "Software": None},
            "pdf": {
                "Title": self.title,
                "Subject": self.description,
                "Creator": "advbench",
                "CreationDate": None,
            },
        }
        buffer = io.BytesIO()
        self.savefig(buffer, format=form, dpi=dpi, metadata=metadata[form])
        data = buffer.getvalue()
        return _readable(data, self.title, self.description) if form == "svg" else data


def _readable(svg: bytes, title: str, description: str) -> bytes:
    """An SVG that a screen reader takes for one image with a name and a description."""
    name = f"<title>{escape(title)}</title>"
    text = svg.decode().replace(
        ' version="1.1">', f' version="1.1" role="img" aria-label={quoteattr(title)}>', 1
    )
    return text.replace(name, f"{name}\n <desc>{escape(description)}</desc>", 1).encode()


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for a theme inside, whatever the user's own are, and as before afterwards."""
    with rc_context():
        rcdefaults()
        rcParams.update(_settings(theme))
        yield


def _settings(theme: Theme) -> Any:
    inks = ("text.color", "axes.titlecolor", "axes.labelcolor", "legend.labelcolor", "xtick.labelcolor")
    return {
        **dict.fromkeys([*inks, "ytick.labelcolor"], theme.ink),
        **dict.fromkeys(
            ["figure.facecolor", "axes.facecolor", "savefig.facecolor", "hatch.color"], theme.paper
        ),
        **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], theme.muted),
        # It comes with matplotlib, so that a picture is the same on every machine.
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 8.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "errorbar.capsize": 2.5,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        # Names of classes and folders may hold dollars.
        "text.parse_math": False,
        "svg.hashsalt": "advbench",
        "figure.dpi": 100,
    }


def picture(
    theme: Theme,
    heading: str,
    width: float,
    height: float,
    *,
    title: str | None = None,
    about: str = "",
    legend: Sequence[Artist] = (),
) -> Picture:
    """An empty picture, in inches; call it, and draw in it, inside `drawing`.

    ``title`` stands above it instead of ``heading``; an empty one leaves the room to the picture, which then
    has its heading in its metadata only. Below are a line ``about`` the runs and a ``legend``.
    """
    engine = ConstrainedLayoutEngine()
    height += 0.18 * (len(legend) // _columns(legend, width))
    figure = Picture(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    shown = heading if title is None else title
    figure.theme, figure.title, figure.description = (
        theme,
        " · ".join(filter(None, [shown or heading, about])),
        "",
    )
    _crown(figure, [shown, about] if shown else [], legend, engine.get()["h_pad"])
    return figure


def _columns(legend: Sequence[Artist], width: float) -> int:
    """Columns of a legend that find room in ``width`` inches."""
    longest = max((len(str(handle.get_label())) for handle in legend), default=0)
    return min(max(int(15.5 * width / (longest + 6)), 1), 4)


def _crown(figure: Picture, lines: Sequence[str], legend: Sequence[Artist], pad: float) -> None:
    """Title, what the runs have in common, legend: the layout leaves room for a title of all lines."""
    present = [line for line in lines if line]
    columns = _columns(legend, figure.get_figwidth())
    rows = -(-len(legend) // columns)
    if not present and not rows:
        return
    size, height = 10.5, figure.get_figheight()
    heading = present[0] if present else " "
    figure.suptitle(
        "\n".join([heading, *[" "] * (len(present) + rows - bool(present))]),
        x=0.012,
        ha="left",
        fontsize=size,
        fontweight="bold",
    )
    line = 1.32 * size / 72
    top = height - pad - line * bool(present)
    if len(present) > 1:
        figure.text(0.012, top / height, present[1], va="top", color=figure.theme.muted)
        top -= line
    if rows:
        figure.legend(
            handles=list(legend),
            loc="upper left",
            bbox_to_anchor=(0.012, (top - 0.02) / height),
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.6,
        ).set_in_layout(False)


def note(figure: Picture, *parts: str) -> None:
    """Small print under the picture: its parts, but for empty ones, as one sentence."""
    text = "; ".join(filter(None, parts))
    lines = textwrap.fill(text[:1].upper() + text[1:], int(17 * figure.get_figwidth()))
    figure.supxlabel(lines, x=0.012, ha="left", fontsize=SMALL, color=figure.theme.muted)


def percent_axis(axes: Axes, label: str = "robust accuracy, %") -> None:
    """A vertical axis of 0 to 100 %, with room for markers at both ends."""
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Where labels of ``values`` go so that neighbours keep ``gap``, near their values, from low to high."""
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
