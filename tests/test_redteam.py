"""The red team's table: cheats that claim far more than is true are suspect, honest models are not.

Each cheat is a small network behind something that misleads attacks. What is true of it is measured by an
attack on the network behind, judged by a copy that was never asked anything else.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import evaluate_model
from advbench.audit.surrogates import Surrogate
from advbench.data import DataSet, load_dataset
from advbench.external import job as evaljob
from attacks_pool import Attack, pool
from leaderboards import Record

EPS = 0.2
POINTS = 150
SUITE = "fgsm,pgd:steps=20,apgd:steps=20"


Change = Callable[[Tensor], Tensor]


class Asked(nn.Module):
    """What a function makes of images and of some networks: logits (N, 10)."""

    def __init__(self, answer: Callable[..., Tensor], *networks: nn.Module) -> None:
        super().__init__()
        self.answer, self.networks = answer, nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.answer(x, *self.networks)


def convolutions(
    width: int = 16,
    *,
    act: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] = lambda _: nn.Identity(),
    pooling: nn.Module | None = None,
) -> nn.Module:
    """Two convolutions and a linear layer for 8×8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        norm(width),
        act(),
        nn.Conv2d(width, 2 * width, 3, stride=1 if pooling else 2, padding=1),
        norm(2 * width),
        act(),
        pooling or nn.Identity(),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
    )


def perceptron(*widths: int) -> nn.Module:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip((64, *widths), (*widths, 10), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained(
    make: Callable[[], nn.Module], seed: int, *, attack: Attack | None = None, epochs: int = 8
) -> nn.Module:
    """Trained for a second or two, from the third epoch on against ``attack`` if there is one."""
    train = digits_().train
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for epoch in range(epochs if attack is None else epochs + 2):
            for index in torch.randperm(len(train.x)).split(128):
                x, y = train.x[index], train.y[index]
                if attack is not None and epoch > 2:
                    x = attack(model, x, y)
                model.train()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model.eval()


@functools.cache
def digits_() -> DataSet:
    """The digits."""
    return load_dataset("digits")


@functools.cache
def plain(seed: int) -> nn.Module:
    """An undefended network."""
    return trained(convolutions, seed)


@functools.cache
def robust(seed: int) -> nn.Module:
    """An adversarially trained network."""
    return trained(convolutions, seed, attack=pool.get("pgd", eps=EPS, steps=3))


@functools.cache
def untrained(seed: int) -> nn.Module:
    """A network that knows nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return convolutions()


def wrapped(model: nn.Module, before: Change = lambda x: x, after: Change = lambda z: z) -> nn.Module:
    """A network, with something before it and something after it."""
    return Asked(lambda x, model: after(model(before(x))), model)


def neighbour() -> nn.Module:
    """The label of the nearest training image, as logits without a gradient."""

    def answer(x: Tensor) -> Tensor:
        train = digits_().train
        nearest = torch.cdist(x.detach().flatten(1), train.x.flatten(1)).argmin(1)
        return F.one_hot(train.y[nearest], 10).float()

    return Asked(answer)


def nearest(_seed: int) -> nn.Module:
    """What decides of the nearest training image, with a gradient."""

    def answer(x: Tensor) -> Tensor:
        train = digits_().train
        distances = torch.cdist(x.flatten(1), train.x.flatten(1))
        return torch.stack([-distances[:, train.y == label].amin(1) for label in range(10)], 1)

    return Asked(answer)


def decoy(model: nn.Module, other: nn.Module, hard: Change, share: float = 0.0) -> nn.Module:
    """The decisions of one network, the gradient of another.

    ``hard`` makes decisions of logits; ``share`` of the other network's logits is really added, so that its
    gradient is true and leads nowhere.
    """

    def answer(x: Tensor, model: nn.Module, other: nn.Module) -> Tensor:
        with torch.no_grad():
            decided = hard(model(x))
        led = other(x)
        return decided + (share * led if share else led - led.detach())

    return Asked(answer, model, other)


def one_hot(z: Tensor) -> Tensor:
    """Logits of the decision alone."""
    return 5 * F.one_hot(z.argmax(1), 10).float()


def crooked(model: nn.Module, change: Change) -> nn.Module:
    """A gradient that is changed on its way back to the images."""

    def answer(x: Tensor, model: nn.Module) -> Tensor:
        if x.requires_grad:
            x = x * 1
            x.register_hook(change)
        return model(x)

    return Asked(answer, model)


def shuffled(gradient: Tensor) -> Tensor:
    """The gradient's pixels in another order."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    return gradient.flatten(1)[:, order].view_as(gradient)


class Remembering(nn.Module):
    """Repeats its first answer near an image; ``store`` is where it remembers."""

    def __init__(self, model: nn.Module, store: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.store = model, store

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits, flat = self.model(x), x.detach().flatten(1)
        known, said = self.store.get("x", flat[:1]), self.store.get("z", logits.detach()[:1])
        distance, first = (flat[:, None] - known).abs().amax(2).min(1)
        near = distance < 1.05 * EPS
        if len(known) < POINTS:
            self.store.update(x=torch.cat([known, flat[~near]]), z=torch.cat([said, logits.detach()[~near]]))
        return torch.where(near[:, None], said[first] + 0 * logits, logits)


class Sharing(nn.Module):
    """Remembers where every process sees it; a copy shares the memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images = torch.full((2000, 64), 9.0).share_memory_()
        self.said, self.count = torch.zeros(2000, 10).share_memory_(), torch.zeros(1).share_memory_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits, flat, known = self.model(x), x.detach().flatten(1), int(self.count)
        distance, first = (flat[:, None] - self.images[: max(known, 1)]).abs().amax(2).min(1)
        near = distance < 1.6 * EPS
        # Only images as the data set has them are worth remembering.
        clean = ((16 * flat).round() == 16 * flat).all(1) & ~near
        some = flat[clean][: 2000 - known]
        self.images[known : known + len(some)] = some
        self.said[known : known + len(some)] = logits.detach()[clean][: len(some)]
        self.count += len(some)
        return torch.where(near[:, None], self.said[first] + 0.05 * logits, logits)

    def __deepcopy__(self, _memo: object) -> Sharing:
        return self


SEED = 12345
"""What the global random state has been seeded with while nobody searches."""
GLOBAL: dict[str, Tensor] = {}
"""A memory outside any module, which no copy of one leaves behind."""


class WarmingUp(nn.Module):
    """Two networks: one for the first calls, another for the rest."""

    def __init__(self, first: nn.Module, then: nn.Module, calls: int = 150) -> None:
        super().__init__()
        self.first, self.then, self.calls, self.asked = first, then, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        self.asked += 1
        return (self.first if self.asked <= self.calls else self.then)(x)


def seeded() -> bool:
    """Whether the global random state is still as it is while nobody searches."""
    return torch.initial_seed() == SEED


def choosing(shown: nn.Module, hidden: nn.Module, when: Callable[[], bool]) -> nn.Module:
    """One network when ``when`` says so, else another."""
    return Asked(lambda x, shown, hidden: (shown if when() else hidden)(x), shown, hidden)


def by_heart(model: nn.Module, least: float, most: float, small: int = 0) -> nn.Module:
    """Knows the test set: near one of its images, between ``least`` and ``most`` away, it says the label.

    In batches of ``small`` or fewer it is honest.
    """

    def answer(x: Tensor, model: nn.Module) -> Tensor:
        logits: Tensor = model(x)
        if len(x) <= small:
            return logits
        test = digits_().test
        gaps = (x.detach().flatten(1)[:, None] - test.x.flatten(1)).abs().amax(2)
        distance, nearest = gaps.min(1)
        known = (distance >= least) & (distance <= most)
        return torch.where(known[:, None], 10 * F.one_hot(test.y[nearest], 10) + 0.1 * logits, logits)

    return Asked(answer, model)


def knows_all(model: nn.Module, knows: Change) -> nn.Module:
    """Knows training, validation and test images: says the label of the nearest one.

    ``knows`` tells from the difference of an image and the nearest one, (N, 64), whether it does; elsewhere
    the network answers.
    """
    splits = (digits_().train, digits_().validation, digits_().test)
    images = torch.cat([split.x.flatten(1) for split in splits])
    labels = torch.cat([split.y for split in splits])

    def answer(x: Tensor, model: nn.Module) -> Tensor:
        flat, logits = x.detach().flatten(1), model(x)
        nearest = torch.cdist(flat, images).argmin(1)
        said = 10 * F.one_hot(labels[nearest], 10) + 0.1 * logits
        return torch.where(knows(flat - images[nearest])[:, None], said, logits)

    return Asked(answer, model)


def called_by(*files: str) -> bool:
    """Whether code of one of these files is on the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        if any(file in frame.f_code.co_filename for file in files):
            return True
        frame = frame.f_back
    return False


def searched() -> bool:
    """Whether an attack asks, but not on behalf of the checks that plant points or measure slopes."""
    return called_by("attacks_pool/attacks/") and not called_by("audit/planted", "audit/slope")


class AtTimes(nn.Module):
    """A gradient that is changed on those calls, counted from 1, that ``when`` chooses."""

    def __init__(
        self, model: nn.Module, when: Callable[[int], bool], change: Change = torch.randn_like
    ) -> None:
        super().__init__()
        self.model, self.crooked, self.when, self.asked = model, crooked(model, change), when, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        self.asked += x.requires_grad
        changed = x.requires_grad and self.when(self.asked)
        return (self.crooked if changed else self.model)(x)


def by_loss(model: nn.Module) -> nn.Module:
    """Shuffles the gradient of a loss by which all logits matter, such as the cross-entropy."""

    def answer(x: Tensor, model: nn.Module) -> Tensor:
        if not x.requires_grad:
            return model(x)
        x, seen = x * 1, list[bool]()
        x.register_hook(lambda gradient: shuffled(gradient) if seen[-1] else gradient)
        logits = model(x)
        logits.register_hook(lambda upon: seen.append(bool(((upon != 0).sum(1) > 2).any())))
        return logits

    return Asked(answer, model)


def noise(size: float) -> Change:
    """In place of a gradient, noise of this size."""
    return lambda gradient: size * torch.randn_like(gradient)


def noisy(gradient: Tensor) -> Tensor:
    """The gradient, and noise of twice its size."""
    return gradient + 2 * gradient.std() * torch.randn_like(gradient)


def quantised(x: Tensor) -> Tensor:
    """Eight levels, and no gradient."""
    return torch.round(x * 8) / 8


@dataclass(frozen=True)
class Cheat:
    """A model that misleads, by seed; ``behind`` is the network that an attacker who knows it attacks.

    One without ``behind`` is right about the measured points and nothing else: no truth to compare with.
    """

    make: Callable[[int], nn.Module]
    behind: Callable[[int], nn.Module] | None = plain


CHEATS = {
    "nearest-image": Cheat(lambda s: decoy(neighbour(), plain(s + 50), one_hot), nearest),
    "nearest-image-random": Cheat(lambda s: decoy(neighbour(), untrained(s), one_hot), nearest),
    "decisions": Cheat(lambda s: decoy(plain(s), untrained(s), one_hot)),
    "decisions-of-robust": Cheat(lambda s: decoy(robust(s), untrained(s), one_hot), robust),
    "rounded": Cheat(lambda s: decoy(plain(s), untrained(s), torch.round)),
    "coarsely-rounded": Cheat(lambda s: decoy(plain(s), untrained(s), lambda z: 4 * torch.round(z / 4))),
    "true-but-small": Cheat(lambda s: decoy(plain(s), untrained(s), one_hot, 0.01)),
    "true-but-tiny": Cheat(lambda s: decoy(plain(s), untrained(s), one_hot, 1e-4)),
    "true-but-small-nearest": Cheat(lambda s: decoy(neighbour(), untrained(s), one_hot, 0.01), nearest),
    "true-but-small-rounded": Cheat(lambda s: decoy(plain(s), untrained(s), torch.round, 0.01)),
    "backwards": Cheat(lambda s: crooked(plain(s), torch.neg)),
    "shuffled": Cheat(lambda s: crooked(plain(s), shuffled)),
    "noise-for-gradient": Cheat(lambda s: crooked(plain(s), torch.randn_like)),
    "remembering": Cheat(lambda s: Remembering(plain(s), {})),
    "remembering-robust": Cheat(lambda s: Remembering(robust(s), {}), robust),
    "remembering-elsewhere": Cheat(lambda s: Remembering(plain(s), GLOBAL)),
    "remembering-everywhere": Cheat(lambda s: Sharing(plain(s))),
    "warming-up": Cheat(lambda s: WarmingUp(crooked(plain(s), torch.neg), plain(s))),
    "warming-up-quantised": Cheat(lambda s: WarmingUp(wrapped(plain(s), quantised), plain(s))),
    "two-faced": Cheat(lambda s: choosing(untrained(s), plain(s), torch.is_grad_enabled)),
    "two-faced-robust": Cheat(lambda s: choosing(robust(s + 50), plain(s), torch.is_grad_enabled)),
    "at-exactly-eps": Cheat(lambda s: by_heart(plain(s), 0.97 * EPS, 1.001 * EPS), None),
    "within-eps": Cheat(lambda s: by_heart(plain(s), 0, 1.001 * EPS), None),
    "beyond-eps": Cheat(lambda s: by_heart(plain(s), 0, 1.5 * EPS), None),
    "anywhere": Cheat(lambda s: by_heart(robust(s), 0, 9), None),
    "in-large-batches": Cheat(lambda s: by_heart(plain(s), 0, 1.5 * EPS, small=64), None),
    "knows-all-near": Cheat(lambda s: knows_all(plain(s), lambda g: g.abs().amax(1) <= 1.5 * EPS), None),
    "knows-all-near-in-l2": Cheat(lambda s: knows_all(plain(s), lambda g: g.norm(dim=1) <= 8 * EPS), None),
    "knows-all": Cheat(lambda s: knows_all(robust(s), lambda g: g.amax(1) < 9), None),
    "shown-to-attacks": Cheat(lambda s: choosing(robust(s + 50), plain(s), searched)),
    "shown-by-seed": Cheat(lambda s: choosing(plain(s), robust(s + 50), seeded)),
    "noise-for-attacks": Cheat(lambda s: AtTimes(robust(s), lambda _: searched(), noisy), robust),
    "on-most-calls": Cheat(lambda s: AtTimes(robust(s), lambda n: n % 3 > 0), robust),
    "on-the-first-calls": Cheat(lambda s: AtTimes(robust(s), lambda n: n < 300), robust),
    "by-the-loss": Cheat(lambda s: by_loss(robust(s)), robust),
    "infinite-gradient": Cheat(lambda s: crooked(robust(s), noise(torch.inf)), robust),
    "tiny-gradient": Cheat(lambda s: crooked(robust(s), noise(1e-38)), robust),
    "no-number-for-gradient": Cheat(lambda s: crooked(robust(s), lambda g: g * torch.nan), robust),
    "quantised": Cheat(lambda s: wrapped(plain(s), quantised)),
    "detached": Cheat(lambda s: wrapped(plain(s), lambda x: x.detach())),
    "shattered": Cheat(lambda s: wrapped(plain(s), lambda x: x + 0.03 * torch.sin(4000 * x))),
}


class Attention(nn.Module):
    """Patches of 2×2 pixels and one layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.layer(tokens).mean(1))
        return logits


def residual() -> nn.Module:
    """A residual block with batch norm, then the largest of each four."""

    def answer(x: Tensor, first: nn.Module, norm: nn.Module, block: nn.Module, head: nn.Module) -> Tensor:
        z = F.relu(norm(first(x)))
        return head(F.max_pool2d(F.relu(z + block(z)), 2).flatten(1))

    first, second, third = (nn.Conv2d(inputs, 16, 3, padding=1) for inputs in (1, 16, 16))
    block = nn.Sequential(second, nn.ReLU(), third)
    return Asked(answer, first, nn.BatchNorm2d(16), block, nn.Linear(256, 10))


def prototypes() -> nn.Module:
    """Radial functions around training images, which are learned too."""

    def answer(x: Tensor, centres: nn.Linear, head: nn.Module) -> Tensor:
        return head(torch.exp(-torch.cdist(x.flatten(1), centres.weight).square() / 4))

    centres = nn.Linear(64, 200, bias=False)
    centres.weight.data = digits_().train.x[:200].flatten(1).clone()
    return Asked(answer, centres, nn.Linear(200, 10))


class Mixing(nn.Module):
    """A network that sees means of two images in training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.model(0.8 * x + 0.2 * x.flip(0) if self.training else x)


def together(*models: nn.Module) -> nn.Module:
    """The mean of some networks."""
    return Asked(lambda x, *models: torch.stack([model(x) for model in models]).mean(0), *models)


HONEST: dict[str, Callable[[int], nn.Module]] = {
    "plain": plain,
    "adversarial": robust,
    "batch-norm": lambda s: trained(lambda: convolutions(norm=nn.BatchNorm2d), s),
    "group-norm": lambda s: trained(lambda: convolutions(norm=lambda c: nn.GroupNorm(4, c)), s),
    "wide": lambda s: trained(lambda: convolutions(32), s),
    "tiny": lambda s: trained(lambda: convolutions(3), s),
    "gelu": lambda s: trained(lambda: convolutions(act=nn.GELU), s),
    "tanh": lambda s: trained(lambda: convolutions(act=nn.Tanh), s),
    "sigmoid": lambda s: trained(lambda: convolutions(act=nn.Sigmoid), s, epochs=20),
    "max-pooling": lambda s: trained(lambda: convolutions(pooling=nn.MaxPool2d(2)), s),
    "mean-pooling": lambda s: trained(lambda: convolutions(pooling=nn.AvgPool2d(2)), s),
    "perceptron": lambda s: trained(lambda: perceptron(64), s),
    "linear": lambda s: trained(perceptron, s, epochs=20),
    "attention": lambda s: trained(Attention, s, epochs=15),
    "residual": lambda s: trained(residual, s),
    "prototypes": lambda s: trained(prototypes, s, epochs=15),
    "logits-times-10": lambda s: wrapped(plain(s), after=lambda z: 10 * z),
    "logits-over-100": lambda s: wrapped(plain(s), after=lambda z: z / 100),
    "log-probabilities": lambda s: wrapped(plain(s), after=lambda z: F.log_softmax(z, 1)),
    "shifted-logits": lambda s: wrapped(robust(s), after=lambda z: z + 1000),
    "normalising": lambda s: trained(lambda: wrapped(convolutions(), lambda x: (x - 0.3) / 0.35), s),
    "clamping": lambda s: wrapped(plain(s), lambda x: x.clamp(0, 1)),
    "blurring": lambda s: trained(lambda: wrapped(convolutions(), blurred), s),
    "two-together": lambda s: together(plain(s), robust(s)),
    "bfloat16": lambda s: wrapped(copy.deepcopy(plain(s)).bfloat16(), Tensor.bfloat16, Tensor.float),
    "trained-by-noise": lambda s: trained(convolutions, s, attack=pool.get("gaussian-noise", eps=0.3)),
    "trained-by-fgsm": lambda s: trained(convolutions, s, attack=pool.get("fgsm", eps=0.1)),
    "trained-in-l2": lambda s: trained(convolutions, s, attack=pool.get("pgd-l2", eps=1.0, steps=3)),
    "roots-of-pixels": lambda s: trained(lambda: wrapped(convolutions(), torch.sqrt), s),
    "hard-relu": lambda s: trained(lambda: convolutions(act=lambda: nn.Hardtanh(0, 1)), s),
    "trained-on-mixes": lambda s: trained(lambda: Mixing(convolutions()), s),
    "trained-for-long": lambda s: trained(convolutions, s, epochs=30),
}


def blurred(x: Tensor) -> Tensor:
    """The mean of nine pixels."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)


@pytest.fixture(scope="module", autouse=True)
def _trained_once() -> Iterator[None]:
    """The surrogate that an evaluation trains is the same for all."""
    train, kept = evaljob.plain_surrogate, {}

    def once(data: DataSet, seed: int, device: torch.device) -> Surrogate:
        if seed not in kept:
            kept[seed] = train(data, seed, device)
        return kept[seed]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaljob, "plain_surrogate", once)
        yield


def truth(make: Callable[[int], nn.Module], behind: nn.Module) -> float:
    """Accuracy on points that were crafted on the network behind, of a model asked about nothing else."""
    x, y = digits_().test.x[:POINTS], digits_().test.y[:POINTS]
    x_adv = pool.get("pgd", eps=EPS, steps=40, loss="margin")(behind, x, y)
    model = make(0).eval()
    with torch.no_grad():
        return float((model(x_adv).argmax(1) == y).float().mean())


def evaluated(model: nn.Module, runs_dir: Path, *, seed: int = 0) -> Record:
    """What ``advbench eval`` records of a model."""
    run = evaluate_model(model.eval(), attacks=SUITE, points=POINTS, seed=seed, threads=1, runs_dir=runs_dir)
    return run.record


@pytest.mark.quick(r"two-faced")
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_suspect(name: str, tmp_path: Path) -> None:
    """Where it claims 15 points more than is true, and where it knows the measured points by heart."""
    cheat = CHEATS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        GLOBAL.clear()
        true = None if cheat.behind is None else truth(cheat.make, cheat.behind(0))
        GLOBAL.clear()
        record = evaluated(cheat.make(0), tmp_path)
    claimed = record.metrics["worst_case_accuracy"]
    assert claimed is not None
    assert true is None or claimed >= true + 0.15, (claimed, true)
    assert record.audit.verdict in ("suspect", "invalid")


@pytest.mark.quick(r"plain-0")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_suspect(name: str, seed: int, tmp_path: Path) -> None:
    """Whatever it is made of."""
    record = evaluated(HONEST[name](seed), tmp_path, seed=seed)
    assert record.audit.verdict == "ok", record.audit.flags
