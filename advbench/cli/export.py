"""``advbench export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from advbench.cli.echo import echo, warn
from advbench.cli.finding import named_run
from advbench.cli.options import RUN_PATH, RUNS_DIRS, flag, option


class Target(StrEnum):
    """The format to write."""

    robustbench = "robustbench"


def export(
    run: Path = RUN_PATH,
    out: Path = option("The file to write.", default=...),
    format: Target = option("robustbench: a row of its model_info.", default=Target.robustbench),
    runs_dir: list[Path] | None = RUNS_DIRS,
    norm: str | None = option("linf, l2 or l1.", unset="the norm of the attacks"),
    name: str | None = option("Title of the paper.", unset="the defense"),
    link: str = option("Address of the paper.", default="", unset="none"),
    authors: str = option("Authors, separated by commas.", default="", unset="none"),
    venue: str = option("Venue of the paper: ICLR 2020.", default="", unset="none"),
    additional_data: bool = flag("Say that training used extra data.", "--additional-data"),
    force: bool = flag("Replace an existing file.", "--force"),
) -> None:
    """Write a finished run as a row of another leaderboard.

    The row claims an AutoAttack accuracy only if AutoAttack ran at its published budget on all test points;
    otherwise its footnote says what was run.
    """
    from leaderboards import RecordError, read_record
    from leaderboards.peers.robustbench import to_text, write_entry
    from leaderboards.peers.robustbench_export import entry_of

    assert format is Target.robustbench
    entry = entry_of(
        read_record(named_run(run, runs_dir)),
        norm=norm,
        name=name,
        link=link,
        authors=authors,
        venue=venue,
        additional_data=additional_data,
    )
    if out.exists() and not force:
        raise RecordError(f"{out} already exists: name another file, or replace it with --force")
    if not out.parent.is_dir():
        raise RecordError(f"cannot write {out}: there is no folder {out.parent}")
    write_entry(out, entry)
    echo(to_text(entry), nl=False)
    warn(f"written    {out}")
