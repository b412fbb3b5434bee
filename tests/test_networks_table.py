"""The table of defenses and networks: what its script finds, and that the page shows what was measured."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from defenses.methods.mola_grad import MoLAGrad

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """``benchmarks/networks.py``, imported beside its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("networks_script", ROOT / "benchmarks" / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


def layers() -> list[nn.Module]:
    """A small network with batch norm."""
    return [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]


def tiny(script: ModuleType, *modules: nn.Module, frozen: bool = False) -> Any:
    """An entry of the table for a network of these layers."""

    class Tiny(script.Network):  # type: ignore[name-defined, misc]
        def build(self) -> nn.Module:
            return nn.Sequential(*(modules or layers())).requires_grad_(not frozen)

    return Tiny("Tiny", "tiny", 8, 6)


@pytest.mark.parametrize("name", ["at", "ewc", "mid", "mola-grad", "mola-router", "lorkd"])
def test_what_a_pair_does(script: ModuleType, name: str) -> None:
    """In every regime; adapters have a coverage and merge, and other defenses have neither."""
    found = script.measure(name, tiny(script))
    adapted = name in ("mola-grad", "mola-router", "lorkd")
    assert (found.trains, found.evaluates, found.refused) == (True, True, None)
    assert found.merges is (True if adapted else None)
    assert (found.parameters is not None) is adapted
    if adapted:
        assert found.parameters == pytest.approx(108 / (112 + 8 + 1450))  # the convolution's weight
        assert found.difference < script.TOLERANCE


def test_what_does_not_work_is_said(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen network does not train, a wrong merge is one, a refusal has its reason below the table."""
    frozen = script.measure("at", tiny(script, frozen=True))
    assert (frozen.trains, frozen.evaluates) == (False, True)
    monkeypatch.setattr(MoLAGrad, "merged", lambda self, _task: self.model[0:5].eval())
    wrong = script.measure("mola-grad", tiny(script))
    assert wrong.merges is False
    refused = script.measure("mid", tiny(script, nn.Conv2d(3, 10, 8), nn.Flatten()))
    assert "this Sequential has none" in refused.refused
    row = {"resnet18": frozen, "vit": wrong, "mobilenet": refused}
    text = script.table({"at": row, "mid": {"vit": refused}})
    assert "| **not trains**, evaluates | – | – | trains, evaluates, **not merges**, " in text
    assert text.count("refused (1)") == 2
    assert text.endswith(f"\n1. {refused.refused}")


def test_logits_that_are_no_numbers_do_not_evaluate(script: ModuleType) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if self.training else x * torch.nan

    found = script.measure("standard", tiny(script, *layers(), Broken()))
    assert (found.trains, found.evaluates) == (True, False)


def test_results_are_stored(script: ModuleType, tmp_path: Path) -> None:
    results = {"at": {"vit": script.Result(trains=True)}}
    script.write(tmp_path / "results.json", results)
    assert script.read(tmp_path / "results.json") == results
    assert script.read(tmp_path / "none.json") == {}


def test_the_page_shows_what_was_measured(script: ModuleType) -> None:
    """Every pair of a row was measured, and what is in the table is what the file holds."""
    results = script.read(script.RESULTS)
    assert all(set(row) == set(script.NETWORKS) for row in results.values())
    assert len(results) >= 15
    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    assert page == script.put(page, "networks", script.table(results))
