"""Some channels of a layer, for a sentence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FIRST_CHANNELS = 5


@dataclass(frozen=True)
class Channels:
    """Which channels something concerns: `count` of `total`, the `first` few by index."""

    count: int
    total: int
    first: tuple[int, ...]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> "Channels":
        """The channels where a mask, (channels,), is true."""
        indices = np.flatnonzero(mask)
        return cls(len(indices), len(mask), tuple(int(i) for i in indices[:_FIRST_CHANNELS]))

    def __str__(self) -> str:
        """`3 of 64 channels (2, 5, 9)`."""
        first = ", ".join(str(i) for i in self.first)
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} of {self.total} channels ({first}{more})"
