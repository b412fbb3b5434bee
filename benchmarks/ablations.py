"""What the runs of benchmarks/ablations.yaml say: every method beside itself without one of its parts.

    advbench sweep benchmarks/ablations.yaml --runs-dir runs/ablations --workers 1
    python benchmarks/ablations.py runs/ablations --page docs/ablations.md

Prints Markdown, mean ± standard deviation over seeds, then the paired differences to the whole method. With
--page it goes between the lines ``<!-- METHOD -->`` and ``<!-- end -->`` of that page, whose words stay.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboards import Record, find_records
from leaderboards.statistics.summary import over_seeds

Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Ablation:
    """One method: its variants by what they change (the whole first), and what is looked at."""

    variants: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Value]


def metric(name: str, factor: float = 100.0) -> Value:
    """A metric of the record, in percent."""

    def value(record: Record) -> float | None:
        found = record.metrics.get(name)
        return None if found is None else factor * found

    return value


def survives(attack: str) -> Value:
    """Robust accuracy on an attack of the sequence after the last stage, in percent."""

    def value(record: Record) -> float | None:
        names = [entry.name for entry in record.attacks]
        return 100 * float(record.matrix()[-1, names.index(attack)])

    return value


def transferred(attack: str) -> Value:
    """The same attack crafted on the plain classifier of row 0, in percent."""

    def value(record: Record) -> float | None:
        texts = {entry.name: entry.text for entry in record.attacks}
        cells = [cell for cell in record.audit.probes if cell.threat.access == "transfer"]
        found = [cell.accuracy for cell in cells if cell.attack == texts[attack]]
        return 100 * found[0] if found else None

    return value


CLEAN = {"clean": metric("clean_accuracy")}
SEQUENCE = {name: survives(name) for name in ("fgsm", "pgd", "cw")}
SUMS = {"average": metric("average_robust_accuracy"), "worst case": metric("worst_case_accuracy")}
ABLATIONS = {
    "air": Ablation(
        {
            "the whole": {},
            "no isotropic replay": {"lambda_i": 0},
            "no anisotropic replay": {"lambda_a": 0},
            "no regularisation": {"lambda_r": 0},
        },
        {**CLEAN, **SEQUENCE, **SUMS, "forgetting": metric("forgetting")},
    ),
    "mid": Ablation(
        {
            "the whole": {},
            "no adversarial consistency": {"lambda_adv": 0},
            "no cycle consistency": {"lambda_cyc": 0},
            "no label consistency": {"lambda_lab": 0},
            "first order": {"first_order": True},
            "crafted on a surrogate": {"craft_on": "surrogate"},
        },
        {
            **CLEAN,
            **SEQUENCE,
            **SUMS,
            **{f"{name}, transferred": transferred(name) for name in SEQUENCE},
            "all, transferred": metric("transfer_accuracy"),
            "PSNR, dB": metric("regenerated_psnr", 1.0),
        },
    ),
    "mola-router": Ablation(
        {"the whole": {}, "no TwD": {"lambda_twd": 0}},
        {**CLEAN, **SEQUENCE, **SUMS, "information": metric("router_nmi")},
    ),
}


def variant_of(record: Record, ablation: Ablation, defaults: Mapping[str, Any]) -> str | None:
    """Which variant a run is of: the parameters in which it differs from the whole say so."""
    given = record.config["params"]
    changed = {key: given[key] for key in given if given[key] != defaults.get(key)}
    return next((name for name, wanted in ablation.variants.items() if dict(wanted) == changed), None)


def grouped(records: Sequence[Record], name: str) -> dict[str, dict[int, Record]]:
    """The runs of one method by variant and seed."""
    from defenses import registry
    from defenses.metadata import parameters_of

    ablation = ABLATIONS[name]
    defaults = parameters_of(registry.resolve(name, None)[0])
    found: dict[str, dict[int, Record]] = {variant: {} for variant in ablation.variants}
    for record in records:
        variant = variant_of(record, ablation, defaults) if record.config["defense"] == name else None
        if variant is not None:
            found[variant][record.config["seed"]] = record
    return {variant: runs for variant, runs in found.items() if runs}


def shown(values: Sequence[float | None], sign: str = "") -> str:
    """Mean ± standard deviation."""
    summary = over_seeds(values)
    if summary is None:
        return "–"
    spread = "" if summary.std is None else f" ± {summary.std:.1f}"
    return f"{summary.mean:{sign}.1f}{spread}"


def tables(runs: Mapping[str, Mapping[int, Record]], ablation: Ablation) -> str:
    """Markdown: the variants, then what each has more or less than the whole of the same seed."""
    head = "| " + " | ".join(ablation.columns) + " |\n|---" + "|--:" * len(ablation.columns) + "|"
    whole = runs.get("the whole", {})
    rows, differences = [], []
    for variant, mine in runs.items():
        cells = [shown([value(mine[seed]) for seed in sorted(mine)]) for value in ablation.columns.values()]
        seeds = "" if len(mine) == len(whole) else f" ({len(mine)} seeds)"
        rows.append(f"| {variant}{seeds} | " + " | ".join(cells) + " |")
        both = sorted(set(mine) & set(whole))
        if variant == "the whole" or not both:
            continue
        cells = []
        for value in ablation.columns.values():
            pairs = [(value(mine[seed]), value(whole[seed])) for seed in both]
            cells.append(shown([None if a is None or b is None else a - b for a, b in pairs], "+"))
        differences.append(f"| {variant} | " + " | ".join(cells) + " |")
    text = "\n".join([f"| {len(whole)} seeds {head}", *rows])
    return (
        text
        + "\n\nAgainst the whole of the same seed:\n\n"
        + "\n".join([f"| difference {head}", *differences])
    )


def put(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the lines ``<!-- name -->`` and ``<!-- end -->``.

    Raises:
        SystemExit: there are no such lines.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"error: the page has no lines <!-- {name} --> and <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    records, problems = find_records(given.runs_dir)
    for problem in problems:
        print(problem, file=sys.stderr)
    page = given.page.read_text(encoding="utf-8") if given.page is not None else None
    for name, ablation in ABLATIONS.items():
        runs = grouped(records, name)
        if not runs:
            continue
        text = tables(runs, ablation)
        print(f"## {name}\n\n{text}\n")
        if page is not None:
            page = put(page, name, text)
    if page is not None:
        given.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
