"""Whether a layer reads the model's input, as it is or as untrained layers make it.

A number that never changes in the data, as the border of an image, stays constant wherever a layer
moves, crops, pools, rescales or encodes it: nothing was learnt in between that could have died.
"""

from bnfold.audit.flow import Flow
from bnfold.audit.neighbours import Node, Place
from bnfold.model import layers


def near_input(place: Place) -> bool:
    """Whether nothing that is trained stands between the model's input and a layer."""
    return all(_NEAR.beside(node, place.memo) for node in place.nodes)


def _is_untrained(node: Node) -> bool:
    layer = node.layer
    return node.is_known and (layer.is_operation or not layers.facts(layer).trained)


_NEAR = Flow[bool](
    neighbours=Node.sources,
    passes=lambda node: _is_untrained(node) and not node.is_input,
    own=lambda node: node.is_input,
    join=all,
)


def is_first(place: Place) -> bool:
    """Whether no BatchNormalization stands upstream of a layer, as far as all there is known.

    What goes into it follows from the data and from weights, and from no statistics.
    """
    return all(_BEFORE_ALL.beside(node, place.memo) for node in place.nodes)


_BEFORE_ALL = Flow[bool](
    neighbours=Node.sources,
    passes=lambda node: node.is_known and not node.is_input and not _is_batchnorm(node),
    own=lambda node: node.is_input,
    join=all,
)


def _is_batchnorm(node: Node) -> bool:
    return node.layer.class_name in layers.BATCHNORM_CLASSES
