"""The README and the pages of docs are true: their Python runs as written and keeps what they advertise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): blocks
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if (blocks := re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL))
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


def test_python_blocks_run_as_written_one_after_another(tmp_path: Path) -> None:
    blocks = PAGES["README.md"]
    assert len(blocks) >= 5
    checks = [
        "import torch; torch.set_num_threads(1)",
        *blocks,
        "assert 0.0 <= float(robust) <= float(clean) <= 1.0",
        "assert set(losses) >= {'loss', 'ce', 'isotropic', 'anisotropic', 'regulariser'}",
        "from attacks_pool import pool; from defenses import registry",
        "assert 'my-noise' in pool.names() and 'label-smoothing' in registry.names()",
        "own = registry.build('label-smoothing', classifier, parameters={'smoothing': '0.2'})",
        "own.fit(loader, [pool.get('my-noise', eps=0.1)], plan=TrainPlan(epochs=1))",
        KEEPS_THE_CONTRACT,
    ]
    printed = _run("\n".join(checks), tmp_path)
    assert re.fullmatch(r"[01]\.\d+ ok\nlabel-smoothing keeps the contract\n", printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_python_of_other_pages_runs_as_written(page: str, tmp_path: Path) -> None:
    blocks = ["import torch; torch.set_num_threads(1)", *PAGES[page]]
    printed = _run("\n".join([*blocks, KEEPS_THE_CONTRACT]), tmp_path)
    defined = re.findall(r"^class \w+\(Defense\):", "\n".join(blocks), flags=re.MULTILINE)
    assert printed.count("keeps the contract") == len(defined)


def _run(text: str, place: Path) -> str:
    """What the script prints, in a process of its own."""
    script = place / "page.py"
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
    assert commands[1].endswith("-m pytest -n 2 --dist worksteal")


def test_commands_name_options_that_exist() -> None:
    from advbench.cli.main import app

    options = {
        option
        for command in app.registered_commands
        for option in re.findall(r"--[a-z-]+", " ".join(_declared(command.callback)))
    }
    shown = re.findall(r"^advbench (?:run|leaderboard) .*$", README, flags=re.MULTILINE)
    assert len(shown) >= 8
    for line in shown:
        for option in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert option in options | {"--help"}, line


def _declared(callback: object) -> list[str]:
    """The option names of a command: explicit ones, and those that Typer makes of parameter names."""
    import inspect
    import typing

    names = []
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            names += [text for text in getattr(part, "param_decls", None) or () if text.startswith("--")]
        names.append("--" + name.rstrip("_").replace("_", "-"))
    assert inspect.isfunction(callback)
    return names
