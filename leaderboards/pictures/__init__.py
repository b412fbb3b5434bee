"""Pictures of runs, in one style: matplotlib figures, drawn without pyplot or any global state.

Every function takes records (`trade_off`: rows, `image_grid`: images) and a theme and returns a `Picture`: a
`matplotlib.figure.Figure` with a title, a description in words, and a method `render` that gives SVG, PNG or
PDF with the same bytes each time. Importing this package imports matplotlib.
"""

from leaderboards.pictures.budgets import eps_curves
from leaderboards.pictures.canvas import FORMATS, Picture
from leaderboards.pictures.forgetting import forgetting_curves
from leaderboards.pictures.heatmap import heat_map
from leaderboards.pictures.images import ImageRow, difference, image_grid
from leaderboards.pictures.radar import radar
from leaderboards.pictures.style import DARK, LIGHT, THEMES, Theme
from leaderboards.pictures.tradeoff import MEASURES, pareto_front, trade_off

__all__ = [
    "DARK",
    "FORMATS",
    "LIGHT",
    "MEASURES",
    "THEMES",
    "ImageRow",
    "Picture",
    "Theme",
    "difference",
    "eps_curves",
    "forgetting_curves",
    "heat_map",
    "image_grid",
    "pareto_front",
    "radar",
    "trade_off",
]
