"""Faster equivalents of a model for searches, with checks that both agree."""
