"""From rows and records to the files of the site."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from leaderboards.errors import RecordError
from leaderboards.layout import OUTCOMES, RECORD
from leaderboards.ranking import Row
from leaderboards.record import Record
from leaderboards.site.index import make_index, title_of
from leaderboards.site.names import slugs
from leaderboards.site.runpage import make_page
from leaderboards.site.swap import replacing
from leaderboards.store import json_bytes, read_outcomes

ASSETS: Final = ("site.css", "board.js", "run.js")
# Scripts and styles are files beside the pages; `file:` is what 'self' is to a page opened from a disk.
POLICY: Final = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; base-uri 'none'; form-action 'none'"
)


def write_site(
    out: Path, rows: Sequence[Row], records: Iterable[Record], runs_dir: Path | None = None
) -> int:
    """Write the site of ``rows`` as the directory ``out``, all of it or nothing; returns how many run pages.

    Args:
        out: a new or empty directory, or an earlier site, which is replaced.
        rows: what is shown, in this order.
        records: the records that the rows were made of; others are left out.
        runs_dir: where their stored outcomes are, for worst cases by threat; without it those are left out.

    Raises:
        RecordError: ``out`` holds something else, or cannot be written.
    """
    found = _records_of(rows, records)
    every = [record for group in found for record in group]
    names = slugs(record.id for record in every)
    place = iter(names)
    pages = {number: [next(place) for _ in group] for number, group in enumerate(found)}
    templates = _templates()
    with replacing(out) as building:
        (building / "assets").mkdir()
        for name in ASSETS:
            (building / "assets" / name).write_bytes(_folder("assets").joinpath(name).read_bytes())
        _write_index(building, templates.get_template("index.html"), rows, pages, every)
        template = templates.get_template("run.html")
        (building / "runs").mkdir()
        for number, (row, group) in enumerate(zip(rows, found, strict=True)):
            siblings = list(zip(row.seeds, pages[number], strict=True))
            values = {"row": row, "group": title_of(row), "siblings": siblings}
            for record, name in zip(group, pages[number], strict=True):
                page = make_page(record, _outcomes(record, runs_dir))
                text = template.render(page=page, here=name, **values)
                _write_run(building / "runs" / name, text, record)
    return len(every)


def _records_of(rows: Sequence[Row], records: Iterable[Record]) -> list[list[Record]]:
    """Each row's records in the order of its seeds. Strangers' records may share an id: their seed and what
    the row says of them tell them apart."""
    by_id: dict[str, list[Record]] = {}
    for record in records:
        by_id.setdefault(record.id, []).append(record)
    found = []
    for row in rows:
        own = [
            next((record for record in by_id.get(name, []) if _is_of(record, row, seed)), None)
            for name, seed in zip(row.runs, row.seeds, strict=True)
        ]
        if None in own:
            raise RecordError(
                f"run {row.runs[own.index(None)]}: a row names it, but its record is not at hand"
            )
        found.append([record for record in own if record is not None])
    return found


def _is_of(record: Record, row: Row, seed: int) -> bool:
    config = record.config
    own = (config["seed"], config["defense"], config["params"], config["regime"], config["plan"])
    return own == (seed, row.defense, row.params, row.regime, row.plan) and (
        record.protocol == row.protocol
        and record.environment["data"]["fingerprint"] == row.fingerprint
        and tuple(config["sequence"]) == row.sequence
    )


def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: _folder("templates").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["policy"] = POLICY
    return environment


def _folder(name: str) -> Traversable:
    return files("leaderboards.site").joinpath(name)


def _write_index(
    building: Path,
    template: Template,
    rows: Sequence[Row],
    pages: Mapping[int, list[str]],
    every: Sequence[Record],
) -> None:
    index = make_index(rows, pages)
    newest = max((record.created for record in every), default="")
    text = template.render(index=index, data=_embedded(index.data()), runs=len(every), newest=newest[:10])
    (building / "index.html").write_text(text, "utf-8")


def _embedded(data: Any) -> Markup:
    """JSON to stand in a script element: nothing in it can end that element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # escaped above


def _write_run(place: Path, text: str, record: Record) -> None:
    place.mkdir()
    (place / "index.html").write_text(text, "utf-8")
    (place / RECORD).write_bytes(json_bytes(record.dump()))


def _outcomes(record: Record, runs_dir: Path | None) -> NDArray[np.bool_] | None:
    """The stored outcomes of a run that lies under its own name, if there are any."""
    plain = Path(record.id).name == record.id and record.id.isprintable() and "\\" not in record.id
    if runs_dir is None or not plain or record.id == "..":
        return None
    try:
        return read_outcomes(Path(runs_dir) / record.id / OUTCOMES)[1]
    except RecordError:
        return None
