"""Facts that follow from everything upstream or downstream of a call, computed once per call.

Layers share most of what is upstream of them, so a separate walk for each would take quadratic
time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bnfold.model.program import Call

T = TypeVar("T")

Memo = dict[Any, dict[Call, Any]]
"""What is known already, by the flow and the call; for one model."""


@dataclass(frozen=True, eq=False)
class Flow(Generic[T]):
    """A fact about a call that it has by itself, or by the same fact about its neighbours.

    Attributes:
        neighbours: the calls next to one, on the side that matters; None for the outside of the
            model.
        passes: whether the fact about a call is that of its neighbours.
        own: the fact about a call where it is not; None where nothing is known.
        join: the fact that follows from those about the neighbours, each None where nothing is
            known of it, as of one that depends on the call itself in turn.
    """

    neighbours: Callable[[Call], Sequence[Call | None]]
    passes: Callable[[Call], bool]
    own: Callable[[Call], T | None]
    join: Callable[[Sequence[T | None]], T | None]

    def beside(self, call: Call, memo: Memo) -> T | None:
        """What follows from the neighbours of a call, whatever it is itself."""
        known: dict[Call, T | None] = memo.setdefault(self, {})
        near = self.neighbours(call)
        for one in near:
            if one is not None and one not in known:
                self._find(one, known)
        return self._joined(near, known)

    def _joined(self, near: Sequence[Call | None], known: dict[Call, T | None]) -> T | None:
        return self.join([None if one is None else known.get(one) for one in near])

    def _find(self, start: Call, known: dict[Call, T | None]) -> None:
        """Learn the fact about a call, and about all that it depends on."""
        waiting = [start]
        entered: dict[Call, Sequence[Call | None]] = {}
        while waiting:
            call = waiting[-1]
            if call in entered or call in known:
                waiting.pop()
                if call not in known:
                    known[call] = self._joined(entered[call], known)
            elif self.passes(call):
                entered[call] = near = self.neighbours(call)
                waiting += [n for n in near if n is not None and n not in entered]
            else:
                known[call] = self.own(call)
