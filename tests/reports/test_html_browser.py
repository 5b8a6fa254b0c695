"""The pictures in a real browser: nothing wide, hidden, pale, loaded or broken.

Needs a Chromium of the system, as `apt-get install chromium` gives, and Playwright to drive it.
"""

import pictures  # isort: skip - it chooses the backend

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from archives import keras_file, model_config
from pictures import saved
from places import FIXTURES
from tiers import some
from verifications import near, same, unlike, unsure

from bnfold.fleet.row import Row
from bnfold.jobs.inspect import inspect_file
from bnfold.reports import html
from bnfold.verification.result import Verification

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="no Chromium is installed (apt-get install chromium)"
)

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESK = (360, 740), (1400, 1000)
PAGES = ("five", "deep", "branches", "spoiled", "hostile", "several")
VERIFIED = {
    "same-200": lambda: same(200),
    "unlike": unlike,
    "unlike-200": lambda: unlike(200),
    "unsure": unsure,
    "near": near,
    "wide": lambda: renamed(unlike(), "wide" * 100, "\U0001f600 <script>alert(1)</script>"),
}
"""Pages on verifications."""


CHECKS = (Path(__file__).parent / "page_checks.js").read_text("utf-8")


INDEXED = (
    Row("models/cut.keras", 2, error=f"models/cut.keras: {'damaged ' * 40}", bytes=4),
    *(
        Row(f"models/{'long ' * number}{number}.keras", code, report=report, bytes=12_000)
        for code, report in (
            (1, {"batchnorms": [], "note": None, "findings": [{"severity": "error"}]}),
            (0, {"batchnorms": [], "note": None, "findings": [{"severity": "info"}]}),
            (0, {"batchnorms": [], "note": "not looked at " * 20, "findings": []}),
        )
        for number in range(20)
    ),
)


def checked(tab: Any, call: str) -> Any:
    """What one of the functions of `page_checks.js` finds; the driver may call it, the page not."""
    return tab.evaluate(f"(() => {{ {CHECKS}\nreturn {call} }})()")


def renamed(result: Verification, name: str, runtime: str) -> Verification:
    """The same with another name for the layers and the runtimes."""
    comparisons = [replace(one, name=name, runtime=runtime) for one in result.comparisons]
    sites = [replace(one, name=name, compared_at=(name, name)) for one in result.sites]
    return replace(result, comparisons=tuple(comparisons), sites=tuple(sites), culprits=(name,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=EXECUTABLE, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages to look at, by name."""
    folder = tmp_path_factory.mktemp("pages")
    names = "\U0001f600 <b>", "wide" * 100
    models = {
        "five": saved(pictures.five(), folder / "five.keras"),
        "deep": inspect_file(pictures.residual_file(folder / "deep.keras", 200)),
        "branches": inspect_file(FIXTURES / "digits_cnn_keras315.keras"),
        "spoiled": saved(pictures.spoiled(pictures.residual(8)), folder / "spoiled.keras"),
        "hostile": inspect_file(keras_file(folder / "h.keras", config=model_config(*names))),
    }
    texts = {name: html.inspections([model]) for name, model in models.items()}
    texts["index"] = html.index([*INDEXED], "some of all", "index_pages")
    texts["several"] = html.inspections([models["five"], models["spoiled"], models["hostile"]])
    for name, make in VERIFIED.items():
        texts[name] = html.verification(make(), Path(f"{'long' * 30}.keras"), Path("other.tflite"))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture
def show(browser: Any, files: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """A function that opens a page, as a browser without JavaScript shows it."""
    contexts = []

    def opened(name: str, size: tuple[int, int] = DESK, scheme: str = "light", **how: Any) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            **{"java_script_enabled": False, **how},
        )
        contexts.append(context)
        tab = context.new_page()
        tab.goto(files[name].as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()


# By default a small page, and the one whose names would run something.
@pytest.mark.parametrize("name", [*some(PAGES[:4], 4), *some(PAGES[4:]), "wide"])
@pytest.mark.few(1)
def test_nothing_is_loaded_and_nothing_is_complained_about(
    name: str, browser: Any, files: dict[str, Path]
) -> None:
    tab = browser.new_page()
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.goto(files[name].as_uri())
    tab.wait_for_load_state("networkidle")
    assert (asked, said) == ([files[name].as_uri()], [])
    tab.close()


def test_no_script_could_run_on_the_page(browser: Any, files: dict[str, Path]) -> None:
    """The page's own policy stands behind the escaping."""
    tab = browser.new_page()
    refused = []
    tab.on("console", lambda message: refused.append(message.text))
    text = files["five"].read_text("utf-8")
    bad = "<script>document.title = 'run'</script><img src='x' onerror='document.title = 2'>"
    other = files["five"].with_name("injected.html")
    other.write_text(text.replace("<body>", f"<body>{bad}"), encoding="utf-8")
    tab.goto(other.as_uri())
    assert tab.title().startswith("five.keras")
    assert any("Content Security Policy" in message for message in refused)
    tab.close()


def test_the_index_is_narrowed_without_script(show: Callable[..., Any]) -> None:
    tab = show("index")
    assert_nothing_sticks_out(tab, DESK[0])
    table = tab.locator("table").bounding_box()
    for kind in tab.locator("label").all():
        kind.click()
        name, _, count = kind.inner_text().rpartition(" ")
        rows = tab.locator("tbody tr:visible:has(th)")
        assert rows.count() == int(count.strip("()")), name
        shown = tab.locator("table").bounding_box()
        assert (shown["x"], shown["width"]) == (table["x"], table["width"])
    assert tab.locator("tbody tr.clean:visible:has(th)").count() == 20  # the last kind
    assert tab.locator("tbody tr.clean:visible:has(.said)").count() == 20  # their notes
    tab.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    tab.get_by_label("failed").check()
    assert_nothing_sticks_out(tab, PHONE[0])
    shown = tab.locator("tbody tr:visible").first.locator("td:visible")
    assert shown.count() == 2  # the verdict and the size: it has no counts


def assert_nothing_sticks_out(tab: Any, width: int) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert checked(tab, f"stickingOut({width})") == []


# The narrowest and the widest by default.
@pytest.mark.parametrize("width", some([390, 600, 1000, 1400], 3))
def test_no_diagram_stands_alone_below_three(width: int, show: Callable[..., Any]) -> None:
    tops = "figures => figures.map(figure => Math.round(figure.getBoundingClientRect().top))"
    for name in ("five", "branches", "spoiled"):
        rows = Counter(show(name, (width, 900)).eval_on_selector_all(".profile", tops))
        assert len(set(rows.values())) == 1, (name, rows)


# By default every page on one screen or two; what sticks out does so on a phone first.
@pytest.mark.parametrize(
    ("size", "name"),
    [
        *(pytest.param(PHONE, name, id=f"phone-{name}") for name in (*PAGES, *VERIFIED)),
        *(
            pytest.param(size, name, id=f"{device}-{name}", marks=pytest.mark.slow)
            for device, size in (("tablet", (800, 900)), ("desk", DESK), ("wide", (390, 844)))
            for name in VERIFIED
        ),
        pytest.param((800, 900), "spoiled", id="tablet-spoiled"),
        pytest.param(DESK, "several", id="desk-several"),
        *(
            pytest.param(size, name, id=f"{device}-{name}", marks=pytest.mark.slow)
            for device, size, by_default in (
                ("tablet", (800, 900), "spoiled"),
                ("desk", DESK, "several"),
            )
            for name in PAGES
            if name != by_default
        ),
    ],
)
@pytest.mark.few(3)
def test_nothing_sticks_out_lies_on_other_text_or_is_cut(
    name: str, size: tuple[int, int], show: Callable[..., Any]
) -> None:
    tab = show(name, size)
    assert_nothing_sticks_out(tab, size[0])
    checked(tab, "open()")
    assert_nothing_sticks_out(tab, size[0])
    assert checked(tab, "overlapping()") == []
    assert checked(tab, "cut()") == []


# The pages share one style sheet: by default the page with all kinds of marks, in both schemes.
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        pytest.param(name, scheme, marks=[pytest.mark.slow] * (name not in {"several", "unlike"}))
        for name in (*PAGES, *VERIFIED)
        for scheme in ("light", "dark")
    ],
)
def test_every_text_and_mark_has_contrast(name: str, scheme: str, show: Callable[..., Any]) -> None:
    tab = show(name, DESK, scheme)
    checked(tab, "open()")
    assert checked(tab, "paleTexts()") == []
    assert checked(tab, "paleMarks()") == []


def test_the_dark_scheme_is_dark_and_print_is_light(show: Callable[..., Any]) -> None:
    colours = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
    light, dark = (show("five", scheme=scheme) for scheme in ("light", "dark"))

    def brightness(colour: str) -> float:
        return sum(map(float, colour.strip("rgb()").split(",")[:3])) / 765

    back, text = map(brightness, dark.evaluate(colours))
    assert back < 0.15
    assert text > 0.8
    dark.emulate_media(media="print", color_scheme="dark")
    assert dark.evaluate(colours) == light.evaluate(colours)
    assert brightness(light.evaluate(colours)[0]) > 0.95


def test_colour_is_never_the_only_sign(show: Callable[..., Any]) -> None:
    """Cells of different severity and fate show different shapes."""
    tab = show("spoiled")
    for severity in ("error", "warning", "info"):
        shapes = tab.locator(f".cell.{severity} use").evaluate_all(
            "all => all.map(one => one.getAttribute('href'))"
        )
        assert f"#i-{severity}" in shapes
    assert tab.locator(".cell.fine use[href='#i-error']").count() == 0


def test_a_cell_leads_to_its_layer_by_keyboard(show: Callable[..., Any]) -> None:
    tab = show("spoiled", (800, 600))
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('href')") == "#m1-n3":
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    tab.keyboard.press("Enter")
    tab.wait_for_function("location.hash === '#m1-n3'")
    top, bar = tab.evaluate(
        "[document.querySelector('#m1-n3').getBoundingClientRect().top,"
        " document.querySelector('.bar').getBoundingClientRect().bottom]"
    )
    assert bar <= top + 1 < 600
    tab.keyboard.press("Tab")
    tab.locator("#m1-n3 summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#m1-n3 .full").is_visible()


def test_every_link_has_room_for_a_finger(show: Callable[..., Any]) -> None:
    tab = show("deep", PHONE)
    small = "all => all.filter(one => { const b = one.getBoundingClientRect();"
    small += " return b.width < 24 || b.height < 24 }).length"
    assert tab.locator(".cell").evaluate_all(small) == 0


def test_the_lines_reach_from_row_to_row(show: Callable[..., Any]) -> None:
    tab = show("five")
    rows = tab.locator(".row").evaluate_all(
        "all => all.map(one => [one, one.querySelector('.wires')]"
        ".map(e => (b => [b.top, b.bottom])(e.getBoundingClientRect())))"
    )
    for (top, bottom), (start, end) in rows:
        assert start <= top + 1.5
        assert end >= bottom - 1.5
    for (_, end), (start, _) in pairwise(edges for edges, _ in rows):
        assert abs(start - end) <= 1.5


def test_two_hundred_layers_are_shown_soon(browser: Any, files: dict[str, Path]) -> None:
    tab = browser.new_page()
    tab.goto(files["deep"].as_uri())
    took = tab.evaluate(
        "(() => { const t = performance.getEntriesByType('navigation')[0];"
        " return t.domContentLoadedEventEnd - t.responseEnd })()"
    )
    assert tab.locator(".row.norm").count() == 200
    assert took < 5000
    tab.close()


def test_the_culprit_of_a_verification_is_a_link_away(show: Callable[..., Any]) -> None:
    tab = show("unlike-200", (390, 844))
    tab.locator("#differences a").click()
    tab.wait_for_function("location.hash === '#p101'")
    row = tab.locator("#p101")
    assert "The difference begins here." in row.inner_text()
    assert row.evaluate("one => one.getBoundingClientRect().top") < 844
    shapes = "all => all.map(one => one.getAttribute('href'))"
    assert tab.locator(".cell.culprit use").evaluate_all(shapes) == ["#i-culprit", "#i-error"]


def test_the_bars_of_a_verification_end_at_or_beyond_the_tolerance(
    show: Callable[..., Any],
) -> None:
    """The line stands where the axis has 1, and only bars that failed reach beyond it."""
    tab = show("unlike")
    for strip in tab.locator(".strip svg").all():
        limit = strip.locator("use").bounding_box()["x"]
        for kind, beyond in (("passed", False), ("failed", True)):
            for path in strip.locator(f".{kind}").all():
                box = path.bounding_box()
                assert (box["x"] + box["width"] > limit + 1) is beyond
