"""Whether the error of a model of reduced precision is what that precision explains.

Rounding to 16 bits or to integers is an error on purpose, so its size says nothing by itself. What
it should be is found out on MODEL: its inputs, its weights, and the values between its layers, as
far as these are left once what can be merged is, are perturbed in float64 by up to half a step of
the precision, at random. For each output and kind of samples

    expected = sqrt(mean (perturbed - reference)^2), the largest of a few draws
    error    = sqrt(mean (file - reference)^2)
    passed   = error <= 4 expected + step / 2

where `step` is that of the output's own scale, if it has one. Root mean squares are compared and
not the largest errors, since quantization errs everywhere a little. MODEL perturbed so comes within
a factor of 1.5 of LiteRT's int8 files; one scale for a whole tensor instead of each channel, or
values that a runtime rounds where Keras has no layer, cost as much again, and few draws vary by a
fifth: together 4. What is wrong in a file, such as the weights of an older training, is off by
about as much as the output varies: ten times more.

Some processors saturate sums of products of 8 bits, so that a runtime's integer operations compute
something else than its plain ones. Where a file passes in one way in which its runtime runs it, it
may be off by 4 times as much in the other, and that is said: a wrong file is wrong in both.

A kind of samples counts where two samples differ by more than is allowed, since otherwise nothing
could be seen. Quantized values are clipped outside of the ranges that were measured on other data.
With samples of the user's a file must pass all the same; of random ones it is enough that one kind
passes, since a wrong file passes with none. Where the only kinds that could show something may be
clipped, and the file passes with a narrower one, nothing is said for or against it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.running.arrays import Array
from bnfold.running.deployed.binding import WITHIN
from bnfold.running.deployed.model import Precision
from bnfold.verification.case import Compared
from bnfold.verification.result import Accuracy, Comparison
from bnfold.verification.values import Arrays, Value

FACTOR = 4.0


def text(precision: Precision) -> str:
    """The rule in one sentence for the report."""
    return (
        f"root mean square of the error at most {FACTOR:g} times what rounding MODEL to "
        f"{precision.name} does"
    )


@dataclass(frozen=True)
class Expected:
    """What a precision does to the outputs of MODEL: by value and kind, a root mean square."""

    exact: Arrays
    noise: Mapping[Value, Sequence[float]]


def expected(exact: Arrays, draws: Sequence[Arrays]) -> Expected:
    """The largest root mean square by which the draws are off, of each value and kind."""
    return Expected(
        exact,
        {
            value: [
                max(_rms(draw[value][kind], one) for draw in draws)
                for kind, one in enumerate(column)
            ]
            for value, column in exact.items()
        },
    )


@dataclass(frozen=True)
class Judged:
    """What was found of all outputs and runtimes; `notes` limit the claim, `doubts` forbid it."""

    comparisons: tuple[Comparison, ...]
    differences: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    case: Compared,
    known: Expected,
    files: Mapping[str, Arrays],
    steps: Sequence[float],
    precision: Precision,
    *,
    is_user_data: bool,
) -> Judged:
    """Compare what each runtime computes with what is expected; `steps` are those of outputs."""
    of_random = precision.value_bits is not None and not is_user_data
    judgement = _Judgement(case, known, steps, precision, one_is_enough=of_random)
    every = {name: judgement.of(name, found) for name, found in files.items()}
    notes = [_RANDOM] if of_random else []
    if precision.value_bits is not None and any(not one.differences for one in every.values()):
        for name, one in every.items():
            if one.differences:
                every[name] = judgement.of(name, files[name], slack=FACTOR)
                notes += [] if every[name].differences else [_kernels(name, one.differences[0])]
    return Judged(
        tuple(row for one in every.values() for row in one.comparisons),
        tuple(text for one in every.values() for text in one.differences),
        tuple(dict.fromkeys(text for one in every.values() for text in one.doubts)),
        tuple(notes),
    )


@dataclass(frozen=True)
class _Judgement:
    """What runtimes are judged by; `one_is_enough` of the kinds of samples, if it passes."""

    case: Compared
    known: Expected
    steps: Sequence[float]
    precision: Precision
    one_is_enough: bool

    def of(self, name: str, found: Arrays, slack: float = 1.0) -> Judged:
        """The judgement on one runtime, which may be off by `slack` times what others may."""
        rows, differences, doubts = [], [], []
        for (value, column), step in zip(found.items(), self.steps, strict=True):
            exact, noise = self.known.exact[value], self.known.noise[value]
            kinds = [
                _Kind(drawn.kind, truth, one, noise[kind], step, slack)
                for kind, (drawn, truth, one) in enumerate(
                    zip(self.case.sets, exact, column, strict=True)
                )
            ]
            counted = _counted(kinds, within_range=self.one_is_enough)
            told = counted or kinds
            worst = max(told, key=lambda one: one.excess)
            decisive = min(told, key=lambda one: one.excess) if self.one_is_enough else worst
            rows.append(_comparison(value, name, decisive, kinds, is_told=bool(counted)))
            if problem := next((one.problem for one in kinds if one.problem), None):
                differences.append(f"{name}: output {value.name!r}: {problem}")
            elif counted and decisive.excess > 1:
                differences.append(_sentence(name, value, decisive, self.precision))
            elif not counted:
                doubts.append(self._doubt(value, kinds))
        return Judged(tuple(rows), tuple(differences), tuple(doubts), ())

    def _doubt(self, value: Value, kinds: Sequence[_Kind]) -> str:
        if any(one.is_visible and one.excess > 1 for one in kinds if one.name in WITHIN):
            return (
                f"output {value.name!r} is off by more than rounding to {self.precision.name} does,"
                " which random samples do not tell from clipping; --data with yours does"
            )
        return (
            f"output {value.name!r} was not exercised: it varies by less than rounding to"
            f" {self.precision.name} does"
        )


def _kernels(name: str, difference: str) -> str:
    """What is said where a runtime computes something else of a file that another one has right."""
    return (
        f"{difference}; run otherwise the file is right, so {name} loses this in its integer"
        " operations on this processor, where sums of 8-bit products may saturate; quantizing with"
        " reduce_range avoids that"
    )


_RANDOM = (
    "the figures are about random samples, which reach values that quantization clips; --data gives"
    " those for yours"
)


def _counted(kinds: Sequence[_Kind], *, within_range: bool) -> list[_Kind]:
    """The kinds of samples that could show something; none where they may show clipping alone.

    Where the range that a file was calibrated for is known, those from within it are asked, of
    which the wider ones may still leave the ranges inside the model. Where the file is off by more
    than is allowed in the narrow ones too, whether these could show it or not, that is no clipping.
    """
    inside = [one for one in kinds if within_range and one.name in WITHIN]
    found = [one for one in inside or kinds if one.is_visible]
    is_wrong_in_all = all(one.excess > 1 for one in inside)
    may_be_clipped = len(found) < len(inside) and all(one.excess > 1 for one in found)
    return [] if may_be_clipped and not is_wrong_in_all else found


@dataclass(frozen=True)
class _Kind:
    """One output of one kind of samples."""

    name: str
    exact: Array
    found: Array
    noise: float
    step: float
    slack: float

    @property
    def problem(self) -> str | None:
        """What is wrong beside numbers that are a little off."""
        if self.exact.shape != self.found.shape:
            return f"shape {self.exact.shape} became {self.found.shape}"
        if self.exact.dtype.kind == "f" and np.any(np.isfinite(self.exact) & ~self._is_finite):
            return "values that are finite in Keras are not finite in the file"
        return None

    @functools.cached_property
    def _is_finite(self) -> Array:
        return np.isfinite(self.found.astype(np.float64))

    @functools.cached_property
    def error(self) -> float:
        """The root mean square of the error."""
        return math.inf if self.problem else _rms(self.found, self.exact)

    @property
    def allowed(self) -> float:
        """What it may be."""
        return self.slack * self._explained + self.step / 2

    @property
    def _explained(self) -> float:
        return FACTOR * self.noise

    @functools.cached_property
    def excess(self) -> float:
        """The share of what is allowed."""
        if not self.error:
            return 0.0
        return self.error / self.allowed if self.allowed else math.inf

    @functools.cached_property
    def is_visible(self) -> bool:
        """Whether the output changes from sample to sample by more than is allowed."""
        if self.problem is not None:
            return True
        if len(self.exact) < 2:
            return False
        exact = self.exact.astype(np.float64)
        exact = np.where(np.isfinite(exact), exact, 0)
        return (
            _rms(exact, exact.mean(axis=0, keepdims=True)) * math.sqrt(2)
            > self._explained + self.step / 2
        )


def _rms(found: Array, exact: Array) -> float:
    off = found.astype(np.float64) - exact.astype(np.float64)
    off = off[np.isfinite(off)]
    return float(np.sqrt(np.mean(np.square(off)))) if off.size else 0.0


def _comparison(
    value: Value, runtime: str, decisive: _Kind, kinds: Sequence[_Kind], *, is_told: bool
) -> Comparison:
    offs = [one for one in kinds if one.problem is None]
    largest = max(
        (float(np.nanmax(np.abs(one.found - one.exact), initial=0.0)) for one in offs),
        default=math.inf,
    )
    scale = max((float(np.nanmax(np.abs(one.exact), initial=0.0)) for one in offs), default=0.0)
    return Comparison(
        name=value.name,
        is_output=True,
        tapped_before=None,
        runtime=runtime,
        samples=decisive.name,
        original=None,
        folded=Accuracy(largest, largest / scale if scale else 0.0, _sqnr(decisive)),
        error=decisive.error,
        tolerance=decisive.allowed,
        excess=decisive.excess,
        passed=not is_told or decisive.excess <= 1,
        channels=1,
        exercised=int(is_told),
    )


def _sqnr(kind: _Kind) -> float | None:
    exact = kind.exact.astype(np.float64)
    signal = float(np.sqrt(np.mean(np.square(exact[np.isfinite(exact)])))) if exact.size else 0.0
    if not signal or not kind.error or math.isinf(kind.error):
        return None
    return 20 * math.log10(signal / kind.error)


def _sentence(name: str, value: Value, kind: _Kind, precision: Precision) -> str:
    return (
        f"{name}: output {value.name!r} is off by {kind.error:.3g} (root mean square),"
        f" {kind.error / kind.noise if kind.noise else math.inf:.3g} times what rounding to"
        f" {precision.name} does ({kind.name})"
    )
