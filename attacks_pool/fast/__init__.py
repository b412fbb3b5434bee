"""A quick copy of a model for searches, and what proves that it answers the same."""
