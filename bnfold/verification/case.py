"""What is compared: two loaded models, the values of both that go together, and the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bnfold.running import data as user_data
from bnfold.running import inputs, keras_graph, keras_runner, ports, samples, taps
from bnfold.running.data import Source
from bnfold.running.keras_runner import Steps
from bnfold.running.libraries import one_line, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet
from bnfold.running.taps import Tap
from bnfold.running.unrolled import Unrolled, name_apart, unroll
from bnfold.verification import pairing as sites
from bnfold.verification.pairing import Pairing, pair
from bnfold.verification.values import Value

_VALUES_BUDGET = 64_000_000  # bytes of all values of one kind of samples


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a verdict is about: two models, what they are compared at, and the samples.

    `pairing` is None where nothing inside the models can be compared.
    """

    original: LoadedModel
    folded: LoadedModel
    values: tuple[Value, ...]
    sets: list[SampleSet]
    seed: int
    pairing: Pairing | None = None

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The outputs, which come first."""
        return tuple(value for value in self.values if value.is_output)

    @property
    def inside(self) -> tuple[Value, ...]:
        """The values inside the models, one for each place of the pairing."""
        return tuple(value for value in self.values if not value.is_output)


@dataclass(frozen=True, kw_only=True)
class Case(Compared):
    """The same with all that the runs of two Keras models need.

    `warnings` say what limits a claim about them, `doubts` what forbids one already. Where it
    `is_quick`, no more roundings are drawn than it takes for everything to pass.
    """

    steps: tuple[Steps, Steps]
    warnings: tuple[str, ...]
    doubts: tuple[str, ...]
    as_called: tuple[LoadedModel, LoadedModel]
    specs: tuple[Any, ...]
    is_quick: bool = True


def prepare(original: LoadedModel, folded: LoadedModel, data: Source | None, seed: int) -> Case:
    """Pair the values of two models, and draw or load samples. Raises BnfoldError for bad data."""
    interfaces = ports.interface(original.model), ports.interface(folded.model)
    specs = inputs.input_specs(original.model)
    warnings, sets = [*original.notes, *ports.renamed(*interfaces)], []
    if data is not None:
        user_set, warning = user_data.load(data, specs)
        sets, warnings = [user_set], [*warnings, *([warning] if warning else [])]
    prepared = _prepare_pair(original, folded)
    sizes = keras_runner.free_sizes(original, specs)
    values = keras_graph.bytes_per_sample(original.model, sizes[0])
    wanted = (specs, seed, sizes, max(1, _VALUES_BUDGET // max(1, values)))
    if data is None:
        sets = samples.generate(*wanted)
    steps = (keras_runner.rounding_steps(original), keras_runner.rounding_steps(folded))
    return Case(
        original=original,
        folded=folded,
        values=tuple(_values(interfaces[0], prepared)),
        pairing=prepared.pairing,
        sets=sets,
        steps=steps,
        seed=seed,
        warnings=tuple(warnings),
        doubts=prepared.doubts,
        as_called=prepared.as_called,
        specs=wanted,
    )


def _values(interface: ports.Interface, prepared: _Prepared) -> Iterator[Value]:
    pairing = prepared.pairing
    for number, (port, tap) in enumerate(zip(interface.outputs, prepared.taps, strict=True)):
        activation = tap.activation if tap else None
        if pairing is None:
            axes = sites.every_axis(len(port.shape))
            yield Value(port.name, True, activation, axes)
        else:
            tensor = pairing.original.outputs[number]
            axes = sites.channel_axes(pairing.original, tensor)
            yield Value(port.name, True, activation, axes, tensor)
    for place in pairing.places if pairing is not None else ():
        yield Value(place.name, False, axes=place.axes, tensor=place.original)


def closer(case: Case, data: Source | None) -> Case:
    """The same with more roundings, of which few may happen to be small, and more large samples."""
    if data is not None:
        return replace(case, is_quick=False)
    sets = samples.generate(*case.specs, few=False)
    kinds = {one.kind for one in sets}
    further = [one for one in case.sets if one.kind not in kinds]
    return replace(case, sets=[*sets, *further], is_quick=False)


@dataclass
class _Prepared:
    """What a pair of models is compared at: the taps of its outputs, and the places inside.

    `as_called` are the two once more, with runners that put out nothing from inside and have nested
    models whole: their layers run in the order in which they do for the user.
    """

    taps: list[Tap | None]
    pairing: Pairing | None
    as_called: tuple[LoadedModel, LoadedModel]
    doubts: tuple[str, ...] = ()


def _prepare_pair(original: LoadedModel, folded: LoadedModel) -> _Prepared:
    """Build the runners of both models, which put out the same values in the same order.

    First come the outputs, before a final softmax or sigmoid, then the places of the sites.
    """
    models = (original, folded)
    ends = [taps.find(loaded.model) for loaded in models]
    usable = taps.agreed(*ends)
    kept = [
        [tap if use else None for tap, use in zip(found, usable, strict=True)] for found in ends
    ]
    for loaded, own in zip(models, kept, strict=True):
        taps.switch_off(own, loaded.keras.activations.linear)
    pairing: Pairing | None = None
    doubts: tuple[str, ...] = ()
    try:
        with quiet():
            flats = [unroll(loaded.model) for loaded in models]
            for flat in flats:
                name_apart(flat)
        pairing = pair(*flats)
    except Exception as error:
        flats = [Unrolled(), Unrolled()]
        doubts = (f"only outputs are compared: {one_line(error)}",)
    sides = (
        [[], []]
        if pairing is None
        else [
            [place.original for place in pairing.places],
            [place.folded for place in pairing.places],
        ]
    )
    for loaded, own, flat, inside in zip(models, kept, flats, sides, strict=True):
        loaded.runner = keras_runner.runner(loaded, own, flat, inside)
    plain = [
        replace(loaded, runner=keras_runner.runner(loaded, own, Unrolled(), []))
        for loaded, own in zip(models, kept, strict=True)
    ]
    return _Prepared(kept[0], pairing, (plain[0], plain[1]), doubts)
