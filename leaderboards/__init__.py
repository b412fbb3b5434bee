"""Leaderboards: the run record, its store, metrics, statistics and tables. Runs no model.

``leaderboards.load("runs")`` returns every run of a directory as a data frame;
``rows(find_results("runs")[0])`` returns the rows themselves, and ``compare`` tests whether two of them
differ.
"""

from leaderboards.audits.finished import find_records
from leaderboards.boards.cache import find_results
from leaderboards.boards.comparing import RowComparison, compare, compare_over
from leaderboards.boards.latex import to_latex
from leaderboards.boards.ranking import rows
from leaderboards.boards.row import Row
from leaderboards.boards.sheets import View
from leaderboards.boards.tables import load, to_csv, to_json, to_markdown, to_table
from leaderboards.errors import RecordError
from leaderboards.records.archive import pack, unpack
from leaderboards.records.checking import Findings, check_run
from leaderboards.records.checksums import verify_checksums, write_checksums
from leaderboards.records.entries import (
    CLEAN,
    AttackEntry,
    Audit,
    Cell,
    Cost,
    Flag,
    PerClass,
    RecordedStage,
    Threat,
)
from leaderboards.records.garbage import Garbage, find_garbage, remove, size_of
from leaderboards.records.inventory import RunEntry, find_complete, find_unfinished, inventory
from leaderboards.records.layout import MANIFEST
from leaderboards.records.lock import RunBusyError, hold, is_held
from leaderboards.records.manifest import Manifest, read_manifest, write_manifest
from leaderboards.records.record import SCHEMA, Record, comparable, parse_record
from leaderboards.records.store import (
    json_bytes,
    new_run_directory,
    read_outcomes,
    read_record,
    write_bytes,
    write_json,
    write_outcomes,
    write_record,
)
from leaderboards.records.trust import (
    Refuted,
    Verified,
    digests_of,
    read_verified,
    remove_refuted,
    remove_verified,
    trust_of,
    write_refuted,
    write_verified,
)
from leaderboards.statistics.metrics import summarise
from leaderboards.statistics.results import Result, result_of

# The names of these classes before version 0.2.
Comparison = RowComparison
Stage = RecordedStage

__all__ = [
    "CLEAN",
    "MANIFEST",
    "SCHEMA",
    "AttackEntry",
    "Audit",
    "Cell",
    "Comparison",
    "Cost",
    "Findings",
    "Flag",
    "Garbage",
    "Manifest",
    "PerClass",
    "Record",
    "RecordError",
    "RecordedStage",
    "Refuted",
    "Result",
    "Row",
    "RowComparison",
    "RunBusyError",
    "RunEntry",
    "Stage",
    "Threat",
    "Verified",
    "View",
    "check_run",
    "comparable",
    "compare",
    "compare_over",
    "digests_of",
    "find_complete",
    "find_garbage",
    "find_records",
    "find_results",
    "find_unfinished",
    "hold",
    "inventory",
    "is_held",
    "json_bytes",
    "load",
    "new_run_directory",
    "pack",
    "parse_record",
    "read_manifest",
    "read_outcomes",
    "read_record",
    "read_verified",
    "remove",
    "remove_refuted",
    "remove_verified",
    "result_of",
    "rows",
    "size_of",
    "summarise",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_table",
    "trust_of",
    "unpack",
    "verify_checksums",
    "write_bytes",
    "write_checksums",
    "write_json",
    "write_manifest",
    "write_outcomes",
    "write_record",
    "write_refuted",
    "write_verified",
]
