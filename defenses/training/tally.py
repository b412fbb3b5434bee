"""What a defense reports about its training: sums that it keeps by stage, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Mapping

Table = dict[str, dict[str, float]]
"""Numbers by row and column."""
Report = dict[str, float | Table]
"""Numbers and tables by name; names are lowercase words joined by underscores."""


class Tally:
    """Sums by stage and name, such as how many images were shown and how many of them were used."""

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, float]] = {}

    def add(self, stage: int, counts: Mapping[str, float]) -> None:
        """Add ``counts`` to the sums of a stage."""
        sums = self._sums.setdefault(stage, {})
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + float(value)

    def names(self) -> list[str]:
        """The names of all sums, in the order in which they were first added."""
        return list(dict.fromkeys(name for sums in self._sums.values() for name in sums))

    def total(self, name: str, stage: int | None = None) -> float:
        """The sum of ``name`` in a stage, by default in all stages; 0 if nothing was added."""
        found = self._sums.values() if stage is None else [self._sums.get(stage, {})]
        return sum(sums.get(name, 0.0) for sums in found)

    def ratios(self, wanted: Mapping[str, tuple[str, str]], stage: int | None = None) -> dict[str, float]:
        """Ratios of two sums each, by name; those with a zero denominator are left out.

        Args:
            wanted: the names of numerator and denominator for each ratio.
            stage: the stage; by default the sums are over all stages.
        """
        return {
            name: self.total(above, stage) / self.total(below, stage)
            for name, (above, below) in wanted.items()
            if self.total(below, stage)
        }

    def by_stage(self, wanted: Mapping[str, tuple[str, str]]) -> Table:
        """A table of :meth:`ratios` with a row for each stage that has some."""
        rows = {str(stage): self.ratios(wanted, stage) for stage in sorted(self._sums)}
        return {stage: row for stage, row in rows.items() if row}

    def state(self) -> dict[int, dict[str, float]]:
        """The sums, as a copy that ``load`` restores."""
        return {stage: dict(sums) for stage, sums in self._sums.items()}

    def load(self, state: Mapping[int, Mapping[str, float]]) -> None:
        """Restore the sums."""
        self._sums = {int(stage): dict(sums) for stage, sums in state.items()}
