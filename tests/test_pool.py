"""The registry, the text form of attacks, budgets, knobs and sampled sequences."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import attacks_pool
from attacks_pool import BUDGETS, FAMILIES, AttackInfo, InputError, Knob, Pool, pool, sample_sequence
from attacks_pool.errors import unknown
from attacks_pool.metadata import format_value, parse_number
from attacks_pool.sequences import parse_attacks, sample


def info(name: str = "mine", **changes: Any) -> AttackInfo:
    """Metadata of a noise attack in linf, but for ``changes``."""
    given: dict[str, Any] = {"family": "noise", "norm": "linf", "access": "black-box", "paper": None}
    return AttackInfo(name=name, **(given | changes))


def nothing(_model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
    """Returns the points as they are."""
    return x


def refused(call: Callable[[], object]) -> str:
    """The one line with which ``call`` is refused."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# Registering.


def test_second_attack_of_a_name_is_refused() -> None:
    mine = Pool()
    mine.register(info())(nothing)

    def other(_model: nn.Module, x: Tensor, _y: Tensor, **_given: Any) -> Tensor:
        return x

    message = refused(lambda: mine.register(info())(other))
    assert "'mine' is registered twice" in message
    assert f"{__name__}:nothing" in message
    assert ":test_second_attack_of_a_name_is_refused.<locals>.other" in message
    assert mine.entry("mine").function is nothing
    # Reloading a file registers the same function again.
    mine.register(info(access="white-box"))(nothing)
    assert mine.info("mine").access == "white-box"


def test_name_that_draws_sequences_is_refused() -> None:
    assert "'sample'" in refused(lambda: Pool().register(info("sample"))(nothing))


@pytest.mark.parametrize("missing", ["eps", "strength", "generator", "early_stop"])
def test_function_must_take_what_is_declared(missing: str) -> None:
    taken = ["eps", "strength", "generator", "early_stop"]
    taken.remove(missing)
    scope: dict[str, Any] = {}
    exec(f"def function(model, x, y, *, {', '.join(taken)}): ...", scope)
    declared = info(knobs={"strength": Knob(1.0, "how much")})
    message = refused(lambda: Pool().register(declared)(scope["function"]))
    assert message == f"attack 'mine': its function does not take {missing!r}"


def test_function_with_all_arguments_is_accepted() -> None:
    mine = Pool()

    @mine.register(info(knobs={"strength": Knob(1.0, "how much")}))
    def function(
        _model: nn.Module, x: Tensor, _y: Tensor, *, eps: Any, strength: Any, **_more: Any
    ) -> Tensor:
        """Brighter.

        More about it.
        """
        return (x + eps * strength).clamp(0, 1)

    assert mine.entry("mine").summary == "Brighter."
    x = torch.zeros(1, 1, 2, 2)
    bright = mine.get("mine", eps=0.5, strength="1/2")(nn.Flatten(), x, torch.tensor([0]))
    assert bright.flatten().tolist() == [0.25] * 4


OUTSIDE = {"family": "nois", "norm": "l3", "access": "grey-box", "kind": "maximal", "name": "My Attack"}
OUTSIDE |= {"colour": "red"}


@pytest.mark.parametrize("key", OUTSIDE)
def test_metadata_outside_the_vocabulary_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        info(**{key: OUTSIDE[key]})


def test_metadata_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        pool.info("pgd").norm = "l2"
    with pytest.raises(TypeError):
        pool.get("pgd", eps=0.1).knobs["eps"] = 0.3  # type: ignore[index]


def searched(knobs: Mapping[str, Any]) -> int:
    """Steps in all."""
    return math.prod(int(knobs.get(knob, 1)) for knob in ("steps", "restarts", "binary_search_steps"))


@pytest.mark.parametrize("name", pool.names())
def test_metadata_of_every_attack(name: str) -> None:
    entry = pool.entry(name)
    assert entry.summary.endswith((".", "…"))
    assert entry.info.family in FAMILIES
    assert entry.info.paper is None or re.fullmatch(r"\d{4}\.\d{4,5}", entry.info.paper)
    assert not {"alpha", "n_iter", "num_steps", "iterations", "n_restarts"} & set(entry.info.knobs)
    assert all(knob.help for knob in entry.info.knobs.values())
    attack = pool.get(name, budget="digits")
    assert searched(attack.training_knobs) <= searched(attack.knobs)


# Looking up.


def test_unknown_names_have_the_nearest() -> None:
    count = len(pool.names())
    assert refused(lambda: pool.get("pdg", eps=0.1)) == (
        f"unknown attack 'pdg': did you mean 'pgd'? (advbench attacks lists all {count})"
    )
    assert "did you mean 'steps'? (allowed: eps, loss, " in refused(lambda: pool.get("pgd", eps=0.1, step=3))
    assert "did you mean 'cifar10'?" in refused(lambda: pool.get("pgd", budget="cifar"))
    assert "did you mean" not in refused(lambda: pool.get("xyzzy-plugh", eps=0.1))


def test_unknown_without_a_near_or_any_name() -> None:
    assert str(unknown("colour", "mauve", [])) == "unknown colour 'mauve' (allowed: none)"


@pytest.mark.parametrize(
    ("knob", "value", "wrong"),
    [
        ("eps", 0, "above 0 and at most 1"),
        ("eps", 1.5, "above 0 and at most 1"),
        ("eps", True, "not a number"),
        ("steps", 2.5, "whole number"),
        ("steps", 0, "at least 1"),
        ("step_size", "0", "above 0"),
        ("random_start", 3, "true or false"),
        ("loss", "cee", "did you mean 'ce'?"),
        ("restarts", None, "not a number"),
    ],
)
def test_value_out_of_range_is_refused(knob: str, value: Any, wrong: str) -> None:
    message = refused(lambda: pool.bind("pgd", {"eps": 0.1, knob: value}))
    assert wrong in message
    assert f"pgd.{knob}" in message


def test_numbers_from_text() -> None:
    given = {"8/255": 8 / 255, "1e-3": 0.001, "0.20": 0.2, " 3 ": 3.0, "-1/4": -0.25}
    assert {text: parse_number("knob", text) for text in given} == given
    attack = pool.get("pgd", eps="8/255", steps="20", random_start="no")
    assert attack.knobs["eps"] == 8 / 255
    assert (attack.knobs["steps"], attack.knobs["random_start"]) == (20, False)


# Budgets: the table of docs/concepts.md, number by number.

TABLE = {
    "digits": (0.2, 1.0, 4, 4),
    "mnist": (0.3, 2.0, 10, 16),
    "fashion-mnist": (0.3, 2.0, 10, 16),
    "cifar10": (8 / 255, 0.5, 12, 24),
    "cifar100": (8 / 255, 0.5, 12, 24),
    "imagenet": (4 / 255, 3.0, 40, 600),
}


@pytest.mark.parametrize("budget", TABLE)
def test_eps_comes_from_the_table(budget: str) -> None:
    assert set(BUDGETS) == set(TABLE)
    for norm, expected in zip(("linf", "l2", "l1", "l0"), TABLE[budget], strict=True):
        mine = Pool()
        mine.register(info(norm=norm))(nothing)
        assert mine.get("mine", budget=budget).eps == expected
        assert mine.get("mine", budget=budget).training_knobs["eps"] == expected
        # What is given counts for more than the table.
        assert mine.get("mine", budget=budget, eps=0.5).eps == 0.5


def test_eps_needs_a_budget() -> None:
    message = refused(lambda: pool.get("pgd"))
    assert all(budget in message for budget in TABLE)


def test_attack_without_a_norm_declares_its_eps() -> None:
    mine = Pool()
    assert "must declare its own knob 'eps'" in refused(lambda: mine.register(info(norm=None))(nothing))
    mine.register(info(norm=None, knobs={"eps": Knob(15.0, "degrees")}))(nothing)
    assert mine.get("mine").eps == 15.0
    assert mine.get("mine", budget="digits").eps == 15.0


# Text.


@pytest.mark.parametrize("budget", ["digits", "cifar10"])
@pytest.mark.parametrize("name", pool.names())
def test_canonical_text_reads_back(name: str, budget: str) -> None:
    attack = pool.get(name, budget=budget)
    (again,) = pool.sequence(attack.text)
    assert again == attack
    assert again.text == attack.text == str(attack)
    head, _, knobs = attack.text.partition(":")
    assert head == name
    names = [piece.partition("=")[0] for piece in knobs.split(",")]
    assert names == sorted(attack.knobs)


def test_canonical_text_is_sorted_and_decimal() -> None:
    attack = pool.get("pgd", steps=1000, step_size="1e-5", eps="1e-3")
    assert attack.text == "pgd:eps=0.001,loss=ce,random_start=true,restarts=1,step_size=0.00001,steps=1000"
    assert ",confidence=0,eps=2,initial_const=1000000," in pool.get("cw", initial_const=1e6, eps=2).text


def test_canonical_value_is_the_shortest_that_reads_back() -> None:
    draws = random.Random(0)
    for _ in range(200):
        value = draws.uniform(0, 1) * 10.0 ** draws.randint(-12, 12)
        text = format_value(value)
        assert float(text) == value
        assert "e" not in text
    known = {8 / 255: "0.03137254901960784", 1e-5: "0.00001", 100.0: "100", 7: "7", True: "true", "ce": "ce"}
    assert {value: format_value(value) for value in known} == known


def test_text_of_several_attacks() -> None:
    """Commas part attacks and knobs alike."""
    text = " fgsm, PGD:eps=4/255,steps=50 ,cw,pgd-l2:steps=3"
    pgd, l2 = ("pgd", {"eps": "4/255", "steps": "50"}), ("pgd-l2", {"steps": "3"})
    assert parse_attacks(text) == [("fgsm", {}), pgd, ("cw", {}), l2]
    attacks = pool.sequence(text, budget="digits")
    assert [attack.name for attack in attacks] == ["fgsm", "pgd", "cw", "pgd-l2"]
    assert [attack.eps for attack in attacks] == [0.2, 4 / 255, 1.0, 1.0]
    assert attacks[1].knobs["steps"] == 50


BAD_TEXTS = {
    "": "the list of attacks is empty",
    " ": "the list of attacks is empty",
    ",": "an attack without a name",
    "pgd,,cw": "an attack without a name",
    "pgd,": "an attack without a name",
    ":eps=1": "an attack without a name",
    "pgd:": "unknown attack 'pgd:': did you mean 'pgd'?",
    "pgd:eps": "unknown attack 'pgd:eps': did you mean 'pgd'?",
    "pgd cw": "unknown attack 'pgd cw'",
    "eps=0.1": "'eps=0.1' comes before any attack: write NAME:eps=0.1",
    "pgd:eps=": "write knob=value",
    "pgd:=3": "write knob=value",
    "pgd:eps=1/0": "pgd.eps=1/0 divides by zero",
    "pgd:eps=1/2/3": "pgd.eps=1/2/3 is not a number",
    "pgd:eps==1": "is not a number",
    "pgd:eps=nan": "pgd.eps=nan is not finite",
    "pgd:eps=inf": "pgd.eps=inf is not finite",
    "pgd:eps=0": "out of range: it must be above 0 and at most 1",
    "pgd:eps=0.1,eps=0.2": "knob 'eps' is given twice",
    "pgd:steps=1.5": "pgd.steps=1.5 must be a whole number",
    "pgd:steps=0": "pgd.steps=0 is out of range: it must be at least 1",
    "pgd:alpha=0.1": "unknown knob of pgd 'alpha'",
    "pgd,fgsm,pgd": "attack 'pgd' is listed twice",
    "pgd,pgd:eps=0.2": "attack 'pgd' is listed twice",
    "sample:0": "cannot sample 0 attacks",
    "sample:999": "cannot sample 999 attacks",
    "sample": "'sample' cannot be read: write sample:4",
    "sample:x": "'sample:x' cannot be read: write sample:4",
    "sample:2,eps=0.1": "'sample:2' cannot be read: write sample:4",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_bad_text_is_refused_in_one_line(text: str) -> None:
    assert BAD_TEXTS[text] in refused(lambda: pool.sequence(text, budget="digits"))


def test_one_attack_at_two_budgets_is_two_attacks() -> None:
    assert [attack.eps for attack in pool.sequence("pgd,pgd:eps=0.1", budget="digits")] == [0.2, 0.1]


# Training knobs.


def test_training_has_cheaper_knobs_of_its_own() -> None:
    attack = pool.get("pgd", eps=0.2, steps=100, step_size=0.004)
    assert (attack.knobs["steps"], attack.knobs["step_size"]) == (100, 0.004)
    assert attack.training_knobs["steps"] == 7
    assert attack.training_knobs["step_size"] == pytest.approx(2.5 * 0.2 / 7)
    trained = attack.for_training()
    assert trained.knobs == attack.training_knobs
    assert trained.text == attack.training_text
    assert trained.training


def test_training_knobs_can_be_given() -> None:
    attack = pool.get("pgd", eps=0.2, training={"steps": "3"})
    assert (attack.knobs["steps"], attack.training_knobs["steps"]) == (50, 3)
    assert attack.training_knobs["step_size"] == pytest.approx(2.5 * 0.2 / 3)
    first, second = pool.sequence("fgsm,pgd", budget="digits", training={"pgd": {"steps": 4, "eps": 0.1}})
    assert (second.training_knobs["steps"], second.training_knobs["eps"], second.eps) == (4, 0.1, 0.2)
    assert first.training_knobs["eps"] == 0.2


def test_training_knobs_of_an_absent_attack_are_refused() -> None:
    message = refused(lambda: pool.sequence("fgsm,pgd", budget="digits", training={"pdg": {"steps": 4}}))
    assert "'pdg': did you mean 'pgd'?" in message
    assert "steeps" in refused(lambda: pool.get("pgd", eps=0.2, training={"steeps": 4}))


def test_scaled_shrinks_ball_and_steps_alike() -> None:
    half = pool.get("pgd", eps=0.2, steps=10).scaled(0.5)
    assert half.eps == pytest.approx(0.1)
    assert half.knobs["step_size"] == pytest.approx(2.5 * 0.2 / 10 / 2)
    assert (half.knobs["steps"], half.knobs["restarts"], half.knobs["loss"]) == (10, 1, "ce")
    assert isinstance(half.knobs["steps"], int)
    noise = pool.get("gaussian-noise", eps=0.2).for_training().scaled(0.25)
    assert (noise.eps, noise.knobs["std"], noise.training) == (0.05, 0.05, True)
    # Adam's step is no share of the ball.
    assert pool.get("cw", eps=1.0).scaled(0.5).knobs["step_size"] == 0.02


# Sampled sequences.

FEW = [info(name, family=family) for name, family in (("a1", "noise"), ("a2", "noise"), ("a3", "noise"))]
FEW += [info("b1", family="query", norm="l2"), info("c1", family="spatial", norm=None)]


def test_sample_is_the_same_everywhere() -> None:
    assert sample(FEW, 5, 0) == ["c1", "b1", "a2", "a3", "a1"]
    assert sample(FEW[::-1], 5, 0) == sample(FEW, 5, 0)
    assert len({tuple(sample(FEW, 3, seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize("seed", range(10))
def test_sample_spreads_over_families(seed: int) -> None:
    drawn = sample(FEW, 5, seed)
    assert {name[0] for name in drawn[:3]} == {"a", "b", "c"}
    assert sorted(drawn) == ["a1", "a2", "a3", "b1", "c1"]
    assert sample(FEW, 2, seed) == drawn[:2]


def test_sample_of_some_families_or_norms() -> None:
    assert sorted(sample(FEW, 3, 0, families=["noise"])) == ["a1", "a2", "a3"]
    assert sample(FEW, 1, 0, norms=["l2"]) == ["b1"]
    assert sample(FEW, 1, 0, families="query") == ["b1"]


@pytest.mark.parametrize(
    ("k", "given", "wrong"),
    [
        (0, {}, "cannot sample 0 attacks: choose between 1 and 5"),
        (6, {}, "cannot sample 6 attacks: choose between 1 and 5"),
        (-1, {}, "cannot sample -1 attacks"),
        (2, {"norms": ["l2"]}, "cannot sample 2 attacks: choose between 1 and 1"),
        (1, {"families": ["noisy"]}, "unknown family 'noisy': did you mean 'noise'?"),
        (1, {"norms": ["l3"]}, "unknown norm 'l3'"),
    ],
)
def test_impossible_sample_is_refused(k: int, given: dict[str, list[str]], wrong: str) -> None:
    assert wrong in refused(lambda: sample(FEW, k, 0, **given))


def test_sampled_sequence() -> None:
    before = random.getstate()
    first = sample_sequence(3, 7, budget="digits")
    assert random.getstate() == before
    assert [attack.text for attack in first] == [a.text for a in pool.sample_sequence(3, 7, budget="digits")]
    drawn = [name for name in pool.names() if pool.info(name).family != "ensemble"]
    families = len({pool.info(name).family for name in drawn})
    assert len({attack.info.family for attack in sample_sequence(families, 1, budget="digits")}) == families
    every = sample_sequence(len(drawn), 1, budget="digits")
    assert sorted(attack.name for attack in every) == drawn
    assert all(attack.info.norm == "l2" for attack in sample_sequence(2, 0, norms=["l2"], budget="digits"))


def test_sequence_text_can_sample() -> None:
    drawn = [attack.name for attack in sample_sequence(3, 5, budget="mnist")]
    assert [attack.name for attack in pool.sequence("sample:3", budget="mnist", seed=5)] == drawn
    several = {
        tuple(a.name for a in pool.sequence("sample:3", budget="mnist", seed=seed)) for seed in range(9)
    }
    assert len(several) > 1
    (name, *_) = drawn
    trained = pool.sequence("sample:3", budget="mnist", seed=5, training={name: {"eps": 0.01}})
    assert trained[0].training_knobs["eps"] == 0.01


# Strangers' attacks.

STRANGER = '''
from attacks_pool import AttackInfo, register


@register(AttackInfo(name="stranger", family="noise", norm="linf", access="black-box", paper=None))
def stranger(model, x, y, *, eps, generator, early_stop):
    """Darker."""
    return (x - eps).clamp(0, 1)
'''


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with a good entry point and three broken ones; the pool reads it afresh."""
    (tmp_path / "stranger_attacks.py").write_text(STRANGER)
    (tmp_path / "broken_attacks.py").write_text('raise OSError("no\\nlicence")')
    (tmp_path / "leaving_attacks.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    names = {
        "stranger": "stranger_attacks",
        "broken": "broken_attacks",
        "leaving": "leaving_attacks",
        "absent": "module_that_is_absent",
    }
    points = [EntryPoint(name, value, "advbench.attacks") for name, value in names.items()]

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr("attacks_pool.registry.entry_points", entry_points)
    monkeypatch.setattr(pool, "_entries", dict(pool._entries))
    monkeypatch.setattr(pool, "_loaded", False)
    monkeypatch.setattr(pool, "problems", {})
    yield
    for module in names.values():
        sys.modules.pop(module, None)


@pytest.mark.usefixtures("strangers")
def test_attack_of_a_stranger_is_found() -> None:
    assert {"stranger", "pgd"} <= set(pool.names())
    assert pool.entry("stranger").source == "stranger_attacks:stranger"
    (attack,) = pool.sequence("stranger", budget="digits")
    x_adv = attack(nn.Flatten(), torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.long))
    assert x_adv.flatten().tolist() == pytest.approx([0.3] * 8)


@pytest.mark.usefixtures("strangers")
def test_broken_entry_point_breaks_nothing_else() -> None:
    assert pool.get("pgd", eps=0.1).name == "pgd"
    assert pool.problems == {
        "broken": "OSError: no",
        "leaving": "SystemExit: 3",
        "absent": "ModuleNotFoundError: No module named 'module_that_is_absent'",
    }
    assert refused(lambda: pool.get("broken", eps=0.1)) == "attack 'broken' could not be loaded: OSError: no"
    assert "module_that_is_absent" in refused(lambda: pool.sequence("absent", budget="digits"))


def test_strangers_are_gone_after_the_tests() -> None:
    assert "stranger" not in pool.names()


# The package.


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, attacks_pool; print('torch' in sys.modules, hasattr(attacks_pool, 'nonsense'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_public_name_is_there() -> None:
    assert all(getattr(attacks_pool, name) is not None for name in attacks_pool.__all__)
    assert attacks_pool.Pool is Pool
