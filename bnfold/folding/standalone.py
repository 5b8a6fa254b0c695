"""What cannot be folded, as a depthwise convolution of kernel 1, for targets without the layer.

    DepthwiseConv: kernel[0, c, 0] = scale[c],  bias[c] = shift[c]

The layer keeps its name and its place. Wrong if it normalizes another axis than the last, if it
computes in another dtype than its variables have, in which it would be rounded twice, if a mask
comes along, which a convolution does not hand on, or if a scale or a shift does not fit the dtype.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.folding.affine import Affine, Array, from_batchnorm
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.folding.weights import Magnitudes, check_range
from bnfold.model import edit
from bnfold.model.batchnorm import BatchNorm, as_batchnorm
from bnfold.model.graph import Graph, Layer, LayerPath, Weight
from bnfold.model.masks import may_be_masked
from bnfold.model.policy import policy
from bnfold.model.program import Program, Region
from bnfold.model.refusal import Refusal
from bnfold.model.rounding import rounded
from bnfold.model.shapes import Shapes

_CLASSES = {3: "DepthwiseConv1D", 4: "DepthwiseConv2D"}


def replaceable(graph: Graph, plan: Plan) -> tuple[tuple[LayerPath, ...], Plan]:
    """The leftovers of a plan that a depthwise convolution can stand for.

    `graph` is what is left after `apply`. The plan that is returned says of each of the others why
    it has to stay.
    """
    found = dict(_leftovers(Program(graph).region))
    decisions = tuple(_decided(decision, found) for decision in plan.decisions)
    still_open = (d for d in decisions if isinstance(d, Blocked) and d.may_be_replaced)
    paths = {decision.batchnorm.path for decision in still_open}
    return tuple(path for path in found if path in paths), replace(plan, decisions=decisions)


def _decided(decision: Fold | Blocked, found: Mapping[LayerPath, Refusal | None]) -> Fold | Blocked:
    if not isinstance(decision, Blocked) or not decision.may_be_replaced:
        return decision
    refusal = found.get(decision.batchnorm.path, _WRAPPED)
    if refusal is None:
        return decision
    reason = f"{decision.reason}; as a depthwise convolution: {refusal.reason}"
    return decision._replace(reason=reason, may_be_replaced=False)


_WRAPPED = Refusal("it is inside a TimeDistributed")


def _leftovers(scope: Region) -> Iterator[tuple[LayerPath, Refusal | None]]:
    """Each BatchNormalization, and why no depthwise convolution can stand for it, if none can."""
    for name, layer in scope.graph.layers.items():
        if name in scope.inside:
            yield from _leftovers(scope.inside[name])
        elif layer.inner is None:
            batchnorm = as_batchnorm(layer, scope.layer_path(name))
            if batchnorm is not None:
                yield batchnorm.path, _refusal(batchnorm, layer, scope)


def _refusal(batchnorm: BatchNorm, layer: Layer, scope: Region) -> Refusal | None:
    try:
        _check(batchnorm, layer, scope)
    except Refusal as refusal:
        return refusal
    return None


def _check(batchnorm: BatchNorm, layer: Layer, scope: Region) -> None:
    """Raise Refusal where a convolution would not do the same."""
    affine, used, shapes = from_batchnorm(batchnorm), policy(layer), scope.shapes
    if used is None or used.compute != used.variable:
        raise Refusal("it computes in another dtype than its variables have")
    refs = [call.reads[0] for call in layer.calls if call.reads]
    ranks = {None if shape is None else len(shape) for shape in map(shapes.of, refs)}
    rank = ranks.pop() if len(ranks) == 1 else None
    if rank not in _CLASSES or batchnorm.axis not in (-1, rank - 1):
        raise Refusal("it does not normalize the last axis of a tensor of rank 3 or 4")
    if {shapes.dtype(ref) for ref in refs} != {used.compute}:
        raise Refusal("it reads numbers of another dtype than it computes in")
    if any(call.mask is not None for call in layer.calls) or any(
        may_be_masked(scope.value(ref)) for ref in refs
    ):
        raise Refusal("its input may have a mask, which a convolution does not propagate")
    check_range(_magnitudes(affine, batchnorm))


def _magnitudes(affine: Affine, batchnorm: BatchNorm) -> tuple[Magnitudes, ...]:
    """How large the numbers get; a channel whose gamma is as small already loses nothing."""
    gamma = np.abs((batchnorm.vectors or {})["gamma"])
    dtypes = (_dtype(batchnorm.layer),)
    kernel = Magnitudes("depthwise_kernel", gamma, np.abs(affine.scale), affine.scale, dtypes)
    return kernel, Magnitudes("bias", _NONE, _NONE, affine.shift, dtypes)


_NONE: Array = np.zeros(0)


def _dtype(layer: Layer) -> np.dtype[Any]:
    return next(iter(layer.weights or ())).dtype


def replace_leftovers(graph: Graph, paths: Collection[LayerPath], path: LayerPath = ()) -> Graph:
    """The graph with each of these layers as a depthwise convolution; call it after `apply`."""
    layers = {
        name: _replaced(layer, graph, paths, (*path, name)) for name, layer in graph.layers.items()
    }
    return replace(graph, layers=layers)


def _replaced(layer: Layer, graph: Graph, paths: Collection[LayerPath], path: LayerPath) -> Layer:
    if layer.graph is not None:
        return replace(layer, graph=replace_leftovers(layer.graph, paths, path))
    if layer.inner is not None:
        inner = _replaced(layer.inner, graph, paths, (*path, layer.inner.name))
        return replace(layer, inner=inner)
    batchnorm = as_batchnorm(layer, path)
    if batchnorm is None or path not in paths:
        return layer
    affine = from_batchnorm(batchnorm)
    rank = next(iter(_ranks(layer, graph)))
    dtype = _dtype(layer)
    kernel = affine.scale.reshape((*(1,) * (rank - 2), -1, 1))
    return edit.standing_in(
        layer,
        _CLASSES[rank],
        _settings(rank),
        weights=(
            _weight("depthwise_kernel", kernel, dtype),
            _weight("bias", affine.shift, dtype),
        ),
    )


def _ranks(layer: Layer, graph: Graph) -> set[int]:
    shapes = Shapes(graph)
    found = [shapes.of(call.reads[0]) for call in layer.calls]
    return {len(shape) for shape in found if shape is not None}


def _settings(rank: int) -> dict[str, object]:
    ones = [1] * (rank - 2)
    return {
        "kernel_size": ones,
        "strides": ones,
        "padding": "valid",
        "depth_multiplier": 1,
        "data_format": "channels_last",
        "dilation_rate": ones,
        "activation": "linear",
        "use_bias": True,
    }


def _weight(name: str, values: Array, dtype: np.dtype[Any]) -> Weight:
    stored = rounded(values, dtype)
    return Weight(stored.shape, stored.dtype, lambda: stored, name)
