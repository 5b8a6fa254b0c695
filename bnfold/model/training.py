"""Which layers run in training mode because of a layer that ran before them.

Keras 3 keeps an explicit `training=True` of one call for every layer that runs later in the same
outer call, also on a parallel branch and also in what `model.export` traces; only a `training`
given to the outermost call overrides it (measured with Keras 3.15, `Layer.__call__`). So after a
`Dropout(...)(x, training=True)` every BatchNormalization that is not frozen normalizes with the
statistics of the batch. Layers of augmentation are called so by default, Resizing and CenterCrop
too. Keras 2 hands nothing on.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from bnfold.model.graph import Layer, LayerPath, parts
from bnfold.model.inbound_nodes import is_keras3
from bnfold.model.layers import facts, is_batchnorm, is_input
from bnfold.model.order import call_depths

if TYPE_CHECKING:
    from bnfold.model.program import Call, Region

BY_DEFAULT = "takes training=True by default"
"""What is said of a layer that sets training mode without being told to."""


def is_set(argument: object) -> bool:
    """Whether a call's `training` may be true: False, None and 0 are not, a tensor may be."""
    return argument not in (None, False, 0)


def is_off(argument: object) -> bool:
    """Whether a call's `training` says that it is not training; None says nothing."""
    return argument is not None and not is_set(argument)


class Modes:
    """What the calls of a whole model do to the training mode of others."""

    def __init__(self, region: "Region") -> None:
        self._region = region

    @cached_property
    def exposed(self) -> Mapping[LayerPath, str]:
        """The layers that heed training mode and may run after another one's training=True.

        The value is a clause about that other layer. Layers of the same depth count as later,
        because their order hangs on that of the config.
        """
        return {} if is_keras2(self._region) else _Exposure(self._region).found

    @cached_property
    def reached(self) -> frozenset[LayerPath]:
        """Those of them that it does reach, if the model is called without `training`.

        Unlike `exposed` it takes into account that a class whose `call` has training=False for its
        default, such as Dropout, ends what another one has begun.
        """
        runs = _Simulation(self._region).runs.values() if self.exposed else ()
        return frozenset(path for run in runs for (path, _), mode in run.items() if mode is True)


def first_changed_mode(region: "Region", changed: "Region") -> LayerPath | None:
    """A layer that runs in training mode in one of two models and not in the other.

    Layers that are gone change depths, and with them the order of what is left; and one that is
    gone hands nothing on.
    """
    if is_keras2(region) or not _sources(region):
        return None
    return _Simulation(region).first_difference(_Simulation(changed))


_Run = tuple["Region", bool | None]
"""One run of a model: the model, and the mode it is given, None for none."""


class _Simulation:
    """One bare call of a model, as Keras 3 resolves `training` in it.

    There is one running value. A call that says something, by its own argument or by the default
    of its class, sets it; one that says nothing takes it over. A model that is given a value hands
    that to all its layers, whatever their calls say (keras/src/layers/layer.py, and `operation_fn`
    of functional.py).
    """

    def __init__(self, region: "Region") -> None:
        # What becomes of each call in a run: its mode, or the run of the model that it calls. A
        # model may be called by others again and again, but it has three runs at most.
        self.runs: dict[_Run, dict[tuple[LayerPath, int], bool | _Run]] = {}
        self._ends: dict[_Run, object] = {}
        self._first = self._run(region, None)

    def first_difference(self, changed: "_Simulation") -> LayerPath | None:
        """A layer that runs in another mode in a changed graph than in this one."""
        waiting = [(self._first, changed._first)]
        seen = set(waiting)
        while waiting:
            before, after = waiting.pop()
            for call, mode in changed.runs[after].items():
                was = self.runs[before].get(call)
                if isinstance(was, tuple) and isinstance(mode, tuple):
                    waiting += {(was, mode)} - seen
                    seen.add((was, mode))
                elif was != mode:
                    return call[0]
        return None

    def _run(self, region: "Region", forced: object) -> _Run:
        run = (region, None if forced is None else is_set(forced))
        if run in self.runs:
            return run
        modes = self.runs[run] = {}
        current = forced
        for call in (call for calls in _by_depth(region) for call in calls):
            if call.outer.is_operation or is_input(call.outer):
                continue
            if forced is None:
                said, value = _said(call)
                current = value if said else current
            for layer, path in parts(call.outer, call.path):
                if not ignores_training(layer):
                    modes[path, call.number] = is_set(current)
            if call.body is not None:
                inside = modes[call.core_path, call.number] = self._run(call.body, current)
                current = self._ends[inside] if current is None else current
        self._ends[run] = current
        return run


def _said(call: "Call") -> tuple[bool, object]:
    """Whether a call says in which mode it is, and in which."""
    node = call.written.node
    keywords = node.get("kwargs") if isinstance(node, dict) else None
    if isinstance(keywords, dict) and "training" in keywords:
        return True, keywords["training"]
    default = facts(call.outer).training_default
    return default is not None, default


def is_keras2(region: "Region") -> bool:
    """Whether a model, or any in it, writes its calls or the shape of its input as Keras 2 does.

    The latter is all that a Sequential tells.
    """
    layers = [layer for one in region.with_nested() for layer in one.graph.layers.values()]
    nodes = (call.node for layer in layers for call in layer.calls)
    return any("batch_input_shape" in layer.config for layer in layers) or any(
        node is not None and not is_keras3(node) for node in nodes
    )


def _by_depth(region: "Region") -> list[list["Call"]]:
    """The calls of a model in the order in which Keras makes them, those of one depth together."""
    by_depth: dict[int, list[Call]] = defaultdict(list)
    for node, depth in call_depths(region.graph).items():
        by_depth[depth].append(region.call(*node))
    return [by_depth[depth] for depth in sorted(by_depth, reverse=True)]


_Sources = dict["Region", str]


def _sources(region: "Region") -> _Sources:
    """For each model, the first layer in it that sets training mode, if any does."""
    found: _Sources = {}
    for one in reversed([*region.with_nested()]):
        named = (_source(call, found) for calls in _by_depth(one) for call in calls)
        first = next(filter(None, named), None)
        if first is not None:
            found[one] = first
    return found


def _source(call: "Call", inside: _Sources) -> str | None:
    """The layer that sets training mode in this call: this one, or one inside it."""
    training = call.written.training
    trains = facts(call.layer).training_default is True
    if is_set(training) and not trains:
        return f"{call.title} is called with training=True"
    if trains and (training is None or is_set(training)):
        return f"{call.title} {BY_DEFAULT}"
    return None if is_off(training) or call.body is None else inside.get(call.body)


class _Exposure:
    """One run of a model, with what it passes on, to all layers of one depth too."""

    def __init__(self, region: "Region") -> None:
        self.found: dict[LayerPath, str] = {}
        # A run that has a source has found all that another such run would find.
        self._done: set[tuple[Region, bool]] = set()
        self._inside = _sources(region)
        self._run(region, None)

    def _run(self, region: "Region", forced: str | None) -> None:
        """Walk the calls; `forced` is who has set training mode before.

        A model that is called in training mode, or with training=False, hands that to its layers
        whatever their calls say.
        """
        if (region, forced is not None) in self._done:
            return
        self._done.add((region, forced is not None))
        leak = forced
        for calls in _by_depth(region):
            sources = [_source(call, self._inside) for call in calls]
            first = [number for number, source in enumerate(sources) if source is not None][:2]
            for number, call in enumerate(calls):
                other = next((sources[one] for one in first if one != number), None)
                who = leak or other
                if forced is not None or not is_off(call.written.training):
                    self._enter(call, who)
            leak = leak or next(filter(None, sources), None)

    def _enter(self, call: "Call", leak: str | None) -> None:
        for layer, path in parts(call.outer, call.path):
            if leak is not None and not ignores_training(layer):
                self.found.setdefault(path, leak)
        if call.body is not None:
            self._run(call.body, leak)


def ignores_training(layer: Layer) -> bool:
    """Whether a layer is known to compute the same in and out of training mode."""
    if layer.nested is not None:
        return True  # what is inside it is asked by itself
    if layer.inner is not None:
        return ignores_training(layer.inner)
    if is_batchnorm(layer):
        return layer.config.get("trainable", True) is False
    return layer.is_operation or facts(layer).training == "same"
