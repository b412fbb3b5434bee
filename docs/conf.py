"""How Sphinx builds the documentation; ``docs/build.sh`` runs it."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

from advbench import __version__  # noqa: E402 - found by the path above

project = "advbench"
author = "The advbench authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstring_formulas",
    "generated_reference",
    "mathml",
    "repository_links",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "py:obj"
# Dashes, but no curled quotes: formulas have primes.
smartquotes_action = "D"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_dmath_allow_space = False
myst_heading_anchors = 4
# The notebook is committed with its outputs, and a test runs its cells.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"advbench {version}"
html_static_path = ["_static"]
html_css_files = ["advbench.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
