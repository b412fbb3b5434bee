"""Names come from strangers: no control character of theirs reaches a terminal, no formula a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from advbench.cli.main import invoke
from advbench.runs.saved import Run
from advbench.runtime.console import SafeConsole
from advbench.runtime.events import Event
from advbench.runtime.progress import describe
from leaderboards import find_results, json_bytes, rows, to_csv, to_markdown, write_checksums
from leaderboards.boards.sheets import View
from leaderboards.boards.tables import to_text
from leaderboards.printable import in_cell, in_line, printable

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]
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
def runs(small_run: Run, tmp_path: Path) -> Path:
    """A directory of one run, whose record holds such names wherever there is room for one."""
    place = tmp_path / "runs" / f"a{PLACE}"
    shutil.copytree(small_run.path, place)
    tree = json.loads((place / "record.json").read_text())
    tree["id"] = EVIL
    for key in ("defense", "dataset", "model"):
        tree["config"][key] = EVIL
    tree["config"]["params"] = {EVIL: EVIL}
    tree["environment"]["data"]["name"] = EVIL
    tree["audit"]["verdict"] = "suspect"
    tree["audit"]["flags"] = [{"code": EVIL, "message": EVIL, "evidence": {}}]
    tree["audit"]["surrogate"] = EVIL
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
    assert printable("\x1b[31m\x00\t\r\x7f\x9b\u202e\U000e0001") == (
        "\\x1b[31m\\x00\\t\\r\\u007f\\u009b\\u202e\\udb40\\udc01"
    )
    assert (
        printable("lines\nstay, and so do é, 犬, ±, ─ and \u00a0")
        == "lines\nstay, and so do é, 犬, ±, ─ and \u00a0"
    )
    assert in_line("one\ntwo") == "one\\ntwo"
    assert is_safe(in_line(EVIL))
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800):
        assert chr(code) not in in_line(f"a{chr(code)}b")


def test_json_stays_json_and_means_the_same() -> None:
    for indent in (None, 1):
        text = json.dumps({EVIL: EVIL}, ensure_ascii=False, indent=indent)
        assert json.loads(printable(text)) == {EVIL: EVIL}
        assert is_safe(printable(text))


@pytest.mark.parametrize("format", ["table", "csv", "json", "markdown", "latex"])
def test_leaderboards(format: str, runs: Path, capsys: Captured) -> None:
    for more in ([], ["--group-by", "defense"]):
        assert invoke(["leaderboard", "--runs-dir", str(runs), "--format", format, *more]) == 0
        found = capsys.readouterr()
        assert "red" in found.out
        assert is_safe(found.out)
        assert is_safe(found.err)


def test_text_of_leaderboards(runs: Path) -> None:
    """Also what Python gives, which somebody prints or opens."""
    board = rows(find_results(runs)[0])
    for write in (to_csv, to_markdown, to_text):
        assert is_safe(write(board))
        assert is_safe(write(board, View.of(pivot="defense,model,average")))


def test_commands(runs: Path, capsys: Captured) -> None:
    (run,) = runs.iterdir()
    commands = {
        "show": ["show", str(run)],
        "runs": ["runs", "--runs-dir", str(runs)],
        "runs json": ["runs", "--runs-dir", str(runs), "--format", "json"],
        "check": ["runs", "check", "--runs-dir", str(runs)],
        "gc": ["runs", "gc", "--runs-dir", str(runs)],
        "verify": ["verify", str(run)],
        "verify all": ["verify", str(runs), str(runs)],
        "submit": ["submit", str(run), "--out", str(runs / f"{PLACE}.zip")],
        "audit": ["audit", str(run)],
        "plot": ["plot", "images", str(run), "--out", str(runs.parent / "out.png")],
        "option": ["leaderboard", "--runs-dir", str(runs), "--rank-by", EVIL],
        "missing": ["show", EVIL],
        "model": ["eval", "--model", EVIL],
    }
    for name, command in commands.items():
        invoke(command)
        found = capsys.readouterr()
        assert found.out + found.err, name
        assert is_safe(found.out), name
        assert is_safe(found.err), name


def test_names_of_files(small_run: Run, tmp_path: Path, monkeypatch: Any, capsys: Captured) -> None:
    """An end of a line in the name of a file or a directory makes no line."""
    monkeypatch.chdir(tmp_path)
    name, empty = "a\nforged: ok", "b\nforged"
    shutil.copytree(small_run.path, tmp_path / "runs" / name)
    (tmp_path / empty).mkdir()
    board = ["leaderboard", "--runs-dir", "runs"]
    for command in (
        ["submit", f"runs/{name}"],
        ["plot", "heatmap", f"runs/{name}", "--out", "b\nforged.svg"],
        [*board, "--format", "csv", "--out", "b\nforged.csv"],
        ["leaderboard", "--runs-dir", empty],
        ["runs", "--runs-dir", empty],
        ["runs", "gc", "--runs-dir", empty],
        ["defenses", "new", "mine", "--dir", empty],
        ["show", f"runs/{name}"],
    ):
        assert invoke(command) == 0, command
        found = capsys.readouterr()
        assert "\\nforged" in found.out, command
        assert is_safe(found.out), command
        assert is_safe(found.err), command


def test_damaged_records(runs: Path, capsys: Captured) -> None:
    """Errors repeat what a record holds, and where it lies."""
    (run,) = runs.iterdir()
    tree = json.loads((run / "record.json").read_text())
    (run / "record.json").write_bytes(json_bytes({**tree, EVIL: 1}))
    for command in (
        ["show", str(run)],
        ["leaderboard", "--runs-dir", str(runs)],
        ["runs", "--runs-dir", str(runs)],
    ):
        invoke(command)
        found = capsys.readouterr()
        assert "unknown key" in found.out + found.err
        assert is_safe(found.out)
        assert is_safe(found.err)


def test_the_site(runs: Path, tmp_path: Path) -> None:
    assert (
        invoke(["leaderboard", "--runs-dir", str(runs), "--format", "html", "--out", str(tmp_path / "site")])
        == 0
    )
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


def test_progress(capsys: Captured) -> None:
    from advbench.runtime.progress import reporter

    with reporter() as listener:
        listener(Event("note", elapsed=1.0, text=EVIL))
    assert "forged" in describe(Event("note", elapsed=1.0, text=EVIL))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert is_safe(err)


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    "\n=1",
    '=HYPERLINK("x","y")',
    "\uff1d1",
    "\u00a0=1",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_cells_that_a_spreadsheet_would_run(name: str, small_run: Run, tmp_path: Path) -> None:
    """A quote stands before them; numbers, and texts that only hold such signs, are as they were."""
    assert in_cell(name).startswith("'")
    for harmless in ("a=1", "air", "", "[1, -2]", "1-2", "x@y"):
        assert in_cell(harmless) == harmless
    place = tmp_path / "runs" / "one"
    shutil.copytree(small_run.path, place)
    tree = json.loads((place / "record.json").read_text())
    tree["config"] |= {"defense": name, "model": name, "dataset": name, "params": {"evil": name}}
    tree["metrics"]["backward_transfer"] = -0.25
    (place / "record.json").write_bytes(json_bytes(tree))
    write_checksums(place, (place / "record.json").read_bytes())
    board = rows(find_results(tmp_path / "runs")[0])
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
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "\\x1b[31mred" in done.stderr
    assert not CONTROL.search(done.stderr)


def test_every_command_writes_through_the_safe_ways() -> None:
    """No other function of the command line, or of what it calls, writes to a terminal."""
    safe = {ROOT / "advbench" / "cli" / name for name in ("echo.py",)}
    safe |= {ROOT / "advbench" / "runtime" / name for name in ("console.py", "timeouts.py")}
    # One writes a file, one ends the process from another thread.
    safe |= {ROOT / "leaderboards" / "boards" / "tables.py"}
    found = []
    for package in ("advbench", "leaderboards", "attacks_pool", "defenses"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and path not in safe:
                    name = ast.unparse(node.func)
                    if (
                        name in ("print", "typer.echo", "typer.secho", "Console", "rich.print")
                        or "stdout.write" in name
                    ):
                        found.append(f"{path}:{node.lineno}")
    assert not found
