"""How the shape of what a layer makes follows from its settings and the shapes that it is given.

A shape includes the batch; a size that is open or unknown is None, and so is a shape of which
nothing is known. Each rule is a value of a row in `bnfold.model.layers`.
"""

import math
from collections.abc import Callable, Sequence

from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Layer

Shape = tuple[int | None, ...]

LARGEST_SIZE = (1 << 63) - 1
"""Of a number that a layer is set to, in every runtime."""
LONGEST_AXIS = 1 << 28
"""In float32 that is 1 GiB for one sample: a whole chromosome or a volume of 512 x 512 x 1024."""


def is_shape(value: object) -> bool:
    """Whether a value of a config is a list of sizes, each an integer or null for an open one.

    None is above LONGEST_AXIS.
    """
    return isinstance(value, list) and all(
        size is None or (type(size) is int and 0 <= size <= LONGEST_AXIS) for size in value
    )


def shape_of(value: object) -> Shape | None:
    """The shape that a value of a config is; None where it is none."""
    return tuple(value) if isinstance(value, list) and is_shape(value) else None


ShapeRule = Callable[[Layer, Sequence[Shape | None], int], Shape | None]
"""Called with a layer, the shapes of its inputs (one at least), and the number of the output."""


def same(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """That of the one input."""
    return inputs[0]


def same_rank(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """As many axes as all inputs have, of sizes that are not worked out; of the first output."""
    ranks = {None if shape is None else len(shape) for shape in inputs}
    rank = ranks.pop() if len(ranks) == 1 and output == 0 else None
    return None if rank is None else (None,) * rank


def broadcast(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """Layers that broadcast: sizes that differ are left open unless one of them is 1."""
    shapes = [shape for shape in inputs if shape is not None]
    if len(shapes) != len(inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    return tuple(_broadcast(sizes) for sizes in zip(*shapes, strict=True))


def _broadcast(sizes: tuple[int | None, ...]) -> int | None:
    large = {size for size in sizes if size is None or size > 1}
    return large.pop() if len(large) == 1 else None if large else 1


def concatenated(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """Sizes add up along the axis, and agree along all others."""
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


def dense(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """`units` on the last axis."""
    shape = inputs[0]
    return None if shape is None else (*shape[:-1], _integer(layer.config.get("units")))


def embedding(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """`output_dim` on an axis of its own."""
    shape = inputs[0]
    return None if shape is None else (*shape, _integer(layer.config.get("output_dim")))


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def einsum(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
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
    last = equation.output[-len(listed) :]
    if elided < 0 or len(last) != len(listed):
        return None
    sizes = tuple(_integer(n) or letters.get(a) for n, a in zip(listed, last, strict=True))
    if equation.ellipsis == "left":
        return (*known[:elided], *sizes)
    return (known[0], *sizes, *known[len(equation.inputs) :])


def reshaped(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """The `target_shape`, in which one -1 is what is left."""
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


def flattened(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """All numbers of a sample on one axis."""
    return (inputs[0][0] if inputs[0] else None, _product(inputs[0]))


def permuted(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """The axes in the order of `dims`, which counts them from 1."""
    dims, shape = layer.config.get("dims"), inputs[0]
    if shape is None or not isinstance(dims, list) or sorted(dims) != [*range(1, len(shape))]:
        return None
    return (shape[0], *(shape[dim] for dim in dims))


def repeated(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """`n` times along a new axis after the batch."""
    shape = inputs[0]
    times = _integer(layer.config.get("n"))
    return (None, times, None) if shape is None else (shape[0], times, *shape[1:])


def recurrent(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """`units` for the last step, for every one with `return_sequences`, and for each state."""
    shape = inputs[0]
    batch = shape[0] if shape is not None else None
    units = _integer(layer.config.get("units"))
    if output == 0 and layer.config.get("return_sequences"):
        return (batch, shape[1] if shape is not None and len(shape) > 1 else None, units)
    return (batch, units)


def recurrent_convolution(rank: int) -> ShapeRule:
    """`filters` channels, for the last step or for every one; the space is not worked out."""

    def rule(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
        steps = (None,) if output == 0 and layer.config.get("return_sequences") else ()
        channels, space = _integer(layer.config.get("filters")), (None,) * (rank - 3)
        batch = inputs[0][0] if inputs[0] else None
        if layer.config.get("data_format") == "channels_first":
            return (batch, *steps, channels, *space)
        return (batch, *steps, *space, channels)

    return rule


def without_space(rank: int) -> ShapeRule:
    """Global pooling, which takes the spatial axes away, or leaves them with size 1."""

    def rule(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
        shape = inputs[0]
        channels_last = layer.config.get("data_format", "channels_last") != "channels_first"
        batch = shape[0] if shape is not None else None
        channels = shape[-1 if channels_last else 1] if shape is not None else None
        if not layer.config.get("keepdims"):
            return (batch, channels)
        ones = (1,) * (rank - 2)
        return (batch, *ones, channels) if channels_last else (batch, channels, *ones)

    return rule


Size = Callable[[Layer, int, int], int | None]
"""The size of a spatial axis of the output, by the number of the axis and its size in the input."""


def in_space(rank: int, size_of: Size, *, makes_channels: bool = False) -> ShapeRule:
    """Layers that slide over, pad, crop or stretch the spatial axes of their input."""

    def rule(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
        shape = inputs[0]
        if shape is None or len(shape) != rank:
            shape = (None,) * rank
        first = layer.config.get("data_format") == "channels_first"
        space = shape[2:] if first else shape[1:-1]
        sizes = [None if n is None else size_of(layer, axis, n) for axis, n in enumerate(space)]
        channels = shape[1] if first else shape[-1]
        if makes_channels:
            channels = _integer(layer.config.get("filters"))
        return (shape[0], channels, *sizes) if first else (shape[0], *sizes, channels)

    return rule


def unknown(layer: Layer, axis: int, size: int) -> int | None:
    """A size that is not worked out."""
    return None


def stretched(layer: Layer, axis: int, size: int) -> int | None:
    """UpSampling: `size` times as many."""
    factor = per_axis(layer, "size", axis)
    return None if factor is None else size * factor


def padded(layer: Layer, axis: int, size: int) -> int | None:
    """ZeroPadding: more at both ends."""
    ends = _both_ends(layer.config.get("padding"), axis)
    return None if ends is None else size + ends


def cropped(layer: Layer, axis: int, size: int) -> int | None:
    """Cropping: less at both ends."""
    ends = _both_ends(layer.config.get("cropping"), axis)
    return None if ends is None else size - ends


def slid(layer: Layer, axis: int, size: int) -> int | None:
    """As many places as a window fits in: convolutions and pooling."""
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
