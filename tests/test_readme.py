"""The README and the pages of docs are true: their Python runs as written and keeps what they advertise."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, python

import advbench
from advbench import __version__
from advbench.config.options import Options
from advbench.config.resolve import resolve
from advbench.data import DataSet
from advbench.runs.saved import Run
from defenses import registry

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): blocks
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if (blocks := re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    and "_build" not in path.parts
}
"""Each page that has Python, with its blocks in order."""
NAMED = re.compile(r"`(\w+\.py)`[^\n`]*:\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Blocks that are files, which others may import."""
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


def test_the_readme_counts_the_defenses() -> None:
    own = [name for name in registry.names() if registry.resolve(name)[0].__module__.startswith("defenses.")]
    assert f" and {len(own)} defenses** built in" in README


def test_the_python_of_the_readme_means_what_it_says(
    digits: DataSet, small_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options are those of a run; what is read of the result is there. The test below runs it."""

    def run(**options: Any) -> Run:
        config = resolve(Options.of(options), digits)
        assert (config.defense, config.plan.epochs, config.points) == ("air", 1, {"default": 50})
        return small_run

    monkeypatch.setattr(advbench, "run", run)
    names: dict[str, Any] = {}
    exec("\n".join(PAGES["README.md"]), names)
    record = small_run.record
    average = record.metrics["average_robust_accuracy"]
    assert capsys.readouterr().out == f"{average} {record.audit.verdict}\n"
    assert names["model"].info.name == "air"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_as_written_one_after_another(page: str, tmp_path: Path) -> None:
    if any("leaderboards/results" in block for block in PAGES[page]):
        shutil.copytree(ROOT / "leaderboards" / "results", tmp_path / "leaderboards" / "results")
    (tmp_path / "script").mkdir()
    for name, block in NAMED.findall((ROOT / page).read_text("utf-8")):
        (tmp_path / "script" / name).write_text(block, "utf-8")
    blocks = ["import torch; torch.set_num_threads(1)", *PAGES[page], ADVERTISED.get(page, "")]
    # The script lies apart from its working directory.
    script = tmp_path / "script" / "page.py"
    script.write_text("\n".join([*blocks, KEEPS_THE_CONTRACT]), encoding="utf-8")
    done = python(str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    defined = re.findall(r"^class \w+\(Defense\):", "\n".join(blocks), flags=re.MULTILINE)
    assert done.stdout.count("keeps the contract") == len(defined)


def test_pages_have_the_python_that_they_should() -> None:
    """Of the examples that the README once held, none is lost."""
    assert {"README.md", "docs/compare.md", *ADVERTISED} <= set(PAGES)
    assert sum(map(len, PAGES.values())) >= 15


def test_ci_finds_the_test_command() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert "advbench run --defense air --sequence fgsm,pgd,cw" in commands[0]
    assert commands[1].endswith("-m pytest -n 2 --dist worksteal")


def test_the_readme_is_short_and_names_this_version() -> None:
    """So do the project file, the citation file and the changelog."""
    assert len(README.splitlines()) <= 150
    assert f"version = {{{__version__}}}" in README
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    released = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert next(name for name in released if name != "Unreleased") == __version__
