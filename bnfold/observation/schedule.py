"""In which order statistics can be estimated, and what must be run for it.

A model is a list of steps, each of which reads and writes numbered values. A step runs units, the
BatchNormalization layers, in the order in which it calls them. The input of a unit depends on the
statistics of every unit upstream, so those come first. The level of a unit is the length of the
longest path of units to it. Units of one level do not depend on each other. They share one pass
over the data, in which all their inputs are final.

A unit that is called several times, with one call downstream of another, depends on itself and has
no place in that order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One call: the values that it reads and writes, and the units that it runs, in order."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    units: tuple[int, ...] = ()


def dependences(steps: Sequence[Step], targets: Collection[int]) -> dict[int, set[int]]:
    """The targets that the statistics of each target depend on, directly or not."""
    upstream: dict[int, frozenset[int]] = {}
    direct: dict[int, set[int]] = {target: set() for target in targets}
    for step in steps:
        before = frozenset[int]().union(*(upstream.get(value, frozenset()) for value in step.reads))
        for unit in step.units:
            if unit in direct:
                direct[unit] |= before
                before |= {unit}
        upstream.update(dict.fromkeys(step.writes, before))
    return _closed(direct)


def _closed(direct: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """The transitive closure."""
    found = {unit: set(needs) for unit, needs in direct.items()}
    changed = True
    while changed:
        changed = False
        for needs in found.values():
            size = len(needs)
            needs.update(*(found[need] for need in tuple(needs)))
            changed = changed or len(needs) > size
    return found


def levels(needs: Mapping[int, Collection[int]]) -> dict[int, int]:
    """The level of each unit, from 0; none of them may depend on itself."""
    found: dict[int, int] = {}
    for unit in sorted(needs, key=lambda unit: len(needs[unit])):
        found[unit] = max((found[need] + 1 for need in needs[unit]), default=0)
    return found


class Schedule:
    """What to run, and what to keep, for the units of one level after the other."""

    def __init__(self, steps: Sequence[Step], level_of: Mapping[int, int]) -> None:
        self._steps = steps
        self._level_of = level_of
        self.count = max(level_of.values(), default=-1) + 1

    def units(self, level: int) -> set[int]:
        """The units of a level."""
        return {unit for unit, found in self._level_of.items() if found == level}

    def to_run(self, level: int, values: Collection[int]) -> list[int]:
        """The steps to run, in order, so that the units of a level run, from some values on."""
        return self._leading_to([level], values)[0]

    def all_to_run(self) -> list[int]:
        """The steps that lead to any unit."""
        return self._leading_to(range(self.count), ())[0]

    def is_final(self, number: int, level: int) -> bool:
        """Whether the output of a step no longer changes from this level on."""
        units = self._steps[number].units
        return all(self._level_of[unit] < level for unit in units if unit in self._level_of)

    def to_keep(self, level: int, values: Collection[int]) -> set[int]:
        """Those of some values that later levels start from."""
        return self._leading_to(range(level + 1, self.count), values)[1]

    def _leading_to(
        self, wanted: Iterable[int], values: Collection[int]
    ) -> tuple[list[int], set[int]]:
        """The steps that lead to the units of some levels, and which of the values they read."""
        levels_wanted, have = set(wanted), set(values)
        needed: set[int] = set()
        found = []
        for number in range(len(self._steps) - 1, -1, -1):
            step = self._steps[number]
            missing = not needed.isdisjoint(set(step.writes) - have)
            if missing or any(self._level_of.get(unit) in levels_wanted for unit in step.units):
                found.append(number)
                needed |= set(step.reads)
        return found[::-1], needed & have
