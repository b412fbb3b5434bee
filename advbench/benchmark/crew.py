"""The processes of a run beside process 0, which keeps the run's directory and orders all work."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from advbench.benchmark.employ import Employs
from advbench.benchmark.prepare import Prepared
from advbench.benchmark.stage import Material
from advbench.config.options import DataOptions, RunConfig
from advbench.config.plugins import import_plugin
from advbench.config.resolve import attacks_of_stage, bound_attacks, measured_attacks
from advbench.data import DataSet, load_dataset
from advbench.evaluation.sharing import SharedRow, ShareOfRow
from advbench.runs.saved import Run, new_classifier
from advbench.runtime.device import choose_device, reproducible
from advbench.runtime.hashing import code_version
from advbench.runtime.team import Leader, Member, joined
from attacks_pool import InputError
from defenses import Defense, DefenseState, Snapshot, registry
from defenses.training.packing import PackingError, pack, unpack
from defenses.training.processes import StoppedElsewhereError
from defenses.training.snapshot import snapshot_of, to_tree


@dataclass(frozen=True)
class Begin:
    """The first order of a run: load its data, and take part in it.

    ``employed`` are the pickled models of other runs that the defense employs.
    """

    config: dict[str, Any]
    facts: dict[str, Any]
    employed: bytes
    attack_timeout: float | None
    data_memory: float | None


@dataclass(frozen=True)
class JoinGroup:
    """The second order of a run: set up ``torch.distributed``, for which all must have their device."""


@dataclass(frozen=True)
class PackedDefense:
    """A packed defense; before stage 1 it is the plain classifier."""

    state: bytes
    plain: bool


@dataclass(frozen=True)
class TrainStage:
    """An order to train a stage, from a packed snapshot if there is one."""

    subject: PackedDefense
    stage: int
    start: bytes | None


class OtherProcesses:
    """What process 0 orders from the others; creating it prepares them for the run.

    Args:
        leader: the connections to them.
        prepared: the run.
        attack_timeout: seconds that an attack may take for one batch or block.
        data_memory: bytes of images to keep in memory.
    """

    def __init__(
        self, leader: Leader, prepared: Prepared, attack_timeout: float | None, data_memory: float | None
    ) -> None:
        self.leader = leader
        config = prepared.config.model_dump(mode="json")
        try:
            employed = pickle.dumps(prepared.employed)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise InputError(
                f"the models that {prepared.config.defense} employs cannot be sent to others: {error}"
            ) from None
        leader.order(Begin(config, prepared.facts, employed, attack_timeout, data_memory))
        leader.answers()
        leader.order(JoinGroup())
        leader.open_group(prepared.device)
        leader.answers()

    @contextmanager
    def training(self, defense: Defense, stage: int, start: Snapshot | None) -> Iterator[None]:
        """Within the block, the others train the stage too, from ``defense`` as it is or from ``start``."""
        self.leader.order(TrainStage(_pack(defense, stage), stage, None if start is None else start.pack()))
        try:
            yield
        except Exception:
            self.leader.look_around()
            raise
        self.leader.answers()

    def measuring(self, defense: Defense, stage: int) -> SharedRow:
        """Lets the others measure blocks of a row on ``defense`` as it is now."""
        return SharedRow(self.leader, _pack(defense, stage))

    def close(self) -> None:
        """The run is over."""
        self.leader.close_group()


def crew_of(
    prepared: Prepared, attack_timeout: float | None, data_memory: float | None
) -> OtherProcesses | None:
    """The other processes of a run, ready for it; None if there are none."""
    leader = joined()
    return (
        OtherProcesses(leader, prepared, attack_timeout, data_memory) if isinstance(leader, Leader) else None
    )


def take_part(member: Member, options: Mapping[str, Any] = MappingProxyType({})) -> Run:
    """Do what process 0 orders until the end of a run.

    Args:
        member: this process.
        options: those of :func:`advbench.run`, of which a data set that is an object is used.

    Returns:
        The finished run. Its files are where process 0 has written them.

    Raises:
        Exception: process 0 raised it.
    """
    own, data = options.get("dataset"), None
    if own is not None and not isinstance(own, str):
        data = load_dataset(own, choices=DataOptions.among(options).choices(options.get("data_memory")))
    participants: list[Participant] = []

    def do(order: Any) -> None:
        if isinstance(order, Begin):
            stack.enter_context(reproducible(order.facts["threads"]))
            participants.append(Participant(order, member, data))
        elif isinstance(order, TrainStage):
            participants[0].train(order)
        elif isinstance(order, ShareOfRow):
            participants[0].measure(order)
        elif isinstance(order, JoinGroup):
            member.open_group(participants[0].device)

    with ExitStack() as stack:
        run: Run = member.serve(do)
    member.close_group()
    for participant in participants:
        vars(run)["data"] = participant.data
    return run


class Participant:
    """The part that a process other than process 0 takes in a run.

    Raises:
        InputError: its data, code or torch differ from those of process 0.
    """

    def __init__(self, order: Begin, member: Member, data: DataSet | None) -> None:
        self.member, self.attack_timeout = member, order.attack_timeout
        self.config = config = RunConfig.model_validate(order.config)
        for text in config.plugins:
            import_plugin(text)
        self.device = choose_device(config.device)
        chosen = DataOptions.among(config.model_dump()).choices(order.data_memory)
        self.data = data or load_dataset(config.dataset, config.data_dir, chosen)
        found = {
            "code": code_version(),
            "data": self.data.fingerprint,
            "torch": torch.__version__,
            "device": self.device.type,
        }
        if other := [key for key, value in found.items() if order.facts[key] != value]:
            raise InputError(f"its {' and '.join(other)} differ from those of process 0")
        self.employed = pickle.loads(order.employed)
        self.material = Material(config, self.data, self.device, order.attack_timeout)
        self.measured = measured_attacks(config, len(self.data.test))
        self.test = self.data.test.first(max(count for _, count in self.measured))

    def train(self, order: TrainStage) -> None:
        """Train a stage together with the other processes."""
        defense = self._defense(order.subject)
        attacks = attacks_of_stage(self.config, bound_attacks(self.config)["seen"], order.stage)
        start = None if order.start is None else Snapshot.unpack(order.start, self.device)
        try:
            self.material.fit(defense, order.stage, attacks, progress=False, resume=start)
        except StoppedElsewhereError:
            # Process 0 knows why.
            return

    def measure(self, order: ShareOfRow) -> None:
        """Measure some blocks of a row."""
        defense = self._defense(order.what).eval()
        order.measure(
            self.member,
            defense.view,
            self.test,
            self.measured,
            device=self.device,
            attack_timeout=self.attack_timeout,
        )

    def _defense(self, subject: PackedDefense) -> Defense:
        config = self.config
        classifier = new_classifier(config, self.data.image_shape, self.data.num_classes)
        name, parameters = ("standard", {}) if subject.plain else (config.defense, config.params)
        defense = registry.build(name, classifier, seed=config.seed, parameters=parameters)
        if self.employed and isinstance(defense, Employs):
            defense.employ(**self.employed)
        defense.to(self.device)
        state: DefenseState = snapshot_of(DefenseState, unpack(subject.state, self.device))
        state.restore(defense)
        return defense


def _pack(defense: Defense, stage: int) -> PackedDefense:
    try:
        return PackedDefense(pack(to_tree(DefenseState.of(defense))), stage == 0)
    except PackingError as error:
        raise InputError(
            f"defense {defense.info.name!r} cannot be sent to other processes: {error}"
        ) from None
