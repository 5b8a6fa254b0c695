"""Models of each kind, written and compared by whichever Keras runs this.

It is a program, for a Keras that cannot be imported beside the installed one, and needs only that
Keras and NumPy: `python compat_models.py write DIR` and `python compat_models.py compare DIR`. The
first writes each model in every format that this Keras has, its inputs and what it computes of
them; the second loads what was made of these files and compares. Both leave a JSON file.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from comparing import TOLERANCE, difference, numbers

Build: TypeAlias = Callable[[Any], Any]
"""Makes a model with the Keras that it is given."""

WRITTEN, COMPARED = "written.json", "compared.json"
INPUTS, EXPECTED, FOLDED = "inputs.npz", "expected.npz", "folded"
BATCH = 4


def _chain(keras: Any, shape: tuple[int, ...], *rows: Any) -> Any:
    first = x = keras.Input(shape)
    for row in rows:
        x = row(x)
    return keras.Model(first, x)


def _image(keras: Any, *rows: Any) -> Any:
    return _chain(keras, (8, 8, 3), *rows, keras.layers.GlobalAveragePooling2D())


def _functional(keras: Any) -> Any:
    k = keras.layers
    conv = (k.Conv2D(6, 3, padding="same"), k.BatchNormalization(), k.ReLU())
    strided = (k.Conv2D(5, 3, strides=2, use_bias=False), k.BatchNormalization(), k.MaxPooling2D())
    return _image(keras, *conv, *strided)


def _sequential(keras: Any) -> Any:
    k = keras.layers
    dense = [k.Dense(8), k.BatchNormalization(), k.Activation("relu")]
    return keras.Sequential([keras.Input((6,)), *dense, k.Dense(3), k.BatchNormalization()])


def _nested(keras: Any) -> Any:
    k = keras.layers
    inner = _chain(keras, (8, 8, 3), k.Conv2D(5, 3), k.BatchNormalization(), k.ReLU())
    row = keras.Sequential([keras.Input((6, 6, 5)), k.Conv2D(4, 3), k.BatchNormalization()])
    return _image(keras, inner, row, k.ReLU(), k.Conv2D(4, 1), k.BatchNormalization())


def _shared(keras: Any) -> Any:
    k = keras.layers
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    dense, norm = k.Dense(5), k.BatchNormalization()
    both = [norm(dense(left)), norm(dense(right))]
    return keras.Model([left, right], k.Dense(3)(k.Subtract()([k.ReLU()(one) for one in both])))


def _residual(keras: Any) -> Any:
    k = keras.layers
    first = keras.Input((8, 8, 3))
    x = k.ReLU()(k.BatchNormalization()(k.Conv2D(6, 3, padding="same")(first)))
    y = k.ReLU()(k.BatchNormalization()(k.Conv2D(6, 3, padding="same")(x)))
    y = k.BatchNormalization()(k.Conv2D(6, 3, padding="same", use_bias=False)(y))
    short = k.BatchNormalization()(k.Conv2D(6, 1)(x))
    joined = k.ReLU()(k.Add()([y, short]))
    return keras.Model(first, k.Dense(3)(k.GlobalAveragePooling2D()(joined)))


def _dictionaries(keras: Any) -> Any:
    k = keras.layers
    numeric, image = keras.Input((6,), name="numeric"), keras.Input((8, 8, 3), name="image")
    a = k.ReLU()(k.BatchNormalization()(k.Dense(5)(numeric)))
    b = k.BatchNormalization()(k.Conv2D(4, 3)(image))
    b = k.GlobalAveragePooling2D()(k.ReLU()(b))
    joined = k.Concatenate()([a, b])
    outputs = {
        "score": k.Dense(2, name="score")(joined),
        "place": k.BatchNormalization(name="place")(k.Dense(3)(joined)),
    }
    return keras.Model({"numeric": numeric, "image": image}, outputs)


def _separable(keras: Any) -> Any:
    k = keras.layers
    depthwise = (k.DepthwiseConv2D(3, depth_multiplier=2), k.BatchNormalization(), k.ReLU())
    return _image(keras, *depthwise, k.SeparableConv2D(5, 3), k.BatchNormalization())


def _transpose(keras: Any) -> Any:
    k = keras.layers
    up = k.Conv2DTranspose(4, 3, strides=2, padding="same")
    return _image(keras, up, k.BatchNormalization(), k.ReLU())


def _conv1d(keras: Any) -> Any:
    k = keras.layers
    causal = (k.Conv1D(6, 3, padding="causal"), k.BatchNormalization(), k.ReLU())
    dilated = (k.SeparableConv1D(5, 3, dilation_rate=2), k.BatchNormalization())
    return _chain(keras, (12, 4), *causal, *dilated, k.GlobalMaxPooling1D())


def _conv3d(keras: Any) -> Any:
    k = keras.layers
    rows = (k.Conv3D(4, 3), k.BatchNormalization(), k.ReLU(), k.GlobalAveragePooling3D())
    return _chain(keras, (5, 5, 5, 2), *rows)


def _einsum(keras: Any) -> Any:
    k = keras.layers
    dense = k.EinsumDense("abc,cd->abd", output_shape=(5, 6), bias_axes="d")
    return _chain(keras, (5, 4), dense, k.BatchNormalization(), k.Flatten(), k.Dense(3))


def _no_gamma_or_beta(keras: Any) -> Any:
    k = keras.layers
    norms = [k.BatchNormalization(scale=False), k.BatchNormalization(center=False)]
    norms.append(k.BatchNormalization(scale=False, center=False, epsilon=1e-5))
    rows = [row for norm in norms for row in (k.Dense(6), norm, k.LeakyReLU())]
    return _chain(keras, (6,), *rows)


def _first_axis(keras: Any) -> Any:
    k = keras.layers
    rows = (k.Conv1D(6, 3), k.Permute((2, 1)), k.BatchNormalization(axis=1), k.Flatten())
    return _chain(keras, (9, 4), *rows, k.Dense(3))


def _mixed(keras: Any) -> Any:
    k = keras.layers
    policy = keras.mixed_precision.Policy("mixed_float16")
    first = x = keras.Input((6,))
    for units in (8, 5):
        x = k.Dense(units, dtype=policy)(x)
        x = k.ReLU(dtype=policy)(k.BatchNormalization(dtype=policy)(x))
    return keras.Model(first, k.Dense(3, dtype="float32")(x))


def _distributed(keras: Any) -> Any:
    k = keras.layers
    rows = (k.TimeDistributed(k.Dense(5)), k.TimeDistributed(k.BatchNormalization()), k.ReLU())
    return _chain(keras, (6, 4), *rows, k.Flatten(), k.Dense(3))


def _recurrent(keras: Any) -> Any:
    k = keras.layers
    first = (k.ReLU(), k.BatchNormalization(), k.Bidirectional(k.LSTM(4, return_sequences=True)))
    return _chain(keras, (6, 5), *first, k.BatchNormalization(), k.GRU(3))


def _forward(keras: Any) -> Any:
    k = keras.layers
    rows = (k.BatchNormalization(), k.Conv2D(5, 3), k.ReLU(), k.BatchNormalization())
    return _image(keras, *rows, k.Conv2D(4, 3), k.ReLU())


MODELS: dict[str, Build] = {
    "functional": _functional,
    "sequential": _sequential,
    "nested": _nested,
    "shared": _shared,
    "residual": _residual,
    "dictionaries": _dictionaries,
    "separable": _separable,
    "transpose": _transpose,
    "conv1d": _conv1d,
    "conv3d": _conv3d,
    "einsum": _einsum,
    "no gamma or beta": _no_gamma_or_beta,
    "first axis": _first_axis,
    "mixed": _mixed,
    "distributed": _distributed,
    "recurrent": _recurrent,
    "forward": _forward,
}
"""All of them; every BatchNormalization in them folds."""


def trained(keras: Any, build: Build, seed: int) -> tuple[Any, Any]:
    """A model after one step of training and with telling weights then, and inputs for it.

    The step makes the file one of a compiled model, with an optimizer's variables in it.
    """
    keras.utils.set_random_seed(seed)
    model, generator = build(keras), np.random.default_rng(seed)
    graph = getattr(model, "_functional", None) or model  # a Sequential of Keras 3.0 has no input
    inputs = _mapped(graph.input, lambda tensor: _normal(generator, tensor))
    targets = _mapped(graph.output, lambda tensor: _normal(generator, tensor))
    loss = keras.losses.MeanSquaredError()
    losses = dict.fromkeys(targets, loss) if isinstance(targets, dict) else loss
    model.compile(keras.optimizers.Adam(1e-3), losses, run_eagerly=True)
    model.train_on_batch(inputs, targets)
    for variable in model.weights:
        # Keras 2 says "bn/gamma:0".
        name = variable.name.rpartition("/")[2].partition(":")[0]
        variable.assign(numbers(name, tuple(variable.shape), generator))
    return model, inputs


def _mapped(side: Any, function: Callable[[Any], Any]) -> Any:
    """A value for each of one tensor, or a list or dictionary of them."""
    if isinstance(side, dict):
        return {name: function(one) for name, one in side.items()}
    return [function(one) for one in side] if isinstance(side, list) else function(side)


def _normal(generator: np.random.Generator, tensor: Any) -> Any:
    shape = (BATCH, *map(int, tensor.shape[1:]))
    return generator.normal(0.2, 1.0, shape).astype("float32")


def computed(keras: Any, model: Any, inputs: Any) -> list[Any]:
    """What a model computes without training, as NumPy's float64, dictionaries by name."""
    found = model(inputs, training=False)
    if isinstance(found, dict):
        found = [found[name] for name in sorted(found)]
    numpy = keras.ops.convert_to_numpy if hasattr(keras, "ops") else np.asarray
    values = found if isinstance(found, (list, tuple)) else [found]
    return [np.asarray(numpy(one)).astype("float64") for one in values]


def save(keras: Any, model: Any, folder: Path) -> tuple[list[str], list[str]]:
    """Write a model in each format; the names of the files, and why this Keras cannot write some.

    Directories are of Keras 3.4 and later.
    """
    ways: dict[str, dict[str, Any]] = {"model.keras": {}, "model.h5": {}}
    if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 4):
        ways["model"] = {"zipped": False}
    names, problems = [], []
    for name, options in ways.items():
        try:
            model.save(folder / name, **options)
            names.append(name)
        except Exception as error:
            (folder / name).unlink(missing_ok=True)
            problems.append(f"{name}: {described(error)}")
    return names, problems


def described(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def write(keras: Any, folder: Path, names: Sequence[str] = tuple(MODELS)) -> dict[str, Any]:
    """Write all models, each in a folder of its own."""
    found: dict[str, list[str]] = {}
    unwritten: dict[str, list[str]] = {}
    for seed, name in enumerate(names):
        place = folder / name
        place.mkdir(parents=True)
        model, inputs = trained(keras, MODELS[name], seed)
        named = inputs if isinstance(inputs, dict) else dict(enumerate(_listed(inputs)))
        np.savez(place / INPUTS, **{str(key): value for key, value in named.items()})
        np.savez(place / EXPECTED, *computed(keras, model, inputs))
        found[name], unwritten[name] = save(keras, model, place)
    written = {"keras": keras.__version__, "models": found, "unwritten": unwritten}
    (folder / WRITTEN).write_text(json.dumps(written), "utf-8")
    return written


def _listed(inputs: Any) -> list[Any]:
    return inputs if isinstance(inputs, list) else [inputs]


def compare(keras: Any, folder: Path) -> dict[str, Any]:
    """Load every file and the one that was made of it, and compare what they compute.

    For each file: what Keras has against the original, what it has against the other file, and the
    difference of this one relative to its tolerance.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, files in json.loads((folder / WRITTEN).read_text("utf-8"))["models"].items():
        found[name] = {file: compared(keras, folder / name, file) for file in files}
    (folder / COMPARED).write_text(json.dumps(found), "utf-8")
    return found


def stored(folder: Path) -> tuple[Any, list[Any]]:
    """The inputs of a model and what it computed of them, as `write` left them."""
    with np.load(folder / INPUTS) as found, np.load(folder / EXPECTED) as results:
        inputs: Any = {key: found[key] for key in found.files}
        expected = [results[key] for key in results.files]
    if "0" in inputs:
        inputs = [*inputs.values()] if len(inputs) > 1 else inputs["0"]
    return inputs, expected


def allowed(folder: Path) -> float:
    """The largest difference that rounding may make in a model."""
    return TOLERANCE["float16" if folder.name == "mixed" else "float32"]


def compared(keras: Any, folder: Path, file: str) -> dict[str, Any]:
    """The same for one file."""
    inputs, expected = stored(folder)
    row: dict[str, Any] = {"original": None, "folded": None, "difference": None}
    for key, path in (("original", folder / file), ("folded", folder / FOLDED / file)):
        try:
            model = keras.models.load_model(path, compile=False)
            off = difference(expected, computed(keras, model, inputs)) / allowed(folder)
        except Exception as error:
            row[key] = described(error)
            continue
        if key == "folded":
            row["difference"] = off
        elif off > 1:
            row[key] = f"computes something else than what was saved: {off:.3g} of the tolerance"
    return row


if __name__ == "__main__":
    import keras as library

    what, where = sys.argv[1], Path(sys.argv[2])
    (write if what == "write" else compare)(library, where)
