"""The run record: what is refused, and what survives a round trip."""

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from record_trees import record_tree

from leaderboards import (
    Cell,
    Flag,
    PerClass,
    Record,
    RecordedStage,
    RecordError,
    Threat,
    comparable,
    parse_record,
)

PGD, FGSM, CW = "pgd:eps=0.2,steps=40", "fgsm:eps=0.2", "cw:eps=1.0,steps=100"


def cell(stage: int, attack: str, robust: int, correct: int = 90) -> dict[str, Any]:
    """A cell of 100 points as JSON."""
    return {
        "stage": stage,
        "attack": attack,
        "threat": {"norm": "linf", "eps": 0.2, "access": "white-box"},
        "n": 100,
        "clean_correct": correct,
        "robust": robust,
        "invalid": 0,
        "seconds": 1.5,
        "forwards": 4000,
        "backwards": 4000,
        "bound": "norm",
    }


def attack(text: str, role: str) -> dict[str, Any]:
    """An attack entry as JSON."""
    name = text.partition(":")[0]
    known = {"norm": "linf", "eps": 0.2, "access": "white-box", "kind": "budgeted", "training": None}
    return {"text": text, "name": name, "family": "gradient", "role": role, **known}


@pytest.fixture
def tree() -> dict[str, Any]:
    """A whole valid record as JSON."""
    config = {"params": {"beta": 6.0}, "sequence": [FGSM, PGD], "pretrain": 5, "plan": {"epochs": 2}}
    cells = [cell(0, "clean", 99, 99), cell(1, "clean", 90), cell(0, FGSM, 10, 99), cell(1, FGSM, 60)]
    flag = {"code": "zero-gradient", "message": "zero gradients", "evidence": {"share": 0.5}}
    return record_tree(
        config | {"training": ["fgsm:eps=0.2", "pgd:eps=0.2,steps=7"]},
        attacks=[attack(FGSM, "seen"), attack(CW, "unseen"), attack(PGD, "seen")],
        stages=[{"index": 1, "attacks": [FGSM], "weights": "stages/1.safetensors", "spec": {"width": 8}}],
        cells=[*cells, cell(1, PGD, 50), cell(0, PGD, 1, 99), cell(1, CW, 33)],
        metrics={"average_robust_accuracy": 0.55, "forgetting": None},
        per_class=[{"class": "0", "n": 10, "clean_correct": 9, "robust": {PGD: 5}, "worst_case": 4}],
        audit={"verdict": "suspect", "flags": [flag], "checks": ["zero-gradient", "stochastic"]},
    )


def refusal(data: Any) -> str:
    """The message of a record that is refused: one line that names the file."""
    with pytest.raises(RecordError) as caught:
        parse_record(data, "runs/x/record.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("runs/x/record.json: ")
    return message


def test_round_trip(tree: dict[str, Any]) -> None:
    """Mapping, text and bytes give one record, which dumps to the same JSON."""
    record = parse_record(tree, "here")
    assert record.dump() == tree
    assert parse_record(json.dumps(tree), "here") == record
    assert parse_record(json.dumps(tree).encode(), "here") == record
    assert (record.schema_number, record.config["seed"], record.cells[3].accuracy) == (1, 0, 0.6)


def test_a_record_is_frozen(tree: dict[str, Any]) -> None:
    record = parse_record(tree, "here")
    with pytest.raises(ValidationError, match="frozen"):
        record.id = "another"


@pytest.mark.parametrize("number", [0, 2, 99, "1", 1.0, True, None, [1]])
def test_an_unknown_schema_is_refused_before_anything_else(number: object) -> None:
    # The rest is another schema's: it must not be complained about.
    message = refusal({"schema": number, "something": "else"})
    assert f"unknown record schema {json.dumps(number)}: this version reads schema 1" in message


REMOVED = {
    "schema": "missing key 'schema': expected schema 1",
    "environment.data": "key 'environment': missing data",
    "environment.data.fingerprint": "key 'environment': data must hold a name and a fingerprint",
}
for _path in ("protocol", "audit.verdict", "cells.2.robust", "attacks.0.role", "cost.parameters"):
    REMOVED[_path] = f"missing key '{_path}'"
for _key in ("defense", "training", "pretrain", "seed"):
    REMOVED[f"config.{_key}"] = f"key 'config': missing {_key}"
SET: list[tuple[str, Any, str]] = [
    # "label" is "class" in JSON, and nothing else.
    ("per_class.0.label", "0", "unknown key 'per_class.0.label'"),
    ("config.seed", True, "key 'config': seed must be"),
    ("config.seed", "0", "key 'config': seed must be"),
    ("config.params", None, "key 'config': params must be"),
    ("config.sequence", "pgd", "key 'config': sequence must be"),
    ("regime", "joint", "regime 'joint' is not the config's 'continual'"),
    ("cells.0.n", "100", "key 'cells.0.n'"),
    ("cells.0.attack", "deepfool", "a cell names attack 'deepfool', which is not in attacks"),
    ("cells.5", cell(1, PGD, 49), f"two cells for stage 1, attack '{PGD}'"),
]
for _path in ("extra", "audit.extra", "cells.1.extra", "cells.1.threat.extra", "per_class.0.extra"):
    SET.append((_path, 1, f"unknown key '{_path}'"))
for _time in ("yesterday", "2025-01-02T03:04:05", "2025-01-02T03:04:05+02:00"):
    SET.append(("created", _time, "created must be an ISO 8601 time in UTC"))


def place(tree: Any, path: str) -> tuple[Any, Any]:
    """What holds a value, and its key there."""
    *parts, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parts:
        tree = tree[part]
    return tree, last


@pytest.mark.parametrize("path", REMOVED)
def test_what_is_missing_is_named(tree: dict[str, Any], path: str) -> None:
    holder, key = place(tree, path)
    del holder[key]
    assert REMOVED[path] in refusal(tree)


@pytest.mark.parametrize(("path", "value", "message"), SET)
def test_what_does_not_belong_is_named(tree: dict[str, Any], path: str, value: Any, message: str) -> None:
    holder, key = place(tree, path)
    holder[key] = value
    assert message in refusal(tree)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", b"\xff\xfe{", '{"schema": NaN}', "[" * 100_000])
def test_what_is_not_a_json_object_is_one_line(text: str | bytes) -> None:
    assert re.search("not a JSON record|a record is a JSON object", refusal(text))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tree: dict[str, Any], text: str) -> None:
    whole = json.dumps(tree)
    assert '"average_robust_accuracy": 0.55' in whole
    assert "not a JSON record" in refusal(whole.replace("0.55", text))


def test_several_faults_are_counted(tree: dict[str, Any]) -> None:
    del tree["id"], tree["status"], tree["cost"]
    assert refusal(tree).endswith("missing key 'id' (and 2 more)")


def test_a_number_that_json_cannot_hold_is_refused_when_built() -> None:
    """NaN and infinity are refused in Python too, before a record is written."""
    threat = Threat(norm="l2", eps=0.5, access="transfer")
    assert threat.eps == 0.5
    for eps in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite number"):
            Threat(norm="l2", eps=eps, access="transfer")


@pytest.mark.parametrize(
    ("n", "correct", "robust"), [(10, 11, 5), (10, 5, 6), (10, 5, -1), (10, -1, -1), (0, 0, 0)]
)
def test_cell_counts_nest(n: int, correct: int, robust: int) -> None:
    """0 <= robust <= clean_correct <= n, with at least one point."""
    fields = cell(1, PGD, 5, 9)
    assert Cell(**(fields | {"threat": Threat(**fields["threat"])})).robust == 5
    wrong = fields | {"n": n, "clean_correct": correct, "robust": robust}
    with pytest.raises(ValidationError, match=r"counts must satisfy|greater than or equal to 1"):
        Cell.model_validate_json(json.dumps(wrong))


def test_a_clean_cell_counts_every_clean_point() -> None:
    with pytest.raises(ValidationError, match="a clean cell has robust equal to clean_correct"):
        Cell.model_validate_json(json.dumps(cell(1, "clean", 0, 90)))


@pytest.mark.parametrize(("robust", "worst"), [({PGD: 10}, 1), ({PGD: 5}, 6), ({PGD: 5}, -1), ({}, 10)])
def test_per_class_counts_nest(robust: dict[str, int], worst: int) -> None:
    """0 <= worst_case <= robust <= clean_correct <= n."""
    assert PerClass.of("0", n=10, clean_correct=9, robust={PGD: 5}, worst_case=5).label == "0"
    with pytest.raises(ValidationError, match="0 <= worst_case <= each robust <= clean_correct <= n"):
        PerClass.of("0", n=10, clean_correct=9, robust=robust, worst_case=worst)


@pytest.mark.parametrize("weights", ["/etc/x", "../x", "stages/../../x", "C:\\x", "\\\\host\\x", ""])
def test_weights_stay_inside_the_run(weights: str) -> None:
    assert RecordedStage(index=1, attacks=[], weights="stages/1.safetensors", spec={}).index == 1
    with pytest.raises(ValidationError, match="inside the run directory"):
        RecordedStage(index=1, attacks=[], weights=weights, spec={})


@pytest.mark.parametrize("value", [float("nan"), np.int64(3), {1, 2}])
def test_evidence_that_json_cannot_hold_is_refused_when_built(value: object) -> None:
    with pytest.raises(ValidationError, match="not JSON"):
        Flag(code="nan-logits", message="", evidence={"value": value})


def test_open_mappings_are_held_as_they_will_be_read() -> None:
    evidence = {"cells": (1, 2)}
    flag = Flag(code="x", message="", evidence=evidence)
    evidence["cells"] = (3,)
    assert flag.evidence == {"cells": [1, 2]}


def test_matrix_follows_the_order_of_attacks(tree: dict[str, Any]) -> None:
    record = parse_record(tree, "here")
    nan = np.nan
    np.testing.assert_array_equal(record.matrix("seen"), [[0.10, 0.01], [0.60, 0.50]])
    np.testing.assert_array_equal(record.matrix("unseen"), [[nan], [0.33]])
    np.testing.assert_array_equal(record.matrix(), [[0.10, nan, 0.01], [0.60, 0.33, 0.50]])
    np.testing.assert_array_equal(record.matrix("seen", "unseen"), record.matrix())
    np.testing.assert_array_equal(record.clean_column(), [0.99, 0.90])
    assert record.matrix("eval").shape == (2, 0)


def test_a_stage_without_cells_is_a_row_of_nan(tree: dict[str, Any]) -> None:
    tree["stages"].append({"index": 2, "attacks": [PGD], "weights": "stages/2.safetensors", "spec": {}})
    record = parse_record(tree, "here")
    assert np.isnan(record.matrix()[2]).all()
    assert np.isnan(record.clean_column()[2])


def test_comparable_ignores_identity_and_time_only(tree: dict[str, Any]) -> None:
    first = parse_record(tree, "here")
    again = copy.deepcopy(tree)
    again["id"], again["created"] = "at-digits-0-2", "2026-01-01T00:00:00Z"
    again["cost"]["training_seconds"] = again["cost"]["evaluation_seconds"] = 99.0
    again["environment"]["commit"] = "0123456789ab+"
    for entry in again["cells"]:
        entry["seconds"] = 99.0
    assert comparable(parse_record(again, "there")) == comparable(first)
    assert first.dump() == tree

    again["cells"][3]["robust"] -= 1
    assert comparable(parse_record(again, "there")) != comparable(first)


@pytest.mark.parametrize("field", sorted(set(Record.model_fields) - {"id", "created", "schema_number"}))
def test_comparable_keeps_every_other_field(tree: dict[str, Any], field: str) -> None:
    tree["report"] = {"numbers": {"queries": 3}}
    assert field in comparable(parse_record(tree, "here"))
