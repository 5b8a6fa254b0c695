"""Whether the weights in a file are moving averages of those that training ran with.

With `use_ema` an optimizer keeps an average of every trainable weight, and `fit` ends by replacing
the weights with the averages. The moving statistics are not replaced: they belong to the raw
weights. A file shows that it happened if its weights are equal, bit for bit, to variables of the
optimizer, because no other kind of optimizer variable equals a weight. Vectors of one repeated
number are not compared: they may never have changed, and then equal their average in any case. At
least half of the others must be equal, because a single weight that never changed is equal too.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.audit.flow import Flow
from bnfold.audit.neighbours import Place, is_model_input
from bnfold.folding.plan import Plan
from bnfold.model import layers
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.container.hdf5 import pieces_of
from bnfold.model.graph import Layer, LayerPath, Weight, walk_all
from bnfold.model.optimizer import Averaging, Optimizer
from bnfold.model.program import Call


class Standing(Enum):
    """How the weights in the file relate to the averages of the optimizer."""

    AVERAGES = "averages"
    OTHERS = "others"
    UNKNOWN = "unknown"


class Averages(NamedTuple):
    """The averages that the optimizer of one compiled model keeps, and what the weights are."""

    averaging: Averaging
    standing: Standing


def averages(plan: Plan, optimizers: Mapping[LayerPath, Optimizer]) -> dict[LayerPath, Averages]:
    """The averages that the file's optimizers keep, by the path of the compiled model.

    Optimizers whose averages cannot differ from the weights yet are left out. So are nested models
    whose weights are not their averages: the outer model's optimizer trained them on.
    """
    found = {}
    for path, optimizer in optimizers.items():
        averaging = optimizer.averaging
        steps = optimizer.steps
        if averaging is None or averaging.is_idle or (steps is not None and steps < _DIFFERENT):
            continue
        standing = _standing(plan, path, list(optimizer.variables()))
        if not path or standing is Standing.AVERAGES:
            found[path] = Averages(averaging, standing)
    return found


_DIFFERENT = 2  # in the first step the average is set to the weights


def averages_of(batchnorm: BatchNorm, known: Mapping[LayerPath, Averages]) -> Averages | None:
    """The averages of the innermost compiled model around a layer that keeps any."""
    around = (batchnorm.path[:length] for length in range(len(batchnorm.path) - 1, -1, -1))
    return next((known[path] for path in around if path in known), None)


def follows_training(place: Place | None) -> bool:
    """Whether a layer's input depends on trained weights; True where that is not known."""
    return place is None or any(_TRAINED.beside(call, place.memo) for call in place.calls)


def _has_trained_weights(call: Call) -> bool:
    layer = call.layer
    if not call.is_known:
        return True
    if layer.is_operation or not layers.facts(layer).trained:
        return False
    return _is_trained(layer) and (layer.weights is None or any(_trained(layer)))


_TRAINED = Flow[bool](
    neighbours=Call.producers,
    passes=lambda call: not _has_trained_weights(call) and not is_model_input(call),
    own=lambda call: not is_model_input(call),
    join=any,
)


def _is_trained(layer: Layer) -> bool:
    return layer.config.get("trainable", True) is not False


def _trained(layer: Layer) -> Iterator[Weight]:
    """The variables of a layer that training changes; all, if the file does not tell which."""
    if _is_trained(layer):
        slots = layers.slots(layer)
        weights = layer.weights or ()
        known = slots is not None and len(slots) == len(weights)
        for number, weight in enumerate(weights):
            if not known or slots is None or slots[number].trainable:
                yield weight


def _vectors(plan: Plan, path: LayerPath) -> Iterator[Weight]:
    """The gamma and beta of all layers of a compiled model that are trained."""
    for decision in plan.decisions:
        one = decision.batchnorm
        if one.path[: len(path)] == path and one.trainable:
            yield from (
                (one.weights or {})[name] for name in _LEARNT if name in (one.weights or {})
            )


_LEARNT = ("gamma", "beta")


def _others(plan: Plan, path: LayerPath) -> Iterator[Weight]:
    """The trained weights of all other layers."""
    if plan.program is not None:
        for where, layer in walk_all(plan.program.graph):
            if where[: len(path)] == path and not layers.is_batchnorm(layer):
                yield from _trained(layer)


def _standing(plan: Plan, path: LayerPath, variables: Sequence[Weight]) -> Standing:
    """What the weights of a compiled model are.

    gamma and beta are short and decide alone. Only where no layer has them are kernels compared.
    """
    for weights in (_vectors(plan, path), _others(plan, path)):
        found = list(_verbatim(weights, variables))
        if found:
            return Standing.AVERAGES if 2 * sum(found) >= len(found) else Standing.OTHERS
    return Standing.UNKNOWN


def _verbatim(weights: Iterable[Weight], variables: Sequence[Weight]) -> Iterator[bool]:
    """For each weight that can be compared, whether it is equal to one of the variables."""
    wanted = [one for one in weights if math.prod(one.shape) > 1 and _is_telling(one)]
    kinds = {(weight.shape, weight.dtype) for weight in wanted}
    # By shape, dtype and first piece, so that few kernels have to be read to their end.
    beginnings: dict[Any, list[Weight]] = {}
    for one in variables:
        if (one.shape, one.dtype) in kinds:
            beginnings.setdefault(_beginning(one), []).append(one)
    if beginnings:
        for weight in wanted:
            yield any(_is_same(weight, one) for one in beginnings.get(_beginning(weight), ()))


def _is_telling(weight: Weight) -> bool:
    """Whether its numbers differ from each other; a constant may never have been trained."""
    first = next(_pieces(weight)).flat[0]
    return any(bool(np.any(part != first)) for part in _pieces(weight))


def _beginning(weight: Weight) -> Any:
    return weight.shape, weight.dtype, next(_pieces(weight)).tobytes()


def _is_same(one: Weight, other: Weight) -> bool:
    pairs = zip(_pieces(one), _pieces(other), strict=True)
    return all(first.tobytes() == second.tobytes() for first, second in pairs)


def _pieces(weight: Weight) -> Iterator[NDArray[Any]]:
    """Its numbers, a piece at a time: a kernel may be larger than memory."""
    return (piece for _, piece in pieces_of(weight))
