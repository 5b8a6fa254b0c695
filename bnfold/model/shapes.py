"""The static shapes and the dtypes of a graph's tensors, as far as the file alone tells.

Keras 3 notes both for every tensor that a layer reads. For older files, for a Sequential and for
what nobody reads, the shape follows from the class and the settings of the layer that made the
tensor. A size that is open or unknown is None; a shape that is
unknown altogether is None. Whoever asks must take None for a refusal.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from bnfold.errors import UnsafeModelError
from bnfold.model import keras_json, layers
from bnfold.model.container.printing import shortened
from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Graph, Layer, Ref, unwrapped
from bnfold.model.policy import policy, policy_name
from bnfold.model.shape_rules import LONGEST_AXIS, Shape, shape_of

_Fact = TypeVar("_Fact")

_MOST_INTERIORS = 64
"""Of one nested model. A model of nested models, each called twice, has 2 ** depth calls of the
innermost one, and the shapes that they are given can all be different."""


class Shapes:
    """The shapes and dtypes of a graph's tensors, each looked for once."""

    def __init__(
        self,
        graph: Graph,
        outer: Mapping[str, Shape | None] | None = None,
        interiors: "_Interiors | None" = None,
    ) -> None:
        """`outer` are shapes of the graph's input layers that are known from elsewhere.

        `interiors` are what is known of the nested models of the whole model.
        """
        self._graph = graph
        self._outer = outer or {}
        self._interiors = {} if interiors is None else interiors
        noted = keras_json.tensor_types(graph)
        self._noted_dtypes = {ref: dtype for ref, (_, dtype) in noted.items()}
        self._dtypes: dict[Ref, str | None] = {}
        self._shapes: dict[Ref, Shape | None] = {ref: shape for ref, (shape, _) in noted.items()}
        # The tensors of which all has been looked up that they are made of.
        self._settled: tuple[set[Ref], set[Ref]] = set(), set()
        self._misstated = _downstream(graph, self._reverses_axes)

    def of(self, ref: Ref) -> Shape | None:
        """The shape of a tensor, batch included."""
        shape = self._look_up(ref, self._shapes, self._find_shape, self._settled[0])
        if shape is None or ref.layer not in self._misstated:
            return shape
        return (shape[0], *(None,) * (len(shape) - 1))

    def dtype(self, ref: Ref) -> str | None:
        """The dtype of a tensor: declared by its input layer, its maker's, or as noted.

        A layer without weights may hand on integers as they are, whatever Keras notes for it.
        """
        return self._look_up(ref, self._dtypes, self._find_dtype, self._settled[1])

    def inside(self, name: str, call: int) -> "Shapes":
        """The shapes inside one call of a nested model, or of one in wrappers.

        Calls that are given the same shapes share them. Of a model that is called with very many
        different ones, the later calls are known by the shapes that its inputs declare.
        """
        core, wrappers = unwrapped(self._graph.layers[name])
        nested = cast(Graph, core.graph)
        given = tuple(without_axes(shape, wrappers) for shape in self._inputs(Ref(name, call)))
        found = self._interiors.setdefault(id(nested), {})
        if given not in found and len(found) - (() in found) >= _MOST_INTERIORS:
            given = ()
        if given not in found:
            known = dict(zip(nested.inputs, given, strict=False))
            found[given] = Shapes(nested, known, self._interiors)
        return found[given]

    def _look_up(
        self,
        ref: Ref,
        known: dict[Ref, _Fact],
        find: Callable[[Ref], _Fact],
        entered: set[Ref],
    ) -> _Fact:
        """What `find` says of a tensor, asked first for what it is made of, however far back."""
        if ref in entered and ref in known:
            return known[ref]
        waiting = [ref]
        while waiting:
            top = waiting[-1]
            missing = () if top in entered else self._sources(top)
            entered.add(top)
            waiting += [source for source in missing if source not in known]
            if waiting[-1] == top:
                waiting.pop()
                if top not in known:
                    known[top] = find(top)
        return known[ref]

    def _sources(self, ref: Ref) -> tuple[Ref, ...]:
        return self._graph.layers[ref.layer].calls[ref.call].reads

    def _find_dtype(self, ref: Ref) -> str | None:
        layer, _ = unwrapped(self._graph.layers[ref.layer])
        if layer.graph is not None and layer.graph.outputs:
            return self.inside(ref.layer, ref.call).dtype(layer.graph.outputs[ref.output])
        if layers.is_input(layer):
            return policy_name(layer)
        sources = [self._dtypes.get(source) for source in self._sources(ref)]
        made = layers.facts(layer).dtype
        if made == "made" or (made == "floats" and all(map(is_float, sources))):
            found = policy(layer)
            return None if found is None else found.compute
        is_known = layer.is_operation or all(map(is_float, sources))
        return self._noted_dtypes.get(ref) if is_known else None

    def _find_shape(self, ref: Ref) -> Shape | None:
        layer = self._graph.layers[ref.layer]
        found = self._by_class(layer, ref)
        return found if found is not None else self._of_rank_that_readers_need(ref)

    def _of_rank_that_readers_need(self, ref: Ref) -> Shape | None:
        """A shape of the rank that a BatchNormalization was built for, which Keras checks.

        The sizes in a build config may be those of another model in which the layer stood first.
        """
        for name, _ in self._graph.readers.get(ref, ()):
            layer = self._graph.layers[name]
            build_config = layer.entry.get("build_config")
            listed = build_config.get("input_shape") if isinstance(build_config, dict) else None
            shape = shape_of(listed)
            if layers.is_batchnorm(layer) and shape is not None:
                return (None,) * len(shape)
        return None

    def _by_class(self, layer: Layer, ref: Ref) -> Shape | None:
        if not layer.builtin or layer.is_operation:
            return None
        if layer.class_name == "InputLayer":
            return self._input(layer)
        core, wrappers = unwrapped(layer)
        outer = self._inputs(ref)
        if core.graph is not None:
            if ref.output >= len(core.graph.outputs):
                return None
            found = self.inside(ref.layer, ref.call).of(core.graph.outputs[ref.output])
        else:
            found = output_shape(core, [without_axes(one, wrappers) for one in outer], ref.output)
        if found is None or not wrappers:
            return found
        first = outer[0] if outer else None
        around = (None,) * wrappers if first is None else first[1 : 1 + wrappers]
        return (*found[:1], *around, *found[1:])

    def _input(self, layer: Layer) -> Shape | None:
        """Keras fits the tensor that a nested model is called with to the rank it declares."""
        outer, declared = self._outer.get(layer.name), input_shape(layer)
        if outer is None or (declared is not None and len(declared) != len(outer)):
            return declared
        return outer

    def _inputs(self, ref: Ref) -> list[Shape | None]:
        layer, sources = self._graph.layers[ref.layer], self._sources(ref)
        if sources:
            return [self.of(source) for source in sources]
        shape = input_shape(layer)
        if shape is None:
            shape = shape_of(keras_json.settings(self._graph.entry).get("build_input_shape"))
        return [shape]

    def _reverses_axes(self, layer: Layer) -> bool:
        """Whether Keras notes a wrong shape for what a layer makes, and all that follows from it.

        It lists the axes that the ellipsis of "...c,cd->...d" stands for in reverse (measured with
        Keras 3.15, `_analyze_split_string` of einsum_dense.py). Ranks are right, and so is the
        shape of square images.
        """
        core, wrappers = unwrapped(layer)
        if core.graph is not None:
            found = self._interiors.setdefault(id(core.graph), {})
            if () not in found:
                found[()] = Shapes(core.graph, interiors=self._interiors)
            return bool(found[()]._misstated)
        equation = parse_equation(core.config.get("equation")) if core.builtin else None
        if core.class_name != "EinsumDense" or equation is None or equation.ellipsis != "left":
            return False
        reads = [call.reads[0] for call in layer.calls if call.reads]
        shapes = [without_axes(self._shapes.get(ref), wrappers) for ref in reads]
        elided = [shape and shape[1 : len(shape) - len(equation.inputs)] for shape in shapes]
        return not all(
            axes is not None and (len(axes) < 2 or (axes == axes[::-1] and None not in axes))
            for axes in elided
        )


_Interiors = dict[int, dict[tuple[Shape | None, ...], Shapes]]
"""By the identity of the nested model, which lives as long as the model, and what it is given."""


def is_float(dtype: str | None) -> bool:
    """Whether a dtype is one of floating-point numbers."""
    return dtype is not None and "float" in dtype


def _downstream(graph: Graph, is_source: Callable[[Layer], bool]) -> frozenset[str]:
    """The layers that are a source, or that read what depends on one."""
    waiting = [name for name, layer in graph.layers.items() if is_source(layer)]
    following: dict[str, list[str]] = {}
    for ref, calls in graph.readers.items() if waiting else ():
        following.setdefault(ref.layer, []).extend(name for name, _ in calls)
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += following.get(name, [])
    return frozenset(found)


def input_shape(layer: Layer) -> Shape | None:
    """The shape that a layer's config declares for its input, batch included."""
    found = (shape_of(layer.config.get(key)) for key in ("batch_shape", "batch_input_shape"))
    return next((shape for shape in found if shape is not None), None)


def output_shape(layer: Layer, inputs: list[Shape | None], output: int = 0) -> Shape | None:
    """The shape of what a layer makes of tensors of these shapes."""
    if not inputs:
        return None
    rule = layers.facts(layer).shape
    found = None if rule is None else rule(layer, inputs, output)
    if found is None:
        return None
    longest = max((size for size in found if size is not None), default=0)
    if longest > LONGEST_AXIS:
        raise UnsafeModelError(
            f"{layer.class_name} {shortened(layer.name)!r} would make {longest} numbers of an axis,"
            f" and no model can have more than {LONGEST_AXIS}; refused"
        )
    # A layer that crops more than there is has no size.
    return tuple(size if size is None or size >= 0 else None for size in found)


def without_axes(shape: Shape | None, wrappers: int) -> Shape | None:
    """The shape that a layer inside this many TimeDistributed sees."""
    return None if shape is None else (*shape[:1], *shape[1 + wrappers :])
