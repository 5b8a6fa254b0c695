"""Where the value of a BatchNormalization of the original stands in the folded model.

Two models are paired by the names of their layers and the numbers of their calls, and by nothing
else: whoever folded, what he says of it does not count. A *place* is a pair of tensors that one and
the same reader reads in the two models, or that both put out in the same position. A
BatchNormalization that is gone left its value in one of two ways:

    backward   the place of its output holds the same numbers
    forward    they differ there, and each way on from it comes to a place that holds the same
               numbers, through layers without weights, BatchNormalizations that are gone, and at
               most one layer with weights, which must have taken the difference in

Which of the two it is the numbers tell. Where a value differs and no way on brings it right, that
BatchNormalization was folded wrongly, or one whose value its own depends on. Those that no other
wrong one stands in front of are to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bnfold.verification.unrolled import FlatCall, Unrolled

_BATCHNORMS = {"BatchNormalization", "SyncBatchNormalization"}


@dataclass(frozen=True, eq=False)
class Place:
    """The same value in both models: the name of what makes it, and the two tensors.

    `axis` is the one that holds the channels, as far as the layer tells.
    """

    name: str
    original: Any
    folded: Any
    axis: int = -1


@dataclass(frozen=True, eq=False)
class Site:
    """A BatchNormalization that is gone, at one call."""

    call: FlatCall

    @property
    def name(self) -> str:
        """The nested path of the layer."""
        return self.call.name


@dataclass
class Pairing:
    """The sites of a pair of models, and the places at which to compare them."""

    original: Unrolled
    folded: Unrolled
    sites: tuple[Site, ...]
    places: list[Place] = field(default_factory=list)
    _of: dict[int, list[int]] = field(default_factory=dict)

    def places_of(self, tensor: Any) -> list[int]:
        """The numbers of the places at which a tensor of the original is compared."""
        return self._of.get(id(tensor), [])

    def note(self, call: FlatCall, tensor: Any) -> None:
        """Look for the places of a tensor that a call of the original makes."""
        if id(tensor) in self._of:
            return
        self._of[id(tensor)] = []
        seen: set[int] = set()
        for found in self._folded_tensors(tensor):
            if id(found) not in seen:
                seen.add(id(found))
                self._of[id(tensor)].append(len(self.places))
                self.places.append(Place(call.name, tensor, found, _axis(call)))

    def _folded_tensors(self, tensor: Any) -> Iterator[Any]:
        for call, slot in self.original.readers.get(id(tensor), ()):
            other = self.folded.calls.get(call.key)
            if other is not None and _is_same(call, other):
                yield other.inputs[slot]
        for number, output in enumerate(self.original.outputs):
            if output is tensor and number < len(self.folded.outputs):
                yield self.folded.outputs[number]


def pair(original: Unrolled, folded: Unrolled) -> Pairing:
    """The sites of two models, and a place for each value that can say something about one."""
    gone = [call for call in original.calls.values() if _is_gone(call, folded)]
    found = Pairing(original, folded, tuple(map(Site, gone)))
    if not gone:
        return found
    for call in original.calls.values():
        if _is_batchnorm(call) or call.has_weights:
            for tensor in call.outputs:
                found.note(call, tensor)
    return found


def _axis(call: FlatCall) -> int:
    axis = getattr(call.layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


def _is_same(call: FlatCall, other: FlatCall) -> bool:
    return other.class_name == call.class_name and len(other.inputs) == len(call.inputs)


def _is_batchnorm(call: FlatCall) -> bool:
    inner = getattr(call.layer, "layer", None)
    return call.class_name in _BATCHNORMS or type(inner).__name__ in _BATCHNORMS


def _is_gone(call: FlatCall, folded: Unrolled) -> bool:
    other = folded.calls.get(call.key)
    if not _is_batchnorm(call):
        return False
    return other is None or not _is_batchnorm(other)


@dataclass(frozen=True)
class Finding:
    """What came of a site: the places that show its value, or those where it went wrong."""

    status: str  # "matched", "different" or "unpaired"
    places: tuple[int, ...] = ()


def judge(pairing: Pairing, matches: Callable[[int], bool]) -> list[Finding]:
    """What the comparisons say of each site; `matches` tells whether a place holds the same."""
    return [_Search(pairing, matches).of(site) for site in pairing.sites]


class _Search:
    """The ways on from one BatchNormalization."""

    def __init__(self, pairing: Pairing, matches: Callable[[int], bool]) -> None:
        self._pairing = pairing
        self._matches = matches
        self._gone = {site.call.key for site in pairing.sites}
        self._seen: dict[tuple[int, bool], bool] = {}
        self._right: list[int] = []
        self._wrong: list[int] = []

    def of(self, site: Site) -> Finding:
        """What its value came to."""
        good = all(self._comes_right(tensor, False) for tensor in site.call.outputs)
        if not any(map(self._is_paired, site.call.outputs)):
            return Finding("unpaired")
        if good:
            return Finding("matched", tuple(dict.fromkeys(self._right)))
        in_place = [p for tensor in site.call.outputs for p in self._pairing.places_of(tensor)]
        wrong = [place for place in in_place if place in self._wrong] or self._wrong
        return Finding("different", tuple(dict.fromkeys(wrong)))

    def _is_paired(self, tensor: Any) -> bool:
        """Whether a reader of a tensor, near or behind what is gone, has a namesake."""
        if self._pairing.places_of(tensor):
            return True
        folded = self._pairing.folded.calls
        readers = [call for call, _ in self._pairing.original.readers.get(id(tensor), ())]
        gone = [one for call in readers if call.key in self._gone for one in call.outputs]
        return any(call.key in folded for call in readers) or any(map(self._is_paired, gone))

    def _comes_right(self, tensor: Any, absorbed: bool) -> bool:
        """Whether every way on from a tensor comes to a place that holds the same numbers."""
        state = (id(tensor), absorbed)
        if state not in self._seen:
            self._seen[state] = True  # no graph has cycles; a diamond is looked at once
            self._seen[state] = self._look(tensor, absorbed)
        return self._seen[state]

    def _look(self, tensor: Any, absorbed: bool) -> bool:
        places = self._pairing.places_of(tensor)
        if places:
            if all(map(self._matches, places)):
                self._right += places
                return True
            self._wrong += [place for place in places if not self._matches(place)]
        if any(tensor is output for output in self._pairing.original.outputs):
            return False
        readers = self._pairing.original.readers.get(id(tensor), ())
        return all(self._goes_on(call, absorbed) for call, _ in readers)

    def _goes_on(self, call: FlatCall, absorbed: bool) -> bool:
        takes = call.has_weights and call.key not in self._gone
        if takes and absorbed:
            return False
        return all(self._comes_right(one, absorbed or takes) for one in call.outputs)


def culprits(pairing: Pairing, findings: list[Finding]) -> tuple[str, ...]:
    """The sites that are wrong and that no other wrong one stands in front of."""
    wrong = [
        site
        for site, found in zip(pairing.sites, findings, strict=True)
        if found.status == "different"
    ]
    behind: set[int] = set()
    for site in wrong:
        behind |= _behind(pairing.original, site)
    return tuple(dict.fromkeys(s.name for s in wrong if id(s.call) not in behind))


def _behind(graph: Unrolled, site: Site) -> set[int]:
    """The ids of the calls that depend on a site."""
    waiting, found = list(site.call.outputs), set[int]()
    while waiting:
        for call, _ in graph.readers.get(id(waiting.pop()), ()):
            if id(call) not in found:
                found.add(id(call))
                waiting += call.outputs
    return found
