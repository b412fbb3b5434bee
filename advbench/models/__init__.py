"""Classifiers by name: a small zoo, any factory of the user's own, and a ``Normalize`` layer for either.

Importing this package loads no torch; building a model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advbench.models.listed import FORMS, LIBRARIES, MODELS, ModelInfo
from advbench.models.zoo import build_model, changes_images, imports_code

if TYPE_CHECKING:
    from advbench.models.normalize import Normalize

__all__ = [
    "FORMS",
    "LIBRARIES",
    "MODELS",
    "ModelInfo",
    "Normalize",
    "build_model",
    "changes_images",
    "imports_code",
]


def __getattr__(name: str) -> Any:
    if name == "Normalize":
        from advbench.models.normalize import Normalize

        return Normalize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
