"""Whether a layer reads the model's input, as it is or as untrained layers make it.

A feature that is constant in the data, such as the border of an image, stays constant through
layers that rearrange, crop, pool, rescale or encode it. No filter in between can have died.
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
    """Whether no BatchNormalization is upstream of a layer, and everything upstream is known.

    Then its input depends on the data and on weights, but on no moving statistics.
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
