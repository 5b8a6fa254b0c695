"""Which tensors may carry a mask, and which layers would miss it.

Keras 3 writes implicit masks into the calls that take one: those calls name their mask, and keep it
when a layer between is gone. Layers that merge tensors look for masks without an argument for
them, and where one is false they put out the other tensor alone (`base_merge.py`).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bnfold.model import layers
from bnfold.model.graph import chain, each_once

if TYPE_CHECKING:
    from bnfold.model.program import Call, Region, Value


def masks_are_named(value: "Value") -> bool:
    """Whether no reader of a tensor, near or far, would miss the mask that comes with it."""
    waiting = [value]
    for one in each_once(waiting):
        if one.is_output and one.call.region.parent is not None:
            return False
        for reader in one.readers():
            if reader.written.mask is not None or layers.drops_mask(reader.outer):
                continue
            if not reader.outer.is_operation and layers.facts(reader.outer).mask != "passes":
                return False
            waiting.append(reader.output())
    return True


def masked_calls(regions: Iterable["Region"]) -> frozenset["Call"]:
    """The calls of a whole model that may put out a mask with what they make.

    `regions` are the model and all nested ones, each after the one around it. A nested model that
    may make a mask anywhere may put one out.
    """
    found: set[Call] = set()
    following: dict[Call, list[Call]] = defaultdict(list)
    waiting: list[Call] = []
    masking: dict[Region, bool] = {}
    first_input: dict[Region, list[Call]] = {}
    for region in reversed([*regions]):
        own = region.all_calls
        # Any input may have the mask of anything that the model is given: the others follow one.
        inputs = [call for call in own if layers.is_input(call.layer)]
        first_input[region] = inputs[:1]
        for call in inputs[:1]:
            following[call] += inputs[1:]
        parts = (part for layer in region.graph.layers.values() for part in chain(layer))
        masking[region] = (
            any(call.written.mask is not None for call in own)
            or any(map(layers.may_make_mask, parts))
            or any(masking[nested] for nested in region.inside.values())
        )
        for call in own:
            # The first layer of a Sequential that lists no InputLayer reads what that is given.
            reads = call.reads or region.given(0)
            for value in reads:
                following[value.call].append(call)
            body = call.body
            if body is not None:
                for value in reads:
                    following[value.call] += first_input[body]
                waiting += first_input[body] if call.written.mask is not None else []
            makes = any(map(layers.may_make_mask, chain(call.outer)))
            if makes or (body is not None and masking[body]):
                found.add(call)
            if call.written.mask is not None:
                waiting.append(call)
    waiting += [reader for call in found for reader in following[call]]
    while waiting:
        call = waiting.pop()
        if call not in found and not layers.drops_mask(call.outer):
            found.add(call)
            waiting += following[call]
    return frozenset(found)
