"""What must be the same on the device as on the CPU: logits, attacks, training, batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from memory import write_folder
from torch import Tensor, nn

from advbench.data import DataChoices, DataSet, Split, TensorLoader, load_dataset
from advbench.data.pixels import Pixels
from advbench.evaluation.evaluate import evaluate
from advbench.models import MODELS, build_model
from attacks_pool import InputError
from attacks_pool.fast.copy import search_model
from attacks_pool.verifier import predict_exactly
from defenses import AT, TrainPlan, registry
from gpu_parts.report import Report, budgets

CPU = torch.device("cpu")
LOGITS = 1e-4
"""Allowed difference of float32 logits, relative to the largest logit."""
SEARCHED = 0.1
"""The same for the faster copies that searches use, which may be in bfloat16."""
COUNTS = 0.04
"""Allowed difference of the share of points that withstand an attack."""
UPDATES = 0.25
"""Allowed difference of two training steps, relative to their length: gradients near 0 may change sign."""
TRAINED = TrainPlan(epochs=4, batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0.0)
STEPS = TrainPlan(epochs=1, batch_size=32, lr=0.01, mixed_precision="off")


def logits(report: Report) -> None:
    """Logits of float32 networks and of their faster copies."""
    for name in report.sizes.networks:
        channels, height, width = map(int, MODELS[name].input.split("×"))
        model = build_model(name, num_classes=10, in_channels=channels, image_size=height, seed=0).eval()
        x = torch.rand(64, channels, height, width, generator=torch.Generator().manual_seed(0))
        expected = predict_exactly(model, x)
        model, x = model.to(report.device), x.to(report.device)
        gap = distance(predict_exactly(model, x), expected)
        report.check(f"{name}: float32 logits", gap <= LOGITS, gap, f"at most {LOGITS}")
        fast = search_model(model, x, reduced=True)
        with torch.no_grad():
            gap = distance(fast(x), expected)
        report.check(f"{name}: logits of {type(fast).__name__}", gap <= SEARCHED, gap, f"at most {SEARCHED}")


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return float((found.cpu() - expected.cpu()).abs().max() / expected.abs().max())


def attacks(report: Report) -> None:
    """Counts of points that withstand each attack, on both devices, with the same weights and draws."""
    data = load_dataset("digits")
    model = build_model("digits-cnn", num_classes=10, in_channels=1, image_size=8, seed=0)
    plan = TRAINED.model_copy(update={"epochs": 1}) if report.short else TRAINED
    AT(model).fit(TensorLoader(data.train, 64, seed=0), budgets("pgd:steps=5"), plan=plan, progress=False)
    for attack in budgets(report.sizes.attacks):
        found = {place: survivors(model, data, attack, report, place) for place in (CPU, report.device)}
        (here, _), (there, invalid) = found[CPU], found[report.device]
        allowed = max(1, round(COUNTS * report.sizes.points))
        report.check(f"{attack.name}: survivors", abs(here - there) <= allowed, there, f"{here} ± {allowed}")
        report.check(f"{attack.name}: outside its bounds", invalid == 0, invalid, "0")


def survivors(
    model: nn.Module, data: DataSet, attack: Any, report: Report, place: torch.device
) -> tuple[int, int]:
    """How many of the points are right after the attack, and how many crafted points break a bound."""
    moved, few = model.to(place).eval(), data.test.first(report.sizes.points)
    row = evaluate(lambda _: moved, few, [(attack, len(few))], stage=0, seed=0, device=place)
    return row.cells[1].robust, row.cells[1].invalid


def training(report: Report) -> None:
    """Two steps of each defense move its weights as they do on the CPU."""
    data = load_dataset("digits").train.take(slice(64))
    for name in report.sizes.defenses:
        try:
            here, there = (update(name, data, place) for place in (CPU, report.device))
        except InputError as error:
            report.check(f"{name}: two steps", False, str(error), "no error")
            continue
        gap = float((there - here).norm() / here.norm())
        holds = bool(torch.isfinite(there).all()) and gap <= UPDATES
        report.check(f"{name}: two steps", holds, gap, f"at most {UPDATES}")


def update(name: str, data: Split, place: torch.device) -> Tensor:
    """How two training steps on ``place`` change all weights, as one vector on the CPU."""
    network = build_model("digits-cnn", num_classes=10, in_channels=1, image_size=8, seed=0)
    defense = registry.build(name, network.to(place), seed=0)
    regime = registry.resolve(name)[1]
    given = budgets("pgd:steps=2" if regime == "continual" else "pgd:steps=2,pgd-l2:steps=2,fgsm")
    before = {key: value.detach().cpu().clone() for key, value in defense.named_parameters()}
    loader = TensorLoader(data, STEPS.batch_size, seed=0, device=place)
    defense.fit(loader, given, plan=STEPS, progress=False)
    after = {key: value.detach().cpu() for key, value in defense.named_parameters()}
    # Layers that training adds have no earlier values; they count from zero.
    return torch.cat([(value - before.get(key, 0.0)).flatten() for key, value in after.items()])


def batches(report: Report) -> None:
    """Batches of images from files: streamed, resident and on the CPU, bit for bit the same."""
    device, side, count = report.device, 32, 64
    with tempfile.TemporaryDirectory() as place:
        write_folder(Path(place), count, 8, side)
        splits = {
            name: load_dataset(f"folder:{place}", choices=DataChoices(memory=memory)).train
            for name, memory in (("streamed", 0.0), ("resident", 1e9))
        }
        found = {name: list(TensorLoader(split, 16, seed=0, device=device)) for name, split in splits.items()}
        found["CPU"] = list(TensorLoader(splits["resident"], 16, seed=0, device="cpu"))
    for name in ("resident", "CPU"):
        same = equal(found["streamed"], found[name])
        report.check(f"streamed = {name}", same, "equal" if same else "different", "equal")
    if device.type != "cuda":
        return
    images = splits["resident"].images
    assert isinstance(images, Pixels)
    before = torch.cuda.memory_allocated(device)
    moved = images.to(device)
    bytes_each = (torch.cuda.memory_allocated(device) - before) / len(moved)
    stored = 3 * side * side
    report.check("bytes of an image on the device", bytes_each <= 1.1 * stored, bytes_each, f"about {stored}")


def equal(some: Sequence[tuple[Tensor, Tensor]], others: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether all batches are the same."""
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for one, other in pairs for a, b in zip(one, other, strict=True))
