"""The common style of all pictures: themes, fonts, sizes, and settings that make files reproducible."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.colors import LinearSegmentedColormap

from leaderboards.colours import SCALE

WIDTH: Final = 7.0
"""The text width of a paper, in inches."""
SMALL: Final = 7.5
"""The font size of notes and of numbers in cells, in points."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Theme:
    """Colours of a picture as ``#rrggbb``.

    ``ink`` is for text, ``muted`` for secondary text, ``faint`` for grids. ``lines`` holds Okabe and Ito's
    colours (Color Universal Design, 2008) that have a contrast of at least 3 against ``paper``.
    """

    name: str
    paper: str
    ink: str
    muted: str
    faint: str
    lines: tuple[str, ...]

    def line(self, index: int) -> dict[str, Any]:
        """The colour, marker and dashes of line ``index``; no two of the first 140 share all three."""
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


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Use matplotlib's settings for a theme within the block, and restore the user's settings afterwards."""
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
        # This font comes with matplotlib, so that a picture is the same on every machine.
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
        # Names of classes and folders may contain dollar signs.
        "text.parse_math": False,
        "svg.hashsalt": "advbench",
        "figure.dpi": 100,
    }
