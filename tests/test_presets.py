"""Presets: the built-in ones never change, and a user's file is recorded by name and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import cifar_c
from torch import nn

from advbench import EvalRequest, evaluate_model
from advbench.cli.completion import preset_names
from advbench.cli.main import invoke
from advbench.data import DataSet, Split
from advbench.data.formats.corrupted import CORRUPTIONS
from advbench.external.presets import builtin_names, find_preset, suite
from advbench.runs.directory import finish
from attacks_pool import InputError, pool
from attacks_pool.attack import check_task
from leaderboards import parse_record, read_record

Network = Callable[..., nn.Sequential]
Call = Callable[..., tuple[str, str]]
EVAL = ["eval", "--model", "digits-cnn", "--surrogate", "none", "--threads", "1", "--device", "cpu"]

NUMBERS_OF = {
    "standard": "ea691c70",
    "strongest": "00d3fa5c",
    "screen": "8663506f",
    "autoattack": "1c618db2",
    "autoattack-rand": "9a74ce57",
    "madry-mnist": "9461fbca",
    "multi-norm": "08398a13",
    "pgd-50-10": "b50d0dbc",
    "robustbench-cifar-l2": "cf634dcd",
    "robustbench-cifar-linf": "51bf5aeb",
    "robustbench-corruptions": "1606e473",
    "robustbench-imagenet-linf": "a16ab7f2",
    "unforeseen-high": "e6a924ae",
    "unforeseen-low": "68c6cc0a",
    "unforeseen-medium": "3c6e15f0",
}
"""The first digits of each file's SHA-256: a name stands for the same attacks for ever."""


@pytest.fixture(scope="module")
def cifar(digits: DataSet) -> DataSet:
    """The digits under the name and with the size of CIFAR-10's test set."""
    x = digits.test.x.repeat(28, 1, 1, 1)[:10_000]
    y = digits.test.y.repeat(28)[:10_000]
    return replace(digits, name="cifar10", budget="cifar10", test=Split(x, y))


def asked(data: DataSet, **options: Any) -> list[str]:
    """The attacks of a request, as records write them."""
    return [attack.text for attack in suite(EvalRequest.of({"model": "digits-cnn", **options}), data).attacks]


def test_the_default_preset(digits: DataSet) -> None:
    """It mixes one step, gradients, targets, the boundary, queries and a second norm."""
    found = suite(EvalRequest("digits-cnn"), digits)
    attacks = found.attacks
    assert [attack.text for attack in attacks] == asked(digits, preset="standard")
    assert found.recorded == {}
    assert {attack.info.norm for attack in attacks} == {"linf", "l2"}
    assert {"white-box", "black-box"} == {attack.info.access for attack in attacks}
    assert {"single-step", "projected-gradient", "minimal-norm", "query"} <= {a.info.family for a in attacks}
    assert any(int(attack.knobs.get("restarts", 1)) > 1 for attack in attacks)


@pytest.mark.parametrize("name", NUMBERS_OF)
def test_a_builtin_preset_never_changes(name: str) -> None:
    preset = find_preset(name)
    assert preset.about.endswith(".")
    assert preset.sha256 == hashlib.sha256(preset.file.read_bytes()).hexdigest()
    assert preset.sha256[:8] == NUMBERS_OF[name]
    assert preset.attacks == ("none",) or pool.sequence(",".join(preset.attacks), budget="cifar10")


def test_every_preset_is_pinned_and_completed() -> None:
    assert set(builtin_names()) == set(NUMBERS_OF)
    assert builtin_names()[0] == "standard"
    assert preset_names("rob") == [name for name in builtin_names() if name.startswith("rob")]
    assert set(preset_names("")) == set(NUMBERS_OF)


def test_published_budgets(digits: DataSet, cifar: DataSet) -> None:
    """Those of the papers, whatever the data set's own budgets are."""
    (madry,) = suite(EvalRequest("m", preset="madry-mnist"), replace(cifar, name="mnist")).attacks
    assert (madry.eps, madry.knobs["steps"], madry.knobs["step_size"]) == (0.3, 40, 0.01)
    assert (madry.knobs["random_start"], madry.knobs["restarts"]) == (True, 1)
    (pgd,) = suite(EvalRequest("m", preset="pgd-50-10"), digits).attacks
    assert (pgd.eps, pgd.knobs["step_size"]) == (0.2, 0.05)
    assert (pgd.knobs["steps"], pgd.knobs["restarts"]) == (50, 10)
    found = suite(EvalRequest("m", preset="robustbench-cifar-linf"), cifar)
    assert (found.attacks[0].eps, found.points) == (8 / 255, {"default": 10_000})
    found = suite(EvalRequest("m", preset="robustbench-cifar-l2"), cifar)
    assert (found.attacks[0].eps, found.attacks[0].info.norm) == (0.5, "l2")
    norms = suite(EvalRequest("m", preset="multi-norm"), digits).attacks
    assert [attack.info.norm for attack in norms] == ["linf", "l2", "l1"]
    few = replace(cifar, name="imagenet:robustbench", test=Split(cifar.test.x[:5000], cifar.test.y[:5000]))
    found = suite(EvalRequest("m", preset="robustbench-imagenet-linf"), few)
    assert (found.attacks[0].eps, found.points) == (4 / 255, {"default": 5000})
    (rand,) = suite(EvalRequest("m", preset="autoattack-rand"), digits).attacks
    assert rand.knobs["version"] == "rand"


def test_unforeseen_attacks_grow(digits: DataSet) -> None:
    """The same attacks without a norm in all three, each stronger than in the one before; grey images too."""
    levels = [
        suite(EvalRequest("m", preset=f"unforeseen-{name}"), digits).attacks
        for name in ("low", "medium", "high")
    ]
    for low, medium, high in zip(*levels, strict=True):
        assert low.name == medium.name == high.name
        assert low.info.norm is None
        assert low.eps < medium.eps < high.eps
        check_task([low, high], (1, 8, 8), 10)
        check_task([low, high], (3, 32, 32), 10)


@pytest.mark.parametrize(
    ("preset", "more", "message"),
    [
        ("standart", {}, "unknown preset 'standart': did you mean 'standard'"),
        ("robustbench-cifar-l2", {}, "is for cifar10, not 'digits': --attacks autoattack-l2:eps=0.5"),
        ("madry-mnist", {}, "is for mnist, not 'digits'"),
        ("robustbench-imagenet-linf", {}, "is for imagenet:robustbench, not 'digits'"),
        ("robustbench-corruptions", {}, "is for cifar10-c or cifar100-c or imagenet-c:robustbench, not"),
        ("standard", {"attacks": "fgsm"}, "attacks and preset are both given"),
    ],
)
def test_a_preset_that_does_not_fit(preset: str, more: Any, message: str, digits: DataSet) -> None:
    with pytest.raises(InputError, match=message):
        asked(digits, preset=preset, **more)


def test_points_that_a_preset_fixes(cifar: DataSet) -> None:
    with pytest.raises(InputError, match="fixes points=10000: leave out points"):
        asked(cifar, preset="robustbench-cifar-linf", points=100)
    few = replace(cifar, test=Split(cifar.test.x[:99], cifar.test.y[:99]))
    with pytest.raises(InputError, match="cifar10 has 99 test points"):
        asked(few, preset="robustbench-cifar-linf")


@pytest.mark.parametrize(
    ("text", "length"),
    [("eps/4", 0.05), ("0.1*eps", 0.02), ("2.5*eps/50", 0.01), ("eps", 0.2), ("1/8", 0.125)],
)
def test_lengths_in_budgets(text: str, length: float) -> None:
    """A step may be written in multiples of eps, with the budget of a data set or one's own."""
    assert pool.get("pgd", budget="digits", step_size=text).knobs["step_size"] == pytest.approx(length)
    (attack,) = pool.sequence(f"pgd:eps=0.2,step_size={text}")
    assert attack.knobs["step_size"] == pytest.approx(length)
    assert attack.text == pool.sequence(attack.text)[0].text


def test_what_is_no_length() -> None:
    for text in ("eps/0", "eps/x", "esp/4", "eps*eps"):
        with pytest.raises(InputError, match=r"pgd\.step_size"):
            pool.get("pgd", budget="digits", step_size=text)
    with pytest.raises(InputError, match=r"pgd\.steps=eps is not a number"):
        pool.get("pgd", budget="digits", steps="eps")


# Corruptions.

BRIGHT = """import torch

class Bright(torch.nn.Module):
    def forward(self, x):
        level = x[:, 0, 0, 0] - x[:, 1, 0, 0]
        chosen = torch.nn.functional.one_hot(torch.where(level > 0.01, 3, 8), 10)
        return chosen * (5 + x.mean((1, 2, 3))[:, None])

def make():
    return Bright()
"""
"""A network that decides by two channels of one pixel."""


def test_accuracy_on_corruptions(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over corruptions and severities, as RobustBench computes it from the same files."""
    place = cifar_c(tmp_path) / "CIFAR-10-C"
    (tmp_path / "by_pixel.py").write_text(BRIGHT)
    monkeypatch.syspath_prepend(tmp_path)
    np.save(place / "labels.npy", labels := np.full(10, 3))
    expected = {}
    for name in CORRUPTIONS:
        pixels = np.load(place / f"{name}.npy")
        for severity in range(1, 6):
            images, truth = (part[2 * severity - 2 : 2 * severity] for part in (pixels, labels))
            difference = (images[:, 0, 0, 0].astype(int) - images[:, 0, 0, 1]) / 255
            expected[name, str(severity)] = float((np.where(difference > 0.01, 3, 8) == truth).mean())
    given = {"data_dir": tmp_path, "preset": "robustbench-corruptions", "surrogate": "none", "threads": 1}
    run = evaluate_model("by_pixel:make", "cifar10-c", device="cpu", runs_dir=tmp_path / "runs", **given)
    record = run.record
    assert record.metrics["clean_accuracy"] == pytest.approx(np.mean(list(expected.values())))
    assert record.metrics["average_robust_accuracy"] is None
    assert [(cell.attack, cell.n) for cell in record.cells] == [("clean", 150)]
    assert record.config["preset"]["name"] == "robustbench-corruptions"
    assert record.report is not None
    table = record.report.tables["accuracy_by_severity_in_%"]
    assert len({table[name][severity] for name, severity in expected}) > 1
    assert all(table[name][key] == 100 * value for (name, key), value in expected.items())
    assert table["mean"]["mean"] == pytest.approx(100 * np.mean(list(expected.values())))
    assert "Accuracy by severity in %" in call("show", str(run.path))[0]
    call("leaderboard", "--runs-dir", str(tmp_path / "runs"))
    out, _ = call("verify", str(run.path), "--trust", "--device", "cpu")
    assert "re-evaluated" in out
    tree = record.dump()
    tree["report"]["tables"]["accuracy_by_severity_in_%"]["fog"]["5"] = 99.0
    finish(run.path, parse_record(json.dumps(tree).encode(), "forged"))
    out, _ = call("verify", str(run.path), "--trust", "--device", "cpu", code=1)
    assert "report: the stored outcomes give other accuracies by group" in out


def test_no_attacks(network: Network, tmp_path: Path) -> None:
    """The accuracy on the points as they are, on as many as are asked for; the points can be saved."""
    given: dict[str, Any] = {"surrogate": "none", "runs_dir": tmp_path, "points": 16}
    file = tmp_path / "points.safetensors"
    record = evaluate_model(network(), attacks="none", save_examples=file, **given).record
    assert [(cell.attack, cell.n) for cell in record.cells] == [("clean", 16)]
    assert record.config["eval"] == []
    assert record.metrics["worst_case_accuracy"] is None


# Files.


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_users_file(place: Path, call: Call) -> None:
    """Its name and hash stand in the record; another content has another hash."""
    text = "about: Two steps.\nattacks: [fgsm, 'pgd:steps=2']\npoints: {default: 30, fgsm: 20}\n"
    (place / "mine.yaml").write_text(text)
    call(*EVAL, "--preset", "mine.yaml", "--runs-dir", "runs")
    (path,) = (place / "runs").iterdir()
    record = read_record(path)
    assert record.config["preset"] == {"name": "mine", "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert {cell.attack.partition(":")[0]: cell.n for cell in record.cells[1:]} == {"fgsm": 20, "pgd": 30}
    out, _ = call("presets", "mine.yaml", "--format", "json")
    (entry,) = json.loads(out)
    assert (entry["name"], entry["sha256"]) == ("mine", record.config["preset"]["sha256"])
    (place / "other.json").write_text(json.dumps({"name": "mine", "attacks": "fgsm,pgd:steps=2"}))
    found = find_preset("other.json")
    assert (found.name, found.attacks, found.points) == ("mine", ("fgsm,pgd:steps=2",), None)
    assert found.sha256 != entry["sha256"]


def test_records_without_a_preset_stay_as_they_were(network: Network, tmp_path: Path) -> None:
    """Neither listed attacks nor the presets of old write one."""
    given: dict[str, Any] = {"surrogate": "none", "runs_dir": tmp_path, "points": 16}
    listed = evaluate_model(network(), attacks="screen", **given).record
    old = evaluate_model(network(), preset="screen", **given).record
    assert "preset" not in listed.config
    assert old.config == listed.config


WRONG_FILES = {
    "missing.yaml": (None, "cannot read preset missing.yaml: No such file or directory"),
    "list.yaml": ("[fgsm]", "must hold attacks: [fgsm, pgd], not list"),
    "empty.yaml": ("", "must hold attacks: [fgsm, pgd], not nothing"),
    "key.yaml": ("attack: [fgsm]", "unknown key of preset key.yaml 'attack': did you mean 'attacks'?"),
    "none.yaml": ("attacks: []", "attacks: List should have at least 1 item"),
    "without.yaml": ("points: 10", "attacks: Field required"),
    "number.yaml": ("attacks: [3]", "attacks.0: Input should be a valid string (given 3)"),
    "points.yaml": ("attacks: fgsm\npoints: many", "points"),
    "far.yaml": ("attacks: fgsm\npoints: 361", "points=361: digits has 360 test points"),
    "attack.yaml": ("attacks: fgms", "unknown attack 'fgms': did you mean 'fgsm'?"),
    "twice.yaml": ("attacks: [fgsm, fgsm]", "is listed twice"),
    "standard.yaml": ("attacks: fgsm", "has the name of the built-in preset 'standard'"),
    "a b.yaml": ("attacks: fgsm", "name: String should match pattern"),
    "code.yaml": ("attacks: ['mine:blur']", "names the attack 'mine:blur', and using it imports that code"),
    "elsewhere.yaml": ("attacks: fgsm\ndatasets: mnist", "is for mnist, not 'digits'"),
    "broken.yaml": ("attacks: [fgsm", "is neither YAML nor JSON"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_costs_one_line(name: str, place: Path, capfd: Any) -> None:
    """Exit code 2, and nothing is written."""
    text, message = WRONG_FILES[name]
    if text is not None:
        (place / name).write_text(text)
    assert invoke([*EVAL, "--preset", name, "--runs-dir", "runs"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if not line.startswith("["))
    assert line.startswith("error: ")
    assert message in line
    assert not (place / "runs").exists()


def test_presets_are_listed(call: Call) -> None:
    out, _ = call("presets", "--format", "json")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert list(found) == builtin_names()
    assert found["madry-mnist"]["points"] == 10_000
    out, _ = call("presets", "pgd-50-10")
    assert "attacks: pgd:steps=50,restarts=10,step_size=eps/4" in out
    assert "did you mean 'madry-mnist'" in call("presets", "madri-mnist", code=2)[1]
