"""Leaderboards: the run record, its store, metrics, statistics and tables. Runs no model.

``leaderboards.load("runs")`` gives every run of a directory as a data frame.
"""

from leaderboards.errors import RecordError
from leaderboards.metrics import summarise
from leaderboards.record import (
    CLEAN,
    SCHEMA,
    AttackEntry,
    Audit,
    Cell,
    Cost,
    Flag,
    PerClass,
    Record,
    Stage,
    Threat,
    comparable,
    parse_record,
)
from leaderboards.store import (
    find_records,
    new_run_directory,
    read_outcomes,
    read_record,
    write_bytes,
    write_json,
    write_outcomes,
    write_record,
)
from leaderboards.tables import Row, load, rows, to_csv, to_json, to_table

__all__ = [
    "CLEAN",
    "SCHEMA",
    "AttackEntry",
    "Audit",
    "Cell",
    "Cost",
    "Flag",
    "PerClass",
    "Record",
    "RecordError",
    "Row",
    "Stage",
    "Threat",
    "comparable",
    "find_records",
    "load",
    "new_run_directory",
    "parse_record",
    "read_outcomes",
    "read_record",
    "rows",
    "summarise",
    "to_csv",
    "to_json",
    "to_table",
    "write_bytes",
    "write_json",
    "write_outcomes",
    "write_record",
]
