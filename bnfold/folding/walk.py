"""Carrying one BatchNormalization along the graph, to the edits that take it in.

Backward, the tensor that the layer reads becomes what it makes; so everything else that reads it,
or that reads a tensor on the way, would change: each must be read exactly once, counted by slot.
Forward, the tensor that it makes becomes what it reads; each of its readers must take the
difference in or pass it on, and no output of the model may see it.

Nothing is changed here before a way is known to its ends.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bnfold.folding import absorb, carry
from bnfold.folding.affine import IDENTITY, Affine
from bnfold.folding.scope import Position, Scope, chain, title
from bnfold.folding.site import Site
from bnfold.model import catalog, nodes
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.graph import Call, Layer, Path, Ref
from bnfold.model.policy import policy
from bnfold.model.shapes import inside, without_axes

_MAX_STEPS = 20_000
_MAX_WAYS = 64
"""How many ways through joins are looked at before a layer counts as blocked."""


@dataclass(frozen=True)
class Refusal:
    """Why a BatchNormalization stays: a sentence, and the layer in the way where there is one."""

    reason: str
    at: Path | None = None
    batch_statistics: bool = False


class _RefusalError(Exception):
    """A refusal on its way out; never leaves this module."""

    def __init__(self, reason: str, at: Path | None = None) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, at)


Edits = list[tuple[Path, absorb.Effect]]
Tensor = tuple[Scope, Ref]


@dataclass(frozen=True, eq=False)
class _Demand:
    """A map that one call of a layer has to take in."""

    name: str
    path: Path
    calls: int
    number: int
    affine: Affine
    effect: absorb.Effect


class Walk:
    """The ways through one model. It knows what has been folded so far."""

    def __init__(self, order: Mapping[Position, int]) -> None:
        """`order` numbers all calls so that each comes behind those that make its inputs."""
        self._order = order
        self._at = {number: position for position, number in order.items()}
        # The map that each BatchNormalization is by now.
        self._maps: dict[Path, Affine] = {}
        self._folded: set[Path] = set()
        # What layers have taken in, and what they are with that.
        self._effects: dict[Path, tuple[absorb.Effect, ...]] = {}
        self._layers: dict[Path, Layer] = {}

    def start(self, batchnorm: BatchNorm, affine: Affine) -> None:
        """Make a BatchNormalization known that may be folded."""
        self._maps[batchnorm.path] = affine

    def edits(
        self,
        scope: Scope,
        layer: Layer,
        batchnorm: BatchNorm,
        direction: str,
        *,
        into_batchnorms: bool,
    ) -> Edits | Refusal:
        """Fold a layer in one direction; its edits, or why it cannot be."""
        try:
            attempt = _Attempt(self, scope, layer, batchnorm, into_batchnorms)
            ways = attempt.backward() if direction == "backward" else attempt.forward()
            return self._first_that_fits(ways, attempt)
        except _RefusalError as error:
            return error.refusal

    def _first_that_fits(self, ways: Iterator[list[_Demand]], attempt: "_Attempt") -> Edits:
        first: _RefusalError | None = None
        for number, demands in enumerate(ways):
            try:
                return self._commit(demands, attempt)
            except _RefusalError as error:
                first = first or error
            if number >= _MAX_WAYS:
                break
        raise first or attempt.obstacle()

    def _commit(self, demands: list[_Demand], attempt: "_Attempt") -> Edits:
        by_layer: dict[Path, list[_Demand]] = {}
        for demand in demands:
            by_layer.setdefault(demand.path, []).append(demand)
        found = []
        for path, same in by_layer.items():
            _check_agreement(same)
            effects = (*self._effects.get(path, ()), same[0].effect)
            problem = absorb.out_of_range(attempt.originals[path], effects)
            if problem is not None:
                raise _RefusalError(f"{same[0].name} {problem}", path)
            found.append((path, effects))
        for path, effects in found:
            original = attempt.originals[path]
            self._effects[path] = effects
            self._layers[path] = absorb.take(original, effects)
            self._note_batchnorm(by_layer[path][0], forward=attempt.is_forward)
        self._folded.add(attempt.batchnorm.path)
        return [(path, effects[-1]) for path, effects in found]

    def _note_batchnorm(self, demand: _Demand, *, forward: bool) -> None:
        """A BatchNormalization that takes another in is another map from now on."""
        old = self._maps.get(demand.path)
        vectors = demand.effect.factors.get("gamma")
        if old is None or vectors is None:
            return
        scale = demand.affine.scale.reshape(-1)
        shift = demand.affine.shift.reshape(-1)
        new = Affine(scale, shift)
        self._maps[demand.path] = new.then(old) if forward else old.then(new)

    def is_folded(self, path: Path) -> bool:
        """Whether a layer has been folded, so that it passes on what it reads."""
        return path in self._folded

    def current(self, path: Path, layer: Layer) -> Layer:
        """A layer with what it has taken in so far."""
        return self._layers.get(path, layer)

    def map_of(self, path: Path) -> Affine | None:
        """The map that a BatchNormalization is by now."""
        return self._maps.get(path)

    def number(self, position: Position) -> int | None:
        """The place of a call in the order of all; None for one that no output depends on."""
        return self._order.get(position)

    def position(self, number: int) -> Position:
        """The call at a place in the order."""
        return self._at[number]


def _check_agreement(demands: Sequence[_Demand]) -> None:
    """All calls of a layer must ask for the same, because they share the weights."""
    first = demands[0]
    asked = {demand.number for demand in demands}
    if len(asked) != first.calls:
        raise _RefusalError(
            f"{first.name} is called {first.calls} times, and not all calls lead to it", first.path
        )
    if not all(first.affine.same_as(other.affine) for other in demands[1:]):
        raise _RefusalError(
            f"{first.name} is called {first.calls} times, and its calls ask for different weights",
            first.path,
        )


class _Attempt:
    """One BatchNormalization in one direction."""

    def __init__(
        self, walk: Walk, scope: Scope, layer: Layer, batchnorm: BatchNorm, into_batchnorms: bool
    ) -> None:
        self.batchnorm = batchnorm
        self.is_forward = False
        # The layers that take something in, as the file has them.
        self.originals: dict[Path, Layer] = {}
        self._walk = walk
        self._scope = scope
        self._layer = layer
        self._into_batchnorms = into_batchnorms
        self._first: _RefusalError | None = None
        self._steps = 0
        self._dtype = self._compute_dtype()
        self._affine = self._starting_map()

    def _compute_dtype(self) -> str:
        found = {policy(part) for part in chain(self._layer)}
        known = {one.compute for one in found if one is not None}
        if None in found or len(known) != 1:
            raise _RefusalError("it is quantized or has a dtype policy of its own")
        return known.pop()

    def _starting_map(self) -> Affine:
        affine = self._walk.map_of(self.batchnorm.path)
        axis = self.batchnorm.axis
        if affine is None or axis is None:
            raise _RefusalError("it is no map that is known")
        ranks = {self._rank_of(call) for call in self._layer.calls}
        rank = ranks.pop() if len(ranks) == 1 else None
        if rank is None and axis >= 0:
            raise _RefusalError(
                f"it normalizes axis {axis}, which may not be the channel axis (the rank is "
                "unknown)"
            )
        if rank is not None:
            axis = axis - rank if axis >= 0 else axis
            if not -rank < axis < 0:
                raise _RefusalError(f"it normalizes axis {self.batchnorm.axis}, the batch")
        return affine.along(axis)

    def _rank_of(self, call: Call) -> int | None:
        shape = self._scope.shapes.of(call.inputs[0])
        return None if shape is None else len(shape)

    def obstacle(self) -> "_RefusalError":
        """The first obstacle that the attempt met."""
        return self._first or _RefusalError("there are too many ways to look at")

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _RefusalError("there are too many ways to look at")

    # --- against the data ------------------------------------------------------------------------

    def backward(self) -> Iterator[list[_Demand]]:
        """The demands of each way to take the map into what makes the layer's input."""
        tensors = [((self._scope, call.inputs[0]), self._affine) for call in self._layer.calls]
        return self._all_of(tensors, {self._reader()})

    def _reader(self) -> str:
        return title(self._layer, self.batchnorm.path)

    def _all_of(
        self, tensors: Sequence[tuple[Tensor, Affine]], readers: set[str]
    ) -> Iterator[list[_Demand]]:
        """Every way to put a map on each of several tensors."""
        if not tensors:
            yield []
            return
        (tensor, affine), rest = tensors[0], tensors[1:]
        for demands in self._guarded(lambda: self._behind(tensor, affine)):
            for others in self._all_of(rest, readers):
                yield [*demands, *others]

    def _guarded(
        self, ways: Callable[[], Iterator[list[_Demand]]]
    ) -> Iterator[list[_Demand]]:
        """The ways up to an obstacle, of which the first is noted."""
        try:
            yield from ways()
        except _RefusalError as error:
            self._first = self._first or error

    def _behind(self, tensor: Tensor, affine: Affine) -> Iterator[list[_Demand]]:
        """Every way to put a map on a tensor, by editing what makes it."""
        while True:
            self._count_step()
            scope, ref = tensor
            layer = scope.graph.layers[ref.layer]
            path = scope.layer_path(ref.layer)
            self._check_read_once(scope, ref, layer, path)
            following = self._through_boundary(scope, ref, layer, path, affine)
            if following is None and self._walk.is_folded(path):
                following = (scope, layer.calls[ref.call].inputs[0])
            if following is not None:
                tensor = following
                continue
            rule = carry.rule_for(inside(layer)[0])
            if rule is None:
                yield [self._demand_behind(scope, ref, layer, path, affine)]
                return
            ways = self._carried(rule, scope, ref, layer, path, affine)
            if len(ways) == 1 and len(ways[0]) == 1:
                ((tensor, affine),) = ways[0]
                continue
            for way in ways:
                yield from self._all_of(way, set())
            return

    def _check_read_once(self, scope: Scope, ref: Ref, layer: Layer, path: Path) -> None:
        if scope.reads(ref) == 1:
            return
        name = title(layer, path)
        if ref in scope.graph.outputs and (scope.parent is None or scope.graph.readers.get(ref)):
            what = "the model" if scope.parent is None else title_of_scope(scope)
            raise _RefusalError(f"what {name} makes before it is also an output of {what}", path)
        others = dict.fromkeys(reader for reader, _ in scope.graph.readers.get(ref, ()))
        elsewhere = [reader for reader in others if reader != self._layer.name]
        if elsewhere:
            raise _RefusalError(
                f"what {name} makes before it also goes to {elsewhere[-1]!r}", path
            )
        raise _RefusalError(f"what {name} makes before it is read more than once", path)

    def _through_boundary(
        self, scope: Scope, ref: Ref, layer: Layer, path: Path, affine: Affine
    ) -> Tensor | None:
        """The tensor on the other side, where a tensor is that of a nested model's boundary."""
        nested = scope.inside.get(ref.layer)
        if nested is not None:
            self._check_boundary(nested, affine, "it is behind")
            return nested, nested.graph.outputs[ref.output]
        if layer.class_name != "InputLayer" or not layer.builtin:
            return None
        call = scope.outer_call()
        if call is None or scope.parent is None:
            raise _RefusalError(_FIRST, path)
        self._check_boundary(scope, affine, "it is inside")
        self._check_layer_dtype(layer, path)
        return scope.parent, call.inputs[scope.graph.inputs.index(ref.layer)]

    def _check_boundary(self, scope: Scope, affine: Affine, where: str) -> None:
        path = scope.path
        if scope.closed is not None:
            raise _RefusalError(f"{where} {title_of_scope(scope)}, which {scope.closed}", path)
        if scope.wrappers and scope.parent is not None:
            call = scope.outer_call()
            shape = None if call is None else scope.parent.shapes.of(Ref(scope.name))
            rank = None if shape is None else len(shape) - scope.wrappers
            self._check_axes(affine, rank, scope.wrappers, title_of_scope(scope), path)

    def _check_axes(
        self, affine: Affine, rank: int | None, wrappers: int, name: str, path: Path
    ) -> None:
        """A layer in a TimeDistributed does not see the axes that the wrapper adds."""
        axes = affine.varies_on
        if not axes or (rank is None and (not wrappers or axes == {-1})):
            return
        if rank is None or min(axes) <= -rank:
            raise _RefusalError(
                f"it normalizes axis {self.batchnorm.axis}, which {name} does not see", path
            )

    def _carried(
        self, rule: carry.Rule, scope: Scope, ref: Ref, layer: Layer, path: Path, affine: Affine
    ) -> list[list[tuple[Tensor, Affine]]]:
        call = layer.calls[ref.call]
        site = self._site(scope, layer, ref.call, path, affine)
        maps = rule.backward(site, affine)
        if isinstance(maps, str):
            raise _RefusalError(f"{title(layer, path)} before it {maps}", path)
        sources: list[Tensor] = [(scope, source) for source in call.inputs]
        return [
            [
                (tensor, one)
                for tensor, one in zip(sources, way, strict=False)
                if not one.is_identity
            ]
            for way in maps
        ]

    def _site(
        self, scope: Scope, layer: Layer, number: int, path: Path, affine: Affine
    ) -> Site:
        """What a rule is asked about; all that holds for any rule is checked here."""
        self._check_layer_dtype(layer, path)
        core, wrappers = inside(layer)
        core = self._walk.current(_inner_path(layer, path), core)
        call = layer.calls[number]
        count = len(call.inputs) if layer.is_operation else scope.leading(call)
        shapes = tuple(
            without_axes(scope.shapes.of(source), wrappers) for source in call.inputs[:count]
        )
        output = without_axes(scope.shapes.of(Ref(layer.name, number)), wrappers)
        rank = next((len(s) for s in (output, *shapes) if s is not None), None)
        self._check_axes(affine, rank, wrappers, title(layer, path), path)
        if layer.is_operation and any(
            scope.shapes.dtype(source) != self._dtype for source in call.inputs
        ):
            raise _RefusalError(f"{title(layer, path)} computes in another dtype", path)
        training = scope.around.trains(_inner_path(layer, path), call)
        operands = nodes.operands(call.node) if layer.is_operation else ()
        return Site(core, shapes, output, training, operands)

    def _check_layer_dtype(self, layer: Layer, path: Path) -> None:
        if layer.is_operation:
            return
        policies = [policy(part) for part in chain(layer)]
        if None in policies:
            raise _RefusalError(
                f"{title(layer, path)} is quantized or has a dtype policy of its own", path
            )
        if any(found is not None and found.compute != self._dtype for found in policies):
            raise _RefusalError(f"{title(layer, path)} computes in another dtype", path)

    def _demand_behind(
        self, scope: Scope, ref: Ref, layer: Layer, path: Path, affine: Affine
    ) -> _Demand:
        name = f"{title(layer, path)} before it"
        self._check_may_edit(scope, layer, path, name)
        core, _ = inside(layer)
        if not absorb.takes_behind(core):
            raise _RefusalError(f"bnfold knows no way into {name}", path)
        self._check_batchnorm(core, name, path)
        site = self._site(scope, layer, ref.call, path, affine)
        return self._demand(absorb.behind(site, affine), site, layer, ref.call, path, name, affine)

    def _check_may_edit(self, scope: Scope, layer: Layer, path: Path, name: str) -> None:
        if not layer.builtin or layer.is_operation:
            raise _RefusalError(f"{name} is of a class that bnfold does not know", path)
        if scope.around.keeps(path):
            raise _RefusalError(f"{name} is kept on request", path)
        if scope.around.repeats(layer):
            raise _RefusalError(f"{name} stands in several places of the model", path)

    def _check_batchnorm(self, core: Layer, name: str, path: Path) -> None:
        if not catalog.is_batchnorm(core):
            return
        if path == self.batchnorm.path:
            raise _RefusalError(f"{name} is itself", path)
        if not self._into_batchnorms:
            raise _RefusalError(f"{name} stays", path)

    def _demand(
        self,
        effect: absorb.Effect | str,
        site: Site,
        layer: Layer,
        number: int,
        path: Path,
        name: str,
        affine: Affine,
    ) -> _Demand:
        core_path = _inner_path(layer, path)
        if isinstance(effect, absorb.AxisProblem):
            raise _RefusalError(
                f"it normalizes axis {self.batchnorm.axis}, which is {effect} of {name}", path
            )
        problem = effect if isinstance(effect, str) else absorb.misplaced_bias(site, effect)
        if problem is not None or isinstance(effect, str):
            raise _RefusalError(f"{name} {problem}", path)
        self.originals[core_path] = inside(layer)[0]
        return _Demand(name, core_path, len(layer.calls), number, affine, effect)

    # --- with the data ---------------------------------------------------------------------------

    def forward(self) -> Iterator[list[_Demand]]:
        """The demands of the one way to take the map into all that reads what the layer makes."""
        self.is_forward = True
        for call in self._layer.calls:
            if self._scope.shapes.dtype(call.inputs[0]) != self._dtype:
                raise _RefusalError("it reads numbers of another dtype than it computes in")
        changed: dict[Tensor, Affine] = {}
        waiting: list[int] = []
        demands: list[_Demand] = []
        for number in range(len(self._layer.calls)):
            self._change((self._scope, Ref(self._layer.name, number)), self._affine, changed, waiting)
        while waiting:
            self._count_step()
            position = self._walk.position(heapq.heappop(waiting))
            while waiting and self._walk.position(waiting[0]) == position:
                heapq.heappop(waiting)
            demands += self._enter(position, changed, waiting)
        if not demands:
            raise _RefusalError("nothing reads it")
        yield demands

    def _change(
        self, tensor: Tensor, affine: Affine, changed: dict[Tensor, Affine], waiting: list[int]
    ) -> None:
        """Note that a tensor will be without a map, and who has to know of it."""
        scope, ref = tensor
        changed[tensor] = affine
        if ref in scope.graph.outputs:
            if scope.parent is None:
                name = title(scope.graph.layers[ref.layer], scope.layer_path(ref.layer))
                same = ref.layer == self._layer.name and scope is self._scope
                what = "it" if same else f"what {name} makes of it"
                raise _RefusalError(f"{what} is an output of the model", scope.layer_path(ref.layer))
            self._check_boundary(scope, affine, "it is inside")
            for number, output in enumerate(scope.graph.outputs):
                if output == ref:
                    outer = (scope.parent, Ref(scope.name, 0, number))
                    self._change(outer, affine, changed, waiting)
        for name, call in scope.graph.readers.get(ref, ()):
            place = self._walk.number((scope, name, call))
            if place is None:
                raise _RefusalError(f"it feeds {name!r}, which no output depends on")
            heapq.heappush(waiting, place)

    def _enter(
        self, position: Position, changed: dict[Tensor, Affine], waiting: list[int]
    ) -> list[_Demand]:
        """Let one call take in, or pass on, what has changed in its inputs."""
        scope, name, number = position
        layer, path = scope.graph.layers[name], scope.layer_path(name)
        call = layer.calls[number]
        affines = [changed.get((scope, ref)) for ref in call.inputs]
        known = [affine for affine in affines if affine is not None]
        output = (scope, Ref(name, number))
        if self._walk.is_folded(path):
            self._change(output, known[0], changed, waiting)
            return []
        nested = scope.inside.get(name)
        if nested is not None:
            self._enter_model(nested, affines, changed, waiting)
            return []
        title_ = f"{title(layer, path)} behind it"
        site = self._site(scope, layer, number, path, known[0])
        if any(affine is not None for affine in affines[len(site.inputs) :]):
            raise _RefusalError(f"{title_} takes it for another argument than its input", path)
        rule = carry.rule_for(inside(layer)[0])
        if rule is not None:
            maps = [affine or IDENTITY for affine in affines[: len(site.inputs)]]
            found = rule.forward(site, maps)
            if isinstance(found, str):
                raise _RefusalError(f"{title_} {found}", path)
            self._change(output, found, changed, waiting)
            return []
        return [self._demand_in_front(scope, layer, number, path, title_, site, known[0])]

    def _enter_model(
        self,
        nested: Scope,
        affines: Sequence[Affine | None],
        changed: dict[Tensor, Affine],
        waiting: list[int],
    ) -> None:
        for slot, affine in enumerate(affines):
            if affine is None:
                continue
            self._check_boundary(nested, affine, "it is in front of")
            name = nested.graph.inputs[slot]
            self._check_layer_dtype(nested.graph.layers[name], nested.layer_path(name))
            self._change((nested, Ref(name)), affine, changed, waiting)

    def _demand_in_front(
        self,
        scope: Scope,
        layer: Layer,
        number: int,
        path: Path,
        name: str,
        site: Site,
        affine: Affine,
    ) -> _Demand:
        self._check_may_edit(scope, layer, path, name)
        core, _ = inside(layer)
        if not absorb.takes_in_front(core):
            raise _RefusalError(f"bnfold knows no way into {name}", path)
        self._check_batchnorm(core, name, path)
        if len(site.inputs) != 1:
            raise _RefusalError(f"{name} reads {len(site.inputs)} tensors", path)
        effect = absorb.in_front(site, affine)
        return self._demand(effect, site, layer, number, path, name, affine)


_FIRST = "it is the first layer, so there is none before it that could take it in"


def title_of_scope(scope: Scope) -> str:
    """A nested model as sentences name it."""
    kind = "Sequential" if scope.graph.kind == "sequential" else "Functional"
    return f"{kind} {'/'.join(scope.path)!r}"


def _inner_path(layer: Layer, path: Path) -> Path:
    while layer.inner is not None:
        layer = layer.inner
        path = (*path, layer.name)
    return path

