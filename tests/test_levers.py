"""Levers of the training plan, against slow versions by hand: averages, accumulation, smoothing, warm-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import InputError, pool
from defenses import AT, Defense, DefenseInfo, Progress, Snapshot, Stage, TrainPlan, registry
from defenses.training.packing import pack, unpack
from defenses.training.precision import sound_in_bfloat16
from defenses.training.snapshot import to_tree

Data = list[tuple[Tensor, Tensor]]
ALL = ("standard", "at", "free", "lorkd", "mid", "mola-grad", "mola-router", "si", "trades")


class ToDouble(nn.Module):
    """Converts images to float64, so that a network behind it computes exactly."""

    def forward(self, x: Tensor) -> Tensor:
        """The same images."""
        return x.double()


def exact(network: nn.Sequential) -> nn.Sequential:
    """The network in float64."""
    return nn.Sequential(ToDouble(), *network.double())


def images(sizes: Sequence[int]) -> Data:
    """Batches of random 8×8 images with random labels."""
    draws = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(size, 1, 8, 8, generator=draws),
            torch.randint(10, (size,), generator=draws),
        )
        for size in sizes
    ]


def weights(defense: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters."""
    return {name: value.detach().clone() for name, value in defense.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers have the same bits."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def attacks_for(defense: Defense) -> list[Any]:
    """One attack in the continual regime, otherwise two of different families."""
    if defense.info.regimes == ("continual",) or defense.info.name in ("standard", "at", "free", "trades"):
        return [pool.get("fgsm", budget="digits")]
    return pool.sequence("fgsm,gaussian-noise", budget="digits")


def trained(
    name: str, network: Callable[..., nn.Sequential], data: Data, *, norm: bool = True, **plan: Any
) -> tuple[Defense, list[dict[str, Tensor]]]:
    """A defense after one stage, and its parameters after each step."""
    model = exact(network(norm=norm))
    defense = registry.build(name, model, seed=1)
    steps: list[dict[str, Tensor]] = []
    settings = {"epochs": 2, "lr": 0.05, "mixed_precision": "off", **plan}
    defense.fit(
        data,
        attacks_for(defense),
        plan=TrainPlan.model_validate(settings),
        progress=lambda _: steps.append(weights(defense)),
    )
    return defense, steps


def test_ema_by_hand(network: Callable[..., nn.Sequential]) -> None:
    """a ← d·a + (1 − d)·θ with d = min(decay, (1 + k)/(10 + k)) over all steps."""
    data = images([8] * 5)
    defense, steps = trained("at", network, data, norm=False, average="ema", average_decay=0.3)
    assert len(steps) == 10
    expected = steps[0]
    for k, theta in enumerate(steps[1:], 1):
        d = min(0.3, (1 + k) / (10 + k))
        expected = {name: d * expected[name] + (1 - d) * theta[name] for name in theta}
    assert d == 0.3
    for name, value in weights(defense).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
        assert not torch.equal(value, steps[-1][name])


@pytest.mark.parametrize(("start", "ends"), [(0.75, [3]), (0.5, [2, 3]), (0.0, [0, 1, 2, 3]), (0.99, [3])])
def test_swa_by_hand(network: Callable[..., nn.Sequential], start: float, ends: list[int]) -> None:
    """The mean of the weights at the ends of the epochs after the start; the last epoch always counts."""
    data = images([8, 8])
    plan = {"average": "swa", "average_start": start, "epochs": 4}
    defense, steps = trained("standard", network, data, norm=False, **plan)
    for name, value in weights(defense).items():
        expected = torch.stack([steps[2 * epoch + 1][name] for epoch in ends]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_statistics_are_those_of_the_averaged_weights(
    network: Callable[..., nn.Sequential], average: str
) -> None:
    """The mean over the batches of their means and unbiased variances, under the averaged weights."""
    data = images([8, 8, 8])
    defense, _ = trained("standard", network, data, average=average, epochs=3)
    _, conv, _, _, norm, _ = defense.model.children()
    with torch.no_grad():
        features = [conv(x.double()).relu().flatten(1) for x, _ in data]
    torch.testing.assert_close(norm.running_mean, torch.stack([one.mean(0) for one in features]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([one.var(0) for one in features]).mean(0))
    assert int(norm.num_batches_tracked) == 9
    assert norm.momentum == 0.1


@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("name", ALL)
def test_averages_resume_bit_for_bit(network: Callable[..., nn.Sequential], name: str, average: str) -> None:
    """From a stop in the middle of an epoch, and from the end of the last epoch."""
    data = images([12] * 2)
    plan = TrainPlan.model_validate(
        {"epochs": 3, "lr": 0.05, "average": average, "average_start": 0.3 if average == "swa" else 0.75}
    )

    def build() -> Defense:
        return registry.build(name, network(norm=True), seed=1)

    whole, kept = build(), []
    attacks = attacks_for(whole)
    whole.fit(data, attacks, plan=plan, checkpoint=lambda snapshot: kept.append(snapshot.pack()))

    def stop(now: Progress) -> None:
        if (now.epoch, now.batch) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build().fit(
            data, attacks, plan=plan, progress=stop, checkpoint=lambda snapshot: kept.append(snapshot.pack())
        )
    for packed in kept[-2:] + kept[2:3]:
        again = build()
        again.fit(data, attacks, plan=plan, resume=Snapshot.unpack(packed))
        assert same(whole, again)
        assert whole.passes == again.passes


def test_an_average_starts_again_with_another_phase(network: Callable[..., nn.Sequential]) -> None:
    """MID's student has the head that was frozen with its teacher, not an average with earlier heads."""
    model = network(norm=True)
    defense = registry.build("mid", model, seed=1, parameters={"teacher": 0.5})
    heads: list[Tensor] = []
    defense.fit(
        images([12] * 2),
        attacks_for(defense),
        plan=TrainPlan(epochs=4, average="ema"),
        progress=lambda _: heads.append(model[-1].weight.detach().clone()),
    )
    assert torch.equal(heads[-1], heads[4])
    assert not torch.equal(heads[3], heads[2])
    assert torch.equal(model[-1].weight, heads[-1])


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("name", ["standard", "at", "trades", "si", "lwf", "air"])
def test_two_half_batches_are_one_batch(
    network: Callable[..., nn.Sequential], name: str, clip: float | None
) -> None:
    """In float64 without batch norm; also with unequal halves, a lonely last batch, clipping and momentum."""
    parts = images([6, 10, 4, 4, 7])
    joined = [
        tuple(torch.cat(both) for both in zip(*parts[first : first + 2], strict=True)) for first in (0, 2, 4)
    ]
    parameters: dict[str, Any] = {
        "trades": {"beta": 0.0},
        "air": {"lambda_i": 0.0, "lambda_a": 0.0, "lambda_r": 0.0},
    }
    ends = []
    for data, count in ((parts, 2), (joined, 1)):
        model = exact(network())
        defense = registry.build(name, model, seed=1, parameters=parameters.get(name))
        plan = TrainPlan(epochs=2, lr=0.05, schedule="constant", max_grad_norm=clip, grad_accumulation=count)
        history = [
            defense.fit(data, [pool.get("fgsm", budget="digits")], plan=plan)[-1]["loss"] for _ in range(2)
        ]
        ends.append((weights(defense), defense, history))
    start = dict(exact(network()).named_parameters(prefix="model"))
    for key, value in ends[0][0].items():
        torch.testing.assert_close(value, ends[1][0][key], rtol=1e-9, atol=1e-11)
        assert (value - start[key]).abs().max() > 1e-4
    if name == "si":
        for key, value in ends[0][1].training_state()["omega"].items():
            torch.testing.assert_close(value, ends[1][1].training_state()["omega"][key], rtol=1e-7, atol=0)


def test_accumulation_stops_between_steps(network: Callable[..., nn.Sequential]) -> None:
    """Progress is told once per step, and a stopped training resumes bit for bit."""
    data = images([8] * 5)
    plan = TrainPlan(epochs=2, lr=0.05, grad_accumulation=2, average="ema")
    build = lambda: registry.build("at", network(norm=True), seed=1)  # noqa: E731
    whole, told, kept = build(), [], []
    attacks = attacks_for(whole)
    whole.fit(data, attacks, plan=plan, progress=lambda now: told.append((now.epoch, now.batch)))
    assert told == [(1, 2), (1, 4), (1, 5), (2, 2), (2, 4), (2, 5)]

    def stop(now: Progress) -> None:
        if (now.epoch, now.batch) == (2, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build().fit(data, attacks, plan=plan, progress=stop, checkpoint=kept.append)
    again = build()
    again.fit(data, attacks, plan=plan, resume=kept[-1])
    assert same(whole, again)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_accumulation_with_a_step_of_ones_own(network: Callable[..., nn.Sequential], calls: int) -> None:
    """A group's gradients are used even if its last batch takes no step; several steps are refused."""
    moves: list[int] = []

    class Own(Defense):
        """Takes ``calls`` steps for each batch but the first of a group."""

        info = DefenseInfo(name="own", paper=None, regimes=("continual",))

        def step(self, x: Tensor, y: Tensor, _: Stage, optimizer: Any) -> dict[str, float]:
            loss = F.cross_entropy(self(x), y)
            optimizer.zero_grad()
            loss.backward()
            for _ in range(calls if len(moves) % 2 else 1):
                optimizer.step()
            moves.append(1)
            return {"loss": float(loss.detach())}

    model = exact(network())
    before = weights(model)
    plan = TrainPlan(epochs=1, lr=0.1, momentum=0, weight_decay=0, schedule="constant", grad_accumulation=2)
    data = images([8, 8])
    if calls == 2:
        with pytest.raises(InputError, match="this defense takes several"):
            Own(model).fit(data, [], plan=plan)
        return
    (F.cross_entropy(model(data[0][0]), data[0][1]) / 2).backward()
    if calls:
        (F.cross_entropy(model(data[1][0]), data[1][1]) / 2).backward()
    expected = {name: before[name] - 0.1 * value.grad for name, value in model.named_parameters()}
    Own(model).fit(data, [], plan=plan)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_smoothed_labels_against_torch(network: Callable[..., nn.Sequential]) -> None:
    """The loss of the first step is torch's own with that smoothing, and afterwards nothing is smoothed."""
    data = images([16])
    model = network()
    expected = F.cross_entropy(model(data[0][0]), data[0][1], label_smoothing=0.3)
    defense = registry.build("standard", model)
    history = defense.fit(data, [], plan=TrainPlan(epochs=1, label_smoothing=0.3))
    assert history[0]["loss"] == pytest.approx(float(expected.detach()))
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    plain = -float(logits.log_softmax(1)[0, 0])
    assert float(defense.label_loss(logits, torch.tensor([0]))) == pytest.approx(plain)
    defense._smoothing = 0.3
    by_hand = -float(0.8 * logits.log_softmax(1)[0, 0] + 0.1 * logits.log_softmax(1)[0, 1:].sum())
    assert float(defense.label_loss(logits, torch.tensor([0]))) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", registry.names())
def test_each_defense_smooths_or_refuses(
    network: Callable[..., nn.Sequential], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No defense takes the setting without an effect on its loss."""
    defense = registry.build(name, network(norm=True), seed=1)
    plan = TrainPlan(epochs=1, label_smoothing=0.3)
    if not defense.smooths_labels:
        assert name == "mart"
        with pytest.raises(InputError, match=r"label_smoothing=0\.3 has no effect on mart"):
            defense.fit(images([12] * 2), attacks_for(defense), plan=plan)
        return
    used: list[float] = []
    loss = Defense.label_loss

    def spied(self: Defense, logits: Tensor, y: Tensor) -> Tensor:
        used.append(self._smoothing)
        return loss(self, logits, y)

    monkeypatch.setattr(Defense, "label_loss", spied)
    defense.fit(images([12] * 2), attacks_for(defense), plan=plan)
    assert set(used) == {0.3}


def test_another_loss_does_not_inherit_the_smoothing(network: Callable[..., nn.Sequential]) -> None:
    """A class that replaces the loss of one that smooths labels says itself whether it does."""

    class Renamed(AT):
        """The same loss."""

    class Other(AT):
        """Another loss."""

        def loss(self, x: Tensor, y: Tensor, _: Stage) -> Tensor:
            return F.cross_entropy(self(x), y)

    class Again(Other):
        """A loss that uses the plan's smoothing."""

        smooths_labels = True

        def loss(self, x: Tensor, y: Tensor, _: Stage) -> Tensor:
            return self.label_loss(self(x), y)

    assert [kind.smooths_labels for kind in (Renamed, Other, Again)] == [True, False, True]
    with pytest.raises(InputError, match="has no effect"):
        Other(network()).fit(images([8]), [], plan=TrainPlan(epochs=1, label_smoothing=0.1))


def test_warm_up_of_the_rate_by_hand() -> None:
    """Linear from a hundredth over the first epochs; then the schedule over the rest."""
    plan = TrainPlan(epochs=10, warmup=2, lr=0.4, schedule="cosine")
    rates = {0: 0.004, 0.1: 0.2, 0.15: 0.3, 0.2: 0.4, 0.6: 0.2}
    assert {done: plan.learning_rate(done) for done in rates} == pytest.approx(rates)
    step = TrainPlan(epochs=10, warmup=2, lr=0.4, schedule="step")
    rates = {0.1: 0.2, 0.59: 0.4, 0.61: 0.04, 0.79: 0.04, 0.81: 0.004}
    assert {done: step.learning_rate(done) for done in rates} == pytest.approx(rates)
    assert TrainPlan(schedule="constant", epochs=4, warmup=1).learning_rate(0.5) == 0.05


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"warmup": 2, "epochs": 2}, r"warmup=2 must be shorter than the 2 epochs of the stage"),
        ({"warmup": 1, "schedule": "one-cycle"}, r"warmup=1 does not go with schedule=one-cycle"),
        ({"average_decay": 0.9}, r"average_decay=0\.9 has no effect with average=none: set average=ema"),
        ({"average": "ema", "average_start": 0.5}, r"average_start=0\.5 has no effect with average=ema"),
        ({"average": "swa", "select": "val-robust"}, r"average=swa and select=val-robust both choose"),
        ({"average": "polyak"}, r"average\n"),
        ({"label_smoothing": 1}, r"label_smoothing\n"),
        ({"grad_accumulation": 0}, r"grad_accumulation\n"),
        ({"average_decay": 1, "average": "ema"}, r"average_decay\n"),
    ],
)
def test_plans_that_contradict_themselves(given: dict[str, Any], fault: str) -> None:
    """Each names the setting and what to do."""
    with pytest.raises(ValidationError, match=fault):
        TrainPlan.model_validate(given)


def test_without_the_levers_nothing_has_another_form(network: Callable[..., nn.Sequential]) -> None:
    """Records, identities and checkpoints have no new keys; set ones come back."""
    assert list(TrainPlan().model_dump()) == [
        *("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "max_grad_norm", "schedule"),
        *("eps_warmup", "augmentation", "mixed_precision", "select"),
    ]
    plan = TrainPlan(average="swa", average_start=0.5, warmup=1, label_smoothing=0.1, grad_accumulation=2)
    assert set(plan.model_dump()) - set(TrainPlan().model_dump()) == {
        *("average", "average_start", "warmup", "label_smoothing", "grad_accumulation")
    }
    assert TrainPlan.model_validate(plan.model_dump(mode="json")) == plan
    kept: list[Snapshot] = []
    defense = registry.build("standard", network())
    defense.fit(images([8]), [], plan=TrainPlan(epochs=1), checkpoint=kept.append)
    tree = to_tree(kept[0])
    assert "average" not in tree
    assert "optimizer" in tree
    assert unpack(pack(tree)).keys() == tree.keys()
    assert Snapshot.unpack(kept[0].pack()).average is None


def test_bfloat16_where_torch_s_gradients_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that end in one pixel keep a stage in float32, however much bfloat16 would pay."""
    monkeypatch.setattr("defenses.base.pays_in_bfloat16", lambda *_: True)
    for stride, reduced in ((1, True), (4, False)):
        layers = (
            nn.Conv2d(1, 4, 3, stride=stride, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )
        defense = registry.build("at", nn.Sequential(*layers))
        defense.prepare(torch.rand(3, 1, 4, 4), TrainPlan())
        assert defense._reduced is reduced
        defense.unprepare()
    assert sound_in_bfloat16(nn.Sequential(nn.Conv2d(1, 4, 1, stride=4)), torch.rand(2, 1, 4, 4))
