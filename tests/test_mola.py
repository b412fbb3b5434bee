"""Low-rank adapters in any convolutional network, MoLA-Grad and MoLA-Router."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attacks, small, state_of
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.models import build_model
from advbench.models.cost import multiply_adds
from attacks_pool import InputError
from defenses import MoLAGrad, MoLARouter, Stage, TrainPlan, registry
from defenses.parts.lowrank import (
    AdaptedConv2d,
    Route,
    Routing,
    TaskBatchNorm,
    adapted,
    inject,
    nmi,
    task_contrast,
)
from defenses.parts.lowrank.network import add_task, merged

PLAN = TrainPlan(epochs=1, lr=0.05)
Network = Callable[..., nn.Sequential]
Loader = Callable[..., Any]


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


class Residual(nn.Module):
    """Strides, padding, dilation, 1×1, depthwise, biases, batch norm, a sum, as torchvision's networks have.

    One convolution is used twice, and one attribute of it is read in ``forward``.
    """

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding="same", dilation=2, padding_mode="reflect"), nn.BatchNorm2d(8)
        )
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.again = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.again(F.relu(self.branch(x) + self.depthwise(x)))
        x = self.again(F.relu(x)) / self.again.weight.shape[0]
        return self.fc(x.mean((2, 3)))


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose weights ``seed`` determines, with batch-norm statistics that are not 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        model.train()(torch.rand(8, 3, 8, 8))
        return model.eval()


def trained(model: nn.Module, tasks: int = 3, *, rank: int = 2, scale: float = 0.5) -> Any:
    """``model`` with adapters that do something, and its routing; statistics of each task of their own."""
    model, routing = inject(model, rank=rank, scale=scale)
    draws = seeded(1)
    for _ in range(tasks):
        add_task(model, draws)
    with torch.no_grad():
        for module in adapted(model):
            if isinstance(module, AdaptedConv2d):
                for up in module.up:
                    up.copy_(torch.randn(up.shape, generator=draws) * 0.3)
            else:
                module.task_mean += torch.rand(module.task_mean.shape, generator=draws) * 0.1
                module.task_var *= 1 + torch.rand(module.task_var.shape, generator=draws)
    return model, routing


NETWORKS = {
    "residual": Residual,
    "resnet18": lambda: build_model("resnet18", num_classes=5, in_channels=3, image_size=8, seed=0),
    "small": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(216), nn.Linear(216, 5)
    ),
}


def every_network(test: Any) -> Any:
    """The largest one is slow."""
    return pytest.mark.quick(r".*(residual|small).*")(pytest.mark.parametrize("name", NETWORKS)(test))


class TestConvolution:
    """W_e = W + s·B_e A_e."""

    @pytest.mark.parametrize(
        "geometry",
        [
            {"kernel_size": 1},
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"kernel_size": (3, 5), "dilation": 2, "bias": False},
            {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        ],
    )
    def test_one_pass_is_each_adapter_by_itself(self, geometry: dict[str, Any]) -> None:
        """y_n = Σ_e w_ne·((W + s·B_e A_e) * x_n) + b, sample by sample and adapter by adapter."""
        torch.manual_seed(0)
        plain = nn.Conv2d(4, 6, **geometry).double()
        routing = Routing()
        conv = AdaptedConv2d(plain, routing, rank=2, scale=0.7)
        for _ in range(3):
            conv.add_task(seeded(3))
        for up in conv.up:
            nn.init.normal_(up)
        x, weights = torch.rand(5, 4, 9, 9).double(), torch.rand(5, 3).double().softmax(1)
        with routing.along(Route(weights=weights)):
            fast = conv(x)
        for n in range(5):
            slow = 0
            for e in range(3):
                weight = plain.weight + 0.7 * torch.einsum("or,rikl->oikl", conv.up[e], conv.down[e])
                alone = copy.deepcopy(plain)
                alone.weight = nn.Parameter(weight)
                slow = slow + weights[n, e] * alone(x[n : n + 1])
                with routing.along(Route(task=e)):
                    torch.testing.assert_close(conv(x[n : n + 1]), alone(x[n : n + 1]))
            torch.testing.assert_close(fast[n : n + 1], slow)
        torch.testing.assert_close(conv(x), plain(x), atol=0, rtol=0)

    @pytest.mark.parametrize(
        "route", [Route(task=1), Route(weights=torch.rand(2, 3, generator=seeded())), Route()]
    )
    def test_what_crafting_keeps_is_what_would_be_made(self, route: Route) -> None:
        """The same output and gradient to the images, none to weights; afterwards new weights count again."""
        model, routing = trained(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)))
        conv, x = model[0], torch.rand(2, 1, 5, 5, requires_grad=True)
        with routing.along(route):
            output = conv(x)
            (gradient,) = torch.autograd.grad(output.square().sum(), x)
            with conv.kept():
                for _ in range(2):
                    kept = conv(x)
                    assert torch.equal(kept, output)
                    (found,) = torch.autograd.grad(kept.square().sum(), x)
                    torch.testing.assert_close(found, gradient)
            with torch.no_grad():
                conv.weight.add_(1)
            assert not torch.allclose(conv(x), output)

    def test_a_new_adapter_changes_nothing(self) -> None:
        """B starts at 0; its gradient does not."""
        torch.manual_seed(0)
        model, routing = inject(nn.Sequential(nn.Conv2d(1, 2, 3)), rank=4, scale=1.0)
        x = torch.rand(2, 1, 5, 5)
        before = model(x)
        add_task(model, seeded())
        with routing.along(Route(task=0)):
            assert torch.equal(model(x), before)
            model(x).square().sum().backward()
        assert model[0].up[0].grad.abs().sum() > 0
        assert model[0].down[0].shape == (2, 1, 3, 3)

    def test_rank_is_at_most_that_of_the_weight(self) -> None:
        """min(r, C_out, C_in·k·k): more would add parameters and nothing else."""
        model, _ = inject(nn.Sequential(nn.Conv2d(2, 9, 1), nn.Conv2d(9, 3, 3)), rank=8, scale=1.0)
        assert [module.rank for module in adapted(model)] == [2, 3]

    def test_a_batch_that_changes_its_size_is_refused(self) -> None:
        """Its samples could not be told apart."""
        model, routing = inject(
            nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Flatten(0, 1), nn.Conv2d(1, 2, 1)), rank=1, scale=1.0
        )
        add_task(model, seeded())
        with routing.along(Route(weights=torch.ones(2, 1))):
            assert model(torch.rand(2, 1, 3, 3)).shape == (2, 2, 3, 3)
            with pytest.raises(InputError, match="a batch of 2 has become one of 4 inside the network"):
                model(torch.rand(4, 1, 3, 3))


class TestInjection:
    """Into any network, without knowing it."""

    @every_network
    def test_the_network_stays_the_same_function(self, name: str) -> None:
        """With the same parameters under the same names; nothing is drawn."""
        model = made(NETWORKS[name])
        x, names = torch.rand(2, 3, 8, 8), [key for key, _ in model.named_parameters()]
        parameters, expected = list(model.parameters()), model(x)
        state = torch.get_rng_state()
        found, _ = inject(model, rank=2, scale=1.0)
        assert torch.equal(torch.get_rng_state(), state)
        assert found is model
        assert torch.equal(model(x), expected)
        assert [key for key, _ in model.named_parameters()] == names
        assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))

    def test_what_is_replaced(self) -> None:
        """Plain convolutions of one group and batch norm; a layer used twice stays one, flags stay."""
        model = made(Residual)
        model.bn1.train()
        model.twin = model.again
        inject(model, rank=2, scale=1.0)
        assert type(model.depthwise) is nn.Conv2d
        assert type(model.branch[0]) is type(model.again) is AdaptedConv2d
        assert type(model.bn1) is type(model.branch[1]) is TaskBatchNorm
        assert model.twin is model.again
        assert model.bn1.training
        assert not model.branch[1].training
        kept, _ = inject(made(Residual), rank=2, scale=1.0, norms="batch")
        assert type(kept.bn1) is nn.BatchNorm2d

    @pytest.mark.parametrize("kind", ["mola-grad", "mola-router", "lorkd"])
    def test_a_network_without_layers_to_adapt_is_refused(self, kind: str) -> None:
        """In one line; so is one that has adapters already."""
        with pytest.raises(
            InputError, match=r"^low-rank adapters need a network with a convolution or a linear"
        ):
            registry.build(kind, nn.Sequential(nn.Flatten(), nn.LayerNorm(4)))
        for model in (nn.Linear(3, 4), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))):
            with pytest.raises(InputError, match=r"^low-rank adapters need a network with an nn.Conv2d"):
                registry.build(kind, model, parameters={"adapt": "conv"})
        model = nn.Sequential(nn.Conv2d(1, 2, 3))
        registry.build(kind, model)
        with pytest.raises(InputError, match="already has low-rank adapters"):
            registry.build(kind, model)

    @every_network
    def test_a_copy_is_routed_by_itself(self, name: str) -> None:
        """A deep copy shares no route with the network."""
        model, routing = trained(made(NETWORKS[name]))
        x = torch.rand(2, 3, 8, 8)
        twin = copy.deepcopy(model)
        with routing.along(Route(task=1)):
            assert not torch.equal(model(x), twin(x))


class TestBatchNorm:
    """Statistics of each task."""

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_a_mixed_batch_is_each_task_by_itself(self, momentum: float | None) -> None:
        """The same outputs and running statistics as a batch norm of its own for each task, in any order."""
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(3, momentum=momentum)
        alone = [copy.deepcopy(norm) for _ in range(3)]
        routing = Routing()
        mixed = TaskBatchNorm(norm, routing)
        for _ in range(3):
            mixed.add_task()
        for tasks in ([2, 0, 0, 2, 2, 1, 1], [0, 0, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 2]):
            x, labels = torch.randn(7, 3, 4, 4), torch.tensor(tasks)
            with routing.along(Route.by_task(labels, 3)):
                out = mixed(x)
            for task in set(tasks):
                torch.testing.assert_close(out[labels == task], alone[task](x[labels == task]))
        for task, other in enumerate(alone):
            torch.testing.assert_close(mixed.task_mean[task], other.running_mean)
            torch.testing.assert_close(mixed.task_var[task], other.running_var)
            assert mixed.task_batches[task] == other.num_batches_tracked
        assert norm.num_batches_tracked == 0
        mixed.eval()
        with routing.along(Route.by_task(labels, 3)):
            out = mixed(x)
        for task in (1, 2):
            torch.testing.assert_close(out[labels == task], alone[task].eval()(x[labels == task]))

    def test_a_single_value_has_no_variance(self) -> None:
        """It is normalised by running statistics, which stay; the other task's move."""
        routing = Routing()
        mixed = TaskBatchNorm(nn.BatchNorm1d(2), routing)
        for _ in range(2):
            mixed.add_task()
        x = torch.tensor([[3.0, 4.0], [1.0, 0.0], [5.0, 2.0]], requires_grad=True)
        with routing.along(Route.by_task(torch.tensor([0, 1, 1]), 2)):
            out = mixed(x)
        torch.testing.assert_close(out[0], x[0] / math.sqrt(1 + 1e-5))
        assert mixed.task_batches.tolist() == [0, 1]
        out.sum().backward()
        assert x.grad is not None

    def test_without_running_statistics(self) -> None:
        """Batch statistics of each task in eval mode too, as such a layer promises."""
        routing = Routing()
        mixed = TaskBatchNorm(nn.BatchNorm2d(2, track_running_stats=False), routing).eval()
        mixed.add_task()
        x, tasks = torch.randn(6, 2, 3, 3), torch.tensor([0, 1, 0, 1, 1, 0])
        with routing.along(Route.by_task(tasks, 2)):
            out = mixed(x)
        for task in (0, 1):
            expected = F.batch_norm(x[tasks == task], None, None, training=True)
            torch.testing.assert_close(out[tasks == task], expected)


@every_network
def test_another_task_gives_exactly_no_gradient(name: str) -> None:
    """In a mixed batch in train mode, the loss of one task's samples leaves every other adapter at 0."""
    model, routing = trained(made(NETWORKS[name]))
    model.train()
    x, tasks = torch.rand(9, 3, 8, 8, generator=seeded()), torch.tensor([2, 0, 1, 1, 0, 2, 0, 1, 2])
    for task in range(3):
        model.zero_grad()
        with routing.along(Route.by_task(tasks, 3)):
            loss = F.cross_entropy(model(x)[tasks == task], torch.tensor([0, 1, 2]))
        loss.backward()
        for module in adapted(model):
            if isinstance(module, AdaptedConv2d):
                assert module.weight.grad.abs().sum() > 0
                for other in range(3):
                    for parameter in (module.down[other], module.up[other]):
                        zero = torch.equal(parameter.grad, torch.zeros_like(parameter))
                        assert zero == (other != task)


@every_network
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_networks_are_plain(name: str, dtype: torch.dtype) -> None:
    """Of a task and of fixed weights: the same logits, the original's state dict and multiply-adds."""
    original = made(NETWORKS[name]).to(dtype)
    model, routing = trained(copy.deepcopy(original))
    x = torch.rand(4, 3, 8, 8, dtype=dtype, generator=seeded(2))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=dtype)
    one_hot = F.one_hot(torch.full((4,), 2), 3).to(dtype)
    cases: list[tuple[Any, Route]] = [(1, Route(task=1)), (2, Route(weights=one_hot)), (None, Route())]
    cases += [(weights, Route(weights=weights.expand(4, 3)))]
    for mix, route in cases:
        plain = merged(model, mix)
        with torch.no_grad(), routing.along(route):
            expected, got = model(x), plain(x)
        limit = 1e-5 if dtype == torch.float64 else 1e-4 * float(expected.abs().max())
        assert float((got - expected).abs().max()) <= limit
        fresh = copy.deepcopy(original)
        fresh.load_state_dict(load(save(plain.state_dict())))
        assert torch.equal(fresh(x), got)
        assert not any(isinstance(module, AdaptedConv2d | TaskBatchNorm) for module in plain.modules())
        assert multiply_adds(plain, x[:1]) == multiply_adds(original, x[:1])
    assert not torch.allclose(merged(model, 0)(x), merged(model, 1)(x))


class TestContrast:
    """TwD and what it is measured by."""

    @pytest.mark.parametrize("temperature", [0.1, 1.0])
    def test_loss_against_the_formula(self, temperature: float) -> None:
        """Anchor by anchor; the sample alone in its task is no anchor, and still a negative."""
        weights = torch.rand(6, 3, generator=seeded()).softmax(1)
        tasks = torch.tensor([0, 1, 0, 2, 1, 0])
        z = [row.double() / row.double().norm() for row in weights]
        terms = []
        for i in range(6):
            positives = [p for p in range(6) if p != i and tasks[p] == tasks[i]]
            whole = sum(math.exp(z[i] @ z[k] / temperature) for k in range(6) if k != i)
            shares = [math.log(math.exp(z[i] @ z[p] / temperature) / whole) for p in positives]
            if positives:
                terms.append(-sum(shares) / len(positives))
        assert len(terms) == 5
        assert float(task_contrast(weights, tasks, temperature)) == pytest.approx(sum(terms) / 5, rel=1e-5)

    def test_no_pair_no_loss(self) -> None:
        """0, with a gradient of 0."""
        weights = torch.rand(3, 2).requires_grad_()
        loss = task_contrast(weights, torch.arange(3), 0.5)
        loss.backward()
        assert loss.item() == 0
        assert not weights.grad.any()

    def test_nmi_by_hand(self) -> None:
        """Two tasks, two adapters: all told apart 1, nothing told 0, one of four wrong in between."""
        tasks, hot = torch.tensor([0, 0, 1, 1]), torch.eye(2)
        assert nmi(hot[[1, 1, 0, 0]], tasks) == pytest.approx(1)
        assert nmi(hot[[0, 1, 0, 1]], tasks) == pytest.approx(0)
        # I = 1·ln 2 − H(task | adapter), H = (3/4)·H(1/3); entropies ln 2 and H(1/4).
        third = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
        quarter = -(1 / 4 * math.log(1 / 4) + 3 / 4 * math.log(3 / 4))
        expected = (math.log(2) - 0.75 * third) / ((math.log(2) + quarter) / 2)
        assert nmi(hot[[0, 0, 0, 1]], tasks) == pytest.approx(expected)


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """What has changed; rows that were added are no change."""
    now = {name: second[name][: len(value)] if value.dim() else second[name] for name, value in first.items()}
    return {name for name, value in first.items() if not torch.equal(value, now[name])}


class TestMoLAGrad:
    """A sample uses the adapter of its own task."""

    def test_loss_is_that_of_each_task_by_itself(self, digits: Any) -> None:
        """CE of each sample under its own task's network, crafted by its own attack on that network."""
        defense = MoLAGrad(small(norm=False), rank=2)
        defense.fit([(digits.train.x[:32], digits.train.y[:32])] * 3, attacks("fgsm,pgd:steps=2"), plan=PLAN)
        assert [task.name for task in defense.tasks] == ["clean", "fgsm", "pgd"]
        x, y = digits.test.x[:10], digits.test.y[:10]
        fgsm, pgd = (attack.for_training() for attack in attacks("fgsm,pgd:steps=2"))
        defense.generator.manual_seed(4)
        loss = defense.loss(x, y, Stage(1, (fgsm, pgd), PLAN))
        defense.generator.manual_seed(4)
        points = x.clone()
        points[1::3] = fgsm(defense.merged(1), x[1::3], y[1::3], generator=defense.generator)
        points[2::3] = pgd(defense.merged(2), x[2::3], y[2::3], generator=defense.generator)
        assert not torch.equal(defense.merged(1)(x), defense.merged(2)(x))
        slow = [F.cross_entropy(defense.merged(n % 3)(points[n : n + 1]), y[n : n + 1]) for n in range(10)]
        assert float(loss) == pytest.approx(float(sum(slow)) / 10, rel=1e-4)

    def test_views_are_the_attack_s_own(self, digits: Any) -> None:
        """The same attack in evaluation form, the nearest of its family, else clean images' adapter."""
        defense = MoLAGrad(small())
        text = "fgsm,pgd:steps=2,pgd-l2:steps=2,cw:steps=2"
        defense.fit([(digits.train.x[:50], digits.train.y[:50])] * 2, attacks(text), plan=PLAN)
        x = digits.test.x[:4]
        places = {"fgsm": 1, "pgd": 2, "pgd:eps=0.3": 2, "pgd-l2": 3, "cw": 4, "apgd": 2, "square": 0}
        for given, place in places.items():
            (attack,) = attacks(given)
            assert torch.equal(defense.view(attack)(x), defense.merged(place)(x)), given
        assert torch.equal(defense.view(None)(x), defense.merged(0)(x))
        torch.testing.assert_close(defense(x), defense.merged(0)(x))
        assert len({float(defense.merged(place)(x).detach().sum()) for place in range(5)}) == 5
        tasks = torch.tensor([4, 0, 2, 2])
        expected = torch.cat([defense.merged(int(task))(x[n : n + 1]) for n, task in enumerate(tasks)])
        torch.testing.assert_close(defense.by_task(x, tasks), expected)

    @pytest.mark.parametrize("norms", ["task", "batch"])
    def test_continual_stages_train_one_adapter(self, digits: Any, norms: Any) -> None:
        """After stage 1 only the new adapter and its statistics move; an attack that comes again goes on."""
        defense = MoLAGrad(small(), norms=norms)
        data = [(digits.train.x[:48], digits.train.y[:48])] * 2
        fgsm, pgd = attacks("fgsm,pgd:steps=2")
        defense.fit(data, [fgsm], plan=PLAN)
        first = state_of(defense)
        earlier = defense.view(fgsm)(digits.test.x[:4])
        defense.fit(data, [pgd], plan=PLAN)
        second = state_of(defense)
        assert moved(first, second) == set()
        assert {"model.0.down.2", "model.0.up.2"} == set(second) - set(first)
        assert float(second["model.0.up.2"].abs().sum()) > 0
        assert torch.equal(defense.view(fgsm)(digits.test.x[:4]), earlier)
        if norms == "task":
            assert second["model.1.task_batches"].tolist() == [2, 2, 2]
            assert len({float(mean.sum()) for mean in second["model.1.task_mean"]}) == 3
        defense.fit(data, [fgsm], plan=PLAN)
        third = state_of(defense)
        adapters = {"model.0.down.1", "model.0.up.1"}
        statistics = {f"model.1.task_{name}" for name in ("mean", "var", "batches")}
        assert moved(second, third) == (adapters | statistics if norms == "task" else adapters)


class TestMoLARouter:
    """A router mixes the adapters."""

    @pytest.fixture(scope="class")
    def trained(self, digits: Any) -> MoLARouter:
        """Trained for a moment."""
        found = MoLARouter(small(), rank=2, router_width=4)
        data = [(digits.train.x[:48], digits.train.y[:48])] * 4
        found.fit(data, attacks("fgsm,pgd:steps=2"), plan=TrainPlan(epochs=2, lr=0.1))
        return found

    @pytest.fixture
    def defense(self, trained: MoLARouter) -> MoLARouter:
        """A copy, which a test may change."""
        return copy.deepcopy(trained)

    def test_each_image_has_a_network_of_its_own(self, defense: MoLARouter, digits: Any) -> None:
        """Logits are those of the plain network merged at the image's router weights."""
        x = digits.test.x[:5]
        shares = defense.router_weights(x)
        assert shares.shape == (5, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(5))
        assert float(shares.std(0).max()) > 0
        for n in range(5):
            plain = defense.merged(shares[n])
            torch.testing.assert_close(defense(x[n : n + 1]), plain(x[n : n + 1]), atol=1e-5, rtol=1e-5)
        assert defense.view(attacks("fgsm,pgd:steps=2")[0]) is defense

    def test_attacks_differentiate_through_the_router(self, defense: MoLARouter, digits: Any) -> None:
        """The gradient to the image is that of finite differences; with weights held fixed it is not."""
        defense.double()
        x = digits.test.x[:1].double().requires_grad_()
        direction = torch.randn(x.shape, generator=seeded(), dtype=torch.float64)

        def value(points: Tensor) -> Tensor:
            return defense(points).square().sum()

        (gradient,) = torch.autograd.grad(value(x), x)
        step = 1e-6 * direction
        with torch.no_grad():
            slope = float(value(x + step) - value(x - step)) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)
        weights = defense.router_weights(x)[0].detach()
        (fixed,) = torch.autograd.grad(defense.merged(weights)(x).square().sum(), x)
        assert not torch.allclose(fixed, gradient, rtol=1e-4)

    def test_loss_and_the_record_of_weights(self, defense: MoLARouter, digits: Any) -> None:
        """CE + λ·TwD; the last epoch's mean weights of each task stand in the spec, and sum to 1."""
        defense.lambda_twd, defense.temperature = 0.3, 0.2
        spec = json.loads(json.dumps(defense.spec()))
        assert list(spec["router_weights"]) == [task.text for task in defense.tasks]
        for shares in spec["router_weights"].values():
            assert sum(shares) == pytest.approx(1, abs=1e-3)
        stage = Stage(1, tuple(attack.for_training() for attack in attacks("fgsm,pgd:steps=2")), PLAN)
        x, y = digits.test.x[:12], digits.test.y[:12]
        terms = defense.loss(x, y, stage)
        assert float(terms["loss"]) == pytest.approx(float(terms["ce"] + 0.3 * terms["twd"]))
        defense.lambda_twd = 0
        assert set(defense.loss(x, y, stage)) == {"loss"}

    def test_contrast_of_projected_scores(self, digits: Any) -> None:
        """TwD of P·g(x), with P from the scores of all tasks; a new task adds a column, and P is saved."""
        defense = MoLARouter(small(), twd="scores", temperature=1.0, coverage=0.0)
        x, y = digits.test.x[:12], digits.test.y[:12]
        columns = []
        for count, name in ((2, "fgsm"), (3, "pgd:steps=2")):
            defense.fit([(x, y)], attacks(name), plan=PLAN)
            assert defense.projection is not None
            assert defense.projection.weight.shape == (32, count)
            columns.append(defense.projection.weight.detach().clone())
        fresh = MoLARouter(small(), twd="scores", coverage=0.0)
        for task in defense.tasks[:2]:
            fresh.add_task(task)
        assert fresh.projection is not None
        before = fresh.projection.weight.detach().clone()
        fresh.add_task(defense.tasks[2])
        assert torch.equal(fresh.projection.weight[:, :2], before)
        assert not torch.equal(columns[0], before)
        again = registry.build("mola-router", small(), parameters={"twd": "scores", "coverage": 0.0})
        again.load_spec(json.loads(json.dumps(defense.spec())))
        again.load_state_dict(defense.state_dict())
        stage = Stage(2, tuple(attack.for_training() for attack in attacks("fgsm")), PLAN)
        defense.generator = seeded()
        terms = defense.loss(x, y, stage)
        defense.generator = seeded()
        x_adv, _, tasks = defense.task_batch(x, y, stage)
        assert defense.router is not None
        z = defense.router(x_adv) @ defense.projection.weight.T + defense.projection.bias
        assert float(terms["twd"]) == pytest.approx(float(task_contrast(z, tasks, 1.0)), rel=1e-4)

    @pytest.mark.slow
    def test_contrast_makes_the_router_tell_attacks_apart(self, digits: Any) -> None:
        """Its heaviest adapter then says something of the attack; without TwD it says less."""
        batches = [(digits.train.x[at : at + 64], digits.train.y[at : at + 64]) for at in range(0, 640, 64)]
        told = []
        for weight in (1.0, 0.0):
            model = build_model("digits-cnn", num_classes=10, in_channels=1, image_size=8, seed=0)
            defense = MoLARouter(model, lambda_twd=weight)
            defense.fit(batches, attacks("fgsm,pgd:steps=2"), plan=TrainPlan(epochs=4, eps_warmup=0))
            x, y = digits.test.x[:100], digits.test.y[:100]
            met = [attack(defense, x, y, generator=seeded()) for attack in attacks("fgsm,pgd:steps=2")]
            weights = defense.router_weights(torch.cat([x, *met]))
            told.append(nmi(weights, torch.arange(3).repeat_interleave(100)))
        assert told[0] > 0.3
        assert told[0] > told[1] + 0.1

    def test_one_image_is_a_batch(self, defense: MoLARouter, digits: Any) -> None:
        """In train mode too, where one image has no spread to normalise by."""
        defense.train()
        assert defense.router_weights(digits.test.x[:1]).shape == (1, 3)

    def test_continual_stages_add_a_score(self, digits: Any) -> None:
        """And an adapter; backbone, earlier adapters and batch norm are frozen, the router trains on."""
        defense = MoLARouter(small())
        data = [(digits.train.x[:48], digits.train.y[:48])] * 2
        fgsm, pgd = attacks("fgsm,pgd:steps=2")
        defense.fit(data, [fgsm], plan=PLAN)
        first = state_of(defense)
        defense.fit(data, [pgd], plan=PLAN)
        second = state_of(defense)
        assert set(second) - set(first) == {"model.0.down.2", "model.0.up.2"}
        assert moved(first, second) == {name for name in first if name.startswith("router.")}
        assert defense.router_weights(digits.test.x[:2]).shape == (2, 3)

    def test_overhead(self, defense: MoLARouter, digits: Any) -> None:
        """What the router and all adapters cost beside the plain network, by hand."""
        plain = 9 * 6 * 16 + 96 * 10
        adapters = (9 * 6 + 6 * 6) * 16
        router = 9 * 4 * 64 + 4 * 9 * 8 * 16 + 8 * 3
        assert defense.overhead(digits.test.x[:2]) == pytest.approx((plain + adapters + router) / plain)

    def test_images_of_other_channels_are_refused(self, defense: MoLARouter) -> None:
        """The router says what it takes, and can be told."""
        with pytest.raises(InputError, match="the router takes images of 1 channels, not 3"):
            defense(torch.rand(1, 3, 8, 8))
