"""Whether an ONNX file computes what a Keras model computes.

What is judged is the file itself, in ONNX Runtime with its graph optimisations as users get them
and without any, against MODEL as `model.predict` computes it: one comparison that covers the fold
and the conversion alike. The rule, the verdicts and the sentences are those of `bnfold verify`: the
reference is MODEL in float64, and for each channel of an output

    |onnx - reference| <= 8 tolerance

where `tolerance` is 4 times what MODEL itself is off in Keras, or what rounding the weights of the
two Keras models does. What ONNX Runtime makes of MODEL itself cannot count, because a wrong
conversion would excuse itself. But another runtime also sums in another order and approximates exp
and tanh otherwise, which the roundings of the weights do not measure; hence the factor. Of
forty kinds of models none took more than a quarter of what that allows.

ONNX Runtime's sigmoid is a quotient of polynomials plus a half: it is off by up to 2.8 u wherever
it is, u = 2^-24, which is much where the exact value is 1e-10. So every sigmoid of the Keras models
is perturbed by u / 4, up or down, beside the weights; times 32 that is three times that error. In
SiLU and GELU it is multiplied by x. What moves less than that, a file cannot be seen to compute.

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

from bnfold.running import float64, keras_runner, onnx_file, ports, taps
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Interface
from bnfold.running.runner import Runner
from bnfold.running.samples import SampleSet, run_all
from bnfold.verification import pairing
from bnfold.verification.case import Compared, broken_samples
from bnfold.verification.result import Comparison, Verdict, Verification
from bnfold.verification.runs import Evidence, Run
from bnfold.verification.tolerance import UNIT, Rule, Truth, rough
from bnfold.verification.values import (
    Arrays,
    Table,
    Value,
    all_agree,
    movement,
    problems,
    references,
    table,
)
from bnfold.verification.verdict import conclude

_SLACK = 8.0
_SIGMOID = UNIT / 4
_REPETITIONS = 2
RUNTIMES = {"onnxruntime": True, "onnxruntime without optimisations": False}
"""How ONNX Runtime runs the file, and whether it optimises the graph."""
STANDARD_RULE = Rule(slack=_SLACK).text()
"""What is allowed where the user does not say it."""
_FLOAT64 = "keras float64"
_NAMES = ("Keras", "the ONNX file")


class OutputCheck(Comparison):
    """One output of the ONNX file in one of `RUNTIMES`.

    In JSON it is `exercised` if any of its channels is: passing says nothing of one that never
    changed by more than its tolerance.
    """

    json_keys: ClassVar[tuple[str, ...]] = (
        *("name", "runtime", "samples", "max_abs_error", "error", "tolerance", "excess"),
        *("passed", "conclusive"),
    )
    json_names: ClassVar = {"name": "output", "conclusive": "exercised"}

    @property
    def max_abs_error(self) -> float:
        """The largest error of all samples."""
        return self.folded.max_abs_error


class Check(Verification):
    """What ONNX Runtime computes, compared with what Keras computes from MODEL.

    Undecided is where nothing differs, but what ran could not have shown a difference.
    """

    json_keys: ClassVar[tuple[str, ...]] = (
        *("verdict", "passed", "library", "reference", "rule", "seed", "sample_count"),
        *("sample_kinds", "max_abs_error", "differences", "warnings", "outputs"),
    )

    @property
    def passed(self) -> bool:
        """Whether the two were seen to compute the same."""
        return bool(self)

    @property
    def outputs(self) -> tuple[OutputCheck, ...]:
        """Every output in every runtime."""
        return tuple(OutputCheck(**vars(row)) for row in self.comparisons)

    def accepted(self, *, strict: bool = False) -> bool:
        """Whether the file may be written: nothing differs, and with `strict` all was seen."""
        return self.passed if strict else self.verdict is not Verdict.DIFFERENT

    @property
    def max_excess(self) -> float:
        """The largest share of its tolerance that an error took."""
        return max((one.excess for one in self.comparisons), default=0.0)


@dataclass(frozen=True)
class Trial:
    """The judgement on files that should compute what MODEL computes.

    Attributes:
        case: MODEL and what is in the files, as Keras models, one and the same where nothing was
            folded; and the outputs, under the names that they have in the file.
        rule: what is allowed.
        reference: the evaluation of MODEL that files are compared with.
        exact: its values.
        native: what MODEL computes as it is.
        noise: how far the values move with the rounding of weights, each time that it was drawn.
        warnings: sentences on what limits the claim.
    """

    case: Compared
    rule: Rule
    reference: str
    exact: Arrays
    native: Arrays
    noise: Sequence[Table]
    warnings: Sequence[str] = ()

    @functools.cached_property
    def interface(self) -> Interface:
        """What MODEL promises to those who call it, and so does the file."""
        return ports.interface(self.case.original.model)

    @property
    def batched(self) -> list[bool]:
        """For every output, whether its first axis counts the samples."""
        counts = [one.count for one in self.case.sets]
        return [
            port.shape[:1] == (None,) and [one.shape[0] for one in column] == counts
            for port, column in zip(self.interface.outputs, self.native.values(), strict=True)
        ]

    def check(self, path: Path) -> Check:
        """Compare an ONNX file with Keras. Raises CannotRunError."""
        files = {name: self._evaluate(path, name, best) for name, best in RUNTIMES.items()}
        found = self._conclude(files, self.noise)
        if found.verdict is Verdict.DIFFERENT and self.case.folded is not self.case.original:
            # A right fold may be noisier than the original, which is measured only where it counts.
            found = self._conclude(files, self._noise_of_fold)
        return Check(**vars(found))

    def _evaluate(self, path: Path, name: str, optimised: bool) -> Arrays:
        exported = onnx_file.open_onnx(path, optimised=optimised)
        dtypes = [port.dtype for port in self.interface.outputs]
        run = functools.partial(run_all, functools.partial(onnx_file.run_as, exported, dtypes))
        runner = Runner(name, self.case.values, run, self.case.folded)
        return {
            value: [
                _without_noise(exact, one, self._floors[value])
                for exact, one in zip(self.exact[value], column, strict=True)
            ]
            for value, column in runner.evaluate(self.case.sets).items()
        }

    @functools.cached_property
    def _floors(self) -> dict[Value, float]:
        """What counts as zero in each output: one rounding of its largest magnitude."""
        ends = taps.find(self.case.original.model)
        return {
            value: unit * max([Truth(one).max_abs for one in column] + [1.0] * (tap is not None))
            for (value, column), unit, tap in zip(
                self.exact.items(), _units(self.case), ends, strict=True
            )
        }

    @functools.cached_property
    def _noise_of_fold(self) -> Sequence[Table]:
        """How far the values of the folded model move, about its own."""
        loaded = self.case.folded
        if self.reference == _FLOAT64:
            loaded = float64.float64_copy(loaded)
        subject = self.case.in_keras(loaded)
        steps = keras_runner.rounding_steps(self.case.folded).computed
        return _noise(self.case, subject, subject.evaluate(self.case.sets), steps)

    def _conclude(
        self, files: Mapping[str, Arrays], noise_of_fold: Sequence[Table]
    ) -> Verification:
        measures = references(self.exact, _units(self.case), self.noise, noise_of_fold)
        is_native = self.exact is self.native
        own = None if is_native else table(self.exact, self.native)
        where = self.case.comparable(self.native)
        # 16 bits end where exact numbers do not.
        forgive = is_native and max(_steps(self.case), default=0.0) > 2 * UNIT
        runs = [
            Run(
                name=name,
                references=measures,
                original=own,
                folded=table(self.exact, found, where),
                problems=problems(
                    self.exact, found, forgive_overflow=forgive, where=where, names=_NAMES
                ),
            )
            for name, found in files.items()
        ]
        evidence = Evidence(
            runs=runs,
            reference=self.reference,
            runtimes={"keras", "onnxruntime"},
            warnings=list(self.warnings),
            doubts=self._doubts,
        )
        found, _ = conclude(self.case, replace(self.rule, slack=_SLACK), evidence)
        return found

    @functools.cached_property
    def _doubts(self) -> list[str]:
        """The outputs of which Keras itself makes what cannot be compared, from finite inputs."""
        return [
            f"output {value.name!r} has values that are not finite in Keras itself"
            for value in self.case.values
            if any(
                _breaks(one, drawn)
                for arrays in (self.native, self.exact)
                for one, drawn in zip(arrays[value], self.case.sets, strict=True)
            )
        ]


def expect(
    original: LoadedModel,
    folded: LoadedModel,
    sets: list[SampleSet],
    *,
    seed: int,
    rule: Rule,
    warnings: Sequence[str],
) -> Trial:
    """Run MODEL with Keras, as it is and in float64, also with its weights perturbed.

    Raises CannotRunError when Keras cannot run it at all.
    """
    outputs = onnx_file.named_ports(ports.interface(original.model))[1]
    values = tuple(
        Value(port.name, is_output=True, axes=axes)
        for port, axes in zip(outputs, pairing.output_axes(original.model), strict=True)
    )
    case = Compared(original=original, folded=folded, values=values, sets=sets, seed=seed)
    subject, steps = case.in_keras(original), _steps(case)
    native = subject.evaluate(sets)
    try:
        double = case.in_keras(float64.float64_copy(original), _FLOAT64)
        exact = double.evaluate(sets)
        noise = _noise(case, double, exact, steps)
        if not all_agree(references(exact, _units(case), noise, noise), native, rough(steps)):
            raise CannotRunError("the copy in float64 computes something else")
    except CannotRunError as error:
        warnings = [*warnings, f"no float64, a weaker claim: {error}"]
        noise = _noise(case, subject, native, steps)
        return Trial(case, rule, subject.name, native, native, noise, warnings)
    return Trial(case, rule, double.name, exact, native, noise, warnings)


def _steps(case: Compared) -> Sequence[float]:
    return keras_runner.rounding_steps(case.original).computed


def _units(case: Compared) -> Sequence[float]:
    return keras_runner.output_units(case.original, _steps(case))


def _noise(
    case: Compared, subject: Runner[Value], exact: Arrays, steps: Sequence[float]
) -> list[Table]:
    """How far the values of a model move with its weights, and with its sigmoids."""
    with keras_runner.approximated(subject.loaded, _SIGMOID, case.seed):
        perturbed = subject.perturbed(case.sets, steps, _REPETITIONS, case.seed)
        return list(movement(exact, perturbed))


def _without_noise(exact: Array, value: Array, floor: float) -> Array:
    """What ONNX Runtime computes, put to the reference where both are below the floor."""
    if exact.shape != value.shape or value.dtype.kind != "f":
        return value
    with np.errstate(invalid="ignore"):
        return np.where(np.maximum(np.abs(value), np.abs(exact)) <= floor, exact, value)


def _breaks(value: Array, drawn: SampleSet) -> bool:
    """Whether a value is not finite though all that it is made of is."""
    broken = broken_samples(value, drawn.count)
    if broken is None:
        return False
    clean = np.ones(drawn.count, bool)
    for array in drawn.inputs:
        odd = broken_samples(array, drawn.count)
        clean &= True if odd is None else ~odd
    return bool(np.any(broken & (clean if len(broken) == len(clean) else clean.all())))
