"""Runs and evaluations on data of the user's, from the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import advbench
from advbench.contract import check_dataset
from attacks_pool.errors import InputError
from leaderboards import read_record

TINY: dict[str, Any] = {"epochs": 1, "unseen": "none", "points": 20, "threads": 1}
MODEL = "advbench.models.small:digits_cnn"
SMALL: dict[str, Any] = {**TINY, "set": {"pretrain.epochs": "1"}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 and 30 images of 8×8 pixels and three classes, in one file."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (90, 8, 8), dtype=np.uint8), np.arange(90) % 3
    file = tmp_path_factory.mktemp("data") / "photos.npz"
    np.savez(file, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return file


@pytest.mark.usefixtures("short_probes")
def test_a_run_on_part_of_a_file(photos: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    """What was used stands in the record, loading uses it again, and streaming changes no number."""
    words = f"run --dataset npz:{photos} --classes 0,2 --train-points 30 --points 20 --image-size 10"
    words += " --defense at --sequence fgsm --epochs 1 --unseen none --threads 1 --set pretrain.epochs=1"
    found = []
    for memory in ("1GB", "0"):
        runs = tmp_path / memory
        call(*words.split(), "--data-memory", memory, "--runs-dir", runs)
        (path,) = runs.iterdir()
        found.append(read_record(path))
    record = found[0]
    assert record.config["classes"] == ["0", "2"]
    assert (record.config["image_size"], record.config["train_points"]) == (10, 30)
    data = record.environment["data"]
    assert (data["shape"], data["classes"], data["train"], data["validation"]) == ([1, 10, 10], 2, 27, 3)
    assert [cell.robust for cell in found[0].cells] == [cell.robust for cell in found[1].cells]
    x, y = advbench.load_run(path).test_data
    assert x.shape == (20, 1, 10, 10)
    assert set(y.tolist()) == {0, 1}


@pytest.mark.usefixtures("short_probes")
def test_objects(tmp_path: Path) -> None:
    """A pair of data sets trains and a DataLoader evaluates; the run has its data, others cannot load it."""
    x, y = torch.rand(90, 1, 8, 8), torch.arange(90) % 3
    pair = TensorDataset(x[:60], y[:60]), TensorDataset(x[60:], y[60:])
    result = advbench.run("at", "fgsm", dataset=pair, runs_dir=tmp_path, **SMALL)
    assert result.record.config["dataset"] == "python:tuple"
    assert torch.equal(result.test_data[0], x[60:80])
    with pytest.raises(InputError, match="was a Python object"):
        _ = advbench.load_run(result.path).test_data
    found = advbench.evaluate_model(
        result.model, DataLoader(pair[1], 7), attacks="fgsm", points=20, threads=1, runs_dir=tmp_path
    )
    assert found.record.config["dataset"] == "python:DataLoader"
    last = [cell for cell in result.record.cells if cell.stage == 1 and cell.attack == "clean"]
    assert found.record.cells[0].clean_correct == last[0].clean_correct


@pytest.mark.usefixtures("short_probes")
def test_code_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]) -> None:
    """A record that names a factory of data imports it only where that is allowed."""
    (tmp_path / "sky.py").write_text(
        "import torch\n"
        "def load():\n"
        "    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "    return (x, torch.arange(60) % 2), (x[:30].flip(3), torch.arange(30) % 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = advbench.run("at", "fgsm", dataset="sky:load", runs_dir=tmp_path / "runs", **SMALL)
    with pytest.raises(InputError, match="the data set 'sky:load', and loading it imports that code"):
        advbench.load_run(result.path)
    assert len(advbench.load_run(result.path, trust=True).test_data[0]) == 20
    _, said = call("run", "--config", result.path / "record.json", "--dry-run", code=2)
    assert "names the data set 'sky:load'" in said


@pytest.mark.usefixtures("short_probes")
def test_data_without_training_images(photos: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    """They are evaluated on, and training on them is refused."""
    with np.load(photos) as stored:
        np.savez(tmp_path / "test.npz", x_test=stored["x_test"], y_test=stored["y_test"])
    where = ["--dataset", f"npz:{tmp_path / 'test.npz'}", "--threads", "1", "--runs-dir", tmp_path / "runs"]
    _, said = call("run", *where, code=2)
    assert "has no training images: models can be evaluated on it" in said
    printed, _ = call("eval", "--model", MODEL, "--attacks", "fgsm", "--format", "json", *where)
    assert json.loads(printed)["environment"]["data"]["train"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-memory", "much"], "--data-memory 'much' cannot be read: write 2GB, 500MB"),
        (["--channels", "2"], "give 1 for grey or 3 for colour"),
        (["--classes", "0,9"], "unknown class '9'"),
        (["--train-points", "100"], "train_points=100 exceeds the 60 training images"),
    ],
)
def test_bad_choices(photos: Path, words: list[str], said: str, call: Callable[..., Any]) -> None:
    _, error = call("run", "--dataset", f"npz:{photos}", *words, code=2)
    assert said in error
    assert error.count("\n") == 1


class TestContract:
    """``advbench datasets check``."""

    @pytest.mark.parametrize(
        ("fault", "promise", "said"),
        [
            ("sorted", "order", "the first 10 test points are all of class '0'"),
            ("same", "splits", "are in another split too"),
            ("dark", "images", "divided by 255 twice"),
            ("blank", "images", "are all the same"),
            ("missing", "labels", "class '2' has no points"),
            ("random", "repeatable", "has other values when it is read again"),
        ],
    )
    def test_each_fault_is_found(self, fault: str, promise: str, said: str) -> None:
        x, y = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3
        train, test = [x[:150], y[:150]], [x[150:], y[150:]]
        if fault == "sorted":
            test[1] = test[1].sort().values
        if fault == "same":
            test[0] = x[:50]
        if fault in ("dark", "blank"):
            train[0], test[0] = (
                (part / 255 if fault == "dark" else 0 * part + 0.5) for part in (x[:150], x[150:])
            )
        if fault == "missing":
            test[1] = test[1] % 2
        given: Any = tuple(train), tuple(test)
        if fault == "random":
            items = [(image, int(label)) for image, label in zip(*test, strict=True)]
            given = (_Noisy(items), _Noisy(items))
        broken = {check.name: check.detail for check in check_dataset(given) if not check.holds}
        assert said in broken[promise]

    def test_digits_and_a_new_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        call("datasets", "check", "digits")
        call("datasets", "new", "my-photos")
        monkeypatch.chdir(tmp_path / "my-photos")
        call("datasets", "check", "my_photos:my_photos")
        call("datasets", "new", "digits", code=2)


class _Noisy(list[Any]):
    """Items that are another image at every reading, as where a data set augments."""

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return (image + 0.01 * torch.rand(1)).clamp(0, 1), label
