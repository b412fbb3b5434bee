"""RobustBench's architectures with local checkpoints, evaluated on a folder of images."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from advbench import evaluate_model
from advbench.cli.main import invoke
from advbench.data import load_dataset
from advbench.external import Source, load_foreign
from advbench.external.zoos import _zoo
from attacks_pool import InputError
from leaderboards import read_record

try:
    ZOO = _zoo()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

NAME, THREAT = "Hendrycks2020AugMix_WRN", "corruptions"
"""The smallest architecture of the zoo: 2.2 million parameters."""
GIVEN = ["eval", "--model", f"robustbench:{NAME}", "--threat", THREAT]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 32×32 pixels, three images of each to train on and one to test."""
    place = tmp_path_factory.mktemp("photos")
    draw = np.random.RandomState(0)
    for split, count in (("train", 3), ("test", 1)):
        for label in range(10):
            folder = place / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.randint(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the zoo's own layout, under the prefix that data-parallel training leaves."""
    zoo = {dataset.value: threats for dataset, threats in ZOO.items()}["cifar10"]
    entry = {threat.value: models for threat, models in zoo.items()}[THREAT][NAME]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = entry["model"]()
    # As published: without the normalisation that the architecture adds.
    state = {
        f"module.{key}": value for key, value in model.state_dict().items() if key not in ("mu", "sigma")
    }
    path = tmp_path_factory.mktemp("zoo") / "cifar10" / THREAT / f"{NAME}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": state}, path)
    return path


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_an_architecture_with_a_local_checkpoint(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """From the zoo's layout, and from a copy in safetensors; the weights are those of the file."""
    arguments = [*GIVEN, "--dataset", f"folder:{photos}", "--model-dir", str(checkpoint.parents[2])]
    arguments += ["--attacks", "fgsm,pgd:steps=2", "--points", "10", "--threads", "1"]
    assert invoke([*arguments, "--runs-dir", str(tmp_path / "cli")]) == 0
    (directory,) = (tmp_path / "cli").iterdir()
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    copy = tmp_path / f"{NAME}.safetensors"
    save_file(weights, copy)
    given = {"attacks": "fgsm", "points": 10, "weights": copy, "threat": THREAT, "threads": 1}
    model, data = f"robustbench:{NAME}", f"folder:{photos}"
    run = evaluate_model(model, data, surrogate="none", runs_dir=tmp_path / "runs", **given)
    assert (run.path / run.record.stages[0].weights).read_bytes() == copy.read_bytes()
    for record, file in ((read_record(directory), checkpoint), (run.record, copy)):
        assert all(cell.n == 10 and cell.clean_correct for cell in record.cells[1:])
        assert all(cell.forwards and cell.backwards for cell in record.cells[1:])
        assert record.cost.parameters == 2_243_546
        assert record.stages[0].spec["weights"] == file.name
    images = load_dataset(data)
    foreign = load_foreign(Source(model, weights=checkpoint, threat=THREAT), images)
    assert torch.equal(foreign.model.inner.state_dict()["conv1.weight"], weights["module.conv1.weight"])  # type: ignore[union-attr]
    assert torch.isfinite(foreign.model(images.test.x)).all()


def test_what_cannot_be(
    photos: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line each, and nothing written."""
    data = ["--dataset", f"folder:{photos}", "--runs-dir", str(tmp_path / "runs")]
    cases = {
        "needs a checkpoint: give --weights FILE or --model-dir DIR": GIVEN,
        f"there is no {tmp_path}/cifar10/corruptions/{NAME}.pt": [*GIVEN, "--model-dir", str(tmp_path)],
        f"unknown robustbench model '{NAME}'": ["eval", "--model", f"robustbench:{NAME}"],
        "(it is one of threat corruptions)": ["eval", "--model", f"robustbench:{NAME}"],
        "do not fit the model: ": [
            *("eval", "--model", "robustbench:Standard", "--weights", str(checkpoint)),
        ],
        "joins several checkpoints": ["eval", "--model", "robustbench:Bai2024MixedNUTS", "--threat", "linf"],
    }
    for line, arguments in cases.items():
        assert invoke([*arguments, *data]) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert line in err
        assert not (tmp_path / "runs").exists()
    assert invoke([*GIVEN, "--dataset", "digits", "--weights", str(checkpoint)]) == 2
    assert "fails on images of shape (2, 1, 8, 8)" in capfd.readouterr().err


def test_the_alias_is_gone() -> None:
    """Nobody finds a package called autoattack that is not there."""
    assert "autoattack" not in sys.modules
