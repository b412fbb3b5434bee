"""The version of this suite, which records name."""

__version__ = "0.1.0"
