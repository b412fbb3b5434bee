"""Adversarial training and AIR, ours against the plain loop that a user would write, in one run.

    python benchmarks/training.py --data-dir DIR --parts at,air,resnet --threads 2

The plain loop takes torchattacks' PGD-7 and a DataLoader of the same tensors, in float32. Both sides start
from the same weights and see as many steps of the same batch size, optimizer, learning rate and eps schedule,
in turns for each seed; robust accuracy is judged by our evaluation under PGD-50. ResNet-18 is timed only, on
random images. On a GPU the share of the card's bfloat16 rate, measured on a matrix product, is printed too.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from attacks import two_layers, wait_for
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advbench.data import Split, TensorLoader, load_dataset
from advbench.evaluation.evaluate import evaluate
from advbench.models import build_model
from advbench.models.cost import multiply_adds
from attacks_pool import Attack, pool
from defenses import AIR, AT, Defense, TrainPlan

STEPS, BATCH, LR, CLIP = 7, 128, 1e-3, 1.0
WARMUP = 1.0
"""Epochs over which eps rises from 0 in each stage; without it MNIST does not begin to train."""


def resnet18() -> nn.Module:
    """ResNet-18 for 32×32 colour images."""
    return build_model("resnet18", num_classes=10, in_channels=3, image_size=32, seed=0)


@dataclass(frozen=True)
class Task:
    """What both sides train: a network on points, the budgets of its stages, epochs a stage."""

    network: str
    build: Callable[[], nn.Module]
    data: Split
    stages: tuple[float, ...]
    epochs: int
    batch: int
    optimizer: str = "adam"
    lr: float = LR

    @property
    def images(self) -> int:
        """Clean images that pass through training."""
        return len(self.data) * self.epochs * len(self.stages)

    def plan(self) -> TrainPlan:
        """Our budget; the plain loops spell the same out."""
        return TrainPlan(
            epochs=self.epochs,
            batch_size=self.batch,
            optimizer="sgd" if self.optimizer == "sgd" else "adam",
            lr=self.lr,
            weight_decay=0.0,
            max_grad_norm=CLIP,
            eps_warmup=min(WARMUP, self.epochs),
            schedule="cosine",
        )


class Plain:
    """The loop of a user: a DataLoader, torchattacks' PGD, the loss written out."""

    def __init__(self, model: nn.Module, task: Task, seed: int) -> None:
        self.model, self.task = model, task
        device = next(model.parameters()).device
        points = TensorDataset(task.data.x.cpu(), task.data.y.cpu())
        draws = torch.Generator().manual_seed(seed)
        self.loader = DataLoader(points, batch_size=task.batch, shuffle=True, generator=draws)
        self.device = device

    def batches(
        self, eps: float, optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(x, y, x_adv) of each step of a stage, eps warming up and the learning rate falling on the way."""
        import torchattacks

        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.task.epochs * len(self.loader)
        )
        for epoch in range(self.task.epochs):
            for number, (images, labels) in enumerate(self.loader):
                x, y = images.to(self.device), labels.to(self.device)
                done = epoch + number / len(self.loader)
                now = eps * min(max(done / WARMUP, 1e-3), 1.0)
                attack = torchattacks.PGD(self.model, eps=now, alpha=2.5 * now / STEPS, steps=STEPS)
                self.model.train()
                yield x, y, attack(x, y)
                scheduler.step()

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one for each stage."""
        if self.task.optimizer == "sgd":
            return torch.optim.SGD(self.model.parameters(), lr=self.task.lr, momentum=0.9)
        return torch.optim.Adam(self.model.parameters(), lr=self.task.lr)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward, clip, step."""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        optimizer.step()

    def at(self) -> nn.Module:
        """Adversarial training."""
        for eps in self.task.stages:
            optimizer = self.optimizer()
            for _x, y, x_adv in self.batches(eps, optimizer):
                self.step(F.cross_entropy(self.model(x_adv), y), optimizer)
        return self.model.eval()

    def air(self) -> nn.Module:
        """AIR with its default weights, each point set through the network by itself."""
        old: nn.Module | None = None
        for eps in self.task.stages:
            optimizer = self.optimizer()
            for _x, y, x_adv in self.batches(eps, optimizer):
                logits = self.model(x_adv)
                loss = F.cross_entropy(logits, y)
                if old is not None:
                    x_iso = (x_adv + 0.1 * torch.randn_like(x_adv)).clamp(0, 1)
                    beta = torch.rand(len(x_adv), 1, 1, 1, device=x_adv.device)
                    x_mix = beta * x_adv + (1 - beta) * x_adv[torch.randperm(len(x_adv), device=x_adv.device)]
                    replayed = self.model(x_iso)
                    loss = loss + 2 * divergence(old, x_iso, replayed)
                    loss = loss + 2 * divergence(old, x_mix, self.model(x_mix))
                    loss = loss + (logits.softmax(1) - replayed.softmax(1)).square().sum(1).mean()
                self.step(loss, optimizer)
            old = copy.deepcopy(self.model).eval()
        return self.model.eval()


def divergence(old: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
    """KL(old(x) ‖ new(x)), mean over the batch."""
    with torch.no_grad():
        before = old(x).log_softmax(1)
    return F.kl_div(logits.log_softmax(1), before, log_target=True, reduction="batchmean")


def ours(method: type[Defense], model: nn.Module, task: Task, seed: int) -> nn.Module:
    """Our defense on the same task."""
    defense = method(model, seed=seed)
    loader = TensorLoader(task.data, task.batch, seed=seed)
    for attack in bound(task.stages):
        defense.fit(loader, [attack], plan=task.plan())
    return defense.eval()


def bound(stages: Iterable[float]) -> list[Attack]:
    """PGD at each budget; in training it takes seven steps of the plain loop's size."""
    return [
        pool.get("pgd", eps=eps, training={"steps": STEPS, "step_size": 2.5 * eps / STEPS}) for eps in stages
    ]


def timed(train: Callable[[], nn.Module], device: torch.device) -> tuple[nn.Module, float]:
    """What it trains, and its seconds."""
    wait_for(device)
    began = time.perf_counter()
    model = train()
    wait_for(device)
    return model, time.perf_counter() - began


def robust(model: nn.Module, data: Split, eps: float) -> float:
    """Percent of ``data`` right under PGD-50."""
    attack = pool.get("pgd", eps=eps, steps=50)
    return 100 * evaluate(lambda _: model, data, [(attack, len(data))], stage=0, seed=0).cells[1].accuracy


def compare(method: str, task: Task, seeds: int, device: torch.device, test: Split | None) -> None:
    """Both sides in turns; prints images a second, their ratio and robust accuracy."""
    print(f"{method} on {task.network}: {task.images:,} images, batches of {task.batch}", flush=True)
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    scores: dict[str, list[float]] = {"plain": [], "ours": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        start = task.build().to(device)
        kind = AT if method == "at" else AIR
        sides: dict[str, Callable[[], nn.Module]] = {
            "plain": getattr(Plain(copy.deepcopy(start), task, seed), method),
            "ours": lambda start=start, kind=kind, seed=seed: ours(kind, copy.deepcopy(start), task, seed),
        }
        for side, train in sides.items():
            model, seconds = timed(train, device)
            rates[side].append(task.images / seconds)
            line = f"  seed {seed} {side:6}{seconds:8.1f} s {rates[side][-1]:9.1f} images/s"
            if test is not None:
                scores[side].append(robust(model, test, task.stages[-1]))
                line += f"  {scores[side][-1]:5.1f} % robust"
            print(line, flush=True)
    plain, mine = (statistics.median(rates[side]) for side in ("plain", "ours"))
    line = f"  median {plain:.1f} and {mine:.1f} images/s: {mine / plain:.2f} times"
    if test is not None:
        before, after = (statistics.median(scores[side]) for side in ("plain", "ours"))
        line += f"; robust {before:.1f} and {after:.1f} %"
    print(line, flush=True)
    if device.type == "cuda":
        share = 2 * work(task, device) * mine / bfloat16_rate(device)
        print(f"  {100 * share:.1f} % of the card's measured bfloat16 rate", flush=True)


def work(task: Task, device: torch.device) -> float:
    """Multiply-adds of adversarial training on one image: a backward pass to the input costs as a forward."""
    once = multiply_adds(task.build().to(device), task.data.x[:1].to(device))
    return once * (2 * STEPS + 3)


def bfloat16_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Floating-point operations a second of a square bfloat16 matrix product."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    wait_for(device)
    began = time.perf_counter()
    for _ in range(repeats):
        a @ a
    wait_for(device)
    return repeats * 2 * size**3 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="../shared/data", help="where MNIST is")
    parser.add_argument("--parts", default="at,air,resnet", help="of at, air, resnet, resnet-air")
    parser.add_argument("--points", type=int, default=12_000, help="MNIST images to train on")
    parser.add_argument("--test-points", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3, help="of a stage, on MNIST")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of ResNet-18")
    parser.add_argument("--batch", type=int, default=32, help="images a step of ResNet-18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {options.threads} threads", flush=True)
    parts = options.parts.split(",")
    if {"at", "air"} & set(parts):
        mnist(parts, options, device)
    for part in parts:
        if part.startswith("resnet"):
            draws = torch.Generator().manual_seed(0)
            x = torch.rand(options.steps * options.batch, 3, 32, 32, generator=draws)
            data = Split(x, torch.randint(0, 10, (len(x),), generator=draws))
            # Both sides pay for a first step outside of the clock: threads start, buffers are made.
            warm = Split(data.x[: options.batch], data.y[: options.batch])
            method = "air" if part.endswith("air") else "at"
            stages = (8 / 255, 8 / 255) if method == "air" else (8 / 255,)
            task = Task("ResNet-18", resnet18, data, stages, 1, options.batch, "sgd", 0.01)
            first = Task("ResNet-18", resnet18, warm, (8 / 255,), 1, options.batch, "sgd", 0.01)
            Plain(resnet18().to(device), first, 0).at()
            ours(AT, resnet18().to(device), first, 0)
            compare(method, task, options.seeds, device, None)


def mnist(parts: list[str], options: Any, device: torch.device) -> None:
    """Both methods on the two-convolution network."""
    data = load_dataset("mnist", options.data_dir)
    train = Split(data.train.x[: options.points].to(device), data.train.y[: options.points].to(device))
    test = Split(data.test.x[: options.test_points].to(device), data.test.y[: options.test_points].to(device))
    for method, stages in (("at", (0.3,)), ("air", (0.2, 0.3))):
        if method in parts:
            task = Task("two convolutions", two_layers, train, stages, options.epochs, BATCH)
            compare(method, task, options.seeds, device, test)


if __name__ == "__main__":
    main()
