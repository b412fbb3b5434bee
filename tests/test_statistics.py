"""Intervals and paired tests of leaderboards, against scipy, against slow references and by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from record_trees import cell, entry, record_tree, stored

from leaderboards import (
    RecordError,
    Row,
    compare,
    compare_over,
    find_records,
    find_results,
    parse_record,
    read_record,
    result_of,
    rows,
    summarise,
    write_outcomes,
)
from leaderboards.boards import cache
from leaderboards.boards.tables import data
from leaderboards.records.store import read_outcomes
from leaderboards.statistics import bootstrap
from leaderboards.statistics.bootstrap import at_the_edge, point_weights, replicates_of
from leaderboards.statistics.contrasts import Drawn, all_differences, contrast
from leaderboards.statistics.mcnemar import all_pairs, clustered, exact
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.pairwise import ranks
from leaderboards.statistics.points import Layout, Outcomes, values_of
from leaderboards.statistics.summary import holm

SEEN, UNSEEN = ("fgsm:eps=0.2", "pgd:eps=0.2", "cw:eps=1"), ("bim:eps=0.2", "mim:eps=0.2")
ROLES = ["seen"] * 3 + ["unseen"] * 2


def made(
    skill: float, seed: int, *, points: int = 200, counts: tuple[int, ...] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes of one run, clean (4, n) and robust (4, 5, n); points are as hard for any run."""
    random = np.random.default_rng([seed, int(1000 * skill)])
    hardness = np.random.default_rng(0).random(points)
    learnt = np.array([0.1, 0.9, 0.7, 1.0])[:, None, None] * skill
    robust = random.normal(0, 0.15, (4, 5, points)) + hardness < learnt
    clean = random.random((4, points)) < 0.95
    robust &= clean[:, None] & (skill > 0)
    for attack, count in enumerate(counts or ()):
        robust[:, attack, count:] = False
    return clean, robust


def summed_up(clean: Any, robust: Any, counts: Sequence[int]) -> dict[str, float | None]:
    """The metrics of one run, as `summarise` computes them from R."""
    R = robust.sum(2) / np.array(counts)
    more = {"regime": "continual", "R_unseen": R[:, 3:], "robust": robust[-1], "counts": counts}
    return summarise(R[:, :3], clean.mean(1), **more)


def tree(defense: str, seed: int, clean: Any, robust: Any, counts: Sequence[int]) -> dict[str, Any]:
    """The record of these outcomes."""
    texts = [*SEEN, *UNSEEN]
    cells = []
    for stage, right in enumerate(clean):
        cells.append(cell(stage, "clean", len(right), int(right.sum()), int(right.sum())))
        for text, n, kept in zip(texts, counts, robust[stage], strict=True):
            cells.append(cell(stage, text, n, int(right[:n].sum()), int(kept[:n].sum())))
    config = {"defense": defense, "seed": seed, "model": "cnn", "plan": {"epochs": 1}}
    return record_tree(
        config | {"sequence": list(SEEN), "training": list(SEEN)},
        id=f"{defense}-{seed}",
        attacks=[entry(text, role) for text, role in zip(texts, ROLES, strict=True)],
        cells=cells,
        metrics=summed_up(clean, robust, counts),
    )


def save(
    runs_dir: Path,
    defense: str,
    skill: float,
    seeds: range,
    *,
    counts: tuple[int, ...] | None = None,
    **more: Any,
) -> None:
    """Runs of a defense, a directory a seed."""
    for seed in seeds:
        clean, robust = made(skill, seed, counts=counts)
        directory = runs_dir / f"{defense}-{seed}"
        directory.mkdir(parents=True)
        write_outcomes(directory / "outcomes.npz", clean, robust)
        record = tree(defense, seed, clean, robust, counts or [clean.shape[1]] * 5)
        (directory / "record.json").write_text(json.dumps(record | more), "utf-8")


def by_defense(runs_dir: Path) -> dict[str, Row]:
    """The row of each defense."""
    return {row.defense: row for row in rows(find_results(runs_dir)[0])}


def chi_squared(d: NDArray[np.float64]) -> Any:
    """The p-value of clustered differences a point, approximately."""
    return pytest.approx(scipy.stats.chi2.sf(d.sum() ** 2 / (d**2).sum(), 1), rel=1e-9)


def binomial(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Any:
    """The p-value of two models' points by scipy's binomial test, approximately."""
    only = int((first & ~second).sum()), int((~first & second).sum())
    return pytest.approx(scipy.stats.binomtest(only[0], sum(only), 0.5).pvalue)


def stacked(counts: tuple[int, ...], skill: float = 0.6, seeds: int = 3) -> Outcomes:
    """Outcomes of several seeds."""
    pairs = [made(skill, seed, counts=counts) for seed in range(seeds)]
    clean, robust = (np.stack([pair[part] for pair in pairs]) for part in (0, 1))
    return Outcomes(Layout.of("continual", ROLES, counts, [*SEEN, *UNSEEN]), clean, robust)


@pytest.mark.parametrize("counts", [(200,) * 5, (200, 200, 60, 200, 100)])
def test_terms_of_points_give_the_metrics(counts: tuple[int, ...]) -> None:
    """All of them, as `summarise` computes them from R, where attacks were measured on fewer points too."""
    outcomes = stacked(counts)
    for seed in range(3):
        expected = summed_up(outcomes.clean[seed], outcomes.robust[seed], counts)
        shares = outcomes.robust[seed, -1].sum(1) / np.array(counts)
        expected |= {f"robust.{text}": share for text, share in zip((*SEEN, *UNSEEN), shares, strict=True)}
        for metric, value in expected.items():
            assert values_of(outcomes.terms(metric))[seed] == pytest.approx(value, abs=1e-12), metric


def test_a_single_stage_has_no_terms_of_transfer() -> None:
    """Null metrics stay null, and an evaluated model averages over all its attacks."""
    outcomes = stacked((200,) * 5)
    joint = Outcomes(Layout.of("joint", ROLES, (200,) * 5), outcomes.clean[:, :2], outcomes.robust[:, :2])
    for metric in ("backward_transfer", "forgetting", "forward_transfer"):
        assert joint.terms(metric) is None
    alone = Layout.of("eval", ["eval"] * 5, (200,) * 5)
    judged = Outcomes(alone, outcomes.clean[:, -1:], outcomes.robust[:, -1:])
    values = values_of(judged.terms("average_robust_accuracy"))
    np.testing.assert_allclose(values, outcomes.robust[:, -1].mean((1, 2)))
    assert judged.terms("unseen_accuracy") is None
    with pytest.raises(ValueError, match="unknown metric 'speed'"):
        judged.terms("speed")


def test_a_replicate_is_the_metric_of_resampled_outcomes() -> None:
    """The vectorised form against resampling seeds and points and computing everything again."""
    counts = (200, 200, 60, 200, 100)
    outcomes = stacked(counts)
    strata = outcomes.layout.strata(200)
    assert strata == [60, 100, 200]
    weights = next(point_weights(strata, 5))
    assert (weights[:, :60].sum(1) == 60).all()
    assert (weights[:, 60:100].sum(1) == 40).all()
    names = (*METRICS, "robust.cw")
    fast = {name: replicates_of([outcomes.terms(name)] * 2, strata, 5) for name in names}
    for draw, seed in itertools.product(range(5), range(3)):
        points = np.repeat(np.arange(200), weights[draw].astype(int))
        robust = outcomes.robust[seed][:, :, points]
        expected = summed_up(outcomes.clean[seed][:, points], robust, counts)
        expected["robust.cw"] = robust[-1, 2].sum() / counts[2]
        for name, (first, second) in fast.items():
            np.testing.assert_allclose(first, second, atol=1e-15)
            assert first[seed, draw] == pytest.approx(expected[name], abs=1e-12), name


def drawn_of(right: NDArray[np.float64], seeds: Sequence[int] = ()) -> Drawn:
    """A share of points that are right, (S, n)."""
    (found,) = replicates_of([right[:, None, None]], [right.shape[1]])
    return Drawn(tuple(seeds or range(len(right))), right.mean(axis=1), found)


def test_a_share_of_points_has_the_interval_of_the_binomial() -> None:
    """One seed, one share: the bootstrap's quantiles are those of Bin(n, p)/n, and scipy's bootstrap's."""
    right = np.zeros(360)
    right[:223] = 1.0
    (drawn,) = replicates_of([right[None, None, None]], [360], 20_000)
    low, high = contrast([(1.0, Drawn((7,), np.array([223 / 360]), drawn))]).interval()
    expected = scipy.stats.binom.ppf([0.025, 0.975], 360, 223 / 360) / 360
    np.testing.assert_allclose([low, high], expected, atol=1.5 / 360)
    other = scipy.stats.bootstrap(
        (right,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    )
    np.testing.assert_allclose([low, high], other.confidence_interval, atol=1.5 / 360)
    assert drawn.std() == pytest.approx(np.sqrt(223 / 360 * 137 / 360 / 360), rel=0.02)


def test_none_of_the_points_is_no_certain_zero(tmp_path: Path) -> None:
    """Where nothing can be resampled the exact binomial interval stands, as scipy has it."""
    for share in (0, 1):
        expected = scipy.stats.binomtest(60 * share, 60).proportion_ci(method="exact")
        assert at_the_edge(float(share), 60) == pytest.approx((expected.low, expected.high))
    save(tmp_path, "poor", 0.0, range(2), counts=(200, 200, 60, 200, 100))
    (row,) = rows(find_results(tmp_path)[0])
    summary = row.metrics["worst_case_accuracy"]
    assert (summary.mean, summary.low) == (0.0, 0.0)
    assert summary.high == pytest.approx(1 - 0.025 ** (1 / 60))


def test_seeds_widen_an_interval() -> None:
    """Three seeds of 0.2, 0.5 and 0.8: their spread is in it, where points alone would not tell."""
    right = np.zeros((3, 1000))
    for seed, share in enumerate((200, 500, 800)):
        right[seed, :share] = 1.0
    one = contrast([(1.0, drawn_of(right))])
    # The sample variance of the seeds is 0.09, and that of their mean a third of it.
    assert one.variance == pytest.approx(0.09 / 3, rel=0.02)
    assert one.degrees == pytest.approx(2.0, rel=0.02)
    low, high = one.interval()
    assert (0.5 - low, high - 0.5) == pytest.approx((4.303 * 0.3 / np.sqrt(3),) * 2, rel=0.08)
    assert one.p(0.5) == pytest.approx(2 * scipy.stats.t.sf(0.5 / np.sqrt(0.03), 2), rel=0.02)
    alone = contrast([(1.0, drawn_of(right.mean(0, keepdims=True)))])
    assert alone.variance < 0.02**2
    assert np.isinf(alone.degrees)


def test_a_variance_is_that_of_the_two_way_table() -> None:
    """(MS_seeds + MS_points − MS_residual)/(S n), as the analysis of variance has it."""
    random = np.random.default_rng(2)
    table = random.normal(0, 0.2, (4, 1)) + random.normal(0, 1, (1, 500)) + random.normal(0, 1, (4, 500))
    seeds, points = table.shape
    rows, columns, whole = table.mean(1), table.mean(0), table.mean()
    of_seeds = points * ((rows - whole) ** 2).sum() / (seeds - 1)
    of_points = seeds * ((columns - whole) ** 2).sum() / (points - 1)
    rest = ((table - rows[:, None] - columns + whole) ** 2).sum() / (seeds - 1) / (points - 1)
    assert rest < of_seeds
    found = contrast([(1.0, drawn_of(table))])
    expected = (of_seeds + of_points - rest) / seeds / points
    assert found.variance == pytest.approx(expected, rel=0.04)
    assert found.degrees == pytest.approx(
        (seeds - 1) * (expected / (of_seeds / seeds / points)) ** 2, rel=0.08
    )


def test_seeds_that_cancel_leave_degrees_of_freedom() -> None:
    """What one seed loses the other wins: the mean hardly varies, and its interval stays a narrow one."""
    right = (np.random.default_rng(6).random(300) < 0.5).astype(float)
    found = contrast([(1.0, drawn_of(np.stack([right, 1 - right])))])
    assert found.degrees >= 1.0
    low, high = found.interval()
    assert (low, high) == pytest.approx((0.5, 0.5), abs=0.2)


def test_rows_of_other_seeds_are_independent() -> None:
    """Of the same ones differences are paired; the variances of others add up."""
    random = np.random.default_rng(3)
    right = (random.random(400) + 0.1 * random.standard_normal((3, 1)) < 0.5).astype(float)
    first, same, other = drawn_of(right), drawn_of(right * 1.0), drawn_of(right, (5, 6, 7))
    assert contrast([(1.0, first), (-1.0, same)]).variance == pytest.approx(0.0, abs=1e-12)
    own, twice = contrast([(1.0, first)]), contrast([(1.0, first), (-1.0, other)])
    assert twice.replicates.std() == pytest.approx(0.0, abs=1e-12)
    assert twice.variance == pytest.approx(2 * (own.variance - own.replicates.var(ddof=1)))
    tells = 2 * (right.mean(1).var(ddof=1) / 3) ** 2 / 2
    assert twice.degrees == pytest.approx(twice.variance**2 / tells)


def test_all_differences_are_those_of_two() -> None:
    """The matrix of p-values against one contrast after the other, of equal and of other seeds."""
    random = np.random.default_rng(4)
    hard = random.random(300)
    rows_ = []
    three = (0, 1, 2)
    for skill, seeds in ((0.5, three), (0.52, three), (0.6, (*three, 3, 4)), (0.6, (3,)), (0.5, (3,))):
        noise = 0.05 * random.standard_normal((len(seeds), 1))
        noise = noise + 0.1 * random.standard_normal((len(seeds), 300))
        rows_.append(drawn_of((hard + noise < skill).astype(float), seeds))
    found = all_differences(rows_)
    for i, j in itertools.combinations(range(5), 2):
        one = contrast([(1.0, rows_[i]), (-1.0, rows_[j])])
        expected = one.p(rows_[i].values.mean() - rows_[j].values.mean())
        assert found[i, j] == found[j, i] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(np.diagonal(found), 1.0)


@pytest.mark.parametrize("single", [0.02, 0.5], ids=["alike", "apart"])
@pytest.mark.parametrize("of_seeds", [0.0, 0.03, 0.1])
def test_intervals_of_three_seeds_cover_what_they_should(of_seeds: float, single: float) -> None:
    """95 % of them, whether seeds carry nothing, half or nearly all of the variance of 100 points."""
    random = np.random.default_rng(5)
    runs, points, inside = 300, 100, 0
    for _ in range(runs):
        skill = 0.5 + of_seeds * random.standard_normal((3, 1))
        # Points differ in how hard they are, for all seeds alike, and for each seed by itself.
        hard = random.random(points) + single * random.standard_normal((3, points))
        low, high = contrast([(1.0, drawn_of((hard < skill).astype(float)))]).interval()
        inside += low <= 0.5 <= high
    assert 0.92 <= inside / runs <= 0.99


def test_draws_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whether they are kept for the next metric or drawn anew, however many at a time."""
    monkeypatch.setattr(bootstrap, "_BLOCK", 50 * 200)
    kept, again = list(point_weights([50, 200], 300)), list(point_weights([50, 200], 300))
    assert [len(one) for one in kept] == [50] * 6
    first = np.concatenate(kept)
    np.testing.assert_array_equal(first, np.concatenate(again))
    monkeypatch.setattr(bootstrap, "_KEPT", 0)
    np.testing.assert_array_equal(first, np.concatenate(list(point_weights([50, 200], 300))))
    assert first.shape == (300, 200)
    assert not (first[0] == first[1]).all()


def test_exact_mcnemar_is_the_binomial_test() -> None:
    """Every pair of counts up to 12, and two large ones."""
    for b, c in [*itertools.product(range(13), repeat=2), (400, 470), (0, 900)]:
        expected = scipy.stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        found = float(exact(np.array(float(b)), np.array(float(c))))
        assert found == pytest.approx(expected, rel=1e-9), (b, c)


def test_clustered_mcnemar_reduces_to_mcnemar() -> None:
    """With one evaluation a point: (b − c)²/(b + c) on the χ² distribution."""
    for b, c in [(30, 12), (5, 5), (0, 9), (200, 150)]:
        p = float(clustered(np.array(float(b - c)), np.array(float(b + c))))
        assert p == pytest.approx(scipy.stats.chi2.sf((b - c) ** 2 / (b + c), 1), rel=1e-9)


def test_clustered_mcnemar_by_hand() -> None:
    """Two seeds and two attacks: differences a point of 1/2, 1/4, −1/4, 1, 0."""
    shares = np.array([[1.0, 0.75, 0.25, 1.0, 0.5], [0.5, 0.5, 0.5, 0.0, 0.5]])
    # Σd = 1.5, Σd² = 1/4 + 1/16 + 1/16 + 1 = 1.375
    found = all_pairs(shares, np.array([False, False]))
    assert found.p[0, 1] == pytest.approx(scipy.stats.chi2.sf(1.5**2 / 1.375, 1), rel=1e-9)
    assert found.p[0, 0] == 1.0
    assert not found.exact.any()


def test_clusters_do_not_count_as_independent_points() -> None:
    """Copies of the same evaluations add nothing: the naive test would call this difference certain."""
    random = np.random.default_rng(0)
    first, second = (random.random(100) < share for share in (0.6, 0.5))
    once = all_pairs(np.stack([first, second]).astype(float), np.array([False, False])).p[0, 1]
    copied = [np.tile(one, (8, 1)).mean(0) for one in (first, second)]
    assert all_pairs(np.stack(copied), np.array([False, False])).p[0, 1] == pytest.approx(once)


def test_the_clustered_test_keeps_its_level() -> None:
    """Two models that are equal on average differ at p < 0.05 in about 5 % of 2,000 draws."""
    random = np.random.default_rng(1)
    hardness = random.random((2000, 150))
    wrong = 0
    for draw in range(2000):
        runs = random.random((2, 6, 150)) < hardness[draw]
        wrong += all_pairs(runs.mean(1), np.array([False, False])).p[0, 1] < 0.05
    assert 0.035 < wrong / 2000 < 0.065


def test_holm_by_hand() -> None:
    """0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in ascending order, never falling."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0


def test_ranks_by_hand() -> None:
    """A row that only the first beats is second; the third is tied with it though it has less."""
    nan, p = np.nan, np.ones((4, 4))
    p[0, 2] = p[0, 3] = p[1, 3] = 0.001
    assert ranks([0.9, 0.8, 0.7, 0.6], p, "clean_accuracy") == [1, 1, 2, 3]
    # The fourth alone would be first: nothing is significantly better. It cannot stand above the third.
    q = np.ones((3, 3))
    q[0, 1] = 0.001
    assert ranks([0.9, 0.8, 0.7], q, "clean_accuracy") == [1, 2, 2]
    # Without tests the scores decide, and equal ones tie.
    assert ranks([0.9, 0.9, 0.1], np.full((3, 3), nan), "clean_accuracy") == [1, 1, 3]
    assert ranks([0.1, 0.2, 0.2], np.full((3, 3), nan), "forgetting") == [1, 2, 2]
    assert ranks([], np.empty((0, 0)), "forgetting") == []


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three defenses of three seeds: two nearly level, one far behind."""
    runs_dir = tmp_path_factory.mktemp("board")
    for defense, skill in {"good": 0.70, "even": 0.69, "poor": 0.40}.items():
        save(runs_dir, defense, skill, range(3))
    return runs_dir


def test_ties_are_ties(board: Path) -> None:
    """What a paired test cannot tell apart shares a rank; records alone are ranked by their values."""
    results, problems = find_results(board)
    assert problems == []
    found = rows(results)
    assert {row.defense: row.rank for row in found} == {"good": 1, "even": 1, "poor": 3}
    alone = rows([read_record(Path(result.directory)) for result in results])
    assert sorted(row.rank or 0 for row in alone) == [1, 2, 3]
    assert {row.note for row in found} == {""}
    assert all(summary is None or summary.low is None for row in alone for summary in row.metrics.values())
    assert all("a record alone" in row.note for row in alone)


def test_every_metric_has_an_interval_around_its_mean(board: Path) -> None:
    """Nested in the same order each time, and only those that were asked for."""
    results = find_results(board)[0]
    found = rows(results)
    for row in found:
        for metric in METRICS:
            summary = row.metrics[metric]
            assert summary.low <= summary.mean <= summary.high, metric
            assert summary.high - summary.low < 0.3
    assert rows(results) == found
    only = rows(results, intervals=["worst-case"])[0].metrics
    assert {name for name in METRICS if only[name].low is not None} == {"worst_case_accuracy"}


@pytest.mark.parametrize(
    "key",
    ["worst-case", "unseen", "clean", "forgetting", "gap", "average_robust_accuracy", "robust.cw:eps=1"],
)
def test_ranking_keys_have_their_direction(board: Path, key: str) -> None:
    """The first row has the best value: least forgetting, smallest gap, most of anything else."""
    found = rows(find_results(board)[0], rank_by=key)
    values = [row.metrics[row.ranked_by].mean for row in found]
    assert values == sorted(values, reverse=key not in ("forgetting", "gap"))
    assert found[0].rank == 1


def test_compare_is_the_test_of_two_rows(board: Path) -> None:
    """Difference, interval and p, as single points give them."""
    found = by_defense(board)
    far = compare(found["good"], found["poor"])
    assert (far.test, far.better) == ("mcnemar-clustered", "first")
    assert far.difference > 0.2
    assert 0 < far.low < far.difference < far.high
    near = compare(found["even"], found["good"])
    assert near.better is None
    even, good = (
        np.mean([made(skill, seed)[1][-1, :3] for seed in range(3)], axis=(0, 1)) for skill in (0.69, 0.70)
    )
    assert near.p == chi_squared(even - good)
    # These very models differ, by what the seeds of one row differ among themselves too.
    assert near.p < 0.05 < near.p_seeds
    other = compare(found["good"], found["poor"], "forgetting")
    assert other.test == "bootstrap"
    assert other.p == other.p_seeds
    back = compare(found["poor"], found["good"])
    assert (back.difference, back.p, back.better) == (-far.difference, far.p, "second")


def test_several_boards_count_what_they_share_once(board: Path, tmp_path: Path) -> None:
    """One board says what it says alone, the same board twice no more, by draws that were made by hand."""
    found = by_defense(board)
    alone = compare(found["good"], found["even"])
    assert compare_over([(found["good"], found["even"])]) == alone
    twice = compare_over([(found["good"], found["even"])] * 2)
    values = [(one.difference, one.low, one.high, one.p, one.p_seeds) for one in (twice, alone)]
    assert values[0] == pytest.approx(values[1])

    for defense, skill in (("good", 0.66), ("poor", 0.62)):
        save(tmp_path, defense, skill, range(3), protocol="another")
    other = by_defense(tmp_path)
    both = compare_over([(one["good"], one["poor"]) for one in (found, other)])
    weights = next(point_weights([200]))
    terms = [
        np.stack([made(skill, seed)[1][-1, :3].mean(0) for seed in range(3)])
        for skill in (0.70, 0.40, 0.66, 0.62)
    ]
    apart = (terms[0] - terms[1] + terms[2] - terms[3]) / 2
    by_seed = apart @ weights.T / 200
    single = (by_seed - by_seed.mean(0)).var(axis=1, ddof=1).sum() / 2
    sample, of_points = apart.mean(1).var(ddof=1), by_seed.mean(0).var(ddof=1)
    variance = of_points + max(0.0, sample - single) / 3
    degrees = variance**2 / ((sample / 3) ** 2 / 2)
    stretch = np.sqrt(variance / of_points) * scipy.stats.t.ppf(0.975, degrees) / scipy.stats.norm.ppf(0.975)
    middle = by_seed.mean()
    ends = middle + stretch * (np.quantile(by_seed.mean(0), [0.025, 0.975]) - middle)
    assert (both.low, both.high) == pytest.approx(tuple(ends))
    assert both.p == chi_squared(apart.mean(0))
    assert both.p_seeds == pytest.approx(
        2 * scipy.stats.t.sf(both.difference / np.sqrt(variance), degrees), rel=1e-6
    )
    forgotten = compare_over([(one["good"], one["poor"]) for one in (found, other)], "forgetting")
    assert (forgotten.test, forgotten.p) == ("bootstrap", forgotten.p_seeds)


def test_boards_of_one_seed_say_nothing_of_others(tmp_path: Path) -> None:
    """And few discordant points are no evidence that one pair alone would not be."""
    for protocol in ("a", "b"):
        for defense, skill in (("good", 0.7), ("poor", 0.4)):
            save(tmp_path / protocol, defense, skill, range(1), protocol=protocol)
    found = [by_defense(tmp_path / name) for name in "ab"]
    pairs = [(one["good"], one["poor"]) for one in found]
    assert compare_over(pairs, "worst-case").p_seeds is None
    assert compare_over(pairs[:1], "worst-case").test == "mcnemar-exact"


def test_boards_of_other_points_are_not_pooled(board: Path, tmp_path: Path) -> None:
    """Their draws would not be the same, and what they share would count twice."""
    for defense, skill in (("good", 0.7), ("poor", 0.4)):
        save(tmp_path, defense, skill, range(3), protocol="another", counts=(200, 200, 200, 200, 100))
    found = [by_defense(path) for path in (board, tmp_path)]
    with pytest.raises(RecordError, match="different points"):
        compare_over([(one["good"], one["poor"]) for one in found])


def test_boards_without_outcomes_or_rows_are_not_pooled(board: Path, tmp_path: Path) -> None:
    """The difference of means is left, and says why; no pair at all, or a stranger, is an error."""
    found = by_defense(board)
    save(tmp_path, "good", 0.7, range(2), protocol="another")
    save(tmp_path, "poor", 0.4, range(2), protocol="another")
    (tmp_path / "good-1" / "outcomes.npz").unlink()
    other = by_defense(tmp_path)
    pooled = compare_over([(one["good"], one["poor"]) for one in (found, other)])
    assert (pooled.p, pooled.low, pooled.better) == (None, None, None)
    assert "good-" in pooled.note
    assert pooled.difference > 0.2
    with pytest.raises(RecordError, match="no board"):
        compare_over([])
    with pytest.raises(RecordError, match="cannot be compared"):
        compare_over([(found["good"], other["poor"])])


def test_one_seed_of_binary_points_is_tested_exactly(tmp_path: Path) -> None:
    """Worst case against worst case, by scipy's binomial test; seeds or attacks make clusters of points."""
    save(tmp_path, "good", 0.7, range(1))
    save(tmp_path, "poor", 0.6, range(1))
    first, second = rows(find_results(tmp_path)[0])
    a, b = (made(skill, 0)[1][-1].all(0) for skill in (0.7, 0.6))
    found = compare(first, second, "worst-case")
    assert (found.test, found.p) == ("mcnemar-exact", binomial(a, b))
    assert compare(first, second).test == "mcnemar-clustered"


def test_attacks_on_fewer_points_have_intervals_too(tmp_path: Path) -> None:
    """Points are drawn within the blocks that were measured alike, the worst case is of shared ones."""
    counts = (200, 200, 60, 200, 100)
    save(tmp_path, "good", 0.7, range(2), counts=counts)
    save(tmp_path, "poor", 0.5, range(1), counts=counts)
    save(tmp_path, "bad", 0.4, range(1), counts=counts)
    found = by_defense(tmp_path)
    for row in found.values():
        assert all(row.metrics[metric].low is not None for metric in METRICS), row.note
    test = compare(found["poor"], found["bad"], "worst-case")
    a, b = (made(skill, 0, counts=counts)[1][-1, :, :60].all(0) for skill in (0.5, 0.4))
    assert (test.test, test.p) == ("mcnemar-exact", binomial(a, b))


@pytest.mark.parametrize("fault", ["missing", "damaged", "another", "shape"])
def test_outcomes_that_do_not_fit_are_not_used(tmp_path: Path, fault: str) -> None:
    """The run has a row of its own, which says why it has no interval and no rank; the others go on."""
    save(tmp_path, "good", 0.70, range(2))
    save(tmp_path, "even", 0.69, range(2))
    path = tmp_path / "good-1" / "outcomes.npz"
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(b"PK")
    elif fault == "another":
        write_outcomes(path, *made(0.3, 9))
    else:
        write_outcomes(path, *(one[..., :50] for one in made(0.7, 1)))
    board = rows(find_results(tmp_path)[0])
    found = {row.defense: row for row in board}
    summary, other = (found[name].metrics["average_robust_accuracy"] for name in ("good", "even"))
    assert (summary.low, summary.high) == (None, None)
    assert other.low is not None
    assert "good-1" in found["good"].note
    assert [(bool(row.refused), row.rank, row.seeds) for row in board] == [
        (False, 1, (0,)),
        (False, 1, (0, 1)),
        (True, None, (1,)),
    ]
    result = compare(found["good"], found["even"])
    assert (result.p, result.low, result.better, result.test) == (None, None, None, None)
    assert result.note


def test_what_cannot_be_compared(board: Path, tmp_path: Path) -> None:
    """Other sequences, unknown metrics, metrics that are null."""
    found = rows(find_results(board)[0])
    save(tmp_path, "other", 0.5, range(1), protocol="another")
    (stranger,) = rows(find_results(tmp_path)[0])
    with pytest.raises(RecordError, match="good and other cannot be compared"):
        compare(next(row for row in found if row.defense == "good"), stranger)
    with pytest.raises(RecordError, match="'unsen': did you mean 'unseen'"):
        compare(found[0], found[1], "unsen")
    with pytest.raises(RecordError, match="'speed'"):
        rows([], rank_by="speed")


def test_under_a_single_attack(board: Path) -> None:
    """A share of the points that it met, of the records; compared by McNemar's test on them."""
    results = find_results(board)[0]
    found = rows(results, rank_by="robust.cw", under=["robust.bim", "robust.pgd"], intervals=["robust.bim"])
    for row in found:
        for name in ("pgd", "cw", "bim"):
            summary = row.metrics[f"robust.{name}"]
            column = [text.partition(":")[0] for text in (*SEEN, *UNSEEN)].index(name)
            seeds = [read_outcomes(Path(one) / "outcomes.npz")[1][-1, column] for one in row.directories]
            assert summary.mean == pytest.approx(np.mean(seeds))
            assert (summary.low is None) == (name != "bim")
            assert summary.low is None or summary.low < summary.mean < summary.high
    under = {row.defense: row for row in found}
    result = compare(under["good"], under["poor"], "robust.pgd:eps=1/5")
    assert (result.better, result.test) == ("first", "mcnemar-clustered")
    plain = by_defense(board)
    assert compare(plain["good"], plain["poor"], "robust.pgd") == replace(result, metric="robust.pgd")
    mean = rows(results, under=["robust.pgd"])[-1].metrics["robust.pgd"].mean
    (poor,) = rows(results, where=[f"robust.pgd:eps=0.2_mean={mean!r}"])
    assert poor.defense == "poor"
    names, _ = data(rows(results, under=["robust.pgd"]))
    assert names[-4:] == [f"robust.pgd_{part}" for part in ("mean", "std", "low", "high")]


def test_attacks_that_no_row_or_several_of_a_row_have(board: Path, tmp_path: Path) -> None:
    """One line each; rows that a filter hides may have met several."""
    results = find_results(board)[0]
    with pytest.raises(RecordError, match="no row has the attack 'pdg': did you mean 'pgd'"):
        rows(results, rank_by="robust.pdg")
    with pytest.raises(RecordError, match=r"'pgd:eps=0\.1': did you mean 'pgd:eps=0\.2'"):
        rows(results, under="robust.pgd:eps=0.1")
    for eps in ("1e400", "1e99999999", "1/0", "two"):
        with pytest.raises(RecordError, match="no row has the attack"):
            rows(results, under=f"robust.pgd:eps={eps}")
    assert rows([], rank_by="robust.anything") == []
    save(tmp_path, "twice", 0.5, range(1))
    path = tmp_path / "twice-0" / "record.json"
    path.write_text(path.read_text().replace("mim:eps=0.2", "bim:eps=0.1"))
    both = [*results, *find_results(tmp_path)[0]]
    with pytest.raises(RecordError) as caught:
        rows(both, rank_by="robust.bim")
    assert "several attacks of twice-0" in str(caught.value)
    assert "write robust.bim:eps=0.2 or robust.bim:eps=0.1, or show fewer rows" in str(caught.value)
    (twice,) = rows(both, defense="twice")
    with pytest.raises(RecordError, match="several attacks of twice-0"):
        compare(twice, twice, "robust.bim")
    with pytest.raises(RecordError, match="'bmi': did you mean 'bim'"):
        compare(twice, twice, "robust.bmi")
    alone = rows(find_records(tmp_path)[0])[0]
    with pytest.raises(RecordError, match=r"twice has no robust\.bim:eps=0\.1: pass under="):
        compare(alone, alone, "robust.bim:eps=0.1")
    assert [row.defense for row in rows(both, rank_by="robust.bim", defense="good")] == ["good"]
    (row,) = rows(both, defense="twice", rank_by="robust.bim:eps=0.1")
    assert row.metrics["robust.bim:eps=0.1"] is not None


def test_suspect_rows_stay_below(board: Path, tmp_path: Path) -> None:
    """However good their numbers are."""
    audit = record_tree({}, verdict="suspect")["audit"]
    save(tmp_path, "masked", 0.95, range(2), audit=audit)
    results = [*find_results(board)[0], *find_results(tmp_path)[0]]
    found = rows(results)
    assert [(row.defense, row.rank) for row in found][-1] == ("masked", 4)


def test_a_result_is_what_its_record_says(board: Path) -> None:
    """Through the path and without one."""
    found = find_results(board)[0][0]
    record = parse_record((board / "even-0" / "record.json").read_bytes(), "x")
    alone = result_of(record)
    assert (found.id, found.metrics, found.group) == (alone.id, alone.metrics, alone.group)
    with pytest.raises(RecordError, match="the location of its outcomes is unknown"):
        alone.outcomes()


def test_kept_numbers_are_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and outcomes come back bit for bit, extreme numbers too."""
    monkeypatch.setattr(cache, "WORTHWHILE", 1)
    monkeypatch.setattr(cache, "_SETTLED", -(10**18))
    save(tmp_path, "good", 0.7, range(2))
    save(tmp_path, "poor", 0.5, range(2), counts=(200, 200, 60, 200, 100))
    clean, robust = made(0.6, 0)
    plan = {"lr": 0.1 + 0.2, "tiny": 5e-324, "big": 10**30, "text": "λ \u2028"}
    extreme = tree("at", 0, clean, robust, [200] * 5)
    extreme["config"]["plan"] = plan
    extreme["metrics"]["regeneration_psnr"] = 5e-324
    stored(tmp_path, extreme)
    write_outcomes(tmp_path / "at-0" / "outcomes.npz", clean, robust)
    first = find_results(tmp_path)[0]
    board = rows(first)
    assert (tmp_path / cache.NAME).is_file()
    again = find_results(tmp_path)[0]
    assert again == first
    assert rows(again) == board
    monkeypatch.setattr(cache, "read_outcomes", None)
    assert rows(find_results(tmp_path)[0]) == board
    monkeypatch.undo()
    assert rows(find_records(tmp_path)[0])[0].metrics["clean_accuracy"] is not None
    (tmp_path / "good-0" / "outcomes.npz").unlink()
    assert "good-0" in by_defense(tmp_path)["good"].note
