"""What a command refuses before it reads a file: an option given twice, and an empty path."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from advbench.cli.main import app, invoke
from advbench.cli.once import CheckedCommand, CheckedGroup, _paths, _repeats

WRITERS = ("run", "eval", "sweep grid.yaml", "reference", "accept submission.zip")


def refused(arguments: list[str], capfd: Any) -> str:
    """The one line with which a command refuses its arguments."""
    assert invoke(arguments) == 2
    said = str(capfd.readouterr().err)
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", WRITERS)
def test_two_folders_to_write_to(command: str, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """Both are named, and neither is made."""
    monkeypatch.chdir(tmp_path)
    said = refused([*command.split(), "--runs-dir", "one", "--runs-dir=two"], capfd)
    assert said == "error: --runs-dir is given twice ('one' and 'two'): it takes one value\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        "run --seed 1 --seed 1",
        "run --trust --trust",
        "verify a --mark --no-mark",
        "leaderboard --format json --format csv",
        "runs --format json --format csv",
        "runs gc --yes --yes",
        "defenses list --format json --format csv",
    ],
)
def test_any_option_that_takes_one_value(arguments: str, capfd: Any) -> None:
    """Also a flag, and options of commands in groups."""
    assert "is given twice" in refused(arguments.split(), capfd)


EMPTY = [
    *(f"{command} --runs-dir ''" for command in WRITERS),
    "leaderboard --runs-dir runs --runs-dir=",
    "leaderboard --out ''",
    "runs --runs-dir ''",
    "run --data-dir ''",
    "run --config ''",
    "eval --model-dir ''",
    "show ''",
    "sweep ''",
    "verify run --keep ''",
    "defenses new mine --dir ''",
]


@pytest.mark.parametrize("arguments", EMPTY)
def test_an_empty_path(arguments: str, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """It is not taken for the current folder."""
    monkeypatch.chdir(tmp_path)
    assert "is empty: name a file or folder" in refused(shlex.split(arguments), capfd)
    assert not list(tmp_path.iterdir())


def test_options_that_repeat_still_do(tmp_path: Path, capfd: Any) -> None:
    """The boards read several directories together."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    places = ["--runs-dir", str(tmp_path / "one"), "--runs-dir", str(tmp_path / "two")]
    assert invoke(["leaderboard", *places, "--dataset", "digits", "--dataset", "cifar10"]) == 0
    assert "no finished runs in" in capfd.readouterr().out


def test_every_command_is_checked() -> None:
    """No option of any command is left to Typer, which keeps the last value."""
    commands = [("", typer.main.get_command(app))]
    seen = 0
    while commands:
        name, command = commands.pop()
        assert isinstance(command, CheckedCommand | CheckedGroup), name
        commands += [(f"{name} {key}", one) for key, one in getattr(command, "commands", {}).items()]
        single = [one for one in command.params if not _repeats(one)]
        seen += len(single)
        assert not any(one.name.endswith("_dir") and one.name not in _paths(command) for one in single)
    assert seen > 100
