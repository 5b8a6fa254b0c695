"""What has been folded so far in one model, and what its layers are with that."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bnfold.folding import weights
from bnfold.folding.affine import Affine
from bnfold.folding.keep import matches
from bnfold.folding.rule import Site
from bnfold.folding.sentences import NO_SOURCE, NO_TRAINING
from bnfold.folding.weights import Magnitudes, OutOfRange, WeightEdit
from bnfold.model import inbound_nodes, layers
from bnfold.model.graph import Layer, LayerPath, title
from bnfold.model.masks import may_be_masked
from bnfold.model.modes import may_train
from bnfold.model.program import Call, Program
from bnfold.model.refusal import Refusal
from bnfold.model.shapes import without_axes
from bnfold.model.training import is_set

_MAX_WORK = 100_000
_WORK_FOR_EACH_SLOT = 20
"""For all layers together: so many inputs of calls are looked at, and so many more for each that
the model has. The models of keras.applications need fewer than one for each, and one in which every
layer reads all before it needs six."""
NUMBERS_FOR_A_SLOT = 1000
"""To compute with these takes about as long as to look at one input of a call."""
_MAX_EDITS = 100
"""How many maps one layer absorbs; all that it has absorbed is measured again with each of them."""

WeightEdits = list[tuple[LayerPath, WeightEdit]]
"""What one fold does to each layer that absorbs it."""


class Place(NamedTuple):
    """One call of a layer on a path; `where` is "before it" or "after it", for sentences."""

    call: Call
    where: str

    @property
    def title(self) -> str:
        """The layer as sentences name it, by its outermost wrapper."""
        return title(self.call.outer, self.call.path)

    @property
    def name(self) -> str:
        """The layer as sentences about another one name it."""
        return f"{self.title} {self.where}"

    def touches(self, layer: Layer) -> bool:
        """Whether one reads what the other makes."""
        pairs = ((self.call.outer, layer), (layer, self.call.outer))
        return any(
            ref.layer == maker.name
            for reader, maker in pairs
            for call in reader.calls
            for ref in call.reads
        )

    def refuse(self, why: Refusal | str, *, advise: bool = True) -> Refusal:
        """What a predicate says, said of the layer; `advise` also names the remedy."""
        why = Refusal(why) if isinstance(why, str) else why
        remedy = self.remedy(why) if advise else ""
        return Refusal(f"{self.name} {why.reason}", remedy, self.call.path)

    def remedy(self, why: Refusal) -> str:
        """What a user could do about it."""
        found = why.remedy
        if found == NO_TRAINING and not is_set(self.call.written.training):
            found = NO_SOURCE  # another layer has set the mode
        return found.replace("{layer}", self.title)


class Demand(NamedTuple):
    """A map that one call of a layer has to absorb, and what that does to the layer."""

    place: Place
    affine: Affine
    edit: WeightEdit


class FoldState:
    """The folds of one model so far. It changes by `commit` alone."""

    def __init__(self, program: Program, keep: Sequence[str]) -> None:
        """`keep` are patterns of layers that must not be changed."""
        self.edited: dict[LayerPath, Layer] = {}
        self.calls = program.calls
        self._places = {call: number for number, call in enumerate(self.calls)}
        self._keep = keep
        # The map that each BatchNormalization is by now.
        self._maps: dict[LayerPath, Affine] = {}
        self._folded: set[LayerPath] = set()
        # What layers have absorbed, and how large their numbers are with that.
        self._edits: dict[LayerPath, tuple[WeightEdit, ...]] = {}
        self._magnitudes: dict[LayerPath, tuple[Magnitudes, ...]] = {}
        # The same by the channels of the last of what each has absorbed.
        self._along_last: dict[LayerPath, tuple[Magnitudes, ...]] = {}
        self._sites: dict[Call, Site] = {}
        slots = sum(len(call.written.reads) for call in self.calls)
        self._work_left = _MAX_WORK + _WORK_FOR_EACH_SLOT * slots

    def start(self, path: LayerPath, affine: Affine) -> None:
        """Make a BatchNormalization known that may be folded."""
        self._maps[path] = affine

    def map_of(self, path: LayerPath) -> Affine:
        """The map that a BatchNormalization is by now."""
        return self._maps[path]

    def is_folded(self, path: LayerPath) -> bool:
        """Whether a layer has been folded, so that it passes on what it reads."""
        return path in self._folded

    def keeps(self, path: LayerPath) -> bool:
        """Whether the user asked for a layer to be left alone."""
        return matches(path, *self._keep)

    def number_of(self, call: Call) -> int | None:
        """The number of a call among all, in order; None for one that no output depends on."""
        return self._places.get(call)

    def work(self, slots: int) -> bool:
        """Whether a call with so many inputs may still be looked at."""
        self._work_left -= slots
        return not self.is_spent

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be looked at in this model."""
        return self._work_left < 0

    def site(self, call: Call) -> Site:
        """What a rule is asked about a call; the layer is as it is by now."""
        if call not in self._sites:
            self._sites[call] = _site(call)
        site = self._sites[call]
        now = self.edited.get(call.core_path)
        return site if now is None else replace(site, layer=now)

    def magnitudes(self, path: LayerPath, edit: WeightEdit) -> tuple[Magnitudes, ...]:
        """How large the numbers of a layer get with all edits, by the channels of one of them."""
        changed = weights.slots_of([edit])
        if edit is self._edits[path][-1]:
            return tuple(one for one in self._along_last[path] if one.slot in changed)
        return tuple(one.along(edit) for one in self._magnitudes[path] if one.slot in changed)

    def commit(self, path: LayerPath, demands: Sequence[Demand], *, forward: bool) -> WeightEdits:
        """Fold the BatchNormalization of a path, by all of these demands or none.

        Raises Refusal where a layer cannot do what is asked of it.
        """
        by_layer: dict[LayerPath, list[Demand]] = {}
        for demand in demands:
            by_layer.setdefault(demand.place.call.core_path, []).append(demand)
        found = [(layer, *self._absorbed(layer, same)) for layer, same in by_layer.items()]
        for layer, edits, measured, along in found:
            first = by_layer[layer][0]
            self._edits[layer] = edits
            self._magnitudes[layer], self._along_last[layer] = measured, along
            self.edited[layer] = weights.edited(first.place.call.layer, edits)
            self._note_batchnorm(first, forward=forward)
        self._folded.add(path)
        return [(layer, edits[-1]) for layer, edits, *_ in found]

    def _absorbed(
        self, path: LayerPath, demands: Sequence[Demand]
    ) -> tuple[tuple[WeightEdit, ...], tuple[Magnitudes, ...], tuple[Magnitudes, ...]]:
        """All edits of a layer with one more, and how large its numbers get.

        The latter as they are, and by the channels of that one.
        """
        _check_agreement(demands)
        place = demands[0].place
        edits = (*self._edits.get(path, ()), demands[0].edit)
        if len(edits) > _MAX_EDITS:
            raise place.refuse(f"has absorbed {_MAX_EDITS} others already")
        problem = weights.misfit(place.call.layer, edits[-1])
        if problem is not None:
            raise place.refuse(problem)
        numbers = sum(math.prod(one.shape) for one in place.call.layer.weights or ())
        if len(edits) > 1 and not self.work(numbers // NUMBERS_FOR_A_SLOT):
            raise place.refuse("has absorbed others already, and all would be measured again")
        measured = weights.magnitudes(place.call.layer, edits)
        along = tuple(one.along(edits[-1]) for one in measured)
        try:
            weights.check_range(along, "folded ")
        except Refusal as refusal:
            reason = f"{place.name} cannot absorb it: {refusal.reason}"
            raise OutOfRange(reason, along, place.call.path) from None
        return edits, measured, along

    def _note_batchnorm(self, demand: Demand, *, forward: bool) -> None:
        """A BatchNormalization that absorbs another one is another map from now on."""
        path = demand.place.call.path  # that of the wrapper, if it is in one
        old = self._maps.get(path)
        if old is None or "gamma" not in demand.edit.factors:
            return
        new = Affine(demand.affine.scale.reshape(-1), demand.affine.shift.reshape(-1))
        self._maps[path] = new.then(old) if forward else old.then(new)


def _site(call: Call) -> Site:
    """What is known of a call from the graph alone, inside all wrappers."""
    is_operation, node = call.outer.is_operation, call.written.node
    return Site(
        layer=call.layer,
        inputs=tuple(without_axes(value.shape, call.wrappers) for value in call.inputs),
        output=without_axes(call.output().shape, call.wrappers),
        training=may_train(call),
        masked=layers.facts(call.layer).mask == "reads"
        and any(may_be_masked(value) for value in call.reads),
        operands=inbound_nodes.operands(node) if is_operation else (),
    )


def _check_agreement(demands: Sequence[Demand]) -> None:
    """All calls of a layer must ask for the same, because they share the weights."""
    first, place = demands[0], demands[0].place
    count = len(place.call.outer.calls)
    if len({demand.place.call.number for demand in demands}) != count:
        raise place.refuse(f"is called {count} times, and not every call asks for the same")
    alike = (
        first.affine.same_as(other.affine) and first.edit.times == other.edit.times
        for other in demands[1:]
    )
    if not all(alike):
        raise place.refuse(f"is called {count} times, and its calls ask for different weights")
