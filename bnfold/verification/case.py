"""What is compared: two loaded models, the values of both that go together, and the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnfold.verification import inputs, runtime, samples, sites, tensors, user_data
from bnfold.verification.compare import Axes
from bnfold.verification.runtime import LoadedModel, Moves
from bnfold.verification.samples import SampleSet
from bnfold.verification.unrolled import Unrolled
from bnfold.verification.user_data import Source

_LARGE = 4_000_000  # weights; values in large models average over so many that one run is enough
_LARGE_VALUES = 8_000_000  # bytes of all values of one sample; the same holds for large images
_VALUES_BUDGET = 64_000_000  # bytes of all values of one kind of samples


@dataclass(frozen=True)
class Label:
    """What is compared at one position of what the runners put out.

    `axes` hold the channels of the value, beside axis 1 and the last one.
    """

    name: str
    is_output: bool
    tapped: str | None = None
    axes: Axes = ()


@dataclass(frozen=True)
class Case:
    """Two loaded models, what they are compared at, and the samples."""

    original: LoadedModel
    folded: LoadedModel
    labels: tuple[Label, ...]
    pairing: sites.Pairing | None
    sets: list[SampleSet]
    steps: tuple[Moves, Moves]
    seed: int
    warnings: tuple[str, ...]
    as_called: tuple[LoadedModel, LoadedModel]
    specs: tuple[Any, ...]
    is_quick: bool

    @property
    def outputs(self) -> int:
        """How many of the values are outputs; they come first."""
        return sum(label.is_output for label in self.labels)

    @property
    def axes(self) -> list[Axes]:
        """The axes of every value that have its channels."""
        return [label.axes for label in self.labels]


def prepare(original: LoadedModel, folded: LoadedModel, data: Source | None, seed: int) -> Case:
    """Pair the values of two models, and draw or load samples. Raises BnfoldError for bad data."""
    interfaces = tensors.interface(original.model), tensors.interface(folded.model)
    names = [port.name for port in interfaces[0].outputs]
    specs = inputs.input_specs(original.model)
    warnings, sets = [*original.notes, *tensors.renamed(*interfaces)], []
    if data is not None:
        user_set, warning = user_data.load(data, specs)
        sets, warnings = [user_set], [*warnings, *([warning] if warning else [])]
    prepared = runtime.prepare_pair(original, folded)
    if prepared.problem is not None:
        warnings.append(f"only outputs are compared: {prepared.problem}")
    sizes = runtime.free_sizes(original, specs)
    values = tensors.bytes_per_sample(original.model, sizes[0])
    wanted = (specs, seed, sizes, max(1, _VALUES_BUDGET // max(1, values)))
    if data is None:
        sets = samples.generate(*wanted)
    steps = (runtime.moves(original), runtime.moves(folded))
    return Case(
        original=original,
        folded=folded,
        labels=tuple(_labels(names, prepared)),
        pairing=prepared.pairing,
        sets=sets,
        steps=steps,
        seed=seed,
        warnings=tuple(warnings),
        as_called=prepared.as_called,
        specs=wanted,
        is_quick=bool(original.model.count_params() > _LARGE) or values > _LARGE_VALUES,
    )


def _labels(names: Sequence[str], prepared: runtime.Prepared) -> Iterator[Label]:
    pairing = prepared.pairing
    graph = Unrolled() if pairing is None else pairing.original
    tensors_out = graph.outputs or [None] * len(names)
    for name, tap, tensor in zip(names, prepared.taps, tensors_out, strict=True):
        axes = () if tensor is None else sites.channel_axes(graph, tensor)
        yield Label(name, True, tap.activation if tap else None, axes)
    for place in pairing.places if pairing is not None else ():
        yield Label(place.name, False, axes=place.axes)


def closer(case: Case, data: Source | None) -> Case:
    """The same with more samples and more roundings, of which few may happen to be small."""
    if data is not None:
        return replace(case, is_quick=False)
    sets = samples.generate(*case.specs, few=False)
    kinds = {one.kind for one in sets}
    further = [one for one in case.sets if one.kind not in kinds]
    return replace(case, sets=[*sets, *further], is_quick=False)
