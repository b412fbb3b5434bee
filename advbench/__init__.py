"""advbench: a robustness benchmark for adversarial defenses.

``from advbench import run, evaluate_model, load_run``; importing this package loads no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from advbench.runtime.version import __version__

if TYPE_CHECKING:
    from advbench.benchmark.run import run
    from advbench.config.options import RunConfig
    from advbench.external.certify_model import CertifyRequest, certify_model, certify_run
    from advbench.external.evaluate_model import evaluate_model
    from advbench.external.request import EvalRequest
    from advbench.runs.saved import Run, load_run
    from attacks_pool.calling.logits import TakeOutput

__all__ = [
    "CertifyRequest",
    "EvalRequest",
    "Run",
    "RunConfig",
    "TakeOutput",
    "__version__",
    "certify_model",
    "certify_run",
    "evaluate_model",
    "load_run",
    "run",
]

_HOMES = {
    "run": "advbench.benchmark.run",
    "CertifyRequest": "advbench.external.certify_model",
    "certify_model": "advbench.external.certify_model",
    "certify_run": "advbench.external.certify_model",
    "EvalRequest": "advbench.external.request",
    "evaluate_model": "advbench.external.evaluate_model",
    "RunConfig": "advbench.config.options",
    "Run": "advbench.runs.saved",
    "load_run": "advbench.runs.saved",
    "TakeOutput": "attacks_pool.calling.logits",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'advbench' has no attribute {name!r}")


class _Moved(ModuleType):
    """``advbench.plugins`` of version 0.1; its names are in ``advbench.contract`` now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module("advbench.contract"), name)


sys.modules["advbench.plugins"] = _Moved("advbench.plugins")
