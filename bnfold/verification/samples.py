"""Inputs to run both models on, from a seeded generator.

Several kinds of float inputs, because each hides something: values around zero hide a wrong shift,
positive values keep a ReLU open on one side only, wide values saturate, and sparse ones show what
zeros (padding) do. Integer inputs stay below `bound`, which is what the layer that reads them
accepts. Where a layer masks steps of an input, one kind has such steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import BnfoldError

Array = npt.NDArray[Any]

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


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; `shape` has None where a size is free, the batch size included.

    `bound` is the first value too large for the layers that read this input as indices, or None;
    `mask` what they take for a step that is not there.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    bound: int | None = None
    mask: Mask | None = None


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
    """What to draw: `count` samples, every free dimension of one size."""

    name: str
    draw: _Draw
    count: int
    free_size: int
    masked: bool = False
    alone: bool = False


def generate(
    specs: Sequence[InputSpec], seed: int, free_sizes: Sequence[int], *, few: bool = True
) -> list[SampleSet]:
    """Return samples of every kind for these inputs; the same seed gives the same samples.

    Free dimensions have the first of `free_sizes`, and in one more set the second, if there is one.
    In one more set steps are masked, if some layer does that. Of large samples there are two, or
    more if `few` is not enough.
    """
    if any(spec.dtype == "string" for spec in specs):
        raise BnfoldError("the model has string inputs: give samples with --data")
    generator = np.random.default_rng(seed)
    fixed = specs[0].shape[0]
    return [
        SampleSet(
            kind.name,
            tuple(_draw(spec, kind, generator, fixed or kind.count) for spec in specs),
            alone=fixed is not None or kind.alone,
        )
        for kind in _plan(specs, free_sizes, few=few)
    ]


def _plan(specs: Sequence[InputSpec], free_sizes: Sequence[int], *, few: bool) -> list[_Kind]:
    """What to draw for these inputs."""
    count, is_batched = _count(specs, free_sizes[0]), specs[0].shape[0] is None
    plan = [_Kind(name, draw, count, free_sizes[0]) for name, draw in _KINDS.items()]
    if not any(_is_float(spec) and spec.bound is None for spec in specs):
        plan = [replace(plan[0], name="random integers", count=2 * count)]
    if is_batched and few and count == 1 and len(plan) > 1:
        plan = plan[:2]  # large: two samples, run as one batch
    elif is_batched:
        plan[0] = replace(plan[0], count=max(plan[0].count, 2))
        if count > 1:
            plan.append(_also(plan[0], "a batch of one", count=1, alone=True))
    if any(spec.mask is not None for spec in specs):
        plan.append(_also(plan[0], "with masked steps", masked=True))
    plan += [
        _also(plan[0], "of another size", free_size=size, alone=True) for size in free_sizes[1:2]
    ]
    return plan


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
    if _is_float(spec) and spec.bound is None:
        drawn = kind.draw(generator, shape).astype(storage(spec.dtype))
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


def _is_float(spec: InputSpec) -> bool:
    return "float" in spec.dtype


def storage(dtype: str) -> str:
    """The dtype in which numpy holds an input; it has no bfloat16, to which TensorFlow rounds."""
    return {"bfloat16": "float32", "string": "object"}.get(dtype, dtype)
