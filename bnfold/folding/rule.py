"""What a rule is, what it is asked, and the conditions that many rules share.

A rule says how a map crosses a layer, or how the layer's weights absorb it. It raises a `Refusal`,
with the predicate of a sentence about the layer, where that would not be exact.

Backward, f(x) is followed by the map A, and the rule finds a map B with A(f(x)) = f(B(x)); for a
layer that reads several tensors one map for each, and where there is a choice several answers.
Forward, f is applied to A(x), and the rule finds B with f(A(x)) = B(f(x)).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from bnfold.folding.affine import MOST_NUMBERS, Affine, Array, channel_count
from bnfold.folding.sentences import BEFORE_ACTIVATION, NO_TRAINING, OTHER_SIDE, OTHER_VARIABLES
from bnfold.folding.weights import WeightEdit
from bnfold.model import layers
from bnfold.model.graph import Layer, Weight
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape


@dataclass(frozen=True, eq=False)
class Site:
    """One call of a layer, seen from inside its TimeDistributed wrappers.

    Attributes:
        layer: the layer.
        inputs: the shape of each tensor in the first argument, None where it is unknown.
        output: the shape of what comes out.
        training: whether the call, one around it, or an earlier one may run the layer in training
            mode.
        masked: whether what the layer computes may depend on masks, and it may be given one.
        operands: what an operation is given by position, None in the place of each tensor.
    """

    layer: Layer
    inputs: tuple[Shape | None, ...]
    output: Shape | None
    training: bool = False
    masked: bool = False
    operands: tuple[Any, ...] = ()

    def setting(self, name: str, default: Any = None) -> Any:
        """What the layer's config says."""
        return self.layer.config.get(name, default)

    @property
    def channels_first(self) -> bool:
        """Whether the layer takes axis 1 for its channels, before the spatial axes."""
        return bool(self.setting("data_format") == "channels_first")

    @property
    def rank(self) -> int | None:
        """How many axes the output has."""
        return None if self.output is None else len(self.output)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """The layer's variables by slot. Raises Refusal where they are not those of its class."""
        found = layers.weights(self.layer)
        if found is None:
            raise Refusal(OTHER_VARIABLES)
        return found


Maps = tuple[Affine, ...]
"""One map for each tensor that a layer reads."""

Backward = Callable[[Site, Affine], Iterable[Maps]]
Forward = Callable[[Site, Sequence[Affine]], Affine]
Absorb = Callable[[Site, Affine], WeightEdit]


class Rule(NamedTuple):
    """What one class of layers does with a map, in both directions; None where it cannot.

    Attributes:
        backward: from a map of its output, the maps of its inputs that do the same.
        forward: from the maps of its inputs, the map of its output.
        absorb_after: what a map of its output does to its weights.
        absorb_before: what a map of its input does to its weights.
    """

    backward: Backward | None = None
    forward: Forward | None = None
    absorb_after: Absorb | None = None
    absorb_before: Absorb | None = None


Check = Callable[[Site, Affine], None]
"""A condition: raises Refusal where it does not hold, which is where a crossing would be wrong."""
Move = Callable[[Site, Affine], Affine]


def _stay(site: Site, affine: Affine) -> Affine:
    return affine


def single(*checks: Check, to_input: Move = _stay, to_output: Move = _stay) -> Rule:
    """A layer of one input: the map moves as its tensor does, if the checks allow it."""

    def crossed(site: Site, affine: Affine, move: Move) -> Affine:
        if len(site.inputs) != 1:
            raise Refusal(f"reads {len(site.inputs)} tensors")
        for check in checks:
            check(site, affine)
        return move(site, affine)

    return Rule(
        backward=lambda site, affine: [(crossed(site, affine, to_input),)],
        forward=lambda site, affines: crossed(site, affines[0], to_output),
    )


def affine_layer(constants: Callable[[Site], tuple[Array, Array] | None]) -> Rule:
    """A layer that computes c * x + d, which is an affine map of its own.

    Backward s' = s, t' = (s d + t - d) / c; forward s' = s, t' = c t + d - s d. Wrong if a c is 0.
    """

    def known(site: Site) -> tuple[Array, Array]:
        found = constants(site)
        if found is None:
            raise Refusal("multiplies with zero, or computes with what the file does not tell")
        return found

    def to_input(site: Site, affine: Affine) -> Affine:
        c, d = known(site)
        with np.errstate(over="ignore", invalid="ignore"):
            return Affine(affine.scale, (affine.scale * d + affine.shift - d) / c)

    def to_output(site: Site, affine: Affine) -> Affine:
        c, d = known(site)
        return Affine(affine.scale, c * affine.shift + d - affine.scale * d)

    return single(to_input=to_input, to_output=to_output)


# --- conditions ----------------------------------------------------------------------------------


def not_in_training(site: Site, affine: Affine) -> None:
    """Wrong if the layer drops or adds something at random."""
    if site.training:
        raise Refusal("is called with training=True", NO_TRAINING)


def keeps_order(site: Site, affine: Affine) -> None:
    """Wrong if a map turns the largest number into the smallest: max(s x) is not s max(x)."""
    negative = affine.scale < 0
    if negative.any():
        count = channel_count(affine, negative)
        raise Refusal(
            f"can be crossed by positive scales only, and {count} have a negative one", OTHER_SIDE
        )


def no_shift(site: Site, affine: Affine) -> None:
    """Wrong if 0 does not stay 0."""
    if affine.has_shift:
        count = channel_count(affine, affine.shift)
        raise Refusal(f"cannot be crossed by a shift, and {count} have one", OTHER_SIDE)


def no_activation(site: Site) -> None:
    """Wrong if the layer applies a function between its weights and the map."""
    activation = site.setting("activation")
    if activation not in (None, "linear"):  # a dict can be anybody's function of that name
        applied = activation if isinstance(activation, str) else "an activation"
        raise Refusal(f"applies {applied}", BEFORE_ACTIVATION)


def check_size(sizes: Iterable[int]) -> None:
    """Wrong if a map would take more memory than any weights that could absorb it."""
    if math.prod(sizes) > MOST_NUMBERS:
        raise Refusal(f"would need a scale and a shift of more than {MOST_NUMBERS} numbers")


def constant_in_space(site: Site, affine: Affine) -> None:
    """Wrong if the map differs between places that the layer mixes or moves."""
    shape = site.inputs[0]
    if site.layer.is_operation and shape is None:
        raise Refusal("reads a tensor of unknown shape")
    rank = len(shape or ()) if site.layer.is_operation else rank_of_class(site.layer)
    last, count = -1 if site.channels_first else -2, rank - 2
    if affine.varies_on & frozenset(range(last, last - count, -1)):
        raise Refusal("mixes what is normalized along a spatial axis")


def rank_of_class(layer: Layer) -> int:
    """The rank that a class's name tells; what works on images without saying so has four axes."""
    name = layer.class_name
    return int(name[-2]) + 2 if name[-2:] in ("1D", "2D", "3D") else 4


def each_rank(*kinds: str) -> list[str]:
    """The classes for one, two and three spatial axes."""
    return [f"{kind}{rank}D" for kind in kinds for rank in (1, 2, 3)]


def check_bias_axis(site: Site, edit: WeightEdit) -> None:
    """Wrong if Keras adds the layer's old or new bias along another axis than its own.

    On TensorFlow, `keras.ops.add` takes an array with one axis longer than 1 for a bias on the last
    axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py).
    """
    for slot, change in edit.biases.items():
        if change.appended is None:
            continue
        old = [site.weights[slot].shape] if slot in site.weights else []
        for shape in (change.shape, *old):
            if is_misplaced((*shape, *(1,) * change.appended), site.output):
                raise Refusal(
                    "cannot absorb it: TensorFlow adds a bias along the width when the output is, "
                    "or may be, as wide as it has channels"
                )


def is_misplaced(bias: tuple[int, ...], output: Shape | None) -> bool:
    """Whether Keras adds an array of this shape along another axis than numpy would, or may."""
    long = [axis - len(bias) for axis, size in enumerate(bias) if size > 1]
    if len(long) != 1 or long[0] == -1:
        return False
    if output is None:
        return True
    rivals = {output[-1]} if long[0] % len(output) == 1 else {output[-1], output[1]}
    return bool(rivals & {bias[long[0]], None})
