"""Low-rank adapters on the layers of any network: one per task, all computed in one pass."""

from defenses.parts.lowrank.batchnorm import TaskBatchNorm
from defenses.parts.lowrank.contrast import nmi, task_contrast
from defenses.parts.lowrank.convolution import AdaptedConv2d
from defenses.parts.lowrank.coverage import Coverage, coverage_of
from defenses.parts.lowrank.defense import AdaptedDefense
from defenses.parts.lowrank.layer import AdaptedLayer
from defenses.parts.lowrank.linear import AdaptedAttention, AdaptedLinear
from defenses.parts.lowrank.network import adapted, inject, merged
from defenses.parts.lowrank.router import ConvRouter
from defenses.parts.lowrank.routing import Route, Routing
from defenses.parts.lowrank.tasks import CLEAN, Task

__all__ = [
    "CLEAN",
    "AdaptedAttention",
    "AdaptedConv2d",
    "AdaptedDefense",
    "AdaptedLayer",
    "AdaptedLinear",
    "ConvRouter",
    "Coverage",
    "Route",
    "Routing",
    "Task",
    "TaskBatchNorm",
    "adapted",
    "coverage_of",
    "inject",
    "merged",
    "nmi",
    "task_contrast",
]
