"""What the numbers at the places say of each BatchNormalization that is gone, and who is to blame.

Its value stands in one of two places:

    backward   the place of its output holds the same numbers
    forward    they differ there, because what it read now stands there; and each path from it
               comes to a place that holds the same numbers, through layers without weights and one
               layer with weights, which has absorbed the difference; through another one for each
               further BatchNormalization that is gone

Which of the two it is the numbers tell. What stands at the place of the output and is neither what
the BatchNormalization made nor what it read comes of a fold that went wrong, even where layers
downstream hide that from the samples; but a fold from further downstream may have been propagated
across it, and then the path must come right without any layer with weights.

To blame is where it begins: a BatchNormalization that is wrong, or another layer whose value
differs though no fold explains that, with nothing of the kind upstream. A mismatch counts
only where the two models are aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bnfold.running.unrolled import FlatCall, Unrolled
from bnfold.verification.alignment import Alignment
from bnfold.verification.pairing import Pairing, Site, is_batchnorm, reached
from bnfold.verification.result import SiteStatus

Test = Callable[[int], bool]
"""Whether something holds at the place of this number."""

# How many layers with weights a path may still come through.
_ONE, _NONE, _NONE_AT_ALL = 1, 0, -1  # the last one also after further BatchNormalizations


@dataclass(frozen=True)
class Finding:
    """What came of a site: the places that show its value, or those where it went wrong."""

    status: SiteStatus
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Changed:
    """A call that is no site, but whose value differs, and the places where it does."""

    call: FlatCall
    places: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """What the numbers of one arithmetic say: of each site, and of other layers."""

    sites: tuple[Finding, ...] = ()
    changed: tuple[Changed, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether a site is."""
        return any(one.status is SiteStatus.DIFFERENT for one in self.sites)


def judge(pairing: Pairing, matches: Test, was_left: Test) -> Findings:
    """What the comparisons say.

    `matches` tells whether a place holds the same; `was_left` of one at a site, whether it may
    hold what the BatchNormalization read.
    """
    search = _Search(pairing, matches, was_left)
    return Findings(tuple(map(search.of, pairing.sites)), tuple(search.changed()))


class _Search:
    """The paths from the sites."""

    def __init__(self, pairing: Pairing, matches: Test, was_left: Test) -> None:
        self._pairing = pairing
        self._matches = matches
        self._was_left = was_left
        self._gone = pairing.gone
        right = {
            (id(place.original), id(place.folded))
            for number, place in enumerate(pairing.places)
            if matches(number)
        }
        self._alignment = Alignment(
            pairing.original,
            pairing.folded,
            self._gone,
            lambda one, other: (id(one), id(other)) in right,
        )
        self._begin()

    def _begin(self) -> None:
        self._seen: dict[tuple[int, int], bool | None] = {}
        self._right: list[int] = []
        self._wrong: list[int] = []

    def of(self, site: Site) -> Finding:
        """What its value came to."""
        self._begin()
        comes_right = _all(self._comes_right(tensor, _ONE) for tensor in site.call.outputs)
        if comes_right is None:
            return Finding(SiteStatus.UNPAIRED)
        if comes_right:
            return Finding(SiteStatus.MATCHED, tuple(dict.fromkeys(self._right)))
        in_place = [p for tensor in site.call.outputs for p in self._pairing.places_of(tensor)]
        wrong = [place for place in in_place if place in self._wrong] or self._wrong
        return Finding(SiteStatus.DIFFERENT, tuple(dict.fromkeys(wrong)))

    def _comes_right(self, tensor: Any, layers: int) -> bool | None:
        """Whether every path from a tensor comes to a place that holds the same numbers.

        None where there is no telling, for want of places.
        """
        state = (id(tensor), layers)
        if state not in self._seen:
            self._seen[state] = True  # no graph has cycles; a diamond is looked at once
            self._seen[state] = self._look(tensor, layers)
        return self._seen[state]

    def _look(self, tensor: Any, layers: int) -> bool | None:
        places = self._places(tensor)
        if places and all(map(self._matches, places)):
            self._right += places
            return True
        wrong = self._mismatches(places)
        self._wrong += wrong
        if any(tensor is output for output in self._pairing.original.outputs):
            return False if wrong else None
        if wrong and not self._may_come_right_downstream(tensor, wrong, layers):
            layers = _NONE_AT_ALL
        readers = self._pairing.original.readers.get(id(tensor), ())
        found = _all(self._goes_on(call, layers) for call, _ in readers)
        return False if wrong and not found else found

    def _places(self, tensor: Any) -> list[int]:
        made = self._pairing.made_at(tensor)
        return self._pairing.places_of(tensor) or ([] if made is None else [made])

    def _mismatches(self, places: Iterable[int]) -> list[int]:
        """Those that must hold the same and do not; what is put out always must."""
        return [
            place
            for place in places
            if not self._matches(place) and (self._is_put_out(place) or self._is_aligned(place))
        ]

    def _is_put_out(self, number: int) -> bool:
        place, pairing = self._pairing.places[number], self._pairing
        pairs = zip(pairing.original.outputs, pairing.folded.outputs, strict=False)
        return any(one is place.original and two is place.folded for one, two in pairs)

    def _is_aligned(self, number: int) -> bool:
        place = self._pairing.places[number]
        return self._alignment.same(place.original, place.folded)

    def _may_come_right_downstream(self, tensor: Any, wrong: Iterable[int], layers: int) -> bool:
        """Whether a layer downstream may have absorbed what is missing where numbers differ."""
        maker = self._pairing.original.makers.get(id(tensor))
        if maker is not None and maker.key in self._gone:
            return all(map(self._was_left, wrong))
        return maker is not None and not maker.may_absorb and layers == _ONE

    def _goes_on(self, call: FlatCall, layers: int) -> bool | None:
        if call.key in self._gone:
            layers = _ONE if layers == _NONE else layers
        elif call.may_absorb:
            if layers != _ONE:
                return None
            layers = _NONE
        return _all(self._comes_right(one, layers) for one in call.outputs)

    def changed(self) -> Iterator[Changed]:
        """The layers whose value differs where no fold explains it.

        None where a BatchNormalization has come in, which may stand for one that was moved.
        """
        original, folded = self._pairing.original.calls, self._pairing.folded.calls
        if any(is_batchnorm(call) and key not in original for key, call in folded.items()):
            return
        explained = self._reached_by_folds()
        for call in original.values():
            if self._is_made_good(call):
                continue
            wrong = [
                place
                for tensor in call.outputs
                for place in self._mismatches(self._places(tensor))
                if id(tensor) not in explained
            ]
            if any(map(self._is_aligned, wrong)):
                yield Changed(call, tuple(wrong))

    def _reached_by_folds(self) -> set[int]:
        """The ids of the tensors whose values a right fold may change: those around the sites.

        Nothing was propagated from a site whose own value stands where it stood.
        """
        pairing = self._pairing
        outputs = [one for site in pairing.sites for one in site.call.outputs]
        moved = [tensor for tensor in outputs if not self._stands_in_place(tensor)]
        inputs = [site.input for site in pairing.sites]
        return reached(moved, pairing.propagated_on) | reached(inputs, pairing.propagated_back)

    def _is_made_good(self, call: FlatCall) -> bool:
        """Whether only BatchNormalizations that were kept read it, and make the same numbers."""
        readers = [
            reader
            for tensor in call.outputs
            for reader, _ in self._pairing.original.readers.get(id(tensor), ())
        ]
        return bool(readers) and all(map(self._is_kept_and_right, readers))

    def _is_kept_and_right(self, call: FlatCall) -> bool:
        is_kept = is_batchnorm(call) and call.key not in self._gone
        return is_kept and all(map(self._stands_in_place, call.outputs))

    def _stands_in_place(self, tensor: Any) -> bool:
        """Whether all that read a tensor read the same numbers still, as far as is known."""
        places = self._pairing.places_of(tensor)
        return bool(places) and all(map(self._matches, places))


def _all(parts: Iterable[bool | None]) -> bool | None:
    """False if any part is, else None if any part is."""
    found = list(parts)
    return False if False in found else (None if None in found else True)


def culprits(pairing: Pairing, found: Findings) -> tuple[str, ...]:
    """The layers that are wrong, and that have no other wrong one upstream."""
    wrong = [
        site.call
        for site, finding in zip(pairing.sites, found.sites, strict=True)
        if finding.status is SiteStatus.DIFFERENT
    ]
    wrong += [one.call for one in found.changed]
    downstream: set[int] = set()
    for call in wrong:
        downstream |= _downstream(pairing.original, call)
    return tuple(dict.fromkeys(call.name for call in wrong if id(call) not in downstream))


def _downstream(graph: Unrolled, call: FlatCall) -> set[int]:
    """The ids of the calls that depend on one."""
    waiting, found = list(call.outputs), set[int]()
    while waiting:
        for reader, _ in graph.readers.get(id(waiting.pop()), ()):
            if id(reader) not in found:
                found.add(id(reader))
                waiting += reader.outputs
    return found
