"""Where layers change from one piece of their function to another.

A ReLU(max_value=6) is a straight line from 0 to 6, and only there. On samples that stay below 6
nothing tells it from a ReLU, and above 0 nothing from no layer at all. A *breakpoint* is a number
at which two pieces meet; both of its sides must have been seen, or a model that forgets one of the
pieces computes the same.

Of a layer with an activation of its own, as Dense(activation="relu6"), no tensor shows what went
into the activation. There the sides are told by what came out: where one piece is flat, as above 6,
it is just that number. Where a custom layer or function changes is not known; such a call is
*opaque*, and no samples show that a map may cross it.

At zero, sides are counted over all numbers of a value: a map of positive scales may cross a ReLU,
and trained networks have many channels that a ReLU keeps closed. No map but the identity may cross
a breakpoint elsewhere, so there both sides must be seen in every channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.operations import operation, simplified
from bnfold.running.unrolled import FlatCall

_AT_ZERO = ("relu", "leakyrelu", "elu", "selu", "celu", "crelu", "abs", "fabs", "sign", "heaviside")
_FUNCTIONS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(_AT_ZERO, (0,)),
    **dict.fromkeys(("hardtanh", "sparseplus", "sparsesigmoid"), (-1, 1)),
    **dict.fromkeys(("hardshrink", "softshrink"), (-0.5, 0.5)),
    "relu6": (0, 6),
    "hardsilu": (-3, 3),
}
"""Activations and operations without settings, by name; `hard_sigmoid` depends on the version."""

_KERAS = {"keras", "tf_keras"}

_NEARBY = 1e-3  # beside a breakpoint; half-precision activations tell it from the breakpoint


@dataclass(frozen=True, eq=False)
class Breakpoint:
    """Two pieces that meet at `at`, a number, or several that broadcast with the value.

    `flat` is what comes out of the piece `below` or `above` where that is flat and only what comes
    out is seen; `rises` says whether more comes out on the other side. Without `flat` the sides are
    told by `at`.
    """

    at: Array
    flat: float | None = None
    is_flat_below: bool = False
    rises: bool = True

    def sides(self, value: Array, axis: int | None = None) -> tuple[Array, Array]:
        """Whether numbers below and above were seen, in each channel along an axis, or in any."""
        if self.flat is None:
            return _any(value < self.at, axis), _any(value > self.at, axis)
        near = 1e-6 * abs(self.flat)  # zero is zero in every arithmetic, and 1 may be a bit less
        away = value - self.flat if self.rises else self.flat - value
        on_flat, beyond = _any(np.abs(away) <= near, axis), _any(away > near, axis)
        return (on_flat, beyond) if self.is_flat_below else (beyond, on_flat)

    @property
    def text(self) -> str:
        """The number for a sentence."""
        numbers = np.unique(self.at)
        if numbers.size == 1:
            return f"{numbers[0]:g}"
        return f"{numbers.min():g} to {numbers.max():g}"


def _any(seen: Array, axis: int | None) -> Array:
    others = None if axis is None else tuple(one for one in range(seen.ndim) if one != axis)
    return np.asarray(np.any(seen, axis=others))


@dataclass(frozen=True, eq=False)
class Watched:
    """A call with breakpoints, and the tensor at which their sides show.

    Of an opaque call no breakpoints are known, though it may have some.
    """

    call: FlatCall
    breakpoints: tuple[Breakpoint, ...]
    tensor: Any
    is_opaque: bool = False

    @property
    def name(self) -> str:
        """The nested path of the layer."""
        return self.call.name


def watched(call: FlatCall) -> Watched | None:
    """What to watch of a call; None where it has no breakpoints."""
    if call.inputs and _is_opaque(call):
        return Watched(call, (), call.inputs[0], is_opaque=True)
    numbers = (np.asarray(at, np.float64) for at in _of_inputs(call))
    own = tuple(Breakpoint(at) for at in numbers if np.all(np.isfinite(at)))  # a clip at infinity
    if own and call.inputs:
        return Watched(call, own, call.inputs[0])
    fused = tuple(_of_outputs(call))
    return Watched(call, fused, call.outputs[0]) if fused else None


def _is_opaque(call: FlatCall) -> bool:
    """Whether a call is of custom code, or of a model left whole with what no map may cross."""
    layer = getattr(call.layer, "layer", call.layer)
    activation, graph = getattr(layer, "activation", None), keras_graph.graph_of(layer)
    if type(layer).__name__ == "Lambda" or not all(map(_is_of_keras, (call.layer, layer))):
        return True
    if graph is not None:
        return any(map(_stops_a_map, _calls_within(graph)))
    return activation is not None and not _is_of_keras(activation)


def _stops_a_map(call: FlatCall) -> bool:
    found = watched(call)
    return found is not None and (
        found.is_opaque or any(np.any(point.at) for point in found.breakpoints)
    )


def _calls_within(graph: Any) -> Iterator[FlatCall]:
    """The calls in a model and in those nested in it, each model once."""
    waiting, seen = [graph], set[int]()
    while waiting:
        graph = waiting.pop()
        if id(graph) in seen:
            continue
        seen.add(id(graph))
        for node in keras_graph.in_order(graph):
            owner = keras_graph.owner_of(node)
            inner = keras_graph.graph_of(getattr(owner, "layer", owner))
            if inner is not None and _is_of_keras(owner):
                waiting.append(inner)
                continue
            read, made = tuple(keras_graph.inputs_of(node)), tuple(keras_graph.outputs_of(node))
            yield FlatCall(((str(owner.name), 0),), owner, read, made, node)


def _is_of_keras(value: Any) -> bool:
    """Whether a layer, an operation or a function is Keras' own."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.split(".")[0] in _KERAS


def _of_inputs(call: FlatCall) -> Sequence[Any]:
    """The breakpoints of a layer or an operation that does nothing else."""
    done = None if call.node is None else operation(call.node)
    if done is None:
        return ()
    if done.name == "relu" and done.constants:  # of keras.backend: slope, largest value, threshold
        return [0, *(float(one) for one in done.constants if one.ndim == 0)]
    if done.name in _LAYERS:
        return _LAYERS[done.name](done.owner)
    if done.name in _WITH_CONSTANTS:
        limits = [getattr(done.owner, one, None) for one in ("x_min", "x_max")]
        return [one for one in (*limits, *done.constants) if one is not None]
    return _FUNCTIONS.get(done.name, ())


def _of_relu(layer: Any) -> Sequence[float]:
    most = getattr(layer, "max_value", None)
    return [float(getattr(layer, "threshold", 0)), *([] if most is None else [float(most)])]


def _on_both_sides(layer: Any) -> Sequence[float]:
    most = float(getattr(layer, "threshold", 0.5))
    return [-most, most]


_LAYERS: dict[str, Callable[[Any], Sequence[float]]] = {
    "relu": _of_relu,
    "activation": lambda layer: _of_function(layer.activation),
    "thresholdedrelu": lambda layer: [float(layer.theta)],
    "threshold": lambda layer: [float(layer.threshold)],
    "hardshrink": _on_both_sides,
    "softshrink": _on_both_sides,
    "hardsigmoid": lambda _: [-3, 3],
    "prelu": lambda _: [0],
}
_WITH_CONSTANTS = {
    *("clip", "maximum", "minimum", "fmax", "fmin"),
    *("greater", "greaterequal", "less", "lessequal", "equal", "notequal"),
}


def _of_function(activation: Any) -> Sequence[float]:
    """The breakpoints of an activation, which may be a function or a layer."""
    name = simplified(getattr(activation, "__name__", type(activation).__name__))
    if hasattr(activation, "max_value"):
        return _of_relu(activation)
    if name == "hardsigmoid":  # 0.2 x + 0.5 in Keras 2
        limit = 2.5 if _value(activation, 2.75) == 1 else 3.0
        return (-limit, limit)
    return _FUNCTIONS.get(name, ())


def _of_outputs(call: FlatCall) -> Iterator[Breakpoint]:
    """The breakpoints of a layer's own activation, as they show in what it puts out."""
    layer = getattr(call.layer, "layer", call.layer)
    activation = getattr(layer, "activation", None)
    if activation is None or hasattr(layer, "recurrent_activation"):
        return
    for at in _of_function(activation):
        here, below, above = (_value(activation, at + by) for by in (0, -_NEARBY, _NEARBY))
        further = (_value(activation, at - 2 * _NEARBY), _value(activation, at + 2 * _NEARBY))
        if math.isnan(here):
            continue
        if below == further[0]:
            yield Breakpoint(np.asarray(at), below, is_flat_below=True, rises=above > below)
        elif above == further[1]:
            yield Breakpoint(np.asarray(at), above, is_flat_below=False, rises=below > above)
        else:
            yield Breakpoint(np.asarray(here))


def _value(activation: Callable[[Any], Any], number: float) -> float:
    """What an activation makes of a number; no number where it cannot be asked."""
    try:
        return float(np.asarray(activation(np.asarray([number], np.float32)))[0])
    except Exception:  # a function of the user's may raise anything
        return math.nan
