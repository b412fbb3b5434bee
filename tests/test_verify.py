"""``advbench verify``: honest runs are confirmed, and whatever was forged is refuted with evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench import run as run_benchmark
from advbench.cli.main import invoke
from advbench.evaluation.evaluate import evaluate
from advbench.external.evaluate_model import evaluate_model
from advbench.runs.record import per_class_counts
from advbench.runs.saved import Run, load_run
from advbench.runtime.events import Event
from advbench.runtime.failures import RunFailedError
from advbench.runtime.hashing import weights_digest
from advbench.runtime.interrupts import Interrupted
from advbench.verify import Asked, Comparison, Report, retrain_run, rounding, verify_run
from advbench.verify.audit_again import check_surrogate
from advbench.verify.report import judge
from advbench.verify.rounding import RoundingSpread, far_off
from advbench.verify.subject import subject_of
from attacks_pool import InputError, pool
from defenses import TrainingDivergedError
from leaderboards import (
    Record,
    RecordError,
    check_run,
    find_results,
    json_bytes,
    pack,
    parse_record,
    read_outcomes,
    trust_of,
    write_bytes,
    write_checksums,
    write_json,
    write_outcomes,
)
from leaderboards.records.store import read_probe_outcomes
from leaderboards.statistics.measured import metrics_of, transfer_metric

Captured = pytest.CaptureFixture[str]
MIDDLE = Asked(stages="1")
"""A stage without an audit: half the time."""
LAST = Asked(stages="last", seed=0)


@pytest.fixture
def copy(trained_run: Run, tmp_path: Path) -> Run:
    """A run of its own for whoever changes it."""
    shutil.copytree(trained_run.path, tmp_path / "runs" / trained_run.path.name)
    return load_run(tmp_path / "runs" / trained_run.path.name)


def forge(run: Run, change: Callable[[dict[str, Any]], object] = lambda _: None, *, sums: bool = True) -> Run:
    """The run with its record changed and, with ``sums``, checksums that fit again."""
    tree = run.record.dump()
    change(tree)
    data = json_bytes(tree)
    parse_record(data, "forged")
    if sums:
        write_checksums(run.path, data)
    write_bytes(run.path / "record.json", data)
    return load_run(run.path)


def with_outcomes(run: Run, robust: Any) -> Run:
    """The run with other outcomes, and everything that follows from them made to fit."""
    clean, _ = read_outcomes(run.path / "outcomes.npz")
    probes = read_probe_outcomes(run.path / "outcomes.npz")
    write_outcomes(run.path / "outcomes.npz", clean, robust, probes=probes)
    subject = subject_of(run)
    texts = [attack.text for attack in subject.every]
    rows = {stage.index: row for row, stage in enumerate(run.record.stages)}

    def change(tree: dict[str, Any]) -> None:
        for cell in tree["cells"]:
            if cell["attack"] != "clean":
                outcome = robust[rows[cell["stage"]], texts.index(cell["attack"])]
                cell["robust"] = int(outcome.sum())
        points = [count for _, count in subject.measured]
        seen, unseen = subject.attacks["seen"], subject.attacks["unseen"]
        tree["metrics"] = metrics_of(
            clean, robust, regime=run.record.regime, seen=len(seen), unseen=len(unseen), points=points
        ) | transfer_metric(run.record.audit.probes, [attack.text for attack in seen])
        tree["per_class"] = [
            entry.model_dump(mode="json", by_alias=True)
            for entry in per_class_counts(run.data, clean[-1], robust[-1], texts)
        ]

    return forge(run, change)


def refuted(run: Run, asked: Asked = MIDDLE) -> Report:
    """The report of a run that is refuted, and whose files alone show nothing."""
    assert check_run(run.path).problems == []
    report = verify_run(run, asked)
    assert not report.confirmed
    assert report.verdict == "refuted"
    return report


def test_an_honest_run_is_confirmed_bit_for_bit(small_run: Run) -> None:
    """Every stage, attack, point and probe; and it says what it did not look at."""
    report = verify_run(small_run)
    assert report.confirmed
    assert report.faults == []
    assert report.complete
    assert report.discordant == 0
    record = small_run.record
    assert [(one.stage, one.attack, one.compared) for one in report.comparisons if not one.probe] == [
        (cell.stage, cell.attack, cell.n) for cell in record.cells
    ]
    probes = [(one.attack, one.compared) for one in report.comparisons if one.probe]
    assert probes == [(cell.attack, cell.n) for cell in record.audit.probes]
    assert "the audit, repeated" in report.checked
    assert report.not_looked_at == [
        "how the weights were trained: advbench verify --retrain trains again",
        "how long everything took",
    ]
    assert "this is the record's environment" in report.notes[0]
    json.dumps(report.tree(), allow_nan=False)


def test_a_sample_says_what_it_leaves_out(trained_run: Run) -> None:
    """Stages and attacks by name; it confirms, and is not enough for a mark."""
    report = verify_run(trained_run, Asked(stages="2,1", attacks="fgsm,cw", seed=3))
    assert report.confirmed
    assert not report.complete
    assert {(one.stage, one.attack.partition(":")[0]) for one in report.comparisons if not one.probe} == {
        (stage, name) for stage in (1, 2) for name in ("clean", "fgsm", "cw")
    }
    left = " ".join(report.not_looked_at)
    assert "stages 0" in left
    assert "gaussian-noise" in left
    assert report.sample["seed"] == 3


def test_counts_that_were_edited(copy: Run) -> None:
    """In the record alone: the stored outcomes say otherwise, and no model is run."""

    def more(tree: dict[str, Any]) -> None:
        cell = next(cell for cell in tree["cells"] if cell["attack"].startswith("pgd") and cell["stage"] == 2)
        cell["robust"] += 20

    report = verify_run(forge(copy, more))
    assert not report.confirmed
    assert any("the stored outcomes have" in fault for fault in report.faults)
    assert report.comparisons == []
    assert report.not_looked_at == ["every model: what is stored contradicts itself already"]


def test_counts_that_were_edited_everywhere(copy: Run) -> None:
    """In outcomes and record alike, metrics and checksums made to fit: only the model knows better."""
    clean, robust = read_outcomes(copy.path / "outcomes.npz")
    fooled = np.flatnonzero(clean[1] & ~robust[1, 1])[:12]
    robust[1, 1, fooled] = True
    report = refuted(with_outcomes(copy, robust))
    (fault,) = report.faults
    assert "stage 1, pgd:" in fault
    assert f"{len(fooled)} robust only in the record (points {fooled[0]}, {fooled[1]}" in fault
    found = next(one for one in report.comparisons if one.attack.startswith("pgd:"))
    assert found.record_only == fooled.tolist()
    assert found.here_only == []


def test_weights_that_were_swapped(copy: Run, at_run: Run) -> None:
    """With checksums that fit: the outcomes are not theirs. A final model of its own is no other's."""
    name = "stages/1.safetensors"
    shutil.copy(at_run.path / name, copy.path / name)
    report = refuted(forge(copy))
    assert any("stage 1, fgsm" in fault for fault in report.faults)
    assert report.discordant > 20
    shutil.copy(at_run.path / "model.safetensors", copy.path)
    report = refuted(forge(copy))
    assert report.faults == ["model.safetensors: not the weights of the last stage, stages/2.safetensors"]


def test_a_weakened_attack(copy: Run) -> None:
    """The record says three steps, and its outcomes are those of one tiny step."""
    subject = subject_of(copy)
    weak = pool.get("pgd", eps=0.2, steps=1, step_size=0.001, random_start="false")
    row = evaluate(copy.stage(1).view, subject.test, [(weak, 360)], stage=1, seed=0)
    _, robust = read_outcomes(copy.path / "outcomes.npz")
    robust[1, 1] = row.robust[0]
    report = refuted(with_outcomes(copy, robust))
    assert [fault.partition(":")[0] for fault in report.faults] == ["stage 1, pgd"]
    found = next(one for one in report.comparisons if one.attack.startswith("pgd:"))
    assert len(found.record_only) > 4
    assert found.here_only == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "average_robust_accuracy",
            0.99,
            "metrics: average_robust_accuracy is 0.99, the stored outcomes give",
        ),
        ("unseen_gap", None, "metrics: unseen_gap is None"),
        (
            "my_own_metric",
            1.0,
            "metrics: my_own_metric is 1.0, the stored outcomes give nothing of this name",
        ),
    ],
)
def test_metrics_that_were_edited(copy: Run, key: str, value: Any, said: str) -> None:
    """They are recomputed."""
    report = refuted(forge(copy, lambda tree: tree["metrics"].update({key: value})))
    assert said in report.faults[0]
    assert report.comparisons == []


def _flag(tree: dict[str, Any]) -> None:
    flag = {"code": "zero-gradient", "message": "none", "evidence": {}}
    tree["audit"]["flags"].append(flag)
    tree["audit"]["verdict"] = "suspect"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "verdict": (lambda tree: tree["audit"].update(verdict="suspect"), "its flags give"),
    "protocol": (lambda tree: tree.update(protocol="0" * 12), "protocol: '000000000000', its attacks"),
    "attack entry": (
        lambda tree: tree["attacks"][1].update(family="ensemble"),
        "attacks: not those that the configuration resolves to",
    ),
    "threat": (lambda tree: tree["cells"][2]["threat"].update(eps=0.3), "its threat"),
    "class": (
        lambda tree: (
            tree["per_class"][0].update(n=40, clean_correct=0, worst_case=0)
            or tree["per_class"][0]["robust"].update(dict.fromkeys(tree["per_class"][0]["robust"], 0))
        ),
        "per_class: ",
    ),
    "manifest": (lambda tree: tree["config"].update(seed=5), "run.json: has another seed"),
    "fingerprint": (
        lambda tree: tree["environment"]["data"].update(fingerprint="f" * 64),
        "run.json: data is",
    ),
    "target-aware": (
        lambda tree: tree["config"].update(target_aware=True),
        "target_aware: True is wrong for at",
    ),
    "stages": (lambda tree: tree["stages"][1].update(attacks=[]), "stages: not those that the sequence"),
    "defense": (lambda tree: tree["stages"][1]["spec"].update(defense="air"), "stage 1 has defense 'air'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_contradicts_itself(copy: Run, edit: str) -> None:
    """Without a model, though the checksums fit."""
    change, said = EDITS[edit]
    report = refuted(forge(copy, change))
    assert any(said in fault for fault in report.faults), report.faults
    assert report.comparisons == []


def test_an_identity_that_was_edited(copy: Run) -> None:
    """It is the hash of the manifest's own facts and the configuration."""
    tree = json.loads((copy.path / "run.json").read_text())
    tree["more"]["facts"]["code"] = "0" * 64
    write_json(copy.path / "run.json", tree)
    assert refuted(forge(copy)).faults == [
        "run.json: its identity is not the hash of its configuration and its facts"
    ]


def test_an_audit_that_was_edited(small_run: Run, tmp_path: Path) -> None:
    """A verdict that its own flags belie, flags that nothing bears out, probes and a flag that are gone."""
    shutil.copytree(small_run.path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    last = Asked(stages="last", attacks="fgsm")
    report = refuted(forge(run, _flag), last)
    assert report.faults == ["audit: zero-gradient is in the record, but not found here"]
    clean, robust = read_outcomes(run.path / "outcomes.npz")
    write_outcomes(run.path / "outcomes.npz", clean, robust)

    def stripped(tree: dict[str, Any]) -> None:
        tree["audit"] = {**small_run.record.audit.model_dump(mode="json"), "probes": [], "surrogate": None}
        tree["audit"]["flags"] = [{"code": "batch-dependent", "message": "", "evidence": {}}]
        tree["audit"]["verdict"] = "suspect"
        tree["metrics"].pop("transfer_accuracy", None)

    report = refuted(forge(run, stripped), last)
    assert any("batch-dependent is in the record" in fault for fault in report.faults)


def test_sizes_that_were_edited(copy: Run) -> None:
    """Tables compare costs by them."""
    forged = forge(copy, lambda tree: tree["cost"].update(parameters=7))
    report = refuted(forged, Asked(stages="last", attacks="fgsm"))
    assert any(fault.startswith("cost: 7 parameters") for fault in report.faults)


def differing(better: range, of: int = 400, worse: range = range(0), stage: int = 1) -> Comparison:
    """A comparison with points that are better in the record, and others that are worse."""
    points = np.arange(of)
    recorded, here = (np.isin(points, list(some)) for some in (better, worse))
    return Comparison.of(stage, "pgd", recorded, here, np.ones(of, dtype=bool))


def test_where_bits_are_the_same_one_outcome_refutes() -> None:
    """On the record's machine no difference is tolerated, in whichever direction."""
    assert judge([differing(range(0))], same_machine=True) == []
    for one in (differing(range(1)), differing(range(0), worse=range(1))):
        assert "1 of 400 points differ" in judge([one, differing(range(0))], same_machine=True)[0]
        assert judge([one], same_machine=False) == []


def test_where_a_share_refutes() -> None:
    """Elsewhere more than 1 % of an attack's points, or of all; never a single point of a small cell."""
    assert judge([differing(range(4))], same_machine=False) == []
    assert len(judge([differing(range(5))], same_machine=False)) == 1
    assert judge([differing(range(1), 50)], same_machine=False) == []
    assert len(judge([differing(range(2), 50)], same_machine=False)) == 1
    assert judge([differing(range(1), 50)] + [differing(range(0))] * 9, same_machine=False) == []
    assert "2 of 100 outcomes differ" in judge([differing(range(1), 50)] * 2, same_machine=False)[0]


def test_rounding_favours_neither_side() -> None:
    """Few differences a cell, that all favour the record: a sign test over points, each counted once."""
    forged = [differing(range(4 * stage, 4 * stage + 3), stage=stage) for stage in range(3)]
    (line,) = judge(forged, same_machine=False)
    assert "of 9 points whose outcomes differ, 9 are better in the record (p 0.002)" in line
    honest = [differing(range(3), worse=range(10, 11)), differing(range(20, 21), worse=range(30, 33))]
    assert judge(honest, same_machine=False) == []
    # One point that is wrong clean falls under every attack: that is one difference, not nine.
    assert judge([differing(range(1), stage=stage) for stage in range(9)], same_machine=False) == []
    assert (
        judge(
            [differing(range(0), worse=range(4 * one, 4 * one + 3)) for one in range(3)], same_machine=False
        )
        == []
    )


def test_one_outcome_of_each_cell(copy: Run) -> None:
    """Within 1 % everywhere, and refuted: this is the record's machine."""
    clean, robust = read_outcomes(copy.path / "outcomes.npz")
    for column in range(2):
        robust[1, column, np.flatnonzero(clean[1] & ~robust[1, column])[0]] = True
    report = refuted(with_outcomes(copy, robust))
    assert [fault.partition(":")[0] for fault in report.faults] == ["stage 1, fgsm", "stage 1, pgd"]


COUNTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "passes": (lambda tree: tree["cells"][2].update(forwards=10**17), "forwards is 1e+17, more than"),
    "training": (
        lambda tree: tree["cost"].update(training_forwards=10**18),
        "cost: training_forwards is 1e+18, more than",
    ),
    "seconds": (lambda tree: tree["cells"][2].update(seconds=1e308), "seconds is 1e+308, more than"),
    "a century": (
        lambda tree: tree["cost"].update(evaluation_seconds=3.2e9),
        "evaluation_seconds is 3.2e+09",
    ),
    "more than the attack can take": (
        lambda tree: tree["cells"][1].update(backwards=10**9),
        "1000000000 backward passes, no more than",
    ),
}


@pytest.mark.parametrize("edit", COUNTS)
def test_counts_that_no_run_can_have(copy: Run, edit: str) -> None:
    """Refuted without a model; a leaderboard leaves such a record out, and says so."""
    change, said = COUNTS[edit]
    report = verify_run(forge(copy, change))
    assert any(said in fault for fault in report.faults), report.faults
    assert report.comparisons == []
    if edit != "more than the attack can take":
        results, (problem,) = find_results(copy.path.parent)
        assert results == []
        assert said in problem


@pytest.mark.parametrize("count", [10**300, 10**400])
def test_counts_that_no_integer_of_64_bits_holds(copy: Run, count: int) -> None:
    """The record is not read, and the line says which key."""
    for key, change in (("cells", {"forwards": count}), ("cost", {"training_forwards": count})):

        def edit(tree: dict[str, Any], key: str = key, change: dict[str, int] = change) -> None:
            (tree[key][2] if key == "cells" else tree[key]).update(change)

        with pytest.raises(RecordError, match=rf"key '{key}.*forwards'"):
            forge(copy, edit)


def test_passes_are_counted_again(copy: Run) -> None:
    """On the record's machine, cell by cell."""
    report = refuted(forge(copy, lambda tree: tree["cells"][-3].update(forwards=7, backwards=8)), LAST)
    cell = copy.record.cells[-3]
    assert report.faults == [
        f"stage 2, {cell.attack}: forwards is 7 in the record, {cell.forwards} here",
        f"stage 2, {cell.attack}: backwards is 8 in the record, {cell.backwards} here",
    ]


def test_trained_again(small_run: Run, tmp_path: Path) -> None:
    """Without weights: outcome for outcome, and weights by their checksums; what was edited is refuted."""
    thin = tmp_path / "thin"
    shutil.copytree(small_run.path, thin, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"stored without its weights.*advbench verify --retrain"):
        verify_run(load_run(thin))
    clean, robust = read_outcomes(thin / "outcomes.npz")
    robust[1, 0, np.flatnonzero(clean[1] & ~robust[1, 0])[:8]] = True
    forged = with_outcomes(load_run(thin), robust)
    # What the checksums say of the weights that are not there is kept.
    sums = (small_run.path / "SHA256SUMS").read_text().splitlines()
    lines = (thin / "SHA256SUMS").read_text() + "\n".join(line for line in sums if "safetensors" in line)
    (thin / "SHA256SUMS").write_text(lines + "\n")
    report = retrain_run(forged)
    assert [fault.partition(":")[0] for fault in report.faults] == ["stage 1, fgsm"]
    assert "8 robust only in the record" in report.faults[0]
    assert report.discordant == 8
    assert report.compared == sum(cell.n for cell in small_run.record.cells)
    assert report.notes[0] == "weights: of 3 stages, the same bit for bit"
    assert report.complete


@pytest.mark.slow
def test_what_is_trained_again_is_kept(small_run: Run, tmp_path: Path) -> None:
    """With its weights, gone on with, and not trained twice; the run itself is no repetition of it."""
    kept = tmp_path / "kept"
    trained: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "start":
            trained.append(event.text)

    def stopping(error: BaseException) -> Callable[[Event], None]:
        def stop(event: Event) -> None:
            if event.kind == "stage":
                raise error

        return stop

    with pytest.raises(Interrupted) as stopped:
        retrain_run(small_run, listeners=[stopping(Interrupted(143))])
    assert stopped.value.how == "nothing of it is kept (--keep DIR keeps it)"
    with pytest.raises(RunFailedError, match=r"ZeroDivisionError: \?; nothing of it is kept"):
        retrain_run(small_run, listeners=[stopping(ZeroDivisionError("?"))])
    with pytest.raises(TrainingDivergedError, match=r"^no number; nothing of it is kept"):
        retrain_run(small_run, listeners=[stopping(TrainingDivergedError("no number"))])
    with pytest.raises(Interrupted) as stopped:
        retrain_run(small_run, keep=kept, listeners=[listen, stopping(Interrupted(143))])
    assert stopped.value.how == f"the same command resumes it in {kept}"
    for _ in range(2):
        report = retrain_run(small_run, keep=kept, listeners=[listen])
        assert report.confirmed
        assert report.complete
    assert len(trained) == 1
    [made] = kept.iterdir()
    assert weights_digest(load_run(made).model.state_dict()) == weights_digest(small_run.model.state_dict())
    with pytest.raises(InputError, match=r"--keep .* has run .* itself, which cannot verify itself"):
        retrain_run(load_run(made), keep=kept)
    shutil.copytree(made, tmp_path / made.name)
    with pytest.raises(InputError, match=r"--keep .* has a copy of run .*, not a repetition of it"):
        retrain_run(load_run(tmp_path / made.name), keep=kept)


def test_far_off() -> None:
    """Only a significant difference of 5 points asks for an explanation."""
    points = np.arange(400)
    everything = np.ones(400, dtype=bool)
    near = Comparison.of(1, "pgd", points < 220, (points >= 10) & (points < 220), everything)
    far = Comparison.of(1, "pgd", points < 220, points < 180, everything)
    scattered = Comparison.of(1, "pgd", points < 40, points >= 360, everything)
    assert list(far_off([near, scattered])) == []
    assert list(far_off([near, far])) == [far]


def test_what_rounding_explains() -> None:
    """As much as it makes of the same run, and never less than 5 points."""
    one = Comparison(1, "pgd", 400, 400, list(range(40)), [])
    found = (0.45, 0.48, 0.44, 0.47, 0.46)
    # t = 0.09 / (0.0158 √1.2) = 5.2 with 4 degrees of freedom.
    assert RoundingSpread(one, 0.55, found).p == pytest.approx(0.0065, abs=2e-4)
    assert RoundingSpread(one, 0.55, found).refutes
    assert not RoundingSpread(one, 0.55, (0.45, 0.58, 0.44, 0.51, 0.40)).refutes
    assert not RoundingSpread(one, 0.50, (0.46,) * 5).refutes
    assert RoundingSpread(one, 0.52, (0.46,) * 5).refutes
    # The most striking of many comparisons asks for more.
    assert RoundingSpread(one, 0.55, found, tests=27).doubtful
    assert not RoundingSpread(one, 0.55, found, tests=27).refutes
    assert RoundingSpread(one, 0.55, found, tests=27).line() == (
        "stage 1, pgd: 55.0 % in the record, 46.0 ± 1.6 % in 5 trainings that differ in rounding "
        "(p 0.0065, less than 0.00037 refutes)"
    )


@pytest.mark.parametrize(
    ("first", "later", "trainings", "refuted"),
    [
        ([0.45, 0.48, 0.44, 0.47, 0.46], [0.45, 0.48, 0.44, 0.47, 0.46] * 3, 20, True),
        ([0.45, 0.48, 0.44, 0.47, 0.46], [0.45, 0.54, 0.44, 0.50, 0.46] * 3, 20, False),
        ([0.45, 0.58, 0.44, 0.51, 0.40], [], 5, False),
        ([0.46, 0.46, 0.46, 0.46, 0.46], [], 5, True),
    ],
)
def test_a_doubt_asks_for_more(
    first: list[float],
    later: list[float],
    trainings: int,
    refuted: bool,
    small_run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five trainings settle what is far off or well inside; for the rest there are twenty."""
    one = Comparison(1, "pgd", 400, 400, list(range(40)), [])
    there = iter([*first, *later])
    given = []

    def train(**options: Any) -> float:
        given.append(options["plan"]["lr"])
        return next(there)

    monkeypatch.setattr(rounding, "run_benchmark", train)
    monkeypatch.setattr(rounding, "accuracy", lambda run, _: run)
    options = small_run.config.model_dump(mode="json")
    (spread,) = rounding.spreads([one], next(there), options, [], tests=27)
    assert spread.recorded == pytest.approx(first[0] + 0.1)
    assert spread.refutes == refuted
    assert len(spread.found) == trainings == len(given) + 1
    assert len(set(given)) == len(given)


@pytest.mark.slow
def test_training_on_another_machine(
    small_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record too far off for rounding: it is trained again, and refuted if nothing like it comes."""
    # Of those beyond the sequence only the attack in doubt is repeated, with the points asked for it.
    beyond = {"eval": "apgd:steps=2,mim:steps=2", "points": "200,apgd=50,mim=40"}
    measured = run_benchmark("at", runs_dir=tmp_path / "runs", **small_options, **beyond)
    monkeypatch.setattr("advbench.verify.train_again.differences", lambda *_: ["cpu A (here B)"])
    monkeypatch.setattr(rounding, "AGAIN", 2)
    monkeypatch.setattr(rounding, "IN_DOUBT", 4)
    honest, forged = tmp_path / "honest", tmp_path / "forged"
    for copy in (honest, forged):
        shutil.copytree(measured.path, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        sums = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
        (copy / "SHA256SUMS").write_text("".join(line for line in sums if "safetensors" not in line))
    trained: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "start":
            trained.append(event.kind)

    report = retrain_run(load_run(honest), listeners=[listen])
    assert report.confirmed
    assert not report.complete
    assert any("no exact repetition" in note for note in report.notes)
    assert len(trained) == 1
    clean, robust = read_outcomes(forged / "outcomes.npz")
    robust[1, -1, :40] = clean[1, :40]
    trained.clear()
    report = retrain_run(with_outcomes(load_run(forged), robust), listeners=[listen])
    assert [fault.partition(":")[0] for fault in report.faults] == ["stage 1, mim"]
    assert f"in {len(trained)} trainings that differ in rounding" in report.faults[0]
    assert len(trained) in (3, 5)


def test_evaluations(tmp_path: Path, small_run: Run) -> None:
    """A model of the zoo is built again; its counts are compared, and its weights must be those."""
    found = evaluate_model(
        "digits-cnn", attacks="fgsm,pgd:steps=3", points=100, threads=1, runs_dir=tmp_path, surrogate="none"
    )
    report = verify_run(found)
    assert report.confirmed, report.faults
    assert report.complete
    assert report.discordant == 0
    for change, said in (
        (lambda tree: tree["metrics"].update(clean_accuracy=0.9), "metrics: clean_accuracy is 0.9"),
        (lambda tree: tree["attacks"].reverse(), "attacks: not those"),
    ):
        shutil.copytree(found.path, tmp_path / "forged", dirs_exist_ok=True)
        report = verify_run(forged_evaluation(tmp_path / "forged", change))
        assert said in report.faults[0]
    for change, said in (
        (lambda tree: tree["stages"][0]["spec"].update(mean=0.5), "mean=0.5, not a list of numbers"),
        (lambda tree: tree["stages"][0]["spec"].update(std=["x"]), "not a list of numbers"),
        (lambda tree: tree["config"].update(eval=[3]), "an attack in eval that is not text"),
        (lambda tree: tree["config"].update(points={"default": "9"}), "must be a whole number"),
    ):
        shutil.copytree(found.path, tmp_path / "forged", dirs_exist_ok=True)
        with pytest.raises(InputError, match=said):
            verify_run(forged_evaluation(tmp_path / "forged", change))
    with pytest.raises(InputError, match="--retrain is for runs"):
        retrain_run(found)
    given = evaluate_model(
        small_run.model, attacks="fgsm", points=20, threads=1, runs_dir=tmp_path, surrogate="none"
    )
    with pytest.raises(InputError, match="a module given to Python: the record does not say how to build it"):
        verify_run(given)


def forged_evaluation(path: Path, change: Callable[[dict[str, Any]], object]) -> Run:
    """The evaluation with its record changed and its checksums made to fit."""
    tree = json.loads((path / "record.json").read_text())
    change(tree)
    data = json_bytes(tree)
    write_checksums(path, data)
    write_bytes(path / "record.json", data)
    record: Record = parse_record(data, "forged")
    return Run(path, record)


def test_on_the_command_line(small_run: Run, tmp_path: Path, capsys: Captured) -> None:
    """Exit 0 and a mark; 1, with evidence, and the mark gone."""
    shutil.copytree(small_run.path, tmp_path / "run")
    copy = load_run(tmp_path / "run")
    assert trust_of(copy.path) == "self-reported"
    command = ["verify", str(copy.path)]
    assert invoke([*command, "--attacks", "fgsm", "--stages", "1"]) == 0
    assert "not marked as re-evaluated" in capsys.readouterr().out
    assert trust_of(copy.path) == "self-reported"
    assert invoke([*command, "--format", "json", "--seed", "1"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["verdict"], tree["discordant"], tree["mark"]) == ("confirmed", 0, "marked as re-evaluated")
    assert trust_of(copy.path) == "re-evaluated"
    assert check_run(copy.path).problems == []
    forge(copy, lambda tree: tree["metrics"].update(clean_accuracy=0.999))
    assert trust_of(copy.path) == "self-reported"
    assert invoke(command) == 1
    out = capsys.readouterr().out
    assert "fault: metrics: clean_accuracy is 0.999" in out
    # The mark was of another record, and counted no longer.
    assert "mark as verified was taken away, and it is marked as refuted" in out
    assert not (copy.path / "verified.json").exists()
    assert trust_of(copy.path) == "refuted"
    assert check_run(copy.path).problems == []


def test_many_runs(copy: Run, small_run: Run, capsys: Captured) -> None:
    """One line each; a refuted one is exit 1, one that cannot be verified alone 2."""
    runs = copy.path.parent
    thin = runs / "thin"
    shutil.copytree(small_run.path, thin, ignore=shutil.ignore_patterns("*.safetensors"))
    forge(copy, lambda tree: tree["metrics"].update(clean_accuracy=0.999))
    assert invoke(["verify", str(runs)]) == 1
    out, err = capsys.readouterr()
    assert f"refuted: {copy.record.id}" in out
    assert "0 runs confirmed, 1 refuted, 1 could not be verified" in out
    assert "failed: " in err
    assert "--retrain" in err
    shutil.rmtree(copy.path)
    assert invoke(["verify", str(runs), "--retrain", "--run-seed", "0", "--defense", "air", "--no-mark"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"confirmed: {small_run.record.id} (retrained): 0 of ")
    assert "the same bit for bit" in line
    assert not (thin / "verified.json").exists()


def test_a_surrogate_that_the_record_does_not_name(
    small_run: Run, at_run: Run, tmp_path: Path, capsys: Captured
) -> None:
    """Other points would be transferred, and an honest run refuted: nothing is measured, nothing marked."""
    shutil.copytree(small_run.path, tmp_path / "run")
    pack(small_run.path, tmp_path / "run.zip")
    other = str(at_run.path)
    for command in (
        ["verify", str(tmp_path / "run"), "--surrogate", other],
        ["verify", str(tmp_path / "run"), "--retrain", "--surrogate", other],
        ["accept", str(tmp_path / "run.zip"), "--runs-dir", str(tmp_path / "store"), "--surrogate", other],
    ):
        assert invoke(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"points on 'row 0', not on 'run {at_run.record.id}'; omit --surrogate" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run" / "refuted.json").exists()
    assert not (tmp_path / "store").exists()
    for name in ("run another", "plain digits-cnn", None):
        audit = small_run.record.audit.model_copy(update={"surrogate": name})
        record = small_run.record.model_copy(update={"audit": audit})
        with pytest.raises(InputError, match="transferred points"):
            check_surrogate(record, at_run.record)
        check_surrogate(record, None)
    named = audit.model_copy(update={"surrogate": f"run {at_run.record.id}"})
    check_surrogate(record.model_copy(update={"audit": named}), at_run.record)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda tree: tree["environment"].update(threads=True), 2, "True is not a number of threads"),
        (lambda tree: tree["config"]["sequence"].pop(), 2, "must name the attacks of the sequence"),
        (lambda tree: tree["config"]["training"].pop(), 2, "must name the attacks of the sequence"),
        (lambda tree: tree["config"]["unseen"].pop(), 1, "attacks: not those that the configuration"),
        (lambda tree: tree["environment"]["data"].update(fingerprint="a" * 70_000), 1, "aaa"),
    ],
    ids=["threads", "sequence", "training", "unseen", "fingerprint"],
)
def test_records_that_do_not_hold_together(
    change: Callable[[dict[str, Any]], object],
    code: int,
    said: str,
    small_run: Run,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    """One line, or a refutation, which is marked however long what it repeats."""
    shutil.copytree(small_run.path, tmp_path / "run")
    forge(load_run(tmp_path / "run"), change)
    assert invoke(["verify", str(tmp_path / "run"), "--stages", "1", "--attacks", "fgsm"]) == code
    out, err = capsys.readouterr()
    assert said in out + err
    assert trust_of(tmp_path / "run") == ("refuted" if code == 1 else "self-reported")
