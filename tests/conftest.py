"""What several test files share: one torch thread, small networks, the digits, finished runs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from record_trees import UNTOUCHED, cell, entry, record_tree, stages, threat
from targets import Target, trained_target
from tiny_runs import few_probes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advbench import run
from advbench.cli.main import invoke
from advbench.config.options import Options, RunConfig
from advbench.config.resolve import resolve
from advbench.data import DataSet, load_dataset
from advbench.runs.saved import Run
from leaderboards import Record, parse_record

SMALL: dict[str, Any] = {
    "sequence": "fgsm,pgd:steps=3",
    "unseen": "gaussian-noise",
    "epochs": 1,
    "set": {"pretrain.epochs": 1, "eps_warmup": 0},
    "threads": 1,
    "device": "cpu",
}
"""Options of a run that takes a second."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked ``quick(pattern)`` the cases are slow whose id does not match the pattern."""
    kept: dict[str, bool] = {}
    for item in items:
        for marker in item.iter_markers("quick"):
            test, _, case = item.nodeid.partition("[")
            matches = re.fullmatch(marker.args[0], case.removesuffix("]")) is not None
            kept[test] = kept.get(test, False) or matches
            if not matches:
                item.add_marker(pytest.mark.slow)
    whole_files = not any("::" in argument for argument in config.args)
    if whole_files and (empty := [test for test, some in kept.items() if not some]):
        raise pytest.UsageError(f"no case matches the mark 'quick' of {', '.join(empty)}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that list directories must not find caches there."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(scope="session")
def digits() -> DataSet:
    """The digits: 1,293 to train on, 144 to validate, 360 to test."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def robust_digits(digits: DataSet, _one_thread: None) -> Target:
    """A small network trained against PGD, and the test digits that it gets right."""
    return trained_target(digits, robust=True)


@pytest.fixture(scope="session")
def plain_digits(digits: DataSet, _one_thread: None) -> Target:
    """The same network trained on clean images."""
    return trained_target(digits, robust=False)


@pytest.fixture(scope="session")
def network() -> Callable[..., nn.Sequential]:
    """Makes a small classifier of 8×8 images, the same for the same arguments."""

    def make(*, norm: bool = False, channels: int = 1, classes: int = 10, seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
            layers += [nn.BatchNorm1d(128)] if norm else []
            return nn.Sequential(*layers, nn.Linear(128, classes))

    return make


@pytest.fixture(scope="session")
def plain(digits: DataSet) -> nn.Module:
    """A small classifier that learned the digits, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(digits.train.x), digits.train.y).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def loader(digits: DataSet) -> Callable[..., DataLoader[Any]]:
    """Makes a plain DataLoader of the first ``points`` digits that shuffles by a generator of its own."""

    def make(points: int = 256, *, batch_size: int = 64, channels: int = 1, seed: int = 0) -> DataLoader[Any]:
        x = digits.train.x[:points].repeat(1, channels, 1, 1)
        generator = torch.Generator().manual_seed(seed)
        data = TensorDataset(x, digits.train.y[:points])
        return DataLoader(data, batch_size=batch_size, shuffle=True, generator=generator)

    return make


@pytest.fixture(scope="session")
def small_options() -> dict[str, Any]:
    """Options of a run that takes a second."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's runs are kept; tests only read it."""
    return tmp_path_factory.mktemp("session") / "runs"


@pytest.fixture(scope="session")
def small_run(runs_dir: Path, _one_thread: None) -> Run:
    """AIR on the digits, for one epoch a stage."""
    with few_probes():
        return run("air", runs_dir=runs_dir, **SMALL)


@pytest.fixture(scope="session")
def at_run(runs_dir: Path, _one_thread: None) -> Run:
    """AT under the conditions of ``small_run``."""
    with few_probes():
        return run("at", runs_dir=runs_dir, **SMALL)


@pytest.fixture(scope="session")
def brief_run(runs_dir: Path, _one_thread: None) -> Run:
    """AT measured on 60 points: for what repeats a whole run, audit and all."""
    with few_probes():
        return run("at", runs_dir=runs_dir, **SMALL, points=60)


@pytest.fixture(scope="session")
def trained_run(runs_dir: Path, _one_thread: None) -> Run:
    """AT trained long enough that its numbers are neither 0 nor 100 %."""
    options = {**SMALL, "epochs": 6, "set": {"pretrain.epochs": 4, "eps_warmup": 1}}
    options |= {"eval": "cw:eps=0.6,steps=10,binary_search_steps=2,apgd:steps=5", "points": "360,cw=100"}
    options |= {"train_set": {"pgd.steps": 3}}
    with few_probes():
        return run("at", runs_dir=runs_dir, **options)


@pytest.fixture
def own_run(small_run: Run, tmp_path: Path) -> Path:
    """The directory of a copy of ``small_run`` that a test may change."""
    return shutil.copytree(small_run.path, tmp_path / "own" / "run")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Calls a command, which must end with ``code``; what it printed on stdout and on stderr."""

    def called(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        ended = invoke([str(one) for one in arguments])
        printed = capsys.readouterr()
        assert ended == code, printed.err
        return printed.out, printed.err

    return called


@pytest.fixture
def short_probes() -> Iterator[None]:
    """The audit asks little, for tests that are not about what it finds: it is most of a small run."""
    with few_probes():
        yield


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """What the command line makes of the words of ``advbench run``; nothing is run."""

    def resolve_words(*words: str) -> RunConfig:
        caught: list[dict[str, Any]] = []
        monkeypatch.setattr("advbench.cli.run._write", lambda runs, *_, **_how: caught.extend(runs))
        assert invoke(list(words)) == 0
        (options,) = caught
        chosen = Options.of({key: value for key, value in options.items() if key in Options.model_fields})
        data = load_dataset(chosen.dataset, chosen.data_dir)
        return resolve(chosen, data, sample_seed=options["sample_seed"])

    return resolve_words


@pytest.fixture
def global_randomness() -> Callable[[], bool]:
    """Tells whether the global random states of torch, NumPy and Python are what they were."""
    import random

    import numpy as np

    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            np.random.get_state()[2],
        )

    before = state()
    return lambda: state() == before


@pytest.fixture(scope="session")
def record_with() -> Callable[..., Record]:
    """Makes a record of one stage from attacks ``(name, knobs, norm, eps, robust)`` out of ``n`` points."""

    def make(
        *attacks: tuple[str, str, str | None, float, int],
        n: int = 100,
        clean: int | None = None,
        id: str = "run",
        data: tuple[str, str] = ("digits", "f1"),
        test: int = 100,
        verdict: str = "ok",
        flags: Sequence[dict[str, Any]] = (),
        **config: Any,
    ) -> Record:
        right = n if clean is None else clean
        entries, cells = [], [cell(1, "clean", n, right, right, UNTOUCHED)]
        for name, knobs, norm, eps, robust in attacks:
            text = f"{name}:eps={eps!r}" + (f",{knobs}" if knobs else "")
            allowed = threat(norm, eps)
            entries.append(entry(text, "eval", **allowed))
            cells.append(cell(1, text, n, right, robust, allowed))
        joint = {"regime": "joint", "dataset": data[0], "model": "net", "pretrain": 0}
        tree = record_tree(
            joint | config,
            fingerprint=data[1],
            id=id,
            protocol="p",
            attacks=entries,
            cells=cells,
            metrics={"average_robust_accuracy": 0.5, "clean_accuracy": right / n},
            audit={"verdict": verdict, "flags": flags, "checks": []},
        )
        tree["environment"]["data"]["test"] = test
        return parse_record(tree, "here")

    return make


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Makes a whole record on invented numbers: two stages, three attacks, two classes, an audit."""
    return _record


ATTACKS = {
    "fgsm:eps=0.2": ("seen", "linf", "white-box", "single-step", "fgsm:eps=0.2"),
    "pgd:eps=0.2,steps=40": ("seen", "linf", "white-box", "projected-gradient", "pgd:eps=0.2,steps=7"),
    "square-l2:eps=1,steps=1000": ("unseen", "l2", "black-box", "query", None),
}


def _record(
    defense: str = "at",
    *,
    seed: int = 0,
    robust: int = 60,
    clean: int = 95,
    verdict: str = "ok",
    flags: tuple[str, ...] = (),
    fingerprint: str = "0123456789abcdef",
    name: str | None = None,
    **config: Any,
) -> Record:
    texts = list(ATTACKS)
    settings: dict[str, Any] = {
        "defense": defense,
        "sequence": texts[:2],
        "training": ["fgsm:eps=0.2", "pgd:eps=0.2,steps=7"],
        "unseen": texts[2:],
        "eval": [],
        "data_dir": None,
        "model": "digits-cnn",
        "plan": {"epochs": 3, "lr": 0.1, "augmentation": []},
        "pretrain": {"epochs": 5, "lr": 0.1},
        "points": {"default": 100},
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "target_aware": False,
    } | config
    threats = {text: threat(norm, access=access) for text, (_, norm, access, _, _) in ATTACKS.items()}
    after = [robust // 8, robust - 10, robust]
    found = [[3, 0, 1], [robust, robust // 2, 20], after]
    tree = record_tree(
        settings,
        fingerprint=fingerprint,
        id=name or f"{defense}-{config.get('regime', 'continual')}-s{seed}",
        protocol="0a1b2c3d4e5f",
        attacks=[
            entry(text, role, family=family, training=training, **threats[text])
            for text, (role, _, _, family, training) in ATTACKS.items()
        ],
        stages=stages([], *([text] for text in texts[:2])),
        cells=[
            cell(stage, text, 100, clean, kept, threats.get(text, UNTOUCHED))
            for stage, counts in enumerate(found)
            for text, kept in zip(["clean", *texts], [clean, *counts], strict=True)
        ],
        metrics={
            "average_robust_accuracy": (after[0] + after[1]) / 200,
            "clean_accuracy": clean / 100,
            "worst_case_accuracy": after[0] / 100,
            "forgetting": (robust - after[0]) / 100,
            "unseen_accuracy": after[2] / 100,
        },
        per_class=[
            {"class": label, "n": 50, "clean_correct": clean // 2, "worst_case": 1}
            | {"robust": {text: kept // 2 for text, kept in zip(texts, after, strict=True)}}
            for label in ("zero", "one")
        ],
        audit={
            "verdict": verdict,
            "flags": [
                {"code": code, "message": f"what {code} means", "evidence": {"share_of_points": 0.75}}
                for code in flags
            ],
            "checks": ["zero-gradient", "nan-logits"],
            "probes": [cell(2, texts[2], 100, clean, 30, threats[texts[2]])],
            "surrogate": "row 0",
        },
    )
    return parse_record(tree, "here")
