"""What will be done with each BatchNormalization, or why nothing can be.

A plan is a value: it reads the graph, and the numbers that decide, and changes nothing. `apply`
carries it out, and `inspect` shows the same plan, so the two cannot disagree.

A BatchNormalization is an affine map, and folding is carrying it along the graph until something
takes it in. Backward it goes against the data, through layers that are transparent to it, into all
layers that make what it reads; every tensor on the way must be read by nothing else. Forward it
goes with the data into everything that reads it, all of that or none. `carry` knows which layers
are transparent, `absorb` which take a map in.

A fold is a transaction: the edits of a way that ends somewhere at an obstacle are not made. A layer
called several times is edited if all its calls ask for the same.

Who wins: for all layers in the order of Keras, backward before forward; then again, because a
folded layer is none and may clear the way for others, until nothing changes. Only then may a
BatchNormalization take in another one, again backward first, and everything is tried once more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bnfold.folding.affine import from_batchnorm
from bnfold.folding.keep import matches, unused_patterns
from bnfold.folding.obstacle import NO_SOURCE
from bnfold.folding.walk import Edits, Refusal, Walk
from bnfold.folding.weights import Magnitudes
from bnfold.model.batchnorm import BatchNorm, as_batchnorm
from bnfold.model.edit import edited
from bnfold.model.graph import Graph, Layer, Path, show
from bnfold.model.keras_json import PLAIN_MODEL
from bnfold.model.masks import masks_are_named
from bnfold.model.order import keras_order
from bnfold.model.program import Program, Region
from bnfold.model.training import BY_DEFAULT, first_changed_mode, is_set

__all__ = ["Blocked", "Edit", "Fold", "Plan", "plan", "unused_patterns"]

Direction = Literal["backward", "forward"]


@dataclass(frozen=True)
class Edit:
    """One layer absorbs an affine map.

    `magnitudes` tell how large its numbers get with all edits of the layer, by the map's channels.
    """

    layer: Path
    magnitudes: tuple[Magnitudes, ...] = ()


@dataclass(frozen=True)
class Fold:
    """A BatchNormalization that goes away, and the edits that keep what the model computes."""

    batchnorm: BatchNorm
    direction: Direction
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Blocked:
    """A BatchNormalization that stays.

    `at` is the first layer in the way, where there is one, `reason` says why in a sentence, for
    both directions. `remedies` are changes to the model each of which would clear one direction's
    first obstacle, if it is built and trained again. `batch_statistics` is true when the reason is
    that the layer runs in training mode. `named` are the layers that the reason names.
    `may_be_replaced` is true when nothing but the layers around it is in the way. `magnitudes` tell
    how large the weights would get, where they would not fit their dtype.
    """

    batchnorm: BatchNorm
    at: Path | None
    reason: str
    batch_statistics: bool = False
    named: tuple[Path, ...] = ()
    remedies: tuple[str, ...] = ()
    may_be_replaced: bool = False
    magnitudes: tuple[Magnitudes, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One decision for each BatchNormalization of a model, in the order of its layers.

    `replaced` are the layers that absorb something, with their new weights, which are made when
    they are read. `program` is the model that was planned for.
    """

    decisions: tuple[Fold | Blocked, ...]
    replaced: Mapping[Path, Layer] = field(default_factory=dict, repr=False, compare=False)
    program: Program | None = field(default=None, repr=False, compare=False)

    @property
    def folds(self) -> tuple[Fold, ...]:
        """What will be folded."""
        return tuple(d for d in self.decisions if isinstance(d, Fold))

    @property
    def removed(self) -> frozenset[Path]:
        """The layers that go away."""
        return frozenset(fold.batchnorm.path for fold in self.folds)

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """What stays."""
        return tuple(d for d in self.decisions if isinstance(d, Blocked))


def plan(graph: Graph, keep: Sequence[str] = ()) -> Plan:
    """Decide on every BatchNormalization of a model.

    `keep` are shell patterns; a layer whose name or nested path (`backbone/bn1`) matches one stays
    as it is.
    """
    program = Program(graph)
    planner = _Planner(program, keep)
    found = Plan(tuple(planner.decide()), planner.replaced, program)
    path = None
    if found.folds:
        without = Program(edited(graph, {}, found.removed))
        path = first_changed_mode(program.region, without.region)
    if path is None:
        return found
    reason = (
        f"without it and the others that could be folded, {show(path)!r} would run in another mode "
        "of training than now, because Keras 3 hands training=True on to what runs later"
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


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A BatchNormalization, where it stands."""

    batchnorm: BatchNorm
    scope: Region
    layer: Layer
    is_kept: bool


def _candidates(scope: Region, keep: Sequence[str]) -> Iterator[_Candidate]:
    """Every BatchNormalization in the order of the layers."""
    for name in keras_order(scope.graph):
        layer = scope.graph.layers[name]
        batchnorm = as_batchnorm(layer, scope.layer_path(name))
        if batchnorm is not None:
            yield _Candidate(batchnorm, scope, layer, matches(batchnorm.path, *keep))
        elif name in scope.inside:
            yield from _candidates(scope.inside[name], keep)


class _Planner:
    """Tries one candidate after the other until nothing changes any more."""

    def __init__(self, program: Program, keep: Sequence[str]) -> None:
        self._candidates = list(_candidates(program.region, keep))
        self._walk = Walk(program, keep)
        self._folds: dict[Path, tuple[BatchNorm, Direction, Edits]] = {}
        self._blocked: dict[Path, Blocked] = {}

    @property
    def replaced(self) -> Mapping[Path, Layer]:
        """The layers that absorb something, with all that they absorb."""
        return self._walk.replaced

    def decide(self) -> Iterator[Fold | Blocked]:
        """One decision for each candidate."""
        open_ones = [one for one in self._candidates if self._may_fold(one)]
        while True:
            while sum(self._fold(one, into_batchnorms=False) for one in open_ones):
                open_ones = [one for one in open_ones if one.batchnorm.path not in self._folds]
            if not self._fold_into_batchnorms(open_ones):
                break
            open_ones = [one for one in open_ones if one.batchnorm.path not in self._folds]
        for one in self._candidates:
            path = one.batchnorm.path
            yield self._measured(path) if path in self._folds else self._blocked[path]

    def _measured(self, path: Path) -> Fold:
        """A fold with how large the weights get now that all folds are known."""
        batchnorm, direction, edits = self._folds[path]
        measured = (Edit(layer, self._walk.magnitudes(layer, edit)) for layer, edit in edits)
        return Fold(batchnorm, direction, tuple(measured))

    def _may_fold(self, one: _Candidate) -> bool:
        refusal = next(_problems(one), None)
        if refusal is not None:
            self._blocked[one.batchnorm.path] = _stays(one, refusal)
            return False
        affine = from_batchnorm(one.batchnorm)
        if isinstance(affine, str):
            self._blocked[one.batchnorm.path] = _stays(one, Refusal(affine))
            return False
        self._walk.start(one.batchnorm, affine)
        return True

    def _fold_into_batchnorms(self, open_ones: Sequence[_Candidate]) -> bool:
        """Let one BatchNormalization take in others; whether any did.

        Backward for all of them first, so that the first of a row takes in the others.
        """
        ways: tuple[tuple[Direction, ...], ...] = (("backward",), ("backward", "forward"))
        for directions in ways:
            done = [
                self._fold(one, into_batchnorms=True, directions=directions)
                for one in open_ones
                if one.batchnorm.path not in self._folds
            ]
            if any(done):
                return True
        return False

    def _fold(
        self,
        one: _Candidate,
        *,
        into_batchnorms: bool,
        directions: tuple[Direction, ...] = ("backward", "forward"),
    ) -> bool:
        """Fold a candidate if it can be; note why it cannot."""
        if self._walk.is_spent and one.batchnorm.path in self._blocked:
            return False
        refusals: list[tuple[Direction, Refusal]] = []
        for direction in directions:
            found = self._walk.edits(
                one.scope, one.layer, one.batchnorm, direction, into_batchnorms=into_batchnorms
            )
            if not isinstance(found, Refusal):
                self._folds[one.batchnorm.path] = (one.batchnorm, direction, found)
                return True
            refusals.append((direction, found))
        self._blocked[one.batchnorm.path] = _blocked_both_ways(one, refusals)
        return False


def _stays(one: _Candidate, refusal: Refusal) -> Blocked:
    return Blocked(
        one.batchnorm,
        refusal.at,
        refusal.reason,
        refusal.batch_statistics,
        named=() if refusal.at is None else (refusal.at,),
        remedies=(refusal.remedy,) if refusal.remedy else (),
    )


def _blocked_both_ways(one: _Candidate, refusals: Sequence[tuple[Direction, Refusal]]) -> Blocked:
    reason = "; ".join(f"{direction}: {refusal.reason}" for direction, refusal in refusals)
    named = tuple(refusal.at for _, refusal in refusals if refusal.at is not None)
    return Blocked(
        one.batchnorm,
        named[0] if named else None,
        reason,
        named=named,
        remedies=tuple(dict.fromkeys(refusal.remedy for _, refusal in refusals if refusal.remedy)),
        may_be_replaced=True,
        magnitudes=next((refusal.magnitudes for _, refusal in refusals if refusal.magnitudes), ()),
    )


def _problems(one: _Candidate) -> Iterator[Refusal]:
    """Why a layer stays whatever is around it in the graph."""
    batchnorm, layer, region = one.batchnorm, one.layer, one.scope
    training = _training_problem(one)
    if training is not None:
        yield training
    if one.is_kept:
        yield Refusal("it is kept on request")
    if not region.graph.builtin:
        yield Refusal(
            "the model's class is not Keras' own, and its code may use the layer freely",
            remedy=PLAIN_MODEL if region.parent is None else "",
        )
    if region.obstacle is not None:
        yield Refusal(region.obstacle)
    if region.repeats(layer):
        yield Refusal("it stands in several places of the model")
    for call in region.calls_of(layer.name):
        if call.written.mask is not None and not masks_are_named(call.output()):
            yield Refusal("it is given a mask, which it passes on to the layers behind it")
    if batchnorm.axis is None:
        yield Refusal("it normalizes over several axes at once")
    if batchnorm.is_ghost:
        yield Refusal("it has a virtual_batch_size, which splits the batch at inference too")
    if any(not 1 <= len(call.inputs) <= 2 for call in layer.calls):
        yield Refusal("it is the first layer, and tells the shape of a Sequential without input")


def _training_problem(one: _Candidate) -> Refusal | None:
    """Why a layer normalizes with the statistics of the batch, or makes others do so."""
    region, path = one.scope, one.batchnorm.path
    modes = region.modes
    called = any(is_set(call.training) for call in one.layer.calls)
    if not one.batchnorm.trainable:
        # A frozen layer uses its moving statistics whatever it is told; others may not.
        if called and any(other != path for other in modes.exposed):
            return Refusal(
                "it is called with training=True, which other layers heed", remedy=NO_SOURCE
            )
        return None
    if called:
        cause = "it is called with training=True"
    elif region.training is not None:
        cause = f"{region.training} around it is called with training=True"
    elif path in modes.reached:
        cause = f"{modes.exposed[path]}, which Keras 3 hands on to the layers that run later"
    elif path in modes.exposed:
        return Refusal(
            f"{modes.exposed[path]}, which Keras 3 hands on to layers that run later, if not to "
            "this one as the model stands",
            remedy=_no_training(modes.exposed[path]),
        )
    else:
        return None
    return Refusal(
        f"{cause}, so it normalizes with the batch's statistics",
        remedy=_no_training(modes.exposed.get(path, "")),
        batch_statistics=True,
    )


_SAVED = "'bnfold rule BN007' has the lines"
_NO_TRAINING = (
    "no new training is needed: freeze the saved model (model.trainable = False), save it again "
    f"({_SAVED}), or build it without training=True and call set_weights"
)
_NO_TRAINING_BY_DEFAULT = (
    "no new training is needed: call the saved model with training=False in a new one, and save "
    f"that ({_SAVED}), or build it with training=False in the calls of these layers and call "
    "set_weights; fit of Keras 3 augments all the same"
)


def _no_training(cause: str) -> str:
    """What clears the way where a layer is in training mode for this cause."""
    return _NO_TRAINING_BY_DEFAULT if cause.endswith(BY_DEFAULT) else _NO_TRAINING


def apply(graph: Graph, plan: Plan) -> Graph:
    """The graph that computes the same without the layers that `plan` folds."""
    return edited(graph, plan.replaced, plan.removed)
