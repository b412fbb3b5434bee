"""Teaching assistant in the loop: a student asks an imperfect teacher under a budget of queries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import drawn, normal
from attacks_pool.errors import InputError, unknown
from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, because, not_negative
from defenses.parts.frozen import OldModelDefense, frozen_copy
from defenses.parts.halves import enter_part, forget_steps
from defenses.parts.mixing import craft_batch
from defenses.registry import register
from defenses.training.processes import current, whole
from defenses.training.tally import Report, Tally

Ask = Literal["both", "consistency", "confidence", "random"]
Unasked = Literal["skip", "label"]
RATIOS = {
    "asked_share": ("queries", "samples"),
    "accepted_share": ("accepted", "queries"),
    "mean_answers": ("answers", "probed"),
    "teacher_right": ("right", "queries"),
    "filter_precision": ("accepted_right", "accepted"),
    "filter_recall": ("accepted_right", "right"),
}
COUNTS = ("samples", "queries", "accepted")


@register
class TALoop(OldModelDefense):
    """Robust distillation with a teaching assistant in the loop (Zhou and Ai, arXiv:2406.05322).

    The student S asks the teacher E only about images on which it is unsure, and learns only from answers
    that the assistant A considers right. E is imperfect: in stage 1 it is S after adversarial training for
    the share ``teacher_share`` of the epochs, whereupon S goes back to its weights θ₀ at the stage's start;
    later, E is S at the end of the previous stage. A is the frozen classifier before stage 1. With x̃ crafted
    on S, z = S(x̃) and p_A the softmax of A,

        s_i = the number of different answers argmax S(clip(x̃_i + σ·ε_j)), ε_j ~ N(0, I), j ≤ n,
        c^S_i = p_A(argmax z_i | x_i),   c^T_i = p_A(argmax E(x̃_i) | x_i),
        u_i = ½ · (s_i − 1) / (min(n, K) − 1) + ½ · (1 − c^S_i),
        Q = the m images of largest u,   m = ⌊b · images so far⌋ − queries so far,
        a_i = 1[i ∈ Q and c^T_i ≥ τ],
        KL_i = T² · KL(softmax(E(x̃_i) / T) ‖ softmax(z_i / T)),
        skip:   L = Σ a_i KL_i / max(Σ a_i, 1),
        label:  L = 1/N Σ (a_i KL_i + (1 − a_i) CE_i).

    E is shown only the images of Q, so the number of queries never exceeds b times the number of images. With
    ``skip`` the student sees no label: attacks are crafted against argmax A(x). The student part begins with
    a warm-up, in which Q is drawn at random. The teacher part and the student part each have a whole
    learning-rate schedule.

    From the paper, which distils language models: self-consistency of the student, the assistant's confidence
    in the student and in the teacher, and the two-stage warm-up. Ours: the rules that combine these signals,
    the exact budget, the noisy views, and that the assistant judges the clean image. The ranking by u is over
    a batch, so that Q depends on the batch. Labels enter ``report`` but not the loss.

    ``report`` counts the images, queries and accepted answers of the student's training, and gives the mean
    of s, the share of the teacher's answers that are right, and precision and recall of the filter: the share
    of accepted answers that are right, and the share of right answers that are accepted.

    Args:
        model: the student, and unless other models are given, the origin of teacher and assistant.
        budget: b.
        views: n.
        sigma: σ in image units.
        threshold: τ; 0 accepts every answer.
        temperature: T.
        teacher_share: the share of stage 1 that trains the teacher; without effect if one is given.
        warmup_share: the share of the student part in which Q is drawn at random.
        ask: ``both`` signals, one of them alone, or ``random``.
        unasked: ``skip`` or ``label``, see above.
        teacher: a finished run whose model is E in every stage; in Python, call :meth:`employ` instead.
        assistant: a finished run whose model is A.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range; in ``fit``, a run is named and its model was not given.
    """

    info = DefenseInfo(
        name="ta-loop",
        paper="2406.05322",
        regimes=("joint", "continual"),
        employs=("teacher", "assistant"),
    )
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        budget: float = 0.25,
        views: int = 8,
        sigma: float = 0.1,
        threshold: float = 0.5,
        temperature: float = 1.0,
        teacher_share: float = 0.4,
        warmup_share: float = 0.2,
        ask: Ask = "both",
        unasked: Unasked = "skip",
        teacher: str | None = None,
        assistant: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(sigma=sigma)
        above_zero(temperature=temperature)
        for name, value in {"budget": budget, "threshold": threshold, "warmup_share": warmup_share}.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value} must be from 0 to 1")
        if not 0 < teacher_share < 1:
            raise InputError(f"teacher_share={teacher_share} must be above 0 and below 1")
        if views < 2:
            raise InputError(f"views={views} must be at least 2")
        if ask not in get_args(Ask):
            raise unknown("way to ask", ask, get_args(Ask))
        if unasked not in get_args(Unasked):
            raise unknown("unasked", unasked, get_args(Unasked))
        self.budget, self.views, self.sigma, self.threshold = budget, views, sigma, threshold
        self.temperature = temperature
        self.teacher_share, self.warmup_share = teacher_share, warmup_share
        self.ask, self.unasked, self.teacher, self.assistant = ask, unasked, teacher, assistant
        # Tuples and dicts keep modules from being registered as submodules.
        self._given: dict[str, nn.Module] = {}
        self._assistant: tuple[nn.Module, ...] = ()
        self._start: dict[str, Tensor] = {}
        self._seen = self._asked = 0
        self._asking = True
        self._tally = Tally()
        self._counts: dict[str, float] = {}

    def employ(self, teacher: nn.Module | None = None, assistant: nn.Module | None = None) -> None:
        """Use these models as teacher and assistant; they are copied and frozen.

        Args:
            teacher: E in every stage, or None for the student's own earlier weights.
            assistant: A, or None for the classifier before stage 1.
        """
        given = {"teacher": teacher, "assistant": assistant}
        self._given |= {name: frozen_copy(one) for name, one in given.items() if one is not None}

    def begin(self, stage: Stage) -> None:
        """Freeze teacher and assistant, as far as they come from the student.

        Raises:
            InputError: a parameter names a run whose model was not given.
        """
        for name in self.info.employs:
            if getattr(self, name) is not None and name not in self._given:
                raise InputError(
                    f"{name}={getattr(self, name)} names a run, which advbench run loads: in Python, call "
                    f"employ({name}=load_run(...).model)"
                )
        if "teacher" not in self._given:
            super().begin(stage)
        if stage.index == 1:
            self._assistant = () if "assistant" in self._given else (frozen_copy(self.model),)
            state = {} if "teacher" in self._given else self.model.state_dict()
            self._start = {name: value.clone() for name, value in state.items()}

    def end(self, stage: Stage) -> None:
        """Drop the teacher of this stage; the assistant stays."""
        super().end(stage)
        self._start = {}
        queries, accepted = (self._tally.total(name, stage.index) for name in ("queries", "accepted"))
        if queries and not accepted and self.unasked == "skip":
            warnings.warn(
                f"ta-loop: the assistant accepted none of {queries:.0f} answers in stage {stage.index}, so "
                "the student learned nothing: lower threshold, pretrain longer or set unasked=label",
                stacklevel=1,
            )

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """Parameters of signals that are not in use, and the teacher's share if a teacher is given."""
        found = {}
        if self.ask in ("confidence", "random"):
            found = because(f"since ask={self.ask} counts no different answers", "views", "sigma")
        if self.ask == "random":
            found |= because("since ask=random draws in the warm-up and after it", "warmup_share")
        if self.teacher is not None:
            found |= because("since the teacher is given, and not trained", "teacher_share")
        return found

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train the teacher on one batch or, after its share of stage 1, the student."""
        begin = 0.0 if stage.index > 1 or "teacher" in self._given else self.teacher_share
        if self._start and stage.done >= begin:
            self._old = (frozen_copy(self.model),)
            self.model.load_state_dict(self._start)
            self._start = {}
            self.part += 1
            forget_steps(optimizer)
        enter_part(optimizer, stage.plan, stage.done, *((0.0, begin) if self._start else (begin, 1.0)))
        # Without an optimizer only batch-norm statistics are measured, for which nothing is asked.
        self._asking, self._counts = optimizer is not None, {}
        losses = super().step(x, y, stage, optimizer)
        if self._counts:
            self._seen += int(self._counts["samples"])
            self._asked += int(self._counts["queries"])
            self._tally.add(stage.index, self._counts)
        return losses

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """CE for the teacher; for the student the loss above."""
        if self._start:
            logits = self(self._crafted(x, y, stage))
            return {"loss": self.label_loss(logits, y)}
        trust = self._answers(self._models()[1], x).softmax(1)
        x_adv = self._crafted(x, trust.argmax(1) if self.unasked == "skip" else y, stage)
        logits = self(x_adv)
        begin = 0.0 if stage.index > 1 or "teacher" in self._given else self.teacher_share
        warm = (stage.done - begin) / (1 - begin) < self.warmup_share
        asked = self.asked(x_adv, logits, trust, at_random=warm or self.ask == "random")
        # Not every network accepts an empty batch.
        taught = self._answers(self._models()[0], x_adv[asked]) if len(asked) else logits[:0].detach()
        accepted = trust[asked].gather(1, taught.argmax(1, keepdim=True)).squeeze(1) >= self.threshold
        right = taught.argmax(1) == y[asked]
        marks = torch.zeros(len(x), 4, device=x.device)
        marks[asked] = torch.stack([torch.ones_like(right), accepted, right, accepted & right], 1).float()
        # Other processes work on other rows of the batch.
        totals = whole(marks).sum(0).tolist()
        if self._asking:
            names = ("queries", "accepted", "right", "accepted_right")
            self._counts |= {"samples": current(len(x)).total, **dict(zip(names, totals, strict=True))}
        return self.distilled(logits, taught[accepted], asked[accepted], y, among=totals[1])

    def asked(self, x_adv: Tensor, logits: Tensor, trust: Tensor, *, at_random: bool) -> Tensor:
        """Q, the indices (m,) of the images to ask the teacher about.

        Args:
            x_adv: x̃ (N, C, H, W).
            logits: z (N, K).
            trust: p_A(· | x) (N, K).
            at_random: draw Q instead of ranking by u.
        """
        part = current(len(x_adv))
        count = math.floor(self.budget * (self._seen + part.total) + 1e-9) - self._asked
        count = min(max(count, 0), part.total) if self._asking else 0
        if at_random:
            rank = drawn(torch.rand, (len(x_adv),), self.generator).to(x_adv.device)
        else:
            rank = self.uncertainty(x_adv, logits, trust)
        chosen = whole(rank).argsort(descending=True, stable=True)[:count]
        return chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start

    def uncertainty(self, x_adv: Tensor, logits: Tensor, trust: Tensor) -> Tensor:
        """u (N,), or one of its two terms; arguments as for :meth:`asked`."""
        unsure = 1 - trust.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
        if self.ask == "confidence":
            return unsure
        answers = self.different_answers(x_adv)
        if self._asking:
            total = float(whole(answers).sum())
            self._counts |= {"answers": total, "probed": current(len(x_adv)).total}
        spread = (answers - 1) / (min(self.views, logits.shape[1]) - 1)
        return spread if self.ask == "consistency" else (spread + unsure) / 2

    def different_answers(self, x_adv: Tensor) -> Tensor:
        """s (N,): how many different answers the student gives to n noisy views of each image."""
        answers = []
        with torch.no_grad(), evaluation_mode(self):
            for _ in range(self.views):
                view = (x_adv + self.sigma * normal(x_adv, self.generator)).clamp(0, 1)
                answers.append(self(view).argmax(1))
        ranked = torch.stack(answers, 1).sort(1).values
        return 1 + (ranked[:, 1:] != ranked[:, :-1]).sum(1)

    def distilled(
        self, logits: Tensor, taught: Tensor, rows: Tensor, y: Tensor, *, among: float | None = None
    ) -> dict[str, Tensor]:
        """L and its terms.

        Args:
            logits: z (N, K).
            taught: E(x̃) (A, K) of the images with an accepted answer.
            rows: the indices (A,) of these images.
            y: labels (N,), used only with ``label``.
            among: Σ a_i over the whole batch, if other processes have other rows of it.
        """
        student, teacher = (
            log_probabilities(values / self.temperature) for values in (logits[rows], taught.to(logits.dtype))
        )
        divergence = F.kl_div(student, teacher, log_target=True, reduction="sum") * self.temperature**2
        if self.unasked == "skip":
            # The sum over no image keeps its graph, so that a batch without answers has zero gradients.
            mine = len(y) / current(len(y)).total
            kl = divergence / (max(len(rows) if among is None else among, 1) * mine)
            return {"loss": kl, "kl": kl.detach()}
        rest = torch.ones(len(y), dtype=torch.bool, device=y.device)
        rest[rows] = False
        kl = divergence / len(y)
        ce = kl.new_zeros(())
        if rest.any():
            ce = self.label_loss(logits[rest], y[rest]) * (rest.sum() / len(y))
        return {"loss": kl + ce, "kl": kl, "ce": ce}

    def report(self) -> Report:
        """Counts and shares over the student's training, and the same by stage."""
        table = self._tally.by_stage(RATIOS)
        for stage, row in table.items():
            row |= {name: self._tally.total(name, int(stage)) for name in COUNTS}
        if not table:
            return {}
        counts = {name: self._tally.total(name) for name in COUNTS}
        return {**counts, **self._tally.ratios(RATIOS), "queries_by_stage": table}

    def training_state(self) -> dict[str, Any]:
        """Adds the assistant, θ₀ while the teacher trains, and all counts; not the models of ``employ``."""
        more = {
            "assistant": self._assistant[0].state_dict() if self._assistant else None,
            "start": dict(self._start),
            "seen": self._seen,
            "asked": self._asked,
            "part": self.part,
            "tally": self._tally.state(),
        }
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them; models of ``employ`` must be given again before."""
        super().load_training_state(state)
        kept = state["assistant"]
        self._assistant = () if kept is None else (frozen_copy(self.model, kept),)
        self._start = {name: value.to(self.device) for name, value in state["start"].items()}
        self._seen, self._asked, self.part = int(state["seen"]), int(state["asked"]), int(state["part"])
        self._tally.load(state["tally"])

    def _crafted(self, x: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        x_adv, _ = craft_batch(
            self.craft, stage.attacks, x, labels, mix="split", generator=self.generator, predict=self
        )
        return x_adv

    def _models(self) -> tuple[nn.Module, nn.Module]:
        """E and A, on the student's device."""
        teacher = self._given["teacher"] if "teacher" in self._given else self._old[0]
        assistant = self._given["assistant"] if "assistant" in self._given else self._assistant[0]
        return teacher.to(self.device), assistant.to(self.device)

    def _answers(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits (N, K) of a frozen model, without gradients."""
        with torch.no_grad():
            found: Tensor = model(x)
        self.passes.forwards += len(x)
        return found
