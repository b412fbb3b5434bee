"""Short names for display: a row's defense, its verdict, its comparison group."""

from collections.abc import Sequence

from leaderboards.boards.row import Row
from leaderboards.statistics.naming import brief
from leaderboards.statistics.results import canonical


def labels(rows: Sequence[Row]) -> list[str]:
    """Each row's defense, with the settings that differ among rows of the same defense and regime."""

    def settings(row: Row) -> dict[str, str]:
        plan = {f"plan.{name}": value for name, value in row.plan.items()}
        other = {"training": row.training, "pretrain": row.pretrain}
        return {name: canonical(value) for name, value in (row.params | plan | other).items()}

    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    own = [settings(row) for row in rows]
    for row, values in zip(rows, own, strict=True):
        groups.setdefault((row.defense, row.regime), []).append(values)
    return [
        _label(row, values, groups[row.defense, row.regime]) for row, values in zip(rows, own, strict=True)
    ]


def _label(row: Row, own: dict[str, str], group: Sequence[dict[str, str]]) -> str:
    differing = [
        f"{name}={value}" for name, value in own.items() if any(one.get(name) != value for one in group)
    ]
    label = f"{row.defense}({', '.join(differing)})" if differing else row.defense
    return f"{label} (target-aware)" if row.target_aware else label


def audit(row: Row) -> str:
    """The verdict of a row and its flags, as one text."""
    return f"{row.verdict}: {', '.join(row.flags)}" if row.flags else row.verdict


def title_of(row: Row) -> str:
    """The title of a row's comparison group: data set, sequence, model and protocol."""
    about = [
        f"{row.dataset} ({short_hash(row.fingerprint)})",
        " → ".join(map(brief, row.sequence)),
        row.model,
    ]
    return " · ".join([*filter(None, about), f"protocol {short_hash(row.protocol)}"])


def short_hash(text: str) -> str:
    """The start of a hash, without the name of its algorithm."""
    return text.rpartition(":")[2][:8]
