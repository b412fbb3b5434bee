"""Verifies a run's numbers: recomputes them from stored data, measures again, and trains again."""

from advbench.verify.attack_again import verify_run
from advbench.verify.report import Comparison, Report
from advbench.verify.sample import Asked
from advbench.verify.train_again import retrain_run

__all__ = ["Asked", "Comparison", "Report", "retrain_run", "verify_run"]
