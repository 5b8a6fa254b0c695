"""What is found out about a graph takes time in proportion to it, whatever its form.

The limit is generous: eight times the layers may take 24 times as long, and their square is 64.
"""

import time

import large
import pytest

from bnfold.folding.plan import apply, plan
from bnfold.model import order
from bnfold.model.container import hdf5
from bnfold.model.container.model_file import open_model
from bnfold.model.edit import edited
from bnfold.model.graph import Graph
from bnfold.model.keras_json import parse_model
from bnfold.model.layers import is_batchnorm
from bnfold.model.masks import may_be_masked
from bnfold.model.modes import modes_of
from bnfold.model.program import Program

FEW, MANY = 250, 2000


@pytest.mark.parametrize("form", ["norms", "outputs", "same_output", "inputs", "wide_norms"])
@pytest.mark.few(1)
def test_thousands_of_layers(form, tmp_path, monkeypatch):
    monkeypatch.setattr(large.Sketch, "write", lambda sketch, _, outputs: sketch.config(outputs))
    few, many = (parse_model(large.FORMS[form](size, tmp_path)) for size in (FEW, MANY))
    seconds_to_look_at(few)  # what is imported and remembered at the first time
    assert fastest(many) < 3 * MANY / FEW * fastest(few)


def test_the_order_of_layers_is_found_once_before_a_fold_and_once_after_it(tmp_path, monkeypatch):
    looked_at = []
    by_order = order._inputs
    monkeypatch.setattr(order, "_inputs", lambda *one: looked_at.append(one) or by_order(*one))
    with open_model(large.chain(20, tmp_path / "model.keras")) as model:
        decided = plan(model.graph)
        assert len(decided.folds) == 20
        model.write(apply(model.graph, decided), tmp_path / "folded.keras", {})
    calls = 1 + 3 * 20, 1 + 2 * 20
    assert len(looked_at) == 2 * sum(calls)  # from the outputs, and for the depths


def test_groups_are_looked_for_from_the_one_around_them(tmp_path, monkeypatch):
    """HDF5 walks a longer path for each of thousands of layers."""
    asked = []
    by_path = hdf5.group_for
    monkeypatch.setattr(
        hdf5, "group_for", lambda group, path: asked.append(path) or by_path(group, path)
    )
    with open_model(large.chain(20, tmp_path / "model.keras")) as model:
        model.write(model.graph, tmp_path / "copy.keras", {})
    assert {"layers", "dense", "dense_19", "vars"} <= set(asked)
    assert not any("/" in path for path in asked)


def fastest(graph: Graph) -> float:
    return min(seconds_to_look_at(graph) for _ in range(2))


def seconds_to_look_at(graph: Graph) -> float:
    """CPU time of what each part of bnfold asks of a graph."""
    start = time.process_time()
    program = Program(graph)
    for call in program.calls:
        value = call.output()
        assert value.is_output or any(value.uses())
        assert call.input_slot is not None or call.reads
        assert not may_be_masked(value)
    assert not modes_of(program.region).exposed
    norms = [(name,) for name, layer in graph.layers.items() if is_batchnorm(layer)]
    assert len(edited(graph, {}, norms).layers) >= len(graph.layers) - len(norms)
    return time.process_time() - start
