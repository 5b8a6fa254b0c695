"""Channels that a BatchNormalization makes constant, as far as a dtype can tell.

With z for the normalized input, a channel puts out

    y = beta + gamma * z        |gamma * z| <= 100 |gamma|

where gamma is so small, as decay leaves it in a channel that nothing needs any more, a folded
kernel of that channel would be below the smallest normal number of its dtype: it underflows, and
runtimes that flush such numbers to zero drop it whole. That does no harm where rounding removes it
anyway, and then the channel is folded as the constant beta, with a kernel of zeros, which all
runtimes agree on. Rounding removes it in one of two places.

1. In the channel's own sum: 100 |gamma| is not above the rounding of beta. The unfolded layer
   computes beta too.
2. In a consumer. A layer that mixes channels adds it to the layer's other channels, whose rounding
   is far above 100 |gamma|. A layer that keeps channels apart, such as another BatchNormalization,
   may scale it up before that, and a kernel may have hardly any weights but for this channel; where
   it does, the channel is not dead. Neither is one that reaches an output of the model as a normal
   number: what the model makes of eight standard deviations must be below these (as of a gamma of
   1e-39 in float32, of which TensorFlow makes zero without a fold too).

Wrong if a consumer is not known, or if the other channels are dead too, so then it is not taken for
dead.
"""

import math
from typing import NamedTuple

import numpy as np

from bnfold.folding.affine import Affine, Array, from_batchnorm
from bnfold.folding.weights import smallest_of, unit_of
from bnfold.model import layers
from bnfold.model.batchnorm import BatchNorm, as_batchnorm
from bnfold.model.graph import Layer, Weight, finite_number
from bnfold.model.moments import median
from bnfold.model.policy import policy
from bnfold.model.program import Region, Value
from bnfold.model.refusal import Refusal

_FAR = 100.0
"""Standard deviations beyond which nothing needs to be told apart."""
_USUAL = 8.0
"""Standard deviations within which practically all numbers are."""
_MAX_STEPS = 10_000


def without_dead_channels(
    scope: Region, layer: Layer, batchnorm: BatchNorm, affine: Affine
) -> Affine | None:
    """The map of a layer, (channels,), with its dead channels constant; None if none is dead."""
    vectors, epsilon, used = batchnorm.vectors, batchnorm.epsilon, policy(batchnorm.layer)
    if vectors is None or epsilon is None or used is None:
        return None
    mean, variance = vectors["moving_mean"], vectors["moving_variance"]
    scale, shift = (np.broadcast_to(one, mean.shape) for one in (affine.scale, affine.shift))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not small
        gamma, beta = np.abs(scale) * np.sqrt(variance + epsilon), scale * mean + shift
        smallest, unit = smallest_of(used.compute), unit_of(used.compute)
        small = (np.abs(scale) < math.sqrt(smallest)) & (scale != 0)  # others keep their digits
        dead = small & (_FAR * gamma <= unit * np.abs(beta))
    faint = small & ~dead
    if faint.any():
        most, usual = float(gamma[faint].max()), float(median(gamma + np.abs(beta)))
        limits = _Gain(smallest / (_USUAL * most), unit * usual / (_FAR * most))
        if _stays_below(scope, layer, limits, 1 / unit):
            dead |= faint
    if not dead.any():
        return None
    return Affine(np.where(dead, 0.0, scale), np.where(dead, beta, shift))


class _Gain(NamedTuple):
    """How much larger a channel gets: by itself, and beside most others."""

    alone: float
    beside: float

    def times(self, other: "_Gain") -> "_Gain":
        """One after the other."""
        return _Gain(self.alone * other.alone, self.beside * other.beside)


_SAME = _Gain(1.0, 1.0)


def _stays_below(scope: Region, layer: Layer, limits: _Gain, unknown: float) -> bool:
    """Whether nothing makes a channel of a layer larger than it may get.

    `limits` are by itself, at an output of the model, and beside the others, where channels are
    mixed; `unknown` is what another tensor may multiply it with.
    """
    waiting = [(Value(call), _SAME) for call in scope.calls_of(layer.name)]
    largest: dict[Value, _Gain] = {}
    for _ in range(_MAX_STEPS):
        if not waiting:
            return True
        value, gain = waiting.pop()
        before = largest.get(value, _Gain(0.0, 0.0))
        if before.alone >= gain.alone and before.beside >= gain.beside:
            continue
        largest[value] = _Gain(*map(max, before, gain))
        for reader in value.uses():
            if reader is None:
                if gain.alone > limits.alone:
                    return False
                continue
            found = _gain(reader.layer, unknown) if reader.is_known else None
            if found is None or not (after := gain.times(found)).beside <= limits.beside:
                return False
            if not _mixes(reader.layer):
                waiting.append((Value(reader), after))
    return False


def _gain(layer: Layer, unknown: float) -> _Gain | None:
    """How much larger a layer makes a channel at most; None where that is not known."""
    name = layer.class_name
    settings = layers.facts(layer).gain
    if settings is not None:
        factors = [layer.config.get(setting, 1.0) for setting in settings]
        known = [abs(number) for number in map(finite_number, factors) if number is not None]
        largest = max([1.0, *known])
        return _Gain(largest, largest) if len(known) == len(factors) else None
    if layer.is_operation:  # one that multiplies may do so by a constant of any size
        return None
    if name == "Multiply":
        return _Gain(unknown, unknown)
    found = _SAME if name == "Activation" else _gain_of_weights(layer)
    if found is None or _mixes(layer):
        return found
    applied = layer.config.get("activation", "linear")
    steepness = 2.0 if isinstance(applied, str) and applied in _FUNCTIONS else None
    return None if steepness is None else found.times(_Gain(steepness, steepness))


def _mixes(layer: Layer) -> bool:
    """Whether a layer adds up channels."""
    kernels = _kernels(layer)
    return bool(kernels) and [*kernels] != ["depthwise_kernel"]


def _kernels(layer: Layer) -> dict[str, Weight]:
    """The kernels that meet a layer's input, the first one first."""
    return {
        slot: weight
        for slot, weight in (layers.weights(layer) or {}).items()
        if slot.endswith("kernel") and not slot.endswith("recurrent_kernel")
    }


def _gain_of_weights(layer: Layer) -> _Gain | None:
    """That of a layer with weights, at the worst of its outputs."""
    batchnorm = as_batchnorm(layer, ())
    if batchnorm is not None:
        try:
            return _gain_of(from_batchnorm(batchnorm).scale, ())
        except Refusal:
            return None
    output, gain = layers.facts(layer).output, _SAME
    if output is not None and not output.axes:
        return None  # its output channels may be anywhere in the kernel
    kernels = _kernels(layer)
    for slot, kernel in kernels.items():
        axes = output.axes if output is not None and output.kernel == slot else (-1,)
        if slot == "depthwise_kernel":
            axes = ()
        gain = gain.times(_gain_of(kernel.read().astype(np.float64), axes))
    return gain if kernels else None


def _gain_of(weights: Array, outputs: tuple[int, ...]) -> _Gain:
    """That of weights, each output by itself."""
    size = np.moveaxis(np.abs(weights), outputs, range(len(outputs)))
    rows = size.reshape((*size.shape[: len(outputs)], -1))
    places = math.prod(weights.shape[:-2])
    with np.errstate(divide="ignore", invalid="ignore"):
        beside = np.nan_to_num(rows.max(axis=-1) / median(rows), posinf=np.inf)
    if not outputs:  # channels stay apart, at each of the kernel's places
        beside = beside * places
    return _Gain(places * float(rows.max(initial=0.0)), float(beside.max(initial=0.0)))


_FUNCTIONS = frozenset(
    {
        "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu",
        "hard_swish", "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish",
        "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus",
        "softsign", "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "swish", "tanh",
        "tanh_shrink",
    }
)  # fmt: skip
"""Keras' functions, none of which is steeper than 2 around 0; a legacy file names others too."""
