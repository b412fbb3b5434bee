"""The errors that this package raises, and the wording of their suggestions."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


def unknown(given: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """The text of an error about an unknown name: the name, the nearest match, the known names."""
    names = list(names)
    return f"{given!r}:{nearest(given, names)} there are {listed(names if shown is None else shown)}"


def nearest(given: str, names: Iterable[str]) -> str:
    """`` did you mean 'x'?``, or an empty text if no name is similar."""
    near = difflib.get_close_matches(given.lower(), list(names), n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """The first twelve names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{', '.join(names[:12]) or 'none'}{more}"


class RecordError(ValueError):
    """A run, its record or a runs directory cannot be used.

    The message is one line that says what was given, what was expected and what to do.
    """


@contextlib.contextmanager
def os_errors(failure: str, missing: str = "") -> Iterator[None]:
    """Turn an OSError in the block into a `RecordError`: ``failure`` and the system's reason.

    With ``missing``, that text replaces them if a file does not exist.
    """
    try:
        yield
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise RecordError(missing) from error
        raise RecordError(f"{failure}: {error.strerror or type(error).__name__}") from error
