"""Whether a run's numbers are true: recomputed from what is stored, measured again, trained again."""

from advbench.verify.attack_again import verify_run
from advbench.verify.report import Comparison, Report
from advbench.verify.sample import Asked
from advbench.verify.train_again import retrain_run

__all__ = ["Asked", "Comparison", "Report", "retrain_run", "verify_run"]
