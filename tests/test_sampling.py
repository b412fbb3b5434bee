"""Curricula, splits by family and meta-tasks: drawn with a seed, the same everywhere."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from advbench.cli.main import invoke
from advbench.config.options import Options
from advbench.config.resolve import resolve
from advbench.data import DataSet
from attacks_pool import AttackInfo, InputError, pool
from attacks_pool.sequences import meta_tasks, sample, split_families


def info(name: str, family: str, **more: Any) -> AttackInfo:
    """Metadata of an attack that needs no code."""
    return AttackInfo(
        name=name, family=family, norm=more.pop("norm", "linf"), access="white-box", paper=None, **more
    )


FEW = [info("a1", "noise"), info("a2", "noise"), info("b1", "query"), info("b2", "query", norm="l2")]
FEW += [info("c1", "spatial", channels=(3,)), info("d1", "colour", min_side=16), info("e1", "ensemble")]


def refused(call: Any) -> str:
    """The line of the InputError that a call raises."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def call(capfd: Any, options: str) -> str:
    """What ``advbench attacks sample`` prints."""
    code = invoke(["attacks", "sample", *options.split()])
    out, err = capfd.readouterr()
    assert code == 0, err
    return str(out).strip()


# Samples.


def test_ensembles_are_not_drawn() -> None:
    assert sorted(sample(FEW, 6, 0)) == ["a1", "a2", "b1", "b2", "c1", "d1"]
    every = [name for name in pool.names() if pool.info(name).family != "ensemble"]
    assert "ensemble" not in {
        attack.info.family for attack in pool.sample_sequence(len(every), 0, budget="digits")
    }


def test_only_attacks_that_can_treat_the_images_are_drawn() -> None:
    assert sorted(sample(FEW, 4, 0, images=(1, 8, 8))) == ["a1", "a2", "b1", "b2"]
    assert sorted(sample(FEW, 5, 0, images=(3, 8, 8))) == ["a1", "a2", "b1", "b2", "c1"]
    assert len(sample(FEW, 6, 0, images=(3, 32, 16))) == 6


def test_samples_in_a_text(capfd: Any) -> None:
    """As the function and as the command draw them."""
    attacks = pool.sequence("sample:3,family=query+minimal-norm,norm=l2", budget="digits", seed=2)
    assert {attack.info.norm for attack in attacks} == {"l2"}
    assert {attack.info.family for attack in attacks} == {"query", "minimal-norm"}
    drawn = pool.sample_sequence(3, 2, ["query", "minimal-norm"], ["l2"], budget="digits")
    assert [attack.text for attack in attacks] == [attack.text for attack in drawn]
    options = "3 --seed 2 --family minimal-norm --family query --norm l2"
    assert call(capfd, options).split(",") == [attack.name for attack in attacks]


# Splits.


def test_unseen_families_are_never_seen() -> None:
    for seed in range(8):
        seen, unseen = split_families(FEW, seed, 2)
        assert len(unseen) == 2
        assert sorted([*seen, *unseen]) == ["colour", "noise", "query", "spatial"]
        names = sample(FEW, 2, seed, seen)
        assert not {i.family for i in FEW if i.name in names} & set(unseen)
        assert split_families(FEW[::-1], seed, 2) == (seen, unseen)
    assert len({tuple(split_families(FEW, seed, 1)[1]) for seed in range(30)}) == 4
    assert split_families(FEW, 0, 1, families=["noise", "query"])[0][0] in ("noise", "query")
    assert pool.split_families(3, 2) == pool.split_families(3, 2)


# Meta-tasks.


def test_meta_tasks_hold_one_attack_out() -> None:
    """Two budgets of one attack are two attacks. No draw here moves the global random state."""
    before = random.getstate()
    attacks = ["fgsm", "pgd", "cw"]
    tasks = meta_tasks(attacks, 9, seed=5)
    assert tasks == meta_tasks(attacks, 9, seed=5)
    assert all(sorted([*train, test]) == sorted(attacks) and test not in train for train, test in tasks)
    assert Counter(test for _, test in tasks) == {"fgsm": 3, "pgd": 3, "cw": 3}
    assert len({tuple(test for _, test in meta_tasks(attacks, 6, seed)) for seed in range(20)}) > 5
    assert meta_tasks(attacks, 4, 5) == tasks[:4]
    bound = pool.sequence("pgd:eps=0.1,pgd:eps=0.2", budget="digits")
    ((train, test),) = meta_tasks(bound, 1, 0)
    assert sorted([train[0].eps, test.eps]) == [0.1, 0.2]
    split_families(FEW, 0, 1)
    pool.sequence("sample:2", budget="digits", seed=1)
    assert random.getstate() == before


IMPOSSIBLE: list[tuple[str, Callable[[], Any]]] = [
    ("unknown family 'ensemble'", lambda: sample(FEW, 1, 0, ["ensemble"])),
    ("choose between 1 and 4", lambda: sample(FEW, 5, 0, images=(1, 8, 8))),
    ("unknown family 'noisy'", lambda: pool.sequence("sample:1,family=noisy", budget="digits")),
    ("write sample:4", lambda: pool.sequence("sample:1,steps=3", budget="digits")),
    ("cannot hold 0 families out", lambda: split_families(FEW, 0, 0)),
    ("cannot hold 4 families out", lambda: split_families(FEW, 0, 4)),
    ("cannot hold -1 families out", lambda: split_families(FEW, 0, -1)),
    ("cannot hold 1 families out", lambda: split_families(FEW, 0, 1, norms=["l2"])),
    ("cannot hold 1 families out", lambda: split_families(FEW, 0, 1, norms=["l1"])),
    ("two attacks or more, not 1", lambda: meta_tasks(["pgd"], 3, 0)),
    ("cannot draw 0 meta-tasks", lambda: meta_tasks(["pgd", "cw"], 0, 0)),
    ("lists of one length", lambda: pool.curriculum("pgd", eps=0.1)),
    ("lists of one length", lambda: pool.curriculum("pgd", eps=[])),
    ("lists of one length", lambda: pool.curriculum("pgd", eps=[0.1, 0.2], steps=[1])),
    ("same strength twice", lambda: pool.curriculum("pgd", eps=[0.1, 0.1])),
]


@pytest.mark.parametrize(("line", "draw"), IMPOSSIBLE)
def test_impossible_draws(line: str, draw: Callable[[], Any]) -> None:
    assert line in refused(draw)


# Curricula.


def test_a_curriculum_from_lists() -> None:
    attacks = pool.curriculum("pgd", eps=[0.05, 0.1, 0.2], steps=9, budget="digits")
    assert [attack.eps for attack in attacks] == [0.05, 0.1, 0.2]
    assert {attack.knobs["steps"] for attack in attacks} == {9}
    assert [attack.for_training().eps for attack in attacks] == [0.05, 0.1, 0.2]
    both = pool.curriculum("pgd", eps=["2/255", "8/255"], steps=[3, 6], training={"restarts": 2})
    assert [attack.training_knobs["steps"] for attack in both] == [3, 6]
    assert [attack.training_knobs["restarts"] for attack in both] == [2, 2]
    assert [attack.eps for attack in both] == [2 / 255, 8 / 255]


def test_a_curriculum_from_a_text() -> None:
    """Between exact ends, in round numbers; it may stand among other attacks."""
    text = "fgsm,curriculum:pgd:eps=0.05..0.2,steps=5,stages=4,cw"
    attacks = pool.sequence(text, budget="digits")
    assert [attack.name for attack in attacks] == ["fgsm", "pgd", "pgd", "pgd", "pgd", "cw"]
    assert [attack.eps for attack in attacks[1:5]] == [0.05, 0.1, 0.15, 0.2]
    assert "eps=0.15," in attacks[3].text
    fractions = pool.sequence("curriculum:pgd:eps=2/255..8/255,stages=2")
    assert [attack.eps for attack in fractions] == [2 / 255, 8 / 255]
    falling = pool.sequence("curriculum:pgd:eps=0.2..0.1,stages=3")
    assert [attack.eps for attack in falling] == [0.2, 0.15, 0.1]


def test_whole_numbers_in_a_curriculum() -> None:
    attacks = pool.sequence("curriculum:PGD:steps=5..20,eps=0.1,stages=3", training={"pgd": {"restarts": 2}})
    assert [attack.knobs["steps"] for attack in attacks] == [5, 12, 20]
    assert [attack.training_knobs["steps"] for attack in attacks] == [5, 12, 20]
    assert {attack.training_knobs["restarts"] for attack in attacks} == {2}


def test_a_curriculum_resolves_into_the_record(digits: DataSet) -> None:
    """What was meant is written out, and reads back the same."""
    config = resolve(Options(sequence="curriculum:pgd:eps=0.1..0.2,stages=2", unseen="none"), digits)
    assert [text.partition(",")[0] for text in config.sequence] == ["pgd:eps=0.1", "pgd:eps=0.2"]
    again = resolve(Options(sequence=config.sequence, training=config.training, unseen="none"), digits)
    assert (again.sequence, again.training) == (config.sequence, config.training)


WRONG = {
    "curriculum": "this curriculum cannot be read: write curriculum:pgd:eps=0.05..0.2,stages=3",
    "curriculum:pgd": "write curriculum:pgd:eps=0.05..0.2,stages=3",
    "curriculum:pgd:eps=0.1,stages=3": "write curriculum:pgd:eps=0.05..0.2,stages=3",
    "curriculum:pgd:eps=0.1..0.2": "write curriculum:pgd:eps=0.05..0.2,stages=3",
    "curriculum:pgd:eps=0.1..0.2,stages=1..3": "write curriculum:pgd",
    "curriculum:pgd:eps=0.1..0.2,stages=1": "stages=1 must be a whole number from 2 to 1000",
    "curriculum:pgd:eps=0.1..0.2,stages=2.5": "stages=2.5 must be a whole number",
    "curriculum:pgd:eps=0.1..0.2,stages=1e9": "from 2 to 1000",
    "curriculum:pgd:eps=0.1..x,stages=2": "pgd.eps=x is not a number",
    "curriculum:pgd:eps=..0.1,stages=2": "pgd.eps= is not a number",
    "curriculum:pgd:eps=0.1..0.2..0.3,stages=2": "write FROM..TO",
    "curriculum:pgd:eps=0.1..0.1,stages=2": "has the same strength twice",
    "curriculum:pgd:steps=5..6,eps=0.1,stages=3": "has the same strength twice",
    "curriculum:pgd:eps=0.1..2,stages=2": "pgd.eps=2.0 is out of range",
    "curriculum:pdg:eps=0.1..0.2,stages=2": "unknown attack 'pdg': did you mean 'pgd'?",
    "curriculum:pgd:loss=a..b,stages=2": "pgd.loss=a is not a number",
    "curriculum:pgd:epz=0.1..0.2,stages=2": "unknown knob of pgd 'epz'",
    "curriculum:pgd:eps=0.1..0.2,stages=2,pgd:eps=0.1": "attack 'pgd' is listed twice",
}


@pytest.mark.parametrize("text", WRONG)
def test_curricula_that_cannot_be(text: str) -> None:
    assert WRONG[text] in refused(lambda: pool.sequence(text, budget="digits"))


# The command line.


def test_a_split_is_printed_as_options_of_run(capfd: Any) -> None:
    """Seen and unseen families share nothing; the seed decides."""
    words = call(capfd, "3 --seed 1 --unseen 2").split()
    assert [words[0], words[2]] == ["--sequence", "--unseen"]
    parts = json.loads(call(capfd, "3 --seed 1 --unseen 2 --format json"))
    assert (parts["sequence"], parts["unseen"]) == (words[1].split(","), words[3].split(","))
    seen = {pool.info(name).family for name in parts["sequence"]}
    assert seen <= set(parts["families"]["seen"])
    assert sorted(pool.info(name).family for name in parts["unseen"]) == parts["families"]["unseen"]
    assert not seen & set(parts["families"]["unseen"])
    assert len({call(capfd, f"2 --seed {seed} --unseen 1") for seed in range(6)}) > 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sample", "3", "--family", "noisy"], "unknown family 'noisy': did you mean 'noise'?"),
        (["sample", "3", "--norm", "l3"], "unknown norm 'l3'"),
        (["sample", "999"], "cannot sample 999 attacks: choose between 1 and"),
        (["sample", "1", "--unseen", "-1"], "'--unseen': "),
        (["sample", "1", "--dataset", "digitz"], "unknown data set 'digitz'"),
        (["--family", "noise"], "--family is only for sample"),
        (["pgd", "--norm", "l2"], "--norm is only for sample"),
        (["--unseen", "1"], "--unseen is only for sample"),
    ],
)
def test_samples_that_cannot_be(arguments: list[str], line: str, capfd: Any) -> None:
    assert invoke(["attacks", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert line in err
