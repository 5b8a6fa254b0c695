"""Inputs to run both models on, from a seeded generator.

Several kinds of float inputs, because each hides something: values around zero hide a wrong shift,
positive values keep a ReLU open on one side only, wide values saturate, and sparse ones show what
zeros (padding) do. Integer inputs stay below `bound`, which is what the layer that reads them
accepts. Where a layer masks steps of an input, one kind has such steps.

All kinds are of numbers near one; where the first layers of a model say what range it is made for,
as Rescaling and Normalization do, the samples are drawn for what comes out of these layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.running.arrays import Array

_SAMPLES = 8
_ELEMENT_BUDGET = 200_000  # input elements per kind: one image of 224 x 224 x 3 takes 150,528
_DEFAULT_INTEGER_BOUND = 10


@dataclass(frozen=True)
class Mask:
    """The number that says that a step is not there: at all of its features, or an index by itself.

    Features are along the last axis.
    """

    value: float
    is_whole_step: bool


@dataclass(frozen=True, eq=False)
class Range:
    """Numbers around a center; both are single numbers, or arrays like one sample of the input."""

    center: Array
    spread: Array

    @property
    def is_plain(self) -> bool:
        """Whether it is that of a model that says nothing."""
        return bool(np.all(self.center == 0) and np.all(self.spread == 1))

    def of(self, numbers: Array) -> Array:
        """Numbers of the plain range as numbers of this one."""
        return np.asarray(self.center + self.spread * numbers)

    def same(self, other: Range) -> bool:
        """Whether two ranges are about the same."""
        one, two = float(np.median(self.spread)), float(np.median(other.spread))
        apart = abs(float(np.median(self.center)) - float(np.median(other.center)))
        return 0.5 < one / two < 2 and apart <= 0.5 * one


PLAIN = Range(np.asarray(0.0), np.asarray(1.0))


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; `shape` has None where a size is free, the batch size included.

    `bound` is the first value too large for the layers that read this input as indices, or None;
    `mask` what they take for a step that is not there. `ranges` are those of the numbers that the
    model is made for, one for each path from the input.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    bound: int | None = None
    mask: Mask | None = None
    ranges: tuple[Range, ...] = (PLAIN,)

    @property
    def is_drawn(self) -> bool:
        """Whether the kinds of samples differ: not where the numbers are just any in a range."""
        return self.bound is None and ("float" in self.dtype or self._says_its_range)

    def range_of(self, number: int) -> Range:
        """The range of this number; an input with fewer has them several times."""
        return self.ranges[number % len(self.ranges)]

    @property
    def _says_its_range(self) -> bool:
        is_whole = "int" in self.dtype
        return is_whole and not all(one.is_plain for one in self.ranges)


@dataclass(frozen=True)
class SampleSet:
    """Some samples of one kind: one array per input, all with the same first axis.

    Sets that need not be run `alone` may be put into one batch to save time.
    """

    kind: str
    inputs: tuple[Array, ...]
    alone: bool = False

    @property
    def count(self) -> int:
        """The number of samples."""
        return int(self.inputs[0].shape[0])


_Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

_KINDS: dict[str, _Draw] = {
    "standard normal": lambda generator, shape: generator.standard_normal(shape),
    "uniform in [0, 1)": lambda generator, shape: generator.random(shape),
    "normal, mean 3, deviation 10": lambda generator, shape: (
        3 + 10 * generator.standard_normal(shape)
    ),
    "normal, 70 % zeros": lambda generator, shape: (
        generator.standard_normal(shape) * (generator.random(shape) < 0.3)
    ),
}


@dataclass(frozen=True)
class _Kind:
    """What to draw: `count` samples, every free dimension of one size.

    `which` is the number of the range of each input, `times` a factor to all numbers.
    """

    name: str
    draw: _Draw
    count: int
    free_size: int
    masked: bool = False
    alone: bool = False
    which: int = 0
    times: float = 1.0


def generate(
    specs: Sequence[InputSpec],
    seed: int,
    free_sizes: Sequence[int],
    most: int = _SAMPLES,
    *,
    few: bool = True,
) -> list[SampleSet]:
    """Return samples of every kind for these inputs; the same seed gives the same samples.

    `most` is how many of a kind there may be, for what a model makes of them.

    Free dimensions have the first of `free_sizes`, and in one more set the second, if there is one.
    In one more set steps are masked, if some layer does that. Of large samples there are two, or
    more if `few` is not enough.
    """
    refuse_text(specs)
    return _drawn(specs, seed, _plan(specs, free_sizes, most, few=few))


def enlarged(
    specs: Sequence[InputSpec], seed: int, free_sizes: Sequence[int], most: int, *, times: float
) -> list[SampleSet]:
    """Return a few samples with all numbers this many times as large; none of whole numbers."""
    if not any(spec.is_drawn for spec in specs):
        return []
    plan = [kind for kind in _plan(specs, free_sizes, most, few=True) if not kind.alone]
    names = list(_KINDS)[:2]
    chosen = [kind for kind in plan if not kind.masked and kind.name.removesuffix(_SCALED) in names]
    return _drawn(
        specs,
        seed,
        [replace(one, times=times, name=f"{times:g} times {one.name}") for one in chosen],
    )


def _drawn(specs: Sequence[InputSpec], seed: int, plan: Sequence[_Kind]) -> list[SampleSet]:
    generator = np.random.default_rng(seed)
    fixed = specs[0].shape[0]
    return [
        SampleSet(
            kind.name,
            tuple(_draw(spec, kind, generator, fixed or kind.count) for spec in specs),
            alone=fixed is not None or kind.alone,
        )
        for kind in plan
    ]


def refuse_text(specs: Sequence[InputSpec]) -> None:
    """Raise BnfoldError where an input is text, of which no samples can be drawn."""
    if any(spec.dtype == "string" for spec in specs):
        raise BnfoldError("the model has string inputs: give samples with --data")


def _plan(
    specs: Sequence[InputSpec], free_sizes: Sequence[int], most: int, *, few: bool
) -> list[_Kind]:
    """What to draw for these inputs."""
    count = min(most, _count(specs, free_sizes[0]))
    is_batched = specs[0].shape[0] is None
    plan = [_Kind(name, draw, count, free_sizes[0]) for name, draw in _KINDS.items()]
    if not any(spec.is_drawn for spec in specs):
        plan = [replace(plan[0], name="random integers", count=2 * count)]
    is_large = is_batched and few and count == 1 and len(plan) > 1
    plan = plan[:2] if is_large else plan  # two samples, run as one batch
    plan = [kind for one in plan for kind in _in_every_range(one, specs)]
    if is_batched and not is_large:
        plan[0] = replace(plan[0], count=max(plan[0].count, 2))
        if count > 1:
            plan.append(_also(plan[0], "a batch of one", count=1, alone=True))
    if any(spec.mask is not None for spec in specs):
        plan.append(_also(plan[0], "with masked steps", masked=True))
    plan += [
        _also(plan[0], "of another size", free_size=size, alone=True) for size in free_sizes[1:2]
    ]
    return plan


def _in_every_range(kind: _Kind, specs: Sequence[InputSpec]) -> Iterator[_Kind]:
    """The same kind once for each range of the input that has the most of them."""
    count = max(len(spec.ranges) for spec in specs if spec.is_drawn) if _any_drawn(specs) else 1
    for number in range(count):
        said = any(not spec.range_of(number).is_plain for spec in specs if spec.is_drawn)
        yield replace(kind, which=number, name=kind.name + _SCALED * said)


_SCALED = ", in the range of the first layers"


def _any_drawn(specs: Sequence[InputSpec]) -> bool:
    return any(spec.is_drawn for spec in specs)


def _also(kind: _Kind, note: str, **changes: Any) -> _Kind:
    return replace(kind, name=f"{kind.name}, {note}", **changes)


def run_all(
    call: Callable[[tuple[Array, ...]], list[Array]], sets: Sequence[SampleSet]
) -> list[list[Array]]:
    """Call a runtime on every set, on as many as possible at once; outputs by set.

    Outputs that do not count samples along their first axis cannot be told apart after a common
    run, so those sets are then run one by one.
    """
    shared = [one for one in sets if not one.alone]
    if sum(array.size for one in shared for array in one.inputs) > 2 * _ELEMENT_BUDGET:
        shared = []
    parts: dict[int, list[Array]] = {}
    if len(shared) > 1:
        columns = zip(*(one.inputs for one in shared), strict=True)
        outputs = call(tuple(np.concatenate(column) for column in columns))
        counts = [one.count for one in shared]
        if all(output.ndim and output.shape[0] == sum(counts) for output in outputs):
            cuts = np.cumsum(counts)[:-1]
            split = zip(*(np.split(output, cuts) for output in outputs), strict=True)
            parts = {id(one): list(part) for one, part in zip(shared, split, strict=True)}
    return [parts[id(one)] if id(one) in parts else call(one.inputs) for one in sets]


def zeros(specs: Sequence[InputSpec], free_size: int) -> tuple[Array, ...]:
    """One sample of zeros, to try whether a model runs with this size for its free dimensions."""
    return tuple(
        np.zeros(sized(spec, spec.shape[0] or 1, free_size), storage(spec.dtype)) for spec in specs
    )


def sized(spec: InputSpec, batch: int, free_size: int) -> tuple[int, ...]:
    """Return the shape of `batch` samples, every other free dimension set to `free_size`."""
    return (batch, *(free_size if size is None else size for size in spec.shape[1:]))


def _count(specs: Sequence[InputSpec], free_size: int) -> int:
    elements: int = sum(math.prod(sized(spec, 1, free_size)) for spec in specs)
    return max(1, min(_SAMPLES, _ELEMENT_BUDGET // max(1, elements)))


def _draw(spec: InputSpec, kind: _Kind, generator: np.random.Generator, batch: int) -> Array:
    shape = sized(spec, batch, kind.free_size)
    if spec.dtype == "bool":
        return generator.random(shape) < 0.5
    if spec.is_drawn:
        drawn = spec.range_of(kind.which).of(kind.times * kind.draw(generator, shape))
        drawn = _stored(drawn, storage(spec.dtype))
    else:
        bound = spec.bound or (256 if spec.dtype == "uint8" else _DEFAULT_INTEGER_BOUND)
        drawn = generator.integers(0, bound, shape).astype(storage(spec.dtype))
    return _masked(drawn, spec.mask, generator) if kind.masked and spec.mask else drawn


def _masked(drawn: Array, mask: Mask, generator: np.random.Generator) -> Array:
    """The same with half of the steps masked, but for the first: a mean over none is no number."""
    hidden = generator.random(drawn.shape[:-1] if mask.is_whole_step else drawn.shape) < 0.5
    hidden[..., :1] = False
    drawn[hidden] = mask.value
    return drawn


def _stored(numbers: Array, dtype: str) -> Array:
    """Numbers in a dtype; whole ones are rounded, and kept within what it holds."""
    limits = np.iinfo(dtype) if "int" in dtype else np.finfo(dtype)
    numbers = np.rint(numbers) if "int" in dtype else numbers
    return np.clip(numbers, limits.min, limits.max).astype(dtype)


def storage(dtype: str) -> str:
    """The dtype in which numpy holds an input; it has no bfloat16, to which TensorFlow rounds."""
    return {"bfloat16": "float32", "string": "object"}.get(dtype, dtype)
