"""Measures attacks on a model: blocks of points, randomised models, rows of R."""
