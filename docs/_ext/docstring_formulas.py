"""Formulas in docstrings: a block that is set off by indentation is shown line for line."""

from __future__ import annotations

from sphinx.application import Sphinx


def keep_lines(
    _app: Sphinx, _kind: str, _name: str, _found: object, _options: object, lines: list[str]
) -> None:
    """Put a directive before each indented block that follows a paragraph and an empty line."""
    for number in range(len(lines) - 1, 0, -1):
        opens = lines[number].startswith("    ") and not lines[number - 1].strip()
        paragraph = next((line for line in reversed(lines[:number]) if line.strip()), "")
        if opens and paragraph and not paragraph.startswith(" ") and not paragraph.endswith("::"):
            lines[number:number] = [".. code-block:: text", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at each docstring before its sections are read."""
    app.connect("autodoc-process-docstring", keep_lines, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
