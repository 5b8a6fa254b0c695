"""Inputs to run both models on, from a seeded generator.

Several kinds of float inputs, because each hides something: values around zero hide a wrong shift,
positive values keep a ReLU open on one side only, wide values saturate, and sparse ones show what
zeros (padding) do. Integer inputs stay below `bound`, which is what the layer that reads them
accepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import BnfoldError

Array = npt.NDArray[Any]

_SAMPLES = 8
_ELEMENT_BUDGET = 200_000  # input elements per kind: one image of 224 x 224 x 3 takes 150,528
_DEFAULT_INTEGER_BOUND = 10


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; `shape` has None where a size is free, the batch size included.

    `bound` is the first value too large for the layers that read this input as indices, or None.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    bound: int | None = None


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


def generate(
    specs: Sequence[InputSpec], seed: int, free_sizes: Sequence[int], *, few: bool = True
) -> list[SampleSet]:
    """Return samples of every kind for these inputs; the same seed gives the same samples.

    Free dimensions have the first of `free_sizes`, and in one more set the second, if there is one.
    Of large samples there are two, or more if `few` is not enough.
    """
    free_size = free_sizes[0]
    if any(spec.dtype == "string" for spec in specs):
        raise BnfoldError("the model has string inputs: give samples with --data")
    generator = np.random.default_rng(seed)
    count = _count(specs, free_size)
    plan = [(kind, draw, count) for kind, draw in _KINDS.items()]
    if not any(_is_float(spec) and spec.bound is None for spec in specs):
        plan = [("random integers", draw, 2 * count) for draw in list(_KINDS.values())[:1]]
    fixed = specs[0].shape[0]
    single = f"{plan[0][0]}, a batch of one"
    if few and fixed is None and count == 1 and len(plan) > 1:
        plan = plan[:2]  # large: two samples, run as one batch
    elif fixed is None:
        kind, draw, first = plan[0]
        plan[0] = (kind, draw, max(first, 2))
        if count > 1:
            plan.append((single, draw, 1))
    sizes = [(kind, draw, size, free_size) for kind, draw, size in plan]
    if len(free_sizes) > 1:
        sizes.append((f"{plan[0][0]}, of another size", plan[0][1], plan[0][2], free_sizes[1]))
    return [
        SampleSet(
            kind,
            tuple(_draw(spec, draw, generator, fixed or size, free) for spec in specs),
            alone=fixed is not None or kind == single or free != free_size,
        )
        for kind, draw, size, free in sizes
    ]


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


def _draw(
    spec: InputSpec, draw: _Draw, generator: np.random.Generator, batch: int, free_size: int
) -> Array:
    shape = sized(spec, batch, free_size)
    if spec.dtype == "bool":
        return generator.random(shape) < 0.5
    if _is_float(spec) and spec.bound is None:
        return draw(generator, shape).astype(storage(spec.dtype))
    bound = spec.bound or (256 if spec.dtype == "uint8" else _DEFAULT_INTEGER_BOUND)
    return generator.integers(0, bound, shape).astype(storage(spec.dtype))


def _is_float(spec: InputSpec) -> bool:
    return "float" in spec.dtype


def storage(dtype: str) -> str:
    """The dtype in which numpy holds an input; it has no bfloat16, to which TensorFlow rounds."""
    return {"bfloat16": "float32", "string": "object"}.get(dtype, dtype)
