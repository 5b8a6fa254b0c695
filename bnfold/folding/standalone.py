"""What cannot be folded, as a depthwise convolution of kernel 1, for targets without the layer.

    DepthwiseConv: kernel[0, c, 0] = scale[c],  bias[c] = shift[c]

The layer keeps its name and its place. Wrong if it normalizes another axis than the last, if it
computes in another dtype than its variables have, in which it would be rounded twice, or if a mask
comes along, which a convolution does not hand on.
"""

from collections.abc import Collection
from dataclasses import replace

from bnfold.folding.affine import Affine, Array, from_batchnorm
from bnfold.folding.plan import Plan
from bnfold.model import config
from bnfold.model.batchnorm import as_batchnorm
from bnfold.model.graph import Graph, Layer, Path, Weight, core_path, unwrapped, walk_all
from bnfold.model.policy import policy
from bnfold.model.shapes import Shapes

_CLASSES = {3: "DepthwiseConv1D", 4: "DepthwiseConv2D"}
_MASKING = {"Masking", "Embedding"}


def replaceable(graph: Graph, plan: Plan) -> tuple[Path, ...]:
    """The leftovers of a plan that a depthwise convolution can stand for."""
    if any(layer.class_name in _MASKING or _takes_mask(layer) for _, layer in walk_all(graph)):
        return ()
    open_ones = {blocked.batchnorm.path for blocked in plan.blocked if blocked.may_be_replaced}
    return tuple(path for path in _paths(graph, ()) if path in open_ones)


def _takes_mask(layer: Layer) -> bool:
    return any(call.mask is not None for call in layer.calls)


def _paths(graph: Graph, path: Path) -> list[Path]:
    """The BatchNormalization layers that compute what a depthwise convolution can."""
    found: list[Path] = []
    shapes = Shapes(graph)
    for name, layer in graph.layers.items():
        core, wrappers = unwrapped(layer)
        if core.graph is not None:
            found += _paths(core.graph, core_path(layer, (*path, name)))
        elif not wrappers and _fits(layer, shapes):
            found.append((*path, name))
    return found


def _fits(layer: Layer, shapes: Shapes) -> bool:
    batchnorm = as_batchnorm(layer, ())
    if batchnorm is None or isinstance(from_batchnorm(batchnorm), str):
        return False
    used = policy(layer)
    if used is None or used.compute != used.variable:
        return False
    refs = [call.inputs[0] for call in layer.calls if call.inputs]
    read = [shapes.of(ref) for ref in refs]
    if not refs or any(shape is None or len(shape) not in _CLASSES for shape in read):
        return False
    ranks = {len(shape) for shape in read if shape is not None}
    dtypes = {shapes.dtype(ref) for ref in refs}
    return len(ranks) == 1 and batchnorm.axis in (-1, max(ranks) - 1) and dtypes == {used.compute}


def replace_leftovers(graph: Graph, paths: Collection[Path], path: Path = ()) -> Graph:
    """The graph with each of these layers as a depthwise convolution; call it after `apply`."""
    layers = {
        name: _replaced(layer, graph, paths, (*path, name)) for name, layer in graph.layers.items()
    }
    return replace(graph, layers=layers)


def _replaced(layer: Layer, graph: Graph, paths: Collection[Path], path: Path) -> Layer:
    if layer.graph is not None:
        return replace(layer, graph=replace_leftovers(layer.graph, paths, path))
    if layer.inner is not None:
        inner = _replaced(layer.inner, graph, paths, (*path, layer.inner.name))
        return replace(layer, inner=inner)
    batchnorm = as_batchnorm(layer, path)
    affine = None if batchnorm is None or path not in paths else from_batchnorm(batchnorm)
    if batchnorm is None or not isinstance(affine, Affine):
        return layer
    rank = next(iter(_ranks(layer, graph)))
    dtype = next(iter((layer.weights or ())[:1])).dtype
    kernel = affine.scale.reshape((*(1,) * (rank - 2), -1, 1))
    return config.standing_in(
        layer,
        _CLASSES[rank],
        _settings(rank),
        weights=(
            _weight("depthwise_kernel", kernel, dtype.str),
            _weight("bias", affine.shift, dtype.str),
        ),
    )


def _ranks(layer: Layer, graph: Graph) -> set[int]:
    shapes = Shapes(graph)
    found = [shapes.of(call.inputs[0]) for call in layer.calls]
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


def _weight(name: str, values: Array, dtype: str) -> Weight:
    exact = values.astype(dtype)
    return Weight(exact.shape, exact.dtype, lambda: exact, name)
