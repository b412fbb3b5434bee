"""``advbench eval --model RUN``: more attacks on the model of a run, which is not trained again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advbench import Run, evaluate_model
from advbench.external import Source
from advbench.external.load import load_foreign
from attacks_pool import InputError
from leaderboards import read_outcomes


def test_the_model_of_a_run_is_evaluated_as_in_the_run(at_run: Run, tmp_path: Path) -> None:
    """The same points are right and withstand FGSM; the run and its weights stand in the record."""
    found = evaluate_model(
        str(at_run.path), attacks="fgsm", points=100, surrogate="none", device="cpu", runs_dir=tmp_path
    )
    of_run, of_eval = (read_outcomes(one.path / "outcomes.npz") for one in (at_run, found))
    column = [attack.name for attack in at_run.record.attacks].index("fgsm")
    assert (of_eval[0][0] == of_run[0][-1, :100]).all()
    assert (of_eval[1][0, 0] == of_run[1][-1, column, :100]).all()
    assert found.record.config["defense"] == at_run.record.id
    assert found.record.config["params"]["model"] == f"run:{at_run.record.id}"
    assert found.record.config["params"]["weights"] == Path(at_run.record.stages[-1].weights).name


def test_the_network_gives_the_runs_logits(at_run: Run) -> None:
    """Bit for bit, by the directory and by its record."""
    images = at_run.test_data[0][:20]
    with torch.no_grad():
        expected = at_run.model(images)
        for path in (at_run.path, at_run.path / "record.json"):
            model = load_foreign(Source(str(path)), at_run.data).model
            assert torch.equal(model(images), expected)


def test_a_run_by_name_is_evaluated_and_verified(
    at_run: Run, tmp_path: Path, call: Callable[..., tuple[str, str]]
) -> None:
    """It is looked up in --runs-dir; verify finds the run beside the evaluation, or by --weights."""
    kept = shutil.copytree(at_run.path, tmp_path / "runs" / at_run.record.id)
    given = ["--attacks", "fgsm", "--points", 40, "--surrogate", "none", "--runs-dir", tmp_path / "runs"]
    call("eval", "--model", at_run.record.id, *given)
    (found,) = (tmp_path / "runs").glob("*-eval-*")
    assert "re-evaluated" in call("verify", found)[0]
    kept.rename(tmp_path / "elsewhere")
    assert "give --weights RUN" in call("verify", found, code=2)[1]
    assert "re-evaluated" in call("verify", found, "--weights", tmp_path / "elsewhere")[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": Path("w.safetensors")}, "is a run with weights of its own"),
        ({"model_args": {"width": 2}}, "is built already: --model-arg goes with"),
    ],
)
def test_options_that_a_run_does_not_take(at_run: Run, more: dict[str, object], said: str) -> None:
    """One line each."""
    with pytest.raises(InputError, match=said):
        load_foreign(Source(str(at_run.path), **more), at_run.data)  # type: ignore[arg-type]


def test_a_directory_without_a_record_names_what_is_allowed(at_run: Run, tmp_path: Path) -> None:
    """A run's directory is among the choices."""
    with pytest.raises(InputError, match="or a run's directory"):
        load_foreign(Source(str(tmp_path)), at_run.data)
