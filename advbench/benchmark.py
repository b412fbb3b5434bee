"""The benchmark loop: clean pretraining, row 0, then each stage and its row of R."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advbench.audit import Probes, audit, probe
from advbench.config import Options, RunConfig
from advbench.data import DataSet, Split, TensorLoader, load_dataset
from advbench.environment import choose_device, describe, reproducible
from advbench.evaluate import Row, evaluate
from advbench.events import Clock, Event, JsonLog, Listener, TensorBoardLog, check_tensorboard, tell
from advbench.recording import Measured, make_record
from advbench.resolve import bound_attacks, points_of, resolve
from advbench.saved import WEIGHTS, Run, new_classifier
from attacks_pool import Attack, InputError, Passes
from defenses import Defense, Progress, TrainPlan, registry
from leaderboards import Cell, Stage, new_run_directory, write_bytes, write_outcomes, write_record


def run(
    defense: str = "air",
    sequence: str | Sequence[str] = "fgsm,pgd,cw",
    *,
    runs_dir: str | Path = "runs",
    listeners: Sequence[Listener] = (),
    tensorboard: bool = False,
    sample_seed: int | None = None,
    surrogate: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train and evaluate one defense; what ``advbench run`` does.

    Args:
        defense: a name that ``advbench defenses`` lists.
        sequence: the attacks that it meets, ``fgsm,pgd:eps=0.1,cw`` or a list of such texts.
        runs_dir: where the run's directory is made.
        listeners: called with every :class:`advbench.events.Event`.
        tensorboard: also write scalars for TensorBoard.
        sample_seed: what ``sample:k`` is drawn with; the run's seed by default.
        surrogate: a finished run on whose model the audit crafts its transferred points; by default the
            plain classifier of row 0.
        options: the other options of the command line, with underscores: ``dataset``, ``model``,
            ``epochs``, ``points``, ``seed``, ``set={"lr": 0.1}``, ``train_set={"pgd.steps": 7}``, …

    Returns:
        The finished run, as :func:`advbench.load_run` reads it.

    Raises:
        InputError, RecordError: anything in the options that cannot be run.
        TrainingDivergedError: the training loss is no longer a number.
    """
    texts = sequence if isinstance(sequence, str) else list(sequence)
    chosen = Options.of({"defense": defense, "sequence": texts, **options})
    if tensorboard:
        check_tensorboard()
    device = choose_device(chosen.device)
    data = load_dataset(chosen.dataset, chosen.data_dir)
    config = resolve(chosen, data, sample_seed=sample_seed)
    other = surrogate_of(surrogate, data) if surrogate is not None else None
    with reproducible(config.threads):
        _try_build(config, data)
        classifier = new_classifier(config, data.image_shape, data.num_classes).to(device)
        directory = new_run_directory(Path(runs_dir), stem_of(config, data))
        log = JsonLog(directory / "log.jsonl")
        board = TensorBoardLog(directory / "tensorboard") if tensorboard else None
        try:
            everyone: list[Listener] = [*listeners, log]
            if board is not None:
                everyone.append(board)
            _Benchmark(config, data, directory, device, everyone, other).go(classifier)
        except InputError:
            # What the user gave cannot be run, found late: nothing here is worth keeping.
            shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            log.close()
            if board is not None:
                board.close()
    from advbench.saved import load_run

    # What the user typed just now, they trust.
    return load_run(directory, trust=True, data_dir=chosen.data_dir)


def _try_build(config: RunConfig, data: DataSet) -> None:
    """Build the defense for nothing, so that a parameter it refuses is found before anything is written."""
    classifier = new_classifier(config, data.image_shape, data.num_classes)
    defense = registry.build(config.defense, classifier, seed=config.seed, parameters=config.params)
    try:
        json.dumps(defense.spec(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"defense {config.defense!r} has a spec() that is no JSON: {error}") from None


def surrogate_of(path: str | Path, data: DataSet) -> tuple[str, nn.Module]:
    """The final model of a finished run, and its name, to craft transferred points on.

    Raises:
        RecordError, InputError: no such run, or its images or classes are others.
    """
    from advbench.saved import load_run

    other = load_run(path)
    facts = other.record.environment["data"]
    if (tuple(facts["shape"]), facts["classes"]) != (data.image_shape, data.num_classes):
        raise InputError(
            f"surrogate {other.record.id} takes images {tuple(facts['shape'])} of {facts['classes']} "
            f"classes, not {data.image_shape} of {data.num_classes}"
        )
    return f"run {other.record.id}", other.model


def stem_of(config: RunConfig, data: DataSet) -> str:
    """The name of a run's directory, before a number that keeps it apart."""
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in data.name)
    regime = "" if config.regime == "continual" else f"-{config.regime}"
    return f"{when}-{config.defense}{regime}-{name}-s{config.seed}"


class _Benchmark:
    """One run under way."""

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        directory: Path,
        device: torch.device,
        listeners: Sequence[Listener],
        surrogate: tuple[str, nn.Module] | None = None,
    ) -> None:
        self.surrogate = surrogate
        self.config, self.data, self.directory, self.listeners = config, data, directory, listeners
        self.attacks = bound_attacks(config)
        every = [attack for role in ("seen", "unseen", "eval") for attack in self.attacks[role]]
        self.measured = [(attack, points_of(config, attack, len(data.test))) for attack in every]
        points = max(count for _, count in self.measured)
        self.test = Split(data.test.x[:points].to(device), data.test.y[:points].to(device))
        self.loader = TensorLoader(data.train, config.plan.batch_size, seed=config.seed, device=device)
        self.validation = TensorLoader(data.validation, 500, seed=0, shuffle=False, device=device)
        epochs = config.pretrain.epochs + config.stages * config.stage_plan.epochs
        self.clock = Clock(epochs, config.stages + 1)
        self.rows: list[Row] = []
        self.stages: list[Stage] = []
        self.passes = Passes()
        self.seconds = {"training": 0.0, "evaluation": 0.0}

    def go(self, classifier: nn.Module) -> None:
        """Pretrain, measure row 0, then train and measure each stage; write the record last."""
        config = self.config
        self._tell(Event("start", stages=config.stages, text=self.directory.name))
        plain = registry.build("standard", classifier, seed=config.seed)
        self._train(plain, 0, [], config.pretrain)
        self._measure(plain, 0, [])
        if self.surrogate is None:
            # Copied: the defense trains this very classifier on.
            self.surrogate = ("row 0", copy.deepcopy(plain).eval())
        defense = registry.build(config.defense, classifier, seed=config.seed, parameters=config.params)
        defense.to(self.test.x.device)
        for number in range(1, config.stages + 1):
            seen = self.attacks["seen"]
            met = [seen[number - 1]] if config.regime == "continual" else seen
            self._train(defense, number, met, config.stage_plan)
            self._measure(defense, number, met)
        self._save(defense)
        self._tell(Event("end", stage=config.stages, stages=config.stages, text=str(self.directory)))

    def _train(self, defense: Defense, stage: int, attacks: list[Attack], plan: TrainPlan) -> None:
        began = time.perf_counter()
        names = "+".join(attack.name for attack in attacks) or "clean"
        loader = TensorLoader(self.loader.split, plan.batch_size, seed=self.config.seed)

        def progress(now: Progress) -> None:
            ended = now.batch == now.batches
            if ended:
                self.clock.tick("epoch")
            self._tell(
                Event(
                    "epoch" if ended else "batch",
                    stage=stage,
                    stages=self.config.stages,
                    epoch=now.epoch,
                    epochs=now.epochs,
                    batch=now.batch,
                    batches=now.batches,
                    attack=names,
                    losses=now.losses,
                )
            )

        before = Passes(defense.passes.forwards, defense.passes.backwards)
        defense.fit(loader, attacks, plan=plan, progress=progress, validation=self.validation)
        self.passes.forwards += defense.passes.forwards - before.forwards
        self.passes.backwards += defense.passes.backwards - before.backwards
        self.seconds["training"] += time.perf_counter() - began

    def _measure(self, defense: Defense, stage: int, met: list[Attack]) -> None:
        began = time.perf_counter()
        defense.eval()

        def progress(cell: Cell) -> None:
            self._tell(Event("cell", stage=stage, stages=self.config.stages, attack=cell.attack, cell=cell))

        self.rows.append(
            evaluate(
                defense.view,
                self.test,
                self.measured,
                stage=stage,
                seed=self.config.seed,
                progress=progress,
                # Declared ones always; any other is asked twice.
                stochastic=defense.info.stochastic or None,
            )
        )
        weights = f"stages/{stage}.safetensors"
        (self.directory / "stages").mkdir(exist_ok=True)
        write_bytes(self.directory / weights, weights_of(defense))
        texts = [attack.text for attack in met]
        self.stages.append(Stage(index=stage, attacks=texts, weights=weights, spec=defense.spec()))
        self.seconds["evaluation"] += time.perf_counter() - began
        self.clock.tick("row")
        self._tell(Event("stage", stage=stage, stages=self.config.stages))

    def _probe(self, defense: Defense) -> Probes:
        """Measure what the audit needs on the final model."""
        began = time.perf_counter()
        name, surrogate = self.surrogate or ("", None)
        found = probe(
            defense.view,
            self.test,
            attacks=[attack for attack, _ in self.measured],
            surrogate=None if surrogate is None else surrogate.to(self.test.x.device),
            surrogate_name=name,
            seed=self.config.seed,
            stage=self.rows[-1].stage,
            stochastic=self.rows[-1].draws > 1,
        )
        self.seconds["evaluation"] += time.perf_counter() - began
        return found

    def _save(self, defense: Defense) -> None:
        write_bytes(self.directory / WEIGHTS, weights_of(defense))
        probes = self._probe(defense)
        measured = Measured(
            attacks=self.attacks,
            points=[count for _, count in self.measured],
            rows=self.rows,
            stages=self.stages,
            passes=self.passes,
            training_seconds=self.seconds["training"],
            evaluation_seconds=self.seconds["evaluation"],
            parameters=sum(parameter.numel() for parameter in defense.parameters()),
            multiply_adds=multiply_adds(defense, self.test.x[:1]),
            audit=audit(self.rows, self.measured, stochastic=defense.info.stochastic, probes=probes),
            environment=describe(self.test.x.device, self.data),
        )
        record = make_record(self.config, self.data, measured, self.directory.name)
        outcomes = self.directory / "outcomes.npz"
        write_outcomes(outcomes, measured.clean, measured.robust, probes=probes.robust)
        write_record(self.directory, record)

    def _tell(self, event: Event) -> None:
        timed = functools.partial(Event, elapsed=self.clock.elapsed, left=self.clock.left)
        values = {name: value for name, value in vars(event).items() if name not in ("elapsed", "left")}
        tell(self.listeners, timed(**values))


def weights_of(defense: Defense) -> bytes:
    """The parameters and buffers as safetensors; tied tensors are stored once each."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in defense.state_dict().items()}
    return save(state)


def multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of one image's inference, in convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() // 2
