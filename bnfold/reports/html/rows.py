"""The lines of the drawing of a model: which layers stand on one, and which lines it reads.

Every BatchNormalization has a line of its own, and so has every layer that absorbs one. Of what is
left, layers that only pass a tensor on stand on the line of the layer before them, and long runs
share one line.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from bnfold.folding.plan import Blocked, Fold
from bnfold.jobs.inspect import Inspection
from bnfold.model.graph import LayerPath
from bnfold.model.outline import Step

_FOLLOWERS = 5
"""At most so many layers follow the first one on a line."""
LONG_RUN = 6
"""So many lines without a BatchNormalization in a row are drawn as one."""


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        steps: the layers on it, in the order of the data; none for statistics outside the graph.
        reads: the lines, by their place, whose tensors it reads.
        decision: for the first call of a BatchNormalization, what becomes of it.
        number: the BatchNormalization's, from 1 in the order of the lines; it has no decision where
            it is called again.
        takes: the numbers of the BatchNormalizations that the layer absorbs.
        into: the layers that take the BatchNormalization in, with the places of their lines.
        is_run: it stands for a long run of layers.
    """

    steps: tuple[Step, ...]
    reads: tuple[int, ...] = ()
    decision: Fold | Blocked | None = None
    number: int | None = None
    takes: tuple[int, ...] = ()
    into: tuple[tuple[LayerPath, int], ...] = ()
    is_run: bool = False


@dataclass
class _Draft:
    """A line in the making; its layers are places in the outline."""

    places: list[int]
    decision: Fold | Blocked | None = None
    is_special: bool = False
    is_run: bool = False


def rows(model: Inspection) -> tuple[Row, ...]:
    """The lines of a model from top to bottom, with every decision of its plan on one."""
    first: dict[LayerPath, int] = {}
    for place, step in enumerate(model.steps):
        first.setdefault(step.path, place)
    drafts = _merge_followers(list(_drafts(model, first)), model.steps)
    return tuple(_finished(_merge_runs(drafts), model.steps, first))


def _owner(path: LayerPath, first: Mapping[LayerPath, int]) -> int | None:
    """The place of a layer; of one inside a wrapper or a custom layer, that of what is around."""
    around = (path[:length] for length in range(len(path), 0, -1))
    return next((first[one] for one in around if one in first), None)


def _targets(
    decision: Fold | Blocked | None, first: Mapping[LayerPath, int]
) -> dict[LayerPath, int]:
    """The layers that absorb a BatchNormalization, with their places."""
    layers = [one.layer for one in decision.absorbers] if isinstance(decision, Fold) else []
    found = {layer: _owner(layer, first) for layer in layers}
    return {path: place for path, place in found.items() if place is not None}


def _drafts(model: Inspection, first: Mapping[LayerPath, int]) -> Iterator[_Draft]:
    """A line for each step, and for each decision on what is no step of its own."""
    decisions = {one.batchnorm.path: one for one in model.plan.decisions}
    takers = {
        model.steps[place].path
        for fold in model.plan.folds
        for place in _targets(fold, first).values()
    }
    hidden: dict[int | None, list[Fold | Blocked]] = {}
    for path, one in decisions.items():
        if path not in first:
            hidden.setdefault(_owner(path, first), []).append(one)
    for place, step in enumerate(model.steps):
        decision = decisions.get(step.path)
        special = decision is not None or step.path in takers or step.opens
        yield _Draft([place], decision if step.number == 0 else None, is_special=special)
        yield from (_Draft([], other, is_special=True) for other in hidden.pop(place, ()))
    yield from (_Draft([], other, is_special=True) for other in hidden.pop(None, ()))


def _merge_followers(drafts: list[_Draft], steps: tuple[Step, ...]) -> list[_Draft]:
    """Put layers that only pass on what the line above makes on that line."""
    readers = Counter(place for step in steps for place in step.reads)
    merged: list[_Draft] = []
    for draft in drafts:
        above = merged[-1] if merged else None
        if above is not None and _follows(draft, above, steps, readers):
            above.places += draft.places
        else:
            merged.append(draft)
    return merged


def _follows(
    draft: _Draft, above: _Draft, steps: tuple[Step, ...], readers: Mapping[int, int]
) -> bool:
    if draft.is_special or not above.places or len(above.places) > _FOLLOWERS:
        return False
    step, last = steps[draft.places[0]], steps[above.places[-1]]
    if last.opens or last.is_output or step.path[:-1] != last.path[:-1]:
        return False
    return step.reads == (above.places[-1],) and readers[above.places[-1]] == 1


def _merge_runs(drafts: list[_Draft]) -> list[_Draft]:
    """Put long runs of lines without a BatchNormalization on one."""
    merged: list[_Draft] = []
    for special, group in groupby(drafts, key=lambda draft: draft.is_special):
        run = list(group)
        if not special and len(run) >= LONG_RUN:
            run = [_Draft([place for one in run for place in one.places], is_run=True)]
        merged += run
    return merged


def _finished(
    drafts: list[_Draft], steps: tuple[Step, ...], first: Mapping[LayerPath, int]
) -> Iterator[Row]:
    line = {place: number for number, draft in enumerate(drafts) for place in draft.places}
    decided = [draft.decision for draft in drafts if draft.decision is not None]
    numbers = {decision.batchnorm.path: n for n, decision in enumerate(decided, start=1)}
    takes: dict[int, list[int]] = {}
    for decision in decided:
        for target in dict.fromkeys(line[place] for place in _targets(decision, first).values()):
            takes.setdefault(target, []).append(numbers[decision.batchnorm.path])
    for number, draft in enumerate(drafts):
        reads = (line[place] for own in draft.places for place in steps[own].reads)
        into = _targets(draft.decision, first).items()
        yield Row(
            tuple(steps[place] for place in draft.places),
            tuple(one for one in dict.fromkeys(reads) if one != number),
            draft.decision,
            _number(draft, steps, numbers),
            tuple(takes.get(number, ())),
            tuple((path, line[place]) for path, place in into),
            draft.is_run,
        )


def _number(draft: _Draft, steps: tuple[Step, ...], numbers: Mapping[LayerPath, int]) -> int | None:
    path = draft.decision.batchnorm.path if draft.decision else steps[draft.places[0]].path
    return numbers.get(path)
