"""Masks: who would miss one that goes with a layer, and who may be given one.

Keras 3 writes implicit masks into the calls that take one: those calls name their mask, and keep it
when a layer on the way is gone. Layers that merge tensors look for masks without an argument for
them, and where one is false they put out the other tensor alone (`base_merge.py`).
"""

from collections.abc import Iterable

from bnfold.model import layers
from bnfold.model.graph import Layer, Ref, chain, walk_all
from bnfold.model.program import Region


def masks_are_named(scope: Region, ref: Ref) -> bool:
    """Whether no reader of a tensor, near or far, would miss the mask that comes with it."""
    waiting, seen = [ref], set[Ref]()
    while waiting:
        ref = waiting.pop()
        if ref in seen:
            continue
        seen.add(ref)
        if ref in scope.graph.outputs and scope.path:
            return False
        for name, number in scope.graph.readers.get(ref, ()):
            layer = scope.graph.layers[name]
            if layer.calls[number].mask is not None or layers.drops_mask(layer):
                continue
            if not layer.is_operation and layers.facts(layer).mask != "passes":
                return False
            waiting.append(Ref(name, number))
    return True


def may_be_masked(scope: Region, refs: Iterable[Ref]) -> bool:
    """Whether one of several tensors may carry a mask, from however far back."""
    waiting = [(scope, ref) for ref in refs]
    seen: set[tuple[Region, Ref]] = set()
    while waiting:
        scope, ref = waiting.pop()
        if (scope, ref) in seen:
            continue
        seen.add((scope, ref))
        layer = scope.graph.layers[ref.layer]
        if any(map(layers.may_make_mask, chain(layer))) or any(map(_masks, _inside(layer))):
            return True
        if layers.drops_mask(layer):
            continue
        calls = [(scope, layer.calls[ref.call])]
        if layers.is_input(layer) and scope.parent is not None:
            outer = scope.parent.graph.layers[scope.name].calls
            calls += [(scope.parent, call) for call in outer]
        if any(call.mask is not None for _, call in calls):
            return True
        waiting += [(where, one) for where, call in calls for one in call.inputs]
    return False


def _masks(layer: Layer) -> bool:
    """Whether a layer of a nested model may make a mask, or is given one, which Keras passes on."""
    given = any(call.mask is not None for call in layer.calls)
    return given or layers.may_make_mask(layer)


def _inside(layer: Layer) -> list[Layer]:
    return [] if layer.nested is None else [inner for _, inner in walk_all(layer.nested)]
