"""``advbench plot``: plots of finished runs for papers and web pages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from advbench.cli.completion import attack_lists
from advbench.cli.echo import echo, warn
from advbench.cli.options import RUNS_DIRS, Given, argument, flag, option, runs_dirs, takes

if TYPE_CHECKING:
    from leaderboards import Record
    from leaderboards.pictures import Picture

Found = TypeVar("Found")
KINDS: Final = {
    "heatmap": "the stage × attack matrix with its numbers, one panel per defense",
    "forgetting": "accuracy on each attack after each stage, with a band over seeds",
    "eps": "robust accuracy against eps, from attacks measured at several eps and the audit's probes",
    "radar": "accuracy by attack family",
    "tradeoff": "clean against robust accuracy, with the Pareto front",
    "images": "test points of one run: clean, attacked, the difference and, if the defense can, regenerated",
}
SUFFIXES: Final = (".svg", ".png", ".pdf")
THEMES: Final = ("light", "dark", "both")
OWN: Final = {"tradeoff": ("measure",), "images": ("attacks", "points", "data_dir", "trust")}
"""Options of a single kind."""
_LIST = "\n\n".join(f"{kind}: {said}." for kind, said in KINDS.items())
HELP = f"""Plot finished runs, with the seeds of a defense together.

KIND is one of

{_LIST}
"""


class PlotOptions(Given):
    """The options of ``advbench plot``."""

    kind: str = argument(" | ".join(KINDS), default=..., metavar="KIND", show_default=False)
    runs: list[str] | None = argument(
        "Names or directories of runs; all finished ones by default.", metavar="[RUN]..."
    )
    runs_dir: list[Path] | None = RUNS_DIRS
    out: Path | None = option(
        "The file to write: .svg, .png or .pdf.", unset="an SVG in this folder, named by kind and run"
    )
    theme: str = option("light, dark, or both (two files).", default="light")
    title: str | None = option("Title; an empty one removes it.", unset="by kind and runs")
    dpi: int = option("Dots per inch of a PNG.", default=200, min=30, max=1200)
    measure: str | None = option("tradeoff: average, worst-case or unseen.", unset="average")
    attacks: str | None = option(
        "images: names of the run's attacks.", unset="its sequence", autocompletion=attack_lists
    )
    points: int | None = option("images: how many test points.", unset="8", min=1, max=20)
    data_dir: str | None = option("images: folder with the data set's files.", unset="from the record")
    trust: bool = flag("images: import the model factory that the record names.", "--trust")

    @property
    def themes(self) -> tuple[str, ...]:
        """The themes to draw."""
        return ("light", "dark") if self.theme == "both" else (self.theme,)


@takes(PlotOptions)
def plot(options: PlotOptions) -> None:
    _check(options)
    from advbench.runs.named import find_run
    from leaderboards import write_bytes
    from leaderboards.printable import in_line

    places = runs_dirs(options.runs_dir)
    paths = [find_run(name, places) for name in options.runs or []]
    # Check the output names before doing any work.
    files = [_file(options, paths, one if len(options.themes) > 1 else "") for one in options.themes]
    drawn = _images(options, paths, places) if options.kind == "images" else _records(options, paths, places)
    form = files[0].suffix[1:].lower()
    made = [picture.render(form, dpi=options.dpi) for picture in drawn]
    for file, data in zip(files, made, strict=True):
        write_bytes(file, data)
        echo(in_line(str(file)))


plot.__doc__ = HELP


def _check(options: PlotOptions) -> None:
    """Reject unknown names, and options of another kind, which would have no effect."""
    from attacks_pool.errors import InputError, unknown

    if options.kind not in KINDS:
        raise unknown("picture", options.kind, KINDS)
    if options.theme not in THEMES:
        raise unknown("theme", options.theme, THEMES)
    for wanted, own in OWN.items():
        given = [f"--{name.replace('_', '-')}" for name in own if getattr(options, name) not in (None, False)]
        if given and options.kind != wanted:
            raise InputError(f"{' and '.join(given)}: only for {wanted}, not for {options.kind}")


def _file(options: PlotOptions, runs: Sequence[Path], theme: str) -> Path:
    """The file to write a picture to.

    Raises:
        InputError: an unknown suffix, a directory, or a missing parent directory.
    """
    from attacks_pool.errors import InputError

    stem = "-".join([options.kind, *([runs[0].resolve().name] if len(runs) == 1 else [])])
    path = options.out or Path(f"{stem}.svg")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.is_dir():
        raise InputError(f"--out {path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no directory {path.parent}")
    return path.with_name(f"{path.stem}-{theme}{path.suffix}") if theme else path


def _records(options: PlotOptions, paths: Sequence[Path], places: Sequence[Path]) -> list[Picture]:
    """One picture per theme, of the runs at ``paths``, by default of all in ``places``."""
    from leaderboards import pictures, read_record, result_of, rows
    from leaderboards.boards.cache import find_all_results

    found: Any
    draw: Callable[..., Picture]
    if options.kind == "tradeoff":
        results = [result_of(read_record(path), path) for path in paths]
        results = results or _all(find_all_results(places), places)
        found = rows(results, intervals=False)
        draw = functools.partial(pictures.trade_off, measure=options.measure or "average")
    else:
        found = [read_record(path) for path in paths] or _all(_stored(places), places)
        draw = {
            "heatmap": pictures.heat_map,
            "forgetting": pictures.forgetting_curves,
            "eps": pictures.eps_curves,
            "radar": pictures.radar,
        }[options.kind]
    return [draw(found, theme=pictures.THEMES[name], title=options.title) for name in options.themes]


def _stored(places: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The records in several directories, and a line for each damaged one."""
    from leaderboards import find_records

    found = [find_records(place) for place in places]
    return [one for records, _ in found for one in records], [one for _, lines in found for one in lines]


def _all(found: tuple[list[Found], list[str]], places: Sequence[Path]) -> list[Found]:
    """The runs that were found; warn about each that cannot be read.

    Raises:
        RecordError: nothing was found.
    """
    from leaderboards import RecordError

    runs, problems = found
    if not runs:
        where = " or ".join(map(str, places))
        raise RecordError(problems[0] if problems else f"no finished runs in {where}: advbench run makes one")
    for problem in problems:
        warn(f"warning: {problem}")
    return runs


def _images(options: PlotOptions, paths: Sequence[Path], places: Sequence[Path]) -> list[Picture]:
    from attacks_pool.errors import InputError
    from leaderboards import inventory

    if not paths:
        paths = [entry.path for place in places for entry in inventory(place) if entry.state == "complete"]
    if len(paths) != 1:
        raise InputError(f"images takes one run, not {len(paths)}: name it")
    from advbench.runs.gallery import POINTS, draw, gallery
    from advbench.runs.saved import load_run
    from leaderboards.pictures import THEMES as KNOWN

    run = load_run(paths[0], trust=options.trust, data_dir=options.data_dir)
    names = [name.strip() for name in options.attacks.split(",")] if options.attacks is not None else []
    found = gallery(run, points=options.points or POINTS, attacks=names)
    return [draw(run, found, theme=KNOWN[name], title=options.title) for name in options.themes]
