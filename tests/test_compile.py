"""``compile=on``: training passes are compiled, and nothing else sees it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.cli.main import invoke
from attacks_pool import InputError, pool
from defenses import Snapshot, TrainPlan, registry
from defenses.training import compiled as module

ATTACK = pool.get("fgsm", eps=0.1)


def network(share: float = 0.2) -> nn.Sequential:
    """Two layers with batch norm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(share)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 4))


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images."""
    draws = torch.Generator().manual_seed(0)
    return [(torch.rand(size, 1, 8, 8, generator=draws), torch.arange(size) % 4) for size in sizes]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Compile without a compiler; for each graph that is compiled, whether it computes gradients."""
    found: list[bool] = []

    def backend(graph: Any, _inputs: object) -> Any:
        found.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(module, "BACKEND", backend)
    return found


def trained(name: str = "at", compile: str = "on", **plan: Any) -> tuple[Any, list[Snapshot]]:
    """A defense after two epochs, and its snapshots."""
    defense, kept = registry.build(name, network(), seed=0), []
    settings = {"epochs": 2, "mixed_precision": "off", "compile": compile, **plan}
    defense.fit(data(8, 8, 5), [ATTACK], plan=TrainPlan.model_validate(settings), checkpoint=kept.append)
    return defense, kept


@pytest.mark.parametrize("name", ["at", "trades", "air", "free", "ewc", "lwf"])
def test_it_trains_as_without(name: str, seen: list[bool]) -> None:
    """The same weights, passes and names; nothing of it stays after the stage."""
    fast, kept = trained(name)
    assert len(seen) >= 2  # one for each size of batch
    plain, _ = trained(name, "off")
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert not [key for key in kept[0].state.weights if "_orig_mod" in key]
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert fast.passes == plain.passes
    assert fast.compiled == ()
    count = len(seen)
    fast(data(8)[0][0])
    copy.deepcopy(fast).train()(data(8)[0][0])
    assert len(seen) == count


def test_attacks_are_not_compiled(seen: list[bool]) -> None:
    """Only training passes are: as many graphs as sizes of batches, with or without an attack."""
    trained("standard")
    count = len(seen)
    trained("at")
    assert len(seen) == 2 * count


def test_another_model_is_not_passed_by(seen: list[bool]) -> None:
    """A defense that replaces its model within a stage trains the new one."""
    defense = registry.build("standard", network())
    plan = TrainPlan(mixed_precision="off", compile="on")
    x = data(8)[0][0]
    defense.prepare(x, plan)
    assert seen
    defense.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    assert torch.equal(defense.train()(x), defense.model(x))


def test_averages_are_measured_without(seen: list[bool]) -> None:
    """Batch norm's factor changes in every step of the measurement, so each would be compiled anew."""
    trained("standard", average="none")
    count = len(seen)
    trained("standard", average="ema")
    assert len(seen) == 2 * count


def test_resuming_is_bit_for_bit(seen: list[bool]) -> None:
    whole, kept = trained()
    defense = registry.build("at", network(), seed=0)
    plan = TrainPlan(epochs=2, mixed_precision="off", compile="on")
    defense.fit(data(8, 8, 5), [ATTACK], plan=plan, resume=Snapshot.unpack(kept[0].pack()))
    for key, value in whole.state_dict().items():
        assert torch.equal(defense.state_dict()[key], value)
    assert seen


@pytest.mark.parametrize("name", ["mid", "mola-grad", "mola-router", "lorkd"])
def test_defenses_that_change_their_network_refuse_it(name: str) -> None:
    with pytest.raises(InputError, match=f"compile=on does not go with {name}"):
        registry.build(name, network()).check_plan(TrainPlan(compile="on"))


def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line before the run begins."""

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    monkeypatch.chdir(tmp_path)
    assert invoke(["run", "--defense", "at", "--sequence", "fgsm", "--set", "compile=on", "--dry-run"]) == 2
    assert "compile=on needs a C++ compiler and finds none" in capsys.readouterr().err


def test_a_network_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's first line, as the user's error."""

    def backend(_graph: Any, _inputs: object) -> Any:
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr(module, "BACKEND", backend)
    with pytest.raises(InputError, match="compile=on does not work with this network: no such kernel; set"):
        trained()


def test_records_without_it_have_no_new_key() -> None:
    assert "compile" not in TrainPlan().model_dump()
    assert TrainPlan(compile="on").model_dump()["compile"] == "on"


@pytest.mark.slow
def test_with_the_real_compiler() -> None:
    """The same weights to rounding; dropout draws other numbers, but the same ones again."""
    plan = TrainPlan(epochs=1, mixed_precision="off", compile="on")
    found = []
    for share in (0.0, 0.2, 0.2):
        defense = registry.build("at", network(share), seed=0)
        defense.fit(data(8, 8), [ATTACK], plan=plan)
        found.append(defense.state_dict())
    plain = registry.build("at", network(0.0), seed=0)
    plain.fit(data(8, 8), [ATTACK], plan=plan.model_copy(update={"compile": "off"}))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-3, atol=1e-4)
        assert torch.equal(found[1][key], found[2][key])
