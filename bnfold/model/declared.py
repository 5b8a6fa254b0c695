"""The inputs and outputs that a file states, and configs that state them as Keras 3 reads them.

A Sequential model of Keras 2.3 and older has no InputLayer: its first layer says what it reads, as
`batch_input_shape`. Keras 3 takes that for a shape without the batch and adds one axis: a model of
(None, 10) becomes one of (None, None, 10), which a Dense layer takes without a word. With an
InputLayer in front, under the name that Keras 2 itself gave it, Keras 3 reads what is meant.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bnfold.model import keras_json
from bnfold.model.graph import Graph, Json, Layer
from bnfold.model.policy import parse_policy, policy_name
from bnfold.model.shape_rules import Shape, shape_of
from bnfold.model.shapes import Shapes, input_shape

_NUMBERS = ("bool", "float", "int", "uint", "bfloat16", "string")


class Declared(NamedTuple):
    """An input or an output as a file has it; None is what the file leaves open.

    Where `is_exact` is false, a size may be that of the data that the model was built with. `name`
    is that of an input's InputLayer.
    """

    shape: Shape | None
    dtype: str | None = None
    is_exact: bool = True
    name: str | None = None

    def differs(self, shape: Shape, dtype: str) -> bool:
        """Whether a tensor of this shape and dtype is certainly another one."""
        if self.dtype is not None and self.dtype != dtype:
            return True
        if self.shape is None:
            return False
        if len(self.shape) != len(shape):
            return True
        return self.is_exact and self.shape[1:] != shape[1:]


def inputs(graph: Graph) -> tuple[Declared, ...]:
    """What a model takes, in Keras' order; of a subclassed one nothing is known."""
    if graph.kind == "functional":
        return tuple(_of_input(graph.layers[name]) for name in graph.inputs)
    if graph.kind == "sequential":
        return (_of_sequential(graph),)
    return ()


def _of_input(layer: Layer) -> Declared:
    dtype = policy_name(layer) if "dtype" in layer.config else None
    is_plain = dtype is not None and dtype.startswith(_NUMBERS)
    is_input = layer.class_name == "InputLayer" and layer.builtin
    name = layer.name if is_input else None
    return Declared(input_shape(layer), dtype if is_plain else None, name=name)


def _of_sequential(graph: Graph) -> Declared:
    first = next(iter(graph.layers.values()), None)
    if first is None:
        return Declared(None)
    shape = input_shape(first)
    if shape is not None:
        return _of_input(first) if first.class_name == "InputLayer" else Declared(shape)
    listed = shape_of(keras_json.settings(graph.entry).get("build_input_shape"))
    if listed is not None:
        return Declared(listed, is_exact=False)
    if first.graph is None:
        return Declared(None)
    inside = inputs(first.graph)
    return inside[0] if len(inside) == 1 else Declared(None)


def outputs(graph: Graph) -> tuple[Declared, ...]:
    """What a model gives, in Keras' order, as far as that follows from what it takes."""
    if graph.kind == "subclassed":
        return ()
    shapes = Shapes(graph)
    return tuple(_open(shapes.of(ref)) for ref in graph.outputs)


def _open(shape: Shape | None) -> Declared:
    """An output of which the rank is certain."""
    return Declared(shape, is_exact=False)


# --- configs that Keras 3 reads as they are meant ------------------------------------------------


def with_input_layers(entry: Json) -> tuple[Json, tuple[str, ...]]:
    """A model's config with an InputLayer in each Sequential whose first layer stands for one.

    Returns:
        The config, and the names of those first layers; it is `entry` itself where there is none.
    """
    found: list[str] = []
    changed = _with_input_layers(entry, found)
    return (changed, tuple(found)) if found else (entry, ())


def _with_input_layers(value: Any, found: list[str]) -> Any:
    # As deep as the JSON reader lets a file be nested, which Python's stack holds.
    if isinstance(value, list):
        return [_with_input_layers(one, found) for one in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_input_layers(one, found) for key, one in value.items()}
    if value.get("class_name") == "Sequential" and not value.get("module"):
        settings = keras_json.settings(changed)
        listed = settings.get("layers")
        if isinstance(listed, list) and listed:
            name = str(value.get("name", "sequential"))  # which a bare list of layers lacks
            changed["config"] = {"name": name, **settings, "layers": [*_explicit(listed, found)]}
    return changed


def _explicit(layers: list[Any], found: list[str]) -> Iterator[Any]:
    """The layers of a Sequential with an InputLayer before them, if the first one declares it."""
    first = layers[0]
    settings: Json = keras_json.settings(first) if isinstance(first, dict) else {}
    shape = settings.get("batch_input_shape")
    if isinstance(shape, list) and first.get("class_name") != "InputLayer":
        name = str(settings.get("name") or str(first.get("class_name")).lower())
        found.append(name)
        policy = parse_policy(settings.get("dtype"))
        given = settings.get("dtype")
        dtype = policy.variable if policy is not None else given if isinstance(given, str) else None
        yield {
            "class_name": "InputLayer",
            "config": {
                "batch_input_shape": shape,
                "dtype": dtype or "float32",
                "sparse": False,
                "name": f"{name}_input",
            },
        }
        first = {**first, "config": {**settings}}
        del first["config"]["batch_input_shape"]
    yield first
    yield from layers[1:]
