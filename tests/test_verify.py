"""``advbench verify``: honest runs are confirmed, and whatever was forged is refuted with evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import few_probes

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
Edit = Callable[[dict[str, Any]], object]
MIDDLE = Asked(stages="1", attacks="fgsm,pgd")
"""A stage without an audit, and two attacks: a fraction of the time."""


@pytest.fixture(autouse=True, scope="module")
def _few_probes() -> Iterator[None]:
    """Audits are verified here in the same way however many steps their probes take."""
    with few_probes():
        yield


@pytest.fixture
def copy(brief_run: Run, tmp_path: Path) -> Run:
    """A run of its own for whoever changes it."""
    shutil.copytree(brief_run.path, tmp_path / "runs" / brief_run.path.name)
    return load_run(tmp_path / "runs" / brief_run.path.name)


def forge(run: Run, change: Edit = lambda _: None) -> Run:
    """The run with its record changed, and checksums that fit again."""
    tree = run.record.dump()
    change(tree)
    data = json_bytes(tree)
    parse_record(data, "forged")
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
    seen, unseen = subject.attacks["seen"], subject.attacks["unseen"]
    points = [count for _, count in subject.measured]
    metrics = metrics_of(
        clean, robust, regime=run.record.regime, seen=len(seen), unseen=len(unseen), points=points
    ) | transfer_metric(run.record.audit.probes, [attack.text for attack in seen])
    classes = per_class_counts(run.data, clean[-1], robust[-1], texts)

    def change(tree: dict[str, Any]) -> None:
        for cell in tree["cells"]:
            if cell["attack"] != "clean":
                cell["robust"] = int(robust[rows[cell["stage"]], texts.index(cell["attack"])].sum())
        tree["metrics"] = metrics
        tree["per_class"] = [entry.model_dump(mode="json", by_alias=True) for entry in classes]

    return forge(run, change)


def kept(run: Run, stage: int, column: int, count: int) -> tuple[Any, Any]:
    """The run's robust outcomes with ``count`` fooled points of a cell kept, and the indices of these."""
    clean, robust = read_outcomes(run.path / "outcomes.npz")
    fooled = np.flatnonzero(clean[stage] & ~robust[stage, column])[:count]
    robust[stage, column, fooled] = True
    return robust, fooled.tolist()


def places(report: Report) -> list[str]:
    """Where its faults are."""
    return [fault.partition(":")[0] for fault in report.faults]


def put(*path: str | int, **values: Any) -> Edit:
    """An edit that gives a part of a record other values."""
    return lambda tree: reduce(getitem, path, tree).update(values)


def thin_copy(run: Run, place: Path) -> Path:
    """A copy of the run without weights, whose checksums are still those of the run."""
    shutil.copytree(run.path, place, ignore=shutil.ignore_patterns("*.safetensors"))
    return place


def refuted(run: Run, asked: Asked = MIDDLE) -> Report:
    """The report of a run that is refuted, and whose files alone show nothing."""
    assert check_run(run.path).problems == []
    report = verify_run(run, asked)
    assert not report.confirmed
    assert report.verdict == "refuted"
    return report


def test_an_honest_run_is_confirmed_bit_for_bit(brief_run: Run) -> None:
    """Every stage, attack, point and probe; and it says what it did not look at."""
    report = verify_run(brief_run)
    assert report.confirmed
    assert report.faults == []
    assert report.complete
    assert report.discordant == 0
    record = brief_run.record
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


def test_a_sample_says_what_it_leaves_out(brief_run: Run) -> None:
    """Stages and attacks by name; it confirms, and is not enough for a mark."""
    report = verify_run(brief_run, Asked(stages="2,1", attacks="fgsm,pgd", seed=3))
    assert report.confirmed
    assert not report.complete
    assert {(one.stage, one.attack.partition(":")[0]) for one in report.comparisons if not one.probe} == {
        (stage, name) for stage in (1, 2) for name in ("clean", "fgsm", "pgd")
    }
    left = " ".join(report.not_looked_at)
    assert "stages 0" in left
    assert "gaussian-noise" in left
    assert report.sample["seed"] == 3


def test_counts_that_were_edited(copy: Run) -> None:
    """In the record alone: the stored outcomes say otherwise, and no model is run."""
    place = next(
        number
        for number, cell in enumerate(copy.record.cells)
        if cell.attack.startswith("pgd") and cell.stage == 2
    )
    report = verify_run(forge(copy, put("cells", place, robust=copy.record.cells[place].robust + 2)))
    assert not report.confirmed
    assert any("the stored outcomes have" in fault for fault in report.faults)
    assert report.comparisons == []
    assert report.not_looked_at == ["every model: what is stored contradicts itself already"]


def test_counts_that_were_edited_everywhere(copy: Run) -> None:
    """In outcomes and record alike, metrics and checksums made to fit: only the model knows better."""
    robust, fooled = kept(copy, 1, 1, 12)
    report = refuted(with_outcomes(copy, robust))
    (fault,) = report.faults
    assert "stage 1, pgd:" in fault
    assert f"{len(fooled)} robust only in the record (points {fooled[0]}, {fooled[1]}" in fault
    found = next(one for one in report.comparisons if one.attack.startswith("pgd:"))
    assert (found.record_only, found.here_only) == (fooled, [])


def test_weights_that_were_swapped(copy: Run) -> None:
    """With checksums that fit: the outcomes are not theirs. A final model of its own is no other's."""
    shutil.copy(copy.path / "stages/0.safetensors", copy.path / "stages/1.safetensors")
    report = refuted(forge(copy))
    assert any("stage 1, fgsm" in fault for fault in report.faults)
    assert report.discordant > 20
    shutil.copy(copy.path / "stages/0.safetensors", copy.path / "model.safetensors")
    report = refuted(forge(copy))
    assert report.faults == ["model.safetensors: not the weights of the last stage, stages/2.safetensors"]


def test_a_weakened_attack(copy: Run) -> None:
    """The record says three steps, and its outcomes are those of one tiny step."""
    weak = pool.get("pgd", eps=0.2, steps=1, step_size=0.001, random_start="false")
    row = evaluate(copy.stage(1).view, subject_of(copy).test, [(weak, 60)], stage=1, seed=0)
    _, robust = read_outcomes(copy.path / "outcomes.npz")
    robust[1, 1] = row.robust[0]
    report = refuted(with_outcomes(copy, robust))
    assert places(report) == ["stage 1, pgd"]
    found = next(one for one in report.comparisons if one.attack.startswith("pgd:"))
    assert len(found.record_only) > 4
    assert found.here_only == []


def _empty_class(tree: dict[str, Any]) -> None:
    entry = tree["per_class"][0]
    entry.update(n=40, clean_correct=0, worst_case=0, robust=dict.fromkeys(entry["robust"], 0))


EDITS: dict[str, tuple[Edit, str]] = {
    "metric": (
        put("metrics", average_robust_accuracy=0.99),
        "metrics: average_robust_accuracy is 0.99, the stored outcomes give",
    ),
    "no metric": (put("metrics", unseen_gap=None), "metrics: unseen_gap is None"),
    "another metric": (
        put("metrics", my_own_metric=1.0),
        "metrics: my_own_metric is 1.0, the stored outcomes give nothing of this name",
    ),
    "verdict": (put("audit", verdict="suspect"), "its flags give"),
    "protocol": (put(protocol="0" * 12), "protocol: '000000000000', its attacks"),
    "attack": (put("attacks", 1, family="ensemble"), "attacks: not those that the configuration resolves to"),
    "threat": (put("cells", 2, "threat", eps=0.3), "its threat"),
    "class": (_empty_class, "per_class: "),
    "manifest": (put("config", seed=5), "run.json: has another seed"),
    "fingerprint": (put("environment", "data", fingerprint="f" * 64), "run.json: data is"),
    "target-aware": (put("config", target_aware=True), "target_aware: True is wrong for at"),
    "stages": (put("stages", 1, attacks=[]), "stages: not those that the sequence"),
    "defense": (put("stages", 1, "spec", defense="air"), "stage 1 has defense 'air'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_contradicts_itself(copy: Run, edit: str) -> None:
    """Without a model, though the checksums fit; metrics are recomputed."""
    change, said = EDITS[edit]
    report = refuted(forge(copy, change))
    assert any(said in fault for fault in report.faults), report.faults
    assert report.comparisons == []


def test_an_identity_that_was_edited(copy: Run) -> None:
    """It is the hash of the manifest's own facts and the configuration."""
    tree = json.loads((copy.path / "run.json").read_text())
    tree["more"]["facts"]["code"] = "0" * 64
    write_json(copy.path / "run.json", tree)
    (fault,) = refuted(forge(copy)).faults
    assert fault == "run.json: its identity is not the hash of its configuration and its facts"


@pytest.mark.slow
def test_an_audit_that_was_edited(brief_run: Run, tmp_path: Path) -> None:
    """A verdict that its own flags belie, flags that nothing bears out, probes and a flag that are gone."""
    shutil.copytree(brief_run.path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    last = Asked(stages="last", attacks="fgsm")

    def more(tree: dict[str, Any]) -> None:
        tree["audit"]["flags"].append({"code": "zero-gradient", "message": "none", "evidence": {}})
        tree["audit"]["verdict"] = "suspect"

    report = refuted(forge(run, more), last)
    assert report.faults == ["audit: zero-gradient is in the record, but not found here"]
    clean, robust = read_outcomes(run.path / "outcomes.npz")
    write_outcomes(run.path / "outcomes.npz", clean, robust)

    def stripped(tree: dict[str, Any]) -> None:
        flags = [{"code": "batch-dependent", "message": "", "evidence": {}}]
        tree["audit"].update(flags=flags, verdict="suspect", probes=[], surrogate=None)
        tree["metrics"].pop("transfer_accuracy", None)

    report = refuted(forge(run, stripped), last)
    assert any("batch-dependent is in the record" in fault for fault in report.faults)


def differing(better: range, of: int = 400, worse: range = range(0), stage: int = 1) -> Comparison:
    """A comparison with points that are better in the record, and others that are worse."""
    points = np.arange(of)
    recorded, here = (np.isin(points, list(some)) for some in (better, worse))
    return Comparison.of(stage, "pgd", recorded, here, np.ones(of, dtype=bool))


NONE = range(0)


def test_where_bits_are_the_same_one_outcome_refutes() -> None:
    """On the record's machine no difference is tolerated, in whichever direction."""
    assert judge([differing(NONE)], same_machine=True) == []
    for one in (differing(range(1)), differing(NONE, worse=range(1))):
        assert "1 of 400 points differ" in judge([one, differing(NONE)], same_machine=True)[0]
        assert judge([one], same_machine=False) == []


@pytest.mark.parametrize(
    ("comparisons", "faults"),
    [
        # More than 1 % of an attack's points, or of all; never a single point of a small cell.
        ([differing(range(4))], []),
        ([differing(range(5))], ["5 of 400 points differ"]),
        ([differing(range(1), 50)], []),
        ([differing(range(2), 50)], ["2 of 50 points differ"]),
        ([differing(range(1), 50), *[differing(NONE)] * 9], []),
        ([differing(range(1), 50)] * 2, ["2 of 100 outcomes differ"]),
        # Few differences a cell, that all favour the record: a sign test over points, each counted once.
        (
            [differing(range(4 * stage, 4 * stage + 3), stage=stage) for stage in range(3)],
            ["of 9 points whose outcomes differ, 9 are better in the record (p 0.002)"],
        ),
        ([differing(range(3), worse=range(10, 11)), differing(range(20, 21), worse=range(30, 33))], []),
        # One point that is wrong clean falls under every attack: that is one difference, not nine.
        ([differing(range(1), stage=stage) for stage in range(9)], []),
        ([differing(NONE, worse=range(4 * one, 4 * one + 3)) for one in range(3)], []),
    ],
)
def test_what_refutes_on_another_machine(comparisons: list[Comparison], faults: list[str]) -> None:
    """A share of the outcomes, or differences that favour the record: rounding favours neither side."""
    found = judge(comparisons, same_machine=False)
    assert len(found) == len(faults)
    assert all(said in fault for said, fault in zip(faults, found, strict=True)), found


COUNTS: dict[str, tuple[Edit, str]] = {
    "passes": (put("cells", 2, forwards=10**17), "forwards is 1e+17, more than"),
    "training": (put("cost", training_forwards=10**18), "cost: training_forwards is 1e+18, more than"),
    "seconds": (put("cells", 2, seconds=1e308), "seconds is 1e+308, more than"),
    "a century": (put("cost", evaluation_seconds=3.2e9), "evaluation_seconds is 3.2e+09"),
    "attack": (put("cells", 1, backwards=10**9), "1000000000 backward passes, no more than"),
}


@pytest.mark.parametrize("edit", COUNTS)
def test_counts_that_no_run_can_have(copy: Run, edit: str) -> None:
    """Refuted without a model; a leaderboard leaves such a record out, and says so."""
    change, said = COUNTS[edit]
    report = verify_run(forge(copy, change))
    assert any(said in fault for fault in report.faults), report.faults
    assert report.comparisons == []
    # Only who knows the attack knows how many passes it takes.
    if edit != "attack":
        results, (problem,) = find_results(copy.path.parent)
        assert results == []
        assert said in problem


@pytest.mark.parametrize("count", [10**300, 10**400])
def test_counts_that_no_integer_of_64_bits_holds(copy: Run, count: int) -> None:
    """The record is not read, and the line says which key."""
    with pytest.raises(RecordError, match=r"key 'cells.*forwards'"):
        forge(copy, put("cells", 2, forwards=count))
    with pytest.raises(RecordError, match=r"key 'cost.*forwards'"):
        forge(copy, put("cost", training_forwards=count))


def test_passes_and_sizes_are_counted_again(copy: Run) -> None:
    """On the record's machine, cell by cell; tables compare costs by them."""
    cell = copy.record.cells[-3]

    def change(tree: dict[str, Any]) -> None:
        tree["cells"][-3].update(forwards=7, backwards=8)
        tree["cost"].update(parameters=7)

    report = refuted(forge(copy, change), Asked(stages="last"))
    assert {
        f"stage 2, {cell.attack}: forwards is 7 in the record, {cell.forwards} here",
        f"stage 2, {cell.attack}: backwards is 8 in the record, {cell.backwards} here",
    } < set(report.faults)
    assert any(fault.startswith("cost: 7 parameters") for fault in report.faults)


def test_trained_again(brief_run: Run, tmp_path: Path) -> None:
    """Without weights: outcome for outcome, and weights by their checksums; what was edited is refuted."""
    thin = thin_copy(brief_run, tmp_path / "thin")
    with pytest.raises(InputError, match=r"stored without its weights.*advbench verify --retrain"):
        verify_run(load_run(thin))
    forged = with_outcomes(load_run(thin), kept(brief_run, 1, 0, 8)[0])
    # What the checksums say of the weights that are not there is kept.
    sums = (brief_run.path / "SHA256SUMS").read_text().splitlines()
    lines = (thin / "SHA256SUMS").read_text() + "\n".join(line for line in sums if "safetensors" in line)
    (thin / "SHA256SUMS").write_text(lines + "\n")
    report = retrain_run(forged)
    assert places(report) == ["stage 1, fgsm"]
    assert "8 robust only in the record" in report.faults[0]
    assert report.discordant == 8
    assert report.compared == sum(cell.n for cell in brief_run.record.cells)
    assert report.notes[0] == "weights: of 3 stages, the same bit for bit"
    assert report.complete


@pytest.mark.slow
def test_what_is_trained_again_is_kept(brief_run: Run, tmp_path: Path) -> None:
    """With its weights, gone on with, and not trained twice; the run itself is no repetition of it."""
    kept = tmp_path / "kept"
    trained: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "start":
            trained.append(event.text)

    def stopped(error: BaseException, said: str, **more: Any) -> None:
        def stop(event: Event) -> None:
            if event.kind == "stage":
                raise error

        with pytest.raises((Interrupted, RunFailedError, TrainingDivergedError)) as caught:
            retrain_run(brief_run, listeners=[listen, stop], **more)
        assert said in getattr(caught.value, "how", str(caught.value))

    stopped(Interrupted(143), "nothing of it is kept (--keep DIR keeps it)")
    stopped(ZeroDivisionError("?"), "ZeroDivisionError: ?; nothing of it is kept")
    stopped(TrainingDivergedError("no number"), "no number; nothing of it is kept")
    trained.clear()
    stopped(Interrupted(143), f"the same command resumes it in {kept}", keep=kept)
    for _ in range(2):
        report = retrain_run(brief_run, keep=kept, listeners=[listen])
        assert report.confirmed
        assert report.complete
    assert len(trained) == 1
    [made] = kept.iterdir()
    assert weights_digest(load_run(made).model.state_dict()) == weights_digest(brief_run.model.state_dict())
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


FOUND = (0.45, 0.48, 0.44, 0.47, 0.46)
"""Accuracies of five trainings that differ in rounding."""


def test_what_rounding_explains() -> None:
    """As much as it makes of the same run, and never less than 5 points."""
    one = Comparison(1, "pgd", 400, 400, list(range(40)), [])
    # t = 0.09 / (0.0158 √1.2) = 5.2 with 4 degrees of freedom.
    assert RoundingSpread(one, 0.55, FOUND).p == pytest.approx(0.0065, abs=2e-4)
    assert RoundingSpread(one, 0.55, FOUND).refutes
    assert not RoundingSpread(one, 0.55, (0.45, 0.58, 0.44, 0.51, 0.40)).refutes
    assert not RoundingSpread(one, 0.50, (0.46,) * 5).refutes
    assert RoundingSpread(one, 0.52, (0.46,) * 5).refutes
    # The most striking of many comparisons asks for more.
    many = RoundingSpread(one, 0.55, FOUND, tests=27)
    assert many.doubtful
    assert not many.refutes
    assert many.line() == (
        "stage 1, pgd: 55.0 % in the record, 46.0 ± 1.6 % in 5 trainings that differ in rounding "
        "(p 0.0065, less than 0.00037 refutes)"
    )


@pytest.mark.parametrize(
    ("found", "trainings", "refuted"),
    [
        ((*FOUND, *FOUND * 3), 20, True),
        ((*FOUND, *(0.45, 0.54, 0.44, 0.50, 0.46) * 3), 20, False),
        ((0.45, 0.58, 0.44, 0.51, 0.40), 5, False),
        ((0.46,) * 5, 5, True),
    ],
)
def test_a_doubt_asks_for_more(
    found: tuple[float, ...],
    trainings: int,
    refuted: bool,
    brief_run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five trainings settle what is far off or well inside; for the rest there are twenty."""
    one = Comparison(1, "pgd", 400, 400, list(range(40)), [])
    there = iter(found)
    given = []

    def train(**options: Any) -> float:
        given.append(options["plan"]["lr"])
        return next(there)

    monkeypatch.setattr(rounding, "run_benchmark", train)
    monkeypatch.setattr(rounding, "accuracy", lambda run, _: run)
    options = brief_run.config.model_dump(mode="json")
    (spread,) = rounding.spreads([one], next(there), options, [], tests=27)
    assert spread.recorded == pytest.approx(found[0] + 0.1)
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
    honest, forged = (thin_copy(measured, tmp_path / name) for name in ("honest", "forged"))
    sums = (measured.path / "SHA256SUMS").read_text().splitlines(keepends=True)
    for copy in (honest, forged):
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
    assert places(report) == ["stage 1, mim"]
    assert f"in {len(trained)} trainings that differ in rounding" in report.faults[0]
    assert len(trained) in (3, 5)


@pytest.mark.slow
def test_evaluations(tmp_path: Path, brief_run: Run) -> None:
    """A model of the zoo is built again; its counts are compared, and its weights must be those."""
    given: dict[str, Any] = {"points": 20, "threads": 1, "runs_dir": tmp_path, "surrogate": "none"}
    found = evaluate_model("digits-cnn", attacks="fgsm,pgd:steps=3", **given)
    report = verify_run(found)
    assert report.confirmed, report.faults
    assert report.complete
    assert report.discordant == 0
    for change, said in (
        (put("metrics", clean_accuracy=0.9), "metrics: clean_accuracy is 0.9"),
        (lambda tree: tree["attacks"].reverse(), "attacks: not those"),
    ):
        assert said in verify_run(forged_evaluation(found, tmp_path, change)).faults[0]
    for change, said in (
        (put("stages", 0, "spec", mean=0.5), "mean=0.5, not a list of numbers"),
        (put("stages", 0, "spec", std=["x"]), "not a list of numbers"),
        (put("config", eval=[3]), "an attack in eval that is not text"),
        (put("config", points={"default": "9"}), "must be a whole number"),
    ):
        with pytest.raises(InputError, match=said):
            verify_run(forged_evaluation(found, tmp_path, change))
    with pytest.raises(InputError, match="--retrain is for runs"):
        retrain_run(found)
    module = evaluate_model(brief_run.model, attacks="fgsm", **given)
    with pytest.raises(InputError, match="a module given to Python: the record does not say how to build it"):
        verify_run(module)


def forged_evaluation(run: Run, place: Path, change: Edit) -> Run:
    """A copy of the evaluation with its record changed and its checksums made to fit."""
    path = Path(shutil.copytree(run.path, place / "forged", dirs_exist_ok=True))
    tree = json.loads((path / "record.json").read_text())
    change(tree)
    data = json_bytes(tree)
    write_checksums(path, data)
    write_bytes(path / "record.json", data)
    record: Record = parse_record(data, "forged")
    return Run(path, record)


def test_on_the_command_line(copy: Run, capsys: Captured) -> None:
    """Exit 0 and a mark; 1, with evidence, and the mark gone."""
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
    forge(copy, put("metrics", clean_accuracy=0.999))
    assert trust_of(copy.path) == "self-reported"
    assert invoke(command) == 1
    out = capsys.readouterr().out
    assert "fault: metrics: clean_accuracy is 0.999" in out
    # The mark was of another record, and counted no longer.
    assert "mark as verified was taken away, and it is marked as refuted" in out
    assert not (copy.path / "verified.json").exists()
    assert trust_of(copy.path) == "refuted"
    assert check_run(copy.path).problems == []


@pytest.mark.slow
def test_many_runs(copy: Run, brief_run: Run, capsys: Captured) -> None:
    """One line each; a refuted one is exit 1, one that cannot be verified alone 2."""
    runs = copy.path.parent
    thin = thin_copy(brief_run, runs / "thin")
    forge(copy, put("metrics", clean_accuracy=0.999))
    assert invoke(["verify", str(runs)]) == 1
    out, err = capsys.readouterr()
    assert f"refuted: {copy.record.id}" in out
    assert "0 runs confirmed, 1 refuted, 1 could not be verified" in out
    assert "failed: " in err
    assert "--retrain" in err
    shutil.rmtree(copy.path)
    assert invoke(["verify", str(runs), "--retrain", "--run-seed", "0", "--defense", "at", "--no-mark"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"confirmed: {brief_run.record.id} (retrained): 0 of ")
    assert "the same bit for bit" in line
    assert not (thin / "verified.json").exists()


def test_a_surrogate_that_the_record_does_not_name(brief_run: Run, tmp_path: Path, capsys: Captured) -> None:
    """Other points would be transferred, and an honest run refuted: nothing is measured, nothing marked."""
    shutil.copytree(brief_run.path, tmp_path / "run")
    pack(brief_run.path, tmp_path / "run.zip")
    other = str(brief_run.path)
    for command in (
        ["verify", str(tmp_path / "run"), "--surrogate", other],
        ["verify", str(tmp_path / "run"), "--retrain", "--surrogate", other],
        ["accept", str(tmp_path / "run.zip"), "--runs-dir", str(tmp_path / "store"), "--surrogate", other],
    ):
        assert invoke(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"points on 'row 0', not on 'run {brief_run.record.id}'; omit --surrogate" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run" / "refuted.json").exists()
    assert not (tmp_path / "store").exists()
    for name in ("run another", "plain digits-cnn", None):
        audit = brief_run.record.audit.model_copy(update={"surrogate": name})
        record = brief_run.record.model_copy(update={"audit": audit})
        with pytest.raises(InputError, match="transferred points"):
            check_surrogate(record, brief_run.record)
        check_surrogate(record, None)
    named = audit.model_copy(update={"surrogate": f"run {brief_run.record.id}"})
    check_surrogate(record.model_copy(update={"audit": named}), brief_run.record)


TOGETHER: dict[str, tuple[Edit, int, str]] = {
    "threads": (put("environment", threads=True), 2, "True is not a number of threads"),
    "sequence": (lambda t: t["config"]["sequence"].pop(), 2, "must name the attacks of the sequence"),
    "training": (lambda t: t["config"]["training"].pop(), 2, "must name the attacks of the sequence"),
    "unseen": (lambda t: t["config"]["unseen"].pop(), 1, "attacks: not those that the configuration"),
    "fingerprint": (put("environment", "data", fingerprint="a" * 70_000), 1, "aaa"),
}


@pytest.mark.parametrize("edit", TOGETHER)
def test_records_that_do_not_hold_together(
    edit: str, brief_run: Run, tmp_path: Path, capsys: Captured
) -> None:
    """One line, or a refutation, which is marked however long what it repeats."""
    change, code, said = TOGETHER[edit]
    shutil.copytree(brief_run.path, tmp_path / "run")
    forge(load_run(tmp_path / "run"), change)
    assert invoke(["verify", str(tmp_path / "run"), "--stages", "1", "--attacks", "fgsm"]) == code
    out, err = capsys.readouterr()
    assert said in out + err
    assert trust_of(tmp_path / "run") == ("refuted" if code == 1 else "self-reported")
