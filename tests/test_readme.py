"""The README and the pages of docs are true: their Python runs as written, their commands and links exist."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from advbench import __version__

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if not any(part.startswith("_") for part in path.relative_to(ROOT).parts)
}
PAGES = {
    page: blocks
    for page, text in TEXTS.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
}
"""Each page that has Python, with its blocks in order."""
KEEPS_THE_CONTRACT = """
from advbench.contract import check_defense
from defenses import Defense

for example in list(globals().values()):
    if isinstance(example, type) and issubclass(example, Defense) and example.__module__ == "__main__":
        broken = [str(check) for check in check_defense(example) if not check.holds]
        assert not broken, "\\n".join(broken)
        print(example.info.name, "keeps the contract")
"""
"""What ``advbench defenses check`` runs, on every defense that a page defines."""
ADVERTISED = {
    "docs/python.md": """
assert 0.0 <= float(robust) <= float(clean) <= 1.0
assert set(losses) >= {'loss', 'ce', 'isotropic', 'anisotropic', 'regulariser'}
""",
    "docs/add-attack.md": """
assert 'my-noise' in pool.names() and pool.get('my-noise', eps=0.1).knobs['restarts'] == 1
assert any(cell.attack.startswith('my-noise') for cell in result.record.cells)
""",
    "docs/add-defense.md": """
from attacks_pool import pool
from defenses import TrainPlan, registry
assert 'label-smoothing' in registry.names()
own = registry.build('label-smoothing', torch.nn.Flatten(), parameters={'smoothing': '0.2'})
assert own.smoothing == 0.2
""",
    "docs/evaluate.md": "assert Doubting()(torch.rand(3, 1, 8, 8)).shape == (3, 11)",
}
"""What further holds after a page's blocks."""


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_as_written_one_after_another(page: str, tmp_path: Path) -> None:
    if any("leaderboards/results" in block for block in PAGES[page]):
        shutil.copytree(ROOT / "leaderboards" / "results", tmp_path / "leaderboards" / "results")
    blocks = ["import torch; torch.set_num_threads(1)", *PAGES[page], ADVERTISED.get(page, "")]
    printed = _run("\n".join([*blocks, KEEPS_THE_CONTRACT]), tmp_path)
    defined = re.findall(r"^class \w+\(Defense\):", "\n".join(blocks), flags=re.MULTILINE)
    assert printed.count("keeps the contract") == len(defined)


def test_pages_have_the_python_that_they_should() -> None:
    """Of the examples that the README once held, none is lost."""
    assert {"README.md", "docs/compare.md", *ADVERTISED} <= set(PAGES)
    assert sum(map(len, PAGES.values())) >= 15


def _run(text: str, place: Path) -> str:
    """What the script prints, in a process of its own; the script lies apart from its working directory."""
    script = place / "script" / "page.py"
    script.parent.mkdir()
    script.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ci_finds_the_test_command() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert "advbench run --defense air --sequence fgsm,pgd,cw" in commands[0]
    assert commands[1].endswith("-m pytest")


def test_the_readme_is_short_and_names_this_version() -> None:
    """So do the project file, the citation file and the changelog."""
    assert len(README.splitlines()) <= 150
    assert f"version = {{{__version__}}}" in README
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    released = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert next(name for name in released if name != "Unreleased") == __version__


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    """To a file, and where a heading is named, to one that the file has."""
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)):
        file, _, heading = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = ROOT / page if not file else (ROOT / page).parent / file
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in known, link


def test_commands_name_options_that_exist() -> None:
    """Every command line of every page, word by word as far as options go."""
    from advbench.cli.main import app

    options = dict(_commands(app, ""))
    shown = [
        line
        for text in TEXTS.values()
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in re.findall(r"^\s*advbench .*", block.replace("\\\n", " "), flags=re.MULTILINE)
    ]
    assert len(shown) >= 80
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        command = words[0] if words and not words[0].startswith("-") else ""
        if f"{command} {words[1] if len(words) > 1 else ''}" in options:
            command = f"{command} {words[1]}"
        assert command in options, line
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options[command] | {"--help", "--version"}, line


def _commands(app: typer.Typer, above: str) -> Iterator[tuple[str, set[str]]]:
    """The commands of an application, those of its groups as ``group command``, with their options."""
    groups = app.registered_groups
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.rstrip("_").replace("_", "-")
        yield f"{above} {name}".strip(), set(_declared(command.callback))
    if app.registered_callback is not None and app.registered_callback.callback is not None:
        yield above, set(_declared(app.registered_callback.callback))
    for group in groups:
        assert group.typer_instance is not None
        name = group.name or group.typer_instance.info.name
        yield from _commands(group.typer_instance, f"{above} {name}".strip())


def _declared(callback: object) -> list[str]:
    """The option names of a command: explicit ones, and those that Typer makes of parameter names."""
    names = []
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            for text in getattr(part, "param_decls", None) or ():
                names += [form for form in re.split(r"[,/]", text) if form.startswith("--")]
        names.append("--" + name.rstrip("_").replace("_", "-"))
    assert inspect.isfunction(callback)
    return names
