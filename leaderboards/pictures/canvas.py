"""An empty picture in the style, with title, legend and small print, and the files it makes."""

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
        """As of `matplotlib.figure.Figure`, in the look that the picture was drawn in."""
        with drawing(self.theme), warnings.catch_warnings():
            # A class may be named in a script that the font lacks: its boxes are seen, and no fault of a run.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
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
