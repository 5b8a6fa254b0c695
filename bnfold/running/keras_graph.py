"""What the graph of a loaded Keras model says about its inputs and outputs.

Everything here reads attributes of Keras objects and imports nothing of Keras, so that it serves
Keras 3 and tf_keras alike. Keras 3 calls the owner of a node `operation`, tf_keras calls it
`layer`.

Outputs are compared before a final softmax or sigmoid: p = softmax(z) has entries near 1/n and
derivatives near p, so on a network with a thousand classes an error in z all but vanishes in p. The
activation is taken out of both loaded models in the same way; what stays hidden is only that
activation itself, which a fold never touches and whose name must agree.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnfold.model.order import snake_case

BATCHNORMS = {"BatchNormalization", "SyncBatchNormalization"}
_HIDING = {"softmax", "sigmoid"}
_FUSED = {
    *("Activation", "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose"),
    *("Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("SeparableConv1D", "SeparableConv2D"),
}
_OWN_LAYER = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_REARRANGING = {"Reshape", "Flatten", "Permute"}
PASSED_OVER = {"Identity", "Dropout", "Activation"} | _REARRANGING


@dataclass(frozen=True)
class Tap:
    """Where to read an output instead: `layer` without its activation, or `tensor`.

    `over` says of a softmax what it runs along: its axis, and the shapes from there to the output.
    """

    activation: str
    layer: Any = None
    tensor: Any = None
    over: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Port:
    """An input or an output as the model's user sees it.

    `is_automatic` says that Keras made the name up: by counting, so that the same code run again
    gives another one, on which nobody can rely. `is_normalized` says that it is the name of a
    BatchNormalization, which may be gone.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    is_automatic: bool = False
    is_normalized: bool = False

    def excuse(self, new: Port) -> str | None:
        """Why it may be called what `new` is called; None if nothing but its own name will do."""
        if self.is_automatic:
            return "a name that Keras made up"
        if self.is_normalized and not new.is_normalized:
            return "the name of a BatchNormalization that is gone"
        return None


@dataclass(frozen=True)
class Interface:
    """What a model promises to those who call it; `structure` is like "{'a': 0, 'b': [1, 2]}"."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_structure: str
    output_structure: str


def interface(model: Any) -> Interface:
    """Return the interface of a model that has symbolic inputs and outputs."""
    return Interface(
        tuple(port(tensor) for tensor in model.inputs),
        tuple(port(tensor) for tensor in model.outputs),
        _structure(_nesting(model, "inputs"), model.inputs),
        _structure(_nesting(model, "outputs"), model.outputs),
    )


def _nesting(model: Any, side: str) -> Any:
    """Return the inputs or outputs in the structure they were defined in; Keras 3 and 2 differ."""
    graph = graph_of(model) or model
    return getattr(
        graph, f"_{side}_struct", getattr(graph, f"_nested_{side}", getattr(graph, side))
    )


def port(tensor: Any) -> Port:
    """What a user sees of an input or an output."""
    owner = _origin(tensor)[0]
    return Port(
        owner.name,
        tuple(tensor.shape),
        dtype_name(tensor),
        is_automatic=_is_automatic(owner),
        is_normalized=type(owner).__name__ in BATCHNORMS,
    )


def _is_automatic(owner: Any) -> bool:
    """Whether a layer is called what Keras 2 or 3 calls a layer that nobody names."""
    own = snake_case(type(owner).__name__)
    counted = "|".join((own, "input", "model", "keras_tensor"))
    return re.fullmatch(rf"(?:{counted})(?:_\d+)?(?:CLONE)*", owner.name) is not None


def dtype_name(tensor: Any) -> str:
    """Return the dtype as plain text, whether it is a string or a TensorFlow DType."""
    return str(getattr(tensor.dtype, "name", tensor.dtype))


def _structure(value: Any, flat: Sequence[Any]) -> str:
    """Return the nesting of lists and dictionaries, each tensor replaced by its position."""
    if isinstance(value, dict):
        inner = [f"{key!r}: {_structure(item, flat)}" for key, item in sorted(value.items())]
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_structure(item, flat) for item in value) + "]"
    found = (str(index) for index, tensor in enumerate(flat) if tensor is value)
    return next(found, "?")


def differences(original: Interface, folded: Interface) -> list[str]:
    """Sentences on every way in which the folded model breaks the original's interface."""
    found = []
    for kind, before, after in (
        ("input", original.inputs, folded.inputs),
        ("output", original.outputs, folded.outputs),
    ):
        if len(before) != len(after):
            found.append(f"{kind}s: {len(before)} in the original, {len(after)} in the other model")
            continue
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            found.extend(_port_differences(f"{kind} {index}", old, new))
    if not found and original.input_structure != folded.input_structure:
        found.append("the inputs are structured differently")
    if not found and original.output_structure != folded.output_structure:
        found.append("the outputs are structured differently")
    return found


def renamed(original: Interface, folded: Interface) -> list[str]:
    """Sentences on the ports that are called otherwise, where that breaks no promise."""
    return [
        f"{kind} {index} is called {new.name!r} instead of {old.name!r}, {old.excuse(new)}"
        for kind, before, after in (
            ("input", original.inputs, folded.inputs),
            ("output", original.outputs, folded.outputs),
        )
        for index, (old, new) in enumerate(zip(before, after, strict=True))
        if old.name != new.name
    ]


def _port_differences(label: str, old: Port, new: Port) -> Iterator[str]:
    for field in ("name", "shape", "dtype"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after and not (field == "name" and old.excuse(new)):
            yield f"{label} ({old.name!r}): the {field} changed from {before!r} to {after!r}"


# --- the graph -----------------------------------------------------------------------------------


def _origin(tensor: Any) -> tuple[Any, int]:
    """Return the layer that made a tensor, and at which of its calls."""
    history = tensor._keras_history
    return history[0], int(history[1])


def owner_of(node: Any) -> Any:
    """The layer or operation that a node is a call of."""
    return node.operation if hasattr(node, "operation") else node.layer


def inputs_of(node: Any) -> list[Any]:
    """The tensors that a call reads."""
    if hasattr(node, "operation"):
        return list(node.input_tensors)
    return list(node.keras_inputs)


def outputs_of(node: Any) -> list[Any]:
    """The tensors that a call makes."""
    outputs = node.outputs
    return list(outputs) if isinstance(outputs, (list, tuple)) else leaves(outputs)


def leaves(value: Any) -> list[Any]:
    """The tensors in a structure of lists and dictionaries, in the order in which Keras counts."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def graph_of(model: Any) -> Any:
    """Return the functional graph of a model, which Keras 3 keeps beside a Sequential, or None."""
    inner = getattr(model, "_functional", None)
    graph = model if inner is None else inner
    return graph if hasattr(graph, "_nodes_by_depth") else None


def nodes_of(graph: Any) -> list[Any]:
    """All calls of a graph."""
    return [node for level in graph._nodes_by_depth.values() for node in level]


def in_order(graph: Any) -> Iterator[Any]:
    """The calls of a graph, each behind those that make its inputs; not those of input layers."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def bytes_per_sample(model: Any, free_size: int) -> int:
    """About what all values of a model take for one sample, each free size being `free_size`."""
    graph = graph_of(model)
    total = 0
    for node in nodes_of(graph) if graph is not None else ():
        shapes = (tensor.shape[1:] for tensor in outputs_of(node))
        total += sum(4 * math.prod(n or free_size for n in shape) for shape in shapes)
        total += bytes_per_sample(owner_of(node), free_size)
    return total


def sets_training(model: Any) -> bool:
    """Whether a call in the model, nested ones included, may put it into training mode.

    A call says so itself, or its layer takes training=True by default, or is one of the user's.
    """
    graph = graph_of(model)
    if graph is None:
        return True
    return any(_sets_training(node) for node in nodes_of(graph))


def _sets_training(node: Any) -> bool:
    owner = owner_of(node)
    said = getattr(getattr(node, "arguments", None), "kwargs", {"training": True})
    if said.get("training"):
        return True
    if graph_of(owner) is not None:
        return sets_training(owner)
    own = not type(owner).__module__.startswith(("keras.", "tf_keras."))
    parameters = inspect.signature(owner.call).parameters
    default = parameters["training"].default if "training" in parameters else None
    inner = getattr(owner, "layer", None)
    return own or default is True or (inner is not None and graph_of(inner) is not None)


def batch_normalizations_in_training(model: Any) -> list[str]:
    """The nested names of those that are called with training=True, once for each call.

    They use the statistics of the batch instead of their own, unless they are frozen.
    """
    graph = graph_of(model)
    return [] if graph is None else list(_in_training(graph, "", inherited=False))


def _in_training(graph: Any, around: str, *, inherited: bool) -> Iterator[str]:
    for node in nodes_of(graph):
        owner = owner_of(node)
        arguments = getattr(node, "arguments", None)
        said = getattr(node, "call_kwargs", {}) if arguments is None else arguments.kwargs
        mode = inherited if said.get("training") is None else bool(said["training"])
        inner = graph_of(owner)
        if inner is not None:
            yield from _in_training(inner, f"{around}{owner.name}/", inherited=mode)
        elif mode and type(owner).__name__ in BATCHNORMS and owner.trainable:
            yield f"{around}{owner.name}"


# --- taps ----------------------------------------------------------------------------------------


def find_taps(model: Any) -> list[Tap | None]:
    """For every output, the final softmax or sigmoid that can be left out."""
    graph = graph_of(model)
    if graph is None:
        return [None for _ in model.outputs]
    return [_find_tap(graph, tensor, 0) for tensor in graph.outputs]


def _find_tap(graph: Any, tensor: Any, depth: int) -> Tap | None:
    """Walk back from an output over layers that leave values as they are."""
    passed: tuple[Any, ...] = ()
    while _is_private(graph, tensor):
        layer, index = _origin(tensor)
        if graph_of(layer) is not None:
            return _behind(_nested_tap(layer, tensor, depth), passed)
        activation = _fused_activation(layer)
        if activation in _HIDING:
            return _behind(Tap(activation, layer, over=_along(layer, tensor)), passed)
        sources = inputs_of(layer._inbound_nodes[index])
        if type(layer).__name__ in _OWN_LAYER:
            return _own_layer_tap(graph, layer, tensor, sources, depth)
        if not _is_passed_over(layer) or len(sources) != 1:
            return None
        passed = (*_rearranged(layer, tensor), *passed)
        tensor = sources[0]
    return None


def _along(layer: Any, tensor: Any) -> tuple[Any, ...]:
    """The axes that a softmax runs along, and the shape that it has there."""
    axes = getattr(layer, "axis", -1)
    every = axes if isinstance(axes, (list, tuple)) else [axes]
    return tuple(int(axis) % len(tensor.shape) for axis in every), tuple(tensor.shape)


def _rearranged(layer: Any, tensor: Any) -> tuple[Any, ...]:
    """What a layer does to the order of the numbers: nothing, for most that are passed over."""
    if type(layer).__name__ not in _REARRANGING:
        return ()
    return ((getattr(layer, "dims", None), tuple(tensor.shape)),)


def _behind(tap: Tap | None, passed: tuple[Any, ...]) -> Tap | None:
    return None if tap is None else replace(tap, over=(*tap.over, *passed))


def _is_private(graph: Any, tensor: Any) -> bool:
    """Tell whether only the outputs see this tensor and its layer is called once."""
    layer, _ = _origin(tensor)
    nodes = nodes_of(graph)
    calls = sum(owner_of(node) is layer for node in nodes)
    readers = sum(tensor is source for node in nodes for source in inputs_of(node))
    is_output = any(tensor is output for output in graph.outputs)
    return calls == 1 and readers + int(is_output) == 1 and bool(_inputs_of(layer, tensor))


def _inputs_of(layer: Any, tensor: Any) -> list[Any]:
    return inputs_of(layer._inbound_nodes[_origin(tensor)[1]])


def _nested_tap(layer: Any, tensor: Any, depth: int) -> Tap | None:
    """Return the tap inside a nested model called once, if changing a layer makes it."""
    graph = graph_of(layer)
    index = int(tensor._keras_history[2])
    if index >= len(graph.outputs):
        return None
    tap = _find_tap(graph, graph.outputs[index], depth + 1)
    return tap if tap is not None and tap.layer is not None else None


def _own_layer_tap(
    graph: Any, layer: Any, tensor: Any, sources: Sequence[Any], depth: int
) -> Tap | None:
    """Read the tensor before a Softmax layer or operation, which cannot be switched off."""
    is_output = any(tensor is output for output in graph.outputs)
    if depth > 0 or not is_output or not sources or not _inputs_of_tensor(sources[0]):
        return None
    return Tap(_OWN_LAYER[type(layer).__name__], tensor=sources[0], over=_along(layer, tensor))


def _inputs_of_tensor(tensor: Any) -> list[Any]:
    return _inputs_of(_origin(tensor)[0], tensor)


def _fused_activation(layer: Any) -> str | None:
    if type(layer).__name__ not in _FUSED:
        return None
    return getattr(getattr(layer, "activation", None), "__name__", None)


def _is_passed_over(layer: Any) -> bool:
    name = type(layer).__name__
    return name in PASSED_OVER and (name != "Activation" or _fused_activation(layer) == "linear")


def switch_off(taps: Sequence[Tap | None], linear: Any) -> None:
    """Take the activations out of the loaded layers; `linear` is Keras' own identity function."""
    for tap in taps:
        if tap is not None and tap.layer is not None:
            tap.layer.activation = linear


def agreed(one: Sequence[Tap | None], other: Sequence[Tap | None]) -> list[bool]:
    """Tell at which outputs both models end in the same activation, over the same axis."""
    return [
        first is not None
        and second is not None
        and first.activation == second.activation
        and (first.activation != "softmax" or first.over == second.over)
        for first, second in zip(one, other, strict=True)
    ]
