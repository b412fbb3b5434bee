"""``advbench attacks sample``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from advbench.cli.echo import echo
from advbench.data.registry import DATASETS, FOLDER
from attacks_pool import pool
from attacks_pool.errors import InputError, unknown


def sample(
    words: Sequence[str],
    seed: int,
    families: Sequence[str] | None,
    norms: Sequence[str] | None,
    unseen: int,
    dataset: str,
    *,
    as_json: bool,
) -> None:
    """Print a sampled sequence, or with ``unseen`` a split by family as options of ``advbench run``."""
    if len(words) != 1 or not words[0].isdecimal():
        raise InputError(
            f"sample takes one number, not {' '.join(words)!r}: advbench attacks sample 4 --seed 3"
        )
    count, images = int(words[0]), _images(dataset)
    if not unseen:
        drawn = pool.sample_sequence(count, seed, families, norms, budget="digits", images=images)
        names = [attack.name for attack in drawn]
        echo(json.dumps(names) if as_json else ",".join(names))
        return
    seen, held = pool.split_families(seed, unseen, families, norms, images=images)
    sequence, others = (
        [a.name for a in pool.sample_sequence(k, seed, group, norms, budget="digits", images=images)]
        for k, group in ((count, seen), (len(held), held))
    )
    if as_json:
        parts = {"sequence": sequence, "unseen": others, "families": {"seen": seen, "unseen": held}}
        echo(json.dumps(parts))
    else:
        echo(f"--sequence {','.join(sequence)} --unseen {','.join(others)}")


def refuse_without_sample(families: Sequence[str] | None, norms: Sequence[str] | None, unseen: int) -> None:
    """Reject options that only sampling uses."""
    for option, given in (("family", families), ("norm", norms), ("unseen", unseen)):
        if given:
            raise InputError(f"--{option} is only for sample: advbench attacks sample 4 --{option} ...")


def _images(dataset: str) -> tuple[int, int, int] | None:
    if dataset.startswith(FOLDER):
        return None
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return DATASETS[dataset].image_shape
