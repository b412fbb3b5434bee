"""Habits of the command line: JSON, defaults in help, dry runs, names of runs and of code, completion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from helpers import python
from rich.table import Table

from advbench import load_run
from advbench.cli.completion import attack_names, dataset_names, defense_names, model_names
from advbench.cli.main import app
from advbench.data import DATASETS
from advbench.models import MODELS
from advbench.runs.saved import Run
from advbench.runs.tables import headline
from advbench.runtime.console import SafeConsole, in_blocks
from attacks_pool import pool
from defenses import registry
from leaderboards import read_record

Call = Callable[..., tuple[str, str]]
SHORT = ["--epochs", "1", "--points", "20", "--threads", "1", "--device", "cpu"]
SHORT += ["--set", "pretrain.epochs=1", "--set", "eps_warmup=0"]
OWN = '''
"""A defense and an attack of a stranger's."""

from attacks_pool import register
from attacks_pool.metadata import AttackInfo
from defenses import DefenseInfo
from defenses.methods.standard import Standard


class Own(Standard):
    """Plain training by another name."""

    info = DefenseInfo(name="own-{stem}", paper=None, regimes=("continual",))


@register(AttackInfo(name="shade-{stem}", family="noise", norm="linf", access="black-box", paper=None))
def shade(model, x, y, *, eps, generator, early_stop):
    """Every pixel darker by eps."""
    return (x - eps).clamp(0, 1)
'''


def commands(command: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    command = command or typer.main.get_command(app)
    found = [(path, command)]
    for name, below in getattr(command, "commands", {}).items():
        found += commands(below, (*path, name))
    return found


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current directory; its name."""
    stem = f"own{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / f"{stem}.py").write_text(OWN.replace("{stem}", stem))
    monkeypatch.chdir(tmp_path)
    # What its code registers is gone after the test.
    registry.names()
    pool.names()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(pool, "_entries", dict(pool._entries))
    return stem


class TestHelp:
    """``--help``."""

    def test_every_default_is_named(self) -> None:
        """A value, or in words what follows from the other options; a flag is off."""
        missing = []
        for path, command in commands():
            for param in command.params:
                flag = getattr(param, "is_flag", False) and not param.secondary_opts
                if param.param_type_name != "option" or param.required or flag:
                    continue
                record = param.get_help_record(command.make_context("x", [], resilient_parsing=True))
                if record is not None and "[default: " not in record[1]:
                    missing.append((path, param.opts))
        assert not missing

    def test_nothing_is_cut_at_80_columns(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither names nor summaries of commands."""
        monkeypatch.setenv("COLUMNS", "80")
        for path, _ in commands():
            out, _ = call(*path, "--help")
            assert "…" not in out
            assert "..." not in re.sub(r"(\]|\}|^  \w+)\.\.\.", "", out, flags=re.MULTILINE)
            assert max(map(len, out.splitlines())) <= 80

    def test_groups_of_options_stay(self, call: Call) -> None:
        """Those of the leaderboard."""
        out, _ = call("leaderboard", "--help")
        assert "Filter rows" in out
        assert out.index("--rank-by") < out.index("--dataset") < out.index("--pivot")


class TestCompletion:
    """What a shell is offered."""

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("advbench re", {"reference"}),
            ("advbench run --defense a", {"air", "at"}),
            ("advbench run --dataset dig", {"digits"}),
            ("advbench run --model len", {"lenet", "lenet-small"}),
            ("advbench run --sequence fgsm,pgd-", {"fgsm,pgd-l1", "fgsm,pgd-l2"}),
            ("advbench eval --attacks corruption-f", {"corruption-fog", "corruption-frost"}),
            ("advbench attacks check squ", {"square", "square-l1", "square-l2"}),
            ("advbench defenses ch", {"check"}),
        ],
    )
    def test_it_loads_no_torch(self, words: str, expected: set[str]) -> None:
        """Nor anything else that takes its time."""
        heavy = "{'torch', 'numpy', 'scipy', 'sklearn', 'rich', 'pydantic'} & set(sys.modules)"
        code = "import sys\nfrom advbench.cli.main import main\ntry:\n    main([])\nfinally:\n"
        code += f"    print(sorted({heavy}), file=sys.stderr)"
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        done = python("-c", code, _ADVBENCH_COMPLETE="complete_bash", **typed)
        assert expected <= set(done.stdout.split()), done.stderr
        assert done.stderr.splitlines()[-1] == "[]"

    def test_names_are_those_of_the_registries(self) -> None:
        """They are read without importing what is named."""
        assert set(registry.names()) <= set(defense_names(""))
        own = {name for name in pool.names() if pool.entry(name).source.startswith("attacks_pool.")}
        assert own <= set(attack_names(""))
        assert dataset_names("") == sorted(DATASETS)
        assert model_names("") == sorted(MODELS)


class TestShow:
    """``advbench show``."""

    def test_json_is_the_record(self, small_run: Run, call: Call) -> None:
        """And nothing else on stdout."""
        out, err = call("show", small_run.path, "--format", "json")
        assert json.loads(out) == json.loads((small_run.path / "record.json").read_text("utf-8"))
        assert err == ""

    def test_the_headline_comes_first(self, small_run: Run, call: Call) -> None:
        """What was measured, the worst case, the average and the audit's verdict."""
        first = call("show", small_run.path)[0].splitlines()[0]
        record = small_run.record
        worst, average = (record.metrics[f"{name}_accuracy"] for name in ("worst_case", "average_robust"))
        assert first == headline(record)
        assert first.startswith(f"{record.config['defense']} on digits, ")
        assert f"worst case {100 * worst:.1f} %" in first
        assert f"average robust accuracy {100 * average:.1f} %" in first
        assert first.endswith(f"audit {record.audit.verdict}")

    @pytest.mark.parametrize("limit", [20, 10])
    def test_classes_are_shown_below_the_limit_or_when_asked_for(
        self, limit: int, small_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``--per-class`` and ``--no-per-class``; there are ten."""
        monkeypatch.setattr("advbench.cli.results.MANY_CLASSES", limit)
        assert ("By class" in call("show", small_run.path)[0]) is (limit == 20)
        assert "By class" not in call("show", small_run.path, "--no-per-class")[0]
        assert "By class" in call("show", small_run.path, "--per-class")[0]

    def test_a_run_by_its_name(
        self, small_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """In ``--runs-dir``; a name that is near is suggested."""
        monkeypatch.chdir(tmp_path)
        where = ("--runs-dir", small_run.path.parent)
        out, _ = call("show", small_run.path.name, *where, "--format", "json")
        assert json.loads(out)["id"] == small_run.record.id
        _, err = call("show", f"{small_run.path.name}x", *where, code=2)
        assert f"did you mean {small_run.path.name!r}" in err
        _, err = call("audit", "nothing", *where, code=2)
        assert err.startswith("error: no run 'nothing' here or in ")

        # Options that name runs look there too.
        _, err = call("run", "--resume", small_run.path.name, *where, code=2)
        assert "no record at" not in err
        assert small_run.path.name in err
        asked = ["run", "--defense", "standard", "--sequence", "fgsm", *SHORT, *where]
        asked += ["--surrogate", small_run.path.name, "--dry-run", "--format", "json"]
        assert json.loads(call(*asked)[0])["state"] == "new"

    def test_names_are_never_cut(self, small_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        """A narrow terminal gets the matrix in blocks."""
        monkeypatch.setattr("advbench.cli.results.output", lambda: SafeConsole(width=40))
        out, _ = call("show", small_run.path)
        assert "…" not in out
        for entry in small_run.record.attacks:
            assert entry.text.partition(":")[0] in out


def test_words_longer_than_their_column_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "value")
    table.add_row("x" * 50, "1")
    SafeConsole(width=30).print(table)
    out = capsys.readouterr().out
    assert out.count("x") == 50
    assert "…" not in out


def test_blocks_hold_every_column_once() -> None:
    """Each with the first one, and none wider than asked for."""
    names = [f"attack-{number}" for number in range(9)]
    table = Table("stage", *names, title="all")
    table.add_row("0", *map(str, range(9)))
    headers = [[str(column.header) for column in block.columns] for block in in_blocks(table, 40)]
    assert len(headers) > 1
    assert {first for first, *_ in headers} == {"stage"}
    assert [name for _, *rest in headers for name in rest] == names
    assert list(in_blocks(table, 500)) == [table]


@pytest.mark.usefixtures("short_probes")
class TestRun:
    """``advbench run``."""

    def test_json_and_dry_run(self, tmp_path: Path, call: Call) -> None:
        """A dry run writes nothing, and names the identity of the run that follows; JSON is its record."""
        asked = ["run", "--defense", "standard", "--sequence", "fgsm", "--unseen", "none", *SHORT]
        asked += ["--runs-dir", tmp_path / "runs"]
        out, _ = call(*asked, "--dry-run", "--format", "json")
        plan = json.loads(out)
        assert not (tmp_path / "runs").exists()
        expected = {"defense": "standard", "state": "new", "stage_epochs": 1, "threads": 1}
        assert {key: plan[key] for key in expected} == expected
        assert plan["test_points"] == {"fgsm:eps=0.2": 20}
        assert plan["passes"]["forwards"] > plan["training_points"]
        assert plan["estimate"]["seconds"] > 0
        text, _ = call(*asked, "--dry-run")
        assert re.search(rf"seed 0 +identity {plan['identity'][:16]}, new in ", text)
        out, err = call(*asked, "--format", "json")
        (path,) = (tmp_path / "runs").glob("*/record.json")
        assert json.loads(out) == json.loads(path.read_text("utf-8"))
        assert "finished" in err
        out, _ = call(*asked, "--dry-run", "--seeds", "2", "--format", "json")
        assert [one["state"] for one in json.loads(out)] == ["complete", "new"]
        out, _ = call(*asked, "--seeds", "0-0", "--format", "json")
        assert [one["config"]["seed"] for one in json.loads(out)] == [0]

    def test_a_dry_run_of_a_resumed_run_is_refused(self, call: Call) -> None:
        _, err = call("run", "--resume", "somewhere", "--dry-run", code=2)
        assert err.startswith("error: --dry-run: a resumed run")

    @pytest.mark.slow
    def test_code_by_its_place(self, own: str, call: Call) -> None:
        """What is typed is imported; a record that names it needs trust."""
        asked = ["run", "--defense", f"{own}:Own", "--sequence", f"{own}:shade:eps=0.1", *SHORT]
        call(*asked, "--unseen", "none", "--runs-dir", "runs")
        (path,) = Path("runs").glob("*/record.json")
        record = read_record(path)
        assert record.config["defense"] == f"own-{own}"
        assert record.config["sequence"] == [f"shade-{own}:eps=0.1"]
        assert record.config["plugins"] == [f"{own}:Own", f"{own}:shade"]
        with pytest.raises(ValueError, match=f"the plug-in '{own}:Own', and loading it imports that code"):
            load_run(path)
        assert load_run(path, trust=True).model.info.name == f"own-{own}"
        _, err = call("run", "--config", str(path), "--dry-run", code=2)
        assert f"names the plug-in '{own}:Own'" in err
        assert "--trust" in err
        out, _ = call("run", "--config", str(path), "--trust", "--dry-run", "--format", "json")
        assert json.loads(out)["defense"] == f"own-{own}"
        program = f"from advbench import load_run; print(load_run({str(path)!r}, trust=True).model.info.name)"
        again = python("-c", program, cwd=Path())
        assert again.stdout == f"own-{own}\n", again.stderr

    def test_records_without_such_code_are_as_before(self, small_run: Run) -> None:
        assert "plugins" not in small_run.record.config
        assert "plugins" not in small_run.config.model_dump(mode="json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--defense", "nowhere:Mine"), "defense 'nowhere:Mine': no module 'nowhere'"),
        (("run", "--sequence", "nowhere:mine"), "attack 'nowhere:mine': no module 'nowhere'"),
        (("run", "--defense", "json:JSONDecoder"), "defense 'json:JSONDecoder' is a subclass of object"),
        (("run", "--sequence", "json:dumps"), "attack 'json:dumps' is not registered: decorate it with"),
        (("eval", "--model", "x:y", "--attacks", "json:dumps"), "attack 'json:dumps' is not registered"),
        (("attacks", "json:dumps"), "attack 'json:dumps' is not registered"),
        (("defenses", "json:Nothing"), "unknown defense class 'Nothing'"),
        (("models", "lennet"), "unknown model 'lennet': did you mean 'lenet'?"),
        (("attacks", "check", "pdg"), "unknown attack 'pdg': did you mean 'pgd'?"),
        (("attacks", "check", "pgd", "--set", "stepz=1"), "unknown knob of pgd 'stepz': did you mean 'steps"),
        (("attacks", "new", "pgd"), "the name 'pgd' is taken"),
        (("attacks", "new", "Pgd"), "'Pgd' is no name for an attack"),
        (("attacks", "new", "sample"), "'sample' is a command of advbench attacks"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, call: Call) -> None:
    out, err = call(*arguments, code=2)
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_models_are_listed(call: Call) -> None:
    """With what they are for; as JSON too."""
    out, _ = call("models")
    assert all(name in out for name in MODELS)
    listed = json.loads(call("models", "--format", "json")[0])
    assert {entry["name"] for entry in listed} == set(MODELS)
    assert "factory: advbench.models.small:lenet" in call("models", "lenet")[0]


def test_a_sweep_as_json(tmp_path: Path, call: Call, small_run: Run) -> None:
    """The cells of a dry run; the records of finished cells in the grid's order."""
    config = dict(small_run.record.config)
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({**config, "sequence": [",".join(config["sequence"])]}))
    where = ("--runs-dir", small_run.path.parent)
    out, _ = call("sweep", grid, *where, "--dry-run", "--format", "json")
    (cell,) = json.loads(out)
    assert cell["state"] == "complete"
    assert cell["config"]["defense"] == config["defense"]
    out, _ = call("sweep", grid, *where, "--format", "json")
    assert [record["id"] for record in json.loads(out)] == [small_run.record.id]
