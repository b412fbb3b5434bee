"""Every registered defense keeps the contract that plug-ins are held to."""

from __future__ import annotations

import pytest

from advbench.contract import CONTRACT, check_defense
from defenses import registry


@pytest.mark.quick(r"(at|replay|lorkd)")
@pytest.mark.parametrize("name", registry.names())
def test_contract(name: str) -> None:
    """Shapes, gradients, regimes, determinism, saving, resuming, no test data, flat memory."""
    checks = check_defense(registry.resolve(name)[0])
    broken = [str(check) for check in checks if not check.holds]
    assert not broken, "\n".join(broken)
    assert [check.name for check in checks] == [promise.name for promise in CONTRACT]
