"""Models that abstain by one more output: right on attacked points, wrong on clean ones, searched as such."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from advbench import evaluate_model
from advbench.cli.main import invoke
from advbench.data import DataSet, Split
from advbench.evaluation.abstaining import AbstainingIsRight
from advbench.evaluation.evaluate import evaluate
from advbench.external import Source, load_foreign
from advbench.verify import verify_run
from attacks_pool import InputError, pool
from attacks_pool.verifier import predict_exactly
from leaderboards import json_bytes, read_record, rows, write_bytes, write_checksums
from leaderboards.peers.robustbench_export import entry_of

Network = Callable[..., nn.Sequential]
ATTACKS = "fgsm,pgd:steps=5,square:steps=50"


class Abstaining(nn.Module):
    """A classifier whose further output grows with ``doubt`` and the distance of the mean pixel from 0.3."""

    abstains = True

    def __init__(self, model: nn.Module, doubt: float, *, noise: float = 0.0) -> None:
        super().__init__()
        self.model, self.doubt, self.noise = model, doubt, noise

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K + 1)."""
        logits = self.model(x)
        logits = logits + self.noise * torch.randn_like(logits)
        last = self.doubt + 5 * (x.flatten(1).mean(1, keepdim=True) - 0.3).abs()
        return torch.cat([logits, last], 1)


@pytest.fixture(scope="module")
def trained(digits: DataSet) -> nn.Sequential:
    """A linear classifier that is right on most digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(digits.train.x), digits.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def measured(model: nn.Module, digits: DataSet, attacks: str = ATTACKS, points: int = 60, **more: Any) -> Any:
    """A row of R."""
    found = [(attack, points) for attack in pool.sequence(attacks, budget="digits")]
    data = Split(digits.test.x[:points], digits.test.y[:points])
    return evaluate(lambda _: model, data, found, stage=0, seed=0, **more)


def test_scores_say_what_is_right_for_a_class() -> None:
    """Against the definition, on all orders of a few scores."""
    scores = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    scores = scores[(scores.sort(1).values.diff(dim=1) > 0).all(1)]
    for label in range(3):
        found = AbstainingIsRight(nn.Identity(), label)(scores)
        assert found.shape == (len(scores), 3)
        predicted = scores.argmax(1)
        assert torch.equal(found.argmax(1) == label, (predicted == label) | (predicted == 3))
        wrong = found.argmax(1) != label
        assert torch.equal(found.argmax(1)[wrong], predicted[wrong])


def test_one_that_never_abstains_is_as_robust_as_the_model_without(
    trained: nn.Sequential, digits: DataSet
) -> None:
    """Of attacks that draw nothing and look at no other point, the outcomes are the same."""
    plain = measured(trained, digits, "fgsm,deepfool")
    other = measured(Abstaining(trained, -1e4), digits, "fgsm,deepfool")
    assert np.array_equal(plain.clean, other.clean)
    assert np.array_equal(plain.robust, other.robust)
    assert 0 < plain.robust[0].sum() < plain.clean.sum()


def test_one_that_always_abstains_is_wrong_on_every_clean_point(
    trained: nn.Sequential, digits: DataSet
) -> None:
    row = measured(Abstaining(trained, 1e4), digits)
    assert not row.clean.any()
    assert not row.robust.any()


def test_one_that_notices_attacks_is_right_under_them(trained: nn.Sequential, digits: DataSet) -> None:
    """It abstains wherever a pixel is neither 0 nor a sixteenth's multiple, as every attack leaves some."""

    class Noticing(Abstaining):
        def forward(self, x: Tensor) -> Tensor:
            odd = ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1, keepdim=True)
            return torch.cat([self.model(x), 1e4 * odd.float()], 1)

    row = measured(Noticing(trained, 0.0), digits, "pgd:steps=5,eps=0.11")
    assert row.clean.sum() > 40
    assert np.array_equal(row.robust[0], row.clean)


def test_attacks_are_adaptive(trained: nn.Sequential, digits: DataSet) -> None:
    """They find points that are taken for another class, where plain searches end in abstentions."""
    model = Abstaining(trained, 0.0)
    # High enough to stand above the true class on the way to another.
    with torch.no_grad():
        clean = trained(digits.test.x[:60])
    model.doubt = float((clean.topk(2, 1).values.sum(1) / 2).median())
    row = measured(model, digits, "pgd:steps=20")
    x, y = digits.test.x[:60][row.clean], digits.test.y[:60][row.clean]
    naive = pool.get("pgd", budget="digits", steps=20)(model, x, y, early_stop=True)
    predicted = predict_exactly(model, naive).argmax(1)
    survives_naive = int(((predicted == y) | (predicted == 10)).sum())
    assert row.robust[0].sum() < survives_naive
    assert row.cells[1].invalid == 0


def test_random_ones_are_judged_by_their_mean(trained: nn.Sequential, digits: DataSet) -> None:
    row = measured(Abstaining(trained, -1e4, noise=0.5), digits, "fgsm", 30)
    assert row.draws == 16
    assert set(row.single) == {"clean", row.cells[1].attack}
    always = measured(Abstaining(trained, 1e4, noise=0.5), digits, "fgsm", 30)
    assert (always.clean.sum(), always.single["clean"]) == (0, 0)


OUTSIDE = """
import torch
from torch import nn
class Doubting(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(64, outputs)
    def forward(self, x):
        return self.linear(x.flatten(1))
def make(num_classes):
    return Doubting(num_classes)
def plain():
    return Doubting(10)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: nn.Sequential) -> Path:
    """A directory with a factory and weights of eleven outputs."""
    (tmp_path / "doubting.py").write_text(OUTSIDE)
    weight, bias = trained[1].weight.detach(), trained[1].bias.detach()
    last = torch.full((1, 64), 0.02)
    state = {"linear.weight": torch.cat([weight, last]), "linear.bias": torch.cat([bias, torch.zeros(1)])}
    save_file(state, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "doubting", raising=False)
    return tmp_path


@pytest.mark.slow
def test_it_is_said_in_the_record_and_kept_apart(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the protocol, the row's settings, the export and what is printed."""
    given = ["eval", "--model", "doubting:make", "--weights", "w.safetensors", "--attacks", "fgsm"]
    given += ["--points", "40", "--surrogate", "none", "--threads", "1"]
    assert invoke([*given, "--abstain", "last"]) == 0
    printed = capfd.readouterr().out
    assert "abstains   by its last output: right on attacked points, wrong on clean ones" in printed
    (directory,) = (here / "runs").iterdir()
    record = read_record(directory)
    clean, fgsm = record.cells
    assert clean.abstained is not None
    assert fgsm.abstained is not None
    shown = f"clean {100 * clean.abstained / 40:.1f} %, fgsm {100 * fgsm.abstained / 40:.1f} %"
    assert f"abstained  {shown}" in printed
    assert invoke(["show", str(directory)]) == 0
    assert f"abstained  {shown}" in capfd.readouterr().out
    assert record.config["abstain"] == "last"
    assert record.stages[0].spec["abstain"] == "last"
    evaluate_model(
        "doubting:plain", name="doubting:make", attacks="fgsm", points=40, surrogate="none", runs_dir="runs"
    )
    found = rows([read_record(path) for path in sorted((here / "runs").iterdir())])
    assert sorted(str(row.params.get("abstain")) for row in found) == ["None", "last"]
    assert len({row.comparison for row in found}) == 2
    entry = dict(entry_of(record).pairs)
    assert "Its last output abstains, which counts as right on attacked points." in entry["footnote"]


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_how_often_it_abstains_is_counted(noise: float, trained: nn.Sequential, digits: DataSet) -> None:
    """On clean points by its scores; under attack where that alone makes a point right."""
    points = Split(digits.test.x[:60], digits.test.y[:60])
    attack = pool.get("gaussian-noise", eps=0.5)
    for doubt in (-100.0, 4.0, 100.0):
        model = Abstaining(trained, doubt, noise=noise)
        row = evaluate(lambda _, m=model: m, points, [(attack, 60)], stage=0, seed=0)
        clean, noisy = row.cells
        expected = int((predict_exactly(model, points.x).argmax(1) == 10).sum())
        assert clean.abstained is not None
        assert abs(clean.abstained - expected) <= (2 if noise else 0)
        assert noisy.abstained is not None
        assert 0 <= noisy.abstained <= noisy.robust
        if doubt == 4.0:
            assert 0 < clean.abstained < 60
            assert noisy.abstained > 0
        else:
            assert (clean.abstained, noisy.abstained) == ((0, 0) if doubt < 0 else (60, 0))
    row = evaluate(lambda _: trained, points, [(attack, 60)], stage=0, seed=0)
    assert [cell.abstained for cell in row.cells] == [None, None]
    assert "abstained" not in row.cells[0].model_dump()


@pytest.mark.slow
def test_the_count_is_verified(here: Path) -> None:
    """A record that says another one is refuted; one from before it was counted is not."""
    given: dict[str, Any] = {"attacks": "gaussian-noise:eps=0.4", "points": 40, "surrogate": "none"}
    run = evaluate_model(
        "doubting:make", runs_dir=here / "runs", threads=1, weights="w.safetensors", abstain="last", **given
    )
    tree = run.record.dump()
    for said, faults in ((None, 0), (1 + tree["cells"][0]["abstained"], 1)):
        tree["cells"][0]["abstained"] = said
        data = json_bytes(tree)
        write_bytes(run.path / "record.json", data)
        write_checksums(run.path, data)
        report = verify_run(replace(run, record=read_record(run.path), trust=True))
        assert len(report.faults) == faults
        assert all("abstained is" in fault for fault in report.faults)


@pytest.mark.slow
def test_verify_measures_it_as_it_was(here: Path) -> None:
    given: dict[str, Any] = {"attacks": "fgsm,pgd:steps=3", "points": 40, "surrogate": "none", "threads": 1}
    given |= {"weights": "w.safetensors", "abstain": "last"}
    alone = evaluate_model("doubting:make", runs_dir=here / "alone", **given)
    assert alone.record.cells[1].robust > 0
    report = verify_run(replace(alone, trust=True))
    assert report.faults == []
    assert report.comparisons


@pytest.mark.usefixtures("here")
def test_other_numbers_of_outputs_and_other_words_are_refused(
    trained: nn.Sequential, digits: DataSet, capfd: pytest.CaptureFixture[str]
) -> None:
    more = r"11 logits an image, more than the 10 classes .*: if the last one abstains, give --abstain last$"
    with pytest.raises(InputError, match=more):
        load_foreign(Abstaining(trained, 0.0), digits)
    with pytest.raises(InputError, match=r"10 logits an image, fewer than .* and one that abstains$"):
        load_foreign(trained, digits, abstain=True)
    assert invoke(["eval", "--model", "doubting:make", "--attacks", "fgsm", "--abstain", "first"]) == 2
    said = capfd.readouterr().err
    assert said == "error: unknown way to abstain 'first' (allowed: last)\n"
    source = Source("doubting:make", weights=Path("w.safetensors"), mean=(0.1,), std=(1.0,))
    assert load_foreign(source, digits, abstain=True).model.abstains
