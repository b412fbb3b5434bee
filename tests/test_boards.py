"""Leaderboards in every format, filtered, grouped, pivoted; and read again without being read again."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from record_trees import record_tree
from rich.console import Console
from rich.table import Table

import leaderboards
from advbench.cli.main import invoke
from leaderboards import (
    Record,
    RecordError,
    Row,
    View,
    find_garbage,
    find_records,
    find_results,
    inventory,
    parse_record,
    result_of,
    rows,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_table,
)
from leaderboards.audits.finished import read_finished
from leaderboards.boards import cache, ranking, tables
from leaderboards.boards.labels import labels
from leaderboards.boards.latex import escape
from leaderboards.statistics.metrics import METRICS

FGSM, PGD, CW = "fgsm:eps=0.2", "pgd:eps=0.2,steps=40", "cw:eps=1"
SCORES = {"average_robust_accuracy": 0.5, "clean_accuracy": 0.9, "forgetting": 0.05, "unseen_accuracy": 1 / 3}


def record(
    defense: str = "at", score: float = 0.5, *, seed: int = 0, verdict: str = "ok", **config: Any
) -> Record:
    """A record with this score and these settings."""
    dataset = config.get("dataset", "digits")
    base = {"defense": defense, "seed": seed, "sequence": [FGSM, PGD], "training": [FGSM, PGD]}
    base |= {"model": "cnn", "plan": {"epochs": 2, "lr": 0.1}, "pretrain": {"epochs": 5}}
    tree = record_tree(
        base | config,
        fingerprint=f"of {dataset}",
        verdict=verdict,
        id=f"{defense}-{seed}-{dataset}-{verdict}",
        metrics=SCORES | {"average_robust_accuracy": score, "regeneration_psnr": 21.125},
    )
    return parse_record(tree, "here")


def several() -> list[Record]:
    """Two data sets, three defenses, a suspect one, seeds with awkward numbers."""
    found = [record("air", score, seed=seed) for seed, score in enumerate([0.1 + 0.2, 1 / 3, 0.7123456789])]
    found += [record("at", 0.61, params={"mix": "a|b_c & 50 %"}), record("masked", 0.99, verdict="suspect")]
    found += [record("mola-grad", 0.8, target_aware=True), record("joint", 0.55, regime="joint")]
    found += [record("at", 0.42, dataset="mnist", sequence=[FGSM, CW], training=[FGSM, CW], model="lenet")]
    return found


@pytest.fixture
def board() -> list[Row]:
    """Their rows."""
    return rows(several())


def numbers(text: str) -> list[float]:
    """The numbers that people read in a cell."""
    return [float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def read_markdown(text: str) -> list[dict[str, str]]:
    """The cells of Markdown tables under their headings."""
    found = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("| "):
            header = []
            continue
        cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        cells = [re.sub(r"^(\*\*|<u>)(.*?)(\*\*|</u>)$", r"\2", cell) for cell in cells]
        if not header:
            header = cells
        elif not set("".join(cells)) <= set("-: "):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def read_latex(text: str) -> list[dict[str, str]]:
    """The cells of booktabs tables under their headings."""
    found = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
        table = [[unescape(cell) for cell in re.split(r" (?<!\\)& ", line)] for line in lines]
        found += [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    return found


def unescape(text: str) -> str:
    """What LaTeX prints."""
    text = re.sub(r"\\(textbf|underline)\{(.*)\}$", r"\2", text.strip())
    text = re.sub(r"^\{(\[.*\])\}$", r"\1", text)
    for command, letter in {r"$\pm$": "±", r"\textbar{}": "|", "--": "–", "-{}-": "--"}.items():
        text = text.replace(command, letter)
    return re.sub(r"\\([&%_#${}])", r"\1", text)


def read_table(text: str) -> list[dict[str, str]]:
    """The cells of printed tables under their headings."""
    found, header = [], []
    for line in text.splitlines():
        if line.startswith("┃"):
            header = [cell.strip() for cell in line.strip("┃").split("┃")]
        elif line.startswith("│"):
            found.append(
                dict(zip(header, (cell.strip() for cell in line.strip("│").split("│")), strict=True))
            )
    return found


READERS: dict[str, tuple[Callable[..., str], Callable[[str], list[dict[str, str]]]]] = {
    "table": (tables.to_text, read_table),
    "markdown": (to_markdown, read_markdown),
    "latex": (to_latex, read_latex),
}


@pytest.mark.parametrize("format", READERS)
def test_what_people_read_has_the_numbers(board: list[Row], format: str) -> None:
    """To one decimal of a percent: mean and deviation, in rows of the same order."""
    write, read = READERS[format]
    lines = read(write(board))
    assert len(lines) == len(board) == 6
    for row, line in zip(board, lines, strict=True):
        assert line["defense"].startswith(row.defense)
        assert line["rank"] == ("–" if row.rank is None else str(row.rank))
        for metric, heading in {"average_robust_accuracy": "average", "unseen_accuracy": "unseen"}.items():
            summary = row.metrics[metric]
            assert summary is not None
            expected = [summary.mean] if summary.std is None else [summary.mean, summary.std]
            assert numbers(line[heading]) == [pytest.approx(100 * value, abs=0.0501) for value in expected]
        assert line["audit"] == ("ok" if row.verdict == "ok" else "suspect: zero-gradient")
    assert next(row for row in board if row.defense == "at" and row.dataset == "digits").params == {
        "mix": "a|b_c & 50 %"
    }


@pytest.mark.parametrize("format", ["csv", "json", "pandas"])
def test_data_has_the_numbers_exactly(tmp_path: Path, format: str) -> None:
    """At full precision, chosen columns too."""
    for number, one in enumerate(several()):
        run = leaderboards.new_run_directory(tmp_path, f"run-{number}")
        leaderboards.write_record(run, one)
    board = rows(find_results(tmp_path)[0])
    columns = "rank,defense,average,training_seconds,regeneration_psnr_mean,plan.lr,params.mix"
    view = View.of(columns)
    if format == "csv":
        found = list(csv.DictReader(io.StringIO(to_csv(board, view))))
    elif format == "json":
        found = json.loads(to_json(board, view))
    else:
        found = leaderboards.load(tmp_path, columns=columns).to_dict("records")
    assert len(found) == len(board)
    for row, line in zip(board, found, strict=True):
        summary = row.metrics["average_robust_accuracy"]
        assert summary is not None
        assert float(line["average_robust_accuracy_mean"]) == summary.mean
        std = line["average_robust_accuracy_std"]
        assert (None if std in ("", None) or std != std else float(std)) == summary.std
        assert float(line["regeneration_psnr_mean"]) == 21.125
        assert float(line["plan.lr"]) == 0.1
        # Without outcomes a run is listed, and never ranked.
        assert row.rank is None
        assert line["rank"] in ("", None) or line["rank"] != line["rank"]
        assert list(line)[:4] == [
            "rank",
            "defense",
            "average_robust_accuracy_mean",
            "average_robust_accuracy_std",
        ]


def test_best_is_bold_and_second_underlined(board: list[Row]) -> None:
    """Among ok rows of one board, target-aware ones apart; what is written alike is equal."""
    text = to_latex(board, View.of("label,average_mean,clean_mean"))
    assert r"joint & \underline{55.0} & \textbf{90.0} \\" in text
    assert r"& \textbf{61.0} & \textbf{90.0} \\" in text
    assert r"masked & 99.0 & 90.0 \\" in text
    assert r"mola-grad (target-aware) & 80.0 & 90.0 \\" in text
    three = [record(name, score) for name, score in {"a": 0.50004, "b": 0.50003, "c": 0.4}.items()]
    marked = to_markdown(rows(three), View.of("defense,average,clean"))
    assert "| a | **50.0** | **90.0** |" in marked
    assert "| b | **50.0** | **90.0** |" in marked
    assert "| c | <u>40.0</u> | **90.0** |" in marked


def test_losing_little_is_no_merit_in_itself() -> None:
    """A model that never learnt forgets nothing: marked only where rows are ranked by it."""
    found = rows([record("a", 0.9), record("b", 0.1)])
    marked = to_markdown(found, View.of("defense,average,forgetting,forgetting_mean"))
    assert "| a | **90.0** | 5.0 | 5.0 |" in marked
    assert "| b | <u>10.0</u> | 5.0 | 5.0 |" in marked


def test_less_forgetting_is_better() -> None:
    """In marks as in ranks."""
    pair = [record("a", 0.9), record("b", 0.1)]
    worse = pair[0].model_copy(update={"metrics": pair[0].metrics | {"forgetting": 0.2}})
    found = rows([worse, pair[1]], rank_by="forgetting")
    assert [(row.defense, row.rank, row.ranked_by) for row in found] == [
        ("b", 1, "forgetting"),
        ("a", 2, "forgetting"),
    ]
    assert "| b | **5.0** |" in to_markdown(found, View.of("defense,forgetting"))


def test_everything_is_escaped_in_latex() -> None:
    """Names of parameters and folders hold anything."""
    assert escape("50 % of a_b & {c} $5 #1 ~ ^ \\") == (
        r"50 \% of a\_b \& \{c\} \$5 \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape("n--m – ± é 中\n[x]") == r"n-{}-m -- $\pm$ é [U+4E2D] [x]"
    text = to_latex(rows([record("[x]", 0.5), record("*", 0.4)]), View.of("label,average"))
    assert "{[x]} & " in text
    assert "{*} & " in text


def test_the_latex_compiles(tmp_path: Path, board: list[Row]) -> None:
    """With booktabs alone, whatever the names are."""
    compiler = shutil.which("pdflatex") or shutil.which("tectonic") or shutil.which("lualatex")
    if compiler is None:
        pytest.skip("no TeX is installed here")
    awkward = rows(
        [record("".join(map(chr, range(33, 127))), 0.5), record("é中😀λ→–", 0.4), record("[*]", 0.3)]
    )
    body = to_latex([*board, *awkward])
    source = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\\end{document}\n"
    )
    (tmp_path / "board.tex").write_text(source, "utf-8")
    options = [] if "tectonic" in compiler else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [compiler, *options, "board.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "board.pdf").stat().st_size > 1000


@pytest.mark.parametrize("width", [60, 100, 200])
def test_wide_tables_are_drawn_as_rich_draws_them(board: list[Row], width: int) -> None:
    """Line for line, with rules, marks and titles; and folded by rich where they do not fit."""

    def drawn(table: Table) -> str:
        console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True, highlight=False)
        console.print(table)
        return console.export_text(styles=True)

    for table in to_table(board):
        found = drawn(table)
        table._fill()  # type: ignore[attr-defined]
        plain = Table(title=table.title, caption=table.caption)
        plain.columns, plain.rows = table.columns, table.rows
        assert found == drawn(plain)


def test_a_compact_table_fits_100_columns(board: list[Row]) -> None:
    """Means alone, but for the ranking key; nothing is cut."""
    console = Console(width=100, file=io.StringIO(), record=True)
    for table in to_table(board, compact=True):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "44.9 ± 22.9" in text
    assert "joint, joint" in text


def test_a_narrow_terminal_does_without_some_columns() -> None:
    """And says without which; the defense always has room, and no number is cut."""
    found = rows([record("a-rather-long-name", 0.123456, seed=seed) for seed in range(2)])
    for width in (80, 60, 30):
        console = Console(width=width, file=io.StringIO(), record=True)
        for table in to_table(found, compact=True):
            console.print(table)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        if width < 80:
            assert "no room here for forgot" in text
        if width >= 60:
            assert "12.3 ± 0.0" in text
            assert "a-rather" in text


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "data set": ({"dataset": "mnist"}, ["at"]),
    "two defenses": ({"defense": ["at", "air"]}, ["at", "air", "at"]),
    "regime": ({"regime": "joint"}, ["joint"]),
    "model": ({"model": "lenet"}, ["at"]),
    "verdict": ({"verdict": "suspect"}, ["masked"]),
    "verdict of none": ({"verdict": "invalid"}, []),
    "sequence": ({"sequence": "fgsm,cw"}, ["at"]),
    "sequence with a knob": ({"sequence": "fgsm:eps=1/5,pgd:steps=40,eps=0.2", "defense": "at"}, ["at"]),
    "both": ({"dataset": "mnist", "defense": "air"}, []),
    "parameter": ({"where": ["params.mix=a|b_c & 50 %"]}, ["at"]),
    "number": ({"where": ["plan.epochs=2.0", "defense=masked"]}, ["masked"]),
    "truth": ({"where": ["target_aware=true"]}, ["mola-grad"]),
    "rank": ({"where": ["rank=1"]}, ["at", "mola-grad", "at"]),
    "number of seeds": ({"where": ["seeds=3"]}, ["air"]),
    "flag": ({"where": ["flags=zero-gradient"]}, ["masked"]),
    "trust": ({"where": ["trust=re-evaluated"]}, []),
    "either badge": ({"where": ["trust=verified"]}, []),
    "metric": ({"where": ["average_mean=0.55"]}, ["joint"]),
}


@pytest.mark.parametrize("case", FILTERS)
def test_filters(board: list[Row], case: str) -> None:
    """They hide rows, and leave every rank as it is."""
    options, expected = FILTERS[case]
    found = rows(several(), **options)
    assert [row.defense for row in found] == expected
    assert [row for row in board if row in found] == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "mnst"},
            "no records on data set 'mnst': did you mean 'mnist'? there are records on digits",
        ),
        ({"defense": "ari"}, "no rows with defense 'ari': did you mean 'air'? there are rows with air, at"),
        ({"regime": "jont"}, "no rows with regime 'jont': did you mean 'joint'?"),
        ({"verdict": "okay"}, "no such verdict 'okay': did you mean 'ok'? there are ok, suspect, invalid"),
        ({"sequence": "fgsm,pgdd"}, "no rows with sequence 'fgsm,pgdd':"),
        ({"where": ["modle=cnn"]}, "unknown key 'modle': did you mean 'model'?"),
        ({"where": ["model"]}, "where 'model' cannot be read: write KEY=VALUE"),
        ({"where": ["=x"]}, "where '=x' cannot be read"),
        ({"where": ["params.sigma=1"]}, "unknown key 'params.sigma'"),
        ({"rank_by": "averag"}, "no metric 'averag': did you mean 'average'?"),
        ({"intervals": ["robust"]}, "no metric 'robust'"),
    ],
)
def test_what_cannot_be_filtered(options: dict[str, Any], message: str) -> None:
    """One line with the nearest match."""
    with pytest.raises(RecordError) as caught:
        rows(several(), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parameter_without_a_value_is_as_none() -> None:
    """A record from before there was one is of the same row as a new one that leaves it at None."""
    old, new = (
        record("trades", params={"beta": 6.0}),
        record("trades", seed=1, params={"beta": 6.0, "steps": None}),
    )
    (row,) = rows([old, new])
    assert (row.seeds, row.params) == ((0, 1), {"beta": 6.0})
    both = rows([old, new, record("trades", params={"beta": 6.0, "steps": 10})])
    assert sorted(labels(both)) == ["trades", "trades(steps=10)"]


def test_knobs_of_an_attack_part_no_columns(board: list[Row]) -> None:
    """In a list with commas, in which an attack has its own."""
    view = View.of("label,robust.pgd:eps=0.2,steps=50_mean, robust.fgsm,clean")
    assert view.columns == ("label", "robust.pgd:eps=0.2,steps=50_mean", "robust.fgsm", "clean")
    assert view.under() == ["robust.pgd:eps=0.2,steps=50", "robust.fgsm"]
    pivot = View.of(pivot="defense,sequence,robust.pgd:eps=0.2,steps=50")
    assert pivot.pivot == ("defense", "sequence", "robust.pgd:eps=0.2,steps=50")
    with pytest.raises(RecordError, match="unknown column 'steps=50'"):
        to_csv(board, View.of("label,steps=50"))


def test_group_by_makes_a_table_a_value(board: list[Row]) -> None:
    """With what then differs as columns; data have the key first and its rows together."""
    found = to_table(board, View(group_by="defense"))
    assert [str(table.title) for table in found] == [
        f"defense: {name}" for name in dict.fromkeys(row.defense for row in board)
    ]
    at = tables.to_text([row for row in board if row.defense == "at"], View(group_by="defense"))
    assert [line["dataset"] for line in read_table(at)] == ["digits", "mnist"]
    lines = list(csv.DictReader(io.StringIO(to_csv(board, View.of("average_mean", group_by="defense")))))
    assert list(lines[0]) == ["defense", "average_robust_accuracy_mean"]
    names = [line["defense"] for line in lines]
    assert [name for i, name in enumerate(names) if name not in names[:i]] == list(dict.fromkeys(names))
    assert sorted(names) == sorted(row.defense for row in board)


def test_pivot(board: list[Row], tmp_path: Path) -> None:
    """A row and a column for each value; a place without a row is empty, one with two is an error."""
    view = View.of(pivot="defense,dataset,average")
    lines = read_markdown(to_markdown(board, view))
    assert [line["defense"] for line in lines] == ["at", "joint", "air", "masked", "mola-grad"]
    assert (lines[0]["digits"], lines[0]["mnist"]) == ("61.0", "42.0")
    assert lines[1]["mnist"] == "–"
    data = list(csv.DictReader(io.StringIO(to_csv(board, view))))
    summary = board[2].metrics["average_robust_accuracy"]
    assert summary is not None
    assert float(data[2]["digits"]) == summary.mean
    assert data[1]["mnist"] == ""
    with pytest.raises(
        RecordError, match="several rows have regime 'continual' and model 'cnn': they differ in"
    ):
        to_csv(board, View.of(pivot="regime,model,average"))
    for number, one in enumerate(several()):
        leaderboards.write_record(leaderboards.new_run_directory(tmp_path, f"r{number}"), one)
    frame = leaderboards.load(tmp_path, pivot="defense,dataset,average", where="target_aware=false")
    assert frame.set_index("defense")["mnist"]["at"] == 0.42


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "rank,averge"}, "unknown column 'averge': did you mean 'average'?"),
        ({"columns": "rank,,defense"}, "unknown column ''"),
        ({"columns": "params.sgima"}, "unknown column 'params.sgima'"),
        ({"group_by": "defence"}, "unknown column 'defence': did you mean 'defense'?"),
        ({"pivot": "defense,average"}, "pivot 'defense,average' cannot be read: write ROWS,COLUMNS,VALUE"),
        ({"pivot": "a,b,c", "columns": "rank"}, "a pivot has its own rows and columns"),
        ({"pivot": "defense,dataset,averge"}, "unknown column 'averge'"),
    ],
)
def test_what_cannot_be_laid_out(board: list[Row], options: dict[str, Any], message: str) -> None:
    """The same in every format."""
    for write in (to_csv, to_json, to_markdown, to_latex, tables.to_text):
        with pytest.raises(RecordError, match=re.escape(message)):
            write(board, View.of(**options))


def test_no_rows_at_all() -> None:
    """An empty board is empty in every format."""
    assert json.loads(to_json([])) == []
    assert (to_markdown([]), tables.to_text([])) == ("", "")
    assert to_csv([], View.of(pivot="defense,dataset,average")) == "\n"
    assert "tabular" not in to_latex([])
    assert to_csv([]).startswith("rank,defense,")


def test_trust_is_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has the least of its runs; the column is there when it says something."""
    for seed in range(2):
        run = leaderboards.new_run_directory(tmp_path, f"at-{seed}")
        leaderboards.write_record(run, record("at", 0.5, seed=seed))
    leaderboards.write_record(leaderboards.new_run_directory(tmp_path, "air-0"), record("air", 0.4))
    results = find_results(tmp_path)[0]
    assert {row.trust for row in rows(results)} == {"self-reported"}
    assert "trust" not in read_table(tables.to_text(rows(results)))[0]
    levels = {"at-0": "retrained", "air-0": "re-evaluated"}
    monkeypatch.setattr(ranking, "trust_of", lambda path: levels.get(path.name, "self-reported"))
    assert {row.defense: row.trust for row in rows(results)} == {"at": "self-reported", "air": "re-evaluated"}
    assert {line["trust"] for line in read_table(tables.to_text(rows(results)))} == {
        "re-evaluated",
        "self-reported",
    }
    levels["at-1"] = "re-evaluated"
    assert {row.trust for row in rows(results)} == {"re-evaluated"}
    levels["at-1"] = "retrained"
    assert {row.defense: row.trust for row in rows(results)} == {"at": "retrained", "air": "re-evaluated"}
    for wanted, shown in (("verified", {"at", "air"}), ("retrained", {"at"}), ("self-reported", set())):
        assert {row.defense for row in rows(results, where=[f"trust={wanted}"])} == shown
    with pytest.raises(RecordError, match="no such trust 'verifed': did you mean 'verified'"):
        rows(results, where=["trust=verifed"])
    assert rows([result_of(record("at"))])[0].trust == "self-reported"


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs directory whose files are old enough, and a cache that three files are worth."""
    monkeypatch.setattr(cache, "WORTHWHILE", 3)
    monkeypatch.setattr(cache, "_SETTLED", -(10**18))
    runs_dir = tmp_path / "runs"
    for seed in range(4):
        run = leaderboards.new_run_directory(runs_dir, f"at-{seed}")
        leaderboards.write_record(run, record("at", 0.1 + 0.2 * seed, seed=seed))
    return runs_dir


def reads(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Row], list[str]]:
    """The rows, and the records that had to be read for them."""
    from leaderboards.boards import cache

    seen: list[str] = []

    def spy(path: Path) -> tuple[Record, str | None]:
        seen.append(path.name)
        return read_finished(path)

    monkeypatch.setattr(cache, "read_finished", spy)
    return rows(find_results(runs_dir)[0]), seen


def test_records_are_read_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when they change, are added or removed: a board is never stale."""
    first, seen = reads(many, monkeypatch)
    assert sorted(seen) == [f"at-{seed}" for seed in range(4)]
    assert (many / cache.NAME).is_file()
    again, seen = reads(many, monkeypatch)
    assert (again, seen) == (first, [])
    # The same size, and times set back: the inode or its change time tells.
    path = many / "at-1" / "record.json"
    before, text = path.stat(), path.read_text("utf-8")
    path.write_text(text.replace("0.30000000000000004", "0.40000000000000002"), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    changed, seen = reads(many, monkeypatch)
    assert seen == ["at-1"]
    assert (
        changed == rows(find_records(many)[0]) or changed[0].metrics == rows(find_records(many)[0])[0].metrics
    )
    shutil.rmtree(many / "at-2")
    leaderboards.write_record(leaderboards.new_run_directory(many, "at-9"), record("at", 0.9, seed=9))
    changed, seen = reads(many, monkeypatch)
    assert changed[0].seeds == (0, 1, 3, 9)
    assert "at-9" in seen


def test_what_was_just_written_is_not_kept(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within the clock's resolution would leave the same times."""
    monkeypatch.setattr(cache, "_SETTLED", 10**18)
    reads(many, monkeypatch)
    assert not (many / cache.NAME).exists()


@pytest.mark.parametrize("fault", ["empty", "cut", "flipped", "other code", "a directory"])
def test_a_damaged_cache_is_as_none(many: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Every single byte of it counts."""
    first, _ = reads(many, monkeypatch)
    path = many / cache.NAME
    whole = path.read_bytes()
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "cut":
        path.write_bytes(whole[:-1])
    elif fault == "flipped":
        place = whole.index(b"0.30000000000000004")
        path.write_bytes(whole[:place] + b"9" + whole[place + 1 :])
    elif fault == "other code":
        monkeypatch.setattr(cache, "_code", lambda: "another")
    else:
        path.unlink()
        path.mkdir()
    found, seen = reads(many, monkeypatch)
    assert found == first
    assert len(seen) == 4


def test_a_cache_that_cannot_be_written_is_no_error(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost but time."""

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    first, _ = reads(many, monkeypatch)
    assert len(first) == 1
    assert os.listdir(many).count(cache.NAME) == 0
    assert sorted(os.listdir(many)) == [f"at-{seed}" for seed in range(4)]


def test_a_few_runs_need_no_cache(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind in a small directory."""
    monkeypatch.setattr(cache, "WORTHWHILE", 50)
    reads(many, monkeypatch)
    assert not (many / cache.NAME).exists()


def test_others_do_not_stumble_over_the_cache(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no run, no garbage and no damage."""
    before = find_records(many)
    reads(many, monkeypatch)
    assert (many / cache.NAME).is_file()
    assert find_records(many) == before
    assert [entry.id for entry in inventory(many)] == [f"at-{seed}" for seed in range(4)]
    assert cache.NAME not in {garbage.path.name for garbage in find_garbage(many)}
    assert find_results(many)[1] == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A runs directory on disk."""
    for number, one in enumerate(several()):
        leaderboards.write_record(leaderboards.new_run_directory(tmp_path / "runs", f"run-{number}"), one)
    return tmp_path


def test_the_command_writes_every_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the terminal or to a file, the same text."""
    for format in ("table", "csv", "json", "markdown", "latex"):
        options = ["leaderboard", "--runs-dir", str(place / "runs"), "--format", format]
        options += ["--columns", "rank,label,average,clean_mean"]
        assert invoke(options) == 0
        shown = capsys.readouterr().out
        path = place / f"board.{format}"
        path.write_text("old")
        assert invoke([*options, "--out", str(path)]) == 0
        assert capsys.readouterr().out == f"wrote {path}\n"
        written = path.read_text("utf-8")
        if format == "table":
            assert [line.rstrip() for line in shown.splitlines()] == written.splitlines()
        else:
            assert shown == written
    assert sorted(path.name for path in place.iterdir()) == [
        "board.csv",
        "board.json",
        "board.latex",
        "board.markdown",
        "board.table",
        "runs",
    ]


def test_the_command_filters_and_ranks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same options as the library."""
    options = ["leaderboard", "--runs-dir", str(place / "runs"), "--format", "json"]
    for more in (
        ["--defense", "at", "--defense", "air", "--dataset", "digits", "--rank-by", "clean"],
        ["--where", "regime=joint", "--rank-by", "forgetting"],
        ["--sequence", "fgsm,cw", "--model", "lenet", "--verdict", "ok", "--regime", "continual"],
    ):
        assert invoke([*options, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {(row["defense"], row["dataset"]) for row in found} <= {
            ("at", "digits"),
            ("air", "digits"),
            ("joint", "digits"),
            ("at", "mnist"),
        }
        assert len(found) == (2 if "clean" in more else 1)
    assert invoke(["leaderboard", "--runs-dir", str(place / "runs"), "--verdict", "invalid"]) == 0
    assert capsys.readouterr().out == "no row matches the filters\n"


def test_the_command_says_why_there_is_no_interval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table below it, in data in a column."""
    options = ["leaderboard", "--runs-dir", str(place / "runs"), "--defense", "air"]
    assert invoke(options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not ranked: cannot read outcomes" in shown
    assert invoke([*options, "--format", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert line["note"].startswith("cannot read outcomes")
    assert line["average_robust_accuracy_low"] == line["average_robust_accuracy_high"] == ""


def test_every_metric_has_a_short_word() -> None:
    """And each of them stands for one metric."""
    from leaderboards.statistics.keys import SHORT, metric_of

    assert sorted(SHORT.values()) == sorted(METRICS)
    for short, metric in SHORT.items():
        assert metric_of(short) == metric_of(short.upper()) == metric_of(metric) == metric
        assert metric_of(metric.replace("_", "-")) == metric
