"""The version of this suite, which records name."""

__version__ = "0.2.0"
