"""Checks the sizes that a record claims against its data set, before anything is allocated."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterator

import torch

from advbench.data import DataSet
from advbench.runs.allocating import bounded_by_model
from advbench.runs.saved import new_classifier
from advbench.runtime.factory import one_line
from advbench.verify.subject import Subject
from attacks_pool import InputError
from attacks_pool.calling.randomness import isolated_randomness
from defenses import registry
from defenses.training.stage import Batches, Stage
from leaderboards import Record
from leaderboards.records.archive import outcomes_size
from leaderboards.records.layout import OUTCOMES

BATCH = 8
"""The number of training images for building a stage."""


def beyond_the_data(subject: Subject) -> Iterator[str]:
    """A line for points that the data set lacks, images of another size, and too many outcomes.

    If the data set is missing or different, no model is run later, and the general limits for records
    suffice.

    Raises:
        RecordError: the outcomes are damaged.
    """
    with contextlib.suppress(InputError):
        if faults := list(_other_than(subject.run.data, subject.record)):
            yield from faults
            return
    record = subject.record
    cells = [*record.cells, *record.audit.probes]
    expected = len(record.stages) * (len(record.attacks) + 1) + len(record.audit.probes)
    bound = expected * max((cell.n for cell in cells), default=0)
    # A small file may unpack to more than the memory.
    if (size := outcomes_size(subject.run.path / OUTCOMES)) > bound + 2**16:
        yield f"{OUTCOMES}: {size} bytes of outcomes, the record has no more than {bound}"


def check_allocations(subject: Subject) -> None:
    """Build the untrained defense of the configuration, stage by stage, within a memory bound.

    The parameters of a defense come from an untrusted record: ranks, widths and the like determine how much
    memory training takes.

    Raises:
        InputError: it is far larger than the classifier, cannot be built, or the data set is missing.
    """
    run, config, data = subject.run, subject.run.config, subject.run.data
    sizes = [f"{key}={reprlib.repr(value)}" for key, value in config.params.items() if type(value) is int]
    what = f"run {run.record.id}: {config.defense}{' with ' if sizes else ''}{', '.join(sizes)}"
    with isolated_randomness(0, torch.device("cpu")):
        classifier = new_classifier(config, data.image_shape, data.num_classes)
        with bounded_by_model(classifier, what):
            try:
                defense = registry.build(
                    config.defense, classifier, seed=config.seed, parameters=config.params
                )
                for stage in stages_of(subject, [(data.train.images[:BATCH], data.train.y[:BATCH])]):
                    defense.begin(stage)
                    defense.stages += 1
            except InputError:
                raise
            except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
                raise InputError(f"{what} cannot be built: {one_line(error)}") from error


def stages_of(subject: Subject, data: Batches) -> Iterator[Stage]:
    """The stages that the configuration trains."""
    config, seen = subject.run.config, [attack.for_training() for attack in subject.attacks["seen"]]
    for number in range(1, config.stages + 1):
        met = [seen[number - 1]] if config.regime == "continual" else seen
        yield Stage(number, tuple(met), config.stage_plan, data)


def _other_than(data: DataSet, record: Record) -> Iterator[str]:
    for cell in (*record.cells, *record.audit.probes):
        if cell.n > len(data.test):
            yield f"{cell.attack}: on {cell.n} points, the data set has {len(data.test)}"
            return
    claimed = record.environment["data"]
    if (claimed["shape"], claimed["classes"]) != (list(data.image_shape), data.num_classes):
        yield (
            f"environment: images {claimed['shape']} of {claimed['classes']} classes, the data set has "
            f"{list(data.image_shape)} of {data.num_classes}"
        )
