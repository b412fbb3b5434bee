"""The search of ``benchmarks/tune.py``: what it tries, and when it replaces a default."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
POINTS = 100


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    """The script, imported."""
    spec = importlib.util.spec_from_file_location("tune_script", ROOT / "benchmarks" / "tune.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def plan_of(tune: ModuleType, **more: Any) -> Any:
    """Two rounds of one search; the second has two seeds and the best trial of the first."""
    search = {"start": {"beta": 6.0}, "space": {"beta": [1.0, 3.0, 6.0]}, **more}
    rounds = [{"epochs": 1, "seeds": [100]}, {"epochs": 2, "seeds": [101, 102], "keep": 1}]
    content = {"dataset": "digits", "sequence": "fgsm", "rounds": rounds, "searches": {"trades": search}}
    return tune.Plan.model_validate(content)


def measured(tune: ModuleType, monkeypatch: pytest.MonkeyPatch, right: dict[float, int]) -> list[Any]:
    """Pretend that a trial with this ``beta`` keeps so many points; returns the jobs as they are done."""
    done: list[Any] = []

    def measure(job: Any) -> Any:
        done.append(job)
        kept = right[job.parameters["beta"]]
        if kept < 0:
            return tune.Result(["fgsm"], None, None, 1.0)
        outcome = np.arange(POINTS) < kept
        return tune.Result(["fgsm"], np.ones(POINTS, dtype=bool), outcome[None], 1.0)

    monkeypatch.setattr(tune, "measure", measure)
    return done


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ({1.0: 40, 3.0: 80, 6.0: 50}, 3.0),  # far better
        ({1.0: 40, 3.0: 51, 6.0: 50}, 6.0),  # by a single point: within noise
        ({1.0: 40, 3.0: -1, 6.0: 50}, 6.0),  # diverged
        ({1.0: 40, 3.0: 45, 6.0: 50}, 6.0),
    ],
)
def test_only_a_lead_beyond_noise_replaces_a_default(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch, right: dict[float, int], chosen: float
) -> None:
    """The winner of the last round, else the start."""
    measured(tune, monkeypatch, right)
    *_, (_, trials) = tune.rounds_of("trades", plan_of(tune), tune.Results(None))
    assert tune.verdict(trials)[0].parameters == {"beta": chosen}


def test_rounds_and_what_is_kept(tune: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of the space with one seed, then the start and the best with two more; nothing is done twice."""
    done = measured(tune, monkeypatch, {1.0: 40, 3.0: 80, 6.0: 50})
    path = tmp_path / "results.jsonl"
    first = tune.section("trades", plan_of(tune), tune.Results(path))
    assert sorted((job.epochs, job.seed, job.parameters["beta"]) for job in done) == [
        *((1, 100, beta) for beta in (1.0, 3.0, 6.0)),
        *((2, seed, beta) for seed in (101, 102) for beta in (3.0, 6.0)),
    ]
    assert tune.section("trades", plan_of(tune), tune.Results(path)) == first
    assert len(done) == 7
    assert "| beta=3 | 100.0 | 80.0 | 80.0 | +30.0 ± 4.6 | 1 |" in first


def test_draws_do_not_repeat_and_the_file_determines_them(tune: ModuleType) -> None:
    """The start comes first, and only once."""
    search = plan_of(tune, trials=1).searches["trades"]
    found = tune.trials_of("trades", search)
    assert found[0] == {"beta": 6.0}
    assert len(found) == 2
    assert found == tune.trials_of("trades", search)
    every = tune.trials_of("trades", plan_of(tune).searches["trades"])
    assert sorted(trial["beta"] for trial in every) == [1.0, 3.0, 6.0]


def test_the_recorded_searches_can_be_run(tune: ModuleType) -> None:
    """Every defense and parameter of the file exists, and its seeds are apart from the reported 0 to 4."""
    from advbench.config.options import Options
    from advbench.config.resolve import resolve
    from advbench.data import load_dataset

    plan = tune.read_plan(ROOT / "benchmarks" / "tune.yaml")
    data = load_dataset(plan.dataset)
    for name, search in plan.searches.items():
        assert all(seed >= 100 for one in search.rounds or plan.rounds for seed in one.seeds)
        for trial in tune.trials_of(name, search):
            options = {"defense": name, "sequence": search.sequence or plan.sequence, "set": trial}
            assert set(trial) <= set(resolve(Options.of(options), data).params)


def test_mistakes_cost_one_line(
    tune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search that is not in the file, and a file that says too much."""
    plan, broken = ROOT / "benchmarks" / "tune.yaml", tmp_path / "broken.yaml"
    broken.write_text(plan.read_text(encoding="utf-8") + "\nsead: 1\n", encoding="utf-8")
    named = [str(plan), "--defense", "mola-rooter"]
    for arguments, told in ((named, "did you mean 'mola-router'"), ([str(broken)], "sead")):
        monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
        with pytest.raises(SystemExit) as left:
            tune.main()
        assert left.value.code == 2
        assert told in capsys.readouterr().err
