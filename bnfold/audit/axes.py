"""On which axis a tensor has its channels, by the layers that made it."""

from collections.abc import Sequence
from typing import NamedTuple

from bnfold.audit.flow import Flow, Memo
from bnfold.audit.neighbours import input_shape
from bnfold.model import layers
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.program import Call


def normalized_axis(batchnorm: BatchNorm, call: Call) -> int | None:
    """The axis that a call normalizes, counted from the end; None where that is not known."""
    axis, shape = batchnorm.axis, input_shape(call)
    if axis is None or axis < 0:
        return axis
    return None if shape is None else axis - len(shape)


class Producer(NamedTuple):
    """A layer that makes the channels of a tensor, and their axis, counted from the end."""

    call: Call
    axis: int


def producer(call: Call, memo: Memo) -> Producer | None:
    """A layer that produces the channels of a call's input.

    None where a producer is not known, where producers have their channels on different axes, or
    where something between may permute axes.
    """
    return _CHANNELS.beside(call, memo)


def _agreed(found: Sequence[Producer | None]) -> Producer | None:
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len({one.axis for one in known}) != 1:
        return None
    return known[0]


def _makes(call: Call) -> Producer | None:
    axis = _own_axis(call)
    return None if axis is None else Producer(call, axis)


def _keeps_axes(call: Call) -> bool:
    return call.is_known and layers.facts(call.layer).channels == "kept"


def _own_axis(call: Call) -> int | None:
    """The channel axis of what a layer makes of its own weights."""
    return layers.channel_axis(call.layer) if call.is_known else None


_CHANNELS = Flow[Producer](
    neighbours=Call.producers,
    passes=lambda call: _own_axis(call) is None and _keeps_axes(call),
    own=_makes,
    join=_agreed,
)
