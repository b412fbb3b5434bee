"""``advbench plot``: plots of finished runs for papers and web pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from advbench.cli.echo import echo, warn
from advbench.cli.options import RunsDirs, runs_dirs

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
_LIST = "\n\n".join(f"{kind}: {said}." for kind, said in KINDS.items())
HELP = f"""Plot finished runs, with the seeds of a defense together.

KIND is one of

{_LIST}
"""


def plot(
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), metavar="KIND", show_default=False)],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names or directories of runs; all finished ones by default.", metavar="[RUN]..."
        ),
    ] = None,
    runs_dir: RunsDirs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write: .svg, .png or .pdf.",
            show_default="an SVG in this folder, named by kind and run",
        ),
    ] = None,
    theme: Annotated[str, typer.Option(help="light, dark, or both (two files).")] = "light",
    title: Annotated[
        str | None,
        typer.Option(help="Title; an empty one removes it.", show_default="by kind and runs"),
    ] = None,
    dpi: Annotated[int, typer.Option(min=30, max=1200, help="Dots per inch of a PNG.")] = 200,
    measure: Annotated[
        str | None,
        typer.Option(help="tradeoff: average, worst-case or unseen.", show_default="average"),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(help="images: names of the run's attacks.", show_default="its sequence"),
    ] = None,
    points: Annotated[
        int | None, typer.Option(min=1, max=20, help="images: how many test points.", show_default="8")
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help="images: folder with the data set's files.", show_default="from the record"),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="images: import the model factory that the record names.")
    ] = False,
) -> None:
    _check_kind(kind, theme)
    _check_options(kind, "tradeoff", {"measure": measure})
    _check_options(
        kind, "images", {"attacks": attacks, "points": points, "data-dir": data_dir, "trust": trust or None}
    )
    from advbench.cli.finding import find_run
    from leaderboards import write_bytes
    from leaderboards.printable import in_line

    places = runs_dirs(runs_dir)
    paths = [find_run(name, places) for name in runs or []]
    themes = ("light", "dark") if theme == "both" else (theme,)
    # Check the output names before doing any work.
    files = [_file(out, kind, paths, one if theme == "both" else "") for one in themes]
    if kind == "images":
        drawn = _images(paths, places, themes, title, attacks, points, data_dir, trust)
    else:
        drawn = _records(kind, paths or places, themes, title, measure, named=bool(paths))
    form = files[0].suffix[1:].lower()
    made = [picture.render(form, dpi=dpi) for picture in drawn]
    for file, data in zip(files, made, strict=True):
        write_bytes(file, data)
        echo(in_line(str(file)))


plot.__doc__ = HELP


def _check_kind(kind: str, theme: str) -> None:
    from attacks_pool.errors import unknown

    if kind not in KINDS:
        raise unknown("picture", kind, KINDS)
    if theme not in THEMES:
        raise unknown("theme", theme, THEMES)


def _check_options(kind: str, wanted: str, given: dict[str, object]) -> None:
    """Reject options of another kind, which would have no effect."""
    from attacks_pool.errors import InputError

    names = [f"--{name}" for name, value in given.items() if value is not None]
    if names and kind != wanted:
        raise InputError(f"{' and '.join(names)}: only for {wanted}, not for {kind}")


def _file(out: Path | None, kind: str, runs: Sequence[Path], theme: str) -> Path:
    """The file to write a picture to.

    Raises:
        InputError: an unknown suffix, a directory, or a missing parent directory.
    """
    from attacks_pool.errors import InputError

    path = out or Path("-".join([kind, *([runs[0].resolve().name] if len(runs) == 1 else [])]) + ".svg")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.is_dir():
        raise InputError(f"--out {path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no directory {path.parent}")
    return path.with_name(f"{path.stem}-{theme}{path.suffix}") if theme else path


def _records(
    kind: str,
    paths: Sequence[Path],
    themes: Sequence[str],
    title: str | None,
    measure: str | None,
    *,
    named: bool,
) -> list[Picture]:
    """One picture per theme; ``paths`` are runs if ``named``, otherwise directories of runs."""
    from leaderboards import pictures, read_record, result_of, rows
    from leaderboards.boards.cache import find_all_results

    if kind == "tradeoff":
        results = (
            [result_of(read_record(path), path) for path in paths]
            if named
            else _all(find_all_results(paths), paths)
        )
        found = rows(results, intervals=False)
        return [
            pictures.trade_off(found, measure=measure or "average", theme=pictures.THEMES[name], title=title)
            for name in themes
        ]
    draw = {
        "heatmap": pictures.heat_map,
        "forgetting": pictures.forgetting_curves,
        "eps": pictures.eps_curves,
        "radar": pictures.radar,
    }[kind]
    records = [read_record(path) for path in paths] if named else _all(_stored(paths), paths)
    return [draw(records, theme=pictures.THEMES[name], title=title) for name in themes]


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


def _images(
    paths: Sequence[Path],
    places: Sequence[Path],
    themes: Sequence[str],
    title: str | None,
    attacks: str | None,
    points: int | None,
    data_dir: str | None,
    trust: bool,
) -> list[Picture]:
    from attacks_pool.errors import InputError
    from leaderboards import inventory

    if not paths:
        paths = [entry.path for place in places for entry in inventory(place) if entry.state == "complete"]
    if len(paths) != 1:
        raise InputError(f"images takes one run, not {len(paths)}: name it")
    from advbench.runs.gallery import POINTS, draw, gallery
    from advbench.runs.saved import load_run
    from leaderboards.pictures import THEMES as KNOWN

    run = load_run(paths[0], trust=trust, data_dir=data_dir)
    names = [name.strip() for name in attacks.split(",")] if attacks is not None else []
    found = gallery(run, points=points or POINTS, attacks=names)
    return [draw(run, found, theme=KNOWN[name], title=title) for name in themes]
