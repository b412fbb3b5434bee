"""Links from a page to the rest of the repository: the built site shows their text alone."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def without_links(app: Sphinx, doctree: nodes.document) -> None:
    """Leave the text of every link that leaves ``docs/`` for a file or folder that exists."""
    for node in list(doctree.findall(pending_xref)):
        place = app.srcdir if node["refdomain"] == "doc" else Path(doctree["source"]).parent
        target = Path(place, str(node["reftarget"]).partition("#")[0])
        outside = app.srcdir.resolve() not in target.resolve().parents
        there = target.exists() or target.with_name(f"{target.name}.md").exists()
        if node["reftype"] == "myst" and outside and there:
            node.replace_self(node.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at each page before its links are resolved."""
    app.connect("doctree-read", without_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
