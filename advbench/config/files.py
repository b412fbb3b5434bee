"""Configuration files: YAML and JSON, read strictly."""

from pathlib import Path
from typing import Any

import yaml

from advbench.config.options import Options
from attacks_pool.errors import InputError


class _Strict(yaml.SafeLoader):
    """YAML without aliases, since a few nested ones expand to gigabytes, and without duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, unless one of its keys would silently replace another."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{key!r} is listed twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: str) -> Any:
    """Read a YAML or JSON file; ``kind`` describes the file in errors.

    Raises:
        InputError: the file is missing, unreadable or very large, uses YAML aliases, or has a key twice.
    """
    from leaderboards.errors import RecordError
    from leaderboards.records.limits import read_bounded

    try:
        text = read_bounded(path).decode("utf-8")
    except RecordError as error:
        raise InputError(f"{kind} {path}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {kind} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{kind} {path} is not text") from None
    try:
        return yaml.load(text, Loader=_Strict)
    except InputError as error:
        raise InputError(f"{kind} {path}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise InputError(f"{kind} {path} is neither YAML nor JSON: {why}") from None


def kind_of(value: object) -> str:
    """The name of the type of a value from a file, for messages."""
    return "nothing" if value is None else type(value).__name__


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML or JSON file; for a ``record.json``, its config.

    Raises:
        InputError: the file is missing or unreadable, uses YAML aliases, or does not contain options.
    """
    content = read_yaml(path, "config")
    if isinstance(content, dict) and "schema" in content:
        from leaderboards.records.record import parse_record

        content = parse_record(content, str(path)).config
    if not isinstance(content, dict):
        raise InputError(f"config {path} must hold key: value pairs, not {kind_of(content)}")
    content = {str(key).replace("-", "_"): value for key, value in content.items()}
    # Check all options, even those that the command line overrides: a file with a mistake is not used.
    Options.of(content)
    return content
