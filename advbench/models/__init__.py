"""Classifiers by name: a small zoo, and any factory of the user's own.

Importing this package loads no torch; building a model does.
"""

from __future__ import annotations

from advbench.models.zoo import MODELS, ModelInfo, build_model

__all__ = ["MODELS", "ModelInfo", "build_model"]
