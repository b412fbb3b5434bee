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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, here, python
from record_trees import stored

from advbench import __version__
from advbench.cli.main import invoke
from advbench.config.options import RunConfig
from advbench.runs.tables import labels
from advbench.runtime.console import output
from attacks_pool import pool
from defenses import registry
from leaderboards import find_records, json_bytes, read_record, write_bytes, write_checksums

RUN = "run --defense standard --sequence fgsm,pgd:steps=3 --unseen gaussian-noise --epochs 1 --points 40"
RUN += " --threads 1 --set pretrain.epochs=1 --set eps_warmup=0 --device cpu"
Call = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whatever the environment of the tests claims."""
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    """Nor anything else that takes its time."""
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)"
    code = f"import sys; from advbench.cli.main import invoke; code = invoke({arguments!r})"
    done = python("-c", f"{code}; print(); print(code, sorted({heavy}))")
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert len(done.stdout) > 10


def test_help_names_every_command_and_option(call: Call) -> None:
    """As the README does."""
    out, err = call("--help")
    assert err == ""
    for command in ["run", "show", "leaderboard", "attacks", "defenses", "datasets"]:
        assert re.search(rf"\b{command}\b", out)
    out, _ = call("run", "--help")
    options = "defense sequence regime dataset data-dir model epochs unseen eval points seed seeds device"
    options += " threads runs-dir config set train-set select tensorboard"
    for option in options.split():
        assert re.search(rf"--{option}\b", out), option


def test_module_and_script_answer_alike() -> None:
    """``python -m advbench`` is ``advbench``; both leave with the exit code."""
    done = python("-m", "advbench", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"advbench {__version__}\n", "")
    assert python("-m", "advbench", "--verson").returncode == 2
    script = Path(sys.executable).with_name("advbench")
    if script.exists():
        installed = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert installed.stdout == done.stdout


def test_without_a_command_there_is_help(call: Call) -> None:
    """And exit code 2: nothing was done."""
    out, err = call(code=2)
    assert "Usage: advbench" in out + err


def test_attacks_are_listed(call: Call) -> None:
    """Every one of the pool, with what it is."""
    out, err = call("attacks")
    assert err == ""
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert set(lines) == set(pool.names())
    for word in ("projected-gradient", "linf", "white-box", "budgeted", "1706.06083"):
        assert word in lines["pgd"]
    listed = json.loads(call("attacks", "--format", "json")[0])
    assert [entry["name"] for entry in listed] == pool.names()
    (pgd,) = [entry for entry in listed if entry["name"] == "pgd"]
    assert pgd["knobs"]["steps"]["default"] == "50"
    assert pgd["knobs"]["steps"]["training"] == "7"
    assert pgd["source"] == "attacks_pool.attacks.pgd:pgd"


def test_attacks_are_described(call: Call) -> None:
    """Each knob with its default, its training value and what it may be."""
    out, _ = call("attacks", "pgd", "cw")
    assert "name: pgd" in out
    assert "name: cw" in out
    assert re.search(r"  steps: number of search steps \(default 50, training 7, allowed at least 1\)", out)
    assert re.search(r"  loss: .*allowed ce or margin or dlr", out)
    (entry,) = json.loads(call("attacks", "cw", "--format", "json")[0])
    assert entry["kind"] == "minimal-norm"


def test_sequences_are_sampled(call: Call) -> None:
    """The same for one seed, as ``--sequence`` takes them."""
    out, _ = call("attacks", "sample", "4", "--seed", "3")
    assert out == call("attacks", "sample", "4", "--seed", "3")[0]
    names = [attack.name for attack in pool.sample_sequence(4, 3, budget="digits", images=(1, 8, 8))]
    assert out == ",".join(names) + "\n"
    assert json.loads(call("attacks", "sample", "4", "--seed", "3", "--format", "json")[0]) == names
    assert len({call("attacks", "sample", "4", "--seed", seed)[0] for seed in range(10)}) > 5


def test_defenses_are_listed_and_described(call: Call) -> None:
    """With regimes, parameters and their defaults; an alias is described as what it stands for."""
    out, _ = call("defenses")
    names = {line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")}
    assert set(registry.names()) <= names
    listed = json.loads(call("defenses", "--format", "json")[0])
    entries = {entry["name"]: entry for entry in listed}
    assert set(entries) == set(registry.names())
    assert entries["air"]["parameters"]["distance"] == "mse"
    assert entries["at"]["regimes"] == ["continual", "joint"]
    out, _ = call("defenses", "air")
    assert "name: air" in out
    assert "paper: 2404.01828" in out
    assert "  beta: " in out
    assert "name: at" in call("defenses", "joint")[0]


def test_datasets_are_listed_and_described(call: Call) -> None:
    """Sizes as loading gives them."""
    out, _ = call("datasets")
    for name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder:PATH"):
        assert name in out
    entries = {entry["name"]: entry for entry in json.loads(call("datasets", "--format", "json")[0])}
    digits = entries["digits"]
    assert (digits["train"], digits["validation"], digits["test"]) == (1293, 144, 360)
    assert digits["needs_data_dir"] is False
    assert entries["cifar10"]["image_shape"] == [3, 32, 32]
    out, _ = call("datasets", "mnist")
    assert "test: 10000" in out


def test_broken_plug_ins_are_warnings(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each on stderr; the list is whole."""
    monkeypatch.setitem(pool.problems, "theirs", "ImportError: no module")
    monkeypatch.setitem(registry.problems, "other", "ValueError: bad")
    out, err = call("attacks", "--format", "json")
    assert err == "warning: attack plug-in 'theirs' could not be loaded: ImportError: no module\n"
    assert len(json.loads(out)) == len(pool.names())
    _, err = call("defenses", "--format", "json")
    assert err == "warning: defense plug-in 'other' could not be loaded: ValueError: bad\n"


@pytest.mark.usefixtures("short_probes")
def test_run_prints_everything_and_show_prints_it_again(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal: plain lines on stderr, tables on stdout, no escapes anywhere."""
    monkeypatch.chdir(tmp_path)
    out, err = call(*RUN.split())
    (directory,) = (tmp_path / "runs").iterdir()
    assert os.listdir(tmp_path) == ["runs"]
    assert not {"\x1b", "\r"} & set(out + err)
    record = read_record(directory)
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
    progress = err.splitlines()
    assert re.fullmatch(rf"\[ +0s\] run {directory.name}", progress[0])
    assert progress[-1].endswith("finished")
    assert sum(" row " in line for line in progress) == 12
    assert any(re.search(r"stage 2/2  pgd  epoch 1/1  loss \d\.\d{3}", line) for line in progress)
    for named in (directory.name, f"runs/{directory.name}", f"runs/{directory.name}/record.json"):
        assert call("show", named) == (out, "")


def test_names_are_printed_as_they_are(tmp_path: Path, make_record: Any, call: Call) -> None:
    """Brackets in a class, a folder or a path are no markup."""
    tree = make_record(dataset="folder:[/x] :smile:").dump()
    tree["per_class"][0]["class"] = "[red]nine[/]"
    (directory,) = stored(tmp_path / "a[bold]b[-x]", tree).iterdir()
    out, _ = call("show", directory)
    for text in ("[red]nine[/]", "folder:[/x]", ":smile:", f"run        {directory}\n"):
        assert text in out
    assert "folder:[/x]" in call("leaderboard", "--runs-dir", directory.parent)[0]


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
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two published runs that compare, and one on other data."""
    directory = tmp_path_factory.mktemp("board")
    for name, defense in {"one": "free", "two": "standard", "three": "standard"}.items():
        published = sorted((ROOT / "leaderboards" / "results").glob(f"*-{defense}-digits-s0"))[0]
        shutil.copytree(published, directory / name)
    record = json.loads((directory / "three" / "record.json").read_text("utf-8"))
    record["config"]["dataset"] = "mnist"
    record["environment"]["data"] |= {"name": "mnist", "fingerprint": "0" * 16}
    data = json_bytes(record)
    write_checksums(directory / "three", data)
    write_bytes(directory / "three" / "record.json", data)
    return directory


class TestLeaderboard:
    """All runs of a directory, ranked."""

    def test_table(self, board: Path, call: Call) -> None:
        """One for each comparison group; the better defense first."""
        out, err = call("leaderboard", "--runs-dir", board)
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
        assert [(line[1], line[2]) for line in lines] == [("1", order[0]), ("2", order[1]), ("1", "standard")]
        assert [line[4] for line in lines[:2]] == [f"{100 * scores[name]:.1f}" for name in order]

    def test_json_and_csv(self, board: Path, call: Call) -> None:
        """At full precision, the same rows."""
        rows = json.loads(call("leaderboard", "--runs-dir", board, "--format", "json")[0])
        found = [(row["dataset"], row["defense"]) for row in rows]
        assert found == [("digits", "free"), ("digits", "standard"), ("mnist", "standard")]
        out, _ = call("leaderboard", "--runs-dir", board, "--format", "csv")
        lines = list(csv.DictReader(io.StringIO(out)))
        assert [(line["dataset"], line["defense"]) for line in lines] == found
        for line, row in zip(lines, rows, strict=True):
            assert float(line["clean_accuracy_mean"]) == row["metrics"]["clean_accuracy"]["mean"]

    def test_a_record_that_cannot_be_read_is_a_warning(self, board: Path, tmp_path: Path, call: Call) -> None:
        """The others are shown; if there is no other, it is an error."""
        shutil.copytree(board / "one", tmp_path / "runs" / "one")
        expected = call("leaderboard", "--runs-dir", tmp_path / "runs")[0]
        for name in ("newer", "other"):
            (tmp_path / "runs" / name).mkdir()
            (tmp_path / "runs" / name / "record.json").write_text('{"schema": 9}')
        out, err = call("leaderboard", "--runs-dir", tmp_path / "runs")
        assert out == expected
        assert len(err.splitlines()) == 2
        assert re.match(r"warning: .*newer.record\.json: unknown record schema 9: this version reads", err)
        shutil.rmtree(tmp_path / "runs" / "one")
        out, err = call("leaderboard", "--runs-dir", tmp_path / "runs", code=2)
        assert out == ""
        assert re.fullmatch(r"error: .*newer.record\.json: unknown record schema 9.*\(and 1 more\)\n", err)

    def test_an_empty_directory(self, tmp_path: Path, call: Call) -> None:
        """Says what makes a run; as data it is an empty list."""
        assert "no finished runs in" in call("leaderboard", "--runs-dir", tmp_path)[0]
        out, _ = call("leaderboard", "--runs-dir", tmp_path, "--format", "json")
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
        self, asked: list[tuple[int, int]], call: Call, arguments: list[str], seeds: list[int]
    ) -> None:
        """A number, a list, a range; samples are drawn with the first, for all."""
        call("run", *arguments)
        assert asked == [(seed, seeds[0]) for seed in seeds]

    @pytest.mark.usefixtures("short_probes")
    def test_two_seeds_are_summed_up(self, tmp_path: Path, call: Call) -> None:
        """Each run's tables, then mean ± standard deviation, and where all runs are."""
        asked = RUN.replace("fgsm,pgd:steps=3", "fgsm").replace("gaussian-noise", "none")
        out, err = call(*asked.split(), "--seeds", "2", "--runs-dir", tmp_path)
        assert out.count("standard on digits, fgsm: worst case ") == 2
        assert re.search(r"│ +1 │ standard +│ continual │ +[\d.]+ ± [\d.]+ │", out)
        assert f"all runs   advbench leaderboard --runs-dir {tmp_path}" in out
        assert "\x1b" not in out + err
        records, _ = find_records(tmp_path)
        assert [record.config["seed"] for record in records] == [0, 1]
        assert records[0].cells != records[1].cells


def test_options_reach_the_run(tmp_path: Path, resolved: Callable[..., RunConfig]) -> None:
    """From the command line and from a file, which the command line overrides."""
    config = tmp_path / "config.yaml"
    config.write_text("defense: at\nepochs: 3\nset: {lr: 0.02, mix: max}\npoints: {default: 9}\nseed: 4\n")
    asked = RUN.replace("--defense standard ", "").replace("--points 40 ", "")
    asked += " --set lr=0.03 --train-set pgd.steps=2 --eval bim:steps=2 --select val-robust"
    found = resolved(*asked.split(), "--config", str(config))
    assert (found.defense, found.seed, found.points) == ("at", 4, {"default": 9})
    assert found.params == {"mix": "max"}
    assert (found.plan.epochs, found.plan.lr, found.plan.select) == (1, 0.03, "val-robust")
    assert "steps=2" in found.training[1]
    assert (len(found.sequence), len(found.unseen), len(found.eval)) == (2, 1, 1)


def test_a_config_may_be_json(tmp_path: Path, resolved: Callable[..., RunConfig]) -> None:
    """JSON is YAML; options may be spelt as on the command line."""
    config = tmp_path / "config.json"
    options = {"defense": "standard", "sequence": ["fgsm"], "unseen": []}
    config.write_text(json.dumps({**options, "train-set": {"fgsm.eps": 0.1}}))
    found = resolved("run", "--config", str(config))
    assert (found.defense, found.training) == ("standard", ["fgsm:eps=0.1"])


def test_an_interrupt_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the exit code that shells expect."""

    def interrupt(**_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("advbench.benchmark.run.run", interrupt)
    out, err = call("run", code=130)
    assert (out, err) == ("", "error: interrupted\n")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """``advbench runs | true``, which may have ended before anything is written."""
    command = f"{sys.executable} -m advbench runs --runs-dir {tmp_path} | true"
    done = subprocess.run(["bash", "-c", command], env=here(), capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of the user's keeps its traceback."""

    def broken(**_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("advbench.benchmark.run.run", broken)
    with pytest.raises(ZeroDivisionError):
        invoke(["run"])
