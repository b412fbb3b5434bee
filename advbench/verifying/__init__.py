"""Whether a run's numbers are true: recomputed from what is stored, measured again, trained again."""

from advbench.verifying.report import Comparison, Report
from advbench.verifying.retraining import retrain_run
from advbench.verifying.sampling import Asked
from advbench.verifying.verifier import verify_run

__all__ = ["Asked", "Comparison", "Report", "retrain_run", "verify_run"]
