"""Mixed precision takes the same path on every device: here on the CPU, which ``auto`` leaves in float32."""

import torch
from torch import Tensor, nn

from attacks_pool import pool
from defenses import AIR, TrainPlan


class Spy(nn.Module):
    """A linear classifier that notes in which type it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.types: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        self.types.add(logits.dtype)
        return logits


def train(mixed_precision: str) -> tuple[AIR, Spy]:
    draws = torch.Generator().manual_seed(0)
    batches = [(torch.rand(16, 1, 8, 8, generator=draws), torch.arange(16) % 10)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spy = Spy()
    defense = AIR(spy)
    plan = TrainPlan.model_validate({"epochs": 3, "mixed_precision": mixed_precision})
    for attack in pool.sequence("fgsm,pgd:steps=2", budget="digits"):
        defense.fit(batches, [attack], plan=plan)
    return defense, spy


def test_on_trains_and_crafts_in_bfloat16_and_keeps_float32_weights() -> None:
    defense, spy = train("on")
    assert spy.types == {torch.bfloat16}
    assert all(parameter.dtype is torch.float32 for parameter in defense.parameters())
    assert defense(torch.rand(2, 1, 8, 8)).dtype is torch.float32


def test_on_stays_close_to_float32_without_being_it() -> None:
    exact, spy = train("off")
    assert spy.types == {torch.float32}
    rounded, _ = train("on")
    difference = (exact.model.linear.weight - rounded.model.linear.weight).detach().abs().max()
    assert 0 < float(difference) < 0.02


def test_auto_leaves_the_cpu_in_float32() -> None:
    _, spy = train("auto")
    assert spy.types == {torch.float32}


def test_logits_reach_losses_in_float32() -> None:
    defense, _ = train("off")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert defense(torch.rand(2, 1, 8, 8)).dtype is torch.float32
