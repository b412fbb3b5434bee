"""Names come from strangers: no control character of theirs reaches a terminal, no formula a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, python
from record_trees import scored
from rich.table import Table
from rich.text import Text

from advbench.cli import echo
from advbench.cli.main import invoke
from advbench.runs.saved import Run
from advbench.runtime.console import SafeConsole
from advbench.runtime.events import Event
from advbench.runtime.progress import describe, reporter
from leaderboards import find_results, json_bytes, rows, to_csv, to_markdown, write_checksums
from leaderboards.boards.sheets import View
from leaderboards.boards.tables import to_text
from leaderboards.printable import in_cell, in_line, printable

Said = Callable[..., str]
EVIL = "\x1b[31mred\x1b]0;title\x07\x00\x9b2J\u202etxt\u2066\u200b\x7f\r\nforged: confirmed\t"
EVIL += "[bold]b[/bold] [link=x]l[/link]"
PLACE = EVIL.replace("/", "").replace("\0", "")
"""The same as a file's name."""
CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def is_safe(text: str) -> bool:
    """Whether nothing in it is obeyed, and no name made a line of its own."""
    return not CONTROL.search(text) and not any(line.startswith("forged") for line in text.splitlines())


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints on stdout and stderr, in which nothing may be obeyed; its exit code is open."""

    def call(*command: object) -> str:
        invoke([str(one) for one in command])
        printed = capsys.readouterr()
        assert is_safe(printed.out), command
        assert is_safe(printed.err), command
        return printed.out + printed.err

    return call


@pytest.fixture
def runs(small_run: Run, tmp_path: Path) -> Path:
    """A directory of one run, whose record holds such names wherever there is room for one."""
    place = tmp_path / "runs" / f"a{PLACE}"
    shutil.copytree(small_run.path, place)
    tree = json.loads((place / "record.json").read_text())
    tree["id"] = EVIL
    tree["config"] |= dict.fromkeys(("defense", "dataset", "model"), EVIL) | {"params": {EVIL: EVIL}}
    tree["environment"]["data"]["name"] = EVIL
    flags = [{"code": EVIL, "message": EVIL, "evidence": {}}]
    tree["audit"] |= {"verdict": "suspect", "flags": flags, "surrogate": EVIL}
    for row in tree["per_class"]:
        row["class"] = EVIL
    tree["metrics"][EVIL] = 0.5
    text = tree["attacks"][0]["text"]
    inside = json.dumps(text)[1:-1]
    written = json.dumps(tree).replace(inside, json.dumps(f"evil{EVIL}:eps=0.2")[1:-1])
    (place / "record.json").write_text(written)
    write_checksums(place, (place / "record.json").read_bytes())
    return tmp_path / "runs"


def test_what_is_spelled_out() -> None:
    spelled = "\\x1b[31m\\x00\\t\\r\\u007f\\u009b\\u202e\\udb40\\udc01"
    assert printable("\x1b[31m\x00\t\r\x7f\x9b\u202e\U000e0001") == spelled
    plain = "lines\nstay, and so do é, 犬, ±, ─ and \u00a0"
    assert printable(plain) == plain
    assert in_line("one\ntwo") == "one\\ntwo"
    assert is_safe(in_line(EVIL))
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800):
        assert chr(code) not in in_line(f"a{chr(code)}b")


def test_json_stays_json_and_means_the_same() -> None:
    for indent in (None, 1):
        text = json.dumps({EVIL: EVIL}, ensure_ascii=False, indent=indent)
        assert json.loads(printable(text)) == {EVIL: EVIL}
        assert is_safe(printable(text))


def test_leaderboards(runs: Path, said: Said) -> None:
    for format in ("table", "csv", "json", "markdown", "latex"):
        for more in ([], ["--group-by", "defense"]):
            assert "red" in said("leaderboard", "--runs-dir", runs, "--format", format, *more)


def test_text_of_leaderboards(runs: Path) -> None:
    """Also what Python gives, which somebody prints or opens."""
    board = rows(find_results(runs)[0])
    for write in (to_csv, to_markdown, to_text):
        assert is_safe(write(board))
        assert is_safe(write(board, View.of(pivot="defense,model,average")))


def test_commands(runs: Path, said: Said) -> None:
    (run,) = runs.iterdir()
    for command in (
        ["show", run],
        ["runs", "--runs-dir", runs],
        ["runs", "--runs-dir", runs, "--format", "json"],
        ["runs", "check", "--runs-dir", runs],
        ["runs", "gc", "--runs-dir", runs],
        ["verify", run],
        ["verify", runs, runs],
        ["submit", run, "--out", runs / f"{PLACE}.zip"],
        ["audit", run],
        ["plot", "images", run, "--out", runs.parent / "out.png"],
        ["leaderboard", "--runs-dir", runs, "--rank-by", EVIL],
        ["show", EVIL],
        ["eval", "--model", EVIL],
    ):
        assert said(*command), command


def test_names_of_files(small_run: Run, tmp_path: Path, monkeypatch: Any, said: Said) -> None:
    """An end of a line in the name of a file or a directory makes no line."""
    monkeypatch.chdir(tmp_path)
    name, empty = "a\nforged: ok", "b\nforged"
    shutil.copytree(small_run.path, tmp_path / "runs" / name)
    (tmp_path / empty).mkdir()
    for command in (
        ["submit", f"runs/{name}"],
        ["plot", "heatmap", f"runs/{name}", "--out", "b\nforged.svg"],
        ["leaderboard", "--runs-dir", "runs", "--format", "csv", "--out", "b\nforged.csv"],
        ["leaderboard", "--runs-dir", empty],
        ["runs", "--runs-dir", empty],
        ["runs", "gc", "--runs-dir", empty],
        ["defenses", "new", "mine", "--dir", empty],
        ["show", f"runs/{name}"],
    ):
        found = said(*command)
        assert "\\nforged" in found, command
        assert not found.startswith("error"), command


def test_damaged_records(runs: Path, said: Said) -> None:
    """Errors repeat what a record holds, and where it lies."""
    (run,) = runs.iterdir()
    tree = json.loads((run / "record.json").read_text())
    (run / "record.json").write_bytes(json_bytes({**tree, EVIL: 1}))
    for command in (["show", run], ["leaderboard", "--runs-dir", runs], ["runs", "--runs-dir", runs]):
        assert "unknown key" in said(*command)


def test_the_site(runs: Path, tmp_path: Path, said: Said) -> None:
    said("leaderboard", "--runs-dir", runs, "--format", "html", "--out", tmp_path / "site")
    assert (tmp_path / "site" / "index.html").exists()
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text("utf-8")
        body = re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
        assert not CONTROL.search(body)
        assert "[bold]" in text
        for letter in "\x00\x1b\x07":
            assert letter not in text


@pytest.mark.parametrize("made", [EVIL, Text(EVIL), Text.assemble((EVIL, "bold"))])
def test_a_terminal_gets_the_console_s_own_codes_alone(made: Any) -> None:
    """However a text comes to the console, in a table or by itself."""
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(made)
    for one in (made, table):
        file = io.StringIO()
        console = SafeConsole(file=file, force_terminal=True, width=400, color_system="truecolor")
        console.print(one, style="cyan")
        shown = file.getvalue()
        assert "\x1b[31mred" not in shown
        assert "\\x1b[31mred" in shown
        assert "[bold]b[/bold] [link=x]l[/link]" in shown
        assert not CONTROL.search(re.sub("\x1b\\[[0-9;]*m", "", shown))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter() as listener:
        listener(Event("note", elapsed=1.0, text=EVIL))
    assert "forged" in describe(Event("note", elapsed=1.0, text=EVIL))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert is_safe(err)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1"]
FORMULAS += ['=HYPERLINK("x","y")', "\uff1d1", "\u00a0=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_cells_that_a_spreadsheet_would_run(name: str) -> None:
    """A quote stands before them; numbers, and texts that only hold such signs, are as they were."""
    assert in_cell(name).startswith("'")
    for harmless in ("a=1", "air", "", "[1, -2]", "1-2", "x@y"):
        assert in_cell(harmless) == harmless
    config = {"model": name, "dataset": name, "params": {"evil": name}}
    board = rows([scored(name, metrics={"backward_transfer": -0.25}, **config)])
    for view in (
        View(),
        View.of("label,params.evil,model,dataset,backward_transfer_mean"),
        View.of(group_by="model"),
        View.of(pivot="defense,model,backward"),
    ):
        found = list(csv.reader(io.StringIO(to_csv(board, view))))
        cells = [cell for line in found for cell in line]
        assert any(cell.startswith("'") for cell in cells)
        assert "-0.25" in cells
        for cell in cells:
            assert not cell.lstrip().startswith(("=", "+", "@", "\uff1d")), cell
            assert not cell.startswith(("\t", "\r"))
            assert not cell.startswith("-") or float(cell) < 0


@pytest.mark.parametrize("how", ["warnings.warn(name)", "raise RuntimeError(name)"])
def test_python_s_own_words(how: str) -> None:
    """Warnings of libraries, such as of a letter that a font lacks, and tracebacks."""
    script = f"""
        import sys, warnings
        from advbench.cli import main

        name = {EVIL!r}

        def invoke(_):
            {how}
            return 0

        main.invoke = invoke
        main.main([])
    """
    done = python("-c", textwrap.dedent(script))
    assert "\\x1b[31mred" in done.stderr
    assert not CONTROL.search(done.stderr)


def test_every_command_writes_through_the_safe_ways() -> None:
    """No other function of the command line, or of what it calls, writes to a terminal."""
    # One of them writes a file, one ends the process from another thread.
    safe = {"cli/echo.py", "runtime/console.py", "runtime/timeouts.py", "boards/tables.py"}
    writers = re.compile(r"(?<![\w.])(print|(typer|rich)\.(echo|secho|print)|Console|[\w.]*stdout\.write)\(")
    found = []
    for package in ("advbench", "leaderboards", "attacks_pool", "defenses"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text("utf-8")
            if f"{path.parent.name}/{path.name}" in safe or not writers.search(text):
                continue
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            found += [f"{path}:{one.lineno}" for one in calls if writers.match(f"{ast.unparse(one.func)}(")]
    assert not found


def test_what_a_defense_warns_of_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the place in the code, which other warnings keep."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    echo.guard()
    said = warnings.formatwarning("air: too\nlittle", UserWarning, str(echo.DEFENSES / "air.py"), 7)
    assert said == "warning: air: too little\n"
    assert "elsewhere.py:7: UserWarning" in warnings.formatwarning("odd", UserWarning, "elsewhere.py", 7)
