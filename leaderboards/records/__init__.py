"""Runs as they lie on disk: records and their parts, checksums, locks, archives, and what becomes garbage."""
