"""The activations that are bounded as curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from advbench.evaluation.certificates.network_steps import UncoveredError


def _clamp(low: float | None = None, high: float | None = None) -> dict[str, Any]:
    ends = [float(end) for end in (low, high) if end is not None]
    return {
        "function": lambda x: torch.clamp(x, low, high),
        "curvature": 0.0,
        "kinks": ends,
        "monotone": True,
    }


def _gelu(approximate: str = "none") -> dict[str, Any]:
    # f'' = φ(x)(2 − x²) is largest at 0: 2φ(0) = 0.798, and so is that of the tanh form.
    return {"function": lambda x: functional.gelu(x, approximate=approximate), "curvature": 0.82}


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> dict[str, Any]:
    # Above the threshold on beta · x, torch returns x, which is e^-20 / beta away from the function.
    if threshold < 20 or beta <= 0:
        raise UncoveredError("softplus with a low threshold")
    return {
        "function": lambda x: functional.softplus(x, beta, 1e6),
        "curvature": beta / 4,
        "monotone": True,
    }


def _elu(alpha: float = 1.0) -> dict[str, Any]:
    if alpha < 0:
        raise UncoveredError("ELU with a negative alpha")
    kinks = [0.0]
    return {
        "function": lambda x: functional.elu(x, alpha),
        "curvature": alpha,
        "kinks": kinks,
        "monotone": True,
    }


def _of(function: Callable[[Tensor], Tensor], curvature: float, *kinks: float, monotone: bool = True) -> Any:
    """An activation without arguments."""
    how = {"function": function, "curvature": curvature, "kinks": kinks, "monotone": monotone}
    return lambda: how


CURVES: dict[str, Callable[..., dict[str, Any]]] = {
    # Bounds of |f''|: 1/(6√3) for sigmoid, 4/(3√3) for tanh, 1/2 for SiLU at 0.
    "sigmoid": _of(torch.sigmoid, 0.0963),
    "tanh": _of(torch.tanh, 0.7699),
    "silu": _of(functional.silu, 0.5001, monotone=False),
    "softsign": _of(functional.softsign, 2.0, 0.0),
    "logsigmoid": _of(functional.logsigmoid, 0.2501),
    "selu": _of(functional.selu, 1.7581, 0.0),
    "relu6": _of(functional.relu6, 0.0, 0.0, 6.0),
    "hardsigmoid": _of(functional.hardsigmoid, 0.0, -3.0, 3.0),
    "hardswish": _of(functional.hardswish, 0.3334, -3.0, 3.0, monotone=False),
    "abs": _of(torch.abs, 0.0, 0.0, monotone=False),
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "hardtanh": lambda low=-1.0, high=1.0: _clamp(low, high),
    "clamp": lambda min=None, max=None: _clamp(min, max),
    "clamp_min": lambda min: _clamp(min, None),
    "clamp_max": lambda max: _clamp(None, max),
    "clip": lambda min=None, max=None: _clamp(min, max),
}
