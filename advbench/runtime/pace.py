"""How fast a stage trains, and how long the rest of it will take at that speed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50
"""The speed is that of this many last batches, so that it follows a machine that gets busier."""
WARM = 5
"""After so many batches, the speed says enough for a warning: the first ones also load and compile."""
LONG = 3600.0
"""A stage that takes more seconds than this is worth a warning."""


class Pace:
    """The speed of one stage's training.

    Args:
        images: the images of the whole stage, over all epochs.
        now: a clock in seconds.
    """

    def __init__(self, images: int, *, now: Callable[[], float] = time.perf_counter) -> None:
        self.images, self._now = images, now
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)
        self._batches = 0
        self._warned = False

    def reach(self, done: int) -> None:
        """Note that ``done`` images of the stage are trained on now; called after every batch."""
        self._batches += 1
        self._seen.append((self._now(), done))

    @property
    def rate(self) -> float | None:
        """Images per second; None until two batches are done."""
        (before, first), (after, last) = self._seen[0], self._seen[-1]
        return (last - first) / (after - before) if after > before and last > first else None

    @property
    def rest(self) -> float | None:
        """The seconds that the rest of the stage takes; None until two batches are done."""
        rate = self.rate
        return None if rate is None else max(self.images - self._seen[-1][1], 0) / rate

    def warns(self) -> bool:
        """Whether the rest takes more than an hour; true at most once."""
        rest = self.rest
        if self._warned or self._batches < WARM or rest is None or rest <= LONG:
            return False
        self._warned = True
        return True
