"""How many axes a tensor has, and of which sizes, as far as the file alone tells."""

from dataclasses import replace

from bnfold.model import catalog, config
from bnfold.model.graph import Graph, Layer, Ref

Shape = tuple[int | None, ...]

_MAX_STEPS = 200


class Ranks:
    """The ranks of a graph's tensors.

    Keras 3 notes the shape of every tensor that a layer reads; for older files the rank follows
    from the layers' build configs, their classes and the shapes of the inputs.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._noted = {ref: shape for ref, (shape, _) in config.tensor_types(graph).items()}
        self._known: dict[Ref, int | None] = {ref: len(s) for ref, s in self._noted.items()}

    def of(self, ref: Ref, steps: int = 0) -> int | None:
        """The rank of a tensor, None where the file does not tell."""
        if ref not in self._known:
            self._known[ref] = self._find(ref, steps) if steps <= _MAX_STEPS else None
        return self._known[ref]

    def _find(self, ref: Ref, steps: int) -> int | None:
        built = self._built(ref)
        if built is not None:
            return len(built)
        return self._by_class(self._graph.layers[ref.layer], ref, steps)

    def shape(self, ref: Ref) -> Shape | None:
        """The shape of a tensor where the file notes it; None for sizes that it leaves open."""
        return self._noted.get(ref) or self._built(ref)

    def _built(self, ref: Ref) -> Shape | None:
        """The shape that the build config of a layer which reads this tensor alone gives."""
        for name, number in self._graph.readers.get(ref, ()):
            layer = self._graph.layers[name]
            build_config = layer.entry.get("build_config")
            shape = build_config.get("input_shape") if isinstance(build_config, dict) else None
            single = len(layer.calls) == 1 and layer.calls[number].inputs == (ref,)
            if single and isinstance(shape, list) and not any(isinstance(n, list) for n in shape):
                return tuple(shape)
        return None

    def _by_class(self, layer: Layer, ref: Ref, steps: int) -> int | None:
        if not layer.builtin or layer.is_operation:
            return None
        if layer.graph is not None:
            return Ranks(layer.graph).of(layer.graph.outputs[ref.output], steps + 1)
        wrapped = 0
        while layer.inner is not None:
            layer, wrapped = replace(layer.inner, calls=layer.calls), wrapped + 1
        own = _by_class_alone(layer, ref.output)
        if own is not None:
            return own + wrapped
        added = catalog.ADDED_AXES.get(layer.class_name)
        if added is None or not layer.builtin:
            return None
        inputs = self._of_inputs(layer, ref, steps)
        return None if inputs is None else inputs + added

    def _of_inputs(self, layer: Layer, ref: Ref, steps: int) -> int | None:
        """The rank that all inputs of a call have."""
        inputs = layer.calls[ref.call].inputs
        if not inputs:
            shape = input_shape(layer) or config.settings(self._graph.entry).get(
                "build_input_shape"
            )
            return len(shape) if isinstance(shape, list) else None
        ranks = {self.of(source, steps + 1) for source in inputs}
        return ranks.pop() if len(ranks) == 1 else None


def _by_class_alone(layer: Layer, output: int) -> int | None:
    """The rank that a layer's class and settings give its output, whatever goes in."""
    if not layer.builtin or layer.is_operation:
        return None
    if layer.class_name == "InputLayer":
        shape = input_shape(layer)
        return None if shape is None else len(shape)
    if layer.class_name == "Reshape":
        target = layer.config.get("target_shape")
        return len(target) + 1 if isinstance(target, list) else None
    if layer.class_name in catalog.RECURRENT:
        return 3 if output == 0 and layer.config.get("return_sequences") else 2
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
