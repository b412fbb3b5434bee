"""The command line: what each command prints, and that help costs nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advbench import __version__
from advbench.cli.main import invoke
from advbench.runs.saved import Run
from advbench.runs.tables import labels
from advbench.runtime.console import output
from attacks_pool import pool
from defenses import registry
from leaderboards import find_records, json_bytes, write_bytes, write_checksums

RUN = [
    "run",
    "--sequence",
    "fgsm,pgd:steps=3",
    "--unseen",
    "gaussian-noise",
    "--epochs",
    "1",
    "--threads",
    "1",
]
RUN += ["--set", "pretrain.epochs=1", "--set", "eps_warmup=0", "--device", "cpu"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whatever the environment of the tests claims."""
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def call(capsys: Captured, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What a command prints on stdout and stderr."""
    assert invoke(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def process(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    """Nor anything else that takes its time."""
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)"
    code = f"import sys; from advbench.cli.main import invoke; code = invoke({arguments!r})"
    done = process("-c", f"{code}; print(); print(code, sorted({heavy}))")
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert len(done.stdout) > 10


def test_help_names_every_command_and_option(capsys: Captured) -> None:
    """As the README does."""
    out, err = call(capsys, "--help")
    assert err == ""
    for command in ("run", "show", "leaderboard", "attacks", "defenses", "datasets"):
        assert re.search(rf"\b{command}\b", out)
    out, _ = call(capsys, "run", "--help")
    options = ["--defense", "--sequence", "--regime", "--dataset", "--data-dir", "--model", "--epochs"]
    options += ["--unseen", "--eval", "--points", "--seed", "--seeds", "--device", "--threads", "--runs-dir"]
    options += ["--config", "--set", "--train-set", "--select", "--tensorboard"]
    for option in options:
        assert re.search(rf"{option}\b", out), option


def test_module_and_script_answer_alike() -> None:
    """``python -m advbench`` is ``advbench``; both leave with the exit code."""
    done = process("-m", "advbench", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"advbench {__version__}\n", "")
    wrong = process("-m", "advbench", "attacks", "pdg")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown attack 'pdg': did you mean 'pgd'?")
    script = Path(sys.executable).with_name("advbench")
    if script.exists():
        installed = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert installed.stdout == done.stdout


def test_without_a_command_there_is_help(capsys: Captured) -> None:
    """And exit code 2: nothing was done."""
    out, err = call(capsys, code=2)
    assert "Usage: advbench" in out + err


def test_attacks_are_listed(capsys: Captured) -> None:
    """Every one of the pool, with what it is."""
    out, err = call(capsys, "attacks")
    assert err == ""
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert set(lines) == set(pool.names())
    for word in ("projected-gradient", "linf", "white-box", "budgeted", "1706.06083"):
        assert word in lines["pgd"]
    listed = json.loads(call(capsys, "attacks", "--format", "json")[0])
    assert [entry["name"] for entry in listed] == pool.names()
    (pgd,) = [entry for entry in listed if entry["name"] == "pgd"]
    assert pgd["knobs"]["steps"]["default"] == "50"
    assert pgd["knobs"]["steps"]["training"] == "7"
    assert pgd["source"] == "attacks_pool.attacks.pgd:pgd"


def test_attacks_are_described(capsys: Captured) -> None:
    """Each knob with its default, its training value and what it may be."""
    out, _ = call(capsys, "attacks", "pgd", "cw")
    assert "name: pgd" in out
    assert "name: cw" in out
    assert re.search(r"  steps: number of search steps \(default 50, training 7, allowed at least 1\)", out)
    assert re.search(r"  loss: .*allowed ce or margin or dlr", out)
    (entry,) = json.loads(call(capsys, "attacks", "cw", "--format", "json")[0])
    assert entry["kind"] == "minimal-norm"


def test_sequences_are_sampled(capsys: Captured) -> None:
    """The same for one seed, as ``--sequence`` takes them."""
    out, _ = call(capsys, "attacks", "sample", "4", "--seed", "3")
    assert out == call(capsys, "attacks", "sample", "4", "--seed", "3")[0]
    names = [attack.name for attack in pool.sample_sequence(4, 3, budget="digits", images=(1, 8, 8))]
    assert out == ",".join(names) + "\n"
    assert json.loads(call(capsys, "attacks", "sample", "4", "--seed", "3", "--format", "json")[0]) == names
    assert len({call(capsys, "attacks", "sample", "4", "--seed", str(seed))[0] for seed in range(10)}) > 5


def test_defenses_are_listed_and_described(capsys: Captured) -> None:
    """With regimes, parameters and their defaults; an alias is described as what it stands for."""
    out, _ = call(capsys, "defenses")
    names = {line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")}
    assert set(registry.names()) <= names
    listed = json.loads(call(capsys, "defenses", "--format", "json")[0])
    entries = {entry["name"]: entry for entry in listed}
    assert set(entries) == set(registry.names())
    assert entries["air"]["parameters"]["distance"] == "mse"
    assert entries["at"]["regimes"] == ["continual", "joint"]
    out, _ = call(capsys, "defenses", "air")
    assert "name: air" in out
    assert "paper: 2404.01828" in out
    assert "  beta: " in out
    assert "name: at" in call(capsys, "defenses", "joint")[0]


def test_datasets_are_listed_and_described(capsys: Captured) -> None:
    """Sizes as loading gives them."""
    out, _ = call(capsys, "datasets")
    for name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder:PATH"):
        assert name in out
    entries = {entry["name"]: entry for entry in json.loads(call(capsys, "datasets", "--format", "json")[0])}
    digits = entries["digits"]
    assert (digits["train"], digits["validation"], digits["test"]) == (1293, 144, 360)
    assert digits["needs_data_dir"] is False
    assert entries["cifar10"]["image_shape"] == [3, 32, 32]
    out, _ = call(capsys, "datasets", "mnist")
    assert "test: 10000" in out


def test_broken_plug_ins_are_warnings(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each on stderr; the list is whole."""
    monkeypatch.setitem(pool.problems, "theirs", "ImportError: no module")
    monkeypatch.setitem(registry.problems, "other", "ValueError: bad")
    out, err = call(capsys, "attacks", "--format", "json")
    assert err == "warning: attack plug-in 'theirs' could not be loaded: ImportError: no module\n"
    assert len(json.loads(out)) == len(pool.names())
    _, err = call(capsys, "defenses", "--format", "json")
    assert err == "warning: defense plug-in 'other' could not be loaded: ValueError: bad\n"


def test_run_prints_everything_and_show_prints_it_again(small_run: Run, tmp_path: Path) -> None:
    """In a process without a terminal: plain lines on stderr, tables on stdout, no escapes anywhere."""
    done = process("-m", "advbench", *RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    assert os.listdir(tmp_path) == ["runs"]
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    out = done.stdout
    record = small_run.record
    for stage, name in enumerate(("plain", "fgsm", "pgd")):
        shares = [f"{100 * cell.accuracy:.1f}" for cell in record.cells if cell.stage == stage]
        assert re.search(rf"│ {stage} {name} +│ +" + " │ +".join(map(re.escape, shares)) + " │", out), stage
    for name in record.metrics:
        assert re.search(rf"^{name.replace('_', ' ')} +-?[\d.]+ %$", out, re.MULTILINE), name
    for row in record.per_class:
        worst = f"{100 * row.worst_case / row.n:.1f}"
        assert re.search(rf"│ {row.label} +│ +{row.n} │ .* +{worst} │", out)
    assert f"run        runs/{directory.name}\n" in out
    assert f"show again advbench show runs/{directory.name}\n" in out
    assert "audit: ok (20 checks)" in out
    assert "seen" in out
    assert "unseen" in out
    progress = done.stderr.splitlines()
    assert re.fullmatch(rf"\[ +0s\] run {directory.name}", progress[0])
    assert progress[-1].endswith("finished")
    assert sum(" row " in line for line in progress) == 12
    assert any(re.search(r"stage 2/2  pgd  epoch 1/1  loss \d\.\d{3}", line) for line in progress)
    shown = process("-m", "advbench", "show", f"runs/{directory.name}", cwd=tmp_path)
    assert (shown.returncode, shown.stderr, shown.stdout) == (0, "", out)


def test_show_takes_the_directory_or_the_record(small_run: Run, capsys: Captured) -> None:
    """And reads neither weights nor data, so that it shows a stranger's run too."""
    first, err = call(capsys, "show", str(small_run.path))
    assert err == ""
    assert call(capsys, "show", str(small_run.path / "record.json"))[0] == first
    assert f"run        {small_run.path}" in first


def test_names_are_printed_as_they_are(small_run: Run, tmp_path: Path, capsys: Captured) -> None:
    """Brackets in a class, a folder or a path are no markup."""
    directory = tmp_path / "a[bold]b[-x]" / "r"
    shutil.copytree(small_run.path, directory)
    record = json.loads((directory / "record.json").read_text("utf-8"))
    record["per_class"][0]["class"] = "[red]nine[/]"
    record["config"]["dataset"] = "folder:[/x] :smile:"
    (directory / "record.json").write_text(json.dumps(record), "utf-8")
    out, _ = call(capsys, "show", str(directory))
    assert "[red]nine[/]" in out
    assert "folder:[/x]" in out
    assert ":smile:" in out
    assert f"run        {directory}\n" in out
    out, _ = call(capsys, "leaderboard", "--runs-dir", str(directory.parent))
    assert "folder:[/x]" in out


def test_attacks_of_one_name_are_told_apart() -> None:
    """By the knobs in which they differ."""
    texts = ["pgd:eps=0.1,steps=5", "pgd:eps=0.2,steps=5", "fgsm:eps=0.2", "pgd:eps=0.2,steps=9"]
    assert labels(texts) == ["pgd eps=0.1 steps=5", "pgd eps=0.2 steps=5", "fgsm", "pgd eps=0.2 steps=9"]
    assert labels(texts[:3]) == ["pgd eps=0.1", "pgd eps=0.2", "fgsm"]


def test_a_terminal_gets_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere tables are wide, so that none is cut."""
    assert output().width == 200
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "77")
    assert output().width == 77


@pytest.fixture(scope="module")
def board(small_run: Run, at_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that compare, and one on other data."""
    directory = tmp_path_factory.mktemp("board")
    for name, saved in {"one": small_run, "two": at_run, "three": at_run}.items():
        shutil.copytree(saved.path, directory / name)
    record = json.loads((directory / "three" / "record.json").read_text("utf-8"))
    record["config"]["dataset"] = "mnist"
    record["environment"]["data"] |= {"name": "mnist", "fingerprint": "0" * 16}
    data = json_bytes(record)
    write_checksums(directory / "three", data)
    write_bytes(directory / "three" / "record.json", data)
    return directory


class TestLeaderboard:
    """All runs of a directory, ranked."""

    def test_table(self, board: Path, capsys: Captured) -> None:
        """One for each comparison group; the better defense first."""
        out, err = call(capsys, "leaderboard", "--runs-dir", str(board))
        assert err == ""
        assert "\x1b" not in out
        titles = [line.strip() for line in out.splitlines() if " · protocol " in line]
        assert [title.split(" ")[0] for title in titles] == ["digits", "mnist"]
        records, _ = find_records(board)
        scores = {
            record.config["defense"]: record.metrics["average_robust_accuracy"]
            for record in records
            if record.config["dataset"] == "digits"
        }
        lines = [re.split(r" *│ *", line) for line in out.splitlines() if line.startswith("│")]
        order = sorted(scores, key=lambda name: -scores[name])
        assert [line[2] for line in lines] == [*order, "at"]
        assert (lines[0][1], lines[2][1]) == ("1", "1")
        assert lines[1][1] in {"1", "2"}  # a tie or not, as this processor rounds
        assert [line[4] for line in lines[:2]] == [f"{100 * scores[name]:.1f}" for name in order]

    def test_dataset_filter(self, board: Path, capsys: Captured) -> None:
        """Only runs on that data set."""
        out, _ = call(capsys, "leaderboard", "--runs-dir", str(board), "--dataset", "digits")
        assert "digits (" in out
        assert "mnist" not in out
        out, _ = call(
            capsys, "leaderboard", "--runs-dir", str(board), "--dataset", "mnist", "--format", "json"
        )
        assert [row["dataset"] for row in json.loads(out)] == ["mnist"]

    def test_json_and_csv(self, board: Path, capsys: Captured) -> None:
        """At full precision, the same rows."""
        rows = json.loads(call(capsys, "leaderboard", "--runs-dir", str(board), "--format", "json")[0])
        assert sorted((row["dataset"], row["defense"]) for row in rows) == [
            ("digits", "air"),
            ("digits", "at"),
            ("mnist", "at"),
        ]
        out, _ = call(capsys, "leaderboard", "--runs-dir", str(board), "--format", "csv")
        lines = list(csv.DictReader(io.StringIO(out)))
        assert [line["defense"] for line in lines] == [row["defense"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            assert float(line["clean_accuracy_mean"]) == row["metrics"]["clean_accuracy"]["mean"]

    def test_a_record_that_cannot_be_read_is_a_warning(
        self, board: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        """The others are shown; if there is no other, it is an error."""
        shutil.copytree(board / "one", tmp_path / "runs" / "one")
        expected = call(capsys, "leaderboard", "--runs-dir", str(tmp_path / "runs"))[0]
        for name in ("newer", "other"):
            (tmp_path / "runs" / name).mkdir()
            (tmp_path / "runs" / name / "record.json").write_text('{"schema": 9}')
        out, err = call(capsys, "leaderboard", "--runs-dir", str(tmp_path / "runs"))
        assert out == expected
        assert len(err.splitlines()) == 2
        assert re.match(r"warning: .*newer.record\.json: unknown record schema 9: this version reads", err)
        shutil.rmtree(tmp_path / "runs" / "one")
        out, err = call(capsys, "leaderboard", "--runs-dir", str(tmp_path / "runs"), code=2)
        assert out == ""
        assert re.fullmatch(r"error: .*newer.record\.json: unknown record schema 9.*\(and 1 more\)\n", err)

    def test_an_empty_directory(self, tmp_path: Path, capsys: Captured) -> None:
        """Says what makes a run; as data it is an empty list."""
        assert "no finished runs in" in call(capsys, "leaderboard", "--runs-dir", str(tmp_path))[0]
        out, _ = call(capsys, "leaderboard", "--runs-dir", str(tmp_path), "--format", "json")
        assert json.loads(out) == []


class TestSeeds:
    """``--seeds``: several runs of one command."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        """Stands in for the benchmark: the seed of each run, and what samples are drawn with."""
        asked: list[tuple[int, int]] = []

        def run(*, seed: int, sample_seed: int, **_options: Any) -> None:
            asked.append((seed, sample_seed))

        monkeypatch.setattr("advbench.benchmark.run.run", run)
        monkeypatch.setattr("advbench.cli.results.print_run", lambda _run, **_how: None)
        monkeypatch.setattr("advbench.cli.results.print_seeds", lambda _runs, _directory: None)
        return asked

    @pytest.mark.parametrize(
        ("arguments", "seeds"),
        [
            ([], [0]),
            (["--seed", "7"], [7]),
            (["--seeds", "3"], [0, 1, 2]),
            (["--seeds", "3", "--seed", "5"], [5, 6, 7]),
            (["--seeds", "0,3,7"], [0, 3, 7]),
            (["--seeds", "2-4"], [2, 3, 4]),
            (["--seeds", "4-4"], [4]),
        ],
    )
    def test_forms(
        self, asked: list[tuple[int, int]], capsys: Captured, arguments: list[str], seeds: list[int]
    ) -> None:
        """A number, a list, a range; samples are drawn with the first, for all."""
        call(capsys, "run", *arguments)
        assert asked == [(seed, seeds[0]) for seed in seeds]

    def test_two_seeds_are_summed_up(self, tmp_path: Path, capsys: Captured) -> None:
        """Each run's tables, then mean ± standard deviation, and where all runs are."""
        out, err = call(capsys, *RUN, "--seeds", "2", "--runs-dir", str(tmp_path), "--points", "100")
        assert out.count("Robust accuracy in % after each stage") == 2
        assert re.search(r"│ +1 │ air +│ continual │ +[\d.]+ ± [\d.]+ │", out)
        assert f"all runs   advbench leaderboard --runs-dir {tmp_path}" in out
        assert "\x1b" not in out + err
        records, _ = find_records(tmp_path)
        assert [record.config["seed"] for record in records] == [0, 1]
        assert records[0].cells != records[1].cells


def test_options_reach_the_run(tmp_path: Path, capsys: Captured) -> None:
    """From the command line and from a file, which the command line overrides."""
    config = tmp_path / "config.yaml"
    config.write_text("defense: at\nepochs: 3\nset: {lr: 0.02, mix: max}\npoints: {default: 9}\nseed: 4\n")
    call(
        capsys,
        *(*RUN, "--config", str(config), "--runs-dir", str(tmp_path / "runs"), "--set", "lr=0.03"),
        *("--train-set", "pgd.steps=2", "--eval", "bim:steps=2", "--select", "val-robust"),
    )
    (record,) = find_records(tmp_path / "runs")[0]
    config_values = record.config
    assert (config_values["defense"], config_values["seed"], config_values["points"]) == (
        "at",
        4,
        {"default": 9},
    )
    assert config_values["params"] == {"mix": "max"}
    plan = config_values["plan"]
    assert (plan["epochs"], plan["lr"], plan["select"]) == (1, 0.03, "val-robust")
    assert "steps=2" in config_values["training"][1]
    assert [entry.role for entry in record.attacks] == ["seen", "seen", "unseen", "eval"]
    assert {cell.n for cell in record.cells} == {9}


def test_a_config_may_be_json(tmp_path: Path, capsys: Captured) -> None:
    """JSON is YAML; options may be spelt as on the command line."""
    config = tmp_path / "config.json"
    options = {"defense": "standard", "sequence": ["fgsm"], "unseen": [], "epochs": 1}
    config.write_text(json.dumps({**options, "train-set": {"fgsm.eps": 0.1}}))
    call(
        capsys,
        *("run", "--config", str(config), "--runs-dir", str(tmp_path / "runs"), "--points", "9"),
        *("--set", "pretrain.epochs=1", "--threads", "1"),
    )
    (record,) = find_records(tmp_path / "runs")[0]
    assert record.config["defense"] == "standard"
    assert [entry.training for entry in record.attacks] == ["fgsm:eps=0.1"]


def test_an_interrupt_is_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the exit code that shells expect."""

    def interrupt(**_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("advbench.benchmark.run.run", interrupt)
    out, err = call(capsys, "run", code=130)
    assert (out, err) == ("", "error: interrupted\n")


def test_a_closed_pipe_is_no_error() -> None:
    """``advbench attacks | head -1``."""
    command = f"{sys.executable} -m advbench attacks --format json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "[\n"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of the user's keeps its traceback."""

    def broken(**_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("advbench.benchmark.run.run", broken)
    with pytest.raises(ZeroDivisionError):
        invoke(["run"])
