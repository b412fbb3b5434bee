"""Adversarial training with averaged weights, in a package of its own."""

from advbench_weight_averaging.method import WeightAveraging

__all__ = ["WeightAveraging"]
