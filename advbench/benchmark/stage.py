"""Trains one stage of a run: writes snapshots, resumes from them, and limits the time of attacks."""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

from advbench.benchmark.prepare import Prepared
from advbench.data import TensorLoader
from advbench.runs.checkpoint import Checkpoint, UnderWay
from advbench.runtime.events import Clock, Event
from advbench.runtime.hashing import weights_digest
from advbench.runtime.pace import Pace
from advbench.runtime.progress import duration
from advbench.runtime.timeouts import timed
from attacks_pool import Attack
from defenses import Defense, DefenseState, Progress, Snapshot, TrainPlan
from defenses.training.packing import PackingError


class Trainer:
    """Trains stages of one run. Its clock is ``now``, in seconds.

    Args:
        prepared: the checked configuration.
        checkpoint: stores the snapshots.
        clock: notified of finished epochs.
        tell: called with every other event.
        attack_timeout: seconds that an attack may take for one batch.
    """

    now = staticmethod(time.perf_counter)

    def __init__(
        self,
        prepared: Prepared,
        checkpoint: Checkpoint,
        clock: Clock,
        tell: Callable[[Event], None],
        attack_timeout: float | None,
    ) -> None:
        self.config, self.checkpoint, self.clock, self.tell = prepared.config, checkpoint, clock, tell
        self.attack_timeout = attack_timeout
        data, device = prepared.data, prepared.device
        self.split = data.train.to(device)
        self.validation = TensorLoader(data.validation, 500, seed=0, shuffle=False, device=device)
        self._noted: set[str] = set()

    def train(
        self,
        defense: Defense,
        stage: int,
        attacks: Sequence[Attack],
        plan: TrainPlan,
        *,
        spent: dict[str, float],
        found: UnderWay | None = None,
    ) -> dict[str, float]:
        """Train one stage to its end and keep its result.

        Args:
            defense: the defense after the previous stage; newly built if ``found`` is given.
            stage: the number of the stage, 0 for pretraining.
            attacks: the attacks to train against.
            plan: the training plan.
            spent: the seconds of the run so far.
            found: the snapshot to resume from.

        Returns:
            The seconds of the run after the stage.
        """
        began = time.perf_counter()
        names = "+".join(attack.name for attack in attacks) or "clean"
        before = weights_digest(defense.state_dict())
        start, spent = found or (None, spent)
        if start is not None:
            self.clock.skip("epoch", start.epoch)

        def seconds() -> dict[str, float]:
            return {**spent, "training": spent["training"] + time.perf_counter() - began}

        def keep(snapshot: Snapshot) -> None:
            self._kept(
                lambda: self.checkpoint.keep_snapshot(snapshot, stage=stage, before=before, seconds=seconds())
            )

        pace = Pace(plan.epochs * len(self.split), now=self.now)
        more: dict[str, Any] = {}
        if _goes_on(defense):
            more = {"checkpoint": keep, "resume": start}
            self.tell(Event("phase", stage=stage, text="train"))
        defense.fit(
            TensorLoader(self.split, plan.batch_size, seed=self.config.seed),
            [timed(attack, self.attack_timeout) for attack in attacks],
            plan=plan,
            progress=lambda now: self._progress(stage, names, now, plan, pace),
            validation=self.validation,
            **more,
        )
        state, now = DefenseState.of(defense), seconds()
        self._kept(lambda: self.checkpoint.keep_trained(state, stage=stage, seconds=now))
        return now

    def _kept(self, keep: Callable[[], None]) -> None:
        try:
            keep()
        except PackingError as error:
            text = f"{self.config.defense}: {error}: an interrupted run repeats its stage, or starts again"
            if text not in self._noted:
                self._noted.add(text)
                self.tell(Event("note", text=text))

    def _progress(self, stage: int, names: str, now: Progress, plan: TrainPlan, pace: Pace) -> None:
        size = len(self.split)
        pace.reach((now.epoch - 1) * size + min(now.batch * plan.batch_size, size))
        ended = now.batch == now.batches
        if ended:
            self.clock.tick("epoch")
        earlier = self.config.pretrain.epochs + (stage - 1) * self.config.stage_plan.epochs if stage else 0
        self.tell(
            Event(
                "epoch" if ended else "batch",
                stage=stage,
                stages=self.config.stages,
                epoch=now.epoch,
                epochs=now.epochs,
                batch=now.batch,
                batches=now.batches,
                step=earlier + now.epoch,
                attack=names,
                losses=now.losses,
                rate=pace.rate,
                rest=pace.rest,
            )
        )
        if pace.warns():
            self.tell(Event("note", stage=stage, text=_price(stage, names, pace)))


def _price(stage: int, names: str, pace: Pace) -> str:
    """The warning about a stage that takes long."""
    what = f"stage {stage} ({names})" if stage else "pretraining"
    return (
        f"warning: {what} takes about {duration(pace.rest or 0.0)} more at {pace.rate:.3g} images a second; "
        "advbench run --dry-run estimates the whole run"
    )


def _goes_on(defense: Defense) -> bool:
    """Whether the defense can be resumed within a stage: one with a ``fit`` of its own may not be."""
    return {"checkpoint", "resume"} <= inspect.signature(defense.fit).parameters.keys()
