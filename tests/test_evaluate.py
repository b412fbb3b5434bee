"""The evaluation contract: who gets which points, what is drawn with what, and who judges."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench import load_run
from advbench.data import Split
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import blocks
from advbench.runs.saved import Run
from attacks_pool import Attack, AttackInfo, pool
from attacks_pool.metadata import Knob
from leaderboards import read_outcomes

Network = Callable[..., nn.Sequential]


def spy(
    function: Callable[..., Tensor], *, name: str = "spy", kind: Any = "budgeted", norm: Any = "linf"
) -> Attack:
    """An attack of eps 0.25 around ``function(model, x, y, generator, early_stop)``."""
    knobs = {"eps": Knob(0.25, "budget")}
    info = AttackInfo(
        name=name, family="noise", norm=norm, access="white-box", kind=kind, paper=None, knobs=knobs
    )

    def call(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        given.pop("eps")
        return function(model, x, y, **given)

    return Attack(info, call, {"eps": 0.25}, {"eps": 0.25})


def nothing(_model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
    """An attack that leaves every point where it is."""
    return x


def dazzle(_model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
    """Adds its whole budget to every pixel."""
    return x + 0.25


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above one half: a prediction to work out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        score = self.weight * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([-score, score], 1)


def grey(*levels: float, labels: tuple[int, ...]) -> Split:
    """Images of one grey each."""
    x = torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return Split(x, torch.tensor(labels))


def measure(
    model: nn.Module, data: Split, *attacks: Any, seed: int = 0, stage: int = 1, **more: Any
) -> MatrixRow:
    """One row; an attack may come with its number of points."""
    pairs = [attack if isinstance(attack, tuple) else (attack, len(data)) for attack in attacks]
    return evaluate(lambda _attack: model, data, pairs, stage=stage, seed=seed, **more)


# Points 0 and 1 are class 0, point 1 close to the border; 2 and 3 are class 1; 4 and 5 are wrong clean.
GREY = grey(0.1, 0.4, 0.6, 0.9, 0.2, 0.8, labels=(0, 0, 1, 1, 1, 0))


def test_an_attack_gets_only_points_that_are_right_clean() -> None:
    """Points 4 and 5 are failures already; they never reach an attack and never count as robust."""
    seen: list[Tensor] = []

    def watch(_model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        assert given["early_stop"] is True
        assert isinstance(given["generator"], torch.Generator)
        seen.append(torch.stack([x[:, 0, 0, 0], y.float()]))
        return x

    row = measure(Brightness(), GREY, spy(watch))
    (given,) = seen
    torch.testing.assert_close(given, torch.tensor([[0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1]]))
    assert row.clean.tolist() == [True] * 4 + [False] * 2
    assert row.robust.tolist() == [[True] * 4 + [False] * 2]


def test_a_row_by_hand() -> None:
    """+0.25 takes 0.4 over the border; a clean error is an error after any attack."""
    row = measure(Brightness(), GREY, spy(dazzle), spy(nothing, name="idle"))
    assert row.robust.tolist() == [
        [True, False, True, True, False, False],
        [True, True, True, True, False, False],
    ]
    assert [(cell.attack, cell.n, cell.clean_correct, cell.robust, cell.invalid) for cell in row.cells] == [
        ("clean", 6, 4, 4, 0),
        # 0.9 + 0.25 leaves the image: one of the four is invalid.
        ("spy:eps=0.25", 6, 4, 3, 1),
        ("idle:eps=0.25", 6, 4, 4, 0),
    ]
    assert {cell.stage for cell in row.cells} == {1}
    assert (row.cells[1].threat.norm, row.cells[1].threat.eps) == ("linf", 0.25)
    assert row.cells[1].threat.access == "white-box"
    assert row.not_a_number == 0
    assert row.changed == {}


def test_beyond_its_budget_a_point_is_judged_at_the_border() -> None:
    """A budgeted attack that takes 0.3 where 0.25 is granted: counted, brought back, judged again."""
    data = grey(0.1, 0.22, 0.3, labels=(0, 0, 0))
    row = measure(Brightness(), data, spy(lambda _m, x, _y, **_: x + 0.3))
    # 0.22 + 0.3 is over the border, 0.22 + 0.25 is not.
    assert row.robust.tolist() == [[True, True, False]]
    assert row.cells[1].invalid == 3


def test_a_minimal_norm_point_beyond_its_budget_is_unsuccessful() -> None:
    """Neither invalid nor brought back: the point is robust, even where its projection would not be."""
    data = grey(0.1, 0.4, 0.3, labels=(0, 0, 0))

    def search(_model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
        return x + torch.tensor([0.5, 0.2, 0.26]).view(-1, 1, 1, 1)

    row = measure(Brightness(), data, spy(search, kind="minimal-norm"))
    assert row.robust.tolist() == [[True, False, True]]
    assert row.cells[1].invalid == 0
    budgeted = measure(Brightness(), data, spy(search))
    assert budgeted.robust.tolist() == [[True, False, False]]
    assert budgeted.cells[1].invalid == 2


def test_attacks_without_a_norm_are_held_to_the_box() -> None:
    """The cell says that nothing more was checked."""
    row = measure(Brightness(), GREY, spy(lambda _m, x, _y, **_: 1 - x, norm=None))
    assert row.cells[1].bound == "box-only"
    assert row.cells[1].invalid == 0
    assert row.robust.sum() == 0
    assert measure(Brightness(), GREY, spy(nothing)).cells[1].bound == "norm"


def test_points_restrict_an_attack_to_the_first() -> None:
    """Counts are over those, and points beyond them are not robust."""
    row = measure(Brightness(), GREY, (spy(nothing), 3), (spy(dazzle, name="whole"), 6))
    first, whole = row.cells[1:]
    assert (first.n, first.clean_correct, first.robust) == (3, 3, 3)
    assert (whole.n, whole.clean_correct) == (6, 4)
    assert row.robust[0].tolist() == [True] * 3 + [False] * 3


def test_blocks_depend_on_the_shape_alone() -> None:
    """Powers of two from 16 to 512, at most 2²⁰ pixels; a longer test set adds blocks and changes none."""
    sizes = {(1, 8, 8): 512, (1, 28, 28): 512, (3, 32, 32): 256, (3, 64, 64): 64, (3, 224, 224): 16}
    for shape, size in sizes.items():
        found = list(blocks(shape, 1200))
        assert found[0] == slice(0, size)
        assert [block.start for block in found] == list(range(0, 1200, size))
        assert found[-1].stop == 1200
        assert list(blocks(shape, 2000))[: len(found) - 1] == found[:-1]


def noisy(digits: Any, count: int) -> Split:
    """``count`` training digits, as test points."""
    return Split(digits.train.x[:count], digits.train.y[:count])


@pytest.fixture(scope="module")
def fitted(network: Network, loader: Any) -> nn.Module:
    """A network that is right on most digits, and not robust."""
    from defenses import Standard, TrainPlan

    defense = Standard(network(norm=True))
    defense.fit(loader(512), [], plan=TrainPlan(epochs=6))
    return defense


@pytest.mark.parametrize("text", ["gaussian-noise:std=0.3", "pgd:steps=2", "square:steps=20", "fgsm"])
def test_more_points_leave_the_first_ones_as_they_were(digits: Any, fitted: nn.Module, text: str) -> None:
    """Draws are keyed by block: 700 points begin with the outcomes of the first 512."""
    (attack,) = pool.sequence(text, budget="digits")
    few, many = (measure(fitted, noisy(digits, count), attack) for count in (512, 700))
    assert np.array_equal(few.robust, many.robust[:, :512])
    assert np.array_equal(few.clean, many.clean[:512])
    assert 0 < few.cells[1].robust < few.cells[1].clean_correct
    limited = measure(fitted, noisy(digits, 700), (attack, 512))
    assert np.array_equal(limited.robust[:, :512], few.robust)


def crafted(model: nn.Module, data: Split, **given: Any) -> Tensor:
    """What a noise attack crafts, block after block."""
    seen: list[Tensor] = []

    def draw(
        _model: nn.Module, x: Tensor, _y: Tensor, *, generator: torch.Generator, **_given: Any
    ) -> Tensor:
        seen.append(torch.rand(x.shape, generator=generator))
        return x

    name = given.pop("name", "spy")
    measure(model, data, spy(draw, name=name), **given)
    return torch.cat(seen)


def test_draws_are_keyed_by_seed_stage_attack_and_block(digits: Any, fitted: nn.Module) -> None:
    """Equal keys draw the same whatever else is measured; any other key draws something else."""
    data = noisy(digits, 700)
    base = crafted(fitted, data)
    assert torch.equal(base, crafted(fitted, data))
    for other in ({"seed": 1}, {"stage": 2}, {"name": "spy2"}):
        assert not torch.equal(base, crafted(fitted, data, **other))
    first = int(measure(fitted, noisy(digits, 512)).clean.sum())
    rest = len(base) - first
    assert rest > 50
    assert not torch.equal(base[:rest], base[first:])


def test_an_attack_does_not_depend_on_its_neighbours(digits: Any, fitted: nn.Module) -> None:
    """The same outcomes alone, first or last among others, whatever the global random state."""
    data = noisy(digits, 300)
    attacks = pool.sequence("gaussian-noise:std=0.3,pgd:steps=2,square:steps=10", budget="digits")
    together = measure(fitted, data, *attacks)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        backwards = measure(fitted, data, *reversed(attacks))
        alone = [measure(fitted, data, attack).robust[0] for attack in attacks]
    assert np.array_equal(together.robust, backwards.robust[::-1])
    assert np.array_equal(together.robust, np.stack(alone))


def test_an_attack_that_changes_the_model_is_undone_and_named(digits: Any, fitted: nn.Module) -> None:
    """The verdict, and every later attack, meet the model as it was."""
    data = noisy(digits, 100)
    clean = {name: value.clone() for name, value in fitted.state_dict().items()}

    def vandal(model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
        with torch.no_grad():
            model.model[0].weight.zero_()
            model.model[3].running_mean.add_(1)
        return x

    row = measure(fitted, data, spy(vandal), *pool.sequence("fgsm", budget="digits"))
    assert list(row.changed) == ["spy:eps=0.25"]
    changes = " ".join(row.changed["spy:eps=0.25"])
    assert "parameter 'model.0.weight'" in changes
    assert "buffer 'model.3.running_mean'" in changes
    # It did nothing to the points, so all of them stand.
    assert row.robust[0].tolist() == row.clean.tolist()
    assert all(torch.equal(value, clean[name]) for name, value in fitted.state_dict().items())
    fgsm = measure(fitted, data, *pool.sequence("fgsm", budget="digits"))
    assert np.array_equal(row.robust[1], fgsm.robust[0])


def test_an_attack_that_leaves_train_mode_is_undone(digits: Any, network: Network) -> None:
    """An adapter around a stranger's attack may do this behind the attack's own back."""
    model = network(norm=True).eval()

    class Careless:
        def __call__(self, model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
            model.train()
            return x

        info = spy(nothing).info
        text, eps, knobs = "careless:eps=0.25", 0.25, {"eps": 0.25}

    row = measure(model, noisy(digits, 64), Careless())
    assert list(row.changed) == ["careless:eps=0.25"]
    assert any("train mode" in change for change in row.changed["careless:eps=0.25"])
    assert not any(module.training for module in model.modules())


class Broken(nn.Module):
    """NaN logits on images brighter than 0.7, clean or attacked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Brightness()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        bright = x.flatten(1).mean(1, keepdim=True) > 0.7
        return torch.where(bright, torch.nan, self.inner(x))


def test_logits_that_are_no_numbers_are_errors_and_counted() -> None:
    """Clean: points 3 and 5. Attacked: point 2, at 0.85."""
    row = measure(Broken(), GREY, spy(dazzle))
    assert row.clean.tolist() == [True, True, True, False, False, False]
    assert row.robust.tolist() == [[True, False, False, False, False, False]]
    assert row.not_a_number == 3


def test_the_module_to_attack_is_the_view_for_that_attack() -> None:
    """``view(None)`` decides what is right clean, ``view(attack)`` what survives."""
    asked: list[Any] = []

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]

    def view(attack: Attack | None) -> nn.Module:
        asked.append(attack)
        return Brightness() if attack is None else Wrong()

    attack = spy(nothing)
    row = evaluate(view, GREY, [(attack, 6)], stage=0, seed=0)
    assert asked == [None, attack]
    assert row.clean.sum() == 4
    assert row.robust.tolist() == [[False, False, True, True, False, False]]


def test_passes_are_counted_without_the_judges_own(digits: Any, fitted: nn.Module) -> None:
    """FGSM asks once a point that is right clean; the clean cell, which is reported first, once a point."""
    told: list[Any] = []
    row = measure(fitted, noisy(digits, 100), *pool.sequence("fgsm", budget="digits"), progress=told.append)
    assert told == row.cells
    right = int(row.clean.sum())
    assert (row.cells[0].forwards, row.cells[0].backwards) == (100, 0)
    assert (row.cells[1].forwards, row.cells[1].backwards) == (right, right)


def test_no_point_is_right_clean(digits: Any, network: Network) -> None:
    """Attacks then have nothing to do, and nothing breaks."""
    data = Split(digits.train.x[:20], torch.full((20,), 9))
    model = network()
    model[-1].bias.data[0] = 1000.0
    row = measure(model, data, *pool.sequence("fgsm,pgd:steps=2,cw:steps=2,square:steps=3", budget="digits"))
    assert [cell.robust for cell in row.cells] == [0] * 5


def test_a_finished_run_can_be_checked_with_torch_alone(trained_run: Run) -> None:
    """FGSM and PGD as the papers write them, on what ``load_run`` gives, find the record's numbers."""
    run = load_run(trained_run.path)
    model, (x, y) = run.model, run.test_data
    last = {cell.attack.partition(":")[0]: cell for cell in run.record.cells if cell.stage == 2}

    def correct(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images).argmax(1) == y

    def ascend(x_adv: Tensor, step: float) -> Tensor:
        x_adv = x_adv.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        return (x_adv.detach() + step * gradient.sign()).clamp(0, 1)

    right = correct(x)
    assert int(right.sum()) == last["clean"].robust
    fgsm = right & correct(ascend(x, 0.2))
    # Without early stopping and in one batch of all points: rounding may turn a point that is on the border.
    assert abs(int(fgsm.sum()) - last["fgsm"].robust) <= 1
    assert 0.1 < last["fgsm"].accuracy < 0.9
    torch.manual_seed(0)
    x_adv = (x + (torch.rand_like(x) * 2 - 1) * 0.2).clamp(0, 1)
    for _ in range(3):
        x_adv = x + (ascend(x_adv, 2.5 * 0.2 / 3) - x).clamp(-0.2, 0.2)
    # Another random start: within two points in a hundred.
    assert abs(int((right & correct(x_adv)).sum()) - last["pgd"].robust) <= 0.02 * len(y)


def test_a_finished_runs_cells_come_out_again(trained_run: Run) -> None:
    """The attacks of the record, on the loaded stages and points, give the same outcomes, cell for cell."""
    run = load_run(trained_run.path)
    attacks = [pool.sequence(entry.text)[0] for entry in run.record.attacks]
    assert [attack.name for attack in attacks] == ["fgsm", "pgd", "gaussian-noise", "cw", "apgd"]
    limits = {cell.attack: cell.n for cell in run.record.cells}
    assert limits[attacks[3].text] == 100
    pairs = [(attack, limits[attack.text]) for attack in attacks]
    clean, robust = read_outcomes(run.path / "outcomes.npz")
    for stage in range(3):
        row = evaluate(run.stage(stage).view, Split(*run.test_data), pairs, stage=stage, seed=run.config.seed)
        assert np.array_equal(row.clean, clean[stage])
        assert np.array_equal(row.robust, robust[stage])
        recorded = [cell for cell in run.record.cells if cell.stage == stage]
        for again, cell in zip(row.cells, recorded, strict=True):
            assert again.model_copy(update={"seconds": cell.seconds}) == cell


MEMORY = """
import resource
import torch
from torch import nn
from advbench.data import Split
from advbench.evaluation.evaluate import evaluate
from attacks_pool import pool

torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
x = torch.rand(24_000, 1, 28, 28)
with torch.no_grad():
    y = torch.cat([model(part).argmax(1) for part in x.split(500)])
attack = pool.get("pgd", eps=0.001, steps=2)
peak = []
for points in (1024, len(x)):
    evaluate(lambda _: model, Split(x[:points], y[:points]), [(attack, points)], stage=0, seed=0)
    peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peak[1] - peak[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is counted in kilobytes")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_test_set() -> None:
    """24,000 images are 75 MB; one copy of them more would show."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 30_000
