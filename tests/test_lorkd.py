"""LoRKD: a teacher, its decomposition into experts, and who chooses among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import attacks, equal, small, state_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from advbench.models.cost import multiply_adds
from attacks_pool import InputError
from defenses import LoRKD, Stage, TrainPlan, registry
from defenses.parts.lowrank import AdaptedConv2d, adapted

PLAN = TrainPlan(epochs=4, lr=0.05)
TEXT = "fgsm,pgd:steps=2,cw:steps=2"


def batches(digits: Any) -> list[tuple[Tensor, Tensor]]:
    """Two of 40 points."""
    return [(digits.train.x[n : n + 40], digits.train.y[n : n + 40]) for n in (0, 40)]


def fitted(digits: Any, **given: Any) -> LoRKD:
    """Trained for a moment: two epochs of the teacher, two of the experts."""
    defense = LoRKD(small(), rank=2, router_width=4, **given)
    defense.fit(batches(digits), attacks(TEXT), plan=PLAN)
    return defense


@pytest.fixture(scope="module")
def oracle(digits: Any) -> LoRKD:
    """Chosen by the attack's family; tests only read it."""
    return fitted(digits)


@pytest.fixture(scope="module")
def routed(digits: Any) -> LoRKD:
    """Mixed by a router; tests only read it."""
    return fitted(digits, choose="router")


def test_teacher_first_then_experts(digits: Any) -> None:
    """For its share of the epochs only the teacher trains, with a learning-rate schedule of its own."""
    seen: list[tuple[bool, bool, list[str]]] = []
    rates: list[float] = []
    defense = LoRKD(small(), rank=2)
    inner = defense.configure_optimizer

    def configure(plan: TrainPlan) -> Any:
        optimizer = inner(plan)
        step = optimizer.step
        optimizer.step = lambda: rates.append(optimizer.param_groups[0]["lr"]) or step()
        return optimizer

    defense.configure_optimizer = configure  # type: ignore[method-assign]

    def look(now: Any) -> None:
        conv = next(module for module in adapted(defense.model) if isinstance(module, AdaptedConv2d))
        moved = any(bool(up.abs().sum() > 0) for up in conv.up)
        seen.append((defense.decomposed, moved, sorted(now.losses)))

    defense.fit(batches(digits), attacks(TEXT), plan=PLAN, progress=look)
    assert seen == [(False, False, ["loss"])] * 4 + [(True, True, ["ce", "kl", "loss"])] * 4
    assert rates == pytest.approx([PLAN.learning_rate(done) for done in (0, 0.25, 0.5, 0.75)] * 2)
    families = ["clean", "single-step", "projected-gradient", "minimal-norm"]
    assert [task.family for task in defense.tasks] == families


@pytest.mark.parametrize("choose", ["oracle", "router"])
def test_loss_against_the_formula(digits: Any, choose: Any) -> None:
    """CE(f_e(x̃), y) + λ·T²·KL(p_T(teacher) ‖ p_T(f_e)), each sample under its own plain expert."""
    defense = fitted(digits, choose=choose, lambda_kl=0.7, temperature=3.0)
    teacher = small().eval()
    defense._teacher = (teacher,)
    x, y = digits.test.x[:9], digits.test.y[:9]
    stage = Stage(1, tuple(attack.for_training() for attack in attacks(TEXT)), PLAN, done=0.9)
    defense.generator.manual_seed(1)
    points, labels, tasks = defense.task_batch(x, y, stage)
    defense.generator.manual_seed(1)
    terms = {name: value.detach() for name, value in defense.eval().loss(x, y, stage).items()}
    assert torch.equal(points[:3], x[::4])
    assert torch.equal(labels, torch.cat([y[number::4] for number in range(4)]))
    assert tasks.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    names = [task.family for task in defense.tasks]
    ce = kl = 0.0
    for point, label, task in zip(points, labels, tasks, strict=True):
        logits = defense.expert(names[int(task)])(point[None])[0].detach().double()
        taught = teacher(point[None])[0].detach().double()
        p, q = (taught / 3).softmax(0), (logits / 3).softmax(0)
        kl += float((p * (p / q).log()).sum())
        ce += float(-logits.log_softmax(0)[label])
    assert float(terms["ce"]) == pytest.approx(ce / 9, rel=1e-4)
    assert float(terms["kl"]) == pytest.approx(3**2 * kl / 9, rel=1e-3)
    total = ce / 9 + 0.7 * 3**2 * kl / 9
    if choose == "router":
        assert defense.router is not None
        own = F.cross_entropy(defense.router(points), tasks).detach()
        assert float(terms["router"]) == pytest.approx(float(own))
        total += float(own)
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-3)


def test_the_oracle_takes_the_family_s_expert(oracle: LoRKD, digits: Any) -> None:
    """An attack that was not met too; a family that was not met gets the clean expert."""
    defense, x = oracle, digits.test.x[:3]
    families = {"fgsm": "single-step", "pgd-l2": "projected-gradient", "deepfool": "minimal-norm"}
    for text, family in {**families, "square": "clean"}.items():
        assert torch.equal(defense.view(attacks(text)[0])(x), defense.expert(family)(x))
    assert torch.equal(defense.view(None)(x), defense.expert("clean")(x))
    torch.testing.assert_close(defense(x), defense.expert("clean")(x))
    assert not torch.equal(defense.expert("clean")(x), defense.expert("single-step")(x))
    with pytest.raises(InputError, match="unknown expert 'spatial'"):
        defense.expert("spatial")


def test_experts_are_plain_models(oracle: LoRKD, digits: Any, tmp_path: Path) -> None:
    """Saved, and loaded into the classifier's own architecture; as cheap as that."""
    defense, x = oracle, digits.test.x[:3]
    for task in defense.tasks:
        expert = defense.expert(task.family)
        save_file(expert.state_dict(), tmp_path / "expert.safetensors")
        fresh = small().eval()
        fresh.load_state_dict(load_file(tmp_path / "expert.safetensors"))
        assert torch.equal(fresh(x), expert(x))
        assert multiply_adds(expert, x[:1]) == multiply_adds(small().eval(), x[:1])


def test_the_router_mixes_experts(oracle: LoRKD, routed: LoRKD, digits: Any) -> None:
    """Each image's logits are those of the plain network at its weights; attacks go through the router."""
    defense, x = routed, digits.test.x[:4].requires_grad_()
    weights = defense.router_weights(x)
    assert weights.shape == (4, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    for n in range(4):
        plain = defense.merged(weights[n].detach())
        torch.testing.assert_close(defense(x[n : n + 1]), plain(x[n : n + 1]), atol=1e-5, rtol=1e-4)
    for attack in (None, *attacks(TEXT)):
        assert defense.view(attack) is defense
    (whole,) = torch.autograd.grad(defense(x[:1]).square().sum(), x)
    (fixed,) = torch.autograd.grad(defense.merged(weights[0].detach())(x[:1]).square().sum(), x)
    assert not torch.allclose(whole, fixed, rtol=1e-4)
    assert oracle.router_weights(x).shape == (4, 0)


@pytest.mark.parametrize(("text", "what"), [("", "none"), ("fgsm", "single-step"), ("pgd,apgd", "projected")])
def test_fewer_than_two_families_are_refused(digits: Any, text: str, what: str) -> None:
    """Before anything is trained, in one line."""
    defense = registry.build("lorkd", small())
    before = state_of(defense)
    given = attacks(text) if text else []
    with pytest.raises(InputError, match=f"^lorkd needs attacks of two families or more.*{what}"):
        defense.fit([(digits.train.x[:8], digits.train.y[:8])], given, plan=PLAN)
    assert equal(state_of(defense), before)
    assert defense.tasks == []


def test_a_second_stage_decomposes_anew(digits: Any) -> None:
    """Other families, as many experts as they need: nothing is left of those before."""
    defense = fitted(digits)
    defense.fit(batches(digits)[:1], attacks("pgd:steps=2,gaussian-noise"), plan=TrainPlan(epochs=2))
    assert [task.family for task in defense.tasks] == ["clean", "projected-gradient", "noise"]
    assert {len(module.up) for module in adapted(defense.model) if isinstance(module, AdaptedConv2d)} == {3}
    assert defense._teacher == ()


def test_a_single_step_makes_experts_too(digits: Any) -> None:
    """There is no time for more than the teacher: each expert is a copy of it."""
    defense = LoRKD(small())
    defense.fit(batches(digits)[:1], attacks(TEXT), plan=TrainPlan(epochs=1))
    x = digits.test.x[:3]
    for task in defense.tasks:
        assert torch.equal(defense.expert(task.family)(x), defense.merged(None)(x))
