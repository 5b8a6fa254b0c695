"""The flattened program: what makes a tensor and where it goes, through nested models."""

from support import keras  # isort: skip - it chooses the backend

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import large
import numpy as np
import pytest

from bnfold.jobs.inspect import inspect_file
from bnfold.model import program as program_
from bnfold.model.graph import Graph, show
from bnfold.model.keras_json import parse_model
from bnfold.model.masks import may_be_masked
from bnfold.model.program import Call, Program, Value

L = keras.layers


@pytest.fixture
def program(tmp_path: Path) -> Any:
    def of(model: Any) -> Program:
        model.save(tmp_path / "m.keras")
        found = inspect_file(tmp_path / "m.keras").plan.program
        assert found is not None
        return found

    return of


def call(program: Program, path: str, number: int = 0) -> Call:
    (found,) = (
        one
        for region in program.regions
        for one in region.all_calls
        if (show(one.path), one.number) == (path, number)
    )
    return found


def names(calls: Iterable[Call | None]) -> list[str]:
    return ["output" if one is None else show(one.path) for one in calls]


def block(name: str = "block", **kwargs: Any) -> Any:
    inside = keras.Input((4,), name="entry")
    return keras.Model(inside, L.Dense(4, name="d")(L.ReLU(name="r")(inside)), name=name, **kwargs)


def test_values_pass_the_walls_of_nested_models(program: Any) -> None:
    first = keras.Input((4,), name="in")
    found = program(keras.Model(first, L.ReLU(name="after")(block()(first))))
    assert names(call(found, "block/r").producers()) == ["in"]
    assert names(call(found, "after").producers()) == ["block/d"]
    assert names(call(found, "in").uses()) == ["block/r"]
    assert names(call(found, "block/d").uses()) == ["after"]
    assert names(call(found, "after").uses()) == ["output"]
    assert names(found.calls) == ["in", "block", "block/entry", "block/r", "block/d", "after"]


def test_a_model_that_is_called_twice_stands_there_once(program: Any) -> None:
    first, other = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = block()
    total = L.Add(name="sum")([shared(first), shared(other)])
    found = program(keras.Model([first, other], total))
    assert names(found.calls).count("block/d") == 1
    assert sorted(names(call(found, "block/r").producers())) == ["a", "b"]
    assert names(call(found, "sum").producers()) == ["block/d", "block/d"]
    assert names(call(found, "block/d").uses()) == ["sum", "sum"]  # once for each caller
    region = found.regions[1]
    assert [one.number for one in region.callers] == [0, 1]
    assert region.closed.reason == "is a nested model that is called 2 times"


def test_a_model_that_is_called_on_what_it_makes_ends(program: Any) -> None:
    first = keras.Input((4,), name="in")
    shared = block()
    found = program(keras.Model(first, shared(shared(first))))
    assert sorted(names(call(found, "block/r").producers())) == ["block/d", "in"]
    assert sorted(names(call(found, "block/d").uses())) == ["block/r", "output"]


def test_a_model_that_hands_on_its_input(program: Any) -> None:
    inside = keras.Input((4,), name="entry")
    both = keras.Model(inside, [inside, L.ReLU(name="r")(inside)], name="both")
    first = keras.Input((4,), name="in")
    as_it_is, made = both(first)
    found = program(keras.Model(first, [L.Dense(2, name="x")(as_it_is), made]))
    assert names(call(found, "x").producers()) == ["in"]
    assert sorted(names(call(found, "in").uses())) == ["both/r", "x"]
    assert names(call(found, "both/r").uses()) == ["output"]


def test_several_outputs_are_told_apart(program: Any) -> None:
    first = keras.Input((5, 3), name="in")
    whole, state, _ = L.LSTM(4, return_sequences=True, return_state=True, name="lstm")(first)
    model = keras.Model(first, [L.ReLU(name="r")(whole), L.Dense(2, name="d")(state)])
    found = program(model)
    lstm = call(found, "lstm")
    assert [names(lstm.output(n).uses()) for n in range(3)] == [["r"], ["d"], []]
    assert (lstm.output(0).shape, lstm.output(1).shape) == ((None, 5, 4), (None, 4))


def test_wrappers_are_peeled(program: Any) -> None:
    first = keras.Input((5, 4), name="in")
    made = L.TimeDistributed(L.TimeDistributed(L.Dense(2, name="d"), name="w2"), name="w1")(
        L.Reshape((5, 4, 1), name="shape")(first)
    )
    dense = call(program(keras.Model(first, made)), "w1")
    assert (dense.layer.class_name, dense.wrappers) == ("Dense", 2)
    assert (show(dense.path), show(dense.core_path)) == ("w1", "w1/w2/d")
    assert dense.title == "Dense 'w1'"


def test_a_model_in_a_wrapper_is_entered(program: Any) -> None:
    first = keras.Input((5, 4), name="in")
    found = program(keras.Model(first, L.TimeDistributed(block(), name="w")(first)))
    region = found.regions[1]
    assert (show(region.path), region.wrappers, region.closed) == ("w/block", 1, None)
    assert names(call(found, "w/block/r").producers()) == ["in"]
    assert call(found, "w/block/d").output().shape == (None, 4)


def test_a_mask_that_is_given_is_none_of_the_inputs(program: Any) -> None:
    first, mask = keras.Input((5, 4), name="in"), keras.Input((5,), dtype="bool", name="mask")
    found = program(keras.Model([first, mask], L.LSTM(3, name="lstm")(first, mask=mask)))
    lstm = call(found, "lstm")
    assert names(value.call for value in lstm.inputs) == ["in"]
    assert names(value.call for value in lstm.others) == ["mask"]
    assert lstm.reads == (*lstm.inputs, *lstm.others)
    assert lstm.written.mask is not None


@pytest.mark.parametrize("nested", [False, True])
def test_masks_are_followed_as_keras_has_them(program: Any, nested: bool) -> None:
    words = keras.Input((5,), dtype="int32", name="words")
    x = L.Embedding(9, 4, mask_zero=True, name="made")(words)
    inside = keras.Input((5, 4), name="entry")
    y = L.Dropout(0.5, name="kept")(inside)
    dropped = L.Conv1D(2, 1, name="dropped")(y)
    body = keras.Model(inside, [y, dropped], name="body")
    outputs = body(x) if nested else [L.Dropout(0.5, name="kept")(x)]
    if not nested:
        outputs.append(L.Conv1D(2, 1, name="dropped")(outputs[0]))
    found = program(keras.Model(words, outputs))
    prefix = "body/" if nested else ""
    masked = {name: may_be_masked(call(found, name).output()) for name in ("words", "made")}
    for name in ("kept", "dropped"):
        masked[name] = may_be_masked(call(found, prefix + name).output())
    assert masked == {"words": False, "made": True, "kept": True, "dropped": False}


def test_a_mask_that_is_made_in_a_nested_model_leaves_it(program: Any) -> None:
    inside = keras.Input((5, 4), name="entry")
    body = keras.Model(inside, L.Masking(name="masking")(inside), name="body")
    first = keras.Input((5, 4), name="in")
    before = L.ReLU(name="before")(first)
    found = program(keras.Model(first, L.ReLU(name="after")(body(before))))
    assert may_be_masked(call(found, "after").output())
    assert not may_be_masked(call(found, "before").output())


def test_operations_read_all_their_tensors(program: Any) -> None:
    first, other = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([first, other], keras.ops.maximum(first, other) * 2.0)
    found = program(model)
    (maximum,) = (one for one in found.calls if one.layer.class_name == "Maximum")
    assert names(value.call for value in maximum.inputs) == ["a", "b"]
    assert maximum.others == ()
    assert [one is None or one.layer.class_name for one in maximum.uses()] == ["Multiply"]


def without_input_layer(graph: Graph, name: str) -> Graph:
    """The graph with a nested Sequential as Keras 2.2 writes it."""
    stem = graph.layers[name]
    assert stem.graph is not None
    entry, first, *rest = stem.graph.layers.values()
    assert entry.class_name == "InputLayer"
    first = replace(first, calls=(first.calls[0]._replace(reads=()),))
    layers = {one.name: one for one in (first, *rest)}
    return graph.with_layer(replace(stem, graph=replace(stem.graph, layers=layers, inputs=())))


def test_a_sequential_without_an_input_layer_reads_what_it_is_given(program: Any) -> None:
    stem = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, name="d"), L.ReLU(name="r")], name="stem"
    )
    first = keras.Input((4,), name="in")
    found = Program(without_input_layer(program(keras.Model(first, stem(first))).graph, "stem"))
    assert names(call(found, "stem/d").producers()) == ["in"]
    assert names(call(found, "in").uses()) == ["stem/d"]
    assert names(call(found, "stem/r").uses()) == ["output"]


def test_a_mask_reaches_a_model_that_begins_such_a_sequential(program: Any) -> None:
    inside = keras.Input((5, 4), name="entry")
    merged = L.Maximum(name="max")([inside, L.ReLU(name="r")(inside)])
    stem = keras.Sequential(
        [keras.Input((5, 4)), keras.Model(inside, merged, name="body")], name="stem"
    )
    first = keras.Input((5, 4), name="in")
    graph = program(keras.Model(first, stem(L.Masking(name="masking")(first)))).graph
    for found in (Program(graph), Program(without_input_layer(graph, "stem"))):
        assert may_be_masked(call(found, "stem/body/r").output())
        assert not may_be_masked(call(found, "in").output())


def test_calls_are_as_many_as_keras_makes(program: Any) -> None:
    """One call each of what is in a body; every call has all that it reads before it."""
    first = keras.Input((4,), name="in")
    inner = block("inner")
    inside = keras.Input((4,), name="entry")
    middle = keras.Model(inside, inner(inner(inside)), name="middle")
    model = keras.Model(first, middle(L.Dense(4, name="start")(middle(first))))
    found = program(model)
    places = {one: place for place, one in enumerate(found.calls)}
    assert all(places[v.call] < places[one] for one in found.calls for v in one.reads)
    layers = [one.name for one in model._flatten_layers() if one is not model]
    assert set(layers) == {one.name for one in found.calls}
    assert len(places) == sum(len(r.all_calls) for r in found.regions)


def test_shapes_are_those_of_keras(program: Any) -> None:
    first = keras.Input((8, 8, 3), name="in")
    x = L.Conv2D(5, 3, name="c")(first)
    x = L.BatchNormalization(name="n")(x)
    model = keras.Model(first, L.GlobalMaxPooling2D(name="g")(x))
    found = program(model)
    probe = keras.Model(first, [model.get_layer(name).output for name in "cng"])
    made = probe(np.zeros((2, 8, 8, 3), "float32"))
    for name, array in zip("cng", made, strict=True):
        value = call(found, name).output()
        assert (value.shape or ())[1:] == tuple(array.shape)[1:]
        assert value.dtype == "float32"


def test_a_value_is_the_same_however_it_is_reached(program: Any) -> None:
    first = keras.Input((4,), name="in")
    found = program(keras.Model(first, L.ReLU(name="r")(first)))
    assert call(found, "r").reads == (Value(call(found, "in")),)
    assert found.region.outputs == (call(found, "r").output(),)


def test_a_model_of_layers_without_numbers_is_not_searched_for_repeated_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of its config would be gone through, which takes as long as planning some layers."""
    sketch = large.Sketch()
    graph = parse_model(sketch.config([sketch.norm(sketch.dense(sketch.input()))]))
    monkeypatch.setattr(program_, "_repeated_objects", lambda _: pytest.fail("searched"))
    region = Program(graph).region
    assert not any(region.repeats(layer) for layer in graph.layers.values())
