"""Planted models: each way of only seeming robust is caught by its flag, and honest models raise none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import evaluate_model
from advbench.audit import audit, probe
from advbench.audit.probes import Probes
from advbench.audit.stored import audit_run
from advbench.audit.surrogates import Surrogate
from advbench.cli.main import invoke
from advbench.data import DataSet, Split
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.stochastic import AveragedDraws, MeanOfDraws, history_gap, is_stochastic
from advbench.external import job as evaljob
from advbench.runs.saved import Run
from attacks_pool import Attack, pool
from leaderboards import Audit
from leaderboards.records.store import read_probe_outcomes

ATTACKS = pool.sequence("fgsm,pgd,pgd-l2", budget="digits")


def layers(width: int, *, norm: bool) -> nn.Sequential:
    """A small network for digits."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [conv, nn.ReLU()]

    head = [nn.Flatten(), nn.Linear(32 * width, 10)]
    return nn.Sequential(*block(1, width, 1), *block(width, 2 * width, 2), *head)


def trained(
    data: DataSet, *, seed: int, width: int = 16, norm: bool = False, attack: Attack | None = None
) -> nn.Module:
    """Trained for a second or two, the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = layers(width, norm=norm)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for epoch in range(8 if attack is None else 10):
            for index in torch.randperm(len(data.train.x)).split(128):
                x, y = data.train.x[index], data.train.y[index]
                if attack is not None and epoch > 2:
                    x = attack(model, x, y)
                model.train()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _trained_once() -> Iterator[None]:
    """The surrogate that ``eval`` trains is the same for every model here."""
    train, kept = evaljob.plain_surrogate, {}

    def once(data: DataSet, seed: int, device: torch.device) -> Surrogate:
        key = (data.fingerprint, seed)
        if key not in kept:
            kept[key] = train(data, seed, device)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaljob, "plain_surrogate", once)
        yield


@pytest.fixture(scope="module")
def plain(digits: DataSet) -> nn.Module:
    """The honest model that masks are put on."""
    return trained(digits, seed=0)


@pytest.fixture(scope="module")
def other(digits: DataSet) -> nn.Module:
    """The surrogate: another seed."""
    return trained(digits, seed=100)


def judge(model: nn.Module, data: DataSet, surrogate: nn.Module, *, points: int = 200) -> Audit:
    """The audit of a model that was never run, under a surrogate."""
    test = Split(data.test.x, data.test.y)
    pairs = [(attack, points) for attack in ATTACKS]
    found = probe(
        lambda _: model.eval(), test, attacks=ATTACKS, surrogate=surrogate, seed=0, stage=0, points=points
    )
    return audit([], pairs, probes=found)


def evaluated(model: nn.Module, runs_dir: Path, *, points: int = 200) -> Audit:
    """The audit of ``advbench eval``, which trains a surrogate of its own."""
    attacks = "fgsm,apgd:steps=40,loss=margin,pgd-l2:steps=40,loss=margin"
    run = evaluate_model(model, attacks=attacks, points=points, threads=1, runs_dir=runs_dir)
    return run.record.audit


def transferred(audit: Audit) -> list[int]:
    """What each probe leaves whose points were crafted on the surrogate."""
    return [cell.robust for cell in audit.probes if cell.threat.access == "transfer"]


def codes(audit: Audit) -> set[str]:
    """The flags raised."""
    return {flag.code for flag in audit.flags}


def least(audit: Audit) -> int:
    """What the best PGD on the model itself leaves at eps 0.2."""
    found = [cell for cell in audit.probes if cell.attack.startswith("pgd:eps=0.2,")]
    return min(cell.robust for cell in found if cell.threat.access == "white-box")


class Masked(nn.Module):
    """A function put around a model's input and output."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.after(self.model(self.before(x)))
        return logits


def quantised(x: Tensor) -> Tensor:
    """Eight levels, and no gradient."""
    return torch.round(x * 8) / 8


def where_crafted(x: Tensor) -> Tensor:
    """Points off the data's 17 levels are brought back to them, which shatters their gradient."""
    levels = torch.round(x * 16) / 16
    crafted = ((x - levels).abs() > 1e-5).float().flatten(1).mean(1) > 0.1
    return torch.where(crafted.view(-1, 1, 1, 1), levels, x)


def noisy(x: Tensor) -> Tensor:
    """Resized at random and back, with noise."""
    side = int(torch.randint(6, 9, (1,)))
    small = F.interpolate(x, size=(side, side), mode="bilinear")
    return F.interpolate(small, size=(8, 8), mode="bilinear") + 0.15 * torch.randn_like(x)


class Forgetful(nn.Module):
    """NaN logits for a hundredth of the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        chosen = (x.double().flatten(1).sum(1) * 12345.678).frac() < 0.01
        return torch.where(chosen[:, None], torch.nan, self.model(x))


class Remembering(nn.Module):
    """Logits moved by the last batch that it saw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.model(x)
        moved = logits + 0.1 * self.last[-1].mean() if self.last else logits
        self.last = [x.detach().flatten(1)[:, ::3]]
        return moved


class AlwaysTraining(nn.Module):
    """Batch norm that eval mode does not reach."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> AlwaysTraining:
        """Batch norm stays in train mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "adversarial", "norm", "wide", "tiny"])
@pytest.mark.slow
def test_honest_models_raise_no_flag(
    digits: DataSet, other: nn.Module, kind: str, seed: int, tmp_path: Path
) -> None:
    """Plain, adversarially trained, with batch norm, wide, tiny; transferred points beat none of them."""
    attack = pool.get("pgd", eps=0.2, steps=3) if kind == "adversarial" else None
    width = {"wide": 32, "tiny": 3}.get(kind, 16)
    model = trained(digits, seed=seed, width=width, norm=kind == "norm", attack=attack)
    results = [judge(model, digits, other)]
    if seed == 0:
        results.append(evaluated(model, tmp_path))
    for result in results:
        assert result.flags == []
        assert result.verdict == "ok"
        assert "transfer-beats-white-box" in result.checks
        assert len(transferred(result)) == 3
        assert min(transferred(result)) >= least(result) - 5


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (quantised, None, {"zero-gradient", "transfer-beats-white-box", "black-box-beats-white-box"}),
        (
            where_crafted,
            None,
            {"zero-gradient", "single-step-beats-iterative", "transfer-beats-white-box"},
        ),
        (None, lambda z: F.softmax(z, 1), {"probabilities-not-logits"}),
        (None, lambda z: z - z.mean(0), {"batch-dependent"}),
    ],
    ids=["quantised", "detector", "probabilities", "company"],
)
@pytest.mark.slow
def test_masks_are_caught(
    digits: DataSet,
    plain: nn.Module,
    other: nn.Module,
    before: Callable[[Tensor], Tensor] | None,
    after: Callable[[Tensor], Tensor] | None,
    expected: set[str],
    tmp_path: Path,
) -> None:
    """Each by its own flag; where gradients are gone, transferred points beat those of the model itself."""
    identity: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    model = Masked(plain, before or identity, after or identity)
    for result in (judge(model, digits, other), evaluated(model, tmp_path)):
        assert result.verdict == "suspect"
        assert expected <= codes(result)
        assert all(flag.evidence for flag in result.flags)
        if before is not None:
            assert "unbounded-attack-fails" in codes(result)
            assert max(transferred(result)) < least(result) - 50


@pytest.mark.quick(r".*suspect")
@pytest.mark.parametrize(
    ("factor", "suite", "verdict"), [(1e4, "fgsm,pgd", "suspect"), (1e4, "fgsm,pgd:loss=margin", "ok")]
)
def test_confidence_is_suspect_where_it_blinds_the_run(
    plain: nn.Module, factor: float, suite: str, verdict: str, tmp_path: Path
) -> None:
    """The CE of huge logits is flat: a run that relies on it claims too much, one that does not is right."""
    model = Masked(plain, after=lambda z: z * factor)
    record = evaluate_model(model, attacks=suite, points=100, threads=1, runs_dir=tmp_path).record
    assert record.audit.verdict == verdict
    assert ("zero-gradient" in codes(record.audit)) is (verdict == "suspect")
    assert (record.metrics["worst_case_accuracy"] or 0) > 0.8 or verdict == "ok"


def test_logits_that_are_no_numbers_are_found(digits: DataSet, plain: nn.Module, other: nn.Module) -> None:
    """Though only a hundredth of the images have them: all test points are looked at."""
    result = judge(Forgetful(plain), digits, other, points=40)
    assert result.verdict == "invalid"
    (flag, *_) = [flag for flag in result.flags if flag.code == "nan-logits"]
    assert 0 < flag.evidence["count"] < 18
    assert flag.evidence["points"] == 360


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "chance"])
def test_other_faults_stay_what_they_are_beside_a_trained_surrogate(
    plain: nn.Module, kind: str, tmp_path: Path, global_randomness: Callable[[], bool]
) -> None:
    """Scores that are no numbers and random answers get their own flags from ``eval``, and no other."""
    model = Forgetful(plain) if kind == "nan" else Masked(plain, noisy)
    result = evaluated(model.eval(), tmp_path, points=160 if kind == "nan" else 40)
    assert codes(result) == ({"nan-logits"} if kind == "nan" else {"stochastic"})
    assert len(transferred(result)) == 3
    assert "transfer-beats-white-box" in result.checks
    assert global_randomness()


@pytest.mark.slow
def test_a_memory_and_a_living_batch_norm_are_company(digits: DataSet, other: nn.Module) -> None:
    """Neither is chance."""
    normed = AlwaysTraining(trained(digits, seed=3, norm=True)).eval()
    remembering = Remembering(other)
    x = digits.test.x[:32]
    assert history_gap(remembering, x) > 0.001
    assert not is_stochastic(remembering, x)
    for model, way in ((remembering, "history"), (normed, "company")):
        result = judge(model, digits, other, points=60)
        (flag,) = [flag for flag in result.flags if flag.code == "batch-dependent"]
        assert way in flag.evidence["relative_difference"]
        assert "stochastic" not in codes(result)


def test_chance_is_found_and_judged_by_many_draws(
    digits: DataSet, plain: nn.Module, other: nn.Module, global_randomness: Callable[[], bool]
) -> None:
    """Suspect, with what one draw says; but searched by many draws, it hides nothing from white-box."""
    model = Masked(plain, noisy).eval()
    assert is_stochastic(model, digits.test.x[:32])
    result = judge(model, digits, other, points=120)
    assert result.verdict == "suspect"
    assert codes(result) == {"stochastic"}
    evidence = result.flags[0].evidence
    assert (evidence["draws"], evidence["crafted_by"], evidence["declared"]) == (16, 20, False)
    clean = evidence["right_by_mean"]["clean"], evidence["right_by_one_draw"]["clean"]
    # Thirty points; the mean of draws is right more often than one.
    assert clean[1] <= clean[0] <= 30
    assert result.probes[0].forwards == 20 * clean[0]
    assert global_randomness()


def test_draws_are_fresh_keyed_and_never_shared(digits: DataSet, plain: nn.Module) -> None:
    """Equal keys judge alike whatever the global state; other keys otherwise; a row repeats itself."""
    model = Masked(plain, noisy).eval()
    x, y = digits.test.x[:40], digits.test.y[:40]
    first, again, different = (MeanOfDraws(model, (key,))(x) for key in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, different)
    torch.testing.assert_close(first.sum(1), torch.ones(40))
    rows = [evaluate(lambda _: model, Split(x, y), [(ATTACKS[0], 40)], stage=1, seed=0) for _ in range(2)]
    assert (rows[0].robust == rows[1].robust).all()
    assert rows[0].draws == 16
    assert rows[0].single == rows[1].single
    assert set(rows[0].single) == {"clean", ATTACKS[0].text}


def test_the_search_averages_its_draws(plain: nn.Module, digits: DataSet) -> None:
    """Of one and the same answer, the log of the mean softmax is its log-softmax; gradients too."""
    x, y = digits.test.x[:8].clone().requires_grad_(), digits.test.y[:8]
    torch.testing.assert_close(AveragedDraws(plain, 5)(x), F.log_softmax(plain(x), 1), rtol=1e-4, atol=1e-4)
    (many,) = torch.autograd.grad(F.cross_entropy(AveragedDraws(plain, 5)(x), y), x)
    (once,) = torch.autograd.grad(F.cross_entropy(plain(x), y), x)
    torch.testing.assert_close(many, once, rtol=1e-3, atol=1e-6)


def probed(model: nn.Module, data: DataSet, attacks: Sequence[Attack]) -> Probes:
    """Probes of a few points, without a surrogate."""
    return probe(lambda _: model, Split(data.test.x, data.test.y), attacks=attacks, points=20)


@pytest.mark.slow
def test_probes_take_the_norms_and_budgets_of_the_run(digits: DataSet, plain: nn.Module) -> None:
    """The largest eps of each; without a surrogate nothing is transferred."""
    found = probed(plain, digits, pool.sequence("pgd:eps=0.05,fgsm:eps=0.1", budget="digits"))
    assert {cell.threat.norm for cell in found.cells} == {"linf"}
    assert sorted({cell.threat.eps for cell in found.cells}) == [0.05, 0.095, 0.1, 0.105, 1.0]
    assert {cell.threat.access for cell in found.cells} == {"white-box", "black-box"}
    assert found.robust.shape == (len(found.cells), 20)
    assert [cell.robust for cell in found.cells] == found.robust.sum(1).tolist()
    assert found.surrogate is None
    with_l2 = probed(plain, digits, pool.sequence("pgd-l2:eps=0.7", budget="digits"))
    assert {cell.threat.eps for cell in with_l2.cells if cell.threat.norm == "l2"} == {0.665, 0.7, 0.735}


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_run_keeps_its_probes_and_can_be_audited_again(small_run: Run) -> None:
    """Cells in the record, outcomes beside the others; a second audit of the saved weights finds the same."""
    recorded = small_run.record.audit
    assert recorded.surrogate == "row 0"
    assert {cell.stage for cell in recorded.probes} == {2}
    assert "transfer" in {cell.threat.access for cell in recorded.probes}
    outcomes = read_probe_outcomes(small_run.path / "outcomes.npz")
    assert outcomes.sum(1).tolist() == [cell.robust for cell in recorded.probes]
    again = audit_run(small_run)
    assert again.flags == recorded.flags
    assert again.verdict == recorded.verdict
    timeless = [
        [cell.model_dump(exclude={"seconds"}) for cell in found.probes] for found in (recorded, again)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_the_command_exits_by_the_verdict(small_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is the audit itself; 0 where it is ok, 1 where it is not."""
    code = invoke(["audit", str(small_run.path), "--points", "40", "--format", "json"])
    result = Audit.model_validate_json(capsys.readouterr().out)
    assert code == (0 if result.verdict == "ok" else 1)
    assert {cell.n for cell in result.probes} == {40}
    surrogate = ["--surrogate", str(small_run.path)]
    invoke(["audit", str(small_run.path), "--points", "20", *surrogate])
    shown = capsys.readouterr().out
    assert f"crafted on run {small_run.record.id}" in " ".join(shown.split())
    assert "audit: " in shown
