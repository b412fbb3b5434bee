"""``--model-arg`` in runs and evaluations: recorded, resolved again, compared and spelled out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from advbench import RunConfig, evaluate_model, load_run
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.config.options import Options, merge
from advbench.models import build_model
from advbench.runs.saved import new_classifier
from attacks_pool.errors import InputError
from leaderboards import read_record
from leaderboards.site.command import spelled_out
from leaderboards.statistics.naming import model_name
from leaderboards.statistics.results import result_of

FACTORY = """
from torch import nn


def make(num_classes, hidden=3, bias=True):
    layers = nn.Flatten(), nn.Linear(64, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, num_classes)
    return nn.Sequential(*layers)
"""
OPTIONS: dict[str, Any] = {"defense": "standard", "sequence": "fgsm", "unseen": "none", "epochs": 1}
OPTIONS |= {"model": "argued:make", "points": 20, "set": {"pretrain.epochs": 1}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a factory, as the current one."""
    (tmp_path / "argued.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "argued", None)
    monkeypatch.delitem(sys.modules, "argued")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_a_config_has_the_arguments_only_if_there_are_any() -> None:
    """Records without them stay as they were; with them, the config rebuilds the network."""
    plain = prepare(OPTIONS)
    assert "model_args" not in plain.config.model_dump()
    assert "model_args" not in json.loads(plain.config.model_dump_json())
    assert prepare({**OPTIONS, "model_args": {}}).identity == plain.identity
    wide = prepare({**OPTIONS, "model_args": {"hidden": 7}})
    assert wide.identity != plain.identity
    config = RunConfig.model_validate_json(wide.config.model_dump_json())
    assert config.model_args == {"hidden": 7}
    assert prepare(config.model_dump()).identity == wide.identity
    one, two = (new_classifier(config, (1, 8, 8), 10).state_dict() for _ in range(2))
    assert one["1.weight"].shape == (7, 64)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert config.network == "argued:make(hidden=7)"


def test_merging() -> None:
    """Arguments are merged with those of a record, and dropped with its model or data set."""
    config = {"model": "argued:make", "model_args": {"hidden": 7}, "training": [], "dataset": "digits"}
    merged = merge(config, {"model_args": {"bias": False}})
    assert merged["model_args"] == {"hidden": 7, "bias": False}
    assert "model_args" not in merge(config, {"model": "lenet"})
    assert "model_args" not in merge(config, {"dataset": "mnist"})
    assert merge(config, {"model": "lenet", "model_args": {"mean": [1]}})["model_args"] == {"mean": [1]}
    assert merge(config, {"seed": 3})["model_args"] == {"hidden": 7}


@pytest.mark.parametrize(
    "given", [{"hidden": torch.zeros(2)}, {"hidden": float("inf")}, {1: 2}, 5, "hidden=2"]
)
def test_what_no_record_can_hold(given: Any) -> None:
    """One line, from a run's options and from an evaluation's."""
    with pytest.raises(InputError, match="model_args"):
        Options.of({"model_args": given})
    with pytest.raises(InputError, match="model_args"):
        evaluate_model("argued:make", model_args=given)


@pytest.mark.slow
def test_a_run_is_loaded_repeated_and_trained_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its record alone; the leaderboard does not mix it with runs of other arguments."""
    words = ["run", "--defense", "standard", "--sequence", "fgsm", "--unseen", "none", "--epochs", "1"]
    words += ["--points", "20", "--threads", "1", "--model", "argued:make", "--set", "pretrain.epochs=1"]
    words += ["--format", "json"]
    assert invoke([*words, "--model-arg", "hidden=7", "--model-arg", "bias=false"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["model_args"] == {"hidden": 7, "bias": False}
    run = load_run(here / "runs" / record["id"], trust=True)
    assert run.model.model[1].weight.shape == (7, 64)
    assert run.model.model[1].bias is None
    again = ["run", "--config", str(run.path / "record.json"), "--trust", "--dry-run", "--format", "json"]
    assert invoke(again) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["state"], plan["model"]) == ("complete", "argued:make(bias=false,hidden=7)")
    assert invoke([*again, "--model-arg", "hidden=8"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "new"
    assert invoke(["verify", str(run.path), "--retrain", "--trust"]) == 0
    assert "confirmed" in capsys.readouterr().out
    command = spelled_out(run.record.config)
    assert "--model-arg hidden=7" in str(command.text)
    assert "--model-arg bias=False" in str(command.text)
    other = run.record.model_copy(update={"config": {**run.record.config, "model_args": {"hidden": 8}}})
    assert result_of(run.record).group != result_of(other).group


def test_an_evaluation_records_them_and_is_verified(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network that fits the weights is built by the arguments, there and again."""
    arguments = {"hidden": 5}
    model = build_model(
        "argued:make", num_classes=10, in_channels=1, image_size=8, seed=0, model_args=arguments
    )
    save_file(model.state_dict(), here / "w.safetensors")
    words = ["eval", "--model", "argued:make", "--weights", "w.safetensors", "--attacks", "fgsm"]
    words += ["--points", "20", "--surrogate", "none", "--format", "json"]
    assert invoke(words) == 2
    assert "do not fit the model" in capsys.readouterr().err
    assert invoke([*words, "--model-arg", "hidden=5"]) == 0
    record = read_record(here / "runs" / json.loads(capsys.readouterr().out)["id"])
    assert record.config["params"]["model_args"] == record.stages[0].spec["model_args"] == arguments
    assert "--model-arg hidden=5" in str(spelled_out(record.config).text)
    assert invoke(["verify", str(here / "runs" / record.id), "--trust"]) == 0
    assert "confirmed" in capsys.readouterr().out


WRONG = {
    "form": ("eval --model argued:make --model-arg hidden", "--model-arg 'hidden' cannot be read"),
    "name": ("eval --model argued:make --model-arg hiden=2", "did you mean 'hidden'?"),
    "value": ("run --model argued:make --model-arg hidden=many", "the factory failed: TypeError"),
    "from the data": ("run --model argued:make --model-arg num_classes=2", "'num_classes' cannot be given"),
    "program": ("eval --model net.pt --model-arg a=1", "model 'net.pt' is built already"),
    "robustbench": ("eval --model robustbench:Standard --model-arg a=1", "is built already"),
    "resumed": ("run --resume somewhere --model-arg a=1", "--model-arg: a resumed run takes its options"),
    "zoo": ("run --model lenet --model-arg width=1", "(it takes mean, std)"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what was given and what is allowed."""
    text, message = WRONG[case]
    assert invoke(text.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_names_of_models() -> None:
    """A model without arguments is called as before, also one that is a mapping."""
    assert model_name({"model": "lenet"}) == "lenet"
    assert model_name({"model": "lenet", "model_args": {}}) == "lenet"
    assert model_name({"model": {"a": 1}, "model_args": {"b": 2}}) == {"a": 1}
    assert model_name({"model": "a:b", "model_args": {"z": [1], "c": "x"}}) == 'a:b(c="x",z=[1])'
