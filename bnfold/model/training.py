"""Which layers run in training mode because of a layer that ran before them.

Keras 3 keeps an explicit `training=True` of one call for every layer that runs later in the same
outer call, also on a parallel branch and also in what `model.export` traces; only a `training`
given to the outermost call overrides it (measured with Keras 3.15, `Layer.__call__`). So behind a
`Dropout(...)(x, training=True)` every BatchNormalization that is not frozen normalizes with the
statistics of the batch. Layers of augmentation are called so by default, Resizing and CenterCrop
too. Keras 2 hands nothing on.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from bnfold.model.graph import Call, Graph, Layer, Path, core_path, show, unwrapped
from bnfold.model.inbound_nodes import is_keras3
from bnfold.model.layers import facts, is_batchnorm, is_input
from bnfold.model.order import Node, call_depths

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

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @cached_property
    def exposed(self) -> Mapping[Path, str]:
        """The layers that the training=True of another may reach, with a clause about that one."""
        return exposed(self._graph)

    @cached_property
    def reached(self) -> frozenset[Path]:
        """Those of them that it does reach, if the model is called without `training`."""
        return training_in_bare_call(self._graph) if self.exposed else frozenset()


def exposed(graph: Graph) -> dict[Path, str]:
    """The layers that heed training mode and may run after a call with training=True of another.

    The value is a clause about that other layer. Layers of the same depth count as later, because
    their order hangs on that of the config.
    """
    return {} if is_keras2(graph) else _Exposure(graph).found


def training_in_bare_call(graph: Graph) -> frozenset[Path]:
    """The layers that heed training mode and run in it when a model is called without `training`.

    Unlike `exposed` it takes into account that a class whose `call` has training=False for its
    default, such as Dropout, ends what another one has begun.
    """
    runs = _Simulation(graph).runs.values()
    return frozenset(path for run in runs for (path, _), mode in run.items() if mode is True)


def first_changed_mode(graph: Graph, changed: Graph) -> Path | None:
    """A layer that runs in training mode in one of two graphs and not in the other.

    Layers that are gone change depths, and with them the order of what is left; and one that is
    gone hands nothing on.
    """
    if is_keras2(graph) or not _sources(graph, ()):
        return None
    return _Simulation(graph).first_difference(_Simulation(changed))


_Run = tuple[Path, bool | None]
"""One way a graph can run: its path, and the mode it is given, None for none."""


class _Simulation:
    """One bare call of a model, as Keras 3 resolves `training` in it.

    There is one running value. A call that says something, by its own argument or by the default
    of its class, sets it; one that says nothing takes it over. A model that is given a value hands
    that to all its layers, whatever their calls say (keras/src/layers/layer.py, and `operation_fn`
    of functional.py).
    """

    def __init__(self, graph: Graph) -> None:
        # What becomes of each call in a run: its mode, or the run of the model that it calls. A
        # model may be called by others again and again, but it has three runs at most.
        self.runs: dict[_Run, dict[tuple[Path, int], bool | _Run]] = {}
        self._ends: dict[_Run, object] = {}
        self._first = self._run(graph, (), None)

    def first_difference(self, changed: "_Simulation") -> Path | None:
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

    def _run(self, graph: Graph, path: Path, forced: object) -> _Run:
        run = (path, None if forced is None else is_set(forced))
        if run in self.runs:
            return run
        self.runs[run] = {}
        current = forced
        for name, number in (node for nodes in _by_depth(graph) for node in nodes):
            layer = graph.layers[name]
            if layer.is_operation or is_input(layer):
                continue
            if forced is None:
                said, value = _said(layer, layer.calls[number])
                current = value if said else current
            current = self._enter(run, layer, (*path, name), number, current)
        self._ends[run] = current
        return run

    def _enter(self, run: _Run, layer: Layer, path: Path, number: int, current: object) -> object:
        """Call a layer; the running value behind it."""
        if not ignores_training(layer):
            self.runs[run][path, number] = is_set(current)
        if layer.graph is not None:
            inside = self._run(layer.graph, path, current)
            self.runs[run][path, number] = inside
            return self._ends[inside] if current is None else current
        if layer.inner is not None:
            inner = (*path, layer.inner.name)
            return self._enter(run, layer.inner, inner, number, current)
        return current


def _said(layer: Layer, call: Call) -> tuple[bool, object]:
    """Whether a call says in which mode it is, and in which."""
    keywords = call.node.get("kwargs") if isinstance(call.node, dict) else None
    if isinstance(keywords, dict) and "training" in keywords:
        return True, keywords["training"]
    default = facts(layer).training_default
    return default is not None, default


def is_keras2(graph: Graph) -> bool:
    """Whether any graph in the model writes its calls, or the shape of its input, as Keras 2 does.

    The latter is all that a Sequential tells.
    """
    layers = graph.layers.values()
    nodes = (call.node for layer in layers for call in layer.calls)
    if any("batch_input_shape" in layer.config for layer in layers):
        return True
    return any(node is not None and not is_keras3(node) for node in nodes) or any(
        is_keras2(layer.nested) for layer in layers if layer.nested is not None
    )


def _by_depth(graph: Graph) -> list[list[Node]]:
    """The calls of a graph in the order in which Keras makes them, those of one depth together."""
    by_depth: dict[int, list[Node]] = defaultdict(list)
    for node, depth in call_depths(graph).items():
        by_depth[depth].append(node)
    return [by_depth[depth] for depth in sorted(by_depth, reverse=True)]


def _sources(graph: Graph, path: Path) -> dict[Path, str]:
    """For each nested model, the first layer in it that sets training mode, if any does."""
    found: dict[Path, str] = {}
    for layer in graph.layers.values():
        if layer.nested is not None:
            found |= _sources(layer.nested, core_path(layer, (*path, layer.name)))
    named = (_source(graph, node, path, found) for nodes in _by_depth(graph) for node in nodes)
    first = next(filter(None, named), None)
    return found if first is None else {**found, path: first}


def _source(graph: Graph, node: Node, path: Path, inside: Mapping[Path, str]) -> str | None:
    """The layer that sets training mode in this call: this one, or one inside it."""
    layer = graph.layers[node[0]]
    training, core = layer.calls[node[1]].training, unwrapped(layer)[0]
    trains = facts(core).training_default is True
    name = f"{core.class_name} {show((*path, layer.name))!r}"
    if is_set(training) and not trains:
        return f"{name} is called with training=True"
    if trains and (training is None or is_set(training)):
        return f"{name} {BY_DEFAULT}"
    return None if is_off(training) else inside.get(core_path(layer, (*path, layer.name)))


class _Exposure:
    """One run of a model, with what it hands on, to all layers of one depth too."""

    def __init__(self, graph: Graph) -> None:
        self.found: dict[Path, str] = {}
        # A run that has a source has found all that another such run would find.
        self._done: set[tuple[Path, bool]] = set()
        self._inside = _sources(graph, ())
        self._run(graph, (), None)

    def _run(self, graph: Graph, path: Path, forced: str | None) -> None:
        """Walk the calls; `forced` is who has set training mode before.

        A model that is called in training mode, or with training=False, hands that to its layers
        whatever their calls say.
        """
        if (path, forced is not None) in self._done:
            return
        self._done.add((path, forced is not None))
        leak = forced
        for nodes in _by_depth(graph):
            sources = [_source(graph, node, path, self._inside) for node in nodes]
            for number, (name, call) in enumerate(nodes):
                others = [*sources[:number], *sources[number + 1 :]]
                who = leak or next(filter(None, others), None)
                layer = graph.layers[name]
                if forced is not None or not is_off(layer.calls[call].training):
                    self._enter(layer, (*path, name), who)
            leak = leak or next(filter(None, sources), None)

    def _enter(self, layer: Layer, path: Path, leak: str | None) -> None:
        if leak is not None and not ignores_training(layer):
            self.found.setdefault(path, leak)
        if layer.graph is not None:
            self._run(layer.graph, path, leak)
        elif layer.inner is not None:
            self._enter(layer.inner, (*path, layer.inner.name), leak)


def ignores_training(layer: Layer) -> bool:
    """Whether a layer is known to compute the same in and out of training mode."""
    if layer.nested is not None:
        return True  # what is inside it is asked by itself
    if layer.inner is not None:
        return ignores_training(layer.inner)
    if is_batchnorm(layer):
        return layer.config.get("trainable", True) is False
    return layer.is_operation or facts(layer).training == "same"
