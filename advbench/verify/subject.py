"""The subject of a verification: a run with its attacks, its points and the model of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advbench.config.plugins import import_plugin
from advbench.config.resolve import parsed
from advbench.data import Split
from advbench.evaluation.abstaining import check_abstain
from advbench.evaluation.evaluate import LOOKED_AT
from advbench.evaluation.shards import View
from advbench.evaluation.stochastic import is_stochastic
from advbench.external import Foreign, Source, load_foreign
from advbench.external.load import ROBUSTBENCH
from advbench.external.model_files import EXPORTED, SCRIPTS
from advbench.external.run_models import RUN, is_run
from advbench.models import MODELS, imports_code
from advbench.models.arguments import plain_arguments
from advbench.runs.saved import WEIGHTS, Run
from attacks_pool import Attack, InputError, pool
from attacks_pool.metadata import parse_number, whole_number
from defenses import DefenseInfo
from leaderboards.records.layout import EVALUATED


@dataclass(frozen=True)
class Looked:
    """The model of one stage: its view for evaluation, the module itself, and how it is measured.

    ``declared`` says whether the defense declares itself as randomised, ``stochastic`` whether it is.
    """

    view: View
    module: nn.Module
    stage: int
    seed: int
    device: torch.device
    stochastic: bool
    declared: bool
    transfer: bool

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of `evaluate` that determine its numbers."""
        return {"stage": self.stage, "seed": self.seed, "stochastic": self.stochastic, "device": self.device}


class Subject:
    """A run to verify.

    Args:
        run: the run, trusted or not.
        attacks: its attacks by role, as in its configuration.
        weights: for an evaluated model, its file of weights if the run has no copy.
    """

    def __init__(self, run: Run, attacks: dict[str, list[Attack]], *, weights: Path | None = None) -> None:
        self.run, self.record, self.attacks = run, run.record, attacks
        self.weights = weights
        self.evaluated = run.record.regime == EVALUATED
        self.seed: int = run.record.config["seed"]

    @property
    def every(self) -> list[Attack]:
        """The attacks in the record's order."""
        return [attack for role in ("seen", "unseen", "eval") for attack in self.attacks[role]]

    @property
    def points(self) -> dict[str, int]:
        """How many points, from the first on, attacks are measured on, by the configuration."""
        found: dict[str, int] = self.record.config["points"]
        return found

    @cached_property
    def measured(self) -> list[tuple[Attack, int]]:
        """Each attack with its number of points."""
        available = len(self.run.data.test)
        default = self.points.get("default", available)
        return [(attack, min(self.points.get(attack.name, default), available)) for attack in self.every]

    @cached_property
    def test(self) -> Split:
        """The test points, on the CPU, as they were evaluated."""
        test = self.run.data.test
        size = max((count for _, count in self.measured), default=self.points.get("default", len(test)))
        return test.first(size)

    def look(self, stage: int, device: torch.device) -> Looked:
        """The model of a stage, on ``device`` and in eval mode.

        Raises:
            InputError: weights are missing, damaged or not the record's, or code is not trusted.
        """
        if self.evaluated:
            model: nn.Module = self.foreign.model.to(device).eval()
            return self._looked(stage, device, model, lambda _: model)
        defense = self.run.stage(stage).to(device)
        return self._looked(stage, device, defense, defense.view, defense.info)

    def _looked(
        self, stage: int, device: torch.device, module: nn.Module, view: View, info: DefenseInfo | None = None
    ) -> Looked:
        declared, transfer = (False, False) if info is None else (info.stochastic, info.transfer)
        # Detect randomness like the evaluator, with the same draws.
        chance = declared or is_stochastic(view(None), self.test.images[:LOOKED_AT].to(device), self.seed)
        return Looked(view, module, stage, self.seed, device, chance, declared, transfer)

    @cached_property
    def foreign(self) -> Foreign:
        """Load the evaluated model again, as the record describes it.

        Raises:
            InputError: the record does not say how, the weights are missing or not the evaluated ones, or the
                model is untrusted code.
        """
        config = self.record.config
        found = load_foreign(
            self._source(),
            self.run.data,
            seed=self.seed,
            name=config["defense"],
            abstain=check_abstain(config.get("abstain")),
        )
        known = self.record.stages[0].spec
        # The weights of a script are not separate from its program, so its file is compared.
        keys = [key for key in ("state_sha256", "weights_sha256") if known.get(key) and found.origin.get(key)]
        if not keys or found.origin[keys[0]] != known[keys[0]]:
            raise InputError(
                f"run {self.record.id}: the model found as {found.origin['model']!r} is not the one that was "
                "evaluated: its weights have another SHA-256"
            )
        return found

    def _source(self) -> Source:
        spec: dict[str, Any] = self.record.stages[0].spec
        text, name = str(spec.get("model")), spec.get("weights")
        start = f"run {self.record.id} evaluated {text!r}"
        if text.startswith(RUN):
            return self._run_of(text.removeprefix(RUN), spec)
        script = Path(text).suffix in (*SCRIPTS, EXPORTED)
        if not (script or ":" in text or text in MODELS):
            raise InputError(f"{start}, a module given to Python: the record does not say how to build it")
        zoo = text.startswith(ROBUSTBENCH) or not imports_code(text)
        if not (script or zoo or self.run.trust):
            raise InputError(f"{start}, and loading it imports that code: add --trust if you trust it")
        file = self.weights
        if file is None and spec.get("copied"):
            file = self.run.path / WEIGHTS
        if file is None and (script or name is not None):
            raise InputError(
                f"{start} with weights {name!r}, which the run has no copy of: give --weights FILE"
            )
        return Source(
            model=str(file) if script else text,
            weights=None if script else file,
            threat=spec.get("threat"),
            mean=self._channels(spec, "mean"),
            std=self._channels(spec, "std"),
            trust=self.run.trust,
            model_args=self._model_args(spec),
        )

    def _run_of(self, name: str, spec: dict[str, Any]) -> Source:
        """The run whose model was evaluated: that of --weights, or else the one beside the evaluation."""
        place = self.weights or self.run.path.parent / name
        if Path(name).name != name or not is_run(place):
            raise InputError(
                f"run {self.record.id} evaluated the model of run {name!r}, and {str(place)!r} is no run: "
                "give --weights RUN, the directory of that run"
            )
        mean, std = (self._channels(spec, key) for key in ("mean", "std"))
        return Source(str(place), mean=mean, std=std, trust=self.run.trust)

    def _model_args(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """The further arguments with which the model was built, if the record has any."""
        try:
            return plain_arguments(spec["model_args"]) if "model_args" in spec else None
        except ValueError as error:
            raise InputError(f"run {self.record.id}: its stage has {error}") from None

    def _channels(self, spec: dict[str, Any], key: str) -> tuple[float, ...] | None:
        """One number per channel, if the record has them."""
        found = spec.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or any(type(value) not in (int, float) for value in found):
            raise InputError(f"run {self.record.id}: its stage has {key}={found!r}, not a list of numbers")
        return tuple(parse_number(key, value) for value in found)


def subject_of(run: Run, *, weights: Path | None = None) -> Subject:
    """Prepare a run for verification; no model is built yet.

    Raises:
        InputError: the configuration is not one of this program's, or attacks are missing.
    """
    if run.record.regime != EVALUATED:
        run.check_trust()
        if weights is not None:
            raise InputError("--weights goes with records of advbench eval; a run has its own")
        from advbench.config.resolve import bound_attacks

        return Subject(run, bound_attacks(run.config))
    config = run.record.config
    texts, points = config.get("eval"), config.get("points")
    if not isinstance(texts, list) or not isinstance(points, dict):
        raise InputError(
            f"run {run.record.id}: its config has no eval and points, as advbench eval writes them"
        )
    if any(not isinstance(text, str) for text in texts):
        raise InputError(f"run {run.record.id}: its config has an attack in eval that is not text")
    for key, value in points.items():
        whole_number(f"run {run.record.id}: points of {key!r}", value)
    _import_plugins(run)
    bound = [pool.bind(name, knobs) for name, knobs in parsed(texts)]
    return Subject(run, {"seen": [], "unseen": [], "eval": bound}, weights=weights)


def _import_plugins(run: Run) -> None:
    """Import the attacks of an evaluation that were named by where their code is.

    Raises:
        InputError: there are some, and nobody trusts them; or they cannot be imported.
    """
    plugins = run.record.config.get("plugins") or []
    if not isinstance(plugins, list) or any(not isinstance(text, str) for text in plugins):
        raise InputError(f"run {run.record.id}: its config has plugins that are no list of texts")
    if plugins and not run.trust:
        raise InputError(
            f"run {run.record.id} was made with {plugins[0]!r}, and attacking again imports that code: "
            "add --trust if you trust it"
        )
    for text in plugins:
        import_plugin(text)
