"""Signs of false robustness: in what a run measured, in how a model behaves, and under probe attacks.

``probe(view, data, attacks=…)`` makes further, cheap measurements on a model; ``audit(rows, attacks,
probes=…)`` judges; ``audit_model(view, data)`` does both for a model that was never run here.
"""

from advbench.audit.fresh import Fresh
from advbench.audit.memorisation import held_out
from advbench.audit.probes import Probes, probe
from advbench.audit.verdict import CHECKS, audit, audit_model
from leaderboards.audits.comparisons import Probed

__all__ = ["CHECKS", "Fresh", "Probed", "Probes", "audit", "audit_model", "held_out", "probe"]
