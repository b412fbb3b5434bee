"""Attacks of other libraries under their own names: ``ta:PGD``, ``fb:LinfPGD``, ``aa:apgd-ce``.

They are looked up only when a name with a prefix is asked for, so a library that is missing costs nothing.
Case counts after the prefix. Each attack is built anew at every call, around the model that it is pointed
at, and runs inside :mod:`attacks_pool.adapters.containment`.

Some (APGD, FAB, Square and what is made of them) give a point back clean where they have not fooled the
model: good for evaluation, a waste in training. Draws are made for a whole batch, and some of these attacks
stop early for a whole batch (their summaries say so): a point's result may then depend on its neighbours,
which never happens with attacks of our own.
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
    """A library whose attacks can be had: what to import, what to install and our file for it."""

    module: str
    requirement: str
    home: str

    @property
    def installed(self) -> bool:
        """Whether it can be found; nothing is imported."""
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
"""By prefix."""


def peers(prefix: str) -> dict[str, Peer]:
    """The attacks of one library by full name; it need not be installed."""
    home = import_module(f"attacks_pool.adapters.{LIBRARIES[prefix].home}")
    table: dict[str, Peer] = home.PEERS
    return table


def find(name: str) -> Peer:
    """The attack of this full name, ``ta:PGD``, from a library that is installed.

    Raises:
        InputError: unknown attack, with the nearest name; or the library is missing, with the
            command that installs it.
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
        raise InputError(f"attack {name!r} needs {library.module}, which does not load: {cause}") from None
    return table[name]


def names() -> list[str]:
    """Every attack of every library that is installed: ``aa:apgd-ce``, …, sorted within a library."""
    return [name for prefix in LIBRARIES if LIBRARIES[prefix].installed for name in sorted(peers(prefix))]
