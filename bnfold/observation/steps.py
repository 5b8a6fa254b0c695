"""Statistics estimated one after the other, so that each layer's input is already corrected.

One pass over the data estimates all layers of a level (`bnfold.observation.schedule`), whose
inputs are final: every BatchNormalization upstream of them uses its new statistics. So the result
is that of one pass per layer, in order. Final values that later passes need stay in memory, batch
by batch, as long as there is room. Such a batch continues from there; any other starts from the
data again. With room for all of them, every call runs once.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bnfold.model.container.printing import printable
from bnfold.model.graph import LayerPath
from bnfold.model.moments import Observed
from bnfold.observation.observer import Normalization, Observer, called_by, watching
from bnfold.observation.schedule import Schedule, Step, dependences, levels
from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.loading import LoadedModel
from bnfold.running.program import PlacedCall, Program, Values

Settle: TypeAlias = Callable[[LayerPath, Observed], "tuple[Array, Array] | None"]
"""The mean and variance that a layer gets for what was observed; None to leave it as it is."""


@dataclass(frozen=True)
class Batches:
    """The data, batch by batch: how many samples they are, and the arrays of each by its number."""

    sizes: tuple[int, ...]
    take: Callable[[int], tuple[Array, ...]]

    @property
    def samples(self) -> int:
        """How many samples there are in all."""
        return sum(self.sizes)


@dataclass
class Estimates:
    """What was estimated, and at what cost.

    Attributes:
        observed: the input of each layer, by its path, with the layers upstream corrected.
        refused: why a layer has no place in the order, a clause.
        passes: how many times the data went through parts of the model.
        calls: how many calls of layers were made for one batch, on average.
        calls_of_model: how many the model makes for one batch as far as its last layer of these.
    """

    observed: dict[LayerPath, Observed] = field(default_factory=dict)
    refused: dict[LayerPath, str] = field(default_factory=dict)
    passes: int = 0
    calls: float = 0.0
    calls_of_model: int = 0


def estimate(
    loaded: LoadedModel,
    batches: Batches,
    chosen: Mapping[LayerPath, Normalization],
    settle: Settle,
    *,
    memory: int,
    report: Callable[[str, int], None],
) -> Estimates:
    """Estimate the statistics of some layers, upstream ones first, and set them in the model.

    `memory` is how many bytes of values may be kept from one pass to the next. `report` is called
    with what is being done and for how many samples it was. Raises CannotRunError.
    """
    # One object may stand in several places; it has one set of statistics.
    paths: dict[int, list[LayerPath]] = {}
    for path, one in chosen.items():
        paths.setdefault(id(one.layer), []).append(path)
    units = {id(one.layer): one for one in chosen.values()}
    kept = _Kept(memory)
    return _Estimation(Program(loaded), batches, units, paths, kept, settle, report).run()


@dataclass(frozen=True)
class _Estimation:
    """The passes over the data. A unit is the id of a layer, `paths` are the places of each."""

    program: Program
    batches: Batches
    units: dict[int, Normalization]
    paths: Mapping[int, list[LayerPath]]
    kept: _Kept
    settle: Settle
    report: Callable[[str, int], None]
    found: Estimates = field(default_factory=Estimates)

    def run(self) -> Estimates:
        """All passes."""
        schedule = self._schedule()
        self.found.passes = schedule.count
        for level in range(schedule.count):
            units = {unit: self.units[unit] for unit in schedule.units(level)}
            for unit, observed in self._observe(schedule, level, units).items():
                self._conclude(unit, observed)
        self.found.calls /= len(self.batches.sizes)
        return self.found

    def _schedule(self) -> Schedule:
        steps = self._steps()
        needs = dependences(steps, set(self.units))
        for unit in [unit for unit, others in needs.items() if unit in others]:
            self._refuse(unit, "its own output comes back to it")
        steps = [
            Step(one.reads, one.writes, tuple(u for u in one.units if u in self.units))
            for one in steps
        ]
        schedule = Schedule(steps, levels(dependences(steps, set(self.units))))
        self.found.calls_of_model = len(schedule.all_to_run())
        return schedule

    def _refuse(self, unit: int, reason: str) -> None:
        self.units.pop(unit)
        for path in self.paths[unit]:
            self.found.refused[path] = reason

    def _steps(self) -> list[Step]:
        """The calls of the model with the layers that run inside each, as a first batch shows."""
        order, hidden = self._trace()
        calls = self.program.calls
        for number, units in order.items():
            for unit in units:
                reason = _reason_against(calls[number], self.units.get(unit), unit in hidden)
                if reason is not None:
                    self._refuse(unit, reason)
        seen = {unit for units in order.values() for unit in units}
        for unit in [unit for unit in self.units if unit not in seen]:
            self._refuse(unit, "nothing runs it")
        return [
            Step(call.reads, call.writes, tuple(u for u in order.get(n, ()) if u in self.units))
            for n, call in enumerate(calls)
        ]

    def _trace(self) -> tuple[dict[int, list[int]], set[int]]:
        """By call, the units that run inside it, in order of appearance; those that are hidden."""
        order: dict[int, list[int]] = {}
        hidden: set[int] = set()
        current = 0

        def enter(number: int) -> None:
            nonlocal current
            current = number

        def note(layer: Any, *_: Any) -> None:
            inside = order.setdefault(current, [])
            if id(layer) not in inside:
                inside.append(id(layer))

        def hide(layer: Any) -> None:
            hidden.add(id(layer))
            note(layer)

        everything = range(len(self.program.calls))
        start = self.program.start(self.batches.take(0))
        with watching([one.layer for one in self.units.values()], note, hide):
            self.program.run(everything, start, entered=enter)
        return order, hidden

    def _observe(
        self, schedule: Schedule, level: int, units: Mapping[int, Normalization]
    ) -> dict[int, Observed]:
        """One pass over the data, for the layers of one level."""
        observer = Observer({self.paths[unit][0]: one for unit, one in units.items()})
        doing = f"pass {level + 1} of {schedule.count}"
        for number in range(len(self.batches.sizes)):
            values = self.kept.get(number)
            if values is None:
                values = self.program.start(self.batches.take(number))
            calls = schedule.to_run(level, values)
            made = [
                slot
                for n in calls
                if schedule.is_final(n, level)
                for slot in self.program.calls[n].writes
            ]
            keep = schedule.to_keep(level, {*values, *made})
            self.found.calls += len(calls)
            with observer.watching():
                values = self.program.run(
                    calls, values, final=lambda n: schedule.is_final(n, level), keep=keep
                )
            self.kept.put(number, values)
            self.report(doing, self.batches.sizes[number])
        observed = observer.observed(self.batches.samples)
        return {unit: observed[self.paths[unit][0]] for unit in units}

    def _conclude(self, unit: int, observed: Observed) -> None:
        statistics = self.settle(self.paths[unit][0], observed)
        for path in self.paths[unit]:
            self.found.observed[path] = observed
        if statistics is not None:
            layer = self.units[unit].layer
            for variable, numbers in zip(
                (layer.moving_mean, layer.moving_variance), statistics, strict=True
            ):
                _assign(variable, numbers)


def _reason_against(call: PlacedCall, one: Normalization | None, is_hidden: bool) -> str | None:
    """Why the statistics of a layer that this call runs cannot be estimated; None if they can."""
    if one is None:
        return None
    if one.axis is None:
        return "it normalizes several axes at once"
    if is_hidden:
        return "it runs inside a compiled function, where nothing can be seen"
    times = sum(layer is one.layer for _, layer in called_by(call.owner, ()))
    if times == 1:
        return None
    name = printable(str(call.owner.name))
    return f"it is called {times} times inside {name!r}, which can only be run as a whole"


def _assign(variable: Any, numbers: Array) -> None:
    tensorflow = importlib.import_module("tensorflow")
    variable.assign(tensorflow.cast(numbers.astype("float64"), variable.dtype))


class _Kept:
    """The values that batches go on from, within a limit of bytes."""

    def __init__(self, memory: int) -> None:
        self._free = memory
        self._values: dict[int, tuple[Values, int]] = {}

    def get(self, number: int) -> Values | None:
        """What is kept of a batch."""
        return self._values[number][0] if number in self._values else None

    def put(self, number: int, values: Values) -> None:
        """Keep this of a batch in place of what is kept of it, if there is room."""
        size = sum(_bytes(value) for value in values.values())
        _, before = self._values.get(number, ({}, 0))
        if size - before <= self._free:
            self._free -= size - before
            self._values[number] = (values, size)


def _bytes(tensor: Any) -> int:
    """The size of a tensor, with its mask."""
    mask = keras_graph.mask_of(tensor)
    own = int(math.prod(tensor.shape)) * int(getattr(tensor.dtype, "size", 8))
    return own + (0 if mask is None else int(math.prod(mask.shape)))
