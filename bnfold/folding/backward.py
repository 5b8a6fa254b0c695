"""The search against the data: the producers of a BatchNormalization's input absorb its map.

The input of the layer gets the values of its output. So every other consumer of it, or of a tensor
on the path, would see others: a tensor may have no consumer but the call that the map came from,
which may read it by several slots, as in `Add()([h, h])`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bnfold.folding.affine import Affine
from bnfold.folding.rule import Backward, Maps
from bnfold.folding.rules import rule_of
from bnfold.folding.search import Search, title_of, typical_map
from bnfold.folding.state import Demand, Place
from bnfold.model import layers
from bnfold.model.program import Region, Value
from bnfold.model.refusal import Refusal

_MAX_JOINS = 100
"""How many joins in a row a map is moved past."""
_MAX_CHOICES = 4
"""How many paths through one branch of a join are tried with those through the others."""


class _Wanted(NamedTuple):
    """A map to be put on a tensor that fills so many slots of the call that reads it."""

    value: Value
    affine: Affine
    slots: int = 1


@dataclass(eq=False)
class BackwardSearch(Search):
    """One BatchNormalization, against the data."""

    def paths(self) -> Iterator[list[Demand]]:
        """The demands along each path to layers that absorb the map before the layer."""
        for call in self.calls:
            if call.reads[0].dtype not in (self.dtype, None):
                raise Refusal("it reads numbers of another dtype than it computes in")
        wanted = [_Wanted(call.reads[0], self.affine) for call in self.calls]
        return self._all_of(wanted, self.one.layer.name)

    def _all_of(
        self, tensors: Sequence[_Wanted], reader: str, depth: int = 0
    ) -> Iterator[list[Demand]]:
        """Paths for a map on each of several tensors; none if one of them has none."""
        if depth > _MAX_JOINS:
            raise Refusal("there are too many joins in a row before it")
        branches: list[list[list[Demand]]] = []
        for wanted in tensors:
            paths = self._up_to_an_obstacle(self._put_on(wanted, reader, depth))
            if len(tensors) == 1:
                yield from paths
                return
            branches.append(list(itertools.islice(paths, _MAX_CHOICES)))
            if not branches[-1]:
                return
        for chosen in itertools.product(*branches):
            yield [demand for path in chosen for demand in path]

    def _up_to_an_obstacle(self, paths: Iterator[list[Demand]]) -> Iterator[list[Demand]]:
        """The paths until one meets an obstacle, of which the first is noted."""
        try:
            yield from paths
        except Refusal as refusal:
            self.first = self.first or refusal.alone()

    def _put_on(self, wanted: _Wanted, reader: str, depth: int) -> Iterator[list[Demand]]:
        """Every path by which a map gets onto a tensor that `reader` reads."""
        while True:
            value, affine, _ = wanted
            place = Place(value.call, "before it")
            self.count_step(len(value.call.reads), affine)
            self._check_read_once(place, wanted, reader)
            following = self._around(place, value, affine)
            if following is not None:
                wanted, reader = _Wanted(following, affine), _reader_of(value, following)
                continue
            rule = rule_of(value.call.layer)
            if rule is None or rule.backward is None:
                yield [self.demand_after(place, affine)]
                return
            splits = self._propagated(rule.backward, place, affine)
            first, second = next(splits, None), next(splits, None)
            if first is None:
                raise place.refuse("reads one tensor twice, and would need two maps on it")
            if second is None and len(first) == 1:
                (wanted,), reader = first, value.call.name
                continue
            for split in itertools.chain([first], [second] if second else [], splits):
                self.count_step(len(split))
                yield from self._all_of(split, value.call.name, depth + 1)
            return

    def _check_read_once(self, place: Place, wanted: _Wanted, reader: str) -> None:
        """Whatever else reads the tensor would see the map too."""
        value, region = wanted.value, wanted.value.call.region
        if region.reads(value.ref) == wanted.slots:
            return
        what, at = f"the output of {place.title} before it", value.call.path
        if value.is_output and not (region.parent and len(region.output_numbers) == 1):
            of = "the model" if region.parent is None else title_of(region)
            raise Refusal(f"{what} is also an output of {of}", at=at)
        names = (name for name, _ in region.graph.readers.get(value.ref, ()))
        other = next((name for name in names if name != reader), None)
        if other is not None:
            raise Refusal(f"{what} is also read by {other!r}", at=at)
        raise Refusal(f"{what} is read more than once by {reader!r}", at=at)

    def _around(self, place: Place, value: Value, affine: Affine) -> Value | None:
        """The same tensor before a folded layer, or across the boundary of a nested model."""
        call = value.call
        if self.state.is_folded(call.path):
            return call.reads[0]
        if call.body is not None:
            self.check_boundary(call.body, affine, "it is after", value)
            return call.body.outputs[value.output]
        if not layers.is_input(call.outer):
            return None
        region = call.region
        if region.parent is None:
            raise Refusal(
                "it is the first layer, so there is none before it that could absorb it",
                at=call.path,
            )
        outer = region.callers[0].reads[region.graph.inputs.index(call.name)]
        self.check_boundary(region, affine, "it is inside", outer)
        self.check_dtype(place)
        return outer

    def _propagated(
        self, backward: Backward, place: Place, affine: Affine
    ) -> Iterator[list[_Wanted]]:
        """Each split of a map of a call's output into maps of its inputs."""
        site = self.site(place)
        self.check_sees(place, affine, site.output)
        try:
            if not site.inputs:
                raise Refusal("is called in an unusual way")
            maps = backward(site, affine)
        except Refusal as refusal:
            raise place.refuse(refusal, advise=self._could_stand_before(place, affine)) from None
        splits = (self._by_tensor(place, split) for split in maps)
        return (split for split in splits if split is not None)

    def _by_tensor(self, place: Place, maps: Maps) -> list[_Wanted] | None:
        """The map for each tensor that a call reads; None if one would need two of them."""
        found: dict[Value, Affine] = {}
        reads = place.call.reads[: len(maps)]
        for value, affine in zip(reads, maps, strict=False):
            if not found.setdefault(value, affine).same_as(affine):
                return None
        slots = Counter(reads)
        return [
            _Wanted(value, affine, slots[value])
            for value, affine in found.items()
            if not affine.is_identity
        ]

    # --- advice -----------------------------------------------------------------------------------

    def _could_stand_before(self, place: Place, affine: Affine) -> bool:
        """Whether a BatchNormalization before a layer would fold backward from there."""
        value = place.call.reads[0]
        shape, read = affine.scale.shape, value.shape or ()
        if any(
            min(len(read), len(shape)) < -axis or read[axis] != shape[axis]
            for axis in affine.varies_on
        ):
            return False
        wanted = _Wanted(value, typical_map(affine.scale.size, shape))
        return self.works(lambda: next(self._put_on(wanted, place.call.name, 0), None))


def _reader_of(value: Value, following: Value) -> str:
    """Who reads the tensor that a call only hands on, as the region of that tensor names it."""
    region: Region = value.call.region
    return region.name if following.call.region is region.parent else value.call.name
