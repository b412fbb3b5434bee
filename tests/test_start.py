"""Runs that start from a file of weights, and runs without pretraining."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from advbench import load_run, run
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.config.files import read_config
from advbench.models import build_model
from advbench.models.weights import load_state, read_state
from advbench.runtime.events import Event
from advbench.verify import retrain_run
from attacks_pool import InputError
from leaderboards import RecordError
from leaderboards.site.command import spelled_out
from leaderboards.statistics.results import result_of

QUICK: dict[str, Any] = {
    "defense": "at",
    "sequence": "fgsm",
    "unseen": "none",
    "epochs": 1,
    "points": 20,
    "set": {"eps_warmup": 0, "pretrain.epochs": 0},
    "threads": 1,
    "device": "cpu",
}


def network(seed: int = 7) -> torch.nn.Module:
    """The digits' small network with other weights than a run's."""
    return build_model("digits-cnn", num_classes=10, in_channels=1, image_size=8, seed=seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights to start from."""
    path = tmp_path / "elsewhere" / "start.safetensors"
    path.parent.mkdir()
    save_file(network().state_dict(), path)
    return path


class StopError(Exception):
    """Stops a run."""


def stop_at(kind: str, stage: int) -> Any:
    """A listener that stops a run at an event."""

    def listen(event: Event) -> None:
        if (event.kind, event.stage) == (kind, stage):
            raise StopError

    return listen


def stopped(runs_dir: Path, at: tuple[str, int], **options: Any) -> Path:
    """The directory of a run that was stopped at an event."""
    with pytest.raises(Exception, match=r"Stop|resume"):
        run(**options, runs_dir=runs_dir, listeners=[stop_at(*at)])
    (directory,) = runs_dir.iterdir()
    return directory


def row_0(directory: Path) -> dict[str, Tensor]:
    """The weights of row 0 by the classifier's own names."""
    found = load_file(directory / "stages" / "0.safetensors")
    return {key.removeprefix("model."): value for key, value in found.items()}


def test_a_resnet_of_torchvision_is_row_0_bit_for_bit(tmp_path: Path) -> None:
    """Every parameter and buffer, through a checkpoint of a training program with several GPUs."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    model.train()(torch.rand(4, 1, 32, 32))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in state.items()}}, tmp_path / "r.pt"
    )
    options = {**QUICK, "defense": "standard", "model": "torchvision:resnet18", "points": 4}
    directory = stopped(tmp_path / "runs", ("stage", 0), **options, weights=tmp_path / "r.pt")
    found = row_0(directory)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert int(found["bn1.num_batches_tracked"]) == 1


@pytest.mark.slow
def test_a_run_that_starts_from_weights(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record has name and digest, no path; the run holds row 0, so the file itself may go."""
    made = run(**QUICK, weights=str(file), runs_dir=tmp_path / "runs")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    weights = made.record.config["weights"]
    assert (weights["name"], weights["sha256"]) == ("start.safetensors", sha256)
    assert "elsewhere" not in (made.path / "record.json").read_text()
    assert made.record.config["pretrain"]["epochs"] == 0
    assert all(torch.equal(row_0(made.path)[key], value) for key, value in network().state_dict().items())
    command = spelled_out(made.record.config)
    assert "--weights start.safetensors" in (command.text or "")
    assert command.note == "It needs the file start.safetensors, whose checksum is in the record."
    # The place of the file does not count, its content does.
    moved = file.rename(tmp_path / "start.safetensors")
    again = prepare({**QUICK, "weights": moved})
    assert again.identity == json.loads((made.path / "run.json").read_text())["identity"]
    assert prepare(QUICK).identity != again.identity
    assert "weights" not in prepare(QUICK).config.model_dump()
    moved.unlink()
    report = retrain_run(load_run(made.path))
    assert report.confirmed
    assert any("the same bit for bit" in note for note in report.notes)
    assert invoke(["run", "--config", str(made.path / "record.json"), "--dry-run", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "start.safetensors"
    # Other weights make another row of a leaderboard.
    other = made.record.model_copy(update={"config": {**made.record.config, "weights": None}})
    assert result_of(made.record).group != result_of(other).group


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_without_pretraining_it_resumes_from_row_0(file: Path, tmp_path: Path) -> None:
    """The file that it started from may be gone."""
    whole = run(**QUICK, weights=file, runs_dir=tmp_path / "whole")
    directory = stopped(tmp_path / "runs", ("stage", 0), **QUICK, weights=file)
    file.unlink()
    resumed = run(resume=directory)
    ends = [(one.path / "model.safetensors").read_bytes() for one in (resumed, whole)]
    assert ends[0] == ends[1]


@pytest.mark.usefixtures("short_probes")
def test_one_line_says_that_the_file_is_missing(file: Path, tmp_path: Path) -> None:
    """Or another one, after pretraining, when row 0 has other weights."""
    trained = {**QUICK, "set": {"eps_warmup": 0, "pretrain.epochs": 1}}
    directory = stopped(tmp_path / "runs", ("stage", 0), **trained, weights=file)
    kept = file.rename(tmp_path / "kept.safetensors")
    with pytest.raises(InputError, match=r"weights 'start\.safetensors' .* is missing: give the file"):
        run(resume=directory)
    kept.rename(file)
    record = run(resume=directory).record
    assert record.config["weights"]["name"] == "start.safetensors"
    save_file(network(8).state_dict(), file)
    with pytest.raises(InputError, match=r"are not those that the run started from, 'start\.safetensors'"):
        retrain_run(load_run(directory), weights=file)
    with pytest.raises(InputError, match=r"which it has no copy of: give the file with --weights FILE"):
        retrain_run(load_run(directory))
    with pytest.raises(InputError, match="which it has no copy of"):
        prepare(read_config(directory / "record.json"))


STATES: dict[str, Any] = {
    "flat": lambda state: state,
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "model.": lambda state: {f"model.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled in parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "nested": lambda state: {"model": state, "epoch": torch.tensor(3)},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "ema": lambda state: {"ema": state, "step": 5},
    "timm": lambda state: {"state_dict_ema": {f"module.{key}": value for key, value in state.items()}},
    "net. of Lightning": lambda state: {"state_dict": {f"net.{key}": value for key, value in state.items()}},
    "deep": lambda state: {f"module.encoder.0.{key}": value for key, value in state.items()},
    "an unknown key": lambda state: {"checkpoint": {"model": state}, "epoch": 3},
    "params": lambda state: {"params_ema": state, "optimizer": {"lr": 0.1}},
    "double": lambda state: {key: value.double() for key, value in state.items()},
    "averaged": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("form", STATES)
def test_forms_of_checkpoints(form: str, tmp_path: Path) -> None:
    """Prefixes and nesting of training programs."""
    state = network().state_dict()
    torch.save(STATES[form](dict(state)), tmp_path / "w.pt")
    model = network(8)
    load_state(model, read_state(tmp_path / "w.pt"), tmp_path / "w.pt")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    """The content decides, and an archive is not taken for safetensors."""
    state = network().state_dict()
    save_file(state, tmp_path / "w.ckpt")
    assert all(torch.equal(value, state[key]) for key, value in read_state(tmp_path / "w.ckpt").items())
    torch.save(state, tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"an archive as torch\.save writes it: give its name the ending \.pt"
    ):
        read_state(tmp_path / "w.safetensors")


def test_a_checkpoint_without_counters_of_batch_norm(tmp_path: Path) -> None:
    """Old and converted checkpoints lack them; they compute nothing."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    state = {key: value + 1 for key, value in model.state_dict().items() if "num_batches" not in key}
    load_state(model, state, tmp_path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


CHANGED: dict[str, Any] = {
    "int": lambda value: value.int(),
    "complex64": lambda value: value.cfloat(),
    "sparse_coo": lambda value: value.to_sparse(),
    "qint8": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "without data": lambda value: value.to("meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CHANGED)
def test_tensors_that_are_no_weights(kind: str, tmp_path: Path) -> None:
    """They are refused by type, and neither rounded nor a traceback."""
    state = dict(network().state_dict())
    key = next(iter(state))
    torch.save({**state, key: CHANGED[kind](state[key])}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"1 of another type \({key} .*{kind}.* for float32\)"):
        load_state(network(8), read_state(tmp_path / "w.pt"), tmp_path / "w.pt")


def test_a_part_of_a_model(tmp_path: Path) -> None:
    """One file of several, their index, and their folder."""
    key, value = next(iter(network().state_dict().items()))
    part = tmp_path / "model-00001-of-00002.safetensors"
    save_file({key: value}, part)
    with pytest.raises(InputError, match="the file is a part of a model: save it as one file"):
        load_state(network(), read_state(part), part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: part.name}}))
    with pytest.raises(InputError, match="list the parts of a model"):
        read_state(index)
    with pytest.raises(InputError, match="it is a folder: name one file"):
        read_state(tmp_path)


def test_plain_weights_come_before_averaged_ones(tmp_path: Path) -> None:
    """In a checkpoint that has both."""
    plain, averaged = network().state_dict(), network(8).state_dict()
    torch.save({"state_dict_ema": averaged, "state_dict": plain}, tmp_path / "w.pt")
    found = read_state(tmp_path / "w.pt")
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_weights_that_cannot_be_started_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each: what is missing, unknown, of another size, nearest, broken or no weights."""
    state = network().state_dict()
    first = next(iter(state))
    cases = {
        rf"1 missing \({first}\); 1 unknown \({first}s\); nearest to {first} is {first}s": {
            **{key: value for key, value in state.items() if key != first},
            f"{first}s": state[first],
        },
        rf"1 of another size \({first} \(1,\) for": {**state, first: torch.zeros(1)},
        rf"values that are not finite, in '{first}'": {
            **state,
            first: torch.full_like(state[first], torch.nan),
        },
    }
    path = tmp_path / "w.safetensors"
    for fault, wrong in cases.items():
        save_file(wrong, path)
        with pytest.raises(InputError, match=fault):
            prepare({**QUICK, "weights": path})
    torch.save(network(), tmp_path / "pickle.pt")
    for name, fault in (("pickle.pt", "other pickles are not read"), ("no.pt", "there is no such file")):
        assert invoke(["run", "--weights", str(tmp_path / name), "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert fault in " ".join(said.split())
        assert "Traceback" not in said
    with pytest.raises(InputError, match="weights"):
        prepare({**QUICK, "weights": 3})


def test_no_pretraining_is_for_pretraining_alone() -> None:
    """A stage has an epoch at least; what pretraining inherits fits it."""
    assert prepare(QUICK).config.pretrain.epochs == 0
    with pytest.raises(InputError, match="epochs: Input should be greater than or equal to 1"):
        prepare({**QUICK, "set": {"epochs": 0}})
    with pytest.raises(InputError, match=r"pretrain\.epochs: .* greater than or equal to 0"):
        prepare({**QUICK, "set": {"pretrain.epochs": -1}})


def test_settings_reach_the_plans() -> None:
    """From --set to stage and pretraining."""
    levers = {"average": "ema", "average_decay": "0.9", "label_smoothing": "0.1", "grad_accumulation": "2"}
    levers |= {"schedule": "cosine", "warmup": "2", "epochs": "8"}
    config = prepare({**QUICK, "epochs": None, "set": {**levers, "pretrain.epochs": 4}}).config
    assert (config.plan.average, config.plan.average_decay, config.plan.warmup) == ("ema", 0.9, 2.0)
    assert (config.pretrain.label_smoothing, config.pretrain.grad_accumulation) == (0.1, 2)
    assert config.pretrain.warmup == 1.0
    other = prepare({**QUICK, "epochs": None, "set": {**levers, "pretrain.average": "none"}}).config
    assert (other.pretrain.average, other.pretrain.average_decay) == ("none", 0.995)
    assert (
        prepare({**QUICK, "epochs": None, "set": {**levers, "pretrain.epochs": 0}}).config.pretrain.epochs
        == 0
    )
    with pytest.raises(InputError, match="has no effect on mart"):
        prepare({**QUICK, "defense": "mart", "set": {"label_smoothing": 0.1}})
    with pytest.raises(InputError, match=r"schedule=one-cycle, which warms up by itself"):
        prepare({**QUICK, "set": {"warmup": 0.5}})


def test_a_resumed_run_takes_no_weights(file: Path, tmp_path: Path) -> None:
    """Its manifest says where they are."""
    directory = stopped(tmp_path / "runs", ("start", 0), **QUICK, weights=file)
    with pytest.raises((InputError, RecordError), match="--weights: a resumed run takes its options"):
        run(resume=directory, weights=file)
