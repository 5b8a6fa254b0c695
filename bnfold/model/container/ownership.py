"""Which layer each variable of a nested model belongs to, in a legacy HDF5 file.

Keras hands the list out by its order alone: first all trainable variables, then all others, each
part by the order of the layers. That fixes the owners where the class of every layer tells which
variables it has. It does not tell which are trainable, which depends on flags and on the version
that wrote the file, and nobody knows how many variables a layer of an unknown class has. So the
names of the variables are asked as well:

    variables of unknown layers    by name alone, which must name one layer
    all others                     by order, which must name the slots of the layers' classes in
                                   turn, and which no name may contradict

The name of a variable ends in that of its layer and its own (`block/conv1/bn/gamma:0`). Names of
layers may hold slashes themselves, and there may be scopes in front of them, so that one is found
as a row of parts: the last one counts, and of those that end there the longest.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from bnfold.model.graph import Layer, LayerPath, Weight, slot_name
from bnfold.model.layers import Slot, slots
from bnfold.model.order import model_layers

Owned = dict[LayerPath, tuple[Weight, ...]]


class Ownership(NamedTuple):
    """Whose the variables of a nested model are.

    `owned` has every layer inside that may own some; `trainable` and `rest` are the two parts of
    the list.
    """

    owned: Owned
    trainable: tuple[Weight, ...]
    rest: tuple[Weight, ...]


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A layer inside a nested model that may own variables.

    `identity` is the same for one layer object that stands in several places, of which the file
    lists the first alone. `trainable` is whether each of the layers around it is, the nested model
    first, then the layer itself.
    """

    path: LayerPath
    identity: tuple[str | int, ...]
    layer: Layer
    trainable: tuple[bool, ...]
    wrappers: int = 0

    @cached_property
    def slots(self) -> tuple[Slot, ...] | None:
        """The variables of its class, None where that is unknown."""
        return slots(self.layer)

    def aliases(self) -> Iterator[LayerPath]:
        """Its name, and what its variables may be named after instead, each with what is around.

        That is a wrapper around it, or the layer that a wrapper of an unknown class wraps.
        """
        for length in range(len(self.path) - self.wrappers, len(self.path) + 1):
            yield self.path[:length]
        around, entry = self.path, self.layer.config.get("layer")
        while isinstance(entry, dict) and isinstance(entry.get("config"), dict):
            name = entry["config"].get("name")
            if isinstance(name, str):
                around = (*around, name)
                yield around
            entry = entry["config"].get("layer")


def leaves(layer: Layer, path: LayerPath) -> Iterator[tuple[LayerPath, Layer]]:
    """The layers inside a nested model that may own variables, in the order of the file."""
    return ((leaf.path, leaf.layer) for leaf in _leaves(layer, path))


def _leaves(layer: Layer, path: LayerPath, around: tuple[bool, ...] = ()) -> Iterator[_Leaf]:
    return _walk(layer, _Leaf(path, path, layer, around))


def _walk(layer: Layer, at: _Leaf) -> Iterator[_Leaf]:
    """The leaves in a layer; `at` has its path, and what is known of the layers around it."""
    shared = layer.shared_object_id
    identity = at.identity if shared is None else (shared,)
    flags = (*at.trainable, layer.config.get("trainable", True) is not False)
    if layer.graph is not None:
        for inside in model_layers(layer.graph):
            here = (*identity, inside.name)
            yield from _walk(inside, _Leaf((*at.path, inside.name), here, inside, flags))
    elif layer.inner is not None:
        inner = layer.inner
        here = (*identity, inner.name)
        nested = _Leaf((*at.path, inner.name), here, inner, flags, at.wrappers + 1)
        yield from _walk(inner, nested)
    else:
        yield replace(at, identity=identity, layer=layer, trainable=flags)


def owners(layer: Layer, listed: Sequence[Weight]) -> Ownership | None:
    """Whose each listed variable of a nested model is; None where that cannot be told."""
    every = tuple(_leaves(layer, (layer.name,)))
    first = {leaf.identity: leaf for leaf in reversed(every)}
    once = tuple(leaf for leaf in every if first[leaf.identity] is leaf)
    named = _by_name(once, listed)
    if named is None:
        return None
    # A frozen model of Keras 2 lists what was made trainable again inside it before the rest.
    for heeded in (0, 1):
        found = _in_order(once, listed, named, heeded)
        if found is not None:
            owned = {leaf.path: found.owned[first[leaf.identity].path] for leaf in every}
            return found._replace(owned=owned)
    return None


class _Named(NamedTuple):
    """What the names tell: the owners that are of an unknown class, and whom each may name."""

    unknown: Owned
    candidates: Mapping[str, frozenset[LayerPath]]


def _by_name(every: Sequence[_Leaf], listed: Sequence[Weight]) -> _Named | None:
    """What the names of the variables tell; None where they leave an unknown layer's open."""
    names = _Names(every)
    unknown: dict[LayerPath, list[Weight]] = {leaf.path: [] for leaf in every if leaf.slots is None}
    candidates: dict[str, frozenset[LayerPath]] = {}
    for weight in listed:
        found = names.find(weight.name)
        candidates[weight.name] = found
        if len(found) == 1 and not found.isdisjoint(unknown):
            unknown[next(iter(found))].append(weight)
        elif unknown and (not found or not found.isdisjoint(unknown)):
            return None
    return _Named({path: tuple(weights) for path, weights in unknown.items()}, candidates)


class _Names:
    """The layers by what their variables may be named after."""

    def __init__(self, every: Sequence[_Leaf]) -> None:
        found: dict[str, set[LayerPath]] = {}
        for leaf in every:
            if leaf.slots == ():
                continue
            for alias in leaf.aliases():
                for start in range(len(alias)):
                    found.setdefault("/".join(alias[start:]), set()).add(leaf.path)
        self._leaves = {name: frozenset(paths) for name, paths in found.items()}

    def find(self, name: str) -> frozenset[LayerPath]:
        """The layers that a variable's name can name, empty where it names none."""
        parts = name.split("/")[:-1]
        for end in range(len(parts), 0, -1):
            # TensorFlow 1 numbers the scope of a name that it has seen before: `conv_1/kernel`.
            for last in (parts[end - 1], re.sub(r"_\d+$", "", parts[end - 1])):
                for start in range(end):
                    found = self._leaves.get("/".join([*parts[start : end - 1], last]))
                    if found is not None:
                        return found
        return frozenset()


def _in_order(
    every: Sequence[_Leaf], listed: Sequence[Weight], named: _Named, heeded: int
) -> Ownership | None:
    """The owners by the order of the list; None where it is not the one that Keras would write.

    Flags of trainability count from the layer number `heeded` on, the nested model being the first.
    """
    of_unknown = {id(weight) for weights in named.unknown.values() for weight in weights}
    remaining = [weight for weight in reversed(listed) if id(weight) not in of_unknown]
    owned: dict[LayerPath, list[Weight]] = {leaf.path: [] for leaf in every}
    parts: tuple[list[Weight], list[Weight]] = ([], [])
    for number, leaf, slot in _expected(every, heeded):
        if not remaining or not _fits(remaining[-1], leaf, slot, named):
            return None
        taken = [remaining.pop()]
        if slot.name == "moving_variance" and leaf.layer.config.get("renorm"):
            while remaining and slot_name(remaining[-1]).startswith(_RENORM):
                taken.append(remaining.pop())
        owned[leaf.path] += taken
        parts[number].extend(taken)
    if remaining:
        return None
    found = {path: tuple(weights) for path, weights in owned.items()} | named.unknown
    boundary = _boundary(listed, found, parts)
    if boundary is None:
        return None
    return Ownership(found, tuple(listed[:boundary]), tuple(listed[boundary:]))


_RENORM = ("renorm_", "moving_stddev")
"""What the names of the variables begin with that only training with `renorm` reads."""


def _expected(every: Sequence[_Leaf], heeded: int) -> Iterator[tuple[int, _Leaf, Slot]]:
    """The variables of known classes as listed, with their part: 0 is the trainable one."""
    for number in (0, 1):
        for leaf in every:
            thawed = all(leaf.trainable[heeded:])
            for slot in leaf.slots or ():
                if (slot.trainable and thawed) == (number == 0):
                    yield number, leaf, slot


def _fits(weight: Weight, leaf: _Leaf, slot: Slot, named: _Named) -> bool:
    """Whether a variable can be this one; Keras 3 calls a `depthwise_kernel` a `kernel`."""
    name, candidates = slot_name(weight), named.candidates[weight.name]
    same = slot.name == name or slot.name.endswith(f"_{name}")
    return same and (not candidates or leaf.path in candidates)


def _boundary(
    listed: Sequence[Weight], owned: Owned, parts: tuple[Sequence[Weight], Sequence[Weight]]
) -> int | None:
    """Where the second part of the list begins; None if it is not in two parts, each by layer."""
    layers = {id(w): number for number, weights in enumerate(owned.values()) for w in weights}
    order = [layers[id(weight)] for weight in listed]
    back = [n for n, (one, two) in enumerate(pairwise(order), start=1) if two < one]
    position = {id(weight): number for number, weight in enumerate(listed)}
    last = max((position[id(weight)] for weight in parts[0]), default=-1)
    first = min((position[id(weight)] for weight in parts[1]), default=len(listed))
    boundary = back[0] if back else first
    return boundary if len(back) < 2 and last < boundary <= first else None
