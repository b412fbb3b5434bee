"""The table of planted faults fits the code and the tests that should notice them."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
assert SPEC is not None
assert SPEC.loader is not None
mutants = importlib.util.module_from_spec(SPEC)
sys.modules["mutants"] = mutants
SPEC.loader.exec_module(mutants)
TABLE = mutants.read_mutants()


def test_every_fault_can_be_planted_and_names_tests() -> None:
    assert len({one.name for one in TABLE}) == len(TABLE) >= 40
    for one in TABLE:
        ast.parse(one.planted())
        assert one.new != one.old
        assert one.tests
        for test in one.tests:
            file, *names = test.split("::")
            text = (ROOT / "tests" / file).read_text("utf-8")
            assert all(re.search(rf"(def|class) {name}\b", text) for name in names), test
    assert {one.file.partition("/")[0] for one in TABLE} == {
        "advbench",
        "attacks_pool",
        "defenses",
        "leaderboards",
    }


def test_a_text_that_is_gone_is_told() -> None:
    gone = mutants.Mutant("gone", "nothing", "attacks_pool/norms.py", "no such line", "", ())
    with pytest.raises(ValueError, match=r"mutant gone: attacks_pool/norms\.py contains .* 0 times"):
        gone.planted()
    with pytest.raises(ValueError, match="no mutant 'nobody'"):
        mutants.chosen(TABLE, ["nobody"])
