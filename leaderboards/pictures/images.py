"""Grids of images: clean, adversarial, their difference, regenerated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from leaderboards.errors import RecordError
from leaderboards.pictures.canvas import Picture, note, picture
from leaderboards.pictures.style import LIGHT, SMALL, Theme, drawing

Images = NDArray[np.float32]
SIDE = 0.78
"""The size of an image in inches."""
GAP = 0.07
"""The gap between images, in image widths."""
CAPTION = 0.2
Extent = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One row of a grid.

    Attributes:
        label: the text beside the row.
        images: (n, H, W, C) with 1 or 3 channels in [0, 1], or differences in [−1, 1].
        captions: n lines under the images, or none.
        wrong: n flags, which mark the captions of misclassified images.
        scale: the difference that is drawn at full colour; None for images.
    """

    label: str
    images: Images
    captions: Sequence[str] = ()
    wrong: Sequence[bool] = ()
    scale: float | None = None


def difference(label: str, clean: Images, changed: Images) -> ImageRow:
    """The row of ``changed − clean``, scaled to its largest change, which the label gives."""
    change = changed.astype(np.float64) - clean
    scale = float(np.abs(change).max()) or 1.0
    return ImageRow(f"{label}\n± {scale:.2g}", change.astype(np.float32), scale=scale)


def image_grid(
    rows: Sequence[ImageRow],
    *,
    heading: str,
    about: str = "",
    theme: Theme = LIGHT,
    title: str | None = None,
    said: Sequence[str] = (),
) -> Picture:
    """A grid with a column per test point; ``heading`` (or ``title``) and ``about`` above, ``said`` below.

    Differences of grey images are blue where a pixel got darker and red where it got lighter; differences of
    colour images are drawn relative to grey.

    Raises:
        RecordError: there are no images, or rows have different numbers of images.
    """
    counts = {len(row.images) for row in rows}
    if len(counts) != 1 or 0 in counts:
        raise RecordError(f"a grid needs rows with equal numbers of images, not {sorted(counts)}")
    columns, (height, width) = counts.pop(), rows[0].images.shape[1:3]
    tall = height / width
    tops: list[float] = []
    bottom = 0.0
    for row in rows:
        tops.append(bottom)
        bottom += tall + (CAPTION if row.captions else 0.0) + GAP
    across = columns * (1 + GAP) - GAP
    with drawing(theme):
        size = (SIDE * across + 1.35, SIDE * bottom + 0.95)
        figure = picture(theme, heading, *size, title=title, about=about)
        axes = figure.subplots()
        for top, row in zip(tops, rows, strict=True):
            for column in range(columns):
                left = column * (1 + GAP)
                _image(axes, row, column, (left, left + 1, top + tall, top), theme)
        axes.set(xlim=(-0.02, across + 0.02), ylim=(bottom, -0.02), xticks=[])
        axes.set_aspect("equal")
        axes.set_yticks([top + tall / 2 for top in tops], [row.label for row in rows])
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if said:
            note(figure, *said)
        figure.description = " ".join(map(_words, rows))
    return figure


def _image(axes: Axes, row: ImageRow, column: int, extent: Extent, theme: Theme) -> None:
    """Draw one image within (left, right, bottom, top), its frame and its caption."""
    pixels = row.images[column]
    grey = pixels.shape[2] == 1
    if row.scale is not None and grey:
        options: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -row.scale, "vmax": row.scale}
    else:
        options = {"cmap": "gray", "vmin": 0, "vmax": 1}
        pixels = np.clip(pixels if row.scale is None else 0.5 + pixels / (2 * row.scale), 0, 1)
    axes.imshow(pixels[:, :, 0] if grey else pixels, extent=extent, interpolation="nearest", **options)
    left, right, bottom, top = extent
    wrong = bool(row.captions) and bool(row.wrong) and bool(row.wrong[column])
    # A wrong answer is also bold: colour alone does not reach every reader.
    look: dict[str, Any] = (
        {"edgecolor": theme.lines[1], "linewidth": 2.2}
        if wrong
        else {"edgecolor": theme.faint, "linewidth": 0.8}
    )
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **look))
    if row.captions:
        weight = "bold" if wrong else "normal"
        middle = (left + right) / 2
        axes.text(
            middle,
            bottom + 0.05,
            row.captions[column],
            ha="center",
            va="top",
            fontsize=SMALL,
            fontweight=weight,
        )


def _words(row: ImageRow) -> str:
    label = row.label.replace("\n", " ")
    return f"{label}: {', '.join(row.captions)}." if row.captions else f"{label}."
