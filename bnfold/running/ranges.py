"""The range of numbers that a model is made for, as far as its first layers tell.

A model that begins with Rescaling(1/255) is made for numbers from 0 to 255. On numbers around zero
everything after it is almost nothing, and no ReLU(max_value=6) ever reaches its 6. So samples are
drawn for what comes *out* of such layers. With y = scale x + offset for all of them together, x is
drawn as

    x = center + spread z,      center = -offset / scale,      spread = 1 / |scale|

where z is what other models get. Where the layers only move a number far away, as `x - 127.5` does,
the data are about as wide as that: |offset| > 3 makes the spread |offset| / 2 times as large.

What is followed: Rescaling, Normalization, keras.ops and TensorFlow's functions with constants,
casts, what leaves numbers as they are or rearranges them, and nested models. It ends at a
Discretization, whose boundaries tell the range, at a BatchNormalization, whose moving statistics
do, and at any other layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.operations import Operation, operation
from bnfold.running.samples import PLAIN, Range

_SAME = {
    *("identity", "dropout", "spatialdropout1d", "spatialdropout2d", "spatialdropout3d", "cast"),
    *("gaussiannoise", "gaussiandropout", "alphadropout", "activityregularization", "masking"),
    *("stopgradient", "converttotensor", "inputlayer"),
}
_MOVES_PLACES = {
    *("resizing", "centercrop", "cropping1d", "cropping2d", "cropping3d", "pad"),
    *("zeropadding1d", "zeropadding2d", "zeropadding3d", "resize", "resizeimages"),
    *("upsampling1d", "upsampling2d", "upsampling3d", "averagepooling1d", "averagepooling2d"),
    *("averagepooling3d", "maxpooling1d", "maxpooling2d", "maxpooling3d", "cropimages", "resizev2"),
}
"""What leaves the channels where they are."""
_REARRANGES = {
    *("permute", "transpose", "reshape", "flatten", "expanddims", "squeeze", "repeatvector"),
    *("getitem", "slicingoplambda", "concatenate", "concat", "stack", "moveaxis", "swapaxes"),
    *("broadcastto", "repeat", "tile", "stridedslice", "take", "gather", "split", "reverse"),
}
_FAR = 3.0  # of an offset, in units of what comes out
_MOST = 3  # ranges of one input
_CALLS = 2000  # that are looked at; nested models may be called many times


@dataclass(frozen=True, eq=False)
class _Reached:
    """What has become of an input's numbers at a tensor: scale and offset, as the input has them.

    `order` says which axis of the input each axis of the tensor is, None where that is lost.
    `is_measured` says that statistics of data were among the settings.
    """

    shape: tuple[int | None, ...]
    order: tuple[int, ...] | None
    scale: Array
    offset: Array
    is_measured: bool = False

    def then(self, scale: Any, offset: Any, *, measured: bool = False) -> _Reached:
        """After y = scale x + offset."""
        by, more = self._placed(scale), self._placed(offset)
        return replace(
            self,
            scale=self.scale * by,
            offset=self.offset * by + more,
            is_measured=self.is_measured or measured,
        )

    def _placed(self, numbers: Any) -> Array:
        """Numbers that broadcast with a tensor as numbers that broadcast with the input."""
        found = np.asarray(numbers, np.float64)
        if found.size == 1 or self.order is None or found.ndim > len(self.order):
            return np.asarray(np.median(found))
        found = found.reshape((1,) * (len(self.order) - found.ndim) + found.shape)
        found = found.transpose([self.order.index(axis) for axis in range(len(self.order))])
        fits = all(size in (1, mine) for size, mine in zip(found.shape, self.shape, strict=True))
        return found if fits and found.shape[0] == 1 else np.asarray(np.median(found))

    def range(self) -> Range | None:
        """The range of the input; None where the settings are no sound numbers."""
        with np.errstate(all="ignore"):
            spread = 1 / np.abs(self.scale)
            center = -self.offset / self.scale
            if not self.is_measured and np.max(np.abs(self.offset)) > _FAR:
                spread = spread * np.maximum(1, np.abs(self.offset) / 2)
        sound = np.isfinite(spread).all() and np.isfinite(center).all()
        if not sound or np.max(spread) > 1e30 or np.max(np.abs(center)) > 1e30:
            return None
        return Range(center, spread)


def ranges(graph: Any, tensor: Any) -> tuple[Range, ...]:
    """The ranges of an input of a graph, by those that read it; one plain range if nothing tells.

    `tensor` is the graph's own, of which shape and rank count.
    """
    shape = tuple(tensor.shape)
    order = tuple(range(len(shape)))
    start = _Reached(shape, order, np.asarray(1.0), np.asarray(0.0))
    search = _Search()
    search.walk(graph, {id(tensor): start})
    found: list[Range] = []
    for one in search.found:
        known = one.range()
        if known is not None and not any(known.same(other) for other in found):
            found.append(known)
    return tuple(found[:_MOST]) or (PLAIN,)


class _Search:
    """The walk from an input to the first layers that are no preprocessing."""

    def __init__(self) -> None:
        self.found: list[_Reached] = []
        self._calls = 0

    def walk(self, graph: Any, given: Mapping[int, _Reached]) -> list[_Reached | None]:
        """Follow through a graph what tensors have become; what its outputs are."""
        known = dict(given)
        for node in keras_graph.in_order(graph):
            read = [known[id(one)] for one in keras_graph.inputs_of(node) if id(one) in known]
            self._calls += 1
            if not read or self._calls > _CALLS:
                continue
            made = self._through(node, known)
            for tensor, one in zip(keras_graph.outputs_of(node), made, strict=False):
                if one is not None:
                    known[id(tensor)] = one
        return [known.get(id(one)) for one in graph.outputs]

    def _through(self, node: Any, known: Mapping[int, _Reached]) -> list[_Reached | None]:
        """What a call makes of what it reads; an end of the walk makes nothing."""
        first = next(known[id(one)] for one in keras_graph.inputs_of(node) if id(one) in known)
        inner = keras_graph.graph_of(keras_graph.owner_of(node))
        if inner is not None:
            pairs = zip(inner.inputs, keras_graph.inputs_of(node), strict=False)
            given = {id(one): known[id(source)] for one, source in pairs if id(source) in known}
            return self.walk(inner, given)
        done = operation(node)
        inside = keras_graph.graph_of(done.owner)
        if inside is not None:  # in a TimeDistributed
            lost = replace(first, order=None)
            return self.walk(inside, {id(inside.inputs[0]): lost})
        after = _after(done, first)
        if after is None:
            self.found += _ends(done, first)
            return []
        return [after] * len(keras_graph.outputs_of(node))


def _after(done: Operation, before: _Reached) -> _Reached | None:
    """After one step of preprocessing; None after anything else."""
    name, owner = done.name, done.owner
    if name in _SAME or name.startswith("random") or _is_linear(owner):
        return before
    if name == "rescaling":
        return before.then(owner.scale, owner.offset)
    if name == "normalization":
        return _normalized(owner, before)
    if name in _MOVES_PLACES:
        return before
    if name in _REARRANGES:
        return replace(before, order=_turned(done, before.order))
    return _calculated(done, before)


def _is_linear(owner: Any) -> bool:
    activation = getattr(owner, "activation", None)
    is_activation = type(owner).__name__ == "Activation"
    return is_activation and getattr(activation, "__name__", "") == "linear"


def _normalized(layer: Any, before: _Reached) -> _Reached | None:
    mean, variance = getattr(layer, "mean", None), getattr(layer, "variance", None)
    if mean is None or variance is None:
        return None
    center, deviation = np.asarray(mean, np.float64), np.sqrt(np.asarray(variance, np.float64))
    deviation = np.maximum(deviation, 1e-7)
    if getattr(layer, "invert", False):
        return before.then(deviation, center)
    return before.then(1 / deviation, -center / deviation, measured=True)


def _calculated(done: Operation, before: _Reached) -> _Reached | None:
    """After arithmetic with one constant."""
    if done.name == "negative":
        return before.then(-1.0, 0.0)
    if len(done.operands) != 2 or len(done.constants) != 1:
        return None
    (number,) = done.constants
    is_first = done.operands[0] is not number
    if done.name == "divide" and is_first and np.all(number != 0):
        return before.then(1 / number, 0.0)
    steps: dict[str, tuple[Any, Any]] = {
        "add": (1.0, number),
        "subtract": (1.0, -number) if is_first else (-1.0, number),
        "multiply": (number, 0.0),
    }
    return before.then(*steps[done.name]) if done.name in steps else None


def _turned(done: Operation, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Which axes of the input the axes are, after something that may exchange them."""
    if order is None:
        return None
    axes: Any = None
    if done.name == "permute":
        axes = (0, *done.owner.dims)
    elif done.name == "transpose":
        axes = getattr(done.owner, "axes", None)
    if axes is None or len(axes) != len(order):
        return None
    return tuple(order[int(axis)] for axis in axes)


def _ends(done: Operation, before: _Reached) -> Iterator[_Reached]:
    """What the layer at which the walk ends tells of the range."""
    owner = done.owner
    if done.name == "discretization":
        bounds = np.asarray(getattr(owner, "bin_boundaries", None) or [], np.float64)
        if bounds.size:
            span = max(float(np.ptp(bounds)) / 2, 1e-6 * max(1.0, float(np.abs(bounds).max())))
            if bounds.size == 1:
                span = max(1.0, abs(float(bounds[0])))
            middle = float(bounds.min() + bounds.max()) / 2
            yield before.then(1 / span, -middle / span, measured=True)
            return
    if type(owner).__name__ in BATCHNORM_CLASSES and not isinstance(owner.axis, (list, tuple)):
        variance = np.asarray(owner.moving_variance.numpy(), np.float64)
        mean = np.asarray(owner.moving_mean.numpy(), np.float64)
        with np.errstate(all="ignore"):
            deviation = np.sqrt(variance + owner.epsilon)
        if np.all(np.isfinite(deviation)) and np.all(deviation > 0):
            rank = len(done.tensors[0].shape)
            axis = owner.axis % rank
            shape = [mean.size if one == axis else 1 for one in range(rank)]
            scale, offset = 1 / deviation, -mean / deviation
            yield before.then(scale.reshape(shape), offset.reshape(shape), measured=True)
            return
    yield before
