"""What models compute, by value and then by kind of samples, and how far it is from a reference."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from bnfold.running.arrays import Array
from bnfold.verification.tolerance import Axes, Errors, Reference, Truth, errors, pooled


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


def by_value(values: Iterable[Value], rows: Sequence[Sequence[Array]]) -> Arrays:
    """What a runtime puts out for each kind of samples, under the values that it is.

    A runtime may put out the first of the values only.
    """
    columns = zip(*rows, strict=True)
    return {value: list(column) for value, column in zip(values, columns, strict=False)}


def table(exact: Arrays, found: Arrays, where: Masks | None = None) -> Table:
    """How far what was found is from what is exact, where that can be compared."""
    return {
        value: [
            errors(one, other, where=mask, axes=value.axes)
            for one, other, mask in zip(
                exact[value],
                column,
                [None] * len(column) if where is None else where[value],
                strict=True,
            )
        ]
        for value, column in found.items()
    }


def movement(exact: Arrays, perturbed: Generator[list[list[Array]]]) -> Generator[Table]:
    """How far all values move each time that weights are perturbed."""
    with closing(perturbed):
        for rows in perturbed:
            yield table(exact, by_value(exact, rows))


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
