"""Runs one evaluation of a foreign model: measures, audits, writes the record, and resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.audit import Fresh, audit, held_out, probe
from advbench.audit.surrogates import Surrogate, given_surrogate, plain_surrogate
from advbench.config.identity import WHERE_NOT_WHAT, attack_modules
from advbench.config.options import DataOptions
from advbench.data import DataSet, Split, load_dataset
from advbench.evaluation.abstaining import check_abstain
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.sharing import SharedRow
from advbench.external import Foreign, Source, load_foreign
from advbench.external.crafted import save_crafted
from advbench.external.presets import suite
from advbench.external.request import EvalRequest
from advbench.external.run_record import NOT_KEPT, counted, eval_config, kept
from advbench.runs.directory import finish, now, place, plain_name, stem_of
from advbench.runs.examples import check_room
from advbench.runs.machine import describe
from advbench.runs.pieces import Pieces
from advbench.runs.record import Measured, by_group, record_of
from advbench.runs.saved import WEIGHTS, Run
from advbench.runtime.device import choose_device
from advbench.runtime.events import Event, JsonLog, Kind, Listener, tell
from advbench.runtime.failures import failing
from advbench.runtime.hashing import code_version, digest, weights_digest
from attacks_pool import Attack
from attacks_pool.attack import check_task
from leaderboards import Audit, Cell, Cost, Manifest, Record, RecordedStage, write_bytes, write_outcomes
from leaderboards.records.layout import CHECKPOINT, EVALUATED, LOG, OUTCOMES
from leaderboards.statistics.measured import eval_metrics


def prepare_job(request: EvalRequest) -> tuple[Evaluation, str | None]:
    """Check and load a request; return the evaluation and its identity, if it has one.

    Raises:
        InputError, RecordError: the request cannot be run.
    """
    gives_up = check_abstain(request.abstain)
    place = _device(request.model, request.device)
    choices = DataOptions.among(vars(request))
    data = load_dataset(request.dataset, request.data_dir, choices.choices(request.data_memory))
    asked = suite(request, data)
    chosen, counts = asked.attacks, asked.points
    check_task(chosen, data.image_shape, data.num_classes)
    other = given_surrogate(request.surrogate, data)
    source = request.source
    foreign = load_foreign(source, data, seed=request.seed, name=request.name, abstain=gives_up)
    foreign.model.to(place)
    measured = [(attack, counts.get(attack.name, counts.get("default", len(data.test)))) for attack in chosen]
    data_dir = None if request.data_dir is None else str(request.data_dir)
    text = request.dataset if isinstance(request.dataset, str) else data.name
    own = {"dataset": text, "data_dir": data_dir, "points": counts}
    own |= {key: getattr(request, key) for key in ("seed", "device", "threads")}
    used = {key: value for key, value in choices.model_dump().items() if value is not None}
    config = eval_config(foreign, chosen, own | asked.recorded | used)
    more: dict[str, Any] = {"attack_timeout": request.attack_timeout, "examples": request.target}
    job = Evaluation(foreign, data, measured, config, place, other, **more)
    code = _code(source)
    return job, None if code is None else identity_of(job, code)


def _code(source: Source | Callable[[Tensor], Any]) -> tuple[str, ...] | None:
    """The modules that build the model; None for one without a text, which cannot be recognised again."""
    if not isinstance(source, Source):
        return None
    module, colon, _ = source.model.partition(":")
    return (module,) if colon and module not in ("torchvision", "robustbench") else ()


def _device(model: object, text: str) -> torch.device:
    device = choose_device(text)
    if text == "auto" and isinstance(model, nn.Module):
        return next((tensor.device for tensor in model.parameters()), device)
    if text == "auto" and not isinstance(model, str):
        # The tensors of a function stay where its author put them, so give it CPU images by default.
        return torch.device("cpu")
    return device


@dataclass(frozen=True)
class Evaluation:
    """One fully resolved evaluation: each attack with its number of points."""

    foreign: Foreign
    data: DataSet
    attacks: list[tuple[Attack, int]]
    config: dict[str, Any]
    device: torch.device
    surrogate: Surrogate | None = None
    attack_timeout: float | None = None
    examples: Path | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def test(self) -> Split:
        """The test points to measure, on the CPU."""
        points: dict[str, int] = self.config["points"]
        every = points.get("default", len(self.data.test))
        return self.data.test.first(max((count for _, count in self.attacks), default=every))

    def view(self, _attack: Attack | None) -> nn.Module:
        """The model, which is the same for every attack."""
        return self.foreign.model


def identity_of(job: Evaluation, code: tuple[str, ...]) -> str:
    """64 hexadecimal digits over all that the numbers depend on; ``code`` lists the model's modules."""
    environment = describe(job.device, job.data)
    config = {key: value for key, value in job.config.items() if key not in WHERE_NOT_WHAT}
    return digest(
        {
            "eval": {**config, "dataset": job.data.name},
            "origin": job.foreign.origin,
            "data": job.data.fingerprint,
            "code": code_version(*sorted({*code, *attack_modules(job.config["eval"])})),
            "versions": environment["versions"],
            "device": job.device.type,
            "threads": environment["threads"],
            "surrogate": _transferred_from(job.surrogate),
        }
    )


def _transferred_from(surrogate: Surrogate | None) -> str:
    """An identifier of the surrogate; the plain one is determined by seed, data and code."""
    if surrogate is None:
        return "plain"
    return "none" if surrogate[1] is None else weights_digest(surrogate[1].state_dict())


def evaluate_job(
    job: Evaluation,
    runs_dir: Path,
    listeners: Sequence[Listener],
    *,
    identity: str | None,
    fresh: bool,
    share_out: Callable[[Path], list[str]] | None = None,
    others: SharedRow | None = None,
) -> Run:
    """Measure a job in a directory of its own.

    Args:
        job: the evaluation.
        runs_dir: where the directory is created, or an unfinished one with this identity is found.
        listeners: called with every event.
        identity: None for a model that cannot be recognised again; no pieces are then stored.
        fresh: do not look for an unfinished one.
        share_out: makes other processes write pieces to a directory, before missing pieces are measured here;
            returns their problems.
        others: processes of ``torchrun`` to measure pieces along with this one.
    """
    if job.examples is not None:
        check_room(job.examples, job.test, job.attacks)
    names = [plain_name(text, 60) for text in (job.foreign.name, job.data.name)]
    stem = stem_of(f"{EVALUATED}-{names[0]}", names[1], job.config["seed"])
    manifest = Manifest(
        schema=1, id=stem, kind="eval", identity=identity or "", created=now(), config=job.config
    )
    with ExitStack() as stack:
        found = stack.enter_context(place(runs_dir, manifest, fresh=fresh))
        directory = found.directory
        if others is not None:
            others.leader.directory = directory
        how = "give the same command again to resume it" if identity else "but it cannot be resumed"
        stack.enter_context(failing(directory, lambda: f"evaluation of {job.foreign.name}", how))
        log = JsonLog(directory / LOG)
        stack.callback(log.close)
        told: list[Listener] = [log, *listeners]
        _say(job, told, "resume" if found.resumed else "start", text=directory.name)
        pieces = None
        if identity is not None:
            pieces = Pieces(directory / CHECKPOINT / "pieces", identity, state_of(job))
            if share_out is not None:
                for problem in share_out(pieces.directory):
                    _say(job, told, "note", text=f"{problem}: the missing pieces are measured here")
        elif job.examples is not None:
            pieces = Pieces(directory / CHECKPOINT / "examples", "", "")
        record = _measured(job, directory, told, pieces, others)
        _say(job, told, "end", text=str(directory))
    return Run(directory, record, data_dir=job.config["data_dir"])


def _say(job: Evaluation, listeners: Sequence[Listener], kind: Kind, **values: Any) -> None:
    tell(listeners, Event(kind, elapsed=time.perf_counter() - job.began, **values))


def _measured(
    job: Evaluation,
    directory: Path,
    listeners: Sequence[Listener],
    pieces: Pieces | None,
    others: SharedRow | None,
) -> Record:
    """Attack and audit the model; return the record."""
    began, seed = time.perf_counter(), job.config["seed"]

    def progress(cell: Cell) -> None:
        _say(job, listeners, "cell", attack=cell.attack, cell=cell)

    more: dict[str, Any] = {"device": job.device, "kept": pieces, "attack_timeout": job.attack_timeout}
    # Copy the model before the first query, so that the copy has no memory of this evaluation.
    with Fresh(job.view, [], job.device) as fresh:
        how = {"stage": 0, "seed": seed, "progress": progress, "examples": job.examples is not None}
        row = evaluate(job.view, job.test, job.attacks, **how, **more, others=others)
        name, surrogate = job.surrogate or plain_surrogate(job.data, seed, job.device)
        probes = probe(
            job.view,
            job.test,
            attacks=[attack for attack, _ in job.attacks],
            surrogate=None if surrogate is None else surrogate.to(job.device),
            surrogate_name=name,
            seed=seed,
            stochastic=row.draws > 1,
            fresh=fresh,
            held_out=held_out(job.data),
            **more,
        )
    findings = audit([row], job.attacks, probes=probes)
    saved: dict[str, Any] = {}
    if job.examples is not None and pieces is not None:
        own: dict[str, Any] = {
            "test": job.test,
            "attacks": job.attacks,
            "foreign": job.foreign,
            "data": job.data,
        }
        saved["examples"] = save_crafted(job.examples, directory, row, pieces, seed=seed, **own)
    record = _record(job, directory.name, row, findings, time.perf_counter() - began, saved)
    if job.foreign.file is not None and kept(job.foreign):
        write_bytes(directory / WEIGHTS, job.foreign.file.read_bytes())
    write_outcomes(directory / OUTCOMES, row.clean[None], row.robust[None], probes=probes.robust)
    finish(directory, record)
    return record


def _record(
    job: Evaluation,
    name: str,
    row: MatrixRow,
    audit: Audit,
    seconds: float,
    saved: Mapping[str, Any],
) -> Record:
    foreign, copied = job.foreign, kept(job.foreign)
    spec = {"defense": foreign.name, "copied": copied, **foreign.origin}
    weights = WEIGHTS if copied else NOT_KEPT
    measured = Measured(
        attacks={"seen": [], "unseen": [], "eval": [attack for attack, _ in job.attacks]},
        points=[count for _, count in job.attacks],
        rows=[row],
        stages=[RecordedStage(index=0, attacks=[], weights=weights, spec=spec)],
        cost=Cost(
            training_seconds=0.0,
            training_forwards=0,
            training_backwards=0,
            evaluation_seconds=seconds,
            parameters=sum(parameter.numel() for parameter in foreign.model.parameters()),
            multiply_adds=counted(foreign.model, job.data.test.images[:1]),
        ),
        audit=audit,
        environment=describe(job.device, job.data),
        report=by_group(job.data, row.clean),
    )
    metrics = eval_metrics(row.clean, row.robust, measured.points)
    return record_of({**job.config, **saved}, job.data, measured, name, metrics)


def state_of(job: Evaluation) -> str:
    """An identifier of the model's weights."""
    return digest({key: value for key, value in job.foreign.origin.items() if key.endswith("sha256")})
