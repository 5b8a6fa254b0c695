"""What a rule is by which an affine map crosses a layer, and the conditions that many share.

Backward, f(x) is followed by the map A, and the rule finds a map B with A(f(x)) = f(B(x)); for a
layer that reads several tensors one map for each, and where there is a choice several answers.
Forward, f is applied to A(x), and the rule finds B with f(A(x)) = B(f(x)).

A refusal is the predicate of a sentence about the layer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.folding.affine import Affine, Array, channel_count
from bnfold.folding.obstacle import NO_TRAINING, OTHER_SIDE, Obstacle
from bnfold.folding.site import Site
from bnfold.model.graph import Layer

Maps = tuple[Affine, ...]
"""One map for each tensor that a layer reads."""

Backward = Callable[[Site, Affine], Iterable[Maps] | str]
Forward = Callable[[Site, Sequence[Affine]], Affine | str]


@dataclass(frozen=True)
class Rule:
    """How a map crosses a layer from its output to its inputs, and the other way."""

    backward: Backward
    forward: Forward


Check = Callable[[Site, Affine], str | None]
Move = Callable[[Site, Affine], Affine | str]


def _stay(site: Site, affine: Affine) -> Affine:
    return affine


def single(*checks: Check, to_input: Move = _stay, to_output: Move = _stay) -> Rule:
    """A layer of one input: the map moves as its tensor does, if the checks find nothing."""

    def moved(site: Site, affine: Affine, move: Move) -> Affine | str:
        if len(site.inputs) != 1:
            return f"reads {len(site.inputs)} tensors"
        problems = (check(site, affine) for check in checks)
        problem = next((found for found in problems if found is not None), None)
        return move(site, affine) if problem is None else problem

    def backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
        found = moved(site, affine, to_input)
        return found if isinstance(found, str) else [(found,)]

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        return moved(site, affines[0], to_output)

    return Rule(backward, forward)


def not_in_training(site: Site, affine: Affine) -> str | None:
    """Wrong if the layer drops or adds something at random."""
    return Obstacle("is called with training=True", NO_TRAINING) if site.training else None


def keeps_order(site: Site, affine: Affine) -> str | None:
    """Wrong if a map turns the largest number into the smallest: max(s x) is not s max(x)."""
    negative = affine.scale < 0
    if not negative.any():
        return None
    count = channel_count(affine, negative)
    return Obstacle(
        f"can be crossed by positive scales only, and {count} have a negative one", OTHER_SIDE
    )


def no_shift(site: Site, affine: Affine) -> str | None:
    """Wrong if 0 does not stay 0."""
    if not affine.has_shift:
        return None
    count = channel_count(affine, affine.shift)
    return Obstacle(f"cannot be crossed by a shift, and {count} have one", OTHER_SIDE)


def _space(site: Site, rank: int) -> frozenset[int]:
    """The spatial axes of a tensor of this rank, counted from the end."""
    count = rank - 2
    last = -1 if site.channels_first else -2
    return frozenset(range(last, last - count, -1))


def constant_in_space(site: Site, affine: Affine) -> str | None:
    """Wrong if the map differs between places that the layer mixes or moves."""
    shape = site.inputs[0]
    if site.layer.is_operation and shape is None:
        return "reads a tensor of unknown shape"
    rank = len(shape or ()) if site.layer.is_operation else rank_of_class(site.layer)
    if affine.varies_on & _space(site, rank):
        return "mixes what is normalized along a spatial axis"
    return None


def rank_of_class(layer: Layer) -> int:
    """The rank that a class's name tells; what works on images without saying so has four axes."""
    name = layer.class_name
    return int(name[-2]) + 2 if name[-2:] in ("1D", "2D", "3D") else 4


def linear(constants: Callable[[Site], tuple[Array, Array] | None]) -> Rule:
    """A layer that computes c * x + d, which is an affine map of its own.

    Backward s' = s, t' = (s d + t - d) / c; forward s' = s, t' = c t + d - s d. Wrong if a c is 0.
    """

    def to_input(site: Site, affine: Affine) -> Affine | str:
        found = constants(site)
        if found is None:
            return _UNKNOWN
        c, d = found
        with np.errstate(over="ignore", invalid="ignore"):
            return Affine(affine.scale, (affine.scale * d + affine.shift - d) / c)

    def to_output(site: Site, affine: Affine) -> Affine | str:
        found = constants(site)
        if found is None:
            return _UNKNOWN
        c, d = found
        return Affine(affine.scale, c * affine.shift + d - affine.scale * d)

    return single(to_input=to_input, to_output=to_output)


_UNKNOWN = "multiplies with zero, or computes with what the file does not tell"
