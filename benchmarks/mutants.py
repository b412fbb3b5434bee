"""Faults planted one at a time into a copy of the tree, and whether the quick tests notice.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --only descent holm-not-monotone
    python benchmarks/mutants.py --whole --only descent

``mutants.yaml`` lists the faults, each with the tests that should fail; ``--whole`` runs all quick tests
instead. The tests must pass before a fault is planted. It ends with 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "mutants.yaml"
COPIED = [
    "advbench",
    "attacks_pool",
    "defenses",
    "leaderboards",
    "benchmarks",
    "docs",
    "README.md",
    "pyproject.toml",
]
COPIED += ["LICENSE", "CITATION.cff", "constraints.txt", ".ci"]
LIBRARIES = ["pytest", "torch", "torchvision", "pandas", "scipy.stats", "sklearn.datasets", "pydantic"]
"""Loaded once, for all runs of the tests; the packages of this tree are loaded anew by each."""


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old``, which stands once in ``file``, becomes ``new``; one of ``tests`` should fail then."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, root: Path = ROOT) -> str:
        """The text of the file with the fault in it.

        Raises:
            ValueError: ``old`` does not stand exactly once in the file.
        """
        text = (root / self.file).read_text("utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"mutant {self.name}: {self.file} contains {self.old!r} {count} times, expected once: "
                f"update benchmarks/mutants.yaml"
            )
        return text.replace(self.old, self.new)


def read_mutants(path: Path = TABLE) -> list[Mutant]:
    """The faults of a table, in its order."""
    entries = yaml.safe_load(path.read_text("utf-8"))
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copy_project(tree: Path) -> None:
    """Copy everything but the tests that the tests read."""
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, tree / name)


def run_tests(tree: str, tests: Sequence[str], log: str) -> None:
    """Run pytest on a copy of the project, in a process of its own; the exit code is pytest's."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path.insert(0, tree)
    sys.dont_write_bytecode = True
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(int(pytest.main(["-x", "-p", "no:cacheprovider", "--tb=line", *tests])))


def outcome(tree: Path, tests: Sequence[str], log: Path) -> int:
    """pytest's exit code: 0 where all tests pass, 1 where one fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    process = context.Process(target=run_tests, args=(str(tree), list(tests), str(log)))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """The mutants of these names, or all.

    Raises:
        ValueError: a name that no mutant has.
    """
    if unknown := sorted(set(names) - {one.name for one in mutants}):
        raise ValueError(f"no mutant {unknown[0]!r}: {TABLE.name} lists {', '.join(m.name for m in mutants)}")
    return [one for one in mutants if not names or one.name in names]


def check(mutants: Sequence[Mutant], tree: Path, *, whole: bool, tests_from: Path) -> list[str]:
    """Plant each mutant, print what became of it, and give the names of those that survive.

    Raises:
        ValueError: the tests fail without a fault.
    """
    log = tree.parent / "log"
    tests_of = {one.name: [] if whole else [f"tests/{test}" for test in one.tests] for one in mutants}
    every = sorted({test for tests in tests_of.values() for test in tests})
    shutil.copytree(tests_from, tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    if code := outcome(tree, every, log):
        raise ValueError(f"without a fault pytest ends with {code}: {log.read_text('utf-8')[-2000:]}")
    survivors = []
    for one in mutants:
        place = tree / one.file
        sound = place.read_text("utf-8")
        began = time.perf_counter()
        place.write_text(one.planted(tree), "utf-8")
        try:
            code = outcome(tree, tests_of[one.name], log)
        finally:
            place.write_text(sound, "utf-8")
        # A fault that breaks the import of a test is noticed too: pytest ends with 2 then.
        caught = code in (1, 2)
        survivors += [] if caught else [one.name]
        seconds = time.perf_counter() - began
        verdict = "caught" if caught else f"missed ({code})"
        print(f"{one.name:28} {verdict:12} {seconds:6.1f} s  {one.file}: {one.breaks}", flush=True)
    return survivors


def main() -> None:
    """Check the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these mutants, not all")
    parser.add_argument("--whole", action="store_true", help="run all quick tests against each mutant")
    parser.add_argument(
        "--tests", type=Path, default=ROOT / "tests", help="the tests to run (default: those of this tree)"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="advbench-mutants-") as place:
        tree = Path(place) / "tree"
        try:
            mutants = chosen(read_mutants(), asked.only)
            for one in mutants:
                one.planted()
            copy_project(tree)
            survivors = check(mutants, tree, whole=asked.whole, tests_from=asked.tests)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} caught", end="")
    print(f"; missed: {', '.join(survivors)}" if survivors else "")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
