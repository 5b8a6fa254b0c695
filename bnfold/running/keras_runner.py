"""Running a loaded model with Keras, also with its weights perturbed by rounding errors."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.running import keras_graph
from bnfold.running.arrays import ROUNDINGS, Array
from bnfold.running.libraries import CannotRunError, one_line_on_failure, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import InputSpec, SampleSet, run_all, zeros

_FREE_SIZES = (32, 40, 64, 96, 128, 224, 299, 16, 8)


def prepare_alone(loaded: LoadedModel) -> None:
    """Show what a model computes as its file defines it: its outputs, with nothing left out."""
    loaded.shown = _model(loaded, loaded.model.outputs)


def showing(loaded: LoadedModel, tensors: Sequence[Any]) -> LoadedModel:
    """The same model showing these of its tensors."""
    return replace(loaded, shown=_model(loaded, tensors))


def _model(loaded: LoadedModel, tensors: Sequence[Any]) -> Any:
    with quiet():
        return loaded.keras.Model(list(loaded.model.inputs), list(tensors))


def free_sizes(loaded: LoadedModel, specs: Sequence[InputSpec]) -> list[int]:
    """Up to two sizes for the free dimensions with which the model runs; the first one if none."""
    if all(None not in spec.shape[1:] for spec in specs):
        return [_FREE_SIZES[0]]
    found: list[int] = []
    for size in _FREE_SIZES:
        with contextlib.suppress(CannotRunError):
            run(loaded, zeros(specs, size), training=False)
            found.append(size)
        if len(found) == 2:
            break
    return found or [_FREE_SIZES[0]]


def run(loaded: LoadedModel, inputs: Sequence[Array], *, training: bool | None) -> list[Array]:
    """Return the outputs as numpy arrays of one axis at least, bfloat16 as float32.

    Layers that keep a state from call to call start anew each time. Raises CannotRunError.
    """
    import tensorflow  # noqa: PLC0415

    keywords = {} if training is None else {"training": training}
    with one_line_on_failure():
        fed = [
            tensorflow.convert_to_tensor(array, dtype=keras_graph.dtype_name(tensor))
            for array, tensor in zip(inputs, loaded.shown.inputs, strict=True)
        ]
        outputs = loaded.shown(fed, **keywords)
        left = [*outputs] if isinstance(outputs, (list, tuple)) else [outputs]
        del outputs
        left.reverse()
        found = []
        while left:  # each is given back as soon as there is a copy
            found.append(np.atleast_1d(as_numpy(left.pop())))
        for layer in keras_graph.layers_of(loaded.shown):
            if getattr(layer, "stateful", False) and hasattr(layer, "reset_states"):
                layer.reset_states()
        return found


def apply(layer: Any, value: Array) -> Array:
    """What one layer makes of a value at inference. Raises CannotRunError."""
    import tensorflow  # noqa: PLC0415

    with one_line_on_failure():
        return as_numpy(layer(tensorflow.convert_to_tensor(value), training=False))


def numbers(variable: Any) -> Array:
    """What a variable of a loaded model holds, in float64."""
    return as_numpy(variable).astype(np.float64)


def as_numpy(tensor: Any) -> Array:
    """The content of a tensor; bfloat16, which numpy lacks, as float32."""
    found, dtype = np.asarray(tensor.numpy()), keras_graph.dtype_name(tensor)
    if dtype == "string":
        return _texts(found)
    return found.astype(np.float32) if dtype == "bfloat16" else found


def _texts(value: Array) -> Array:
    """Text as ONNX Runtime gives it, where TensorFlow gives bytes."""
    flat = [one.decode(errors="replace") for one in value.flat]
    return np.array(flat, dtype=object).reshape(value.shape)


def output_units(loaded: LoadedModel, steps: Sequence[float]) -> list[float]:
    """Return the smallest error to count with: of the output's dtype or of the weights."""
    smallest = min((step for step in steps if step), default=ROUNDINGS["float32"])
    return [
        max(ROUNDINGS.get(keras_graph.dtype_name(tensor), 0.0), smallest / 2)
        for tensor in loaded.shown.outputs
    ]


@dataclass(frozen=True)
class Steps:
    """How far rounding perturbs each weight, relative to its size; zero for what is not a float."""

    stored: tuple[float, ...]
    computed: tuple[float, ...]


def rounding_steps(loaded: LoadedModel) -> Steps:
    """Return half a unit of the stored dtype, and one unit of the dtype computed in."""
    computed_in: dict[int, str] = {}
    for layer in keras_graph.layers_of(loaded.model):  # the innermost one's dtype counts
        computed_in.update((id(weight), _compute_dtype(layer)) for weight in layer.weights)
    stored, computed = [], []
    for weight in loaded.shown.weights:
        half = ROUNDINGS.get(keras_graph.dtype_name(weight), 0.0)
        stored.append(half)
        coarser = max(half, ROUNDINGS.get(computed_in.get(id(weight), ""), half))
        computed.append(2 * coarser if half else 0.0)
    return Steps(tuple(stored), tuple(computed))


def _compute_dtype(layer: Any) -> str:
    return str(getattr(layer, "compute_dtype", None) or "float32")


def evaluate(
    loaded: LoadedModel, sets: Sequence[SampleSet], *, training: bool | None
) -> list[list[Array]]:
    """All values of a model, by sample set. Raises CannotRunError.

    The weights are put back after every run, since a BatchNormalization that is called with
    training=True writes to its statistics.
    """
    may_write = training is None and keras_graph.sets_training(loaded.model)
    weights = Weights(loaded, [], 0) if may_write else None

    def call(inputs: Sequence[Array]) -> list[Array]:
        found = run(loaded, inputs, training=training)
        if weights is not None:
            weights.perturb(0)
        return found

    return run_all(call, sets)


@contextlib.contextmanager
def approximated(loaded: LoadedModel, step: float, seed: int) -> Iterator[None]:
    """While this lasts, every sigmoid of a model is off by `step`, up or down at random.

    So far are those of a runtime that computes them as a quotient of polynomials: near their ends
    the error is absolute, which no rounding of weights can show. SiLU is x sigmoid(x), and GELU
    x (1 + erf) / 2, so they are off by x times that.
    """
    drawn = itertools.count()
    with contextlib.ExitStack() as undo:
        for part, name, kind in _sigmoids(loaded.shown):
            function, seed_of_this = getattr(part, name), (seed, next(drawn))
            _hide(part, name, functools.partial(_off_by, function, kind, step, seed_of_this), undo)
        yield


def _hide(part: Any, name: str, function: Any, undo: contextlib.ExitStack) -> None:
    """Put another function in the place of one that a layer or operation has, until `undo`."""
    if name in vars(part):
        undo.callback(setattr, part, name, getattr(part, name))
    else:  # a method, which an attribute of the same name hides
        undo.callback(delattr, part, name)
    setattr(part, name, function)


@contextlib.contextmanager
def quantized(loaded: LoadedModel, share: float, seed: int) -> Iterator[None]:
    """While this lasts, what is rounded between layers is off by up to `share` of its range.

    The range is that of the values of one call: from the smallest to the largest, and zero. Rounded
    is what a converter leaves as a value of its own: not what goes into a BatchNormalization or an
    activation alone, which are merged into the layer before them, nor what is only moved about.
    """
    drawn = itertools.count()
    with contextlib.ExitStack() as undo:
        merged = set(_merged(loaded.shown))
        for layer in keras_graph.layers_of(loaded.shown):
            is_leaf = keras_graph.graph_of(layer) is None and hasattr(layer, "call")
            if is_leaf and id(layer) not in merged:
                _hide(layer, "call", _rounding(layer.call, share, (seed, next(drawn))), undo)
        yield


def _merged(model: Any) -> Iterator[int]:
    """The layers, by identity, whose output is no value of its own once a model is converted."""
    models = [model, *keras_graph.layers_of(model)]
    for graph in filter(None, map(keras_graph.graph_of, models)):
        nodes, ends = keras_graph.nodes_of(graph), {id(one) for one in graph.outputs}
        for node in nodes:
            made = {id(one) for one in keras_graph.outputs_of(node)}
            readers = [
                type(keras_graph.owner_of(one)).__name__
                for one in nodes
                if made & {id(read) for read in keras_graph.inputs_of(one)}
            ]
            owner = keras_graph.owner_of(node)
            goes_on = readers and not made & ends and set(readers) <= _MERGED_INTO
            if (goes_on and _is_affine(owner)) or type(
                owner
            ).__name__ in keras_graph.PASSED_OVER - {"Activation"}:
                yield id(owner)


def _is_affine(layer: Any) -> bool:
    """Whether a layer is one into which the next can be merged: no activation comes between."""
    is_linear = getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear"
    has_kernel = any(len(weight.shape) > 1 for weight in layer.weights)
    return type(layer).__name__ in BATCHNORM_CLASSES or (is_linear and has_kernel)


_MERGED_INTO = BATCHNORM_CLASSES | {"Activation", "ReLU", "LeakyReLU"}


def _rounding(function: Any, share: float, seed: tuple[int, int]) -> Any:
    """The same function with what it makes off by `share` of its range."""

    @functools.wraps(function)
    def rounded(*args: Any, **kwargs: Any) -> Any:
        import tensorflow  # noqa: PLC0415

        return tensorflow.nest.map_structure(
            lambda one: _off_in_range(one, share, seed), function(*args, **kwargs)
        )

    return rounded


def _off_in_range(value: Any, share: float, seed: tuple[int, int]) -> Any:
    import tensorflow  # noqa: PLC0415

    if not getattr(getattr(value, "dtype", None), "is_floating", False):
        return value
    low = tensorflow.minimum(tensorflow.reduce_min(value), 0)
    high = tensorflow.maximum(tensorflow.reduce_max(value), 0)
    drawn = tensorflow.random.stateless_uniform(tensorflow.shape(value), seed, -1, 1, value.dtype)
    return value + drawn * tensorflow.cast(share, value.dtype) * (high - low)


_SIGMOIDS = {"sigmoid", "silu", "swish", "gelu"}


def _sigmoids(model: Any) -> Iterator[tuple[Any, str, str]]:
    """The layers and operations that compute one, in which attribute, and which."""
    for layer in keras_graph.layers_of(model):
        for name in ("activation", "recurrent_activation"):
            kind = str(getattr(vars(layer).get(name), "__name__", ""))
            if kind in _SIGMOIDS:
                yield layer, name, kind
        for operation in getattr(layer, "operations", ()):
            kind = type(operation).__name__.lower()
            if kind in _SIGMOIDS:
                yield operation, "call", kind


def _off_by(function: Any, kind: str, step: float, seed: tuple[int, int], value: Any) -> Any:
    import tensorflow  # noqa: PLC0415

    found = function(value)
    is_up = tensorflow.random.stateless_uniform(tensorflow.shape(found), seed) < 0.5
    error = tensorflow.cast(tensorflow.where(is_up, step, -step), found.dtype)
    return found + (error if kind == "sigmoid" else error * tensorflow.abs(value))


def is_repeatable(
    loaded: LoadedModel, samples: SampleSet, steps: Sequence[float], seed: int
) -> bool:
    """Tell whether `model(x)` gives the same twice, within what the order of sums can change.

    A small batch may come out the same by chance, but then Keras 3 has counted the draws.
    """
    weights = Weights(loaded, steps, seed)
    runs, draws = [], []
    for _ in range(2):
        weights.perturb(0)
        runs.append(run(loaded, samples.inputs, training=None))
        draws.append(_draws(loaded))
    weights.perturb(0)
    same = all(_nearly_equal(one, other) for one, other in zip(*runs, strict=True))
    return same and draws[0] == draws[1]


def _draws(loaded: LoadedModel) -> list[bytes]:
    """The states of the random generators of all layers."""
    states = loaded.shown.non_trainable_variables
    return [
        np.asarray(one.numpy()).tobytes()
        for one in states
        if "seed_generator_state" in getattr(one, "path", one.name)
    ]


def _nearly_equal(one: Array, other: Array) -> bool:
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    size = float(np.max(np.abs(np.nan_to_num(one)), initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=1e-3 * size, equal_nan=True))


class Weights:
    """The floating weights of a model, to be perturbed by rounding errors and put back.

    Those of a kernel are perturbed by `of_largest` of the largest one of their channel, which is
    what quantizing them does, where that is more than their step.
    """

    def __init__(
        self, loaded: LoadedModel, steps: Sequence[float], seed: int, of_largest: float = 0.0
    ) -> None:
        steps = steps or [0.0] * len(loaded.shown.weights)
        pairs = zip(loaded.shown.weights, steps, strict=True)
        self._parts = [
            (weight, np.asarray(weight.numpy()), step)
            for weight, step in pairs
            if step or not weight.trainable
        ]
        self._seed, self._of_largest = seed, of_largest

    def perturbed(self, repetitions: int) -> Generator[None]:
        """Each time with the weights perturbed otherwise; then they are put back."""
        try:
            for repetition in range(1, repetitions + 1):
                self.perturb(repetition)
                yield
        finally:
            self.perturb(0)

    def perturb(self, repetition: int) -> None:
        """Perturb every weight by one step up or down; repetition 0 puts them back as they were."""
        import tensorflow  # noqa: PLC0415

        generator = np.random.default_rng([self._seed, repetition])
        for weight, kept, step in self._parts:
            value = kept
            if repetition and step:
                bits = np.frombuffer(generator.bytes(-(-kept.size // 8)), np.uint8)
                up = np.unpackbits(bits, count=kept.size).reshape(kept.shape)
                value = kept * np.array([1 - step, 1 + step])[up]
                if self._of_largest and kept.ndim > 1:
                    largest = np.abs(kept).max(axis=tuple(range(kept.ndim - 1)), keepdims=True)
                    off = np.maximum(self._of_largest * largest, step * np.abs(kept))
                    value = kept + off * generator.uniform(-1, 1, kept.shape)
            weight.assign(tensorflow.cast(value, weight.dtype))
