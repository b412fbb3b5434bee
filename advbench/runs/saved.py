"""Reads finished runs: the record, the trained defense and exactly the points that it was evaluated on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from advbench.config.options import DataOptions, RunConfig, explain
from advbench.config.plugins import code_named, import_plugin
from advbench.data import DataSet, imports_data, load_dataset
from advbench.data.registry import FROM_PATH
from advbench.models import build_model
from advbench.models.torchvision import without_auxiliary
from advbench.models.weights import read_safetensors
from advbench.runs.allocating import bounded_by
from advbench.runs.examples import Examples
from advbench.runs.screen import html_of, text_of
from advbench.runtime.factory import one_line
from attacks_pool.calling.guard import ordinary_mode
from attacks_pool.calling.randomness import key_seed
from attacks_pool.errors import InputError
from defenses import Defense, registry
from leaderboards import Record, read_record
from leaderboards.printable import in_line
from leaderboards.records.layout import EVALUATED

WEIGHTS = "model.safetensors"
EXAMPLES = ("file", "sha256")
"""What a record's config says of a file of examples; the path is relative to the run."""


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: the run directory.
        record: everything that was measured.
        trust: whether code that the record names, ``package.module:name``, may be imported.
        data_dir: where the data are, if not where the record says.
    """

    path: Path
    record: Record
    trust: bool = False
    data_dir: str | None = None

    def __repr__(self) -> str:
        """The result on one screen: headline, matrix, metrics, audit, and where the run is."""
        return "\n".join([text_of(self.record), in_line(f"run: {self.path}")])

    def _repr_html_(self) -> str:
        """The same for notebooks, as HTML tables."""
        return html_of(self.record)

    @property
    def config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            InputError: the record's configuration is not one of this program's.
        """
        if self.record.regime == EVALUATED:
            raise InputError(
                f"run {self.record.id} evaluated a model that was trained elsewhere: its record, test data "
                "and saved examples can be read, but it has no model to load"
            )
        try:
            return RunConfig.model_validate(self.record.config)
        except ValidationError as error:
            raise InputError(f"run {self.record.id}: config: {explain(error)}") from None

    @cached_property
    def model(self) -> Defense:
        """The trained defense in eval mode, on the CPU: images (N, C, H, W) in [0, 1] to logits (N, K)."""
        return self.stage(self.record.stages[-1].index)

    @cached_property
    @ordinary_mode()
    def test_data(self) -> tuple[Tensor, Tensor]:
        """``x`` float32 (n, C, H, W) and ``y`` int64 (n,), exactly as evaluated and in the same order."""
        points = max(cell.n for cell in self.record.cells)
        return self.data.test.images[:points], self.data.test.y[:points]

    @cached_property
    def examples(self) -> Examples:
        """The points that attacks crafted, of an evaluation with ``save_examples``.

        Raises:
            InputError: the run saved none, or the file is missing or damaged.
        """
        found = self.record.config.get("examples")
        if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in EXAMPLES):
            raise InputError(
                f"run {self.record.id} saved no examples: advbench eval saves them with --save-examples FILE"
            )
        return Examples(Path(os.path.normpath(self.path / found["file"])), found["sha256"])

    @property
    def dataset(self) -> str:
        """The name for loading the data set; for one with a path, the path is ``data_dir`` if given."""
        name: str = self.record.config["dataset"]
        prefix = next((prefix for prefix in FROM_PATH if name.startswith(prefix)), None)
        return f"{prefix}{self.data_dir}" if self.data_dir and prefix else name

    @cached_property
    @ordinary_mode()
    def data(self) -> DataSet:
        """The data set of the run.

        Raises:
            InputError: it is missing, or its fingerprint differs.
        """
        if imports_data(self.dataset) and not self.trust:
            raise InputError(
                f"run {self.record.id} was made on the data set {self.dataset!r}, and loading it imports "
                "that code: pass trust=True if you trust it"
            )
        config = self.record.config
        chosen = DataOptions.among(config)
        data = load_dataset(self.dataset, self.data_dir or config.get("data_dir"), chosen.choices())
        recorded = self.record.environment["data"]["fingerprint"]
        if data.fingerprint != recorded:
            raise InputError(
                f"data set {data.name!r} is not the one of run {self.record.id}: its fingerprint is "
                f"{data.fingerprint}, the record has {recorded}"
            )
        return data

    @ordinary_mode()
    def stage(self, index: int) -> Defense:
        """The defense after a stage; stage 0 is the plain pretrained classifier.

        Raises:
            InputError: there is no such stage, weights are missing or damaged, the model needs ``trust=True``
                or is far larger than its weights.
        """
        found = [stage for stage in self.record.stages if stage.index == index]
        if not found:
            raise InputError(f"run {self.record.id} has no stage {index}")
        self.check_trust()
        weights = self.path / found[0].weights
        with bounded_by(weights, f"the model of run {self.record.id}, stage {index},"):
            try:
                defense = rebuild(self.config, self.record.environment["data"], found[0].spec)
            except InputError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                # A record may come from anyone: its spec may lack values that every defense writes.
                raise InputError(
                    f"run {self.record.id}: the model of stage {index} cannot be built from its spec: "
                    f"{one_line(error)}"
                ) from error
        load_weights(defense, weights)
        return defense

    def check_trust(self) -> None:
        """Import the plug-ins of the record, if it is trusted; refuse a record that names code otherwise.

        Raises:
            InputError: they are, or cannot be imported.
        """
        named = code_named(self.config.model_dump())
        if named and not self.trust:
            raise InputError(
                f"run {self.record.id} was made with {named[0]}, and loading it imports that code: "
                "pass trust=True if you trust it"
            )
        for text in self.config.plugins:
            import_plugin(text)


def load_run(path: str | Path, *, trust: bool = False, data_dir: str | None = None) -> Run:
    """Read a run: ``.record``, ``.model`` (the trained defense) and ``.test_data`` (``x, y`` as evaluated).

    Model and data are read at their first use. An evaluation of a model that was trained elsewhere has no
    ``.model``; it may have ``.examples``, the points that its attacks crafted.

    Args:
        path: the run directory or its ``record.json``.
        trust: allow importing code, ``package.module:name``, that the record names.
        data_dir: where the data set is, if not where the record says.

    Raises:
        RecordError: there is no record, or it cannot be read.
        InputError: see :class:`Run`.
    """
    record = read_record(Path(path))
    directory = Path(path) if Path(path).is_dir() else Path(path).parent
    run = Run(directory, record, trust, data_dir)
    if record.regime != EVALUATED:
        run.check_trust()
    return run


def new_classifier(config: RunConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The untrained classifier of a run: ``shape`` (C, H, W); its weights depend only on the run's seed."""
    channels, height, width = shape
    model = build_model(
        config.model,
        num_classes=classes,
        in_channels=channels,
        image_size=(height, width),
        seed=key_seed("model", config.seed),
        model_args=config.model_args,
    )
    return without_auxiliary(model)


def rebuild(config: RunConfig, data: dict[str, Any], spec: dict[str, Any]) -> Defense:
    """Build a defense from its ``spec``, in eval mode, without loading its weights."""
    channels, height, width = data["shape"]
    classifier = new_classifier(config, (channels, height, width), data["classes"])
    defense = registry.build(
        spec["defense"], classifier, seed=config.seed, parameters=spec.get("parameters", {})
    )
    defense.load_spec(spec)
    return defense.eval()


def load_weights(defense: Defense, path: Path) -> None:
    """Load safetensors weights into ``defense``.

    Raises:
        InputError: the file is missing or damaged, or contains other weights.
    """
    state = read_safetensors(path)
    try:
        defense.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"weights {path} do not fit the model: {' '.join(str(error).split())}") from None


def weights_of(defense: Defense) -> bytes:
    """The parameters and buffers as safetensors; tied tensors are stored once each."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in defense.state_dict().items()}
    return save(state)
