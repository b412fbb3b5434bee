"""MoLA-Grad: a shared backbone and one low-rank adapter per attack, trained only on that attack's samples."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.errors import unknown
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.lowrank import AdaptedDefense, Route
from defenses.parts.lowrank.network import Adapt, Norms
from defenses.parts.lowrank.tasks import nearest
from defenses.registry import register


@register
class MoLAGrad(AdaptedDefense):
    """Mixture of low-rank adapters with known tasks (Zhou et al., arXiv:2406.09679).

    Each adapted layer of the classifier (in a CNN: each convolution) becomes W_e = W + s·B_e A_e for task e;
    the tasks are the attacks and clean images. A sample passes through its own task's adapter,

        L = CE(f_e(x̃), y),   x̃ crafted by attack e on f_e,

    so that its gradient reaches only that adapter and the backbone. The defense is target-aware: the view for
    an attack is the network merged for its task. An unseen attack gets the nearest adapter of its family,
    otherwise the adapter of clean images.

    In the joint regime, and in the first stage of the continual regime, a batch is divided equally among the
    attacks and clean images. Each later stage adds one adapter and trains nothing else: the backbone (which
    is everything except the adapters) and earlier adapters are frozen, with their batch-norm statistics.
    An attack that occurs again continues to train its own adapter. The network grows by one adapter a stage.

    Departures: the authors' B_e A_e is (C_out·k × r·k)(r·k × C_in·k), reshaped to the kernel; here A_e is a
    convolution to r channels and B_e a 1×1 convolution back, so that all adapters take one pass. Batch norm
    has statistics for each task, so that an adapter's gradient from another task's samples is exactly zero;
    its γ and β belong to the backbone. The paper has no stages. No other rank or scale tried on the digits'
    validation split was better than the defaults by more than noise (``docs/tuning.md``).

    Args:
        model: the classifier.
        rank: r, the rank of an adapter.
        scale: s.
        norms: ``task`` for separate batch statistics per task; ``batch`` for batch norm over the mixed batch,
            which mixes information between tasks.
        adapt: ``conv`` adapts convolutions with groups=1, ``all`` also grouped convolutions, linear layers
            and multi-head attention; by default ``conv`` if at least half of these layers are convolutions
            with groups=1, as in ResNets and small CNNs, and ``all`` otherwise, as in ViT and ConvNeXt.
        coverage: the least share of parameters or multiply-adds that adapters must reach; .05 by default.
        seed: determines every random draw.

    Raises:
        InputError: rank or scale is out of range, ``norms`` is unknown, or the network has no convolution.
    """

    info = DefenseInfo(
        name="mola-grad", paper="2406.09679", regimes=("joint", "continual"), target_aware=True, grows=True
    )
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 8,
        scale: float = 4.0,
        norms: Norms = "task",
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        if norms not in get_args(Norms):
            raise unknown("norms", norms, get_args(Norms))
        super().__init__(
            model, rank=rank, scale=scale, norms=norms, adapt=adapt, coverage=coverage, seed=seed
        )
        self.norms = norms

    def add_task(self, *task: object) -> None:
        """Add an adapter; the defense's own forward pass uses the adapter of clean images."""
        super().add_task(*task)  # type: ignore[arg-type]
        self.routing.route = Route(task=0)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f_e(x̃), y), with each sample passed through its own task's adapter e."""
        x_adv, labels, tasks = self.task_batch(x, y, stage, clean=stage.index == 1)
        return self.label_loss(self.by_task(x_adv, tasks), labels)

    def view(self, attack: Attack | None) -> nn.Module:
        """The plain network merged for the attack's task, or for clean images if ``attack`` is None."""
        return self.merged(nearest(self.tasks, attack))
