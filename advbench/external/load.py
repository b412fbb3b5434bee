"""Loads a :class:`ForeignModel` from a text, module or function, with the origin of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.data import DataSet
from advbench.evaluation.abstaining import LAST
from advbench.external.model_files import EXPORTED, SCRIPTS, WITH_FACTORY, load_program
from advbench.external.run_models import RUN, is_run, model_of_run
from advbench.external.wrapper import ForeignModel
from advbench.external.zoos import THREAT, THREATS, from_robustbench
from advbench.models import FORMS, MODELS, Normalize, build_model, changes_images
from advbench.models.weights import file_digest, load_state, read_state
from advbench.runtime.hashing import weights_digest
from attacks_pool.calling.guard import evaluation_mode, out_of_inference
from attacks_pool.calling.randomness import isolated_randomness, key_seed
from attacks_pool.errors import InputError, unknown
from leaderboards.records.limits import MOST_NAME

ROBUSTBENCH = "robustbench:"


@dataclass(frozen=True)
class Source:
    """The source of a model: its text, its further arguments, and the files of its weights and normalisation.

    ``trust`` allows loading a file that holds a program, which can run any code.
    """

    model: str
    weights: Path | None = None
    model_dir: Path | None = None
    threat: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust: bool = False
    model_args: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Foreign:
    """A loaded model; ``file`` has its weights (None if not given), ``origin`` goes into the record."""

    model: ForeignModel
    name: str
    origin: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def __post_init__(self) -> None:
        if len(self.name) > MOST_NAME:
            raise InputError(
                f"the model's name has {len(self.name)} characters, {MOST_NAME} are allowed: --name gives it "
                "another"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """``origin`` with short digests, as tables show it to distinguish models of one name."""
        short = {key: value for key, value in self.origin.items() if not key.endswith("sha256")}
        state = self.origin["state_sha256"]
        return {**short, "state": None if state is None else state[:12]}


def load_foreign(
    source: Source | Callable[[Tensor], Any],
    data: DataSet,
    *,
    seed: int = 0,
    name: str | None = None,
    abstain: bool = False,
) -> Foreign:
    """Load a model in eval mode, and check its output for images of ``data``'s shape.

    Args:
        source: a text with its files, a module, or a function from images to logits.
        data: the data set, whose image shape and number of classes the model must fit.
        seed: determines the weights of architectures that come without any.
        name: its name in tables; the text by default.
        abstain: whether it has one more logit than there are classes, by which it abstains.

    Raises:
        InputError: it cannot be found, read or built, is a program that is not trusted, or its output is not
            logits for ``data``.
    """
    if isinstance(source, Source):
        return _from_source(source, data, seed, name, abstain)
    label = name or getattr(source, "__name__", None) or type(source).__name__
    if not callable(source):
        raise InputError(f"a model is a text, a torch.nn.Module or a function, not {type(source).__name__}")
    model = ForeignModel(source, str(label), data.num_classes + abstain, abstains=abstain)
    _look(model, data)
    return Foreign(model, str(label), _origin(str(label), model, None))


def _from_source(source: Source, data: DataSet, seed: int, name: str | None, abstain: bool) -> Foreign:
    text, file = source.model, source.weights
    if source.threat not in (None, *THREATS):
        raise unknown("threat", str(source.threat), THREATS)
    if source.threat is not None and not text.startswith(ROBUSTBENCH):
        raise InputError(
            "--threat chooses one of RobustBench's models: it goes with robustbench:NAME; --attacks chooses "
            "the attacks for any model"
        )
    if source.model_dir is not None and not text.startswith(ROBUSTBENCH):
        raise InputError("--model-dir is where RobustBench's checkpoints are: it goes with robustbench:NAME")
    path = Path(text).expanduser()
    program, run = path.suffix in (*SCRIPTS, EXPORTED), is_run(path)
    if source.model_args and (program or run or text.startswith(ROBUSTBENCH)):
        raise InputError(f"model {text!r} is built already: --model-arg goes with {FORMS}")
    if path.suffix == ".safetensors":
        raise InputError(f"model {text!r} contains only weights: give {WITH_FACTORY}")
    if program:
        if file is not None:
            raise InputError(f"model {text!r} has weights of its own: --weights goes with a factory or a zoo")
        wrapped = load_program(path, data.image_shape, data.num_classes + abstain, trust=source.trust)
        file = path
    elif run:
        if file is not None:
            raise InputError(f"model {text!r} is a run with weights of its own: --weights goes with {FORMS}")
        network, text, file = model_of_run(path, trust=source.trust)
        wrapped = ForeignModel(network, text, data.num_classes + abstain)
    else:
        inner, file = _built(source, data, seed, data.num_classes + abstain)
        wrapped = ForeignModel(inner, text, data.num_classes + abstain)
    wrapped.abstains = abstain
    if source.mean is not None or source.std is not None:
        _look(wrapped, data)
        wrapped = _normalised(wrapped, source.mean or (), source.std or ())
    wrapped.eval()
    _look(wrapped, data)
    origin = _origin(text, wrapped, file)
    if text.startswith(ROBUSTBENCH):
        origin["threat"] = source.threat or THREAT
    if source.mean is not None:
        origin["mean"], origin["std"] = list(source.mean), list(source.std or ())
    if source.model_args:
        origin["model_args"] = dict(source.model_args)
    label = name or (path.stem if file == path else text.removeprefix(RUN))
    return Foreign(wrapped, label, origin, file)


def _built(source: Source, data: DataSet, seed: int, classes: int) -> tuple[nn.Module, Path | None]:
    """A module with ``classes`` outputs, built from code, with the weights of a file if one is given."""
    text, weights = source.model, source.weights
    if text.startswith(ROBUSTBENCH):
        return from_robustbench(
            text.removeprefix(ROBUSTBENCH),
            data.num_classes,
            threat=source.threat or THREAT,
            weights=weights,
            model_dir=source.model_dir,
        )
    if text not in MODELS and ":" not in text:
        more = "a .pt, .ts or .pt2 file, robustbench:NAME, or a run's directory"
        raise unknown("model", text, MODELS, see=f"allowed: {FORMS}, {more}")
    channels, *size = data.image_shape
    model = build_model(
        text,
        num_classes=classes,
        in_channels=channels,
        image_size=(size[0], size[1]),
        seed=key_seed("model", seed),
        model_args=source.model_args,
    )
    if weights is not None:
        load_state(model, read_state(weights), weights)
    return model, weights


def _normalised(model: ForeignModel, mean: Sequence[float], std: Sequence[float]) -> ForeignModel:
    inner = nn.Sequential(Normalize(mean, std), model)
    return ForeignModel(inner, model.label, model.classes, abstains=model.abstains)


def _look(model: ForeignModel, data: DataSet) -> None:
    """Try two empty images and one, in eval mode, to report faults of the model's output early."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    out_of_inference(model)
    with torch.no_grad(), isolated_randomness(0, device), evaluation_mode(model):
        two = torch.zeros(2, *data.image_shape, device=device)
        model.copies |= model.in_its_type(lambda: changes_images(model, two))
        model.copies |= changes_images(model, two[:1])


def _origin(text: str, model: ForeignModel, file: Path | None) -> dict[str, Any]:
    inner = model.inner
    found = {
        "model": text,
        "weights": None if file is None else file.name,
        "weights_sha256": None if file is None else file_digest(file),
        "state_sha256": weights_digest(inner.state_dict()) if isinstance(inner, nn.Module) else None,
    }
    return {**found, "abstain": LAST} if model.abstains else found
