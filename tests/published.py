"""Networks whose robust accuracy is known from both sides, and their points; a skip where they are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from advbench.data import load_dataset
from advbench.models.normalize import Normalize


def folder() -> Path:
    """Where the data are, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("ADVBENCH_DATA", beside))
    if not (found / "published" / "nets.json").is_file():
        pytest.skip("no published/nets.json in $ADVBENCH_DATA or in ../shared/data beside the checkout")
    return found


def layer(given: Any) -> nn.Module:
    """A layer as ``nets.json`` describes it."""
    if given in ("relu", "flatten"):
        return nn.ReLU() if given == "relu" else nn.Flatten()
    ((kind, sizes),) = given.items()
    if kind == "normalize":
        return Normalize(sizes["mean"], sizes["std"])
    return nn.Conv2d(*sizes) if kind == "conv2d" else nn.Linear(*sizes)


def network(name: str) -> tuple[nn.Module, float]:
    """The network and its eps."""
    place = folder() / "published"
    entry = json.loads((place / "nets.json").read_text("utf-8"))[name]
    model = nn.Sequential(*map(layer, entry["layers"]))
    missing, unexpected = model.load_state_dict(load_file(place / f"{name}.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) <= {"0.mean", "0.std"}
    return model.eval(), entry["eps"]


def points(name: str) -> tuple[Tensor, Tensor]:
    """The points of the bracket: 200, or for ``wong-kolter`` all 10,000 of MNIST's test split."""
    if name == "wong-kolter":
        test = load_dataset("mnist", str(folder())).test
        return test.x, test.y
    stored = load_file(folder() / "published" / f"points-{name.partition('-')[0]}.safetensors")
    return stored["x"], stored["y"]
