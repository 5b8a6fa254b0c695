"""What is found out about a graph takes time in proportion to it, whatever its form.

The limit is generous: with the square of the size it is missed by far.
"""

import time

import large
import pytest

from bnfold.model.edit import edited
from bnfold.model.keras_json import parse_model
from bnfold.model.layers import is_batchnorm
from bnfold.model.program import Program

SIZE = 6000
SECONDS = 30.0


@pytest.mark.parametrize("form", ["norms", "outputs", "same_output", "inputs", "wide_norms"])
def test_thousands_of_layers(form, tmp_path, monkeypatch):
    monkeypatch.setattr(large.Sketch, "write", lambda sketch, _, outputs: sketch.config(outputs))
    graph = parse_model(large.FORMS[form](SIZE, tmp_path))
    start = time.process_time()
    program = Program(graph)
    for call in program.calls:
        value = call.output()
        assert value.is_output or any(value.uses())
        assert call.input_slot is not None or call.reads
        assert not value.may_be_masked
    assert not program.region.modes.exposed
    norms = [(name,) for name, layer in graph.layers.items() if is_batchnorm(layer)]
    assert len(edited(graph, {}, norms).layers) >= len(graph.layers) - len(norms)
    assert time.process_time() - start < SECONDS
