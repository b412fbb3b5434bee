"""Trains one stage of a run: writes snapshots, resumes from them, and limits the time of attacks."""

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from advbench.benchmark.prepare import Prepared
from advbench.config.options import RunConfig
from advbench.data import DataSet, TensorLoader
from advbench.runs.checkpoint import Checkpoint, UnderWay
from advbench.runtime.events import Clock, Event
from advbench.runtime.hashing import weights_digest
from advbench.runtime.pace import Pace
from advbench.runtime.progress import duration
from advbench.runtime.timeouts import timed
from attacks_pool import Attack
from defenses import Defense, DefenseState, Progress, Snapshot, TrainPlan
from defenses.training.packing import PackingError


class Crew(Protocol):
    """Other processes that train along."""

    def training(self, defense: Defense, stage: int, start: Snapshot | None) -> AbstractContextManager[None]:
        """Within the block, they call :meth:`Material.fit` too, on a copy of ``defense`` as it is now."""


class Material:
    """What every stage of a run is trained on: the same in every process.

    Args:
        config: the resolved configuration.
        data: its data set.
        device: where the images are moved to, if they are in memory.
        attack_timeout: seconds that an attack may take for one batch.
    """

    def __init__(
        self, config: RunConfig, data: DataSet, device: torch.device, attack_timeout: float | None
    ) -> None:
        self.config, self.attack_timeout = config, attack_timeout
        self.split = data.train.to(device)
        self.validation = TensorLoader(data.validation, 500, seed=0, shuffle=False, device=device)

    def plan(self, stage: int) -> TrainPlan:
        """The plan of a stage, 0 for pretraining."""
        return self.config.stage_plan if stage else self.config.pretrain

    def fit(self, defense: Defense, stage: int, attacks: Sequence[Attack], **more: Any) -> None:
        """Train one stage; ``more`` is passed on to the defense's ``fit``."""
        plan = self.plan(stage)
        defense.fit(
            TensorLoader(self.split, plan.batch_size, seed=self.config.seed),
            [timed(attack, self.attack_timeout) for attack in attacks],
            plan=plan,
            validation=self.validation,
            **more,
        )


class Trainer:
    """Trains stages of one run. Its clock is ``now``, in seconds.

    Args:
        prepared: the checked configuration.
        checkpoint: stores the snapshots.
        clock: notified of finished epochs.
        tell: called with every other event.
        attack_timeout: seconds that an attack may take for one batch.
        crew: the other processes of the run.
    """

    now = staticmethod(time.perf_counter)

    def __init__(
        self,
        prepared: Prepared,
        checkpoint: Checkpoint,
        clock: Clock,
        tell: Callable[[Event], None],
        attack_timeout: float | None,
        crew: Crew | None = None,
    ) -> None:
        self.config, self.checkpoint, self.clock, self.tell = prepared.config, checkpoint, clock, tell
        self.material = Material(prepared.config, prepared.data, prepared.device, attack_timeout)
        self.crew = crew
        self._noted: set[str] = set()

    def train(
        self,
        defense: Defense,
        stage: int,
        attacks: Sequence[Attack],
        *,
        spent: dict[str, float],
        found: UnderWay | None = None,
    ) -> dict[str, float]:
        """Train one stage to its end and keep its result.

        Args:
            defense: the defense after the previous stage; newly built if ``found`` is given.
            stage: the number of the stage, 0 for pretraining.
            attacks: the attacks to train against.
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

        plan = self.material.plan(stage)
        pace = Pace(plan.epochs * len(self.material.split), now=self.now)
        more: dict[str, Any] = {}
        if _goes_on(defense):
            more = {"checkpoint": keep, "resume": start}
            self.tell(Event("phase", stage=stage, text="train"))
        with nullcontext() if self.crew is None else self.crew.training(defense, stage, start):
            self.material.fit(
                defense,
                stage,
                attacks,
                progress=lambda now: self._progress(stage, names, now, plan, pace),
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
        size = len(self.material.split)
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
