"""Every registered defense on five networks: does it train, evaluate and merge, what do adapters reach?

    python benchmarks/networks.py --page docs/networks.md
    python benchmarks/networks.py --defense at --network resnet18 --results networks.json

Measures the pairs that the results file lacks, on random images with two optimizer steps each, and prints
the table as Markdown. With ``--again``, it measures the chosen pairs anew. With ``--page``, the table goes
between the lines ``<!-- networks -->`` and ``<!-- end -->`` of that page. All pairs take 20 minutes on one
core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ablations import put
from torch import Tensor, nn

from advbench.models import build_model
from attacks_pool import Attack, InputError, pool
from attacks_pool.verifier import predict_exactly, verify
from defenses import Defense, TrainPlan, registry
from defenses.base import TrainingDivergedError
from defenses.parts.lowrank import AdaptedDefense, Route

RESULTS = Path(__file__).with_suffix(".json")
CLASSES = 10
ATTACKS = pool.sequence(
    "fgsm,pgd-l2:steps=2",
    budget="cifar10",
    training={"pgd-l2": {"steps": 1}},
)
"""Two families, as LoRKD needs them."""
TOLERANCE = 1e-4
"""How far a merged network's logits may be from the routed ones, as a share of the largest logit."""


@dataclass(frozen=True)
class Network:
    """A network to try: its title in the table, the model's name, the image side and images per step."""

    title: str
    model: str
    side: int
    images: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with fresh weights."""
        return build_model(
            self.model,
            num_classes=CLASSES,
            in_channels=3,
            image_size=self.side,
            seed=0,
            model_args=self.arguments,
        )


NETWORKS = {
    "resnet18": Network("ResNet-18", "resnet18", 32, 6),
    "wide-resnet": Network("WideResNet-34-10", "wide-resnet-34-10", 32, 3),
    "convnext": Network("ConvNeXt-tiny", "torchvision:convnext_tiny", 64, 6),
    "vit": Network("ViT-tiny", "timm:vit_tiny_patch16_224", 64, 6),
    "mobilenet": Network("MobileNetV2", "torchvision:mobilenet_v2", 64, 6),
}


@dataclass
class Result:
    """What one defense does on one network.

    Attributes:
        trains: two optimizer steps change weights, and every loss is finite.
        evaluates: logits are finite, and the verifier finds the points of every attack inside the ball.
        merges: merged networks answer as the routed one does; None for defenses without adapters.
        parameters: the share of the parameters under adapters, or None.
        multiply_adds: the share of the multiply-adds under adapters, or None.
        refused: the message of a refusal, or None.
        difference: the largest difference of merged logits, as a share of the largest logit.
        seconds: the time that the pair took.
    """

    trains: bool = False
    evaluates: bool = False
    merges: bool | None = None
    parameters: float | None = None
    multiply_adds: float | None = None
    refused: str | None = None
    difference: float | None = None
    seconds: float = 0.0


def measure(name: str, network: Network) -> Result:
    """Train, attack and merge the defense ``name`` on ``network``."""
    began, result = time.perf_counter(), Result()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2 * network.images, 3, network.side, network.side, generator=generator)
    y = torch.randint(0, CLASSES, (len(x),), generator=generator)
    try:
        with warnings.catch_warnings():
            # The table shows the coverage, so a warning of a low one adds nothing.
            warnings.simplefilter("ignore")
            defense = registry.build(name, network.build(), seed=0)
            defense.check_images(x)
            result.trains = train(defense, x, y)
    except InputError as error:
        result.refused = str(error)
    except TrainingDivergedError:
        result.trains = False
    else:
        result.evaluates = evaluates(defense, x[: network.images])
        if isinstance(defense, AdaptedDefense):
            result.difference = merged_difference(defense, x)
            result.merges = result.difference <= TOLERANCE
            assert defense.covered is not None
            result.parameters = defense.covered.parameters
            result.multiply_adds = defense.covered.multiply_adds
    result.seconds = round(time.perf_counter() - began, 1)
    return result


def train(defense: Defense, x: Tensor, y: Tensor) -> bool:
    """Take two optimizer steps; return whether weights changed and every loss is finite.

    A defense that meets one attack after another takes a step in each of two stages, so that the terms that
    begin with the second stage are tried too.
    """
    before = {key: value.detach().clone() for key, value in defense.model.named_parameters()}
    first, second = ((x[place::2], y[place::2]) for place in (0, 1))
    stages: list[tuple[list[Any], Sequence[Attack]]] = [([first, second], ATTACKS)]
    if "continual" in defense.info.regimes and "joint" not in defense.info.regimes:
        stages = [([first], ATTACKS[:1]), ([second], ATTACKS[1:])]
    plan = TrainPlan(epochs=1, lr=0.01, schedule="constant")
    losses = [
        value
        for data, attacks in stages
        for terms in defense.fit(data, attacks, plan=plan, progress=False)
        for value in terms.values()
    ]
    after = dict(defense.model.named_parameters())
    changed = any(not torch.equal(value, after[key].detach()) for key, value in before.items())
    return changed and bool(losses) and all(math.isfinite(value) for value in losses)


def evaluates(defense: Defense, x: Tensor) -> bool:
    """Whether clean logits are finite and each attack, on its own view, stays inside its ball."""
    good = bool(predict_exactly(defense.view(None), x).isfinite().all())
    for attack in ATTACKS:
        view = defense.view(attack).eval()
        y = predict_exactly(view, x).argmax(1)
        crafted = attack(view, x, y, generator=torch.Generator().manual_seed(0))
        found = verify(view, x, y, crafted, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
        moved = bool((crafted != x).any())
        good = good and moved and not bool((found.invalid | found.not_a_number).any())
    return good


@torch.no_grad()
def merged_difference(defense: AdaptedDefense, x: Tensor) -> float:
    """The largest difference between routed and merged logits, as a share of the largest logit.

    Each task's own network is compared on points that the routed network takes in one mixed batch, and the
    network merged at fixed weights with the mixture at these weights.
    """
    defense.eval()
    count = len(defense.tasks)
    tasks = torch.arange(len(x)) % count
    weights = torch.arange(1, count + 1, dtype=x.dtype)
    weights = weights / weights.sum()
    pairs = []
    by_task = defense.by_task(x, tasks)
    for task in range(count):
        mine = tasks == task
        pairs.append((by_task[mine], defense.merged(task)(x[mine])))
    with defense.routing.along(Route(weights=weights.expand(len(x), -1))):
        mixed = defense(x)
    pairs.append((mixed, defense.merged(weights)(x)))
    return max(float((one - two).abs().max() / two.abs().max()) for one, two in pairs)


Results = dict[str, dict[str, Result]]


def read(path: Path) -> Results:
    """The results in a file by defense and network; none if there is no file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {network: Result(**found) for network, found in row.items()} for name, row in content.items()
    }


def write(path: Path, results: Results) -> None:
    """Store the results."""
    content = {
        name: {network: asdict(found) for network, found in row.items()} for name, row in results.items()
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(results: Results) -> str:
    """Markdown: a row a defense, a column a network, and below it the reasons of refusals."""
    lines = ["| defense | " + " | ".join(network.title for network in NETWORKS.values()) + " |"]
    lines.append("|---|" + "---|" * len(NETWORKS))
    reasons: dict[str, int] = {}
    for name, row in sorted(results.items()):
        cells = [cell(row[network], reasons) if network in row else "–" for network in NETWORKS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def cell(result: Result, reasons: dict[str, int]) -> str:
    """The text of one pair; the reason of a refusal gets a number in ``reasons``."""
    if result.refused is not None:
        return f"refused ({reasons.setdefault(result.refused, len(reasons) + 1)})"
    outcomes = {"trains": result.trains, "evaluates": result.evaluates, "merges": result.merges}
    words = [word if done else f"**not {word}**" for word, done in outcomes.items() if done is not None]
    if result.parameters is not None and result.multiply_adds is not None:
        words.append(f"{result.parameters:.0%} / {result.multiply_adds:.0%}")
    return ", ".join(words)


def main() -> None:
    """Measure what is missing, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--defense", action="append", help="only this one; may be given several times")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure pairs anew that are there already")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = read(given.results)
    for network in given.network or NETWORKS:
        for name in given.defense or registry.names():
            row = results.setdefault(name, {})
            if network in row and not given.again:
                continue
            row[network] = measure(name, NETWORKS[network])
            write(given.results, results)
            print(f"{name} on {network}: {row[network]}", file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    if given.page is not None:
        given.page.write_text(put(given.page.read_text(encoding="utf-8"), "networks", text), encoding="utf-8")


if __name__ == "__main__":
    main()
