"""Leaderboard rows: runs grouped over seeds, and ranked among comparable rows."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from leaderboards.boards.query import Query, Texts
from leaderboards.boards.refusing import refusals
from leaderboards.boards.row import Row
from leaderboards.records.entries import Verdict
from leaderboards.records.record import Record
from leaderboards.records.trust import LEVELS, Trust, trust_of
from leaderboards.statistics.brackets import is_bound
from leaderboards.statistics.keys import metric_of, sign_of
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.pairwise import ranks, tests
from leaderboards.statistics.results import COSTS, Result, canonical, result_of
from leaderboards.statistics.standing import Standing, with_intervals
from leaderboards.statistics.summary import Summary, over_seeds
from leaderboards.statistics.under import attack_of, check_attack

_SEVERITY: Final[dict[Verdict, int]] = {"ok": 0, "suspect": 1, "invalid": 2}


def rows(
    records: Iterable[Record | Result],
    dataset: Texts = None,
    *,
    defense: Texts = None,
    regime: Texts = None,
    model: Texts = None,
    verdict: Texts = None,
    sequence: Texts = None,
    where: Iterable[str] = (),
    rank_by: str = "average",
    intervals: bool | Collection[str] = True,
    under: Texts = None,
) -> list[Row]:
    """Aggregate runs over seeds and rank them.

    The runs of a group share defense and parameters, sequence and its training knobs, regime, data
    fingerprint, model, train plan, pretraining and protocol; the newest of several records of one group and
    seed counts. Rows are ranked within one data set × sequence × model × protocol, target-aware rows
    separately. A rank is 1 + the number of rows that are better by a paired test (see
    `leaderboards.statistics.pairwise`), or by their values if outcomes are not available. Suspect rows rank
    below every ok row; invalid rows have no rank. A refused run (see `leaderboards.boards.refusing`) is a row
    of its own, without a rank.

    Args:
        records: the results of `find_results`, or records alone, which have no outcomes.
        dataset, defense, regime, model, verdict, sequence, where: which rows to return, see `Query`. Ranks
            are those of the whole board: a filter hides rows but moves none up.
        rank_by: a metric or its short name, see `leaderboards.statistics.keys`; ``robust.autoattack`` is the
            accuracy under that attack after the last stage; knobs, as in ``robust.pgd:eps=0.1``, choose among
            attacks of one name.
        intervals: the metrics that get a 95 % interval; True for all, False for none.
        under: further accuracies under single attacks, as metrics of the rows.

    Raises:
        RecordError: a metric or key is unknown, no record has a value, or no row was evaluated with an
            attack, or a row with several that match.
    """
    key = metric_of(rank_by)
    query = Query.of(
        where,
        dataset=dataset,
        defense=defense,
        regime=regime,
        model=model,
        verdict=verdict,
        sequence=sequence,
    )
    asked = [] if isinstance(intervals, bool) else list(dict.fromkeys(map(metric_of, intervals)))
    more = [under] if isinstance(under, str) else under or ()
    every = (key, *map(metric_of, [*more, *query.under()]), *asked)
    single = list(dict.fromkeys(name for name in every if attack_of(name)))
    wanted = [*METRICS, *single] if intervals is True else asked
    results = [one if isinstance(one, Result) else result_of(one) for one in records]
    trust = functools.cache(_trust)
    unsorted = [(_unranked(group, single, trust), group) for group in _grouped(results)]
    pairs = sorted(unsorted, key=lambda pair: _order(pair[0], key))
    query.check([row for row, _ in pairs])
    # The seeds of a row have one protocol, and therefore the same attacks.
    met = [(one[0].id, one[0].attacks) for row, one in pairs if query.shows(row)]
    for name in single:
        check_attack(name, met)
    # One data set may have two names (two folders with equal content): the fingerprint decides.
    names: dict[str, str] = {}
    boards: dict[tuple[str, ...], list[tuple[Row, list[Result]]]] = {}
    for row, members in pairs:
        names[row.fingerprint] = max(row.dataset, names.get(row.fingerprint, ""))
        boards.setdefault(row.comparison, []).append((row, members))
    found: list[Row] = []
    for comparison in sorted(boards, key=lambda one: (names[one[0]], *one)):
        found += _board(boards[comparison], key, query, wanted, single, trust)
    for cache in {id(one.cache): one.cache for one in results if one.cache is not None}.values():
        cache.save()
    return found


def _grouped(results: Iterable[Result]) -> list[list[Result]]:
    """The runs of each row, ordered by seed, with only the newest run of each seed."""
    groups: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda one: (datetime.fromisoformat(one.created), one.id)):
        groups.setdefault(result.group, {})[result.seed] = result
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _trust(directory: str) -> Trust:
    return trust_of(Path(directory)) if directory else "self-reported"


def _unranked(results: Sequence[Result], single: Sequence[str], trust: Callable[[str], Trust]) -> Row:
    """One row for runs that differ only in seed, without a rank."""
    first, shared = results[0], results[0].conditions
    extra = sorted({name for result in results for name in result.metrics} - set(METRICS))
    return Row(
        rank=None,
        defense=shared.defense,
        params=shared.params,
        regime=shared.regime,
        target_aware=shared.target_aware,
        verdict=max((result.verdict for result in results), key=_SEVERITY.__getitem__),
        flags=tuple(sorted({flag for result in results for flag in result.flags})),
        dataset=first.dataset,
        fingerprint=shared.fingerprint,
        model=shared.model if isinstance(shared.model, str) else canonical(shared.model),
        sequence=tuple(shared.sequence),
        training=tuple(shared.training),
        plan=shared.plan,
        pretrain=shared.pretrain,
        protocol=shared.protocol,
        seeds=tuple(result.seed for result in results),
        runs=tuple(result.id for result in results),
        metrics={name: _over_seeds(name, results) for name in (*METRICS, *extra, *single)},
        cost={name: over_seeds([float(result.cost[name]) for result in results]) for name in COSTS},
        worst_case_points=min(first.counts, default=0) or None,
        trust=max((trust(result.directory) for result in results), key=LEVELS.index),
        directories=tuple(result.directory for result in results),
    )


def _over_seeds(name: str, results: Sequence[Result]) -> Summary | None:
    """The summary of a metric; bounds of certificates are of the seeds that have one."""
    values = [result.value(name) for result in results]
    return over_seeds([one for one in values if one is not None] if is_bound(name) else values)


def _order(row: Row, key: str) -> tuple[Any, ...]:
    summary = row.metrics[key]
    return (
        row.target_aware,
        bool(row.refused),
        _SEVERITY[row.verdict],
        summary is None,
        0.0 if summary is None else -sign_of(key) * summary.mean,
        row.defense,
        canonical([row.regime, row.params, row.plan, row.training, row.pretrain]),
    )


def _parted(
    row: Row, results: list[Result], key: str, single: Sequence[str], trust: Callable[[str], Trust]
) -> Iterator[tuple[Row, Standing]]:
    """The row of the runs that may be ranked, and one row for each group of refused runs."""
    standing = Standing.of(results)
    refused = refusals(standing, key, trust)
    if not refused:
        yield row, standing
        return
    out = {place for one in refused for place in one.places}
    if kept := [result for place, result in enumerate(results) if place not in out]:
        yield _unranked(kept, single, trust), Standing.of(kept)
    for one in refused:
        some = [results[place] for place in one.places]
        yield replace(_unranked(some, single, trust), refused=one.why), Standing(some, note=one.line)


def _board(
    groups: Sequence[tuple[Row, list[Result]]],
    key: str,
    query: Query,
    wanted: Sequence[str],
    single: Sequence[str],
    trust: Callable[[str], Trust],
) -> list[Row]:
    """The rows of one comparison group that match a query, ranked and in order."""
    if not any(query.shows(row) for row, _ in groups):
        return []
    parts = [pair for row, results in groups for pair in _parted(row, results, key, single, trust)]
    pairs = sorted(parts, key=lambda pair: _order(pair[0], key))
    standings = [standing for _, standing in pairs]
    placed = _ranks([row for row, _ in pairs], standings, key)
    ranked = [replace(row, rank=rank, ranked_by=key) for (row, _), rank in zip(pairs, placed, strict=True)]
    chosen = [index for index, row in enumerate(ranked) if query.shows(row) and query.shows_ranked(row)]
    summaries = with_intervals(
        [standings[index] for index in chosen], [ranked[index].metrics for index in chosen], wanted
    )
    return [
        replace(ranked[index], metrics=metrics, note=standings[index].note)
        for index, metrics in zip(chosen, summaries, strict=True)
    ]


def _ranks(ordered: Sequence[Row], standings: Sequence[Standing], key: str) -> list[int | None]:
    """Ranks of rows in `_order`; ok, suspect and target-aware rows are each tested separately."""
    result: list[int | None] = [None] * len(ordered)
    for aware in (False, True):
        above = 0
        for verdict in ("ok", "suspect"):
            members, scores = [], []
            for index, row in enumerate(ordered):
                summary = row.metrics[key]
                if row.refused or summary is None:
                    continue
                if (row.target_aware, row.verdict) == (aware, verdict):
                    members.append(index)
                    scores.append(summary.mean)
            found = tests([standings[index] for index in members], key)
            for index, rank in zip(members, ranks(scores, found.p, key), strict=True):
                result[index] = above + rank
            above += len(members)
    return result
