"""Estimates how long a run takes: sample-passes from its configuration, times seconds per pass."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch.nn import functional as F

from advbench.audit.battery import battery, transfers
from advbench.audit.probes import POINTS
from advbench.benchmark.prepare import threads_of
from advbench.config.options import RunConfig
from advbench.config.resolve import bound_attacks, points_of
from advbench.data import DataSet
from advbench.evaluation.stochastic import CRAFTED_BY, JUDGED_BY
from advbench.runs.saved import new_classifier
from advbench.runtime.device import reproducible
from attacks_pool import Attack, InputError, Passes
from defenses import TrainPlan, registry
from leaderboards import Record, RecordError
from leaderboards.statistics.naming import model_name

REPEATS = 3
FEW, SHORT = 16, 0.1
"""The number of images in a first timing, and its longest time for timing a whole batch afterwards."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a data set that determine the work."""

    train: int
    validation: int
    test: int
    classes: int


@dataclass(frozen=True)
class Speed:
    """The seconds per image forward and backward, and the source of these numbers."""

    forward: float
    backward: float
    source: str

    def seconds(self, work: Passes) -> float:
        """The time for these passes."""
        return self.forward * work.forwards + self.backward * work.backwards


def sizes_of(data: DataSet) -> Sizes:
    """The sizes of a loaded data set."""
    return Sizes(len(data.train), len(data.validation), len(data.test), data.num_classes)


def work_of(config: RunConfig, sizes: Sizes) -> Passes:
    """The sample-passes of a run; see :func:`parts_of`."""
    parts = parts_of(config, sizes)
    return _sum([parts.pretraining, *parts.stages, parts.evaluation])


@dataclass(frozen=True)
class Parts:
    """The sample-passes of a run: of pretraining, of each stage's training, and of all evaluation."""

    pretraining: Passes
    stages: list[Passes]
    evaluation: Passes


def parts_of(config: RunConfig, sizes: Sizes) -> Parts:
    """The sample-passes of a run: an upper bound for evaluation, and training without a method's extras.

    Training: epochs × images × (crafting + one step forward and backward). Evaluation: rows × points ×
    (the attack's maximum + one verdict), plus one row of the audit's probes. Points that are misclassified
    when clean, or that fool early, cost less. A method's further computations, such as AIR's replay, are not
    known beforehand; runs in the store correct for both.
    """
    defense = registry.resolve(config.defense)[0]
    attacks = bound_attacks(config)
    seen = [attack.for_training() for attack in attacks["seen"]]
    split = config.params.get("mix", "split") == "split"
    stages = [[attack] for attack in seen] if config.regime == "continual" else [seen]
    every = [attack for role in attacks.values() for attack in role]
    measured = [(attack, points_of(config, attack, sizes.test)) for attack in every]
    random = defense.info.stochastic
    points = max((count for _, count in measured), default=0)
    probed = min(max(POINTS // 4, 1) if random else POINTS, points)
    probes = [*battery(every, brief=random), *transfers(every)]
    rows = [
        # Row 0 is a plain classifier, which is not randomised.
        _evaluation(measured, points, sizes, random=False),
        *(_evaluation(measured, points, sizes, random=random) for _ in stages),
        _evaluation([(attack, probed) for attack in probes], 2 * probed, sizes, random=random),
    ]
    return Parts(
        _training([], config.pretrain, sizes, split=True),
        [_training(met, config.stage_plan, sizes, split=split) for met in stages],
        _sum(rows),
    )


def _sum(parts: Iterable[Passes]) -> Passes:
    every = list(parts)
    return Passes(sum(part.forwards for part in every), sum(part.backwards for part in every))


def measured_speed(config: RunConfig, data: DataSet, device: torch.device) -> Speed:
    """Time the model of a run on this machine: the median of a few batches, forward and backward."""
    with reproducible(config.threads):
        model = new_classifier(config, data.image_shape, data.num_classes).to(device).eval()
        # As the run itself: several threads on a small network would only wait for each other.
        torch.set_num_threads(threads_of(config, model, data, device))
        count = min(FEW, len(data.train))
        _timed(model, data, count, device)
        if sum(_timed(model, data, count, device)) < SHORT:
            count = min(config.plan.batch_size, len(data.train))
        times = [_timed(model, data, count, device) for _ in range(REPEATS)]
    forward, backward = (statistics.median(one) / count for one in zip(*times, strict=True))
    return Speed(
        forward, backward, f"timed here, on one batch of {count}, as if every attack went on to its end"
    )


def recorded_speed(
    records: Iterable[Record], config: RunConfig, fingerprint: str, processes: int = 1
) -> Speed | None:
    """Seconds per pass from complete runs with the same data, model, threads, device and processes, if any.

    Runs of the same defense are preferred. Their passes are counted as those of a planned run, so that errors
    of the counting cancel. A backward pass counts as two.
    """
    found = [record for record in records if _alike(record, config, fingerprint, processes)]
    same = [record for record in found if record.config["defense"] == config.defense]
    seconds = units = 0.0
    used = 0
    for record in same or found:
        try:
            work = work_of(RunConfig.model_validate(record.config), _recorded_sizes(record))
        except (ValidationError, InputError, RecordError, KeyError, TypeError):
            continue
        seconds += record.cost.training_seconds + record.cost.evaluation_seconds
        units += work.forwards + 2 * work.backwards
        used += 1
    if not units:
        return None
    runs = f"{used} run{'s' if used > 1 else ''}"
    of = config.defense if same else "this model"
    return Speed(seconds / units, 2 * seconds / units, f"from {runs} of {of} in the store")


def makespan(seconds: Iterable[float], workers: int) -> float:
    """How long ``workers`` need for these jobs, if each takes the next job when it is free."""
    free = [0.0] * max(workers, 1)
    for one in seconds:
        free[free.index(min(free))] += one
    return max(free)


def _training(attacks: list[Attack], plan: TrainPlan, sizes: Sizes, *, split: bool) -> Passes:
    """The passes of one stage; a batch that is split among its attacks costs as much as their mean."""
    costs = [cost_of(attack, sizes.classes) for attack in attacks]
    share = len(costs) if split and costs else 1
    forwards, backwards = (sum(cost[way] for cost in costs) / share for way in (0, 1))
    # Averaged weights take a further epoch, in which batch-norm statistics are measured.
    images = (plan.epochs + (plan.average != "none" and plan.epochs > 0)) * sizes.train
    total = Passes(round(images * (forwards + 1)), round(images * (backwards + 1)))
    if plan.select == "val-robust":
        images = plan.epochs * sizes.validation
        total.forwards += images * (1 + sum(cost[0] + 1 for cost in costs))
        total.backwards += images * sum(cost[1] for cost in costs)
    return total


def _evaluation(measured: list[tuple[Attack, int]], clean: int, sizes: Sizes, *, random: bool) -> Passes:
    """One row."""
    judged, searched = (JUDGED_BY, CRAFTED_BY) if random else (1, 1)
    row = Passes(clean * judged, 0)
    for attack, points in measured:
        forwards, backwards = cost_of(attack, sizes.classes)
        row.forwards += points * (forwards * searched + judged)
        row.backwards += points * backwards * searched
    return row


def cost_of(attack: Attack, classes: int) -> tuple[int, int]:
    """The passes that the attack declares for one point; by default one per step."""
    found = attack.info.passes(attack.knobs, classes)
    if found is None:
        steps = int(attack.knobs.get("steps", 1)) * int(attack.knobs.get("restarts", 1))
        return steps, steps
    return found


def _timed(model: torch.nn.Module, data: DataSet, count: int, device: torch.device) -> tuple[float, float]:
    """The seconds of a forward pass, and the additional seconds of the backward pass."""
    x, y = data.train.images[:count].to(device), data.train.y[:count].to(device)
    began = _now(device)
    with torch.no_grad():
        model(x)
    middle = _now(device)
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    forward = middle - began
    return forward, max(_now(device) - middle - forward, 0.0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _alike(record: Record, config: RunConfig, fingerprint: str, processes: int) -> bool:
    then, environment = record.config, record.environment
    return bool(
        environment["data"]["fingerprint"] == fingerprint
        and model_name(then) == config.network
        and then.get("threads") == config.threads
        and then.get("device") == config.device
        and environment.get("processes", 1) == processes
        and record.cost.training_seconds > 0
    )


def _recorded_sizes(record: Record) -> Sizes:
    data = record.environment["data"]
    return Sizes(data["train"], data["validation"], data["test"], data["classes"])
