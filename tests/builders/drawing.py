"""Random Keras models from the whole catalogue, drawn by hypothesis as lines of Python.

A drawn model *is* its source: what hypothesis prints and reduces is the code of the model, which
can be pasted into a test. Every line calls one layer; the numbers in its weights follow from the
names of its layers (`furnish`), so that the code alone says everything.

Most axes have the same size, on which a fold along the wrong one would go unnoticed by shape.
"""

from support import keras, numbers  # isort: skip - it chooses the backend

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

L = keras.layers
BN = L.BatchNormalization
TD = L.TimeDistributed
ops = keras.ops

SIZE = 4
"""The size of nearly all axes."""

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Drawn:
    """A model and the code that made it."""

    code: tuple[str, ...]
    dtype: str
    form: str
    model: Any = field(compare=False)

    def __repr__(self) -> str:
        """The code, as a test would have it."""
        return "\n".join(("", f"# {self.dtype}, {self.form}", *self.code))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would show the fields


def build(code: Sequence[str], dtype: str = "float64") -> Any:
    """The model that lines of drawn code make: the one they name `model`."""
    _start(dtype)
    names = dict(NAMES)
    exec("\n".join(code), names)
    return furnish(names["model"])


def _start(dtype: str) -> None:
    """Let names count from 0, and inputs and layers be of a dtype."""
    keras.backend.clear_session(free_memory=False)
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


NAMES: dict[str, Any] = {"keras": keras, "L": L, "BN": BN, "TD": TD, "ops": ops, "np": np}
"""What drawn code can name."""


def furnish(model: Any) -> Any:
    """Give every variable numbers under which no mistake of a fold cancels out.

    A BatchNormalization with "up" in its name has positive scales, one with "still" no shift, one
    with "wild" variances from 1e-9 to 1e6.
    """
    generator = np.random.default_rng(5)
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if variable.dtype.startswith(("float", "bfloat")) and "seed" not in variable.name:
                shape = tuple(variable.shape)
                variable.assign(_fit(layer.name, variable.name, shape, generator))
    return model


def _fit(layer: str, name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    value = numbers(name, shape, generator)
    if name == "gamma" and "up" in layer:
        return np.abs(value)
    if name in ("beta", "moving_mean") and "still" in layer:
        return 0 * value
    if name == "moving_variance" and "wild" in layer:
        return 10.0 ** generator.uniform(-9, 6, shape)
    return value


@st.composite
def models(draw: Draw) -> Drawn:
    """A model of some 3 to 20 layers; legacy files hold no operation."""
    dtype = draw(st.sampled_from(["float64"] * 6 + ["float32"]))
    form = draw(st.sampled_from([".keras", ".keras", ".h5"]))
    _start(dtype)
    draft = Draft(draw, exact=dtype == "float64", legacy=form == ".h5")
    draft.grow()
    return Drawn(tuple(draft.code), dtype, form, furnish(draft.names["model"]))


class Draft:
    """A model while it grows: a pool of tensors, each made by one line of code."""

    def __init__(
        self, draw: Draw, *, exact: bool, legacy: bool, parent: "Draft | None" = None
    ) -> None:
        self.draw, self.exact, self.legacy, self.parent = draw, exact, legacy, parent
        self.code: list[str] = [] if parent is None else parent.code
        self.names: dict[str, Any] = dict(NAMES) if parent is None else parent.names
        self.counter: list[int] = [0] if parent is None else parent.counter
        self.depth = 0 if parent is None else parent.depth + 1
        self.pool: list[str] = []
        self.unread: set[str] = set()
        self.layers: list[tuple[str, tuple[Any, ...]]] = []  # names of layers, shapes they read

    # --- choosing and writing --------------------------------------------------------------------

    def pick(self, values: Sequence[Any]) -> Any:
        """One of several values; hypothesis reduces to the first."""
        return self.draw(st.sampled_from(list(values)))

    def chance(self, percent: int) -> bool:
        """Whether something happens that does so in that share of cases; reduces to no."""
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)

    def fresh(self, kind: str) -> str:
        """A name that is not taken."""
        self.counter[0] += 1
        return f"{kind}{self.counter[0]}"

    def write(self, name: str, expression: str) -> bool:
        """Add a line, unless Keras refuses it."""
        try:
            self.names[name] = eval(expression, self.names)
        except (ValueError, TypeError, IndexError, ZeroDivisionError):
            return False
        self.code.append(f"{name} = {expression}")
        return True

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of a tensor."""
        return tuple(self.names[name].shape)

    def take(self, *, like: str | None = None, rank: int | None = None) -> str | None:
        """A tensor to read, often the newest, perhaps of a shape or rank."""
        fits = [
            name
            for name in self.pool
            if (like is None or self.shape(name) == self.shape(like))
            and (rank is None or len(self.shape(name)) == rank)
        ]
        if not fits:
            return None
        return fits[-1] if self.chance(65) else self.pick(fits)

    def put(self, expression: str, reads: Sequence[str], layer: str | None = None) -> str | None:
        """Add a tensor to the pool."""
        name = self.fresh("t")
        if not self.write(name, expression):
            return None
        sizes = [SIZE if size is None else size for size in self.shape(name)]
        if not 0 < np.prod(sizes) <= 12_000:
            self.code.pop()
            return None
        self.unread -= set(reads)
        self.unread.add(name)
        self.pool.append(name)
        if layer is not None:
            self.layers.append((layer, tuple(self.shape(read) for read in reads)))
        return name

    def call(self, maker: str, source: str, arguments: str = "") -> str | None:
        """A new layer, and its first call."""
        layer = self.fresh("l")
        if not self.write(layer, maker):
            return None
        found = self.put(f"{layer}({source}{arguments})", [source], layer)
        if found is None:
            self.code.remove(f"{layer} = {maker}")
        return found

    # --- the model -------------------------------------------------------------------------------

    def grow(self, inputs: Sequence[tuple[int | None, ...]] = ()) -> str:
        """Draw the whole model; its name."""
        given = [self.input(shape) for shape in inputs or self.input_shapes()]
        for _ in range(self.draw(st.integers(2, 4) if self.depth else st.integers(4, 12))):
            self.step()
        if len(self.pool) == len(given):
            self.call("L.Activation('tanh')", given[0])
        name = "model" if self.depth == 0 else self.fresh("m")
        made = "[" + ", ".join(self.outputs(given)) + "]"
        if made.count(",") == 0 and not self.chance(20):
            made = made[1:-1]
        read = given[0] if len(given) == 1 else "[" + ", ".join(given) + "]"
        if len(given) == 2 and self.chance(25):
            read = f"dict({given[0]}={given[0]}, {given[1]}={given[1]})"
        self.write(name, f"keras.Model({read}, {made}, name={name!r})")
        return name

    def input_shapes(self) -> list[tuple[int | None, ...]]:
        """The shapes of the inputs, without the batch."""
        rank = self.pick([3, 4, 2, 3, 4, 5])
        shapes = []
        for _ in range(self.pick([1, 1, 2])):
            axes: list[int | None] = [SIZE] * (rank - 1)
            if rank > 2 and self.chance(10):
                axes[0] = None
            if rank > 2 and self.chance(20):
                axes[self.pick(range(rank - 2))] = SIZE + 1
            shapes.append(tuple(axes))
        return shapes

    def input(self, shape: tuple[int | None, ...]) -> str:
        """An input of numbers; one of integers goes through an Embedding at once."""
        name = self.fresh("i")
        if self.depth == 0 and len(shape) == 2 and self.chance(15):
            self.write(name, f"keras.Input({shape[:1]!r}, dtype='int32', name={name!r})")
            masked = ", mask_zero=True" if not self.legacy and self.chance(15) else ""
            self.call(f"L.Embedding(5, {SIZE}{masked})", name)
        else:
            self.write(name, f"keras.Input({shape!r}, name={name!r})")
            self.pool.append(name)
        self.unread.add(name)
        return name

    def outputs(self, given: Sequence[str]) -> list[str]:
        """All that nothing reads, and at times a tensor from the middle."""
        ends = [name for name in self.pool if name in self.unread and name not in given]
        middle = [name for name in self.pool if name not in given and name not in ends]
        if middle and self.chance(15):
            ends.append(self.pick(middle))
        if self.depth:
            ends = ends[-2:]
        if len(ends) > 1 and self.chance(20):
            ends.reverse()
        return ends

    def step(self) -> None:
        """One more layer, or a few."""
        steps = [
            *[self.norm] * 6, *[self.linear] * 5, *[self.transparent] * 5, self.opaque,
            *[self.join] * 2, self.reuse, self.reshape, self.wrapped, self.sequential,
            self.block, self.block, self.recurrent,
        ]  # fmt: skip
        if not self.legacy:
            steps += [self.operation, self.operation]
        if self.depth < 2:
            steps.append(self.nested)
        self.pick(steps)()

    # --- steps -----------------------------------------------------------------------------------

    def options(self, **choices: Sequence[Any]) -> str:
        """Keyword arguments, each one of its values; the first value of each is the default."""
        chosen = {name: self.pick(values) for name, values in choices.items()}
        given = {name: value for name, value in chosen.items() if value != choices[name][0]}
        return "".join(f", {name}={value!r}" for name, value in given.items())

    def norm_maker(self, rank: int) -> str:
        """A BatchNormalization."""
        manner = "".join(word for word, share in _MANNERS if self.chance(share))
        axis = -1
        if self.chance(25):
            axis = self.pick([rank - 1, *range(1, rank - 1), -2] if rank > 2 else [1])
        epsilon = self.pick([0.001, 1e-7, 0.5])
        rest = self.options(center=[True, True, False], scale=[True, True, True, False])
        if self.chance(4):
            rest += ", trainable=False"
        name = self.fresh(f"bn_{manner}")
        return f"BN(axis={axis}, epsilon={epsilon}, name={name!r}{rest})"

    def norm(self) -> None:
        """BatchNormalization, rarely in training mode."""
        source = self.take()
        if source is not None:
            training = ", training=True" if self.chance(3) else ""
            self.call(self.norm_maker(len(self.shape(source))), source, training)

    def linear_maker(self, rank: int, channels: int | None) -> str:
        """A layer that is linear in its input."""
        common = self.options(use_bias=[True, False], activation=[None] * 6 + ["tanh", "relu"])
        units = self.pick([SIZE, SIZE, SIZE, 3, 6])
        if rank == 2 or self.chance(20):
            return f"L.Dense({units}{common})"
        if self.chance(15):
            return self.einsum_maker(rank, channels)
        return self.convolution_maker(rank, channels, units, common)

    def convolution_maker(self, rank: int, channels: int | None, units: int, common: str) -> str:
        """A convolution of any kind."""
        dims = rank - 2
        kinds = ["Conv", "Conv", "Conv", "ConvTranspose", *(["DepthwiseConv", "SeparableConv"] * 2)]
        kind = self.pick(kinds if dims < 3 else kinds[:4])
        kernel, padding = self.pick([1, 2, 2, 3]), self.pick(["valid", "same"])
        rest = f", padding={padding!r}{common}"
        if not self.exact and self.chance(20):
            rest += ", data_format='channels_first'"
        if kind == "ConvTranspose":
            rest += self.options(strides=[1, 2])
            return f"L.Conv{dims}DTranspose({units}, {kernel}{rest})"
        if kind == "DepthwiseConv":
            rest += self.options(depth_multiplier=[1, 2], strides=[1, 2])
            return f"L.DepthwiseConv{dims}D({kernel}{rest})"
        if kind == "SeparableConv":
            rest += self.options(depth_multiplier=[1, 2])
            return f"L.SeparableConv{dims}D({units}, {kernel}{rest})"
        if dims == 1 and self.chance(25):
            rest = rest.replace(f"padding={padding!r}", "padding='causal'")
        even = bool(channels) and channels % 2 == 0 and units % 2 == 0
        rest += self.options(groups=[1, 1, 2 if even else 1])
        rest += (
            self.options(strides=[1, 2]) if self.chance(50) else self.options(dilation_rate=[1, 2])
        )
        return f"L.Conv{dims}D({units}, {kernel}{rest})"

    def einsum_maker(self, rank: int, channels: int | None) -> str:
        """An EinsumDense: of the last axis, of another, of several."""
        size = channels or SIZE
        if rank == 3:
            equation, shape, axes = self.pick(
                [
                    ("abc,cd->abd", f"(None, {SIZE})", [None, "d"]),
                    ("abc,bd->adc", f"({SIZE}, {size})", [None, "d", "dc"]),
                    ("abc,cde->abde", f"(None, 2, {SIZE})", [None, "de", "e", "d"]),
                    ("abc,bcd->abd", f"(None, {SIZE})", [None, "d"]),
                    ("abc,c->abc", f"(None, {size})", [None, "c"]),
                    ("abc,cd->ad", f"({SIZE},)", [None, "d"]),
                    ("...c,cd->...d", f"({SIZE},)", [None, "d"]),
                ]
            )
        else:
            equation, shape, axes = self.pick(
                [
                    ("...c,cd->...d", f"({SIZE},)", [None, "d"]),
                    ("ab...,bd->ad...", f"({SIZE},)", [None, "d"]),
                ]
            )
        return f"L.EinsumDense({equation!r}, {shape}{self.options(bias_axes=axes)})"

    def linear(self) -> None:
        """A linear layer; half the time with BatchNormalization behind."""
        source = self.take()
        if source is None:
            return
        made = self.call(self.linear_maker(len(self.shape(source)), self.shape(source)[-1]), source)
        if made is not None and self.chance(50):
            self.call(self.norm_maker(len(self.shape(made))), made)

    def transparent(self) -> None:
        """A layer that a map may cross."""
        source = self.take()
        if source is None:
            return
        rank = len(self.shape(source))
        makers = [*_ANY_RANK, *_OF_RANK.get(rank, ())]
        if not self.exact:
            makers += _INEXACT.get(rank, ())
        self.call(self.pick(makers), source)

    def opaque(self) -> None:
        """A layer that no map crosses."""
        source = self.take()
        if source is not None:
            self.call(self.pick(_OPAQUE), source)

    def join(self) -> None:
        """A layer that merges tensors of one shape, also the same one twice."""
        first = self.take()
        if first is None:
            return
        names = [first] + [self.take(like=first) or first for _ in range(self.pick([1, 1, 2]))]
        kind = self.pick(
            ["Add", "Concatenate", "Subtract", "Multiply", "Average", "Maximum", "Minimum"]
        )
        names = names[:2] if kind == "Subtract" else names
        rank = len(self.shape(first))
        axis = f"axis={self.pick([-1, *range(1, rank)])}" if kind == "Concatenate" else ""
        self.put(f"L.{kind}({axis})([{', '.join(names)}])", names)

    def operation(self) -> None:
        """Arithmetic."""
        first = self.take()
        second = first and (self.take(like=first) or first)
        if first is not None and second is not None:
            form = self.pick(_OPERATIONS)
            reads = [first, second] if "y" in form.replace("expand", "") else [first]
            self.put(form.format(x=first, y=second), reads)

    def reuse(self) -> None:
        """Another call of a layer that is there."""
        fits = [
            (layer, name)
            for layer, shapes in self.layers
            for name in self.pool
            if len(shapes) == 1 and shapes[0] == self.shape(name)
        ]
        if fits:
            layer, source = self.pick(fits)
            self.put(f"{layer}({source})", [source])

    def reshape(self) -> None:
        """A change of rank."""
        source = self.take()
        if source is None:
            return
        shape = self.shape(source)
        makers = list(_RESHAPES.get(len(shape), ()))
        if None not in shape[1:]:
            total = int(np.prod(shape[1:]))
            makers += ["L.Flatten()", f"L.Reshape({(total // shape[-1], shape[-1])!r})"]
            makers += [f"L.Reshape({(shape[-1], -1)!r})"]
            if total % (2 * SIZE) == 0:
                makers.append(f"L.Reshape((2, {total // 2 // SIZE}, {SIZE}))")
        if makers:
            self.call(self.pick(makers), source)

    def wrapped(self) -> None:
        """A TimeDistributed around a linear, transparent or normalizing layer."""
        source = self.take()
        if source is None or len(self.shape(source)) < 3:
            return
        rank, channels = len(self.shape(source)) - 1, self.shape(source)[-1]
        kind = self.pick(["norm", "linear", "transparent"])
        if kind == "norm":
            inside = self.norm_maker(rank)
        elif kind == "linear":
            inside = self.linear_maker(rank, channels)
        else:
            inside = self.pick([*_ANY_RANK, *_OF_RANK.get(rank, ())])
        self.call(f"TD({inside})", source)

    def recurrent(self) -> None:
        """A recurrent layer, with BatchNormalization in front of it half the time."""
        source = self.take(rank=3)
        if source is None:
            return
        if not self.legacy and self.chance(10):
            source = self.call("L.Masking(0.25)", source) or source
        if self.chance(50):
            source = self.call(self.norm_maker(3), source) or source
        kind = self.pick(["LSTM", "GRU", "SimpleRNN"])
        rest = self.options(
            return_sequences=[True, False], use_bias=[True, False], go_backwards=[False, True]
        )
        rest = rest if "return_sequences" in rest else rest + ", return_sequences=True"
        if kind == "GRU":
            rest += self.options(reset_after=[True, False])
        maker = f"L.{kind}({SIZE}{rest})"
        if self.chance(30):
            merged = self.options(merge_mode=["concat", "sum"])
            maker = f"L.Bidirectional({maker}{merged})"
        self.call(maker, source)

    def block(self) -> None:
        """What people write: a linear layer with an activation, transparent layers, BN, linear."""
        source = self.take()
        if source is None:
            return
        rank = len(self.shape(source))
        makers = [self.linear_maker(rank, self.shape(source)[-1]), self.norm_maker(rank)]
        makers.insert(self.pick([1, 2]), self.pick([*_ANY_RANK, *_OF_RANK.get(rank, ())]))
        tensor: str | None = source
        for maker in makers:
            tensor = tensor and self.call(maker, tensor)
        if tensor is not None:
            self.call(self.linear_maker(rank, self.shape(tensor)[-1]), tensor)

    def sequential(self) -> None:
        """A Sequential of some layers, perhaps called again later."""
        source = self.take()
        if source is None:
            return
        shape = self.shape(source)
        rank = len(shape)
        makers = [self.linear_maker(rank, shape[-1]), self.norm_maker(rank)]
        if self.chance(40):
            makers.insert(self.pick([0, 1, 2]), self.pick(_ANY_RANK))
        if self.chance(50):
            makers.reverse()
        inside = ", ".join([f"keras.Input({shape[1:]!r})", *makers])
        self.call(f"keras.Sequential([{inside}])", source)

    def nested(self) -> None:
        """A Functional model inside, called once or twice."""
        source = self.take()
        if source is None or None in self.shape(source)[1:]:
            return
        others = [self.take(like=source) or source] if self.chance(25) else []
        inside = Draft(self.draw, exact=self.exact, legacy=self.legacy, parent=self)
        name = inside.grow([self.shape(source)[1:]] * (1 + len(others)))
        model = self.names[name]
        for _ in range(self.pick([1, 1, 1, 2])):
            given = [source, *others]
            if isinstance(model._inputs_struct, dict):
                read = ", ".join(map("{}={}".format, model._inputs_struct, given))
                read = f"dict({read})"
            else:
                read = given[0] if len(given) == 1 else "[" + ", ".join(given) + "]"
            for number in range(len(model.outputs)):
                pick = f"keras.tree.flatten({name}_made)[{number}]"
                if number == 0:
                    self.write(f"{name}_made", f"{name}({read})")
                self.put(pick, given)
            source = self.take(like=source) or source


_MANNERS = (("up", 40), ("still", 30), ("wild", 10))

_ANY_RANK = (
    "L.Dropout(0.5)", "L.ReLU()", "L.LeakyReLU()", "L.Activation('linear')", "L.Identity()",
    "L.Rescaling(-0.5, offset=0.25)", "L.PReLU()", "L.GaussianNoise(0.1)", "L.Activation('relu')",
    "L.ReLU(negative_slope=0.2)", "L.ReLU(max_value=6.0)", "L.ActivityRegularization(0.1)",
)  # fmt: skip

_OF_RANK: dict[int, Sequence[str]] = {
    3: (
        "L.MaxPooling1D(2)", "L.AveragePooling1D(2)", "L.MaxPooling1D(3, 1, padding='same')",
        "L.AveragePooling1D(3, 2, padding='same')", "L.UpSampling1D(2)", "L.ZeroPadding1D(1)",
        "L.Cropping1D((1, 0))", "L.SpatialDropout1D(0.5)", "L.Permute((2, 1))",
        "L.MaxPooling1D(2, data_format='channels_first')",
    ),
    4: (
        "L.MaxPooling2D(2)", "L.AveragePooling2D(2)", "L.MaxPooling2D(3, 1, padding='same')",
        "L.AveragePooling2D(3, 2, padding='same')", "L.UpSampling2D((1, 2))", "L.ZeroPadding2D(1)",
        "L.Cropping2D(((1, 0), (0, 1)))", "L.SpatialDropout2D(0.5)", "L.Permute((3, 1, 2))",
        "L.Permute((2, 1, 3))", "L.ZeroPadding2D(((0, 1), (1, 0)))",
        "L.AveragePooling2D(2, data_format='channels_first')",
        "L.ZeroPadding2D(1, data_format='channels_first')",
    ),
    5: ("L.UpSampling3D(2)", "L.ZeroPadding3D(1)", "L.Cropping3D(1)", "L.Permute((4, 1, 3, 2))"),
}  # fmt: skip

_INEXACT: dict[int, Sequence[str]] = {
    4: (
        "L.UpSampling2D(2, interpolation='bilinear')", "L.Resizing(3, 5)", "L.CenterCrop(2, 3)",
        "L.Resizing(3, 3, pad_to_aspect_ratio=True)",
    ),
    5: ("L.MaxPooling3D(2)", "L.AveragePooling3D(2, 1, padding='same')"),
}  # fmt: skip

_OPAQUE = (
    "L.Activation('tanh')", "L.Softmax()", "L.LayerNormalization()", "L.ELU()",
    "L.Dense(4, activation='sigmoid')", "L.UnitNormalization()",
)  # fmt: skip

_RESHAPES: dict[int, Sequence[str]] = {
    2: ("L.RepeatVector(3)", "L.RepeatVector(4)"),
    3: ("L.GlobalAveragePooling1D()", "L.GlobalMaxPooling1D(keepdims=True)"),
    4: (
        "L.GlobalAveragePooling2D()", "L.GlobalMaxPooling2D()",
        "L.GlobalAveragePooling2D(keepdims=True)", "L.Flatten(data_format='channels_first')",
        "L.GlobalAveragePooling2D(data_format='channels_first')",
    ),
    5: ("L.GlobalAveragePooling3D()", "L.GlobalMaxPooling3D(data_format='channels_first')"),
}  # fmt: skip

_OPERATIONS = (
    "{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} * 2.5", "1.5 - {x}", "-{x}", "{x} / 4",
    "{x} + 0.75", "ops.maximum({x}, {y})", "ops.minimum({y}, {x})", "ops.relu({x})",
    "ops.concatenate([{x}, {y}], axis=-1)", "ops.tanh({x})", "ops.maximum({x}, 0.1)",
    "ops.square({x})", "{x} / (2.0 + ops.abs({y}))", "ops.mean({x}, axis=-1, keepdims=True) + {x}",
    "ops.reshape({x}, (-1, *{x}.shape[1:]))", "ops.abs({x})", "ops.flip({x}, axis=1)",
)  # fmt: skip
