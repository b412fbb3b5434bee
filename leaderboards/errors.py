"""Errors of the record store."""


class RecordError(ValueError):
    """A run, its record or a runs directory cannot be used.

    The message is one line that says what was given, what was expected and what to do.
    """
