"""Attacks of other libraries keep the contract of our own, and their traps stay shut."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import equal
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.cli import main as cli
from advbench.runs.tables import labels
from attacks_pool import Attack, InputError, ModelState, adapters, count_passes, pool, verify
from attacks_pool.adapters.containment import Contained, mend
from attacks_pool.adapters.pyautoattack_adapter import PEERS as AUTO
from attacks_pool.adapters.torchattacks_adapter import PEERS as TORCH
from attacks_pool.attack import check_task
from attacks_pool.sequences import parse_attacks
from leaderboards.statistics.naming import attack_name, brief

TINY = {
    "steps": 3,
    "binary_search_steps": 2,
    "restarts": 1,
    "nb_sample": 4,
    "max_batch_size": 4,
    "noise_batch_size": 2,
    "m": 2,
    "N": 2,
    "popsize": 4,
    "repeats": 3,
    "directions": 20,
    "n_target_classes": 2,
    "initial_gradient_eval_steps": 4,
    "max_gradient_eval_steps": 8,
    "gamma": 0.05,
}
"""Knobs that are cut to these values to keep the tests fast."""
OTHER = {"ta:EADL1": {"steps": 10}, "ta:EADEN": {"steps": 10}, "fb:DDNAttack": {"gamma": 0.05}}
SLOW = {"ta:JSMA"}
"""On 3×32×32 it compares nine million pairs of values a step."""
FB = """
AdamPGD BoundaryAttack DDNAttack EADAttack FGM FGSM GaussianBlurAttack HopSkipJumpAttack
HopSkipJumpAttack-linf InversionAttack L0FMNAttack L1FMNAttack L1PGD L2CarliniWagnerAttack
L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack L2ContrastReductionAttack L2DeepFoolAttack L2FMNAttack
L2PGD LInfFMNAttack LinearSearchBlendedUniformNoiseAttack LinfDeepFoolAttack LinfPGD MIFGSM NewtonFoolAttack
SaltAndPepperNoiseAttack SparseL1DescentAttack SpatialAttack VirtualAdversarialAttack
"""
AA = "apgd-ce apgd-ce-l1 apgd-dlr-l2 apgd-t fab fab-t-l2 fab-l1 square square-l2 standard"
NAMES = [*TORCH, *(f"fb:{name}" for name in FB.split()), *(f"aa:{name}" for name in AA.split())]
SHAPES = {"digits": ((1, 8, 8), 3), "cifar10": ((3, 32, 32), 10)}

needs = {
    prefix: pytest.mark.skipif(not library.installed, reason=f"{library.module} is not installed")
    for prefix, library in adapters.LIBRARIES.items()
}


def marked(names: list[str]) -> list[Any]:
    """Each name, skipped where its library is missing."""
    return [pytest.param(name, marks=needs[name[:2]], id=name) for name in names]


def bound(name: str, budget: str = "digits", **knobs: Any) -> Attack:
    """The attack with few steps."""
    declared = pool.info(name).all_knobs()
    short = {knob: value for knob, value in {**TINY, **OTHER.get(name, {})}.items() if knob in declared}
    if "quare" in name:
        short["steps"] = 20
    return pool.get(name, budget=budget, **{**short, **knobs})


def case(shape: tuple[int, int, int], classes: int, points: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in train mode but for its frozen batch norm, with a gradient; points that it gets right."""
    channels, height, width = shape
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        flat = 6 * (height // 2) * (width // 2)
        norm = nn.BatchNorm2d(6)
        convolution = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        model = nn.Sequential(
            convolution, norm, nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(flat, classes)
        )
        x = torch.rand(points, *shape) * 0.8
    x[:, :, 0] = 0  # pixels at the edge of the box, as on digits
    y = model.eval()(x).argmax(1)
    model.train()
    norm.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model, x, y


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def takes(attack: Attack, shape: tuple[int, int, int], classes: int) -> bool:
    """Whether it serves such images and so many classes; if not, it says so in one line."""
    peer = adapters.find(attack.name)
    if attack.name in SLOW and shape[1] > 8:
        return False
    if classes >= peer.least_classes and (peer.channels is None or shape[0] in peer.channels):
        return True
    with pytest.raises(InputError, match=r"needs (a model of 4 classes|images of 3 channels)"):
        attack(*case(shape, classes))
    return False


@pytest.mark.quick(
    r"(ta:(PGD|CW|Square)|fb:(LinfPGD|L2DeepFoolAttack|BoundaryAttack)|aa:(apgd-ce|standard))-digits"
)
@pytest.mark.parametrize("budget", SHAPES)
@pytest.mark.parametrize("name", marked(NAMES))
def test_contract(name: str, budget: str, global_randomness: Callable[[], bool]) -> None:
    """Bounds, finite pixels, model and random state untouched, repeatable, one point and none."""
    attack, (shape, classes) = bound(name, budget), SHAPES[budget]
    if not takes(attack, shape, classes):
        return
    model, x, y = case(shape, classes)
    state, given = ModelState(model), (x.clone(), y.clone())
    x_adv = attack(model, x, y, generator=generator())
    assert state.changes() == []
    assert global_randomness()
    assert equal((x, y), given)
    assert x_adv.dtype == torch.float32
    assert torch.isfinite(x_adv).all()
    verdict = verify(model, x, y, x_adv, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
    assert not verdict.invalid.any()
    assert torch.equal(x_adv, attack(model, x, y, generator=generator()))
    assert attack(model, x[:1], y[:1], generator=generator()).shape == (1, *shape)
    assert attack(model, x[:0], y[:0]).shape == (0, *shape)


class Flat(nn.Module):
    """Predicts class 0 with a gradient that is missing, zero or not a number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        ahead = F.one_hot(torch.zeros(len(x), dtype=torch.long), 5).float()
        total = x.flatten(1).sum(1, keepdim=True)
        if self.kind == "none":
            return ahead
        return ahead + (0 * total if self.kind == "zero" else 0 * (total - total).sqrt())


@pytest.mark.quick(r"(ta:(PGD|CW|Square)|fb:(LinfPGD|L2DeepFoolAttack|BoundaryAttack)|aa:apgd-ce)-.*")
@pytest.mark.parametrize("kind", ["none", "zero", "not a number"])
@pytest.mark.parametrize("name", marked(NAMES))
def test_flat_models_are_survived(name: str, kind: str) -> None:
    """No error, no pixel that is not a number, no bound broken."""
    attack = bound(name)
    if attack.info.channels or attack.info.family == "ensemble":  # its parts stand for it
        return
    x, y = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    x_adv = attack(Flat(kind), x, y, generator=generator())
    assert torch.isfinite(x_adv).all()
    info = attack.info
    verdict = verify(Flat(kind), x, y, x_adv, norm=info.norm, eps=attack.eps, kind=info.kind)
    assert not verdict.invalid.any()
    assert verdict.robust.all()


@pytest.mark.parametrize(
    "name", marked(["ta:PGD", "ta:CW", "ta:FAB", "ta:SPSA", "fb:L2DeepFoolAttack", "aa:standard"])
)
def test_points_wrong_already_are_no_trouble(name: str) -> None:
    """Training crafts on them too."""
    model, x, y = case((1, 8, 8), 10)
    attack = bound(name).for_training()
    for labels_given in ((y + 1) % 10, torch.where(torch.arange(4) < 2, y, (y + 1) % 10)):
        x_adv = attack(model, x, labels_given, generator=generator())
        assert torch.isfinite(x_adv).all()
        bound_kept = verify(model, x, labels_given, x_adv, norm=attack.info.norm, eps=attack.eps)
        assert not bound_kept.invalid.any()


# Names, texts, knobs.


@needs["ta"]
def test_every_class_of_torchattacks_is_there() -> None:
    """But for its wrappers."""
    library = importlib.import_module("torchattacks")
    base = importlib.import_module("torchattacks.attack").Attack
    classes = {name for name in library.__all__ if issubclass(getattr(library, name), base)}
    ours = {name.removeprefix("ta:").partition("-")[0] for name in TORCH}
    assert ours == classes - set(library.__wrapper__)
    assert set(library.__wrapper__) == {"LGV", "MultiAttack"}


@needs["fb"]
def test_every_attack_of_foolbox_is_there() -> None:
    """But for those that need more than a model and points."""
    library = importlib.import_module("foolbox.attacks")
    classes = {
        name
        for name, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.Attack) and not inspect.isabstract(value)
    }
    ours = {name.removeprefix("fb:").partition("-")[0] for name in adapters.peers("fb")}
    assert classes - ours == {"BinarizationRefinementAttack", "DatasetAttack", "GenAttack"}
    assert ours <= classes


@needs["fb"]
def test_norms_of_foolbox_are_its_own() -> None:
    """Where a class has a fixed distance, that is the norm."""
    library = importlib.import_module("foolbox.attacks")
    for name in adapters.peers("fb"):
        own = getattr(getattr(library, name.removeprefix("fb:").partition("-")[0]), "distance", None)
        if own is not None and not isinstance(own, property):
            stated = str(own).removesuffix(" distance").lower()
            assert pool.info(name).norm in ({"l2", "linf"} if "HopSkip" in name else {stated}), name


ALL = [name for prefix in adapters.LIBRARIES for name in adapters.peers(prefix)]


@pytest.mark.parametrize("name", marked(ALL))
def test_canonical_text_reads_back(name: str) -> None:
    """To the same attack, in evaluation and training, also as one of a sequence."""
    attack = pool.get(name, budget="cifar10")
    (again,) = pool.sequence(attack.text)
    assert (again.name, again.knobs, again.text) == (name, attack.knobs, attack.text)
    (parsed,) = parse_attacks(attack.training_text)
    assert parsed[0] == attack_name(attack.training_text) == name
    both = pool.sequence(f"pgd,{name},fgsm", budget="digits")
    assert [one.name for one in both] == ["pgd", name, "fgsm"]
    assert attack.info.family
    assert pool.entry(name).summary.endswith(".")
    assert not {"alpha", "n_iter", "num_steps", "nb_iter", "n_restarts"} & set(attack.knobs)


@pytest.mark.parametrize("name", marked(ALL))
def test_what_the_library_refuses_is_known_without_a_model(name: str) -> None:
    attack, least = pool.get(name, budget="cifar10"), adapters.find(name).least_classes
    if least > 2:
        with pytest.raises(InputError, match=f"^attack '{name}' needs {least} classes or more, not 2$"):
            check_task([attack], (3, 32, 32), 2)
    if "BrendelBethge" in name and find_spec("numba") is None:
        with pytest.raises(InputError, match="needs numba, which is not installed"):
            check_task([attack], (3, 32, 32), 10)
        with pytest.raises(InputError, match="needs numba, which is not installed"):
            attack(*case((3, 32, 32), 10))
    else:
        check_task([attack, attack.for_training()], (3, 32, 32), 10)


@needs["ta"]
def test_knobs_that_a_library_refuses_are_refused_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("torchattacks")

    class Picky(library.PGD):  # type: ignore[misc, name-defined]
        def __init__(self, *_model: nn.Module, **_arguments: Any) -> None:
            raise ValueError("steps must be odd")

    attack = pool.get("ta:PGD", budget="digits")
    monkeypatch.setattr(
        Picky.__init__, "__signature__", inspect.signature(library.PGD.__init__), raising=False
    )
    monkeypatch.setattr(library, "PGD", Picky)
    with pytest.raises(InputError, match="'ta:PGD' rejects its knobs: ValueError: steps must be odd"):
        check_task([attack], (1, 8, 8), 10)


@needs["aa"]
@pytest.mark.parametrize("name", ["aa:square-l2", "aa:square-l1"])
def test_least_side_is_that_of_the_library(name: str) -> None:
    attack, model = pool.get(name, budget="digits", steps=5), nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.rand(2, 1, 5, 5), torch.zeros(2, dtype=torch.int64)
    model(x)
    assert attack(model, x, y).shape == x.shape
    with pytest.raises(InputError, match="needs images of 5 pixels a side, not 4"):
        check_task([attack], (1, 4, 4), 3)


@needs["ta"]
def test_knobs_have_our_names_and_the_library_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """steps and step_size reach the constructor; the step keeps the library's ratio to eps."""
    library = importlib.import_module("torchattacks")
    assert pool.get("ta:PGD", eps="8/255").knobs["step_size"] == pytest.approx(2 / 255)
    attack = pool.sequence("ta:PGD:steps=4,eps=0.1,step_size=0.05,random_start=false")[0]
    given: list[dict[str, Any]] = []

    class Spy(library.PGD):  # type: ignore[misc, name-defined]
        def __init__(self, model: nn.Module, **arguments: Any) -> None:
            given.append(arguments)
            super().__init__(model, **arguments)

    monkeypatch.setattr(library, "PGD", Spy)
    monkeypatch.setattr(Spy.__init__, "__signature__", None, raising=False)
    attack(*case((1, 8, 8), 3))
    assert given == [{"eps": 0.1, "alpha": 0.05, "steps": 4, "random_start": False}]


@needs["ta"]
def test_budgets_and_bounds() -> None:
    """The table gives eps; warm-up shortens the step with it; minimal-norm ones keep eps as their bound."""
    assert pool.get("ta:PGDL2", budget="digits").eps == 1.0
    half = pool.get("ta:PGD", budget="digits").scaled(0.5)
    assert (half.eps, half.knobs["step_size"]) == pytest.approx((0.1, 0.025))
    assert pool.info("ta:CW").kind == pool.info("ta:JSMA").kind == "minimal-norm"
    assert pool.get("ta:GN").eps == 0.1


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("ta:pgd", {}, "unknown attack 'ta:pgd': did you mean 'ta:PGD'?"),
    ("TA:PGD", {}, "unknown attack 'TA:PGD': did you mean 'ta:PGD'?"),
    ("fb:linfpgd", {}, "unknown attack 'fb:linfpgd': did you mean 'fb:LinfPGD'?"),
    ("aa:apgd_t", {}, "unknown attack 'aa:apgd_t': did you mean 'aa:apgd-t'?"),
    ("ta", {}, "unknown attack 'ta'"),
    ("tb:PGD", {}, "unknown attack 'tb:PGD'"),
    ("ta:PGD", {"steps": 0}, "ta:PGD.steps=0 is out of range: it must be at least 1"),
    ("ta:PGD", {"alpha": 0.1}, "unknown knob of ta:PGD 'alpha'"),
    ("ta:APGD", {"loss": "cee"}, "unknown ta:APGD.loss 'cee': did you mean 'ce'?"),
]


@pytest.mark.parametrize(("name", "knobs", "message"), MISTAKES)
def test_mistakes_are_one_line(name: str, knobs: dict[str, Any], message: str) -> None:
    """With the nearest name."""
    with pytest.raises(InputError) as caught:
        pool.get(name, eps=0.1, **knobs)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ta:PGD", "fb:LinfPGD", "aa:square"])
def test_missing_library_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it, or why it does not load; its attacks are not listed."""
    library = adapters.LIBRARIES[name[:2]]
    monkeypatch.setattr(adapters, "find_spec", lambda module: None if module == library.module else object())
    with pytest.raises(InputError) as caught:
        pool.get(name, eps=0.1)
    expected = f"attack {name!r} needs {library.module}, which is not installed: {library.hint}"
    assert str(caught.value) == expected
    with pytest.raises(InputError, match=f"{library.module} is not installed: pip install"):
        pool.get(name.lower() + "x", eps=0.1)
    with monkeypatch.context() as alone:
        alone.setattr(adapters, "LIBRARIES", {name[:2]: library})
        assert pool.adapters() == []
    monkeypatch.setattr(adapters, "find_spec", lambda _module: object())
    monkeypatch.setitem(sys.modules, library.module, None)
    with pytest.raises(InputError, match=f"attack {name!r} needs {library.module}, which fails to import: "):
        pool.get(name, eps=0.1)


def test_adapters_are_no_part_of_the_pool() -> None:
    """No sequence is drawn from them, and a look at the pool's own names loads none."""
    assert not any(":" in name for name in pool.names())
    assert all(":" not in attack.name for attack in pool.sample_sequence(9, 0, budget="digits"))
    installed = [prefix for prefix, library in adapters.LIBRARIES.items() if library.installed]
    assert sorted({name[:2] for name in pool.adapters()}) == sorted(installed)


# The traps, one by one.


@needs["ta"]
def test_seed_comes_from_the_generator() -> None:
    """APGD resets the global seed to a constant; here two generators give two results."""
    model, x, y = case((3, 32, 32), 10)
    attack = bound("ta:APGD", eps=0.1)
    first, second = (attack(model, x, y, generator=generator(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)


@needs["ta"]
def test_jsma_aims_at_classes_that_there_are() -> None:
    """The library takes ten for granted: class 3 of four would be sent to class 4."""
    model, x, _ = case((1, 8, 8), 4)
    y = torch.full((4,), 3)
    with torch.no_grad():
        model[-1].bias += 20 * F.one_hot(torch.tensor(3), 4)
    seen: list[int] = []
    library = importlib.import_module("torchattacks")
    original = library.JSMA.perturbation_single
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            library.JSMA,
            "perturbation_single",
            lambda self, image, target: (seen.append(int(target)), original(self, image, target))[1],
        )
        bound("ta:JSMA")(model, x, y)
    assert seen == [0, 0, 0, 0]


@needs["fb"]
def test_no_start_is_no_error() -> None:
    """foolbox gives up on a batch where one point has nothing to start from; here that one stays clean."""

    class Stubborn(nn.Module):
        """Right on bright images whatever is done to them, otherwise easily led astray."""

        def forward(self, x: Tensor) -> Tensor:
            bright = (x[:, 0, 0, 0] > 0.5).float()
            low = x.flatten(1).mean(1)
            return torch.stack([10 * bright, 0.3 - low, low - 0.3], 1)

    x = torch.full((3, 1, 8, 8), 0.2)
    x[1, 0, 0, 0] = 1.0
    y = torch.tensor([1, 0, 1])
    assert torch.equal(Stubborn()(x).argmax(1), y)
    assert torch.isfinite(bound("fb:BoundaryAttack")(Stubborn(), x, y)).all()
    assert torch.equal(bound("fb:BoundaryAttack")(Flat("zero"), x, 0 * y), x)


@needs["aa"]
def test_trace_hook_stays() -> None:
    """pyautoattack removes it; a debugger would go blind."""

    def hook(*_: Any) -> None:
        return None

    model, x, y = case((1, 8, 8), 10, points=1)
    before = sys.gettrace()
    sys.settrace(hook)
    try:
        bound("aa:standard", eps=1.0)(model, x, y)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is hook


@needs["aa"]
def test_few_classes_are_attacked_to_all_of_them() -> None:
    """Five classes: four targets, where the library asks for ten classes."""
    model, x, y = case((1, 8, 8), 5)
    for name in ("aa:apgd-t", "aa:fab-t", "aa:standard"):
        assert bound(name)(model, x, y).shape == x.shape
    assert AUTO["aa:apgd-t"].info.knobs["n_target_classes"].default == 9
    assert AUTO["aa:apgd-t-l1"].info.knobs["n_target_classes"].default == 5
    assert AUTO["aa:apgd-ce-l1"].info.knobs["restarts"].default == 5


def test_mending() -> None:
    """NaN gives the clean point back, rounding is brought back, anything more is left to be seen."""
    x = torch.full((4, 1, 2, 2), 0.5)
    found = x.clone()
    found[0, 0, 0, 0] = torch.nan
    found[1] = 0.7 + 5e-7
    found[2] = 0.8
    found[3, 0, 0, 0] = 1 + 5e-7
    mended = mend(found, x, 0.2, "linf", "budgeted")
    assert torch.equal(mended[0], x[0])
    assert float((mended[1] - 0.5).abs().max()) <= 0.2 + 1e-7
    assert torch.equal(mended[2], found[2])
    assert float(mended[3].max()) == 1.0
    assert float(mend(found, x, 0.2, "linf", "minimal-norm")[1].max()) == pytest.approx(0.7 + 5e-7, abs=1e-7)
    assert float(mend(x + 2, x, 0.2, None, "budgeted").max()) == 2.5
    with pytest.raises(InputError, match="no tensor like x"):
        mend(x[:1], x, 0.2, "linf", "budgeted")


def test_contained_model_is_the_model() -> None:
    """The same logits and gradients, in float32, and its own copies."""
    model, x, _ = case((1, 8, 8), 3)
    model.eval()
    contained = Contained(model, x)
    x = x.requires_grad_()
    assert torch.equal(contained(x), model(x))
    (ours,) = torch.autograd.grad(contained(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.equal(ours, theirs)
    assert contained(x.detach()).dtype == torch.float32
    assert Contained(model.double(), x.double()).classes(x.double()) == 3


COSTED = [name for name in ALL if adapters.peers(name[:2])[name].cost is not None]


@pytest.mark.quick(r"(ta:PGD|fb:LinfPGD|aa:apgd-ce)")
@pytest.mark.parametrize("name", marked(COSTED))
def test_costs_are_what_is_counted(name: str) -> None:
    """Exactly, where they are declared."""
    attack = bound(name, "cifar10")
    model, x, y = case((3, 32, 32), 10, points=2)
    with count_passes(model) as passes:
        attack(model, x, y, generator=generator())
    forwards, backwards = attack.info.passes(attack.knobs) or (0, 0)
    assert (passes.forwards, passes.backwards) == (2 * forwards, 2 * backwards)


@needs["ta"]
@pytest.mark.parametrize("name", ["FGSM", "BIM", "MIFGSM", "NIFGSM", "SINIFGSM", "UPGD", "DeepFool", "PGD"])
def test_torchattacks_does_what_it_does_alone(name: str) -> None:
    """Containment changes no pixel: the library called directly gives the same, or, drawing, as strong."""
    model, x, y = case((1, 8, 8), 10)
    model.eval()
    attack = pool.get(f"ta:{name}", budget="digits")
    arguments = {} if name == "DeepFool" else {"eps": attack.eps}
    names = {"step_size": "alpha"} | ({"steps": "steps"} if name == "PGD" else {})
    arguments |= {names[knob]: value for knob, value in attack.knobs.items() if knob in names}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        direct = getattr(importlib.import_module("torchattacks"), name)(model, **arguments)(x, y)
    crafted = attack(model, x, y, generator=generator())
    if name == "PGD":
        assert torch.equal(model(direct).argmax(1) == y, model(crafted).argmax(1) == y)
    else:
        assert torch.equal(direct, crafted)


@needs["aa"]
@pytest.mark.parametrize("part", ["apgd-ce", "apgd-t", "fab-t"])
def test_parts_are_those_of_the_standard_version(part: str) -> None:
    """Against the library's own call on a model of ten classes: the same points survive."""
    model, x, y = case((1, 8, 8), 10, points=8)
    model.eval()
    attack = pool.get(f"aa:{part}", eps=0.02, **({"steps": 20} if part != "apgd-ce" else {}))
    library = importlib.import_module("pyautoattack")
    with torch.random.fork_rng():
        theirs = library.AutoAttack(model, eps=0.02, norm="Linf", seed=0, version="custom", attacks=[part])
        theirs.apgd.n_restarts, theirs.apgd_targeted.n_iter, theirs.fab.n_iter = 1, 20, 20
        direct, _ = theirs.run_standard_evaluation(x, y, batch_size=8)
    crafted = attack(model, x, y, generator=generator())
    assert torch.equal(model(direct).argmax(1) == y, model(crafted).argmax(1) == y)
    assert 0 < int((model(crafted).argmax(1) == y).sum()) < 8


@needs["fb"]
def test_what_breaks_its_bound_is_seen() -> None:
    """foolbox scales this noise by its largest value, not by its largest size: 8/255 is exceeded."""
    model, x, y = case((3, 32, 32), 10, points=16)
    attack = pool.get("fb:LinfAdditiveUniformNoiseAttack", eps=8 / 255)
    x_adv = attack(model, x, y, generator=generator())
    assert verify(model, x, y, x_adv, norm="linf", eps=attack.eps).invalid.any()


# Where names and texts are shown.


@needs["ta"]
def test_they_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    """With access and cost, in JSON and as text; our own list stays ours. A colon is part of the name."""
    assert cli.invoke(["attacks", "--adapters", "--format", "json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == pool.adapters()
    assert listed["ta:PGD"]["cost"] == {"forwards": 10, "backwards": 10}
    assert listed["ta:CW"]["cost"] is None
    assert listed["ta:Square"]["access"] == "black-box"
    assert cli.invoke(["attacks", "ta:PGD"]) == 0
    assert "cost: 10 + 10" in capsys.readouterr().out
    texts = ["pgd:eps=0.2,steps=5", "ta:PGD:eps=0.2,steps=5", "ta:PGD:eps=0.1,steps=5"]
    assert labels(texts) == ["pgd", "ta:PGD eps=0.2", "ta:PGD eps=0.1"]
    assert [brief(text) for text in texts] == ["pgd eps=0.2", "ta:PGD eps=0.2", "ta:PGD eps=0.1"]
    assert attack_name("ta:PGD") == "ta:PGD"


@pytest.mark.parametrize("width", [100, 160, 200])
def test_list_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One line an attack, none longer than the terminal is wide."""
    from rich.console import Console

    import advbench.runtime.console as consoles

    monkeypatch.setattr(consoles, "output", lambda: Console(width=width, highlight=False))
    assert cli.invoke(["attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("│") for line in lines) == len(pool.names())
    assert ("summary" in lines[1]) == (width > 100)


@needs["ta"]
@pytest.mark.slow
def test_a_run_takes_them(tmp_path: Path, small_options: dict[str, Any]) -> None:
    """In the sequence, unseen and to be measured only; the record reads back."""
    from advbench import run

    options = {**small_options, "sequence": "fgsm,ta:PGD:steps=2", "unseen": "ta:GN", "eval": "ta:FGSM"}
    done = run("at", runs_dir=tmp_path, points=10, **options)
    names = [attack_name(entry.text) for entry in done.record.attacks]
    assert names == ["fgsm", "ta:PGD", "ta:GN", "ta:FGSM"]
    assert not any(cell.invalid for cell in done.record.cells)
