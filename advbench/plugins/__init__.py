"""For authors of defenses: the contract that every defense keeps, and a package to start from.

``check_defense(MyDefense)`` runs the contract; a package of yours can call it in its own tests.
"""

from advbench.plugins.checks import CONTRACT, Check, check_defense
from advbench.plugins.finding import find_defense
from advbench.plugins.template import write_package

__all__ = ["CONTRACT", "Check", "check_defense", "find_defense", "write_package"]
