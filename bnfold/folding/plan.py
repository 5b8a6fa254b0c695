"""What will be done with each BatchNormalization, or why nothing can be.

A plan is a value: it reads the graph, and the numbers that decide, and changes nothing. `apply`
carries it out, and `inspect` shows the same plan, so the two cannot disagree.

Backward: the affine map that a BatchNormalization is goes into the layer whose output it reads, if

- nothing else reads that output, and it is no output of the model;
- that layer is linear in its weights, with the same channel axis and the same compute dtype;
- each of the two is called once, and nothing runs the BatchNormalization in training mode.

Several in a row fold into one layer as one map, so that its numbers are rounded once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from bnfold.folding import absorb
from bnfold.folding.affine import Affine, from_batchnorm
from bnfold.folding.training import exposed, is_set
from bnfold.model import catalog
from bnfold.model.batchnorm import BatchNorm, as_batchnorm
from bnfold.model.graph import Graph, Layer, Path, Ref, show, walk_all
from bnfold.model.order import keras_order
from bnfold.model.policy import policy
from bnfold.model.ranks import Ranks


@dataclass(frozen=True)
class Edit:
    """One layer takes an affine map in, at a place that `absorb.receiver` found."""

    layer: Path
    place: absorb.Receiver
    affine: Affine

    def then(self, after: "Edit") -> "Edit | None":
        """The one edit that does what this one and then `after` do; None if their places differ."""
        if self.place != after.place:
            return None
        return replace(self, affine=self.affine.then(after.affine))


@dataclass(frozen=True)
class Fold:
    """A BatchNormalization that goes away, and the edits that keep what the model computes."""

    batchnorm: BatchNorm
    direction: Literal["backward"]
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Blocked:
    """A BatchNormalization that stays.

    `at` is the layer in the way, where there is one, `reason` says why in a sentence.
    `batch_statistics` is true when the reason is that the layer runs in training mode.
    """

    batchnorm: BatchNorm
    at: Path | None
    reason: str
    batch_statistics: bool = False


@dataclass(frozen=True)
class Plan:
    """One decision for each BatchNormalization of a model, in the order of its layers."""

    decisions: tuple[Fold | Blocked, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        """What will be folded."""
        return tuple(d for d in self.decisions if isinstance(d, Fold))

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """What stays."""
        return tuple(d for d in self.decisions if isinstance(d, Blocked))


def plan(graph: Graph, keep: Sequence[str] = ()) -> Plan:
    """Decide on every BatchNormalization of a model.

    `keep` are shell patterns; a BatchNormalization whose name or nested path (`backbone/bn1`)
    matches one stays.
    """
    around = _Surroundings(keep, _repeated(graph.entry), exposed(graph))
    return Plan(tuple(_GraphPlanner(graph, (), around).decide()))


def unused_patterns(graph: Graph, keep: Sequence[str]) -> tuple[str, ...]:
    """The patterns of `keep` that match no layer of the model."""
    paths = [path for path, _ in walk_all(graph)]
    return tuple(p for p in keep if not any(matches(path, p) for path in paths))


def matches(path: Path, pattern: str) -> bool:
    """Whether a shell pattern matches the name or nested path of a layer, or of one around it."""
    around = (path[:length] for length in range(1, len(path) + 1))
    return any(fnmatchcase(name, pattern) for p in around for name in (p[-1], show(p)))


def _repeated(value: object) -> frozenset[int]:
    """The objects that a config holds in more than one place, whoever holds them."""
    count: Counter[int] = Counter()
    level = [value]
    while level:
        dicts = [node for node in level if isinstance(node, dict)]
        count.update(n for n in (d.get("shared_object_id") for d in dicts) if isinstance(n, int))
        level = [
            inside
            for node in level
            if isinstance(node, (dict, list))
            for inside in (node.values() if isinstance(node, dict) else node)
        ]
    return frozenset(number for number, times in count.items() if times > 1)


@dataclass(frozen=True)
class _Surroundings:
    """What a graph inherits from what is around it; an `obstacle` blocks everything inside."""

    keep: Sequence[str]
    repeated: frozenset[int]
    exposed: Mapping[Path, str]
    obstacle: str | None = None
    training: str | None = None

    def keeps(self, path: Path) -> bool:
        """Whether the user asked for this layer to be left alone."""
        return any(matches(path, pattern) for pattern in self.keep)

    def inside(self, layer: Layer, path: Path) -> "_Surroundings":
        """The surroundings of what stands inside this layer."""
        obstacle, training = self.obstacle, self.training
        if self.repeats(layer):
            obstacle = f"{_name(layer, path)} stands in several places of the model"
        if not layer.builtin:
            obstacle = f"it is inside {_name(layer, path)}, a class that is not Keras' own"
        if any(is_set(call.training) for call in layer.calls):
            training = _name(layer, path)
        return replace(self, obstacle=obstacle, training=training)

    def makes_others_train(self, path: Path) -> bool:
        """Whether a layer that is called with training=True may have made others train."""
        return any(other != path for other in self.exposed)

    def repeats(self, layer: Layer) -> bool:
        """Whether a layer, or one that it wraps, stands in several places of the model."""
        return any(part.shared_object_id in self.repeated for part in _chain(layer))


def _name(layer: Layer, path: Path) -> str:
    return f"{layer.class_name} {show(path)!r}"


_FIRST = "it is the first layer, so there is none before it that could take it in"


class _RefusalError(Exception):
    """Why a BatchNormalization stays; never leaves this module."""

    def __init__(
        self, reason: str, at: Path | None = None, *, batch_statistics: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.at, self.batch_statistics = reason, at, batch_statistics


class _GraphPlanner:
    """Decides for one graph, then for the graphs inside it, in the order of the layers."""

    def __init__(self, graph: Graph, path: Path, around: _Surroundings) -> None:
        self._graph = graph
        self._path = path
        self._around = around
        self._ranks = Ranks(graph)
        # Who makes the tensor that a folded BatchNormalization made.
        self._origin: dict[Ref, Ref] = {}
        # What earlier folds put into a layer already.
        self._pending: dict[Path, Edit] = {}

    def decide(self) -> Iterator[Fold | Blocked]:
        """The decisions for this graph's layers and those inside them."""
        for name in keras_order(self._graph):
            layer = self._graph.layers[name]
            path = (*self._path, name)
            batchnorm = as_batchnorm(layer, path)
            if batchnorm is not None:
                yield self._decide_one(batchnorm, layer)
            else:
                yield from self._inside(layer, path, self._around)

    def _inside(self, layer: Layer, path: Path, around: _Surroundings) -> Iterator[Fold | Blocked]:
        around = around.inside(layer, path)
        if layer.graph is not None:
            yield from _GraphPlanner(layer.graph, path, around).decide()
        elif layer.inner is not None:
            yield from self._inside(layer.inner, (*path, layer.inner.name), around)

    def _decide_one(self, batchnorm: BatchNorm, layer: Layer) -> Fold | Blocked:
        try:
            self._check_itself(batchnorm, layer)
            affine = from_batchnorm(batchnorm)
            if isinstance(affine, str):
                raise _RefusalError(affine)
            edit = self._backward(batchnorm, layer, affine)
        except _RefusalError as refusal:
            return Blocked(batchnorm, refusal.at, refusal.reason, refusal.batch_statistics)
        return Fold(batchnorm, "backward", (edit,))

    def _check_itself(self, batchnorm: BatchNorm, layer: Layer) -> None:
        around, path = self._around, batchnorm.path
        self._check_training(batchnorm, layer)
        if around.keeps(path):
            raise _RefusalError("it is kept on request")
        if not self._graph.builtin:
            raise _RefusalError(
                "the model's class is not Keras' own, and its code may use the layer freely"
            )
        if around.obstacle is not None:
            raise _RefusalError(around.obstacle)
        if around.repeats(layer):
            raise _RefusalError("it stands in several places of the model")
        if len(layer.calls) != 1:
            raise _RefusalError(f"it is called {len(layer.calls)} times")
        if layer.calls[0].mask is not None and not self._masks_are_named(Ref(layer.name)):
            raise _RefusalError("it is given a mask, which it passes on to the layers behind it")
        if batchnorm.axis is None:
            raise _RefusalError("it normalizes over several axes at once")
        if not 1 <= len(layer.calls[0].inputs) <= 2:
            raise _RefusalError(_FIRST)

    def _check_training(self, batchnorm: BatchNorm, layer: Layer) -> None:
        """Refuse what normalizes with the statistics of the batch, or makes others do so."""
        path = batchnorm.path
        called = any(is_set(call.training) for call in layer.calls)
        if not batchnorm.trainable:
            # A frozen layer uses its moving statistics whatever it is told; others may not.
            if called and self._around.makes_others_train(path):
                raise _RefusalError("it is called with training=True, which other layers heed")
            return
        if called:
            cause = "it is called with training=True"
        elif self._around.training is not None:
            cause = f"{self._around.training} around it is called with training=True"
        elif path in self._around.exposed:
            cause = (
                f"{self._around.exposed[path]} is called with training=True, which Keras 3 hands "
                "on to the layers that run later"
            )
        else:
            return
        raise _RefusalError(
            f"{cause}, so it normalizes with the batch's statistics", batch_statistics=True
        )

    def _masks_are_named(self, ref: Ref) -> bool:
        """Whether no reader of a tensor, near or far, would miss the mask that comes with it.

        Keras 3 writes implicit masks into the calls that take one: those calls name their mask.
        """
        if ref in self._graph.outputs:
            return not self._path
        for name, number in self._graph.readers.get(ref, ()):
            layer = self._graph.layers[name]
            if layer.calls[number].mask is not None or layer.is_operation:
                continue
            if not layer.builtin or layer.class_name not in catalog.MASK_BLIND:
                return False
            stops = layer.class_name in catalog.DROPS_MASK
            if not stops and not self._masks_are_named(Ref(name, number)):
                return False
        return True

    def _backward(self, batchnorm: BatchNorm, layer: Layer, affine: Affine) -> Edit:
        """The edit that takes `affine` into the layer before."""
        source = layer.calls[0].inputs[0]
        origin = self._origin.get(source, source)
        before = self._graph.layers[origin.layer]
        path = (*self._path, before.name)
        self._check_producer(before, path)
        if len(self._graph.readers.get(source, ())) > 1 or source in self._graph.outputs:
            raise _RefusalError(
                _other_readers(self._graph, source, layer, _name(before, path)), path
            )
        core, edit = self._edit(batchnorm, layer, before, source, affine)
        pending = self._pending.get(edit.layer)
        total = edit if pending is None else pending.then(edit)
        if total is None:
            problem: str | None = "it has taken one in on another axis already"
        else:
            problem = absorb.out_of_range(core, total.place, total.affine)
        if problem is not None or total is None:
            name = _name(before, path)
            raise _RefusalError(f"{name} before it cannot take it in: {problem}", path)
        self._pending[edit.layer] = total
        self._origin[Ref(layer.name)] = origin
        return edit

    def _check_producer(self, before: Layer, path: Path) -> None:
        name = _name(before, path)
        if before.class_name == "InputLayer":
            raise _RefusalError(_FIRST, path)
        if not before.builtin:
            raise _RefusalError(f"{name} before it is of a class that bnfold does not know", path)
        if self._around.keeps(path):
            raise _RefusalError(f"{name} before it is kept on request", path)
        if self._around.repeats(before):
            raise _RefusalError(f"{name} before it stands in several places of the model", path)
        if before.nested is not None:
            raise _RefusalError(f"it is behind the nested model {show(path)!r}", path)
        core, _ = _unwrap(before, path)
        if not absorb.can_receive(core):
            raise _RefusalError(f"bnfold knows no way into {name} before it", path)
        if not absorb.is_linear(core):
            raise _RefusalError(f"{name} applies {_activation(core)} before it", path)
        if len(before.calls) != 1:
            raise _RefusalError(f"{name} before it is called {len(before.calls)} times", path)

    def _edit(
        self, batchnorm: BatchNorm, layer: Layer, before: Layer, source: Ref, affine: Affine
    ) -> tuple[Layer, Edit]:
        path = (*self._path, before.name)
        name = _name(before, path)
        _check_dtypes(layer, before, name, path)
        core, core_path = _unwrap(before, path)
        rank = self._ranks.of(source)
        wrappers = len(core_path) - len(path)
        axis = _shared_axis(batchnorm, core, wrappers, rank)
        if isinstance(axis, str):
            raise _RefusalError(
                f"it normalizes axis {batchnorm.axis}, {axis} of {name} before it", path
            )
        inner_rank = None if rank is None else rank - wrappers
        place = absorb.receiver(core, axis, inner_rank, len(affine.scale))
        if isinstance(place, str):
            raise _RefusalError(f"{name} before it cannot take it in: {place}", path)
        shape = self._ranks.shape(source)
        inner_shape = None if shape is None else (*shape[:1], *shape[1 + wrappers :])
        problem = absorb.misplaced_bias(core, place, inner_shape)
        if problem is not None:
            raise _RefusalError(f"{name} before it cannot take it in: {problem}", path)
        return core, Edit(core_path, place, affine)


def _check_dtypes(layer: Layer, before: Layer, name: str, path: Path) -> None:
    policies = [policy(part) for part in (*_chain(before), *_chain(layer))]
    if None in policies:
        raise _RefusalError(
            f"it or {name} before it is quantized or has a dtype policy of its own", path
        )
    if len({found.compute for found in policies if found is not None}) > 1:
        raise _RefusalError(f"{name} before it computes in another dtype", path)


def _shared_axis(batchnorm: BatchNorm, core: Layer, wrappers: int, rank: int | None) -> int | str:
    """The axis that is normalized, as the layer before counts its output; or what is wrong.

    Negative wherever the rank is known, so that both ways of counting compare.
    """
    axis = batchnorm.axis
    if axis is None:
        return "which is not one axis"
    if absorb.channel_axis(core) is None and not catalog.is_batchnorm(core):
        return _equation_axis(axis, wrappers, rank)
    before = as_batchnorm(core, ())
    channels = before.axis if before is not None else absorb.channel_axis(core)
    if channels is None:
        return "which is not the one"
    channels = channels + wrappers if channels >= 0 else channels
    if (axis < 0) != (channels < 0):
        if rank is None:
            return "which may not be the channel axis (the rank is unknown)"
        axis, channels = axis % rank, channels % rank
    if axis != channels:
        return "which is not the channel axis"
    return axis if axis < 0 else axis - wrappers


def _equation_axis(axis: int, wrappers: int, rank: int | None) -> int | str:
    """The axis of an EinsumDense, which its equation will decide on; not one of the wrappers'."""
    if wrappers == 0:
        return axis
    if rank is None:
        return "which may be an axis (the rank is unknown) of the TimeDistributed"
    outer = axis % rank
    return outer - wrappers if outer > wrappers else "which is not the channel axis"


def _activation(layer: Layer) -> str:
    activation = layer.config.get("activation")
    return activation if isinstance(activation, str) else "an activation"


def _other_readers(graph: Graph, source: Ref, layer: Layer, name: str) -> str:
    others = [other for other, _ in graph.readers.get(source, ()) if other != layer.name]
    if source in graph.outputs:
        return f"what {name} makes before it is also an output of the model"
    if not others:
        return f"it reads what {name} makes more than once"
    return f"what {name} makes before it also goes to {others[0]!r}"


def _unwrap(layer: Layer, path: Path) -> tuple[Layer, Path]:
    """The layer inside all TimeDistributed wrappers, and its path."""
    while layer.inner is not None:
        layer = layer.inner
        path = (*path, layer.name)
    return layer, path


def _chain(layer: Layer) -> list[Layer]:
    """A layer and everything it wraps."""
    return [layer] if layer.inner is None else [layer, *_chain(layer.inner)]
