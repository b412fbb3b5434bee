"""MID: its losses against the paper's notation, its meta-gradient, and what a stage keeps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import equal, state_of, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import run
from advbench.audit.stored import audit_run
from advbench.data import Split
from advbench.evaluation.extras import PICTURE, psnr, regenerate, ssim
from advbench.runs.tables import transfer_table
from advbench.verify import Asked, verify_run
from attacks_pool import InputError, pool
from defenses import MID, Progress, Stage, TrainPlan, registry
from defenses.parts.encoding import Decoder, encode, find_head
from leaderboards import Audit, Cell
from leaderboards.records.checking import check_run

Network = Callable[..., nn.Sequential]
Loader = Callable[..., Any]
PLAN = TrainPlan(epochs=4, lr=0.05, eps_warmup=1)


def attacks(text: str = "fgsm,pgd:steps=3,mim:steps=3") -> list[Any]:
    """Attacks with the budgets of the digits."""
    training = {name: {"steps": 2} for name in ("pgd", "mim") if name in text}
    return pool.sequence(text, budget="digits", training=training)


def smooth(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    """A tiny classifier of 1×4×4 images with derivatives of every order."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 5)]
        layers += [nn.BatchNorm1d(5)] if norm else []
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3))


def taught(model: nn.Module, *, side: int = 4, **parameters: Any) -> MID:
    """MID with a frozen teacher that differs from the student, in float64."""
    defense = MID(model, **parameters)
    x = torch.rand(6, 1, side, side, generator=torch.Generator().manual_seed(1))
    defense._build(x, None)
    defense._freeze(Stage(1, (), PLAN))
    with torch.no_grad():
        for parameter in defense.model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter += 0.3 * noise * parameter.requires_grad
    defense._frozen[0].double()
    return defense.double()


class Watched(MID):
    """Notes the attacks that it crafts by, whether that asks teacher or target, and learning rates."""

    def __init__(self, model: nn.Module, **parameters: Any) -> None:
        super().__init__(model, **parameters)
        self.crafted: list[Any] = []
        self.asked: list[bool] = []
        self.rates: list[float] = []

    def step(self, x: Tensor, y: Tensor, stage: Stage, optimizer: Any) -> dict[str, float]:
        losses = super().step(x, y, stage, optimizer)
        self.rates.append(optimizer.param_groups[0]["lr"])
        return losses

    def _craft(self, attack: Any, x: Tensor, y: Tensor) -> Tensor:
        self.crafted.append(attack)
        noted: list[Any] = []
        undefended = (self._aimed or self._frozen)[0]
        handle = undefended.register_forward_hook(lambda *given: noted.append(given))
        try:
            return super()._craft(attack, x, y)
        finally:
            handle.remove()
            self.asked.append(bool(noted))


class Attending(nn.Module):
    """A transformer of 1×4×4 images, a row of pixels a token; ``plain``: its attention by the formula."""

    def __init__(self, *, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.mix, self.head = nn.Linear(4, 8), nn.Linear(8, 24), nn.Linear(8, 3)
            self.block = nn.TransformerEncoderLayer(8, 2, 8, 0.0, F.silu, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        q, k, v = self.mix(self.embed(images[:, 0])).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        plain = (q @ k.mT / 2).softmax(3) @ v
        seen = plain if self.plain else F.scaled_dot_product_attention(q, k, v)
        logits: Tensor = self.head(self.block(seen.transpose(1, 2).flatten(2)).mean(1))
        return logits


def points(count: int = 6, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Clean points, points of two attacks (2·N), as float64."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=draws, dtype=torch.float64)
    first = (x + 0.2 * torch.randn(x.shape, generator=draws, dtype=torch.float64)).clamp(0, 1)
    second = (x + 0.2 * torch.randn(x.shape, generator=draws, dtype=torch.float64)).clamp(0, 1)
    return x, first, second


Y = torch.tensor([0, 1, 2, 0, 1, 2])


class TestLosses:
    """Against slow versions, sample by sample."""

    @torch.no_grad()
    def slow(self, defense: MID, x: Tensor, x_adv: Tensor, y: Tensor) -> list[float]:
        """KL(p(E_t(x)) ‖ p(E_s(x̃))), KL(p(E_t(x)) ‖ p(E_t(D_t(E_s(x̃))))), CE(C(E_s(x̃)), y)."""
        assert isinstance(defense.model, nn.Sequential)
        assert defense.decoder is not None
        E_s, C, E_t, D_t = defense.model[:-1], defense.model[-1], defense._frozen[0][:-1], defense.decoder

        def p(z: Tensor) -> Tensor:
            return z.exp() / z.exp().sum()

        def divergence(p: Tensor, q: Tensor) -> float:
            return float((p * (p.log() - q.log())).sum())

        terms = []
        for one, attacked, label in zip(x, x_adv, y, strict=True):
            z_t, z_s = E_t(one[None])[0], E_s(attacked[None])[0]
            cycled = E_t(D_t(z_s[None]))[0]
            ce = -float(p(C(z_s))[label].log())
            terms.append((divergence(p(z_t), p(z_s)), divergence(p(z_t), p(cycled)), ce))
        return [sum(each) / len(x) for each in zip(*terms, strict=True)]

    def test_three_consistencies(self) -> None:
        """Each as its formula, and their weighted sum."""
        defense = taught(smooth(), lambda_adv=0.5, lambda_cyc=2.0, lambda_lab=3.0)
        x, x_adv, _ = points()
        clean, _ = defense._encode(defense._frozen[0], x)
        with torch.no_grad():
            terms = defense.consistency(clean, x_adv, Y)
        adversarial, cycle, label = self.slow(defense, x, x_adv, Y)
        assert min(adversarial, cycle, label) > 1e-3
        expected = {"adversarial": adversarial, "cycle": cycle, "label": label}
        expected["loss"] = 0.5 * adversarial + 2 * cycle + 3 * label
        assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("term", ["adv", "cyc", "lab"])
    def test_a_term_without_weight_is_left_out(self, term: str) -> None:
        """It is not computed, and the rest is what it was."""
        weights = {f"lambda_{name}": float(name != term) for name in ("adv", "cyc", "lab")}
        x, x_adv, _ = points()
        names = {"adv": "adversarial", "cyc": "cycle", "lab": "label"}
        every, fewer = taught(smooth()), taught(smooth(), **weights)
        clean, _ = every._encode(every._frozen[0], x)
        with torch.no_grad():
            whole, part = every.consistency(clean, x_adv, Y), fewer.consistency(clean, x_adv, Y)
        assert set(whole) - set(part) == {names[term]}
        assert float(part["loss"]) == pytest.approx(float(whole["loss"] - whole[names[term]]))

    def test_the_teacher_reads_and_draws(self) -> None:
        """L_T = CE(C(E_t(x)), y) + λ_rec · ‖D_t(E_t(x)) − x‖², a mean over pixels."""
        defense = taught(smooth(), lambda_rec=4.0)
        x, _, _ = points()
        assert isinstance(defense.model, nn.Sequential)
        assert defense.decoder is not None
        z = defense.model[:-1](x)
        reconstruction = ((defense.decoder(z) - x) ** 2).sum() / x.numel()
        ce = -defense.model[-1](z).softmax(1).log()[torch.arange(6), Y].mean()
        assert float(defense.teacher_loss(x, Y)["loss"]) == pytest.approx(float(ce + 4 * reconstruction))

    def test_a_meta_step_of_several_attacks_repeats_the_clean_points(self) -> None:
        """The mean over two attacks' points is the mean of their losses."""
        defense = taught(smooth(), inner_lr=0.0)
        x, first, second = points()
        clean, _ = defense._encode(defense._frozen[0], x)
        both = defense.meta_loss(x, torch.cat([first, second]), Y.repeat(2), first, Y)
        each = [float(defense.consistency(clean, x_adv, Y)["loss"]) for x_adv in (first, second)]
        assert float(both["loss"]) == pytest.approx(sum(each) / 2 + each[0])


class TestMetaGradient:
    """Of F(θ) = L_train(θ) + L_test(θ − α∇L_train(θ))."""

    def gradient(self, defense: MID) -> dict[str, Tensor]:
        """As a step computes it."""
        x, first, second = points()
        names = [name for name, value in defense.model.named_parameters() if value.requires_grad]
        loss = defense.meta_loss(x, first, Y, second, Y)["loss"]
        found = torch.autograd.grad(loss, [defense.model.get_parameter(name) for name in names])
        return dict(zip(names, found, strict=True))

    def objective(self, defense: MID, alpha: float) -> float:
        """F(θ) by its definition, θ' written into a copy of the student."""
        x, first, second = points()
        clean, _ = defense._encode(defense._frozen[0], x)
        train = defense.consistency(clean, first, Y)["loss"]
        theta = [value for value in defense.model.parameters() if value.requires_grad]
        gradients = torch.autograd.grad(train, theta)
        moved = copy.deepcopy(defense)
        with torch.no_grad():
            there = [value for value in moved.model.parameters() if value.requires_grad]
            for value, gradient in zip(there, gradients, strict=True):
                value -= alpha * gradient
        return float(train) + float(moved.consistency(clean, second, Y)["loss"])

    def test_second_order_against_finite_differences(self) -> None:
        """Central differences of F in every parameter of the encoder, float64."""
        defense = taught(smooth(), inner_lr=0.7)
        found = self.gradient(defense)
        assert set(found) == {"1.weight", "1.bias"}
        for name, gradient in found.items():
            values = defense.model.get_parameter(name).data.view(-1)
            for index in range(0, len(values), 7):
                step, kept, ends = 1e-5, float(values[index]), []
                for sign in (1, -1):
                    values[index] = kept + sign * step
                    ends.append(self.objective(defense, 0.7))
                values[index] = kept
                expected = (ends[0] - ends[1]) / (2 * step)
                assert float(gradient.view(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8)

    def test_first_order_takes_the_inner_gradient_for_a_constant(self) -> None:
        """∇L_train(θ) + ∇L_test at θ': another gradient, the same loss."""
        second, first = taught(smooth(), inner_lr=0.7), taught(smooth(), inner_lr=0.7, first_order=True)
        x, x_train, x_test = points()
        losses = [float(one.meta_loss(x, x_train, Y, x_test, Y)["loss"]) for one in (second, first)]
        assert losses[0] == losses[1]
        clean, _ = first._encode(first._frozen[0], x)
        theta = [value for value in first.model.parameters() if value.requires_grad]
        inner = torch.autograd.grad(first.consistency(clean, x_train, Y)["loss"], theta)
        moved = copy.deepcopy(first)
        there = [value for value in moved.model.parameters() if value.requires_grad]
        with torch.no_grad():
            for value, gradient in zip(there, inner, strict=True):
                value -= 0.7 * gradient
        outer = torch.autograd.grad(moved.consistency(clean, x_test, Y)["loss"], there)
        expected = [a + b for a, b in zip(inner, outer, strict=True)]
        found = self.gradient(first).values()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        exact = self.gradient(second).values()
        assert any(float((one - other).abs().max()) > 1e-3 for one, other in zip(found, exact, strict=True))

    @pytest.mark.parametrize("first_order", [False, True])
    def test_attention_has_second_derivatives(self, first_order: bool) -> None:
        """Of a transformer, whose fast kernels have none, the meta-gradient is that of its plain formula."""
        found = {}
        for plain in (False, True):
            defense = taught(Attending(plain=plain), inner_lr=0.5, first_order=first_order)
            found[plain] = self.gradient(defense)
        assert len(found[True]) > 6
        for name, gradient in found[True].items():
            torch.testing.assert_close(found[False][name], gradient)

    def test_a_transformer_trains(self) -> None:
        x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        defense = MID(Attending())
        plan = TrainPlan(epochs=2, lr=0.01, eps_warmup=0)
        history = defense.fit([(x, torch.arange(8) % 3)], attacks("fgsm,pgd:steps=3"), plan=plan)
        assert "meta_test" in history[-1]

    def test_without_an_inner_step_the_two_orders_agree(self) -> None:
        """α = 0 is joint training on the same points."""
        found = [self.gradient(taught(smooth(), inner_lr=0.0, first_order=order)) for order in (True, False)]
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    def test_batch_norm_moves_once(self) -> None:
        """With the points of L_train; θ' leaves no trace, neither in buffers nor in parameters."""
        defense = taught(smooth(norm=True), inner_lr=0.7).train()
        x, first, second = points()
        expected, teacher = copy.deepcopy(defense.model), state_of(defense._frozen[0])
        expected(first)
        defense.meta_loss(x, first, Y, second, Y)["loss"].backward()
        assert int(defense.model[2].num_batches_tracked) == 1
        assert equal(defense.model, expected)
        assert equal(state_of(defense._frozen[0]), teacher)
        assert all(value.grad is None for value in defense._frozen[0].parameters())
        trained = {name for name, value in defense.named_parameters() if value.grad is not None}
        assert trained == {"model.1.weight", "model.1.bias", "model.2.weight", "model.2.bias"}


class TestEncoding:
    """Where a classifier is split, and what decodes its features."""

    def test_the_head_is_the_layer_that_gives_the_logits(self) -> None:
        """Whatever the order in which layers were declared; a classifier without one is refused."""

        class Backwards(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.body, self.flat = nn.Linear(5, 3), nn.Linear(16, 5), nn.Flatten()

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.tanh(self.body(self.flat(x))))

        model, x = Backwards(), torch.rand(4, 1, 4, 4)
        assert find_head(model, x, "mid") == "head"
        features, logits = encode(model, "head", x)
        assert torch.equal(features, torch.tanh(model.body(x.flatten(1))))
        assert torch.equal(logits, model(x))

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Conv2d(1, 3, 4), nn.Flatten()], "splits a classifier at its last nn.Linear, and this Seq"),
            ([nn.Flatten(), nn.Linear(16, 3), nn.Softplus()], "needs an nn.Linear that gives the logits"),
            ([nn.Flatten(), nn.Linear(16, 3), nn.ReLU(inplace=True)], "needs an nn.Linear that gives"),
            ([nn.Flatten(), nn.Linear(16, 3)], "trains the layers before the last nn.Linear"),
        ],
    )
    def test_other_classifiers_are_refused(self, layers: list[nn.Module], message: str) -> None:
        """In one line that says what is missing."""
        x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
        if isinstance(layers[1], nn.Linear):
            # Where all logits are positive, a ReLU behind them changes nothing.
            nn.init.constant_(layers[1].bias, -9.0)
        with pytest.raises(InputError, match=f"^mid {message}"):
            MID(nn.Sequential(*layers)).fit([(x, y)], attacks(), plan=PLAN)

    @pytest.mark.parametrize("image", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 17, 5), (1, 3, 3)])
    def test_a_decoder_fits_any_image(self, image: tuple[int, int, int]) -> None:
        """(N, F) to (N, C, H, W) in [0, 1]; it holds no linear layer that could be taken for the head."""
        decoder = Decoder(7, image)
        images = decoder(torch.randn(2, 7))
        assert images.shape == (2, *image)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        assert not any(isinstance(module, nn.Linear) for module in decoder.modules())


class TestStage:
    """Teacher, then student, within one stage."""

    def test_the_teacher_is_frozen_and_the_student_moves(self, network: Network, loader: Loader) -> None:
        """A quarter of four epochs is the teacher's; C and D_t stay what it left, E_s moves on."""
        defense = MID(network(norm=True), teacher=0.25)
        states: list[dict[str, Tensor]] = []
        seen: list[set[str]] = []

        def keep(now: Progress) -> None:
            states.append(state_of(defense))
            seen.append(set(now.losses))

        defense.fit(loader(128), attacks(), plan=PLAN, progress=keep)
        assert len(states) == 8
        assert [("reconstruction" in names) for names in seen] == [True] * 2 + [False] * 6
        assert all({"adversarial", "cycle", "label", "meta_test"} <= names for names in seen[2:])
        moved = {name for name, value in states[1].items() if not torch.equal(value, states[-1][name])}
        assert moved
        assert not any(name.startswith(("decoder", "model.4")) for name in moved)
        teacher = {f"model.{name}": value for name, value in defense._frozen[0].state_dict().items()}
        assert all(torch.equal(value, states[1][name]) for name, value in teacher.items())
        assert {name for name, value in defense.named_parameters() if value.requires_grad} == {
            "model.0.weight", "model.0.bias", "model.3.weight", "model.3.bias",
        }  # fmt: skip

    def test_each_phase_has_the_whole_schedule(self, network: Network, loader: Loader) -> None:
        """Rates fall from lr twice; the student's eps grows from nothing."""
        defense = Watched(network(), teacher=0.25)
        plan = TrainPlan(epochs=4, lr=0.08, schedule="linear", eps_warmup=2)
        defense.fit(loader(128), attacks("fgsm,mim"), plan=plan)
        assert defense.rates == pytest.approx([0.08, 0.04, *(0.08 * (1 - k / 6) for k in range(6))])
        expected = [0.2 * share for share in (0.001, 0.25, 0.5, 0.75, 1, 1) for _ in range(2)]
        assert [attack.eps for attack in defense.crafted] == pytest.approx(expected)

    def test_the_held_out_attack_is_never_met_in_training(self, network: Network, loader: Loader) -> None:
        """Each step draws one; all of them come up."""
        defense = Watched(network())
        defense.fit(loader(128, batch_size=16), attacks(), plan=PLAN)
        drawn = [attack.name for attack in defense.crafted]
        steps = [drawn[start : start + 3] for start in range(0, len(drawn), 3)]
        assert len(steps) == 3 * 8
        assert all(len(set(step)) == 3 for step in steps)
        assert {held for *_, held in steps} == {"fgsm", "pgd", "mim"}

    def test_one_attack_is_too_few(self, network: Network, loader: Loader) -> None:
        """There is none to hold out."""
        with pytest.raises(InputError, match="mid needs two attacks or more to hold one out, not 1"):
            MID(network()).fit(loader(64), attacks("fgsm"), plan=PLAN)

    def test_where_it_crafts(self, network: Network, loader: Loader) -> None:
        """On the student in eval mode; or on the frozen teacher or target, whose passes are counted too."""
        counted = []
        for place in ("student", "surrogate", "target"):
            defense = Watched(network(), craft_on=place)
            defense.fit(loader(64), attacks("fgsm,mim"), plan=PLAN)
            assert set(defense.asked) == {place != "student"}
            counted.append(defense.passes)
        # The same attacks on a network of the same size.
        assert counted[0] == counted[1] == counted[2]

    def test_the_target_is_the_classifier_before_the_first_stage(
        self, network: Network, loader: Loader
    ) -> None:
        """In every stage; neither the teacher nor the student."""
        defense = MID(network(), craft_on="target")
        for _ in range(2):
            defense.fit(loader(64), attacks("fgsm,mim"), plan=PLAN)
            assert equal(defense._aimed[0], network())
            assert not equal(defense._frozen[0], network())

    def test_clean_images_as_a_task(self, network: Network, loader: Loader) -> None:
        """They are crafted by None: trained on in most steps, and held out in the others."""
        defense = Watched(network(), clean_task=True, teacher=0.1)
        defense.fit(loader(64), attacks("fgsm,mim"), plan=PLAN.model_copy(update={"epochs": 10}))
        names = [attack.name if attack else "clean" for attack in defense.crafted]
        steps = [names[start : start + 3] for start in range(0, len(names), 3)]
        assert all(set(step) == {"fgsm", "mim", "clean"} for step in steps)
        assert {held for *_, held in steps} == {"fgsm", "mim", "clean"}
        x = torch.rand(2, 1, 8, 8)
        assert defense._craft(None, x, torch.zeros(2, dtype=torch.int64)) is x

    def test_a_second_stage_keeps_the_teacher(self, network: Network, loader: Loader) -> None:
        """All of it is the student's."""
        defense = MID(network())
        defense.fit(loader(64), attacks(), plan=PLAN)
        teacher = state_of(defense._frozen[0])
        history = defense.fit(loader(64), attacks(), plan=PLAN)
        assert all("meta_test" in losses for losses in history)
        assert equal(state_of(defense._frozen[0]), teacher)

    @pytest.mark.quick(r"(student|target)-5|5-(student|target)")
    @pytest.mark.parametrize("batch", [1, 5])
    @pytest.mark.parametrize("place", ["student", "surrogate", "target"])
    def test_a_stage_goes_on_from_any_batch(
        self, loader: Loader, network: Network, batch: int, place: str
    ) -> None:
        """From the bytes of a snapshot, in the teacher's time or the student's, to the same bits."""
        data = list(loader(128, batch_size=32))
        plan = TrainPlan(epochs=2, lr=0.05, eps_warmup=1)

        def build() -> MID:
            return MID(network(norm=True), craft_on=place, teacher=0.5, seed=4)  # type: ignore[arg-type]

        stopped_and_resumed(build, data, [attacks("fgsm,mim")], at=batch, plan=plan)

    def test_saved_and_loaded(self, network: Network, loader: Loader) -> None:
        """Equal regenerated images; before it was trained there is nothing to draw with."""
        defense = MID(network(channels=3), lambda_cyc=0.5)
        x = torch.rand(4, 3, 8, 8)
        with pytest.raises(InputError, match="no decoder before its first stage"):
            defense.regenerate(x)
        defense.fit(loader(64, channels=3), attacks(), plan=PLAN)
        spec = json.loads(json.dumps(defense.spec()))
        again = registry.build("mid", network(channels=3, seed=5), parameters=spec["parameters"])
        again.load_spec(spec)
        again.load_state_dict(state_of(defense))
        assert isinstance(again, MID)
        assert torch.equal(again.eval().regenerate(x), defense.regenerate(x))
        assert defense.regenerate(x).shape == x.shape

    def test_reduced_precision(self, network: Network, loader: Loader) -> None:
        """The inner gradient is taken outside autocast."""
        plan = TrainPlan(epochs=2, lr=0.05, mixed_precision="on")
        defense = MID(network(), teacher=0.5)
        history = defense.fit(loader(64), attacks("fgsm,mim"), plan=plan)
        assert history[1]["meta_test"] > 0
        assert all(value.dtype == torch.float32 for value in defense.state_dict().values())


class TestRegeneration:
    """How close regenerated images are to clean ones."""

    def test_psnr_by_hand(self) -> None:
        """An error of 0.1 everywhere is 20 dB; no error has no ratio."""
        x = torch.full((2, 1, 8, 8), 0.5)
        assert psnr(x + 0.1, x) == pytest.approx(20, abs=1e-4)
        assert psnr(x, x) is None

    @pytest.mark.parametrize("side", [4, 8, 28])
    def test_ssim_by_hand(self, side: int) -> None:
        """Of flat images a and b (2ab + c)/(a² + b² + c) with c = 0.01²; of equal ones 1; less of noise."""
        first, second = torch.full((2, 3, side, side), 0.2), torch.full((2, 3, side, side), 0.6)
        assert ssim(first, second) == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), abs=1e-4)
        x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        assert ssim(x, x) == pytest.approx(1)
        assert ssim(x.flip(0), x) < 0.5

    @pytest.mark.parametrize("channels", [1, 3])
    def test_attacked_images_are_compared_with_clean_ones(
        self, network: Network, loader: Loader, channels: int, digits: Any
    ) -> None:
        """The same numbers and the same picture each time; the defense is left as it is."""
        defense = MID(network(channels=channels))
        defense.fit(loader(64, channels=channels), attacks(), plan=PLAN)
        before = state_of(defense)
        data = Split(digits.test.x[:20].repeat(1, channels, 1, 1), digits.test.y[:20])
        found = regenerate(defense, data, attacks("fgsm,mim"), seed=3)
        assert found == regenerate(defense, data, attacks("fgsm,mim"), seed=3)
        assert set(found.metrics) == {
            f"{whose}_{name}" for whose in ("regenerated", "adversarial") for name in ("psnr", "ssim")
        }
        # An error of eps = 0.2 in every pixel is 14 dB; black and white ones move half the time at most.
        assert found.metrics["adversarial_psnr"] is not None
        assert 13.9 < found.metrics["adversarial_psnr"] < 20
        assert found.picture.startswith(b"\x89PNG")
        assert equal(state_of(defense), before)


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_run_has_transferred_cells_and_a_picture(small_options: dict[str, Any], tmp_path: Path) -> None:
    """Every attack of the run once more from row 0's model, on as many points; as another audit finds too."""
    options = {**small_options, "points": "60,fgsm=50"}
    found = run("mid", runs_dir=tmp_path, **options)
    record = found.record
    own = [cell for cell in record.cells if cell.stage == 1 and cell.attack != "clean"]

    def transferred(audit: Audit) -> dict[str, Cell]:
        return {cell.attack: cell for cell in audit.probes if cell.threat.access == "transfer"}

    moved, again = transferred(record.audit), transferred(audit_run(found, points=10))
    assert record.audit.surrogate == "row 0"
    assert {cell.attack for cell in own} == {entry.text for entry in record.attacks} <= set(moved)
    assert [(cell.n, cell.clean_correct) for cell in own] == [
        (moved[cell.attack].n, moved[cell.attack].clean_correct) for cell in own
    ]
    assert {cell.n for cell in own} == {50, 60}
    seen = [moved[entry.text].accuracy for entry in record.attacks if entry.role == "seen"]
    assert record.metrics["transfer_accuracy"] == pytest.approx(sum(seen) / 2)
    assert {"regenerated_psnr", "regenerated_ssim"} <= set(record.metrics)
    assert (found.path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert PICTURE in (found.path / "SHA256SUMS").read_text()
    assert check_run(found.path).problems == []
    report = verify_run(found, Asked(stages="last", attacks="fgsm", points=10))
    assert report.faults == []
    # The images were drawn again, so nothing is left to be believed of them.
    assert not any("regenerated" in line for line in report.not_looked_at)
    first = verify_run(found, Asked(stages="0", attacks="fgsm", points=10))
    assert any("regenerated_psnr" in line for line in first.not_looked_at)
    for cell in own:
        counts = [one[cell.attack].model_dump(exclude={"seconds"}) for one in (moved, again)]
        assert counts[0] == counts[1]
    shown = transfer_table(record)
    assert shown is not None
    assert shown.row_count == len(own)


@pytest.mark.slow
def test_a_run_of_another_defense_has_neither(at_run: Any) -> None:
    """Its record is what it was."""
    assert "transfer_accuracy" not in at_run.record.metrics
    assert not (at_run.path / PICTURE).exists()
    assert transfer_table(at_run.record) is None
