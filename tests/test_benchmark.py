"""A whole run: what it leaves on disk, that it repeats itself, and how it is read back."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import advbench
from advbench import load_run, run
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.config.options import Options, merge
from advbench.config.resolve import resolve
from advbench.runs.saved import Run
from attacks_pool import InputError, pool
from defenses import AT, Defense, DefenseInfo, registry
from leaderboards import RecordError, comparable, find_records, read_outcomes

FACTORY = """
import torch
from torch import nn

def make(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(256, num_classes),
    )

def fixed(num_classes, in_channels):
    torch.manual_seed(7)
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
"""
OTHERS = {"other": torch.zeros(1)}


def files(directory: Path) -> list[str]:
    """Everything below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def same_run(first: Path, second: Path) -> None:
    """Two runs of one command: an equal record but for names and times, and equal bytes elsewhere."""
    records = [comparable(load_run(directory, trust=True).record) for directory in (first, second)]
    assert records[0] == records[1]
    assert files(first) == files(second)
    for name in files(first):
        # Those hold names and times.
        if name not in ("record.json", "log.jsonl", "run.json", "SHA256SUMS"):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def damaged(saved: Run, tmp_path: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """A copy of the run's directory, to be damaged, with its record changed."""
    directory = Path(shutil.copytree(saved.path, tmp_path / "copy"))
    record = json.loads((directory / "record.json").read_text("utf-8"))
    change(record)
    (directory / "record.json").write_text(json.dumps(record), "utf-8")
    return directory


def events_of(saved: Run) -> list[dict[str, Any]]:
    """The log."""
    return [json.loads(line) for line in (saved.path / "log.jsonl").read_text("utf-8").splitlines()]


def epochs_trained(saved: Run) -> Counter[int]:
    """Epochs by stage, from the log."""
    return Counter(event["stage"] for event in events_of(saved) if event["kind"] == "epoch")


def right_clean(model: nn.Module, saved: Run) -> int:
    """How many test points a model of the run gets right."""
    x, y = saved.test_data
    with torch.no_grad():
        return int((model(x).argmax(1) == y).sum())


def test_a_run_leaves_its_directory_and_nothing_else(small_run: Run) -> None:
    """Record, weights of every stage and of the end, outcomes, log, what was asked for; no temporary file."""
    assert files(small_run.path) == [
        "SHA256SUMS",
        "log.jsonl",
        "model.safetensors",
        "outcomes.npz",
        "record.json",
        "run.json",
        "stages/0.safetensors",
        "stages/1.safetensors",
        "stages/2.safetensors",
    ]
    assert [stage.weights for stage in small_run.record.stages] == files(small_run.path)[6:]
    last = (small_run.path / "stages" / "2.safetensors").read_bytes()
    assert (small_run.path / "model.safetensors").read_bytes() == last
    assert small_run.record.id == small_run.path.name


def test_the_record_says_what_was_run(small_run: Run) -> None:
    """Every choice resolved; attacks by role with evaluation and training text; a cell for each pair."""
    record, config = small_run.record, small_run.record.config
    assert (config["defense"], config["regime"], config["dataset"]) == ("air", "continual", "digits")
    assert config["model"] == "digits-cnn"
    assert config["params"]["lambda_i"] == registry.resolve("air")[0](nn.Identity()).lambda_i
    assert (config["plan"]["epochs"], config["pretrain"]["epochs"], config["seed"]) == (1, 1, 0)
    names = [(entry.name, entry.role) for entry in record.attacks]
    assert names == [("fgsm", "seen"), ("pgd", "seen"), ("gaussian-noise", "unseen")]
    assert "steps=3" in record.attacks[1].text
    assert "steps=7" in str(record.attacks[1].training)
    assert record.attacks[2].training is None
    assert [stage.attacks for stage in record.stages] == [
        [],
        [config["sequence"][0]],
        [config["sequence"][1]],
    ]
    columns = ["clean", *(entry.text for entry in record.attacks)]
    places = [(cell.stage, cell.attack) for cell in record.cells]
    assert places == [(stage, text) for stage in range(3) for text in columns]
    assert {cell.n for cell in record.cells} == {360}
    assert record.environment["threads"] == 1
    assert record.environment["data"]["fingerprint"] == "0830e6997ac0f0a7"
    assert record.cost.parameters == 85066
    assert record.audit.checks


def test_outcomes_are_what_the_cells_count(small_run: Run) -> None:
    """A point's outcome for every row and attack; by class they add up to the last row."""
    record = small_run.record
    clean, robust = read_outcomes(small_run.path / "outcomes.npz")
    assert clean.shape == (3, 360)
    assert robust.shape == (3, 3, 360)
    assert not (robust & ~clean[:, None]).any()
    for cell in record.cells:
        texts = [entry.text for entry in record.attacks]
        outcome = clean[cell.stage]
        if cell.attack != "clean":
            outcome = robust[cell.stage, texts.index(cell.attack)]
        assert int(outcome.sum()) == cell.robust
    assert sum(row.n for row in record.per_class) == 360
    assert sum(row.clean_correct for row in record.per_class) == int(clean[2].sum())
    for index, entry in enumerate(record.attacks):
        assert sum(row.robust[entry.text] for row in record.per_class) == int(robust[2, index].sum())
    assert sum(row.worst_case for row in record.per_class) == int(robust[2].all(0).sum())
    assert record.metrics["worst_case_accuracy"] == pytest.approx(robust[2].all(0).mean())
    assert record.metrics["average_robust_accuracy"] == pytest.approx(robust[2, :2].mean())
    assert record.metrics["unseen_accuracy"] == pytest.approx(robust[2, 2].mean())
    assert record.metrics["backward_transfer"] == pytest.approx(robust[2, 0].mean() - robust[1, 0].mean())
    assert record.metrics["forward_transfer"] == pytest.approx(robust[1, 1].mean() - robust[0, 1].mean())


def test_the_log_has_a_line_for_each_event(small_run: Run) -> None:
    """Epochs, cells, stages, from start to end; the cells are the record's."""
    events = events_of(small_run)
    row = ["cell"] * 4 + ["stage"]
    assert [event["kind"] for event in events] == ["start", *(["epoch", *row] * 3), "end"]
    assert epochs_trained(small_run) == {0: 1, 1: 1, 2: 1}
    cells = [event["cell"] for event in events if event["kind"] == "cell"]
    assert cells == [cell.model_dump(mode="json") for cell in small_run.record.cells]
    losses = [event["losses"] for event in events if event["kind"] == "epoch"]
    assert set(losses[2]) == {"loss", "ce", "isotropic", "anisotropic", "regulariser"}


def weights_equal(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors."""
    left, right = load_file(first), load_file(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.usefixtures("short_probes")
def test_a_record_repeats_its_run(
    brief_run: Run, tmp_path: Path, global_randomness: Callable[[], bool]
) -> None:
    """``run --config RUN/record.json``: an equal record, weights and outcomes, whatever the random state."""
    command = ["run", "--config", str(brief_run.path / "record.json"), "--runs-dir", str(tmp_path)]
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        assert invoke(command) == 0
    assert global_randomness()
    (again,) = tmp_path.iterdir()
    same_run(brief_run.path, again)


def test_row_0_is_the_same_for_every_defense_of_a_seed(small_run: Run, brief_run: Run) -> None:
    """The plain classifier: outcomes and weights. AIR's first stage is AT's too; the second is not."""
    (clean, robust), (brief, attacked) = (
        read_outcomes(saved.path / "outcomes.npz") for saved in (small_run, brief_run)
    )
    for stage, equal in enumerate((True, True, False)):
        assert np.array_equal(clean[stage, :60], brief[stage]) is equal
        assert np.array_equal(robust[stage, :, :60], attacked[stage]) is equal
    plain, other = (saved.path / "stages" / "0.safetensors" for saved in (small_run, brief_run))
    assert plain.read_bytes() == other.read_bytes()
    assert small_run.record.stages[0].spec == brief_run.record.stages[0].spec


def test_load_run_gives_record_model_and_test_data(small_run: Run, digits: Any) -> None:
    """From the directory or its record.json; the logits on the test data give the recorded clean counts."""
    for path in (small_run.path, small_run.path / "record.json", str(small_run.path)):
        loaded = load_run(path)
        assert loaded.record == small_run.record
    x, y = loaded.test_data
    assert x.shape == (360, 1, 8, 8)
    assert torch.equal(x, digits.test.x)
    assert torch.equal(y, digits.test.y)
    assert loaded.model.info.name == "air"
    assert loaded.stage(0).info.name == "standard"
    clean = [cell.clean_correct for cell in loaded.record.cells if cell.attack == "clean"]
    for model, expected in zip((loaded.stage(0), loaded.stage(1), loaded.model), clean, strict=True):
        assert not any(module.training for module in model.modules())
        assert right_clean(model, loaded) == expected
    with pytest.raises(InputError, match="has no stage 3"):
        loaded.stage(3)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """One line."""
    said = r"^no record at .*: the run did not finish, or this is not a run$"
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RecordError, match=said):
            load_run(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(Path.unlink, "weights .* are missing", id="missing"),
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:5000]), "weights .* cannot be read: ", id="cut"),
        pytest.param(lambda p: p.write_bytes(b""), "weights .* cannot be read: ", id="empty"),
        pytest.param(lambda p: p.write_text("weights"), "weights .* cannot be read: ", id="text"),
        pytest.param(lambda p: save_file(OTHERS, p), "weights .* do not fit the model: ", id="others"),
    ],
)
def test_damaged_weights_are_one_line(
    small_run: Run, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    """The record can still be read, and the other stages."""
    directory = damaged(small_run, tmp_path)
    damage(directory / "stages" / "2.safetensors")
    loaded = load_run(directory)
    with pytest.raises(InputError, match=message) as caught:
        _ = loaded.model
    assert "\n" not in str(caught.value)
    assert loaded.stage(1).info.name == "air"


def test_other_data_are_refused(small_run: Run, tmp_path: Path) -> None:
    """The fingerprint decides: the numbers of a run belong to its own test points."""
    other = "0123456789abcdef"
    directory = damaged(
        small_run, tmp_path, lambda record: record["environment"]["data"].update(fingerprint=other)
    )
    with pytest.raises(InputError) as caught:
        _ = load_run(directory).test_data
    assert str(caught.value) == (
        f"data set 'digits' is not the one of run {small_run.record.id}: its fingerprint is "
        f"0830e6997ac0f0a7, the record has {other}"
    )


def test_a_strangers_config_is_one_line(small_run: Run, tmp_path: Path) -> None:
    """A record may hold a config that this version does not know."""
    directory = damaged(small_run, tmp_path, lambda record: record["config"].update(colour="red"))
    with pytest.raises(InputError, match=r"^run .*: config: colour: Extra inputs are not permitted"):
        load_run(directory)


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_users_own_model_needs_trust_to_load(
    small_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch norm and dropout it repeats itself; its code is imported only when that is allowed."""
    monkeypatch.chdir(tmp_path)
    Path("own_model.py").write_text(FACTORY)
    options = {**small_options, "model": "own_model:make", "points": 20}
    first, second = (run("at", runs_dir="runs", **options) for _ in range(2))
    same_run(first.path, second.path)
    # Row 0 is the same for every defense, dropout's draws too.
    plain = run("standard", runs_dir="runs", **options)
    assert weights_equal(first.path / "stages/0.safetensors", plain.path / "stages/0.safetensors")
    assert right_clean(first.model, first) == first.record.cells[-4].clean_correct
    monkeypatch.delitem(sys.modules, "own_model")
    with pytest.raises(
        InputError, match="the model 'own_model:make', and loading it imports that code: pass"
    ):
        load_run(first.path)
    assert "own_model" not in sys.modules
    x, _ = first.test_data
    with torch.no_grad():
        assert torch.equal(load_run(first.path, trust=True).model(x), first.model(x))
    monkeypatch.delitem(sys.modules, "own_model")
    Path("own_model.py").unlink()
    with pytest.raises(InputError, match="no module 'own_model'"):
        _ = load_run(first.path, trust=True).model


@pytest.mark.usefixtures("short_probes")
def test_the_seed_orders_the_batches(
    small_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With first weights that no seed moves, other seeds still train otherwise. Threads are as asked for."""
    monkeypatch.chdir(tmp_path)
    Path("fixed_model.py").write_text(FACTORY)
    options = {**small_options, "model": "fixed_model:fixed", "points": 5}
    torch.set_num_threads(2)
    try:
        first, second = (run("standard", runs_dir="runs", **options, seed=seed) for seed in (0, 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not weights_equal(first.path / "stages/0.safetensors", second.path / "stages/0.safetensors")
    assert first.record.environment["threads"] == 1


def test_a_small_model_gets_one_thread_unless_more_are_asked_for() -> None:
    """Threads would wait for each other; the same default stands in the identity."""
    torch.set_num_threads(2)
    try:
        small, asked, large = (
            prepare({"model": model, "threads": threads, "device": "cpu"})
            for model, threads in (("digits-cnn", None), ("digits-cnn", 2), ("resnet18", None))
        )
    finally:
        torch.set_num_threads(1)
    assert [found.threads for found in (small, asked, large)] == [1, 2, 2]
    assert small.facts["threads"] == 1
    assert small.identity != asked.identity


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_joint_is_one_stage_of_the_same_total(
    small_run: Run, small_options: dict[str, Any], tmp_path: Path
) -> None:
    """Rows 0 and 1, both attacks at once, T × epochs; transfer and forgetting do not apply."""
    options = {**small_options, "points": 20}
    joint = run("joint", runs_dir=tmp_path, **options)
    record = joint.record
    assert (record.config["defense"], record.regime) == ("at", "joint")
    assert [stage.attacks for stage in record.stages] == [[], record.config["sequence"]]
    assert {cell.stage for cell in record.cells} == {0, 1}
    assert epochs_trained(joint) == {0: 1, 1: 2}
    for name in ("backward_transfer", "forgetting", "forward_transfer"):
        assert record.metrics[name] is None
        assert small_run.record.metrics[name] is not None
    assert record.metrics["average_robust_accuracy"] is not None
    same = prepare({**options, "defense": "at", "regime": "joint"})
    assert same.identity == prepare({**options, "defense": "joint"}).identity
    assert same.config.model_dump(mode="json") == record.config


def test_meta_is_refused_where_it_makes_no_sense(
    small_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For defenses that do not support it, and for a single attack."""
    for name in registry.names():
        if "meta" not in registry.resolve(name)[0].info.regimes:
            with pytest.raises(InputError, match="does not support regime 'meta'"):
                run(name, runs_dir=tmp_path, **small_options, regime="meta")

    class Meta(Defense):
        info = DefenseInfo(name="meta-toy", paper=None, regimes=("meta",))

    monkeypatch.setitem(registry._classes, "meta-toy", Meta)
    with pytest.raises(InputError, match=r"^regime 'meta' needs two attacks or more in the sequence$"):
        run("meta-toy", "fgsm", runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_probes")
def test_points_by_attack(small_options: dict[str, Any], tmp_path: Path) -> None:
    """``50,pgd=20``: the first 20 for PGD, the first 50 for everything else."""
    # So small a budget that some points survive, and some do not.
    options = {**small_options, "sequence": "fgsm:eps=0.05,pgd:eps=0.05,steps=3", "points": "50,pgd=20"}
    limited = run("standard", runs_dir=tmp_path, **options)
    counts = {cell.attack.partition(":")[0]: cell.n for cell in limited.record.cells}
    assert counts == {"clean": 50, "fgsm": 50, "pgd": 20, "gaussian-noise": 50}
    assert limited.record.config["points"] == {"default": 50, "pgd": 20}
    clean, robust = read_outcomes(limited.path / "outcomes.npz")
    assert robust.shape == (3, 3, 50)
    assert not robust[:, 1, 20:].any()
    for cell in limited.record.cells:
        assert cell.clean_correct == int(clean[cell.stage, : cell.n].sum())
    shared = robust[2, :, :20].all(0).mean()
    assert 0 < shared < robust[2, :, :20].mean() < 1
    assert limited.record.metrics["worst_case_accuracy"] == pytest.approx(shared)
    average = (robust[2, 0].mean() + robust[2, 1, :20].mean()) / 2
    assert limited.record.metrics["average_robust_accuracy"] == pytest.approx(average)
    x, y = load_run(limited.path).test_data
    assert (len(x), len(y)) == (50, 50)


@pytest.mark.usefixtures("short_probes")
def test_training_knobs_are_used_and_recorded(
    brief_run: Run, small_options: dict[str, Any], tmp_path: Path
) -> None:
    """``--train-set pgd.steps=1`` changes what PGD trains with, not what it measures with."""
    cheap = run("at", runs_dir=tmp_path, **small_options, train_set={"pgd.steps": 1}, points=10)
    trained, before = cheap.record.config["training"], brief_run.record.config["training"]
    assert cheap.record.config["sequence"] == brief_run.record.config["sequence"]
    assert cheap.record.attacks[1].training == trained[1]
    steps = "step_size=0.5,steps=1", "step_size=0.07142857142857142,steps=7"
    assert before[1] == trained[1].replace(*steps) != trained[1]
    for stage, equal in ((1, True), (2, False)):
        weights = f"stages/{stage}.safetensors"
        assert weights_equal(brief_run.path / weights, cheap.path / weights) is equal
    # PGD of 7 steps: 8 forwards a point at stage 2 against 2.
    saved = brief_run.record.cost.training_forwards - cheap.record.cost.training_forwards
    assert saved == 6 * 1293


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_sampled_sequence_is_drawn_once_and_recorded(tmp_path: Path, digits: Any) -> None:
    """All seeds of one command meet the same attacks, and the record names them."""
    command = ["run", "--defense", "standard", "--sequence", "sample:2", "--unseen", "none", "--points", "5"]
    command += ["--epochs", "1", "--set", "pretrain.epochs=1", "--threads", "1", "--runs-dir", str(tmp_path)]
    assert invoke([*command, "--seed", "3", "--seeds", "2"]) == 0
    records, _ = find_records(tmp_path)
    assert sorted(record.config["seed"] for record in records) == [3, 4]
    attacks = pool.sequence("sample:2", budget="digits", seed=3, images=(1, 8, 8))
    assert [record.config["sequence"] for record in records] == [[one.text for one in attacks]] * 2
    drawn = {
        tuple(resolve(Options(sequence="sample:2", unseen="none", seed=seed), digits).sequence)
        for seed in range(20)
    }
    assert len(drawn) > 5


def test_an_interrupted_run_leaves_no_record(small_options: dict[str, Any], tmp_path: Path) -> None:
    """Its directory has none, and the leaderboard passes it by."""

    def interrupt(event: Any) -> None:
        if event.kind == "cell":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("at", runs_dir=tmp_path, **small_options, listeners=[interrupt])
    (directory,) = tmp_path.iterdir()
    assert sorted(os.listdir(directory)) == [".lock", "checkpoint", "log.jsonl", "run.json"]
    assert find_records(tmp_path) == ([], [])


def test_a_mistake_found_late_leaves_nothing(
    small_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user gave cannot be run, and only training noticed: its directory goes again."""

    def refuse(*_: object) -> None:
        raise InputError("no")

    monkeypatch.setattr(AT, "loss", refuse)
    with pytest.raises(InputError, match=r"^no$"):
        run("at", runs_dir=tmp_path, **small_options)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(AT, "spec", lambda _self: {"defense": "at", "parameters": {"mix": nn.Identity()}})
    with pytest.raises(InputError, match=r"^defense 'at' has a spec\(\) that is not JSON: .*Identity"):
        run("at", runs_dir=tmp_path / "runs", **small_options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_probes")
def test_tensorboard_gets_scalars(small_options: dict[str, Any], tmp_path: Path) -> None:
    """Losses by epoch and accuracies by stage, in a directory of their own."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = run("standard", runs_dir=tmp_path, **small_options, tensorboard=True, points=20)
    events = EventAccumulator(str(logged.path / "tensorboard")).Reload()
    assert {"train/loss", "robust/clean", "robust/fgsm", "robust/pgd"} <= set(events.Tags()["scalars"])
    values = [event.value for event in events.Scalars("robust/clean")]
    assert values == pytest.approx(logged.record.clean_column().tolist())


def test_without_tensorboard_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything runs."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match=r"^tensorboard is not installed: pip install 'advbench\[tensorboard\]'"
    ):
        run("at", runs_dir=tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_the_package_offers_what_the_readme_names() -> None:
    """``from advbench import run, load_run``, and a clear error for anything else."""
    assert (advbench.run, advbench.load_run) == (run, load_run)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = advbench.nothing


class TestOptions:
    """From what a user wrote to a resolved configuration."""

    def resolved(self, digits: Any, **given: Any) -> Any:
        """The configuration on the digits."""
        return resolve(Options.of(given), digits)

    def test_defaults(self, digits: Any) -> None:
        """AIR, fgsm,pgd,cw, the plan for digits; unseen attacks that the sequence does not name."""
        config = self.resolved(digits)
        assert config.defense == "air"
        names = {
            role: [text.partition(":")[0] for text in getattr(config, role)]
            for role in ("sequence", "unseen")
        }
        assert names == {"sequence": ["fgsm", "pgd", "cw"], "unseen": ["apgd", "pgd-l2", "square"]}
        assert config.eval == []
        assert config.stages == 3
        assert (config.plan.epochs, config.plan.eps_warmup, config.pretrain.epochs) == (20, 5.0, 20)
        assert config.pretrain.eps_warmup == 0
        # A quarter of however many epochs there are.
        assert self.resolved(digits, epochs=2).plan.eps_warmup == 0.5
        assert self.resolved(digits, epochs=2, set={"eps_warmup": "2"}).plan.eps_warmup == 2
        others = self.resolved(digits, sequence="square,pgd-l2", eval="apgd")
        assert others.unseen == []

    def test_settings_go_where_they_belong(self, digits: Any) -> None:
        """The defense's, the plan's or, with ``pretrain.``, pretraining's, which else follows the plan."""
        settings = {"lambda_r": "0", "lr": "0.3", "augmentation": "crop", "pretrain.epochs": "7"}
        config = self.resolved(digits, set=settings, epochs=4, select="val-robust")
        assert config.params["lambda_r"] == 0.0
        assert (config.plan.lr, config.plan.epochs, config.plan.select) == (0.3, 4, "val-robust")
        assert config.plan.augmentation == config.pretrain.augmentation == ("crop",)
        assert (config.pretrain.lr, config.pretrain.epochs, config.pretrain.select) == (0.3, 7, "last")

    def test_a_resolved_configuration_resolves_to_itself(self, digits: Any) -> None:
        """What a record holds can be run again."""
        config = self.resolved(
            digits, sequence="pgd:steps=5,cw", train_set={"cw.steps": 3}, points="cw=9", set={"sigma": 0.3}
        )
        again = self.resolved(digits, **config.model_dump(mode="json"))
        assert again == config
        assert again.protocol == config.protocol

    def test_the_protocol_is_what_evaluation_does(self, digits: Any) -> None:
        """Attacks and points change it; training does not, nor the attacks' order."""
        base = self.resolved(digits, sequence="fgsm,pgd").protocol
        assert self.resolved(digits, sequence="pgd,fgsm").protocol == base
        assert (
            self.resolved(digits, sequence="fgsm,pgd", epochs=3, train_set={"pgd.steps": 3}).protocol == base
        )
        assert self.resolved(digits, sequence="fgsm,pgd:steps=9").protocol != base
        assert self.resolved(digits, sequence="fgsm,pgd", points=9).protocol != base

    def test_new_choices_drop_what_they_make_stale(self) -> None:
        """On top of a record: a new sequence its training texts, a new defense its parameters, and so on."""
        recorded = {
            "defense": "air",
            "params": {"sigma": 0.3},
            "regime": "continual",
            "sequence": ["fgsm:eps=0.2"],
            "training": ["fgsm:eps=0.2"],
            "unseen": ["pgd:eps=0.2,steps=3", "square:eps=0.2"],
            "eval": ["bim:eps=0.2"],
            "dataset": "digits",
            "model": "digits-cnn",
            "plan": {"lr": 0.3, "epochs": 4, "eps_warmup": 1.0},
            "points": {"default": 50, "fgsm": 20, "square": 9},
        }
        before = copy.deepcopy(recorded)
        assert merge(recorded, {}) == recorded
        assert merge(recorded, {"defense": "air", "seed": 3}) == {**recorded, "seed": 3}
        merged = merge(recorded, {"defense": "at"})
        assert set(recorded) - set(merged) == {"params", "regime"}
        merged = merge(recorded, {"train_set": {"fgsm.eps": 0.1}})
        assert set(recorded) - set(merged) == {"training"}
        # PGD is seen from now on; no one measures FGSM any more.
        merged = merge(recorded, {"sequence": "pgd:steps=5"})
        assert set(recorded) - set(merged) == {"training"}
        assert (merged["sequence"], merged["unseen"], merged["eval"]) == (
            "pgd:steps=5",
            ["square:eps=0.2"],
            ["bim:eps=0.2"],
        )
        assert merged["points"] == {"default": 50, "square": 9}
        # An attack that is replaced takes its number of points with it, unless it is measured elsewhere.
        assert merge(recorded, {"unseen": "auto"})["points"] == recorded["points"]
        for unseen in ("none", "apgd:steps=5", ["bim"]):
            assert merge(recorded, {"unseen": unseen})["points"] == {"default": 50, "fgsm": 20}
        counted = {**recorded, "points": {"bim": 7, "fgsm": 20, "sqaure": 9}}
        merged = merge(counted, {"eval": "cosine-pgd"})
        assert merged["points"] == {"fgsm": 20, "sqaure": 9}, "a typing error remains, and is refused"
        assert merge(counted, {"eval": "cosine-pgd,bim:steps=3"})["points"] == counted["points"]
        assert merge(counted, {"eval": "none", "points": "bim=5"})["points"] == "bim=5"
        # Other data, other budgets: of the attacks only the names remain.
        merged = merge(recorded, {"dataset": "mnist"})
        assert set(recorded) - set(merged) == {"training", "model", "plan", "points"}
        assert (merged["sequence"], merged["unseen"], merged["eval"]) == (
            ["fgsm"],
            ["pgd", "square"],
            ["bim"],
        )
        # The warm-up keeps its share of the stage.
        for given in ({"epochs": 2}, {"set": {"epochs": "2"}}):
            assert merge(recorded, given)["plan"] == {"lr": 0.3, "epochs": 4, "eps_warmup": 0.5}
        assert recorded == before

    def test_what_a_user_wrote_is_not_stale(self) -> None:
        """A file without resolved texts keeps all that the command line does not name."""
        written = {"sequence": "fgsm,pgd", "unseen": "square", "points": 9, "plan": {"lr": 0.3}}
        merged = merge(
            {**written, "set": {"lambda_i": 1, "lambda_a": 2}}, {"set": {"lambda_i": 5}, "epochs": 3}
        )
        assert merged == {**written, "set": {"lambda_i": 5, "lambda_a": 2}, "epochs": 3}
        for given in ({"sequence": "cw"}, {"dataset": "mnist"}):
            assert merge(written, given) == {**written, **given}
            by_hand = {**written, "training": ["fgsm", "pgd"]}
            assert merge(by_hand, given)["unseen"] == "square"
            assert "training" not in merge(by_hand, given)
        counted = {"eval": "autoattack", "points": {"autoattack": 9, "cw": 8}}
        assert merge(counted, {"eval": "bim"})["points"] == {"cw": 8}
        odd = {"plan": {"epochs": "x", "eps_warmup": "1"}}
        assert merge(odd, {"epochs": 2}) == {**odd, "epochs": 2}


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_numbers_do_not_depend_on_what_else_is_measured(
    brief_run: Run, small_options: dict[str, Any], tmp_path: Path
) -> None:
    """One more attack adds a column and leaves training and every other cell as they were."""
    more = run("at", runs_dir=tmp_path, **small_options, points=60, eval="bim:steps=2")
    assert weights_equal(brief_run.path / "model.safetensors", more.path / "model.safetensors")
    robust, wider = (read_outcomes(saved.path / "outcomes.npz")[1] for saved in (brief_run, more))
    assert wider.shape == (3, 4, 60)
    assert np.array_equal(robust, wider[:, :3])
    assert [entry.role for entry in more.record.attacks] == ["seen", "seen", "unseen", "eval"]
