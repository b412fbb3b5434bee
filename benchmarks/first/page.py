"""The first leaderboard from its runs: records without weights, tables, comparisons, pictures and the site.

    python benchmarks/first/page.py runs/first

Adds the finished runs to leaderboards/results, weights and logs left out, and makes docs/leaderboard.md with
its pictures from all that lies there, and with --site the site. With no directory it only makes them again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from leaderboards import (
    Record,
    RecordError,
    Row,
    RowComparison,
    View,
    compare,
    compare_over,
    find_results,
    inventory,
    read_record,
    rows,
    to_markdown,
)
from leaderboards.boards.labels import labels
from leaderboards.pictures import forgetting_curves, trade_off

LARGEST = 20 * 2**20
"""Bytes of all published records together."""
LEFT_OUT = {".safetensors", ".jsonl"}
Name = tuple[str, str]
"""A defense, with the settings that tell it from others of the board, and its regime."""
AUTOATTACK = "robust.autoattack"
COLUMNS = (
    f"rank,label,regime,average,average_interval,clean,{AUTOATTACK},worst_case,unseen,forgetting,seeds,audit"
)
COMPARED = ("average", AUTOATTACK, "worst-case", "unseen", "clean")


@dataclass(frozen=True)
class Question:
    """Two rows beside each other on every board, each by defense and regime."""

    asked: str
    first: Name
    second: Name


BASE = ("at", "continual")
"""What defenses are compared with in cost."""
QUESTIONS = (
    Question("AIR and joint training", ("air", "continual"), ("at", "joint")),
    Question("AIR and sequential adversarial training", ("air", "continual"), ("at", "continual")),
    Question("MID and joint training", ("mid", "meta"), ("at", "joint")),
    Question("MID and sequential adversarial training", ("mid", "meta"), ("at", "continual")),
    Question("MoLA-Router and joint training", ("mola-router", "joint"), ("at", "joint")),
    Question("replay and sequential adversarial training", ("replay", "continual"), ("at", "continual")),
)

STILL_TO_BE_MADE = (
    "This run is still to be made, for want of a GPU: `advbench sweep benchmarks/first/cifar10.yaml`. On a "
    "CPU its twelve runs went through in short: two batches a stage, one epoch, four points, APGD of two "
    "steps, without Square and AutoAttack."
)
BASES = (BASE, ("at", "joint"))


def publish(runs_dir: Path, results: Path) -> None:
    """Copy finished runs that are not there yet, without weights and logs.

    Raises:
        SystemExit: all together are larger than what was agreed on, or a record names a folder of here.
    """
    complete = [entry.path for entry in inventory(runs_dir) if entry.state == "complete"]
    for run in complete:
        place = str(read_record(run).config["data_dir"])
        if Path(place).is_absolute():
            raise SystemExit(f"error: {run} has data_dir {place}: make it with a relative one, to publish it")
    for run in complete:
        for path in sorted(run.rglob("*")):
            target = results / run.name / path.relative_to(run)
            if (
                path.is_file()
                and path.suffix not in LEFT_OUT
                and not path.name.startswith(".")
                and not target.exists()
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    size = sum(path.stat().st_size for path in results.rglob("*") if path.is_file())
    if size > LARGEST:
        raise SystemExit(f"error: {results} has {size:,} bytes, more than {LARGEST:,}")


def boards(found: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows that can be compared with each other, in order."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(row.comparison, []).append(row)
    yield from groups.values()


def named(board: Sequence[Row]) -> dict[Name, Row]:
    """The rows of a board by their names.

    Raises:
        SystemExit: two rows have one name, or one that is asked about goes by its settings.
    """
    names = [
        (label.removesuffix(" (target-aware)"), row.regime)
        for label, row in zip(labels(board), board, strict=True)
    ]
    asked = {name for question in QUESTIONS for name in (question.first, question.second)}
    missing = {(row.defense, row.regime) for row in board} & asked - set(names)
    if missing or len(set(names)) < len(names):
        raise SystemExit(f"error: which row is which? {sorted(names)}")
    return dict(zip(names, board, strict=True))


def columns_of(board: Sequence[Row]) -> list[str]:
    """What a board shows: not AutoAttack where no run of it met that."""
    asked = any(AUTOATTACK in row.metrics for row in board)
    return [name for name in COLUMNS.split(",") if asked or name != AUTOATTACK]


def beyond(board: Sequence[Row]) -> str:
    """Markdown: the attacks that a board's runs met beside their sequence, with norm, eps and test points."""
    record = record_in(board[0].directories[0])
    points = {cell.attack: cell.n for cell in record.cells}
    said = []
    for role, title in (("unseen", "Unseen"), ("eval", "Met besides")):
        shown = [
            f"{one.name} ({one.norm or 'no norm'}, eps {one.eps:g}, {points[one.text]} points)"
            for one in record.attacks
            if one.role == role and one.eps is not None
        ]
        said += [f"{title}: {', '.join(shown)}."] if shown else []
    return " ".join(said)


def line(title: str, make: Callable[[str], RowComparison]) -> str:
    """A row of a table: a comparison in each metric."""
    return " | ".join([f"| {title}", *(cell(make, metric) for metric in COMPARED)]) + " |"


def cell(make: Callable[[str], RowComparison], metric: str) -> str:
    """A comparison in points, with its interval and p-value; bold where one is better."""
    try:
        found = make(metric)
    except RecordError:
        return "–"
    text = f"{100 * found.difference:+.1f}"
    if found.low is not None and found.high is not None and found.p is not None:
        p = max(found.p, found.p_seeds or 0.0)
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}], " + (
            "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        )
    return f"**{text}**" if found.better else text


def comparisons(board: Sequence[Row]) -> str:
    """Markdown: the first minus the second in points, with 95 % interval and p-value of the paired test."""
    lines, by_name = [], named(board)
    for question in QUESTIONS:
        first, second = by_name.get(question.first), by_name.get(question.second)
        if first is not None and second is not None:
            lines.append(line(question.asked, partial(compare, first, second)))
    return table("first minus second, points", lines)


def pooled(found: Sequence[Row], base: Name) -> str:
    """Markdown: every row minus that of ``base``, each on all boards of one data set that have both."""
    beside = [board for board in map(named, boards(found)) if base in board]
    lines = []
    for name in sorted(set().union(*beside) - {base}):
        pairs = [(board[name], board[base]) for board in beside if name in board]
        if pairs[0][0].target_aware != pairs[0][1].target_aware:
            continue
        count = f"{len(pairs)} board" + "s" * (len(pairs) > 1)
        lines.append(line(f"`{name[0]}`, {name[1]}, {count}", partial(compare_over, pairs)))
    return table(f"minus `{base[0]}`, {base[1]}, points", lines)


def one_seed(found: Sequence[Row]) -> bool:
    """Whether every row is of a single seed, so that intervals are over test points alone."""
    return all(len(row.runs) == 1 for row in found)


def table(title: str, lines: Sequence[str]) -> str:
    """Markdown: lines of what was compared; nothing where there are none."""
    if not lines:
        return ""
    names = " | ".join(metric.removeprefix("robust.") for metric in COMPARED)
    head = f"| {title} | {names} |\n|---" + "|--:" * len(COMPARED) + "|"
    return "\n".join([head, *lines])


def costs(found: Sequence[Row]) -> str:
    """Markdown: medians over the runs on one data set, and how many times the passes of ``at``.

    Those are compared sequence by sequence: their mean, and the least and the most where they differ. Seconds
    are those of the processor that has made the most runs.
    """
    kept: dict[Name, list[Row]] = {}
    for board in boards(found):
        for name, row in named(board).items():
            kept.setdefault(name, []).append(row)
    runs = {
        name: [record_in(directory) for row in kept[name] for directory in row.directories]
        for name in sorted(kept)
    }
    processors = Counter(processor(record) for records in runs.values() for record in records)
    usual = processors.most_common(1)[0][0]
    passes = {name: statistics.median(map(passes_of, records)) for name, records in runs.items()}
    lines = []
    for name, records in runs.items():
        seconds = [one.cost.training_seconds for one in records if processor(one) == usual]
        cells = [
            f"`{name[0]}`",
            name[1],
            f"{statistics.median(seconds):.0f}" if seconds else "–",
            f"{passes[name]:,.0f}",
            times_at(kept[name], kept.get(BASE, [])),
            f"{statistics.median(one.cost.parameters for one in records):,.0f}",
            f"{statistics.median(one.cost.multiply_adds for one in records):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    made = ", ".join(f"{count} on {name}" for name, count in processors.most_common())
    head = (
        "| defense | regime | trained, s | sample-passes | times `at` | parameters | multiply-adds |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    )
    whose = " Seconds are of the first." if len(processors) > 1 else ""
    return f"Runs: {made}.{whose}\n\n" + "\n".join([head, *lines])


def times_at(mine: Sequence[Row], at: Sequence[Row]) -> str:
    """The passes of a defense over those of sequential ``at`` on the same sequence."""
    base = {row.sequence: passes_of_row(row) for row in at}
    ratios = [passes_of_row(row) / base[row.sequence] for row in mine if row.sequence in base]
    if not ratios:
        return "–"
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    mean = f"{statistics.mean(ratios):.2f}"
    return mean if least == most else f"{mean} ({least} to {most})"


def passes_of_row(row: Row) -> float:
    """Forward and backward passes of single images in training, the mean over seeds."""
    return row.cost["training_forwards"].mean + row.cost["training_backwards"].mean


def record_in(directory: str) -> Record:
    """The record of a run directory."""
    return read_record(Path(directory))


def processor(record: Record) -> str:
    """What a run was made on: the device, or the processor and its instructions."""
    environment = record.environment
    return str(environment["cpu"] if environment["device"].startswith("cpu") else environment["device"])


def passes_of(record: Record) -> int:
    """Forward and backward passes of single images in training."""
    return record.cost.training_forwards + record.cost.training_backwards


def records_of(board: Sequence[Row], names: Sequence[Name]) -> list[Record]:
    """The records behind some rows."""
    rows_of = named(board)
    kept = [rows_of[name] for name in names if name in rows_of]
    return [record_in(directory) for row in kept for directory in row.directories]


def draw(board: Sequence[Row], number: int, folder: Path) -> str:
    """Two pictures of a board; Markdown that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    kinds = {
        "forgetting": lambda: forgetting_curves(
            records_of(board, (("at", "continual"), ("air", "continual"), ("at", "joint")))
        ),
        "tradeoff": lambda: trade_off(board),
    }
    for kind, make in kinds.items():
        try:
            data = make().render("svg")
        except RecordError as error:
            print(f"board {number}: no {kind}: {error}", file=sys.stderr)
            continue
        (folder / f"{kind}-{number}.svg").write_bytes(data)
        shown.append(f"![{kind} of board {number}]({folder.name}/{kind}-{number}.svg)")
    return "\n\n".join(shown)


def page(found: Sequence[Row], folder: Path) -> str:
    """The whole of docs/leaderboard.md."""
    parts = [
        "# The first leaderboard",
        "Made by `python benchmarks/first/page.py` from the records in "
        "[leaderboards/results](../leaderboards/results); what they say is in [findings.md](findings.md). In "
        "percent; of `forgetting` less is better; a rank is 1 + the number of rows that are better by the "
        "paired test (p < 0.05, Holm), so that equal ranks are ties; "
        "`target-aware` rows are told the attack, and ranked apart. Worst cases are over the points that all "
        "attacks have met, fewer than those of the other columns: AutoAttack is dear. The HTML page of "
        "`advbench leaderboard --format html` has no column for a single attack unless it ranks by one "
        "(`--rank-by robust.autoattack`): its pages of the runs have the accuracy under each attack. "
        "Comparisons give the "
        "95 % interval over seeds and test points, of one seed over points alone; bold ones differ by the "
        "paired test over points and, of several seeds, by that over both, which near 0.05 an interval need "
        "not agree with.",
        "Every seed 0 of the digits is trained and attacked again, and compared with its record, by\n\n"
        "```sh\nadvbench verify leaderboards/results --retrain --run-seed 0 --dataset digits\n```\n\n"
        "On the record's processor, with its versions, all is the same bit for bit; elsewhere rounding leads "
        "training to other points, and the report says how many.",
    ]
    for number, board in enumerate(boards(found), 1):
        parts += [
            to_markdown(board, View.of(columns_of(board))).strip().replace("### ", "## ", 1),
            beyond(board),
            comparisons(board),
            draw(board, number, folder),
        ]
    if not any("cifar" in row.dataset for row in found):
        parts += ["## CIFAR-10", STILL_TO_BE_MADE]
    for dataset in sorted({row.dataset for row in found}):
        mine = [row for row in found if row.dataset == dataset]
        parts += [
            f"## Over all sequences: {dataset}",
            "Means over the boards above, which share their test points: what they have in common counts "
            "once. Not corrected for the number of lines."
            + (" One seed: nothing here says how other trainings would differ." if one_seed(mine) else ""),
            *(pooled(mine, base) for base in BASES),
        ]
        parts += [f"## What it costs: {dataset}", costs(mine)]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    """Publish, rank, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs_dir", type=Path, nargs="?", help="finished runs to publish first")
    parser.add_argument("--results", type=Path, default=Path("leaderboards/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/leaderboard.md"))
    parser.add_argument("--site", type=Path, help="a directory for the site; none by default")
    given = parser.parse_args()
    if given.runs_dir is not None:
        publish(given.runs_dir, given.results)
    results, problems = find_results(given.results)
    for problem in problems:
        print(problem, file=sys.stderr)
    found = rows(results, under=[AUTOATTACK])
    given.page.write_text(page(found, given.page.with_suffix("")), encoding="utf-8")
    if given.site is not None:
        from leaderboards.site import write_site

        write_site(given.site, found, runs_dir=given.results)
    print(f"{given.page}: {len(found)} rows of {len(results)} runs")


if __name__ == "__main__":
    main()
