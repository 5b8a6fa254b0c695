"""On which axis a tensor has its channels, by the layers that made it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.audit.flow import Flow, Memo
from bnfold.audit.neighbours import Node
from bnfold.model import layers
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Layer


def normalized_axis(batchnorm: BatchNorm, node: Node) -> int | None:
    """The axis that a call normalizes, counted from the end; None where that is not known."""
    axis, shape = batchnorm.axis, node.input_shape()
    if axis is None or axis < 0:
        return axis
    return None if shape is None else axis - len(shape)


@dataclass(frozen=True)
class Producer:
    """A layer that makes the channels of a tensor, and their axis, counted from the end."""

    node: Node
    axis: int


def producer(node: Node, memo: Memo) -> Producer | None:
    """A layer whose channels a call reads.

    None where one of them is not known, where they have their channels on different axes, or where
    there is something on the way that may move axes.
    """
    return _CHANNELS.beside(node, memo)


def _agreed(found: Sequence[Producer | None]) -> Producer | None:
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len({one.axis for one in known}) != 1:
        return None
    return known[0]


def _makes(node: Node) -> Producer | None:
    axis = _own_axis(node)
    return None if axis is None else Producer(node, axis)


def _keeps_axes(node: Node) -> bool:
    return node.is_known and layers.facts(node.layer).channels == "kept"


def _own_axis(node: Node) -> int | None:
    """The channel axis of what a layer makes of its own weights."""
    layer = node.layer
    if not node.is_known:
        return None
    if layer.class_name == "EinsumDense":
        return -1 if einsum_channels(layer) is not None else None
    channels = layers.facts(layer).channels
    return channels.of(layer) if isinstance(channels, layers.ChannelAxis) else None


def einsum_channels(layer: Layer) -> str | None:
    """The letter of an EinsumDense that its kernel alone brings in, if that is its last axis.

    Elsewhere it may be tokens that are mixed and not channels. None also where there are several,
    as for heads.
    """
    equation = parse_equation(layer.config.get("equation"))
    if equation is None or equation.ellipsis == "right":
        return None
    new = [letter for letter in equation.output if letter not in equation.inputs]
    return new[0] if new == [equation.output[-1]] else None


_CHANNELS = Flow[Producer](
    neighbours=Node.sources,
    passes=lambda node: _own_axis(node) is None and _keeps_axes(node),
    own=_makes,
    join=_agreed,
)
