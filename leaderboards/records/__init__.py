"""Runs on disk: records and their parts, checksums, locks, archives, and removal of leftovers."""
