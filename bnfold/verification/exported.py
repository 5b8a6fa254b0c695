"""Whether an ONNX file computes what a Keras model computes.

What is judged is the file itself, in ONNX Runtime with its graph optimisations as users get them
and without any, against MODEL as `model.predict` computes it: one comparison that covers the fold
and the conversion alike. The rule, the verdicts and the sentences are those of `bnfold verify`: the
reference is MODEL in float64, and for each channel of an output

    |onnx - reference| <= 8 tolerance

where `tolerance` is 4 times what MODEL itself is off in Keras, or what rounding the weights of the
two Keras models does. What ONNX Runtime makes of MODEL itself cannot count, because a wrong
conversion would excuse itself. But another runtime also sums in another order and approximates exp
and tanh in another way, which the roundings of the weights do not measure; hence the factor. Of
forty kinds of models none took more than a quarter of what that allows.

ONNX Runtime's sigmoid is a quotient of polynomials plus a half: it is off by up to 2.8 u wherever
it is, u = 2^-24, which is much where the exact value is 1e-10. So every sigmoid of the Keras models
is moved by u / 4, up or down, beside the weights; times 32 that is three times that error. In SiLU
and GELU it is multiplied by x. What moves less than that, a file cannot be seen to compute.

Where both values are below one rounding of the output's largest magnitude, which for a softmax or
sigmoid is one, they count as the same zero: where those are saturated, 1e-43 against 0, nothing
that is measured moves.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnfold.running import float64, keras_runner, onnx_file, ports, samples, taps
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Interface, Port
from bnfold.running.samples import SampleSet
from bnfold.serialize import Serializable
from bnfold.verification import pairing
from bnfold.verification.case import Compared
from bnfold.verification.result import Comparison, Verdict, Verification
from bnfold.verification.runs import Evidence, Run
from bnfold.verification.tolerance import UNIT, Rule, Truth, agrees, rough
from bnfold.verification.values import (
    Arrays,
    Masks,
    References,
    Table,
    Value,
    by_value,
    movement,
    references,
    table,
)
from bnfold.verification.verdict import conclude

_SLACK = 8.0
_SIGMOID = UNIT / 4
_REPETITIONS = 2
RUNTIMES = {"onnxruntime": True, "onnxruntime without optimisations": False}
"""The ways in which ONNX Runtime runs the file, and whether it optimises the graph."""
STANDARD_RULE = Rule(slack=_SLACK).text()
"""What is allowed where the user does not say it."""
_FLOAT64 = "keras float64"


@dataclass(frozen=True)
class OutputCheck(Serializable):
    """One output of the ONNX file in one way to run it.

    `max_abs_error` is the largest error of all samples. `error` and `tolerance` are those of the
    channel with the largest ratio of the two, which is `excess`, and `samples` is the kind of
    samples it was found at. `exercised` is False for an output that never changed by more than its
    tolerance, so that passing says nothing.
    """

    output: str
    runtime: str
    samples: str
    max_abs_error: float
    error: float
    tolerance: float
    excess: float
    passed: bool
    exercised: bool


@dataclass(frozen=True)
class Check(Serializable):
    """What ONNX Runtime computes, compared with what Keras computes from MODEL.

    Attributes:
        verdict: as of a verification; undecided where nothing differs, but what ran could not have
            shown a difference.
        outputs: every output in every runtime.
        differences: sentences on what is not the same; empty when nothing is.
        warnings: sentences on what limits this.
        sample_count: how many samples were run.
        sample_kinds: what kinds of samples.
        seed: the seed that they come from.
        library: "keras" or "tf_keras".
        rule: what was allowed, in a sentence.
        yardstick: the evaluation that the file is compared with.
    """

    verdict: Verdict
    outputs: tuple[OutputCheck, ...]
    differences: tuple[str, ...]
    warnings: tuple[str, ...]
    sample_count: int
    sample_kinds: tuple[str, ...]
    seed: int
    library: str
    rule: str
    yardstick: str

    json_keys: ClassVar = (
        *("verdict", "passed", "library", "yardstick", "rule", "seed", "sample_count"),
        *("sample_kinds", "max_abs_error", "differences", "warnings", "outputs"),
    )

    def __bool__(self) -> bool:
        """Whether it passed."""
        return self.passed

    @property
    def passed(self) -> bool:
        """Whether the two were seen to compute the same."""
        return self.verdict is Verdict.EQUIVALENT

    def accepted(self, *, strict: bool = False) -> bool:
        """Whether the file may be written: nothing differs, and with `strict` all was seen."""
        return self.passed if strict else self.verdict is not Verdict.DIFFERENT

    @property
    def max_excess(self) -> float:
        """The largest share of its tolerance that an error took."""
        return max((one.excess for one in self.outputs), default=0.0)

    @property
    def max_abs_error(self) -> float:
        """The largest error of all outputs."""
        return max((one.max_abs_error for one in self.outputs), default=0.0)


def named_ports(interface: Interface) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of the ONNX file: the model's, under names that occur once."""
    inputs, outputs = onnx_file.port_names(interface)
    return _renamed(interface.inputs, inputs), _renamed(interface.outputs, outputs)


def _renamed(ports: Sequence[Port], names: Sequence[str]) -> tuple[Port, ...]:
    return tuple(replace(port, name=name) for port, name in zip(ports, names, strict=True))


@dataclass(frozen=True)
class Expected:
    """What MODEL computes, in float64 where that can be had, and as it is.

    Attributes:
        name: the evaluation that files are compared with.
        exact: its values, the outputs under the names that they have in the file.
        native: what MODEL computes as it is.
        units: the smallest error to count with, of each value.
        noise: how far the values move with the rounding of weights, each time that it was drawn.
        warnings: sentences on what limits the claim.
        may_overflow: whether it is in 16 bits, which end where exact numbers do not.
    """

    name: str
    exact: Arrays
    native: Arrays
    units: Sequence[float]
    noise: Sequence[Table]
    warnings: Sequence[str] = ()
    may_overflow: bool = False

    @property
    def values(self) -> tuple[Value, ...]:
        """The outputs."""
        return tuple(self.native)


def expect(loaded: LoadedModel, sets: Sequence[SampleSet], seed: int) -> Expected:
    """Run MODEL with Keras, as it is and in float64, also with its weights perturbed.

    Raises CannotRunError when Keras cannot run it at all.
    """
    values = _values(loaded)
    native = by_value(values, keras_runner.evaluate(loaded, sets, training=False))
    steps = keras_runner.rounding_steps(loaded).computed
    units = keras_runner.output_units(loaded, steps)
    try:
        double = float64.float64_copy(loaded)
        exact = by_value(values, keras_runner.evaluate(double, sets, training=False))
        noise = _noise(double, exact, sets, steps, seed)
        for value, column in references(exact, units, noise, noise).items():
            pairs = zip(column, native[value], strict=True)
            if not all(agrees(one, two, rough(steps)) for one, two in pairs):
                raise CannotRunError("the copy in float64 computes something else")
    except CannotRunError as error:
        warning = f"no float64, a weaker claim: {error}"
        noise = _noise(loaded, native, sets, steps, seed)
        may_overflow = max(steps, default=0.0) > 2 * UNIT
        return Expected("keras", native, native, units, noise, [warning], may_overflow)
    return Expected(_FLOAT64, exact, native, units, noise)


def _values(loaded: LoadedModel) -> tuple[Value, ...]:
    """The outputs of a model under the names that they have in the ONNX file."""
    outputs = named_ports(ports.interface(loaded.model))[1]
    axes = pairing.output_axes(loaded.model)
    return tuple(
        Value(port.name, is_output=True, axes=own) for port, own in zip(outputs, axes, strict=True)
    )


def _noise(
    loaded: LoadedModel,
    exact: Arrays,
    sets: Sequence[SampleSet],
    steps: Sequence[float],
    seed: int,
) -> list[Table]:
    """How far the values of a model move with its weights, and with its sigmoids."""
    with keras_runner.approximated(loaded, _SIGMOID, seed):
        perturbed = keras_runner.perturbed(
            loaded, sets, steps=steps, repetitions=_REPETITIONS, seed=seed, training=False
        )
        return list(movement(exact, perturbed))


@dataclass(frozen=True)
class Trial:
    """The judgement on files that should compute what MODEL computes.

    `original` is MODEL and `folded` what is in the files, as Keras models: one and the same where
    nothing was folded. `warnings` are on what was run.
    """

    original: LoadedModel
    folded: LoadedModel
    expected: Expected
    sets: list[SampleSet]
    seed: int
    rule: Rule
    warnings: Sequence[str] = ()

    @functools.cached_property
    def interface(self) -> Interface:
        """What MODEL promises to those who call it, and so does the file."""
        return ports.interface(self.original.model)

    @property
    def batched(self) -> list[bool]:
        """For every output, whether its first axis counts the samples."""
        counts = [one.count for one in self.sets]
        columns = self.expected.native.values()
        return [
            port.shape[:1] == (None,) and [one.shape[0] for one in column] == counts
            for port, column in zip(self.interface.outputs, columns, strict=True)
        ]

    def check(self, path: Path) -> Check:
        """Compare an ONNX file with Keras. Raises CannotRunError."""
        files = {name: self._evaluate(path, optimised=best) for name, best in RUNTIMES.items()}
        found = self._conclude(files, self.expected.noise)
        if found.verdict is Verdict.DIFFERENT and self.folded is not self.original:
            # A right fold may be noisier than the original, which is measured only where it counts.
            found = self._conclude(files, self._noise_of_fold)
        return _check(found)

    def _evaluate(self, path: Path, *, optimised: bool) -> Arrays:
        exported = onnx_file.open_onnx(path, optimised=optimised)
        dtypes = [port.dtype for port in self.interface.outputs]
        rows = samples.run_all(functools.partial(onnx_file.run_as, exported, dtypes), self.sets)
        return {
            value: [
                _without_noise(exact, one, self._floors[value])
                for exact, one in zip(self.expected.exact[value], column, strict=True)
            ]
            for value, column in by_value(self.expected.values, rows).items()
        }

    @functools.cached_property
    def _floors(self) -> dict[Value, float]:
        """What counts as zero in each output: one rounding of its largest magnitude."""
        known = self.expected
        ends = zip(known.values, known.units, taps.find(self.original.model), strict=True)
        return {
            value: unit
            * max([Truth(one).max_abs for one in known.exact[value]] + [1.0] * (tap is not None))
            for value, unit, tap in ends
        }

    @functools.cached_property
    def _noise_of_fold(self) -> Sequence[Table]:
        """How far the values of the folded model move, about its own."""
        subject = self.folded
        if self.expected.name == _FLOAT64:
            subject = float64.float64_copy(subject)
        rows = keras_runner.evaluate(subject, self.sets, training=False)
        steps = keras_runner.rounding_steps(self.folded).computed
        return _noise(subject, by_value(self.expected.values, rows), self.sets, steps, self.seed)

    def _conclude(
        self, files: Mapping[str, Arrays], noise_of_fold: Sequence[Table]
    ) -> Verification:
        known = self.expected
        measures = references(known.exact, known.units, known.noise, noise_of_fold)
        own = None if known.exact is known.native else table(known.exact, known.native)
        compared = Compared(
            original=self.original,
            folded=self.folded,
            values=known.values,
            sets=self.sets,
            seed=self.seed,
        )
        evidence = Evidence(
            runs=[self._run(name, measures, own, found) for name, found in files.items()],
            reference=known.name,
            runtimes={"keras", "onnxruntime"},
            warnings=[*self.warnings, *known.warnings],
            doubts=self._doubts,
        )
        return conclude(compared, replace(self.rule, slack=_SLACK), evidence)

    def _run(self, name: str, measures: References, own: Table | None, found: Arrays) -> Run:
        known, problems = self.expected, {}
        where: Masks = {
            value: [_finite(one) for one in column] for value, column in known.native.items()
        }
        for value, column in found.items():
            for three in zip(known.native[value], known.exact[value], column, strict=True):
                problem = _problem(*three, forgive_overflow=known.may_overflow)
                if problem is not None:
                    problems[value] = problem
        return Run(name, measures, own, table(known.exact, found, where), problems)

    @functools.cached_property
    def _doubts(self) -> list[str]:
        """The outputs of which Keras itself makes what cannot be compared, from finite inputs."""
        known = self.expected
        return [
            f"output {value.name!r} has values that are not finite in Keras itself"
            for value in known.values
            if any(
                _breaks(one, drawn)
                for arrays in (known.native, known.exact)
                for one, drawn in zip(arrays[value], self.sets, strict=True)
            )
        ]


def _without_noise(exact: Array, value: Array, floor: float) -> Array:
    """What ONNX Runtime computes, put to the reference where both are below the floor."""
    if exact.shape != value.shape or value.dtype.kind != "f":
        return value
    with np.errstate(invalid="ignore"):
        return np.where(np.maximum(np.abs(value), np.abs(exact)) <= floor, exact, value)


def _finite(value: Array) -> Array | None:
    return np.isfinite(value) if value.dtype.kind in "fc" else None


def _problem(native: Array, exact: Array, value: Array, *, forgive_overflow: bool) -> str | None:
    """What is wrong with the numbers that are not finite, if anything.

    What is not finite in Keras must not be finite in the file, but where Keras overflowed in 16
    bits, which float64 tells from what is not finite at all.
    """
    if native.shape != value.shape or native.dtype.kind not in "fc":
        return None
    if np.any(np.isfinite(native) & ~np.isfinite(value)):
        return "values that are finite in Keras are not finite in the ONNX file"
    if np.any(~np.isfinite(exact) & np.isfinite(value)) and not forgive_overflow:
        return "values that are not finite in Keras are finite in the ONNX file"
    return None


def _breaks(value: Array, drawn: SampleSet) -> bool:
    """Whether a value is not finite though all that it is made of is."""
    if value.dtype.kind not in "fc" or np.isfinite(value).all():
        return False
    clean = np.ones(drawn.count, bool)
    for array in drawn.inputs:
        if array.dtype.kind in "fc":
            clean &= np.isfinite(array).reshape(drawn.count, -1).all(axis=1)
    if len(value) != drawn.count:
        return bool(clean.all())
    return bool(np.any(clean & ~np.isfinite(value).reshape(drawn.count, -1).all(axis=1)))


def _check(found: Verification) -> Check:
    return Check(
        verdict=found.verdict,
        outputs=tuple(_output(one) for one in found.comparisons),
        differences=found.differences,
        warnings=found.warnings,
        sample_count=found.sample_count,
        sample_kinds=found.sample_kinds,
        seed=found.seed,
        library=found.library,
        rule=found.rule,
        yardstick=str(found.yardstick),
    )


def _output(row: Comparison) -> OutputCheck:
    return OutputCheck(
        output=row.name,
        runtime=row.runtime,
        samples=row.samples,
        max_abs_error=row.folded.max_abs_error,
        error=row.error,
        tolerance=row.tolerance,
        excess=row.excess,
        passed=row.passed,
        exercised=row.conclusive,
    )
