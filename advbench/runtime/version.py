"""The version of this suite, which is stored in records."""

__version__ = "0.2.0"
