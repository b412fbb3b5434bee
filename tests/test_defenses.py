"""What every defense promises, and how defenses are found, configured and trained."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import attacks, equal, state_of
from torch import Tensor, nn
from torch.nn import functional as F

import defenses
from advbench.contract import CONTRACT, check_defense
from attacks_pool import InputError, pool
from defenses import (
    AIR,
    AT,
    Defense,
    DefenseInfo,
    Progress,
    Registry,
    Stage,
    Standard,
    TrainingDivergedError,
    TrainPlan,
    registry,
)
from defenses.metadata import parameters_of, parse_parameters
from defenses.parts.mixing import craft_batch

# The package's attribute of this name is the registry itself.
REGISTRY_MODULE = importlib.import_module("defenses.registry")
PLAN = TrainPlan(epochs=1, lr=0.05)

Network = Callable[..., nn.Sequential]
Loader = Callable[..., Any]

every_defense = pytest.mark.parametrize("name", registry.names())


def named(name: str, **more: Any) -> DefenseInfo:
    """Metadata of a defense of no paper."""
    return DefenseInfo(name=name, paper=None, **{"regimes": ("joint",), **more})


class Toy(Defense):
    """Records what its steps are given."""

    info = named("toy", regimes=("joint", "continual"))

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.steps: list[tuple[Stage, float]] = []

    def step(self, x: Tensor, y: Tensor, stage: Stage, optimizer: Any) -> dict[str, float]:  # noqa: ARG002
        """Keep stage and learning rate; train nothing."""
        self.steps.append((stage, optimizer.param_groups[0]["lr"]))
        return {"loss": float(len(self.steps))}


def train(defense: Defense, data: Any, text: str = "fgsm,pgd", plan: TrainPlan = PLAN) -> None:
    """All of its stages, in the first of its regimes."""
    if defense.info.regimes[0] == "continual":
        for attack in attacks(text):
            defense.fit(data, [attack], plan=plan)
    else:
        defense.fit(data, attacks(text), plan=plan)


@pytest.mark.quick(r"air|replay|lorkd")
@every_defense
def test_it_trains_as_the_readme_says(network: Network, loader: Loader, name: str) -> None:
    """On a plain DataLoader, with nothing but attacks: it counts stages, moves weights, ends in eval mode."""
    # The assistant of ta-loop is the classifier before training, which here believes no answer.
    settings = {"threshold": 0.0} if name == "ta-loop" else {}
    defense = registry.build(name, network(norm=True), parameters=settings)
    before = registry.build(name, network(norm=True))
    data = loader(64)
    if "continual" in defense.info.regimes:
        # A later stage begins trained, and some add a penalty to its loss: the first one must fall.
        history, _ = [defense.fit(data, [attack]) for attack in pool.sequence("fgsm,pgd", budget="digits")]
        assert defense.stages == 2
    else:
        history = defense.fit(data, pool.sequence("fgsm,pgd", budget="digits"))
        assert defense.stages == 1
    assert len(history) == TrainPlan().epochs
    assert all(math.isfinite(value) for losses in history for value in losses.values())
    # Of a method that trains in phases, within the last one: they have losses of their own.
    first = next(losses for losses in history if losses.keys() == history[-1].keys())
    assert history[-1]["loss"] < first["loss"]
    assert not equal(defense, before)
    assert set(defense.spec()["parameters"]) == set(parameters_of(type(defense)))
    assert not any(module.training for module in defense.modules())
    assert all(value.isfinite().all() for value in defense.state_dict().values())
    assert defense.passes.forwards > 0
    assert defense.passes.backwards > 0


@every_defense
def test_it_can_be_carried_on_after_a_stage(network: Network, loader: Loader, name: str) -> None:
    """Weights and ``training_state()`` in another process give the next stage that would have been.

    A copy gives the same logits, and trains on.
    """
    # One stage each: of two attacks where a single one is too few.
    single = "continual" in registry.resolve(name)[0].info.regimes
    one, other = ("fgsm", "pgd") if single else ("fgsm,mim", "fgsm,pgd")
    first = registry.build(name, network(norm=True), seed=2)
    train(first, loader(64), one)
    second = registry.build(name, network(norm=True, seed=8), seed=2)
    second.load_spec(first.spec())
    second.load_state_dict(state_of(first))
    second.load_training_state(pickle.loads(pickle.dumps(first.training_state())))
    assert second.stages == first.stages == 1
    assert second.passes == first.passes
    for defense in (first, second):
        train(defense, loader(64), other)
    assert equal(first, second)
    assert first.stages == second.stages == 2
    ((x, _),) = loader(64)
    for again in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(again(x), first(x))
        train(again, loader(64), other)
        assert not equal(again, first)


@every_defense
def test_crafting_leaves_the_defense_as_it_is(network: Network, digits: Any, name: str) -> None:
    """In eval mode, without moving batch-norm statistics, flags or gradients; within the attack's budget."""
    defense = registry.build(name, network(norm=True)).train()
    frozen = defense.model[3].eval()
    before = state_of(defense)
    modes: set[bool] = set()
    defense.model.register_forward_hook(lambda module, *_: modes.add(module.training))
    x, y = digits.train.x[:32], digits.train.y[:32]
    x_adv = defense.craft(attacks("pgd")[0].for_training(), x, y)
    assert 0.1 < float((x_adv - x).abs().max()) <= 0.2 + 1e-6
    assert modes == {False}
    assert equal(state_of(defense), before)
    assert defense.training
    assert not frozen.training
    assert all(parameter.grad is None for parameter in defense.parameters())


def test_crafting_moves_no_buffer(network: Network, loader: Loader) -> None:
    """Not even of a model that moves its buffers in eval mode: four batches, four calls that count."""
    model = network()
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.register_forward_hook(lambda module, *_: module.calls.add_(1) and None)
    AT(model).fit(loader(256), attacks("pgd"), plan=PLAN)
    assert int(model.calls) == 4


@every_defense
def test_regimes_that_it_does_not_support_are_refused(network: Network, loader: Loader, name: str) -> None:
    """By name in the registry, and by the number of attacks where it trains."""
    defense, default = registry.resolve(name)
    assert default == defense.info.regimes[0]
    for regime in defense.info.regimes:
        assert registry.resolve(name, regime) == (defense, regime)
    for regime in {"continual", "joint", "meta"} - set(defense.info.regimes):
        with pytest.raises(InputError, match=f"does not support regime '{regime}' .allowed: {default}"):
            registry.resolve(name, regime)
    if set(defense.info.regimes) == {"continual"}:
        with pytest.raises(InputError, match="takes one attack a stage, not 2"):
            registry.build(name, network()).fit(loader(64), attacks(), plan=PLAN)


@pytest.mark.parametrize("name", sorted({*registry.names()} - {"standard", "at", "lorkd", "mid"}))
def test_a_stage_needs_an_attack(network: Network, loader: Loader, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} needs an attack to train against$"):
        registry.build(name, network()).fit(loader(64), [], plan=PLAN)


@pytest.mark.parametrize("norm", [None, 0.1, 100.0])
@pytest.mark.parametrize("kind", [Standard, AT])
def test_one_step_by_hand(network: Network, digits: Any, kind: type[Defense], norm: float | None) -> None:
    """w' = w − lr·(∇CE(f(x̃), y) + weight decay·w), x̃ = x for standard training, FGSM's for AT.

    The gradient of the loss over all parameters is scaled down to ``max_grad_norm`` where it is larger.
    """
    x, y = digits.train.x[:32], digits.train.y[:32]
    plan = TrainPlan(
        epochs=1, lr=0.3, momentum=0.9, weight_decay=0.01, schedule="constant", max_grad_norm=norm
    )
    defense = kind(network())
    defense.fit([(x, y)], attacks("fgsm"), plan=plan)
    model = network()
    x_adv = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
    x_adv = (x + 0.2 * gradient.sign()).clamp(0, 1) if kind is AT else x
    loss = F.cross_entropy(model(x_adv), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert 0.1 < length < 100
    scale = min(1.0, (norm or 100) / length)
    for parameter, gradient, got in zip(model.parameters(), gradients, defense.parameters(), strict=True):
        expected = parameter - 0.3 * (scale * gradient + 0.01 * parameter)
        torch.testing.assert_close(got.detach(), expected.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.quick(r"lorkd")
@every_defense
def test_contract(name: str) -> None:
    """Shapes, gradients, regimes, determinism, saving, resuming, no test data, flat memory."""
    checks = check_defense(registry.resolve(name)[0])
    broken = [str(check) for check in checks if not check.holds]
    assert not broken, "\n".join(broken)
    assert [check.name for check in checks] == [promise.name for promise in CONTRACT]


class TestFit:
    """The loop around a defense's step."""

    def test_progress_counts_stages_epochs_and_batches(self, network: Network, loader: Loader) -> None:
        """From 1, once a batch, with that batch's losses; the history holds their means."""
        seen: list[Progress] = []
        defense = Toy(network())
        data = loader(256)
        plan = TrainPlan(epochs=2)
        histories = [defense.fit(data, attacks(), plan=plan, progress=seen.append) for _ in range(2)]
        places = [(now.stage, now.epoch, now.epochs, now.batch, now.batches) for now in seen]
        assert places == [(s, e, 2, b, 4) for s in (1, 2) for e in (1, 2) for b in (1, 2, 3, 4)]
        assert [now.losses["loss"] for now in seen] == list(range(1, 17))
        assert histories == [[{"loss": 2.5}, {"loss": 6.5}], [{"loss": 10.5}, {"loss": 14.5}]]

    def test_attacks_come_with_training_knobs(self, network: Network, loader: Loader) -> None:
        """A stage trains against the cheaper form, and the caller's attacks stay what they were."""
        defense = Toy(network())
        given = attacks("pgd,cw")
        defense.fit(loader(64), given, plan=PLAN)
        ((stage, _),) = defense.steps
        assert [attack.knobs["steps"] for attack in stage.attacks] == [7, 10]
        assert [attack.training for attack in stage.attacks] == [True, True]
        assert [attack.knobs["steps"] for attack in given] == [50, 100]

    def test_learning_rate_and_budget_follow_the_plan(self, network: Network, loader: Loader) -> None:
        """Batch b of epoch e stands at e + b/B: half a cosine for the rate, a line for eps."""
        defense = Toy(network())
        plan = TrainPlan(epochs=3, lr=0.4, eps_warmup=2)
        defense.fit(loader(256), attacks("pgd"), plan=plan)
        done = [epoch + batch / 4 for epoch in range(3) for batch in range(4)]
        rates = [rate for _, rate in defense.steps]
        assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * place / 3)) for place in done])
        budgets = [stage.attacks[0].eps for stage, _ in defense.steps]
        assert budgets == pytest.approx([0.2 * min(max(place / 2, 1e-3), 1) for place in done])
        steps = [stage.attacks[0].knobs["step_size"] for stage, _ in defense.steps]
        assert steps == pytest.approx([2.5 * eps / 7 for eps in budgets])

    def test_a_loader_draws_as_if_it_were_read_by_hand(self, network: Network, digits: Any) -> None:
        """Training leaves the global random state where one pass over the loader an epoch leaves it."""
        data = torch.utils.data.TensorDataset(digits.train.x[:64], digits.train.y[:64])
        shuffling = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        states = []
        for fits in (True, False):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                if fits:
                    AT(network()).fit(shuffling, attacks("pgd"), plan=TrainPlan(epochs=2))
                else:
                    for _ in range(2):
                        list(shuffling)
                states.append(torch.get_rng_state())
        assert torch.equal(*states)

    def test_any_re_iterable_will_do(self, network: Network, digits: Any) -> None:
        """A class with ``__iter__`` alone trains like the list; the number of batches is then unknown."""
        batches = [(digits.train.x[:32], digits.train.y[:32]), (digits.train.x[32:64], digits.train.y[32:64])]

        class Batches:
            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                return iter(batches)

        seen: list[Progress] = []
        first, second = AT(network()), AT(network())
        plan = TrainPlan(epochs=2, schedule="constant")
        first.fit(Batches(), attacks("pgd"), plan=plan, progress=seen.append)
        second.fit(batches, attacks("pgd"), plan=plan)
        assert equal(first, second)
        assert [now.batches for now in seen] == [0] * 4

    @pytest.mark.parametrize(
        "make", [iter, lambda batches: (b for b in batches), lambda batches: map(tuple, batches)]
    )
    def test_iterators_are_refused(self, network: Network, digits: Any, make: Callable[..., Any]) -> None:
        """One would be used up after the first epoch, and training would go on with nothing."""
        batches = [(digits.train.x[:32], digits.train.y[:32])]
        with pytest.raises(InputError, match=r"^data is an iterator, used up after one epoch: give a DataL"):
            AT(network()).fit(make(batches), attacks("fgsm"), plan=PLAN)
        plan = TrainPlan(epochs=2, select="val-robust")
        with pytest.raises(InputError, match=r"^validation is an iterator"):
            AT(network()).fit(batches, attacks("fgsm"), plan=plan, validation=make(batches))

    def test_data_that_cannot_be_used_are_refused(self, network: Network, digits: Any) -> None:
        """Nothing, nothing without a length, images out of range, labels of another type."""
        x, y = digits.train.x[:32], digits.train.y[:32]

        class Empty:
            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                return iter(())

        cases: list[tuple[Any, str]] = [
            ([], "data has no batches"),
            (Empty(), "data has no batches"),
            ([(x * 255, y)], r"x must lie in \[0, 1\]"),
            ([(x - 0.1, y)], r"x must lie in \[0, 1\]"),
            ([(x.double(), y)], "x must be float32"),
            ([(x, y.int())], "y must be int64"),
        ]
        for kind in (Standard, AT):
            for data, message in cases:
                with pytest.raises(InputError, match=message):
                    kind(network()).fit(data, attacks("fgsm"), plan=PLAN)
        plan = TrainPlan(epochs=1, select="val-robust")
        for validation, message in ((None, "needs validation batches"), ([], "validation has no batches")):
            with pytest.raises(InputError, match=message):
                AT(network()).fit([(x, y)], attacks("fgsm"), plan=plan, validation=validation)

    def test_a_loss_that_is_no_number_stops_training(self, network: Network, loader: Loader) -> None:
        """The error says at which stage, epoch and step."""

        class Diverging(Toy):
            def step(self, x: Tensor, y: Tensor, stage: Stage, optimizer: Any) -> dict[str, float]:
                losses = super().step(x, y, stage, optimizer)
                return {"loss": math.inf if losses["loss"] == 15 else 1.0, "term": 0.0}

        defense = Diverging(network())
        data = loader(256)
        plan = TrainPlan(epochs=2)
        defense.fit(data, attacks("fgsm"), plan=plan)
        with pytest.raises(TrainingDivergedError, match=r"^toy: .* stage 2, epoch 2, step 3: .*inf"):
            defense.fit(data, attacks("fgsm"), plan=plan)
        assert defense.stages == 1

    def test_a_real_divergence_is_noticed(self, network: Network, loader: Loader) -> None:
        """A learning rate of 1e30 is no training."""
        with pytest.raises(TrainingDivergedError, match="at: the loss is not a number at stage 1, epoch 1"):
            AT(network()).fit(loader(256), attacks("fgsm"), plan=TrainPlan(epochs=1, lr=1e30))


class Threshold(nn.Module):
    """Class 1 where the single pixel is above ``at``."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        score = 10 * (x.flatten(1) - self.at)
        return torch.cat([-score, score], 1)


class Scripted(Defense):
    """Puts its threshold where the script says, epoch by epoch."""

    info = named("scripted", regimes=("continual",))

    def __init__(self, model: nn.Module, script: list[float]) -> None:
        super().__init__(model)
        self.script = iter(script)

    def step(self, x: Tensor, y: Tensor, stage: Stage, optimizer: Any) -> dict[str, float]:  # noqa: ARG002
        """One batch an epoch."""
        self.model.at.data.fill_(next(self.script))
        return {"loss": 0.0}


@pytest.mark.parametrize(
    ("script", "select", "kept"),
    [
        # Right clean at any threshold between 0.2 and 0.8; after an attack of 0.2 only from 0.4 to 0.6.
        ([0.3, 0.5, 0.7], "last", 0.7),
        ([0.3, 0.5, 0.7], "val-robust", 0.5),
        ([0.5, 0.3, 0.3], "val-robust", 0.5),
        ([0.3, 0.3, 0.45], "val-robust", 0.45),
        # Of equals the first.
        ([0.45, 0.55, 0.5], "val-robust", 0.45),
    ],
)
def test_val_robust_keeps_the_most_robust_epoch(script: list[float], select: str, kept: float) -> None:
    """By accuracy after the stage's attack on validation data: not clean accuracy, nor training data."""
    x = torch.tensor([0.2, 0.2, 0.8, 0.8]).view(4, 1, 1, 1)
    validation = [(x, torch.tensor([0, 0, 1, 1]))]
    upside_down = [(x, torch.tensor([1, 1, 0, 0]))]
    defense = Scripted(Threshold(), script)
    plan = TrainPlan(epochs=3, select=select)
    defense.fit(upside_down, [pool.get("fgsm", eps=0.19)], plan=plan, validation=validation)
    assert defense.model.at.item() == pytest.approx(kept)


class TestMixing:
    """How a joint batch meets several attacks. An attack here is a number, which crafting adds."""

    def craft(self, mix: str, count: int = 7, kinds: tuple[float, ...] = (1.0, 2.0, 3.0), **more: Any) -> Any:
        """Crafted points, their labels and the sizes of the batches that each attack got."""
        x = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1) * 10
        y = torch.arange(count) % 10
        sizes: list[tuple[float, int]] = []

        def craft(attack: Any, x: Tensor, y: Tensor) -> Tensor:
            assert torch.equal(x.flatten().long() // 10 % 10, y)
            sizes.append((attack, len(x)))
            return x + attack

        given: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "predict": nn.Identity()}
        x_adv, y_adv = craft_batch(craft, kinds, x, y, mix=mix, **{**given, **more})  # type: ignore[arg-type]
        return (x_adv - 10 * y_adv.view(-1, 1, 1, 1)).flatten().tolist(), y_adv.tolist(), sizes

    @pytest.mark.parametrize(
        ("mix", "kinds", "count", "added", "sizes"),
        [
            ("split", (1.0, 2.0, 3.0), 7, [1, 2, 3, 1, 2, 3, 1], [3, 2, 2]),
            ("split", (1.0, 2.0, 3.0), 2, [1, 2], [1, 1, 0]),
            ("average", (1.0, 2.0, 3.0), 7, [1] * 7 + [2] * 7 + [3] * 7, [7, 7, 7]),
            *((mix, (4.0,), 7, [4] * 7, [7]) for mix in ("split", "random", "average", "max")),
        ],
    )
    def test_shares(
        self, mix: str, kinds: tuple[float, ...], count: int, added: list[float], sizes: list[int]
    ) -> None:
        """Split by stride, of few points too; all points for each; one attack is no mixture."""
        found, labels, met = self.craft(mix, count, kinds)
        assert found == added
        assert labels == list(range(count)) * (len(added) // count)
        assert met == list(zip(kinds, sizes, strict=True))

    def test_random_gives_the_batch_to_one(self) -> None:
        """Each attack about as often."""
        generator = torch.Generator().manual_seed(0)
        chosen = []
        for _ in range(300):
            added, labels, sizes = self.craft("random", generator=generator)
            assert len(set(added)) == len(sizes) == 1
            assert labels == list(range(7))
            chosen.append(added[0])
        assert all(70 < chosen.count(kind) < 130 for kind in (1, 2, 3))

    def test_max_keeps_the_worst_of_each_point(self) -> None:
        """By cross-entropy: point i is worst under attack 1 + i mod 3 for this model."""

        class Model(nn.Module):
            def forward(self, points: Tensor) -> Tensor:
                added = points.flatten() % 10
                worst = 1 + (points.flatten() // 10).long() % 3
                right = torch.where(added == worst, 0.0, 5.0)
                return torch.nn.functional.one_hot((points.flatten() // 10).long(), 10) * right[:, None]

        added, labels, _ = self.craft("max", predict=Model())
        assert added == [1, 2, 3, 1, 2, 3, 1]
        assert labels == list(range(7))

    @pytest.mark.parametrize(("mix", "size"), [("split", 64), ("random", 64), ("average", 128), ("max", 64)])
    def test_a_step_has_one_train_mode_forward(
        self, network: Network, loader: Loader, mix: str, size: int
    ) -> None:
        """Choosing the worst attack moves no batch-norm statistics either."""
        defense = AT(network(norm=True), mix=mix)
        calls: list[int] = []
        defense.model.register_forward_hook(
            lambda module, inputs, _output: calls.append(len(inputs[0])) if module.training else None
        )
        defense.fit(loader(64), attacks(), plan=PLAN)
        assert calls == [size]
        assert int(defense.model[3].num_batches_tracked) == 1


class TestRegistry:
    """Finding defenses by name, ours and strangers'."""

    def test_joint_is_at_in_regime_joint(self) -> None:
        """An alias fixes the regime and refuses any other."""
        assert registry.resolve("joint") == (AT, "joint")
        assert registry.resolve("joint", "joint") == (AT, "joint")
        assert registry.resolve("at") == (AT, "continual")
        assert registry.resolve("at", "joint") == (AT, "joint")
        with pytest.raises(InputError, match="it means at in 'joint'"):
            registry.resolve("joint", "continual")
        assert "joint" not in registry.names()

    def test_unknown_names_have_a_suggestion(self) -> None:
        """One line, with the nearest name and all of them, aliases too."""
        with pytest.raises(InputError) as caught:
            registry.resolve("standart")
        assert str(caught.value).startswith("unknown defense 'standart': did you mean 'standard'? (allowed: ")
        assert "joint" in str(caught.value)

    def test_classes_are_imported_by_their_own_names(self) -> None:
        """Without any list to edit."""
        assert defenses.AIR is registry.resolve("air")[0] is AIR
        assert {"AIR", "AT", "Standard", "registry"} <= set(dir(defenses))
        with pytest.raises(AttributeError, match="has no attribute 'AIRR'"):
            _ = defenses.AIRR  # type: ignore[attr-defined]
        with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
            exec("from defenses import Nothing")

    def test_a_name_is_taken_once(self, network: Network) -> None:
        """By another class; the same class again, as a reload gives it, is no second one."""
        fresh = Registry()
        assert fresh.register(Toy) is Toy
        fresh.register(Toy)
        assert fresh.build("toy", network()).info is Toy.info
        fresh.register(type("Second", (Toy,), {"info": named("second", aliases={"twin": "joint"})}))
        alias = named("other", aliases={"toy": "joint"})
        for info, taken in (
            (named("toy"), "toy"),
            (alias, "toy"),
            (Toy.info, "toy"),
            (named("twin"), "twin"),
        ):
            with pytest.raises(
                InputError, match=rf"^defense '{taken}' is registered twice: by .* and .*Other$"
            ):
                fresh.register(type("Other", (Toy,), {"info": info}))

    def test_what_is_no_defense_is_refused(self) -> None:
        """Another base, an instance, a class without metadata."""
        fresh = Registry()
        for wrong in (nn.Linear, nn.Linear(1, 1), "air", Toy.step):
            with pytest.raises(InputError, match=r"is not a subclass of defenses\.Defense$"):
                fresh.register(wrong)  # type: ignore[type-var]
        for info in ({}, {"info": "air"}):
            with pytest.raises(InputError, match=r"^Bare has no info = DefenseInfo\(\.\.\.\)$"):
                fresh.register(type("Bare", (Defense,), info))

    @pytest.mark.parametrize(
        "wrong", [{"name": "Bad Name"}, {"regimes": ()}, {"regimes": ("sometimes",)}, {"colour": "red"}]
    )
    def test_metadata_is_checked(self, wrong: dict[str, Any]) -> None:
        """Unknown keys, regimes and names that are none."""
        with pytest.raises(ValueError, match=r"validation errors? for DefenseInfo"):
            named(**{"name": "x", **wrong})

    def entry_points(self, monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> Registry:
        """A registry that finds these entry points of an installed package ``strangers``."""
        module = types.ModuleType("strangers")
        module.Toy = Toy  # type: ignore[attr-defined]
        module.Wrong = nn.Linear  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "strangers", module)
        found = [EntryPoint(name, value, "advbench.defenses") for name, value in points]

        def entry_points(*, group: str) -> list[EntryPoint]:
            assert group == "advbench.defenses"
            return found

        monkeypatch.setattr(REGISTRY_MODULE, "entry_points", entry_points)
        return Registry()

    def test_entry_points_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the name in the class's metadata; an entry point may also be a module that registers."""
        fresh = self.entry_points(monkeypatch, ("toy", "strangers:Toy"), ("module", "strangers"))
        assert fresh.names() == ["toy"]
        assert fresh.resolve("toy") == (Toy, "joint")
        assert fresh.class_named("Toy") is Toy
        assert fresh.problems == {}

    def test_a_broken_entry_point_breaks_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """It is reported in one line, when it is asked for by name; one that leaves Python is stopped."""
        (tmp_path / "leaver.py").write_text("raise SystemExit('bye')")
        monkeypatch.syspath_prepend(tmp_path)
        fresh = self.entry_points(
            monkeypatch,
            ("absent", "no_such_package:Thing"),
            ("gone", "strangers:Gone"),
            ("toy", "strangers:Toy"),
            ("leaves", "leaver"),
            ("wrong", "strangers:Wrong"),
        )
        assert fresh.names() == ["toy"]
        assert set(fresh.problems) == {"absent", "gone", "leaves", "wrong"}
        assert all("\n" not in cause for cause in fresh.problems.values())
        with pytest.raises(InputError, match=r"^defense 'absent' could not be loaded: ModuleNotFoundError: "):
            fresh.resolve("absent")
        with pytest.raises(InputError, match=r"could not be loaded: InputError: .* is not a subclass"):
            fresh.resolve("wrong")


class TestParameters:
    """A defense's own keyword arguments, from text."""

    def test_text_is_read_in_the_declared_type(self) -> None:
        """Numbers, choices; what is not given has its default."""
        given = {"lambda_i": "0.5", "sigma": "1e-3", "beta": 2, "distance": "kl"}
        values = parse_parameters(AIR, "air", given)
        defaults = parameters_of(AIR)
        assert values == {**defaults, "lambda_i": 0.5, "sigma": 0.001, "beta": 2.0, "distance": "kl"}
        assert isinstance(values["beta"], float)
        assert set(defaults) == {"lambda_i", "lambda_a", "lambda_r", "sigma", "beta", "distance"}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"lamda_i": "1"}, "unknown parameter of air 'lamda_i': did you mean 'lambda_i'?"),
            ({"seed": 3}, "unknown parameter of air 'seed'"),
            ({"model": 3}, "unknown parameter of air 'model'"),
            ({"lambda_i": "much"}, "lambda_i=much is not valid for air: "),
            ({"lambda_i": [1]}, "lambda_i=[1] is not valid for air: "),
            ({"lambda_i": "[1"}, "lambda_i=[1 is not valid for air: "),
            ({"lambda_i": None}, "lambda_i=None is not valid for air: "),
            ({"lambda_i": "inf"}, "lambda_i=inf is not valid for air: it is not finite"),
            ({"sigma": ".nan"}, "sigma=.nan is not valid for air: it is not finite"),
            ({"distance": "l7"}, "distance=l7 is not valid for air: Input should be 'mse' or 'kl'"),
        ],
    )
    def test_wrong_parameters_are_one_line(self, given: dict[str, Any], message: str) -> None:
        """What was given, to which defense, and why it will not do."""
        with pytest.raises(InputError) as caught:
            parse_parameters(AIR, "air", given)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)

    def test_a_parameter_without_default_must_be_given(self, network: Network) -> None:
        """The message says how."""

        class Needy(Toy):
            def __init__(self, model: nn.Module, *, teacher: str, seed: int = 0) -> None:
                super().__init__(model, seed=seed)
                self.teacher = teacher

        Needy.info = named("needy")
        fresh = Registry()
        fresh.register(Needy)
        with pytest.raises(InputError, match="'needy' needs a value for 'teacher': --set teacher=VALUE"):
            fresh.build("needy", network())
        built = fresh.build("needy", network(), seed=4, parameters={"teacher": "old"})
        assert built.spec() == {"defense": "needy", "parameters": {"teacher": "old"}}
        assert built.seed == 4


def test_a_plain_constructor_will_do(network: Network) -> None:
    """Without ``seed``, without attributes of its parameters' names, with types that are not imported."""

    class Plain(Toy):
        def __init__(self, model: nn.Module, *, weight: Unknown = 1.0) -> None:  # type: ignore[name-defined] # noqa: F821
            super().__init__(model)
            self.w = weight

    Plain.info = named("plain")
    fresh = Registry()
    fresh.register(Plain)
    built = fresh.build("plain", network(), seed=6, parameters={"weight": "2.5"})
    assert (built.w, built.seed) == (2.5, 6)
    assert built.spec() == {"defense": "plain", "parameters": {"weight": 2.5}}


def test_a_defense_without_a_loss_says_so(network: Network, loader: Loader) -> None:
    """The author of a new method learns what is missing."""

    class Empty(Defense):
        info = named("empty")

    with pytest.raises(NotImplementedError, match="Empty must define loss or step"):
        Empty(network()).fit(loader(64), attacks("fgsm"), plan=PLAN)


def test_frozen_parameters_are_not_trained(network: Network, loader: Loader) -> None:
    """The optimizer gets what requires a gradient, anew each stage."""
    defense = AT(network())
    defense.model[0].weight.requires_grad_(False)
    before = state_of(defense)
    defense.fit(loader(64), attacks("fgsm"), plan=TrainPlan(epochs=1, weight_decay=0.1))
    changed = {name for name, value in defense.state_dict().items() if not value.equal(before[name])}
    assert changed == {"model.0.bias", "model.3.weight", "model.3.bias"}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("air", {"lambda_i": -1.0}, "lambda_i=-1.0 must be at least 0"),
        ("air", {"lambda_a": -0.1}, "lambda_a=-0.1 must be at least 0"),
        ("air", {"lambda_r": math.nan}, "lambda_r=nan must be at least 0"),
        ("air", {"lambda_r": math.inf}, "lambda_r=inf must be at least 0 and finite"),
        ("air", {"sigma": -0.1}, "sigma=-0.1 must be at least 0"),
        ("air", {"beta": 0.0}, "beta=0.0 must be above 0"),
        ("air", {"beta": math.nan}, "beta=nan must be above 0"),
        ("air", {"distance": "mze"}, "unknown distance 'mze': did you mean 'mse'?"),
        ("trades", {"beta": -1.0}, "beta=-1.0 must be at least 0 and finite"),
        ("trades", {"steps": 0}, "steps=0 must be at least 1"),
        ("mart", {"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ("mart", {"steps": -3}, "steps=-3 must be at least 1"),
        ("n-fgsm", {"k": -1.0}, "k=-1.0 must be at least 0 and finite"),
        ("n-fgsm", {"alpha": 0.0}, "alpha=0.0 must be above 0 and finite"),
        ("free", {"replays": 0}, "replays=0 must be at least 1"),
        ("ewc", {"strength": -1.0}, "strength=-1.0 must be at least 0 and finite"),
        ("ewc", {"gamma": 1.5}, "gamma=1.5 must be at least 0 and at most 1"),
        ("ewc", {"fisher_samples": 0}, "fisher_samples=0 must be at least 1"),
        ("si", {"strength": -1.0}, "strength=-1.0 must be at least 0 and finite"),
        ("si", {"damping": 0.0}, "damping=0.0 must be above 0 and finite"),
        ("lwf", {"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ("lwf", {"temperature": 0.0}, "temperature=0.0 must be above 0 and finite"),
        ("replay", {"memory": 0}, "memory=0 must be at least 1"),
        ("mola-grad", {"rank": 0}, "rank=0 must be at least 1"),
        ("mola-grad", {"scale": 0.0}, "scale=0.0 must be above 0"),
        ("mola-grad", {"norms": "group"}, "unknown norms 'group'"),
        ("mola-router", {"lambda_twd": -1.0}, "lambda_twd=-1.0 must be at least 0"),
        ("mola-router", {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ("mola-router", {"router_width": 0}, "router_width=0 must be at least 1"),
        ("mola-router", {"router_depth": -1}, "router_depth=-1 must be at least 0"),
        ("lorkd", {"lambda_kl": -1.0}, "lambda_kl=-1.0 must be at least 0"),
        ("lorkd", {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ("lorkd", {"teacher_share": 1.0}, "teacher_share=1.0 must be above 0 and below 1"),
        ("mid", {"lambda_adv": -1.0}, "lambda_adv=-1.0 must be at least 0"),
        ("mid", {"inner_lr": -0.1}, "inner_lr=-0.1 must be at least 0"),
        ("mid", {"teacher": 1.0}, "teacher=1.0 must lie between 0 and 1"),
        ("mid", {"craft_on": "teacher"}, "unknown craft_on 'teacher'"),
        ("mid", dict.fromkeys(("lambda_adv", "lambda_cyc", "lambda_lab"), 0.0), "nothing is left to train"),
    ],
)
def test_bad_parameters_are_refused(network: Network, name: str, given: dict[str, Any], message: str) -> None:
    """By the constructor too: one line that says what was given and what would do."""
    kind: Any = registry.resolve(name)[0]
    with pytest.raises(InputError) as caught:
        kind(network(), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_defense_without_parameters_can_be_fitted(loader: Loader) -> None:
    """It has no optimizer then, and its loss is computed all the same."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    (losses,) = Standard(Constant()).fit(loader(64), [], plan=PLAN)
    assert losses["loss"] > 0
