"""Models with data, and the statistics that each BatchNormalization layer has to see over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support import chain, keras

layers = keras.layers
GENERATOR = np.random.default_rng(7)

Rows = Callable[[], Any]
"""What goes into a layer over all data, (values, channels)."""


@dataclass
class Case:
    """A model, its data by input name, and what goes into each layer, front to back."""

    model: Any
    data: Mapping[str, Any]
    order: Sequence[tuple[str, Any, Rows]]
    customs: Mapping[str, Any] = field(default_factory=dict)


def value(model: Any, tensor: Any, data: Mapping[str, Any]) -> Any:
    """What Keras makes of a tensor of a model over all data, in float64."""
    names = [one._keras_history.operation.name for one in model.inputs]
    tensor = tensor[0] if isinstance(tensor, list) else tensor  # Keras has the mask beside it
    part = keras.Model(list(model.inputs), tensor)
    made = part([data[name] for name in names], training=False)
    return np.asarray(keras.ops.convert_to_numpy(made)).astype("float64")


def last(values: Any) -> Any:
    """Values as rows of channels, which are on the last axis."""
    return values.reshape(-1, values.shape[-1])


def norm(name: str, **options: Any) -> Any:
    return layers.BatchNormalization(name=name, **options)


def plain(model: Any, data: Mapping[str, Any], *names: str) -> Case:
    """A case of layers that are called once, by their names."""
    return Case(
        model,
        data,
        [
            (name, layer, lambda layer=layer: last(value(model, layer.input, data)))
            for name, layer in ((name, model.get_layer(name)) for name in names)
        ],
    )


def two_dense_layers() -> Case:
    """The second layer's statistics follow from the correction of the first."""
    model = chain(
        (5,), layers.Dense(6), norm("a"), layers.ReLU(), layers.Dense(4), norm("b"), name="x"
    )
    return plain(model, {"x": GENERATOR.normal(3, 2, (300, 5)).astype("float32")}, "a", "b")


def branches() -> Case:
    """Two norms side by side, one behind both, and one on the way around them."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(norm("a")(layers.Conv2D(6, 3, padding="same", use_bias=False)(image)))
    left = norm("b")(layers.Conv2D(6, 3, padding="same")(x))
    right = norm("c")(layers.Conv2D(6, 1)(image))
    joined = layers.ReLU()(left + right)
    out = norm("d")(layers.Concatenate()([joined, x]))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(out))
    data = {"image": GENERATOR.random((50, 8, 8, 3)).astype("float32") * 255}
    return plain(model, data, "a", "b", "c", "d")


def several_inputs() -> Case:
    """Inputs by name, in another order than the model's, beside labels that no input takes."""
    words = keras.Input((6,), dtype="int32", name="words")
    numbers = keras.Input((4,), name="numbers")
    x = norm("a")(layers.Embedding(11, 5)(words))
    y = norm("b")(layers.Dense(5)(numbers))
    out = norm("c")(layers.Concatenate()([layers.GlobalMaxPooling1D()(x), y]))
    data = {
        "numbers": GENERATOR.normal(0, 9, (90, 4)).astype("float32"),
        "labels": np.zeros(90),
        "words": GENERATOR.integers(0, 11, (90, 6)).astype("int32"),
    }
    return plain(keras.Model([words, numbers], out), data, "a", "b", "c")


def axis_in_front() -> Case:
    """Channels on axis 1, as with channels_first."""
    model = chain((4, 9), norm("a", axis=1), layers.ReLU(), norm("b", axis=2), name="x")
    data = {"x": GENERATOR.normal(1, 3, (70, 4, 9)).astype("float32")}
    case = plain(model, data, "a", "b")
    a = model.get_layer("a")
    rows = ("a", a, lambda: last(np.moveaxis(value(model, a.input, data), 1, -1)))
    return Case(model, data, [rows, case.order[1]])


def masked() -> Case:
    """Steps that a mask covers count nowhere: neither behind the Masking nor behind a Dense."""
    model = chain(
        (7, 3), layers.Masking(), norm("a"), layers.Dense(4), norm("b"), layers.LSTM(2), name="x"
    )
    steps = GENERATOR.normal(2, 1, (60, 7, 3)).astype("float32")
    steps[np.arange(7)[None] >= GENERATOR.integers(2, 8, (60, 1))] = 0
    real = np.any(steps != 0, axis=-1)
    data = {"x": steps}

    def rows(layer: Any) -> Rows:
        return lambda: value(model, layer.input, data)[real]

    found = [model.get_layer(name) for name in ("a", "b")]
    return Case(model, data, [(one.name, one, rows(one)) for one in found])


def masked_model() -> Case:
    """A nested model hands the mask of its input on, though a layer in it destroys the mask."""
    part_input = keras.Input((7, 3))
    x = layers.Reshape((7, 4))(norm("a")(layers.Dense(4)(part_input)))
    part = keras.Model(part_input, norm("b")(x), name="part")
    model = chain((7, 3), layers.Masking(name="masking"), part, norm("c"), name="x")
    steps = GENERATOR.normal(2, 1, (60, 7, 3)).astype("float32")
    steps[np.arange(7)[None] >= GENERATOR.integers(2, 8, (60, 1))] = 0
    data = {"x": steps}

    def seen(made: Any) -> Any:
        mask = getattr(made, "_keras_mask", None)
        values = np.asarray(made).astype("float64")
        return last(values) if mask is None else values[np.asarray(mask)]

    def before(name: str, inputs: Any) -> Any:
        tensor = part.get_layer(name).input
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        return seen(keras.Model(part.inputs, tensor)(inputs))

    masked_steps = model.get_layer("masking")(steps)
    order = [
        ("part/a", part.get_layer("a"), lambda: before("a", masked_steps)),
        ("part/b", part.get_layer("b"), lambda: before("b", steps)),
        ("c", model.get_layer("c"), lambda: seen(part(masked_steps))),
    ]
    return Case(model, data, order)


def nested() -> Case:
    """A norm inside a model inside a model; then one behind."""
    inner_input = keras.Input((6,))
    inner = keras.Model(inner_input, layers.ReLU()(norm("b")(layers.Dense(5)(inner_input))))
    inner.name = "inner"
    middle = keras.Sequential([keras.Input((6,)), norm("a"), inner], name="middle")
    model = chain((6,), middle, layers.Dense(3), norm("c"), name="x")
    data = {"x": GENERATOR.normal(5, 4, (120, 6)).astype("float32")}

    def a() -> Any:
        return data["x"].astype("float64")

    def b() -> Any:
        part = keras.Model(inner.inputs, inner.get_layer("b").input)
        made = part(middle.get_layer("a")(data["x"], training=False), training=False)
        return np.asarray(made).astype("float64")

    c = model.get_layer("c")
    order = [
        ("middle/a", middle.get_layer("a"), a),
        ("middle/inner/b", inner.get_layer("b"), b),
        ("c", c, lambda: last(value(model, c.input, data))),
    ]
    return Case(model, data, order)


def time_distributed() -> Case:
    """A wrapped norm, and a wrapped model of two, each of which needs the one before it."""
    part_input = keras.Input((4,))
    part = keras.Model(
        part_input, norm("c")(layers.ReLU()(norm("b")(layers.Dense(4)(part_input)))), name="part"
    )
    model = chain(
        (5, 4),
        layers.TimeDistributed(norm("inside"), name="a"),
        layers.TimeDistributed(part, name="wrapped"),
        name="x",
    )
    data = {"x": GENERATOR.normal(-2, 3, (80, 5, 4)).astype("float32")}

    def inside(name: str) -> Rows:
        def rows() -> Any:
            steps = last(value(model, model.get_layer("wrapped").input, data)).astype("float32")
            made = keras.Model(part.inputs, part.get_layer(name).input)(steps, training=False)
            return np.asarray(made).astype("float64")

        return rows

    a = model.get_layer("a")
    order = [
        ("a", a.layer, lambda: last(value(model, a.input, data))),
        ("wrapped/part/b", part.get_layer("b"), inside("b")),
        ("wrapped/part/c", part.get_layer("c"), inside("c")),
    ]
    return Case(model, data, order)


def shared() -> Case:
    """One norm of two calls on different inputs: both together."""
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    both = norm("a")
    x, y = both(layers.Dense(3)(first)), both(layers.Dense(3)(second))
    model = keras.Model([first, second], norm("b")(layers.Subtract()([x, y])))
    data = {
        "first": GENERATOR.normal(0, 1, (40, 4)).astype("float32"),
        "second": GENERATOR.normal(6, 3, (40, 4)).astype("float32"),
    }

    def together() -> Any:
        reads = [node.input_tensors[0] for node in both._inbound_nodes]
        return np.concatenate([value(model, one, data) for one in reads])

    b = model.get_layer("b")
    order = [("a", both, together), ("b", b, lambda: value(model, b.input, data))]
    return Case(model, data, order)


def shared_model() -> Case:
    """A model of a norm, called twice."""
    tower_input = keras.Input((4,))
    tower = keras.Model(tower_input, norm("a")(layers.Dense(3)(tower_input)), name="tower")
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    model = keras.Model([first, second], layers.Concatenate()([tower(first), tower(second)]))
    data = {
        "first": GENERATOR.normal(0, 1, (40, 4)).astype("float32"),
        "second": GENERATOR.normal(6, 3, (40, 4)).astype("float32"),
    }

    def together() -> Any:
        part = keras.Model(tower.inputs, tower.get_layer("a").input)
        made = [part(data[name], training=False) for name in ("first", "second")]
        return np.concatenate([np.asarray(one) for one in made]).astype("float64")

    return Case(model, data, [("tower/a", tower.get_layer("a"), together)])


def half_precision() -> Case:
    """Mixed float16: the layers see numbers that are rounded to float16."""
    options = {"dtype": "mixed_float16"}
    model = chain(
        (5,),
        layers.Dense(6, **options),
        norm("a", **options),
        layers.Dense(4, **options),
        norm("b", **options),
        name="x",
    )
    return plain(model, {"x": GENERATOR.normal(3, 2, (300, 5)).astype("float32")}, "a", "b")


def training_baked_in() -> Case:
    """Dropout and a norm called with training=True: `predict` runs them in inference mode."""
    inputs = keras.Input((5,), name="x")
    x = layers.Dropout(0.5)(layers.Dense(6)(inputs), training=True)
    x = norm("a")(x, training=True)
    model = keras.Model(inputs, norm("b")(layers.Dense(4)(layers.ReLU()(x))))
    data = {"x": GENERATOR.normal(3, 2, (200, 5)).astype("float32")}
    return plain(model, data, "a", "b")


def renormalized() -> Case:
    """Batch renormalization has statistics of its own beside those that inference uses."""
    model = chain(
        (5,), layers.Dense(6), norm("a", renorm=True), layers.Dense(4), norm("b"), name="x"
    )
    return plain(model, {"x": GENERATOR.normal(3, 2, (200, 5)).astype("float32")}, "a", "b")


def fixed_batch() -> Case:
    """A model that takes batches of 8 only; 3 samples are left over."""
    model = chain((5,), layers.Dense(6), norm("a"), name="x", batch_size=8)
    data = {"x": GENERATOR.normal(3, 2, (83, 5)).astype("float32")}
    layer = model.get_layer("a")

    def rows() -> Any:
        parts = [{"x": data["x"][at : at + 8]} for at in range(0, 80, 8)]
        return np.concatenate([value(model, layer.input, part) for part in parts])

    return Case(model, data, [("a", layer, rows)])


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A custom layer with a norm of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

    def call(self, inputs: Any) -> Any:
        return self.norm(self.dense(inputs))


def custom_in_between() -> Case:
    """The norm inside a custom layer stays; those around it do not."""
    model = chain((5,), norm("a"), Block(name="block"), norm("b"), name="x")
    return plain(model, {"x": GENERATOR.normal(3, 2, (90, 5)).astype("float32")}, "a", "b")


CASES = [
    two_dense_layers,
    branches,
    several_inputs,
    axis_in_front,
    masked,
    masked_model,
    nested,
    time_distributed,
    shared,
    shared_model,
    half_precision,
    training_baked_in,
    renormalized,
    fixed_batch,
    custom_in_between,
]


def expected(case: Case) -> dict[str, tuple[Any, Any]]:
    """The estimates, one after the other, which are assigned to the live model on the way."""
    found = {}
    for name, layer, rows in case.order:
        values = rows()
        found[name] = values.mean(0), values.var(0)
        layer.moving_mean.assign(values.mean(0))
        layer.moving_variance.assign(values.var(0))
    return found


def save(case: Case, folder: Path, form: str = ".keras") -> tuple[Path, Path]:
    """The model's file and that of its data."""
    path = folder / f"model{form}"
    options = {} if form else {"zipped": False}
    case.model.save(path, **options)
    np.savez(folder / "data.npz", **case.data)
    return path, folder / "data.npz"


def close(found: tuple[Any, Any], wanted: tuple[Any, Any], allowed: float = 2e-5) -> None:
    """Means to within a share of the deviation, variances of the variance."""
    deviation = np.sqrt(wanted[1]) + 1e-6
    assert np.max(np.abs(found[0] - wanted[0]) / deviation) < allowed
    assert np.max(np.abs(found[1] - wanted[1]) / (wanted[1] + 1e-6)) < allowed
