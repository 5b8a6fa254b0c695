"""The search with the data: the consumers of a BatchNormalization's output absorb its map.

The output of the layer gets the values of its input. So each consumer must absorb the difference
or pass it on, and no output of the model may see it.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.folding.affine import IDENTITY, Affine
from bnfold.folding.rule import Site
from bnfold.folding.rules import rule_of
from bnfold.folding.search import Search
from bnfold.folding.state import Demand, Place
from bnfold.model import layers
from bnfold.model.graph import title
from bnfold.model.program import Call, Region, Value
from bnfold.model.refusal import Refusal
from bnfold.model.shapes import is_float


@dataclass(eq=False)
class ForwardSearch(Search):
    """One BatchNormalization, with the data."""

    # The map that each tensor will be without, and the calls that have to know, by their number.
    _changed: dict[Value, Affine] = field(default_factory=dict, init=False)
    _waiting: list[int] = field(default_factory=list, init=False)
    # The dtype that the layer casts to its own.
    _uncast: str | None = field(default=None, init=False)

    def paths(self) -> Iterator[list[Demand]]:
        """The demands of the one path there is: into every consumer of the layer's output."""
        self._note_input_dtypes()
        demands: list[Demand] = []
        for call in self.calls:
            self._change(call.output(), self.affine)
        while self._waiting:
            number = heapq.heappop(self._waiting)
            if not self._waiting or self._waiting[0] != number:
                call = self.state.calls[number]
                known = (self._changed.get(value) for value in call.reads)
                self.count_step(len(call.reads), *filter(None, known))
                demands += self._enter(call)
        if not demands:
            raise Refusal("no layer with weights depends on it")
        yield demands

    def _note_input_dtypes(self) -> None:
        """What the readers get is of the dtype that the layer reads, without it."""
        dtypes = {call.reads[0].dtype for call in self.calls}
        found = dtypes.pop() if len(dtypes) == 1 else None
        if found is None:
            raise Refusal("the dtype of what it reads is not known")
        self._uncast = None if found == self.dtype else found

    def _check_casts(self, place: Place) -> None:
        """Layers cast floating-point numbers to what they compute in; operations do not."""
        if self._uncast is None:
            return
        casts = not place.call.outer.is_operation and (
            is_float(self._uncast) or layers.facts(place.call.layer).casts_integers
        )
        if not casts:
            raise place.refuse(f"would read {self._uncast} instead of {self.dtype} without it")

    def _change(self, value: Value, affine: Affine) -> None:
        """Note that a tensor will be without a map, and who has to know of it."""
        self._changed[value] = affine
        if value.is_output:
            self._leave(value, affine)
        region = value.call.region
        for name, number in region.graph.readers.get(value.ref, ()):
            place = self.state.number_of(region.call(name, number))
            if place is None:
                raise Refusal(f"it feeds {name!r}, which no output depends on")
            heapq.heappush(self._waiting, place)

    def _leave(self, value: Value, affine: Affine) -> None:
        """A tensor is an output of its region."""
        call, region = value.call, value.call.region
        if region.parent is None:
            own = region is self.one.region and call.name == self.one.layer.name
            what = "it" if own else f"what {title(call.outer, call.path)} makes of it"
            raise Refusal(f"{what} is an output of the model", at=call.path)
        for number, output in enumerate(region.outputs):
            if output == value:
                outer = Value(region.callers[0], number)
                self.check_boundary(region, affine, "it is inside", outer)
                self._change(outer, affine)

    def _enter(self, call: Call) -> list[Demand]:
        """Let one call absorb, or pass on, what has changed in its inputs."""
        place = Place(call, "after it")
        affines = [self._changed.get(value) for value in call.reads]
        first = next(affine for affine in affines if affine is not None)
        if self.state.is_folded(call.path):
            self._change(call.output(), affines[0] or IDENTITY)
            return []
        if call.body is not None:
            self._enter_model(call.body, affines, call.reads)
            return []
        site = self.site(place)
        for affine, shape in zip(affines, site.inputs, strict=False):
            if affine is not None:
                self.check_sees(place, affine, shape)
        count = len(site.inputs)
        if any(affine is not None for affine in affines[count:]):
            raise place.refuse("reads it in another place than its input (a state, a key, a mask)")
        self._check_casts(place)
        rule = rule_of(site.layer)
        if rule is None or rule.forward is None:
            return [self._demand_before(place, site, first)]
        try:
            found = rule.forward(site, [affine or IDENTITY for affine in affines[:count]])
        except Refusal as refusal:
            raise place.refuse(refusal, advise=False) from None
        self._change(call.output(), found)
        return []

    def _enter_model(
        self, nested: Region, affines: Sequence[Affine | None], outer: Sequence[Value]
    ) -> None:
        for slot, affine in enumerate(affines):
            if affine is None:
                continue
            self.check_boundary(nested, affine, "it is before", outer[slot])
            inner = nested.inputs[slot]
            self.check_dtype(Place(inner, "after it"))
            self._change(inner.output(), affine)

    def _demand_before(self, place: Place, site: Site, affine: Affine) -> Demand:
        rule = rule_of(place.call.layer)
        absorb = self.absorber(place, None if rule is None else rule.absorb_before)
        if len(site.inputs) != 1:
            raise place.refuse(f"reads {len(site.inputs)} tensors")
        return self.demand(absorb, site, place, affine)

    def advises(self, place: Place) -> bool:
        """A layer that cannot absorb the map from before it may do so from after it."""
        some = Affine(np.asarray(-2.0), np.asarray(1.0))
        return self.works(lambda: self.demand_after(place, some))
