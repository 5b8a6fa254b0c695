"""Carrying one BatchNormalization along the graph, to the edits that take it in.

Backward, the tensor that the layer reads becomes what it makes; so everything else that reads it,
or that reads a tensor on the way, would change: each must be read exactly once, counted by slot.
Forward, the tensor that it makes becomes what it reads; each of its readers must take the
difference in or pass it on, and no output of the model may see it.

Nothing is changed here before a way is known to its ends.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bnfold.folding import absorb, carry, weights
from bnfold.folding.affine import IDENTITY, Affine
from bnfold.folding.crossing import Rule
from bnfold.folding.dead import without_dead_channels
from bnfold.folding.keep import matches
from bnfold.folding.obstacle import (
    FROM_THE_END,
    NO_OUTPUT,
    NO_SOURCE,
    NO_TRAINING,
    AxisObstacle,
    remedy_of,
)
from bnfold.folding.site import Site
from bnfold.folding.weights import WeightEdit, slots_of, take
from bnfold.model import inbound_nodes, layers
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.container.guard import printable
from bnfold.model.graph import Call, Layer, Path, Ref, chain, core_path, show, title, unwrapped
from bnfold.model.identity import foreign_settings
from bnfold.model.policy import policy
from bnfold.model.program import Program, Region
from bnfold.model.shape_rules import Shape
from bnfold.model.shapes import is_float, without_axes
from bnfold.model.training import is_set

_MAX_STEPS = 20_000
"""For one layer, in one direction."""
_MAX_WORK = 1_000_000
_WORK_FOR_EACH_SLOT = 100
"""For all layers together: so many inputs of calls are looked at, and so many more for each that
the model has. The models of keras.applications need fewer than one for each, and one in which every
layer reads all before it needs six."""
_MAX_EFFECTS = 100
"""How many maps one layer absorbs; all that it has absorbed is measured again with each of them."""
_MAX_WAYS = 64
"""How many ways through joins are looked at before a layer counts as blocked."""
_MAX_JOINS = 100
"""How many joins in a row a map is carried through, backward."""


Position = tuple[Region, str, int]
"""One call: the model it is in, the layer's name and the number of the call."""

Tensor = tuple[Region, Ref]


@dataclass(frozen=True)
class Refusal:
    """Why a BatchNormalization stays: a sentence, and the layer in the way where there is one.

    `remedy` is a change to the model that would clear the way, empty where none is known.
    `magnitudes` are those of the weights that would not fit their dtype, where that is in the way.
    """

    reason: str
    at: Path | None = None
    remedy: str = ""
    batch_statistics: bool = False
    magnitudes: tuple[weights.Magnitudes, ...] = ()
    is_about_axis: bool = False


class _RefusalError(Exception):
    """A refusal on its way out; never leaves this module."""

    def __init__(
        self,
        reason: str,
        at: Path | None = None,
        remedy: str = "",
        magnitudes: tuple[weights.Magnitudes, ...] = (),
        *,
        is_about_axis: bool = False,
    ) -> None:
        super().__init__(reason)
        self.refusal = Refusal(
            reason, at, remedy, magnitudes=magnitudes, is_about_axis=is_about_axis and bool(remedy)
        )


Edits = list[tuple[Path, WeightEdit]]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer on the way; `where` is "before it" or "behind it"."""

    scope: Region
    layer: Layer
    number: int
    where: str

    @property
    def path(self) -> Path:
        """The path of the layer, or of its outermost wrapper."""
        return self.scope.layer_path(self.layer.name)

    @property
    def core_path(self) -> Path:
        """The path of the layer inside all wrappers."""
        return core_path(self.layer, self.path)

    @property
    def title(self) -> str:
        """The layer as sentences name it."""
        return title(self.layer, self.path)

    @property
    def name(self) -> str:
        """The layer as sentences about another one name it."""
        return f"{self.title} {self.where}"

    @property
    def call(self) -> Call:
        """What the graph says of the call."""
        return self.layer.calls[self.number]

    def touches(self, layer: Layer) -> bool:
        """Whether one reads what the other makes."""
        pairs = ((self.layer, layer), (layer, self.layer))
        return any(
            ref.layer == maker.name
            for reader, maker in pairs
            for call in reader.calls
            for ref in call.inputs
        )

    def refuse(self, predicate: str, *, advise: bool = True) -> "_RefusalError":
        """What stands in the way, said of the layer; `advise` also names the remedy."""
        remedy = self.remedy(predicate) if advise else ""
        return _RefusalError(f"{self.name} {predicate}", self.path, remedy)

    def remedy(self, predicate: str) -> str:
        """What a user could do about it."""
        found = remedy_of(predicate)
        if found == NO_TRAINING and not is_set(self.call.training):
            found = NO_SOURCE  # another layer has set the mode
        return found.replace("{layer}", self.title)


class _Wanted(NamedTuple):
    """A map to be put on a tensor that fills so many slots of the call that reads it."""

    tensor: Tensor
    affine: Affine
    slots: int = 1


@dataclass(frozen=True, eq=False)
class _Demand:
    """A map that one call of a layer has to take in."""

    call: _Call
    affine: Affine
    effect: WeightEdit

    @property
    def path(self) -> Path:
        """The layer that takes it in."""
        return self.call.core_path


class Walk:
    """The ways through one model. It knows what has been folded so far."""

    def __init__(self, program: Program, keep: Sequence[str]) -> None:
        """`keep` are patterns of layers that must not be changed."""
        order = {(call.region, call.name, call.number): n for n, call in enumerate(program.calls)}
        self._order: Mapping[Position, int] = order
        self._keep = keep
        self._at = {number: position for position, number in order.items()}
        # The map that each BatchNormalization is by now.
        self._maps: dict[Path, Affine] = {}
        self._folded: set[Path] = set()
        # What layers have taken in, and what they are with that.
        self._effects: dict[Path, tuple[WeightEdit, ...]] = {}
        self.replaced: dict[Path, Layer] = {}
        self._magnitudes: dict[Path, tuple[weights.Magnitudes, ...]] = {}
        self._sites: dict[Position, Site] = {}
        slots = sum(len(scope.graph.layers[name].calls[call].inputs) for scope, name, call in order)
        self._work_left = _MAX_WORK + _WORK_FOR_EACH_SLOT * slots

    def start(self, batchnorm: BatchNorm, affine: Affine) -> None:
        """Make a BatchNormalization known that may be folded."""
        self._maps[batchnorm.path] = affine

    def edits(
        self,
        scope: Region,
        layer: Layer,
        batchnorm: BatchNorm,
        direction: str,
        *,
        into_batchnorms: bool,
    ) -> Edits | Refusal:
        """Fold a layer in one direction; its edits, or why it cannot be."""

        def attempt(affine: Affine) -> Edits | Refusal:
            try:
                one = _Attempt(
                    self, scope, layer, batchnorm, affine=affine, into_batchnorms=into_batchnorms
                )
                ways = one.backward() if direction == "backward" else one.forward()
                return self._first_that_fits(ways, one)
            except _RefusalError as error:
                return error.refusal

        affine = self._maps[batchnorm.path]
        found = attempt(affine)
        if isinstance(found, Refusal) and found.is_about_axis:
            advised = self._folds_on_another_axis(scope, layer, batchnorm, direction)
            return found if advised else replace(found, remedy="")
        if not isinstance(found, Refusal) or not found.magnitudes:
            return found
        # The weights would not fit their dtype: for the sake of channels that do not matter?
        lighter = without_dead_channels(scope, layer, batchnorm, affine)
        again = found if lighter is None else attempt(lighter)
        return found if isinstance(again, Refusal) else again

    def _folds_on_another_axis(
        self, scope: Region, layer: Layer, batchnorm: BatchNorm, direction: str
    ) -> bool:
        """Whether the layer, trained along some other axis, would fold in this direction."""
        shape = scope.shapes.of(layer.calls[0].inputs[0])
        sizes = {-1: batchnorm.channels} if shape is None else dict(enumerate(shape[1:], 1))
        for axis, size in sizes.items():
            core = replace(batchnorm.layer, config={**batchnorm.layer.config, "axis": axis})
            # A wrapper's layer does not count the axes that the wrapper adds.
            moved = replace(batchnorm, layer=core, wrappers=0)
            if size is None or axis == batchnorm.axis:
                continue
            try:
                some = _any_map(size)
                one = _Attempt(self, scope, layer, moved, affine=some, into_batchnorms=False)
                ways = one.backward() if direction == "backward" else one.forward()
                if next(ways, None) is not None:
                    return True
            except _RefusalError:
                continue
        return False

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
            if len(effects) > _MAX_EFFECTS:
                raise same[0].call.refuse(f"has absorbed {_MAX_EFFECTS} others already")
            measured = weights.magnitudes(attempt.originals[path], effects)
            along = tuple(magnitude.along(effects[-1]) for magnitude in measured)
            problem = weights.out_of_range(attempt.originals[path], along)
            if problem is not None:
                call = same[0].call
                raise _RefusalError(f"{call.name} {problem}", call.path, magnitudes=along)
            found.append((path, effects, measured))
        for path, effects, measured in found:
            original = attempt.originals[path]
            self._effects[path] = effects
            self._magnitudes[path] = measured
            self.replaced[path] = take(original, effects)
            self._note_batchnorm(by_layer[path][0], forward=attempt.is_forward)
        self._folded.add(attempt.batchnorm.path)
        return [(path, effects[-1]) for path, effects, _ in found]

    def _note_batchnorm(self, demand: _Demand, *, forward: bool) -> None:
        """A BatchNormalization that takes another in is another map from now on."""
        path = demand.call.path  # that of the wrapper, if it is in one
        old = self._maps.get(path)
        vectors = demand.effect.factors.get("gamma")
        if old is None or vectors is None:
            return
        scale = demand.affine.scale.reshape(-1)
        shift = demand.affine.shift.reshape(-1)
        new = Affine(scale, shift)
        self._maps[path] = new.then(old) if forward else old.then(new)

    def is_folded(self, path: Path) -> bool:
        """Whether a layer has been folded, so that it passes on what it reads."""
        return path in self._folded

    def keeps(self, path: Path) -> bool:
        """Whether the user asked for a layer to be left alone."""
        return matches(path, *self._keep)

    def current(self, path: Path, layer: Layer) -> Layer:
        """A layer with what it has taken in so far."""
        return self.replaced.get(path, layer)

    def magnitudes(self, path: Path, effect: WeightEdit) -> tuple[weights.Magnitudes, ...]:
        """How large the numbers of a layer get with all it takes in, by the channels of one map."""
        changed = slots_of([effect])
        return tuple(e.along(effect) for e in self._magnitudes[path] if e.slot in changed)

    def map_of(self, path: Path) -> Affine | None:
        """The map that a BatchNormalization is by now."""
        return self._maps.get(path)

    def number(self, position: Position) -> int | None:
        """The place of a call in the order of all; None for one that no output depends on."""
        return self._order.get(position)

    def work(self, slots: int) -> bool:
        """Whether a call with so many inputs may still be looked at."""
        self._work_left -= slots
        return not self.is_spent

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be looked at in this model."""
        return self._work_left < 0

    def site(self, position: Position, core_path: Path) -> Site:
        """What a rule is asked about a call; the layer is as it is by now."""
        if position not in self._sites:
            self._sites[position] = _site(*position)
        site = self._sites[position]
        return replace(site, layer=self.current(core_path, site.layer))

    def position(self, number: int) -> Position:
        """The call at a place in the order."""
        return self._at[number]


def _site(scope: Region, name: str, number: int) -> Site:
    """What is known of a call from the graph alone, inside all wrappers."""
    layer = scope.graph.layers[name]
    core, wrappers = unwrapped(layer)
    shapes, call = scope.shapes, layer.calls[number]
    count = len(call.inputs) if layer.is_operation else scope.leading(call)
    return Site(
        layer=core,
        inputs=tuple(without_axes(shapes.of(ref), wrappers) for ref in call.inputs[:count]),
        output=without_axes(shapes.of(Ref(name, number)), wrappers),
        training=scope.call(name, number).may_train,
        masked=layers.facts(core).mask == "reads"
        and any(scope.value(ref).may_be_masked for ref in call.inputs),
        operands=inbound_nodes.operands(call.node) if layer.is_operation else (),
        keywords=inbound_nodes.keywords(call.node) if layer.is_operation else {},
    )


def _check_agreement(demands: Sequence[_Demand]) -> None:
    """All calls of a layer must ask for the same, because they share the weights."""
    first = demands[0]
    count = len(first.call.layer.calls)
    if len({demand.call.number for demand in demands}) != count:
        raise first.call.refuse(f"is called {count} times, and not every call asks for the same")
    alike = (
        first.affine.same_as(other.affine) and first.effect.times == other.effect.times
        for other in demands[1:]
    )
    if not all(alike):
        raise first.call.refuse(f"is called {count} times, and its calls ask for different weights")


def _any_map(size: int) -> Affine:
    """A map as training might leave it: scales of both signs, and a shift."""
    return Affine(np.linspace(-1, 2, size), np.linspace(1, 2, size))


class _Ways:
    """The ways of one branch, each looked for once, and only when it is asked for."""

    def __init__(self, ways: Iterator[list[_Demand]]) -> None:
        self._rest = ways
        self._found: list[list[_Demand]] = []

    def way(self, number: int) -> list[_Demand] | None:
        """One way by its number from 0; None behind the last."""
        while len(self._found) <= number:
            found = next(self._rest, None)
            if found is None:
                return None
            self._found.append(found)
        return self._found[number]


class _Attempt:
    """One BatchNormalization in one direction."""

    def __init__(
        self,
        walk: Walk,
        scope: Region,
        layer: Layer,
        batchnorm: BatchNorm,
        *,
        affine: Affine,
        into_batchnorms: bool,
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
        self._is_asking = False  # what a remedy would do
        self._left_out: set[Tensor] = set()  # outputs that are taken for none meanwhile
        # Forward: what a tensor was a map of, and the calls that have to know, by their place.
        self._changed: dict[Tensor, Affine] = {}
        self._waiting: list[int] = []
        self._dtype = self._compute_dtype()
        # Forward: the dtype that the layer casts to its own.
        self._uncast: str | None = None
        self._affine = self._starting_map(affine)

    def _compute_dtype(self) -> str:
        found = {policy(part) for part in chain(self._layer)}
        known = {one.compute for one in found if one is not None}
        if None in found or len(known) != 1:
            raise _RefusalError("it is quantized or has a dtype policy of its own")
        return known.pop()

    def _starting_map(self, affine: Affine) -> Affine:
        axis = self.batchnorm.axis
        if axis is None:
            raise _RefusalError("it is no map that is known")
        ranks = {self._rank_of(call) for call in self._layer.calls}
        rank = ranks.pop() if len(ranks) == 1 else None
        if rank is None and axis >= 0:
            raise _RefusalError(
                f"it normalizes axis {axis}, which may not be the channel axis (the rank is "
                "unknown)",
                remedy=FROM_THE_END,
                is_about_axis=True,
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

    def _count_step(self, slots: int) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _RefusalError("there are too many ways to look at")
        if not self._walk.work(slots):
            raise _RefusalError("the search for layers to absorb it reached its limit")

    # --- against the data ------------------------------------------------------------------------

    def backward(self) -> Iterator[list[_Demand]]:
        """The demands of each way to take the map into what makes the layer's input."""
        for call in self._layer.calls:
            if self._scope.shapes.dtype(call.inputs[0]) not in (self._dtype, None):
                raise _RefusalError("it reads numbers of another dtype than it computes in")
        return self._all_of(
            [_Wanted((self._scope, call.inputs[0]), self._affine) for call in self._layer.calls],
            self._layer.name,
        )

    def _all_of(
        self, tensors: Sequence[_Wanted], reader: str, depth: int = 0
    ) -> Iterator[list[_Demand]]:
        """Every way to put a map on each of several tensors; none if one of them has none."""
        if depth > _MAX_JOINS:
            raise _RefusalError("there are too many joins in a row before it")
        branches = [
            _Ways(self._up_to_an_obstacle(self._behind(wanted, reader, depth)))
            for wanted in tensors
        ]
        if any(branch.way(0) is None for branch in branches):
            return
        turn = [0] * len(branches)
        while True:
            ways = [branch.way(number) or [] for branch, number in zip(branches, turn, strict=True)]
            yield [demand for way in ways for demand in way]
            for place in reversed(range(len(branches))):  # the last branch turns fastest
                turn[place] += 1
                if branches[place].way(turn[place]) is not None:
                    break
                turn[place] = 0
            else:
                return

    def _up_to_an_obstacle(self, ways: Iterator[list[_Demand]]) -> Iterator[list[_Demand]]:
        """The ways until one meets an obstacle, of which the first is noted."""
        try:
            yield from ways
        except _RefusalError as error:
            self._first = self._first or error

    def _behind(self, wanted: _Wanted, reader: str, depth: int) -> Iterator[list[_Demand]]:
        """Every way to put a map on a tensor that `reader` reads, by editing what makes it."""
        while True:
            (scope, ref), affine, _ = wanted
            at = _Call(scope, scope.graph.layers[ref.layer], ref.call, "before it")
            self._count_step(len(at.call.inputs))
            self._check_read_once(at, wanted, reader, depth)
            following = self._around(at, ref, affine)
            if following is not None:
                wanted, reader = _Wanted(following, affine), _reader_of(at, following[0])
                continue
            rule = carry.rule_for(unwrapped(at.layer)[0])
            if rule is None:
                yield [self._demand_behind(at, affine)]
                return
            ways = self._propagated(rule, at, affine)
            first, second = next(ways, None), next(ways, None)
            if first is None:
                raise at.refuse("reads one tensor twice, which would have to change in two ways")
            if second is None and len(first) == 1:
                (wanted,), reader = first, at.layer.name
                continue
            for way in itertools.chain([first], [second] if second else [], ways):
                self._count_step(len(way))
                yield from self._all_of(way, at.layer.name, depth + 1)
            return

    def _check_read_once(self, at: _Call, wanted: _Wanted, reader: str, depth: int) -> None:
        """Whatever else reads the tensor would see the map too."""
        graph, (_, ref), slots = at.scope.graph, wanted.tensor, wanted.slots
        if at.scope.reads(ref) == slots or wanted.tensor in self._left_out:
            return
        what = f"the output of {at.title} before it"
        if ref in graph.outputs and not (at.scope.parent and len(set(graph.outputs)) == 1):
            of = "the model" if at.scope.parent is None else title_of_scope(at.scope)
            remedy = NO_OUTPUT.replace("{layer}", at.title)
            works = self._works_without_output(wanted, reader, depth)
            raise _RefusalError(
                f"{what} is also an output of {of}", at.path, remedy if works else ""
            )
        others = [name for name, _ in graph.readers.get(ref, ()) if name != reader]
        if others:
            raise _RefusalError(f"{what} is also read by {others[0]!r}", at.path)
        raise _RefusalError(f"{what} is read more than once by {reader!r}", at.path)

    def _around(self, at: _Call, ref: Ref, affine: Affine) -> Tensor | None:
        """The same tensor behind a folded layer, or across the boundary of a nested model."""
        if self._walk.is_folded(at.path):
            return at.scope, at.call.inputs[0]
        nested = at.scope.inside.get(ref.layer)
        if nested is not None:
            self._check_boundary(nested, affine, "it is behind", ref)
            return nested, nested.graph.outputs[ref.output]
        if not layers.is_input(at.layer):
            return None
        call = at.scope.outer_call()
        if call is None or at.scope.parent is None:
            raise _RefusalError(_FIRST, at.path)
        outer = call.inputs[at.scope.graph.inputs.index(ref.layer)]
        self._check_boundary(at.scope, affine, "it is inside", outer)
        self._check_dtype(at)
        return at.scope.parent, outer

    def _check_boundary(self, scope: Region, affine: Affine, where: str, outer: Ref) -> None:
        """Whether a map of a tensor can cross; `outer` is that tensor outside of the model."""
        if scope.closed is not None:
            raise _RefusalError(
                f"{where} {title_of_scope(scope)}, which {scope.closed}", scope.path
            )
        if scope.wrappers and scope.parent is not None:
            shape = scope.parent.shapes.of(outer)
            rank = None if shape is None else len(shape) - scope.wrappers
            self._check_axes(affine, rank, scope.wrappers, title_of_scope(scope), scope.path)

    def _check_axes(
        self, affine: Affine, rank: int | None, wrappers: int, name: str, path: Path
    ) -> None:
        """A layer in a TimeDistributed does not see the axes that the wrapper adds."""
        axes = affine.varies_on
        if not axes or (rank is None and (not wrappers or axes == {-1})):
            return
        if rank is None or min(axes) <= -rank:
            raise _RefusalError(
                f"it normalizes axis {self.batchnorm.axis}, which is not the channel axis of "
                f"{name}, nor one that it sees",
                path,
            )

    def _propagated(self, rule: Rule, at: _Call, affine: Affine) -> Iterator[list[_Wanted]]:
        """Each way to split a map of what a call makes into maps of what it reads."""
        site = self._site(at)
        self._check_sees(at, affine, site.output)
        maps = rule.backward(site, affine) if site.inputs else "is called in an unusual way"
        if isinstance(maps, str):
            raise at.refuse(maps, advise=self._could_stand_before(at, affine))
        ways = (self._by_tensor(at, way) for way in maps)
        return (way for way in ways if way is not None)

    def _by_tensor(self, at: _Call, maps: Sequence[Affine]) -> list[_Wanted] | None:
        """The map for each tensor that a call reads; None if one would need two of them."""
        found: dict[Ref, Affine] = {}
        for ref, affine in zip(at.call.inputs, maps, strict=False):
            if not found.setdefault(ref, affine).same_as(affine):
                return None
        slots = Counter(at.call.inputs[: len(maps)])
        return [
            _Wanted((at.scope, ref), affine, slots[ref])
            for ref, affine in found.items()
            if not affine.is_identity
        ]

    def _demand_behind(self, at: _Call, affine: Affine) -> _Demand:
        self._check_may_edit(at, absorb.takes_behind)
        site = self._site(at)
        self._check_sees(at, affine, site.output)
        return self._demand(absorb.behind(site, affine), site, at, affine)

    # --- in both directions ----------------------------------------------------------------------

    def _check_sees(self, at: _Call, affine: Affine, shape: Shape | None) -> None:
        """`shape` is that of the tensor that the map is of, inside all wrappers."""
        wrappers = len(at.core_path) - len(at.path)
        rank = None if shape is None else len(shape)
        self._check_axes(affine, rank, wrappers, at.title, at.path)

    def _site(self, at: _Call) -> Site:
        """What a rule is asked about; all that holds for any rule is checked here."""
        self._check_dtype(at)
        if inbound_nodes.mixes_constants(at.call.node):
            raise at.refuse("reads constants beside tensors")
        return self._walk.site((at.scope, at.layer.name, at.number), at.core_path)

    def _check_dtype(self, at: _Call) -> None:
        """A layer that computes in another dtype would round, or hand on, another one."""
        if at.layer.is_operation:
            found = {at.scope.shapes.dtype(ref) for ref in at.call.inputs}
        else:
            policies = [policy(part) for part in chain(at.layer)]
            if None in policies:
                raise at.refuse("is quantized or has a dtype policy of its own")
            found = {one.compute for one in policies if one is not None}
        if found - {self._dtype}:
            raise at.refuse("computes in another dtype")

    def _check_may_edit(self, at: _Call, takes: Callable[[Layer], bool]) -> None:
        if at.layer.is_operation:
            raise at.refuse("is no operation that a scale and a shift can cross")
        if not at.layer.builtin:
            raise at.refuse(f"is of a class that is not Keras' own{_evidence(at.layer)}")
        if self._walk.keeps(at.path):
            raise at.refuse("is kept on request")
        if at.scope.repeats(at.layer):
            raise at.refuse("stands in several places of the model")
        core, _ = unwrapped(at.layer)
        if not takes(core):
            raise at.refuse("is no layer that a scale and a shift can cross, or that takes them in")
        if layers.is_batchnorm(core) and at.path == self.batchnorm.path:
            raise _RefusalError("it feeds itself", at.path)
        if layers.is_batchnorm(core) and not self._into_batchnorms:
            raise at.refuse("stays")

    def _demand(self, effect: WeightEdit | str, site: Site, at: _Call, affine: Affine) -> _Demand:
        if isinstance(effect, AxisObstacle):
            reason = f"it normalizes axis {self.batchnorm.axis}, which is {effect} {at.name}"
            if not at.touches(self._layer):
                reason = f"what it normalizes is {effect} {at.name}"
            remedy = "" if self.is_forward else at.remedy(effect)
            raise _RefusalError(reason, at.path, remedy, is_about_axis=True)
        if isinstance(effect, str):
            raise at.refuse(effect, advise=not self.is_forward or self._could_stand_behind(at))
        problem = weights.misplaced_bias(site, effect)
        if problem is not None:
            raise at.refuse(problem)
        self.originals[at.core_path] = unwrapped(at.layer)[0]
        return _Demand(at, affine, effect)

    # --- advice ----------------------------------------------------------------------------------

    def _could_stand_before(self, at: _Call, affine: Affine) -> bool:
        """Whether a BatchNormalization in front of a layer would fold backward from there."""
        scale, shift = (np.linspace(*ends, affine.scale.size) for ends in ((-1, 2), (1, 2)))
        shape, read = affine.scale.shape, at.scope.shapes.of(at.call.inputs[0]) or ()
        if any(
            min(len(read), len(shape)) < -axis or read[axis] != shape[axis]
            for axis in affine.varies_on
        ):
            return False
        some = Affine(scale.reshape(shape), shift.reshape(shape))  # of both signs, and a shift
        wanted = _Wanted((at.scope, at.call.inputs[0]), some)
        return self._works(lambda: next(self._behind(wanted, at.layer.name, 0), None))

    def _works_without_output(self, wanted: _Wanted, reader: str, depth: int) -> bool:
        """Whether a map could be put on a tensor that is an output if it were none."""
        scope, ref = wanted.tensor
        if len(scope.graph.readers.get(ref, ())) != wanted.slots:
            return False
        self._left_out.add(wanted.tensor)
        found = self._works(lambda: next(self._behind(wanted, reader, depth), None))
        self._left_out.discard(wanted.tensor)
        return found

    def _could_stand_behind(self, at: _Call) -> bool:
        """Whether a BatchNormalization behind a layer would fold back into it."""
        some = Affine(np.asarray(-2.0), np.asarray(1.0))
        return self._works(lambda: self._demand_behind(at, some))

    def _works(self, attempt: Callable[[], object]) -> bool:
        """Whether something could be done without a refusal; not asked while asking."""
        if self._is_asking:
            return False
        self._is_asking, first = True, self._first
        try:
            return attempt() is not None
        except _RefusalError:
            return False
        finally:
            self._is_asking, self._first = False, first

    # --- with the data ---------------------------------------------------------------------------

    def forward(self) -> Iterator[list[_Demand]]:
        """The demands of the one way to take the map into all that reads what the layer makes."""
        self.is_forward = True
        self._note_input_dtypes()
        demands: list[_Demand] = []
        for number in range(len(self._layer.calls)):
            self._change((self._scope, Ref(self._layer.name, number)), self._affine)
        while self._waiting:
            place = heapq.heappop(self._waiting)
            if not self._waiting or self._waiting[0] != place:
                scope, name, number = position = self._walk.position(place)
                self._count_step(len(scope.graph.layers[name].calls[number].inputs))
                demands += self._enter(position)
        if not demands:
            raise _RefusalError("nothing that has weights reads it")
        yield demands

    def _note_input_dtypes(self) -> None:
        """What the readers get is of the dtype that the layer reads, without it."""
        dtypes = {self._scope.shapes.dtype(call.inputs[0]) for call in self._layer.calls}
        found = dtypes.pop() if len(dtypes) == 1 else None
        if found is None:
            raise _RefusalError("the dtype of what it reads is not known")
        self._uncast = None if found == self._dtype else found

    def _check_casts(self, at: _Call, core: Layer) -> None:
        """Layers cast floating-point numbers to what they compute in; operations do not."""
        if self._uncast is None:
            return
        casts = not at.layer.is_operation and (
            is_float(self._uncast) or layers.facts(core).casts_integers
        )
        if not casts:
            raise at.refuse(f"would read {self._uncast} instead of {self._dtype} without it")

    def _change(self, tensor: Tensor, affine: Affine) -> None:
        """Note that a tensor will be without a map, and who has to know of it."""
        scope, ref = tensor
        self._changed[tensor] = affine
        if ref in scope.graph.outputs:
            self._leave(scope, ref, affine)
        for name, call in scope.graph.readers.get(ref, ()):
            place = self._walk.number((scope, name, call))
            if place is None:
                raise _RefusalError(f"it feeds {name!r}, which no output depends on")
            heapq.heappush(self._waiting, place)

    def _leave(self, scope: Region, ref: Ref, affine: Affine) -> None:
        """A tensor is an output of its graph."""
        path = scope.layer_path(ref.layer)
        if scope.parent is None:
            own = scope is self._scope and ref.layer == self._layer.name
            what = "it" if own else f"what {title(scope.graph.layers[ref.layer], path)} makes of it"
            raise _RefusalError(f"{what} is an output of the model", path)
        for number, output in enumerate(scope.graph.outputs):
            if output == ref:
                outer = Ref(scope.name, 0, number)
                self._check_boundary(scope, affine, "it is inside", outer)
                self._change((scope.parent, outer), affine)

    def _enter(self, position: Position) -> list[_Demand]:
        """Let one call take in, or pass on, what has changed in its inputs."""
        scope, name, number = position
        at = _Call(scope, scope.graph.layers[name], number, "behind it")
        affines = [self._changed.get((scope, ref)) for ref in at.call.inputs]
        first = next(affine for affine in affines if affine is not None)
        output = (scope, Ref(name, number))
        if self._walk.is_folded(at.path):
            self._change(output, affines[0] or IDENTITY)
            return []
        nested = scope.inside.get(name)
        if nested is not None:
            self._enter_model(nested, affines, at.call.inputs)
            return []
        site = self._site(at)
        for affine, shape in zip(affines, site.inputs, strict=False):
            if affine is not None:
                self._check_sees(at, affine, shape)
        count = len(site.inputs)
        if any(affine is not None for affine in affines[count:]):
            raise at.refuse("reads it in another place than its input (a state, a key, a mask)")
        self._check_casts(at, site.layer)
        rule = carry.rule_for(site.layer)
        if rule is None:
            return [self._demand_in_front(at, site, first)]
        found = rule.forward(site, [affine or IDENTITY for affine in affines[:count]])
        if isinstance(found, str):
            raise at.refuse(found, advise=False)
        self._change(output, found)
        return []

    def _enter_model(
        self, nested: Region, affines: Sequence[Affine | None], sources: Sequence[Ref]
    ) -> None:
        for slot, affine in enumerate(affines):
            if affine is None:
                continue
            self._check_boundary(nested, affine, "it is in front of", sources[slot])
            name = nested.graph.inputs[slot]
            self._check_dtype(_Call(nested, nested.graph.layers[name], 0, "behind it"))
            self._change((nested, Ref(name)), affine)

    def _demand_in_front(self, at: _Call, site: Site, affine: Affine) -> _Demand:
        self._check_may_edit(at, absorb.takes_in_front)
        if len(site.inputs) != 1:
            raise at.refuse(f"reads {len(site.inputs)} tensors")
        return self._demand(absorb.in_front(site, affine), site, at, affine)


_FIRST = "it is the first layer, so there is none before it that could take it in"


def _evidence(layer: Layer) -> str:
    """What tells that a class is not Keras' own, where that is a setting."""
    foreign = foreign_settings(layer.entry)
    return f": Keras' has no setting {printable(foreign[0])!r}" if foreign else ""


def title_of_scope(scope: Region) -> str:
    """A nested model as sentences name it."""
    kind = "Sequential" if scope.graph.kind == "sequential" else "Functional"
    return f"{kind} {show(scope.path)!r}"


def _reader_of(at: _Call, scope: Region) -> str:
    """Who reads the tensor that a call only hands on, as `scope` names it."""
    return at.scope.name if scope is at.scope.parent else at.layer.name
