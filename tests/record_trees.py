"""Records as JSON trees, for tests that invent what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PASSES = ("training_forwards", "training_backwards", "parameters", "multiply_adds")


def record_tree(
    config: Mapping[str, Any], *, fingerprint: str = "f", verdict: str = "ok", **parts: Any
) -> dict[str, Any]:
    """The least that a record holds, under ``config`` and ``parts``, which are keys of the record.

    Any ``verdict`` but ``ok`` comes with a flag.
    """
    settings = {"defense": "at", "params": {}, "sequence": [], "training": [], "regime": "continual"}
    settings |= {"dataset": "digits", "model": "small-cnn", "plan": {}, "pretrain": {}, "seed": 0}
    settings |= config
    environment = {"versions": {}, "commit": None, "device": "cpu", "threads": 1, "python": "3.11"}
    environment |= {"platform": "linux", "data": {"name": settings["dataset"], "fingerprint": fingerprint}}
    flags = [] if verdict == "ok" else [{"code": "zero-gradient", "message": "m", "evidence": {}}]
    cost = {"training_seconds": 10.0 + settings["seed"], "evaluation_seconds": 2.0} | dict.fromkeys(PASSES, 5)
    return {
        "schema": 1,
        "id": "run",
        "created": "2025-01-01T00:00:00Z",
        "status": "complete",
        "config": settings,
        "protocol": "sha256:bbbbbbbbbbbb",
        "regime": settings["regime"],
        "attacks": [],
        "stages": [],
        "environment": environment,
        "cells": [],
        "metrics": {},
        "per_class": [],
        "cost": cost,
        "audit": {"verdict": verdict, "flags": flags, "checks": ["zero-gradient"]},
    } | parts
