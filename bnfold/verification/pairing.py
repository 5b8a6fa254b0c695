"""Where the value of a BatchNormalization of the original stands in the folded model.

Two models are paired by the names of their layers and the numbers of their calls, and by nothing
else: whoever folded, what he says of it does not count. A *place* is a pair of tensors: what one
and the same reader reads in the two models, or what both put out in the same position, or what one
and the same layer makes whose own value no fold after it can change. `blame` tells what the
numbers at the places say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.model.layers import BATCHNORM_CLASSES, LINEAR_CLASSES
from bnfold.running.keras_graph import graph_of
from bnfold.running.unrolled import FlatCall, Key, Unrolled, unroll
from bnfold.verification.breakpoints import Breakpoint, Watched, watched


@dataclass(frozen=True, eq=False)
class Place:
    """The same value in both models: the name of what makes it, and the two tensors.

    `axes` hold the channels beside axis 1 and the last one, as far as the layers tell.
    """

    name: str
    original: Any
    folded: Any
    axes: tuple[tuple[int, ...], ...] = ()


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


@dataclass(frozen=True, eq=False)
class Crossing:
    """A layer with breakpoints that a map may have crossed, or whose settings changed.

    `original` and `folded` are what to watch in either model, as far as it is there. At the places
    with the numbers `places` both models show what the layer reads, or what it makes where only its
    weights changed; if they show the same there, none crossed it. None where nothing
    says that, since it is not the same layer. `sites` are those whose maps may have come across.
    """

    original: Watched | None
    folded: Watched | None
    places: tuple[int, ...] | None
    sites: tuple[Site, ...]

    @property
    def is_opaque(self) -> bool:
        """Whether it is across a function of which no breakpoints are known."""
        return any(one is not None and one.is_opaque for one in (self.original, self.folded))

    def channels_of(self, point: Breakpoint, rank: int) -> int | None:
        """The axis along which each channel must have seen a breakpoint; None where any may."""
        if self.places is None or not np.any(point.at):
            return None
        axes = [_own_axes(site.call) for site in self.sites if len(site.input.shape) == rank]
        return axes[0][0] % rank if axes and len(axes[0]) == 1 else rank - 1


@dataclass
class Pairing:
    """The sites of a pair of models, and the places at which to compare them."""

    original: Unrolled
    folded: Unrolled
    sites: tuple[Site, ...]
    places: list[Place] = field(default_factory=list)
    crossings: tuple[Crossing, ...] = ()
    _read: dict[int, list[int]] = field(default_factory=dict)
    _made: dict[int, int] = field(default_factory=dict)

    @functools.cached_property
    def gone(self) -> frozenset[Key]:
        """The calls of the BatchNormalizations that are gone."""
        return frozenset(site.call.key for site in self.sites)

    @property
    def sides(self) -> tuple[list[Any], list[Any]]:
        """The tensors at the places, of the original and of the folded model."""
        return [one.original for one in self.places], [one.folded for one in self.places]

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
            for made in () if self.places_of(tensor) else self.propagated_on(tensor):
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

    def propagated_on(self, tensor: Any) -> list[Any]:
        """Where a fold may propagate a tensor's map to, forward, in one step."""
        readers = [call for call, _ in self.original.readers.get(id(tensor), ())]
        return [one for call in readers if self._is_crossed(call) for one in call.outputs]

    def propagated_back(self, tensor: Any) -> list[Any]:
        """Where a fold may propagate a tensor's map to, backward, in one step."""
        maker = self.original.makers.get(id(tensor))
        if maker is None or not self._is_crossed(maker):
            return []
        return list(maker.inputs[:1] if maker.key in self.gone else maker.inputs)

    def _is_crossed(self, call: FlatCall) -> bool:
        return call.key in self.gone or not call.may_absorb

    def depends_on(self, tensor: Any) -> set[int]:
        """The ids of the original's tensors that are computed from a tensor, and its own."""
        return reached([tensor], self._read_by)

    def _read_by(self, tensor: Any) -> list[Any]:
        readers = self.original.readers.get(id(tensor), ())
        return [made for call, _ in readers for made in call.outputs]

    def around(self, site: Site) -> Iterator[FlatCall]:
        """The calls that a site's map may cross, or that may absorb it, in either direction."""
        waiting, seen = [site.input], set[int]()
        while waiting:
            maker = self.original.makers.get(id(waiting.pop()))
            if maker is None or id(maker) in seen:
                continue
            seen.add(id(maker))
            waiting += [one for tensor in maker.outputs[:1] for one in self.propagated_back(tensor)]
            yield maker
        waiting = list(site.call.outputs)
        while waiting:
            for call, _ in self.original.readers.get(id(waiting.pop()), ()):
                if id(call) not in seen and self._is_crossed(call):
                    seen.add(id(call))
                    waiting += call.outputs
                    yield call

    def watch(
        self, call: FlatCall, mine: Sequence[Any], theirs: Sequence[Any]
    ) -> tuple[int, ...] | None:
        """The numbers of the places of what a call and its namesake read, or make.

        None where they do not go together.
        """
        if [one.shape for one in mine] != [one.shape for one in theirs]:
            return None
        pairs = zip(mine, theirs, strict=True)
        return tuple(self._at(call, one, two) for one, two in pairs)

    def _at(self, call: FlatCall, mine: Any, theirs: Any) -> int:
        for number, place in enumerate(self.places):
            if place.original is mine and place.folded is theirs:
                return number
        return self._add(self.original.makers.get(id(mine), call), mine, theirs)

    def stands_alone(self, site: Site) -> bool:
        """Whether no map of another site can come to this one from upstream."""
        upstream = reached([site.input], self.propagated_back)
        others = [one.call for one in self.sites if one is not site]
        return not any(id(tensor) in upstream for call in others for tensor in call.outputs)

    def _add(self, call: FlatCall, tensor: Any, found: Any) -> int:
        self.places.append(Place(call.name, tensor, found, channel_axes(self.original, tensor)))
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
                if not is_batchnorm(call) and not _may_absorb_after(call):
                    found.note_made(call, number)
    for site in found.sites:
        found.look_further(site)
    found.crossings = tuple(_crossings(found))
    return found


def _crossings(pairing: Pairing) -> Iterator[Crossing]:
    """The layers with breakpoints around the sites, and those whose settings changed."""
    around: dict[Key, list[Site]] = {}
    for site in pairing.sites:
        for call in pairing.around(site):
            around.setdefault(call.key, []).append(site)
    for call in pairing.original.calls.values():
        other = pairing.folded.calls.get(call.key)
        mine = watched(call)
        is_same = _is_the_same(call, other)
        theirs = None if other is None or is_same else watched(other)
        if (mine is None and theirs is None) or (is_same and call.key not in around):
            continue
        places = None
        if is_same and other is not None:
            if _are_both_given(pairing, call, other):
                continue
            places = pairing.watch(call, call.inputs, other.inputs)
        elif mine is not None and other is not None and _is_fused(call, other, mine):
            places = pairing.watch(call, call.outputs, other.outputs)
        yield Crossing(mine, theirs, places, tuple(around.get(call.key, ())))


def _are_both_given(pairing: Pairing, call: FlatCall, other: FlatCall) -> bool:
    """Whether a call reads the same inputs of the model in both, and nothing else."""
    return _pairs(call, other) <= _pairs(pairing.original, pairing.folded)


def _pairs(one: FlatCall | Unrolled, other: FlatCall | Unrolled) -> set[tuple[int, int]]:
    return {(id(a), id(b)) for a, b in zip(one.inputs, other.inputs, strict=False)}


def _is_fused(call: FlatCall, other: FlatCall, watched: Watched) -> bool:
    """Whether a layer has its activation after its weights, and only these changed."""
    is_after = watched.is_opaque or watched.tensor is call.outputs[0]
    if not is_after or other.class_name != call.class_name:
        return False
    inner = getattr(call.layer, "layer", call.layer)
    # A fold may add a bias. Of a model that is left whole only what comes out can be compared.
    return graph_of(inner) is not None or _same_settings(call.layer, other.layer, {"use_bias"})


def channel_axes(graph: Unrolled, tensor: Any) -> tuple[tuple[int, ...], ...]:
    """The axes of a tensor that may have channels, beside axis 1 and the last one.

    Those of a BatchNormalization are its own, several of them together. Layers without weights
    leave them where they are, unless they rearrange or reshape what they read: then any axis may
    have them. One that joins along an axis has them there.
    """
    rank, joined = len(tensor.shape), set[int]()
    while tensor is not None and (maker := graph.makers.get(id(tensor))) is not None:
        if is_batchnorm(maker):
            return (*((axis,) for axis in sorted(joined)), _own_axes(maker))
        if maker.inner_class_name.startswith(_REARRANGING):
            return every_axis(rank)
        if maker.may_absorb:
            break
        axis = getattr(maker.layer, "axis", None)
        if isinstance(axis, int) and -rank <= axis < rank:
            joined.add(axis)
        tensor = next((one for one in maker.inputs if len(one.shape) == rank), None)
    return tuple((axis,) for axis in sorted(joined))


def output_axes(model: Any) -> list[tuple[tuple[int, ...], ...]]:
    """The same of every output of a loaded model; any axis where its graph cannot be walked."""
    try:
        graph = unroll(model)
        return [channel_axes(graph, tensor) for tensor in graph.outputs]
    except Exception:  # a layer of the user's may raise anything
        return [every_axis(len(output.shape)) for output in model.outputs]


def every_axis(rank: int) -> tuple[tuple[int, ...], ...]:
    """The axes of a tensor of which any may have the channels, but not the batch."""
    return tuple((axis,) for axis in range(1, rank))


_REARRANGING = ("Permute", "Transpose", "Moveaxis", "Swapaxes", "Reshape", "Einsum", "TFOpLambda")
"""How layers and operations are called after which any axis may have the channels."""


def _own_axes(call: FlatCall) -> tuple[int, ...]:
    """The axes of a BatchNormalization; one in a TimeDistributed does not count the steps."""
    inner = getattr(call.layer, "layer", None)
    axis = getattr(inner if inner is not None else call.layer, "axis", -1)
    every = [axis] if isinstance(axis, int) else list(axis)
    return tuple(int(one) + (inner is not None and one >= 0) for one in every)


def _is_same(call: FlatCall, other: FlatCall) -> bool:
    return other.class_name == call.class_name and len(other.inputs) == len(call.inputs)


def is_batchnorm(call: FlatCall) -> bool:
    """Whether a call is of a BatchNormalization, or of one in a TimeDistributed."""
    return not BATCHNORM_CLASSES.isdisjoint({call.class_name, call.inner_class_name})


def _may_absorb_after(call: FlatCall) -> bool:
    """Whether a fold of what stands after a layer may change the layer's own value."""
    layer = getattr(call.layer, "layer", call.layer)
    activation = getattr(layer, "activation", None)
    is_linear = getattr(activation, "__name__", "linear") == "linear"
    return type(layer).__name__ in LINEAR_CLASSES and is_linear


def _is_the_same(call: FlatCall, other: FlatCall | None) -> bool:
    """Whether a layer has a namesake with the same settings and the same numbers."""
    if other is None or other.class_name != call.class_name:
        return False
    return _same_settings(call.layer, other.layer) and _same_weights(call.layer, other.layer)


def _same_settings(layer: Any, other: Any, beside: Collection[str] = ()) -> bool:
    try:
        return bool(_settings(layer, beside) == _settings(other, beside))
    except Exception:  # a layer or an operation of the user's may raise anything
        return True


def _settings(layer: Any, beside: Collection[str]) -> dict[str, Any]:
    """What a layer was made with, as far as its values depend on it."""
    said = layer.get_config().items()
    return {key: value for key, value in said if key not in {"name", "dtype", "seed", *beside}}


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
