"""What is compared: two loaded models, the values of both that go together, and the samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.running import data as user_data
from bnfold.running import inputs, keras_graph, keras_runner, ports, samples, taps
from bnfold.running.arrays import Array
from bnfold.running.data import Source
from bnfold.running.libraries import one_line, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Port
from bnfold.running.runner import Runner
from bnfold.running.samples import SampleSet
from bnfold.running.unrolled import name_apart, unroll
from bnfold.verification.pairing import Pairing, channel_axes, every_axis, pair
from bnfold.verification.values import Arrays, Masks, Value

_VALUES_BUDGET = 64_000_000  # bytes of all values of one kind of samples


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a verdict is about: two models, what they are compared at, and the samples.

    `pairing` is None where nothing inside the models can be compared. With `counts_all` every
    output counts as that of a classifier, where none is one by its activation.
    """

    original: LoadedModel
    folded: LoadedModel
    values: tuple[Value, ...]
    sets: list[SampleSet]
    seed: int
    pairing: Pairing | None = None
    counts_all: bool = False

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The outputs, which come first."""
        return tuple(value for value in self.values if value.is_output)

    @property
    def inside(self) -> tuple[Value, ...]:
        """The values inside the models, one for each place of the pairing."""
        return tuple(value for value in self.values if not value.is_output)

    def in_keras(
        self, loaded: LoadedModel, name: str = "keras", *, training: bool | None = False
    ) -> Runner[Value]:
        """A model of these values in Keras."""
        run = functools.partial(keras_runner.evaluate, loaded, training=training)
        return Runner(name, self.values, run, loaded)

    def comparable(self, *evaluations: Arrays) -> Masks:
        """Where numbers of a model can be compared, in all of these evaluations of it.

        In 16 bits a model may overflow by itself. What it computes from infinity is no measure for
        another model, even where that is finite again: a whole sample of every value downstream.
        """
        masks: Masks = {
            value: [np.isfinite(one) if one.dtype.kind in "fc" else None for one in column]
            for value, column in evaluations[0].items()
        }
        for value, column in (item for arrays in evaluations for item in arrays.items()):
            for kind, (one, drawn) in enumerate(zip(column, self.sets, strict=True)):
                lost = broken_samples(one, drawn.count)
                if lost is None:
                    continue
                for other in self._downstream(value) & masks.keys():
                    if (mask := masks[other][kind]) is not None:
                        mask[lost if len(mask) == len(lost) else slice(None)] = False
        return masks

    def _downstream(self, value: Value) -> set[Value]:
        """The values that the original computes from one of them."""
        if self.pairing is None:
            return set()
        reached = self.pairing.depends_on(value.tensor) - {id(value.tensor)}
        return {other for other in self.values if id(other.tensor) in reached}


def broken_samples(array: Array, count: int) -> Array | None:
    """Which samples have a number that is not finite; None where no sample has.

    An array that does not count samples along its first axis is one sample.
    """
    if array.dtype.kind not in "fc" or np.isfinite(array).all():
        return None
    rows = len(array) if len(array) == count else 1
    return np.asarray(np.any(~np.isfinite(array.reshape(rows, -1)), axis=1))


@dataclass(frozen=True, kw_only=True)
class Case(Compared):
    """The same with all that the runs of two Keras models need.

    `warnings` say what limits a claim about them, `doubts` what forbids one already. `as_called`
    are the two models once more, with nested models whole, so that their layers run in the order in
    which they do for the user, and with no values but the outputs. `specs` are what samples are
    drawn by, unless they were given. Where it `is_quick`, no more roundings are drawn than it takes
    for everything to pass.
    """

    warnings: tuple[str, ...]
    doubts: tuple[str, ...]
    as_called: Sequence[LoadedModel]
    specs: tuple[Any, ...]
    is_given: bool
    is_quick: bool = True


def prepare(original: LoadedModel, folded: LoadedModel, data: Source | None, seed: int) -> Case:
    """Pair the values of two models, and draw or load samples. Raises BnfoldError for bad data."""
    models = (original, folded)
    interfaces = [ports.interface(loaded.model) for loaded in models]
    specs = inputs.input_specs(original.model)
    warnings, sets = [*original.notes, *ports.renamed(*interfaces)], []
    if data is not None:
        user_set, warning = user_data.load(data, specs)
        sets, warnings = [user_set], [*warnings, *([warning] if warning else [])]
    linear = original.keras.activations.linear
    tapped, *read = zip(*taps.take_off(original.model, folded.model, linear), strict=True)
    pairing, doubts = _paired(models)
    as_called = shown = [
        keras_runner.showing(loaded, outputs) for loaded, outputs in zip(models, read, strict=True)
    ]
    if pairing is not None:
        sides = zip(models, (pairing.original, pairing.folded), read, pairing.sides, strict=True)
        shown = [
            keras_runner.showing(loaded, [*map(graph.tensor, outputs), *inside])
            for loaded, graph, outputs, inside in sides
        ]
    sizes = keras_runner.free_sizes(shown[0], specs)
    size_of_all = keras_graph.bytes_per_sample(original.model, sizes[0])
    wanted = (specs, seed, sizes, max(1, _VALUES_BUDGET // max(1, size_of_all)))
    return Case(
        original=shown[0],
        folded=shown[1],
        values=tuple(_values(interfaces[0].outputs, tapped, pairing)),
        pairing=pairing,
        sets=sets or samples.generate(*wanted),
        seed=seed,
        warnings=tuple(warnings),
        doubts=doubts,
        as_called=as_called,
        specs=wanted,
        is_given=data is not None,
    )


def _paired(models: Sequence[LoadedModel]) -> tuple[Pairing | None, tuple[str, ...]]:
    """What is paired of two models, and a doubt where nothing inside them can be."""
    try:
        with quiet():
            flats = [unroll(loaded.model) for loaded in models]
            for flat in flats:
                name_apart(flat)
        return pair(*flats), ()
    except Exception as error:  # a layer of the user's may raise anything
        return None, (f"only outputs are compared: {one_line(error)}",)


def _values(
    outputs: Sequence[Port], tapped: Sequence[str | None], pairing: Pairing | None
) -> Iterator[Value]:
    for number, (port, activation) in enumerate(zip(outputs, tapped, strict=True)):
        tensor = None if pairing is None else pairing.original.outputs[number]
        axes = (
            every_axis(len(port.shape))
            if pairing is None
            else channel_axes(pairing.original, tensor)
        )
        yield Value(port.name, True, activation, axes, tensor)
    for place in pairing.places if pairing is not None else ():
        yield Value(place.name, False, axes=place.axes, tensor=place.original)


def closer(case: Case) -> Case:
    """The same with more roundings, of which few may happen to be small, and more large samples."""
    sets = [] if case.is_given else samples.generate(*case.specs, few=False)
    kinds = {one.kind for one in sets}
    further = [one for one in case.sets if one.kind not in kinds]
    return replace(case, sets=[*sets, *further], is_quick=False)
