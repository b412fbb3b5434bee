"""``advbench eval``: models trained elsewhere get the verifier, the audit, a record and a leaderboard."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from advbench import evaluate_model, load_run, run
from advbench.audit.surrogates import plain_surrogate
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.data import DataSet, Split, load_dataset
from advbench.evaluation.evaluate import evaluate
from advbench.runs.saved import Run
from attacks_pool import AttackInfo, InputError, pool
from attacks_pool.registry import Entry
from leaderboards import Record, comparable, read_outcomes, read_record, rows
from leaderboards.statistics.metrics import METRICS

Network = Callable[..., nn.Sequential]
QUICK = ["--attacks", "fgsm,pgd:steps=2", "--points", "20", "--threads", "1"]
OUTSIDE = """
import torch
from torch import nn
def make(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size ** 2, num_classes))
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))
def pair():
    class Pair(nn.Module):
        def forward(self, x): return x, x
    return Pair()
def late():
    class Late(nn.Module):
        asked = 0
        def forward(self, x):
            self.asked += 1
            if self.asked > 6: raise ValueError("tired\\nof it")
            return x.flatten(1)[:, :10]
    return Late()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_run: Run) -> Iterator[Path]:
    """A user's directory: a factory, weights for it, photographs, a pickle, a finished run of ours."""
    place = tmp_path_factory.mktemp("place")
    (place / "outside.py").write_text(OUTSIDE)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(10, 64, generator=generator) - 0.5
    save_file({"1.weight": weight, "1.bias": torch.zeros(10)}, place / "w.safetensors")
    torch.save(nn.Flatten(), place / "pickle.pt")
    draw = np.random.RandomState(0)
    for split, count in (("train", 3), ("test", 2)):
        for label in range(3):
            folder = place / "photos" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.randint(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    shutil.copytree(small_run.path, place / "ours")
    yield place
    sys.modules.pop("outside", None)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory, as the current one."""
    monkeypatch.chdir(place)
    return place


def call(capfd: Any, *arguments: str) -> str:
    """What a command prints."""
    assert invoke(list(arguments)) == 0, capfd.readouterr().err
    return str(capfd.readouterr().out)


# What is measured.


@pytest.mark.usefixtures("short_probes")
def test_a_model_outside_the_project(here: Path, tmp_path: Path, capfd: Any) -> None:
    """Its record has R's one row, counts that outcomes agree with, the audit and where it came from."""
    given = ["eval", "--model", "outside:make", "--weights", "w.safetensors", *QUICK]
    out = call(capfd, *given, "--runs-dir", str(tmp_path))
    assert "Robust accuracy in %: outside:make · digits · seed 0" in " ".join(out.split())
    assert "stage" not in out
    (directory,) = tmp_path.iterdir()
    record = read_record(directory)
    config = record.config
    assert (record.regime, config["sequence"], config["model"]) == ("eval", [], "evaluated models")
    assert [cell.stage for cell in record.cells] == [0, 0, 0]
    assert {entry.role for entry in record.attacks} == {"eval"}
    clean, robust = read_outcomes(directory / "outcomes.npz")
    assert (clean.shape, robust.shape) == ((1, 20), (1, 2, 20))
    assert [cell.robust for cell in record.cells] == [clean.sum(), *robust[0].sum(1)]
    assert set(record.metrics) == set(METRICS)
    assert record.metrics["average_robust_accuracy"] == pytest.approx(robust[0].mean())
    assert record.metrics["worst_case_accuracy"] == robust[0].all(0).mean()
    assert record.metrics["forgetting"] is None
    assert sum(row.n for row in record.per_class) == 20
    assert (directory / record.stages[0].weights).read_bytes() == (here / "w.safetensors").read_bytes()
    assert record.stages[0].spec["weights_sha256"]
    assert record.cost.parameters == 650
    assert len(record.audit.checks) > 5
    assert call(capfd, "show", str(directory)).splitlines()[0] == out.splitlines()[0]


SHADE = """
from attacks_pool import register
from attacks_pool.metadata import AttackInfo

@register(AttackInfo(name="own-shade", family="noise", norm="linf", access="black-box", paper=None))
def shade(model, x, y, *, eps, generator, early_stop):
    return (x - eps).clamp(0, 1)
"""


@pytest.mark.usefixtures("short_probes")
@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_workers_meet_an_attack_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its place, it is measured by the workers themselves, as by one process."""
    pool.names()
    monkeypatch.setattr(pool, "_entries", dict(pool._entries))
    Path("own_shade.py").write_text(SHADE)
    command = ["eval", "--model", "outside:make", "--attacks", "own_shade:shade:eps=0.4", "--points", "20"]
    command += ["--threads", "1", "--surrogate", "none", "--device", "cpu"]
    found = []
    for place in ("one", "two"):
        runs_dir = tmp_path / place
        more = ["--runs-dir", str(runs_dir)] + (["--workers", "2"] if place == "two" else [])
        assert invoke([*command, *more]) == 0
        (path,) = runs_dir.iterdir()
        assert "measured here" not in (path / "log.jsonl").read_text()
        found.append(comparable(read_record(path)))
    assert found[0] == found[1]
    assert found[0]["attacks"][0]["text"] == "own-shade:eps=0.4"
    assert found[0]["cells"][1]["n"] == 20


@pytest.mark.usefixtures("short_probes")
def test_the_numbers_are_the_evaluators(
    digits: DataSet, network: Network, tmp_path: Path, global_randomness: Callable[[], bool]
) -> None:
    """The same cells as the evaluation contract gives; the module and the random state stay as they were."""
    model = network(norm=True)
    model[3].eval()
    given: dict[str, Any] = {"attacks": ["fgsm", "pgd:steps=3"], "points": 30, "seed": 4, "name": "mine"}
    run, again = (evaluate_model(model, runs_dir=tmp_path, **given) for _ in range(2))
    assert [module.training for module in model] == [True, True, True, False, True]
    assert global_randomness()
    attacks = [(attack, 30) for attack in pool.sequence("fgsm,pgd:steps=3", budget="digits")]
    few = Split(digits.test.x[:30], digits.test.y[:30])
    row = evaluate(lambda _: model.eval(), few, attacks, stage=0, seed=4)
    assert [cell.robust for cell in run.record.cells] == [cell.robust for cell in row.cells]
    assert run.record.config["defense"] == "mine"
    assert run.record.stages[0].spec["copied"] is False
    assert comparable(again.record) == comparable(run.record)
    assert again.path != run.path


def test_a_function_is_enough(tmp_path: Path) -> None:
    """One that hides its gradients from every attack is told so."""
    train = load_dataset("digits").train
    means = torch.stack([train.x[train.y == label].mean(0).flatten() for label in range(10)])

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return (-10 * torch.cdist(x.flatten(1), means)).detach().round() + 0 * x.sum()

    run = evaluate_model(rounded, attacks="fgsm", points=100, runs_dir=tmp_path)
    assert run.record.config["defense"] == "rounded"
    assert run.record.cost.parameters == 0
    assert "zero-gradient" in {flag.code for flag in run.record.audit.flags}
    assert run.record.audit.verdict == "suspect"


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_torchvision(here: Path, tmp_path: Path) -> None:
    """With as many logits as there are classes; six photographs of noise teach no surrogate anything."""
    data = load_dataset(f"folder:{here / 'photos'}")
    run = evaluate_model(
        "torchvision:shufflenet_v2_x0_5",
        f"folder:{here / 'photos'}",
        attacks="fgsm,pgd:steps=2",
        threads=1,
        runs_dir=tmp_path,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert run.record.cells[1].n == len(data.test) == 6
    assert run.record.cells[1].clean_correct
    assert run.record.cells[1].backwards > 0
    assert run.record.config["params"]["mean"] == [0.485, 0.456, 0.406]
    assert run.record.audit.surrogate is not None
    assert run.record.audit.surrogate.startswith("plain lenet, 5 epochs on 6 images, clean ")
    assert run.record.audit.surrogate.endswith(": too near to chance to transfer anything")
    assert "transfer-beats-white-box" not in run.record.audit.checks
    assert accesses(run.record) == {"white-box", "black-box"}


def accesses(record: Record) -> set[str]:
    """What the audit's probes know of the model."""
    return {cell.threat.access for cell in record.audit.probes}


@pytest.mark.usefixtures("short_probes")
def test_a_surrogate_is_attacked_first(here: Path, tmp_path: Path) -> None:
    """The audit then crafts transferred points on the run's model."""
    run = evaluate_model(
        "outside:make", attacks="fgsm", points=20, runs_dir=tmp_path, surrogate=here / "ours"
    )
    assert run.record.audit.surrogate is not None
    assert "transfer-beats-white-box" in run.record.audit.checks
    assert run.record.audit.surrogate.startswith("run ")


@pytest.mark.usefixtures("short_probes")
@pytest.mark.usefixtures("here")
def test_a_surrogate_is_trained_unless_none_is_wanted(tmp_path: Path) -> None:
    """The record says what it is; its seconds are the evaluation's."""
    given: dict[str, Any] = {"attacks": "fgsm", "points": 20, "runs_dir": tmp_path}
    with torch.no_grad():
        record, again = (evaluate_model("outside:make", **given).record for _ in range(2))
    name = record.audit.surrogate
    assert name is not None
    assert re.fullmatch(r"plain digits-cnn, 5 epochs on 1,293 images, clean 9\d\.\d %", name)
    assert "transfer-beats-white-box" in record.audit.checks
    assert [cell.threat.access for cell in record.audit.probes].count("transfer") == 2
    assert comparable(again) == comparable(record)
    runs_dir = tmp_path / "alone"
    command = ["eval", "--model", "outside:make", *QUICK, "--surrogate", "none", "--runs-dir", str(runs_dir)]
    assert invoke(command) == 0
    alone = read_record(next(runs_dir.iterdir()))
    assert alone.audit.surrogate is None
    assert "transfer-beats-white-box" not in alone.audit.checks
    assert accesses(alone) == {"white-box", "black-box"}


def test_a_surrogate_follows_its_seed(digits: DataSet, global_randomness: Callable[[], bool]) -> None:
    """Its weights do, whatever the global random state, which stays."""
    models = [plain_surrogate(digits, seed, torch.device("cpu"))[1] for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models if model is not None]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert global_randomness()


def reshaped(data: DataSet, *, factor: int = 1, channels: int = 1, side: int | None = None) -> DataSet:
    """The digits with larger pixels, more channels, or cut to ``side``."""

    def split(part: Split) -> Split:
        x = part.x[:, :, :side, :side].repeat(1, channels, 1, 1)
        return Split(x.repeat_interleave(factor, 2).repeat_interleave(factor, 3), part.y)

    parts = {name: split(getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, **parts, default_model="resnet18")


@pytest.mark.parametrize(("factor", "network"), [(1, "digits-cnn"), (2, "lenet"), (9, "lenet")])
def test_a_surrogate_fits_the_images(digits: DataSet, factor: int, network: str) -> None:
    """The smallest model of the zoo that does, never a deep one; large images are averaged down."""
    data = reshaped(digits, factor=factor, channels=3)
    name, model = plain_surrogate(data, 0, torch.device("cpu"))
    assert name is not None
    assert name.startswith(f"plain {network}, 5 epochs on 1,293 images, clean 9")
    assert model is not None
    assert model(data.test.x[:2]).shape == (2, 10)


def test_a_surrogate_that_learned_nothing_is_not_used(digits: DataSet) -> None:
    """Labels at random, or images too small for any model: nothing is transferred, and the name says why."""
    train = Split(digits.train.x, digits.train.y.roll(1))
    name, model = plain_surrogate(replace(digits, train=train), 0, torch.device("cpu"))
    assert re.search(r"clean \d+\.\d %: too near to chance to transfer anything$", str(name))
    assert model is None
    found = plain_surrogate(reshaped(digits, side=3), 0, torch.device("cpu"))
    assert found == ("none, for want of a model for 3×3 pixels", None)


# Records among others.


@pytest.mark.usefixtures("short_probes")
def test_evaluations_are_ranked_among_themselves(
    network: Network, small_run: Run, tmp_path: Path, capfd: Any
) -> None:
    """Two models under one protocol share a table; another protocol and trained defenses do not.

    An evaluation cannot be loaded as a run.
    """
    for name, attacks in (("a", "fgsm"), ("b", "fgsm"), ("c", "fgsm:eps=0.1")):
        made = evaluate_model(
            network(seed=ord(name)),
            attacks=attacks,
            points=20,
            runs_dir=tmp_path,
            name=name,
            surrogate="none",
        )
    shutil.copytree(small_run.path, tmp_path / "trained")
    found = rows([read_record(path) for path in sorted(tmp_path.iterdir())])
    groups: dict[tuple[str, ...], set[str]] = {}
    for row in found:
        groups.setdefault(row.comparison, set()).add(row.defense)
    assert sorted(map(sorted, groups.values())) == [["a", "b"], ["air"], ["c"]]
    assert sorted(row.rank for row in found if row.defense in "ab") in ([1, 2], [1, 1])
    assert "evaluated models" in call(capfd, "leaderboard", "--runs-dir", str(tmp_path))
    listed = json.loads(call(capfd, "leaderboard", "--runs-dir", str(tmp_path), "--format", "json"))
    assert len(listed) == 4
    with pytest.raises(InputError, match="evaluated a model that was trained elsewhere"):
        _ = load_run(made.path).model
    assert invoke(["audit", str(made.path)]) == 2
    assert invoke(["run", "--config", str(made.path / "record.json")]) == 2


# What a user gets wrong.

WRONG: dict[str, tuple[str, str]] = {
    "model": ("--model digits-cnm", "unknown model 'digits-cnm': did you mean 'digits-cnn'?"),
    "model form": ("--model a-b:c", "is not of the form package.module:factory"),
    "model module": ("--model nowhere_at_all:make", "no module 'nowhere_at_all'"),
    "model factory": ("--model outside:mak", "unknown model factory 'mak': did you mean 'make'?"),
    "model file": ("--model nowhere.pt", "model 'nowhere.pt': there is no such file"),
    "model pickle": ("--model pickle.pt", "a pickle could run any code"),
    "model weights": ("--model w.safetensors", "contains only weights: give --model package.module:factory"),
    "torchvision": ("--model torchvision:resnet19", "unknown torchvision model 'resnet19'"),
    "torchvision on digits": ("--model torchvision:alexnet", "fails on images of shape (2, 1, 8, 8)"),
    "1000 logits": ("--model outside:wide", "gives logits of shape (2, 1000)"),
    "no tensor": ("--model outside:pair", "gives tuple, expected a tensor of logits"),
    "late": ("--model outside:late", "ValueError: tired"),
    "weights": ("--weights nowhere.pt", "weights nowhere.pt: there is no such file; nothing is downloaded"),
    "weights of another": ("--model digits-cnn --weights w.safetensors", "do not fit the model: "),
    "weights pickle": ("--weights pickle.pt", "other pickles are not read"),
    "model dir": ("--model-dir .", "it goes with robustbench:NAME"),
    "threat": ("--threat linff", "unknown threat 'linff': did you mean 'linf'?"),
    "mean": ("--mean 0.5", "1 means and 0 deviations"),
    "mean x": ("--mean x --std 1", "mean=x is not a number"),
    "std 0": ("--mean 0.5 --std 0", "deviations positive"),
    "mean of three": ("--mean 0,0,0 --std 1,1,1", "normalisation of 3 channels got images of shape"),
    "data set": ("--dataset digitz", "unknown data set 'digitz': did you mean 'digits'?"),
    "data dir": ("--dataset mnist", "give --data-dir"),
    "attack": ("--attacks pdg", "unknown attack 'pdg': did you mean 'pgd'?"),
    "no attack": ("--attacks ''", "the list of attacks is empty"),
    "knob": ("--attacks pgd:eps=2", "pgd.eps=2 is out of range"),
    "preset": ("--preset all", "unknown preset 'all'"),
    "both": ("--attacks fgsm --preset standard", "attacks and preset are both given"),
    "points": ("--points 0", "points=0: digits has 360 test points"),
    "points of another": ("--points cw=3", "unknown attack in points 'cw'"),
    "seed": ("--seed -1", "'--seed': "),
    "large seed": ("--seed 9223372036854775808", "a seed is at least 0 and below 2**63"),
    "threads": ("--threads 0", "'--threads': "),
    "many threads": ("--threads 5000", "threads=5000 is out of range"),
    "device": ("--device gpu", "unknown device 'gpu'"),
    "surrogate": ("--surrogate nowhere", "no record at nowhere"),
    "surrogate images": (
        "--model torchvision:resnet18 --dataset folder:photos --surrogate ours",
        "takes images",
    ),
    "runs dir": ("--runs-dir w.safetensors", "runs directory w.safetensors is a file"),
    "no model": ("-", "Missing option '--model'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_nothing_written(case: str, here: Path, capfd: Any) -> None:
    """Exit code 2, and the directory as it was."""
    text, message = WRONG[case]
    words = [word.strip("'") for word in text.split()]
    command = ["eval"]
    if "--model" not in words and case != "no model":
        command += ["--model", "outside:make"]
    if not {"--attacks", "--preset", "--points"} & set(words):
        command += ["--attacks", "fgsm", *([] if "folder:photos" in words else ["--points", "20"])]
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code = invoke([*command, *words])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    (line,) = (line for line in err.splitlines() if not line.startswith("["))
    assert line.startswith("error: ")
    assert message in line
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        ("square,aa:apgd-t", "attack 'aa:apgd-t' needs 4 classes or more, not 3"),
        ("fgsm,ta:AutoAttack", "attack 'ta:AutoAttack' needs 4 classes or more, not 3"),
        ("fgsm,planted", "attack 'planted' needs 5 classes or more, not 3"),
        ("fgsm,wide", "attack 'wide' needs images of 64 pixels a side, not 32"),
        ("fgsm,fussy", "fussy is for digits"),
    ],
)
def test_what_is_known_of_attacks_is_refused_before_any_is_made(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: str, line: str
) -> None:
    """In ``eval`` and in ``run``: classes, images, and what a library's constructor refuses."""

    def fussy(_knobs: object, shape: tuple[int, ...], classes: int) -> None:
        assert (shape, classes) == ((3, 32, 32), 3)
        raise InputError("fussy is for digits")

    wants: dict[str, dict[str, Any]] = {
        "planted": {"min_classes": 5},
        "wide": {"min_side": 64},
        "fussy": {"check": fussy},
    }
    for name, more in wants.items():
        info = AttackInfo(name=name, family="noise", norm="linf", access="black-box", paper=None, **more)
        monkeypatch.setitem(pool._entries, name, Entry(info, lambda _m, x, _y, **_k: x, "here"))
    told: list[object] = []
    where: dict[str, Any] = {"dataset": f"folder:{here / 'photos'}", "listeners": [told.append]}
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        evaluate_model("outside:make", attacks=attacks, runs_dir=tmp_path, **where)
    for role in ("unseen", "eval", "sequence"):
        given = {"sequence": "pgd", "unseen": "none", role: attacks}
        with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
            run("at", model="outside:make", runs_dir=tmp_path, **given, **where)
    assert told == []
    assert list(tmp_path.iterdir()) == []


NUMBERS: list[dict[str, Any]] = [
    *({"points": value} for value in (0, 1.5, math.nan, [20], True, {"fgsm": True}, 361)),
    *({"seed": value} for value in (1.5, True, -1)),
    *({"threads": value} for value in (1.5, True, 0)),
]


@pytest.mark.parametrize("given", NUMBERS, ids=str)
def test_numbers_that_are_none(given: dict[str, Any], network: Network, tmp_path: Path) -> None:
    """The same in ``eval`` and in ``run``, and nothing is measured."""
    (key,) = given
    with pytest.raises(InputError, match=key):
        evaluate_model(network(), attacks="fgsm", runs_dir=tmp_path, **given)
    with pytest.raises(InputError, match=key):
        run("at", "fgsm", unseen="none", runs_dir=tmp_path, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [{"seed": "0"}, {"seed": None}, {"threads": "1"}, {"workers": 1.5}], ids=str
)
def test_texts_are_no_numbers(given: dict[str, Any], network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a whole number"):
        evaluate_model(network(), attacks="fgsm", runs_dir=tmp_path, **given)


@pytest.mark.parametrize("attacks", [0, 3.5, [("fgsm", {})], {"fgsm": 1}], ids=str)
def test_attacks_that_are_no_texts(attacks: Any, network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attacks="):
        evaluate_model(network(), attacks=attacks, runs_dir=tmp_path)
    with pytest.raises(InputError, match="sequence="):
        run("at", attacks, runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_probes")
def test_numbers_of_numpy(network: Network, tmp_path: Path) -> None:
    """They are taken as they are meant."""
    number = {"points": np.int64(20), "seed": np.int64(3), "threads": np.int32(1)}
    found = evaluate_model(network(), attacks="fgsm", surrogate="none", runs_dir=tmp_path, **number)
    assert {cell.n for cell in found.record.cells} == {20}
    assert (found.record.config["seed"], found.record.environment["threads"]) == (3, 1)
    config = prepare({"sequence": "fgsm", "epochs": np.int64(2), **number}).config
    assert (config.points, config.seed, config.threads, config.plan.epochs) == ({"default": 20}, 3, 1, 2)


def test_modules_take_no_files(network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a module has its own"):
        evaluate_model(network(), weights="w.safetensors", runs_dir=tmp_path)
    with pytest.raises(InputError, match="1000 logits an image, more than the 10 classes"):
        evaluate_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)), runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())
