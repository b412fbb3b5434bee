"""Our attacks against the peers' in one run: seconds, sample-passes and robust accuracy.

    python benchmarks/attacks.py --data-dir DIR --parts pgd,autoattack,screen,resnet --points 1000

Every library gets the same model, points and budget, on the same threads; every result is judged by our
verifier. Ours runs through ``advbench.evaluation.evaluate``, as ``advbench run`` and ``advbench eval`` do.
The models are trained here against PGD, and kept with ``--weights DIR`` for the next time.

    python benchmarks/attacks.py --data-dir DIR --parts library --run RUN --points 200 --threads 1

The part ``library`` times the library call, ``pool.get(name, eps=…)(model, x, y)``, against pyautoattack and
torchattacks as a user would call them: on the published network ``mnist-a-adv``, on one with batch norm and
GELU, and with ``--run`` on the model of a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from advbench import load_run
from advbench.data import Split, TensorLoader, load_dataset
from advbench.evaluation.evaluate import evaluate
from advbench.models import Normalize, build_model
from attacks_pool import count_passes, pool, verify
from attacks_pool.calling.guard import untouched
from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.fast.copy import has_bfloat16
from defenses import AT, TrainPlan

EPS = 0.3
Peer = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Result:
    """One attack of one library on one model; ``robust`` is the share of all points, in percent.

    Passes are None where a library runs a copy of the model, which cannot be counted.
    """

    part: str
    model: str
    library: str
    attack: str
    points: int
    seed: int
    seconds: float
    forwards: int | None
    backwards: int | None
    robust: float
    invalid: int


def wait_for(device: torch.device) -> None:
    """Wait for what a GPU has been given to do, so that a clock counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def two_layers() -> nn.Module:
    """The two-convolution MNIST network of Madry et al., arXiv:1706.06083: 3.3 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


def narrow() -> nn.Module:
    """A small network with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def smooth() -> nn.Module:
    """A small network with batch norm and GELU."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.GELU(),
        nn.Linear(100, 10),
    )


def lenet() -> nn.Module:
    """The project's own MNIST network."""
    return build_model("lenet", num_classes=10, in_channels=1, image_size=28, seed=0)


@dataclass(frozen=True)
class Recipe:
    """How a model of the benchmark is made."""

    build: Callable[[], nn.Module]
    points: int
    epochs: int
    eps: float


RECIPES = {
    "lenet": Recipe(lenet, 20_000, 5, EPS),
    "narrow": Recipe(narrow, 20_000, 5, EPS),
    "smooth": Recipe(smooth, 20_000, 5, EPS),
    "two-layers": Recipe(two_layers, 12_000, 5, EPS),
}


def trained(name: str, data_dir: str, weights: Path | None) -> nn.Module:
    """A model trained against PGD-7, or read from ``weights``."""
    recipe = RECIPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recipe.build()
    file = weights / f"{name}.safetensors" if weights else None
    if file is not None and file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    data = load_dataset("mnist", data_dir)
    loader = TensorLoader(Split(data.train.x[: recipe.points], data.train.y[: recipe.points]), 128, seed=0)
    attack = pool.get("pgd", eps=recipe.eps, training={"steps": 7, "step_size": recipe.eps / 3})
    plan = TrainPlan(
        epochs=recipe.epochs,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        eps_warmup=recipe.epochs / 2,
        mixed_precision="on",
    )
    AT(model).fit(loader, [attack], plan=plan)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return model.eval()


def ours(part: str, name: str, model: nn.Module, data: Split, text: str, seed: int) -> Result:
    """Our attack through the evaluation that every run uses."""
    attack = pool.sequence(text)[0]
    cell = evaluate(lambda _: model, data, [(attack, len(data))], stage=0, seed=seed).cells[1]
    return Result(
        part=part,
        model=name,
        library="advbench",
        attack=attack.name,
        points=cell.n,
        seed=seed,
        seconds=cell.seconds,
        forwards=cell.forwards,
        backwards=cell.backwards,
        robust=100 * cell.robust / cell.n,
        invalid=cell.invalid,
    )


def theirs(
    part: str, name: str, model: nn.Module, data: Split, peer: tuple[str, str, Peer], eps: float, seed: int
) -> Result:
    """A peer's attack on all points, its side effects undone, judged by our verifier."""
    library, attack, craft = peer
    with isolated_randomness(seed, data.x.device), untouched(model), count_passes(model) as passes:
        began = time.perf_counter()
        x_adv = craft(model, data.x, data.y, seed).to(data.x)
        wait_for(x_adv.device)
        seconds = time.perf_counter() - began
    # Rounding at the edge of ball and box is no fault of the search.
    x_adv = torch.minimum(torch.maximum(x_adv, data.x - eps), data.x + eps).clamp(0, 1)
    verdict = verify(model, data.x, data.y, x_adv, norm="linf", eps=eps)
    with torch.no_grad():
        clean = model(data.x).argmax(1) == data.y
    return Result(
        part=part,
        model=name,
        library=library,
        attack=attack,
        points=len(data),
        seed=seed,
        seconds=seconds,
        forwards=passes.forwards or None,
        backwards=passes.backwards or None,
        robust=100 * float((verdict.robust & clean).float().mean()),
        invalid=int(verdict.invalid.sum()),
    )


def pgd_peers(steps: int, eps: float, classes: int = 10) -> list[tuple[str, str, Peer]]:
    """PGD of the same step size and start in torchattacks, foolbox and ART."""
    step = 2.5 * eps / steps

    def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, _seed: int) -> Tensor:
        import torchattacks

        return torchattacks.PGD(model, eps=eps, alpha=step, steps=steps)(x, y)  # type: ignore[no-any-return]

    def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, _seed: int) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps)
        return attack(wrapped, x, y, epsilons=[eps])[1][0]  # type: ignore[no-any-return]

    def art_pgd(model: nn.Module, x: Tensor, y: Tensor, _seed: int) -> Tensor:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        wrapped = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            classes,
            clip_values=(0.0, 1.0),
            device_type=x.device.type,
        )
        attack = ProjectedGradientDescentPyTorch(
            wrapped, eps=eps, eps_step=step, max_iter=steps, num_random_init=1, batch_size=512, verbose=False
        )
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    peers = [("torchattacks", torchattacks_pgd), ("foolbox", foolbox_pgd), ("ART", art_pgd)]
    return [(library, f"PGD-{steps}", craft) for library, craft in peers]


def library_call(text: str, eps: float) -> tuple[str, str, Peer]:
    """An attack of ours as a user would call it in a script."""
    attack = pool.get(text, eps=eps, **({"steps": 50} if text == "pgd" else {}))

    def craft(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return attack(model, x, y, generator=torch.Generator().manual_seed(seed))

    return "advbench", attack.name, craft


def published(data_dir: str, name: str) -> tuple[nn.Module, Split, float]:
    """A network whose robust accuracy is known from both sides, its points and its eps."""
    folder = Path(data_dir) / "published"
    entry = json.loads((folder / "nets.json").read_text("utf-8"))[name]
    built: list[nn.Module] = []
    for layer in entry["layers"]:
        if isinstance(layer, str):
            built.append(nn.ReLU() if layer == "relu" else nn.Flatten())
            continue
        ((kind, sizes),) = layer.items()
        if kind == "normalize":
            built.append(Normalize(sizes["mean"], sizes["std"]))
        else:
            built.append(nn.Conv2d(*sizes) if kind == "conv2d" else nn.Linear(*sizes))
    model = nn.Sequential(*built)
    model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
    stored = load_file(folder / f"points-{name.partition('-')[0]}.safetensors")
    return model.eval(), Split(stored["x"], stored["y"]), entry["eps"]


def pyautoattack_peer(eps: float) -> tuple[str, str, Peer]:
    """AutoAttack standard at its own batch size."""

    def craft(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        from pyautoattack import AutoAttack

        attack = AutoAttack(model, norm="Linf", eps=eps, seed=seed, version="standard", device=str(x.device))
        return attack.run_standard_evaluation(x, y, batch_size=500)[0]  # type: ignore[no-any-return]

    return "pyautoattack", "AutoAttack", craft


def passes(count: int | None) -> str:
    """A count of passes in nine columns."""
    return f"{'uncounted' if count is None else format(count, ','):>9}"


class Bench:
    """Collects results and prints each as it comes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.results = options, list[Result]()
        data = load_dataset("mnist", options.data_dir)
        device = torch.device(options.device)
        self.data = Split(data.test.x[: options.points].to(device), data.test.y[: options.points].to(device))
        self.device = device
        self.seeds = range(options.first_seed, options.first_seed + options.seeds)

    def model(self, name: str) -> nn.Module:
        weights = Path(self.options.weights) if self.options.weights else None
        return trained(name, self.options.data_dir, weights).to(self.device)

    def add(self, result: Result) -> Result:
        self.results.append(result)
        print(
            f"{result.part:10} {result.model:10} {result.library:12} {result.attack:10} seed {result.seed}  "
            f"{result.seconds:8.1f} s  {passes(result.forwards)} + {passes(result.backwards)} passes  "
            f"{result.robust:6.2f} % robust, {result.invalid} invalid",
            flush=True,
        )
        return result

    def train(self) -> None:
        """Only make the models, for ``--weights``."""
        for name in RECIPES:
            self.model(name)

    def pgd(self) -> None:
        """PGD-50, the libraries in turn for each seed, so that a noisy machine meets all alike."""
        model = self.model(self.options.model)
        for seed in self.seeds:
            text = f"pgd:eps={EPS},steps=50"
            mine = self.add(ours("pgd", self.options.model, model, self.data, text, seed))
            for peer in pgd_peers(50, EPS):
                other = self.add(theirs("pgd", self.options.model, model, self.data, peer, EPS, seed))
                print(f"{'':10} {other.seconds / mine.seconds:.2f} times our seconds")

    def autoattack(self) -> None:
        """AutoAttack standard, ours and pyautoattack's, each on every seed."""
        name = self.options.model
        for seed in self.seeds:
            self.add(ours("autoattack", name, self.model(name), self.data, f"autoattack:eps={EPS}", seed))
            self.pyautoattack(name, seed)
        self.compare("autoattack", name)

    def screen(self) -> None:
        """Our cheap ensemble on three honest models against pyautoattack's AutoAttack on one seed each."""
        for name in self.options.screened.split(","):
            for seed in self.seeds:
                self.add(ours("screen", name, self.model(name), self.data, f"screen:eps={EPS}", seed))
            self.pyautoattack(name, self.seeds[0])
            self.compare("screen", name)

    def pyautoattack(self, name: str, seed: int) -> None:
        """Run pyautoattack on a model, unless this run has done so already."""
        if not self.found("autoattack", name, "pyautoattack", seed):
            peer = pyautoattack_peer(EPS)
            self.add(theirs("autoattack", name, self.model(name), self.data, peer, EPS, seed))

    def found(self, part: str, name: str, library: str, seed: int | None = None) -> list[Result]:
        """The results so far."""
        return [
            result
            for result in self.results
            if (result.part, result.model, result.library) == (part, name, library)
            and seed in (None, result.seed)
        ]

    def compare(self, part: str, name: str) -> None:
        """Medians over the seeds of ours and pyautoattack's."""
        mine, other = self.found(part, name, "advbench"), self.found("autoattack", name, "pyautoattack")
        seconds = [statistics.median(result.seconds for result in side) for side in (mine, other)]
        robust = [statistics.median(result.robust for result in side) for side in (mine, other)]
        print(
            f"{'':10} {part} on {name}: pyautoattack takes {seconds[1] / seconds[0]:.2f} times our seconds; "
            f"median robust accuracy {robust[0]:.2f} % (ours), {robust[1]:.2f} % (pyautoattack)",
            flush=True,
        )

    def library(self) -> None:
        """The library call of AutoAttack and of PGD-50, the libraries in turn for each seed."""
        tasks = {"mnist-a-adv": published(self.options.data_dir, "mnist-a-adv")}
        tasks["smooth"] = self.model("smooth"), self.data, EPS
        if self.options.run:
            run = load_run(self.options.run)
            tasks["run"] = run.model.view(None), run.data.test.first(self.options.points), 8 / 255
        pairs = {"autoattack": pyautoattack_peer, "pgd": lambda eps: pgd_peers(50, eps)[0]}
        for name, (model, data, eps) in tasks.items():
            for text, peer in pairs.items():
                sides = library_call(text, eps), peer(eps)
                times: list[list[float]] = [[], []]
                for seed in self.seeds:
                    for side, found in zip(sides, times, strict=True):
                        result = theirs("library", name, model, data, side, eps, seed)
                        found.append(self.add(result).seconds)
                ratio = statistics.median(times[1]) / statistics.median(times[0])
                print(f"{'':10} {text} on {name}: {sides[1][0]} takes {ratio:.2f} times our seconds")

    def resnet(self) -> None:
        """ResNet-18 with random weights, 32 points that it calls what it calls them: speed only."""
        model = (
            build_model("resnet18", num_classes=10, in_channels=3, image_size=32, seed=0)
            .eval()
            .to(self.device)
        )
        x = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad():
            data = Split(x, model(x).argmax(1))
        # A ball so small that few points fall: every library then takes all its steps.
        eps = 0.0001
        for seed in self.seeds:
            mine = self.add(ours("resnet", "resnet18", model, data, f"pgd:eps={eps:.4f},steps=10", seed))
            for peer in pgd_peers(10, eps):
                other = self.add(theirs("resnet", "resnet18", model, data, peer, eps, seed))
                print(f"{'':10} {other.seconds / mine.seconds:.2f} times our seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="../shared/data", help="where MNIST is")
    parser.add_argument(
        "--parts", default="pgd,resnet", help="of train, pgd, autoattack, screen, resnet, library"
    )
    parser.add_argument("--run", help="a run on CIFAR-10 whose model the part library attacks")
    parser.add_argument("--model", default="two-layers", choices=list(RECIPES))
    parser.add_argument("--screened", default=",".join(RECIPES), help="models of the part screen")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", help="where trained models are kept")
    parser.add_argument("--out", help="a JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    reduced = "bfloat16" if has_bfloat16(bench.device) else "float32"
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, search in {reduced}")
    for part in options.parts.split(","):
        getattr(bench, part)()
    if options.out:
        written: list[dict[str, Any]] = [asdict(result) for result in bench.results]
        Path(options.out).write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
