"""MoLA-Grad: a shared backbone, and a low-rank adapter for each attack that its samples alone train."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.errors import unknown
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.lowrank import AdaptedDefense, Route
from defenses.parts.lowrank.network import Norms
from defenses.parts.lowrank.tasks import nearest
from defenses.registry import register


@register
class MoLAGrad(AdaptedDefense):
    """Mixture of low-rank adapters with known tasks (Zhou et al., arXiv:2406.09679).

    Each convolution of the classifier becomes W_e = W + s·B_e A_e for task e; the tasks are the attacks, and
    clean images. A sample goes through the adapter of its own task,

        L = CE(f_e(x̃), y),   x̃ crafted by attack e on f_e,

    so that its gradient reaches that adapter and the backbone only. The defense is target-aware: the view for
    an attack is the network merged for its task; an attack that was not met gets the nearest of its family,
    else the adapter of clean images.

    In the joint regime a batch is shared out in equal parts among the attacks and clean images. In the
    continual regime so is the first stage; each stage after it adds one adapter and trains nothing else: the
    backbone, which is all but the adapters, and earlier adapters are frozen, their batch-norm statistics too.
    An attack that comes again trains its own adapter on. The network grows by one adapter a stage.

    Departures: the authors' B_e A_e is (C_out·k × r·k)(r·k × C_in·k), reshaped to the kernel; here A_e is a
    thin convolution to r channels and B_e a 1×1 one back, so that all adapters take one pass. Batch norm has
    statistics for each task, so that another task's samples give exactly zero gradient to an adapter; its γ
    and β belong to the backbone. The paper knows no stages. Of the ranks and scales tried on the digits'
    validation split none led these by more than noise (``docs/tuning.md``).

    Args:
        model: the classifier, with a convolution.
        rank: r, the rank of an adapter.
        scale: s.
        norms: ``task`` for batch statistics of each task; ``batch`` for batch norm over the mixed batch,
            through which tasks see each other.
        seed: determines every draw.

    Raises:
        InputError: a rank or scale out of range, unknown ``norms``, or a network without a convolution.
    """

    info = DefenseInfo(
        name="mola-grad", paper="2406.09679", regimes=("joint", "continual"), target_aware=True, grows=True
    )

    def __init__(
        self, model: nn.Module, *, rank: int = 8, scale: float = 4.0, norms: Norms = "task", seed: int = 0
    ) -> None:
        if norms not in get_args(Norms):
            raise unknown("norms", norms, get_args(Norms))
        super().__init__(model, rank=rank, scale=scale, norms=norms, seed=seed)
        self.norms = norms

    def add_task(self, *task: object) -> None:
        """The defense itself is the network of clean images."""
        super().add_task(*task)  # type: ignore[arg-type]
        self.routing.route = Route(task=0)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f_e(x̃), y), each sample through the adapter of its own task e."""
        x_adv, labels, tasks = self.task_batch(x, y, stage, clean=stage.index == 1)
        return F.cross_entropy(self.by_task(x_adv, tasks), labels)

    def view(self, attack: Attack | None) -> nn.Module:
        """The plain network merged for the attack's task; of clean images for None."""
        return self.merged(nearest(self.tasks, attack))
