"""scikit-learn's handwritten digits: 1,797 grey 8×8 images, part of the installed package."""

from __future__ import annotations

import numpy as np

from advbench.data.pixels import ArraySource
from advbench.data.splits import TEST_SEED, RawData, SplitPool, stratified_holdout

TEST_SIZE = 360


def load() -> RawData:
    """Load the digits, values / 16: a stratified 360 are the test set, the other 1,437 train and validate."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pool = SplitPool(
        images=ArraySource(bunch.images.astype(np.uint8)[:, None], scale=16),
        labels=bunch.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
    train, test = stratified_holdout(pool.labels, TEST_SIZE, classes=pool.classes, seed=TEST_SEED)
    return RawData("digits", pool, train, test)
