"""Low-rank adapters on the convolutions of any network: one a task, all of them in one pass."""

from defenses.lowrank.batchnorm import TaskBatchNorm
from defenses.lowrank.contrast import nmi, task_contrast
from defenses.lowrank.convolution import AdaptedConv2d
from defenses.lowrank.defense import AdaptedDefense
from defenses.lowrank.network import adapted, inject, merged
from defenses.lowrank.router import ConvRouter
from defenses.lowrank.routing import Route, Routing
from defenses.lowrank.tasks import CLEAN, Task

__all__ = [
    "CLEAN",
    "AdaptedConv2d",
    "AdaptedDefense",
    "ConvRouter",
    "Route",
    "Routing",
    "Task",
    "TaskBatchNorm",
    "adapted",
    "inject",
    "merged",
    "nmi",
    "task_contrast",
]
