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
from record_trees import scored, stored
from rich.console import Console
from rich.table import Table

import leaderboards
from leaderboards import (
    Record,
    RecordError,
    Row,
    View,
    find_garbage,
    find_records,
    find_results,
    inventory,
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
from leaderboards.statistics.keys import SHORT, metric_of
from leaderboards.statistics.metrics import METRICS

Call = Callable[..., tuple[str, str]]

FGSM_CW = ["fgsm:eps=0.2", "cw:eps=1"]
MORE = {"forgetting": 0.05, "unseen_accuracy": 1 / 3, "regeneration_psnr": 21.125}


def record(defense: str = "at", score: float = 0.5, **more: Any) -> Record:
    """A record with this score and these settings."""
    name = {"fingerprint": f"of {more.get('dataset', 'digits')}"}
    return scored(defense, score, **{"model": "cnn", "metrics": MORE, **name, **more})


def several() -> list[Record]:
    """Two data sets, three defenses, a suspect one, seeds with awkward numbers."""
    found = [record("air", score, seed=seed) for seed, score in enumerate([0.1 + 0.2, 1 / 3, 0.7123456789])]
    found += [record("at", 0.61, params={"mix": "a|b_c & 50 %"}), record("masked", 0.99, verdict="suspect")]
    found += [record("mola-grad", 0.8, target_aware=True), record("joint", 0.55, regime="joint")]
    found += [record("at", 0.42, dataset="mnist", sequence=FGSM_CW, training=FGSM_CW, model="lenet")]
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
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            found.append(dict(zip(header, cells, strict=True)))
    return found


def read_csv(text: str) -> list[dict[str, str]]:
    """The lines of data under their names."""
    return list(csv.DictReader(io.StringIO(text)))


def printed(found: list[Table], width: int) -> str:
    """Tables as a terminal of this width shows them."""
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in found:
        console.print(table)
    return console.export_text()


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
            expected = [summary.mean] if summary.std is None else [summary.mean, summary.std]
            assert numbers(line[heading]) == [pytest.approx(100 * value, abs=0.0501) for value in expected]
        assert line["audit"] == ("ok" if row.verdict == "ok" else "suspect: zero-gradient")
    assert {"mix": "a|b_c & 50 %"} in [row.params for row in board]


@pytest.mark.parametrize("format", ["csv", "json", "pandas"])
def test_data_has_the_numbers_exactly(tmp_path: Path, format: str) -> None:
    """At full precision, chosen columns too."""
    board = rows(find_results(stored(tmp_path, *several()))[0])
    columns = "rank,defense,average,training_seconds,regeneration_psnr_mean,plan.lr,params.mix"
    view = View.of(columns)
    if format == "csv":
        found = read_csv(to_csv(board, view))
    elif format == "json":
        found = json.loads(to_json(board, view))
    else:
        found = leaderboards.load(tmp_path, columns=columns).to_dict("records")
    assert len(found) == len(board)
    for row, line in zip(board, found, strict=True):
        summary = row.metrics["average_robust_accuracy"]
        assert float(line["average_robust_accuracy_mean"]) == summary.mean
        std = line["average_robust_accuracy_std"]
        assert (None if std in ("", None) or std != std else float(std)) == summary.std
        assert float(line["regeneration_psnr_mean"]) == 21.125
        assert float(line["plan.lr"]) == 0.1
        # Without outcomes a run is listed, and never ranked.
        assert row.rank is None
        assert line["rank"] in ("", None) or line["rank"] != line["rank"]
        names = [f"average_robust_accuracy_{part}" for part in ("mean", "std")]
        assert list(line)[:4] == ["rank", "defense", *names]


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
    assert [(row.defense, row.rank) for row in found] == [("b", 1), ("a", 2)]
    assert {row.ranked_by for row in found} == {"forgetting"}
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
    names = ("".join(map(chr, range(33, 127))), "é中😀λ→–", "[*]")
    body = to_latex([*board, *rows([record(name) for name in names])])
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "board.tex").write_text(f"{head}{body}\\end{{document}}\n", "utf-8")
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
    text = printed(to_table(board, compact=True), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "44.9 ± 22.9" in text
    assert "joint, joint" in text


def test_a_narrow_terminal_does_without_some_columns() -> None:
    """And says without which; the defense always has room, and no number is cut."""
    found = rows([record("a-rather-long-name", 0.123456, seed=seed) for seed in range(2)])
    for width in (80, 60, 30):
        text = printed(to_table(found, compact=True), width)
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
        ({"dataset": "mnst"}, "no records on data set 'mnst': did you mean 'mnist'? there are records on d"),
        ({"defense": "ari"}, "no rows with defense 'ari': did you mean 'air'? there are rows with air, at"),
        ({"regime": "jont"}, "no rows with regime 'jont': did you mean 'joint'?"),
        ({"verdict": "okay"}, "no such verdict 'okay': did you mean 'ok'? there are ok, suspect, invalid"),
        ({"sequence": "fgsm,pgdd"}, "no rows with sequence 'fgsm,pgdd':"),
        ({"where": ["modle=cnn"]}, "unknown key 'modle': did you mean 'model'?"),
        ({"where": ["model"]}, "where 'model' cannot be read: write KEY=VALUE"),
        ({"where": ["=x"]}, "where '=x' cannot be read"),
        ({"where": ["trust=verifed"]}, "no such trust 'verifed': did you mean 'verified'"),
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
    assert rows([], dataset="mnist") == rows([], rank_by="robust.anything") == []


def test_a_parameter_without_a_value_is_as_none() -> None:
    """A record from before there was one is of the same row as a new one that leaves it at None."""
    old = record("trades", params={"beta": 6.0})
    new = record("trades", seed=1, params={"beta": 6.0, "steps": None})
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
    order = list(dict.fromkeys(row.defense for row in board))
    titles = [str(table.title) for table in to_table(board, View(group_by="defense"))]
    assert titles == [f"defense: {name}" for name in order]
    at = tables.to_text([row for row in board if row.defense == "at"], View(group_by="defense"))
    assert [line["dataset"] for line in read_table(at)] == ["digits", "mnist"]
    lines = read_csv(to_csv(board, View.of("average_mean", group_by="defense")))
    assert list(lines[0]) == ["defense", "average_robust_accuracy_mean"]
    together = [row.defense for name in order for row in board if row.defense == name]
    assert [line["defense"] for line in lines] == together


def test_pivot(board: list[Row], tmp_path: Path) -> None:
    """A row and a column for each value; a place without a row is empty, one with two is an error."""
    view = View.of(pivot="defense,dataset,average")
    lines = read_markdown(to_markdown(board, view))
    assert [line["defense"] for line in lines] == ["at", "joint", "air", "masked", "mola-grad"]
    assert (lines[0]["digits"], lines[0]["mnist"]) == ("61.0", "42.0")
    assert lines[1]["mnist"] == "–"
    data = read_csv(to_csv(board, view))
    assert float(data[2]["digits"]) == board[2].metrics["average_robust_accuracy"].mean
    assert data[1]["mnist"] == ""
    with pytest.raises(RecordError, match="several rows have regime 'continual' and model 'cnn': they diff"):
        to_csv(board, View.of(pivot="regime,model,average"))
    stored(tmp_path, *several())
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
    stored(tmp_path, record("at", seed=0), record("at", seed=1), record("air", 0.4))
    results = find_results(tmp_path)[0]

    def levels() -> dict[str, str]:
        return {row.defense: row.trust for row in rows(results)}

    assert set(levels().values()) == {"self-reported"}
    assert "trust" not in read_table(tables.to_text(rows(results)))[0]
    known = {"at-0": "retrained", "air-0": "re-evaluated"}
    monkeypatch.setattr(ranking, "trust_of", lambda path: known.get(path.name, "self-reported"))
    assert levels() == {"at": "self-reported", "air": "re-evaluated"}
    printed = {line["trust"] for line in read_table(tables.to_text(rows(results)))}
    assert printed == {"re-evaluated", "self-reported"}
    known["at-1"] = "re-evaluated"
    assert set(levels().values()) == {"re-evaluated"}
    known["at-1"] = "retrained"
    assert levels() == {"at": "retrained", "air": "re-evaluated"}
    for wanted, shown in (("verified", {"at", "air"}), ("retrained", {"at"}), ("self-reported", set())):
        assert {row.defense for row in rows(results, where=[f"trust={wanted}"])} == shown
    assert rows([result_of(record("at"))])[0].trust == "self-reported"


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs directory whose files are old enough, and a cache that three files are worth."""
    monkeypatch.setattr(cache, "WORTHWHILE", 3)
    monkeypatch.setattr(cache, "_SETTLED", -(10**18))
    return stored(tmp_path / "runs", *(record("at", 0.1 + 0.2 * seed, seed=seed) for seed in range(4)))


def reads(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Row], list[str]]:
    """The rows, and the records that had to be read for them."""
    seen: list[str] = []

    def spy(path: Path) -> tuple[Record, str | None]:
        seen.append(path.name)
        return read_finished(path)

    monkeypatch.setattr(cache, "read_finished", spy)
    return rows(find_results(runs_dir)[0]), seen


def test_records_are_read_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when they change, are added or removed: a board is never stale."""
    first, seen = reads(many, monkeypatch)
    names = [f"at-{seed}" for seed in range(4)]
    assert sorted(seen) == names
    assert (many / cache.NAME).is_file()
    again, seen = reads(many, monkeypatch)
    assert (again, seen) == (first, [])
    # The same size, and times set back: the inode or its change time tells.
    path = many / names[1] / "record.json"
    before, text = path.stat(), path.read_text("utf-8")
    path.write_text(text.replace("0.30000000000000004", "0.40000000000000002"), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    changed, seen = reads(many, monkeypatch)
    assert seen == [names[1]]
    assert changed[0].metrics == rows(find_records(many)[0])[0].metrics != first[0].metrics
    shutil.rmtree(many / names[2])
    stored(many, record("at", 0.9, seed=9))
    changed, seen = reads(many, monkeypatch)
    assert changed[0].seeds == (0, 1, 3, 9)
    assert "at-9" in seen


@pytest.mark.parametrize(("setting", "value"), [("_SETTLED", 10**18), ("WORTHWHILE", 50)])
def test_no_cache(many: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: int) -> None:
    """A second change within the clock's resolution leaves the same times; a few runs need none."""
    monkeypatch.setattr(cache, setting, value)
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
    before = sorted(os.listdir(many))
    first, _ = reads(many, monkeypatch)
    assert len(first) == 1
    assert sorted(os.listdir(many)) == before


def test_others_do_not_stumble_over_the_cache(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no run, no garbage and no damage."""
    before = find_records(many)
    reads(many, monkeypatch)
    assert (many / cache.NAME).is_file()
    assert find_records(many) == before
    assert [entry.id for entry in inventory(many)] == [record.id for record in before[0]]
    assert cache.NAME not in {garbage.path.name for garbage in find_garbage(many)}
    assert find_results(many)[1] == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A runs directory on disk."""
    return stored(tmp_path / "runs", *several())


def test_the_command_writes_every_format(place: Path, call: Call) -> None:
    """To the terminal or to a file, the same text."""
    formats = ("table", "csv", "json", "markdown", "latex")
    for format in formats:
        options = ["leaderboard", "--runs-dir", place, "--format", format]
        options += ["--columns", "rank,label,average,clean_mean"]
        shown, _ = call(*options)
        path = place.parent / f"board.{format}"
        path.write_text("old")
        assert call(*options, "--out", path)[0] == f"wrote {path}\n"
        # What is printed may be filled with spaces.
        assert [line.rstrip() for line in shown.splitlines()] == path.read_text("utf-8").splitlines()
    names = {path.name for path in place.parent.iterdir()}
    assert names == {"runs", *(f"board.{format}" for format in formats)}


def test_the_command_filters_and_ranks(place: Path, call: Call) -> None:
    """With the same options as the library."""
    for more, expected in {
        "--defense at --defense air --dataset digits --rank-by clean": {("at", "digits"), ("air", "digits")},
        "--where regime=joint --rank-by forgetting": {("joint", "digits")},
        "--sequence fgsm,cw --model lenet --verdict ok --regime continual": {("at", "mnist")},
    }.items():
        out, _ = call("leaderboard", "--runs-dir", place, "--format", "json", *more.split())
        found = [(row["defense"], row["dataset"]) for row in json.loads(out)]
        assert (set(found), len(found)) == (expected, len(expected))
    out, _ = call("leaderboard", "--runs-dir", place, "--verdict", "invalid")
    assert out == "no row matches the filters\n"


def test_the_command_says_why_there_is_no_interval(place: Path, call: Call) -> None:
    """In the table below it, in data in a column."""
    options = ["leaderboard", "--runs-dir", place, "--defense", "air"]
    assert "not ranked: cannot read outcomes" in " ".join(call(*options)[0].split())
    (line,) = read_csv(call(*options, "--format", "csv")[0])
    assert line["note"].startswith("cannot read outcomes")
    assert line["average_robust_accuracy_low"] == line["average_robust_accuracy_high"] == ""


def test_every_metric_has_a_short_word() -> None:
    """And each of them stands for one metric."""
    assert sorted(SHORT.values()) == sorted(METRICS)
    for short, metric in SHORT.items():
        assert metric_of(short) == metric_of(short.upper()) == metric_of(metric) == metric
        assert metric_of(metric.replace("_", "-")) == metric
