"""Whether a layer reads the model's input, as it is or as layers without weights make it."""

from bnfold.audit.flow import Flow
from bnfold.audit.neighbours import Node, Place
from bnfold.model import catalog


def near_input(place: Place) -> bool:
    """Whether nothing with weights stands between the model's input and a layer."""
    return all(_NEAR.beside(node, place.memo) for node in place.nodes)


def _is_weightless(node: Node) -> bool:
    layer = node.layer
    return node.is_known and (layer.is_operation or layer.class_name in catalog.WEIGHTLESS)


_NEAR = Flow[bool](
    neighbours=Node.sources,
    passes=lambda node: _is_weightless(node) and not node.is_input,
    own=lambda node: node.is_input,
    join=all,
)
