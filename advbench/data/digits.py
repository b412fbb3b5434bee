"""scikit-learn's handwritten digits: 1,797 grey 8×8 images, part of the installed package."""

from __future__ import annotations

import numpy as np

from advbench.data.sets import DataSet, Defaults
from advbench.data.splits import TEST_SEED, SplitPool, assemble, stratified_holdout

TEST_SIZE = 360


def load(defaults: Defaults) -> DataSet:
    """Load the digits, values / 16: a stratified 360 are the test set, the other 1,437 train and validate."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pool = SplitPool(
        pixels=bunch.images.astype(np.uint8)[:, None],
        labels=bunch.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
        scale=16,
    )
    train, test = stratified_holdout(pool.labels, TEST_SIZE, classes=pool.classes, seed=TEST_SEED)
    return assemble("digits", pool, train, test, defaults)
