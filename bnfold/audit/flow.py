"""What follows from all that is before a call, or behind it, found once for each call.

Many layers share what is before them, so a walk for each of them would take the square of their
number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bnfold.audit.neighbours import Node

T = TypeVar("T")

Memo = dict[Any, dict[Node, Any]]
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

    neighbours: Callable[[Node], Sequence[Node | None]]
    passes: Callable[[Node], bool]
    own: Callable[[Node], T | None]
    join: Callable[[Sequence[T | None]], T | None]

    def beside(self, node: Node, memo: Memo) -> T | None:
        """What follows from the neighbours of a call, whatever it is itself."""
        known: dict[Node, T | None] = memo.setdefault(self, {})
        near = self.neighbours(node)
        for one in near:
            if one is not None and one not in known:
                self._find(one, known)
        return self._joined(near, known)

    def _joined(self, near: Sequence[Node | None], known: dict[Node, T | None]) -> T | None:
        return self.join([None if one is None else known.get(one) for one in near])

    def _find(self, start: Node, known: dict[Node, T | None]) -> None:
        """Learn the fact about a call, and about all that it depends on."""
        waiting = [start]
        entered: dict[Node, Sequence[Node | None]] = {}
        while waiting:
            node = waiting[-1]
            if node in entered or node in known:
                waiting.pop()
                if node not in known:
                    known[node] = self._joined(entered[node], known)
            elif self.passes(node):
                entered[node] = near = self.neighbours(node)
                waiting += [n for n in near if n is not None and n not in entered]
            else:
                known[node] = self.own(node)
