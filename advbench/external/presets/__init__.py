"""Presets: named lists of attacks and points, each a YAML file here or a user's own."""

from advbench.external.presets.preset import DEFAULT, Preset, builtin_names, find_preset
from advbench.external.presets.suite import Suite, suite

__all__ = ["DEFAULT", "Preset", "Suite", "builtin_names", "find_preset", "suite"]
