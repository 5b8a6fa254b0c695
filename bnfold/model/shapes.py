"""The static shapes and the dtypes of a graph's tensors, as far as the file alone tells.

Keras 3 notes both for every tensor that a layer reads. For older files, for a Sequential and for
what nobody reads, the shape follows from the class and the settings of the layer that made the
tensor. A size that is open or unknown is None; a shape that is
unknown altogether is None. Whoever asks must take None for a refusal.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from bnfold.model import keras_json, layers
from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Graph, Layer, Ref, unwrapped
from bnfold.model.policy import policy, policy_name

Shape = tuple[int | None, ...]

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
        self._misstated = _behind(graph, self._reverses_axes)

    def of(self, ref: Ref) -> Shape | None:
        """The shape of a tensor, batch included."""
        shape = self._look_up(ref, self._shapes, self._find_shape)
        if shape is None or ref.layer not in self._misstated:
            return shape
        return (shape[0], *(None,) * (len(shape) - 1))

    def dtype(self, ref: Ref) -> str | None:
        """The dtype of a tensor: declared by its input layer, its maker's, or as noted.

        A layer without weights may hand on integers as they are, whatever Keras notes for it.
        """
        return self._look_up(ref, self._dtypes, self._find_dtype)

    def inside(self, name: str, call: int) -> "Shapes":
        """The shapes inside one call of a nested model, or of one in wrappers.

        Calls that are given the same shapes share them. Of a model that is called with very many
        different ones, the later calls are known by the shapes that its inputs declare.
        """
        core, wrappers = unwrapped(self._graph.layers[name])
        nested = cast(Graph, core.graph)
        given = tuple(without_axes(shape, wrappers) for shape in self._inputs(Ref(name, call)))
        found = self._interiors.setdefault(id(nested), {})
        if len(found) >= _MOST_INTERIORS and given not in found:
            given = ()
        if given not in found:
            known = dict(zip(nested.inputs, given, strict=False))
            found[given] = Shapes(nested, known, self._interiors)
        return found[given]

    def _look_up(self, ref: Ref, known: dict[Ref, _Fact], find: Callable[[Ref], _Fact]) -> _Fact:
        """What `find` says of a tensor, asked first for what it is made of, however far back."""
        waiting, entered = [ref], set[Ref]()
        while waiting:
            top = waiting[-1]
            missing = [] if top in entered else self._sources(top)
            entered.add(top)
            waiting += [source for source in missing if source not in known]
            if waiting[-1] == top:
                waiting.pop()
                if top not in known:
                    known[top] = find(top)
        return known[ref]

    def _sources(self, ref: Ref) -> tuple[Ref, ...]:
        return self._graph.layers[ref.layer].calls[ref.call].inputs

    def _find_dtype(self, ref: Ref) -> str | None:
        layer, _ = unwrapped(self._graph.layers[ref.layer])
        if layer.graph is not None and layer.graph.outputs:
            return self.inside(ref.layer, ref.call).dtype(layer.graph.outputs[ref.output])
        if layers.is_input(layer):
            return policy_name(layer)
        sources = [self._dtypes.get(source) for source in self._sources(ref)]
        makes_floats = layer.class_name in layers.MAKES_FLOATS
        keeps_floats = layer.class_name in layers.KEEPS_FLOATS and all(map(is_float, sources))
        if layer.builtin and not layer.is_operation and (makes_floats or keeps_floats):
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
            shape = build_config.get("input_shape") if isinstance(build_config, dict) else None
            if layers.is_batchnorm(layer) and isinstance(shape, list):
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
            listed = keras_json.settings(self._graph.entry).get("build_input_shape")
            shape = tuple(listed) if isinstance(listed, list) else None
        return [shape]

    def _reverses_axes(self, layer: Layer) -> bool:
        """Whether Keras notes a wrong shape for what a layer makes, and all that follows from it.

        It lists the axes that the ellipsis of "...c,cd->...d" stands for in reverse (measured with
        Keras 3.15, `_analyze_split_string` of einsum_dense.py). Ranks are right, and so is the
        shape of square images.
        """
        core, wrappers = unwrapped(layer)
        if core.graph is not None:
            return bool(Shapes(core.graph, interiors=self._interiors)._misstated)
        equation = parse_equation(core.config.get("equation")) if core.builtin else None
        if core.class_name != "EinsumDense" or equation is None or equation.ellipsis != "left":
            return False
        shapes = [without_axes(self._shapes.get(call.inputs[0]), wrappers) for call in layer.calls]
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


def _behind(graph: Graph, is_source: Callable[[Layer], bool]) -> frozenset[str]:
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
    for key in ("batch_shape", "batch_input_shape"):
        shape = layer.config.get(key)
        if isinstance(shape, list):
            return tuple(shape)
    return None


def output_shape(layer: Layer, inputs: list[Shape | None], output: int = 0) -> Shape | None:
    """The shape of what a layer makes of tensors of these shapes."""
    if not layer.builtin or layer.is_operation or not inputs:
        return None
    if layer.class_name in layers.RECURRENT:
        return _recurrent(layer, inputs[0], output)
    rule = _RULES.get(layer.class_name)
    if rule is None:
        return None
    return rule(layer, inputs)


Rule = Callable[[Layer, list[Shape | None]], Shape | None]


def _same(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    return inputs[0]


def _joined(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    """Layers that broadcast: sizes that differ are left open unless one of them is 1."""
    shapes = [shape for shape in inputs if shape is not None]
    if len(shapes) != len(inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    return tuple(_broadcast(sizes) for sizes in zip(*shapes, strict=True))


def _broadcast(sizes: tuple[int | None, ...]) -> int | None:
    large = {size for size in sizes if size is None or size > 1}
    return large.pop() if len(large) == 1 else None if large else 1


def _concatenated(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    shapes = [shape for shape in inputs if shape is not None]
    axis = layer.config.get("axis", -1)
    if len(shapes) != len(inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    if type(axis) is not int or not -len(shapes[0]) <= axis < len(shapes[0]):
        return None
    axis %= len(shapes[0])
    sizes = [_known_or_none({shape[n] for shape in shapes}) for n in range(len(shapes[0]))]
    parts = [shape[axis] for shape in shapes]
    known = [part for part in parts if part is not None]
    sizes[axis] = sum(known) if len(known) == len(parts) else None
    return tuple(sizes)


def _known_or_none(sizes: set[int | None]) -> int | None:
    known = {size for size in sizes if size is not None}
    return known.pop() if len(known) == 1 else None


def _dense(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0]
    return None if shape is None else (*shape[:-1], _integer(layer.config.get("units")))


def _embedding(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0]
    return None if shape is None else (*shape, _integer(layer.config.get("output_dim")))


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def _einsum(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    """The config's `output_shape` without the batch and the axes of the ellipsis, then those.

    A size that it leaves open is that of the input's axis with the same letter.
    """
    equation, shape = parse_equation(layer.config.get("equation")), inputs[0]
    if equation is None or (shape is None and equation.ellipsis != "none"):
        return None
    known: Shape = shape if shape is not None else (None,) * len(equation.inputs)
    elided = len(known) - len(equation.inputs)
    named = known[elided:] if equation.ellipsis == "left" else known[: len(equation.inputs)]
    letters = dict(zip(equation.inputs, named, strict=False))
    listed = layer.config.get("output_shape")
    listed = listed if isinstance(listed, list) else [listed]
    behind = equation.output[-len(listed) :]
    if elided < 0 or len(behind) != len(listed):
        return None
    sizes = tuple(_integer(n) or letters.get(a) for n, a in zip(listed, behind, strict=True))
    if equation.ellipsis == "left":
        return (*known[:elided], *sizes)
    return (known[0], *sizes, *known[len(equation.inputs) :])


def _reshaped(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    target = layer.config.get("target_shape")
    if not isinstance(target, list) or not all(type(size) is int for size in target):
        return None
    batch = inputs[0][0] if inputs[0] else None
    if -1 not in target:
        return (batch, *target)
    total = _product(inputs[0])
    rest = math.prod(size for size in target if size != -1)
    missing = total // rest if total is not None and rest else None
    return (batch, *(missing if size == -1 else size for size in target))


def _product(shape: Shape | None) -> int | None:
    """How many numbers a sample has."""
    sizes = [size for size in shape[1:] if size is not None] if shape is not None else []
    return math.prod(sizes) if shape is not None and len(sizes) == len(shape) - 1 else None


def _flattened(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    return (inputs[0][0] if inputs[0] else None, _product(inputs[0]))


def _permuted(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    dims, shape = layer.config.get("dims"), inputs[0]
    if shape is None or not isinstance(dims, list) or len(dims) != len(shape) - 1:
        return None
    return (shape[0], *(shape[dim] for dim in dims))


def _repeated(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0]
    times = _integer(layer.config.get("n"))
    return (None, times, None) if shape is None else (shape[0], times, *shape[1:])


def _global_pooling(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    shape, rank = inputs[0], layers.POOLED_RANK[layer.class_name]
    channels_last = layer.config.get("data_format", "channels_last") != "channels_first"
    batch = shape[0] if shape is not None else None
    channels = shape[-1 if channels_last else 1] if shape is not None else None
    if not layer.config.get("keepdims"):
        return (batch, channels)
    ones = (1,) * (rank - 2)
    return (batch, *ones, channels) if channels_last else (batch, channels, *ones)


def _windowed(layer: Layer, inputs: list[Shape | None]) -> Shape | None:
    """Layers that slide over, pad, crop or stretch the spatial axes of their input."""
    rank = layers.FIXED_RANK[layer.class_name]
    shape = inputs[0]
    if shape is None or len(shape) != rank:
        shape = (None,) * rank
    first = layer.config.get("data_format") == "channels_first"
    space = shape[2:] if first else shape[1:-1]
    sizes = tuple(_space(layer, axis, size) for axis, size in enumerate(space))
    channels = shape[1] if first else shape[-1]
    if layer.class_name in layers.CONVOLUTIONS:
        channels = _integer(layer.config.get("filters"))
    return (shape[0], channels, *sizes) if first else (shape[0], *sizes, channels)


def _space(layer: Layer, axis: int, size: int | None) -> int | None:
    """The size of one spatial axis behind a layer."""
    kind = layer.class_name[:-2]
    if size is None or "Transpose" in layer.class_name or kind.startswith("Adaptive"):
        return None
    if kind == "UpSampling":
        factor = per_axis(layer, "size", axis)
        return None if factor is None else size * factor
    if kind in ("ZeroPadding", "Cropping"):
        ends = _both_ends(layer.config.get(kind.removeprefix("Zero").lower()), axis)
        return None if ends is None else size + (ends if kind == "ZeroPadding" else -ends)
    window = window_of(layer, axis)
    if window is None:
        return None
    width, stride = window
    if layer.config.get("padding") in ("same", "causal"):
        return -(-size // stride)
    return (size - width) // stride + 1 if layer.config.get("padding") == "valid" else None


def window_of(layer: Layer, axis: int) -> tuple[int, int] | None:
    """How far a layer's window reaches on a spatial axis, dilation included, and its stride."""
    pooling = "pool_size" in layer.config
    width = per_axis(layer, "pool_size" if pooling else "kernel_size", axis)
    stride = per_axis(layer, "strides", axis)
    if pooling and layer.config.get("strides") is None:
        stride = width
    dilation = 1 if "dilation_rate" not in layer.config else per_axis(layer, "dilation_rate", axis)
    if not width or not stride or not dilation:
        return None
    return (width - 1) * dilation + 1, stride


def per_axis(layer: Layer, setting: str, axis: int) -> int | None:
    """A setting that is one number for all spatial axes or a list with one for each."""
    value = layer.config.get(setting)
    if isinstance(value, list):
        value = value[axis] if axis < len(value) else None
    return _integer(value)


def _both_ends(value: object, axis: int) -> int | None:
    """The sum of both ends' amounts: of a number, a pair, or a list of one of these per axis."""
    if isinstance(value, list) and len(value) > axis:
        if all(type(end) is int for end in value) and len(value) == 2 and axis == 0:
            pair = value  # one spatial axis; with two, Keras writes pairs
            return int(sum(pair))
        value = value[axis]
        if isinstance(value, list):
            return sum(value) if all(type(end) is int for end in value) else None
    return 2 * value if isinstance(value, int) else None


def _recurrent(layer: Layer, shape: Shape | None, output: int) -> Shape | None:
    batch = shape[0] if shape is not None else None
    units = _integer(layer.config.get("units"))
    if output == 0 and layer.config.get("return_sequences"):
        return (batch, shape[1] if shape is not None and len(shape) > 1 else None, units)
    return (batch, units)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(layers.SAME_SHAPE, _same),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), _joined),
    "Concatenate": _concatenated,
    "Dense": _dense,
    "Embedding": _embedding,
    "EinsumDense": _einsum,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Permute": _permuted,
    "RepeatVector": _repeated,
    **dict.fromkeys(layers.POOLED_RANK, _global_pooling),
    **dict.fromkeys((*layers.WINDOWED, *layers.CONVOLUTIONS), _windowed),
}


def without_axes(shape: Shape | None, wrappers: int) -> Shape | None:
    """The shape that a layer inside this many TimeDistributed sees."""
    return None if shape is None else (*shape[:1], *shape[1 + wrappers :])
