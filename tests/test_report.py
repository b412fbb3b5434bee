"""What a defense reports about its training: in the record, in tables, as columns, on the site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from record_trees import scored, stored
from torch import nn

from advbench import run
from advbench.runs.record import _report
from advbench.runs.tables import report_tables, report_text
from advbench.verify.train_again import _metrics_of_the_model
from attacks_pool import InputError
from defenses import registry
from defenses.methods.at import AT
from defenses.training.tally import Tally
from leaderboards import Record, RecordError, parse_record, rows
from leaderboards.boards.sheets import View
from leaderboards.boards.tables import to_csv, to_markdown
from leaderboards.records.checking import implausible
from leaderboards.site import write_site

REPORT = {
    "version": 1,
    "numbers": {"queries": 1234567.0, "right_share": 0.123456},
    "tables": {"by_stage": {"1": {"asked": 10.0, "right": 0.25}, "2": {"asked": 3.0}}},
}


def reporting(**more: Any) -> Record:
    """A record with a report."""
    return parse_record(scored(**more).dump() | {"report": REPORT}, "here")


def test_a_tally_sums_by_stage() -> None:
    tally, again = Tally(), Tally()
    tally.add(1, {"images": 4, "asked": 1})
    tally.add(1, {"images": 4, "asked": 2})
    tally.add(2, {"images": 2})
    assert (tally.total("images"), tally.total("images", 2), tally.total("none")) == (10, 2, 0)
    wanted = {"asked_share": ("asked", "images"), "right": ("right", "asked")}
    assert tally.ratios(wanted) == {"asked_share": 0.3, "right": 0.0}
    assert tally.by_stage(wanted) == {"1": {"asked_share": 0.375, "right": 0.0}, "2": {"asked_share": 0.0}}
    again.load(tally.state())
    again.add(2, {"asked": 1})
    assert (again.total("asked"), tally.total("asked")) == (4, 3)


def test_records_without_a_report_are_as_before() -> None:
    """Not even a key is written."""
    assert "report" not in scored().dump()
    assert scored().report is None
    record = reporting()
    assert record.dump()["report"] == REPORT
    assert parse_record(json.dumps(record.dump()), "here") == record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "report.version"),
        ({"numbers": {"queries": "many"}}, "report.numbers.queries"),
        ({"tables": {"by_stage": [1]}}, "report.tables.by_stage"),
        ({"more": 1}, "unknown key 'report.more'"),
    ],
)
def test_reports_are_checked(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        parse_record(scored().dump() | {"report": REPORT | change}, "here")


def test_absurd_numbers_are_found() -> None:
    tree = scored().dump() | {"report": REPORT | {"numbers": {"queries": 1e300}}}
    (line,) = implausible(parse_record(tree, "here"))
    assert line.startswith("report: queries is ")


def test_numbers_are_columns() -> None:
    """``report.NAME``, averaged over seeds and never in percent; other rows have none."""
    board = rows([reporting(seed=0), reporting(seed=1), scored("air")])
    text = to_markdown(board, View.of("defense,report.queries,report.right_share_mean"))
    assert "1,234,567 ± 0 | 0.1235" in text
    assert "queries" in text
    assert "| air | – | – |" in text
    assert "report.queries_mean" in to_csv(board).splitlines()[0]
    with pytest.raises(RecordError, match=r"unknown column 'report.querys': did you mean 'report.queries"):
        to_markdown(board, View.of("defense,report.querys"))


def test_text_and_tables() -> None:
    assert report_text(scored()) == ""
    assert [line.split() for line in report_text(reporting()).splitlines()] == [
        ["queries", "1,234,567"],
        ["right", "share", "0.1235"],
    ]
    assert list(report_tables(scored())) == []
    (table,) = report_tables(reporting())
    assert [str(column.header) for column in table.columns] == ["", "asked", "right"]
    assert [list(column.cells) for column in table.columns] == [["1", "2"], ["10", "3"], ["0.25", "-"]]


def test_the_site_has_it_on_the_page_of_the_run(tmp_path: Path) -> None:
    """And no column of the table of all runs."""
    records = [reporting(), scored("air")]
    runs = stored(tmp_path / "runs", *records)
    write_site(tmp_path / "site", rows(records), records, runs)
    pages = {path.parent.name: path.read_text("utf-8") for path in (tmp_path / "site").rglob("index.html")}
    index = pages.pop("site")
    assert "queries" not in index
    (page,) = (text for text in pages.values() if "What the defense reports" in text)
    assert "1,234,567" in page
    assert "by stage" in page


@pytest.mark.usefixtures("short_probes")
def test_a_run_stores_what_its_defense_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[str, str]]
) -> None:
    """``show`` prints it; a run trained again must report the same."""

    class Reporting(AT):
        info = AT.info.model_copy(update={"name": "reporting", "aliases": {}})

        def report(self) -> Any:
            return {"stages_trained": self.stages, "table": {"row": {"column": 0.5}}}

    monkeypatch.setitem(registry._classes, "reporting", Reporting)
    options = SMALL | {"sequence": "fgsm", "points": 20}
    made = run("reporting", runs_dir=tmp_path, **options)
    assert made.record.report is not None
    assert made.record.report.numbers == {"stages_trained": 1.0}
    assert "stages trained" in call("show", made.path)[0]
    other = parse_record(made.record.dump() | {"report": REPORT}, "here")
    assert list(_metrics_of_the_model(made.record, made.record)) == []
    assert list(_metrics_of_the_model(other, made.record)) == ["report: training again gives another one"]


def test_other_values_are_refused() -> None:
    """In one line that names the defense."""
    assert _report("at", {}) is None
    for bad in ({"x": float("nan")}, {"x": nn.Identity()}, {"x": {"row": 3.0}}):
        with pytest.raises(InputError, match=r"^at: report\(\) must return finite numbers and tables: "):
            _report("at", bad)  # type: ignore[arg-type]
