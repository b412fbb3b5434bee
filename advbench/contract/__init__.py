"""For authors of defenses, attacks and data sets: the contracts that they keep, and packages to start from.

``check_defense(MyDefense)`` and ``check_attack("my-attack")`` run a contract; a package of yours can call
them in its own tests.
"""

from advbench.contract.attack_template import write_attack_package
from advbench.contract.check import (
    ATTACK_CONTRACT,
    CONTRACT,
    DATASET_CONTRACT,
    Check,
    check_attack,
    check_dataset,
    check_defense,
    find_defense,
)
from advbench.contract.dataset_template import write_dataset_package
from advbench.contract.template import write_package

__all__ = [
    "ATTACK_CONTRACT",
    "CONTRACT",
    "DATASET_CONTRACT",
    "Check",
    "check_attack",
    "check_dataset",
    "check_defense",
    "find_defense",
    "write_attack_package",
    "write_dataset_package",
    "write_package",
]
