"""The audit: each flag from outcomes made for it, and none where the difference is small or chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advbench.audit import CHECKS, Probed, audit
from advbench.audit.verdict import IN_A_RUN
from advbench.evaluation.row import MatrixRow
from attacks_pool import Attack, pool
from leaderboards import Audit, Cell, Threat
from leaderboards.audits.comparisons import rises_with_eps, weak_beats_strong, weak_suite
from leaderboards.audits.following import verdict_of

NAMES = "fgsm pgd pgd:eps=0.3 pgd:eps=0.1 gaussian-noise square pgd-l2 mim bim cw autoattack"
ATTACKS = {name: pool.sequence(name, budget="digits")[0] for name in NAMES.split()}
COUNT = 1000


def survivors(count: int, *, total: int = COUNT, first: int = 0) -> Any:
    """(total,) outcomes: ``count`` points survive, from ``first`` on."""
    outcome = np.zeros(total, dtype=bool)
    outcome[first : first + count] = True
    return outcome


def row(robust: dict[str, Any], *, stage: int = 2, invalid: int = 0, **more: Any) -> MatrixRow:
    """A row of these outcomes, all points right clean."""
    outcomes = np.stack(list(robust.values()))
    threat = Threat(norm="linf", eps=0.2, access="white-box")
    points = outcomes.shape[1]
    counts: dict[str, Any] = {"n": points, "clean_correct": points, "invalid": invalid}
    counts |= {"seconds": 0.0, "forwards": 0, "backwards": 0}
    cells = [
        Cell(stage=stage, attack=ATTACKS[name].text, threat=threat, robust=int(outcome.sum()), **counts)
        for name, outcome in robust.items()
    ]
    return MatrixRow(stage, np.ones(points, dtype=bool), outcomes, cells, **more)


def judge(
    robust: dict[str, Any],
    *,
    points: dict[str, int] | None = None,
    stochastic: bool = False,
    earlier: tuple[MatrixRow, ...] = (),
    **more: Any,
) -> Audit:
    """The audit of a run whose last row has these outcomes."""
    last = row(robust, **more)
    attacks: list[tuple[Attack, int]] = [
        (ATTACKS[name], (points or {}).get(name, last.robust.shape[1])) for name in robust
    ]
    return audit([*earlier, last], attacks, stochastic=stochastic)


def codes(result: Any) -> list[str]:
    """The flags raised, of an audit or a comparison."""
    return [flag.code for flag in getattr(result, "flags", result)]


SOUND = {"fgsm": survivors(600), "pgd": survivors(400), "gaussian-noise": survivors(900)}


def test_a_sound_run_is_ok() -> None:
    """The stronger the attack, the fewer survive: no flag, and the record says what was checked."""
    result = judge(SOUND)
    assert result.verdict == "ok"
    assert result.flags == []
    assert result.checks == list(IN_A_RUN)
    assert len(set(CHECKS)) == 21
    assert result.probes == []


BY_NAME = {
    "fgsm": "single-step-beats-iterative",
    "square": "black-box-beats-white-box",
    "gaussian-noise": "black-box-beats-white-box",
}


@pytest.mark.parametrize("weak", BY_NAME)
def test_a_weak_attack_must_not_beat_a_strong_one(weak: str) -> None:
    """The flag has both attacks, the counts and p: 60 of 1,000 points fall to the weak one alone."""
    result = judge({weak: survivors(440), "pgd": survivors(500)})
    assert result.verdict == "suspect"
    (flag,) = result.flags
    assert flag.code == BY_NAME[weak]
    assert flag.evidence == {
        "weak": ATTACKS[weak].text,
        "weak_access": ATTACKS[weak].info.access,
        "strong": ATTACKS["pgd"].text,
        "points": 1000,
        "robust_after_weak": 440,
        "robust_after_strong": 500,
        "difference": 0.06,
        "fooled_by_weak_only": 60,
        "fooled_by_strong_only": 0,
        "p": 0.5**60,
    }
    assert flag.message == f"{weak} leaves 6.0 points less than pgd, which is stronger"


@pytest.mark.parametrize("weak", ["fgsm", "square"])
@pytest.mark.parametrize(("difference", "flagged"), [(49, False), (50, True)])
def test_below_five_points_nothing_is_said(weak: str, difference: int, flagged: bool) -> None:
    """4.9 points, however sure; 5.0 points are enough."""
    result = judge({weak: survivors(500 - difference), "pgd": survivors(500)})
    assert bool(result.flags) is flagged
    assert result.verdict == ("suspect" if flagged else "ok")


@pytest.mark.parametrize(
    ("total", "weak_only", "strong_only", "p", "flagged"),
    [
        # Exact binomial tails: 2⁻⁶ and 2⁻⁷.
        (100, 6, 0, 1 / 64, False),
        (100, 7, 0, 1 / 128, True),
        # P(X ≥ 40 | 60) = 0.0067 and P(X ≥ 39 | 60) = 0.0137: more discordant points, the same difference.
        (300, 40, 20, 0.006745, True),
        (300, 39, 21, 0.013667, False),
        (300, 66, 41, 0.00995, True),
        (400, 82, 54, 0.01013, False),
        (1000, 300, 250, 0.018, False),
    ],
)
def test_what_may_be_chance_is_not_flagged(
    total: int, weak_only: int, strong_only: int, p: float, flagged: bool
) -> None:
    """At 5 points or more, p of the points on which the two disagree decides: below 0.01."""
    strong = ~survivors(strong_only, total=total)
    weak = ~survivors(weak_only, total=total, first=strong_only)
    result = judge({"fgsm": weak, "pgd": strong})
    assert codes(result) == (["single-step-beats-iterative"] if flagged else [])
    if flagged:
        assert result.flags[0].evidence["p"] == pytest.approx(p, rel=1e-3)
        assert result.flags[0].evidence["fooled_by_weak_only"] == weak_only
        assert result.flags[0].evidence["fooled_by_strong_only"] == strong_only


@pytest.mark.parametrize(
    ("robust", "flags"),
    [
        # FGSM may beat an L2 attack, or PGD in a smaller ball; not PGD in the same ball or a larger one.
        ({"fgsm": 100, "pgd-l2": 800}, []),
        ({"fgsm": 100, "cw": 800}, []),
        ({"fgsm": 100, "pgd:eps=0.1": 800}, []),
        ({"fgsm": 100, "pgd:eps=0.3": 800}, ["single-step"]),
        # Black box against black box, single step against single step: neither is the stronger kind.
        ({"square": 100, "gaussian-noise": 800}, []),
        ({"square": 100, "fgsm": 800}, []),
        # One iterative attack below the weak one is enough.
        ({"fgsm": 500, "bim": 800, "pgd": 480}, []),
        # Each comparison is its own flag.
        ({"fgsm": 100, "square": 200, "pgd": 800}, ["single-step", "black-box"]),
    ],
    ids=str,
)
def test_which_attacks_are_rivals(robust: dict[str, int], flags: list[str]) -> None:
    """Those of one norm, of no smaller budget, and of a stronger kind."""
    result = judge({name: survivors(count) for name, count in robust.items()})
    assert [code.partition("-beats")[0] for code in codes(result)] == flags


def test_the_strongest_rival_counts() -> None:
    """The evidence names the best of several."""
    result = judge({"fgsm": survivors(300), "bim": survivors(800), "pgd": survivors(480)})
    assert [flag.evidence["strong"] for flag in result.flags] == [ATTACKS["pgd"].text]


def test_attacks_are_compared_on_the_points_that_both_saw() -> None:
    """PGD on the first 200 only: beyond them its outcomes say nothing."""
    fgsm = survivors(400)
    pgd = survivors(190)
    few = {"pgd": 200}
    assert codes(judge({"fgsm": fgsm, "pgd": pgd}, points=few)) == []
    fgsm = survivors(700, first=100)
    result = judge({"fgsm": fgsm, "pgd": pgd}, points=few)
    assert codes(result) == ["single-step-beats-iterative"]
    assert result.flags[0].evidence["points"] == 200
    assert result.flags[0].evidence["fooled_by_weak_only"] == 100


def test_comparisons_look_at_the_last_row() -> None:
    """Earlier stages are not what the run delivers."""
    odd = {"fgsm": survivors(100), "pgd": survivors(800), "gaussian-noise": survivors(900)}
    assert codes(judge(SOUND, earlier=(row(odd, stage=1),))) == []
    assert codes(judge(odd, earlier=(row(SOUND, stage=1),))) == ["single-step-beats-iterative"]


def test_logits_that_are_no_numbers_make_a_run_invalid() -> None:
    """In any row, with the count; invalid outweighs suspect."""
    result = judge(SOUND, earlier=(row(SOUND, stage=1, not_a_number=3),), invalid=2)
    assert result.verdict == "invalid"
    assert codes(result)[0] == "nan-logits"
    assert result.flags[0].evidence == {"stage": 1, "count": 3}


def test_invalid_examples_are_named() -> None:
    """Each attack and stage that broke its bound."""
    result = judge(SOUND, earlier=(row(SOUND, stage=1, invalid=4),))
    assert result.verdict == "suspect"
    assert codes(result) == ["invalid-examples"] * 3
    evidence = {"stage": 1, "attack": ATTACKS["fgsm"].text, "count": 4}
    assert result.flags[0].evidence == evidence


def test_a_changed_model_is_named() -> None:
    """With what changed, and where."""
    text = ATTACKS["pgd"].text
    changes = [f"buffer {number}" for number in range(20)]
    result = judge(SOUND, changed={text: changes})
    assert result.verdict == "suspect"
    (flag,) = result.flags
    assert flag.code == "changed-model"
    assert flag.evidence == {"stage": 2, "attack": text, "changes": changes[:10]}
    assert "buffer 0" in flag.message


def test_every_code_is_among_the_checks() -> None:
    """What a flag says was checked, the record lists as checked."""
    stochastic = judge(SOUND, stochastic=True)
    assert (stochastic.verdict, codes(stochastic)) == ("suspect", ["stochastic"])
    result = judge(
        {"fgsm": survivors(100), "square": survivors(200), "pgd": survivors(800)},
        stochastic=True,
        invalid=1,
        not_a_number=1,
        changed={ATTACKS["pgd"].text: ["buffer"]},
    )
    assert set(codes(result)) == set(IN_A_RUN) - {"weak-suite"}
    assert set(IN_A_RUN) < set(CHECKS)


def seen(name: str, robust: Any, *, access: str | None = None, probe: bool = True, points: int = 0) -> Probed:
    """A measured attack, a probe unless said otherwise."""
    attack = ATTACKS[name]
    return Probed(attack, robust, points or len(robust), access or attack.info.access, probe=probe)


def test_transferred_points_must_not_beat_white_box() -> None:
    """Crafted on another model they know less; evidence and message say where they come from."""
    transfer = seen("pgd", survivors(440), access="transfer")
    (flag,) = weak_beats_strong([transfer, seen("pgd", survivors(500))])
    assert flag.code == "transfer-beats-white-box"
    assert flag.evidence["weak_access"] == "transfer"
    assert flag.message == "pgd from another model leaves 6.0 points less than pgd, which is stronger"
    for rival in (
        seen("pgd", survivors(489)),
        # Another norm or another budget is no rival, and neither is another transferred one.
        seen("pgd-l2", survivors(900)),
        seen("pgd:eps=0.3", survivors(900)),
        seen("mim", survivors(900), access="transfer"),
    ):
        assert codes(weak_beats_strong([transfer, rival])) == []


def test_the_runs_own_search_may_be_what_was_weak() -> None:
    """Square beats the run's PGD; a probe that does as well shows that gradients are sound."""
    run = [seen("square", survivors(400), probe=False), seen("pgd", survivors(600), probe=False)]
    assert codes(weak_beats_strong(run)) == ["black-box-beats-white-box"]
    assert codes(weak_beats_strong([*run, seen("mim", survivors(449))])) == ["weak-suite"]
    assert codes(weak_beats_strong([*run, seen("mim", survivors(451))])) == ["black-box-beats-white-box"]
    assert verdict_of(list(weak_beats_strong([*run, seen("mim", survivors(420))]))) == "ok"


def test_more_room_must_not_help_the_defense() -> None:
    """The clearest pair of the ladder is named, once."""

    def ladder(*counts: int) -> list[Probed]:
        names = ("pgd:eps=0.1", "pgd", "pgd:eps=0.3")
        return [seen(name, survivors(count)) for name, count in zip(names, counts, strict=False)]

    (flag,) = rises_with_eps(ladder(700, 800, 900))
    assert flag.code == "accuracy-rises-with-eps"
    assert flag.message == "pgd eps=0.1 leaves 20.0 points less than pgd eps=0.3, whose budget is larger"
    for counts in ((700,), (700, 740), (700, 10)):
        assert codes(rises_with_eps(ladder(*counts))) == []


def test_a_weak_suite_is_said_and_masks_nothing() -> None:
    """A probe far below all of the run's own attacks together, not below the best of them alone."""
    own = [seen("fgsm", survivors(500), probe=False), seen("bim", survivors(500, first=100), probe=False)]
    (flag,) = weak_suite([*own, seen("pgd", survivors(300, first=100))])
    assert flag.code == "weak-suite"
    assert flag.evidence["robust_after_strong"] == 400
    assert verdict_of([flag]) == "ok"
    others = {"pgd": survivors(360, first=100), "pgd-l2": survivors(0), "pgd:eps=0.3": survivors(0)}
    assert all(codes(weak_suite([*own, seen(name, others[name])])) == [] for name in others)
    (flag,) = weak_suite([*own, seen("autoattack", survivors(300, first=100), probe=False)])
    assert flag.message.startswith(
        "autoattack leaves 10.0 points less than all other attacks of the run together,"
    )
