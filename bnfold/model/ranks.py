"""How many axes a tensor has, as far as the file alone tells."""

from bnfold.model import catalog, config
from bnfold.model.graph import Graph, Layer, Ref

_MAX_STEPS = 200


class Ranks:
    """The ranks of a graph's tensors.

    Keras 3 notes the shape of every tensor that a layer reads; for older files the rank follows
    from the layers' build configs, their classes and the shapes of the inputs.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._noted = {ref: len(shape) for ref, (shape, _) in config.tensor_types(graph).items()}

    def of(self, ref: Ref, steps: int = 0) -> int | None:
        """The rank of a tensor, None where the file does not tell."""
        if ref in self._noted:
            return self._noted[ref]
        if steps > _MAX_STEPS:
            return None
        found = self._built(ref)
        if found is None:
            found = self._by_class(self._graph.layers[ref.layer], ref, steps)
        return found

    def _built(self, ref: Ref) -> int | None:
        """From the build config of a layer that reads this tensor alone."""
        for name, number in self._graph.readers.get(ref, ()):
            layer = self._graph.layers[name]
            build_config = layer.entry.get("build_config")
            shape = build_config.get("input_shape") if isinstance(build_config, dict) else None
            single = len(layer.calls) == 1 and layer.calls[number].inputs == (ref,)
            if single and isinstance(shape, list) and not any(isinstance(n, list) for n in shape):
                return len(shape)
        return None

    def _by_class(self, layer: Layer, ref: Ref, steps: int) -> int | None:
        if not layer.builtin or layer.is_operation or layer.calls == ():
            return None
        if layer.inner is not None:
            inner = self._by_class_alone(layer.inner)
            return None if inner is None else inner + 1
        own = self._by_class_alone(layer)
        if own is not None:
            return own
        inputs = layer.calls[ref.call].inputs
        if layer.class_name in catalog.SAME_RANK and inputs:
            ranks = {self.of(source, steps + 1) for source in inputs}
            return ranks.pop() if len(ranks) == 1 else None
        first_shape = input_shape(layer)
        if layer.class_name in catalog.SAME_RANK and first_shape is not None:
            return len(first_shape)
        return None

    def _by_class_alone(self, layer: Layer) -> int | None:
        if not layer.builtin or layer.is_operation:
            return None
        if layer.class_name == "InputLayer":
            shape = input_shape(layer)
            return None if shape is None else len(shape)
        if layer.class_name == "Reshape":
            target = layer.config.get("target_shape")
            return len(target) + 1 if isinstance(target, list) else None
        if layer.config.get("keepdims"):
            return None
        return catalog.FIXED_RANK.get(layer.class_name)


def input_shape(layer: Layer) -> list[int | None] | None:
    """The shape that a layer's config declares for its input, batch included."""
    for key in ("batch_shape", "batch_input_shape"):
        shape = layer.config.get(key)
        if isinstance(shape, list):
            return shape
    return None
