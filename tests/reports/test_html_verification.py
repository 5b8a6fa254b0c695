"""The picture of a verification, read back as text: what is on it, where, and what cannot be."""

import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pages import HOSTILE, Element, check, parsed
from verifications import ALL, RUNTIMES, comparison, fidelity, names_of, near, same, unlike, unsure

from bnfold.model.container.printing import printable
from bnfold.reports import html, terminal
from bnfold.reports.html import strips
from bnfold.reports.html.verification import Page
from bnfold.reports.text import fold
from bnfold.verification.result import Percentiles, Site, SiteStatus, Verification


def page(result: Verification, *, strict: bool = False) -> Element:
    found = parsed(
        html.verification(result, Path("a/one.keras"), Path("b/two.keras"), strict=strict)
    )
    check(found)
    return found


def classes(element: Element) -> list[str]:
    return (element.attributes.get("class") or "").split()


def said(text: str) -> str:
    """A text in the form in which `Element.text` has it."""
    return " ".join(text.split())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_the_page_says_what_the_report_for_people_says(name: str, strict: bool) -> None:
    result = ALL[name]()
    found = page(result, strict=strict).text
    lines = terminal.plain(lambda _: fold.verification(result, strict=strict)).splitlines()
    verdict = fold.statement(result).verdict
    below = lines[next(n for n, line in enumerate(lines) if line.startswith(verdict)) :]
    sentence, *others = (line.strip().removeprefix("warning: ") for line in below)
    compared = sentence.removeprefix(verdict).strip(" ()")
    for line in (verdict, compared, *others):
        if not line.endswith("which --format json has"):
            assert said(line) in found
    for one in result.refused:
        assert f"not accepted: {one}" in found
    assert ("not accepted: --strict" in found) == (
        result.accepted() and not result.accepted(strict=strict)
    )


@pytest.mark.parametrize("name", ALL)
def test_every_number_of_the_tables_stands_on_the_page(name: str) -> None:
    result = ALL[name]()
    found = page(result)
    cells = [cell.text for row in found.tags("tr") for cell in row.tags("td")]
    for one in result.comparisons:
        if one.conclusive and not math.isinf(one.excess):
            assert f"{one.excess:.2g}" in cells
            assert f"{one.error:.2e}" in cells
        assert f"{one.tolerance:.2e}" in cells
    for one in result.fidelity:
        (card,) = (
            element
            for element in found.tags("section")
            if element.attributes.get("aria-label") == f"{one.output} in {one.runtime}"
        )
        assert f"{one.sqnr_db:.1f} dB" in card.text
        for number in vars(one.percentiles).values():
            assert f"{number:.1e}" in card.text
        assert f"{one.decisions.changed} of {one.decisions.counted} changed" in card.text
        margins = one.decisions.margins_of_changed
        assert (
            margins is None or "margins of what changed 0.0004 to 0.03, median 0.004" in card.text
        )


def test_the_culprit_is_marked_wherever_it_stands() -> None:
    found = page(unlike())
    name = names_of(5)[2]
    (cell,) = (one for one in found.tags("a") if "culprit" in classes(one))
    assert "the difference begins here" in str(cell.attributes["aria-label"])
    row = found.find(id=str(cell.attributes["href"])[1:])
    assert "culprit" in classes(row)
    assert name in row.text
    assert "The difference begins here." in row.text
    differs = found.find(id="differences")
    assert {"href": cell.attributes["href"]} in [one.attributes for one in differs.tags("a")]
    assert "layer that is nowhere" in differs.text
    marked = [one for one in found.walk() if "culprit" in classes(one) and one.tag == "li"]
    assert marked == [row]
    assert not [one for one in page(same()).walk() if one.tag == "li" and "culprit" in classes(one)]


def test_each_site_has_a_cell_a_row_and_its_status() -> None:
    found = page(unsure())
    cells = found.find(class_="map").tags("a")
    rows = [found.find(id=str(cell.attributes["href"])[1:]) for cell in cells]
    assert [row.tags("h3")[0].text.split()[1] for row in rows] == ["first", "second", "third"]
    assert [row.tags("p")[0].text.split(";")[0] for row in rows] == [
        "matched",
        "not exercised",
        "unpaired",
    ]
    assert "compared at first, dense · call 2 · 30 of 32 channels exercised" in rows[0].text
    assert [len(row.tags("tr")) for row in rows] == [3, 2, 0]


def test_values_without_a_site_have_places_after_the_sites() -> None:
    result = replace(same(), comparisons=(comparison("dense", "keras", 2.5),), sites=())
    found = page(replace(result, culprits=("dense",)))
    (row,) = (one for one in found.walk() if "place" in classes(one) and "dense" in one.text)
    assert "value differs; 2.5 times its tolerance in keras; 1 of 1 comparison failed" in row.text
    assert "culprit" in classes(row)


def test_channels_are_counted_where_there_are_several() -> None:
    assert "exercised" not in page(near()).find(id="o1").text
    assert "32 of 32 channels exercised" in page(same()).find(id="o1").text
    assert "0 of 0" not in page(unsure()).text


def test_a_layer_that_is_called_twice_shows_the_worse_call() -> None:
    result = replace(
        same(1),
        comparisons=tuple(comparison("norm", "keras", excess) for excess in (0.1, 30.0, 0.2)),
        sites=(Site("norm", 0, SiteStatus.DIFFERENT, ("norm",), 30.0, 4, 4),),
    )
    (place,) = Page(result, None, None, strict=False).inside
    assert [one.excess for one in place.lanes if one] == [30.0]
    assert len(place.comparisons) == 3


def test_bars_stand_in_the_lanes_of_their_runtimes() -> None:
    axis = strips.shares([comparison("a", "keras", 1e-4), comparison("a", "keras", 1e4)])
    assert (axis.low, axis.high) == (-4, 4)
    lanes = [
        comparison("a", "keras", 1.0),
        None,
        comparison("a", "onnxruntime", math.inf),
        comparison("a", "litert", 0.0, exercised=0),
        comparison("a", "tensorflow", math.nan, passed=False),
    ]
    found = strips.bars(lanes, axis)
    assert found.passed == "M0 1H120v6H0z"
    assert found.failed == "M0 17H240v6H0zM0 33H240v6H0z"
    assert found.quiet == "M0 25H6v6H0z"
    assert strips.columns(lanes, axis).passed == "M2 60V30H8V60z"
    assert strips.decades(axis)[2] == (0.5, "1")


@pytest.mark.parametrize("excess", [0.0, 1e-300, 0.5, 1.0, 3.0, 1e300, math.inf])
def test_one_is_always_on_the_axis_and_labelled(excess: float) -> None:
    axis = strips.shares([comparison("a", "keras", excess)])
    place = next(place for place, label in strips.decades(axis) if label == "1")
    assert strips.at(axis, 1.0) == round(strips.WIDTH * place)
    assert 0 <= strips.at(axis, excess) <= strips.WIDTH


def test_percentiles_and_margins_stand_on_one_axis_each() -> None:
    percentiles = Percentiles(1e-4, 1e-3, 1e-2, 1e-1)
    axis = strips.sizes([percentiles])
    assert (axis.low, axis.high) == (-4, -1)
    assert strips.spread(percentiles, axis).startswith("M0 0H80V8H0zM80 2H160V6H80z")
    for strange in ([], [0.0], [math.inf, 0.0]):
        axis = strips.distances(strange)
        assert axis.low < axis.high
    assert [strips.decibels(one) for one in (-5.0, 0.0, 80.0, 1e3)] == [0, 0, 120, 240]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[1:20])
def test_names_are_text_and_nothing_else(name: str) -> None:
    """Whatever a name holds, the page has the elements that it has with an honest one."""

    def of(name: str) -> Verification:
        return replace(
            unlike(1),
            comparisons=(
                comparison(
                    name, name, 2.0, is_output=True, tapped_before=name or None, samples=name
                ),
                comparison(name, "keras", 2.0),
            ),
            sites=(Site(name, 1, SiteStatus.DIFFERENT, (name, "x"), 2.0, 4, 4),),
            culprits=(name, f"{name} "),
            differences=(name,),
            warnings=(name,),
            library=name,
            rule=name,
            reference=name,
            merged_by_exporter=(name,),
            sample_kinds=(name,),
            fidelity=(fidelity(name, name, 0.1, changed=2),),
            format=name,
            precision=name or "none",
            paired=(name,),
            refused=(name,),
        )

    found, honest = page(of(name)), page(of("honest"))
    # An empty name shows less.
    assert not name or [one.tag for one in found.walk() if one.tag != "use"] == [
        one.tag for one in honest.walk() if one.tag != "use"
    ]
    assert printable(name).split() == found.find(id="warnings").tags("li")[0].text.split()
    text = html.verification(of(name), Path(f"a/{name[:80]}.keras"), Path(name[:80]))
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\u2028\ufeff]", text)


def test_numbers_that_are_none_break_nothing() -> None:
    strange = (0.0, math.nan, math.inf, 5e-324, 1.7e308)
    for number in strange:
        near_ = replace(
            fidelity("scores", "keras", 0.1, changed=1),
            scale=number,
            sqnr_db=None,
            percentiles=Percentiles(number, number, number, number),
        )
        rows = tuple(
            comparison("scores", "keras", number, is_output=one, passed=False)
            for one in (True, False)
        )
        text = html.verification(replace(near(), comparisons=rows, fidelity=(near_,)))
        check(parsed(text))
        for path in re.findall(r' d="([^"]*)"', text):
            assert not re.search("nan|inf|e", path)


def test_what_was_not_run_is_not_shown() -> None:
    found = page(ALL["files"]())
    assert not [
        one for one in found.tags("section") if one.attributes.get("aria-labelledby") != "how"
    ]
    assert "both files hold the same model" in found.text


def test_the_samples_of_the_user_are_called_so() -> None:
    assert "420, yours" in page(near()).text
    assert "420, random, seed 0: normal; uniform" in page(same()).text


def test_a_model_without_a_file_is_called_a_model() -> None:
    assert "the other model against the model" in parsed(html.verification(same())).text


def test_two_hundred_sites_take_under_two_seconds_and_a_megabyte() -> None:
    result = unlike(200)
    before = time.process_time()
    text = html.verification(result)
    assert time.process_time() - before < 2
    assert len(text.encode()) < 1 << 20
    found = parsed(text)
    check(found)
    assert len(found.find(class_="map").tags("a")) == 200
    profiles = [one for one in found.tags("figure") if "profile" in classes(one)]
    assert {one.tags("figcaption")[0].text for one in profiles} == {*RUNTIMES}
