"""Which layers of a model run in training mode because of a call that says so.

What a call does to the layers that run after it hangs on the version of Keras: `training.py` has
the rules. Here the calls of a whole model are walked by them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from bnfold.model.graph import Layer, LayerPath, chain, once, parts
from bnfold.model.inbound_nodes import is_keras3, without_arguments
from bnfold.model.layers import facts, is_batchnorm, is_input
from bnfold.model.order import call_depths
from bnfold.model.program import Call, Region
from bnfold.model.training import (
    BY_DEFAULT,
    KERAS_2,
    KERAS_3,
    KERAS_3_16,
    TRAINING_RULES,
    TrainingRule,
    Use,
    is_off,
    is_set,
)


class Exposure(NamedTuple):
    """What may put a layer into training mode, besides its own calls.

    Attributes:
        cause: a clause about the call that may do so.
        rules: the versions in which it may, of all that read the file.
        reaching: those in which it does, if the model is called without `training`.
    """

    cause: str
    rules: tuple[TrainingRule, ...]
    reaching: tuple[TrainingRule, ...] = ()


class CallModes(NamedTuple):
    """Whether a layer runs in training mode in some call of it, by how the model is called.

    Attributes:
        plain: in `model(x)`.
        off: in `model(x, training=False)`, and in `predict`.
    """

    plain: bool = False
    off: bool = False


class Modes:
    """What the calls of a whole model do to the training mode of others."""

    def __init__(self, region: Region, use: Use) -> None:
        self._region = region
        self._found: dict[TrainingRule, Mapping[LayerPath, str]] = {}
        self._simulations: dict[TrainingRule, _Simulation] = {}
        self.use = use

    @cached_property
    def of_keras2(self) -> bool:
        """Whether the model is written as Keras 2 writes it."""
        return is_keras2(self._region)

    @cached_property
    def readers(self) -> tuple[TrainingRule, ...]:
        """The versions of Keras that read such a file: Keras 2 reads its own only."""
        if not self.of_keras2:
            return KERAS_3, KERAS_3_16
        return (KERAS_2,) if self.use.archived else TRAINING_RULES

    @cached_property
    def rules(self) -> tuple[TrainingRule, ...]:
        """Those that count: of the readers the ones in use, or all where none of them is."""
        return tuple(rule for rule in self.readers if rule in self.use.rules) or self.readers

    @cached_property
    def others(self) -> tuple[TrainingRule, ...]:
        """The readers that do not count."""
        return tuple(rule for rule in self.readers if rule not in self.rules)

    @cached_property
    def exposed(self) -> Mapping[LayerPath, Exposure]:
        """The layers that heed training mode and may run after another one's training=True.

        Layers of the same depth count as later, because their order hangs on that of the config.
        """
        causes: dict[LayerPath, str] = {}
        for rule in self.rules:
            for path, cause in self._exposed_in(rule).items():
                causes.setdefault(path, cause)
        return {path: self._exposure(path, cause) for path, cause in causes.items()}

    def _exposure(self, path: LayerPath, cause: str) -> Exposure:
        rules = tuple(rule for rule in self.readers if path in self._exposed_in(rule))
        reaching = tuple(rule for rule in rules if self.in_version(path, rule).plain)
        return Exposure(cause, rules, reaching)

    def _exposed_in(self, rule: TrainingRule) -> Mapping[LayerPath, str]:
        if rule not in self._found:
            self._found[rule] = _Exposure(self._region, rule, self.use).found
        return self._found[rule]

    def exposed_elsewhere(self, path: LayerPath) -> tuple[TrainingRule, ...]:
        """The readers that do not count, in which another call may do so."""
        return tuple(rule for rule in self.others if path in self._exposed_in(rule))

    def is_reached(self, path: LayerPath) -> bool:
        """Whether another call puts a layer into training mode in `model(x)`.

        Unlike being exposed it takes into account that, up to Keras 3.15, a class whose `call` has
        training=False for its default, such as Dropout, ends what another one has begun.
        """
        exposure = self.exposed.get(path)
        return exposure is not None and not set(self.rules).isdisjoint(exposure.reaching)

    @cached_property
    def by_version(self) -> Mapping[TrainingRule, Mapping[LayerPath, CallModes]]:
        """The layers that run in training mode, for each version that reads the file."""
        if not any(_speaks(call) for one in self._region.with_nested() for call in one.all_calls):
            return {rule: {} for rule in self.readers}
        return {rule: self.simulated(rule).modes() for rule in self.readers}

    def in_version(self, path: LayerPath, rule: TrainingRule) -> CallModes:
        """In which calls of the model a layer runs in training mode."""
        return self.by_version[rule].get(path, CallModes())

    @cached_property
    def varying(self) -> Mapping[LayerPath, Mapping[TrainingRule, CallModes]]:
        """The layers that do not run in the same modes in all versions, with these."""
        paths = dict.fromkeys(path for found in self.by_version.values() for path in found)
        every = {
            path: {rule: self.in_version(path, rule) for rule in self.readers} for path in paths
        }
        return {path: found for path, found in every.items() if len(set(found.values())) > 1}

    @cached_property
    def vary_by_default_only(self) -> bool:
        """Whether all versions agree where no layer takes training=True by default."""
        return not Modes(self._region, self.use._replace(inference=True)).varying

    @cached_property
    def batchnorms(self) -> frozenset[LayerPath]:
        """The paths of all BatchNormalization layers, and of what wraps them."""
        return frozenset(
            path
            for one in self._region.with_nested()
            for name, layer in one.graph.layers.items()
            for part, path in parts(layer, one.layer_path(name))
            if any(is_batchnorm(inner) for inner in chain(part))
        )

    def simulated(self, rule: TrainingRule) -> "_Simulation":
        """The calls of the model, as a version of Keras resolves their modes; made once."""
        if rule not in self._simulations:
            self._simulations[rule] = _Simulation(self._region, rule, self.use)
        return self._simulations[rule]

    def first_changed(self, changed: Callable[[], Region], rule: TrainingRule) -> LayerPath | None:
        """A layer that runs in training mode in one of two models and not in the other.

        Layers that are gone change depths, and with them the order of what is left; and one that is
        gone propagates nothing. The changed model is made only if that matters.
        """
        if not _sources(self._region, rule, self.use):
            return None
        other = modes_of(changed()).simulated(rule)
        found = (self.simulated(rule).first_difference(other, outer) for outer in (None, False))
        return next(filter(None, found), None)


@once
def modes_of(region: Region) -> Modes:
    """What the calls of the whole model that a region is in do to the training mode of others."""
    return Modes(region, region.use) if region.parent is None else modes_of(region.parent)


def may_train(call: Call) -> bool:
    """Whether the layer of a call may run in training mode."""
    return _is_told_to_train(call) or call.core_path in modes_of(call.region).exposed


def trains(call: Call) -> bool:
    """Whether its layer runs in training mode, if the model is called without `training`."""
    return _is_told_to_train(call) or modes_of(call.region).is_reached(call.path)


def _is_told_to_train(call: Call) -> bool:
    return is_set(call.written.training) or call.region.training is not None


def _speaks(call: Call) -> bool:
    """Whether a call may set training mode in any version."""
    return is_set(call.written.training) or facts(call.layer).training_default is True


_Run = tuple[Region, bool | None]
"""One run of a model: the model, and the mode it is given, None for none."""


class _Simulation:
    """The calls of one model, as a version of Keras resolves `training` in them.

    There is one running value. In Keras 3 a call that says something, by its own argument or, up to
    3.15, by the default of its class, sets it; one that says nothing takes it over. Up to 3.15 a
    model that is given a value hands that to all its layers, whatever their calls say. In Keras 2
    the running value is what the model is given. (keras/src/layers/layer.py, `operation_fn` of
    functional.py, and `_set_training_mode` of tf_keras/src/engine/base_layer.py)
    """

    def __init__(self, region: Region, rule: TrainingRule, use: Use) -> None:
        self._region, self._rule, self._use = region, rule, use
        # What becomes of each call in a run: its mode, or the run of the model that it calls. A
        # model may be called by others again and again, but it has three runs at most.
        self._runs: dict[_Run, dict[tuple[LayerPath, int], bool | _Run]] = {}
        self._ends: dict[_Run, object] = {}

    def modes(self) -> dict[LayerPath, CallModes]:
        """The layers that run in training mode, in any of the two ways to call the model."""
        plain, off = (set(self.in_training(outer)) for outer in (None, False))
        return {path: CallModes(path in plain, path in off) for path in plain | off}

    def in_training(self, outer: bool | None) -> Iterator[LayerPath]:
        """The layers that run in training mode, if the model is given this value."""
        waiting = [self._run(self._region, outer)]
        seen = set(waiting)
        while waiting:
            for (path, _), mode in self._runs[waiting.pop()].items():
                if isinstance(mode, tuple):
                    waiting += {mode} - seen
                    seen.add(mode)
                elif mode:
                    yield path

    def first_difference(self, changed: "_Simulation", outer: bool | None) -> LayerPath | None:
        """A layer that runs in another mode in a changed graph than in this one."""
        waiting = [(self._run(self._region, outer), changed._run(changed._region, outer))]
        seen = set(waiting)
        while waiting:
            before, after = waiting.pop()
            for call, mode in changed._runs[after].items():
                was = self._runs[before].get(call)
                if isinstance(was, tuple) and isinstance(mode, tuple):
                    waiting += {(was, mode)} - seen
                    seen.add((was, mode))
                elif was != mode:
                    return call[0]
        return None

    def _run(self, region: Region, given: object) -> _Run:
        run = (region, None if given is None else is_set(given))
        if run in self._runs:
            return run
        modes = self._runs[run] = {}
        current = given
        for call in (call for calls in _by_depth(region) for call in calls):
            if call.outer.is_operation or is_input(call.outer):
                continue
            mode, later = self._mode(call, given, current)
            for layer, path in parts(call.outer, call.path):
                if not ignores_training(layer):
                    modes[path, call.number] = is_set(mode)
            if call.body is not None:
                inside = modes[call.core_path, call.number] = self._run(call.body, mode)
                later = self._ends[inside]
            current = later if self._rule.propagates else current
        self._ends[run] = current
        return run

    def _mode(self, call: Call, given: object, current: object) -> tuple[object, object]:
        """The mode of a call, and what the running value is after it."""
        rule, known = self._rule, facts(call.outer)
        if given is not None and rule.outer_wins:
            return given, given
        if not rule.propagates:
            known = facts(call.layer)  # Keras 2 calls what is wrapped as a layer, by its default
        said, value = _said(call)
        default = known.training_default
        if default is True and self._use.inference:
            said, value, default = True, False, False
        elif not said and default is not None and rule.propagates_defaults and _is_bare(call):
            said, value = True, default  # building the model has put it into the call
        if said and (rule.propagates or value is not None):
            return value, value
        if current is not None or default is None:
            return current, current
        leaks = rule.propagates_defaults or known.propagates_default
        return default, default if leaks else None


def _said(call: Call) -> tuple[bool, object]:
    """Whether a call says in which mode it is, and in which; Keras 3 heeds that it says None."""
    training, node = call.written.training, call.written.node
    # A model's second argument is `training`; in that place Keras takes nothing but None.
    says_none = is_keras3(node) and (
        "training" in node["kwargs"] or (call.body is not None and len(node["args"]) > 1)
    )
    return training is not None or says_none, training


def _is_bare(call: Call) -> bool:
    """Whether a call passes one tensor and nothing else, not even a mask of None."""
    node = call.written.node
    return node is None or (len(call.written.reads) == 1 and without_arguments(node) == node)


def is_keras2(region: Region) -> bool:
    """Whether a model, or any in it, writes its calls or the shape of its input as Keras 2 does.

    The latter is all that a Sequential tells.
    """
    layers = [layer for one in region.with_nested() for layer in one.graph.layers.values()]
    nodes = (call.node for layer in layers for call in layer.calls)
    return any("batch_input_shape" in layer.config for layer in layers) or any(
        node is not None and not is_keras3(node) for node in nodes
    )


@once
def _by_depth(region: Region) -> list[list[Call]]:
    """The calls of a model in the order in which Keras makes them, those of one depth together."""
    by_depth: dict[int, list[Call]] = defaultdict(list)
    for node, depth in call_depths(region.graph).items():
        by_depth[depth].append(region.call(*node))
    return [by_depth[depth] for depth in sorted(by_depth, reverse=True)]


_Sources = dict[Region, str]


@once
def _may_set_modes(region: Region) -> bool:
    """Whether a call of its own layers may set training mode for others."""
    return any(
        is_set(call.written.training) or facts(call.outer).training_default is True
        for call in region.all_calls
    )


def _sources(region: Region, rule: TrainingRule, use: Use) -> _Sources:
    """For each model, the first layer in it that sets training mode for others, if any does."""
    found: _Sources = {}
    regions = [*region.with_nested()] if rule.propagates else []
    if not any(map(_may_set_modes, regions)):  # as in nearly all models, which have many calls
        return found
    for one in reversed(regions):
        every = (call for calls in _by_depth(one) for call in calls)
        first = next(filter(None, (_source(call, found, rule, use) for call in every)), None)
        if first is not None:
            found[one] = first
    return found


def _source(call: Call, inside: _Sources, rule: TrainingRule, use: Use) -> str | None:
    """The layer that sets training mode in this call: this one, or one inside it."""
    # What is wrapped is told by its wrapper, and then the default of its class is for nothing.
    training, known = call.written.training, facts(call.outer)
    if known.training_default is True:
        leaks = rule.propagates_defaults or known.propagates_default
        sets = not use.inference and (leaks if training is None else is_set(training))
        return f"{call.title} {BY_DEFAULT}" if sets else None
    if is_set(training):
        return f"{call.title} is called with training=True"
    is_closed = is_off(training) and rule.outer_wins
    return None if is_closed or call.body is None else inside.get(call.body)


class _Exposure:
    """One run of a model, with what it passes on, to all layers of one depth too."""

    def __init__(self, region: Region, rule: TrainingRule, use: Use) -> None:
        self.found: dict[LayerPath, str] = {}
        # A run that has a source has found all that another such run would find.
        self._done: set[tuple[Region, bool]] = set()
        self._rule, self._use = rule, use
        self._inside = _sources(region, rule, use)
        if self._inside:
            self._run(region, None)

    def _run(self, region: Region, forced: str | None) -> None:
        """Walk the calls; `forced` is who has set training mode before.

        A model that is called in training mode, or with training=False, hands that to its layers,
        up to Keras 3.15 whatever their calls say.
        """
        if (region, forced is not None) in self._done:
            return
        self._done.add((region, forced is not None))
        leak = forced
        for calls in _by_depth(region):
            sources = [_source(call, self._inside, self._rule, self._use) for call in calls]
            first = [number for number, source in enumerate(sources) if source is not None][:2]
            for number, call in enumerate(calls):
                other = next((sources[one] for one in first if one != number), None)
                who = leak or other
                is_forced = forced is not None and self._rule.outer_wins
                if is_forced or not is_off(call.written.training):
                    self._enter(call, who)
                elif call.body is not None and not self._rule.outer_wins:
                    self._run(call.body, None)
            leak = leak or next(filter(None, sources), None)

    def _enter(self, call: Call, leak: str | None) -> None:
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
