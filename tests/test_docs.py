"""The documentation is true: commands parse, examples run, links lead somewhere, references are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import ROOT, here, python

import advbench
import attacks_pool
import defenses
import leaderboards
from advbench.audit import CHECKS
from advbench.cli.main import app
from advbench.config.options import Options
from advbench.config.resolve import resolve
from advbench.data import DataSet
from attacks_pool import InputError, pool
from defenses import registry

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
TOUR = ROOT / "docs" / "tour.ipynb"
FENCE = re.compile(r"^(`{3,}|:{3,})(\S*)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([\w-]+\.(?:py|toml|yaml))`[^\n`]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMENTED = re.compile(r"^```\w+\n(# ([\w-]+\.(?:py|toml|yaml))\n.*?)^```", re.MULTILINE | re.DOTALL)
OWN = {
    name
    for text in PAGES.values()
    for name in re.findall(r'(?m)(?:^ *|Info\()name="([\w-]+)"', text)
    + re.findall(r"(?m)^advbench \w+ new ([\w-]+)", text)
}
"""Attacks and defenses that the pages define."""
COMMAND = typer.main.get_command(app)
LISTS_OF_ATTACKS = ("sequence", "unseen", "eval", "attacks")
WORDS = {"all", "auto", "none"}


def shell_blocks(page: str, *, run: bool = False) -> list[str]:
    """The blocks of shell commands of a page; with ``run`` those that are marked ``sh run`` alone."""
    return [
        body
        for _, language, more, body in FENCE.findall(PAGES[page])
        if language == "sh" and (not run or more.split() == ["run"])
    ]


def commands(block: str) -> Iterator[list[str]]:
    """The arguments of each call of advbench in a block."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        words.whitespace_split = True
        given: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if (at := program(given)) is not None:
                    yield given[at + 1 :]
                given = []
            else:
                given.append(word)


def program(words: list[str]) -> int | None:
    """Where ``advbench`` stands in a command: first, after settings, or after ``-m``; else None."""
    for at, word in enumerate(words):
        if word.rpartition("/")[2] == "advbench":
            before = [one for one in words[:at] if not re.fullmatch(r"[A-Z_]+=.*", one)]
            return at if not before or before[-1] == "-m" else None
    return None


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the command line's own parser makes of a command."""
    context = COMMAND.make_context("advbench", list(arguments))
    while getattr(context.command, "commands", None):
        left = [*context._protected_args, *context.args]
        if not left:
            break
        name, command, rest = context.command.resolve_command(context, left)
        context = command.make_context(name, rest, parent=context)
    return dict(context.params)


def given_texts(given: dict[str, Any], *options: str) -> list[str]:
    """The texts of options, some of which may be given several times."""
    values = [given.get(option) for option in options]
    return [text for value in values if value for text in ([value] if isinstance(value, str) else value)]


def test_the_reader_of_commands_sees_what_is_wrong(digits: DataSet) -> None:
    block = 'OMP_NUM_THREADS=1 advbench run --epochs 1 \\\n  --set "lr=0.1"  # why\n'
    block += "cd x && advbench show r | tail -1\n"
    block += "torchrun -m advbench runs; pip install advbench\n"
    assert list(commands(block)) == [["run", "--epochs", "1", "--set", "lr=0.1"], ["show", "r"], ["runs"]]
    assert parse(["run", "--epochs", "1"])["epochs"] == 1
    for wrong in (["run", "--epoch", "1"], ["run", "--epochs", "one"], ["show"], ["no-such-command"]):
        with pytest.raises(Exception, match=r"(?i)no such|valid|missing"):
            parse(wrong)
    asked = ["run", "--defense", "air", "--set", "lambda_q=1"]
    given = parse(asked)
    with pytest.raises(InputError, match="lambda_q"):
        resolve_run(asked, given, digits)


def resolve_run(arguments: list[str], given: dict[str, Any], digits: DataSet) -> None:
    """Resolve what a run on the digits is asked to do, as it would itself before it begins."""
    elsewhere = any(given.get(name) for name in ("config", "resume", "dataset", "model"))
    if arguments[0] != "run" or elsewhere or any(name in text for name in OWN for text in arguments):
        return
    options = {name.rstrip("_"): value for name, value in given.items() if value}
    for name in ("set", "train_set"):
        if name in options:
            options[name] = dict(pair.split("=", 1) for pair in options[name])
    known = {name: value for name, value in options.items() if name in Options.model_fields}
    resolve(Options.of(known), digits)


@pytest.mark.parametrize("page", [page for page in PAGES if shell_blocks(page)])
def test_commands_parse(page: str, digits: DataSet) -> None:
    """By the command line's parser; attacks, defenses and the settings of a run are known too."""
    for block in shell_blocks(page):
        for arguments in commands(block):
            try:
                given = parse(arguments)
                for text in given_texts(given, *LISTS_OF_ATTACKS):
                    if text not in WORDS and not any(name in text for name in OWN):
                        pool.sequence(text, budget="digits")
                for name in given_texts(given, "defense"):
                    if name not in OWN and ":" not in name:
                        registry.resolve(name)
                resolve_run(arguments, given, digits)
            except (typer.Exit, SystemExit):
                pass  # --help and --version
            except Exception as error:
                if not isinstance(error, InputError) and not hasattr(error, "format_message"):
                    raise
                pytest.fail(f"advbench {shlex.join(arguments)}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if shell_blocks(page, run=True)])
def test_marked_commands_run(page: str, tmp_path: Path) -> None:
    """Block after block in one folder, beside the files that the page names."""
    folder, programs = tmp_path / "here", tmp_path / "bin"
    for made in (folder, programs):
        made.mkdir()
    named = [*NAMED.findall(PAGES[page]), *((two, one) for one, two in COMMENTED.findall(PAGES[page]))]
    for name, text in named:
        (folder / name).write_text(text, "utf-8")
    for name, call in {"advbench": " -m advbench", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{call} "$@"\n')
        (programs / name).chmod(0o755)
    script = "set -euo pipefail\n" + "\n".join(shell_blocks(page, run=True))
    found = here(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=found, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def cells(kind: str) -> list[dict[str, Any]]:
    """The notebook's cells of a kind."""
    return [cell for cell in json.loads(TOUR.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_tour_is_stored_with_its_outputs() -> None:
    """In order, without errors and without the places where its files lay."""
    assert [cell["execution_count"] for cell in cells("code")] == [*range(1, len(cells("code")) + 1)]
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert len(outputs) >= 5
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream", "display_data"}
    assert not re.search(r"/tmp|/var/|/home|site-packages|\\\\", json.dumps(outputs))


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells("code"))
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = [output for cell in cells("code") for output in cell["outputs"]]
    # Counts differ with the processor; what the audit finds does not.
    lines = "".join("".join(one["text"]) for one in stored if one["output_type"] == "stream")
    flags = re.findall(r"^(?:- [\w-]+:|ok|suspect)$", lines, re.MULTILINE)
    assert "suspect" in flags
    assert [line for line in flags if line not in done.stdout.splitlines()] == []


def links(text: str) -> list[str]:
    """The targets of a page's links and images that lie in the repository."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub(lambda found: found[4] if found[1][0] == ":" else "", text))
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What a page can be entered by: its headings as GitHub and MyST spell them, and its labels."""
    found: set[str] = set(re.findall(r"^\(([\w.-]+)\)=$", text, re.MULTILINE))
    without_code = FENCE.sub("", text)
    for heading in re.findall(r"^#{1,6} +(.*?)#*$", without_code, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(n for n in range(1000) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken(page: str, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        other = os.path.relpath(file.resolve(), ROOT)
        # References are made while the site is built, which checks their anchors itself.
        checked = anchor and file.suffix == ".md" and not other.startswith("docs/reference/")
        there = PAGES.get(other, "") if path else text
        if not file.exists() or (checked and anchor not in anchors(there)):
            wrong.append(target)
    return wrong


def test_the_reader_of_links_sees_what_is_wrong() -> None:
    text = "# A *b*: `c`\n\n## A b c\n\n[x](#a-b-c) [y](README.md) ![z](docs/site.png)\n\n"
    text += "```text\n[n](n.md)\n```\n"
    assert broken("README.md", text) == []
    wrong = ["#a-b-d", "READ.md", "docs/none.png", "docs/concepts.md#none"]
    text += " ".join(f"[x]({target})" for target in (*wrong, "https://example.org"))
    assert broken("README.md", text) == wrong


def test_links_lead_somewhere() -> None:
    assert {page: wrong for page, text in PAGES.items() if (wrong := broken(page, text))} == {}


def test_links_of_the_tour_lead_somewhere() -> None:
    text = "\n\n".join("".join(cell["source"]) for cell in cells("markdown"))
    assert links(text)
    assert broken("docs/tour.ipynb", text) == []


def test_every_page_is_in_the_contents() -> None:
    """Each in one place."""
    entries = re.findall(
        r"^(?:.* <)?([\w/-]+)>?$",
        "\n".join(body for _, kind, _, body in FENCE.findall(PAGES["docs/index.md"]) if kind == "{toctree}"),
        re.MULTILINE,
    )
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")}
    assert sorted(entries) == sorted(pages - {"index"} | {"tour"})


def test_every_check_of_the_audit_is_explained() -> None:
    section = PAGES["docs/judging.md"].partition("\n## The audit\n")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE))
    assert set(CHECKS) == explained


@pytest.mark.parametrize(
    "package", [advbench, attacks_pool, defenses, leaderboards], ids=lambda one: one.__name__
)
def test_every_public_name_is_in_the_reference(package: Any) -> None:
    text = "\n".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    shown = set(re.findall(rf"(?:auto\w+|py:data):: {package.__name__}\.(\w+)$", text, re.MULTILINE))
    former = {"Comparison", "Stage"} if package is leaderboards else set()
    assert set(package.__all__) - {"__version__"} - former == shown
