"""The weights that a run starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advbench.config.options import Weights
from advbench.models.weights import file_digest, load_state, read_state
from advbench.runtime.hashing import weights_digest
from attacks_pool.errors import InputError
from leaderboards.records.layout import STAGES

ROW_0 = f"{STAGES}/0.safetensors"


def load_start(classifier: nn.Module, given: str | Weights) -> Weights:
    """Load the weights that a run starts from into its new ``classifier``; return them for the record.

    Args:
        classifier: the classifier.
        given: a path, or what a record says, with the place of the file.

    Raises:
        InputError: the file is missing, cannot be read, has values that are not finite, does not fit the
            classifier, or is not the one that the record describes.
    """
    if isinstance(given, Weights) and not (given.file and Path(given.file).is_file()):
        raise InputError(
            f"this run started from weights {given.name!r} (SHA-256 {given.sha256[:12]}…), "
            f"{f'and {given.file} is missing' if given.file else 'which it has no copy of'}: give the file "
            "with --weights FILE"
        )
    path = Path(given.file or "" if isinstance(given, Weights) else given).expanduser()
    state = read_state(path)
    if broken := [key for key, value in state.items() if not _finite(value)]:
        raise InputError(f"weights {path} have values that are not finite, in {broken[0]!r}")
    load_state(classifier, state, path)
    sha256, state_sha256 = file_digest(path), weights_digest(classifier.state_dict())
    if not isinstance(given, Weights):
        return Weights(name=path.name, sha256=sha256, state_sha256=state_sha256, file=str(path.resolve()))
    if given.sha256 != sha256 and given.state_sha256 != state_sha256:
        raise InputError(
            f"weights {path} are not those that the run started from, {given.name!r}: their SHA-256 is "
            f"{sha256[:12]}…, the record has {given.sha256[:12]}…"
        )
    return given


def with_start(config: Mapping[str, Any], run_dir: Path, file: str | Path | None = None) -> dict[str, Any]:
    """A run's ``config`` with the place of the weights that it started from, if it did.

    Without pretraining, row 0 has these weights, so that the run itself holds them.

    Args:
        config: the values of a resolved configuration.
        run_dir: the run's directory.
        file: where the weights are or were.
    """
    weights = config.get("weights")
    if not isinstance(weights, Mapping):
        return dict(config)
    own, pretrain = run_dir / ROW_0, config.get("pretrain")
    untrained = isinstance(pretrain, Mapping) and pretrain.get("epochs") == 0
    if untrained and own.is_file() and not (file and Path(file).is_file()):
        file = own
    return {**config, "weights": {**weights, "file": None if file is None else str(file)}}


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.double().isfinite().all())
