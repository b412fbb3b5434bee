"""Low-rank adapters in linear layers, attention and grouped convolutions, and how much they reach."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attacks, small
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from advbench.benchmark.prepare import prepare
from advbench.models import build_model
from advbench.models.cost import multiply_adds
from attacks_pool import InputError
from defenses import MoLAGrad, TrainPlan, registry
from defenses.parts.lowrank import (
    AdaptedAttention,
    AdaptedConv2d,
    AdaptedLayer,
    AdaptedLinear,
    Route,
    Routing,
    TaskBatchNorm,
    adapted,
    coverage_of,
    inject,
)
from defenses.parts.lowrank.network import Adapt, add_task, merged

PLAN = TrainPlan(epochs=1, lr=0.01, eps_warmup=0)


def vit(channels: int = 3) -> nn.Module:
    """A ViT of two layers for 8×8 pixels; torchvision's begins at zero logits."""
    model = VisionTransformer(8, 4, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=5)
    model.conv_proj = nn.Conv2d(channels, 16, 4, 4)
    nn.init.normal_(model.heads.head.weight)
    return model


def convnext(channels: int = 3) -> nn.Module:
    """A ConvNeXt of two stages, whose layer scales are not small."""
    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 2)]
    model = ConvNeXt(blocks, layer_scale=0.5, stochastic_depth_prob=0.1, num_classes=5)
    model.features[0][0] = nn.Conv2d(channels, 8, 4, 4)
    return model


def mobilenet(channels: int = 3) -> nn.Module:
    """A MobileNetV2 of three blocks."""
    settings = [[1, 8, 1, 1], [6, 12, 2, 2]]
    model = MobileNetV2(num_classes=5, width_mult=0.25, inverted_residual_setting=settings)
    model.features[0][0] = nn.Conv2d(channels, 8, 3, 2, 1, bias=False)
    return model


def resnet(channels: int = 3) -> nn.Module:
    """A ResNet of two blocks, for images that are too small for more."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    model.conv1, model.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 5)
    return model


class Sequences(nn.Module):
    """Attention of torch's own encoder layer, and attention with the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.MultiheadAttention(8, 2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, by queries that are not the keys."""
        tokens = self.encoder(self.embed(x).flatten(2).transpose(1, 2)).transpose(0, 1)
        out, _ = self.last(tokens[:1], tokens, tokens.flip(0))
        return self.head(out[0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "convnext": convnext,
    "mobilenet": mobilenet,
    "resnet": resnet,
    "sequences": Sequences,
}


def made(name: str) -> nn.Module:
    """A network of float64 with fixed weights and batch-norm statistics, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
        model.train()(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    return model.eval()


def trained(model: nn.Module, adapt: Adapt | None = None) -> tuple[nn.Module, Routing]:
    """``model`` with three adapters that do something."""
    draws = torch.Generator().manual_seed(1)
    model, routing = inject(model, rank=2, scale=0.5, adapt=adapt)
    for _ in range(3):
        add_task(model, draws)
    with torch.no_grad():
        for module in adapted(model):
            if isinstance(module, AdaptedLayer):
                for up in module.up:
                    up.copy_(torch.randn(up.shape, generator=draws, dtype=up.dtype) * 0.3)
    return model, routing


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("adapt", [None, "all"])
def test_merging_is_exact(name: str, adapt: Adapt | None) -> None:
    """Merged equals adapted to 1e-5 in float64, for tasks, weights and mixtures of samples, and is plain."""
    original = made(name)
    model, routing = trained(copy.deepcopy(original), adapt)
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    cases: list[tuple[Any, Route]] = [
        (1, Route(task=1)),
        (None, Route()),
        (weights, Route(weights=weights.expand(4, 3))),
    ]
    seen = []
    for mix, route in cases:
        plain = merged(model, mix).eval()
        with torch.no_grad(), routing.along(route):
            got, expected = model(x), plain(x)
        assert float((got - expected).abs().max()) < 1e-5
        assert not any(isinstance(one, AdaptedLayer | TaskBatchNorm) for one in plain.modules())
        fresh = copy.deepcopy(original)
        fresh.load_state_dict(load(save(plain.state_dict())))
        torch.testing.assert_close(fresh(x), expected)
        assert multiply_adds(plain, x[:1]) == multiply_adds(original, x[:1])
        seen.append(expected)
    assert not torch.allclose(seen[0], seen[1])
    torch.testing.assert_close(seen[1], original(x))
    tasks = torch.tensor([2, 0, 1, 2])
    with torch.no_grad(), routing.along(Route.by_task(tasks, 3, torch.float64)):
        mixed = model(x)
    for n, task in enumerate(tasks.tolist()):
        alone = merged(model, task).eval()(x[n : n + 1]).detach()
        assert float((mixed[n : n + 1] - alone).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["vit", "convnext", "sequences"])
def test_another_task_gives_exactly_no_gradient(name: str) -> None:
    """In a mixed batch, the loss of one task reaches its own adapters alone, each of them."""
    model, routing = trained(made(name))
    tasks = torch.tensor([1, 0, 2])
    with routing.along(Route.by_task(tasks, 3, torch.float64)):
        F.cross_entropy(model(torch.rand(3, 3, 8, 8).double())[:1], torch.tensor([2])).backward()
    for module in adapted(model):
        if isinstance(module, AdaptedLayer):
            for task, pair in enumerate(zip(module.down, module.up, strict=True)):
                for parameter in pair:
                    moved = parameter.grad is not None and bool(parameter.grad.any())
                    assert moved == (task == 1)


@pytest.mark.parametrize("name", ["vit", "convnext", "sequences"])
def test_what_crafting_keeps_is_what_would_be_made(name: str) -> None:
    """Logits and the gradient to the images, for each kind of route."""
    model, routing = trained(made(name))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    layers = [module for module in model.modules() if isinstance(module, AdaptedLayer)]
    for route in (Route(task=1), Route(weights=torch.rand(2, 3).double()), Route()):
        with routing.along(route):
            expected = model(x)
            (slope,) = torch.autograd.grad(expected.square().sum(), x)
            for layer in layers:
                layer._kept = {}
            kept = model(x)
            (found,) = torch.autograd.grad(kept.square().sum(), x)
            for layer in layers:
                layer._kept = None
        torch.testing.assert_close(kept, expected)
        torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_grouped_convolutions_by_hand(groups: int, mode: str) -> None:
    """Each sample has the weight W + s·Σ_e w_e·B_e A_e."""
    plain = nn.Conv2d(4, 8, 3, 2, 1, groups=groups, padding_mode=mode).double()
    routing = Routing()
    conv = AdaptedConv2d(plain, routing, rank=2, scale=0.7)
    for _ in range(2):
        conv.add_task(torch.Generator().manual_seed(0))
    for up in conv.up:
        nn.init.normal_(up)
    x, weights = torch.rand(3, 4, 7, 7).double(), torch.rand(3, 2).double()
    with routing.along(Route(weights=weights)):
        out = conv(x)
    for n in range(3):
        alone = copy.deepcopy(plain)
        change = sum(
            weights[n, e] * torch.einsum("or,rikl->oikl", conv.up[e], conv.down[e]) for e in range(2)
        )
        alone.weight = nn.Parameter(plain.weight + 0.7 * change)
        torch.testing.assert_close(out[n : n + 1], alone(x[n : n + 1]))


def test_attention_counts_as_multiply_adds() -> None:
    """By hand: patches, two layers of projections, products of five tokens, and MLP, and the head."""
    projections, products, mlp = 4 * 5 * 16 * 16, 2 * 5 * 5 * 16, 2 * 5 * 16 * 32
    expected = 4 * 48 * 16 + 2 * (projections + products + mlp) + 16 * 5
    model, x = vit().eval(), torch.zeros(1, 3, 8, 8)
    before = torch.backends.mha.get_fastpath_enabled()
    assert multiply_adds(model, x) == expected
    assert torch.backends.mha.get_fastpath_enabled() == before


class TestWhatIsAdapted:
    """``adapt``."""

    def test_by_default(self) -> None:
        """Convolutions with groups=1 where at least half of the layers are such, else every layer."""
        kinds = {}
        for name in NETWORKS:
            model, _ = inject(NETWORKS[name](), rank=2, scale=1.0)
            kinds[name] = {type(one) for one in model.modules() if isinstance(one, AdaptedLayer)}
        assert kinds["resnet"] == kinds["mobilenet"] == {AdaptedConv2d}
        assert kinds["convnext"] == {AdaptedConv2d, AdaptedLinear}
        assert kinds["vit"] == kinds["sequences"] == {AdaptedConv2d, AdaptedLinear, AdaptedAttention}

    @pytest.mark.parametrize("name", ["digits-cnn", "lenet", "lenet-small", "resnet-20"])
    def test_our_networks_are_adapted_as_before(self, name: str) -> None:
        """By default exactly their convolutions, so that published numbers stay."""
        model = build_model(name, num_classes=10, in_channels=1, image_size=28, seed=0)
        convolutions = [path for path, one in model.named_modules() if isinstance(one, nn.Conv2d)]
        inject(model, rank=2, scale=1.0)
        assert [path for path, one in model.named_modules() if isinstance(one, AdaptedLayer)] == convolutions

    def test_all_and_conv(self) -> None:
        """Grouped ones with ``all``; derived classes and attention to other widths never."""
        model, _ = inject(mobilenet(), rank=2, scale=1.0, adapt="all")
        assert not any(type(one) in (nn.Conv2d, nn.Linear) for one in model.modules())
        model, _ = inject(vit(), rank=2, scale=1.0, adapt="conv")
        assert [type(one) for one in adapted(model)] == [AdaptedConv2d]
        model, _ = inject(
            nn.Sequential(nn.MultiheadAttention(4, 2, kdim=3), nn.Linear(4, 2)), rank=1, scale=1.0
        )
        assert [type(one) for one in model] == [nn.MultiheadAttention, AdaptedLinear]

    def test_an_unknown_choice(self) -> None:
        """One line, with the nearest."""
        with pytest.raises(InputError, match="unknown adapt 'al': did you mean 'all'"):
            MoLAGrad(small(), adapt="al")  # type: ignore[arg-type]


class TestCoverage:
    """The shares of parameters and multiply-adds under adapters."""

    def test_by_hand(self) -> None:
        """A convolution of 16 positions beside a linear layer, and a layer that is never called."""
        model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(32, 3, bias=False))
        model, routing = inject(model, rank=1, scale=1.0, adapt="conv")
        add_task(model, torch.Generator())
        found = coverage_of(model, routing, torch.rand(2, 1, 6, 6))
        assert found.parameters == pytest.approx(18 / (18 + 96))
        assert found.multiply_adds == pytest.approx(18 * 16 / (18 * 16 + 96))
        assert str(found) == "15.8% of the parameters and 75.0% of the multiply-adds"

        class Reads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return F.linear(self.one(x.flatten(1)), self.two.weight)

        model, routing = inject(Reads(), rank=1, scale=1.0)
        found = coverage_of(model, routing, torch.rand(1, 1, 2, 2))
        assert (found.parameters, found.multiply_adds) == (0.5, 0.5)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_all_reaches_nearly_all(self, name: str) -> None:
        """Of what these networks multiply, all but the products of queries, keys and values."""
        model, routing = inject(made(name), rank=2, scale=1.0, adapt="all")
        state = copy.deepcopy(model.state_dict())
        found = coverage_of(model, routing, torch.rand(2, 3, 8, 8).double())
        assert found.least > 0.75
        assert found.most <= 1
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_too_little_is_refused_and_little_is_warned_of(self, digits: Any) -> None:
        """A ViT whose patches alone are adapted; ``coverage`` allows it."""
        model = VisionTransformer(8, 4, 4, 2, hidden_dim=64, mlp_dim=256, num_classes=10)
        model.conv_proj = nn.Conv2d(1, 64, 4, 4)
        data = [(digits.train.x[:12], digits.train.y[:12])]
        defense = MoLAGrad(copy.deepcopy(model), rank=2, adapt="conv")
        with pytest.raises(InputError, match=r"adapters reach only 0.5% .* --set coverage=0 allows it"):
            defense.fit(data, attacks("fgsm"), plan=PLAN)
        defense = MoLAGrad(model, rank=2, adapt="conv", coverage=0.001)
        with pytest.warns(UserWarning, match=r"adapters reach only 0.5% .* --set adapt=all also adapts"):
            defense.fit(data, attacks("fgsm"), plan=PLAN)
        with pytest.raises(InputError, match=r"coverage=2.0 must be from 0 to 1"):
            MoLAGrad(small(), coverage=2.0)

    @pytest.mark.parametrize("kind", ["mola-grad", "mola-router", "lorkd"])
    def test_it_is_recorded(self, kind: str, digits: Any) -> None:
        """In the spec, from which it is loaded again; records from before have none."""
        defense = registry.build(kind, vit(1), parameters={"rank": 2})
        assert "covered" not in defense.spec()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            defense.fit(
                [(digits.train.x[:12], digits.train.y[:12] % 5)], attacks("fgsm,cw:steps=1"), plan=PLAN
            )
        covered = defense.spec()["covered"]
        assert set(covered) == {"parameters", "multiply_adds"}
        assert min(covered.values()) > 0.75
        again = registry.build(kind, vit(1), parameters={"rank": 2})
        again.load_spec(defense.spec())
        again.load_state_dict(defense.state_dict())
        assert again.spec() == defense.spec()
        assert torch.equal(again.eval()(digits.test.x[:3]), defense(digits.test.x[:3]))

    def test_a_run_is_refused_before_it_begins(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the images of its data set, and nothing trained."""
        (tmp_path / "covered_little.py").write_text(
            "from torch import nn\n\ndef make(num_classes):\n"
            "    wide = nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, num_classes)\n"
            "    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.Flatten(), *wide)\n"
        )
        monkeypatch.chdir(tmp_path)
        options = {"defense": "mola-grad", "sequence": "fgsm", "model": "covered_little:make"}
        with pytest.raises(InputError, match="mola-grad: adapters reach only"):
            prepare({**options, "set": {"adapt": "conv"}})
        assert prepare(options).config.params["adapt"] is None


@pytest.mark.quick(r".*(mola|lorkd|mid).*")
@pytest.mark.parametrize("name", ["vit", "convnext", "mobilenet", "resnet"])
@pytest.mark.parametrize("kind", registry.names())
def test_every_defense_trains_every_kind_of_network(kind: str, name: str, digits: Any) -> None:
    """And its views are networks that answer."""
    network: Any = NETWORKS[name]
    torch.manual_seed(0)
    defense = registry.build(kind, network(1), seed=0)
    x, y = digits.train.x[:24], digits.train.y[:24] % 5
    data, (fgsm, cw) = [(x[:12], y[:12]), (x[12:], y[12:])], attacks("fgsm,cw:steps=1")
    stages = [[fgsm], [cw]] if defense.info.regimes[0] == "continual" else [[fgsm, cw]]
    if kind == "ibp" and name in ("vit", "convnext"):
        with pytest.raises(InputError, match=r"^ibp has no bounds for (cat|layer_norm|LayerNorm)"):
            defense.fit(data, stages[0])
        return
    before = [parameter.detach().clone() for parameter in defense.model.parameters()]
    for seen in stages:
        defense.fit(data, seen, plan=TrainPlan(epochs=2, lr=0.01, eps_warmup=0))
    assert any(
        not torch.equal(one, two) for one, two in zip(before, defense.model.parameters(), strict=False)
    )
    for attack in (None, fgsm):
        logits = defense.view(attack)(x[:2])
        assert logits.shape == (2, 5)
        assert bool(logits.isfinite().all())
