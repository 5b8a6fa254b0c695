"""Which tensors may carry a mask, and which layers would miss it.

Keras 3 writes implicit masks into the calls that take one: those calls name their mask, and keep it
when a layer between is gone. Layers that merge tensors look for masks without an argument for
them, and where one is false they put out the other tensor alone (`base_merge.py`).
"""

from collections import defaultdict

from bnfold.model import layers
from bnfold.model.graph import chain, each_once, once
from bnfold.model.program import Call, Region, Value


def may_be_masked(value: Value) -> bool:
    """Whether a tensor may have a mask, from however far upstream."""
    return value.call in masked_calls(value.call.region)


def masks_are_named(value: Value) -> bool:
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


@once
def masked_calls(region: Region) -> frozenset[Call]:
    """The calls of a whole model that may put out a mask with what they make.

    A nested model that may make a mask anywhere may put one out.
    """
    if region.parent is not None:
        return masked_calls(region.parent)
    found: set[Call] = set()
    following: dict[Call, list[Call]] = defaultdict(list)
    waiting: list[Call] = []
    masking: dict[Region, bool] = {}
    first_input: dict[Region, list[Call]] = {}
    for one in reversed([*region.with_nested()]):
        own = one.all_calls
        # Any input may have the mask of anything that the model is given: the others follow one.
        inputs = [call for call in own if layers.is_input(call.layer)]
        first_input[one] = inputs[:1]
        for call in inputs[:1]:
            following[call] += inputs[1:]
        parts = (part for layer in one.graph.layers.values() for part in chain(layer))
        masking[one] = (
            any(call.written.mask is not None for call in own)
            or any(map(layers.may_make_mask, parts))
            or any(masking[nested] for nested in one.inside.values())
        )
        for call in own:
            # The first layer of a Sequential that lists no InputLayer reads what that is given.
            reads = call.reads or one.given(0)
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
