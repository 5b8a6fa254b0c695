"""Say everything that a folded model must never be, from the live models before and after.

The rules are written down here a second time, from what is exact in real arithmetic and not from
the code of the tool, so that the two can contradict each other. Every call of both models is laid
out flat, nested models and TimeDistributed included, and an affine is one array of
(scale, shift) over the axes of the tensor behind the batch, moved by numpy as its layers move it:

    backward: folded tensor = scale * original tensor + shift, from a BatchNormalization upwards
    forward:  original tensor = scale * folded tensor + shift, from a BatchNormalization downwards

Whatever cannot be told (a NaN shift) is no violation; an unknown class on the way always is one.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.models.functional import Functional

Affine = np.ndarray  # (2, *axes behind the batch): scale and shift; length 1 where all are equal
Held = tuple[Affine, frozenset[str]]  # an affine, and the folds that it comes from

RANKS = ("1D", "2D", "3D")


def _classes(words: str) -> set[str]:
    """Return class names: `Conv?` is Conv1D, Conv2D and Conv3D."""
    return {word.replace("?", rank) for word in words.split() for rank in RANKS}


def _by_class(kinds: dict[str, str]) -> dict[str, str]:
    return {name: kind for kind, words in kinds.items() for name in _classes(words)}


NOISE = _classes("AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout?")
CONV = _classes("Conv? DepthwiseConv? SeparableConv?")
TRANSPOSED = _classes("Conv?Transpose")
CONV_RECURRENT = _classes("ConvLSTM?")
RECURRENT = _classes("LSTM GRU SimpleRNN")
LAST_IN = _classes("Dense MultiHeadAttention Bidirectional RNN") | RECURRENT
LAST_OUT = _classes("Dense MultiHeadAttention Embedding")
NORMALIZATION = {f"{what}Normalization" for what in ("Batch", "Layer", "Group", "RMS")}

# How an affine moves through a class; a class that is not here lets none pass.
LAYER_KINDS = _by_class(
    {
        "copy": "Identity Activation ActivityRegularization " + " ".join(NOISE),
        "mix": "AveragePooling? AdaptiveAveragePooling? UpSampling? Cropping? CenterCrop Resizing",
        "max": "MaxPooling? AdaptiveMaxPooling?",
        "global": "GlobalAveragePooling?",
        "global max": "GlobalMaxPooling?",
        "pad": "ZeroPadding?",
        "permute": "Permute",
        "repeat": "RepeatVector",
        "reshape": "Reshape Flatten",
        "linear": "Rescaling",
        "relu": "ReLU LeakyReLU PReLU",
        "sum": "Add Subtract",
        "mean": "Average",
        "order": "Maximum Minimum",
        "product": "Multiply",
        "concatenate": "Concatenate",
    }
)
OPERATION_KINDS = _by_class(
    {
        "copy": "StopGradient Copy",
        "mix": "AveragePool",
        "max": "MaxPool",
        "global": "Mean",
        "global max": "Max Amax Min Amin",
        "permute": "Transpose",
        "reshape": "Reshape ExpandDims Squeeze",
        "linear": "Negative Divide TrueDivide",
        "relu": "Relu LeakyRelu",
        "sum": "Add Subtract",
        "order": "Maximum Minimum",
        "product": "Multiply",
        "concatenate": "Concatenate",
    }
)
ORDERED = {"max", "global max", "order", "relu"}  # exact only when no scale is negative
LINEAR_AT_ZERO = {"pad", "relu", "product"}  # exact only when every shift is zero
JOINS = {"sum", "mean", "order", "product", "concatenate"}
MAY_CHANGE = {"use_bias", "bias_axes", "scale", "center"}


class WrongError(Exception):
    """What makes a fold wrong, as a sentence."""


@dataclass(frozen=True, eq=False)
class Tensor:
    shape: tuple[int | None, ...]  # behind the batch
    dtype: str


@dataclass(frozen=True, eq=False)
class Step:
    """One call of one layer or operation; `lead` counts the time axes of TimeDistributed."""

    path: str
    layer: Any
    lead: int
    arguments: Any
    data: list[Any]
    outputs: list[Tensor]
    forced: bool  # training=True on this call or on one around it
    training: bool  # what a bare model(x) hands to it

    @property
    def name(self) -> str:
        return f"{type(self.layer).__name__} '{self.path}'"

    @property
    def kind(self) -> str | None:
        if not type(self.layer).__module__.startswith("keras."):
            return None
        kinds = LAYER_KINDS if isinstance(self.layer, keras.Layer) else OPERATION_KINDS
        kind = kinds.get(type(self.layer).__name__)
        joined = sum(isinstance(item, Tensor) for item in self.data) > 1
        if joined:
            return None if kind == "linear" else kind
        return "linear" if kind in {"sum", "product"} else kind

    def reads(self) -> list[Tensor]:
        return [leaf for leaf in tree.flatten(self.arguments) if isinstance(leaf, Tensor)]

    def inner(self, tensor: Tensor) -> tuple[int | None, ...]:
        return tensor.shape[self.lead :]


@dataclass
class Trace:
    """All calls of a model, in the order in which Keras runs them."""

    model: keras.Model
    steps: list[Step] = field(default_factory=list)
    context: Any = None  # the training argument which the next layer inherits
    ends: set[Tensor] = field(default_factory=set)  # outputs of the model and of nested ones

    def __post_init__(self) -> None:
        graph = _graph(self.model)
        self.inputs = [Tensor(tuple(x.shape[1:]), x.dtype) for x in graph.inputs]
        self.outputs = self._walk(graph, "", 0, self.inputs, None, False)

    def _walk(
        self,
        graph: Functional,
        prefix: str,
        lead: int,
        inputs: Sequence[Any],
        training: bool | None,
        forced: bool,
    ) -> list[Tensor]:
        known = {id(key): value for key, value in zip(graph.inputs, inputs, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input or id(node.outputs[0]) in known:
                    continue
                arguments = tree.map_structure(
                    lambda leaf: known.get(id(leaf), leaf),
                    (node.arguments.args, node.arguments.kwargs),
                )
                time = known[id(node.input_tensors[0])].shape[:lead]
                made = [Tensor(time + tuple(x.shape[1:]), x.dtype) for x in node.outputs]
                path = prefix + node.operation.name
                own = self._training(node.arguments.kwargs, training)
                forced_here = forced or bool(node.arguments.kwargs.get("training"))
                made = self._call(node.operation, path, lead, arguments, made, own, forced_here)
                known.update(zip(map(id, node.outputs), made, strict=True))
        made = [known[id(output)] for output in graph.outputs]
        self.ends.update(made)
        return made

    def _training(self, given: Mapping[str, Any], around: Any) -> Any:
        if around is not None:
            self.context = around
        elif "training" in given:
            self.context = given["training"]
        return self.context

    def _call(
        self,
        layer: Any,
        path: str,
        lead: int,
        arguments: tuple[Any, Mapping[str, Any]],
        made: list[Tensor],
        training: bool | None,
        forced: bool,
    ) -> list[Tensor]:
        args, kwargs = arguments
        data = [args, {k: v for k, v in kwargs.items() if "mask" not in k and k != "training"}]
        data = [item for item in tree.flatten(data) if item is not None]
        if _is_graph(layer):
            return self._walk(_graph(layer), path + "/", lead, data, training, forced)
        if _is(layer, "TimeDistributed"):
            inner = f"{path}/{layer.layer.name}"
            return self._call(layer.layer, inner, lead + 1, arguments, made, training, forced)
        self.steps.append(Step(path, layer, lead, arguments, data, made, forced, bool(training)))
        return made


def violations(
    original: keras.Model, folded: keras.Model, folds: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a sentence for everything in `folded` and `folds` that must never be."""
    before, after = Trace(original), Trace(folded)
    report = Report(before, folds)
    found = report.unknown_names()
    found += _interface(original, folded)
    found += _layers(original, folded, report)
    found += _wiring(before, after, report)
    found += _batch_statistics(before, folded)
    found += report.backward() + report.forward()
    return list(dict.fromkeys(found))


class Report:
    """The folds, by the nested path of the BatchNormalization, and the walks that judge them."""

    def __init__(self, trace: Trace, folds: Sequence[Mapping[str, Any]]):
        self.trace = trace
        self.members, self.count = _members(trace.model), len(folds)
        self.into = {self.inside(fold["name"]): set(fold["into"]) for fold in folds}
        self.direction = {self.inside(fold["name"]): fold["direction"] for fold in folds}
        self.calls = defaultdict(list)
        for step in trace.steps:
            self.calls[step.path].append(step)
        self.readers = defaultdict(int)
        for tensor in [*trace.outputs, *(t for step in trace.steps for t in step.reads())]:
            self.readers[tensor] += 1

    def inside(self, path: str) -> str:
        """Return the path of a wrapped layer, also when it was reported by its wrapper's name."""
        layer = self.members.get(path)
        while layer is not None and _is(layer, "TimeDistributed"):
            path, layer = f"{path}/{layer.layer.name}", layer.layer
        return path

    def names(self, fold: str, path: str) -> bool:
        """Whether the fold says that it went into this layer, or into a part of it."""
        return any(
            self.inside(entry) == path or entry.startswith(path + "/") for entry in self.into[fold]
        )

    def edited(self, path: str) -> bool:
        return any(self.names(fold, path) for fold in self.into)

    def absorbed(self, path: str) -> list[Affine | None]:
        """Return what a fold in the other direction put into a fold, None if it is not known."""
        others = [fold for fold in self.into if self.names(fold, path)]
        others = [fold for fold in others if self.direction[fold] != self.direction[path]]
        if len(others) != 1 or self.edited(others[0]):
            return [None] * len(others)
        walk = Walk(self, set(others))
        walk.backward() if self.direction[others[0]] == "backward" else walk.forward()
        taken = walk.taken[path, 0]
        return [taken[0][0] if taken and not walk.open else None]

    def unknown_names(self) -> list[str]:
        """Names that are no BatchNormalization, or not in the model, or in no call of it."""
        wrong = [] if len(self.into) == self.count else ["a layer is reported twice"]
        for path, way in self.direction.items():
            known = _is(self.members.get(path), "BatchNormalization") and path in self.calls
            if not known or way not in {"backward", "forward"}:
                wrong.append(f"'{path}' is no BatchNormalization that is called, or goes nowhere")
        return wrong

    def backward(self) -> list[str]:
        """Judge each fold alone, then, when that fails, composed with the others behind it."""
        ways = [fold for fold, way in self.direction.items() if way == "backward"]
        alone = {fold: self._search({fold}) for fold in ways if not self.edited(fold)}
        if len(alone) == len(ways) and not any(alone.values()):
            return []
        together = self._search(set(ways))
        apart = [sentence for found in alone.values() for sentence in found]
        return together and (apart or together)

    def _search(self, seeds: set[str]) -> list[str]:
        """Try which branch takes the shift of a sum, or the scale of a product, until one fits."""
        pending, best = [{}], None
        for _ in range(256):
            if not pending:
                break
            choice = pending.pop()
            walk = Walk(self, seeds, choice)
            found = walk.backward()
            if not found:
                return []
            best = found if best is None or len(found) < len(best) else best
            for step, count in walk.open[:1]:
                pending += [{**choice, step: slot} for slot in range(count)]
        return best or []

    def forward(self) -> list[str]:
        return Walk(self, {p for p, way in self.direction.items() if way == "forward"}).forward()


class Walk:
    """One walk with the affines of the folds in `seeds` through the whole original model."""

    def __init__(self, report: Report, seeds: set[str], choice: Mapping[Step, int] | None = None):
        self.report, self.seeds, self.choice = report, seeds, choice or {}
        self.open: list[tuple[Step, int]] = []  # choices that were not made yet, and how many
        self.found: list[str] = []
        self.held: dict[Tensor, list[Held]] = defaultdict(list)
        self.taken: dict[tuple[str, int], list[Held]] = defaultdict(list)

    def backward(self) -> list[str]:
        for step in reversed(self.report.trace.steps):
            self._guard(step, self._backward_step)
        for tensor in self.report.trace.inputs:
            self._complain(self.held[tensor], "the way back ends at an input of the model")
        return self.found + self._endings("outputs")

    def forward(self) -> list[str]:
        for step in self.report.trace.steps:
            self._guard(step, self._forward_step)
        for tensor in self.report.trace.outputs:
            self._complain(self.held[tensor], "an output of the model is on the way")
        return self.found + self._endings("inputs")

    def _complain(self, held: Sequence[Held], sentence: str) -> None:
        origins = sorted(frozenset().union(*(origins for _, origins in held)))
        self.found += [f"{', '.join(origins)}: {sentence}"] if origins else []

    def _guard(self, step: Step, rule: Callable[[Step], None]) -> None:
        try:
            rule(step)
        except WrongError as wrong:
            both = [held for tensor in step.reads() + step.outputs for held in self.held[tensor]]
            self._complain(both, f"{step.name} {wrong}")

    def _backward_step(self, step: Step) -> None:
        held = self._demand(step)
        if step.path in self.report.into:
            held = self._through_fold(step, held, backward=True)
        if held is None:
            return
        affine, origins = held
        if step.path in self.report.into:
            self.held[step.data[0]].append(held)
        elif step.kind is None:
            self._absorb(step, held, _output_axes)
        else:
            for item, part in zip(step.data, self._parts(step, affine), strict=False):
                if part is not None and isinstance(item, Tensor):
                    self.held[item].append((_settle(part, step, item), origins))

    def _demand(self, step: Step) -> Held | None:
        """Return the one affine which all readers of the step's output ask for."""
        asked = [(tensor, held) for tensor in step.outputs for held in self.held[tensor]]
        if not asked:
            return None
        if len(asked) != self.report.readers[asked[0][0]] or len(step.outputs) > 1:
            raise WrongError("is read by something beside the fold")
        first = asked[0][1]
        if any(not _same(held[0], first[0]) or held[1] != first[1] for _, held in asked):
            raise WrongError("is asked for two different affines")
        return first

    def _forward_step(self, step: Step) -> None:
        slots = [
            self.held[item][0] if isinstance(item, Tensor) and self.held[item] else None
            for item in step.data
        ]
        origins = frozenset().union(*(slot[1] for slot in slots if slot))
        if any(self.held[tensor] for tensor in step.reads() if tensor not in step.data):
            raise WrongError("reads it as a mask")
        if step.path in self.report.into:
            held = self._through_fold(step, slots[0], backward=False)
            self.held[step.outputs[0]] += [held] if held else []
        elif origins and step.kind is None:
            for place, slot in enumerate(slots):
                if slot:
                    self._absorb(step, slot, _input_axes, place)
        elif origins:
            affine = self._moved(step, [slot and slot[0] for slot in slots])
            self.held[step.outputs[0]].append((affine, origins))

    def _through_fold(self, step: Step, held: Held | None, backward: bool) -> Held | None:
        """Cross a BatchNormalization that is folded itself, or begin at it."""
        origins = held[1] if held else frozenset()
        left = frozenset(fold for fold in origins if not self.report.names(fold, step.path))
        if held and left != origins:
            self.taken[step.path, 0].append((held[0], origins - left))
        if step.path not in self.seeds:
            return (held[0], left) if held and left else None
        own = _affine(step)
        for other in self.report.absorbed(step.path):
            if other is None:
                own = _unknown(own)
            else:
                own = _compose(own, other) if backward else _compose(other, own)
        if held:
            own = _compose(held[0], own) if backward else _compose(own, held[0])
        return own, left | {step.path}

    def _absorb(self, step: Step, held: Held, axes_of: Callable, place: int = 0) -> None:
        """End in a layer which takes the affine into its weights, at one of its inputs."""
        affine, origins = held
        self.taken[step.path, place].append(held)
        if not all(self.report.names(fold, step.path) for fold in origins):
            raise WrongError("is not among the layers that it was folded into")
        if place and not (_is(step.layer, "MultiHeadAttention") and place < 3):
            raise WrongError("reads it in another place than its input")
        affine = _strip(affine, step)
        axes = axes_of(step, affine)
        if not _spread(affine) <= axes:
            raise WrongError(
                f"has its channels on axes {sorted(axes)}, it on {sorted(_spread(affine))}"
            )

    def _endings(self, side: str) -> list[str]:
        """Every call of an edited layer takes the same, and every layer named is reached."""
        found = []
        for (path, _), taken in self.taken.items():
            calls = self.report.calls[path]
            same = all(_same(one[0], taken[0][0]) and one[1] == taken[0][1] for one in taken)
            if not same or len(taken) < len(calls):
                who = ", ".join(sorted(frozenset().union(*(one[1] for one in taken))))
                found.append(f"{who}: not every call of '{path}' takes the same at its {side}")
        for fold in self.seeds:
            reached = {
                path
                for (path, _), taken in self.taken.items()
                if any(fold in origins for _, origins in taken)
            }
            for entry in self.report.into[fold]:
                path = self.report.inside(entry)
                if not any(path == end or path.startswith(end + "/") for end in reached):
                    found.append(f"{fold}: is reported to go into '{entry}' and never gets there")
        return found

    def _parts(self, step: Step, affine: Affine) -> list[Affine | None]:
        """Return the affine for each input of a transparent step, from that of its output."""
        affine = _strip(affine, step)
        _check(step, [affine])
        if step.kind not in JOINS:
            part = ONE_INPUT[step.kind](step, affine, True)
            return [part if isinstance(item, Tensor) else None for item in step.data]
        return [
            part if part is None else _fit(part, step, item)
            for part, item in zip(self._shares(step, affine), step.data, strict=True)
        ]

    def _shares(self, step: Step, affine: Affine) -> list[Affine | None]:
        count = len(step.data)
        if step.kind == "concatenate":
            return _split(step, affine)
        if step.kind == "product":
            chosen = self._choose(step, count)
            return [affine if slot == chosen else None for slot in range(count)]
        if step.kind != "sum" or not _shifts(affine):
            return [affine] * count
        chosen = self._choose(step, count)
        keep = [float(slot == chosen) * _sign(step, slot) for slot in range(count)]
        return [np.stack([affine[0], affine[1] * part]) for part in keep]

    def _choose(self, step: Step, count: int) -> int:
        if step not in self.choice:
            self.open.append((step, count))
        return self.choice.get(step, 0)

    def _moved(self, step: Step, affines: list[Affine | None]) -> Affine:
        """Return the affine of a transparent step's output, from those of its inputs."""
        held = [_strip(affine, step) for affine in affines if affine is not None]
        _check(step, held)
        if step.kind not in JOINS:
            if affines[0] is None and step.kind != "linear":
                raise WrongError("reads it in another place than its input")
            moved = ONE_INPUT[step.kind](step, held[0], False)
        else:
            moved = _join(step, affines)
        return _settle(moved, step, step.outputs[0])


def _check(step: Step, affines: Sequence[Affine]) -> None:
    """Raise what forbids these affines to pass the step at all, whatever its axes."""
    layer, kind = step.layer, step.kind
    if kind in JOINS and not all(isinstance(item, Tensor) for item in step.data):
        raise WrongError("joins it with a constant")
    if len(step.outputs) > 1:
        raise WrongError("has several outputs")
    if type(layer).__name__ in NOISE and step.forced:
        raise WrongError("is called with training=True")
    if getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", 0):
        raise WrongError("has a threshold or a largest value")
    act = getattr(layer, "activation", None) if _is(layer, "Activation") else None
    bent = act in {keras.activations.relu, keras.activations.leaky_relu}
    if act not in {None, keras.activations.linear} and not bent:
        raise WrongError("is not linear")
    if (kind in ORDERED or bent) and any(np.any(affine[0] < 0) for affine in affines):
        raise WrongError("needs every scale positive, and some are not")
    padded = kind == "pad" and np.any(np.asarray(layer.padding))
    padded = padded or getattr(layer, "pad_to_aspect_ratio", False)
    if (kind in LINEAR_AT_ZERO - {"pad"} or bent or padded) and any(map(_shifts, affines)):
        raise WrongError("needs a shift of zero, and some are not")


def _copy(step: Step, affine: Affine, backward: bool) -> Affine:
    return affine


def _mix(step: Step, affine: Affine, backward: bool) -> Affine:
    """Positions are mixed within a channel: the affine must be the same at all of them."""
    channel = _channel(step.layer, affine.ndim - 1)
    if not _spread(affine) <= {channel}:
        raise WrongError(f"mixes the axes that the affine differs on ({sorted(_spread(affine))})")
    return affine


def _global(step: Step, affine: Affine, backward: bool) -> Affine:
    rank = len(step.inner(step.data[0]))
    axes = {axis for axis in range(rank) if axis != _channel(step.layer, rank)}
    if not isinstance(step.layer, keras.Layer):
        given = step.layer.axis if step.layer.axis is not None else [0]
        axes = {_behind_batch(axis, rank) for axis in np.atleast_1d(given)}
    if backward and not step.layer.keepdims:
        return np.expand_dims(affine, [axis + 1 for axis in sorted(axes)])
    if step.layer.keepdims and _spread(affine) & axes:
        raise WrongError("mixes the axes that the affine differs on")
    return affine if backward or step.layer.keepdims else _drop(affine, axes)


def _permute(step: Step, affine: Affine, backward: bool) -> Affine:
    if isinstance(step.layer, keras.Layer):
        order = [0, *step.layer.dims]
    else:
        order = list(step.layer.axes or range(affine.ndim)[::-1])
    if order[0] != 0:
        raise WrongError("moves the axis of the batch")
    return np.transpose(affine, np.argsort(order) if backward else order)


def _repeat(step: Step, affine: Affine, backward: bool) -> Affine:
    return _drop(affine, {0}) if backward else affine[:, None]


def _reshape(step: Step, affine: Affine, backward: bool) -> Affine:
    """Reshape at full size; an unknown length gets a number that can be divided."""
    source, target = step.inner(step.data[0]), step.inner(step.outputs[0])
    known = prod(size for size in target if size is not None)
    source = [2 * known if size is None else size for size in source]
    if target.count(None) > 1 or prod(source) % known:
        raise WrongError("has a shape that cannot be followed")
    target = [prod(source) // known if size is None else size for size in target]
    turned = _is(step.layer, "Flatten") and _channel(step.layer, len(source)) == 0
    middle = source[1:] + source[:1] if turned else source
    if backward:
        full = np.broadcast_to(affine, (2, *target)).reshape(2, *middle)
        return np.moveaxis(full, -1, 1) if turned else full
    full = np.broadcast_to(affine, (2, *source))
    return (np.moveaxis(full, 1, -1) if turned else full).reshape(2, *target)


def _linear(step: Step, affine: Affine, backward: bool) -> Affine:
    """Cross y = factor * x + offset, which stays as it is."""
    factor, offset = _factor_and_offset(step)
    if np.any(factor == 0):
        raise WrongError("multiplies by zero")
    scale, shift = affine
    if backward:
        shift = (scale * offset + shift - offset) / factor
    else:
        shift = factor * shift + offset - scale * offset
    return np.stack(np.broadcast_arrays(scale, shift))


def _factor_and_offset(step: Step) -> tuple[np.ndarray, np.ndarray]:
    name, rank = type(step.layer).__name__, len(step.inner(step.outputs[0]))
    if name == "Rescaling":
        return _constant(step.layer.scale, rank), _constant(step.layer.offset, rank)
    first = isinstance(step.data[0], Tensor)
    other = _constant(step.data[1 if first else 0], rank) if len(step.data) > 1 else np.ones(())
    if name in {"Divide", "TrueDivide"} and not first:
        raise WrongError("divides by it")
    one, zero = np.ones(()), np.zeros(())
    return {
        "Negative": (-one, zero),
        "Add": (one, other),
        "Subtract": (one, -other) if first else (-one, other),
        "Multiply": (other, zero),
    }.get(name) or (one / other, zero)


ONE_INPUT: dict[str, Callable[[Step, Affine, bool], Affine]] = {
    **dict.fromkeys(["copy", "relu"], _copy),
    **dict.fromkeys(["mix", "max", "pad"], _mix),
    **dict.fromkeys(["global", "global max"], _global),
    "permute": _permute,
    "repeat": _repeat,
    "reshape": _reshape,
    "linear": _linear,
}


def _split(step: Step, affine: Affine) -> list[Affine]:
    axis = _behind_batch(step.layer.axis, affine.ndim - 1) + 1
    if affine.shape[axis] == 1:
        return [affine] * len(step.data)
    sizes = [step.inner(item)[axis - 1] for item in step.data]
    return np.split(affine, np.cumsum(sizes)[:-1], axis)


def _join(step: Step, affines: list[Affine | None]) -> Affine:
    """Return the affine behind a join; a branch without one has scale 1 and shift 0."""
    rank = len(step.inner(step.outputs[0]))
    identity = np.stack([np.ones((1,) * rank), np.zeros((1,) * rank)])
    parts = [identity if part is None else _strip(part, step) for part in affines]
    parts = [np.expand_dims(part, list(range(1, rank + 2 - part.ndim))) for part in parts]
    if step.kind == "concatenate":
        return _concatenate(step, parts)
    scales, shifts = zip(*parts, strict=True)
    if step.kind == "product":
        scale = np.prod(np.broadcast_arrays(*scales), axis=0)
        return np.stack([scale, np.zeros_like(scale)])
    compared = slice(None) if step.kind == "order" else slice(1)
    if not all(_same(part[compared], parts[0][compared]) for part in parts):
        raise WrongError("joins it with a branch that has another affine")
    signed = [shift * _sign(step, slot) for slot, shift in enumerate(shifts)]
    shift = np.sum(np.broadcast_arrays(*signed), axis=0)
    shift = shift if step.kind == "sum" else shift / len(parts)
    return np.stack(np.broadcast_arrays(scales[0], shift))


def _concatenate(step: Step, parts: list[Affine]) -> Affine:
    axis = _behind_batch(step.layer.axis, parts[0].ndim - 1) + 1
    if all(_same(part, parts[0]) and part.shape[axis] == 1 for part in parts):
        return parts[0]
    sizes = [step.inner(item)[axis - 1] for item in step.data]
    if None in sizes:
        raise WrongError("joins branches of unknown length")
    whole = np.broadcast_shapes(*(np.delete(part.shape, axis) for part in parts))
    shapes = [(*whole[:axis], size, *whole[axis:]) for size in sizes]
    return np.concatenate(list(map(np.broadcast_to, parts, shapes)), axis)


def _input_axes(step: Step, affine: Affine) -> set[int]:
    """Return the axes of a layer's input along which its kernel can take in a scale."""
    layer, name, rank = step.layer, type(step.layer).__name__, affine.ndim - 1
    _check_weights(step)
    inner = getattr(layer, "forward_layer", layer)
    if step.forced and getattr(inner, "dropout", 0) and _shifts(affine):
        raise WrongError("drops out some of its input")
    if _is(layer, "Bidirectional") and type(inner).__name__ not in RECURRENT:
        raise WrongError("is not known to absorb it")
    if name in CONV | TRANSPOSED | CONV_RECURRENT:
        if _shifts(affine) and _spreads_unevenly(step):
            raise WrongError("pads with zeros or spreads over strides, and the shift is not zero")
        return {_channel(layer, rank, int(name in CONV_RECURRENT))}
    if name == "EinsumDense":
        return _einsum_axes(step, affine, 0)
    if name not in LAST_IN and name != "BatchNormalization":
        raise WrongError("is not known to absorb it")
    return {rank - 1} if name in LAST_IN else {_behind_batch(layer.axis, rank)}


def _output_axes(step: Step, affine: Affine) -> set[int]:
    """Return the axes of a layer's output along which its weights can take in an affine."""
    layer, name, rank = step.layer, type(step.layer).__name__, affine.ndim - 1
    _check_weights(step)
    if getattr(layer, "activation", None) not in {None, keras.activations.linear}:
        raise WrongError("has an activation of its own")
    if name == "RMSNormalization" and _shifts(affine):
        raise WrongError("has no shift to put it in")
    if name in CONV | TRANSPOSED:
        return {_channel(layer, rank)}
    if name == "EinsumDense":
        return _einsum_axes(step, affine, 1)
    if name not in LAST_OUT | NORMALIZATION:
        raise WrongError("is not known to absorb it")
    if name in LAST_OUT:
        return {rank - 1}
    return {_behind_batch(axis, rank) for axis in np.atleast_1d(layer.axis)}


def _check_weights(step: Step) -> None:
    if not type(step.layer).__module__.startswith("keras."):
        raise WrongError("is of a class that is not Keras' own")
    if getattr(step.layer, "quantization_mode", None) is not None:
        raise WrongError("is quantized")


def _spreads_unevenly(step: Step) -> bool:
    """Whether a shift at the input of a convolution reaches its outputs unevenly."""
    layer, name = step.layer, type(step.layer).__name__
    if name in TRANSPOSED:
        return max(*layer.kernel_size, *layer.strides) > 1
    first = name in CONV_RECURRENT
    sizes = list(step.inner(step.data[0])[first:])
    del sizes[_channel(layer, len(sizes))]
    per_axis = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    return layer.padding != "valid" and any(_pads(layer.padding, *axis) for axis in per_axis)


def _pads(padding: str, size: int | None, kernel: int, stride: int, dilation: int) -> bool:
    reach = (kernel - 1) * dilation
    if padding == "causal" or size is None:
        return reach > 0
    return (-(-size // stride) - 1) * stride + reach + 1 > size


def _einsum_axes(step: Step, affine: Affine, side: int) -> set[int]:
    """A scale needs its label in the kernel; a shift can have a bias as wide as it needs."""
    left, result = step.layer.equation.replace(" ", "").split("->")
    source, kernel = left.split(",")
    rank = affine.ndim - 1
    label_of = _einsum_labels((source, result)[side], rank)
    summed = set(source) - set(result) - set(kernel) if side == 0 else set()
    sizes = step.inner(step.data[0])
    if _shifts(affine) and any(
        label_of[axis] in summed and sizes[axis] is None for axis in range(rank)
    ):
        raise WrongError("sums an axis of unknown length")
    axes = {axis for axis in range(rank) if label_of[axis] in kernel}
    return set(range(rank)) if _spread(_squeeze(affine[:1])) <= axes else axes


def _einsum_labels(side: str, rank: int) -> list[str]:
    """Return the label of each axis behind the batch, '.' for those in an ellipsis."""
    before, dots, after = side.partition("...")
    return [*before, *("." * (rank + 1 - len(before) - len(after)) if dots else ""), *after][1:]


def _affine(step: Step) -> Affine:
    """Return scale = gamma / sqrt(variance + epsilon) and shift = beta - mean * scale."""
    layer, rank = step.layer, len(step.outputs[0].shape)
    mean, variance = (_numbers(w) for w in (layer.moving_mean, layer.moving_variance))
    gamma = _numbers(layer.gamma) if layer.scale else np.ones_like(mean)
    beta = _numbers(layer.beta) if layer.center else np.zeros_like(mean)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    both = np.stack([scale, beta - mean * scale])
    shape = [1] * rank
    shape[step.lead + _behind_batch(layer.axis, rank - step.lead)] = len(mean)
    return _squeeze(both.reshape(2, *shape))


def _unknown(affine: Affine) -> Affine:
    """Return an affine on the same axes of which nothing can be said."""
    return np.stack(
        [np.arange(1.0, affine[0].size + 1).reshape(affine[0].shape), affine[1] * np.nan]
    )


def _numbers(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), "float64")


def _constant(value: Any, rank: int) -> np.ndarray:
    array = _numbers(value)
    if array.ndim > rank + 1 or (array.ndim == rank + 1 and len(array) != 1):
        raise WrongError("has a constant that differs over the batch")
    return array[0] if array.ndim == rank + 1 else array


def _compose(outer: Affine, inner: Affine) -> Affine:
    return _squeeze(
        np.stack(np.broadcast_arrays(outer[0] * inner[0], outer[0] * inner[1] + outer[1]))
    )


def _squeeze(affine: Affine) -> Affine:
    """Cut every axis to length 1 along which the affine is the same everywhere."""
    for axis in range(1, affine.ndim):
        first = np.take(affine, [0], axis)
        if np.array_equal(np.broadcast_to(first, affine.shape), affine, equal_nan=True):
            affine = first
    return affine


def _spread(affine: Affine) -> set[int]:
    return {axis for axis, size in enumerate(affine.shape[1:]) if size > 1}


def _shifts(affine: Affine) -> bool:
    return bool(np.any(np.abs(affine[1]) > 1e-12))


def _same(one: Affine, other: Affine) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.isnan(one + other).any() or np.allclose(one, other, rtol=1e-6, atol=1e-9))


def _strip(affine: Affine, step: Step) -> Affine:
    """Take away the time axes of TimeDistributed, over which nothing may differ."""
    return _drop(affine, set(range(step.lead)))


def _settle(affine: Affine, step: Step, tensor: Tensor) -> Affine:
    """Give back the time axes, and refuse to differ along an axis of unknown length."""
    affine = _squeeze(np.expand_dims(affine, list(range(1, step.lead + 1))))
    if any(tensor.shape[axis] is None for axis in _spread(affine)):
        raise WrongError("spreads it over an axis of unknown length")
    return affine


def _drop(affine: Affine, axes: set[int]) -> Affine:
    if _spread(affine) & axes:
        raise WrongError("takes away an axis that the affine differs on")
    return np.squeeze(affine, tuple(axis + 1 for axis in axes))


def _fit(affine: Affine, step: Step, tensor: Tensor) -> Affine:
    """Cut the affine of a join's output to a branch, which may broadcast only where all agree."""
    affine, shape = _squeeze(affine), step.inner(tensor)
    missing = affine.ndim - 1 - len(shape)
    shape = (1,) * missing + shape
    if any(shape[axis] == 1 for axis in _spread(affine)):
        raise WrongError("has a branch that broadcasts on the axis of the channels")
    return _drop(affine, set(range(missing)))


def _sign(step: Step, slot: int) -> int:
    return -1 if slot and _is(step.layer, "Subtract") else 1


def _behind_batch(axis: Any, rank: int) -> int:
    """Return the index behind the batch of an axis that counts the batch."""
    axis = int(np.ravel(axis)[0])
    if axis in {0, -1 - rank}:
        raise WrongError("works on the axis of the batch")
    return axis - 1 if axis > 0 else rank + axis


def _channel(layer: Any, rank: int, first: int = 0) -> int:
    return first if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def _is(layer: Any, name: str) -> bool:
    return type(layer).__name__ == name and type(layer).__module__.startswith("keras.")


def _is_graph(layer: Any) -> bool:
    known = isinstance(layer, Functional) or getattr(layer, "_functional", None) is not None
    return known and type(layer).__module__.startswith("keras.")


def _graph(model: Any) -> Functional:
    return model._functional if isinstance(model, keras.Sequential) else model


def _members(model: Any, prefix: str = "") -> dict[str, keras.Layer]:
    """Return every layer by its nested path, from the outside in."""
    layers = [model.layer] if _is(model, "TimeDistributed") else model.layers
    found = {}
    for layer in layers:
        found[prefix + layer.name] = layer
        if _is_graph(layer) or _is(layer, "TimeDistributed"):
            found |= _members(layer, f"{prefix}{layer.name}/")
    return found


def _interface(original: keras.Model, folded: keras.Model) -> list[str]:
    """Names, order, shapes, dtypes and structure of what goes in and comes out."""
    found = []
    for side in ("inputs", "outputs"):
        one, two = ([_describe(x) for x in getattr(_graph(m), side)] for m in (original, folded))
        structures = [getattr(_graph(model), f"_{side}_struct") for model in (original, folded)]
        shapes = [json.dumps(tree.map_structure(lambda _: 0, each)) for each in structures]
        if one != two or shapes[0] != shapes[1]:
            found.append(f"the {side} of the model were {one} and are {two}")
    return found


def _describe(tensor: Any) -> tuple[str, tuple[int | None, ...], str]:
    return tensor._keras_history.operation.name, tuple(tensor.shape), tensor.dtype


def _layers(original: keras.Model, folded: keras.Model, report: Report) -> list[str]:
    """Layers that vanished, appeared, or changed in class, settings or numbers."""
    before, after = _members(original), _members(folded)
    found = [f"'{path}' is new" for path in after if path not in before]
    for path, layer in before.items():
        left = after.get(path)
        if report.inside(path) in report.into:
            calls = report.calls[report.inside(path)]
            needed = any(step.outputs[0] in report.trace.ends for step in calls)
            stays = left is not None and not (needed and _is_stand_in(left))
            if stays and (path in report.into or not _is(left, "TimeDistributed")):
                found.append(f"'{path}' is reported as folded and is still there")
        elif left is None:
            found.append(f"{type(layer).__name__} '{path}' is gone and was not reported as folded")
        else:
            found += [f"'{path}' {what}" for what in _changes(path, layer, left, report)]
    return found


def _is_stand_in(layer: Any) -> bool:
    return _is(layer, "Activation") and layer.activation is keras.activations.linear


def _changes(path: str, layer: Any, left: Any, report: Report) -> list[str]:
    if type(layer) is not type(left):
        return [f"was {type(layer).__name__} and is {type(left).__name__}"]
    if _is_graph(layer):
        return []
    edited = report.edited(path)
    one, two = (_settings(each, MAY_CHANGE if edited else set()) for each in (layer, left))
    changed = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
    found = [f"changed its {', '.join(changed)}"] if changed else []
    if not edited and not _is(layer, "TimeDistributed") and _bits(layer) != _bits(left):
        found.append("has other weights and was no target of a fold")
    if _is_finite(layer) and not _is_finite(left):
        found.append("has weights that are not finite any more")
    return found


def _settings(layer: keras.Layer, without: set[str]) -> dict[str, Any]:
    hidden = {"layer"} if _is(layer, "TimeDistributed") else {"function"} | without
    text = json.dumps(layer.get_config(), default=lambda value: type(value).__name__)
    return _pruned(json.loads(text), hidden)


def _pruned(config: Any, without: set[str]) -> Any:
    if isinstance(config, dict):
        return {k: _pruned(v, without) for k, v in config.items() if k not in without}
    return [_pruned(v, without) for v in config] if isinstance(config, list) else config


def _bits(layer: keras.Layer) -> list[tuple[Any, ...]]:
    arrays = [np.asarray(keras.ops.convert_to_numpy(weight)) for weight in layer.weights]
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def _is_finite(layer: keras.Layer) -> bool:
    return all(np.isfinite(_numbers(weight)).all() for weight in layer.weights)


def _wiring(before: Trace, after: Trace, report: Report) -> list[str]:
    """Without the folded layers, every call must read and put out what it did before."""
    known: dict[tuple[Any, ...], int] = {}
    _, expected = _identities(before, report, known)
    count = len(known)
    two, real = _identities(after, report, known)
    if real == expected:
        return []
    other = [step.name for step, number in two if number >= count]
    return [f"{other[0] if other else 'an output'} reads or puts out something else than before"]


def _identities(
    trace: Trace, report: Report, known: dict[tuple[Any, ...], int]
) -> tuple[list[tuple[Step, int]], list[int]]:
    """Number every tensor by how it is computed; `known` is shared by the two models."""
    number = {x: known.setdefault(("input", i), len(known)) for i, x in enumerate(trace.inputs)}
    steps = []
    for step in trace.steps:
        if report.inside(step.path) in report.into and (
            _is(step.layer, "BatchNormalization") or _is_stand_in(step.layer)
        ):
            number[step.outputs[0]] = number[step.data[0]]
            continue
        reads = tree.map_structure(
            lambda leaf: number[leaf] if isinstance(leaf, Tensor) else _text(leaf), step.arguments
        )
        name = type(step.layer).__name__
        strict = [x.dtype for x in step.reads()] if name in CONV | TRANSPOSED else []
        for index, output in enumerate(step.outputs):
            shown = (repr(reads), repr(strict), index, output.shape, output.dtype)
            number[output] = known.setdefault((step.path, name, *shown), len(known))
        steps.append((step, number[step.outputs[0]]))
    return steps, [number[output] for output in trace.outputs]


def _text(leaf: Any) -> str:
    is_array = hasattr(leaf, "shape")
    return repr(np.asarray(leaf).tolist()) if is_array else repr(leaf)


def _batch_statistics(before: Trace, folded: keras.Model) -> list[str]:
    """A trainable BatchNormalization that runs with training=True is another function."""
    after = _members(folded)
    return [
        f"'{step.path}' runs with training=True and is gone"
        for step in before.steps
        if _is(step.layer, "BatchNormalization")
        and step.layer.trainable
        and (step.forced or step.training)
        and not _is(after.get(step.path), "BatchNormalization")
    ]
