"""Runs one benchmark: ``advbench run`` for Python."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from advbench.benchmark.crew import OtherProcesses, crew_of, take_part
from advbench.benchmark.employ import with_employed
from advbench.benchmark.loop import Benchmark
from advbench.benchmark.prepare import Prepared, prepare
from advbench.benchmark.start import with_start
from advbench.config.options import DataOptions, Options, RunConfig, attack_texts, explain
from advbench.config.plugins import code_named
from advbench.data import DataSet, load_dataset
from advbench.runs.directory import now, place, plain_name, stem_of, unfinished
from advbench.runs.saved import Run, load_run
from advbench.runtime.device import reproducible, undisturbed
from advbench.runtime.events import Event, JsonLog, Listener, TensorBoardLog, check_tensorboard, tell
from advbench.runtime.failures import failing, resume_command
from advbench.runtime.progress import watched
from advbench.runtime.team import together
from advbench.runtime.timeouts import check_timeout
from advbench.runtime.trackers import TRACKERS, Tracker, check_tracker
from attacks_pool import InputError
from attacks_pool.metadata import whole_number
from leaderboards import Manifest, find_complete, read_record
from leaderboards.records.layout import LOG

SHORT = ("torch", "device", "threads", "processes")
"""Facts about a run that a message can show; the others are digests."""

__all__ = ["Prepared", "prepare", "run"]


@undisturbed()
@together(take_part)
def run(
    defense: str | None = None,
    sequence: str | Sequence[str] | None = None,
    *,
    runs_dir: str | Path = "runs",
    listeners: Sequence[Listener] = (),
    tensorboard: bool = False,
    wandb: bool = False,
    mlflow: bool = False,
    sample_seed: int | None = None,
    surrogate: str | Path | None = None,
    resume: str | Path | bool | None = None,
    reuse: bool = False,
    attack_timeout: float | None = None,
    trust: bool = False,
    data_memory: float | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Train and evaluate one defense, as ``advbench run`` does.

    Args:
        defense: a name that ``advbench defenses`` lists, or ``package.module:Class``; ``air`` by default.
        sequence: attacks to train against, ``fgsm,pgd:eps=0.1,cw`` (the default: ``fgsm,pgd,cw``) or a list
            of such texts; an attack may be named as ``package.module:function``.
        runs_dir: where the run's directory is created.
        listeners: called with every :class:`advbench.runtime.events.Event`.
        tensorboard: also write scalars for TensorBoard.
        wandb: also log to Weights & Biases, offline unless WANDB_MODE says otherwise.
        mlflow: also log to MLflow, in ``runs_dir/mlflow.db`` unless MLFLOW_TRACKING_URI says otherwise.
        sample_seed: the seed for drawing ``sample:k``; the run's seed by default.
        surrogate: a finished run whose model the audit crafts its transferred points on; by default the
            plain classifier of row 0.
        resume: None resumes an unfinished run in ``runs_dir`` with exactly the same options, code, data and
            torch, and starts a new run if there is none. False always starts a new run. A path resumes that
            run, whose manifest has all other options.
        reuse: return a complete run with exactly the same options, if there is one.
        attack_timeout: seconds that an attack may take for one batch or block of points.
        trust: with the path of a run to resume, import code, ``package.module:name``, that it names.
        data_memory: bytes of images to keep in memory, by default a tenth of the machine's; others are
            decoded when they are needed. It changes no number.
        progress: show on stderr how far the run is; None, the default, shows it in notebooks alone.
        options: the other options of the command line, with underscores: ``dataset``, ``model``,
            ``weights``, ``epochs``, ``points``, ``seed``, ``set={"lr": 0.1}``,
            ``train_set={"pgd.steps": 7}``, ``model_args={"width": 2}``, … The data set may also be an object:
            a pair (train, test) of torch data sets or of (images, labels).

    Where ``torchrun`` started several processes, all of them call this with the same arguments, and train one
    run. Process 0 alone keeps its directory, calls ``listeners`` and shows progress.

    Returns:
        The finished run, as :func:`advbench.load_run` reads it; the same in every process.

    Raises:
        InputError, RecordError: the options cannot be run, or another process is writing the run.
        TrainingDivergedError: the training loss is not finite any more.
        RunFailedError: anything else failed during the run; finished parts are kept.
        Exception: of several processes, the others raise what process 0 raises; all end if one of them fails.
    """
    check_timeout(attack_timeout)
    sample_seed = None if sample_seed is None else whole_number("sample_seed", sample_seed)
    if tensorboard:
        check_tensorboard()
    trackers = [name for name, used in (("wandb", wandb), ("mlflow", mlflow)) if used]
    for name in trackers:
        check_tracker(name)
    data: DataSet | None = None
    named = None if resume is None or isinstance(resume, bool) else Path(resume).expanduser()
    if named is not None:
        given = {"defense": defense, "sequence": sequence, "sample_seed": sample_seed, "surrogate": surrogate}
        refuse_options({key for key, value in {**options, **given}.items() if value is not None})
        prepared = _prepared_again(named, trust, data_memory)
    else:
        asked = {"defense": defense, "sequence": attack_texts("sequence", sequence), **options}
        chosen = {key: value for key, value in asked.items() if value is not None}
        own = chosen.get("dataset")
        if own is not None and not isinstance(own, str):
            data = load_dataset(own, choices=DataOptions.among(chosen).choices(data_memory))
            chosen["dataset"] = data.name
        prepared = prepare(
            chosen,
            sample_seed=sample_seed,
            surrogate=surrogate,
            data=data,
            data_memory=data_memory,
            runs_dir=Path(runs_dir),
        )
        if reuse and resume is not False and Path(runs_dir).is_dir():
            for path in find_complete(Path(runs_dir), prepared.identity):
                found = Event("note", text=f"run {path.name} is complete already: it is taken as it is")
                tell(listeners, found)
                return _loaded(path, prepared)
    crew = crew_of(prepared, attack_timeout, data_memory)
    with watched(listeners, progress) as told:
        boards = ["tensorboard"] * tensorboard + trackers
        directory = _go(prepared, Path(runs_dir), named, resume is False, told, boards, attack_timeout, crew)
    if crew is not None:
        crew.close()
    return _loaded(directory, prepared)


def _loaded(directory: Path, prepared: Prepared) -> Run:
    """The finished run; the user has just named its model, and so trusts that code."""
    finished = load_run(directory, trust=True, data_dir=prepared.config.data_dir)
    # A data set that is an object cannot be loaded again by its name.
    vars(finished)["data"] = prepared.data
    return finished


def refuse_options(given: set[str]) -> None:
    """Refuse options for a resumed run, whose manifest has its options.

    Raises:
        InputError: options are given.
    """
    if given:
        flags = (name.replace("_", "-").replace("model-args", "model-arg") for name in sorted(given))
        names = ", ".join(f"--{name}" for name in flags)
        raise InputError(f"{names}: a resumed run takes its options from its manifest, so give none")


def _go(
    prepared: Prepared,
    runs_dir: Path,
    named: Path | None,
    fresh: bool,
    listeners: Sequence[Listener],
    boards: Sequence[str],
    attack_timeout: float | None,
    crew: OtherProcesses | None,
) -> Path:
    """Run it in a directory of its own; return the directory."""
    config = prepared.config
    regime = "" if config.regime == "continual" else f"-{config.regime}"
    manifest = Manifest(
        schema=1,
        id=stem_of(f"{config.defense}{regime}", plain_name(prepared.data.name), config.seed),
        kind="run",
        identity=prepared.identity,
        created=now(),
        config=config.model_dump(mode="json"),
        more={"facts": prepared.facts, "surrogate": prepared.surrogate_path, **_places(prepared)},
    )
    with ExitStack() as stack:
        stack.enter_context(reproducible(prepared.threads))
        found = stack.enter_context(place(runs_dir, manifest, resume=named, fresh=fresh))
        directory = found.directory
        if crew is not None:
            crew.leader.directory = directory
        benchmark: Benchmark | None = None
        stack.enter_context(
            failing(
                directory,
                lambda: benchmark.standing if benchmark is not None else "the start",
                resume_command(directory),
            )
        )
        log = JsonLog(directory / LOG)
        stack.callback(log.close)
        # The log comes first, so that another listener can stop the run without a gap in the log.
        everyone: list[Listener] = [log]
        if "tensorboard" in boards:
            board = TensorBoardLog(directory / "tensorboard")
            stack.callback(board.close)
            everyone.append(board)

        def note(text: str) -> None:
            tell([log, *listeners], Event("note", text=text))

        trackers = [Tracker(name, directory, manifest.config, note) for name in boards if name in TRACKERS]
        for tracker in trackers:
            stack.callback(tracker.close)
        benchmark = Benchmark(prepared, found, [*everyone, *trackers, *listeners], attack_timeout, crew)
        benchmark.go()
        if trackers:
            metrics = read_record(directory).metrics
            for tracker in trackers:
                tracker.finish(metrics)
    return directory


def _places(prepared: Prepared) -> dict[str, Any]:
    """Where the weights are that the run starts from, and the runs whose models it employs."""
    start = prepared.config.weights
    found: dict[str, Any] = {} if start is None else {"weights": start.file}
    return found | ({"employed": prepared.employed_paths} if prepared.employed_paths else {})


def _prepared_again(path: Path, trust: bool, data_memory: float | None) -> Prepared:
    """The checked configuration of the run at ``path``, if code, data and torch are those that began it.

    Raises:
        InputError, RecordError: the run cannot be resumed.
    """
    directory, manifest = unfinished(path)
    if manifest.kind != "run":
        raise InputError(
            f"run {directory.name} is an evaluation: give its advbench eval command again to resume it"
        )
    try:
        config = RunConfig.model_validate(manifest.config)
    except ValidationError as error:
        raise InputError(f"run {directory.name}: config: {explain(error)}") from None
    named = code_named(config.model_dump())
    if named and not trust:
        raise InputError(
            f"run {directory.name} was made with {named[0]}, and resuming imports that code: "
            "add --trust if you trust it"
        )
    options = with_start(config.model_dump(), directory, manifest.more.get("weights"))
    options = with_employed(options, manifest.more.get("employed", {}))
    prepared = prepare(
        Options.of(options),
        surrogate=manifest.more.get("surrogate"),
        data_memory=data_memory,
    )
    if prepared.identity != manifest.identity:
        raise InputError(_difference(directory, manifest.more.get("facts", {}), prepared.facts))
    return prepared


def _difference(directory: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a run with the facts ``then`` cannot be resumed here, where the facts are those of ``now``."""
    other = [name for name in {**now, **then} if then.get(name, 1) != now.get(name, 1)]
    if other == ["processes"]:
        count = then.get("processes", 1)
        how = "without torchrun" if count == 1 else f"with torchrun and {count} processes in all"
        return (
            f"run {directory.name} was made with {count} process{'es' * (count != 1)}, not "
            f"{now.get('processes', 1)}: resume it {how}"
        )
    words = [
        f"{'number of processes' if name == 'processes' else name}"
        + (f" ({then.get(name, 1)}, here {now.get(name, 1)})" if name in SHORT else "")
        for name in other
    ]
    return (
        f"run {directory.name} was made with other {' and '.join(words or ['code of its model'])}: it cannot "
        "be resumed here; start a new run"
    )
