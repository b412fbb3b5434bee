"""``advbench attacks``, ``defenses``, ``datasets`` and others: lists, and single entries in full."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from advbench.cli.echo import echo, warn
from advbench.cli.options import FORMAT, Format, argument, flag, option

LEAST = 30
"""Minimum width of a shortened column."""


def attacks(
    names: list[str] | None = argument("An attack to describe, or: sample K", show_default=False),
    seed: int = option("Random seed of sample.", default=0, min=0),
    family: list[str] | None = option("Sample from this family only; repeatable.", unset="all families"),
    norm: list[str] | None = option("Sample attacks of this norm only; repeatable.", unset="all norms"),
    unseen: int = option(
        "Families to hold out of the sample; one attack is drawn from each.", default=0, min=0
    ),
    dataset: str = option("Sample attacks that work on images of this data set.", default="digits"),
    adapters: bool = flag("List the attacks of other installed libraries.", "--adapters"),
    format: Format = FORMAT,
) -> None:
    """List the attacks, describe some, or draw a sequence (advbench attacks sample 4 --seed 3)."""
    from advbench.cli.sample import refuse_without_sample, sample
    from attacks_pool import pool

    if names and names[0] == "sample":
        sample(names[1:], seed, family or None, norm or None, unseen, dataset, as_json=format is Format.json)
        return
    refuse_without_sample(family, norm, unseen)
    chosen = names or (pool.adapters() if adapters else pool.names())
    _warn("attack", pool.problems)
    columns = ("name", "family", "norm", "access", "kind", "cost", "paper", "summary")
    entries = [_attack(name) for name in chosen]
    _show(entries, columns, format, described=bool(names), spare=("summary", "kind"))


def defenses(
    names: list[str] | None = argument("A defense to describe.", show_default=False),
    format: Format = FORMAT,
) -> None:
    """List the defenses, or describe some."""
    from defenses import registry

    # Plug-ins are loaded, and their problems known, once the registry is asked for names.
    chosen = names or registry.names()
    _warn("defense", registry.problems)
    entries = [_defense(name) for name in chosen]
    _show(entries, ("name", "regimes", "parameters", "paper", "summary"), format, described=bool(names))


def datasets(
    names: list[str] | None = argument("A data set to describe.", show_default=False),
    format: Format = FORMAT,
) -> None:
    """List the data sets, or describe some."""
    from advbench.data.registry import every_info

    columns = ("name", "image_shape", "classes", "train", "validation", "test")
    _show(
        _known("data set", names, every_info()),
        (*columns, "default_model", "description"),
        format,
        described=bool(names),
    )


def models(
    names: list[str] | None = argument("A model to describe.", show_default=False),
    format: Format = FORMAT,
) -> None:
    """List the models that --model takes by name, or describe some."""
    from advbench.models import MODELS

    columns = ("name", "input", "parameters", "description")
    _show(_known("model", names, MODELS), columns, format, described=bool(names))
    if format is Format.table and not names:
        echo("or a network of torchvision or timm: torchvision:NAME, timm:NAME")
        echo("or your own: package.module:factory, a function that builds a torch.nn.Module")


def presets(
    names: list[str] | None = argument("A preset or its YAML file to describe.", show_default=False),
    format: Format = FORMAT,
) -> None:
    """List the presets of advbench eval, or describe some."""
    from dataclasses import asdict

    from advbench.external.presets import builtin_names, find_preset

    found = [asdict(find_preset(name)) for name in names or builtin_names()]
    entries = [{key: value for key, value in preset.items() if key != "file"} for preset in found]
    columns = ("name", "attacks", "points", "datasets", "about")
    _show(entries, columns, format, described=bool(names), spare=("about",))


def _known(kind: str, names: list[str] | None, infos: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The named entries of a table of dataclasses, all by default.

    Raises:
        InputError: an unknown name.
    """
    from dataclasses import asdict

    from attacks_pool.errors import unknown

    for name in names or []:
        if name not in infos:
            raise unknown(kind, name, infos)
    return [asdict(infos[name]) for name in names or infos]


def _show(
    entries: Sequence[dict[str, Any]],
    columns: Sequence[str],
    format: Format,
    *,
    described: bool,
    spare: Sequence[str] = (),
) -> None:
    """Print entries as JSON, in full, or as a table of ``columns``; see `_table` for ``spare``."""
    if format is Format.json:
        echo(json.dumps(entries, indent=2))
    elif described:
        for entry in entries:
            _describe(entry)
    else:
        lines = [[_cell(entry[column]) for column in columns] for entry in entries]
        _table(columns, lines, spare=spare)


def _attack(name: str) -> dict[str, Any]:
    from advbench.config.plugins import import_attack, names_code
    from attacks_pool import pool
    from attacks_pool.metadata import format_value

    if names_code(name):
        name = import_attack(name)
    entry = pool.entry(name)
    info = entry.info
    knobs = {
        knob: {
            "default": None if callable(spec.default) or knob == "eps" else format_value(spec.default),
            "training": None
            if spec.training is None or callable(spec.training)
            else format_value(spec.training),
            "help": spec.help,
            "allowed": spec.allowed() if spec.value_type in (int, float) or spec.choices else None,
        }
        for knob, spec in info.all_knobs().items()
    }
    passes = info.passes(pool.get(name, budget="digits").knobs)
    keep = ("name", "family", "norm", "access", "kind", "paper")
    return {
        **{key: getattr(info, key) for key in keep},
        "cost": None if passes is None else dict(zip(("forwards", "backwards"), passes, strict=True)),
        "summary": entry.summary,
        "source": entry.source,
        "knobs": knobs,
    }


def _defense(name: str) -> dict[str, Any]:
    import inspect

    from advbench.config.plugins import import_defense, names_code
    from defenses import registry
    from defenses.metadata import parameters_of

    found = import_defense(name) if names_code(name) else registry.resolve(name)[0]
    info = found.info.model_dump(mode="json")
    defaults = {
        key: None if value is inspect.Parameter.empty else value
        for key, value in parameters_of(found).items()
    }
    summary = (inspect.getdoc(found) or "").partition("\n")[0]
    return {
        **info,
        "parameters": defaults,
        "summary": summary,
        "source": f"{found.__module__}:{found.__name__}",
    }


def _describe(entry: Mapping[str, Any]) -> None:
    """Print ``key: value`` lines, with mappings indented below their key."""
    for key, value in entry.items():
        if isinstance(value, dict) and value and key != "cost":
            echo(f"{key}:")
            for name, inner in value.items():
                echo(f"  {name}: {_inner(inner)}")
        else:
            echo(f"{key}: {_cell(value)}")
    echo("")


def _inner(value: Any) -> str:
    if not isinstance(value, dict):
        return _cell(value)
    notes = [f"{key} {inner}" for key, inner in value.items() if inner is not None and key != "help"]
    return f"{value.get('help', '')} ({', '.join(notes)})" if notes else str(value.get("help", ""))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict) and set(value) == {"forwards", "backwards"}:
        return f"{value['forwards']} + {value['backwards']}"
    if isinstance(value, dict):
        return ", ".join(value) or "-"
    return str(value)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], spare: Sequence[str] = ()) -> None:
    """Print a table; if the terminal is too narrow, drop the columns in ``spare`` in turn.

    The first of them is shortened instead, if at least :data:`LEAST` characters fit.
    """
    from rich.table import Table

    from advbench.runtime.console import output

    console = output()
    rows = [dict(zip(columns, line, strict=True)) for line in lines]
    shown = list(columns)
    for column in spare:
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) + 3 for name in shown}
        room = console.width - 1 - sum(widths.values()) + widths[column] - 3
        if room >= widths[column] - 3:
            break
        if column == spare[0] and room >= LEAST:
            for row in rows:
                row[column] = row[column] if len(row[column]) <= room else f"{row[column][: room - 1]}…"
            break
        shown.remove(column)
    table = Table(*(column.replace("_", " ") for column in shown))
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    console.print(table)


def _warn(kind: str, problems: Mapping[str, str]) -> None:
    for name, cause in problems.items():
        warn(f"warning: {kind} plug-in {name!r} could not be loaded: {cause}")
