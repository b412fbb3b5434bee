"""Models that were trained elsewhere: found, loaded without running pickles, and asked for logits."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import socket
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from advbench.data import DataSet
from advbench.external import Foreign, ForeignModel, Source, load_foreign
from advbench.external.model_files import _quiet, _tensors_only
from advbench.external.wrapper import probed_batch
from advbench.external.zoos import _alias
from advbench.models.torchvision import from_torchvision, offline
from advbench.models.weights import load_state, read_state
from advbench.runtime.hashing import weights_digest
from attacks_pool import InputError, pool
from attacks_pool.fast.copy import fold

Network = Callable[..., nn.Sequential]
FACTORY = """
from torch import nn
def make(num_classes, in_channels, image_size):
    linear = nn.Linear(4 * (image_size - 2) ** 2, num_classes)
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), linear)
"""


@pytest.fixture
def net(network: Network) -> nn.Sequential:
    """A network in eval mode with batch norm, and statistics that batch norm must keep."""
    model = network(norm=True)
    with torch.no_grad():
        model(torch.rand(64, 1, 8, 8))
    return model.eval()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the user's own with a factory in it."""
    (tmp_path / "outside_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("outside_models", None)


def script(model: nn.Module, path: Path, *, traced: int = 0) -> Path:
    """``model`` as TorchScript, traced with a batch of so many or compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.jit.trace(model, torch.rand(traced, 1, 8, 8)) if traced else torch.jit.script(model)
        torch.jit.save(made, str(path))
    return path


def exported(model: nn.Module, path: Path, **options: Any) -> Path:
    """``model`` as torch.export.save writes it, from a batch of four."""
    with _quiet():
        torch.export.save(torch.export.export(model, (torch.rand(4, 1, 8, 8),), **options), path)
    return path


def refused(source: Any, data: DataSet) -> str:
    """The line with which a model is refused."""
    with pytest.raises(InputError) as error:
        load_foreign(source, data)
    assert "\n" not in str(error.value)
    return str(error.value)


def agrees(foreign: Foreign, model: nn.Module, x: torch.Tensor) -> bool:
    """Whether logits and input gradients are those of ``model``, also in batches of one."""
    outcomes = []
    for one in (model, foreign.model):
        images = x.clone().requires_grad_()
        logits = one(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
        outcomes.append((logits.detach(), gradient))
    (logits, gradient), (found, slope) = outcomes
    alone = torch.cat([foreign.model(image[None]) for image in x])
    return all(
        torch.allclose(left, right, atol=1e-5)
        for left, right in ((logits, found), (gradient, slope), (logits, alone.detach()))
    )


class Rigid(nn.Module):
    """Takes batches of four and no others, as a trace with a reshape in it does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.inner(x.view(4, 1, 8, 8))
        return logits


# Files.


def of_any_size(size: int | None) -> dict[str, Any]:
    dims = {} if size is None else {"min": 2, "max": size}
    return {"dynamic_shapes": ({0: torch.export.Dim("batch", **dims)},)}


FILES: dict[str, tuple[Callable[[nn.Module, Path], Path], set[tuple[int, int | None]]]] = {
    "scripted": (lambda net, to: script(net, to / "net.ts"), {(1, None)}),
    "traced": (lambda net, to: script(net, to / "net.ts", traced=3), {(1, None)}),
    "traced for four": (lambda net, to: script(Rigid(net), to / "net.pt", traced=4), {(4, 4)}),
    "exported for four": (lambda net, to: exported(net, to / "net.pt2"), {(4, 4)}),
    "exported for 2 to 7": (lambda net, to: exported(net, to / "net.pt2", **of_any_size(7)), {(2, 7)}),
    "exported for all": (
        lambda net, to: exported(net, to / "net.pt2", **of_any_size(None)),
        {(1, None), (2, None)},
    ),
}
"""How each kind of file is written, and the batch sizes that it may take."""


@pytest.mark.parametrize("kind", FILES)
def test_files_of_every_kind(kind: str, net: nn.Sequential, digits: DataSet, tmp_path: Path) -> None:
    """Smaller batches are filled up, larger ones split."""
    write, batches = FILES[kind]
    foreign = load_foreign(Source(str(write(net, tmp_path)), trust=True), digits)
    assert foreign.model.batch in batches
    assert foreign.name == "net"
    assert agrees(foreign, net, digits.test.x[:11])
    foreign.model.eval().train()


def test_attacks_reach_the_pixels_of_every_kind(net: nn.Sequential, digits: DataSet, tmp_path: Path) -> None:
    """PGD through a file finds what it finds through the module."""
    attack = pool.get("pgd", eps=0.2, steps=3)
    x, y = digits.test.x[:6], digits.test.y[:6]
    expected = attack(net, x, y, generator=torch.Generator().manual_seed(1))
    for path in (script(net, tmp_path / "net.pt"), exported(net, tmp_path / "net.pt2")):
        model = load_foreign(Source(str(path), trust=True), digits).model
        found = attack(model, x, y, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, expected)


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.pt2", "bomb.ts"])
def test_pickles_are_not_run(digits: DataSet, tmp_path: Path, name: str) -> None:
    """As a model, in torch's archive or bare; and as weights."""
    fired = tmp_path / "fired"
    path = tmp_path / name
    for save in (torch.save, lambda value, to: to.write_bytes(pickle.dumps(value))):
        save(Bomb(fired), path)
        assert "not a " in refused(Source(str(path)), digits)
        with pytest.raises(InputError, match="other pickles are not read"):
            read_state(path)
    torch.save(Bomb(fired), path)
    with _tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not fired.exists()
    torch.load(path, weights_only=False)
    assert fired.exists()


@pytest.mark.parametrize("name", ["../x", "m/../../x", "/x", "C:\\x", "..\\x"])
def test_archives_that_lead_elsewhere(net: nn.Sequential, digits: DataSet, tmp_path: Path, name: str) -> None:
    """Refused before anything of them is read, as a model and as weights; sound archives are not."""
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    script(net, tmp_path / "model.pt")
    for file in ("weights.pt", "model.pt"):
        with zipfile.ZipFile(tmp_path / file, "a") as archive:
            archive.writestr(name, "anything")
    assert "leads out of the archive" in refused(Source(str(tmp_path / "model.pt")), digits)
    with pytest.raises(InputError, match="leads out of the archive"):
        read_state(tmp_path / "weights.pt")


def test_files_that_are_no_models(net: nn.Sequential, digits: DataSet, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "module.pt")
    (tmp_path / "text.pt2").write_text("no archive")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    damaged = script(net, tmp_path / "damaged.pt")
    wide = exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "flat.pt2")
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(b"__torch__", b"__tarch__"))
    expected = {
        "nowhere.pt": "there is no such file",
        "module.pt": "a pickle could run any code",
        "text.pt2": "is not a program of torch.export.save",
        "net.safetensors": "contains only weights: give --model package.module:factory --weights",
        "damaged.pt": "cannot be loaded: ",
    }
    for name, line in expected.items():
        assert line in refused(Source(str(tmp_path / name), trust=True), digits)
    assert "--weights goes with a factory" in refused(Source(str(wide), weights=wide), digits)


def test_a_program_for_other_images(digits: DataSet, tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(75, 10))
    with _quiet():
        torch.export.save(torch.export.export(flat, (torch.rand(4, 3, 5, 5),)), tmp_path / "a.pt2")
    line = refused(Source(str(tmp_path / "a.pt2"), trust=True), digits)
    assert "was exported for images of shape (3, 5, 5), the data set has (1, 8, 8)" in line


# Code and weights.


def test_a_factory_outside_with_weights(place: Path, digits: DataSet) -> None:
    fresh = load_foreign(Source("outside_models:make"), digits)
    weights = {key: torch.full_like(value, 0.01) for key, value in fresh.model.inner.state_dict().items()}  # type: ignore[union-attr]
    save_file(weights, place / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, "w.pt")
    first = load_foreign(Source("outside_models:make", weights=place / "w.safetensors"), digits)
    other = load_foreign(Source("outside_models:make", weights=Path("w.pt")), digits)
    for foreign in (first, other):
        assert all(
            float(value.detach().mean()) == pytest.approx(0.01) for value in foreign.model.parameters()
        )
    digest = hashlib.sha256((place / "w.safetensors").read_bytes()).hexdigest()
    assert first.origin["weights_sha256"] == digest
    assert first.origin["state_sha256"] == other.origin["state_sha256"] != fresh.origin["state_sha256"]
    assert first.origin["weights"] == "w.safetensors"
    assert fresh.origin["weights"] is None


def test_fresh_weights_depend_on_the_seed(place: Path, digits: DataSet) -> None:
    digests = [
        load_foreign(Source("outside_models:make"), digits, seed=seed).origin["state_sha256"]
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert place.is_dir()


def test_weights_that_do_not_fit(net: nn.Sequential, digits: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = net.state_dict()
    cases = {
        "1 missing (0.bias)": {key: value for key, value in state.items() if key != "0.bias"},
        "1 unknown (extra)": {**state, "extra": torch.zeros(1)},
        "1 of another size (0.bias (3,) for (8,))": {**state, "0.bias": torch.zeros(3)},
    }
    for line, wrong in cases.items():
        with pytest.raises(InputError) as error:
            load_state(net, wrong, path)
        assert line in str(error.value)
    load_state(net, {**state, "extra": torch.zeros(1)}, path, spare=("extra",))
    path.write_bytes(b"nothing")
    assert "cannot be read" in refused(Source("digits-cnn", weights=path), digits)
    assert "no such file" in refused(Source("digits-cnn", weights=tmp_path / "no.pt"), digits)
    torch.save([1, 2], tmp_path / "list.pt")
    assert "contain no named tensors" in refused(Source("digits-cnn", weights=tmp_path / "list.pt"), digits)


def test_digests_tell_models_apart(network: Network) -> None:
    first, same, other = network(), network(), network(seed=1)
    digests = [weights_digest(net.state_dict()) for net in (first, same, other)]
    assert digests[0] == digests[1] != digests[2]
    same[0].bias.data[0] += 1e-6
    assert weights_digest(same.state_dict()) != digests[0]
    assert weights_digest(nn.BatchNorm1d(2).state_dict()) != ""


def test_normalisation_before_the_model(net: nn.Sequential, digits: DataSet, tmp_path: Path) -> None:
    path = str(exported(net, tmp_path / "net.pt2"))
    foreign = load_foreign(Source(path, mean=(0.5,), std=(0.25,), trust=True), digits)
    x = digits.test.x[:5]
    torch.testing.assert_close(foreign.model(x), net((x - 0.5) / 0.25))
    assert foreign.origin["mean"] == [0.5]
    foreign.model.eval()
    assert "1 means and 0 deviations" in refused(Source(path, mean=(0.5,), trust=True), digits)
    assert "1 means and 2 deviations" in refused(
        Source(path, mean=(0.5,), std=(1.0, 1.0), trust=True), digits
    )


# Logits and nothing else.

WRONG: dict[str, tuple[Any, str]] = {
    "more": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)),
        "gives 1000 logits an image, more than the 10",
    ),
    "fewer": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "gives 3 logits an image, fewer than the 10"),
    "map": (nn.Conv2d(1, 10, 3), "gives a tensor of shape (2, 10, 6, 6), expected logits (2, 10)"),
    "flat": (lambda x: x.sum(), "gives a tensor of shape (), expected logits (2, 10)"),
    "classes": (lambda x: torch.zeros(len(x), 10).long(), "gives int64 numbers, expected logits"),
    "tuple": (lambda x: (x, x), "gives tuple, expected a tensor of logits"),
    "array": (lambda x: x.numpy(), "gives ndarray, expected a tensor"),
    "nothing": (lambda _x: None, "gives NoneType, expected a tensor"),
    "broken": (nn.Linear(3, 10), "fails on images of shape (2, 1, 8, 8): RuntimeError: "),
    "text": (3, "a model is a text, a torch.nn.Module or a function, not int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_gives_no_logits(case: str, digits: DataSet) -> None:
    model, line = WRONG[case]
    assert line in refused(model, digits)


def test_a_model_that_breaks_later(digits: DataSet) -> None:
    """Once it is under attack, an error is still one line."""
    asked: list[int] = []

    def tired(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        if len(asked) > 2:
            raise ValueError("enough\nof this")
        return x.flatten(1)[:, :10]

    model = load_foreign(tired, digits).model
    with pytest.raises(
        InputError, match=r"model 'tired' fails on images of shape \(5, 1, 8, 8\): ValueError: enough$"
    ):
        pool.get("fgsm", eps=0.1)(model, digits.test.x[:5], digits.test.y[:5])


def test_memory_that_runs_out_is_no_mistake_of_the_model() -> None:
    def hungry(_x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        ForeignModel(hungry, "hungry", 10)(torch.zeros(1, 1, 8, 8))


def test_a_users_module_is_left_as_it_was(network: Network, digits: DataSet) -> None:
    model = network(norm=True)
    model[3].eval()
    before = weights_digest(model.state_dict())
    load_foreign(model, digits)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert weights_digest(model.state_dict()) == before


def test_batch_norm_behind_the_wrapper_is_folded() -> None:
    """The search's faster form sees through it."""
    inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    folded = fold(ForeignModel(inner, "x", 10).eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_probing_the_batch_size() -> None:
    def only(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x.view(size, 4)

    assert probed_batch(nn.Identity(), (4,)) == (1, None)
    assert probed_batch(only(64), (4,)) == (64, 64)
    assert probed_batch(nn.BatchNorm1d(4), (4,)) == (2, None)
    assert probed_batch(only(63), (4,)) == (1, None)


# Zoos.


def test_torchvision_models_fit_the_classes() -> None:
    model = from_torchvision("squeezenet1_1", 7).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(InputError, match="unknown torchvision model 'resnet19': did you mean 'resnet1"):
        from_torchvision("resnet19", 7)


def test_torchvision_on_images_it_cannot_take(digits: DataSet) -> None:
    line = refused(Source("torchvision:alexnet"), digits)
    assert "model 'torchvision:alexnet' fails on images of shape (2, 1, 8, 8): RuntimeError" in line


def test_other_texts_are_refused(digits: DataSet, tmp_path: Path) -> None:
    assert "unknown model 'digits-cnm': did you mean 'digits-cnn'?" in refused(Source("digits-cnm"), digits)
    assert "unknown threat 'linff'" in refused(Source("digits-cnn", threat="linff"), digits)
    assert "it goes with robustbench:NAME" in refused(Source("digits-cnn", model_dir=tmp_path), digits)
    assert "it goes with robustbench:NAME" in refused(Source("digits-cnn", threat="l2"), digits)
    assert "no module 'nowhere_at_all'" in refused(Source("nowhere_at_all:make"), digits)


def test_nothing_reaches_a_network() -> None:
    with offline(), pytest.raises(OSError, match="nothing is downloaded"):
        socket.create_connection(("localhost", 9))
    assert socket.create_connection.__module__ == "socket"


def test_an_alias_leaves_nothing_behind() -> None:
    real = pytest.importorskip("pyautoattack")
    with _alias("advbench_no_such_name", "pyautoattack"):
        assert importlib.import_module("advbench_no_such_name") is real
    assert not [name for name in sys.modules if name.startswith("advbench_no_such")]
    with _alias("email", "pyautoattack"):
        assert importlib.import_module("email") is not real
    with _alias("advbench_no_such_name", "advbench_no_such_package"):
        assert "advbench_no_such_name" not in sys.modules
