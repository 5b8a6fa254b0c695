"""Where the value of a BatchNormalization of the original stands in the folded model.

Two models are paired by the names of their layers and the numbers of their calls, and by nothing
else: whoever folded, what he says of it does not count. A *place* is a pair of tensors: what one
and the same reader reads in the two models, or what both put out in the same position, or what one
and the same layer makes whose own value no fold behind it can change. `findings` tells what the
numbers at the places say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.verification.tensors import BATCHNORMS
from bnfold.verification.unrolled import FlatCall, Key, Unrolled

_LINEAR = {
    *("Dense", "EinsumDense", "Embedding", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose"),
    *("Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("SeparableConv1D", "SeparableConv2D"),
}
"""Layers that can take in a BatchNormalization behind them, unless they have an activation."""


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

    @property
    def input(self) -> Any:
        """The tensor that was normalized; a mask may be read beside it."""
        return self.call.inputs[0]


@dataclass
class Pairing:
    """The sites of a pair of models, and the places at which to compare them."""

    original: Unrolled
    folded: Unrolled
    sites: tuple[Site, ...]
    places: list[Place] = field(default_factory=list)
    _read: dict[int, list[int]] = field(default_factory=dict)
    _made: dict[int, int] = field(default_factory=dict)

    @functools.cached_property
    def gone(self) -> frozenset[Key]:
        """The calls of the BatchNormalizations that are gone."""
        return frozenset(site.call.key for site in self.sites)

    def places_of(self, tensor: Any) -> list[int]:
        """The numbers of the places at which readers of a tensor of the original stand."""
        return self._read.get(id(tensor), [])

    def made_at(self, tensor: Any) -> int | None:
        """The number of the place at which the maker of a tensor stands, if nobody reads it."""
        return self._made.get(id(tensor))

    def note(self, call: FlatCall, tensor: Any) -> None:
        """Look for the places of a tensor that a call of the original makes."""
        if id(tensor) in self._read:
            return
        self._read[id(tensor)] = []
        seen: set[int] = set()
        for found in self._folded_tensors(tensor):
            if id(found) not in seen and found.shape == tensor.shape:
                seen.add(id(found))
                self._read[id(tensor)].append(self._add(call, tensor, found))

    def look_further(self, site: Site) -> None:
        """Where no reader of a site has a namesake, look for the places of what they make."""
        waiting = [one for one in site.call.outputs if not self.places_of(one)]
        while waiting:
            tensor = waiting.pop()
            for made in () if self.places_of(tensor) else self.carried_on(tensor):
                if id(made) not in self._read:
                    self.note(self.original.makers[id(made)], made)
                    waiting.append(made)

    def note_made(self, call: FlatCall, number: int) -> None:
        """Compare an output of a call itself, which only those that are gone read."""
        tensor, other = call.outputs[number], self.folded.calls.get(call.key)
        if other is None or other.class_name != call.class_name or self.places_of(tensor):
            return
        if number < len(other.outputs) and other.outputs[number].shape == tensor.shape:
            self._made[id(tensor)] = self._add(call, tensor, other.outputs[number])

    def carried_on(self, tensor: Any) -> list[Any]:
        """What a fold may carry a tensor's map to, forward, in one step."""
        readers = [call for call, _ in self.original.readers.get(id(tensor), ())]
        return [one for call in readers if self._is_crossed(call) for one in call.outputs]

    def carried_back(self, tensor: Any) -> list[Any]:
        """What a fold may carry a tensor's map to, backward, in one step."""
        maker = self.original.makers.get(id(tensor))
        if maker is None or not self._is_crossed(maker):
            return []
        return list(maker.inputs[:1] if maker.key in self.gone else maker.inputs)

    def _is_crossed(self, call: FlatCall) -> bool:
        return call.key in self.gone or not call.may_absorb

    def stands_alone(self, site: Site) -> bool:
        """Whether no map of another site can come to this one from in front."""
        in_front = reached([site.input], self.carried_back)
        others = [one.call for one in self.sites if one is not site]
        return not any(id(tensor) in in_front for call in others for tensor in call.outputs)

    def _add(self, call: FlatCall, tensor: Any, found: Any) -> int:
        self.places.append(Place(call.name, tensor, found, _axis(call)))
        return len(self.places) - 1

    def _folded_tensors(self, tensor: Any) -> Iterator[Any]:
        for call, slot in self.original.readers.get(id(tensor), ()):
            other = self.folded.calls.get(call.key)
            if other is not None and _is_same(call, other):
                yield other.inputs[slot]
        for number, output in enumerate(self.original.outputs):
            if output is tensor and number < len(self.folded.outputs):
                yield self.folded.outputs[number]


def reached(start: Iterable[Any], more: Callable[[Any], list[Any]]) -> set[int]:
    """The ids of all tensors that a step leads to, those of the start among them."""
    waiting, found = list(start), set[int]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            waiting += more(tensor)
    return found


def pair(original: Unrolled, folded: Unrolled) -> Pairing:
    """The sites of two models, and a place for each value that can say something about one."""
    gone = [call for call in original.calls.values() if _is_gone(call, folded)]
    found = Pairing(original, folded, tuple(map(Site, gone)))
    for call in original.calls.values():
        if (gone and call.has_weights) or not _is_the_same(call, folded.calls.get(call.key)):
            for number, tensor in enumerate(call.outputs):
                found.note(call, tensor)
                if not is_batchnorm(call) and not _takes_in_behind(call):
                    found.note_made(call, number)
    for site in found.sites:
        found.look_further(site)
    return found


def _axis(call: FlatCall) -> int:
    axis = getattr(call.layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


def _is_same(call: FlatCall, other: FlatCall) -> bool:
    return other.class_name == call.class_name and len(other.inputs) == len(call.inputs)


def is_batchnorm(call: FlatCall) -> bool:
    """Whether a call is of a BatchNormalization, or of one in a TimeDistributed."""
    inner = getattr(call.layer, "layer", None)
    return not BATCHNORMS.isdisjoint({call.class_name, type(inner).__name__})


def _takes_in_behind(call: FlatCall) -> bool:
    """Whether a fold of what stands behind a layer may change the layer's own value."""
    layer = getattr(call.layer, "layer", call.layer)
    activation = getattr(layer, "activation", None)
    is_linear = getattr(activation, "__name__", "linear") == "linear"
    return type(layer).__name__ in _LINEAR and is_linear


def _is_the_same(call: FlatCall, other: FlatCall | None) -> bool:
    """Whether a layer has a namesake with the same settings and the same numbers."""
    if other is None or other.class_name != call.class_name:
        return False
    return _same_settings(call.layer, other.layer) and _same_weights(call.layer, other.layer)


def _same_settings(layer: Any, other: Any) -> bool:
    try:
        return bool(_settings(layer) == _settings(other))
    except Exception:  # a layer or an operation of the user's may raise anything
        return True


def _settings(layer: Any) -> dict[str, Any]:
    """What a layer was made with, as far as its values depend on it."""
    said = layer.get_config().items()
    return {key: value for key, value in said if key not in ("name", "dtype", "seed")}


def _same_weights(layer: Any, other: Any) -> bool:
    if not getattr(layer, "weights", None):
        return True
    mine, theirs = layer.get_weights(), other.get_weights()
    return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))


def _is_gone(call: FlatCall, folded: Unrolled) -> bool:
    other = folded.calls.get(call.key)
    if not is_batchnorm(call):
        return False
    return other is None or not is_batchnorm(other)
