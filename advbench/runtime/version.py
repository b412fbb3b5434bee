"""The version of this suite, which is stored in records."""

__version__ = "0.1.0"
