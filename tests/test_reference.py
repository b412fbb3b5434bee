"""The competitiveness ratio: the paper's formula, the fault of its code, and how a reference comes about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from advbench import run
from advbench.cli.main import invoke
from leaderboards import Record, RecordError, find_records, result_of, write_record
from leaderboards.peers.best_known import best_known, make_reference
from leaderboards.peers.competitiveness import competitiveness, with_competitiveness
from leaderboards.peers.reference import Reference, parse_reference, read_reference, write_reference

Make = Callable[..., Record]
LP = ["AutoL1Attack", "AutoLinfAttack", "AutoL2Attack"]
TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "multirobustbench_cifar10_ata.json"
PUBLISHED = {
    "leaderboard_set": [*LP, "StAdvAttack"],
    "ata": {
        "NoAttack": 90.0,
        "AutoLinfAttack": {"0.03": 45.0, "0.04": 36.0},
        "AutoL2Attack": {"0.5": 60.0},
        "AutoL1Attack": {"12.0": 50.0},
        "StAdvAttack": {"0.05": 57.0},
        "Hue": {"0.1": 94.0},
    },
}
"""MultiRobustBench's table in small."""


def table(*terms: tuple[str, float, float], **more: Any) -> Reference:
    """A reference of ours for the record fixture's data and model, of (attack, eps, accuracy)."""
    rest = [{"attack": a, "eps": e, "accuracy": best, "source": {"run": "x"}} for a, e, best in terms]
    required = list(dict.fromkeys(attack for attack, _, _ in terms))
    base = {"reference": 1, "dataset": "digits", "fingerprint": "f1", "model": "net", "required": required}
    return parse_reference({**base, "clean": None, "terms": rest, **more}, "here")


def published_code(
    own: Mapping[str, Any], best: Mapping[str, Any], *, mended: bool
) -> tuple[float, dict[str, float]]:
    """What the published evaluation computes, in percent: over everything, and for each attack alone.

    Clean accuracy is a term of everything and of each attack. ``count`` runs on from attack to attack, and
    each attack's own sum is divided by it: that is the fault.
    """
    clean = own["NoAttack"] / best["NoAttack"]
    everything, count = clean, 1
    alone = {}
    for attack in (name for name in own if name != "NoAttack"):
        ratios = [accuracy / best[attack][eps] for eps, accuracy in own[attack].items()]
        everything, count = everything + sum(ratios), count + len(ratios)
        alone[attack] = 100 * (clean + sum(ratios)) / (1 + len(ratios) if mended else count)
    return 100 * everything / count, alone


# --- the formula ---


def test_the_published_fault_and_ours_mended(record_with: Make) -> None:
    """A model level with the best everywhere: 100 for every attack, where the published code says 60."""
    best = {"NoAttack": 90.0, "a": {"0.1": 80.0, "0.2": 50.0}, "b": {"0.1": 60.0, "0.2": 40.0}}
    everything, faulty = published_code(best, best, mended=False)
    # The second attack has 3 terms with clean, and is divided by the 5 that were counted up to there.
    assert (everything, faulty) == (pytest.approx(100), {"a": pytest.approx(100), "b": pytest.approx(60)})
    assert published_code(best, best, mended=True)[1] == {"a": pytest.approx(100), "b": pytest.approx(100)}
    ours = competitiveness(
        record_with(
            ("a", "", "linf", 0.1, 80),
            ("a", "", "linf", 0.2, 50),
            ("b", "", "l2", 0.1, 60),
            ("b", "", "l2", 0.2, 40),
            clean=90,
        ),
        table(("a", 0.1, 0.8), ("a", 0.2, 0.5), ("b", 0.1, 0.6), ("b", 0.2, 0.4), clean=0.9),
    )
    assert (ours.average, ours.worst, dict(ours.attacks)) == (1.0, 1.0, {"a": 1.0, "b": 1.0})
    assert (ours.measured, ours.total, ours.share, ours.reason) == (4, 4, 1.0, "")


def test_the_formula_by_hand_and_against_the_published_one(record_with: Make) -> None:
    """Uneven numbers of eps: each attack is divided by its own, with and without clean accuracy."""
    best = {"NoAttack": 90.0, "a": {"0.1": 80.0}, "b": {"0.1": 60.0, "0.2": 40.0, "0.3": 20.0}}
    own = {"NoAttack": 81.0, "a": {"0.1": 60.0}, "b": {"0.1": 30.0, "0.2": 50.0, "0.3": 5.0}}
    reference = table(("a", 0.1, 0.8), ("b", 0.1, 0.6), ("b", 0.2, 0.4), ("b", 0.3, 0.2), clean=0.9)
    record = record_with(
        ("a", "", "linf", 0.1, 60),
        ("b", "", "l2", 0.1, 30),
        ("b", "", "l2", 0.2, 50),
        ("b", "", "l2", 0.3, 5),
        clean=81,
    )
    # a: 60/80 = 0.75; b: (0.5 + 1.25 + 0.25) / 3 = 2/3; the mean of both
    ratio = competitiveness(record, reference)
    assert ratio.attacks == {"a": pytest.approx(0.75), "b": pytest.approx(2 / 3)}
    assert ratio.average == pytest.approx((0.75 + 2 / 3) / 2)
    assert ratio.worst == pytest.approx(0.25)
    with_clean = competitiveness(record, reference, clean=True)
    _, theirs = published_code(own, best, mended=True)
    assert {name: 100 * (value or 0) for name, value in with_clean.attacks.items()} == pytest.approx(theirs)
    assert theirs != pytest.approx(published_code(own, best, mended=False)[1])
    assert (with_clean.measured, with_clean.total) == (4, 4)


def test_a_perfect_model_on_the_published_table(record_with: Make) -> None:
    """Level with every lp term of the real table: 100, where the published code gives the last attack 35."""
    if not TABLE.is_file():
        pytest.skip("no MultiRobustBench table in ../shared/data beside the checkout")
    reference = read_reference(TABLE)
    assert (len(reference.terms), len(reference.required), reference.dataset) == (360, 9, "cifar10")
    names = {"AutoLinfAttack": ("autoattack", "linf"), "AutoL2Attack": ("autoattack-l2", "l2")}
    names["AutoL1Attack"] = ("autoattack-l1", "l1")
    # Each published accuracy is the mean of three counts of 10,000.
    perfect = record_with(
        *(
            (
                *[names[term.attack][0], "version=standard", names[term.attack][1]],
                term.eps,
                round(term.accuracy * 30000),
            )
            for term in reference.terms
            if term.attack in names
        ),
        n=30000,
        data=("cifar10", "f9"),
    )
    ratio = competitiveness(perfect, reference, attacks=LP)
    assert (ratio.average, ratio.worst) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))
    assert (ratio.measured, ratio.total) == (60, 60)
    whole = competitiveness(perfect, reference)
    assert (whole.average, whole.worst, whole.measured, whole.total) == (None, None, 60, 180)
    assert "ElasticAttack" in whole.reason
    best = json.loads(TABLE.read_text())["ata"]
    lp = {name: best[name] for name in ("NoAttack", *LP)}
    assert list(published_code(lp, best, mended=False)[1].values())[-1] == pytest.approx(100 * 21 / 61)
    assert list(published_code(lp, best, mended=True)[1].values()) == [pytest.approx(100)] * 3


# --- what counts as the same threat ---


@pytest.mark.parametrize(
    ("attack", "measured"),
    [
        (("autoattack", "version=standard", "linf", 0.03, 30), 1),
        (("autoattack", "version=plus", "linf", 0.04, 30), 1),
        (("autoattack-l2", "version=standard", "l2", 0.5, 30), 1),
        (("autoattack-l1", "version=standard", "l1", 12.0, 30), 1),
        (("autoattack", "version=rand", "linf", 0.03, 30), 0),
        (("autoattack", "version=standard", "linf", 8 / 255, 30), 0),
        (("autoattack", "version=standard", "linf", 0.5, 30), 0),
        (("pgd", "steps=50", "linf", 0.03, 30), 0),
        (("screen", "", "linf", 0.03, 30), 0),
        (("hue", "", None, 0.1, 30), 0),
    ],
    ids=lambda value: value if isinstance(value, int) else f"{value[0]}-{value[1]}-{value[3]:.4g}",
)
def test_only_the_same_threat_at_exactly_the_same_eps(
    record_with: Make, attack: tuple[Any, ...], measured: int
) -> None:
    """AutoAttack measures an lp threat of the published table; a weaker search or another eps does not."""
    reference = parse_reference(PUBLISHED, "here")
    ratio = competitiveness(record_with(attack, data=("cifar10", "f9")), reference)
    assert (ratio.measured, ratio.total) == (measured, 5)
    # Three required attacks are missing, at best.
    assert ratio.average is None
    assert "StAdvAttack" in ratio.reason


def test_over_chosen_attacks_and_the_lowest_of_several(record_with: Make) -> None:
    """Over linf alone there is a ratio; two versions of the attack at one eps count once, the lower."""
    record = record_with(
        ("autoattack", "version=standard", "linf", 0.03, 36),
        ("autoattack", "version=plus", "linf", 0.03, 27),
        data=("cifar10", "f9"),
    )
    ratio = competitiveness(record, parse_reference(PUBLISHED, "here"), attacks=["AutoLinfAttack"])
    assert (ratio.average, ratio.measured, ratio.total) == (pytest.approx(27 / 45), 1, 2)
    with pytest.raises(RecordError, match="did you mean 'AutoLinfAttack'"):
        competitiveness(record, parse_reference(PUBLISHED, "here"), attacks=["AutoLinfAttak"])


def test_other_data_or_model_have_no_ratio(record_with: Make) -> None:
    """A table for one data set and model says nothing of another; a folder called cifar10 is not CIFAR-10."""
    attack, reference = ("a", "", "linf", 0.1, 40), table(("a", 0.1, 0.8))
    assert competitiveness(record_with(attack), reference).average == pytest.approx(0.5)
    for other in ({"data": ("digits", "f2")}, {"model": "wide"}):
        ratio = competitiveness(record_with(attack, **other), reference)
        assert (ratio.average, ratio.worst, ratio.measured) == (None, None, 0)
        assert "the reference is for" in ratio.reason
    folder = record_with(("autoattack", "version=standard", "linf", 0.03, 1), data=("folder:cifar10", "f1"))
    assert "for cifar10, not folder:cifar10" in competitiveness(folder, parse_reference(PUBLISHED, "")).reason


def test_a_term_with_a_text_is_that_attack_alone(record_with: Make) -> None:
    """PGD of 10 steps is not what a reference of 50 steps was measured with."""
    terms = [{"attack": "pgd", "eps": 0.1, "text": "pgd:eps=0.1,steps=50", "accuracy": 0.8, "source": {}}]
    reference = table(("pgd", 0.1, 0.8), terms=terms)
    assert competitiveness(record_with(("pgd", "steps=10", "linf", 0.1, 40)), reference).average is None
    assert competitiveness(record_with(("pgd", "steps=50", "linf", 0.1, 40)), reference).average == 0.5


def test_nothing_is_divided_by_zero(record_with: Make) -> None:
    """Where the best known is 0 % there is no ratio of that term, and none at all if it is the only one."""
    record = record_with(("a", "", "linf", 0.1, 40), ("a", "", "linf", 0.2, 10))
    ratio = competitiveness(record, table(("a", 0.1, 0.8), ("a", 0.2, 0.0)))
    assert (ratio.average, ratio.measured, ratio.total) == (0.5, 1, 2)
    assert competitiveness(record, table(("a", 0.2, 0.0))).average is None


# --- reading and writing ---


def test_a_reference_survives_writing(tmp_path: Path) -> None:
    """Every number comes back as it was; the file is replaced, but nothing else's is."""
    file = tmp_path / "reference.json"
    reference = table(("a", 0.1, 1 / 3), ("b", 8 / 255, 0.7), clean=0.9)
    write_reference(file, table(("a", 0.1, 0.5)))
    write_reference(file, reference)
    assert read_reference(file) == reference
    assert [path.name for path in tmp_path.iterdir()] == ["reference.json"]
    foreign = tmp_path / "table.json"
    foreign.write_text(json.dumps(PUBLISHED))
    with pytest.raises(RecordError, match="was not written by advbench reference"):
        write_reference(foreign, reference)
    assert json.loads(foreign.read_text()) == PUBLISHED
    with pytest.raises(RecordError, match="does not exist"):
        write_reference(tmp_path / "nowhere" / "x.json", reference)


TERM = {"attack": "a", "eps": 0.1, "accuracy": 0.5, "source": {}}
OURS = {
    "reference": 1,
    "dataset": "d",
    "fingerprint": None,
    "model": None,
    "required": ["a"],
    "terms": [TERM],
}
WRONG: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "not JSON"),
    "not text": (b"\xff\xfe", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "neither a table of advbench reference nor"),
    "a record": ('{"schema": 1}', "neither a table of advbench reference nor"),
    "newer": ({**OURS, "reference": 2}, "unknown format 2"),
    "a flag for a number": ({**OURS, "reference": True}, "unknown format true"),
    "unknown key": ({**OURS, "modle": "x"}, "unknown key 'modle'"),
    "missing key": ({key: OURS[key] for key in OURS if key != "dataset"}, "missing key 'dataset'"),
    "percent": ({**OURS, "terms": [{**TERM, "accuracy": 50}]}, "less than or equal to 1"),
    "text": ({**OURS, "terms": [{**TERM, "eps": "8/255"}]}, "valid number"),
    "eps 0": ({**OURS, "terms": [{**TERM, "eps": 0}]}, "greater than 0"),
    "counts": ({**OURS, "terms": [{**TERM, "robust": 3, "n": 4}]}, "is not robust / n"),
    "half a count": ({**OURS, "terms": [{**TERM, "robust": 3}]}, "together or not at all"),
    "twice": ({**OURS, "terms": [TERM, TERM]}, "two terms for attack 'a' at eps 0.1"),
    "required": ({**OURS, "required": ["b"]}, "required attack 'b' has no term"),
    "no terms": ({**OURS, "terms": []}, "at least 1"),
    "their ata": ({**PUBLISHED, "ata": []}, "ata must map attacks"),
    "their share": ({**PUBLISHED, "ata": {"AutoL2Attack": {"0.5": 101}}}, "expected an accuracy in percent"),
    "their text": ({**PUBLISHED, "ata": {"AutoL2Attack": {"0.5": "45"}}}, "expected an accuracy in percent"),
    "their eps": ({**PUBLISHED, "ata": {"AutoL2Attack": {"x": 4}}}, "expected a number for eps"),
    "their attack": ({**PUBLISHED, "ata": {"AutoL2Attack": 4}}, "expected accuracies by eps"),
    "their set": ({**PUBLISHED, "leaderboard_set": ["Fog"]}, "required attack 'Fog' has no term"),
    "their set's kind": ({**PUBLISHED, "leaderboard_set": [1]}, "required"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_reference_is_one_line(
    case: str, tmp_path: Path, record_with: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """``advbench leaderboard --reference`` says what is wrong with the file, and leaves with 2."""
    content, said = WRONG[case]
    file = tmp_path / "reference.json"
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    (tmp_path / "runs" / "one").mkdir(parents=True)
    write_record(tmp_path / "runs" / "one", record_with(("a", "", "linf", 0.1, 40)))
    arguments = ["leaderboard", "--runs-dir", str(tmp_path / "runs"), "--reference", str(file)]
    assert invoke(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert said in error
    assert str(file) in error


# --- on the leaderboard ---


@pytest.fixture
def board(tmp_path: Path, record_with: Make) -> list[str]:
    """A command that ranks two seeds of one defense, and a run that measured another eps."""
    for number, (eps, robust, defense) in enumerate([(0.1, 40, "at"), (0.1, 60, "at"), (0.2, 5, "air")]):
        directory = tmp_path / "runs" / str(number)
        directory.mkdir(parents=True)
        attack = ("a", "", "linf", eps, robust)
        write_record(directory, record_with(attack, id=f"r{number}", defense=defense, seed=number))
    write_reference(tmp_path / "best.json", table(("a", 0.1, 0.8), ("a", 0.4, 0.1)))
    runs, file = str(tmp_path / "runs"), str(tmp_path / "best.json")
    return ["leaderboard", "--runs-dir", runs, "--reference", file]


def test_the_leaderboard_has_the_ratios(board: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds are averaged; a row without a ratio has null, and stderr says why."""
    assert invoke([*board, "--format", "json"]) == 0
    out, error = capsys.readouterr()
    metrics = {row["defense"]: row["metrics"] for row in json.loads(out)}
    assert metrics["at"]["competitiveness_average"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert metrics["at"]["competitiveness_worst"]["n"] == 2
    assert metrics["at"]["competitiveness_measured"]["mean"] == 0.5
    assert metrics["air"]["competitiveness_average"] is None
    assert metrics["air"]["competitiveness_measured"]["mean"] == 0.0
    assert error.startswith(
        "note: no competitiveness ratio for 1 run: not measured at any of its eps: a (0 of 2"
    )
    assert error.count("\n") == 1
    assert invoke(board) == 0
    out = capsys.readouterr().out
    assert "CR average" in out
    assert "62.5 ± 17.7" in out
    assert "50.0 ± 0.0" in out


def test_without_a_reference_there_are_no_columns(
    board: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing changes for who does not ask; attacks of a reference need one."""
    assert invoke(board[:3]) == 0
    assert "CR" not in capsys.readouterr().out
    assert invoke([*board[:3], "--reference-attacks", "a"]) == 2
    assert invoke([*board, "--reference-attacks", "pgd"]) == 2
    assert "the reference has no attack 'pgd': it has a" in capsys.readouterr().err


def test_runs_are_left_as_they_were(record_with: Make, tmp_path: Path) -> None:
    """Ratios stand beside the metrics of a copy; what is elsewhere is not even read."""
    directory = tmp_path / "one"
    directory.mkdir()
    record = record_with(("a", "", "linf", 0.1, 40))
    write_record(directory, record)
    here, elsewhere = result_of(record, directory), result_of(record_with(model="wide"))
    before = dict(here.metrics)
    found, notes = with_competitiveness([here, elsewhere], table(("a", 0.1, 0.8)))
    assert here.metrics == before
    assert [one.metrics["competitiveness_worst"] for one in found] == [0.5, None]
    assert [one.metrics["competitiveness_measured"] for one in found] == [1.0, 0.0]
    why = "the reference is for the model net, not wide (0 of 1 terms measured)"
    assert notes == [f"no competitiveness ratio for 1 run: {why}"]


# --- building one ---


def test_the_best_of_what_may_count(record_with: Make) -> None:
    """Of runs on this data and model, honest, unaware of the attack and on as many points: the best."""

    def reached(robust: int, id: str, **more: Any) -> Record:
        return record_with(("a", "", "linf", 0.1, robust), id=id, **more)

    runs = [
        reached(70, "z-best", seed=3, defense="trades"),
        reached(70, "y-best"),
        reached(60, "worse"),
        reached(99, "suspect", verdict="suspect"),
        reached(99, "aware", target_aware=True),
        reached(99, "elsewhere", data=("digits", "f2")),
        reached(99, "wide", model="wide"),
        reached(40, "few points", n=40),
        record_with(("a", "steps=1", "linf", 0.1, 99), id="another attack"),
    ]
    wanted = [("a", 0.1, "a:eps=0.1", 100), ("a", 0.2, "a:eps=0.2", 100)]
    terms, missing = best_known(runs, wanted, fingerprint="f1", model="net")
    assert missing == [("a", 0.2)]
    (term,) = terms
    assert (term.accuracy, term.robust, term.n, term.source["run"]) == (0.7, 70, 100, "y-best")
    assert best_known(runs[::-1], wanted, fingerprint="f1", model="net")[0] == terms
    reference = make_reference(terms, dataset="digits", fingerprint="f1", model="net")
    assert competitiveness(runs[0], reference).average == 1.0


TINY = ["--points", "30", "--device", "cpu", "--workers", "1", "--set", "pretrain.epochs=1", "--epochs", "2"]
ATTACKS = "fgsm:eps=0.05,pgd:eps=0.05,steps=3"


@pytest.mark.slow
def test_building_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan alone writes nothing; repeated, the sweep does nothing more; the best of the store is kept."""
    runs, file = tmp_path / "runs", tmp_path / "reference.json"
    command = ["reference", "--attacks", ATTACKS, "--defenses", "at", "--out", str(file)]
    command += ["--runs-dir", str(runs), *TINY]
    assert invoke([*command, "--dry-run"]) == 0
    assert "2 runs: 0 finished, 0 unfinished, 2 new" in capsys.readouterr().out
    assert not runs.exists()
    assert not file.exists()
    # A run that is no part of it, but has met one of the attacks.
    options: dict[str, Any] = {"unseen": "none", "epochs": 4, "points": 30, "threads": 1, "device": "cpu"}
    other = run("at", ATTACKS, runs_dir=runs, seed=5, set={"pretrain.epochs": 3}, **options)
    assert invoke(command) == 0
    out = capsys.readouterr().out
    assert "Best known on digits with digits-cnn" in out
    reference = read_reference(file)
    records, _ = find_records(runs)
    assert len(records) == 3
    honest = [record for record in records if record.audit.verdict == "ok"]
    assert reference.required == ["fgsm", "pgd"]
    for term in reference.terms:
        cells = [
            (cell.robust, record.id)
            for record in honest
            for cell in record.cells
            if cell.stage == max(one.stage for one in record.cells) and cell.attack == term.text
        ]
        best = max(robust for robust, _ in cells)
        assert len(cells) >= 1
        assert (term.robust, term.n) == (best, 30)
        assert term.source["run"] == min(id for robust, id in cells if robust == best)
    before = file.read_bytes()
    assert invoke(command) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert file.read_bytes() == before
    ratio = competitiveness(other.record, reference)
    assert ratio.average is not None
    assert ratio.measured == 2


MISTAKES = {
    "unknown attack": (["--attacks", "pdg:eps=0.1"], "did you mean 'pgd'"),
    "twice": (["--attacks", "pgd:eps=0.1,steps=5,pgd:eps=0.1,steps=6"], "pgd at eps 0.1 is listed twice"),
    "nothing": (["--attacks", "pgd:eps=0"], "eps"),
    "unknown defense": (["--defenses", "at,trade"], "did you mean 'trades'"),
    "no defense": (["--defenses", "at,,"], "--defenses 'at,,' cannot be read"),
    "seeds": (["--seeds", "x"], "cannot be read"),
    "train-set": (["--train-set", "fgsm.steps=3"], "write attack.knob=value of pgd"),
    "points": (["--points", "99999"], "test points"),
    "folder": (["--out", "nowhere/x.json"], "does not exist"),
    "a file of another kind": (["--out", "notes.txt"], "was not written by advbench reference"),
    "data": (["--dataset", "digit"], "did you mean 'digits'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before anything is trained or written."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    arguments, said = MISTAKES[case]
    base = {"--attacks": "pgd:eps=0.1", "--out": "reference.json", "--points": "10"}
    base.update(zip(arguments[::2], arguments[1::2], strict=True))
    assert invoke(["reference", *(word for pair in base.items() for word in pair)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]
    assert Path("notes.txt").read_text() == "mine"
