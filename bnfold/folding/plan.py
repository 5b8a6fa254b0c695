"""What will be done with each BatchNormalization, or why nothing can be.

A plan is a value: it reads the graph, and the numbers that decide, and changes nothing. `apply`
makes it so, and `inspect` shows the same plan, so the two cannot disagree.

A BatchNormalization is an affine map, and folding is propagating it along the graph until something
absorbs it. Backward it goes upstream, past layers that it crosses, into all producers of its
input; every tensor on the path must be read by nothing else. Forward it goes downstream into every
consumer, all of them or none. `rules` knows which layers a map crosses,
and which absorb one.

A fold is a transaction: the edits of a path that ends somewhere at an obstacle are not made. A
layer called several times is edited if all its calls ask for the same.

Who wins: for all layers in the order of Keras, backward before forward; then again, because a
folded layer is gone and may clear the path for others, until nothing changes. Only then may a
BatchNormalization absorb another one, again backward first, and everything is tried once more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, NamedTuple

from bnfold.folding.affine import Affine
from bnfold.folding.backward import BackwardSearch
from bnfold.folding.candidate import Candidate, candidates, own_map
from bnfold.folding.dead import without_dead_channels
from bnfold.folding.forward import ForwardSearch
from bnfold.folding.keep import unused_patterns
from bnfold.folding.search import Search
from bnfold.folding.sentences import NO_SOURCE
from bnfold.folding.state import FoldState, WeightEdits
from bnfold.folding.weights import Magnitudes, OutOfRange
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.container.printing import printable
from bnfold.model.edit import edited
from bnfold.model.graph import Graph, Layer, LayerPath, show
from bnfold.model.modes import Modes, modes_of
from bnfold.model.program import Program, Region
from bnfold.model.refusal import Refusal
from bnfold.model.training import ANY_USE, TrainingRule, Use

__all__ = ["Absorber", "Blocked", "Fold", "Plan", "apply", "plan", "unused_patterns"]

Direction = Literal["backward", "forward"]

_MAX_PATHS = 64
"""How many paths through joins are looked at before a layer counts as blocked."""


class Absorber(NamedTuple):
    """A layer that absorbs an affine map.

    `magnitudes` tell how large its numbers get with all that it absorbs, by the map's channels.
    """

    layer: LayerPath
    magnitudes: tuple[Magnitudes, ...] = ()


class Fold(NamedTuple):
    """A BatchNormalization that goes away, and the layers that absorb it."""

    batchnorm: BatchNorm
    direction: Direction
    absorbers: tuple[Absorber, ...]

    def __repr__(self) -> str:
        into = ", ".join(show(absorber.layer) for absorber in self.absorbers)
        return f"<Fold: {printable(f'{show(self.batchnorm.path)} {self.direction} into {into}')}>"


class Blocked(NamedTuple):
    """A BatchNormalization that stays.

    `at` is the first obstacle, where that is a layer, `reason` says why in a sentence, for
    both directions. `remedies` are changes to the model each of which would clear one direction's
    first obstacle, if it is built and trained again. `batch_statistics` is true when the reason is
    that the layer runs in training mode. `named` are the layers that the reason names.
    `may_be_replaced` is true when nothing but its neighbours prevents a fold, so that a
    depthwise convolution could stand in its place (`standalone`). `magnitudes` tell how large the
    weights would get, where they would not fit their dtype.
    """

    batchnorm: BatchNorm
    at: LayerPath | None
    reason: str
    batch_statistics: bool = False
    named: tuple[LayerPath, ...] = ()
    remedies: tuple[str, ...] = ()
    may_be_replaced: bool = False
    magnitudes: tuple[Magnitudes, ...] = ()

    def __repr__(self) -> str:
        return f"<Blocked: {printable(f'{show(self.batchnorm.path)}: {self.reason}')}>"


@dataclass(frozen=True, repr=False)
class Plan:
    """One decision for each BatchNormalization of a model, in the order of its layers.

    `edited` are the layers that absorb something, with their new weights, which are made when
    they are read. `program` is the model that was planned for. `exceptions` are layers that may run
    in training mode once these folds are made, in versions of Keras that were not asked for.
    """

    decisions: tuple[Fold | Blocked, ...]
    edited: Mapping[LayerPath, Layer] = field(default_factory=dict, repr=False, compare=False)
    program: Program | None = field(default=None, repr=False, compare=False)
    exceptions: Mapping[LayerPath, tuple[TrainingRule, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __repr__(self) -> str:
        return f"<Plan: {len(self.folds)} of {len(self.decisions)} BatchNormalization layers fold>"

    @property
    def folds(self) -> tuple[Fold, ...]:
        """What will be folded."""
        return tuple(d for d in self.decisions if isinstance(d, Fold))

    @property
    def removed(self) -> frozenset[LayerPath]:
        """The layers that go away."""
        return frozenset(fold.batchnorm.path for fold in self.folds)

    @property
    def modes(self) -> Modes | None:
        """In which modes the model's layers run; None where the file has no graph."""
        return None if self.program is None else modes_of(self.program.region)

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """What stays."""
        return tuple(d for d in self.decisions if isinstance(d, Blocked))


def plan(graph: Graph, keep: Sequence[str] = (), use: Use = ANY_USE) -> Plan:
    """Decide on every BatchNormalization of a model.

    `keep` are shell patterns; a layer whose name or nested path (`backbone/bn1`) matches one stays
    as it is. What may run in training mode in a version of Keras of `use` is not folded.
    """
    program = Program(graph, use)
    planner = _Planner(program, keep)
    found = Plan(tuple(planner.decide()), planner.edited, program)
    if not found.folds:
        return found
    modes = modes_of(program.region)
    # Hardly any model has a layer that sets modes, and then nobody asks.
    without = cache(lambda: Program(edited(graph, {}, found.removed), use).region)
    changed = (modes.first_changed(without, rule) for rule in modes.rules)
    path = next(filter(None, changed), None)
    if path is None:
        return replace(found, exceptions=_exceptions(found, modes, without))
    reason = (
        f"without it and the others that could be folded, {show(path)!r} would run in another mode "
        "of training than now, because Keras 3 hands training=True on to layers that run later"
    )
    return Plan(
        tuple(
            Blocked(d.batchnorm, path, reason, named=(path,), remedies=(NO_SOURCE,))
            if isinstance(d, Fold)
            else d
            for d in found.decisions
        ),
        program=program,
    )


def _exceptions(
    found: Plan, modes: Modes, without: Callable[[], Region]
) -> Mapping[LayerPath, tuple[TrainingRule, ...]]:
    """What may be in training mode elsewhere: folded layers, and those that a fold changes."""
    exceptions = {path: modes.exposed_elsewhere(path) for path in sorted(found.removed)}
    for rule in modes.others:
        changed = modes.first_changed(without, rule)
        if changed is not None:
            exceptions[changed] = (*exceptions.get(changed, ()), rule)
    return {path: rules for path, rules in exceptions.items() if rules}


class _Planner:
    """Tries one candidate after the other until nothing changes any more."""

    def __init__(self, program: Program, keep: Sequence[str]) -> None:
        self._candidates = list(candidates(program.region, keep))
        self._state = FoldState(program, keep)
        self._folds: dict[LayerPath, tuple[BatchNorm, Direction, WeightEdits]] = {}
        self._blocked: dict[LayerPath, Blocked] = {}

    @property
    def edited(self) -> Mapping[LayerPath, Layer]:
        """The layers that absorb something, with all that they absorb."""
        return self._state.edited

    def decide(self) -> Iterator[Fold | Blocked]:
        """One decision for each candidate."""
        open_ones = [one for one in self._candidates if self._may_fold(one)]
        while True:
            while sum(self._fold(one, into_batchnorms=False) for one in open_ones):
                open_ones = [one for one in open_ones if one.path not in self._folds]
            if not self._fold_into_batchnorms(open_ones):
                break
            open_ones = [one for one in open_ones if one.path not in self._folds]
        for one in self._candidates:
            yield self._measured(one.path) if one.path in self._folds else self._blocked[one.path]

    def _measured(self, path: LayerPath) -> Fold:
        """A fold with how large the weights get now that all folds are known."""
        batchnorm, direction, edits = self._folds[path]
        absorbers = (Absorber(layer, self._state.magnitudes(layer, edit)) for layer, edit in edits)
        return Fold(batchnorm, direction, tuple(absorbers))

    def _may_fold(self, one: Candidate) -> bool:
        try:
            self._state.start(one.path, own_map(one))
        except Refusal as refusal:
            self._blocked[one.path] = _stays(one, refusal)
            return False
        return True

    def _fold_into_batchnorms(self, open_ones: Sequence[Candidate]) -> bool:
        """Let one BatchNormalization absorb others; whether any did.

        Backward for all of them first, so that the first of a row absorbs the others.
        """
        both: tuple[tuple[Direction, ...], ...] = (("backward",), ("backward", "forward"))
        for directions in both:
            done = [
                self._fold(one, into_batchnorms=True, directions=directions)
                for one in open_ones
                if one.path not in self._folds
            ]
            if any(done):
                return True
        return False

    def _fold(
        self,
        one: Candidate,
        *,
        into_batchnorms: bool,
        directions: tuple[Direction, ...] = ("backward", "forward"),
    ) -> bool:
        """Fold a candidate, and say whether that could be done; note why where it could not."""
        if self._state.is_spent and one.path in self._blocked:
            return False
        refusals: list[tuple[Direction, Refusal]] = []
        for direction in directions:
            try:
                edits = self._fold_in(one, direction, into_batchnorms=into_batchnorms)
            except Refusal as refusal:
                refusals.append((direction, refusal.alone()))
            else:
                self._folds[one.path] = (one.batchnorm, direction, edits)
                return True
        self._blocked[one.path] = _blocked(one, refusals)
        return False

    def _fold_in(
        self, one: Candidate, direction: Direction, *, into_batchnorms: bool
    ) -> WeightEdits:
        """Fold a candidate in one direction. Raises Refusal where it cannot be."""
        affine = self._state.map_of(one.path)

        def attempt(affine: Affine) -> WeightEdits:
            kind = _SEARCHES[direction]
            search = kind(self._state, one, affine, into_batchnorms=into_batchnorms)
            return self._commit_first(search, one.path, forward=direction == "forward")

        try:
            return attempt(affine)
        except OutOfRange as refusal:  # would they fit but for channels that do not matter?
            lighter = without_dead_channels(one.region, one.layer, one.batchnorm, affine)
            if lighter is None:
                raise
            try:
                return attempt(lighter)
            except Refusal:
                raise refusal from None

    def _commit_first(self, search: Search, path: LayerPath, *, forward: bool) -> WeightEdits:
        """Commit the first path that can be. Raises Refusal where there is none."""
        first: Refusal | None = None
        for number, demands in enumerate(search.paths()):
            try:
                return self._state.commit(path, demands, forward=forward)
            except Refusal as refusal:
                first = first or refusal.alone()
            if number >= _MAX_PATHS:
                break
        raise first or search.obstacle()


_SEARCHES: Mapping[Direction, type[Search]] = {
    "backward": BackwardSearch,
    "forward": ForwardSearch,
}


def _stays(one: Candidate, refusal: Refusal) -> Blocked:
    return Blocked(
        one.batchnorm,
        refusal.at,
        refusal.reason,
        refusal.batch_statistics,
        named=() if refusal.at is None else (refusal.at,),
        remedies=(refusal.remedy,) if refusal.remedy else (),
    )


def _blocked(one: Candidate, refusals: Sequence[tuple[Direction, Refusal]]) -> Blocked:
    reasons = list(dict.fromkeys(refusal.reason for _, refusal in refusals))
    if len(reasons) > 1 or len(refusals) == 1:
        reasons = [f"{direction}: {refusal.reason}" for direction, refusal in refusals]
    named = tuple(refusal.at for _, refusal in refusals if refusal.at is not None)
    return Blocked(
        one.batchnorm,
        named[0] if named else None,
        "; ".join(reasons),
        named=named,
        remedies=tuple(dict.fromkeys(refusal.remedy for _, refusal in refusals if refusal.remedy)),
        may_be_replaced=True,
        magnitudes=next((r.magnitudes for _, r in refusals if isinstance(r, OutOfRange)), ()),
    )


def apply(graph: Graph, plan: Plan) -> Graph:
    """The graph that computes the same without the layers that `plan` folds."""
    return edited(graph, plan.edited, plan.removed)
