"""For authors of defenses: the contract that every defense must keep, and a template package.

``check_defense(MyDefense)`` runs the contract; your own package can call it in its tests.
"""

from advbench.contract.check import CONTRACT, Check, check_defense, find_defense
from advbench.contract.template import write_package

__all__ = ["CONTRACT", "Check", "check_defense", "find_defense", "write_package"]
