"""Parts of reference pages that are made of the registries and the commands while the site is built.

A page marks such a part by a comment, ``<!-- generated: attacks -->``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CITED = re.compile(r" \([^()]*(?:arXiv|OpenReview)[^()]*\)")
TABLE = re.compile(r"^\|.*\n(?:\|.*(?:\n|\Z))+", re.MULTILINE)
WIDE = "::::{div} wide\n\\g<0>\n::::\n"
"""A table that keeps its width on a phone, and scrolls."""
MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def text(plain: str) -> str:
    """Plain text as Markdown that shows exactly it."""
    return re.sub(r"([\\`*_\[\]<>~|$^{}#])", r"\\\1", " ".join(plain.split()))


def prose(docstring: str) -> str:
    """A docstring's sentence as Markdown: its double backticks and roles become code."""
    parts = re.split(r"(?::[\w:]+:)?`{1,2}([^`]+)`{1,2}", docstring)
    return "".join(
        f"`{part}`" if number % 2 else text(f"|{part}|")[2:-2] for number, part in enumerate(parts)
    )


def paper(identifier: str | None) -> str:
    """A link to a paper by its arXiv id."""
    return f"[{identifier}](https://arxiv.org/abs/{identifier})" if identifier else "–"


def attacks() -> Iterator[str]:
    """A section a family: what each attack does, its threat model, and its knobs with their defaults."""
    from attacks_pool import FAMILIES, pool

    infos = [pool.info(name) for name in pool.names()]
    yield f"{len(infos)} attacks in {len(FAMILIES)} families."
    for family, meaning in FAMILIES.items():
        yield f"\n## {family}\n\n{text(meaning).capitalize()}.\n"
        yield "| attack | norm | access | what it does | paper |\n|---|---|---|---|---|"
        members = [info for info in infos if info.family == family]
        for info in members:
            norm = info.norm or "none"
            summary = prose(pool.entry(info.name).summary)
            yield f"| `{info.name}` | {norm} | {info.access} | {summary} | {paper(info.paper)} |"
        yield "\n:::::{dropdown} Knobs and their defaults"
        yield "| attack | knob | evaluation | training | meaning |\n|---|---|---|---|---|"
        for info in members:
            for name, knob in info.all_knobs().items():
                if name == "eps" and info.norm is not None:
                    continue
                defaults = f"{value(knob.default)} | {value(knob.training)}"
                yield f"| `{info.name}` | `{name}` | {defaults} | {text(knob.help)} |"
        yield ":::::"


def value(default: object) -> str:
    """A knob's default; one that follows from other knobs has none of its own."""
    from attacks_pool.metadata import format_value

    if default is None:
        return "the same"
    return "by other knobs" if callable(default) else f"`{format_value(default)}`"


def defenses() -> Iterator[str]:
    """A table of the registered defenses."""
    from defenses import registry

    yield "| defense | regimes | what it does | stores | paper |\n|---|---|---|---|---|"
    for name in registry.names():
        found, _ = registry.resolve(name)
        info = found.info
        summary = prose(CITED.sub("", (inspect.getdoc(found) or "").partition("\n\n")[0]))
        aliases = "".join(f" (alias `{alias}`)" for alias in info.aliases)
        told = " Target-aware." if info.target_aware else ""
        stores = f"{info.memory} images" if info.memory else "–"
        regimes = ", ".join(info.regimes)
        link = f"[`{name}`](#defenses.{found.__name__})"
        yield f"| {link}{aliases} | {regimes} | {summary}{told} | {stores} | {paper(info.paper)} |"


def defense_classes() -> Iterator[str]:
    """Every registered class with its formula and parameters."""
    from defenses import registry

    for name in registry.class_names():
        yield f"```{{eval-rst}}\n.. autoclass:: defenses.{name}\n   :no-members:\n```\n"


def datasets() -> Iterator[str]:
    """A table of the data sets."""
    from advbench.data import DATASETS

    yield "| data set | images | classes | train / validation / test | default model | what it is |"
    yield "|---|---|---|---|---|---|"
    for name, info in DATASETS.items():
        shape = " × ".join(map(str, info.image_shape or ())) or "any"
        sizes = " / ".join(f"{size:,}" if size else "–" for size in (info.train, info.validation, info.test))
        yield (
            f"| `{name}` | {shape} | {info.classes or 'any'} | {sizes} | `{info.default_model}` | "
            f"{text(info.description)} |"
        )


def budgets() -> Iterator[str]:
    """The table of default budgets."""
    from attacks_pool import BUDGETS

    norms = list(next(iter(BUDGETS.values())))
    yield f"| data set | {' | '.join(norms)} |\n|---|{'---|' * len(norms)}"
    for name, row in BUDGETS.items():
        yield f"| `{name}` | {' | '.join(budget(row[norm]) for norm in norms)} |"


def budget(eps: float) -> str:
    """A budget as papers write it."""
    from attacks_pool.metadata import format_value

    levels = eps * 255
    return f"{levels:.0f}/255" if eps < 0.1 and abs(levels - round(levels)) < 1e-9 else format_value(eps)


def commands() -> Iterator[str]:
    """Every command with its arguments, options and defaults, as the parser itself knows them."""
    import typer

    from advbench.cli.main import app

    root = typer.main.get_command(app)
    yield from _command(root, root.make_context("advbench", [], resilient_parsing=True), 2)


def _command(command: Any, context: Any, level: int) -> Iterator[str]:
    """A section of a command, followed by those of its sub-commands."""
    path = context.command_path
    yield f"\n{'#' * level} {path}\n"
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    yield "\n\n".join(text(paragraph) for paragraph in paragraphs) + "\n"
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield _parameter(*record)
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            deeper = type(context)(child, info_name=name, parent=context)
            yield from _command(child, deeper, level if level == 2 and context.parent is None else 3)


def _parameter(names: str, meaning: str) -> str:
    """An entry of a definition list; what the help has in brackets at its end (the default) is set apart."""
    notes: list[str] = []
    while found := re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", meaning, re.DOTALL):
        meaning, note = found.groups()
        notes.insert(0, note)
    said = "; ".join(notes)
    return f"`{names}`\n: {text(meaning)}{f' *{text(said)}*' if said else ''}\n"


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "attacks": attacks,
    "defenses": defenses,
    "defense-classes": defense_classes,
    "datasets": datasets,
    "budgets": budgets,
    "commands": commands,
}


def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put every marked part into a page that is read."""
    source[0] = MARK.sub(lambda mark: TABLE.sub(WIDE, "\n".join(PARTS[mark[1]]())), source[0])


def generated_pages(_app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """The pages that every build reads anew."""
    return [page for page in env.found_docs if MARK.search(env.doc2path(page).read_text("utf-8"))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill pages while they are read."""
    app.connect("source-read", fill)
    app.connect("env-get-outdated", generated_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
