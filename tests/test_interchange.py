"""RobustBench's rows: read without loss, shown apart, written of runs with no more than was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advbench.cli.main import invoke
from leaderboards import Record, RecordError, write_record
from leaderboards.peers.robustbench import find_entries, parse_entry, read_entry, to_text, write_entry
from leaderboards.peers.robustbench_export import entry_of, eps_text

Make = Callable[..., Record]
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "robustbench" / "model_info"
STANDARD = ("autoattack", "version=standard", "linf", 8 / 255, 40)
ROW = {
    "name": "A paper",
    "dataset": "cifar10",
    "clean_acc": "90.10",
    "eps": "8/255",
    "autoattack_acc": "50.0",
}


class Number(str):
    """The text of a number in JSON, which is no text."""


def plainly(text: str | bytes) -> Any:
    """JSON read by nothing of ours: pairs in order, numbers as their text."""
    return json.loads(text, object_pairs_hook=tuple, parse_int=Number, parse_float=Number)


def kinds(value: Any) -> Any:
    """The value with the type of every scalar, so that 1, "1" and true differ."""
    if isinstance(value, list | tuple):
        return [kinds(one) for one in value]
    return type(value).__name__, value


def entry(text: str | bytes, threat: str = "Linf") -> Any:
    """A row of CIFAR-10."""
    return parse_entry(text, "here.json", id="here", dataset="cifar10", threat=threat)


# --- reading ---


def test_all_published_files_survive(tmp_path: Path) -> None:
    """Every key, also twice, in its order, every value of its kind, every number in its own digits."""
    if not FOLDER.is_dir():
        pytest.skip("no RobustBench model_info in ../shared/data beside the checkout")
    paths = sorted(FOLDER.rglob("*.json"))
    keys = set()
    for path in paths:
        found = read_entry(path)
        copy = tmp_path / path.name
        write_entry(copy, found)
        before, after = plainly(path.read_bytes()), plainly(copy.read_bytes())
        assert kinds(after) == kinds(before), path
        assert found.clean is not None
        assert found.robust is not None, path
        assert (found.dataset, found.threat) == (path.parent.parent.name, path.parent.name)
        keys.add(frozenset(key for key, _ in before))
    assert len(paths) == len(find_entries(FOLDER)) > 200
    assert len(keys) >= 10


def test_numbers_and_unknown_keys_are_kept() -> None:
    """Trailing zeros, exponents, large integers, nested values, a key twice and letters beyond ASCII."""
    text = (
        '{"name": "é \\u2248 <br>", "dataset": "cifar10", "clean_acc": 94.10, '
        '"new": {"a": [1e5, "1", true, null], '
        '"b": 123456789012345678901234567890}, "eps": null, "clean_acc": 94.20, "empty": {}, "none": []}'
    )
    found = entry(text)
    assert kinds(plainly(to_text(found))) == kinds(plainly(text))
    assert found.clean == pytest.approx(0.942)
    assert found.eps is None
    assert found.robust is None


@pytest.mark.parametrize(
    ("change", "threat", "robust"),
    [
        ({}, "Linf", 0.5),
        ({"external": "42.25"}, "Linf", 0.4225),
        ({"external": "57.00"}, "Linf", 0.5),
        ({"autoattack_acc": "0.0"}, "L2", 0.0),
        ({"corruptions_acc": "71.5"}, "corruptions", 0.715),
        ({"autoattack_acc": "null"}, "Linf", None),
        ({}, "corruptions", None),
    ],
)
def test_robust_accuracy_is_the_best_known_bound(
    change: dict[str, Any], threat: str, robust: float | None
) -> None:
    """AutoAttack's or a lower one that somebody else found; of corruptions their mean."""
    found = entry(json.dumps(ROW | change), threat).robust
    assert found == (None if robust is None else pytest.approx(robust))


WRONG: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not JSON"),
    "cut off": ('{"name": "x",', "not JSON"),
    "binary": (b"\xff\xfe\x00", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "NaN": ('{"name": "x", "dataset": "d", "clean_acc": NaN}', "not JSON: NaN"),
    "a list": ("[1]", "a row is a JSON object"),
    "foreign": ('{"schema": 1, "id": "x"}', "missing name, dataset, clean_acc"),
    "no accuracy": (json.dumps(ROW | {"clean_acc": None}), "clean_acc must be a number, not null"),
    "words": (json.dumps(ROW | {"autoattack_acc": "high"}), "autoattack_acc must be a number"),
    "true": (json.dumps(ROW | {"clean_acc": True}), "clean_acc must be a number, not true"),
    "a list for a number": (json.dumps(ROW | {"clean_acc": [1]}), "clean_acc must be a number, not [1]"),
    "beyond 100": (json.dumps(ROW | {"external": "101"}), "external is out of range"),
    "infinite": (json.dumps(ROW | {"clean_acc": "inf"}), "clean_acc must be a number"),
    "eps over 0": (json.dumps(ROW | {"eps": "8/0"}), "eps must be a number"),
    "eps below 0": (json.dumps(ROW | {"eps": "-1"}), "eps is out of range"),
}


@pytest.fixture
def runs(tmp_path: Path, record_with: Make) -> Path:
    """A store with one run on ``cifar10``."""
    directory = tmp_path / "runs" / "one"
    directory.mkdir(parents=True)
    write_record(directory, record_with(STANDARD, data=("cifar10", "f9"), id="one"))
    return directory.parent


def folder_of(place: Path, rows: dict[str, str | bytes]) -> Path:
    """A ``model_info`` with these files, by ``dataset/threat/name``."""
    for name, text in rows.items():
        path = place / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


@pytest.mark.parametrize("case", WRONG)
def test_damaged_and_foreign_files_are_one_line(
    case: str, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the file and says what is wrong; nothing is shown."""
    text, said = WRONG[case]
    folder = folder_of(tmp_path / "info", {"cifar10/Linf/good": json.dumps(ROW), "cifar10/Linf/odd": text})
    assert invoke(["leaderboard", "--runs-dir", str(runs), "--robustbench", str(folder)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert said in error
    assert "odd.json" in error


def test_no_such_folder_is_one_line(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing folder, one without files, and a format that has no place for tables."""
    (tmp_path / "empty").mkdir()
    board = ["leaderboard", "--runs-dir", str(runs), "--robustbench"]
    for arguments, said in [
        ([str(tmp_path / "none")], "no RobustBench folder at"),
        ([str(tmp_path / "empty")], "no JSON files in"),
        ([str(tmp_path / "empty"), "--format", "csv"], "leave out --format"),
    ]:
        assert invoke([*board, *arguments]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert said in error


# --- showing ---


def test_reference_rows_stand_in_tables_of_their_own(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the runs, a table a data set and threat, best first, without ranks; the runs' table stays."""
    rows: dict[str, str | bytes] = {
        "cifar10/Linf/Weak": json.dumps(ROW | {"autoattack_acc": "9.5"}),
        "cifar10/Linf/Strong": json.dumps(ROW | {"autoattack_acc": "71.0", "additional_data": True}),
        "cifar10/Linf/Unmeasured": json.dumps(ROW | {"autoattack_acc": None}),
        "cifar10/corruptions/Foggy": json.dumps(ROW | {"corruptions_acc": "80.00", "eps": None}),
        # Some of the published files name another data set than their folder: the folder counts.
        "cifar100/Linf/Hundred": json.dumps(ROW),
    }
    folder = folder_of(tmp_path / "info", rows)
    board = ["leaderboard", "--runs-dir", str(runs)]
    assert invoke(board) == 0
    alone = capsys.readouterr().out
    assert invoke([*board, "--robustbench", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(alone)
    tables = out[len(alone) :].split("RobustBench · ")[1:]
    assert [table.split(" · reference")[0] for table in tables] == [
        "cifar10 · Linf",
        "cifar10 · corruptions",
        "cifar100 · Linf",
    ]
    lines = [line for line in tables[0].splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["Strong *", "Weak", "Unmeasured"]
    assert "90.10" in lines[0]
    assert "71.00" in lines[0]
    assert "rank" not in "".join(tables).replace("not ranked", "")
    assert invoke([*board, "--robustbench", str(folder / "cifar10" / "Linf"), "--dataset", "cifar10"]) == 0
    assert "RobustBench · cifar10 · Linf" in capsys.readouterr().out
    loose = folder_of(tmp_path / "loose", {"mine": json.dumps(ROW)})
    assert [(one.dataset, one.threat) for one in find_entries(loose)] == [("cifar10", "no threat folder")]


# --- writing ours ---


def test_a_run_with_autoattack_on_all_points(record_with: Make, tmp_path: Path) -> None:
    """Claims what AutoAttack left, in RobustBench's own words and digits, and survives its reader."""
    record = record_with(
        STANDARD,
        ("pgd", "steps=50", "linf", 8 / 255, 44),
        ("pgd-l2", "steps=50", "l2", 0.5, 60),
        clean=91,
        data=("cifar10", "f9"),
        id="20250101-at",
    )
    found = entry_of(
        record, name="On defenses", venue="ICLR 2020", link="https://arxiv.org/abs/0", authors="A, B"
    )
    write_entry(tmp_path / "mine.json", found)
    values = json.loads((tmp_path / "mine.json").read_text())
    assert values == {
        "link": "https://arxiv.org/abs/0",
        "name": "On defenses",
        "authors": "A, B",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICLR 2020",
        "architecture": "net",
        "eps": "8/255",
        "clean_acc": "91.00",
        "reported": None,
        "autoattack_acc": "40.00",
        "footnote": "Measured by advbench, run 20250101-at. Audit: ok.",
        "unreliable": False,
    }
    again = read_entry(tmp_path / "mine.json")
    assert again.pairs == found.pairs
    assert (again.clean, again.robust, again.eps) == (0.91, 0.4, 8 / 255)


@pytest.mark.parametrize(
    ("attacks", "more", "said"),
    [
        ([STANDARD], {"test": 10_000}, "AutoAttack leaves 40.00% on 100 of 10000 test points."),
        ([("autoattack", "version=rand", "linf", 8 / 255, 40)], {}, "AutoAttack was not run"),
        ([("pgd", "steps=5", "linf", 8 / 255, 44), ("fgsm", "", "linf", 8 / 255, 60)], {}, "pgd:eps=0.031"),
        ([("screen", "", "linf", 8 / 255, 41)], {}, "AutoAttack was not run"),
        ([STANDARD], {"test": None}, "on 100 of an unknown number of test points"),
    ],
    ids=["a part of the points", "another version", "other attacks", "screen", "unknown size"],
)
def test_autoattack_is_claimed_for_nothing_less(
    record_with: Make, attacks: list[Any], more: dict[str, Any], said: str
) -> None:
    """No ``autoattack_acc``; the footnote says what there is."""
    found = entry_of(record_with(*attacks, data=("cifar10", "f9"), **more))
    assert found.get("autoattack_acc") is None
    assert "autoattack_acc" not in dict(found.pairs)
    assert said in found.get("footnote")
    assert found.robust is None


def test_what_else_a_reader_must_know(record_with: Make) -> None:
    """Another eps than the leaderboard's, a data set that it has not, the audit, draws of a random model."""
    flags = [{"code": "stochastic", "message": "m", "evidence": {"draws": 16}}]
    attack = ("autoattack", "version=standard", "linf", 0.03, 40)
    found = entry_of(record_with(attack, data=("cifar10", "f9"), verdict="suspect", flags=flags))
    assert found.get("autoattack_acc") == "40.00"
    assert found.get("eps") == "0.03"
    assert "The leaderboard's eps is 8/255." in found.get("footnote")
    assert "Audit: suspect (stochastic)." in found.get("footnote")
    assert found.flagged
    assert found.number("number_forward_passes") == 16
    assert "has no leaderboard for digits, Linf" in entry_of(record_with(attack)).get("footnote")


def test_of_two_budgets_the_leaderboards(record_with: Make) -> None:
    """AutoAttack at eps 8/255, though 16/255 was measured too; elsewhere the larger."""
    double = ("autoattack", "version=standard", "linf", 16 / 255, 5)
    assert entry_of(record_with(STANDARD, double, data=("cifar10", "f9"))).get("autoattack_acc") == "40.00"
    assert entry_of(record_with(STANDARD, double)).get("autoattack_acc") == "5.00"


def test_an_evaluated_model_is_named(record_with: Make) -> None:
    """What ``advbench eval`` judged has no network of ours: its name is the architecture."""
    record = record_with(STANDARD, defense="mine:factory", model="evaluated models", regime="eval")
    assert entry_of(record).get("architecture") == "mine:factory"


def test_the_norm_is_chosen_where_there_is_a_choice(record_with: Make) -> None:
    """AutoAttack's norm, else the only one; several need ``--norm``, and it must be one that was measured."""
    pgd, l2 = ("pgd", "", "linf", 0.2, 40), ("pgd-l2", "", "l2", 1.0, 30)
    assert entry_of(record_with(STANDARD, l2)).threat == "Linf"
    assert entry_of(record_with(pgd, l2), norm="l2").threat == "L2"
    with pytest.raises(RecordError, match="attacks of l2, linf: a row is about one norm, choose it"):
        entry_of(record_with(pgd, l2))
    with pytest.raises(RecordError, match=r"no attack of norm l1 \(its norms: l2, linf\)"):
        entry_of(record_with(pgd, l2), norm="l1")
    with pytest.raises(RecordError, match="unknown norm 'l3'"):
        entry_of(record_with(pgd), norm="l3")
    with pytest.raises(RecordError, match="no attack of linf, l2, l1"):
        entry_of(record_with(("hue", "", None, 0.1, 30)))


def test_budgets_as_they_write_them() -> None:
    """255ths where that is what it is, and short decimals as they are."""
    texts = {8 / 255: "8/255", 4 / 255: "4/255", 1 / 255: "1/255", 0.5: "0.5", 0.2: "0.2", 0.031: "0.031"}
    assert {eps: eps_text(eps) for eps in texts} == texts


def test_export_on_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes the row and shows it; mistakes are one line, and a file that is there stays."""
    out = tmp_path / "row.json"
    command = ["export", str(runs / "one"), "--out", str(out)]
    assert invoke([*command, "--format", "robustbench", "--name", "T"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    assert read_entry(out).robust == 0.4
    before = out.read_bytes()
    for arguments, said in [
        (command, "already exists"),
        (["export", str(runs / "two"), "--out", str(tmp_path / "x.json")], "no run "),
        ([*command[:3], str(tmp_path / "no" / "x.json")], "there is no folder"),
        ([*command[:3], str(tmp_path / "x.json"), "--norm", "l2"], "no attack of norm l2"),
        ([*command[:3], str(tmp_path / "x.json"), "--format", "robustbanch"], "robustbanch"),
    ]:
        assert invoke(arguments) == 2
        printed, error = capsys.readouterr()
        assert printed == ""
        assert error.count("\n") == 1
        assert said in error
    assert not (tmp_path / "x.json").exists()
    assert out.read_bytes() == before
    assert invoke([*command, "--force", "--name", "U"]) == 0
    assert json.loads(out.read_text())["name"] == "U"
