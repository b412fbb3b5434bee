"""advbench: a robustness benchmark for adversarial defenses.

``from advbench import run, evaluate_model, load_run``; importing this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advbench.benchmark import run
    from advbench.config import RunConfig
    from advbench.evaluating import evaluate_model
    from advbench.saved import Run, load_run
    from attacks_pool.asking import TakeOutput

__version__ = "0.1.0"
__all__ = ["Run", "RunConfig", "TakeOutput", "__version__", "evaluate_model", "load_run", "run"]

_HOMES = {
    "run": "advbench.benchmark",
    "evaluate_model": "advbench.evaluating",
    "RunConfig": "advbench.config",
    "Run": "advbench.saved",
    "load_run": "advbench.saved",
    "TakeOutput": "attacks_pool.asking",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'advbench' has no attribute {name!r}")
