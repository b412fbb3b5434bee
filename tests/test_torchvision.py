"""``advbench run --model torchvision:NAME``: trained from fresh weights, and rebuilt from the record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advbench import RunConfig, load_run
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.config.plugins import code_named
from advbench.runs.saved import new_classifier

MODEL = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Two classes of grey 16×16 images, dark and bright."""
    random = np.random.RandomState(0)
    for part, count in (("train", 20), ("test", 6)):
        for level, name in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(90 * level, 90 * level + 150, (16, 16)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"folder:{tmp_path / 'photos'}"


def test_the_config_rebuilds_it(photos: str) -> None:
    """Resuming, loading and training again build the same network from the config, which names no code."""
    options = {"model": MODEL, "dataset": photos, "defense": "standard", "sequence": "fgsm"}
    prepared = prepare({**options, "unseen": "none"})
    config = RunConfig.model_validate_json(prepared.config.model_dump_json())
    assert config.model == MODEL
    assert code_named(config.model_dump()) == []
    assert prepared.identity == prepare(config.model_dump()).identity
    one, two = (new_classifier(config, (1, 16, 16), 2).state_dict() for _ in range(2))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.slow
def test_a_run_can_be_loaded_repeated_and_trained_again(
    photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of it needs trust."""
    asked = ["--dataset", photos, "--defense", "standard", "--sequence", "fgsm", "--unseen", "none"]
    asked += ["--model", MODEL, "--epochs", "1", "--set", "pretrain.epochs=1", "--set", "batch_size=16"]
    assert invoke(["run", *asked, "--runs-dir", str(tmp_path / "runs"), "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["model"] == MODEL
    run = load_run(next((tmp_path / "runs").iterdir()))
    assert run.model(torch.rand(3, 1, 16, 16)).shape == (3, 2)
    again = ["run", "--config", str(run.path / "record.json"), "--dry-run", "--format", "json"]
    assert invoke([*again, "--runs-dir", str(tmp_path / "runs")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["model"], plan["state"]) == (MODEL, "complete")
    assert invoke(["verify", str(run.path), "--retrain"]) == 0
    assert "confirmed" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["robustbench:Standard", "model.pt", "weights.safetensors"])
def test_models_with_weights_are_not_for_runs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says which names a run takes, and which command takes this one."""
    assert invoke(["run", "--model", model]) == 2
    said = capsys.readouterr().err
    assert f"model '{model}' has weights already" in said
    assert "torchvision:NAME, timm:NAME or package.module:factory" in said
    assert "advbench eval" in said


def test_images_that_it_cannot_take(capsys: pytest.CaptureFixture[str]) -> None:
    """Digits are too small for AlexNet."""
    assert invoke(["run", "--model", "torchvision:alexnet"]) == 2
    assert "model 'torchvision:alexnet' fails on images of shape (2, 1, 8, 8)" in capsys.readouterr().err
