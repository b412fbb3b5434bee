"""TA-loop: signals, budget, filter and losses by hand; parts of a stage; given models; resuming."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, divergence, equal, points, small, softmax, stopped_and_resumed
from conftest import SMALL
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import run
from advbench.benchmark.prepare import prepare
from advbench.runs.saved import Run
from advbench.verify.train_again import _options
from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import Stage, TALoop, TrainPlan
from defenses.parts.frozen import frozen_copy
from leaderboards import RecordError

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=5, lr=0.05, eps_warmup=0)


def sharp(network: Network, seed: int, **more: Any) -> nn.Sequential:
    """A network that is sure of its answers."""
    model = network(seed=seed, **more)
    model[-1].weight.data.mul_(8)
    return model.eval()


def employing(network: Network, **parameters: Any) -> TALoop:
    """A student with a teacher and an assistant of its own, all different."""
    defense = TALoop(sharp(network, 0), **parameters)
    defense.employ(sharp(network, 1), sharp(network, 2))
    return defense


def stage(done: float = 0.9, index: int = 2) -> Stage:
    """A moment of a stage."""
    return Stage(index, (attack(),), PLAN, (), done)


def data(digits: Any, count: int = 30) -> list[tuple[Tensor, Tensor]]:
    """Three batches of digits."""
    x, y = digits.train.x[:count], digits.train.y[:count]
    return [(x[part], y[part]) for part in torch.arange(count).split(count // 3)]


class TestSignals:
    """s, c^S and u, and the images that are asked about."""

    def test_different_answers(self, network: Network) -> None:
        """Against a set of the answers to each image."""
        defense = TALoop(sharp(network, 0), views=5, sigma=0.4)
        (x, _) = points(1, 20)
        defense.generator = keyed_generator("ta")
        got = defense.different_answers(x)
        draws = keyed_generator("ta")
        views = [(x + 0.4 * torch.randn(x.shape, generator=draws)).clamp(0, 1) for _ in range(5)]
        answers = [defense.model(view).argmax(1).tolist() for view in views]
        assert got.tolist() == [len(set(one)) for one in zip(*answers, strict=True)]
        assert len(set(got.tolist())) > 2

    @pytest.mark.parametrize("ask", ["both", "consistency", "confidence"])
    def test_the_most_uncertain_are_asked_about(self, network: Network, ask: Any) -> None:
        """Against a sort of all images by u, in plain Python."""
        defense = TALoop(sharp(network, 0), views=3, sigma=0.4, ask=ask, budget=0.3)
        (x, _) = points(1, 20)
        logits, trust = defense.model(x).detach(), sharp(network, 1)(x).detach().softmax(1)
        defense.generator = keyed_generator("ta")
        asked = defense.asked(x, logits, trust, at_random=False)
        defense.generator = keyed_generator("ta")
        s = defense.different_answers(x).tolist()
        values = []
        for i in range(20):
            spread, unsure = (s[i] - 1) / 2, 1 - float(trust[i, int(logits[i].argmax())])
            values.append({"both": (spread + unsure) / 2, "consistency": spread, "confidence": unsure}[ask])
        assert asked.tolist() == sorted(range(20), key=lambda i: -values[i])[:6]

    def test_few_classes_limit_the_answers(self, network: Network) -> None:
        """The spread is 1 where all classes are answered, though there are more views."""
        defense = TALoop(sharp(network, 0, classes=2), views=8, sigma=3.0, ask="consistency")
        (x, _) = points(1, 20)
        found = defense.uncertainty(x, defense.model(x), defense.model(x).softmax(1))
        assert found.max() == 1
        assert set(found.tolist()) <= {0.0, 1.0}

    @pytest.mark.parametrize("ask", ["both", "random"])
    @pytest.mark.parametrize("budget", [0.0, 0.1, 0.25, 1.0])
    def test_the_teacher_sees_no_more_than_its_budget(
        self, network: Network, digits: Any, budget: float, ask: Any
    ) -> None:
        """The rows of Q alone, ⌊b · images⌋ in total after each step, whatever the batches' sizes."""
        defense = TALoop(network(), budget=budget, ask=ask)
        teacher = network(seed=1)
        rows: list[int] = []
        defense.employ(teacher=teacher)
        defense._given["teacher"].register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
        batches = [(x[: 3 + 2 * i], y[: 3 + 2 * i]) for i, (x, y) in enumerate(data(digits))]
        totals: list[int] = []
        defense.fit(batches, attacks(), plan=PLAN, progress=lambda _: totals.append(sum(rows)))
        seen = [15 * epoch + part for epoch in range(5) for part in (3, 8, 15)]
        assert totals == [math.floor(budget * count + 1e-9) for count in seen]
        report = defense.report()
        assert (report["samples"], report["queries"]) == (75, totals[-1])

    def test_statistics_are_measured_without_questions(self, network: Network, digits: Any) -> None:
        """Averaged weights need a further pass over the data."""
        defense = TALoop(network(norm=True), budget=0.5)
        defense.fit(data(digits), attacks(), plan=PLAN.model_copy(update={"average": "ema"}))
        assert defense.report()["queries"] == defense._asked == math.floor(0.5 * defense._seen)
        assert defense._seen == 90


class TestLoss:
    """Σ a_i KL_i over accepted answers, CE of the others where labels are used."""

    def by_hand(self, defense: TALoop, x_adv: Tensor, rows: list[int]) -> list[float]:
        """T² · KL(softmax(E / T) ‖ softmax(S / T)) of images, each by itself."""
        t, teacher = defense.temperature, defense._given["teacher"]
        one = [x_adv[row : row + 1] for row in rows]
        return [
            t**2 * divergence(softmax(teacher, image, t), softmax(defense.model, image, t)) for image in one
        ]

    def test_filter_and_mean(self, network: Network) -> None:
        """a_i = 1[c^T ≥ τ], by the assistant on the clean image; the mean is over accepted answers."""
        defense = employing(network, budget=0.5, temperature=2.0, ask="confidence")
        x, y = points(1, 16)
        teacher, assistant = defense._given["teacher"], defense._given["assistant"]
        trust = softmax(assistant, x)
        defense.generator = keyed_generator("ta")
        x_adv = defense.craft(attack(), x, torch.tensor(trust).argmax(1))
        answers = defense.model(x_adv).argmax(1).tolist()
        asked = sorted(range(16), key=lambda i: trust[i][answers[i]])[:8]
        taught = teacher(x_adv).argmax(1).tolist()
        defense.threshold = sorted(trust[i][taught[i]] for i in asked)[3] * (1 - 1e-5)
        kept = [i for i in asked if trust[i][taught[i]] >= defense.threshold]
        assert len(kept) == 5
        defense.generator = keyed_generator("ta")
        loss = defense.loss(x, y, stage())["loss"]
        assert loss.item() == pytest.approx(sum(self.by_hand(defense, x_adv, kept)) / 5, abs=1e-4)
        right = [i for i in asked if taught[i] == int(y[i])]
        counts = {"samples": 16, "queries": 8, "accepted": 5, "right": len(right)}
        counts["accepted_right"] = len(set(kept) & set(right))
        assert defense._counts == counts

    def test_labels_for_the_rest(self, network: Network) -> None:
        """1/N Σ (a_i KL_i + (1 − a_i) CE_i), given the accepted answers."""
        defense = employing(network, unasked="label")
        x, y = points(1, 10)
        rows = torch.tensor([7, 2, 4])
        logits = defense.model(x)
        taught = defense._given["teacher"](x[rows]).detach()
        terms = defense.distilled(logits, taught, rows, y)
        ce = F.cross_entropy(logits, y, reduction="none")
        expected = sum(self.by_hand(defense, x, rows.tolist()))
        expected += sum(float(ce[i].detach()) for i in range(10) if i not in rows.tolist())
        assert terms["loss"].item() == pytest.approx(expected / 10, abs=1e-4)

    @pytest.mark.parametrize("unasked", ["skip", "label"])
    def test_everything_asked_and_accepted_is_plain_distillation(
        self, network: Network, unasked: Any
    ) -> None:
        """b = 1, τ = 0."""
        defense = employing(network, budget=1.0, threshold=0.0, unasked=unasked)
        x, y = points(1, 10)
        defense.generator = keyed_generator("ta")
        loss = defense.loss(x, y, stage())["loss"]
        labels = defense._given["assistant"](x).argmax(1) if unasked == "skip" else y
        defense.generator = keyed_generator("ta")
        x_adv = defense.craft(attack(), x, labels)
        assert loss.item() == pytest.approx(sum(self.by_hand(defense, x_adv, [*range(10)])) / 10, abs=1e-4)

    def test_without_a_budget_labels_teach(self, network: Network) -> None:
        """b = 0 with ``label`` is cross-entropy."""
        defense = employing(network, budget=0.0, unasked="label")
        x, y = points(1, 10)
        defense.generator = keyed_generator("ta")
        loss = defense.loss(x, y, stage())["loss"]
        defense.generator = keyed_generator("ta")
        x_adv = defense.craft(attack(), x, y)
        assert loss.item() == pytest.approx(F.cross_entropy(defense.model(x_adv), y).item(), abs=1e-6)

    def test_with_skip_labels_play_no_part(self, network: Network, digits: Any) -> None:
        """Wrong labels train the same student; only the report differs."""
        trained = []
        for shift in (0, 1):
            defense = employing(network, threshold=0.05)
            batches = [(x, (y + shift) % 10) for x, y in data(digits)]
            defense.fit(batches, attacks(), plan=PLAN)
            trained.append(defense)
        assert equal(trained[0], trained[1])
        assert trained[0].report() != trained[1].report()

    def test_a_batch_without_answers_changes_nothing(self, network: Network) -> None:
        """Its gradient is zero, not missing."""
        defense = employing(network, budget=0.0)
        x, y = points(1, 10)
        loss = defense.loss(x, y, stage())["loss"]
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in defense.parameters())


class TestStages:
    """Teacher part, student part, and who teaches."""

    def test_the_student_starts_over(self, network: Network, digits: Any) -> None:
        """After the teacher's share it has the weights of the stage's start, and the optimizer no memory."""
        states: list[tuple[bool, bool, bool, int]] = []
        rates: list[float] = []
        before = network(norm=True)

        class Noting(TALoop):
            def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
                old = bool(self._old)
                states.append((old, equal(self.model, before), bool(self._start), len(self.optimizer.state)))
                rates.append(self.optimizer.param_groups[0]["lr"])
                return super().loss(x, y, stage)

            def configure_optimizer(self, plan: TrainPlan) -> Any:
                self.optimizer: Any = super().configure_optimizer(plan)
                return self.optimizer

        defense = Noting(network(norm=True))
        plan = PLAN.model_copy(update={"schedule": "linear"})
        defense.fit(data(digits)[:1], attacks(), plan=plan)
        assert [one[0] for one in states] == [False, False, True, True, True]
        assert [one[1] for one in states] == [True, False, True, False, False]
        assert [one[2] for one in states] == [True, True, False, False, False]
        assert states[2][3] == 0 < states[3][3]
        assert rates == pytest.approx([0.05, 0.025, 0.05, 0.05 * 2 / 3, 0.05 / 3])
        assert defense.part == 1
        assert equal(defense._assistant[0], before)

    def test_later_stages_have_the_stage_before_as_teacher(self, network: Network, digits: Any) -> None:
        """And the first classifier as assistant."""
        defense = TALoop(network(), threshold=0.1)
        first = frozen_copy(defense.model)
        defense.fit(data(digits), [attack()], plan=PLAN)
        before = frozen_copy(defense.model)
        found: list[tuple[nn.Module, nn.Module]] = []
        defense.fit(
            data(digits), [attack("pgd")], plan=PLAN, progress=lambda _: found.append(defense._models())
        )
        assert all(equal(teacher, before) and equal(assistant, first) for teacher, assistant in found)
        assert not equal(before, defense.model)
        table = defense.report()["queries_by_stage"]
        assert isinstance(table, dict)
        assert [(row["samples"], row["queries"]) for row in table.values()] == [(90, 22), (150, 38)]

    def test_the_warm_up_asks_at_random(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        """For a share of the student part, which begins after the teacher part in stage 1."""
        defense = employing(network, warmup_share=0.5)
        found: list[bool] = []

        def asked(x_adv: Tensor, logits: Tensor, trust: Tensor, *, at_random: bool) -> Tensor:  # noqa: ARG001
            found.append(at_random)
            return torch.arange(2)

        monkeypatch.setattr(defense, "asked", asked)
        x, y = points(1, 10)
        for done in (0.0, 0.49, 0.5, 0.9):
            defense.loss(x, y, stage(done))
        defense._given = {}
        defense._old, defense._assistant = (network(),), (network(),)
        for done in (0.4, 0.69, 0.71):
            defense.loss(x, y, stage(done, index=1))
        assert found == [True, True, False, False, True, True, False]

    def test_a_student_that_learns_nothing_is_warned_of(self, network: Network, digits: Any) -> None:
        """The assistant is sure of no class."""
        defense = TALoop(network(), threshold=0.9)
        with pytest.warns(UserWarning, match=r"accepted none of 22 answers in stage 1, .* lower threshold"):
            defense.fit(data(digits), attacks(), plan=PLAN)

    @pytest.mark.parametrize("at", [5, 9])
    def test_resuming_is_exact(self, digits: Any, at: int) -> None:
        """In either part, with counts and the report."""
        whole, _, _ = stopped_and_resumed(
            lambda: TALoop(small(), threshold=0.1, seed=1), data(digits), [attacks()], at=at, plan=PLAN
        )
        assert whole.report()

    def test_resuming_a_later_stage(self, digits: Any) -> None:
        stages = [attacks("fgsm"), attacks("pgd")]
        stopped_and_resumed(
            lambda: TALoop(small(), threshold=0.1, seed=1), data(digits), stages, at=4, plan=PLAN
        )

    def test_given_models_may_be_larger(self, digits: Any, network: Network) -> None:
        """They are frozen copies, in no state, and change nothing of the models given."""
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).train()
        defense = TALoop(network(), budget=1.0, threshold=0.0)
        defense.employ(teacher=teacher)
        defense.fit(data(digits), attacks(), plan=PLAN)
        assert teacher.training
        assert all(parameter.requires_grad for parameter in teacher.parameters())
        assert defense.training_state()["old"] is None
        assert defense.part == 0
        assert set(defense.state_dict()) == {f"model.{name}" for name in network().state_dict()}
        assert defense.report()["samples"] == 150


@pytest.fixture(scope="module")
def taught(at_run: Run) -> Run:
    """A student of a finished run, found by name beside it."""
    options = SMALL | {"sequence": "fgsm", "unseen": "none", "points": 20}
    options["set"] = SMALL["set"] | {"teacher": at_run.path.name}
    return run("ta-loop", regime="joint", runs_dir=at_run.path.parent, **options)


class TestRuns:
    """``--set teacher=RUN``."""

    def test_a_run_is_found_by_its_name(self, at_run: Run) -> None:
        """Its model is loaded, and its digest becomes part of the configuration."""
        given = {"defense": "ta-loop", "sequence": "fgsm", "set": {"teacher": at_run.path.name}}
        found = prepare(given, runs_dir=at_run.path.parent)
        assert re.fullmatch(rf"{at_run.path.name}@[0-9a-f]{{12}}", found.config.params["teacher"])
        assert equal(found.employed["teacher"], at_run.model)
        assert found.identity != prepare(given | {"set": {}}).identity

    @pytest.mark.slow
    def test_the_record_names_the_run_and_its_weights(self, taught: Run, at_run: Run) -> None:
        """By name and digest, without its directory; the model loads without the teacher."""
        name, _, digest = taught.record.config["params"]["teacher"].partition("@")
        assert name == at_run.path.name
        assert len(digest) == 12
        assert str(at_run.path.parent) not in str(taught.record.dump())
        assert taught.record.report is not None
        assert taught.record.report.numbers["samples"] == 1293
        assert taught.model.eval()(taught.test_data[0][:2]).shape == (2, 10)

    @pytest.mark.slow
    def test_it_is_found_again(self, taught: Run, at_run: Run, tmp_path: Path) -> None:
        """By its name in the directory of runs, and beside the run that is trained again."""
        config = taught.record.config
        for options in (
            {"config": config, "runs_dir": at_run.path.parent},
            {"config": _options(taught, None, None, None, None), "runs_dir": tmp_path},
        ):
            given = {key: value for key, value in options["config"].items() if key != "surrogate"}
            found = prepare(given, runs_dir=options["runs_dir"])
            assert found.config.params == config["params"]
            assert equal(found.employed["teacher"], at_run.model)
            assert found.employed_paths == {"teacher": str(at_run.path.resolve())}

    def test_mistakes(self, at_run: Run, tmp_path: Path) -> None:
        """Another run than said, none, or one for other images."""
        name = at_run.path.name
        given = {"defense": "ta-loop", "sequence": "fgsm", "dataset": "digits"}
        for teacher, kind, said in (
            (f"{name}@0123456789ab", InputError, r"^teacher=.*: the weights of .* are others, with digest "),
            (f"{name}x", RecordError, f"^no run '{name}x' here or in .*: did you mean '{name}'"),
        ):
            with pytest.raises(kind, match=said):
                prepare({**given, "set": {"teacher": teacher}}, runs_dir=at_run.path.parent)
        images = {"image_size": 12, "set": {"assistant": str(at_run.path)}}
        with pytest.raises(
            InputError, match=r"its model takes images \(1, 8, 8\) of 10 classes, not \(1, 12, 12\)"
        ):
            prepare({**given, **images}, runs_dir=tmp_path)

    def test_in_python_the_model_is_given(self, network: Network, digits: Any) -> None:
        with pytest.raises(InputError, match=r"^teacher=some-run names a run, .* employ\(teacher=load_run"):
            TALoop(network(), teacher="some-run").fit(data(digits), attacks(), plan=PLAN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": 1.5}, "budget=1.5 must be from 0 to 1"),
        ({"threshold": -0.1}, "threshold=-0.1 must be from 0 to 1"),
        ({"views": 1}, "views=1 must be at least 2"),
        ({"teacher_share": 0.0}, "teacher_share=0.0 must be above 0 and below 1"),
        ({"ask": "rand"}, "unknown way to ask 'rand': did you mean 'random'"),
        ({"unasked": "labels"}, "unknown unasked 'labels': did you mean 'label'"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        TALoop(network(), **given)
