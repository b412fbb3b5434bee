"""Short names for display: a row's defense, its verdict, its comparison group."""

from collections import Counter
from collections.abc import Mapping, Sequence

from leaderboards.boards.row import Row
from leaderboards.statistics.naming import brief
from leaderboards.statistics.results import canonical


def labels(rows: Sequence[Row]) -> list[str]:
    """Each row's defense, with the settings that differ among rows of the same defense and regime."""

    def settings(row: Row) -> dict[str, str]:
        plan = {f"plan.{name}": value for name, value in row.plan.items()}
        other = {"training": row.training, "pretrain": row.pretrain}
        return {name: canonical(value) for name, value in (row.params | plan | other).items()}

    found = []
    for row, apart in zip(rows, differing(rows, list(map(settings, rows))), strict=True):
        label = f"{row.defense}({apart})" if apart else row.defense
        found.append(f"{label} (target-aware)" if row.target_aware else label)
    return found


def differing(rows: Sequence[Row], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """For each row, the settings that differ among rows of its defense and regime: ``name=value, …``."""
    kinds = [(row.defense, row.regime) for row in rows]
    sizes = Counter(kinds)
    taken = Counter((kind, item) for kind, own in zip(kinds, settings, strict=True) for item in own.items())
    return [
        ", ".join(f"{name}={text}" for name, text in own.items() if taken[kind, (name, text)] < sizes[kind])
        for kind, own in zip(kinds, settings, strict=True)
    ]


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
