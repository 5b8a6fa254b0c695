"""Which input and output of a deployed model is which of a Keras model, and how numbers cross over.

Names decide where the file has kept them. Converters often make up others, so what is left over
goes by the number in its name (`output_1`), or by shape and order; that is said. An array may have
its channels at the other end (NCHW for NHWC). Numbers are cast, or quantized by the scale and zero
point of the file, on their way in, and back on their way out. A file of one batch size gets the
samples in batches of that size.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bnfold.model.container.printing import printable
from bnfold.running.arrays import Array
from bnfold.running.deployed.model import Call, Deployed, Endpoint, Inner
from bnfold.running.libraries import CannotRunError
from bnfold.running.ports import Interface, Port
from bnfold.running.samples import InputSpec, SampleSet, run_all

_PREFIX = re.compile(r"^(?:serving_default_|serve_)")
_SUFFIX = re.compile(r":\d+$")


class Slot(NamedTuple):
    """The endpoint that a port of the Keras model is, and how its axes are permuted to get there.

    `said` tells how that was found out, where the names do not say it.
    """

    at: int
    axes: tuple[int, ...] | None
    said: str | None


@dataclass(frozen=True)
class Binding:
    """A deployed model as the Keras model whose ports it has.

    Attributes:
        file: the deployed model.
        inputs: a slot for each input of the Keras model, in its order.
        outputs: likewise.
        ports: the outputs of the Keras model.
    """

    file: Deployed
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    ports: tuple[Port, ...]

    @property
    def said(self) -> list[str]:
        """Sentences on what was paired otherwise than by name, and on layouts."""
        return [one.said for one in (*self.inputs, *self.outputs) if one.said is not None]

    def narrowed(self, specs: Sequence[InputSpec]) -> list[InputSpec]:
        """What the inputs of the Keras model may be, as far as the file takes it too."""
        return [
            replace(spec, shape=_narrowed(spec.shape, self._shape_of(slot)))
            for spec, slot in zip(specs, self.inputs, strict=True)
        ]

    def _shape_of(self, slot: Slot) -> tuple[int | None, ...] | None:
        """The shape that an input of the file has, with the axes of the Keras model's."""
        shape = self.file.inputs[slot.at].shape
        if shape is None or slot.axes is None:
            return shape
        return tuple(shape[slot.axes.index(axis)] for axis in range(len(shape)))

    def fitted(self, sets: Sequence[SampleSet], seed: int) -> list[SampleSet]:
        """Random samples as numbers that the file can take: whole ones, or ones it does not clip.

        Of a file that is calibrated for certain ranges there are more kinds, within these ranges,
        as the samples were that they were measured on.
        """
        ends = [self.file.inputs[slot.at] for slot in self.inputs]
        found = [replace(one, inputs=tuple(map(_fitted, one.inputs, ends))) for one in sets]
        if not any(end.limits for end in ends):
            return found
        generator = np.random.default_rng([seed, len(sets)])
        for name, draw in WITHIN.items():
            inputs = tuple(
                array if end.limits is None else _inside(draw(generator, array.shape), end, array)
                for array, end in zip(found[0].inputs, ends, strict=True)
            )
            found.insert(0, SampleSet(name, inputs))
        return found

    def evaluate(self, sets: Sequence[SampleSet], *, optimised: bool = True) -> list[list[Array]]:
        """What the file computes of samples of several kinds, by kind. Raises CannotRunError."""
        call = self.file.start(optimised=optimised)
        return run_all(functools.partial(self.run, call), sets)

    def run(
        self, call: Call, inputs: Sequence[Array], extra: Sequence[Endpoint | Inner] = ()
    ) -> list[Array]:
        """What the file computes, as the Keras model puts it out; then `extra`, as it is.

        Raises CannotRunError.
        """
        fed: list[Array] = [np.zeros(0)] * len(self.inputs)
        for array, slot in zip(inputs, self.inputs, strict=True):
            given = array if slot.axes is None else np.transpose(array, slot.axes)
            fed[slot.at] = np.ascontiguousarray(encoded(given, self.file.inputs[slot.at]))
        found = self._in_batches(call, fed)
        first = len(self.file.outputs)
        outputs = [
            self._output(found[slot.at], slot, port)
            for slot, port in zip(self.outputs, self.ports, strict=True)
        ]
        return outputs + [
            decoded(one, endpoint) for one, endpoint in zip(found[first:], extra, strict=True)
        ]

    def _output(self, value: Array, slot: Slot, port: Port) -> Array:
        endpoint = self.file.outputs[slot.at]
        value = decoded(np.atleast_1d(value), endpoint)
        if slot.axes is not None:
            value = np.transpose(value, np.argsort(slot.axes))
        wanted = np.dtype({"string": "object", "bfloat16": "float32"}.get(port.dtype, port.dtype))
        if wanted.kind == value.dtype.kind == "f":
            return value  # 16 bits stay what they are: errors are measured in the output's own
        return value.astype(wanted) if wanted.kind != "O" else value

    def _in_batches(self, call: Call, inputs: Sequence[Array]) -> list[Array]:
        """Run all samples, in batches of the size that the file takes."""
        count = len(inputs[0])
        sizes = {
            endpoint.shape[0]
            for endpoint in self.file.inputs
            if endpoint.shape and endpoint.shape[0] is not None
        }
        if not sizes:
            try:
                return call(inputs)
            except CannotRunError:
                if count == 1:
                    raise
                sizes = {1}  # some files say that their batch is free, and are made for one
        size = max(sizes)
        if size == count:
            return call(inputs)
        parts = []
        for start in range(0, count, size):
            taken = np.arange(start, start + size) % count  # the last batch is filled up
            parts.append(call([one[taken] for one in inputs]))
        columns = [list(column) for column in zip(*parts, strict=True)]
        if any(one.shape[:1] != (size,) for column in columns for one in column):
            raise CannotRunError(f"it takes batches of {size} only, and an output has none")
        return [np.concatenate(column)[:count] for column in columns]


def encoded(array: Array, endpoint: Endpoint) -> Array:
    """Numbers as the file takes them: cast, or quantized."""
    if endpoint.dtype == "object" or array.dtype.kind in "OSU":
        return array
    if endpoint.scale is None:
        return np.asarray(array, endpoint.dtype)
    kind = np.iinfo(endpoint.dtype)
    steps = np.rint(array / np.float32(endpoint.scale)) + endpoint.zero_point
    return np.asarray(np.clip(steps, kind.min, kind.max), endpoint.dtype)


def decoded(array: Array, endpoint: Endpoint | Inner) -> Array:
    """The numbers that quantized ones stand for; others as they are."""
    if endpoint.scale is None or array.dtype.kind not in "iu":
        return array
    return (array.astype(np.float32) - endpoint.zero_point) * np.float32(endpoint.scale)


def _fitted(array: Array, endpoint: Endpoint) -> Array:
    if array.dtype.kind != "f":
        return array
    if endpoint.limits is not None:
        return np.clip(array, *endpoint.limits).astype(array.dtype)
    if endpoint.scale is None and np.dtype(endpoint.dtype).kind in "iu":
        kind = np.iinfo(endpoint.dtype)
        return np.clip(np.rint(array), kind.min, kind.max).astype(array.dtype)
    return array


def _inside(drawn: Array, end: Endpoint, like: Array) -> Array:
    """Numbers from -1 to 1 as ones of the range that an endpoint does not clip."""
    low, high = end.limits or (-1.0, 1.0)
    return np.asarray((low + high) / 2 + (high - low) / 2 * np.clip(drawn, -1, 1), like.dtype)


WITHIN: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal, within the calibrated range": lambda some, shape: some.normal(0, 0.25, shape),
    "uniform, within the calibrated range": lambda some, shape: some.uniform(-0.8, 0.8, shape),
}
"""Kinds of samples for a file that is calibrated: numbers from -1 to 1, the ends of its range."""


def _narrowed(
    shape: tuple[int | None, ...], other: tuple[int | None, ...] | None
) -> tuple[int | None, ...]:
    """A shape with the sizes that another one fixes, but for the batch, which can be cut."""
    if other is None:
        return shape
    rest = zip(shape[1:], other[1:], strict=True)
    return (shape[0], *(theirs if ours is None else ours for ours, theirs in rest))


# --- who is who ----------------------------------------------------------------------------------


def bind(interface: Interface, file: Deployed) -> tuple[list[Binding], list[str]]:
    """The ways in which a file can be a model of this interface, the most likely first.

    There are several where a shape does not tell whether its channels are first or last. Where
    there is none, the sentences say what differs.
    """
    differences: list[str] = []
    sides: list[list[tuple[Slot, ...]]] = []
    for kind, ports, ends in (
        ("input", interface.inputs, file.inputs),
        ("output", interface.outputs, file.outputs),
    ):
        if len(ports) != len(ends):
            differences.append(f"{kind}s: {len(ports)} in the original, {len(ends)} in the file")
            continue
        try:
            pairs = list(_paired(kind, ports, ends))
        except _NoPairError as error:
            differences.append(str(error))
            continue
        sides.append(list(_laid_out(kind, ports, ends, pairs)))
    if differences:
        return [], differences
    inputs, outputs = sides
    return [Binding(file, one, other, interface.outputs) for one in inputs for other in outputs], []


def exactly(interface: Interface, file: Deployed) -> Binding:
    """The binding of a file that has kept all names, shapes and dtypes.

    Raises CannotRunError where it has not.
    """
    found, differences = bind(interface, file)
    if differences:
        raise CannotRunError(differences[0])
    first = found[0]
    dtypes = (
        f"{port.name!r} of {port.dtype} became one of {ends[slot.at].dtype}"
        for ports, slots, ends in (
            (interface.inputs, first.inputs, file.inputs),
            (interface.outputs, first.outputs, file.outputs),
        )
        for port, slot in zip(ports, slots, strict=True)
        if ends[slot.at].dtype != {"string": "object"}.get(port.dtype, port.dtype)
    )
    if wrong := [*first.said, *dtypes]:
        raise CannotRunError(wrong[0])
    return first


class _NoPairError(Exception):
    """Nothing in the file can be a certain port; the text says of which and why."""


def _paired(
    kind: str, ports: Sequence[Port], ends: Sequence[Endpoint]
) -> Iterator[tuple[int, str | None]]:
    """The endpoint of each port, and how that was found out where it is not by name."""
    is_output = kind == "output"
    names = {_plain(end.name): at for at, end in enumerate(ends)}
    exact = {end.name: at for at, end in enumerate(ends)}
    found = {
        number: exact.get(port.name, names.get(port.name))
        for number, port in enumerate(ports)
        if port.name in exact or port.name in names
    }
    if len(set(found.values())) < len(found):
        found = {}
    for number, at in found.items():
        if at is not None and (why := _misfit(ports[number], ends[at], is_output=is_output)):
            raise _NoPairError(f"{kind} {ports[number].name!r}: {why}")
    left = [at for at in range(len(ends)) if at not in found.values()]
    numbered = [ends[at].position for at in left]
    by_number = None not in numbered and len(set(numbered)) == len(numbered)
    if by_number:
        left.sort(key=lambda at: ends[at].position or 0)
    for number, port in enumerate(ports):
        known = found.get(number)
        if known is not None:
            yield known, None
            continue
        fitting = [at for at in left if not _misfit(port, ends[at], is_output=is_output)]
        if not fitting:
            why = _misfit(port, ends[left[0]], is_output=is_output)
            raise _NoPairError(
                f"{kind} {port.name!r}: no {kind} of the file can be it; of"
                f" {printable(ends[left[0]].name)!r} {why}"
            )
        taken = fitting[0]
        left.remove(taken)
        how = "the only one" if len(ports) == 1 else "by its number" if by_number else None
        how = how or ("by its shape" if len(fitting) == 1 else "by its shape and the order")
        yield taken, f"{kind} {port.name!r} is {printable(ends[taken].name)!r} in the file: {how}"


def _plain(name: str) -> str:
    return _SUFFIX.sub("", _PREFIX.sub("", name))


def _misfit(port: Port, end: Endpoint, *, is_output: bool) -> str | None:
    """Why an endpoint cannot be a port; None where it can."""
    if not any(_fits(port.shape, end.shape, axes) for axes in layouts(len(port.shape))):
        shown = [str(shape).replace("None", "any") for shape in (port.shape, end.shape)]
        return f"the shape {shown[0]} became {shown[1]}"
    texts = [port.dtype == "string", end.dtype == "object"]
    if texts[0] != texts[1] or (is_output and _is_float(port.dtype) and not _means_floats(end)):
        return f"the dtype {port.dtype} became {end.dtype}"
    return None


def _is_float(dtype: str) -> bool:
    return "float" in dtype


def _means_floats(end: Endpoint) -> bool:
    return _is_float(end.dtype) or end.scale is not None


def _of_dtype(kind: str, port: Port, end: Endpoint) -> str | None:
    """What is to be said of an endpoint of another kind of number."""
    if end.scale is not None:
        return f"{kind} {port.name!r} is {end.dtype} in the file, with a scale of {end.scale:.6g}"
    if end.dtype in {port.dtype, "object"} or (_is_float(end.dtype) and _is_float(port.dtype)):
        return None
    rounded = " and takes whole numbers only" if _is_float(port.dtype) else ""
    return f"{kind} {port.name!r} is {end.dtype} in the file instead of {port.dtype}{rounded}"


def _fits(
    shape: tuple[int | None, ...], other: tuple[int | None, ...] | None, axes: tuple[int, ...]
) -> bool:
    """Whether a shape, its axes permuted, can be another one; a batch may have any size."""
    if other is None:
        return axes == tuple(range(len(shape)))
    if len(shape) != len(other):
        return False
    moved = [shape[axis] for axis in axes]
    pairs = zip(moved[1:], other[1:], strict=True)
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def layouts(rank: int) -> list[tuple[int, ...]]:
    """As it is, with the channels moved from the end to axis 1, and the other way round."""
    plain = tuple(range(rank))
    if rank < 3:
        return [plain]
    first = (0, rank - 1, *range(1, rank - 1))
    last = (0, *range(2, rank), 1)
    return list(dict.fromkeys([plain, first, last]))


def _laid_out(
    kind: str,
    ports: Sequence[Port],
    ends: Sequence[Endpoint],
    pairs: Sequence[tuple[int, str | None]],
) -> Iterator[tuple[Slot, ...]]:
    """The slots of one side, for each layout that its shapes allow: the same one for all of them.

    Where an endpoint is possible in one layout only, it has that one whatever the others have.
    """
    every = [
        sorted(
            [axes for axes in layouts(len(port.shape)) if _fits(port.shape, ends[at].shape, axes)],
            key=lambda axes: -_known(port.shape, ends[at].shape, axes),
        )
        for port, (at, _) in zip(ports, pairs, strict=True)
    ]
    for choice in range(max(map(len, every), default=1)):
        slots = []
        for port, (at, said), possible in zip(ports, pairs, every, strict=True):
            axes = possible[min(choice, len(possible) - 1)]
            is_plain = axes == tuple(range(len(axes)))
            where = "first" if axes[1:2] == (len(axes) - 1,) else "last"
            moved = (
                None if is_plain else f"{kind} {port.name!r} has its channels {where} in the file"
            )
            parts = [one for one in (said, moved, _of_dtype(kind, port, ends[at])) if one]
            slots.append(Slot(at, None if is_plain else axes, "; ".join(parts) or None))
        yield tuple(slots)


def _known(
    shape: tuple[int | None, ...], other: tuple[int | None, ...] | None, axes: tuple[int, ...]
) -> int:
    """How many sizes agree that both know, the axes of one permuted."""
    moved = [shape[axis] for axis in axes]
    return sum(one is not None and one == two for one, two in zip(moved, other or (), strict=False))
