"""Boards: rows that can be compared, ranked and filtered; their columns, and tables in every format."""
