"""Checks for false robustness: in a run's measurements, in a model's behaviour, and under probe attacks.

``probe(view, data, attacks=…)`` makes further, cheap measurements on a model; ``audit(rows, attacks,
probes=…)`` gives the verdict; ``audit_model(view, data)`` does both for a model without a run here.
"""

from advbench.audit.fresh import Fresh
from advbench.audit.memorisation import held_out
from advbench.audit.probes import Probes, probe
from advbench.audit.verdict import CHECKS, audit, audit_model
from leaderboards.audits.comparisons import Probed

__all__ = ["CHECKS", "Fresh", "Probed", "Probes", "audit", "audit_model", "held_out", "probe"]
