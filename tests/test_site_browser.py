"""The static site in a browser: sorting, filters, addresses, copying, keyboard, phone, accessibility.

Chromium opens the files from the disk; nothing else may be asked for, and nothing may complain.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboards import Record, rows
from leaderboards.site import write_site

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it is in advbench[dev]")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
Open = Callable[..., Any]
DEFENSE = 'tbody th[scope="row"] a'


@pytest.fixture(scope="module")
def site(make_record: Callable[..., Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; suspect, invalid and target-aware rows; one with a text that would be a script."""
    evil = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    records = [make_record("at", seed=seed, robust=60 + seed) for seed in range(2)]
    for sigma in (1, 2):
        records += [make_record("air", robust=70, clean=90, params={"sigma": sigma}, name=f"air-{sigma}")]
    records += [make_record("trades", robust=50, regime="joint")]
    records += [make_record("fake", robust=89, verdict="suspect", flags=("zero-gradient", evil))]
    records += [make_record("broken", robust=80, verdict="invalid", flags=("nan-logits",))]
    records += [make_record("mola-grad", robust=85, target_aware=True)]
    for name in ("at", "free"):
        records += [make_record(name, dataset="mnist", fingerprint="ff", name=f"{name}-m")]
    out = tmp_path_factory.mktemp("browser") / "site"
    write_site(out, rows(records), records)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests; each opens a profile of its own."""
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Open]:
    """Opens a page of the site; at the end nothing was said on a console or asked of a network."""
    contexts, complaints, asked = [], [], []

    def open_page(path: str = "index.html", *, width: int = 1280, init: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        if init:
            context.add_init_script(init)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{site.as_uri()}/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked
    assert all(url.startswith(site.as_uri()) for url in asked), asked


def defenses(page: Any, group: int = 0) -> list[str]:
    """The names in the first column of a table, from the top."""
    return list(page.locator(f"#group-{group} {DEFENSE}").all_inner_texts())


def count(page: Any) -> str:
    """The result count, which screen readers are told."""
    assert page.locator("#count").get_attribute("aria-live") == "polite"
    return str(page.locator("#count").inner_text())


def test_what_the_script_draws_is_what_the_page_had(visit: Open) -> None:
    """Cell for cell; without a script there are the same rows and no dead controls."""
    read = """() => [...document.querySelectorAll("table.board")].map((table) =>
        [...table.tBodies].map((body) => body.outerHTML.replace(/>\\s+/g, ">").replace(/\\s+</g, "<")))"""
    drawn, plain = visit("index.html#?defense=at"), visit(java_script_enabled=False)
    assert drawn.evaluate(read) != plain.evaluate(read)
    drawn.get_by_role("button", name="Clear").click()
    assert drawn.evaluate(read) == plain.evaluate(read)
    assert not plain.locator("#filters").is_visible()
    assert plain.locator("noscript").count() == 1
    assert plain.locator("thead button").count() == 0
    assert drawn.title() == "Robustness leaderboard"


def test_a_long_caption_wraps(visit: Open) -> None:
    """A table may be wider than the window; its caption is read without scrolling."""
    for width in (390, 1400, 1800):
        page = visit(width=width)
        ends = page.evaluate("""() => {
            const table = document.querySelector("table.board"), text = table.querySelector("caption span");
            table.style.minWidth = "2500px";
            text.textContent = "Worst case on 100 points. ".repeat(30);
            return [text, table.parentElement].map((one) => one.getBoundingClientRect().right);
        }""")
        assert 0 < ends[0] <= ends[1]


def test_sorting(visit: Open) -> None:
    """By any column, both ways; said in aria-sort; suspect and target-aware rows stay where they belong."""
    page = visit()
    assert defenses(page) == ["air", "air", "at", "trades", "fake", "broken", "mola-grad"]
    page.locator("#group-0").get_by_role("button", name="robust").click()
    assert defenses(page) == ["air", "air", "at", "trades", "fake", "broken", "mola-grad"]
    heading = page.locator("#group-0").get_by_role("columnheader", name="robust")
    assert heading.get_attribute("aria-sort") == "descending"
    page.locator("#group-0").get_by_role("button", name="robust").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert defenses(page) == ["trades", "at", "air", "air", "broken", "fake", "mola-grad"]
    page.locator("#group-0").get_by_role("button", name="clean").click()
    assert defenses(page)[:4] == ["at", "trades", "air", "air"]
    assert heading.get_attribute("aria-sort") is None
    for name in page.locator("#group-0 thead button").all_inner_texts():
        page.locator("#group-0").get_by_role("button", name=name, exact=True).click()
        assert sorted(defenses(page)) == sorted(["air", "air", "at", "trades", "fake", "broken", "mola-grad"])
        assert page.locator("#group-0 th[aria-sort]").inner_text() == name


@pytest.mark.slow
def test_search_and_filters_and_the_way_back(visit: Open) -> None:
    """Each narrows the rows, stands in the address, and is undone by the back button."""
    page = visit()
    assert count(page) == "9 of 9 rows in 2 tables"
    page.get_by_label("Data set").select_option("digits")
    assert count(page) == "7 of 9 rows in 1 table"
    assert not page.locator("#group-1").is_visible()
    page.get_by_label("Audit").select_option("ok")
    assert defenses(page) == ["air", "air", "at", "trades", "mola-grad"]
    page.get_by_label("Search").press_sequentially("SIGMA air")
    page.locator("#count", has_text="2 of ").wait_for()
    assert page.url.endswith("#?q=SIGMA+air&dataset=digits&verdict=ok")
    assert page.locator("#group-0 .mark:not(.off)").count() == 2
    page.go_back()
    assert defenses(page) == ["air", "air", "at", "trades", "mola-grad"]
    assert page.get_by_label("Search").input_value() == ""
    page.go_back()
    page.go_back()
    assert count(page) == "9 of 9 rows in 2 tables"
    assert page.get_by_label("Data set").input_value() == ""
    page.go_forward()
    assert count(page) == "7 of 9 rows in 1 table"
    page.get_by_label("Search").fill("nothing like it")
    page.get_by_text("No row fits").wait_for()
    assert count(page) == "0 of 9 rows in 0 tables"
    page.get_by_role("button", name="Clear search and filters").click()
    assert count(page) == "9 of 9 rows in 2 tables"


@pytest.mark.slow
def test_a_deep_link_restores_everything(visit: Open) -> None:
    """Filters, search, column and direction; what it names that is not there is passed over."""
    page = visit("index.html#?q=digits&regime=continual&sort=defense&dir=down")
    assert defenses(page) == ["at", "air", "air", "fake", "broken", "mola-grad"]
    assert page.get_by_label("Search").input_value() == "digits"
    assert page.get_by_label("Regime").input_value() == "continual"
    assert page.locator("#group-0 th[aria-sort=descending]").inner_text() == "defense"
    assert page.locator('#group-0 a[aria-label="run of seed 0"]').first.is_visible()
    page.reload()
    assert defenses(page) == ["at", "air", "air", "fake", "broken", "mola-grad"]
    odd = visit("index.html#?trust=nobody&sort=no-such-column&dir=%00&evil=%3Cscript%3E")
    assert count(odd) == "9 of 9 rows in 2 tables"


def test_a_run_s_page_and_back(visit: Open) -> None:
    """From a row to its run, to another seed of it, and back to the rows as they were."""
    page = visit("index.html#?defense=at&dataset=digits")
    page.get_by_role("link", name="at", exact=True).click()
    page.get_by_role("heading", name="Stage × attack").wait_for()
    assert "at · continual · digits" in page.get_by_role("heading", level=1).inner_text()
    page.get_by_role("link", name="run of seed 1").click()
    page.get_by_text("at-continual-s1").first.wait_for()
    page.go_back()
    page.go_back()
    assert defenses(page) == ["at"]
    run = visit("runs/fake-continual-s0/index.html")
    assert run.get_by_text("what zero-gradient means").is_visible()
    assert run.title().endswith("run fake-continual-s0")
    cell = run.locator("table.heat").first.get_by_role("cell", name="44.0")
    assert cell.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"


def test_copying_the_command(visit: Open) -> None:
    """What is pasted is the command, to the letter."""
    page = visit("runs/at-continual-s0/index.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    spelled = page.locator("pre").nth(1).text_content()
    assert spelled.startswith("advbench run \\\n  --defense at --regime continual ")
    page.locator("button.copy").nth(1).click()
    page.get_by_text("Copied to the clipboard.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == spelled
    page.locator("button.copy").first.click()
    page.locator("button.copy", has_text="Copied").first.wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "advbench run --config record.json"


@pytest.mark.slow
@pytest.mark.parametrize("old_way", [True, False])
def test_copying_without_a_clipboard(visit: Open, old_way: bool) -> None:
    """The old command copies; where it does not, the text is selected, and the page says what to press."""
    hidden = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
    stub = f"document.execCommand = (name) => name === 'copy' && {str(old_way).lower()};"
    page = visit("runs/at-continual-s0/index.html", init=hidden + stub)
    page.locator("button.copy").nth(1).click()
    said = "Copied to the clipboard." if old_way else "press Ctrl+C"
    page.get_by_text(said).wait_for()
    selected = page.evaluate("getSelection().toString()")
    assert selected.split() == page.locator("pre").nth(1).text_content().split()


@pytest.mark.slow
def test_by_keyboard(visit: Open) -> None:
    """The skip link comes first, every stop can be seen, sorting and filtering need no mouse."""
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "q"
    assert count(page) == "9 of 9 rows in 2 tables"
    page.keyboard.type("trades")
    page.locator("#count", has_text="1 of ").wait_for()
    assert page.evaluate("document.activeElement.id") == "q"
    for _ in range(60):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("document.activeElement.textContent") == "clean":
            break
    page.keyboard.press("Enter")
    assert page.url.endswith("#?q=trades&sort=clean_accuracy&dir=down")
    assert page.evaluate("document.activeElement.textContent") == "clean"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["index.html", "runs/fake-continual-s0/index.html"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_no_serious_fault(visit: Open, path: str, scheme: str, width: int) -> None:
    """Nor a critical one, contrast included, with everything unfolded."""
    page = visit(path, width=width, color_scheme=scheme)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    # Without preload it asks for no style sheet a second time.
    found = axe.Axe().run(page, options={"preload": False}).response
    assert {"color-contrast", "link-name"} <= {rule["id"] for rule in found["passes"]}
    grave = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
    assert not grave, [(fault["id"], [node["html"] for node in fault["nodes"]][:3]) for fault in grave]


@pytest.mark.parametrize("path", ["index.html", "runs/fake-continual-s0/index.html"])
def test_on_a_phone(visit: Open, path: str) -> None:
    """360 pixels wide the page never scrolls sideways; tables do, in boxes of their own."""
    page = visit(path, width=360)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
    assert page.evaluate(wide)
    for box in page.locator(".scroll").all():
        assert box.get_attribute("tabindex") == "0"
        assert box.bounding_box()["width"] <= 360


def test_dark_and_light(visit: Open) -> None:
    """As the reader's system asks."""
    read = "getComputedStyle(document.body).backgroundColor"
    grounds = [visit(color_scheme=scheme).evaluate(read) for scheme in ("light", "dark")]
    light, dark = (sum(map(int, re.findall(r"\d+", ground))) for ground in grounds)
    assert light > 600
    assert dark < 150


def test_the_policy_stops_what_is_not_ours(browser: Any, site: Path) -> None:
    """A script or a handler that got into a page all the same would not run."""
    page = browser.new_page()
    stopped: list[str] = []
    page.on("console", lambda message: stopped.append(message.text))
    page.goto(f"{site.as_uri()}/index.html")
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.owned = 1";
            document.body.append(script);
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.owned = 1");
            image.src = "https://example.org/x.png";
            document.body.append(image);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    assert len(stopped) >= 2
    assert all("Content Security Policy" in line for line in stopped)
    page.close()


@pytest.mark.slow
def test_many_rows(make_record: Callable[..., Record], tmp_path: Path, browser: Any) -> None:
    """A long table shows its start and more when asked; search and sorting see all of it."""
    records = [make_record("at", robust=45 + k % 45, params={"k": k}, name=f"run-{k}") for k in range(250)]
    write_site(tmp_path / "site", rows(records), records)
    page = browser.new_page()
    page.goto(f"{(tmp_path / 'site').as_uri()}/index.html")
    names = page.locator(f"#group-0 {DEFENSE}")
    assert names.count() == 100
    page.get_by_role("button", name="Show 100 more of 150").press("Enter")
    assert names.count() == 200
    assert page.evaluate("document.activeElement.textContent") == "Show 50 more of 50"
    page.keyboard.press("Enter")
    assert names.count() == 250
    assert page.evaluate("document.activeElement.className") == "scroll"
    page.get_by_label("Search").fill("k=249")
    page.locator("#count", has_text="1 of ").wait_for()
    page.close()
