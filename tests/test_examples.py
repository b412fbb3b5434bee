"""Crafted points of an evaluation: what is in the file, and that they survive stops and workers."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from advbench import evaluate_model, load_run
from advbench.cli.main import invoke
from advbench.data import DataSet
from advbench.evaluation import evaluate as evaluating
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import compute
from advbench.external.job import prepare_job
from advbench.external.request import EvalRequest
from advbench.external.workers import Share, measure
from advbench.runs import examples
from advbench.runs.examples import Examples
from attacks_pool import InputError, pool
from attacks_pool.verifier import predict_exactly
from leaderboards import comparable, read_outcomes, read_record

Network = Callable[..., nn.Sequential]
FACTORY = """
import torch
from torch import nn
def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def doubting():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 11))
"""
ATTACKS = "fgsm,pgd:steps=2,pgd:steps=3,cw:steps=3,binary_search_steps=1"
ASKED: dict[str, Any] = {
    "model": "example_models:make",
    "attacks": ATTACKS,
    "points": "200,fgsm=40",
    "device": "cpu",
    "threads": 1,
    "surrogate": "none",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_probes: None) -> Path:  # noqa: ARG001
    """A current directory with a model, whose blocks are of 64 points."""
    (tmp_path / "example_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advbench.evaluation.shards.BLOCK_ELEMENTS", 64 * 64)
    return tmp_path


def test_the_file_has_what_was_judged(here: Path, digits: DataSet) -> None:
    """Clean and crafted points, labels, outcomes; the model answers them as the record says."""
    made = evaluate_model(**ASKED, save_examples="found.safetensors")
    record = read_record(made.path)
    file = here / "found.safetensors"
    assert record.config["examples"] == {
        "file": "../../found.safetensors",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    texts = [entry.text for entry in record.attacks]
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == {"x", "labels", "outcomes/clean"} | {
            f"{kind}/{text}" for kind in ("x_adv", "outcomes") for text in texts
        }
        assert opened.metadata()["dataset"] == "digits"
        assert opened.get_tensor("x").dtype == torch.float32
    found = load_run(made.path).examples
    assert found.attacks == tuple(texts)
    assert torch.equal(found.x, digits.test.x[:200])
    assert torch.equal(found.labels, digits.test.y[:200])
    clean, robust = read_outcomes(made.path / "outcomes.npz")
    assert found.outcomes().tolist() == clean[0].tolist()
    model, _ = prepare_job(EvalRequest.of(ASKED))
    for text, outcome, count in zip(texts, robust[0], (40, 200, 200, 200), strict=True):
        crafted, right = found.x_adv(text), found.outcomes(text)
        assert crafted.shape == (count, 1, 8, 8)
        assert right.tolist() == outcome[:count].tolist()
        answers = predict_exactly(model.foreign.model, crafted).argmax(1)
        assert torch.equal(answers == found.labels[:count], right)
        wrong = ~found.outcomes()[:count]
        assert torch.equal(crafted[wrong], found.x[:count][wrong])
        (attack,) = pool.sequence(text)
        if attack.info.norm == "linf":
            assert float((crafted - found.x[:count]).abs().max()) <= attack.eps + 1e-6
            assert not torch.equal(crafted, found.x[:count])
    assert torch.equal(found.x_adv("fgsm"), found.x_adv(texts[0]))
    with pytest.raises(InputError, match=r"2 attacks of .* are called 'pgd': give the whole text"):
        found.x_adv("pgd")
    with pytest.raises(InputError, match="did you mean 'fgsm'"):
        found.outcomes("fgsn")


def test_numbers_do_not_depend_on_saving(here: Path) -> None:
    """And the same command gives the same file."""
    plain = evaluate_model(**ASKED)
    saved = evaluate_model(**ASKED, save_examples="one.safetensors")
    again = evaluate_model(**ASKED, save_examples="two.safetensors")
    assert (here / "one.safetensors").read_bytes() == (here / "two.safetensors").read_bytes()
    first, second = comparable(plain.record), comparable(saved.record)
    assert "examples" not in first["config"]
    del second["config"]["examples"]
    assert first == second
    assert again.record.config["examples"]["sha256"] == saved.record.config["examples"]["sha256"]
    assert not list(saved.path.glob("checkpoint*"))


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attacks that are measured for the row from now on; the audit's probes keep no points."""
    measured: list[str] = []

    def counted(shard: Any, view: Any, data: Any, setting: Any, clean: Any) -> Any:
        if setting.examples:
            measured.append(shard.text.partition(":")[0])
        return compute(shard, view, data, setting, clean)

    monkeypatch.setattr(evaluating, "compute", counted)
    return measured


class StoppedError(Exception):
    """Ends an evaluation in the middle."""


def stop_after(cells: int) -> Callable[[Any], None]:
    """A listener that ends the evaluation after this many cells."""
    seen: list[object] = []

    def listen(event: Any) -> None:
        if event.kind == "cell":
            seen.append(event)
            if len(seen) == cells:
                raise StoppedError

    return listen


@pytest.mark.parametrize("before", [True, False], ids=["saved before", "not saved before"])
def test_a_resumed_evaluation_saves_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Pieces without crafted points are measured again; those with are not."""
    evaluate_model(**ASKED, save_examples="whole.safetensors", runs_dir="whole")
    first = {"save_examples": "parts.safetensors"} if before else {}
    with pytest.raises(RuntimeError, match="StoppedError"):
        evaluate_model(**ASKED, **first, listeners=[stop_after(3)])
    assert not (here / "parts.safetensors").exists()
    measured = counting(monkeypatch)
    made = evaluate_model(**ASKED, save_examples="parts.safetensors")
    assert (here / "parts.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()
    assert len(list((here / "runs").iterdir())) == 1
    assert measured.count("fgsm") == (0 if before else 1)
    assert measured.count("cw") == 4
    assert measured.count("clean") == 0
    assert load_run(made.path).examples.x.shape == (200, 1, 8, 8)


def test_damaged_points_are_made_again(here: Path) -> None:
    evaluate_model(**ASKED, save_examples="whole.safetensors", runs_dir="whole")
    with pytest.raises(RuntimeError):
        evaluate_model(**ASKED, save_examples="parts.safetensors", listeners=[stop_after(3)])
    files = sorted((here / "runs").glob("*/checkpoint/pieces/*.safetensors"))
    assert files
    files[0].write_bytes(files[0].read_bytes()[:-4] + b"\0\0\0\1")
    files[-1].unlink()
    evaluate_model(**ASKED, save_examples="parts.safetensors")
    assert (here / "parts.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()


def test_workers_save_them_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of other processes hold the points, and nothing is left to measure."""
    evaluate_model(**ASKED, save_examples="whole.safetensors", runs_dir="whole")
    measured = counting(monkeypatch)

    def shared(asked: EvalRequest, identity: str, directory: Path, **_: Any) -> list[str]:
        for number in range(2):
            measure(Share(asked, identity, directory, number, 2))
        assert measured
        measured.clear()
        return []

    monkeypatch.setattr("advbench.external.evaluate_model.share", shared)
    evaluate_model(**ASKED, save_examples="shared.safetensors", workers=2)
    assert measured == []
    assert (here / "shared.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()


def test_a_module_of_python(network: Network, tmp_path: Path) -> None:
    """It has no identity, so nothing can be resumed, but its points are saved."""
    file = tmp_path / "mine.safetensors"
    given: dict[str, Any] = {"attacks": "fgsm", "points": 20, "surrogate": "none", "name": "mine"}
    made = evaluate_model(network(), **given, runs_dir=tmp_path / "runs", save_examples=file)
    assert Examples(file).attacks == (made.record.attacks[0].text,)
    assert not (made.path / "checkpoint").exists()


@pytest.mark.usefixtures("here")
def test_a_model_that_abstains() -> None:
    """Its points are crafted class by class, and saved in their order."""
    asked = {**ASKED, "model": "example_models:doubting", "attacks": "fgsm", "points": 100, "abstain": "last"}
    found = load_run(evaluate_model(**asked, save_examples="a.safetensors").path).examples
    crafted, clean = found.x_adv("fgsm"), found.outcomes()
    assert torch.equal(crafted[~clean], found.x[~clean])
    moved = (crafted != found.x).flatten(1).any(1)
    assert bool((moved[clean]).any())
    assert float((crafted - found.x).abs().max()) <= 0.2 + 1e-6


def test_memory_holds_a_block_at_a_time(digits: DataSet, tmp_path: Path) -> None:
    """However many attacks and points there are."""
    attacks = [(attack, 360) for attack in pool.sequence("fgsm,pgd,bim,mim", budget="digits")]
    row = MatrixRow(0, torch.ones(360).bool().numpy(), torch.ones(4, 360).bool().numpy())

    def crafted(shard: Any) -> torch.Tensor:
        return digits.test.x[shard.block].clone()

    file = tmp_path / "a.safetensors"
    tracemalloc.start()
    examples.write_examples(file, digits.test, attacks, row, crafted, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.stat().st_size > 5 * 360 * 256
    assert peak < 2.5 * 360 * 256


def test_a_failed_write_leaves_the_old_file(digits: DataSet, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"old")
    row = MatrixRow(0, torch.ones(360).bool().numpy(), torch.ones(1, 360).bool().numpy())

    def crafted(_shard: Any) -> torch.Tensor:
        raise StoppedError

    (attack,) = pool.sequence("fgsm", budget="digits")
    with pytest.raises(StoppedError):
        examples.write_examples(file, digits.test, [(attack, 360)], row, crafted, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert file.read_bytes() == b"old"


def test_runs_without_examples_say_so(here: Path) -> None:
    """So do runs whose file is gone or another one."""
    without = evaluate_model(**ASKED, runs_dir=here / "without")
    with pytest.raises(InputError, match="saved no examples: advbench eval saves them with --save-examples"):
        _ = load_run(without.path).examples
    with pytest.raises(InputError, match="has no model to load"):
        _ = load_run(without.path).model
    assert len(load_run(without.path).test_data[0]) == 200
    made = evaluate_model(**ASKED, save_examples="a.safetensors")
    file = here / "a.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="its SHA-256 is not the one in the record"):
        _ = load_run(made.path).examples
    file.unlink()
    with pytest.raises(InputError, match=r"examples .*a\.safetensors are missing"):
        _ = load_run(made.path).examples


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.pt", "must end with .safetensors"),
        ("nowhere/a.safetensors", "there is no folder nowhere"),
        ("folder.safetensors", "is a folder: name a file"),
    ],
)
def test_a_wrong_target_costs_one_line(given: str, message: str, here: Path, capfd: Any) -> None:
    """Before anything is measured."""
    (here / "folder.safetensors").mkdir()
    command = ["eval", "--model", "example_models:make", "--attacks", "fgsm", "--save-examples", given]
    assert invoke(command) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if not line.startswith("["))
    assert message in line
    assert not (here / "runs").exists()


def test_a_full_disk_is_seen_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(examples.shutil, "disk_usage", lambda _path: Usage)
    with pytest.raises(InputError, match=r"the examples take 0\.0 GB, and 0\.0 GB are free"):
        evaluate_model(**ASKED, save_examples="a.safetensors")
    assert not (here / "runs").exists()
