"""Reading outputs before a final softmax or sigmoid.

p = softmax(z) has entries near 1/n and derivatives near p, so on a network with a thousand classes
an error in z all but vanishes in p. The activation is taken out of both loaded models alike;
what stays hidden is only that activation itself, which a fold never touches and whose name
must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnfold.model.layers import LINEAR_CLASSES
from bnfold.running import keras_graph
from bnfold.running.keras_graph import PASSED_OVER, REARRANGING, origin_of

_HIDING = {"softmax", "sigmoid"}
_FUSED = LINEAR_CLASSES | {"Activation"}
_OWN_LAYER = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Tap:
    """Where to read an output instead: `layer` without its activation, or `tensor`.

    `over` says of a softmax what it runs along: its axis, and the shapes from there to the output.
    """

    activation: str
    layer: Any = None
    tensor: Any = None
    over: tuple[Any, ...] = ()


def find(model: Any) -> list[Tap | None]:
    """For every output, the final softmax or sigmoid that can be left out."""
    graph = keras_graph.graph_of(model)
    if graph is None:
        return [None for _ in model.outputs]
    return [_find_tap(graph, tensor, 0) for tensor in graph.outputs]


def _find_tap(graph: Any, tensor: Any, depth: int) -> Tap | None:
    """Walk back from an output over layers that leave values as they are."""
    passed: tuple[Any, ...] = ()
    while _is_private(graph, tensor):
        layer = origin_of(tensor).layer
        if keras_graph.graph_of(layer) is not None:
            return _after(_nested_tap(layer, tensor, depth), passed)
        activation = _fused_activation(layer)
        if activation in _HIDING:
            return _after(Tap(activation, layer, over=_along(layer, tensor)), passed)
        sources = _read_by_maker(tensor)
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
    if type(layer).__name__ not in REARRANGING:
        return ()
    return ((getattr(layer, "dims", None), tuple(tensor.shape)),)


def _after(tap: Tap | None, passed: tuple[Any, ...]) -> Tap | None:
    return None if tap is None else replace(tap, over=(*tap.over, *passed))


def _is_private(graph: Any, tensor: Any) -> bool:
    """Tell whether only the outputs see this tensor and its layer is called once."""
    layer, nodes = origin_of(tensor).layer, keras_graph.nodes_of(graph)
    calls = sum(keras_graph.owner_of(node) is layer for node in nodes)
    readers = sum(tensor is source for node in nodes for source in keras_graph.inputs_of(node))
    is_output = any(tensor is output for output in graph.outputs)
    return calls == 1 and readers + int(is_output) == 1 and bool(_read_by_maker(tensor))


def _read_by_maker(tensor: Any) -> list[Any]:
    """What the call that makes a tensor reads; nothing for an input of the model."""
    return keras_graph.inputs_of(keras_graph.maker_of(tensor))


def _nested_tap(layer: Any, tensor: Any, depth: int) -> Tap | None:
    """Return the tap inside a nested model called once, if changing a layer makes it."""
    graph, index = keras_graph.graph_of(layer), origin_of(tensor).output
    if index >= len(graph.outputs):
        return None
    tap = _find_tap(graph, graph.outputs[index], depth + 1)
    return tap if tap is not None and tap.layer is not None else None


def _own_layer_tap(
    graph: Any, layer: Any, tensor: Any, sources: Sequence[Any], depth: int
) -> Tap | None:
    """Read the tensor before a Softmax layer or operation, which cannot be switched off."""
    is_output = any(tensor is output for output in graph.outputs)
    if depth > 0 or not is_output or not sources or not _read_by_maker(sources[0]):
        return None
    return Tap(_OWN_LAYER[type(layer).__name__], tensor=sources[0], over=_along(layer, tensor))


def _fused_activation(layer: Any) -> str | None:
    if type(layer).__name__ not in _FUSED:
        return None
    return getattr(getattr(layer, "activation", None), "__name__", None)


def _is_passed_over(layer: Any) -> bool:
    name = type(layer).__name__
    return name in PASSED_OVER and (name != "Activation" or _fused_activation(layer) == "linear")


def take_off(original: Any, folded: Any, linear: Any) -> list[tuple[str | None, Any, Any]]:
    """Take the activations out of two loaded models where both end in the same one.

    Returns of every output the activation that was taken out, None for none, and the tensors that
    are to be read instead in either model. `linear` is Keras' own identity function.
    """
    found = []
    every = zip(find(original), find(folded), original.outputs, folded.outputs, strict=True)
    for one, other, *outputs in every:
        if one is None or other is None or not _agree(one, other):
            found.append((None, *outputs))
            continue
        for tap in (one, other):
            if tap.layer is not None:
                tap.layer.activation = linear
        read = [
            output if tap.tensor is None else tap.tensor
            for tap, output in zip((one, other), outputs, strict=True)
        ]
        found.append((one.activation, *read))
    return found


def _agree(one: Tap, other: Tap) -> bool:
    """Whether two outputs end in the same activation, over the same axis."""
    is_same = one.activation == other.activation
    return is_same and (one.activation != "softmax" or one.over == other.over)
