"""The static site: what its pages say, that strangers' records are harmless, that it is whole or absent."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, contents, forked
from record_trees import stored

from advbench.cli.main import invoke
from advbench.config.options import Options, RunConfig
from advbench.config.resolve import resolve
from advbench.data import DataSet
from advbench.runs.saved import Run
from leaderboards import Record, RecordError, read_record, rows
from leaderboards.colours import contrast, rgb
from leaderboards.site import write_site
from leaderboards.site.command import spelled_out
from leaderboards.site.names import slugs
from leaderboards.site.plot import Point, pareto, trade_off

Make = Callable[..., Record]
Call = Callable[..., tuple[str, str]]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</td></table>"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data


def defense_of(page: Path) -> str:
    """The defense whose run a page shows."""
    return Page(page / "index.html").text.split("·")[0].strip()


def site_of(out: Path, records: list[Record], runs_dir: Path | None = None) -> Path:
    """A site of records."""
    write_site(out, rows(records), records, runs_dir)
    return out


# The command that repeats a run


def words_of(command: str) -> list[str]:
    """As a shell reads it: a backslash at the end joins lines."""
    return shlex.split(command.replace("\\\n", ""))


RUNS: list[dict[str, Any]] = [
    {},
    {"defense": "joint", "sequence": "fgsm,pgd:steps=3,cw", "epochs": 7, "seed": 12, "device": "cpu"},
    {"defense": "mid", "regime": "meta", "sequence": "fgsm,pgd", "set": {"first_order": "true"}},
    {"defense": "lorkd", "regime": "joint", "sequence": "fgsm,pgd,square", "set": {"rank": "2"}},
    {"defense": "at", "sequence": "sample:3", "unseen": "none", "eval": "cw:steps=5", "points": "50,cw=10"},
    {"defense": "at", "sequence": "curriculum:pgd:eps=0.05..0.2,stages=3", "points": 20},
    {"defense": "trades", "train_set": {"pgd.steps": "3", "pgd.step_size": "1/30"}, "select": "val-robust"},
    {
        "defense": "air",
        "set": {"sigma": "0.00001", "augmentation": "crop+flip", "max_grad_norm": "none", "lr": "1e-5"}
        | {"pretrain.optimizer": "adam", "pretrain.lr": "1e-7", "eps_warmup": "0.3"},
        "threads": 2,
    },
]


@pytest.mark.parametrize("options", RUNS, ids=lambda options: options.get("defense", "default"))
def test_the_spelled_out_command_resolves_to_the_same_config(
    options: dict[str, Any], digits: DataSet, resolved: Callable[..., RunConfig]
) -> None:
    """Every option stands in it, so that no default has a say."""
    config = resolve(Options.of(options), digits)
    command = spelled_out(json.loads(config.model_dump_json()))
    assert command.text is not None, command.note
    assert resolved(*words_of(command.text)[1:]) == config


def test_the_page_of_a_real_run(
    small_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    resolved: Callable[..., RunConfig],
) -> None:
    """Its numbers are the record's, its commands resolve to its config, its record can be taken along."""
    out = tmp_path / "site"
    board = ["leaderboard", "--runs-dir", small_run.path.parent, "--format", "html"]
    assert str(out / "index.html") in call(*board, "--out", out)[0]
    place = out / "runs" / small_run.record.id
    page = Page(place / "index.html")
    for cell in small_run.record.cells:
        assert f"{100 * cell.accuracy:.1f}" in page.text
    assert "Worst cases" in page.text
    assert read_record(place) == small_run.record
    commands = re.findall(r"<pre[^>]*>(.*?)</pre>", (place / "index.html").read_text("utf-8"), re.DOTALL)
    assert commands[0] == "advbench run --config record.json"
    monkeypatch.chdir(place)
    assert [resolved(*words_of(command)[1:]) for command in commands] == [small_run.config] * 2
    monkeypatch.undo()
    listed, _ = call("leaderboard", "--runs-dir", out / "runs", "--format", "csv")
    assert small_run.record.config["defense"] in listed


def test_attacks_of_one_name_trained_differently_make_no_command(make_record: Make) -> None:
    """``--train-set`` cannot tell them apart, so the page says so instead of giving another run."""
    texts = ["pgd:eps=0.1,steps=5", "pgd:eps=0.2,steps=9"]
    command = spelled_out(make_record(sequence=texts, training=texts).config)
    assert command.text is None
    assert "pgd is listed twice" in command.note


@pytest.mark.parametrize("evil", ["x\x03\nrm -rf ~", "x\x1b]0;y\x07", "a\u202eb"])
def test_a_command_cannot_break_out_of_its_quotes(evil: str, make_record: Make) -> None:
    """What cannot be seen is not copied; what can be seen is quoted for a shell."""
    assert spelled_out(make_record(params={"mix": "a", evil: 1}).config).text is None
    words = words_of(spelled_out(make_record(params={"mix": "$(rm -rf ~); `x` 'y'"}).config).text)
    assert words[words.index("--set") + 1] == "mix=\"$(rm -rf ~); `x` 'y'\""


def test_the_command_of_an_evaluation(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``advbench eval`` with the record's attacks, points and seed; none for a module given from Python."""
    origin = {"model": "models:make", "weights": "w.safetensors", "mean": [0.5], "std": [0.25]}
    common = {"regime": "eval", "sequence": [], "training": [], "plan": {}, "pretrain": {}, "unseen": []}
    attacks = ["fgsm:eps=0.2", "pgd:eps=0.2,steps=3"]
    record = make_record("mine", params=origin, eval=attacks, seed=4, **common)
    command = spelled_out(record.config)
    assert "w.safetensors" in command.note
    assert "imports the code of models:make" in command.note
    caught: dict[str, Any] = {}

    def evaluate(model: str, dataset: str, **given: Any) -> None:
        caught.update(given, model=model, dataset=dataset)
        raise RecordError("far enough")

    monkeypatch.setattr("advbench.external.evaluate_model.evaluate_model", evaluate)
    assert invoke(words_of(command.text)[1:]) == 2
    assert caught["attacks"] == ",".join(attacks)
    expected = {"model": "models:make", "dataset": "digits", "points": "100", "seed": 4, "name": "mine"}
    expected |= {"mean": [0.5], "std": [0.25], "weights": Path("w.safetensors"), "threads": 1}
    assert {key: caught[key] for key in expected} == expected
    given = make_record("Net", params={"model": "Net", "weights": None}, eval=attacks, **common)
    assert spelled_out(given.config).text is None
    out = site_of(tmp_path / "site", [record, given])
    pages = [Page(out / "runs" / one.id / "index.html").text for one in (record, given)]
    assert all("What it withstands" in text and "advbench run" not in text for text in pages)
    assert "passed as a Python object" in pages[1]


# What the pages say


def test_rows_stand_where_they_belong(make_record: Make, tmp_path: Path) -> None:
    """Suspect rows below, target-aware ones apart, seeds together, mean and deviation, the best in bold."""
    records = [make_record("at", seed=seed, robust=60 + 10 * seed) for seed in range(2)]
    records += [make_record("mola-grad", robust=96, clean=99, target_aware=True)]
    records += [make_record("fake", robust=94, verdict="suspect", flags=("zero-gradient",))]
    records += [make_record("air", robust=40, params={"sigma": 0.1})]
    records += [make_record("air", robust=30, params={"sigma": 0.2}, name="other")]
    text = (site_of(tmp_path / "site", records) / "index.html").read_text("utf-8")
    bodies = re.findall(r'<tbody class="s(\d)">(.*?)</tbody>', text, re.DOTALL)
    names = [(kind, re.findall(r'<th scope="row"><a [^>]*>(.*?)</a>', body)) for kind, body in bodies]
    assert names == [("0", ["at", "air", "air"]), ("1", ["fake"]), ("2", ["mola-grad"])]
    at = bodies[0][1].split("</tr>")[0]
    # 60: (7 + 50) / 200; 70: (8 + 60) / 200
    assert "<b>31.2</b><small>± 3.9</small>" in at
    assert 'aria-label="run of seed 0"' in at
    assert "sigma=0.1" in bodies[0][1]
    assert "never ranked above" in bodies[1][1]
    assert "zero-gradient" in bodies[1][1]


def test_a_run_s_page_shows_the_audit(make_record: Make, tmp_path: Path) -> None:
    """Flags with their evidence, probes, checks, environment; no worst case without stored outcomes."""
    record = make_record(verdict="suspect", flags=("zero-gradient",))
    page = Page(site_of(tmp_path / "site", [record], tmp_path) / "runs" / record.id / "index.html")
    for said in ("what zero-gradient means", "share of points", "0.75", "nan-logits", "transferred points"):
        assert said in page.text
    for said in ("abcdef012345", "0123456789abcdef", "2.15.0", "85,066", "cpu (x86_64)"):
        assert said in page.text
    assert "Worst cases" not in page.text


def test_strangers_text_is_text(make_record: Make, tmp_path: Path) -> None:
    """No tag, attribute or script that a record names gets into a page, nor can it end the data's element."""
    more = dict.fromkeys(("fingerprint", "model", "dataset"), EVIL)
    record = make_record(EVIL, flags=(EVIL,), verdict="suspect", params={EVIL: EVIL}, **more)
    plain = make_record("at", flags=("x",), verdict="suspect", params={"a": "b"})
    harmless = site_of(tmp_path / "plain", [plain, make_record("at", seed=1, params={"a": "c"})])
    out = site_of(tmp_path / "site", [record, make_record(EVIL, seed=1, params={EVIL: 2}, name=f"../{EVIL}")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "site"]
    pages = sorted(out.rglob("*.html"))
    assert len(pages) == 3
    known = {tag for path in harmless.rglob("*.html") for tag, _ in Page(path).elements} | {"small"}
    for path in pages:
        page = Page(path)
        assert EVIL in page.text
        assert {tag for tag, _ in page.elements} <= known
        scripts = [attributes for tag, attributes in page.elements if tag == "script"]
        data = {"type": "application/json", "id": "data"}
        assert all("src" in script or script == data for script in scripts)
        named = {key for _, attributes in page.elements for key in attributes}
        assert not [key for key in named if key.startswith("on") or key == "style"]
        links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
        assert all(re.fullmatch(r"(#main|[A-Za-z0-9_./-]+)", link) for link in links)
        policy = next(attributes for _, attributes in page.elements if "http-equiv" in attributes)["content"]
        assert "'unsafe" not in policy
        assert "default-src 'none'" in policy


def test_every_link_leads_somewhere(make_record: Make, tmp_path: Path) -> None:
    """Relative, inside the site, and there."""
    out = site_of(tmp_path / "site", [make_record("at", seed=seed) for seed in range(3)])
    for path in out.rglob("*.html"):
        for tag, attributes in Page(path).elements:
            link = attributes.get("href" if tag in ("a", "link") else "src")
            if tag in ("a", "link", "script") and link and not link.startswith("#"):
                assert (path.parent / link).resolve().is_file(), link
                assert (path.parent / link).resolve().is_relative_to(out.resolve())


def test_the_same_records_give_the_same_bytes(make_record: Make, tmp_path: Path) -> None:
    """No clock and no order of files gets in."""
    records = [make_record("at", seed=seed) for seed in range(2)]
    first, second = (site_of(tmp_path / name, records) for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 9
    assert [(first / name).read_bytes() for name in files] == [(second / name).read_bytes() for name in files]


def test_no_runs_and_runs_without_anything(make_record: Make, tmp_path: Path) -> None:
    """Neither is an error."""
    assert "no finished runs yet" in Page(site_of(tmp_path / "none", []) / "index.html").text
    tree = make_record("odd", model={"layers": 3}, pretrain=5, unseen=7).dump()
    tree |= {"attacks": [], "stages": [], "cells": [], "per_class": [], "metrics": {}}
    tree["audit"] |= {"probes": [], "flags": []}
    record = Record.model_validate_json(json.dumps(tree))
    page = Page(site_of(tmp_path / "bare", [record]) / "runs" / record.id / "index.html")
    assert "not one of this program's" in page.text


def test_colours_of_the_heat_map_can_be_read() -> None:
    """Black or white on each of the 21 colours, light and dark, contrasts by 4.5 (WCAG AA)."""
    css = (ROOT / "leaderboards" / "site" / "assets" / "site.css").read_text("utf-8")
    found = re.findall(r"\.v(\d+) \{ background: (#\w{6}); color: (#\w{6}); \}", css)
    assert sorted(int(level) for level, _, _ in found) == sorted([*range(21), *range(21)])
    for _, ground, ink in found:
        assert contrast(rgb(ground), rgb(ink)) >= 4.5


def test_the_picture_and_its_front() -> None:
    """Points that none beats in both; suspect and target-aware ones are drawn but are not of the front."""
    values = [(0.9, 0.5), (0.95, 0.4), (0.9, 0.4), (0.99, 0.9), (0.99, 0.9)]
    kinds = ["ok", "ok", "ok", "suspect", "aware"]
    points = [Point(i, f"p{i}", *values[i], None, 0.01, kind) for i, kind in enumerate(kinds)]
    assert [point.label for point in pareto(points)] == ["p0", "p1"]
    first, second, *rest = trade_off(points).marks
    assert len(rest) == 3
    assert (first.x < second.x, first.y < second.y) == (True, True)
    assert trade_off(points[:1]) is None
    equal = trade_off([Point(i, "same", 1.0, 0.0, None, None, "ok") for i in range(2)])
    assert len(equal.x_ticks) >= 2


def test_names() -> None:
    """Directories that no system takes for another."""
    found = slugs(["a", "A", "../..", "x/y", "", "con", "a" * 300, "é b"])
    assert found == ["a", "A-2", "run", "x-y", "run-2", "run-con", "a" * 100, "b"]


# Whole or not there


def test_an_earlier_site_is_replaced(make_record: Make, tmp_path: Path) -> None:
    """All of it: a run that is gone loses its page; an empty directory is taken, and a link followed."""
    out = tmp_path / "real"
    out.mkdir()
    link = tmp_path / "link"
    link.symlink_to(out)
    site_of(link, [make_record("at", name="first")])
    assert (out / "runs" / "first" / "index.html").is_file()
    site_of(link, [make_record("at", name="second")])
    assert [path.name for path in (out / "runs").iterdir()] == ["second"]
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("kind", ["file", "below a file", "foreign", "added"])
def test_what_is_not_ours_stays(
    kind: str, make_record: Make, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, call: Call
) -> None:
    """One line, exit code 2, and everything as it was."""
    runs_dir = stored(tmp_path_factory.mktemp("runs"), make_record())
    out = tmp_path / "site"
    if kind in ("file", "below a file"):
        out.write_text("mine")
        out = out / "deeper" if kind == "below a file" else out
    elif kind == "foreign":
        out.mkdir()
        (out / "index.html").write_text("mine")
    else:
        site_of(out, [make_record()])
        (out / ".git").mkdir()
    before = contents(tmp_path)
    _, error = call("leaderboard", "--runs-dir", runs_dir, "--format", "html", "--out", out, code=2)
    assert error.count("\n") == 1
    assert "--out" in error
    assert contents(tmp_path) == before


def test_a_build_that_fails_leaves_the_old_site(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong half-way."""
    out = site_of(tmp_path / "site", [make_record("at", name="first")])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leaderboards.site.build._write_run", full)
    with pytest.raises(RecordError, match="No space left on device"):
        site_of(out, [make_record("at", name="second")])
    assert [path.name for path in (out / "runs").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_killed_builds_left_goes(make_record: Make, tmp_path: Path) -> None:
    """Of this very directory and of dead processes only."""
    gone = forked(lambda: None)
    gone.join(60)
    pid = gone.pid
    kept = [f".site.{os.getpid()}.00000000.tmp", f".other.{pid}.00000000.tmp"]
    for name in [f".site.{pid}.00000000.tmp", *kept]:
        (tmp_path / name).mkdir()
    site_of(tmp_path / "site", [make_record()])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["site", *kept])


def test_a_site_needs_a_directory(call: Call) -> None:
    """It is not printed."""
    assert "--format html needs --out DIR" in call("leaderboard", "--format", "html", code=2)[1]


def test_strangers_who_share_an_id_have_pages_of_their_own(make_record: Make, tmp_path: Path) -> None:
    """The page that a row leads to is of its own record."""
    records = [make_record("at", robust=50, name="same"), make_record("air", robust=70, name="same")]
    found = rows(records)
    assert [row.runs for row in found] == [("same",), ("same",)]
    out = site_of(tmp_path / "site", records)
    titles = [defense_of(out / "runs" / name) for name in ("same", "same-2")]
    assert titles == [row.defense for row in found]
    with pytest.raises(RecordError, match="its record is not available"):
        write_site(tmp_path / "other", found, records[:1])


def test_records_of_a_runs_directory(make_record: Make, tmp_path: Path, call: Call) -> None:
    """A damaged record is a warning, as in every other format."""
    runs_dir = stored(tmp_path / "runs", *(make_record("at", name=name) for name in ("one", "two")))
    (runs_dir / "two" / "record.json").write_text('{"schema": 9}')
    out, err = call("leaderboard", "--runs-dir", runs_dir, "--format", "html", "--out", tmp_path / "site")
    assert "unknown record schema 9" in err
    assert out.count("\n") == 1


def test_what_one_method_alone_measures_stands_last(make_record: Make, tmp_path: Path) -> None:
    """A board's audit is not pushed out of sight by a router's agreement or a student's PSNR."""
    one, other = make_record(defense="at"), make_record(defense="mid")
    extended = {**other.metrics, "adversarial_psnr": 16.9}
    board = rows([one, other.model_copy(update={"metrics": extended})], under=["robust.pgd"])
    write_site(tmp_path / "site", board, [one, other])
    page = (tmp_path / "site" / "index.html").read_text("utf-8")
    headings = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page)
    assert headings[-1] == "adversarial psnr (dB)"
    assert headings[3:6] == ["robust", "pgd", "clean"]
    assert headings.index("audit") < headings.index("training (s)") < len(headings) - 1
    widths = {len(re.findall(r"<t[hd]", line)) for line in re.findall(r"<tr><td.*?</tr>", page, re.DOTALL)}
    assert widths == {len(headings)}
