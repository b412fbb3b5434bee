"""``advbench plot``: pictures of finished runs, for papers and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from advbench.cli.echoing import echo, warn
from advbench.cli.options import RunsDir

if TYPE_CHECKING:
    from leaderboards import Record
    from leaderboards.pictures import Picture, Theme

KINDS: Final = {
    "heatmap": "the stage × attack matrix with its numbers, a panel a defense",
    "forgetting": "accuracy on each attack after each stage, with a band over seeds",
    "eps": "robust accuracy against the budget: attacks measured at several eps, and the audit's probes",
    "radar": "accuracy by attack family",
    "tradeoff": "clean against robust accuracy, and the Pareto front",
    "images": "one run's test points: clean, attacked, the difference and, where a defense can, regenerated",
}
SUFFIXES: Final = (".svg", ".png", ".pdf")
THEMES: Final = ("light", "dark", "both")
_LIST = "\n\n".join(f"{kind}: {said}." for kind, said in KINDS.items())
HELP = f"""Draw finished runs; seeds are drawn together.

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
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write: .svg, .png or .pdf. By default an SVG here, named by kind and run.",
            show_default=False,
        ),
    ] = None,
    theme: Annotated[str, typer.Option(help="light, dark, or both: two files.")] = "light",
    title: Annotated[
        str | None, typer.Option(help="Another title; an empty one leaves it out.", show_default=False)
    ] = None,
    dpi: Annotated[int, typer.Option(min=30, max=1200, help="Dots per inch of a PNG.")] = 200,
    measure: Annotated[
        str | None,
        typer.Option(help="tradeoff: average, worst-case or unseen.", show_default="average"),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(help="images: names of the run's attacks; its sequence by default.", show_default=False),
    ] = None,
    points: Annotated[
        int | None, typer.Option(min=1, max=20, help="images: how many test points.", show_default="8")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="images: where the data set's files are.", show_default=False)
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="images: import a model factory that the record names.")
    ] = False,
) -> None:
    _check_kind(kind, theme)
    _check_options(kind, "tradeoff", {"measure": measure})
    _check_options(
        kind, "images", {"attacks": attacks, "points": points, "data-dir": data_dir, "trust": trust or None}
    )
    from advbench.cli.runs import find_run
    from leaderboards import write_bytes

    paths = [find_run(name, runs_dir) for name in runs or []]
    themes = ("light", "dark") if theme == "both" else (theme,)
    # Before any work: a name that cannot be written is a pity after it.
    files = [_file(out, kind, paths, one if theme == "both" else "") for one in themes]
    if kind == "images":
        drawn = _images(paths, runs_dir, themes, title, attacks, points, data_dir, trust)
    else:
        drawn = _records(kind, _read(paths, runs_dir), themes, title, measure)
    form = files[0].suffix[1:].lower()
    made = [picture.render(form, dpi=dpi) for picture in drawn]
    for file, data in zip(files, made, strict=True):
        write_bytes(file, data)
        echo(str(file))


plot.__doc__ = HELP


def _check_kind(kind: str, theme: str) -> None:
    from attacks_pool.errors import unknown

    if kind not in KINDS:
        raise unknown("picture", kind, KINDS)
    if theme not in THEMES:
        raise unknown("theme", theme, THEMES)


def _check_options(kind: str, wanted: str, given: dict[str, object]) -> None:
    """Refuse options of another kind: they would do nothing."""
    from attacks_pool.errors import InputError

    names = [f"--{name}" for name, value in given.items() if value is not None]
    if names and kind != wanted:
        raise InputError(f"{' and '.join(names)}: only {wanted} takes that, not {kind}")


def _file(out: Path | None, kind: str, runs: Sequence[Path], theme: str) -> Path:
    """Where a picture goes.

    Raises:
        InputError: another suffix, a directory, or one in a directory that is not there.
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


def _read(paths: Sequence[Path], runs_dir: Path) -> list[Record]:
    """Those records, or all of the runs directory; of the latter, one that cannot be read is a warning."""
    from leaderboards import RecordError, find_records, read_record

    if paths:
        return [read_record(path) for path in paths]
    records, problems = find_records(runs_dir)
    if not records:
        raise RecordError(
            problems[0] if problems else f"no finished runs in {runs_dir}: advbench run makes one"
        )
    for problem in problems:
        warn(f"warning: {problem}")
    return records


def _records(
    kind: str, records: Sequence[Record], themes: Sequence[str], title: str | None, measure: str | None
) -> list[Picture]:
    from leaderboards import pictures, rows

    def one(theme: Theme) -> Picture:
        if kind == "tradeoff":
            return pictures.trade_off(rows(records), measure=measure or "average", theme=theme, title=title)
        draw = {
            "heatmap": pictures.heat_map,
            "forgetting": pictures.forgetting_curves,
            "eps": pictures.eps_curves,
            "radar": pictures.radar,
        }[kind]
        return draw(records, theme=theme, title=title)

    return [one(pictures.THEMES[name]) for name in themes]


def _images(
    paths: Sequence[Path],
    runs_dir: Path,
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
        paths = [entry.path for entry in inventory(runs_dir) if entry.state == "complete"]
    if len(paths) != 1:
        raise InputError(f"images are of one run, not of {len(paths)}: name it")
    from advbench.gallery import POINTS, draw, gallery
    from advbench.saved import load_run
    from leaderboards.pictures import THEMES as KNOWN

    run = load_run(paths[0], trust=trust, data_dir=data_dir)
    names = [name.strip() for name in attacks.split(",")] if attacks is not None else []
    found = gallery(run, points=points or POINTS, attacks=names)
    return [draw(run, found, theme=KNOWN[name], title=title) for name in themes]
