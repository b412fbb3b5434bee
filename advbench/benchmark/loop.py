"""The benchmark loop: clean pretraining, row 0, then each stage and its row of R."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from advbench.audit import Fresh, Probes, audit, held_out, probe
from advbench.benchmark.crew import OtherProcesses
from advbench.benchmark.employ import Employs
from advbench.benchmark.prepare import Prepared
from advbench.benchmark.stage import Trainer
from advbench.config.resolve import attacks_of_stage, bound_attacks, measured_attacks
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.extras import PICTURE, Regenerates, Routes, regenerate, routing
from advbench.evaluation.row import MatrixRow
from advbench.models.cost import multiply_adds
from advbench.runs.checkpoint import Checkpoint, MeasuredRow, Trained, UnderWay
from advbench.runs.directory import Place, finish
from advbench.runs.machine import describe
from advbench.runs.record import Measured, make_record
from advbench.runs.saved import WEIGHTS, new_classifier, weights_of
from advbench.runtime.events import Clock, Event, Kind, Listener, tell
from advbench.runtime.hashing import weights_digest
from attacks_pool import Attack, Passes
from defenses import Defense, registry
from leaderboards import Cell, Cost, RecordedStage, write_bytes, write_outcomes
from leaderboards.records.layout import OUTCOMES, STAGES


class Benchmark:
    """One run in progress, from its start or from its checkpoint.

    Args:
        prepared: the checked configuration.
        place: the run's directory.
        listeners: called with every event.
        attack_timeout: seconds that an attack may take for one batch or block.
        crew: the other processes of the run, if there are any.
    """

    def __init__(
        self,
        prepared: Prepared,
        place: Place,
        listeners: Sequence[Listener],
        attack_timeout: float | None = None,
        crew: OtherProcesses | None = None,
    ) -> None:
        self.config, self.data, self.device = prepared.config, prepared.data, prepared.device
        self.surrogate, self.start, self.employed = prepared.surrogate, prepared.start, prepared.employed
        self.place, self.directory, self.listeners = place, place.directory, listeners
        self.attack_timeout, self.crew, self.processes = attack_timeout, crew, prepared.processes
        self.attacks = bound_attacks(self.config)
        self.measured = measured_attacks(self.config, len(self.data.test))
        self.test = self.data.test.first(max(count for _, count in self.measured))
        self.rows: list[MatrixRow] = []
        self.stages: list[RecordedStage] = []
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        epochs = self.config.pretrain.epochs + self.config.stages * self.config.stage_plan.epochs
        self.clock = Clock(epochs, self.config.stages + 1)
        self.standing = "before the first stage"
        self._under_way: UnderWay | None = None
        self._fresh: Fresh | None = None
        self.checkpoint = Checkpoint(self.directory, prepared.identity, self._note)
        self.trainer = Trainer(prepared, self.checkpoint, self.clock, self._tell, attack_timeout, crew)
        self.saved = self.checkpoint.rows() if place.resumed else []

    def go(self) -> None:
        """Pretrain, measure row 0, then train and measure each stage; write the record last."""
        try:
            self._go()
        finally:
            if self._fresh is not None:
                self._fresh.close()

    def _go(self) -> None:
        config = self.config
        kind: Kind = "resume" if self.place.resumed else "start"
        self._tell(Event(kind, stages=config.stages, text=self.directory.name))
        classifier = new_classifier(config, self.data.image_shape, self.data.num_classes)
        if self.start is not None:
            classifier.load_state_dict(self.start)
        classifier.to(self.device)
        plain = registry.build("standard", classifier, seed=config.seed)
        self._pretrain(plain)
        if self.surrogate is None:
            # Copy the classifier, because the defense continues to train it.
            self.surrogate = ("row 0", copy.deepcopy(plain).eval())
        passes = Passes(plain.passes.forwards, plain.passes.backwards)
        defense = registry.build(config.defense, classifier, seed=config.seed, parameters=config.params)
        if self.employed and isinstance(defense, Employs):
            defense.employ(**self.employed)
        defense.to(self.device)
        finished, restored = self._take_up(defense)
        for number in range(1, config.stages + 1):
            met = attacks_of_stage(config, self.attacks["seen"], number)
            if number > finished:
                if number != restored:
                    self._train(defense, number, met)
                self._measure(defense, number, met)
            else:
                self.clock.skip("epoch", config.stage_plan.epochs)
                self._take(number)
        passes.forwards += defense.passes.forwards
        passes.backwards += defense.passes.backwards
        self._save(defense, passes)
        self._tell(Event("end", stage=config.stages, stages=config.stages, text=str(self.directory)))

    def _pretrain(self, plain: Defense) -> None:
        """Train stage 0, or restore it; without epochs the classifier stays as it starts."""
        if self.config.pretrain.epochs == 0:
            self._measure(plain, 0, [])
            return
        found = self.checkpoint.trained(0, self.device) if self.place.resumed else None
        if found is not None:
            self._restore(plain, found)
            self.clock.skip("epoch", self.config.pretrain.epochs)
        else:
            if self.place.resumed:
                self._under_way = self.checkpoint.snapshot(0, _digest(plain), self.device)
            self._train(plain, 0, [])
        self._measure(plain, 0, [])

    def _take_up(self, defense: Defense) -> tuple[int, int]:
        """Restore the newly built ``defense`` from the checkpoint of a later stage.

        Returns:
            How many stages are finished with their rows, and the stage whose end was restored, or 0.
        """
        found, number = None, min(len(self.saved), self.config.stages)
        while number > 0 and (found := self.checkpoint.trained(number, self.device)) is None:
            number -= 1
        if 0 < number < len(self.saved) or (number == 0 and self.saved):
            before = _digest(defense) if found is None else weights_digest(found[0].weights)
            self._under_way = self.checkpoint.snapshot(number + 1, before, self.device)
            if self._under_way is not None:
                return number, 0
        if found is None:
            return 0, 0
        self._restore(defense, found)
        self.clock.skip("epoch", self.config.stage_plan.epochs)
        return number - 1, number

    def _restore(self, defense: Defense, found: Trained) -> None:
        state, seconds = found
        state.restore(defense)
        defense.eval()
        self.seconds = dict(seconds)

    def _train(self, defense: Defense, stage: int, attacks: list[Attack]) -> None:
        names = "+".join(attack.name for attack in attacks)
        self.standing = f"stage {stage} ({defense.info.name} against {names})" if stage else "pretraining"
        found, self._under_way = self._under_way, None
        self.seconds = self.trainer.train(defense, stage, attacks, spent=self.seconds, found=found)

    def _measure(self, defense: Defense, stage: int, met: list[Attack]) -> None:
        began = time.perf_counter()
        self.standing = f"row {stage}"
        weights = _digest(defense)
        if stage < len(self.saved) and self.saved[stage].weights == weights:
            self._take(stage)
            return
        self._tell(Event("phase", stage=stage, text="measure"))
        defense.eval()
        if stage == self.config.stages:
            # Copy before the first test point, so that the copy has no memory of this row.
            self._fresh = Fresh(defense.view, [attack for attack, _ in self.measured], self.device)

        def progress(cell: Cell) -> None:
            self._tell(Event("cell", stage=stage, stages=self.config.stages, attack=cell.attack, cell=cell))

        row = evaluate(
            defense.view,
            self.test,
            self.measured,
            stage=stage,
            seed=self.config.seed,
            progress=progress,
            # Declared defenses always count as stochastic; any other is queried twice.
            stochastic=defense.info.stochastic or None,
            device=self.device,
            kept=self.checkpoint.pieces(weights),
            attack_timeout=self.attack_timeout,
            others=None if self.crew is None else self.crew.measuring(defense, stage),
        )
        name = f"{STAGES}/{stage}.safetensors"
        (self.directory / STAGES).mkdir(exist_ok=True)
        write_bytes(self.directory / name, weights_of(defense))
        texts = [attack.text for attack in met]
        entry = RecordedStage(index=stage, attacks=texts, weights=name, spec=defense.spec())
        self.seconds["evaluation"] += time.perf_counter() - began
        self.checkpoint.keep_row(MeasuredRow(row, entry, weights, self.seconds))
        self.rows.append(row)
        self.stages.append(entry)
        self.clock.tick("row")
        self._tell(Event("stage", stage=stage, stages=self.config.stages))

    def _take(self, stage: int) -> None:
        """Take over a row that was finished earlier."""
        saved = self.saved[stage]
        self.rows.append(saved.row)
        self.stages.append(saved.stage)
        self.seconds = dict(saved.seconds)
        self.clock.skip("row", 1)

    def _probe(self, defense: Defense) -> Probes:
        """Measure what the audit needs on the final model."""
        self.standing = "the audit"
        self._tell(Event("phase", stage=self.config.stages, text="measure"))
        name, surrogate = self.surrogate or ("", None)
        return probe(
            defense.view,
            self.test,
            attacks=[attack for attack, _ in self.measured],
            surrogate=None if surrogate is None else surrogate.to(self.device),
            surrogate_name=name,
            seed=self.config.seed,
            stage=self.rows[-1].stage,
            stochastic=self.rows[-1].draws > 1,
            device=self.device,
            kept=self.checkpoint.pieces(_digest(defense)),
            attack_timeout=self.attack_timeout,
            transferred=self.measured if defense.info.transfer else (),
            fresh=self._fresh,
            held_out=held_out(self.data),
        )

    def _more(self, defense: Defense) -> dict[str, float | None]:
        """Metrics that only some defenses have; also writes a picture of regenerated images."""
        found: dict[str, float | None] = {}
        seen, seed = self.attacks["seen"], self.config.seed
        if isinstance(defense, Routes):
            found |= routing(defense, self.test, seen, seed=seed, device=self.device)
        if isinstance(defense, Regenerates):
            again = regenerate(defense, self.test, seen, seed=seed, device=self.device)
            write_bytes(self.directory / PICTURE, again.picture)
            found |= again.metrics
        return found

    def _save(self, defense: Defense, passes: Passes) -> None:
        write_bytes(self.directory / WEIGHTS, weights_of(defense))
        began = time.perf_counter()
        probes = self._probe(defense)
        more = self._more(defense)
        self.seconds["evaluation"] += time.perf_counter() - began
        measured = Measured(
            attacks=self.attacks,
            points=[count for _, count in self.measured],
            rows=self.rows,
            stages=self.stages,
            cost=Cost(
                training_seconds=self.seconds["training"],
                training_forwards=passes.forwards,
                training_backwards=passes.backwards,
                evaluation_seconds=self.seconds["evaluation"],
                parameters=sum(parameter.numel() for parameter in defense.parameters()),
                # Count the network that answers, because a target-aware defense may contain several.
                multiply_adds=multiply_adds(defense.view(None), self.test.images[:1].to(self.device)),
            ),
            audit=audit(self.rows, self.measured, stochastic=defense.info.stochastic, probes=probes),
            environment=describe(self.device, self.data, self.processes),
            more=more,
            report=defense.report(),
        )
        record = make_record(self.config, self.data, measured, self.directory.name)
        write_outcomes(self.directory / OUTCOMES, measured.clean, measured.robust, probes=probes.robust)
        finish(self.directory, record)

    def _note(self, text: str) -> None:
        self._tell(Event("note", text=text))

    def _tell(self, event: Event) -> None:
        tell(self.listeners, replace(event, elapsed=self.clock.elapsed, left=self.clock.left))


def _digest(defense: nn.Module) -> str:
    return weights_digest(defense.state_dict())
