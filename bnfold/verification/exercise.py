"""Whether the samples exercise every fold: both sides of every breakpoint on its path.

The map of a BatchNormalization is propagated along the graph, up to layers with weights that absorb
it. Where it is propagated across a layer with breakpoints, or was by mistake, the two models read
different numbers there, and only samples on both sides of each breakpoint show whether that was
right. Where a layer has the same settings in both models, and they read the same numbers there,
nothing was propagated across it, and it says the same about both whatever the samples reach. The
same holds where only the weights before a layer's own activation changed, and what comes out is the
same.

What was propagated across custom code cannot be exercised at all. A layer whose settings changed is
exercised in both models, wherever it stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.running import keras_runner, samples
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet
from bnfold.verification.breakpoints import Watched
from bnfold.verification.case import Case, Compared
from bnfold.verification.pairing import Crossing

_TIMES = (8.0, 64.0, 512.0, 4096.0, 1 / 8, 1 / 64)
"""How many times as large, in turn, the samples are that are drawn to reach a breakpoint."""

_Side = tuple[int, int, int, int]
"""A side of a breakpoint: the crossing, the model (0 for the original), the breakpoint, and 0 for
below or 1 for above."""
_Seen = dict[_Side, Array]
"""Whether a side was seen; by channel where every channel must have seen it."""


@dataclass(frozen=True)
class Gap:
    """A crossing with breakpoints of which no sample saw one side, and a sentence on it."""

    crossing: Crossing
    text: str


def gaps(case: Compared, crossings: Sequence[Crossing]) -> list[Gap]:
    """What the samples of a case did not reach."""
    if not crossings:
        return []
    seen = _Watch(case, crossings).look(case.sets)
    found = []
    for number, crossing in enumerate(crossings):
        missing = [key for key, there in seen.items() if key[0] == number and not there.all()]
        if crossing.is_opaque:
            found.append(Gap(crossing, _opaque(crossing)))
        elif missing:
            found.append(Gap(crossing, _sentence(crossing, missing)))
    return found


def further(case: Case, crossings: Sequence[Crossing]) -> Case:
    """The case with more samples, of numbers that reach breakpoints which no sample reached yet."""
    watch = _Watch(case, crossings)
    seen = watch.look(case.sets)
    more: list[SampleSet] = []
    for times in _TIMES:
        for drawn in samples.enlarged(*case.specs, times=times):
            if all(one.all() for one in seen.values()):
                break
            known = watch.look([drawn])
            if any(np.any(there & ~seen[key]) for key, there in known.items()):
                seen = {key: there | known[key] for key, there in seen.items()}
                more.append(drawn)
    return replace(case, sets=[*case.sets, *more])


class _Watch:
    """Both models with what they read and put out at the crossings."""

    def __init__(self, case: Compared, crossings: Sequence[Crossing]) -> None:
        self._models: list[tuple[int, LoadedModel, list[tuple[int, Watched]]]] = []
        for model, loaded in enumerate((case.original, case.folded)):
            every = [(at, _watched(one, model)) for at, one in enumerate(crossings)]
            some = [(at, one) for at, one in every if one is not None and one.breakpoints]
            if some:
                shown = keras_runner.showing(loaded, [one.tensor for _, one in some])
                self._models.append((model, shown, some))
        self._crossings = crossings

    def look(self, sets: Sequence[SampleSet]) -> _Seen:
        """Which sides these samples reach; none where a model cannot be run on them."""
        seen: _Seen = {
            (at, model, number, side): np.zeros((), bool)
            for model, _, watched in self._models
            for at, one in watched
            for number in range(len(one.breakpoints))
            for side in (0, 1)
        }
        for model, shown, watched in self._models:
            for values in _evaluated(shown, sets):
                for (at, one), value in zip(watched, values, strict=True):
                    known = value[np.isfinite(value).reshape(len(value), -1).all(1)]
                    for number, point in enumerate(one.breakpoints):
                        axis = self._crossings[at].channels_of(point, known.ndim)
                        for side, there in enumerate(point.sides(known, axis)):
                            key = at, model, number, side
                            seen[key] = seen[key] | there
        return seen


def _watched(crossing: Crossing, model: int) -> Watched | None:
    return crossing.folded if model else crossing.original


def _evaluated(loaded: LoadedModel, sets: Sequence[SampleSet]) -> Iterator[list[Array]]:
    for one in sets:
        with contextlib.suppress(CannotRunError):
            yield from keras_runner.evaluate(loaded, [one], training=False)


def _opaque(crossing: Crossing) -> str:
    name = next(one.name for one in (crossing.original, crossing.folded) if one is not None)
    return f"layer {name!r} was not exercised: the breakpoints of its function are unknown"


def _sentence(crossing: Crossing, missing: Sequence[_Side]) -> str:
    """Which layer was not exercised, and what the samples did not reach."""
    parts, name = [], ""
    for _, model, number, side in missing:
        watched = _watched(crossing, model)
        if watched is not None:
            name = name or watched.name
            parts.append(f"{'above' if side else 'below'} {watched.breakpoints[number].text}")
    reached = " or ".join(dict.fromkeys(parts))
    return f"layer {name!r} was not exercised: no sample is {reached} there"
