"""For authors of defenses and attacks: the contracts that they keep, and packages to start from.

``check_defense(MyDefense)`` and ``check_attack("my-attack")`` run a contract; a package of yours can call
them in its own tests.
"""

from advbench.contract.attack_template import write_attack_package
from advbench.contract.check import (
    ATTACK_CONTRACT,
    CONTRACT,
    Check,
    check_attack,
    check_defense,
    find_defense,
)
from advbench.contract.template import write_package

__all__ = [
    "ATTACK_CONTRACT",
    "CONTRACT",
    "Check",
    "check_attack",
    "check_defense",
    "find_defense",
    "write_attack_package",
    "write_package",
]
