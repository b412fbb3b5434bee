"""Builds a reference table: trains and evaluates the best known defenses against each attack alone.

The runs are those of an ordinary sweep; finished runs are not repeated. The table has the best accuracy that
any finished run of the store reached.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.config.options import Options, as_text
from advbench.config.plugins import import_attacks, written_as
from advbench.config.resolve import points_of
from advbench.data import load_dataset
from advbench.sweep.grid import GridCell
from advbench.sweep.plan import SweepPlan, make_plan
from attacks_pool import Attack, InputError, pool
from attacks_pool.sequences import parse_attacks
from leaderboards import Record
from leaderboards.peers.best_known import best_known, make_reference
from leaderboards.peers.reference import Reference

DEFENSES = "at,trades"
"""The default defenses: adversarial training and TRADES, the usual methods against a single lp attack."""


@dataclass(frozen=True)
class ReferencePlan:
    """The runs for a reference table, and the contents of the table.

    Attributes:
        sweep: the runs.
        wanted: name, eps, canonical text and test points of each attack.
        dataset: the name of the data.
        fingerprint: the fingerprint of the data.
        model: the architecture.
    """

    sweep: SweepPlan
    wanted: list[tuple[str, float, str, int]]
    dataset: str
    fingerprint: str
    model: str


def plan_reference(
    attacks: str, defenses: str, seeds: Sequence[int], runs_dir: Path, options: Mapping[str, Any]
) -> ReferencePlan:
    """Plan a run for each attack, defense and seed, trained against exactly that attack and measured on it.

    Args:
        attacks: texts such as ``pgd:eps=0.1,pgd:eps=0.2``; one attack at two budgets counts as two.
        defenses: names, separated by commas.
        seeds: the seeds of the runs.
        runs_dir: the store; it need not exist.
        options: the other options of ``advbench run``.

    Raises:
        InputError: a run is not possible, an attack has no eps, or the same attack and eps is listed twice.
        RecordError: the store cannot be read.
    """
    chosen = Options.of(options)
    data = load_dataset(chosen.dataset, chosen.data_dir, chosen.choices())
    written, plugins = import_attacks(attacks)
    attacks = as_text(written)
    found = pool.sequence(attacks, budget=data.budget)
    check_attacks(found)
    names = [name.strip() for name in defenses.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"--defenses {defenses!r} cannot be read: write different names, such as {DEFENSES}")
    knobs = _own_knobs(options.get("train_set") or {}, {attack.name for attack in found})
    grid = [
        GridCell(
            {
                **options,
                **({"plugins": plugins} if plugins else {}),
                "unseen": "none",
                "eval": "none",
                "train_set": knobs.get(attack.name, {}),
                "defense": name,
                "sequence": text,
                "seed": seed,
            },
            sample_seed=seed,
        )
        for attack, text in zip(found, _written(attacks, found), strict=True)
        for name in names
        for seed in seeds
    ]
    sweep = make_plan(grid, runs_dir)
    config = sweep.cells[0].config
    wanted = [
        (attack.name, attack.eps, attack.text, points_of(config, attack, len(data.test))) for attack in found
    ]
    return ReferencePlan(sweep, wanted, data.name, data.fingerprint, config.network)


def check_attacks(attacks: Iterable[Attack]) -> None:
    """Check that each attack has an eps, and that no attack is listed twice with the same eps.

    Raises:
        InputError: an eps is 0, or two attacks have the same name and eps.
    """
    seen: set[tuple[str, float]] = set()
    for attack in attacks:
        if not attack.eps > 0:
            raise InputError(f"--attacks: {attack.text} changes nothing: give it an eps above 0")
        if (attack.name, attack.eps) in seen:
            raise InputError(f"--attacks: {attack.name} at eps {attack.eps:g} is listed twice")
        seen.add((attack.name, attack.eps))


def build_reference(
    plan: ReferencePlan, records: Iterable[Record]
) -> tuple[Reference | None, list[tuple[str, float]]]:
    """The table (None if it would be empty), and the attacks without a run that counts at their eps.

    Args:
        plan: the contents of the table.
        records: all finished runs of the store.
    """
    terms, missing = best_known(records, plan.wanted, fingerprint=plan.fingerprint, model=plan.model)
    if not terms:
        return None, missing
    table = make_reference(terms, dataset=plan.dataset, fingerprint=plan.fingerprint, model=plan.model)
    return table, missing


def _written(attacks: str, found: Sequence[Attack]) -> list[str]:
    """Each attack in the user's short form; in full if one part of the text means several attacks."""
    pieces = parse_attacks(attacks)
    if [name for name, _ in pieces] != [attack.name for attack in found]:
        return [attack.text for attack in found]
    return [written_as(name, knobs) for name, knobs in pieces]


def _own_knobs(train_set: Mapping[str, Any], names: Set[str]) -> dict[str, dict[str, Any]]:
    """The training knobs ``attack.knob`` by attack, so that each run gets only those of its attack."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in train_set.items():
        name = key.rpartition(".")[0]
        if name not in names:
            raise InputError(
                f"--train-set {key}={value}: write attack.knob=value of {', '.join(sorted(names))}"
            )
        found.setdefault(name, {})[key] = value
    return found
