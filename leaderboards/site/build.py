"""Builds the files of the site from rows and records."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from leaderboards.boards.row import Row
from leaderboards.printable import printable
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.record import Record
from leaderboards.site.index import make_index, title_of
from leaderboards.site.names import slugs
from leaderboards.site.runpage import make_page
from leaderboards.site.sources import SiteSource, Sources
from leaderboards.site.swap import replacing

ASSETS: Final = ("site.css", "board.js", "run.js")
# Scripts and styles are files beside the pages; for a page opened from disk, `file:` is needed for 'self'.
POLICY: Final = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; base-uri 'none'; form-action 'none'"
)


def write_site(
    out: Path, rows: Sequence[Row], records: Iterable[Record] = (), runs_dir: Path | None = None
) -> int:
    """Write the site of ``rows`` to ``out``, completely or not at all; return the number of run pages.

    Args:
        out: a new or empty directory, or an earlier site, which is replaced.
        rows: the rows to show, in this order.
        records: the records of rows without a run directory; other records are left out.
        runs_dir: the directory with the outcomes of these records, which worst cases by threat need.

    Raises:
        RecordError: ``out`` has other contents or cannot be written, or a row's record is missing.
    """
    names = iter(slugs(name for row in rows for name in row.runs))
    pages = [[next(names) for _ in row.runs] for row in rows]
    sources = Sources(records, runs_dir)
    templates = _templates()
    newest = ""
    with replacing(out) as building:
        (building / "assets").mkdir()
        for name in ASSETS:
            (building / "assets" / name).write_bytes(_folder("assets").joinpath(name).read_bytes())
        (building / "runs").mkdir()
        template = templates.get_template("run.html")
        for row, directories in zip(rows, pages, strict=True):
            for source, name, text in _run_pages(template, row, directories, sources):
                _write_run(building / "runs" / name, text, source)
                newest = max(newest, source.record.created)
        text = _index_page(templates.get_template("index.html"), rows, pages, newest[:10])
        (building / "index.html").write_text(text, "utf-8")
    return sum(map(len, pages))


def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: _folder("templates").joinpath(name).read_text("utf-8")),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["policy"] = POLICY
    return environment


def _shown(value: Any) -> Any:
    """A value as a template writes it, with control characters in names escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _folder(name: str) -> Traversable:
    return files("leaderboards.site").joinpath(name)


def _index_page(template: Template, rows: Sequence[Row], pages: Sequence[list[str]], newest: str) -> str:
    index = make_index(rows, pages)
    runs = sum(map(len, pages))
    return template.render(index=index, data=_embedded(index.data()), runs=runs, newest=newest)


def _embedded(data: Mapping[str, Any]) -> Markup:
    """JSON for a script element, escaped so that it cannot end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # escaped above


def _run_pages(
    template: Template, row: Row, names: Sequence[str], sources: Sources
) -> Iterator[tuple[SiteSource, str, str]]:
    """For each seed, its source, the name of its directory and its page."""
    values = {"row": row, "group": title_of(row), "siblings": list(zip(row.seeds, names, strict=True))}
    for place, name in enumerate(names):
        source = sources.of(row, place)
        page = make_page(source.record, source.robust, source.trust, source.proofs)
        yield source, name, template.render(page=page, here=name, **values)


def _write_run(place: Path, text: str, source: SiteSource) -> None:
    place.mkdir()
    (place / "index.html").write_text(text, "utf-8")
    (place / RECORD).write_bytes(source.data)
    if source.outcomes is not None:
        (place / OUTCOMES).write_bytes(source.outcomes)
