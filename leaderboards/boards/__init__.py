"""Leaderboards: ranking, comparing and filtering rows; their columns, and tables in every format."""
