"""Empty pictures in the common style, with title, legend and notes, and saving them to files."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from leaderboards.pictures.style import SMALL, Theme, drawing

FORMATS: Final = ("svg", "png", "pdf")


class Picture(Figure):
    """A figure with a theme, a title, and a description in words for those who cannot see it."""

    theme: Theme
    title: str
    description: str

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save as `matplotlib.figure.Figure` does, with the settings that the picture was drawn with."""
        with drawing(self.theme), warnings.catch_warnings():
            # The font may lack the letters of a class name; the picture then shows boxes, which is harmless.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            super().savefig(fname, **options)

    def render(self, form: str, *, dpi: int = 200) -> bytes:
        """The bytes of the picture in one of ``FORMATS``; equal pictures give equal bytes.

        The metadata holds title and description; in an SVG, screen readers see them too. ``dpi`` is for PNG.
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
    """The SVG with the attributes that make screen readers treat it as one image with a description."""
    name = f"<title>{escape(title)}</title>"
    text = svg.decode().replace(
        ' version="1.1">', f' version="1.1" role="img" aria-label={quoteattr(title)}>', 1
    )
    return text.replace(name, f"{name}\n <desc>{escape(description)}</desc>", 1).encode()


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
    """An empty picture, sized in inches; call this, and draw, inside `drawing`.

    ``title`` replaces ``heading`` above the picture; an empty title leaves its space to the picture, and the
    heading is then only in the metadata. A line ``about`` the runs and a ``legend`` follow.
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
    """How many columns of a legend fit ``width`` inches."""
    longest = max((len(str(handle.get_label())) for handle in legend), default=0)
    return min(max(int(15.5 * width / (longest + 6)), 1), 4)


def _crown(figure: Picture, lines: Sequence[str], legend: Sequence[Artist], pad: float) -> None:
    """Draw title, line about the runs, and legend; the layout reserves space for a title of all lines."""
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
    """Write a note under the picture: its non-empty parts as one sentence."""
    text = "; ".join(filter(None, parts))
    lines = textwrap.fill(text[:1].upper() + text[1:], int(17 * figure.get_figwidth()))
    figure.supxlabel(lines, x=0.012, ha="left", fontsize=SMALL, color=figure.theme.muted)


def percent_axis(axes: Axes, label: str = "robust accuracy, %") -> None:
    """Set a vertical axis of 0 to 100 %, with room for markers at both ends."""
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)
