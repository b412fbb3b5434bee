"""Training and runs that are stopped anywhere and gone on with end as if they had never been stopped."""

from __future__ import annotations

import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import Stop, equal, stopped_and_resumed
from tiny_runs import few_probes
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import evaluate_model, run
from advbench.cli.main import invoke
from advbench.data import DataSet, Split, TensorLoader
from advbench.runs.saved import Run, load_run
from advbench.runtime.events import Event
from attacks_pool import InputError, pool
from defenses import AIR, AT, Defense, DefenseInfo, Snapshot, Stage, Standard, TrainPlan, registry
from defenses.training.packing import PackingError, pack, unpack
from leaderboards import RecordError, comparable, verify_checksums

ROOT = Path(__file__).resolve().parent.parent
Network = Callable[..., nn.Sequential]
TINY: dict[str, Any] = {
    "sequence": "fgsm,pgd:steps=2",
    "unseen": "none",
    "epochs": 2,
    "points": 20,
    "set": {"pretrain.epochs": 1, "batch_size": 512},
    "threads": 1,
    "device": "cpu",
}


class Growing(Defense):
    """Adds a layer a stage, freezes the ones before and ties the new one's bias; keeps a tensor aside."""

    info = DefenseInfo(name="growing", paper=None, regimes=("continual",))

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.layers = nn.ModuleList()
        self.bias = nn.Parameter(torch.zeros(10))
        self.memory: dict[int, Any] = {}

    def begin(self, stage: Stage) -> None:
        """A new layer; the classifier and older layers are frozen from stage 2 on."""
        if stage.index > 1:
            for parameter in [*self.model.parameters(), *self.layers.parameters()]:
                parameter.requires_grad_(False)
        self._grow()
        self.memory[stage.index] = (torch.full((3,), float(stage.index)), None, "text")

    def _grow(self) -> None:
        layer = nn.Linear(10, 10)
        nn.init.eye_(layer.weight)
        layer.bias = self.bias
        self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        for layer in self.layers:
            logits = layer(logits)
        return logits

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        noise = 0.1 * torch.randn(x.shape, generator=self.generator)
        return F.cross_entropy(self(self.craft(stage.attacks[0], x, y) + noise), y)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "layers": len(self.layers)}

    def load_spec(self, spec: dict[str, Any]) -> None:
        for _ in range(spec["layers"]):
            self._grow()

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "memory": self.memory}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.memory = state["memory"]


CASES: dict[str, tuple[type[Defense], str, dict[str, Any]]] = {
    "air": (AIR, "fgsm", {"optimizer": "sgd", "eps_warmup": 1.5}),
    "joint": (AT, "fgsm,gaussian-noise", {"optimizer": "adamw", "augmentation": ("crop", "flip")}),
    "val-robust": (AT, "fgsm", {"optimizer": "adam", "select": "val-robust"}),
    "growing": (Growing, "fgsm", {"optimizer": "sgd"}),
    "standard": (Standard, "fgsm", {"optimizer": "adam", "schedule": "one-cycle"}),
}


class TestTraining:
    """``fit(checkpoint=…, resume=…)``."""

    @pytest.fixture
    def loader(self, digits: DataSet) -> TensorLoader:
        """150 points in three batches."""
        return TensorLoader(Split(digits.train.x[:150], digits.train.y[:150]), 50, seed=3)

    @pytest.mark.quick(r".*-(2|6)")
    @pytest.mark.parametrize("moment", [1, 2, 3, 4, 6, 9])
    @pytest.mark.parametrize("case", CASES)
    def test_the_result_is_that_of_training_without_a_break(
        self, case: str, moment: int, network: Network, loader: TensorLoader
    ) -> None:
        """Weights, state, history, and the stage after; stopped in the middle of an epoch, or at its end."""
        kind, text, chosen = CASES[case]
        attacks = pool.sequence(text, budget="digits")
        plan = TrainPlan(epochs=3, lr=0.05, **chosen)
        validation = TensorLoader(loader.split, 50, seed=0, shuffle=False)

        def build() -> Defense:
            """With batch norm and dropout."""
            model = network(norm=True)
            return kind(nn.Sequential(*model[:-1], nn.Dropout(0.3), model[-1]), seed=4)

        whole, resumed, snapshots = stopped_and_resumed(
            build, loader, [attacks, attacks], at=moment, plan=plan, validation=validation
        )
        # One an epoch, and one of the moment itself.
        assert len(snapshots) == (moment - 1) // 3 + 1
        assert (snapshots[-1].stage, 3 * snapshots[-1].epoch + snapshots[-1].batch) == (2, moment)
        for defense in (whole, resumed):
            defense.fit(loader, attacks, plan=TrainPlan(epochs=1))
        assert equal(whole, resumed)
        assert equal(whole.training_state(), resumed.training_state())
        flags = [{name: p.requires_grad for name, p in one.named_parameters()} for one in (whole, resumed)]
        assert flags[0] == flags[1]

    def test_momentum_goes_to_its_parameter_by_name(self, network: Network, loader: TensorLoader) -> None:
        """A structure that is rebuilt may hand its parameters to the optimizer in another order."""

        class Reversed(Standard):
            def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer:
                order = list(self.parameters())
                return plan.make_optimizer(order[::-1] if self.turned else order)

            turned = False

        def trained(turned: bool) -> Defense:
            taken: list[Snapshot] = []
            first, second = Reversed(network(), seed=1), Reversed(network(), seed=1)
            plan = TrainPlan(epochs=2, schedule="constant")
            first.fit(loader, [], plan=plan, checkpoint=taken.append)
            second.turned = turned
            second.fit(loader, [], plan=plan, resume=taken[0])
            return second

        assert equal(trained(True), trained(False))

    def test_a_kept_snapshot_does_not_move(self, network: Network, loader: TensorLoader) -> None:
        """It holds copies."""
        taken: list[tuple[Snapshot, bytes]] = []
        defense = AT(network(norm=True))
        attacks = pool.sequence("fgsm", budget="digits")
        defense.fit(
            loader, attacks, plan=TrainPlan(epochs=3), checkpoint=lambda s: taken.append((s, s.pack()))
        )
        assert [snapshot.epoch for snapshot, _ in taken] == [1, 2, 3]
        assert all(snapshot.pack() == data for snapshot, data in taken)
        assert taken[0][1] != taken[1][1]

    def test_what_is_no_number_is_not_kept(self, network: Network, loader: TensorLoader) -> None:
        """The last snapshot is the last good state."""

        class Bursting(Standard):
            def step(self, *given: Any) -> dict[str, float]:
                losses = super().step(*given)
                self.steps = getattr(self, "steps", 0) + 1
                if self.steps == 6:
                    # The loss was a number; what its step made is none.
                    next(self.parameters()).data.fill_(torch.nan)
                return losses

        taken: list[Snapshot] = []
        with pytest.raises(Exception, match="not a number at stage 1, epoch 3, step 1"):
            Bursting(network()).fit(loader, [], plan=TrainPlan(epochs=4), checkpoint=taken.append)
        assert [snapshot.epoch for snapshot in taken] == [1]

    def test_other_snapshots_are_refused(self, network: Network, loader: TensorLoader) -> None:
        """Of another structure, another optimizer or a longer plan: one line."""
        taken: list[Snapshot] = []
        Standard(network()).fit(loader, [], plan=TrainPlan(epochs=3), checkpoint=taken.append)
        with pytest.raises(InputError, match="this is not a state of standard"):
            Standard(network(channels=3)).fit(loader, [], resume=taken[-1])
        with pytest.raises(InputError, match="of stage 1, epoch 4: not of stage 1 of 2 epochs"):
            Standard(network()).fit(loader, [], plan=TrainPlan(epochs=2), resume=taken[-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_packing_keeps_how_images_lie(channels: int) -> None:
    """A convolution of images in another layout may round otherwise: a resumed run would not be the same."""
    images = torch.rand(5, channels, 4, 4).to(memory_format=torch.channels_last)[torch.tensor([0, 3])]
    lying = [images, images.transpose(0, 2), torch.rand(2, 2), torch.tensor(1.0)]
    for before, after in zip(lying, unpack(pack(lying)), strict=True):
        assert torch.equal(before, after)
        assert before.clone().stride() == after.stride()


def test_packing_keeps_values_types_and_ties() -> None:
    """Keys that are numbers, tuples, None, empty tensors, all kinds of numbers; nothing that could run."""
    shared = torch.arange(4.0)
    tree = {
        "a": {0: shared, 1: shared.view(2, 2).T, "1": shared[:0]},
        "b": [1, 2.5, True, None, "x", (0.1 + 0.2, [])],
        "c": (torch.tensor(3), torch.tensor([True]), torch.rand(2).bfloat16()),
        "d": {},
    }
    data = pack(tree)
    assert equal(unpack(data), tree)
    assert list(unpack(data)["a"]) == [0, 1, "1"]
    refused: list[tuple[Any, str]] = [({"x": [object()]}, r"x\.0 is a object"), ({(1, 2): 3}, "has the key")]
    for wrong, message in (*refused, ({"f": print}, "f is a builtin_function")):
        with pytest.raises(PackingError, match=message):
            pack(wrong)
    for damaged in (b"", data[:20], data[:-1], b"x" + data, data.replace(b"dict", b"tict")):
        with pytest.raises(PackingError):
            unpack(damaged)


def same(first: Path, second: Path) -> None:
    """Two runs that must not differ but for names and times."""
    assert comparable(load_run(first).record) == comparable(load_run(second).record)
    for name in ("model.safetensors", "outcomes.npz", *(f"stages/{n}.safetensors" for n in range(2))):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert verify_checksums(first) == []
    left = {path.name for path in first.iterdir()}
    assert left == {path.name for path in second.iterdir()}
    assert not left & {"checkpoint", ".lock"}


@pytest.fixture(autouse=True, scope="module")
def _few_probes() -> Iterator[None]:
    """None of these tests is about what an audit finds."""
    with few_probes():
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event]]:
    """A run that nothing stopped, and all that it tells."""
    events: list[Event] = []
    return run("air", runs_dir=tmp_path_factory.mktemp("whole"), **TINY, listeners=[events.append]), events


@pytest.fixture(scope="module")
def whole(told: tuple[Run, list[Event]]) -> Run:
    """A run that nothing stopped."""
    return told[0]


@pytest.fixture(scope="module")
def moments(told: tuple[Run, list[Event]]) -> list[Event]:
    """All that such a run tells."""
    return told[1]


def stopper(at: int) -> Callable[[Event], None]:
    """A listener that stops a run at its ``at``-th event."""
    left = at

    def listen(event: Event) -> None:
        nonlocal left
        # A run that goes on has its say first.
        left -= event.kind not in ("start", "resume")
        if left < 0:
            raise Stop

    return listen


class TestRuns:
    """``run`` finds its own unfinished run."""

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_stopped_at_random_moments(
        self, whole: Run, moments: list[Event], tmp_path: Path, seed: int
    ) -> None:
        """Again and again; at last it is the run that was never stopped."""
        draws = random.Random(seed)
        stops = 0
        for _ in range(6):
            try:
                run("air", runs_dir=tmp_path, **TINY, listeners=[stopper(draws.randrange(len(moments) // 3))])
            except Stop:
                stops += 1
            else:
                break
        assert stops > 1
        finished = run("air", runs_dir=tmp_path, **TINY)
        assert len(list(tmp_path.iterdir())) == 1
        same(finished.path, whole.path)

    @pytest.mark.quick(r"in an epoch|between cells")
    @pytest.mark.parametrize("moment", ["in an epoch", "between cells", "before the audit"])
    def test_at_every_kind_of_moment(
        self, whole: Run, moments: list[Event], tmp_path: Path, moment: str
    ) -> None:
        """Nothing finished is done again: no batch, no cell; its seconds are those of the first time."""
        kinds = [(event.kind, event.stage, event.batch) for event in moments]
        places = {"in an epoch": kinds.index(("batch", 2, 1)) + 2, "before the audit": len(kinds) - 3}
        place = places.get(moment, kinds.index(("cell", 2, 0)))
        first: list[Event] = []
        second: list[Event] = []
        with pytest.raises(Stop):
            run("air", runs_dir=tmp_path, **TINY, listeners=[first.append, stopper(place)])
        finished = run("air", runs_dir=tmp_path, **TINY, listeners=[second.append])
        same(finished.path, whole.path)

        def trained(events: list[Event]) -> int:
            return sum(event.kind in ("batch", "epoch") for event in events)

        assert trained(first) + trained(second) == trained(moments)
        cells = {(event.stage, event.attack): event.cell for event in first if event.kind == "cell"}
        assert len(cells) == {"in an epoch": 6, "between cells": 8, "before the audit": 9}[moment]
        found = {(cell.stage, cell.attack): cell for cell in finished.record.cells}
        assert all(found[key] == cell for key, cell in cells.items())

    @pytest.mark.quick(r"points|resume")
    @pytest.mark.parametrize(
        "change",
        [{"seed": 1}, {"points": 19}, {"epochs": 1}, {"sequence": "fgsm,pgd:steps=3"}, {"resume": False}],
        ids=lambda change: next(iter(change)),
    )
    def test_another_run_is_not_taken_up(self, tmp_path: Path, change: dict[str, Any]) -> None:
        """Anything that numbers depend on, or the wish for a fresh one, makes a directory of its own."""
        for options in (TINY, {**TINY, **change}):
            with pytest.raises(Stop):
                run("air", runs_dir=tmp_path, **options, listeners=[stopper(3)])
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [
            {"defense": "joint", "set": {**TINY["set"], "optimizer": "adam"}},
            {"defense": "replay", "select": "val-robust", "params": {"memory": 33}},
        ],
        ids=["joint", "val-robust"],
    )
    def test_other_defenses_and_plans(self, tmp_path: Path, options: dict[str, Any]) -> None:
        """The joint regime, Adam, and the best epoch by validation; the record says what each stage keeps."""
        chosen = {**TINY, **options}
        expected = run(runs_dir=tmp_path / "whole", **chosen)
        for place in (4, 9):
            with pytest.raises(Stop):
                run(runs_dir=tmp_path / "broken", **chosen, listeners=[stopper(place)])
        same(run(runs_dir=tmp_path / "broken", **chosen).path, expected.path)
        if options["defense"] == "replay":
            assert [one.spec.get("memory") for one in expected.record.stages] == [None, 33, 33]

    @pytest.mark.slow
    def test_a_fit_of_its_own_is_resumed_by_whole_stages(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stranger's defense may know nothing of checkpoints."""

        class Own(AT):
            info = DefenseInfo(name="own", paper=None, regimes=("continual",))

            def fit(self, data: Any, attacks: Any, *, plan: Any, progress: Any, validation: Any) -> Any:
                return super().fit(data, attacks, plan=plan, progress=progress, validation=validation)

        monkeypatch.setitem(registry._classes, "own", Own)
        expected = run("own", runs_dir=tmp_path / "whole", **TINY)
        events: list[Event] = []
        with pytest.raises(Stop):
            run("own", runs_dir=tmp_path / "broken", **TINY, listeners=[events.append, stopper(20)])
        assert events[-1].stage == 2
        events = []
        finished = run("own", runs_dir=tmp_path / "broken", **TINY, listeners=[events.append])
        same(finished.path, expected.path)
        assert {event.stage for event in events if event.kind == "epoch"} == {2}


@pytest.mark.slow
def test_sigkill_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Processes that die while they write; the benchmark of the same name does it 50 times."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["kill.py", "--rounds", "1", "--seed", "23", "--at", "writes"])
    kill = runpy.run_path(str(ROOT / "benchmarks" / "kill.py"))
    assert kill["main"]() == 0
    out = capfd.readouterr().out
    assert "records and weights equal in 1 of 1 rounds" in out
    assert int(out.split(" kills")[0].split()[-1]) >= 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_finishes_the_batch_and_says_how_to_go_on(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    """One line, the exit code that shells expect; ``--resume`` ends where it would have ended."""
    command = ["run", "--sequence", "fgsm,pgd:steps=2", "--unseen", "none", "--epochs", "2", "--points", "20"]
    command += ["--set", "pretrain.epochs=1", "--set", "batch_size=512", "--threads", "1", "--device", "cpu"]
    script = f"""
import os, signal, sys
from advbench.cli.main import main
from advbench.data import TensorLoader
batches = TensorLoader._batches
def sending(self, order):
    for number, batch in enumerate(batches(self, order)):
        # In the middle of an epoch of stage 1.
        if self.shuffle and self._epoch == 2 and number == 1:
            os.kill(os.getpid(), {int(number)})
        yield batch
TensorLoader._batches = sending
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--runs-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    (directory,) = tmp_path.iterdir()
    last = done.stderr.splitlines()[-1]
    assert last == f"error: interrupted; resume with: advbench run --resume {directory}"
    names = sorted(path.name for path in (directory / "checkpoint").glob("*.safetensors"))
    # The end of the first epoch, and the batch after which the signal was heard.
    assert [name for name in names if name.startswith("stage")] == [
        "stage-1-00001-0000000.safetensors",
        "stage-1-00001-0000002.safetensors",
    ]
    assert invoke(["run", "--resume", str(directory)]) == 0
    same(directory, whole.path)
    capsys.readouterr()
    assert invoke(["run", "--resume", str(directory)]) == 2
    message = f"error: run {directory.name} is complete: there is nothing to resume\n"
    assert capsys.readouterr() == ("", message)


class TestEvaluations:
    """``evaluate_model`` finds its own unfinished evaluation."""

    FACTORY = (
        "import torch\n\ndef make(num_classes):\n    torch.manual_seed(0)\n    return torch.nn.Sequential("
    )
    FACTORY += "torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"

    @pytest.mark.slow
    def test_finished_attacks_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For a model that is given as text; a function cannot be known again."""
        monkeypatch.chdir(tmp_path)
        Path("theirs.py").write_text(self.FACTORY)
        options: dict[str, Any] = {"attacks": "fgsm,pgd:steps=3", "points": 60, "threads": 1, "device": "cpu"}
        expected = evaluate_model("theirs:make", runs_dir="whole", **options)
        with pytest.raises(Stop):
            evaluate_model("theirs:make", runs_dir="broken", **options, listeners=[stopper(1)])
        events: list[Event] = []
        finished = evaluate_model("theirs:make", runs_dir="broken", **options, listeners=[events.append])
        assert events[0].kind == "resume"
        assert comparable(finished.record) == comparable(expected.record)
        assert len(list(Path("broken").iterdir())) == 1
        assert verify_checksums(finished.path) == []

        def zeros(x: Tensor) -> Tensor:
            return torch.zeros(len(x), 10)

        for _ in range(2):
            with pytest.raises(Stop):
                evaluate_model(zeros, runs_dir="functions", **options, listeners=[stopper(1)])
        assert len(list(Path("functions").iterdir())) == 2
        monkeypatch.delitem(sys.modules, "theirs")


def test_a_named_run_refuses_what_is_not_its_own(whole: Run, tmp_path: Path) -> None:
    """Other options, a complete run, no run at all."""
    with pytest.raises(InputError, match=r"^--defense, --epochs: a resumed run takes its options"):
        run("at", epochs=3, resume=whole.path)
    with pytest.raises(InputError, match="is complete: there is nothing to resume"):
        run(resume=whole.path)
    with pytest.raises(RecordError, match="no manifest at"):
        run(resume=tmp_path)
    copied = Path(shutil.copytree(whole.path, tmp_path / "copy"))
    (copied / "record.json").unlink()
    text = (copied / "run.json").read_text("utf-8")
    (copied / "run.json").write_text(text.replace('"seed": 0', '"seed": 1'), "utf-8")
    with pytest.raises(InputError, match="it cannot be resumed here"):
        run(resume=copied)
