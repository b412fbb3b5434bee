"""For authors of defenses: the contract that every defense keeps, and a package to start from.

``check_defense(MyDefense)`` runs the contract; a package of yours can call it in its own tests.
"""

from advbench.contract.check import CONTRACT, Check, check_defense, find_defense
from advbench.contract.template import write_package

__all__ = ["CONTRACT", "Check", "check_defense", "find_defense", "write_package"]
