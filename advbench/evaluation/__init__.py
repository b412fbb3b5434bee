"""Attacks measured on a model: blocks of points, random models, rows of R."""
