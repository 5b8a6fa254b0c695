"""What is compared: two loaded models, the values of both that go together, and the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnfold.verification import runtime, samples, sites, tensors, user_data
from bnfold.verification.runtime import LoadedModel, Moves
from bnfold.verification.samples import SampleSet
from bnfold.verification.user_data import Source

_LARGE = 4_000_000  # weights; values in large models average over so many that one run is enough


@dataclass(frozen=True)
class Label:
    """What is compared at one position of what the runners put out."""

    name: str
    is_output: bool
    tapped: str | None = None
    axis: int = -1


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


def prepare(original: LoadedModel, folded: LoadedModel, data: Source | None, seed: int) -> Case:
    """Pair the values of two models, and draw or load samples. Raises BnfoldError for bad data."""
    interfaces = tensors.interface(original.model), tensors.interface(folded.model)
    names = [port.name for port in interfaces[0].outputs]
    specs = tensors.input_specs(original.model)
    warnings, sets = tensors.renamed(*interfaces), []
    if data is not None:
        user_set, warning = user_data.load(data, specs)
        sets, warnings = [user_set], [*warnings, *([warning] if warning else [])]
    prepared = runtime.prepare_pair(original, folded)
    if prepared.problem is not None:
        warnings.append(f"only outputs are compared: {prepared.problem}")
    wanted = (specs, seed, runtime.free_sizes(original, specs))
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
        is_quick=bool(original.model.count_params() > _LARGE),
    )


def _labels(names: Sequence[str], prepared: runtime.Prepared) -> Iterator[Label]:
    for name, tap in zip(names, prepared.taps, strict=True):
        yield Label(name, True, tap.activation if tap else None)
    for place in prepared.pairing.places if prepared.pairing is not None else ():
        yield Label(place.name, False, axis=place.axis)


def closer(case: Case, data: Source | None) -> Case:
    """The same with more samples and more roundings, of which few may happen to be small."""
    sets = case.sets if data is not None else samples.generate(*case.specs, few=False)
    return replace(case, sets=sets, is_quick=False)
