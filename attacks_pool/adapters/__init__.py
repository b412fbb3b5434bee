"""Attacks of other libraries under their own names: ``ta:PGD``, ``fb:LinfPGD``, ``aa:apgd-ce``.

A library is imported only when one of its attacks is used, so a missing library does no harm. Names after
the prefix are case-sensitive. Each call builds the attack for the given model and runs it inside
:mod:`attacks_pool.adapters.containment`.

Some attacks (APGD, FAB, Square and their ensembles) return the clean point if they have not fooled the model.
That suits evaluation but is a waste in training. All draw random numbers for a whole batch, and some stop
early for a whole batch (their summaries say so), so a point's result may depend on the other points. This
never happens with this package's own attacks.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from attacks_pool.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attacks_pool.adapters.peer import Peer


@dataclass(frozen=True)
class Library:
    """A supported library: its module, the requirement to install and the adapter in this package."""

    module: str
    requirement: str
    home: str

    @property
    def installed(self) -> bool:
        """Whether the library is installed; this does not import it."""
        return find_spec(self.module) is not None

    @property
    def hint(self) -> str:
        """The command that installs it."""
        return f'pip install "{self.requirement}"'


LIBRARIES: Mapping[str, Library] = {
    "ta": Library("torchattacks", "advbench[torchattacks]", "torchattacks_adapter"),
    "fb": Library("foolbox", "foolbox==3.3.4", "foolbox_adapter"),
    "aa": Library("pyautoattack", "pyautoattack==0.2.0", "pyautoattack_adapter"),
}
"""The supported libraries by prefix."""


def peers(prefix: str) -> dict[str, Peer]:
    """The attacks of one library by full name; the library need not be installed."""
    home = import_module(f"attacks_pool.adapters.{LIBRARIES[prefix].home}")
    table: dict[str, Peer] = home.PEERS
    return table


def find(name: str) -> Peer:
    """Find the attack of this full name, such as ``ta:PGD``, in an installed library.

    Raises:
        InputError: the attack is unknown (the message suggests the nearest name), or the library is not
            installed (the message contains the command that installs it) or fails to import.
    """
    prefix, _, own = name.partition(":")
    prefix = prefix.lower()
    table = peers(prefix)
    library = LIBRARIES[prefix]
    absent = "" if library.installed else f"; {library.module} is not installed: {library.hint}"
    if name not in table:
        spelled = {known.lower(): known for known in table}
        near = difflib.get_close_matches(f"{prefix}:{own}".lower(), spelled, n=1, cutoff=0.5)
        hint = f": did you mean {spelled[near[0]]!r}?" if near else ""
        see = f"advbench attacks --adapters lists all {len(table)} of {library.module}"
        raise InputError(f"unknown attack {name!r}{hint} ({see}){absent}")
    if absent:
        raise InputError(f"attack {name!r} needs {library.module}, which is not installed: {library.hint}")
    try:
        import_module(library.module)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"attack {name!r} needs {library.module}, which fails to import: {cause}") from None
    return table[name]


def names() -> list[str]:
    """Names of all attacks in installed libraries (``aa:apgd-ce``, …), sorted within each library."""
    return [name for prefix in LIBRARIES if LIBRARIES[prefix].installed for name in sorted(peers(prefix))]
