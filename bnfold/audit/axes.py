"""On which axis a tensor has its channels, by the layers that made it."""

from bnfold.audit.neighbours import Node, upstream
from bnfold.model import catalog
from bnfold.model.batchnorm import BatchNorm

_KEEPS_AXES = frozenset(
    {*catalog.SAME_SHAPE, *catalog.WINDOWED, *catalog.MERGING, "Concatenate", "Relu", "Relu6"}
)
_ON_THE_LAST_AXIS = catalog.RECURRENT | {"Bidirectional"}


def normalized_axis(batchnorm: BatchNorm, node: Node) -> int | None:
    """The axis that a call normalizes, counted from the end; None where that is not known."""
    axis, shape = batchnorm.axis, node.input_shape()
    if axis is None or axis < 0:
        return axis
    return None if shape is None else axis - len(shape)


def producers(node: Node) -> dict[Node, int]:
    """The layers whose channels a call reads, and the axis of each, counted from the end.

    Empty where one of them is not known, or there is something on the way that may move axes.
    """
    found: dict[Node, int] = {}
    for source in upstream(node, lambda one: _own_axis(one) is None and _keeps_axes(one)):
        axis = None if source is None else _own_axis(source)
        if source is not None and axis is not None:
            found[source] = axis
        elif source is None or not _keeps_axes(source):
            return {}
    return found


def _keeps_axes(node: Node) -> bool:
    return node.is_known and node.layer.class_name in _KEEPS_AXES


def _own_axis(node: Node) -> int | None:
    """The channel axis of what a layer makes of its own weights."""
    layer = node.layer
    known = catalog.facts(layer) if node.is_known else None
    if node.is_known and layer.class_name in _ON_THE_LAST_AXIS:
        return -1
    if known is None or known.output is None:
        return None
    by_setting = known.output.channels == "data_format" and known.rank is not None
    first = by_setting and layer.config.get("data_format") == "channels_first"
    return 1 - known.rank if first and known.rank is not None else -1
