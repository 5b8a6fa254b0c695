"""The picture of an inspection, read back as text: what is on it, where, and what cannot be."""

import pictures  # isort: skip - it chooses the backend

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from archives import keras_file, model_config
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import HOSTILE, Element, check, parsed
from pictures import keras, page, saved
from places import ROOT

from bnfold.audit import Thresholds
from bnfold.audit.selection import Suppressed
from bnfold.errors import UnreadableModelError
from bnfold.folding.plan import Fold
from bnfold.jobs import gate
from bnfold.jobs.gate import Unreadable
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.jobs.settings import Settings
from bnfold.model.container.printing import printable
from bnfold.model.graph import show
from bnfold.observation.observe import DataRun
from bnfold.reports import html
from bnfold.reports.html.rows import Row, rows
from bnfold.reports.html.wires import MAX_ARROWS, MAX_LANES, NODE, wires

Unpack = Callable[[str], Path]
L = keras.layers


def line_of(found: Element, number: int, model: int = 1) -> Element:
    """The line of a BatchNormalization."""
    return found.find(id=f"m{model}-n{number}")


FILES = [
    "branches_keras315.keras",
    "branches_keras215.h5",
    "branches_keras30.keras",
    "digits_cnn_keras315_dir",
    "textbook_mlp_explicit_keras315.keras",
]


@pytest.fixture(params=FILES)
def inspected(request: pytest.FixtureRequest, fixture_model: Unpack) -> Inspection:
    return inspect_file(fixture_model(request.param))


def test_every_layer_is_on_the_page(inspected: Inspection) -> None:
    found = page(inspected)
    check(found)
    network = found.find(class_="rows").text
    for step in inspected.steps:
        assert show(step.path) in network
    names = [line_of(found, n + 1).text for n in range(len(inspected.plan.decisions))]
    assert len(names) == len(inspected.plan.decisions)
    paths = {show(decision.batchnorm.path) for decision in inspected.plan.decisions}
    headings = {
        found.find(id=f"m1-n{n + 1}").tags("h3")[0].text.split()[1] for n in range(len(names))
    }
    assert headings == paths


def test_each_fold_leads_to_what_takes_it_in_and_back(inspected: Inspection) -> None:
    found = page(inspected)
    lines = {line_of(found, n).tags("h3")[0].text.split()[1]: n for n in _numbers(inspected)}
    for decision in inspected.plan.decisions:
        number = lines[show(decision.batchnorm.path)]
        (fate,) = (e for e in line_of(found, number).tags("p") if "fate" in _classes(e))
        if not isinstance(decision, Fold):
            assert f"stays: {decision.reason}" in fate.text
            continue
        assert f"folds {decision.direction} into" in fate.text
        for absorber in decision.absorbers:
            (link,) = (a for a in fate.tags("a") if a.text == show(absorber.layer))
            taker = found.find(id=str(link.attributes["href"])[1:])
            assert absorber.layer[0] in taker.text
            assert f"#m1-n{number}" in {a.attributes.get("href") for a in taker.tags("a")}


def _numbers(model: Inspection) -> range:
    return range(1, len(model.plan.decisions) + 1)


def _classes(element: Element) -> list[str]:
    return (element.attributes.get("class") or "").split()


def test_findings_stand_beside_their_layer(tmp_path: Path) -> None:
    model = saved(pictures.spoiled(pictures.residual(8)), tmp_path / "spoiled.keras")
    found = page(model)
    check(found)
    expected = {"norm_0": "BN104", "norm_1": "BN105", "norm_2": "BN101"}
    for number in _numbers(model):
        line = line_of(found, number)
        name = line.tags("h3")[0].text.split()[1]
        said = {code.text for code in line.tags("code")}
        assert said == {one.code for one in model.findings if show(one.layer) == name}
        assert expected.get(name, "BN") in " ".join(said)
        for one in model.findings:
            if show(one.layer) == name:
                assert one.message in line.text
    for one in model.findings:
        assert one.remedy in found.find(id="m1-findings").text or one.remedy in found.text
    cells = found.find(class_="map").tags("a")
    assert [cell.text for cell in cells] == [str(n) for n in _numbers(model)]
    assert "error" in _classes(cells[0])
    assert "error BN104" in str(cells[0].attributes["title"])


def test_layers_are_counted_by_the_severity_of_what_they_have(tmp_path: Path) -> None:
    """A layer with an error and an info counts for both, one with two infos once."""
    model = saved(pictures.spoiled(pictures.residual(8)), tmp_path / "spoiled.keras")
    layers = {
        severity: {one.layer for one in model.findings if one.severity == severity}
        for severity in ("error", "warning", "info")
    }
    assert len({*layers["error"]} & {*layers["info"]}) > 0
    tiles = [tile.text for tile in page(model).tags("li") if "tile" in _classes(tile)]
    for severity, concerned in layers.items():
        assert any(tile.strip() == f"{len(concerned)} with {severity}" for tile in tiles), tiles
    row = page(model, model).find(class_="contents").tags("tr")[1]
    counts = [cell.text.strip() for cell in row.tags("td")[3:6]]
    assert counts == [str(len(concerned)) for concerned in layers.values()]


def test_dead_far_and_broken_channels_are_marked_by_name(tmp_path: Path) -> None:
    model = saved(pictures.spoiled(pictures.residual(8)), tmp_path / "spoiled.keras")
    found = page(model)
    for number, kind, said in [
        (2, "t-broken", "channel 3: -0.5, 7: -1e-05"),
        (4, "t-dead", "channel 2: 1e-30, 4: 0"),
        (5, "t-dead", "channel 0: 0, 1: 1e-07"),
        (6, "t-far", "channel 9: 1e+06"),
    ]:
        marks = [
            e for e in line_of(found, number).tags("use") if e.attributes["href"] == f"#{kind}"
        ]
        assert said in {"".join(map(str, e.tags("title")[0].inside)) for e in marks}
    listed = line_of(found, 2).tags("table")[0].tags("tr")[1:]
    assert {("3", "broken"), ("7", "broken")} <= {
        (row.tags("th")[0].text, row.tags("td")[0].text) for row in listed
    }


def test_channels_are_marked_by_the_thresholds_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    model = keras.Sequential([keras.Input((4,)), L.BatchNormalization(epsilon=1e-3)])
    model.layers[0].moving_variance.assign([1.0, 1.0, 1.0, 4e-4])
    model.save(path)

    def marked(share: float) -> bool:
        thresholds = Thresholds(vanishing_variance=share)
        return "#t-dead" in html.inspections([inspect_file(path, thresholds=thresholds)])

    assert marked(0.5)
    assert not marked(0.3)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[1:20])
def test_names_are_text_and_nothing_else(name: str, tmp_path: Path) -> None:
    """A page on a hostile model has the elements and attributes of one on a harmless model."""

    def shape(found: Element) -> list[Any]:
        free = ("title", "aria-label")
        return [
            (e.tag, [(k, v) for k, v in e.attributes.items() if k not in free])
            for e in found.walk()
        ]

    plain = page(inspect_file(keras_file(tmp_path / "plain.keras", config=model_config("d", "n"))))
    path = keras_file(tmp_path / "hostile.keras", config=model_config(f"dense {name}", name or " "))
    text = html.inspections([inspect_file(path)])
    found = parsed(text)
    check(found)
    assert shape(found) == shape(plain)
    shown = " ".join(printable(name).split())
    assert shown in found.find(class_="rows").text
    assert shown in str(found.find(class_="map").tags("a")[0].attributes["title"])
    text.encode("utf-8")
    assert text.replace("\n", "").isprintable()


def test_the_name_of_a_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "<script>alert(1)<\x1b[31m'\"&.keras"
    keras_file(path)
    found = page(inspect_file(path), inspect_file(path))
    check(found)
    assert "<script>alert(1)<\\x1b[31m'\"&.keras" in found.text


def test_several_models_have_a_table_of_contents(fixture_model: Unpack) -> None:
    models = [inspect_file(fixture_model(name)) for name in FILES]
    found = page(*models)
    check(found)
    contents = found.find(class_="contents")
    assert [a.attributes["href"] for a in contents.tags("a")] == [
        f"#m{n}" for n in range(1, len(FILES) + 1)
    ]
    for model, row in zip(models, contents.tags("tr")[1:], strict=True):
        layers, folds, stays = (int(cell.text) for cell in row.tags("td")[:3])
        assert (layers, folds) == (len(model.plan.decisions), len(model.plan.folds))
        assert folds + stays == layers
    assert [len(found.tags(f"h{level}")) for level in (1, 2)] == [1, len(FILES)]


def test_what_could_not_be_read_is_on_the_page(fixture_model: Unpack) -> None:
    models = [inspect_file(fixture_model(FILES[0]))]
    error = UnreadableModelError("no <b>such</b> file\x1b")
    for readable in (models, []):
        found = parsed(html.inspections(readable, [Unreadable(Path("gone.keras"), error)]))
        check(found)
        assert "Not read no <b>such</b> file\\x1b" in found.tags("header")[0].text


def test_the_page_says_whether_a_model_was_run(tmp_path: Path) -> None:
    built = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    model = saved(built, tmp_path / "model.keras")
    run = DataRun(np.random.default_rng(0).normal(size=(20, 2)))
    observed = inspect_file(model.path, run=run)
    error = UnreadableModelError("the data do not fit")
    failed = Unreadable(model.path, error, may_have_run=True)
    nothing = "nothing in a model was run"

    def footer(*arguments: Any) -> str:
        return str(parsed(html.inspections(*arguments)).tags("footer")[0].text)

    assert footer([model]).endswith(f"from the file alone; {nothing}.")
    assert footer([observed]).endswith("from the file, and from running the model over data.")
    assert "running the models over data" in footer([model, observed])
    assert nothing not in footer([], [failed])
    assert nothing in footer([], [replace(failed, may_have_run=False)])
    damaged = np.ones((3, 2))
    outcome = gate.check([model.path], Settings(run=DataRun(damaged[:, :1])))
    assert outcome.unreadable[0].may_have_run
    assert not gate.check([tmp_path / "none.keras"], Settings()).unreadable[0].may_have_run


def test_a_finding_that_does_not_count_is_told_apart(tmp_path: Path) -> None:
    model = saved(pictures.spoiled(pictures.residual(8)), tmp_path / "spoiled.keras")
    aside = next(finding for finding in model.findings if finding.code == "BN104")
    suppressed = (Suppressed(aside, "suppression", "known & <accepted>"),)
    kept = tuple(finding for finding in model.findings if finding is not aside)
    found = page(replace(model, findings=kept, suppressed=suppressed))
    check(found)
    line = line_of(found, 1)
    assert "BN104 non-finite ignored (suppression): known & <accepted>" in line.text
    assert "error" not in _classes(line)
    assert "Ignored findings: 1 suppressed." in found.tags("header")[0].text


@pytest.mark.slow
def test_two_hundred_layers_are_a_small_page_soon(tmp_path: Path) -> None:
    model = inspect_file(pictures.residual_file(tmp_path / "deep.keras", 200))
    html.inspections([])
    start = time.process_time()
    text = html.inspections([model])
    assert time.process_time() - start < 5
    assert len(text.encode()) < 2e6
    assert line_of(parsed(text), 200)


def test_layers_outside_of_the_graph_are_on_the_page(tmp_path: Path) -> None:
    class Own(keras.layers.Layer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.hidden = L.BatchNormalization(name="hidden")

        def call(self, inputs: Any) -> Any:
            return self.hidden(inputs)

    first = keras.Input((4,))
    tensor = L.BatchNormalization(name="open")(L.Dense(4)(first))
    model = saved(keras.Model(first, Own(name="own")(tensor)), tmp_path / "own.keras")
    found = page(model)
    check(found)
    lines = [line_of(found, n) for n in _numbers(model)]
    assert len(lines) == 2
    assert "folds backward" in lines[0].text
    assert "own/hidden" in lines[1].text
    assert "is inside, a custom layer or wrapper" in lines[1].text


def test_a_subclassed_model_is_a_list_of_its_statistics(tmp_path: Path) -> None:
    class Whole(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = L.BatchNormalization()

        def call(self, inputs: Any) -> Any:
            return self.norm(inputs)

    model = Whole()
    model(np.zeros((1, 4)))
    inspected = saved(model, tmp_path / "whole.keras")
    found = page(inspected)
    check(found)
    assert inspected.steps == ()
    assert "the model is subclassed" in found.find(class_="note").text
    assert line_of(found, 1)


def test_a_model_without_batchnorm_says_so(tmp_path: Path) -> None:
    model = saved(keras.Sequential([keras.Input((2,)), L.Dense(2)]), tmp_path / "none.keras")
    found = page(model)
    check(found)
    assert "There is no BatchNormalization in this model." in found.text


def test_statistics_of_every_size_can_be_drawn(tmp_path: Path) -> None:
    """Numbers at the ends of float32, one channel, no channels apart, nothing finite."""
    path = keras_file(tmp_path / "m.keras")
    for values in ([3e38, 1e-45, 0, -3e38], [np.nan] * 4, [np.inf, -np.inf, 0, 1], [1] * 4):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            for number, size in enumerate(((4, 4), (4,))):
                file.create_dataset(f"layers/dense/vars/{number}", data=np.ones(size, "f4"))
            for number in range(4):
                group = f"layers/batch_normalization/vars/{number}"
                file.create_dataset(group, data=np.array(values, "f4"))
        keras_file(path, h5=(tmp_path / "w.h5").read_bytes())
        found = page(inspect_file(path))
        check(found)
        paths = [e.attributes["d"] or "" for e in found.tags("path")]
        assert not [d for d in paths if re.search(r"nan|inf", d)]


def test_a_long_run_without_batchnorm_is_one_line(tmp_path: Path) -> None:
    first = tensor = keras.Input((4,))
    for _ in range(12):
        tensor = L.Add()([tensor, L.Dense(4)(tensor)])
    tensor = L.BatchNormalization()(L.Dense(4)(tensor))
    for _ in range(12):
        tensor = L.Add()([tensor, L.Dense(4)(tensor)])
    model = saved(keras.Model(first, tensor), tmp_path / "long.keras")
    kinds = [(row.is_run, row.number) for row in rows(model)]
    assert kinds == [(True, None), (False, None), (False, 1), (True, None)]
    network = page(model).find(class_="rows").text
    assert all(show(step.path) in network for step in model.steps)


def test_inspect_draws_nothing_unless_asked() -> None:
    assert "steps" not in vars(inspect_file(ROOT / "fixtures" / "digits_cnn_keras315.keras"))


# --- the lines between layers --------------------------------------------------------------------


@st.composite
def graphs(draw: Callable[[Any], Any]) -> list[Row]:
    """Lines that read lines above, some of which fold into others."""
    found: list[Row] = []
    count = draw(st.integers(1, 30))
    for number in range(count):
        above = st.integers(max(0, number - 20), number - 1)
        reads = tuple(draw(st.sets(above, max_size=4))) if number else ()
        into = draw(st.sets(st.integers(0, count - 1).filter(number.__ne__), max_size=2))
        targets = tuple((("layer",), place) for place in into) if draw(st.booleans()) else ()
        found.append(Row((), reads, into=targets if count > 1 else ()))
    return found


@settings(deadline=None)
@given(graphs())
def test_every_tensor_has_a_line_from_its_maker_to_its_readers(found: list[Row]) -> None:
    _, drawn = wires(found)
    last = {place: number for number, row in enumerate(found) for place in row.reads}
    for number, row in enumerate(found):
        for place in row.reads:
            lane = drawn[place].node
            assert f"M{lane} {NODE}V" in drawn[place].tensors
            for between in drawn[place + 1 : number]:
                assert f"M{lane} 0V9999" in between.tensors
            straight, curve = f"M{lane} 0V{NODE}", f"M{lane} 0C"
            end = straight if lane == drawn[number].node else curve
            assert end in drawn[number].tensors
    alive = [[p for p, end in last.items() if p < number < end] for number in range(len(found))]
    if max(map(len, alive)) < MAX_LANES:  # else some share the last lane
        for wire, others in zip(drawn, alive, strict=True):
            nodes = {drawn[place].node for place in others} | {wire.node}
            assert len(nodes) == len(others) + 1


@settings(deadline=None)
@given(graphs())
def test_every_fold_has_an_arrow_to_what_takes_it_in(found: list[Row]) -> None:
    _, drawn = wires(found)
    spans = [
        (min(number, *places), max(number, *places))
        for number, row in enumerate(found)
        if (places := [place for _, place in row.into])
    ]
    targets = {place for row in found for _, place in row.into}
    for number, wire in enumerate(drawn):
        assert bool(wire.heads) == (number in targets)
        over = sum(start <= number <= end for start, end in spans)
        passing = {part for part in wire.arrows.split("M") if part.endswith("0V15")}
        begins = sum(start < number <= end for start, end in spans)
        if max(sum(a <= n <= b for a, b in spans) for n in range(len(drawn))) <= MAX_ARROWS:
            assert len(passing) == begins
            assert bool(wire.arrows) == bool(over)


def test_a_branch_leaves_its_trunk_and_comes_back() -> None:
    """input -> a -> b -> add(input, b): the trunk stays where it is."""
    drawn = wires([Row(()), Row((), (0,)), Row((), (1,)), Row((), (0, 2))])[1]
    trunk, branch = drawn[0].node, drawn[1].node
    assert branch > trunk
    assert [wire.node for wire in drawn] == [trunk, branch, branch, trunk]
    assert drawn[3].tensors == f"M{trunk} 0V15M{branch} 0C{branch} 10 {trunk} 3 {trunk} 15"
