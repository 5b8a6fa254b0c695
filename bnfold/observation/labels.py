"""How well the outputs of a model fit the user's labels.

The measure is the accuracy for classes and the mean absolute error for other numbers. Classes are
whole numbers from 0, or vectors with a single 1. An output of one number, or of several independent
ones, counts as 1 above 0.5 if it is a probability (after a sigmoid, or all of the first batch in 0
to 1), and above 0 otherwise (logits).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.model.container.printing import printable, shortened
from bnfold.running import data as user_data
from bnfold.running import ports, taps
from bnfold.running.arrays import Array
from bnfold.running.data import Source, UserData
from bnfold.running.ports import Port
from bnfold.serialize import Serializable

Measure = Literal["accuracy", "mean absolute error"]

_LEAST = 0.01
_CHANCES = 3.0


@dataclass(frozen=True)
class Labels:
    """Arrays by the name of the output that they are for, not yet matched with a model.

    Attributes:
        name: of the file, for messages.
        arrays: "" or a name that is no output is for a single output.
    """

    name: str
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Target:
    """What one output should be.

    Attributes:
        output: its position.
        name: its name.
        measure: what is measured.
        labels: class numbers, zeros and ones, or numbers; the first axis is the sample.
        threshold: above which an output is a 1; None where the largest entry is the class, or
            where there are no classes.
    """

    output: int
    name: str
    measure: Measure
    labels: Array
    threshold: float | None = None

    def settled(self, values: Array) -> Target:
        """The same once the outputs for some samples show whether they are probabilities."""
        if self.threshold == 0 and ((values >= 0) & (values <= 1)).all():
            return replace(self, threshold=0.5)
        return self

    def scores(self, values: Array, start: int) -> Array:
        """For each sample from `start` on, the share that is right, or the mean error."""
        labels = self.labels[start : start + len(values)]
        values = np.asarray(values, np.float64)
        if self.measure != "accuracy":
            found = np.abs(values - labels)
        elif self.threshold is None:
            found = (values.argmax(axis=-1) == labels) & ~np.isnan(values).any(axis=-1)
        else:
            found = ((values > self.threshold) == (labels > 0)) & ~np.isnan(values)
        return np.asarray(found.reshape(len(values), -1).mean(axis=1), np.float64)


def read(source: Source) -> Labels:
    """The labels in a file or in arrays.

    Raises BnfoldError for a file that cannot be read, and for what is no number or not finite.
    """
    given = user_data.read(source)
    name, arrays = given.name, given.arrays
    return Labels(name if isinstance(source, Path) else "labels", _numbers(name, arrays))


def beside(data: Source) -> Labels | None:
    """The labels in the data's own array y; None where there is no such array."""
    if not isinstance(data, (Mapping, Path)):
        return None
    given = user_data.read(data)
    name, arrays = given.name, given.arrays
    if user_data.LABELS not in arrays or len(arrays) == 1:
        return None
    return Labels(
        f"{name}, array {user_data.LABELS!r}",
        _numbers(name, {user_data.LABELS: arrays[user_data.LABELS]}),
    )


def miscounted(labels: Source | None, data: Source) -> str | None:
    """Why the array y beside the data is not as long as they are; None where it is.

    No model is needed for that. Raises BnfoldError where labels that were given are not as many as
    the samples, and for files that cannot be read.
    """
    given = user_data.read(data)
    counts = [
        len(one) for name, one in given.arrays.items() if name != user_data.LABELS and one.ndim
    ]
    found = beside(data) if labels is None else read(labels)
    if found is None or not counts:
        return None
    for array in found.arrays.values():
        if len(array) not in counts:  # beside the inputs there may be arrays that are none
            problem = f"{found.name}: {len(array)} labels, the data have {counts[0]} samples"
            if labels is not None:
                raise BnfoldError(problem)
            return problem
    return None


def _numbers(name: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    for array in arrays.values():
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise BnfoldError(
                f"{name}: labels must be an array of numbers, not of {shortened(str(array.dtype))}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BnfoldError(f"{name}: the labels have numbers that are not finite")
    return arrays


def targets(labels: Labels, model: Any, samples: int) -> tuple[Target, ...]:
    """The labels for the outputs of a loaded model, of so many samples. Raises BnfoldError."""
    outputs, ends = ports.interface(model).outputs, taps.find(model)
    names = [port.name for port in outputs]
    chosen = dict(labels.arrays)
    if len(outputs) == len(chosen) == 1:
        chosen = dict(zip(names, chosen.values(), strict=True))
    unknown = sorted(set(chosen) - set(names))
    if unknown or not chosen:
        shown = ", ".join(repr(printable(name)) for name in names)
        raise BnfoldError(f"{labels.name}: labels are named after the outputs, which are {shown}")
    found = []
    for index, (port, tap) in enumerate(zip(outputs, ends, strict=True)):
        if port.name in chosen:
            array = np.asarray(chosen[port.name])
            title = f"{labels.name}: the labels of {printable(port.name)!r}"
            if len(array) != samples:
                raise BnfoldError(f"{title} are {len(array)}, the data have {samples} samples")
            kind = None if tap is None else tap.activation
            found.append(_target(index, port, array, kind, title))
    return tuple(found)


def targets_for(
    labels: Labels | None, model: Any, data: UserData, source: Source
) -> tuple[tuple[Target, ...], str | None]:
    """What the outputs should be, and why what stands beside the data is no labels.

    An array y beside the data may be anything, and is an input where the model has one of this
    name; labels that were given must fit. Raises BnfoldError where they do not.
    """
    if labels is not None:
        return targets(labels, model, data.count), None
    if user_data.LABELS in {spec.name for spec in data.specs}:
        return (), None
    try:
        found = beside(source)
        return (() if found is None else targets(found, model, data.count)), None
    except BnfoldError as error:
        return (), str(error)


def _target(index: int, port: Port, labels: Array, activation: str | None, title: str) -> Target:
    """What one output should be, by the shapes of both and by what the labels are."""
    inner = tuple(port.shape[1:])
    classes = inner[-1] if inner else 1
    if classes != 1 and labels.shape[-1] == 1 and labels.ndim == len(inner) + 1:
        labels = labels[..., 0]
    if classes == 1 and inner and _fits(labels.shape[1:], inner[:-1]):
        labels = labels[..., None]
    if classes != 1 and _fits(labels.shape[1:], inner[:-1]):
        return Target(index, port.name, "accuracy", _classes(labels, classes, title))
    if not _fits(labels.shape[1:], inner):
        raise BnfoldError(f"{title} have the shape {labels.shape}, which does not fit {inner}")
    if ((labels == 0) | (labels == 1)).all():
        if classes != 1 and (labels.sum(axis=-1) == 1).all():
            return Target(index, port.name, "accuracy", labels.argmax(axis=-1))
        threshold = 0.0 if activation is None else 0.5
        return Target(index, port.name, "accuracy", labels, threshold)
    if activation is not None:
        raise BnfoldError(f"{title} are neither classes nor zeros and ones, as for {activation}")
    return Target(index, port.name, "mean absolute error", labels)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, found) for found, size in zip(shape, wanted, strict=True)
    )


def _classes(labels: Array, classes: int | None, title: str) -> Array:
    numbers = labels.astype(np.int64)
    if not np.array_equal(numbers, labels):
        raise BnfoldError(f"{title} must be whole numbers, one for each sample")
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < 0 or (classes is not None and high >= classes):
        odd = low if low < 0 else high
        last = "" if classes is None else f" to {classes - 1}"
        raise BnfoldError(f"{title} must be in 0{last}, one is {odd}")
    return numbers


class Scorer:
    """Measures the outputs of a model while it runs over the data."""

    def __init__(self, wanted: Sequence[Target]) -> None:
        self.wanted: Sequence[Target] = wanted
        self._scores: list[list[Array]] = [[] for _ in wanted]
        self._done = 0

    def note(self, outputs: Sequence[Array]) -> None:
        """Add the outputs for the next samples."""
        if not self._done:
            self.wanted = [one.settled(np.asarray(outputs[one.output])) for one in self.wanted]
        for target, scores in zip(self.wanted, self._scores, strict=True):
            scores.append(target.scores(outputs[target.output], self._done))
        self._done += len(outputs[0])

    def scores(self) -> list[Array]:
        """For each target, one number for each sample."""
        return [np.concatenate(scores) for scores in self._scores]


@dataclass(frozen=True)
class Score(Serializable):
    """How well one output fits its labels before and after.

    Attributes:
        output: its name.
        measure: "accuracy", the share of what is right, or "mean absolute error".
        samples: how many were measured.
        before, after: the measure.
        worse: whether it is worse after, by more than a hundredth and more than by chance: three
            standard errors of the difference, sample by sample.
    """

    output: str
    measure: Measure
    samples: int
    before: float
    after: float
    worse: bool

    @property
    def sentence(self) -> str:
        """The measure before and after, for people."""
        return (
            f"{self.measure} of {printable(self.output)} on {self.samples} labelled samples: "
            f"{self.before:.4g} before, {self.after:.4g} after"
        )


def compare(before: Scorer, after: Scorer) -> tuple[Score, ...]:
    """How well each output fits its labels before and after."""
    found = []
    for target, old, new in zip(before.wanted, before.scores(), after.scores(), strict=True):
        is_accuracy = target.measure == "accuracy"
        lost = old - new if is_accuracy else new - old
        was, now = float(old.mean()), float(new.mean())
        least = _LEAST if is_accuracy else _LEAST * was
        chance = _CHANCES * float(lost.std()) / math.sqrt(len(lost))
        broken = math.isfinite(was) and not math.isfinite(now)
        worse = broken or float(lost.mean()) > max(least, chance)
        found.append(Score(target.name, target.measure, len(lost), was, now, worse))
    return tuple(found)
