"""What models compute, by value and then by kind of samples, and how far it is from a reference."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from bnfold.running.arrays import Array
from bnfold.verification.tolerance import (
    Axes,
    Errors,
    Reference,
    Truth,
    agrees,
    errors,
    not_finite,
    pooled,
)


@dataclass(frozen=True, eq=False)
class Value:
    """A value at which two models are compared: an output, or one inside.

    Attributes:
        name: of the output, or of the layer that makes it.
        is_output: whether it is an output.
        tapped: the final activation before which an output is read; None for none.
        axes: those that hold the channels, beside axis 1 and the last one.
        tensor: the tensor of the original's flat graph, where there is one.
    """

    name: str
    is_output: bool
    tapped: str | None = None
    axes: Axes = ()
    tensor: Any = None


Arrays = dict[Value, list[Array]]
Masks = dict[Value, list[Array | None]]
"""Where arrays can be compared, like `Arrays`; None for those that hold no numbers."""
Table = dict[Value, list[Errors]]
References = dict[Value, list[Reference]]


def table(exact: Arrays, found: Arrays, where: Masks | None = None) -> Table:
    """How far what was found is from what is exact, where that can be compared."""
    return {
        value: [
            errors(one, other, where=mask, axes=value.axes)
            for one, other, mask in zip(
                exact[value], column, _masks(value, column, where), strict=True
            )
        ]
        for value, column in found.items()
    }


def movement(exact: Arrays, perturbed: Generator[Arrays]) -> Generator[Table]:
    """How far all values move each time that weights are perturbed."""
    with closing(perturbed):
        for found in perturbed:
            moved = table(exact, found)
            del found  # or these values would be there beside the next
            yield moved


def problems(
    exact: Arrays,
    found: Arrays,
    *,
    forgive_overflow: bool,
    where: Masks | None = None,
    names: tuple[str, str] = ("the original", "the folded model"),
) -> dict[Value, str]:
    """What is wrong with numbers that are not finite; `names` are those of the two models."""
    every = (
        (value, not_finite(one, two, names, forgive_overflow=forgive_overflow, where=mask))
        for value, column in exact.items()
        for one, two, mask in zip(column, found[value], _masks(value, column, where), strict=True)
    )
    return {value: problem for value, problem in every if problem is not None}


def _masks(value: Value, column: Sequence[Array], where: Masks | None) -> Sequence[Array | None]:
    return [None] * len(column) if where is None else where[value]


def references(
    exact: Arrays, units: Sequence[float], original: Sequence[Table], folded: Sequence[Table]
) -> References:
    """What is compared with. `units` are those of the values, in their order.

    `original` and `folded` tell how far the values of each model moved with its weights, each time
    that these were perturbed.
    """
    found = {}
    for (value, column), unit in zip(exact.items(), units, strict=True):
        truths = [Truth(one, value.axes) for one in column]
        mine, theirs = (
            pooled(truths, [one[value] for one in tables]) for tables in (original, folded)
        )
        found[value] = [
            Reference(truth, unit, own.largest, other.largest, own.share or 0.0)
            for truth, own, other in zip(truths, mine, theirs, strict=True)
        ]
    return found


def exact_of(references: References) -> Arrays:
    """The values that are compared with."""
    return {value: [one.value for one in column] for value, column in references.items()}


def all_agree(
    expected: References, found: Arrays, allowed: float, where: Masks | None = None
) -> bool:
    """Whether an evaluation is one of these values at all, as `agrees` tells of each."""
    return expected.keys() == found.keys() and all(
        agrees(one, other, allowed, where=mask)
        for value, column in expected.items()
        for one, other, mask in zip(
            column, found[value], _masks(value, found[value], where), strict=True
        )
    )
