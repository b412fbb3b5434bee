"""McNemar's test for paired shares of test points: exact, and for points that are counted several times.

All pairs of several rows are tested at once, from one matrix product.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaderboards.statistics.points import Floats


@dataclass(frozen=True)
class Pairs:
    """(G, G) two-sided p-values of all pairs; the diagonal is 1. ``exact`` marks the exact ones."""

    p: Floats
    exact: NDArray[np.bool_]


def exact(b: Floats, c: Floats) -> Floats:
    """Exact two-sided McNemar test (McNemar 1947, the binomial form).

    b points are right under the first and wrong under the second, c the other way round. Under H0, each of
    the b + c points is of either kind with probability 1/2, so that p = min(1, 2 · P(X ≤ min(b, c))) with
    X ~ Bin(b + c, 1/2), and p = 1 if b = c.
    """
    from scipy.special import bdtr

    small, total = np.minimum(b, c), b + c
    p = np.minimum(1.0, 2.0 * bdtr(small, np.maximum(total, 1).astype(np.int64), 0.5))
    return np.asarray(np.where(b == c, 1.0, p))


def clustered(difference: Floats, squares: Floats) -> Floats:
    """McNemar's test with test points as clusters (Obuchowski 1998; Durkalski et al. 2003).

    A point k that is evaluated under several seeds and attacks counts once, because its evaluations are not
    independent. Its difference is d_k = (its share right under the first) − (its share right under the
    second), and the test is

        χ² = (Σ_k d_k)² / Σ_k d_k²,      p = P(χ²_1 ≥ χ²).

    This is Durkalski's statistic, and Obuchowski's except for her factor (K − 1)/K if all points are counted
    equally often; with one evaluation per point it is McNemar's (b − c)²/(b + c). It is asymptotic in the
    number of points, and tests whether *these* trained models differ on such points; only the interval
    accounts for other seeds.

    Args:
        difference: Σ_k d_k.
        squares: Σ_k d_k².
    """
    statistic = np.divide(difference**2, squares, out=np.zeros_like(squares), where=squares > 0)
    return two_sided(np.sqrt(statistic))


def two_sided(z: Floats) -> Floats:
    """P(|N(0, 1)| ≥ z), which is P(χ²_1 ≥ z²)."""
    # Use the standard library: importing scipy takes longer than computing most boards.
    return np.array(list(map(math.erfc, (z / math.sqrt(2)).ravel().tolist()))).reshape(z.shape)


def all_pairs(shares: Floats, binary: NDArray[np.bool_]) -> Pairs:
    """Test all pairs of G rows on their n common points.

    Args:
        shares: (G, n) the share of a point's evaluations that are right, for each row.
        binary: (G,) whether a row evaluated each point once; two such rows are tested exactly.
    """
    gram = shares @ shares.T
    own = np.diagonal(gram)
    # Subtraction leaves rounding errors for equal rows; a difference of one evaluation is far larger.
    squares = own[:, None] + own[None, :] - 2 * gram
    squares[squares < 1e-9 * max(1.0, float(own.max(initial=0.0)))] = 0.0
    sums = shares.sum(axis=1)
    p = clustered(sums[:, None] - sums[None, :], squares)
    both = binary[:, None] & binary[None, :]
    if both.any():
        # For shares of 0 and 1 the discordant counts are b = Σ a − Σ ab and c = Σ b' − Σ ab.
        b = np.rint(own[:, None] - gram)
        c = np.rint(own[None, :] - gram)
        p = np.where(both, exact(b, c), p)
    np.fill_diagonal(p, 1.0)
    return Pairs(p, both)
