"""Plans a sweep: resolves and checks every cell, and looks it up in the store, before any cell runs."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from advbench.benchmark.prepare import prepare
from advbench.config.identity import identity_of
from advbench.config.options import Options, RunConfig
from advbench.data import DataSet, load_dataset
from advbench.sweep.estimate import Speed, makespan, measured_speed, recorded_speed, sizes_of, work_of
from advbench.sweep.grid import GridCell
from attacks_pool import InputError, Passes
from leaderboards import Record, RecordError, find_records
from leaderboards.records.inventory import RunEntry, inventory
from leaderboards.statistics.naming import attack_name

State = Literal["complete", "unfinished", "running", "new"]
ORDER: tuple[State, ...] = ("complete", "running", "unfinished", "new")


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep.

    Attributes:
        number: its position in the grid, from 1.
        options: the options of ``advbench run``.
        sample_seed: the seed for drawing ``sequence: sample:k``.
        config: the resolved configuration.
        identity: the run's identity, which is equal on all machines.
        state: ``complete``, ``unfinished`` (can be resumed), ``running`` (in another process) or ``new``.
        work: its sample-passes.
        seconds: its estimated time; 0 if it is complete.
    """

    number: int
    options: dict[str, Any]
    sample_seed: int
    config: RunConfig
    identity: str
    state: State
    work: Passes
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Defense, sequence, data, model and seed on one line."""
        return f"{self.group} · seed {self.config.seed}"

    @property
    def group_key(self) -> str:
        """A key that is equal for cells that differ only in seed."""
        return self.config.model_copy(update={"seed": 0}).model_dump_json()

    @property
    def group(self) -> str:
        """The label without the seed; cells that differ in other settings share it."""
        config = self.config
        names = ",".join(attack_name(text) for text in config.sequence)
        regime = "" if config.regime == "continual" else f" ({config.regime})"
        return f"{config.defense}{regime} · {names} · {config.dataset} · {config.network}"


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep, and the sources of their estimated times."""

    cells: list[SweepCell]
    speeds: list[Speed]
    gpus: int = 0
    """The number of CUDA devices to distribute among local workers; 0 if no cell uses one."""
    processes: int = 1
    """The number of processes that train each cell."""

    def count(self, state: State) -> int:
        """How many cells there are in a state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def to_do(self) -> list[SweepCell]:
        """The cells that are not complete; those that another process runs come last."""
        found = [cell for cell in self.cells if cell.state != "complete"]
        return sorted(found, key=lambda cell: cell.state == "running")

    def seconds(self, workers: int) -> float:
        """The estimated time for the remaining cells."""
        return makespan([cell.seconds for cell in self.to_do], workers)


def make_plan(
    grid: Sequence[GridCell],
    runs_dir: Path,
    *,
    elsewhere: bool = False,
    gpus: float = 0,
    processes: int = 1,
) -> SweepPlan:
    """Resolve and check every cell, look for it in ``runs_dir`` and estimate the remaining time.

    Args:
        grid: the cells as written. Cells without ``threads`` get one thread each.
        runs_dir: the store; it need not exist.
        elsewhere: whether cells run on other machines, with ``gpus`` each, and not on this one.
        gpus: for ``elsewhere``: ``device: auto`` means a GPU if this is above 0.
        processes: for ``elsewhere``: the processes that train each cell.

    Raises:
        InputError: a cell cannot be run, or two cells are the same run.
        RecordError: the store cannot be read.
    """
    if runs_dir.exists() and not runs_dir.is_dir():
        raise InputError(f"runs directory {runs_dir} is a file: name another")
    planner = _Planner(runs_dir, elsewhere, gpus, processes)
    cells = [planner.cell(number, entry) for number, entry in enumerate(grid, 1)]
    seen: dict[str, SweepCell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.identity, cell)
        if twin is not cell:
            raise InputError(f"cells {twin.number} and {cell.number} are the same run: {cell.label}")
    return planner.timed(cells)


class _Planner:
    """Loads each data set once, and reads the store once."""

    def __init__(self, runs_dir: Path, elsewhere: bool, gpus: float, processes: int) -> None:
        self.runs_dir, self.elsewhere, self.gpus, self.processes = runs_dir, elsewhere, gpus, processes
        self.load = functools.cache(load_dataset)
        self.states = states_of(inventory(runs_dir)) if runs_dir.is_dir() else {}
        self.models: dict[tuple[Any, ...], torch.device] = {}

    def cell(self, number: int, entry: GridCell) -> SweepCell:
        """Resolve one cell."""
        given = {"threads": 1, **entry.options}
        try:
            options = Options.of(given)
            data = self.load(options.dataset, options.data_dir, options.choices())
            config, identity = self._prepared(options, entry.sample_seed, data)
        except (InputError, RecordError) as error:
            written = " ".join(f"{key}={value}" for key, value in entry.options.items())
            raise InputError(f"cell {number} ({written}): {error}") from None
        return SweepCell(
            number=number,
            options=given,
            sample_seed=entry.sample_seed,
            config=config,
            identity=identity,
            state=self.states.get(identity, "new"),
            work=work_of(config, sizes_of(data)),
        )

    def _prepared(self, options: Options, sample_seed: int, data: DataSet) -> tuple[RunConfig, str]:
        """The configuration and identity; a cell that runs elsewhere gets the device of its node."""
        wanted = options.device
        if not self.elsewhere:
            here = prepare(options, data=data, sample_seed=sample_seed, runs_dir=self.runs_dir)
            self.models.setdefault(_model_key(here.config), here.device)
            return here.config, here.identity
        if wanted.startswith("cuda") and not self.gpus:
            raise InputError(f"device {wanted!r} on a cluster needs --gpus-per-run")
        if ":" in wanted and self.processes > 1:
            raise InputError(
                f"device {wanted!r} is one GPU, and each run takes {self.processes} processes: "
                "write device: cuda"
            )
        there = prepare(
            options.model_copy(update={"device": "cpu"}),
            data=data,
            sample_seed=sample_seed,
            runs_dir=self.runs_dir,
            processes=self.processes,
        )
        config = there.config.model_copy(update={"device": wanted})
        device = torch.device("cuda" if self.gpus and wanted != "cpu" else "cpu")
        return config, identity_of(
            config, data, device=device, threads=there.threads, processes=self.processes
        )

    def timed(self, cells: list[SweepCell]) -> SweepPlan:
        """The plan with estimated times; nothing is timed if nothing is left to do."""
        speeds: dict[tuple[Any, ...], Speed] = {}
        records: list[Record] = []
        if self.runs_dir.is_dir() and any(cell.state != "complete" for cell in cells):
            records = find_records(self.runs_dir)[0]
        for index, cell in enumerate(cells):
            if cell.state != "complete":
                key = (cell.config.defense, *_model_key(cell.config))
                if key not in speeds:
                    speeds[key] = self._speed(cell.config, records, speeds)
                cells[index] = replace(cell, seconds=speeds[key].seconds(cell.work))
        return SweepPlan(cells, list(dict.fromkeys(speeds.values())), self._gpus(), self.processes)

    def _gpus(self) -> int:
        """The number of GPUs to distribute, which only cells without a chosen device can use."""
        if self.elsewhere:
            return 0
        automatic = [device for (*_, text), device in self.models.items() if text in ("auto", "cuda")]
        return torch.cuda.device_count() if any(one.type == "cuda" for one in automatic) else 0

    def _speed(self, config: RunConfig, records: list[Record], known: dict[tuple[Any, ...], Speed]) -> Speed:
        data = self.load(config.dataset, config.data_dir, config.choices())
        if recorded := recorded_speed(records, config, data.fingerprint, self.processes):
            return recorded
        for (_defense, *model), speed in known.items():
            if tuple(model) == _model_key(config):
                return speed
        # If the cells run elsewhere, only this machine can be timed.
        here = torch.device("cpu") if self.elsewhere else self.models[_model_key(config)]
        speed = measured_speed(config, data, here)
        return replace(speed, source=f"{speed.source}, in one process") if self.processes > 1 else speed


def _model_key(config: RunConfig) -> tuple[Any, ...]:
    return config.dataset, config.data_dir, config.network, config.threads, config.device


def states_of(entries: Sequence[RunEntry]) -> dict[str, State]:
    """The state of each identity in a store: the best of its runs."""
    found: dict[str, State] = {}
    for entry in entries:
        if entry.identity and entry.state in ORDER:
            state = found.get(entry.identity, "new")
            found[entry.identity] = min(state, entry.state, key=ORDER.index)
    return found
