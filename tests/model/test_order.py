"""The order of layers against real Keras, on generated models, before and after layers are removed.

A file whose weights stand in another order than the one in which Keras rebuilds the model loads
without an error and computes garbage. So the claim is tested as it stands (the names in
`model.layers`, at every depth), and as what it is for (what a folded file computes).
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
import pytest
import support
from support import keras

from bnfold.folding.plan import apply, plan
from bnfold.model import edit, keras_json, order
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Graph, Layer, LayerPath
from bnfold.model.layers import is_batchnorm

SWEEP = range(1000, 4000, 250)

ALLOWED = {"float64": 1e-9, "float32": 1e-4}
"""Differences between outputs, as a share of the largest; a swap of two layers makes some 1e-1."""


def seeds(start: int, by_default: int, count: int) -> pytest.MarkDecorator:
    """A test for each of `count` seeds, of which the default run takes the first few."""
    every = range(start, start + count)
    left = [pytest.param(seed, marks=pytest.mark.slow) for seed in every[by_default:]]
    return pytest.mark.parametrize("seed", [*every[:by_default], *left])


def parsed(model: keras.Model) -> Graph:
    """The graph that bnfold reads from a model's config."""
    return keras_json.parse_model(
        json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    )


def rebuilt(graph: Graph) -> keras.Model:
    """The model that Keras makes of a graph's config."""
    return keras.saving.deserialize_keras_object(json.loads(json.dumps(keras_json.to_json(graph))))


def tree_of_names(graph: Graph) -> list:
    """What `graphs.tree_of_names` gives for a live model, as bnfold expects it."""
    return [
        (layer.name, tree_of_names(layer.nested) if layer.nested is not None else [])
        for layer in order.model_layers(graph)
    ]


def is_chosen(path: LayerPath, seed: int) -> bool:
    """A coin for each layer that falls the same way for the file and for the live model."""
    return random.Random(f"{seed} {path}").random() < 0.7


def without_norms(graph: Graph, seed: int, path: LayerPath = ()) -> Graph:
    """The graph without some of its BatchNormalization layers, whether they fold or not."""
    layers = {
        name: _without_norms_inside(layer, seed, (*path, name))
        for name, layer in graph.layers.items()
    }
    graph = replace(graph, layers=layers)
    chosen = {
        name
        for name, layer in layers.items()
        if is_batchnorm(layer) and _is_removable(layer) and is_chosen((*path, name), seed)
    }
    return edit.bypass(graph, chosen)


def _without_norms_inside(layer: Layer, seed: int, path: LayerPath) -> Layer:
    if layer.inner is not None:
        inner = _without_norms_inside(layer.inner, seed, (*path, layer.inner.name))
        return replace(layer, inner=inner)
    if layer.graph is not None:
        return replace(layer, graph=without_norms(layer.graph, seed, path))
    return layer


def _is_removable(layer: Layer) -> bool:
    """A mask would be lost, and the first layer of a Sequential without an input reads nothing."""
    return all(len(call.reads) == 1 for call in layer.calls)


def neutralize(model: keras.Model, seed: int, path: LayerPath = ()) -> None:
    """Make the layers that `without_norms` removes put out what they are given."""
    for layer in model.layers:
        _neutralize_layer(layer, seed, (*path, layer.name))


def _neutralize_layer(layer: keras.layers.Layer, seed: int, path: LayerPath) -> None:
    if isinstance(layer, keras.layers.TimeDistributed):
        _neutralize_layer(layer.layer, seed, (*path, layer.layer.name))
    elif isinstance(layer, keras.Model):
        neutralize(layer, seed, path)
    elif isinstance(layer, keras.layers.BatchNormalization) and is_chosen(path, seed):
        ones = {"gamma": 1.0, "moving_variance": 1.0 - layer.epsilon}
        for variable in layer.weights:
            variable.assign(keras.ops.full_like(variable, ones.get(variable.name, 0.0)))


def check_order(model: keras.Model, seed: int) -> None:
    graph = parsed(model)
    assert tree_of_names(graph) == graphs.tree_of_names(model)
    edited = without_norms(graph, seed)
    assert tree_of_names(edited) == graphs.tree_of_names(rebuilt(edited))


# Each seed is a model that Keras builds, saves and loads again, which takes a quarter of a second.
@seeds(180, by_default=10, count=320)
@pytest.mark.few(5)
def test_layers_stand_in_the_order_in_which_keras_rebuilds_them(seed: int) -> None:
    check_order(graphs.random_model(seed, legacy=seed % 3 == 2), seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", SWEEP)
def test_the_order_on_many_more_graphs(start: int) -> None:
    for seed in range(start, start + SWEEP.step):
        check_order(graphs.random_model(seed), seed)


def two_branches() -> keras.Model:
    """Two branches of equal length whose first layers change places when the norm is removed."""
    entry = keras.Input((3,), name="entry")
    first = keras.layers.Dense(3, name="first")(entry)
    normed = keras.layers.BatchNormalization(name="norm")(first)
    second = keras.layers.Dense(3, name="second")(entry)
    active = keras.layers.LeakyReLU(name="active")(second)
    joined = keras.layers.Subtract(name="joined")([normed, active])
    return support.randomize(keras.Model(entry, joined))


def as_in_the_config(graph: Graph) -> tuple[str, ...]:
    """The order that a file keeps whose paths nobody computed anew."""
    return tuple(graph.layers)


def test_removing_a_norm_makes_other_layers_change_places() -> None:
    graph = parsed(two_branches())
    names = ("entry", "first", "second", "norm", "active", "joined")
    assert order.keras_order(graph) == names
    names = ("entry", "second", "first", "active", "joined")
    assert order.keras_order(edit.bypass(graph, {"norm"})) == names


def test_a_file_with_the_old_paths_loads_and_computes_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_branches()
    inputs = support.samples(model)
    expected = support.outputs(model, inputs)
    model.save(tmp_path / "original.keras")
    with open_model(tmp_path / "original.keras") as file:
        folded = apply(file.graph, plan(file.graph))
        file.write(folded, tmp_path / "right.keras", {})
        unordered = replace(
            folded, layers={n: folded.layers[n] for n in file.graph.layers if n in folded.layers}
        )
        monkeypatch.setattr(order, "keras_order", as_in_the_config)
        file.write(unordered, tmp_path / "wrong.keras", {})
    right, wrong = (
        support.outputs(support.load(tmp_path / name), inputs)
        for name in ("right.keras", "wrong.keras")
    )
    assert support.difference(expected, right) < ALLOWED["float32"]
    assert support.difference(expected, wrong) > 0.1


def groups(graph: Graph) -> dict[LayerPath, str]:
    """Where the weights of a graph's layers would be stored."""
    return order.GroupNames(order.Container.LAYERS).assign(graph)


def test_many_of_the_graphs_need_the_order_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator is worth its time only while wrong rules fail on what it makes."""
    edited = [without_norms(parsed(graphs.random_model(seed)), seed) for seed in range(188, 202)]
    right = [groups(graph) for graph in edited]
    monkeypatch.setattr(order, "keras_order", as_in_the_config)
    wrong = sum(groups(graph) != paths for graph, paths in zip(edited, right, strict=True))
    assert wrong >= 3


def keras2(class_name: str, name: str, *calls: Any, **settings: Any) -> dict[str, Any]:
    """A layer as a config of Keras 2 has it."""
    config = {"name": name, **settings}
    return {"class_name": class_name, "config": config, "name": name, "inbound_nodes": [*calls]}


def test_keras_2_calls_a_nested_model_with_a_dictionary() -> None:
    """Such a call is an object, which is otherwise the mark of Keras 3; its calls count from 1."""
    inside = {
        "layers": [keras2("InputLayer", "port"), keras2("ReLU", "active", [["port", 0, 0, {}]])],
        "input_layers": {"port": ["port", 0, 0]},
        "output_layers": [["active", 0, 0]],
    }
    first, second = {"port": ["entry", 0, 0, {}]}, {"port": ["norm", 0, 0, {}]}
    calls = [["nested", 1, 0, {}]], [["nested", 1, 0, {}], ["nested", 2, 0, {}]]
    layers = [
        keras2("InputLayer", "entry"),
        keras2("Functional", "nested", first, second, **inside),
        keras2("BatchNormalization", "norm", calls[0]),
        keras2("Subtract", "joined", calls[1]),
    ]
    ports = {"input_layers": [["entry", 0, 0]], "output_layers": [["joined", 0, 0]]}
    graph = keras_json.parse_model(keras2("Functional", "whole", layers=layers, **ports))
    assert order.keras_order(graph) == ("entry", "nested", "norm", "joined")
    edited = keras_json.to_json(edit.bypass(graph, {"norm"}))
    nested = edited["config"]["layers"][1]["inbound_nodes"]
    assert nested == [first, {"port": ["nested", 1, 0, {}]}]


def weighted_model(seed: int) -> keras.Model:
    """A random model with telling weights that fits the container of this seed."""
    dtype = "float32" if seed % 4 == 3 else "float64"
    model = graphs.random_model(seed, dtype=dtype, legacy=form_of(seed) == ".h5")
    return support.randomize(model, seed)


def form_of(seed: int) -> str:
    """A suffix for each container in turn; none is a directory."""
    return (".keras", "", ".keras", ".h5")[seed % 4 if seed % 8 < 4 else seed % 3]


def save(model: keras.Model, path: Path) -> None:
    model.save(path, **({} if path.suffix else {"zipped": False}))


def check_edited(model: keras.Model, edited: Graph, file: Path) -> None:
    """Keras rebuilds the file in the order that was foreseen, and it computes what `model` does."""
    loaded = support.load(file)
    assert graphs.tree_of_names(loaded) == tree_of_names(edited)
    inputs = support.samples(model, batch=2)
    expected = support.outputs(model, inputs, training=False)
    found = support.outputs(loaded, inputs, training=False)
    assert support.difference(expected, found) < ALLOWED[model.inputs[0].dtype]
    check_stored(loaded, file)


def check_stored(loaded: keras.Model, file: Path) -> None:
    """Every variable stands where Keras itself would store it."""
    again = file.with_name(f"again{file.suffix}")
    save(loaded, again)
    assert support.datasets(again) == support.datasets(file)


@seeds(0, by_default=6, count=120)
@pytest.mark.few(2)
def test_a_folded_file_computes_the_same(seed: int, tmp_path: Path) -> None:
    model = weighted_model(seed)
    source, target = (tmp_path / f"{name}{form_of(seed)}" for name in ("original", "folded"))
    save(model, source)
    with open_model(source) as file:
        assert tree_of_names(file.graph) == graphs.tree_of_names(model)
        folded = apply(file.graph, plan(file.graph))
        file.write(folded, target, {})
    check_edited(model, folded, target)


@seeds(120, by_default=4, count=60)
@pytest.mark.few(2)
def test_a_file_without_layers_that_do_nothing_computes_the_same(seed: int, tmp_path: Path) -> None:
    model = weighted_model(seed)
    neutralize(model, seed)
    source, target = (tmp_path / f"{name}{form_of(seed)}" for name in ("original", "edited"))
    save(model, source)
    with open_model(source) as file:
        edited = without_norms(file.graph, seed)
        file.write(edited, target, {})
    check_edited(model, edited, target)
