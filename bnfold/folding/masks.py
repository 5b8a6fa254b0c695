"""Whether a layer can go without its readers missing the mask that it passes on.

Keras 3 writes implicit masks into the calls that take one: those calls name their mask, and keep it
when a layer on the way is gone.
"""

from bnfold.folding.scope import Scope
from bnfold.model import catalog
from bnfold.model.graph import Ref


def masks_are_named(scope: Scope, ref: Ref) -> bool:
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
            if layer.calls[number].mask is not None or layer.is_operation:
                continue
            if not layer.builtin or layer.class_name not in catalog.MASK_BLIND:
                return False
            if layer.class_name not in catalog.DROPS_MASK:
                waiting.append(Ref(name, number))
    return True
