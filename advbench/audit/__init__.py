"""Checks for false robustness: in a run's measurements, in a model's behaviour, and under probe attacks.

``probe(view, data, attacks=…)`` makes further, cheap measurements on a model; ``audit(rows, attacks,
probes=…)`` judges.
"""

from advbench.audit.fresh import Fresh
from advbench.audit.memorisation import held_out
from advbench.audit.probes import Probes, probe
from advbench.audit.verdict import CHECKS, audit
from leaderboards.audits.comparisons import Probed

__all__ = ["CHECKS", "Fresh", "Probed", "Probes", "audit", "held_out", "probe"]
