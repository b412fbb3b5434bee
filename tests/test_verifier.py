"""The verifier catches what breaks a bound, lies, or moves the model, and shares no code with any attack."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks_pool import ModelState, pool, verifier, verify
from attacks_pool.verifier import Verdict, distance, exact_arithmetic, predict_exactly

N = 4
EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 3.0}
SHAPES = [(1, 8, 8), (3, 8, 8)]


class Threshold(nn.Module):
    """Class 1 where the first pixel is above one half, by ten times the distance."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        score = 10 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-score, score], dim=1)


def grey(shape: tuple[int, int, int] = (1, 8, 8), value: float = 0.4) -> tuple[Tensor, Tensor]:
    """Even images, which ``Threshold`` puts into class 0, and those labels."""
    return torch.full((N, *shape), value), torch.zeros(N, dtype=torch.long)


def away(x: Tensor, norm: str, length: float) -> Tensor:
    """Each point moved by ``length`` in ``norm`` (l0: that many pixels, in one channel), in the box."""
    flat = torch.zeros_like(x).flatten(1)
    size = flat.shape[1]
    if norm == "linf":
        flat[:, size // 2] = length
    elif norm == "l0":
        flat[:, : int(length)] = 0.3
    else:
        # Spread over a quarter of the entries, so that no pixel leaves the box.
        count = size // 4
        flat[:, :count] = length / (count if norm == "l1" else count**0.5)
    return x + flat.view_as(x)


def judge(x_adv: Tensor, norm: str | None = "linf", eps: float = 0.1, **given: Any) -> Verdict:
    """The verdict on ``x_adv`` around the grey images."""
    x, y = grey(tuple(x_adv.shape[1:]) if x_adv.ndim == 4 else (1, 8, 8))
    return verify(Threshold(), x, y, x_adv, norm=norm, eps=eps, **given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", EPS)
def test_norm_exactly_eps_is_valid(norm: str, shape: tuple[int, int, int]) -> None:
    x, _ = grey(shape)
    x_adv = away(x, norm, EPS[norm])
    verdict = judge(x_adv, norm, EPS[norm])
    assert not verdict.invalid.any()
    assert torch.equal(verdict.points, x_adv)
    assert verdict.bound == "norm"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", EPS)
def test_norm_beyond_eps_is_invalid_and_brought_back(norm: str, shape: tuple[int, int, int]) -> None:
    """A part in a thousand, or one pixel, too many; only the point that does it is touched."""
    x, _ = grey(shape)
    x_adv = away(x, norm, EPS[norm])
    x_adv[2] = away(x, norm, EPS[norm] + 1 if norm == "l0" else EPS[norm] * 1.001)[2]
    verdict = judge(x_adv, norm, EPS[norm])
    assert verdict.invalid.tolist() == [False, False, True, False]
    untouched = [0, 1, 3]
    assert torch.equal(verdict.points[untouched], x_adv[untouched])
    assert (distance(verdict.points, x, norm) <= EPS[norm] * (1 + 1e-5) + 1e-7).all()
    # Back means near: on the ball's surface, not at the clean point.
    assert float(distance(verdict.points, x, norm)[2]) == pytest.approx(EPS[norm], rel=1e-4)


def test_l0_counts_pixels_not_channels() -> None:
    x, _ = grey((3, 8, 8))
    x_adv = x.clone()
    x_adv[:, :, 0, :3] += 0.1
    assert distance(x_adv, x, "l0").tolist() == [3.0] * N
    assert not judge(x_adv, "l0", 3).invalid.any()
    assert judge(x_adv, "l0", 2).invalid.all()


def test_l0_keeps_the_largest_changes() -> None:
    x, _ = grey()
    x_adv = x.clone()
    x_adv[:, 0, 0, :4] += torch.tensor([0.1, 0.4, 0.2, 0.3])
    points = judge(x_adv, "l0", 2).points
    assert torch.allclose(points[0, 0, 0, :4] - 0.4, torch.tensor([0.0, 0.4, 0.0, 0.3]))


def test_distances_by_hand() -> None:
    x = torch.zeros(1, 2, 1, 2)
    x_adv = torch.tensor([[[[0.3, 0.0]], [[0.4, 0.0]]]])
    known = {"linf": 0.4, "l2": 0.5, "l1": 0.7, "l0": 1.0}
    assert {norm: float(distance(x_adv, x, norm)) for norm in known} == pytest.approx(known)
    assert distance(x_adv, x, "l2").dtype == torch.float64


@pytest.mark.parametrize("value", [1.01, -0.01, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["budgeted", "minimal-norm"])
def test_pixel_outside_the_box_is_invalid(value: float, kind: str) -> None:
    x_adv, _ = grey()
    x_adv[:, 0, 0, 1], x_adv[:, 0, 0, 2] = 0.0, 1.0  # in the box
    x_adv[1, 0, 3, 3] = value
    verdict = judge(x_adv, "linf", 1.0, kind=kind)
    assert verdict.invalid.tolist() == [False, True, False, False]
    assert torch.isfinite(verdict.points).all()
    assert float(verdict.points.min()) >= 0
    assert float(verdict.points.max()) <= 1


def test_box_only() -> None:
    """Without a norm any point of the box is valid, and the verdict says that nothing else was checked."""
    x_adv, _ = grey(value=0.9)
    verdict = judge(x_adv, None)
    assert verdict.bound == "box-only"
    assert not verdict.invalid.any()
    assert not verdict.robust.any()
    x_adv[0, 0, 0, 0] = 1.01
    assert judge(x_adv, None).invalid.tolist() == [True, False, False, False]


WRONG = {
    "another shape": torch.full((N, 1, 8, 7), 0.4),
    "a point short": torch.full((N - 1, 1, 8, 8), 0.4),
    "one batch for all": torch.full((1, 1, 8, 8), 0.4),
    "bytes": torch.zeros(N, 1, 8, 8, dtype=torch.uint8),
    "nothing": None,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_result_of_another_shape_or_type_is_invalid(wrong: str) -> None:
    x, y = grey()
    verdict = verify(Threshold(), x, y, WRONG[wrong], norm="linf", eps=0.1)  # type: ignore[arg-type]
    assert verdict.invalid.all()
    # Judged as the clean points, which are right.
    assert verdict.robust.all()
    assert torch.equal(verdict.points, x)


def test_projected_point_is_judged_again() -> None:
    """One cheats and fails once brought back, one would have succeeded inside the ball as well."""
    x, y = grey()
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 0] = 0.7, 0.7
    x = x.clone()
    x[1, 0, 0, 0] = 0.45
    verdict = verify(Threshold(), x, y, x_adv, norm="linf", eps=0.09)
    assert verdict.invalid.tolist() == [True, True, False, False]
    assert verdict.points[:2, 0, 0, 0].tolist() == pytest.approx([0.49, 0.54])
    assert verdict.robust.tolist() == [True, False, True, True]


def test_minimal_norm_beyond_eps_is_unsuccessful() -> None:
    x, _ = grey()
    x_adv = x.clone()
    x_adv[:2, 0, 0, 0] = torch.tensor([0.55, 0.7])
    verdict = judge(x_adv, "l2", 0.2, kind="minimal-norm")
    assert verdict.robust.tolist() == [False, True, True, True]
    assert not verdict.invalid.any()
    assert torch.equal(verdict.points[1], x[1])
    assert torch.equal(verdict.points[0], x_adv[0])


def test_false_claim_is_told() -> None:
    """Claimed are the first three; the second is no success and the third cheated."""
    x_adv, _ = grey()
    x_adv[0, 0, 0, 0], x_adv[2, 0, 0, 0] = 0.55, 0.7
    claimed = torch.tensor([True, True, True, False])
    assert judge(x_adv, eps=0.16, claimed=claimed).false_claim.tolist() == [False, True, False, False]
    assert judge(x_adv, eps=0.05, claimed=claimed).false_claim.tolist() == [True, True, True, False]
    assert not judge(x_adv).false_claim.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_numbers_are_wrong(value: float) -> None:
    """Even where argmax happens to name the label."""
    x, y = grey()

    def model(images: Tensor) -> Tensor:
        scores = Threshold()(images)
        scores[1, 0] = value
        return scores

    verdict = verify(model, x, y, x, norm="linf", eps=0.1)
    assert verdict.not_a_number.tolist() == [False, True, False, False]
    assert verdict.robust.tolist() == [True, False, True, True]
    assert not verdict.invalid.any()


@pytest.mark.parametrize(
    "given", [{"norm": "l3"}, {"kind": "maximal"}, {"eps": torch.nan}, {"eps": torch.inf}, {"eps": -0.1}]
)
def test_threat_that_cannot_be_checked_is_refused(given: dict[str, Any]) -> None:
    """With eps not a number every comparison is false, and every point would pass."""
    with pytest.raises(ValueError, match="cannot verify norm="):
        judge(grey()[0], **({"norm": "linf", "eps": 0.1} | given))


def test_no_points() -> None:
    x, y = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)
    for norm in (*EPS, None):
        verdict = verify(Threshold(), x, y, x, norm=norm, eps=1.0)
        assert verdict.robust.shape == verdict.invalid.shape == (0,)


class Spy(nn.Module):
    """Notes under which arithmetic it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.dropout = nn.Dropout(0.5)
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) in bfloat16."""
        hidden = self.layer(self.dropout(x.flatten(1)))
        self.seen = {
            "dtype": hidden.dtype,
            "gradient": torch.is_grad_enabled(),
            "training": self.training or self.dropout.training,
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
        return hidden.to(torch.bfloat16)


@pytest.fixture
def tf32() -> Any:
    """TF32 allowed, as a user in a hurry does; put back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_prediction_is_exact() -> None:
    model = Spy()
    model.dropout.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = predict_exactly(model, torch.rand(N, 1, 8, 8))
        assert torch.is_autocast_enabled("cpu")
    assert model.seen == {"dtype": torch.float32, "gradient": False, "training": False, "tf32": False}
    assert scores.dtype == torch.float32
    # Afterwards all is as before, flag by flag.
    assert (model.training, model.dropout.training, model.layer.training) == (True, False, True)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("tf32")
def test_flags_come_back_when_a_model_raises() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        predict_exactly(model, torch.rand(N, 1, 8, 8))
    assert model.training
    assert torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError), exact_arithmetic(torch.device("cpu")):
        raise KeyError
    assert torch.backends.cudnn.allow_tf32


def test_prediction_of_a_function_is_exact() -> None:
    """A function may average many draws; it too is judged without gradients and in float32."""
    seen = []

    def scores(x: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x.flatten(1)[:, :2].double()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predict_exactly(scores, torch.rand(N, 1, 8, 8)).dtype == torch.float32
    assert seen == [(False, False)]


# What an attack does to the model.


@pytest.fixture
def model() -> nn.Sequential:
    """In train mode, with one frozen batch norm and a gradient on one parameter."""
    made = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    made[1].eval()
    made[0].bias.grad = torch.ones(2)
    return made


DEEDS: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    "moves statistics": (lambda model: model[1].running_mean.add_(1), ["buffer '1.running_mean'"]),
    "stays in train mode": (lambda model: model.train(), ["train mode of '1'"]),
    "stays in eval mode": (
        lambda model: model.eval(),
        [f"eval mode of {name}" for name in ("the model", "'0'", "'2'", "'3'")],
    ),
    "writes gradients": (
        lambda model: setattr(model[3].weight, "grad", torch.ones(3, 72)),
        ["gradient of '3.weight'"],
    ),
    "adds to gradients": (lambda model: model[0].bias.grad.add_(1), ["gradient of '0.bias'"]),
    "moves a parameter": (lambda model: model[3].bias.data[0].add_(1e-6), ["parameter '3.bias'"]),
    "freezes a parameter": (lambda model: model[3].bias.requires_grad_(False), ["requires_grad of '3.bias'"]),
    "makes a parameter NaN": (lambda model: model[3].bias.data[0].fill_(torch.nan), ["parameter '3.bias'"]),
    "drops gradients": (lambda model: model.zero_grad(set_to_none=True), ["gradient of '0.bias'"]),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_model_state_tells_and_undoes(deed: str, model: nn.Sequential) -> None:
    do, expected = DEEDS[deed]
    state, weights = ModelState(model), {name: t.clone() for name, t in model.state_dict().items()}
    assert state.changes() == []
    do(model)
    assert state.changes() == expected
    state.restore()
    assert state.changes() == []
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[3].weight.grad is None
    assert model[0].bias.grad.tolist() == [1, 1]


def test_value_that_was_not_a_number_is_no_change(model: nn.Sequential) -> None:
    model[1].running_var[0] = torch.nan
    assert ModelState(model).changes() == []


def test_attacks_leave_nothing_to_restore(model: nn.Sequential) -> None:
    state = ModelState(model)
    pool.get("pgd", eps=0.1, steps=2)(model, torch.rand(N, 1, 8, 8), torch.zeros(N, dtype=torch.long))
    assert state.changes() == []


def test_verifier_imports_nothing_of_ours() -> None:
    """No fault can hide in an attack and in its judge, since they share no code."""
    tree = ast.parse(Path(str(verifier.__file__)).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert "torch" in imported
    assert not imported & {"attacks_pool", "defenses", "leaderboards", "advbench"}
