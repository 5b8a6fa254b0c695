"""A BatchNormalization where it stands, and what is known of the calls around it.

A layer in a class that is not Keras' own has no known neighbours, because that class may use it
freely.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bnfold.model.inbound_nodes import is_keras3
from bnfold.model.modes import modes_of
from bnfold.model.program import Call, Region
from bnfold.model.shape_rules import Shape
from bnfold.model.training import is_off


def is_model_input(call: Call) -> bool:
    """Whether a call is an input of the whole model."""
    return call.layer.class_name == "InputLayer" and call.is_known


def input_shape(call: Call) -> Shape | None:
    """The shape of a call's first input, batch included."""
    return call.reads[0].shape if call.reads else None


def _is_sum(call: Call) -> bool:
    """Whether it adds several tensors: the layer Add, or that operation of Keras 3."""
    is_add = call.is_known and call.layer.class_name == "Add"
    return is_add and any(read != call.reads[0] for read in call.reads)


@dataclass(frozen=True, eq=False)
class Place:
    """A BatchNormalization, or the wrapper it is in, where it stands.

    `memo` is what was found out about the whole model, shared by all places in it.
    """

    region: Region
    name: str
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Its calls, as its own graph counts them."""
        return self.region.calls_of(self.name)

    @property
    def count(self) -> int:
        """How often it is called in one call of the whole model."""
        return math.prod(map(len, self._with_callers()))

    @property
    def feeds_only_sums(self) -> bool:
        """Whether every consumer of its output adds other tensors to it."""
        found = [use for call in self.calls for use in call.uses()]
        return bool(found) and all(use is not None and _is_sum(use) for use in found)

    @property
    def stands_elsewhere(self) -> bool:
        """Whether the same layer object is in several places of the model."""
        return any(self.region.repeats(calls[0].outer) for calls in self._with_callers() if calls)

    @property
    def updates_per_step(self) -> int | None:
        """How often a training step updates the statistics at most; None where that is not known.

        Keras 3 calls what is in a TimeDistributed once for each step of a static time axis (2.13
        and 2.15 once in all).
        """
        updates = 1
        for calls in self._with_callers():
            updates *= sum(not stays_out_of_training(call) for call in calls)
            first = calls[0]
            if first.wrappers and not _is_keras2(first):
                axes = (input_shape(first) or ())[1 : 1 + first.wrappers]
                if len(axes) < first.wrappers or None in axes:
                    return None
                updates *= math.prod(size for size in axes if size is not None)
        return updates

    def _with_callers(self) -> Iterator[tuple[Call, ...]]:
        """Its calls, then those of each nested model around it."""
        yield self.calls
        region: Region | None = self.region
        while region is not None and region.parent is not None:
            yield region.callers
            region = region.parent


def stays_out_of_training(call: Call) -> bool:
    """Whether a call is in inference mode also when the model is trained.

    Keras 2 obeys the training=False of a call. In Keras 3 the training=True that `fit` passes down
    overrides it (measured with 3.15, `operation_fn` of functional.py), and calls of Dropout have a
    training=False in the file by default.
    """
    node = call.written.node
    return is_off(call.written.training) and node is not None and not is_keras3(node)


def _is_keras2(call: Call) -> bool:
    """Whether a call is of Keras 2; those of a Sequential leave that to their graph."""
    node = call.written.node
    return modes_of(call.region).of_keras2 if node is None else not is_keras3(node)
