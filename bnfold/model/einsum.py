"""Where the channels of an EinsumDense are: its equation, read.

An equation `input,kernel->output` names the axes of all three by letters, with an ellipsis that may
stand on the left or on the right of the input and the output. The rules are those of
keras/src/layers/core/einsum_dense.py.
"""

import re
from typing import NamedTuple

_PATTERNS = (
    (r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)", "none"),
    (r"\.\.\.([a-zA-Z]+),([a-zA-Z]+)->\.\.\.([a-zA-Z]+)", "left"),
    (r"([a-zA-Z]{2,})\.\.\.,([a-zA-Z]+)->([a-zA-Z]+)\.\.\.", "right"),
)


class Equation(NamedTuple):
    """The letters of the axes of input, kernel and output, and where the ellipsis stands."""

    inputs: str
    kernel: str
    output: str
    ellipsis: str

    def output_letter(self, axis: int, rank: int | None) -> str | None:
        """The letter of an output axis, counted from the end; None where it has none."""
        return self._letter(self.output, axis, rank)

    def input_letter(self, axis: int, rank: int | None) -> str | None:
        """The letter of an input axis, counted from the end; None where it has none."""
        return self._letter(self.inputs, axis, rank)

    def _letter(self, letters: str, axis: int, rank: int | None) -> str | None:
        if self.ellipsis == "right":
            position = axis + rank if rank is not None else len(letters)
        else:
            position = axis + len(letters)
        return letters[position] if 0 <= position < len(letters) else None

    @property
    def channels(self) -> str | None:
        """The letter that the kernel alone brings in, if it is the last axis of the output.

        Elsewhere it may be tokens that are mixed and not channels. None also where there are
        several, as for heads.
        """
        new = [letter for letter in self.output if letter not in self.inputs]
        return new[0] if self.ellipsis != "right" and new == [self.output[-1]] else None

    def trailing(self, rank: int | None) -> int | None:
        """How many axes the output has after the named ones; None where the rank is unknown."""
        if self.ellipsis != "right":
            return 0
        return rank - len(self.output) if rank is not None else None


def parse_equation(text: object) -> Equation | None:
    """The parts of an equation; None when Keras would not take it."""
    for pattern, ellipsis in _PATTERNS:
        match = re.fullmatch(pattern, text) if isinstance(text, str) else None
        if match:
            return Equation(match[1], match[2], match[3], ellipsis)
    return None
