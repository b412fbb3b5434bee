"""Pictures: their numbers are the records', their bytes repeat, and they can be read in both themes."""

from __future__ import annotations

import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.lines import Line2D
from PIL import Image
from record_trees import UNTOUCHED, cell, entry, record_tree, stages, threat
from rich.console import Console

from advbench.cli.shading import bars, has_shades, shaded
from advbench.runs.gallery import draw, gallery
from advbench.runs.saved import Run
from advbench.runs.tables import matrix_table
from attacks_pool.errors import InputError
from leaderboards import Record, RecordError, parse_record, rows
from leaderboards.colours import contrast, ink, rgb, shade
from leaderboards.pictures import (
    DARK,
    LIGHT,
    THEMES,
    ImageRow,
    Picture,
    Theme,
    difference,
    eps_curves,
    forgetting_curves,
    heat_map,
    image_grid,
    pareto_front,
    radar,
    trade_off,
)
from leaderboards.pictures.placing import spread_apart
from leaderboards.statistics.naming import short_names

FGSM, PGD, CW = "fgsm:eps=0.2", "pgd:eps=0.2,step_size=0.1,steps=5", "cw:eps=1.0,steps=9"
PGD_SMALL, SQUARE = "pgd:eps=0.1,step_size=0.05,steps=5", "square:eps=0.2"
FAMILIES = {"fgsm": "single-step", "pgd": "projected-gradient", "cw": "minimal-norm", "square": "query"}
N = 200
# Counts of N points: rows are stages, columns clean, fgsm, pgd, cw, square, pgd at half the eps.
CONTINUAL = [
    [190, 20, 4, 2, 6, 30],
    [184, 150, 90, 20, 80, 120],
    [180, 140, 130, 30, 110, 150],
    [176, 120, 100, 60, 90, 140],
]
JOINT = [CONTINUAL[0], [178, 144, 120, 50, 100, 148]]


def threat_of(attack: str) -> dict[str, Any]:
    """What an attack may do, by its text."""
    name, _, knobs = attack.partition(":")
    eps = float(knobs.split(",")[0].removeprefix("eps=")) if knobs else None
    return threat("l2" if name == "cw" else "linf", eps) if knobs else UNTOUCHED


def record(
    defense: str = "air",
    counts: Sequence[Sequence[int]] = CONTINUAL,
    *,
    seed: int = 0,
    verdict: str = "ok",
    probes: Sequence[tuple[float, int]] = (),
    sequence: Sequence[str] = (FGSM, PGD, CW),
    missing: str = "",
    **config: Any,
) -> Record:
    """A record of these counts; two stages are a joint run."""
    joint = len(counts) == 2
    attacks = [*sequence, SQUARE, PGD_SMALL]
    roles = ["seen"] * len(sequence) + ["unseen", "eval"]
    shares = np.array(counts[-1]) / N
    regime = "joint" if joint else "continual"
    settings = {"defense": defense, "seed": seed, "pretrain": 5, "regime": regime}
    settings |= {"sequence": list(sequence), "training": list(sequence)}
    cells = [
        cell(stage, text, N, row[0], count, threat_of(text))
        for stage, row in enumerate(counts)
        for text, count in zip(["clean", *attacks], row, strict=True)
        if text != missing
    ]
    ladder = [(f"pgd:eps={eps},loss=ce", count) for eps, count in probes]
    tree = record_tree(
        settings | config,
        fingerprint="sha256:aa",
        id=f"{defense}-{regime}-{len(sequence)}-{config}-s{seed}",
        attacks=[
            entry(text, role, family=FAMILIES[text.partition(":")[0]], **threat_of(text))
            for text, role in zip(attacks, roles, strict=True)
        ],
        stages=stages([], list(sequence)) if joint else stages([], *([text] for text in sequence)),
        cells=cells,
        metrics={
            "average_robust_accuracy": float(shares[1 : len(sequence) + 1].mean()),
            "clean_accuracy": float(shares[0]),
            "worst_case_accuracy": float(shares[1:].min()),
        },
        verdict=verdict,
    )
    last = len(counts) - 1
    tree["audit"]["probes"] = [cell(last, text, 50, 45, count, threat_of(text)) for text, count in ladder]
    return parse_record(tree, "here")


def moved(by: int) -> list[list[int]]:
    """``CONTINUAL`` with every count but row 0's higher."""
    return [list(CONTINUAL[0]), *([count + by for count in row] for row in CONTINUAL[1:])]


def three_seeds(defense: str = "air", by: int = 0) -> list[Record]:
    """Counts that differ by 4 points of 200, 2 %, from seed to seed: a standard deviation of 2 %."""
    return [record(defense, moved(by + 4 * seed), seed=seed) for seed in range(3)]


def panels(picture: Picture) -> list[Axes]:
    """The axes that hold data: no colour bar, nothing that is hidden."""
    return [axes for axes in picture.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def lines(axes: Axes) -> dict[str, Line2D]:
    """Lines by their labels; the unnamed ones are decoration."""
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def heights(line: Line2D) -> list[float]:
    """The values of a line, to a tenth of a tenth."""
    return [round(float(value), 2) for value in np.asarray(line.get_ydata(), dtype=float)]


def texts(axes: Axes) -> list[str]:
    """Everything written in a panel."""
    return [text.get_text() for text in axes.texts]


EVERY = {
    "heat map": lambda theme: heat_map([*three_seeds(), record("at", JOINT)], theme=theme),
    "one forgets": lambda theme: forgetting_curves([record()], theme=theme),
    "several forget": lambda theme: forgetting_curves([*three_seeds(), record("at", JOINT)], theme=theme),
    "eps": lambda theme: eps_curves([record(probes=[(0.1, 30), (0.2, 20), (0.4, 3)])], theme=theme),
    "radar": lambda theme: radar([*three_seeds(), record("at", JOINT)], theme=theme),
    "trade-off": lambda theme: trade_off(rows([*three_seeds(), record("at", JOINT)]), theme=theme),
}


@pytest.mark.quick(r"radar-pdf|eps-png|.*-svg")
@pytest.mark.parametrize(
    ("kind", "form"), [("radar", "pdf"), *((kind, form) for kind in EVERY for form in ("svg", "png"))]
)
def test_the_same_bytes_twice_in_both_themes(kind: str, form: str) -> None:
    """Drawn and written anew, and the themes differ; nothing is cut off; an SVG says what it shows."""
    picture = EVERY[kind](LIGHT)
    light, dark = picture.render(form, dpi=50), EVERY[kind](DARK).render(form, dpi=50)
    assert EVERY[kind](LIGHT).render(form, dpi=50) == light != dark
    if form == "png":
        for data, theme in ((light, LIGHT), (dark, DARK)):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            paper = tuple(round(255 * part) for part in rgb(theme.paper))
            assert image.getpixel((1, image.height // 2)) == paper
    if form == "svg":
        is_described(picture, light)
    box = picture.get_tightbbox()
    width, height = picture.get_size_inches()
    assert -0.02 < box.x0 < box.x1 < width + 0.02
    assert -0.02 < box.y0 < box.y1 < height + 0.02


def is_described(picture: Picture, svg: bytes) -> None:
    """A name and a description, for screen readers; the description holds numbers, and no date is in it."""
    root = ElementTree.fromstring(svg)
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext("svg:title", namespaces=space) == picture.title
    description = root.findtext("svg:desc", namespaces=space)
    assert description == picture.description
    assert re.search(r"\d\d\.\d", description)
    assert b"<dc:date>" not in svg


def test_no_global_state_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's settings stay the user's, and do not show in a picture."""
    plain = EVERY["eps"](LIGHT).render("svg")
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    before = dict(mpl.rcParams)
    assert EVERY["eps"](LIGHT).render("svg") == plain
    assert dict(mpl.rcParams) == before


def test_a_title_of_ones_own_and_none() -> None:
    """Dollars are dollars; without a title the metadata still has one."""
    picture = heat_map([record()], title="from $1 to $2")
    assert picture.get_suptitle().startswith("from $1 to $2")
    without = heat_map([record()], title="")
    assert without.get_suptitle() == ""
    assert "air" in without.title


def meshes(axes: Axes) -> list[np.ndarray[Any, Any]]:
    """The values of each block of cells."""
    return [np.asarray(found.get_array()) for found in axes.collections if isinstance(found, QuadMesh)]


def test_heat_map_holds_the_matrix() -> None:
    """Clean, seen, unseen and others beside each other: as colours, and as text."""
    (axes,) = panels(heat_map([record()]))
    blocks = meshes(axes)
    expected = np.array(CONTINUAL) / 2
    assert [block.shape for block in blocks] == [(4, 1), (4, 3), (4, 1), (4, 1)]
    assert np.hstack(blocks) == pytest.approx(expected)
    assert set(texts(axes)) >= {f"{value:.1f}" for value in expected.flat}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 plain", "1 fgsm", "2 pgd", "3 cw"]
    names = ["clean", "fgsm", "pgd\neps=0.2", "cw", "square", "pgd\neps=0.1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == names


def test_heat_map_over_seeds() -> None:
    """Mean and sample standard deviation: 75, 77, 79 % are 77 ± 2."""
    first, second = panels(heat_map([*three_seeds(), record("at", JOINT)]))
    seeds = first if first.get_title(loc="left").startswith("air") else second
    assert np.hstack(meshes(seeds))[1] == pytest.approx(np.array(CONTINUAL[1]) / 2 + 2)
    assert {"77.0", "± 2.0"} <= set(texts(seeds))


def test_a_cell_that_was_not_measured() -> None:
    """Is a dash, and no colour."""
    (axes,) = panels(heat_map([record(missing=CW)]))
    assert np.ma.getmaskarray(axes.collections[1].get_array())[:, 2].all()
    assert texts(axes).count("–") == 4


def test_text_on_the_scale_can_be_read() -> None:
    """WCAG AA: a contrast of 4.5 between a cell and its number, the greater of what black and white give."""
    for share in np.linspace(0, 1, 101):
        ground = shade(float(share))
        assert contrast(ground, ink(ground)) >= 4.5, share


def test_contrast_by_hand() -> None:
    """Black on white is 21; the grey #777777 on white is 4.48 (WCAG's example of just not enough)."""
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
def test_a_theme_can_be_read(theme: Theme) -> None:
    """Text 4.5 and lines 3 against the paper; no two of twelve lines alike but for their colour."""
    paper = rgb(theme.paper)
    assert min(contrast(paper, rgb(colour)) for colour in (theme.ink, theme.muted)) >= 4.5
    assert min(contrast(paper, rgb(colour)) for colour in theme.lines) >= 3
    styles = [theme.line(index) for index in range(12)]
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 12


def test_forgetting_of_one_run() -> None:
    """A line an attack, in a panel of what was trained against and one of the rest."""
    seen, other = panels(forgetting_curves([record()]))
    assert {name: heights(line) for name, line in lines(seen).items()} == {
        "clean": [95, 92, 90, 88],
        "fgsm": [10, 75, 70, 60],
        "pgd eps=0.2": [2, 45, 65, 50],
        "cw": [1, 10, 15, 30],
    }
    assert heights(lines(other)["square"]) == [3, 40, 55, 45]
    assert [label.get_text() for label in seen.get_xticklabels()] == ["plain", "fgsm", "pgd", "cw"]
    assert {"fgsm", "pgd eps=0.2", "cw", "clean"} <= set(texts(seen))


def test_forgetting_over_seeds_has_a_band() -> None:
    """Of one standard deviation on each side of the mean."""
    seen, _ = panels(forgetting_curves(three_seeds()))
    assert heights(lines(seen)["fgsm"]) == [10, 77, 72, 62]
    band = seen.collections[1].get_paths()[0].vertices
    assert sorted({round(float(y), 2) for x, y in band if x == 1}) == [75, 79]


def test_forgetting_of_several_defenses() -> None:
    """A panel an attack of the sequence; a joint run is a level line at what it reaches."""
    found = panels(forgetting_curves([record("air"), record("at", moved(10)), record("at", JOINT)]))
    assert [axes.get_title(loc="left") for axes in found] == ["fgsm", "pgd", "cw"]
    drawn = lines(found[0])
    expected = {"air": [10, 75, 70, 60], "at (continual)": [10, 80, 75, 65], "at (joint)": [72, 72]}
    assert {name: heights(drawn[name]) for name in expected} == expected
    assert list(drawn["at (joint)"].get_xdata()) == [0, 3]


def test_forgetting_of_two_sequences() -> None:
    """A row of panels each, a defense under one name and colour in both."""
    short = [row[:1] + row[1:2] + row[2:3] + row[4:] for row in CONTINUAL[:3]]
    found = panels(forgetting_curves([record(), record("at"), record("air", short, sequence=(FGSM, PGD))]))
    assert [axes.get_title(loc="left") for axes in found] == ["fgsm", "pgd", "cw", "fgsm", "pgd"]
    colours = {lines(axes)["air"].get_color() for axes in found}
    assert len(colours) == 1


def test_robust_accuracy_against_eps() -> None:
    """The run's own attack at two eps, the audit's at three, each from clean accuracy at 0."""
    (axes,) = panels(eps_curves([record(probes=[(0.1, 30), (0.2, 20), (0.4, 3)])]))
    drawn = {
        str(container.get_label()): dict(zip(container[0].get_xdata(), heights(container[0]), strict=True))
        for container in axes.containers
    }
    assert drawn == {
        "air pgd": {0: 88, 0.1: 70, 0.2: 50},
        "air pgd (audit)": {0: 90, 0.1: 60, 0.2: 40, 0.4: 6},
    }


def test_other_knobs_make_another_attack() -> None:
    """Two budgets with unlike steps are no curve, and two probes are too few."""
    unlike = record(sequence=(FGSM, "pgd:eps=0.2,steps=50", CW), probes=[(0.2, 9), (1.0, 0)])
    with pytest.raises(RecordError, match="no attack was measured at two eps or more"):
        eps_curves([unlike])


def test_radar_takes_the_strongest_of_a_family() -> None:
    """Of pgd at 0.2 (50 %) and 0.1 (70 %) the first; clean accuracy on top; closed."""
    (axes,) = panels(radar([record()]))
    (container,) = axes.containers
    assert heights(container[0]) == [88, 30, 50, 45, 60, 88]
    assert texts(axes) == ["clean", "minimal-norm", "projected-\ngradient", "query", "single-step"]
    with pytest.raises(RecordError, match="compares runs of one protocol"):
        radar([record(), record("at", missing=SQUARE)])


def test_pareto_front_by_hand() -> None:
    """(2, 2) twice stays twice; (1, 2) loses to both; the best of each axis stay."""
    assert pareto_front([(1, 3), (2, 2), (1, 2), (3, 0), (2, 2), (0, 3)]) == [0, 1, 4, 3]
    assert pareto_front([]) == []
    assert pareto_front([(1, 1)]) == [0]


def test_trade_off_holds_the_rows() -> None:
    """Means and deviations of the rows; suspect and target-aware ones are hollow, and not on the front."""
    better = moved(16)
    found = [
        *three_seeds("air"),
        record("low", [CONTINUAL[0], *([row[0] + 10, *row[1:]] for row in CONTINUAL[1:])]),
        record("masked", better, verdict="suspect"),
        record("mola-grad", better, target_aware=True),
        record("bogus", better, verdict="invalid"),
    ]
    (axes,) = panels(trade_off(rows(found)))
    marks = {str(container.get_label()): container for container in axes.containers}
    assert set(marks) == {"air", "low", "masked", "mola-grad"}
    # 88, 90, 92 % clean; (60 + 50 + 30) / 3 = 46.67 % and 2, 4 more on average
    air = marks["air"][0]
    assert (air.get_xdata()[0], round(air.get_ydata()[0], 2)) == (90, 48.67)
    vertical = marks["air"][2][1].get_segments()[0]
    horizontal = marks["air"][2][0].get_segments()[0]
    assert horizontal[:, 0] == pytest.approx([88, 92])
    assert vertical[:, 1] == pytest.approx([46.667, 50.667], abs=1e-3)
    front = lines(axes)["Pareto front"]
    # from the left edge to air, down and across to low, down to the lower edge
    assert list(front.get_xdata())[1:] == [90, 90, 93, 93]
    assert heights(front)[:-1] == [48.67, 48.67, 46.67, 46.67]
    fills = {name: container[0].get_markerfacecolor() for name, container in marks.items()}
    assert (fills["masked"], fills["mola-grad"]) == ("none", "none")
    assert "none" not in (fills["air"], fills["low"])
    assert {"masked, suspect", "mola-grad, target-aware"} <= set(texts(axes))


def test_panels_of_one_sequence_are_told_apart() -> None:
    """Two protocols have two panels, and their titles say so; two sequences need no protocol there."""
    (row,) = rows([record("air")])
    other = dataclasses.replace(row, protocol="sha256:0123456789abcdef")
    titles = [axes.get_title(loc="left") for axes in panels(trade_off([row, other]))]
    assert len(set(titles)) == 2
    assert any(title.endswith("protocol 01234567") for title in titles)
    found = [record("air"), record("air", sequence=(PGD, FGSM, CW))]
    assert not any("protocol" in axes.get_title(loc="left") for axes in panels(trade_off(rows(found))))


def test_images_are_the_arrays() -> None:
    """Images as they are, differences at their scale, wrong answers framed and bold."""
    clean = np.linspace(0, 1, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)
    changed = clean.copy()
    changed[0, 0, 0, 0] += 0.25
    rows_ = [
        ImageRow("clean", clean, ["3", "4"]),
        ImageRow("pgd", changed, ["8", "4"], [True, False]),
        difference("difference", clean, changed),
    ]
    picture = image_grid(rows_, heading="images")
    (axes,) = panels(picture)
    shown = [np.asarray(image.get_array()) for image in axes.images]
    assert len(shown) == 6
    assert np.array_equal(shown[2], changed[0, :, :, 0])
    assert shown[4].max() == pytest.approx(0.25)
    assert axes.images[4].get_clim() == (-0.25, 0.25)
    assert "difference\n± 0.25" in [label.get_text() for label in axes.get_yticklabels()]
    assert {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"} == {"8"}
    assert image_grid(rows_, heading="images").render("svg") == picture.render("svg")


def test_differences_of_colour_images_are_moved_around_grey() -> None:
    """No change is 0.5, the largest 0 or 1."""
    clean = np.zeros((1, 2, 2, 3), dtype=np.float32)
    changed = clean.copy()
    changed[0, 0, 0] = [0.4, 0, 0.2]
    (axes,) = panels(image_grid([difference("difference", clean, changed)], heading="images"))
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels[0, 0] == pytest.approx([1, 0.5, 0.75])
    assert pixels[1, 1] == pytest.approx([0.5, 0.5, 0.5])


def test_a_gallery_of_a_run(small_run: Run) -> None:
    """Points that are right clean, one a class; within eps; the captions are the model's own answers."""
    found = gallery(small_run, points=6, attacks=["pgd"])
    (one,) = found.attacked
    assert one.name == "pgd eps=0.2"
    assert (small_run.model(found.x).argmax(1) == found.y).all()
    assert len(set(found.y.tolist())) == 6
    assert float((one.x - found.x).abs().max()) <= 0.2 + 1e-6
    assert (small_run.model(one.x).argmax(1) == one.predicted).all()
    assert one.regenerated is None
    picture = draw(small_run, found)
    (axes,) = panels(picture)
    assert texts(axes) == [str(label) for label in [*found.y.tolist(), *one.predicted.tolist()]]
    again = draw(small_run, gallery(small_run, points=6, attacks=["pgd"]))
    assert again.render("svg") == picture.render("svg")


def test_a_gallery_refuses(small_run: Run) -> None:
    """Attacks of other runs, and more points than are right."""
    with pytest.raises(InputError, match="did you mean 'pgd'"):
        gallery(small_run, attacks=["pdg"])
    with pytest.raises(InputError, match="1000 are requested"):
        gallery(small_run, points=1000)


def test_names_of_attacks() -> None:
    """A step size that follows from eps is left out, unless it alone tells two apart."""
    assert short_names([PGD, PGD_SMALL, FGSM]) == ["pgd eps=0.2", "pgd eps=0.1", "fgsm"]
    names = [f"ta:PGD step_size={size}" for size in (1, 2)]
    assert short_names([f"ta:PGD:eps=1,step_size={size}" for size in (1, 2)]) == names


def test_labels_keep_their_distance() -> None:
    """In order, apart, and within the panel; those that have room stay."""
    assert spread_apart([50, 51, 90], 6, 0, 100) == [50, 56, 90]
    assert spread_apart([99, 98], 6, 0, 100) == [100, 94]


def test_plot_writes_what_is_asked_for(small_run: Run, tmp_path: Path, call: Any, monkeypatch: Any) -> None:
    """The default name, both themes, a name of one's own; each path is printed."""
    monkeypatch.chdir(tmp_path)
    run, place = small_run.path.name, small_run.path.parent
    out, _ = call("plot", "heatmap", run, "--runs-dir", place, "--theme", "both")
    names = [f"heatmap-{run}-{theme}.svg" for theme in ("light", "dark")]
    assert out.split() == names
    call("plot", "images", small_run.path, "--out", "x.PNG", "--points", "2", "--dpi", "40")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "x.PNG"}
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_the_same_numbers_in_colour(small_run: Run) -> None:
    """Every number of the plain table on the colour of its share, and bars below."""
    plain = matrix_table(small_run.record)
    table = shaded(plain)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    console.print(table)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    value = 100 * small_run.record.matrix()[-1, 0]
    red, green, blue = (round(255 * part) for part in shade(round(value, 1) / 100))
    assert re.search(rf"48;2;{red};{green};{blue}m +{value:.1f} \x1b", output)
    assert table.row_count == plain.row_count + 1
    assert bars(["0.0", "49.9", "50.0", "100.0", "nan"]) == "▁▄▅█ "


def test_colour_is_for_terminals_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for files, not for a few colours, not against NO_COLOR."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for colours, shades in {"truecolor": True, "256": True, "standard": False}.items():
        assert has_shades(Console(force_terminal=True, color_system=colours)) is shades
    assert not has_shades(Console(file=io.StringIO()))
    assert not has_shades(Console(force_terminal=True, color_system="truecolor", no_color=True))
