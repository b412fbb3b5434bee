"""The checks before a run starts, which write nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.audit.surrogates import surrogate_of
from advbench.benchmark.employ import load_employed
from advbench.benchmark.start import load_start
from advbench.config.effects import check_effects
from advbench.config.identity import identity_of
from advbench.config.options import Options, RunConfig
from advbench.config.plugins import with_plugins
from advbench.config.resolve import attacks_of_stage, bound_attacks, resolve
from advbench.data import DataSet, load_dataset
from advbench.models import MODELS, changes_images
from advbench.runs.saved import load_run, new_classifier
from advbench.runtime.device import choose_device, reproducible
from advbench.runtime.hashing import code_version, digest, weights_digest
from advbench.runtime.launch import launched, own_threads
from attacks_pool import Attack, InputError
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.logits import image_type
from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.fast.copy import worthwhile
from defenses import Defense, registry


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: the resolved configuration.
        data: the loaded data set.
        device: the device of the run.
        threads: the CPU threads that it uses, in each process.
        identity: 64 hexadecimal digits over everything that its numbers depend on.
        facts: the other inputs of the identity, for reporting differences.
        surrogate: the name and model that the audit crafts transferred points on, if not row 0's.
        surrogate_path: the path of the surrogate's run.
        start: the state of the classifier before pretraining, if it does not start from fresh weights.
        employed: the models of other runs that the defense employs, by parameter.
        employed_paths: the directories of these runs.
        processes: the processes that train it.
    """

    config: RunConfig
    data: DataSet
    device: torch.device
    threads: int
    identity: str
    facts: dict[str, Any]
    surrogate: tuple[str, nn.Module] | None = None
    surrogate_path: str | None = None
    start: dict[str, Tensor] | None = None
    employed: dict[str, nn.Module] = field(default_factory=dict)
    employed_paths: dict[str, str] = field(default_factory=dict)
    processes: int = 1


def prepare(
    options: Mapping[str, Any] | Options,
    *,
    sample_seed: int | None = None,
    surrogate: str | Path | None = None,
    data: DataSet | None = None,
    data_memory: float | None = None,
    runs_dir: Path = Path("runs"),
    processes: int | None = None,
) -> Prepared:
    """Check and resolve the options of a run.

    Code that the options name is imported: whoever calls this has decided that it is trusted.

    Args:
        options: as :func:`advbench.run` takes them.
        sample_seed: the seed for drawing ``sample:k``; the run's seed by default.
        surrogate: a finished run whose model the audit crafts transferred points on.
        data: the data set that the options name, if it is loaded already.
        data_memory: bytes of images to keep in memory, see `advbench.data.DataChoices`.
        runs_dir: where runs are found by name whose models the defense employs.
        processes: the processes that will train it; by default those that ``torchrun`` started.

    Raises:
        InputError, RecordError: the options cannot be run.
    """
    chosen = with_plugins(options if isinstance(options, Options) else Options.of(options))
    device = choose_device(chosen.device)
    if data is None:
        data = load_dataset(chosen.dataset, chosen.data_dir, chosen.choices(data_memory))
    if not len(data.train):
        raise InputError(
            f"data set {data.name!r} has no training images: models can be evaluated on it (advbench eval), "
            "and none can be trained"
        )
    config = resolve(chosen, data, sample_seed=sample_seed)
    config, employed, places = load_employed(config, data, runs_dir)
    if processes is None:
        launch = launched()
        processes = 1 if launch is None else launch.count
    other = surrogate_of(load_run(surrogate), data) if surrogate is not None else None
    with reproducible(config.threads):
        classifier = new_classifier(config, data.image_shape, data.num_classes)
        start = None
        if chosen.weights is not None:
            config = config.model_copy(update={"weights": load_start(classifier, chosen.weights)})
            start = {key: value.clone() for key, value in classifier.state_dict().items()}
        threads = threads_of(config, classifier, data, device)
        defense = _try_build(config, data, classifier, processes)
    check_effects(chosen, config, defense, _stages(config), data, sample_seed=sample_seed)
    identity = identity_of(config, data, device=device, threads=threads, processes=processes)
    facts = {
        "code": code_version(),
        "data": data.fingerprint,
        "torch": torch.__version__,
        "device": device.type,
        "threads": threads,
        **({} if processes == 1 else {"processes": processes}),
    }
    if other is not None:
        facts["surrogate"] = weights_digest(other[1].state_dict())
        identity = digest({"run": identity, "surrogate": facts["surrogate"]})
    path = None if surrogate is None else str(Path(surrogate).expanduser().resolve())
    return Prepared(
        config, data, device, threads, identity, facts, other, path, start, employed, places, processes
    )


def threads_of(config: RunConfig, classifier: nn.Module, data: DataSet, device: torch.device) -> int:
    """The requested number of threads; by default 1 for small work, otherwise torch's own number.

    Several processes on a CPU divide its cores.
    """
    if config.threads is None and device.type == "cpu":
        with isolated_randomness(0, device):
            if not worthwhile(classifier, data.validation.images[:1].clone()):
                return 1
    launch = launched()
    if launch is not None and config.threads is None and device.type == "cpu":
        # torchrun sets OMP_NUM_THREADS to 1, for want of knowing better.
        return own_threads(launch)
    return torch.get_num_threads()


def _stages(config: RunConfig) -> list[list[Attack]]:
    """The attacks of each stage."""
    seen = bound_attacks(config)["seen"]
    return [attacks_of_stage(config, seen, stage + 1) for stage in range(config.stages)]


def _try_build(config: RunConfig, data: DataSet, classifier: nn.Module, processes: int) -> Defense:
    """Build the defense once, to find errors before anything is written."""
    if config.model not in MODELS:
        with isolated_randomness(0, torch.device("cpu")), evaluation_mode(classifier):
            images = data.validation.images[:2]
            changed = changes_images(classifier, images.to(image_type(classifier, images)))
        if changed:
            raise InputError(
                f"model {config.model!r} writes into the images that it is given, where attacks look for "
                "gradients: write x = x - mean, not x -= mean"
            )
    defense = registry.build(config.defense, classifier, seed=config.seed, parameters=config.params)
    if processes > 1 and type(defense).fit is not Defense.fit:
        raise InputError(
            f"defense {config.defense!r} has a fit() of its own, which one process runs, not {processes}: "
            "leave out torchrun, or --processes-per-run of a sweep"
        )
    for met in _stages(config):
        defense.check_attacks(met)
    with isolated_randomness(0, torch.device("cpu")):
        images = data.validation.images[:2]
        defense.check_images(images.to(image_type(classifier, images)))
    defense.check_plan(config.stage_plan)
    try:
        json.dumps(defense.spec(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"defense {config.defense!r} has a spec() that is not JSON: {error}") from None
    return defense
