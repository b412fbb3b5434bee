"""Records as JSON trees, for tests that invent what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leaderboards import Record, new_run_directory, parse_record, write_record

COST = {"training_forwards": 5000, "training_backwards": 5000, "parameters": 85066, "multiply_adds": 379520}


def record_tree(
    config: Mapping[str, Any], *, fingerprint: str = "f", verdict: str = "ok", **parts: Any
) -> dict[str, Any]:
    """The least that a record holds, under ``config`` and ``parts``, which are keys of the record.

    Any ``verdict`` but ``ok`` comes with a flag.
    """
    settings = {"defense": "at", "params": {}, "sequence": [], "training": [], "regime": "continual"}
    settings |= {"dataset": "digits", "model": "small-cnn", "plan": {}, "pretrain": {}, "seed": 0}
    settings |= config
    environment = {"versions": {"torch": "2.15.0"}, "commit": "abcdef012345", "device": "cpu (x86_64)"}
    environment |= {"threads": 1, "python": "3.11.7", "platform": "Linux"}
    environment |= {"data": {"name": settings["dataset"], "fingerprint": fingerprint}}
    flags = [] if verdict == "ok" else [{"code": "zero-gradient", "message": "m", "evidence": {}}]
    cost = {"training_seconds": 10.0 + settings["seed"], "evaluation_seconds": 2.0} | COST
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


def threat(norm: str | None = "linf", eps: float | None = 0.2, access: str = "white-box") -> dict[str, Any]:
    """What an attack may do."""
    return {"norm": norm, "eps": eps, "access": access}


UNTOUCHED = threat(None, None, "none")
"""The threat of a clean cell."""


def cell(
    stage: int, attack: str, n: int, clean: int, robust: int, threat: Mapping[str, Any] = threat()
) -> dict[str, Any]:
    """A cell: of ``n`` points ``clean`` are right, and ``robust`` of them under the attack."""
    counts = {"n": n, "clean_correct": clean, "robust": robust, "invalid": 0}
    cost = {"seconds": 1.5, "forwards": 4000, "backwards": 4000}
    return {"stage": stage, "attack": attack, "threat": dict(threat), **counts, **cost}


def entry(text: str, role: str = "seen", **known: Any) -> dict[str, Any]:
    """An attack as a record lists it."""
    rest = {"family": "f", "kind": "budgeted", "training": None, **threat()}
    return {"text": text, "name": text.partition(":")[0], "role": role, **rest, **known}


def stages(*attacks: list[str]) -> list[dict[str, Any]]:
    """The stages of a run, each with the attacks that were new in it."""
    return [
        {"index": index, "attacks": texts, "weights": f"stages/{index}.safetensors", "spec": {}}
        for index, texts in enumerate(attacks)
    ]


def stored(runs_dir: Path, *records: Record | Mapping[str, Any]) -> Path:
    """A runs directory with these records, each in a directory that is called as it is."""
    for one in records:
        record = one if isinstance(one, Record) else parse_record(dict(one), "here")
        write_record(new_run_directory(runs_dir, record.id), record)
    return runs_dir


FGSM, PGD = "fgsm:eps=0.2", "pgd:eps=0.2,steps=40"


def scored(defense: str = "at", score: float | None = 0.5, *, seed: int = 0, **more: Any) -> Record:
    """A record with this average robust accuracy; ``more`` are keys of its config, or of `record_tree`."""
    parts = {"fingerprint": "sha256:aaaaaaaaaaaa"}
    parts |= {key: more.pop(key) for key in ("created", "fingerprint", "protocol", "verdict") if key in more}
    config = {"defense": defense, "seed": seed, "sequence": [FGSM, PGD], "training": [FGSM, PGD]}
    config |= {"plan": {"epochs": 2, "lr": 0.1}, "pretrain": {"epochs": 5}}
    metrics = {"average_robust_accuracy": score, "clean_accuracy": 0.9} | more.pop("metrics", {})
    name = "-".join([defense, str(seed), *(parts[key] for key in ("created", "verdict") if key in parts)])
    return parse_record(record_tree(config | more, id=name, metrics=metrics, **parts), "here")
