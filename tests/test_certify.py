"""Randomised smoothing, certificates of points, and ``advbench certify``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from advbench import Run, load_run
from advbench.audit.stored import audit_run
from advbench.cli.main import invoke
from advbench.data import Split
from advbench.evaluation.certificates.certified import accepted_radius, certify_points
from advbench.evaluation.certificates.smoothing import (
    Smoothing,
    certified_radius,
    lower_confidence,
    radius_needed,
    smoothed,
)
from advbench.runs.certificate_record import attacked
from attacks_pool import InputError
from leaderboards import verify_checksums
from leaderboards.records.store import read_outcomes


@pytest.mark.parametrize(("successes", "draws"), [(0, 10), (1, 10), (77, 100), (100, 100), (99_000, 100_000)])
def test_the_confidence_bound_is_scipys(successes: int, draws: int) -> None:
    """One-sided, exact."""
    expected = binomtest(successes, draws, alternative="greater").proportion_ci(0.999, "exact").low
    assert lower_confidence(successes, draws, 0.001) == pytest.approx(expected, abs=1e-12)


def test_the_radius_by_hand() -> None:
    """All of 100 draws at confidence 0.999: p ≥ 0.001^(1/100) = 0.9332, whose quantile is 1.500."""
    assert certified_radius(100, 100, 0.5, 0.001) == pytest.approx(0.5 * norm.ppf(0.001**0.01))
    assert certified_radius(100, 100, 0.5, 0.001) == pytest.approx(0.7501, abs=1e-3)
    assert certified_radius(50, 100, 0.5, 0.001) == 0.0
    assert radius_needed("linf", 0.1, 64) == pytest.approx(0.8)
    assert radius_needed("l2", 0.1, 64) == radius_needed("l1", 0.1, 64) == 0.1


class Plane(nn.Module):
    """Class 1 on one side of a plane at ``distance`` from the images of zeros, class 0 on the other."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1).sum(1) / math.sqrt(x[0].numel()) - self.distance
        return torch.stack([-side, side], 1)


def test_smoothing_a_plane_gives_nearly_its_distance() -> None:
    """And never more; a constant model is certified as far as the draws allow, and a coin flip not at all."""
    image = torch.zeros(1, 4, 4)
    for distance in (0.1, 0.4):
        found = smoothed(Plane(distance), image, Smoothing(0.25, draws=20_000))
        assert found.answer == 0
        assert 0.85 * distance < found.radius < distance
    constant = smoothed(Plane(1e9), image, Smoothing(0.25, draws=1000))
    assert constant.radius == certified_radius(1000, 1000, 0.25, 0.001)
    assert smoothed(Plane(0.0), image, Smoothing(0.25, draws=1000)).answer is None


def test_draws_do_not_depend_on_the_batch_and_nan_counts_for_nothing() -> None:
    """A key has its draws; a model without answers is never certified."""
    image, how = torch.zeros(1, 4, 4), Smoothing(0.25, draws=1500)
    first, again, other = (smoothed(Plane(0.1), image, how, key=key).counted for key in (0, 0, 1))
    assert first == again != other

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), torch.nan)

    assert smoothed(Nothing(), image, how).answer is None


def test_bad_smoothing() -> None:
    """Each value is checked."""
    for wrong in ({"sigma": 0.0}, {"sigma": math.nan}, {"draws": 0}, {"alpha": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Smoothing(**{"sigma": 0.25, **wrong})


def test_points_are_certified_by_bounds_and_by_smoothing() -> None:
    """A plane: points at a distance above eps are proved, nearer ones not, wrong ones never."""
    offsets = torch.tensor([0.0, 0.15, 0.35, 0.5]).view(4, 1, 1, 1)
    x = offsets.expand(4, 1, 4, 4).contiguous()
    # The plane's distance from the four points is 1.2 minus 4 times the offset: 1.2, 0.6, -0.2, -0.8.
    data = Split(x, torch.tensor([0, 0, 0, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16) / 4)
        model[1].bias.copy_(torch.tensor([1.2, -1.2]))
    found = certify_points(model, data, norm="l2", eps=0.7)
    assert found.clean == [True, True, False, True]
    assert found.proved == [True, False, False, True]
    assert found.counts() == {"points": 4, "clean_correct": 3, "certified": 2}
    assert found.margin[2] is None
    assert found.by[2] is None
    noisy = certify_points(
        model, data, norm="l2", eps=0.3, method="smoothing", smoothing=Smoothing(0.5, 5000)
    )
    assert noisy.proved == [True, True, False, True]
    assert certify_points(model, data, norm="l2", eps=0.0).proved == [True, True, False, True]


def test_a_certificate_covers_what_the_verifier_accepts() -> None:
    """A point exactly at eps is not proved, since the verifier allows for rounding."""
    data = Split(torch.zeros(1, 1, 4, 4), torch.tensor([0]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=True))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [4.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([6.4, 0.0]))
    assert accepted_radius(0.1) > 0.1
    assert certify_points(model, data, norm="linf", eps=0.1).proved == [False]
    assert certify_points(model, data, norm="linf", eps=0.0999).proved == [True]


def certify(*arguments: str) -> int:
    return invoke(["certify", *arguments, "--device", "cpu", "--threads", "1"])


def test_a_run_is_certified_beside_its_record(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checksums still hold, and the counts stand beside what attacks left."""
    assert certify(str(own_run), "--points", "10", "--method", "crown", "--format", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert json.loads((own_run / "certificates" / "linf-0.2.json").read_text()) == shown
    record = load_run(own_run).record
    assert shown["subject"] == {"run": record.id}
    linf = [number for number, attack in enumerate(record.attacks) if attack.norm == "linf"]
    clean, robust = read_outcomes(own_run / "outcomes.npz")
    counts = shown["counts"]
    assert counts["points"] == 10
    assert counts["clean_correct"] == clean[-1, :10].sum()
    assert counts["robust"] == robust[-1][linf, :10].all(0).sum() >= counts["certified"]
    assert shown["attacks"] == [record.attacks[number].text for number in linf]
    assert [len(values) for values in shown["outcomes"].values()] == [10] * 5
    assert verify_checksums(own_run) == []
    assert certify(str(own_run), "--points", "3", "--eps", "0.001") == 0
    assert "certified" in capsys.readouterr().out


def test_attacks_inside_the_ball_are_compared(small_run: Run) -> None:
    """Those of a smaller radius too, but none of a larger one or on fewer points."""
    path, record = small_run.path, small_run.record
    texts = [attack.text for attack in record.attacks if attack.norm == "linf"]
    assert attacked(path, record, "linf", 0.3, 10)[0] == texts
    assert attacked(path, record, "linf", 0.1, 10) == ([], [])
    assert attacked(path, record, "l2", 0.3, 10) == ([], [])
    assert attacked(path, record, "linf", 0.3, 361) == ([], [])


def test_an_attack_below_a_certificate_is_said(
    own_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 1: either the attack's outcome or the proof is wrong."""
    monkeypatch.setattr(
        "advbench.external.certify_model.attacked", lambda *_: (["fgsm:eps=0.0001"], [False] * 20)
    )
    assert certify(str(own_run), "--points", "20", "--eps", "0.0001") == 1
    assert "attack-below-certificate" in capsys.readouterr().err


@pytest.mark.usefixtures("short_probes")
def test_the_audit_reads_certificates(own_run: Path) -> None:
    """A second audit finds a point that is proved and broken."""
    assert certify(str(own_run), "--points", "20", "--eps", "0.2", "--method", "ibp") == 0
    assert "attack-below-certificate" in audit_run(load_run(own_run), points=5).checks
    path = own_run / "certificates" / "linf-0.2.json"
    tree = json.loads(path.read_text())
    tree["outcomes"]["certified"] = tree["outcomes"]["clean"]
    tree["counts"]["certified"] = tree["counts"]["clean_correct"]
    path.write_text(json.dumps(tree))
    found = audit_run(load_run(own_run), points=5)
    assert "attack-below-certificate" in {flag.code for flag in found.flags}
    assert found.verdict != "ok"


def test_a_model_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record goes below the directory of runs, or to a file."""
    options = ["--model", "digits-cnn", "--points", "4", "--runs-dir", str(tmp_path), "--eps", "1/255"]
    assert certify(*options, "--method", "ibp") == 0
    (path,) = (tmp_path / "certificates").iterdir()
    assert json.loads(path.read_text())["subject"]["model"] == "digits-cnn"
    smoothing = ["--method", "smoothing", "--sigma", "0.1", "--draws", "200", "--norm", "l2", "--eps", "0.01"]
    assert certify(*options[:6], *smoothing, "--save", str(tmp_path / "mine.json")) == 0
    tree: dict[str, Any] = json.loads((tmp_path / "mine.json").read_text())
    assert tree["certifies"] == "smoothed model"
    assert tree["smoothing"]["draws"] == 200
    assert "smoothed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "a run or --model"),
        (["somewhere", "--model", "digits-cnn"], "a run or --model"),
        (["nowhere"], "nowhere"),
        (["--model", "digits-cn"], "digits-cnn"),
        (["--model", "digits-cnn", "--norm", "l0"], "linf"),
        (["--model", "digits-cnn", "--norm", "lnf"], "did you mean 'linf'"),
        (["--model", "digits-cnn", "--eps", "-1"], "eps=-1"),
        (["--model", "digits-cnn", "--eps", "much"], "eps=much"),
        (["--model", "digits-cnn", "--method", "crwon"], "Did you mean 'crown'"),
        (["--model", "digits-cnn", "--sigma", "0.1"], "--method smoothing"),
        (["--model", "digits-cnn", "--method", "smoothing"], "--sigma"),
        (["--model", "digits-cnn", "--method", "smoothing", "--sigma", "0"], "sigma=0"),
        (["--model", "vit-tiny-of-nobody"], "vit-tiny-of-nobody"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what is allowed, and nothing is written."""
    assert certify(*options, "--points", "2", "--runs-dir", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_options_of_a_model_are_not_for_a_run(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has its own data and network."""
    assert certify(str(own_run), "--dataset", "mnist") == 2
    assert "--dataset goes with --model" in capsys.readouterr().err
