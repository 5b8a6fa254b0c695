"""Small models with BatchNormalization, folded by hand in plain numpy, and one mistake planted.

A `Net` is a list of steps and their weights in float64, and `line` makes a simple one; `save` makes
a Keras model file of it and `values` runs it layer by layer in any precision. With

    scale = gamma / sqrt(variance + epsilon)        shift = beta - mean * scale

a fold multiplies `scale` into a kernel and adds `shift` to a bias. It goes backward, into the layer
before, or forward, into the layer behind; `folded` does that to a net, and with the wrong `affine`
or `absorb` of a `Fold` it plants a mistake. Nothing here uses bnfold.

`planted(kind, number)` gives the original, its right fold, the fold with the mistake of that kind,
and the layers at which the mistake stands. A mistake that changes the value there by less than
1e-4 of its largest magnitude, in float64, is drawn again. Where no right fold exists, as behind a
padding, the right one keeps that layer. `harmless(kind, number)` gives right folds of models that
are hard to judge.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
Generator = np.random.Generator

NOTICEABLE = 1e-4
NOTICEABLE_IN_FLOAT16 = 0.05
ALIVE = 1e-3  # of the magnitude of a value, what it must at least change from sample to sample
LARGEST_FLOAT16 = 65504.0
VARIABLES = {"float16": "float16", "float64": "float64"}  # of a policy; float32 under all others


# --- a model as data ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A layer and what it reads; the path is "block/bn1" for a layer of a nested model."""

    path: str
    kind: str
    options: Mapping[str, Any]
    sources: tuple[str, ...]

    def layer(self, policy: str, **changes: Any) -> Any:
        """A new layer, named by the last part of the path."""
        make = getattr(keras.layers, self.kind)
        name = self.path.split("/")[-1]
        return make(**{"dtype": policy, **self.options, **changes}, name=name)


@dataclass(frozen=True)
class Net:
    """Steps in the order of computation, from "input" to the last one; weights by path and name."""

    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    policy: str = "float32"

    def step(self, path: str) -> Step:
        return next(one for one in self.steps if one.path == path)


def line(
    shape: tuple[int, ...], *rows: tuple[str, str, Mapping[str, Any]], policy: str = "float32"
) -> Net:
    """A net of layers one behind the other, of path, class and options each, without weights."""
    sources = ("input", *(path for path, *_ in rows))
    steps = tuple(Step(*row, (source,)) for row, source in zip(rows, sources, strict=False))
    return Net(shape, steps, policy=policy)


def model(net: Net) -> Any:
    """The Keras model, with nested models where the paths say so."""
    first = keras.Input(net.shape, name="input")
    last = _wire(net, net.steps, {"input": first}, 0)
    made = keras.Model(first, last)
    for path, weights in net.weights.items():
        _assign(_layer_at(made, path), weights)
    return made


def with_weights(net: Net, made: Any) -> Net:
    """The net with the weights that its Keras model has."""
    layers = {step.path: _layer_at(made, step.path) for step in net.steps}
    weights = {
        path: {one.name: np.asarray(one.numpy(), "float64") for one in layer.weights}
        for path, layer in layers.items()
        if layer.weights
    }
    return replace(net, weights=weights)


def _wire(net: Net, steps: Iterable[Step], tensors: dict[str, Any], level: int) -> Any:
    """Call the layers on symbolic tensors; the last result."""
    result = None
    for (nested, name), members in groupby(steps, key=lambda step: _place(step.path, level)):
        inner = list(members)
        if nested:
            result = _nest(net, inner, tensors, level, name)
            tensors[inner[-1].path] = result
            continue
        for step in inner:
            result = step.layer(net.policy)(_one_or_all([tensors[at] for at in step.sources]))
            tensors[step.path] = result
    return result


def _place(path: str, level: int) -> tuple[bool, str]:
    parts = path.split("/")
    return len(parts) > level + 1, parts[level]


def _nest(net: Net, steps: list[Step], tensors: Mapping[str, Any], level: int, name: str) -> Any:
    """A nested model of one input and one output, called."""
    source = steps[0].sources[0]
    inside = keras.Input(tensors[source].shape[1:], dtype=tensors[source].dtype)
    last = _wire(net, steps, {source: inside}, level + 1)
    return keras.Model(inside, last, name=name)(tensors[source])


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _layer_at(owner: Any, path: str) -> Any:
    for part in path.split("/"):
        owner = owner.get_layer(part)
    return owner


def _assign(layer: Any, weights: Weights) -> None:
    for variable in layer.weights:
        variable.assign(_cast(weights[variable.name], variable.dtype))


def _cast(values: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def save(net: Net, path: Path) -> Path:
    model(net).save(path)
    return path


def values(net: Net, inputs: Array, policy: str = "float64") -> dict[str, Array]:
    """What every step computes in this precision; a final softmax is left out."""
    found: dict[str, Any] = {"input": inputs}
    with _without_compilation():
        for step in net.steps:
            layer, read = _built(step, found, policy)
            if layer.weights:
                _assign(layer, net.weights[step.path])
            found[step.path] = layer(read)
    return {path: np.asarray(value, "float64") for path, value in found.items()}


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Keras compiles each grouped convolution, which takes longer than a whole model."""
    tensorflow.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tensorflow.config.run_functions_eagerly(False)


def _built(step: Step, found: Mapping[str, Any], policy: str) -> tuple[Any, Any]:
    """The layer, its weights made, and what it reads."""
    hidden = step.options.get("activation") == "softmax"
    layer = step.layer(policy, **({"activation": None} if hidden else {}))
    read = _one_or_all([found[at] for at in step.sources])
    if len(step.sources) == 1:
        layer.build(tuple(read.shape))
    return layer, read


def samples(net: Net, size: float = 1.0, seed: int = 0) -> Array:
    numbers = np.random.default_rng(seed).normal(0.2, 1.0, (4, *net.shape))
    return (size * numbers).astype("float32")


# --- weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How weights are drawn.

    `deviation` is that of the values in front of a BatchNormalization, `spread` says over how many
    decades up and down the channels differ in it, and `offset` how many deviations their mean is.
    `calibrated` statistics are near those of real activations. `own` holds deviations of single
    layers, `tuned` a last change to the weights of a layer.
    """

    policy: str = "float32"
    inputs: float = 1.0
    deviation: float = 1.0
    spread: float = 0.0
    offset: float = 0.5
    calibrated: bool = True
    own: Mapping[str, float] = field(default_factory=dict)
    tuned: Mapping[str, Callable[[Weights], Weights]] = field(default_factory=dict)


def some_style(generator: Generator) -> Style:
    return Style(
        inputs=float(generator.choice([0.1, 1.0, 10.0])),
        deviation=float(generator.choice([0.05, 1.0, 30.0])),
        spread=float(generator.choice([0.0, 0.5, 1.0])),
        calibrated=bool(generator.random() < 0.75),
    )


def drawn(net: Net, style: Style, before_norms: Collection[str], generator: Generator) -> Net:
    """The net with weights, drawn layer by layer, as each one sees what reaches it."""
    found: dict[str, Any] = {"input": samples(net, style.inputs)}
    weights: dict[str, Weights] = {}
    with _without_compilation():
        for step in net.steps:
            layer, read = _built(step, found, "float64")
            if layer.weights:
                draw = _statistics if step.kind == "BatchNormalization" else _kernels
                made = draw(layer, read, style, step.path in before_norms, generator)
                weights[step.path] = _rounded(style.tuned.get(step.path, dict)(made), style.policy)
                _assign(layer, weights[step.path])
            found[step.path] = layer(read)
    return replace(net, weights=weights, policy=style.policy)


def _rounded(weights: Weights, policy: str) -> Weights:
    dtype = VARIABLES.get(policy, "float32")
    return {name: _cast(value, dtype).astype("float64") for name, value in weights.items()}


def _statistics(
    layer: Any, read: Array, style: Style, _: bool, generator: Generator
) -> dict[str, Array]:
    """Gamma of both signs, and statistics of the values that were read, or any at all."""
    read = np.asarray(read)
    others = tuple(axis for axis in range(read.ndim) if axis != layer.axis % read.ndim)
    mean, variance = read.mean(others), np.maximum(read.var(others), 1e-12)
    size = mean.size
    if style.calibrated:
        mean = mean + 0.3 * np.sqrt(variance) * generator.normal(size=size)
        variance = variance * 10.0 ** generator.uniform(-0.5, 0.5, size)
    else:
        mean = generator.normal(0, read.std(), size)
        variance = read.var() * 10.0 ** generator.uniform(-1.5, 1.5, size)
    return {
        "gamma": generator.uniform(0.5, 2, size) * generator.choice([-1.0, 1.0], size),
        "beta": generator.normal(0.2, 0.7, size),
        "moving_mean": mean,
        "moving_variance": variance,
    }


def _kernels(
    layer: Any, read: Array, style: Style, before_norm: bool, generator: Generator
) -> dict[str, Array]:
    """Kernels under which the layer's values have the wanted deviation, and a bias beside it."""
    made = {one.name: _numbers(tuple(one.shape), generator) for one in layer.weights}
    if "recurrent_kernel" in made:
        return made
    last = "pointwise_kernel" if "pointwise_kernel" in made else "kernel"
    if before_norm:
        made[last] *= 10.0 ** generator.uniform(-style.spread, style.spread, made[last].shape[-1])
    wanted = style.own.get(layer.name, style.deviation if before_norm else 1.0)
    made.update({name: np.zeros_like(one) for name, one in made.items() if name == "bias"})
    _assign(layer, made)
    made[last] *= wanted / max(float(np.std(layer(read))), 1e-12)
    if "bias" in made:
        made["bias"] = wanted * style.offset * _far_from_zero(made["bias"].shape, generator)
    return made


def _far_from_zero(shape: tuple[int, ...], generator: Generator) -> Array:
    return generator.choice([-1.0, 1.0], shape) * generator.uniform(0.5, 1.5, shape)


def _numbers(shape: tuple[int, ...], generator: Generator) -> Array:
    return generator.normal(0.05, 1.0, shape) / np.sqrt(max(1, np.prod(shape[:-1])))


# --- right folds ----------------------------------------------------------------------------------


def affine(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    """Scale and shift of a BatchNormalization."""
    scale = weights["gamma"] / np.sqrt(weights["moving_variance"] + epsilon)
    return scale, weights["beta"] - weights["moving_mean"] * scale


def backward(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """The layer's weights when its values are scaled and shifted."""
    name = "pointwise_kernel" if "pointwise_kernel" in weights else "kernel"
    kernel = weights[name]
    return {
        **weights,
        name: kernel * _of_outputs(step, kernel, scale),
        "bias": weights["bias"] * scale + shift,
    }


def _of_outputs(step: Step, kernel: Array, numbers: Array) -> Array:
    """Numbers of the output channels, in a shape that broadcasts over the kernel."""
    if step.kind.startswith("Depthwise"):  # (..., input, multiplier)
        return numbers.reshape(kernel.shape[-2:])
    return numbers[:, None] if step.kind.endswith("Transpose") else numbers


def forward(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """The layer's weights when what it reads is no longer scaled and shifted."""
    kernel = weights["kernel"]
    return {
        **weights,
        "kernel": kernel * _of_inputs(step, kernel, scale),
        "bias": _add_bias(weights["bias"], _spread(step, kernel, shift)),
    }


def _of_inputs(step: Step, kernel: Array, numbers: Array) -> Array:
    """Numbers of the input channels, as the last two axes of the kernel read them."""
    if step.kind.startswith("Depthwise"):
        return numbers[:, None]
    if step.kind == "Dense":  # behind a Flatten the channels come round again
        return np.tile(numbers, kernel.shape[0] // numbers.size)[:, None]
    groups = step.options.get("groups", 1)
    return np.repeat(numbers.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)


def _spread(step: Step, kernel: Array, shift: Array) -> Array:
    """What a constant `shift` of the inputs adds to each output, away from any border."""
    product = kernel * _of_inputs(step, kernel, shift)
    kept = 2 if step.kind.startswith("Depthwise") else 1
    return product.sum(tuple(range(product.ndim - kept))).reshape(-1)


def _add_bias(bias: Array, added: Array) -> Array:
    """A GRU has two rows of biases; the first belongs to the kernel of the inputs."""
    return bias + added if bias.ndim == 1 else bias + np.stack([added, np.zeros_like(added)])


def to_each(_: int, scale: Array, shift: Array) -> tuple[Array, Array]:
    """All layers take the same."""
    return scale, shift


def shift_once(index: int, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Of the branches of an Add, the first takes the shift."""
    return scale, shift if index == 0 else np.zeros_like(shift)


def halves(index: int, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Of the two branches of a Concatenate, each takes its channels."""
    return np.split(scale, 2)[index], np.split(shift, 2)[index]


@dataclass(frozen=True)
class Fold:
    """A BatchNormalization, the layers that take it in, and how."""

    norm: str
    into: tuple[str, ...]
    absorb: Callable[[Step, Weights, Array, Array], Weights] = backward
    affine: Callable[[Weights, float], tuple[Array, Array]] = affine
    share: Callable[[int, Array, Array], tuple[Array, Array]] = to_each


def folded(net: Net, folds: Iterable[Fold]) -> Net:
    """The net without these BatchNormalizations, computing the same if the folds are right."""
    folds = list(folds)
    weights = dict(net.weights)
    for one in folds:
        epsilon = net.step(one.norm).options["epsilon"]
        pair = one.affine(net.weights[one.norm], epsilon)
        for index, path in enumerate(one.into):
            step, own = net.step(path), _with_bias(net.step(path), weights[path])
            weights[path] = one.absorb(step, own, *one.share(index, *pair))
    changed = {path for one in folds for path in one.into}
    return _without(replace(net, weights=weights), [one.norm for one in folds], changed)


def _with_bias(step: Step, weights: Weights) -> Weights:
    kernel = weights["pointwise_kernel" if "pointwise_kernel" in weights else "kernel"]
    size = kernel.shape[-1]
    if step.kind.startswith("Depthwise"):
        size = kernel.shape[-2] * kernel.shape[-1]
    elif step.kind.endswith("Transpose"):
        size = kernel.shape[-2]
    return {"bias": np.zeros(size), **weights}


def _without(net: Net, norms: Sequence[str], biased: Collection[str]) -> Net:
    """Take the steps out; one that names an output of the model becomes a linear Activation."""
    ways = {path: net.step(path).sources[0] for path in norms}
    steps = []
    for step in net.steps:
        sources = tuple(_way(at, ways) for at in step.sources)
        if step.path not in ways:
            options = {**step.options, **({"use_bias": True} if step.path in biased else {})}
            steps.append(replace(step, options=options, sources=sources))
        elif step is net.steps[-1] and "/" not in step.path:
            steps.append(Step(step.path, "Activation", {"activation": "linear"}, sources))
    weights = {path: own for path, own in net.weights.items() if path not in ways}
    return replace(net, steps=tuple(steps), weights=weights)


def _way(path: str, ways: Mapping[str, str]) -> str:
    while path in ways:
        path = ways[path]
    return path


# --- chains of layers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A mistake: the fold that replaces the right one, and then what is done to the weights.

    `sites` names, for each culprit, the values to compare in the original and in the folded net.
    The right fold keeps the layer when it is not `possible`.
    """

    fold: Fold
    sites: tuple[tuple[str, str], ...]
    culprits: tuple[str, ...]
    possible: bool = True
    edit: Callable[[Mapping[str, Weights]], Mapping[str, Weights]] = dict
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of steps, changed


SPATIAL = ("kernel_size", "padding", "groups")  # which a Dense layer does not have


@dataclass
class Chain:
    """A net in the making, its end still open, with the right fold of each BatchNormalization."""

    generator: Generator
    rank: int  # of the space: 0 for vectors, 1 for sequences, 2 for images
    channels: int = 0
    shape: tuple[int, ...] = ()
    epsilon: float | None = None  # of all BatchNormalizations; None draws it
    prefix: str = ""
    last: str = "input"
    count: int = 0
    steps: list[Step] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    own: dict[str, float] = field(default_factory=dict)
    tuned: dict[str, Callable[[Weights], Weights]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channels = self.whole(3, 6)
        size = {0: (), 1: (self.whole(13, 16),), 2: (self.whole(13, 15), self.whole(13, 15))}
        self.shape = (*size[self.rank], self.channels)

    def whole(self, low: int, high: int) -> int:
        return int(self.generator.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.generator.random() < share)

    def pick(self, *values: Any) -> Any:
        return values[self.whole(0, len(values) - 1)]

    def add(self, name: str, kind: str, *sources: str, **options: Any) -> str:
        """One more layer, behind the last one unless sources are given; its path."""
        path = f"{self.prefix}{name}"
        self.steps.append(Step(path, kind, options, sources or (self.last,)))
        self.last = path
        return path

    def spatial(self, kind: str) -> str:
        """The class for this rank, as in Conv2D, or a Dense layer for vectors."""
        if self.rank == 0:
            return "Dense"
        stem, transposed, _ = kind.partition("Transpose")
        return f"{stem}{self.rank}D{transposed}"

    def layer(self, kind: str = "Conv", **changes: Any) -> str:
        """A layer that multiplies with a kernel, its free options drawn."""
        options = self.options(kind, **changes)
        name = {"Conv": "conv", "Dense": "dense"}.get(kind, kind.lower())
        path = self.add(f"{name}{self.count}", self.class_of(kind), **options)
        if "Depthwise" in self.class_of(kind):
            self.channels *= options["depth_multiplier"]
        else:
            self.channels = options.get("filters", options.get("units"))
        return path

    def class_of(self, kind: str) -> str:
        return kind if kind == "Dense" else self.spatial(kind)

    def options(self, kind: str, **changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"use_bias": self.chance(0.5)}
        width = changes.pop("width", self.whole(3, 6))
        if self.class_of(kind) == "Dense":
            kept = {name: one for name, one in changes.items() if name not in SPATIAL}
            return {**made, "units": width, **kept}
        made |= {"kernel_size": self.pick(1, 3, 3), "padding": self.pick("same", "same", "valid")}
        if kind == "DepthwiseConv":
            made["depth_multiplier"] = self.whole(1, 2) if self.channels < 5 else 1
        else:
            made["filters"] = width
        return {**made, **changes}

    def norm(self, epsilon: float | None = None, **options: Any) -> str:
        chosen = epsilon or self.epsilon or float(self.pick(1e-3, 1e-3, 1e-5))
        return self.add(f"bn{self.count}", "BatchNormalization", epsilon=chosen, **options)

    def activate(self) -> None:
        kind = self.pick("ReLU", "ReLU", "LeakyReLU", "tanh", "gelu", "sigmoid")
        if kind.endswith("ReLU"):
            self.add(f"act{self.count}", kind)
        else:
            self.add(f"act{self.count}", "Activation", activation=kind)

    def between(self) -> None:
        """Sometimes a layer that a scale and a shift pass through."""
        kind = self.pick(None, None, None, "Dropout", "Activation", "AveragePooling")
        if kind == "Dropout":
            self.add(f"drop{self.count}", kind, rate=0.3)
        elif kind == "Activation":
            self.add(f"linear{self.count}", kind, activation="linear")
        elif kind == "AveragePooling" and self.rank:
            self.pool(kind)

    def pool(self, kind: str) -> None:
        size = {"pool_size": 2, "strides": 1, "padding": "same"}
        self.add(f"pool{self.count}", self.spatial(kind), **size)

    def backward(
        self, kind: str | None = None, *, epsilon: float | None = None, **changes: Any
    ) -> Fold:
        """A layer, its BatchNormalization and an activation."""
        self.count += 1
        common = ("Conv", "Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose", "Dense")
        path = self.layer(kind or self.pick(*common), **changes)
        self.between()
        return self.close((path,), epsilon=epsilon)

    def close(self, into: tuple[str, ...], *, epsilon: float | None = None, **how: Any) -> Fold:
        """The BatchNormalization behind what was just added, and an activation."""
        norm = self.norm(epsilon)
        self.folds.append(Fold(norm, into, **how))
        self.activate()
        return self.folds[-1]

    def forward(
        self, kind: str | None = None, *, epsilon: float | None = None, **changes: Any
    ) -> Fold:
        """A BatchNormalization, the layer that takes it in and an activation."""
        self.count += 1
        norm = self.norm(epsilon)
        kind = kind or self.pick("Conv", "Conv", "DepthwiseConv", "Dense")
        path = self.layer(kind, **{"padding": "valid", **changes})
        self.folds.append(Fold(norm, (path,), forward))
        self.activate()
        return self.folds[-1]

    def head(self) -> None:
        """One vector per sample, and classes."""
        if self.rank:
            self.add("gather", self.pick(f"GlobalAveragePooling{self.rank}D", "Flatten"))
        softmax = "softmax" if self.chance(0.7) else None
        self.add("head", "Dense", units=self.whole(3, 5), activation=softmax)

    def net(self) -> Net:
        return Net(self.shape, tuple(self.steps))

    def before(self, path: str) -> str:
        return next(step.sources[0] for step in self.steps if step.path == path)

    def fault(self, right: Fold, **changes: Any) -> Fault:
        """The right fold with something changed in it, and where that shows first."""
        own = ("possible", "edit", "options")
        beside = {name: changes.pop(name) for name in own if name in changes}
        return Fault(replace(right, **changes), (self.site(right),), (right.norm,), **beside)

    def site(self, right: Fold) -> tuple[str, str]:
        """The layer whose values show a fold, in the original and in the folded net."""
        if right.absorb is forward:
            return right.into[0], right.into[0]
        return right.norm, self.before(right.norm)


Plant = Callable[[Chain], Fault]
PREFIXES = ("", "", "block/", "outer/inner/")


def around(chain: Chain, plant: Callable[[Chain], Any]) -> Any:
    """Plant something first, in the middle or last in a net, within a nested model or not."""
    earlier, later = chain.pick((0, 2), (1, 1), (2, 1), (2, 0), (3, 0))
    for _ in range(earlier):
        chain.backward()
    chain.prefix = chain.pick(*PREFIXES)
    planted_there = plant(chain)
    if chain.chance(0.5):
        chain.prefix = ""
    for _ in range(later):
        chain.backward()
    chain.prefix = ""
    if later or chain.chance(0.5):
        chain.head()
    elif chain.chance(0.5) and "/" not in chain.last:
        _end_with_the_norm(chain)
    return planted_there


def _end_with_the_norm(chain: Chain) -> None:
    """Drop the last activation, so that the BatchNormalization before it is the output."""
    if chain.steps[-1].path.startswith("act") and "bn" in chain.steps[-2].path:
        chain.steps.pop()
        chain.last = chain.steps[-1].path


# --- mistakes in scale and shift ------------------------------------------------------------------


def no_epsilon(weights: Weights, _: float) -> tuple[Array, Array]:
    return affine(weights, 0.0)


def default_epsilon(weights: Weights, _: float) -> tuple[Array, Array]:
    return affine(weights, 1e-3)


def variance_for_deviation(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    scale = weights["gamma"] / (weights["moving_variance"] + epsilon)
    return scale, weights["beta"] - weights["moving_mean"] * scale


def swapped_gamma_and_beta(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    return affine({**weights, "gamma": weights["beta"], "beta": weights["gamma"]}, epsilon)


def mean_added(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    return affine({**weights, "moving_mean": -weights["moving_mean"]}, epsilon)


def one_scale_off(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    scale, shift = affine(weights, epsilon)
    at = int(np.argmax(weights["moving_variance"])) - 1
    return np.where(np.arange(scale.size) == at % scale.size, 1.001, 1.0) * scale, shift


def one_shift_missing(weights: Weights, epsilon: float) -> tuple[Array, Array]:
    scale, shift = affine(weights, epsilon)
    at = int(np.argmax(weights["moving_variance"]))
    return scale, np.where(np.arange(shift.size) == at, 0.0, shift)


def in_affine(mistake: Callable[[Weights, float], Any], epsilon: float | None = None) -> Plant:
    """Plant a mistake in scale and shift, in a fold of either direction."""

    def plant(chain: Chain) -> Fault:
        stage = chain.pick(chain.backward, chain.backward, chain.forward)
        return chain.fault(stage(epsilon=epsilon), affine=mistake)

    return plant


# --- mistakes in weights --------------------------------------------------------------------------


def bias_left(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    return {**backward(step, weights, scale, shift), "bias": weights["bias"] + shift}


def bias_unscaled(chain: Chain) -> Fault:
    return chain.fault(chain.backward(use_bias=True), absorb=bias_left)


def other_axis(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """Scale along the input channels, of which there are as many."""
    turned = scale if step.kind.endswith("Transpose") else scale[:, None]
    return {**backward(step, weights, scale, shift), "kernel": weights["kernel"] * turned}


def wrong_axis(chain: Chain) -> Fault:
    """The kernel's other axis, or a BatchNormalization on an axis that is not the channels'."""
    if chain.rank and chain.chance(0.4):
        return wrong_norm_axis(chain)
    kind = chain.pick("Conv", "ConvTranspose", "Dense")
    return chain.fault(chain.backward(kind, width=chain.channels), absorb=other_axis)


def wrong_norm_axis(chain: Chain) -> Fault:
    """No fold exists: the rows of the values are normalized, and there are as many as channels."""
    chain.count += 1
    chain.add(f"flat{chain.count}", "Flatten")
    shape = (*(5, 6)[: chain.rank], chain.channels)
    chain.add(f"rows{chain.count}", "Dense", units=int(np.prod(shape)), use_bias=False)
    chain.add(f"shaped{chain.count}", "Reshape", target_shape=shape)
    path = chain.layer("Conv", width=5, padding="same")
    chain.folds.append(Fold(chain.norm(axis=1), (path,)))
    chain.activate()
    return chain.fault(chain.folds[-1], possible=False)


def multiplier_first(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    channels, multiplier = weights["kernel"].shape[-2:]
    turned = scale.reshape(multiplier, channels).T
    return {**backward(step, weights, scale, shift), "kernel": weights["kernel"] * turned}


def depthwise_order(chain: Chain) -> Fault:
    fold = chain.backward("DepthwiseConv", depth_multiplier=chain.whole(2, 3))
    return chain.fault(fold, absorb=multiplier_first)


def groups_interleaved(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    turned = scale.reshape(-1, step.options["groups"]).T.reshape(-1)
    return {**backward(step, weights, scale, shift), "kernel": weights["kernel"] * turned}


def groups_rolled(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    each = scale.size // step.options["groups"]
    return forward(step, weights, np.roll(scale, each), np.roll(shift, each))


def group_order(chain: Chain) -> Fault:
    groups = 2 if chain.channels == 4 else 3
    if chain.channels % groups:
        chain.backward("Conv", width=2 * groups)
    grouped = {"width": 2 * groups, "groups": groups, "kernel_size": 3}
    if chain.chance(0.5):
        return chain.fault(chain.forward("Conv", **grouped), absorb=groups_rolled)
    return chain.fault(chain.backward("Conv", **grouped), absorb=groups_interleaved)


def exchange(one: str, other: str) -> Callable[[Mapping[str, Weights]], Mapping[str, Weights]]:
    """Let two layers have each other's weights."""

    def edit(weights: Mapping[str, Weights]) -> Mapping[str, Weights]:
        return {**weights, one: weights[other], other: weights[one]}

    return edit


def swapped_layers(chain: Chain) -> Fault:
    """Two layers of one shape, one behind the other or side by side, nested or not."""
    kind = chain.pick("Conv", "Conv", "Dense")
    size = {"width": chain.channels, "use_bias": True, "kernel_size": 3, "padding": "same"}
    if chain.chance(0.4):
        return _swapped_branches(chain, kind, size)
    outer = chain.prefix
    chain.prefix = outer or chain.pick("", "first/")
    one = chain.backward(kind, **size)
    chain.prefix = outer or chain.pick("", "second/")
    other = chain.backward(kind, **size)
    return chain.fault(one, edit=exchange(one.into[0], other.into[0]))


def _swapped_branches(chain: Chain, kind: str, size: Mapping[str, Any]) -> Fault:
    stem, folds, ends = chain.last, [], []
    for _ in range(2):
        chain.last = stem
        folds.append(chain.backward(kind, **size))
        ends.append(chain.last)
    chain.add(f"add{chain.count}", "Add", *ends)
    into = [fold.into[0] for fold in folds]
    return replace(
        chain.fault(folds[0], edit=exchange(*into)),
        culprits=tuple(fold.norm for fold in folds),
        sites=tuple(chain.site(fold) for fold in folds),
    )


def padding_border(chain: Chain) -> Fault:
    """A shift taken into a bias, though the padding behind it had none."""
    if chain.chance(0.5):
        return chain.fault(chain.forward("Conv", padding="same", kernel_size=3), possible=False)
    chain.count += 1
    norm = chain.norm()
    chain.add(f"pad{chain.count}", f"ZeroPadding{chain.rank}D", padding=1)
    path = chain.layer("Conv", kernel_size=3, padding="valid")
    chain.activate()
    chain.folds.append(Fold(norm, (path,), forward))
    return chain.fault(chain.folds[-1], possible=False)


def maximum_sign(chain: Chain) -> Fault:
    """A negative scale taken through a maximum, which it turns into a minimum."""
    chain.count += 1
    path = chain.layer()
    chain.pool("MaxPooling")
    return chain.fault(chain.close((path,)), possible=False)


def branches(chain: Chain) -> tuple[str, str]:
    """Two layers of the same width, side by side."""
    chain.count += 1
    stem, width, channels = chain.last, chain.whole(3, 5), chain.channels
    one = chain.layer("Conv", width=width, padding="same")
    chain.count, chain.last, chain.channels = chain.count + 1, stem, channels
    return one, chain.layer("Conv", width=width, padding="same")


def shift_twice(chain: Chain) -> Fault:
    into = branches(chain)
    chain.add(f"add{chain.count}", "Add", *into)
    return chain.fault(chain.close(into, share=shift_once), share=to_each)


def other_half(index: int, scale: Array, shift: Array) -> tuple[Array, Array]:
    return halves(1 - index, scale, shift)


def concatenated_order(chain: Chain) -> Fault:
    into = branches(chain)
    chain.add(f"concat{chain.count}", "Concatenate", *into)
    chain.channels *= 2
    return chain.fault(chain.close(into, share=halves), share=other_half)


def recurrent(chain: Chain, kind: str) -> Fold:
    """A BatchNormalization before an LSTM or a GRU, after which there are vectors."""
    chain.count += 1
    norm, units = chain.norm(), chain.whole(3, 6)
    path = chain.add(f"{kind.lower()}{chain.count}", kind, units=units)
    chain.rank, chain.channels = 0, units
    chain.folds.append(Fold(norm, (path,), forward))
    return chain.folds[-1]


def exchanged_gates(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """The kernel of the inputs with its first two gates exchanged."""
    right = forward(step, weights, scale, shift)
    first, second, *others = np.split(right["kernel"], 4, axis=-1)
    return {**right, "kernel": np.concatenate([second, first, *others], axis=-1)}


def shift_of_other_gates(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """The bias of each gate shifted by what belongs to another."""
    moved = np.roll(_spread(step, weights["kernel"], shift), step.options["units"])
    return {**forward(step, weights, scale, shift), "bias": weights["bias"] + moved}


def gate_order(chain: Chain) -> Fault:
    mistake = chain.pick(exchanged_gates, shift_of_other_gates)
    return chain.fault(recurrent(chain, "LSTM"), absorb=mistake)


def recurrent_bias(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """Add to the bias of the recurrent kernel, which the reset gate multiplies."""
    right = forward(step, weights, scale, shift)
    return {**right, "bias": weights["bias"] + (right["bias"] - weights["bias"])[::-1]}


def gru_bias(chain: Chain) -> Fault:
    return chain.fault(recurrent(chain, "GRU"), absorb=recurrent_bias)


def stale(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """Only the bias is folded."""
    right = backward(step, weights, scale, shift)
    return {**right, **{name: weights[name] for name in weights if name != "bias"}}


def stale_copy(chain: Chain) -> Fault:
    """Two nested models with the same names inside; in one of them a kernel was forgotten."""
    outer, count, folds = chain.prefix, chain.count, []
    for name in ("left/", "right/"):
        chain.count, chain.prefix = count, f"{outer}{name}"
        folds.append(chain.backward("Conv", width=chain.channels))
    chain.prefix = outer
    return chain.fault(chain.pick(*folds), absorb=stale)


def repeated(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    """Each channel taken several times in a row, where all of them come round again."""
    times = weights["kernel"].shape[0] // scale.size
    flat = replace(step, options={})
    return forward(flat, weights, np.repeat(scale, times), np.repeat(shift, times))


def flatten_order(chain: Chain) -> Fault:
    chain.count += 1
    norm = chain.norm()
    chain.add(f"flat{chain.count}", "Flatten")
    chain.rank = 0
    path = chain.layer("Dense")
    chain.activate()
    chain.folds.append(Fold(norm, (path,), forward))
    return chain.fault(chain.folds[-1], absorb=repeated)


def activation_ignored(chain: Chain) -> Fault:
    """Folded into a layer whose activation stands between."""
    fold = chain.backward("Conv", activation=chain.pick("relu", "tanh", "sigmoid"))
    return chain.fault(fold, possible=False)


def saturated(step: Step, weights: Weights, scale: Array, shift: Array) -> Weights:
    right = backward(step, weights, scale, shift)
    return {name: np.clip(one, -LARGEST_FLOAT16, LARGEST_FLOAT16) for name, one in right.items()}


def large_gamma(weights: Weights) -> Weights:
    enlarged = np.where(np.arange(weights["gamma"].size) == 0, 3000.0, weights["gamma"])
    return {**weights, "gamma": enlarged}


def overflow(chain: Chain) -> Fault:
    """Values near 1e-3, whatever the input, and a channel with a scale near 1e6."""
    chain.count += 1
    chain.add(f"bounded{chain.count}", "Activation", activation="tanh")
    small = chain.layer("Conv", kernel_size=1, use_bias=False)
    chain.own[small.split("/")[-1]] = 1e-3
    fold = chain.backward("Conv", epsilon=1e-7, padding="valid")
    chain.own[fold.into[0].split("/")[-1]] = 3e-3
    chain.tuned[fold.norm] = large_gamma
    return chain.fault(fold, possible=False, absorb=chain.pick(backward, saturated))


def through_a_clip(chain: Chain) -> Fault:
    """Folded through a clip that is left out: right wherever nothing reaches it."""
    chain.count += 1
    path = chain.layer("Conv")
    high = float(chain.pick(1, 2, 6))
    kind, options, without = chain.pick(
        ("ReLU", {"max_value": high, "negative_slope": 1.0}, {"negative_slope": 1.0}),
        ("Activation", {"activation": "hard_tanh"}, {"activation": "linear"}),
    )
    clip = chain.add(f"clip{chain.count}", kind, **options)
    chain.folds.append(Fold(chain.norm(), (path,)))
    chain.activate()
    return chain.fault(chain.folds[-1], possible=False, options={clip: without})


FAR = {
    "through a clip": Style(inputs=30.0, deviation=4.0),
    "behind a Rescaling": Style(inputs=255.0, deviation=4.0),
}
"""Mistakes that only show on large inputs, and how the weights are drawn."""


KINDS: dict[str, tuple[Plant, tuple[int, ...]]] = {
    "epsilon forgotten": (in_affine(no_epsilon, 1e-3), (0, 1, 2)),
    "epsilon 1e-3 for 1e-5": (in_affine(default_epsilon, 1e-5), (0, 1, 2)),
    "variance for deviation": (in_affine(variance_for_deviation), (0, 1, 2)),
    "gamma and beta swapped": (in_affine(swapped_gamma_and_beta), (0, 1, 2)),
    "bias left unscaled": (bias_unscaled, (0, 1, 2)),
    "one channel's scale off by 1e-3": (in_affine(one_scale_off), (0, 1, 2)),
    "one channel's shift missing": (in_affine(one_shift_missing), (0, 1, 2)),
    "wrong axis of equal size": (wrong_axis, (0, 1, 2)),
    "depthwise multiplier order": (depthwise_order, (1, 2)),
    "group order": (group_order, (1, 2)),
    "two layers' weights swapped": (swapped_layers, (0, 1, 2)),
    "padding border ignored": (padding_border, (1, 2)),
    "negative scale through a maximum": (maximum_sign, (1, 2)),
    "shift in both branches": (shift_twice, (0, 1, 2)),
    "gate order": (gate_order, (1,)),
    "stale copy of a nested model": (stale_copy, (0, 1, 2)),
    "float16 overflow": (overflow, (0, 1, 2)),
    "mean added": (in_affine(mean_added), (0, 1, 2)),
    "concatenated branches exchanged": (concatenated_order, (0, 1, 2)),
    "recurrent bias of a GRU": (gru_bias, (1,)),
    "flattened order": (flatten_order, (1, 2)),
    "activation ignored": (activation_ignored, (0, 1, 2)),
    "through a clip": (through_a_clip, (0, 1, 2)),
    "behind a Rescaling": (through_a_clip, (0, 1, 2)),
}
"""Each mistake: how to plant it, and in how many dimensions of space."""


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A net, its right fold, and, if one was planted, the wrong one with the layers at fault."""

    original: Net
    right: Net
    wrong: Net | None = None
    culprits: tuple[str, ...] = ()
    sites: tuple[tuple[str, str], ...] = ()
    norms: tuple[str, ...] = ()  # that the right fold takes out


def planted(kind: str, number: int) -> Pair:
    """The model of this number with a mistake of this kind that can be noticed."""
    for attempt in range(100):
        generator = np.random.default_rng([list(KINDS).index(kind), number, attempt])
        pair, style = _draw(kind, generator)
        if _shows(pair, style, {style.inputs} if kind in FAR else {style.inputs, 1.0}):
            return pair
    raise AssertionError(f"{kind}, number {number}: no draw changes the layer noticeably")


def _draw(kind: str, generator: Generator) -> tuple[Pair, Style]:
    plant, ranks = KINDS[kind]
    chain = Chain(generator, int(generator.choice(ranks)))
    if kind == "behind a Rescaling":
        chain.add("scaled", "Rescaling", scale=1 / 255)
    fault = around(chain, plant)
    style = FAR.get(kind) or some_style(generator)
    if kind == "float16 overflow":
        style = Style(policy=chain.pick("float16", "mixed_float16"))
    style = replace(style, own=chain.own, tuned=chain.tuned)
    return _pair(chain, style, fault), style


def _pair(chain: Chain, style: Style, fault: Fault | None = None) -> Pair:
    layers = {path for fold in chain.folds if fold.absorb is backward for path in fold.into}
    original = drawn(chain.net(), style, layers, chain.generator)
    kept = fault.fold.norm if fault is not None and not fault.possible else None
    right = [fold for fold in chain.folds if fold.norm != kept]
    norms = tuple(fold.norm for fold in right)
    pair = Pair(original, folded(original, right), norms=norms)
    if fault is None:
        return pair
    others = [fold for fold in chain.folds if fold.norm != fault.fold.norm]
    wrong = folded(original, [*others, fault.fold])
    steps = (replace(one, options=fault.options.get(one.path, one.options)) for one in wrong.steps)
    wrong = replace(wrong, weights=fault.edit(wrong.weights), steps=tuple(steps))
    return replace(pair, wrong=wrong, culprits=fault.culprits, sites=fault.sites)


def _shows(pair: Pair, style: Style, sizes: Collection[float]) -> bool:
    """Whether the mistake changes the values at its sites, on inputs of every size."""
    policy, least = "float64", NOTICEABLE
    if style.policy != "float32":
        policy, least = style.policy, NOTICEABLE_IN_FLOAT16
    for size in sizes:
        inputs = samples(pair.original, size)
        original = values(pair.original, inputs, policy)
        wrong = values(pair.wrong, inputs, policy)
        if not _is_alive(pair.original, original) or not _differs_at_the_end(pair, original, wrong):
            return False
        if not all(change(original[one], wrong[other]) > least for one, other in pair.sites):
            return False
    return True


def _is_alive(net: Net, found: Mapping[str, Array]) -> bool:
    """Whether all is finite, and no fold and no output is blind to the inputs."""
    watched = [step.path for step in net.steps if step.kind == "BatchNormalization"]
    return all(np.isfinite(value).all() for value in found.values()) and all(
        np.ptp(found[path], axis=0).max() > ALIVE * np.abs(found[path]).max()
        for path in (*watched, net.steps[-1].path)
    )


def _differs_at_the_end(
    pair: Pair, original: Mapping[str, Array], wrong: Mapping[str, Array]
) -> bool:
    ends = (pair.original.steps[-1].path, pair.wrong.steps[-1].path)
    return change(original[ends[0]], wrong[ends[1]]) > 1e-8


def change(one: Array, other: Array) -> float:
    """The largest difference as a share of the largest magnitude; infinite for lost numbers."""
    if not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-300))


def shows_at_the_output(pair: Pair) -> bool:
    """Whether the mistake changes the output by a thousandth, where no layer is paired."""
    inputs = samples(pair.original)
    last = pair.original.steps[-1].path
    wrong = values(pair.wrong, inputs)
    return change(values(pair.original, inputs)[last], wrong[pair.wrong.steps[-1].path]) > 1e-3


def renamed(net: Net) -> Net:
    """The net as another tool might name its layers; input and output keep their names."""
    kept = net.steps[-1].path.split("/")[0]
    names: dict[str, str] = {kept: kept, "input": "input"}

    def new(path: str) -> str:
        parts = path.split("/")
        whole = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        return "/".join(names.setdefault(one, f"node_{len(names)}") for one in whole)

    return with_paths(net, new)


def with_paths(net: Net, new: Callable[[str], str]) -> Net:
    """The net with other paths; "input" is one of those that `new` is asked for."""
    steps = tuple(
        replace(step, path=new(step.path), sources=tuple(map(new, step.sources)))
        for step in net.steps
    )
    return replace(net, steps=steps, weights={new(path): w for path, w in net.weights.items()})


def other_weights(pair: Pair, seed: int) -> Net:
    """The folded net with every weight drawn again."""
    generator = np.random.default_rng(seed)
    weights = {
        path: {name: np.abs(_numbers(one.shape, generator)) for name, one in own.items()}
        for path, own in pair.right.weights.items()
    }
    return replace(pair.right, weights=weights)


# --- right folds that are hard to judge -----------------------------------------------------------


def some_chain(
    generator: Generator,
    plant: Callable[[Chain], Any] = Chain.backward,
    epsilon: float | None = None,
) -> Chain:
    chain = Chain(generator, int(generator.integers(0, 3)), epsilon=epsilon)
    around(chain, plant)
    return chain


def far_means(generator: Generator) -> Pair:
    """Means a thousand times the deviation."""
    return _pair(some_chain(generator), replace(some_style(generator), offset=1000.0))


def tiny_variances(generator: Generator) -> Pair:
    """Variances near 1e-9 and an epsilon of 1e-7."""
    chain = some_chain(generator, epsilon=1e-7)
    return _pair(chain, replace(some_style(generator), deviation=3e-5, spread=0.0))


def in_policy(policy: str) -> Callable[[Generator], Pair]:
    """Values of a size that 16 bits can hold."""

    def draw(generator: Generator) -> Pair:
        return _pair(some_chain(generator), Style(policy=policy, spread=0.5))

    return draw


def deep_chain(generator: Generator) -> Pair:
    """25 convolutions with BatchNormalization and ReLU, their statistics measured."""
    chain = Chain(generator, int(generator.integers(1, 3)))
    for _ in range(25):
        chain.backward("Conv", width=chain.whole(4, 6), kernel_size=3, padding="same")
    chain.head()
    return _pair(chain, Style(spread=0.5))


def either_direction(generator: Generator) -> Pair:
    """Forward folds among backward ones."""
    return _pair(some_chain(generator, Chain.forward), some_style(generator))


def beside_a_skip(generator: Generator) -> Pair:
    """A forward fold where a linear layer stands before, whose values something else reads too."""
    chain = Chain(generator, int(generator.integers(0, 3)))
    chain.backward()
    chain.count += 1
    stem, width = chain.layer("Conv", padding="same"), chain.channels
    chain.forward("Conv", width=width, kernel_size=1)
    chain.add(f"skip{chain.count}", "Add", stem, chain.last)
    chain.backward()
    chain.head()
    return _pair(chain, some_style(generator))


HARMLESS: dict[str, Callable[[Generator], Pair]] = {
    "means of a thousand deviations": far_means,
    "tiny variances": tiny_variances,
    "mixed_float16": in_policy("mixed_float16"),
    "mixed_bfloat16": in_policy("mixed_bfloat16"),
    "deep chain": deep_chain,
    "either direction": either_direction,
    "beside a skip": beside_a_skip,
}


def harmless(kind: str, number: int) -> Pair:
    """The model of this number with a right fold, all in numbers that the policy can hold."""
    for attempt in range(100):
        generator = np.random.default_rng([1000 + list(HARMLESS).index(kind), number, attempt])
        pair = HARMLESS[kind](generator)
        nets = (pair.original, pair.right)
        if all(_is_alive(net, values(net, samples(net), net.policy)) for net in nets):
            return pair
    raise AssertionError(f"{kind}, number {number}: no draw is finite and alive")
