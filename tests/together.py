"""A program for several processes, started by torchrun, which writes lines of JSON.

``gradients NAME...`` trains defenses alone on whole batches, in each process, and then together, each process
on its part of them, and compares. ``stages`` stops, averages and disturbs a stage.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from attacks_pool import InputError, pool
from defenses import AIR, AT, Defense, DefenseInfo, Progress, TrainingDivergedError, TrainPlan, registry
from defenses.training.processes import StoppedElsewhereError, everyone, first
from defenses.training.snapshot import Snapshot

PLAN = TrainPlan(epochs=2, batch_size=11, lr=0.05, mixed_precision="off", augmentation=("crop", "flip"))
ATTACKS = "pgd:steps=3,fgsm,pgd-l2:steps=2"


class Stranger(Defense):
    """A plug-in with a step of its own: two steps a batch, the second with an optimizer of its own."""

    info = DefenseInfo(name="stranger", paper=None, regimes=("continual", "joint"))

    def begin(self, stage: Any) -> None:  # noqa: ARG002 - the same for every stage
        """Make the second optimizer."""
        self.own = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self, x: Tensor, y: Tensor, stage: Any, optimizer: Any) -> dict[str, float]:
        """Two steps, on attacked and on noisy images."""
        found = 0.0
        for turn, chosen in enumerate((optimizer, self.own)):
            points = self.craft(stage.attacks[0], x, y) if turn else x
            loss = nn.functional.cross_entropy(self(points), y)
            if chosen is not None:
                chosen.zero_grad()
                loss.backward()
                chosen.step()
            found += float(loss.detach())
        return {"loss": found}


class Doubled(nn.Module):
    """Converts images to float64."""

    def forward(self, x: Tensor) -> Tensor:
        """The same images."""
        return x.double()


def network() -> nn.Module:
    """A small network without batch norm, in float64."""
    torch.manual_seed(0)
    layers = [
        Doubled(),
        nn.Conv2d(1, 4, 3, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.SiLU(),
        nn.Linear(8, 4),
    ]
    return nn.Sequential(*layers).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches; the sizes do not divide, and the last is smaller than the others."""
    draws = torch.Generator().manual_seed(1)
    sizes = (11, 11, 5)
    return [(torch.rand(n, 1, 8, 8, generator=draws), torch.randint(4, (n,), generator=draws)) for n in sizes]


def trained(name: str, plan: TrainPlan) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of every step, the weights after two stages, and the losses."""
    defense = Stranger(network()) if name == "stranger" else registry.build(name, network())
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moved = [one for group in optimizer.param_groups for one in group["params"]]
        gradients.extend(one.grad.clone() for one in moved if one.grad is not None)

    hook = register_optimizer_step_post_hook(keep)
    attacks = pool.sequence(ATTACKS, budget="digits")
    single = "continual" in defense.info.regimes
    stages = [attacks[:1], attacks[1:2]] if single else [attacks, attacks]
    history = [losses for stage in stages for losses in defense.fit(batches(), stage, plan=plan)]
    hook.remove()
    losses = [torch.tensor(list(one.values()), dtype=torch.float64) for one in history]
    return gradients, list(defense.state_dict().values()), losses


def furthest(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference of any number."""
    assert len(some) == len(others), (len(some), len(others))
    pairs = [(a.double(), b.double()) for a, b in zip(some, others, strict=True) if a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def compare(chosen: list[str]) -> None:
    """Train alone, then together; write the differences of each case."""
    plans = {"": PLAN, "accumulated": PLAN.model_copy(update={"grad_accumulation": 2, "max_grad_norm": 0.5})}
    cases = [(name, kind) for name in chosen for kind in plans if not (kind and name == "stranger")]
    alone = {case: trained(case[0], plans[case[1]]) for case in cases}
    distributed.init_process_group("gloo")
    for case in cases:
        gradients, weights, losses = trained(case[0], plans[case[1]])
        before = alone[case]
        say(
            case=case,
            gradients=furthest(before[0], gradients),
            weights=furthest(before[1], weights),
            losses=furthest(before[2], losses),
        )


class ByHand(Defense):
    """A plug-in that changes weights without an optimizer, from its own part of the batch alone."""

    info = DefenseInfo(name="by-hand", paper=None, regimes=("continual",))

    def step(self, x: Tensor, y: Tensor, stage: Any, optimizer: Any) -> dict[str, float]:  # noqa: ARG002
        """One step of gradient descent."""
        loss = nn.functional.cross_entropy(self(x), y)
        for parameter, slope in zip(
            self.parameters(), torch.autograd.grad(loss, list(self.parameters())), strict=True
        ):
            parameter.data -= slope
        return {"loss": float(loss.detach())}


class OneDiverges(ByHand):
    """Its loss is not a number in process 1."""

    info = DefenseInfo(name="one-diverges", paper=None, regimes=("continual",))

    def step(self, x: Tensor, y: Tensor, stage: Any, optimizer: Any) -> dict[str, float]:  # noqa: ARG002
        """No step."""
        return {"loss": float("nan") if distributed.get_rank() else 0.0}


def normed() -> nn.Module:
    """A network with batch norm, whose first weights differ between the processes."""
    torch.manual_seed(distributed.get_rank())
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 4)
    )


def fitted(defense: Defense, data: Any = None, plan: TrainPlan = PLAN, **more: Any) -> Defense:
    """The defense after a stage against FGSM."""
    (attack,) = pool.sequence("fgsm", budget="digits")
    defense.fit(data or batches(), [attack], plan=plan, **more)
    return defense


def spread(defense: Defense) -> float:
    """The largest difference of a weight or buffer between the processes."""
    every = everyone({name: value.double() for name, value in defense.state_dict().items()})
    return max(furthest(list(every[0].values()), list(other.values())) for other in every)


def error_of(defense: Defense, data: Any = None) -> str:
    """The message of the error that training raises, in every process."""
    try:
        fitted(defense, data)
    except (InputError, TrainingDivergedError) as error:
        return str(error)
    return ""


def stages() -> None:
    """Write what becomes of stages that stop, average, select, diverge or come apart."""
    averaged = PLAN.model_copy(update={"average": "ema"})
    tiny = [(x[:1], y[:1]) for x, y in batches()]
    alone = {
        "ema": fitted(AT(network()), plan=averaged).state_dict(),
        "tiny batches": fitted(AT(network()), tiny).state_dict(),
    }
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for kind, update in {
        "ema": {"average": "ema"},
        "swa": {"average": "swa"},
        "val-robust": {"select": "val-robust"},
    }.items():
        found = fitted(AT(network()), plan=PLAN.model_copy(update=update), validation=batches())
        more = {"from one process": away(alone[kind], found)} if kind in alone else {}
        say(case=kind, **{"between processes": spread(found)}, **more)
    found = fitted(AT(network()), tiny)
    say(case="tiny batches", **{"from one process": away(alone["tiny batches"], found)})
    say(case="batch norm", **{"between processes": spread(fitted(AT(normed())))})
    stopped(rank)
    say(case="by hand", error=error_of(ByHand(network())))
    say(case="one diverges", error=error_of(OneDiverges(network())))
    say(case="other batches", error=error_of(AT(network()), batches()[rank:] + batches()[:rank]))
    images = TensorDataset(*(torch.cat(values) for values in zip(*batches(), strict=True)))
    loader = DataLoader(images, 4, sampler=DistributedSampler(images, shuffle=True))
    say(case="sampler", **{"between processes": spread(fitted(AT(network()), loader))})


def stopped(rank: int) -> None:
    """Stop a stage in process 0 in the middle of an epoch, and resume it."""
    kept: list[Snapshot] = []

    def stop(progress: Progress) -> None:
        if progress.epoch == 2 and progress.batch == 1:
            raise KeyboardInterrupt

    raised = ""
    try:
        fitted(AIR(normed()), progress=stop, checkpoint=kept.append)
    except (KeyboardInterrupt, StoppedElsewhereError) as error:
        raised = type(error).__name__
    assert rank == 0 or not kept
    (snapshot,) = (kept or [None])[-1:]
    resumed = fitted(AIR(normed()), resume=first(snapshot))
    through = fitted(AIR(normed()))
    difference = furthest(list(through.state_dict().values()), list(resumed.state_dict().values()))
    passes = (through.passes.forwards - resumed.passes.forwards) if rank == 0 else 0
    say(case="stopped", others=everyone(raised)[1], resumed=difference + abs(passes))


def away(weights: dict[str, Tensor], defense: Defense) -> float:
    """The largest difference of a weight."""
    return furthest(list(weights.values()), list(defense.state_dict().values()))


def say(**found: Any) -> None:
    """Write a line of JSON, in process 0."""
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    stages() if sys.argv[1] == "stages" else compare(sys.argv[2:])
    distributed.destroy_process_group()
