"""The request for evaluating a model that was trained elsewhere, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from advbench.config.options import MOST_THREADS, attack_texts
from advbench.external import Source
from advbench.models.arguments import plain_arguments
from advbench.runs.examples import check_target
from advbench.runtime.timeouts import check_timeout
from attacks_pool import InputError
from attacks_pool.errors import unknown
from attacks_pool.metadata import whole_number


@dataclass(frozen=True)
class EvalRequest:
    """A request for :func:`advbench.evaluate_model`; its values are checked as far as possible without data.

    Attributes:
        model: ``package.module:factory``, a TorchScript (``.pt``) or exported (``.pt2``) file that is
            trusted, ``torchvision:NAME``, ``timm:NAME``, ``robustbench:NAME``, or a run's directory; or a
            module, or a function, from images (N, C, H, W) in [0, 1] to logits (N, K).
        model_args: further arguments of the factory, or of the network of torchvision or timm.
        dataset: a name that ``advbench datasets`` lists, ``package.module:factory``, or an object: a torch
            data set, a ``DataLoader``, or a pair of images and labels.
        attacks: ``fgsm,pgd:steps=50`` or a list of such texts.
        preset: a name that ``advbench presets`` lists, or a YAML file of attacks and points; ``standard`` if
            neither it nor ``attacks`` is given.
        name: the model's name in tables.
        points: test points: ``1000``, ``"cw=1000"``; all by default.
        seed: determines every draw.
        device: ``auto`` leaves a module where it is; a module is moved to any other.
        threads: CPU threads.
        weights: safetensors, or a state dict without other pickles, for a model built from code.
        model_dir: the folder with RobustBench's checkpoints.
        threat: the threat of RobustBench's models: ``linf`` (the default), ``l2`` or ``corruptions``.
        mean, std: the normalisation to apply before the model, one value per channel.
        surrogate: a run whose model the audit crafts transferred points on, or ``none``; by default a small
            plain model is trained on the data set's training images.
        data_dir: the folder with the files of data sets.
        image_size, channels, classes: what is used of the data set, see `advbench.data.DataChoices`.
        data_memory: bytes of images to keep in memory; others are decoded when they are needed.
        attack_timeout: seconds that an attack may take for a block of points.
        abstain: ``last`` for a model with one more output than there are classes, by which it abstains:
            right on attacked points, wrong on clean ones. Attacks take this into account.
        save_examples: a safetensors file to write clean and crafted points to, with labels and outcomes.
        trust: load a TorchScript or exported file, or the attacks that a preset's file names by
            ``package.module:name``: such programs can run any code.
    """

    model: str | Callable[[Tensor], Any]
    dataset: Any = "digits"
    attacks: str | Sequence[str] | None = None
    preset: str | Path | None = None
    name: str | None = None
    points: int | str | Mapping[str, int] | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    weights: str | Path | None = None
    model_dir: str | Path | None = None
    threat: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    surrogate: str | Path | None = None
    data_dir: str | Path | None = None
    image_size: int | None = None
    channels: int | None = None
    classes: int | str | Sequence[str] | None = None
    data_memory: float | None = None
    attack_timeout: float | None = None
    abstain: str | None = None
    save_examples: str | Path | None = None
    trust: bool = False
    model_args: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EvalRequest:
        """Make a request from options, converting NumPy's numbers to plain ones.

        Raises:
            InputError: an option is unknown, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        for option in options:
            if option not in known:
                raise unknown("option", option, known)
        asked = cls(**options)
        check_timeout(asked.attack_timeout)
        if asked.target is not None:
            check_target(asked.target)
        seed = whole_number("seed", asked.seed)
        if not 0 <= seed < 2**63:
            raise InputError(f"seed={seed} is out of range: a seed is at least 0 and below 2**63")
        threads = None if asked.threads is None else whole_number("threads", asked.threads)
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads={threads} is out of range: it must be from 1 to {MOST_THREADS}")
        try:
            more = plain_arguments(asked.model_args or {})
        except ValueError as error:
            raise InputError(str(error)) from None
        texts = attack_texts("attacks", asked.attacks)
        return replace(asked, seed=seed, threads=threads, attacks=texts, model_args=more or None)

    @property
    def target(self) -> Path | None:
        """The file to save examples to."""
        return None if self.save_examples is None else Path(self.save_examples).expanduser()

    @property
    def source(self) -> Source | Callable[[Tensor], Any]:
        """The source of the model.

        Raises:
            InputError: files or normalisation are given for a module, which has its own.
        """
        if isinstance(self.model, str):
            mean, std = (
                None if given is None else tuple(map(float, given)) for given in (self.mean, self.std)
            )
            files = (self.weights, self.model_dir)
            weights, folder = (None if file is None else Path(file).expanduser() for file in files)
            return Source(self.model, weights, folder, self.threat, mean, std, self.trust, self.model_args)
        own = (self.weights, self.model_dir, self.threat, self.mean, self.std, self.model_args)
        if any(given is not None for given in own):
            raise InputError(
                "weights, model_dir, threat, mean, std and model_args go with a model's text; a module has "
                "its own"
            )
        return self.model
