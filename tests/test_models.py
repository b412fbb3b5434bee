"""The zoo, the normalisation layer, and factories of the user's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advbench.models import MODELS, build_model, imports_code
from advbench.models.arguments import argument_of, plain_arguments
from advbench.models.cost import multiply_adds
from advbench.models.normalize import Normalize
from advbench.models.resnet import preact_resnet18, resnet18, resnet20
from advbench.models.small import digits_cnn, lenet, lenet_small
from advbench.models.torchvision import without_auxiliary
from advbench.models.wideresnet import wide_resnet, wrn_28_10, wrn_34_10
from attacks_pool.errors import InputError


def build(text: str, **changes: Any) -> nn.Module:
    """The model ``text`` for ten classes of grey 8×8 images, seed 0, but for ``changes``."""
    arguments: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "seed": 0}
    return build_model(text, **(arguments | changes))


def refused(text: str, **changes: Any) -> str:
    """The one line with which building ``text`` is refused."""
    with pytest.raises(InputError) as caught:
        build(text, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_listed(name: str) -> None:
    """Counted at the listed input; the wide networks have the 36.48 M and 46.16 M of the literature.

    Checking the logits moves no statistics.
    """
    info = MODELS[name]
    channels, size, _ = map(int, info.input.split("×"))
    model = build(name, in_channels=channels, image_size=size)
    assert sum(p.numel() for p in model.parameters()) == info.parameters
    assert [child for child, _ in model.named_children()] == ["features", "classifier"]
    assert all(module.training for module in model.modules())
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert not norm.running_mean.any()
            assert norm.num_batches_tracked == 0


FACTORIES_OF_THE_ZOO = [digits_cnn, lenet, lenet_small, resnet18]
FACTORIES_OF_THE_ZOO += [resnet20, preact_resnet18, wrn_28_10, wrn_34_10]
SHAPES: list[tuple[str, int, Any, int]] = [("digits-cnn", 1, 8, 10), ("digits-cnn", 3, 11, 2)]
SHAPES += [("lenet", 1, 28, 10), ("lenet", 3, 12, 7), ("lenet", 1, (13, 30), 2)]
SHAPES += [("lenet-small", 1, 28, 10), ("lenet-small", 2, (12, 19), 3)]
SHAPES += [("resnet18", 1, 9, 3), ("resnet18", 3, (32, 16), 100)]
SHAPES += [("resnet-20", 1, 9, 3), ("resnet-20", 3, (32, 16), 100), ("preact-resnet-18", 4, (16, 9), 5)]


@pytest.mark.parametrize(("name", "channels", "size", "classes"), SHAPES)
def test_shapes(name: str, channels: int, size: int | tuple[int, int], classes: int) -> None:
    """Any channels, classes and (for those that need it) size, square or not."""
    model = build(name, num_classes=classes, in_channels=channels, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert model.eval()(torch.rand(3, channels, height, width)).shape == (3, classes)


def test_wide_resnet_is_pre_activation() -> None:
    """The count of WRN-16-1, worked by hand: batch norms as wide as the *input* of each convolution."""
    model = wide_resnet(16, 1)
    stem, groups, head = 3 * 16 * 9, 0, 128 + 64 * 10 + 10
    for before, after in ((16, 16), (16, 32), (32, 64)):
        first = 2 * before + 9 * before * after + 2 * after + 9 * after * after
        second = 2 * (2 * after + 9 * after * after)
        groups += first + second + (before * after if before != after else 0)
    assert sum(p.numel() for p in model.parameters()) == stem + groups + head
    assert model.eval()(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_resnet20_is_the_small_one_of_the_paper() -> None:
    """19 convolutions of 3×3 and one linear layer in depth, and the 41 M multiply-adds of 32×32 pixels."""
    model = build("resnet-20", in_channels=3, image_size=32).eval()
    deep = [one for one in model.modules() if isinstance(one, nn.Conv2d) and one.kernel_size == (3, 3)]
    assert len(deep) == 19
    assert round(multiply_adds(model, torch.zeros(1, 3, 32, 32)) / 1e6) == 41


def test_preact_resnet_normalises_before_it_convolves() -> None:
    """The stem has no batch norm, a block adds without a last ReLU, and one batch norm ends the features."""
    features = build("preact-resnet-18", in_channels=3, image_size=32).get_submodule("features")
    assert [name for name, _ in features.named_children()] == [
        "conv",
        *(f"layer{n}" for n in range(1, 5)),
        "bn",
        "relu",
    ]
    assert bool((features[:-2](torch.randn(2, 3, 16, 16)) < 0).any())


@pytest.mark.parametrize("name", ["digits-cnn", "own_single:linear"])
@pytest.mark.usefixtures("project")
def test_initialisation_depends_on_the_seed_alone(name: str, global_randomness: Callable[[], bool]) -> None:
    """The same weights whatever the global state, which stays; other weights for another seed."""
    first = build(name, seed=5).state_dict()
    assert global_randomness()
    torch.manual_seed(123)
    again, other = build(name, seed=5).state_dict(), build(name, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


class TestNormalize:
    """The layer in front of a model."""

    def test_values(self) -> None:
        """(x − mean) / std, channel by channel; one channel does not become three."""
        layer = Normalize([0.5, 0.25], [0.5, 0.125])
        out = layer(torch.tensor([[[[1.0]], [[0.5]]]]))
        assert out.flatten().tolist() == [1.0, 2.0]
        assert not list(layer.parameters())
        assert set(layer.state_dict()) == {"mean", "std"}
        with pytest.raises(InputError, match="2 channels got images of shape"):
            layer(torch.zeros(2, 1, 4, 4))

    @pytest.mark.parametrize(
        ("mean", "std"),
        [([], []), ([0.5], [0.5, 0.5]), ([0.5], [0.0]), ([0.5], [-1.0]), ([float("nan")], [1.0])],
    )
    def test_refuses_bad_statistics(self, mean: list[float], std: list[float]) -> None:
        """Empty, uneven, zero, negative, not finite."""
        with pytest.raises(InputError, match="normalisation"):
            Normalize(mean, std)

    @pytest.mark.quick(r"digits_cnn|lenet|lenet_small|resnet20")
    @pytest.mark.parametrize("factory", FACTORIES_OF_THE_ZOO)
    def test_in_front_of_every_model(self, factory: Any) -> None:
        """``mean`` and ``std`` give the model that normalises, with otherwise the same weights."""
        models = []
        for given in ({}, {"mean": (0.5, 0.4), "std": (0.2, 0.1)}):
            torch.manual_seed(0)
            models.append(factory(in_channels=2, **given).eval())
        size = 28 if factory in (lenet, lenet_small) else 8
        x = torch.rand(2, 2, size, size)
        with torch.no_grad():
            expected = models[0](Normalize((0.5, 0.4), (0.2, 0.1))(x))
            assert torch.allclose(models[1](x), expected, atol=1e-5)
        with pytest.raises(InputError, match="both mean and std"):
            factory(in_channels=2, mean=(0.5, 0.4))


FACTORIES = """
import torch
from torch import nn

value = 3


def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def with_hidden(num_classes, hidden=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, num_classes))


def everything(in_channels, *, image_size, **options):
    assert options == {"num_classes": 10}, options
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, 10))


def rectangle(image_size=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], 10))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1).eval()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(self.norm(x).flatten(1))


def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def text():
    return "a model"


def fails():
    raise RuntimeError("no weights\\nand a second line")


def wrong_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))


class Pair(Frozen):
    def forward(self, x):
        return super().forward(x), x
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules of the user's, which leave ``sys.modules`` again afterwards."""
    nets = "from torch import nn\nfrom ..parts import LINEAR\nfrom own_package import parts\n"
    nets += "def net(num_classes):\n    return nn.Sequential(nn.Flatten(), LINEAR(64, num_classes))\n"
    files = {
        "own_single": FACTORIES,
        "own_package/__init__": "",
        "own_package/parts": "from torch import nn\nLINEAR = nn.Linear\n",
        "own_package/deep/nets": nets,
        "own_namespace/nets": FACTORIES,
        "own_broken": "import a_module_that_is_not_there\n",
        "own_syntax": "def f(:\n",
        "own_exit": "raise SystemExit(3)\n",
        # The first name is taken by a package that is already imported.
        "torch/own_net": FACTORIES,
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_") or name == "torch.own_net":
            del sys.modules[name]


@pytest.mark.usefixtures("project")
class TestFactories:
    """``package.module:factory``."""

    @pytest.mark.parametrize(
        "text",
        [
            "own_single:linear",
            "own_single:everything",
            "own_single:Frozen",
            "own_package.deep.nets:net",
            "own_namespace.nets:linear",
            "torch.own_net:linear",
        ],
    )
    def test_from_the_current_directory(self, text: str) -> None:
        """A file, a package with relative imports, a namespace package, a name that is taken; twice each."""
        path = list(sys.path)
        for _ in range(2):
            model = build(text)
            assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
            assert model.training
            # What a factory freezes stays frozen.
            assert text != "own_single:Frozen" or not model.get_submodule("norm").training
        assert sys.path == path

    def test_what_they_are_given(self) -> None:
        """``num_classes`` through ``**kwargs``, as torchvision's take it; a pair of sizes if need be."""
        model = build("torchvision.models:squeezenet1_1", in_channels=3, image_size=32, num_classes=4)
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
        assert build("own_single:rectangle", image_size=(8, 6))(torch.zeros(1, 1, 8, 6)).shape == (1, 10)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("lenet", "'lenet' needs images of 12×12 pixels or more, got 8×8"),
            ("lenett", "unknown model 'lenett': did you mean 'lenet'? (allowed: digits-cnn, lenet"),
            ("lenett", "or package.module:factory"),
            ("own_single:", "not of the form package.module:factory"),
            (":linear", "not of the form package.module:factory"),
            ("own..single:linear", "not of the form package.module:factory"),
            ("own_single:linear:again", "not of the form package.module:factory"),
            ("./own_single.py:linear", "not of the form package.module:factory"),
            ("own_absent:linear", "no module 'own_absent', neither installed nor"),
            ("own_package.absent:linear", "no module 'own_package.absent'"),
            ("torch.own_absent:linear", "no module 'torch.own_absent'"),
            ("own_broken:net", "importing own_broken failed: ModuleNotFoundError: No module named 'a_module"),
            ("own_syntax:net", "importing own_syntax failed: SyntaxError"),
            ("own_exit:net", "importing own_exit failed: SystemExit: 3"),
            ("own_single:lineer", "unknown model factory 'lineer': did you mean 'linear'? (in mod"),
            ("own_single:value", "value is int, expected a function or a class"),
            ("own_single:text", "the factory gave str, expected a torch.nn.Module"),
            ("own_single:fails", "the factory failed: RuntimeError: no weights"),
            ("own_single:fixed", "logits of shape (2, 3) for images of shape (2, 1, 8, 8), expected (2, 10)"),
            ("own_single:wrong_size", "fails on images of shape (2, 1, 8, 8): RuntimeError"),
            ("own_single:Pair", "gives tuple, expected a tensor of logits"),
        ],
    )
    def test_refusals(self, text: str, reason: str) -> None:
        """Each in one line, with what was given and what is wrong."""
        assert reason in refused(text)


class TestTorchvision:
    """``torchvision:NAME``, as ``advbench eval`` and ``advbench run`` take it."""

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_channels_and_classes_are_the_data_sets(self, channels: int) -> None:
        """The first convolution fits the images, and the seed determines all weights."""
        one, two = (
            build("torchvision:squeezenet1_1", in_channels=channels, image_size=32, num_classes=4)
            for _ in range(2)
        )
        assert one(torch.rand(2, channels, 32, 32)).shape == (2, 4)
        state = two.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())

    def test_images_it_cannot_take(self) -> None:
        """The name, the images and torch's reason in one line."""
        assert "model 'torchvision:alexnet' fails on images of shape" in refused("torchvision:alexnet")
        assert "did you mean 'resnet1" in refused("torchvision:resnet19")

    def test_it_names_no_code(self) -> None:
        """So that a record or a config with it needs no trust."""
        assert not imports_code("torchvision:resnet18")
        assert not imports_code("lenet")
        assert imports_code("torchvision.models:resnet18")

    def test_auxiliary_heads_go(self) -> None:
        """GoogLeNet then returns logits in training too."""
        model = without_auxiliary(build("torchvision:googlenet", in_channels=3, image_size=32)).train()
        assert isinstance(model(torch.rand(2, 3, 32, 32)), torch.Tensor)
        assert not any(name.startswith("aux") for name in model.state_dict())

    def test_a_transformer_is_made_for_the_size_of_the_images(self) -> None:
        """It takes square images alone, and weights are not the user's to choose."""
        model = build("torchvision:vit_b_32", in_channels=1, image_size=32, num_classes=3).eval()
        with torch.no_grad():
            assert model(torch.rand(1, 1, 32, 32)).shape == (1, 3)
        said = refused("torchvision:vit_b_32", in_channels=3, image_size=(32, 64))
        assert said == "model 'torchvision:vit_b_32' takes square images, got 32×64"
        said = refused("torchvision:resnet18", model_args={"weights": "DEFAULT"})
        assert "argument 'weights' cannot be given" in said


class TestArguments:
    """``--model-arg``: further arguments of a factory."""

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            *[("2", 2), ("1e-3", 0.001), ("true", True), ("False", False), ("none", None), ("gelu", "gelu")],
            *[
                ("2,2", [2, 2]),
                ("[1, [2.5]]", [1, [2.5]]),
                ("'2'", "2"),
                ("{'a': 1}", {"a": 1}),
                ("a,b", "a,b"),
            ],
        ],
    )
    def test_values(self, text: str, value: object) -> None:
        """Numbers, words and lists as Python writes them; everything else is text."""
        assert argument_of(text) == value
        assert type(argument_of(text)) is type(value)

    def test_plain_values(self) -> None:
        """NumPy's numbers and tuples become JSON; what JSON does not have is refused."""
        given = plain_arguments({"width": np.int64(2), "rate": np.float32(0.5), "sizes": (1, 2)})
        assert given == {"width": 2, "rate": 0.5, "sizes": [1, 2]}
        assert json.loads(json.dumps(given)) == given
        for value in (float("nan"), nn.ReLU(), {1: 2}, b"x"):
            with pytest.raises(ValueError, match=r"^model_args.width="):
                plain_arguments({"width": value})

    def test_of_the_zoo(self) -> None:
        """A network of the zoo takes normalisation."""
        plain, shifted = build("digits-cnn"), build("digits-cnn", model_args={"mean": [0.5], "std": [0.2]})
        x = torch.rand(2, 1, 8, 8)
        assert torch.allclose(shifted(x), plain((x - 0.5) / 0.2), atol=1e-5)

    @pytest.mark.usefixtures("project")
    def test_of_ones_own_factory(self) -> None:
        """Its parameters, or whatever it takes as ``**kwargs``."""
        model = build("own_single:with_hidden", model_args={"hidden": 5})
        assert [tuple(p.shape) for p in model.parameters()] == [(5, 64), (5,), (10, 5), (10,)]
        said = refused("own_single:with_hidden", model_args={"hiden": 5})
        assert "unknown argument of own_single:with_hidden 'hiden': did you mean 'hidden'?" in said
        assert "the argument 'num_classes' cannot be given" in refused(
            "own_single:with_hidden", model_args={"num_classes": 5}
        )

    def test_of_torchvision(self) -> None:
        """They reach the constructor, whose refusal is one line."""
        narrow = build("torchvision:mobilenet_v2", image_size=32, model_args={"width_mult": 0.25})
        assert sum(p.numel() for p in narrow.parameters()) < 300_000
        assert "unexpected keyword argument 'wide'" in refused("torchvision:resnet18", model_args={"wide": 2})


class TestTimm:
    """``timm:NAME``, as ``torchvision:NAME``."""

    def test_it_names_no_code(self) -> None:
        """So that a record or a config with it needs no trust."""
        assert not imports_code("timm:resnet18")
        assert imports_code("timm.models:resnet18")

    def test_without_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line says how to get it."""
        monkeypatch.setitem(sys.modules, "timm", None)
        assert refused("timm:resnet18") == "timm is not installed: pip install 'advbench[timm]'"

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}),
            ("resnet18", {}),
            ("mobilenetv2_050", {"drop_rate": 0.1}),
        ],
    )
    def test_channels_classes_and_size_are_the_data_sets(self, name: str, given: dict[str, Any]) -> None:
        """Also for a network that is made for one size; the seed determines all weights."""
        pytest.importorskip("timm")
        one, two = (
            build(f"timm:{name}", num_classes=3, image_size=(16, 8), model_args=given).eval()
            for _ in range(2)
        )
        assert one(torch.rand(2, 1, 16, 8)).shape == (2, 3)
        state = two.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())

    def test_refusals(self) -> None:
        """Unknown names, tags of weights, names of a hub, and arguments that read weights."""
        pytest.importorskip("timm")
        assert "unknown timm model 'resnet18.a1_in1k': did you mean 'resnet18'?" in refused(
            "timm:resnet18.a1_in1k"
        )
        assert "unknown timm model 'hf-hub:a/b'" in refused("timm:hf-hub:a/b")
        for key in ("pretrained", "checkpoint_path", "pretrained_cfg", "img_size", "in_chans"):
            said = refused("timm:resnet18", model_args={key: "x"})
            assert f"argument {key!r} cannot be given" in said
        assert "unexpected keyword argument 'wide'" in refused("timm:resnet18", model_args={"wide": 2})
        assert "fails on images of shape (2, 1, 8, 8)" in refused("timm:vit_tiny_patch16_224")
