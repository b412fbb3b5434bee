"""Whether a run's manifest asks for that run, and its identity is the hash of what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advbench.identity import PACKAGES, code_modules, digest, identity_from
from advbench.verifying.subject import Subject
from leaderboards import read_manifest
from leaderboards.records.layout import MANIFEST


def check_identity(subject: Subject) -> Iterator[str]:
    """``run.json`` asks for this very run, and its identity is the hash of what it says."""
    run, record = subject.run, subject.record
    if not (run.path / MANIFEST).exists():
        return
    manifest = read_manifest(run.path)
    if manifest.config != record.config:
        keys = [
            key
            for key in {**manifest.config, **record.config}
            if _differs(manifest.config, record.config, key)
        ]
        yield f"{MANIFEST}: asked for another {' and '.join(sorted(keys))} than the record's"
    if manifest.kind != ("eval" if subject.evaluated else "run"):
        yield f"{MANIFEST}: of another kind of run, {manifest.kind!r}"
    facts = manifest.more.get("facts")
    if subject.evaluated or not isinstance(facts, dict):
        return
    environment = record.environment
    claimed = {
        "data": environment["data"]["fingerprint"],
        "threads": environment["threads"],
        "device": str(environment["device"]).partition(" ")[0],
    }
    for key, value in claimed.items():
        if facts.get(key) != value:
            yield f"{MANIFEST}: {key} is {facts.get(key)!r}, in the record {value!r}"
    if any(name.partition(".")[0] not in PACKAGES for name in code_modules(run.config)):
        # The manifest has the hash of this suite alone; other code went into the identity.
        return
    try:
        identity = identity_from(run.config, environment["data"]["name"], facts)
    except KeyError as error:
        yield f"{MANIFEST}: its facts lack {error}"
        return
    if "surrogate" in facts:
        identity = digest({"run": identity, "surrogate": facts["surrogate"]})
    if identity != manifest.identity:
        yield f"{MANIFEST}: its identity is not the hash of its configuration and its facts"


def _differs(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return key not in one or key not in other or bool(one[key] != other[key])
