"""What strangers' models, batches and names do that ours do not: it is contained, or refused in one line."""

from __future__ import annotations

import copy
import os
import pickle
import re
import struct
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench import evaluate_model, load_run, run
from advbench.cli.main import invoke
from advbench.data import DataSet, load_dataset
from advbench.external import load_foreign
from advbench.runs.directory import plain_name
from advbench.runtime.events import Event
from advbench.runtime.failures import RunFailedError
from advbench.runtime.hashing import weights_digest
from advbench.runtime.interrupts import Interrupted
from attacks_pool import AttackInfo, InputError, pool
from defenses import AIR, TrainPlan, registry
from leaderboards import RecordError, comparable
from leaderboards.records.store import json_bytes

Network = Callable[..., nn.Sequential]
EVAL: dict[str, Any] = {"attacks": "fgsm,pgd:steps=3,square:steps=20", "points": 30, "surrogate": "none"}
EVAL |= {"threads": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with files of models in it."""
    files = {
        "strange_writer": """
            import torch
            from torch import nn

            class Writer(nn.Sequential):
                def forward(self, x):
                    x -= 0.5
                    return super().forward(x)

            def make(num_classes):
                return Writer(nn.Flatten(), nn.Linear(64, num_classes))

            def quit():
                raise SystemExit(0)

            class Quits(nn.Module):
                def __init__(self, num_classes):
                    super().__init__()

                def forward(self, x):
                    raise SystemExit(0)

            instance = nn.Flatten()
        """,
        "code": "def make(): pass",
        "strange_parts": "from strange_layers import make",
        "strange_layers": "def make(): pass",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line_of(capfd: Any, *arguments: str) -> str:
    """The one line with which a command refuses what it was given."""
    capfd.readouterr()
    assert invoke(list(arguments)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*\n", err), err
    return str(err)


class Normalising(nn.Module):
    """A model that normalises its images, in place or on a copy."""

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        if not self.in_place:
            x = x.clone()
        x -= 0.5
        x *= 2
        logits: Tensor = self.model(x)
        return logits


def test_a_model_that_writes_into_its_images(network: Network, tmp_path: Path) -> None:
    """It gets copies: the same numbers as without, and the test points stay what they are."""
    found = []
    for in_place in (True, False):
        model = Normalising(network(), in_place=in_place)
        record = comparable(
            evaluate_model(model, name="one", runs_dir=tmp_path / str(in_place), **EVAL).record
        )
        found.append((record["cells"], record["audit"]))
    assert found[0] == found[1]


def test_a_run_refuses_a_model_that_writes_into_its_images(here: Path, capfd: Any) -> None:
    """Training data would be changed, and attacks fail in the middle."""
    line = line_of(capfd, "run", "--model", "strange_writer:make", "--sequence", "fgsm")
    assert "model 'strange_writer:make' writes into the images that it is given" in line
    assert not (here / "runs").exists()


class Labelled(Tensor):
    """A kind of tensor of somebody else's, which goes on through every operation."""


def test_logits_of_another_kind(network: Network, digits: DataSet) -> None:
    """They are taken as the tensor that they are; of 16 bits they are made 32, in which losses are taken."""

    def model(x: Tensor) -> Tensor:
        logits: Tensor = network()(x).bfloat16().as_subclass(Labelled)
        return logits

    logits = load_foreign(model, digits).model(digits.test.x[:2])
    assert (type(logits), logits.dtype) == (Tensor, torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model(digits: DataSet, tmp_path: Path) -> None:
    """Its packed weights have a digest, and the audit sees that it has no gradient."""
    train = digits.train
    means = torch.stack([train.x[train.y == label].mean(0).flatten() for label in range(10)])

    def make(seed: int) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            # The nearest mean image, and a little of its own.
            net[1].weight.copy_(2 * means + 0.01 * seed)
            net[1].bias.copy_(-means.square().sum(1))
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        return quantised

    digests = [weights_digest(make(seed).state_dict()) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    record = evaluate_model(make(0), runs_dir=tmp_path, **EVAL).record
    assert "zero-gradient" in {flag.code for flag in record.audit.flags}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("strange_writer:quit", "the factory failed: SystemExit: 0"),
        ("strange_writer:Quits", "fails on images of shape (2, 1, 8, 8): SystemExit: 0"),
        ("strange_writer:instance", "is a module already: name a function or a class that makes one"),
        ("code:make", "which comes before the file of that name here: rename yours"),
        ("strange_parts:make", "(it is in the current directory: set PYTHONPATH=. to make it importable)"),
    ],
)
def test_factories_that_are_none(here: Path, capfd: Any, text: str, reason: str) -> None:
    """One line that says what would do."""
    assert reason in line_of(capfd, "eval", "--model", text)
    assert here.is_dir()


class TestNames:
    """Of runs, classes and files."""

    def test_a_date_that_is_none_is_no_number(self, capfd: Any) -> None:
        """YAML raises an error of another kind at it."""
        for value in ("2021-13-45", "[" * 2000):
            line = line_of(capfd, "run", "--set", f"lambda_i={value}")
            assert "Input should be a valid number" in line
            assert len(line) < 1000

    def test_a_long_name(self, network: Network, tmp_path: Path, capfd: Any) -> None:
        """File systems count bytes; the files of a defense could not be written."""
        made = evaluate_model(network(), name="犬" * 200, runs_dir=tmp_path / "runs", **EVAL)
        assert len(made.path.name.encode()) < 200
        assert made.record.config["defense"] == "犬" * 200
        assert plain_name("é" * 200).encode() == "é".encode() * 50
        line = line_of(capfd, "defenses", "new", "x" * 300, "--dir", str(tmp_path / "new"))
        assert "a name of 300 letters is too long for a defense: at most 100" in line
        assert not (tmp_path / "new").exists()

    def test_bytes_that_are_no_text(self, network: Network, tmp_path: Path) -> None:
        """Refused before anything is measured, not when the record is written."""
        with pytest.raises(RecordError, match="not UTF-8"):
            evaluate_model(network(), name="\udcff", runs_dir=tmp_path / "runs", **EVAL)
        assert not list((tmp_path / "runs").glob("*"))
        with pytest.raises(RecordError, match=r"udcff.* contains bytes that are not UTF-8"):
            json_bytes("\udcff")

    def test_a_class_of_such_a_name(self, tmp_path: Path) -> None:
        """The same of a folder of images."""
        from PIL import Image

        for part in ("train", "test"):
            for name in (b"one", b"\xff"):
                folder = os.fsencode(tmp_path / part) + b"/" + name
                try:
                    os.makedirs(folder)
                except OSError:
                    pytest.skip("this file system takes no such name")
                for number in range(2):
                    Image.new("L", (8, 8), number).save(Path(os.fsdecode(folder)) / f"{number}.png")
        with pytest.raises(InputError, match="a name that cannot be printed"):
            load_dataset(f"folder:{tmp_path}")


def test_a_data_set_without_test_images(tmp_path: Path) -> None:
    """IDX files of no images at all."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 0)):
        images = struct.pack(">4I", 2051, count, 28, 28) + bytes(count * 28 * 28)
        labels = struct.pack(">2I", 2049, count) + bytes(number % 10 for number in range(count))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(InputError, match="data set 'mnist': t10k contains no images"):
        load_dataset("mnist", tmp_path)


class TestBatches:
    """What ``fit`` is given."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda x, y: (x, y, y), "not tuple (Tensor, Tensor, Tensor)"),
            (lambda x, y: {"x": x, "y": y}, "not dict"),
            (lambda x, _y: x, "not Tensor"),
            (lambda x, y: (x.numpy(), y.numpy()), "not tuple (ndarray, ndarray)"),
            (lambda x, y: (x[:0], y[:0]), "batch 1 of the data is empty"),
        ],
    )
    def test_no_pairs_of_tensors(
        self, network: Network, digits: DataSet, change: Callable[..., Any], reason: str
    ) -> None:
        """One line with what was given."""
        with pytest.raises(InputError) as caught:
            self.fit(network, change(digits.train.x[:8], digits.train.y[:8]))
        expected = f"a batch must be two tensors, images and labels, {reason}"
        assert str(caught.value) == (reason if "empty" in reason else expected)

    def fit(self, network: Network, batch: Any, attacks: Any = None) -> Any:
        """The losses of a stage of one batch."""
        met = [pool.get("fgsm", eps=0.2)] if attacks is None else attacks
        return AIR(network()).fit([batch], met, plan=TrainPlan(epochs=1))

    def test_lists_of_lists_will_do(self, network: Network, digits: DataSet) -> None:
        """As collate functions make them."""
        x, y = digits.train.x[:8], digits.train.y[:8]
        assert self.fit(network, [x, y]) == self.fit(network, (x, y))

    @pytest.mark.parametrize("attacks", [pool.get("fgsm", eps=0.2), "fgsm", ["fgsm"]])
    def test_attacks_that_are_no_list(self, network: Network, digits: DataSet, attacks: Any) -> None:
        """A single attack, or its text."""
        with pytest.raises(InputError, match=r"^attacks must be a list such as \[pool\.get"):
            self.fit(network, (digits.train.x[:8], digits.train.y[:8]), attacks)


def test_copies_of_an_attack() -> None:
    """With all knobs, in either form."""
    attack = pool.get("pgd", eps=0.1, steps=7, training={"steps": 2})
    for one in (attack, attack.for_training(), attack.scaled(0.5)):
        for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert again == one


@pytest.fixture
def doubling() -> Iterator[str]:
    """An attack of a plug-in that answers in float64."""
    info = AttackInfo(name="doubling", family="noise", norm="linf", access="black-box", paper=None)

    def double(_model: nn.Module, x: Tensor, _y: Tensor, **_knobs: Any) -> Tensor:
        return x.double()

    pool.register(info)(double)
    yield info.name
    pool._entries.pop(info.name)


def test_an_attack_in_another_precision(network: Network, digits: DataSet, doubling: str) -> None:
    """Its points are brought back to that of the images, so that models take them."""
    attack = pool.get(doubling, eps=0.2)
    assert attack(network(), digits.test.x[:2], digits.test.y[:2]).dtype == torch.float32


@pytest.mark.quick(r"trades")
@pytest.mark.parametrize("name", ["trades", "mart", "n-fgsm"])
def test_a_search_of_a_defense_is_limited_too(
    name: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--attack-timeout`` sees what TRADES, MART and N-FGSM search by themselves."""
    plain = registry.build(name, network())
    forward = type(plain).forward

    def hang(self: nn.Module, x: Tensor) -> Tensor:
        while not self.training and torch.is_grad_enabled():
            torch.zeros(1)
        return forward(self, x)  # type: ignore[arg-type]

    monkeypatch.setattr(type(plain), "forward", hang)
    options: dict[str, Any] = {"sequence": "fgsm", "unseen": "none", "epochs": 1, "points": 16, "threads": 1}
    options |= {"set": {"pretrain.epochs": 1, "batch_size": 700}, "device": "cpu"}
    with pytest.raises(RunFailedError, match="attack 'fgsm' on a batch of training did not end within"):
        run(name, runs_dir=tmp_path, attack_timeout=0.3, **options)


@pytest.mark.usefixtures("short_probes")
def test_a_signal_after_the_record(
    tmp_path: Path, small_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is complete: it is not said how to go on with it."""
    import advbench.runs.directory

    remove = advbench.runs.directory.shutil.rmtree

    def stopped(path: Path, **options: Any) -> None:
        if (path.parent / "record.json").exists():
            raise Interrupted(130)
        remove(path, **options)

    monkeypatch.setattr(advbench.runs.directory.shutil, "rmtree", stopped)
    heard: list[Event] = []
    with pytest.raises(Interrupted) as caught:
        run("at", runs_dir=tmp_path, listeners=[heard.append], **small_options, points=10)
    (directory,) = tmp_path.iterdir()
    assert caught.value.how == f"run {directory.name} is complete"
    assert load_run(directory).record.status == "complete"
