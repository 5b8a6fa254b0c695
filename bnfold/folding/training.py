"""Which layers run in training mode because of a layer that ran before them.

Keras 3 keeps an explicit `training=True` of one call for every layer that runs later in the same
outer call, also on a parallel branch and also in what `model.export` traces; only a `training`
given to the outermost call overrides it (measured with Keras 3.15, `Layer.__call__`). So behind a
`Dropout(...)(x, training=True)` every BatchNormalization that is not frozen normalizes with the
statistics of the batch. Keras 2 hands nothing on.
"""

from collections import defaultdict

from bnfold.model import catalog
from bnfold.model.graph import Call, Graph, Layer, Path, show
from bnfold.model.nodes import is_keras3
from bnfold.model.order import call_depths


def is_set(argument: object) -> bool:
    """Whether a call's `training` may be true: False, None and 0 are not, a tensor may be."""
    return argument not in (None, False, 0)


def exposed(graph: Graph) -> dict[Path, str]:
    """The layers that heed training mode and may run after a call with training=True of another.

    The value is the name of that other layer. Layers of the same depth count as later, because
    their order is not fixed.
    """
    found: dict[Path, str] = {}
    if _is_keras3(graph):
        _run(graph, (), None, found)
    return found


def _is_keras3(graph: Graph) -> bool:
    """Whether any graph in the model writes its calls as Keras 3 does."""
    layers = graph.layers.values()
    return any(is_keras3(call.node) for layer in layers for call in layer.calls) or any(
        _is_keras3(layer.nested) for layer in layers if layer.nested is not None
    )


def _run(graph: Graph, path: Path, leak: str | None, found: dict[Path, str]) -> str | None:
    """Walk the calls in the order of Keras; `leak` is who has set training mode so far."""
    by_depth: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for node, depth in call_depths(graph).items():
        by_depth[depth].append(node)
    for depth in sorted(by_depth, reverse=True):
        sources = {
            node: _source(graph.layers[node[0]], graph.layers[node[0]].calls[node[1]], path)
            for node in by_depth[depth]
        }
        for node in by_depth[depth]:
            layer = graph.layers[node[0]]
            others = (source for other, source in sources.items() if other != node and source)
            _enter(layer, (*path, layer.name), leak or next(others, None), found)
        leak = leak or next((source for source in sources.values() if source), None)
    return leak


def _source(layer: Layer, call: Call, path: Path) -> str | None:
    """The layer that sets training mode in this call: this one, or one inside it."""
    if is_set(call.training):
        return f"{layer.class_name} {show((*path, layer.name))!r}"
    nested = layer.nested
    return _run(nested, (*path, layer.name), None, {}) if nested is not None else None


def _enter(layer: Layer, path: Path, leak: str | None, found: dict[Path, str]) -> None:
    if leak is not None and not ignores_training(layer):
        found.setdefault(path, leak)
    if layer.graph is not None:
        _run(layer.graph, path, leak, found)
    elif layer.inner is not None:
        _enter(layer.inner, (*path, layer.inner.name), leak, found)


def ignores_training(layer: Layer) -> bool:
    """Whether a layer is known to compute the same in and out of training mode."""
    if layer.nested is not None:
        return True  # what is inside it is asked by itself
    if layer.inner is not None:
        return ignores_training(layer.inner)
    if catalog.is_batchnorm(layer):
        return layer.config.get("trainable", True) is False
    return layer.is_operation or (layer.builtin and layer.class_name in catalog.SAME_IN_TRAINING)
