"""What a record claims to have measured, against its data set: looked at before anything is allocated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from advbench.data import DataSet
from advbench.verify.subject import Subject
from attacks_pool import InputError
from leaderboards import Record
from leaderboards.records.archive import outcomes_size
from leaderboards.records.layout import OUTCOMES


def beyond_the_data(subject: Subject) -> Iterator[str]:
    """Points that the data set does not have, images of another size, and more outcomes than that makes.

    Where the data set is not here, or is another, no model is run later, and the limits that hold for every
    record are enough.

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
    # A small file may unfold to more than there is memory.
    if (size := outcomes_size(subject.run.path / OUTCOMES)) > bound + 2**16:
        yield f"{OUTCOMES}: {size} bytes of outcomes, the record has no more than {bound}"


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
