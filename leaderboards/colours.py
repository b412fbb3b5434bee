"""One colour scale for accuracies, on the terminal and in pictures, and legible text colours for it.

The scale is cividis (Nuñez, Anderton, Renslow, PLOS ONE 2018): dark blue is 0, yellow is 1. Its lightness
rises evenly, with and without colour vision and in grey print.
"""

from typing import Final

RGB = tuple[float, float, float]
"""The sRGB components red, green and blue, each from 0 to 1."""

SCALE: Final = (
    "#00224e",
    "#002e6a",
    "#1a386f",
    "#32436d",
    "#434e6c",
    "#535a6d",
    "#61656f",
    "#6f7073",
    "#7d7c78",
    "#8c8878",
    "#9b9476",
    "#aba072",
    "#bcae6c",
    "#cdbb63",
    "#dec958",
    "#f0d846",
    "#fee838",
)
"""Colours at equal distances from 0 to 1; colours in between are interpolated linearly."""
BLACK: Final[RGB] = (0.0, 0.0, 0.0)
WHITE: Final[RGB] = (1.0, 1.0, 1.0)


def rgb(text: str) -> RGB:
    """Convert ``#rrggbb`` to numbers."""
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue


def hexadecimal(colour: RGB) -> str:
    """Convert numbers to ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def shade(value: float) -> RGB:
    """The colour of a share; shares outside 0 to 1 get the colour of the nearer end."""
    place = min(max(value, 0.0), 1.0) * (len(SCALE) - 1)
    below = min(int(place), len(SCALE) - 2)
    weight = place - below
    low, high = rgb(SCALE[below]), rgb(SCALE[below + 1])
    red, green, blue = (a + weight * (b - a) for a, b in zip(low, high, strict=True))
    return red, green, blue


def luminance(colour: RGB) -> float:
    """The relative luminance as WCAG 2 defines it: 0 for black, 1 for white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: RGB, second: RGB) -> float:
    """The contrast ratio as WCAG 2 defines it, from 1 to 21; text needs 4.5, a line 3."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def ink(ground: RGB) -> RGB:
    """Black or white, whichever is more legible on ``ground``; the contrast is at least 4.58."""
    return max((BLACK, WHITE), key=lambda colour: contrast(colour, ground))
