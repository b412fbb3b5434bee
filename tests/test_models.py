"""The zoo, the normalisation layer, and factories of the user's own."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advbench.models import MODELS, build_model
from advbench.models.normalize import Normalize
from advbench.models.resnet import resnet18
from advbench.models.small import digits_cnn, lenet, lenet_small
from advbench.models.wideresnet import wide_resnet, wrn_28_10
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
    """Counted at the listed input; WRN-28-10 has the 36.48 M of its paper."""
    info = MODELS[name]
    channels, size, _ = map(int, info.input.split("×"))
    model = build(name, in_channels=channels, image_size=size)
    assert sum(p.numel() for p in model.parameters()) == info.parameters
    assert [child for child, _ in model.named_children()] == ["features", "classifier"]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [
        ("digits-cnn", 1, 8, 10),
        ("digits-cnn", 3, 11, 2),
        ("lenet", 1, 28, 10),
        ("lenet", 3, 12, 7),
        ("lenet", 1, (13, 30), 2),
        ("lenet-small", 1, 28, 10),
        ("lenet-small", 2, (12, 19), 3),
        ("resnet18", 1, 9, 3),
        ("resnet18", 3, (32, 16), 100),
    ],
)
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


def test_too_small_images() -> None:
    """The least size is in the message."""
    assert "'lenet' needs images of 12×12 pixels or more, got 8×8" in refused("lenet")
    assert "'digits-cnn' needs images of 4×4" in refused("digits-cnn", image_size=3)


def test_initialisation_depends_on_the_seed_alone() -> None:
    """The same weights whatever the global state, other weights for another seed."""
    first = build("digits-cnn", seed=5).state_dict()
    torch.manual_seed(123)
    again, other = build("digits-cnn", seed=5).state_dict(), build("digits-cnn", seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_global_random_state_is_untouched() -> None:
    """Of torch, NumPy and Python."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    build("resnet18", in_channels=3)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_checking_moves_no_statistics() -> None:
    """Batch norm is as freshly made, and modules that a factory froze stay frozen."""
    model = build("resnet18", in_channels=3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        assert norm.running_mean.abs().max() == 0
        assert norm.num_batches_tracked == 0


class TestNormalize:
    """The layer in front of a model."""

    def test_values(self) -> None:
        """(x − mean) / std, channel by channel."""
        layer = Normalize([0.5, 0.25], [0.5, 0.125])
        out = layer(torch.tensor([[[[1.0]], [[0.5]]]]))
        assert out.flatten().tolist() == [1.0, 2.0]
        assert not list(layer.parameters())
        assert set(layer.state_dict()) == {"mean", "std"}

    @pytest.mark.parametrize(
        ("mean", "std"),
        [([], []), ([0.5], [0.5, 0.5]), ([0.5], [0.0]), ([0.5], [-1.0]), ([float("nan")], [1.0])],
    )
    def test_refuses_bad_statistics(self, mean: list[float], std: list[float]) -> None:
        """Empty, uneven, zero, negative, not finite."""
        with pytest.raises(InputError, match="normalisation"):
            Normalize(mean, std)

    def test_refuses_to_broadcast_channels(self) -> None:
        """One channel would become three."""
        with pytest.raises(InputError, match="3 channels got images of shape"):
            Normalize([0.5] * 3, [0.5] * 3)(torch.zeros(2, 1, 4, 4))

    @pytest.mark.parametrize("factory", [digits_cnn, lenet, lenet_small, resnet18, wrn_28_10])
    def test_in_front_of_every_model(self, factory: Any) -> None:
        """``mean`` and ``std`` give the model that normalises, with otherwise the same weights."""
        torch.manual_seed(0)
        plain = factory(in_channels=2).eval()
        torch.manual_seed(0)
        normalised = factory(in_channels=2, mean=(0.5, 0.4), std=(0.2, 0.1)).eval()
        size = {digits_cnn: 8, lenet: 28, lenet_small: 28}.get(factory, 8)
        x = torch.rand(2, 2, size, size)
        with torch.no_grad():
            expected = plain(Normalize((0.5, 0.4), (0.2, 0.1))(x))
            assert torch.allclose(normalised(x), expected, atol=1e-5)
        with pytest.raises(InputError, match="both mean and std"):
            factory(in_channels=2, mean=(0.5, 0.4))


FACTORIES = """
import torch
from torch import nn

value = 3


def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


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
    (tmp_path / "own_single.py").write_text(FACTORIES)
    package = tmp_path / "own_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("from torch import nn\nLINEAR = nn.Linear\n")
    (package / "deep" / "nets.py").write_text(
        "from torch import nn\nfrom ..parts import LINEAR\nfrom own_package import parts\n"
        "def net(num_classes):\n    return nn.Sequential(nn.Flatten(), LINEAR(64, num_classes))\n"
    )
    (tmp_path / "own_namespace").mkdir()
    (tmp_path / "own_namespace" / "nets.py").write_text(FACTORIES)
    (tmp_path / "own_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "own_syntax.py").write_text("def f(:\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(3)\n")
    # The first name is taken by a package that is already imported.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "own_net.py").write_text(FACTORIES)
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
            assert build(text)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert sys.path == path

    def test_installed_ones_get_num_classes_through_their_options(self) -> None:
        """torchvision's models take ``**kwargs``."""
        model = build("torchvision.models:squeezenet1_1", in_channels=3, image_size=32, num_classes=4)
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)

    def test_image_size_is_a_pair_only_where_it_must_be(self) -> None:
        """Height before width."""
        assert build("own_single:rectangle", image_size=(8, 6))(torch.zeros(1, 1, 8, 6)).shape == (1, 10)

    def test_seeded_like_the_zoo(self) -> None:
        """The same seed gives the same weights."""
        first, again = build("own_single:linear").state_dict(), build("own_single:linear").state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)

    def test_modes_are_left_as_the_factory_set_them(self) -> None:
        """A frozen batch norm is still frozen, the rest still trains."""
        model = build("own_single:Frozen")
        assert model.training
        assert not model.get_submodule("norm").training

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
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
            (
                "own_single:lineer",
                "unknown model factory 'lineer': did you mean 'linear'? (in module own_single)",
            ),
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
