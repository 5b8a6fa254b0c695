"""Whether a layer reads the model's input, as it is or as untrained layers make it.

A number that never changes in the data, as the border of an image, stays constant wherever a layer
moves, crops, pools, rescales or encodes it: nothing was learnt in between that could have died.
"""

from bnfold.audit.flow import Flow
from bnfold.audit.neighbours import Place, is_model_input
from bnfold.model import layers
from bnfold.model.program import Call


def near_input(place: Place) -> bool:
    """Whether nothing that is trained stands between the model's input and a layer."""
    return all(_NEAR.beside(call, place.memo) for call in place.calls)


def _is_untrained(call: Call) -> bool:
    layer = call.layer
    return call.is_known and (layer.is_operation or not layers.facts(layer).trained)


_NEAR = Flow[bool](
    neighbours=Call.producers,
    passes=lambda call: _is_untrained(call) and not is_model_input(call),
    own=is_model_input,
    join=all,
)


def is_first(place: Place) -> bool:
    """Whether no BatchNormalization stands upstream of a layer, as far as all there is known.

    What goes into it follows from the data and from weights, and from no statistics.
    """
    return all(_BEFORE_ALL.beside(call, place.memo) for call in place.calls)


_BEFORE_ALL = Flow[bool](
    neighbours=Call.producers,
    passes=lambda call: call.is_known and not is_model_input(call) and not _is_batchnorm(call),
    own=is_model_input,
    join=all,
)


def _is_batchnorm(call: Call) -> bool:
    return call.layer.class_name in layers.BATCHNORM_CLASSES
