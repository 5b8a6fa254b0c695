"""The judgement on deployed files: what they should compute, and whether they do.

What is judged is the file itself, in its own runtime with the optimisations that users get and
without any, against MODEL as `model.predict` computes it: one comparison that covers the fold and
the conversion alike. The rule, the verdicts and the sentences are those of `bnfold verify`: the
reference is MODEL in float64, and for each channel of an output

    |file - reference| <= 8 tolerance

where `tolerance` is 4 times what MODEL itself is off in Keras, or what rounding the weights of the
two Keras models does. What a runtime makes of MODEL itself cannot count, because a wrong
conversion would excuse itself. But another runtime also sums in another order and approximates exp
and tanh otherwise, which the roundings of the weights do not measure; hence the factor. Of
forty kinds of models none took more than a quarter of what that allows.

ONNX Runtime's sigmoid is a quotient of polynomials plus a half: it is off by up to 2.8 u wherever
it is, u = 2^-24, which is much where the exact value is 1e-10. So every sigmoid of the Keras models
is perturbed by u / 4, up or down, beside the weights; times 32 that is three times that error. In
SiLU and GELU it is multiplied by x. What moves less than that, a file cannot be seen to compute.

Where both values are below one rounding of the output's largest magnitude, which for a sigmoid is
one, they count as the same zero: where it is saturated, 1e-43 against 0, nothing that is measured
moves. A softmax in float32 is precise further down, so there only what is next to nothing does.

A file of reduced precision is judged by `bnfold.verification.approximate`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bnfold.running import float64, keras_runner, onnx_file, ports, taps
from bnfold.running.arrays import ROUNDINGS, Array
from bnfold.running.deployed.binding import Binding
from bnfold.running.deployed.model import FULL, Precision
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Interface
from bnfold.running.runner import Runner
from bnfold.running.samples import SampleSet
from bnfold.verification import approximate, fidelity, pairing
from bnfold.verification.approximate import Expected
from bnfold.verification.case import Compared, broken_samples
from bnfold.verification.replay import Keep, replay
from bnfold.verification.result import Basis, Comparison, Fidelity, Verdict, Verification
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

SLACK = 8.0
"""How many tolerances a file may be off, whose runtime sums otherwise than Keras does."""
_SIGMOID = UNIT / 4
_SMALLEST = 2.0**-100
_REPETITIONS = 2
STANDARD_RULE = Rule(slack=SLACK).text()
"""What is allowed where the user does not say it."""
_FLOAT64 = "keras float64"
_BASES = {
    "onnxruntime": Basis.BOTH,
    "litert": Basis.LITERT,
    "tensorflow": Basis.TENSORFLOW,
}
NAMED = {"onnx": "the ONNX file", "tflite": "the LiteRT file", "saved_model": "the SavedModel"}
"""What a file of each format is called in a sentence."""


class OutputCheck(Comparison):
    """One output of the file in one of its runtimes.

    In JSON it is `exercised` if any of its channels is: passing says nothing of one that never
    changed by more than its tolerance.
    """

    json_keys: ClassVar[tuple[str, ...]] = (
        *("name", "runtime", "samples", "max_abs_error", "error", "tolerance", "excess"),
        *("passed", "conclusive"),
    )
    json_names: ClassVar[Mapping[str, str]] = {"name": "output", "conclusive": "exercised"}

    @property
    def max_abs_error(self) -> float:
        """The largest error of all samples."""
        return self.folded.max_abs_error


class Check(Verification):
    """What a deployed model computes, compared with what Keras computes from MODEL.

    Undecided is where nothing differs, but what ran could not have shown a difference.
    """

    json_keys: ClassVar[tuple[str, ...]] = (
        *("verdict", "passed", "library", "reference", "rule", "seed", "sample_count"),
        *("sample_kinds", "is_user_data", "format", "precision", "max_abs_error", "differences"),
        *("warnings", "fidelity", "outputs"),
    )

    @property
    def passed(self) -> bool:
        """Whether the two were seen to compute the same, as far as the file's precision goes."""
        return self.verdict in {Verdict.EQUIVALENT, Verdict.APPROXIMATE}

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
        expected: what the precision of the files does to the values; None where it is MODEL's.
        precision: that of the files.
        is_user_data: whether the samples are the user's.
        keep: is given the samples that showed most of each file.
    """

    case: Compared
    rule: Rule
    reference: str
    exact: Arrays
    native: Arrays
    noise: Sequence[Table]
    warnings: Sequence[str] = ()
    expected: Expected | None = None
    precision: Precision = FULL
    is_user_data: bool = False
    keep: Keep | None = None

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

    def at(self, precision: Precision) -> Trial:
        """The same judgement on files of this precision; MODEL is run anew only to round it.

        Raises CannotRunError.
        """
        if precision == self.precision:
            return self
        expected, steps = None, _steps(self.case)
        if _is_reduced(precision, steps):
            loaded = self.case.original
            if self.reference == _FLOAT64:
                loaded = float64.float64_copy(loaded)
            subject = self.case.in_keras(loaded, self.reference)
            draws = _rounded(self.case, subject, steps, precision)
            expected = approximate.expected(self.exact, draws)
        return replace(self, expected=expected, precision=precision)

    def check(self, binding: Binding) -> Check:
        """Compare a file with Keras. Raises CannotRunError."""
        return Check(**vars(self.judge(binding)))

    def judge(self, binding: Binding) -> Verification:
        """Compare a file with Keras, in each way in which its runtime runs it.

        Raises CannotRunError where it does not run as users run it.
        """
        files, failed = {}, []
        for name, optimised in binding.file.runtimes.items():
            try:
                files[name] = self._evaluate(binding, name, optimised=optimised)
            except CannotRunError as error:
                if optimised:
                    raise
                failed.append(f"{name} could not judge: {error}")
        judged = self._approximately(binding, files)
        if judged is None:
            judged = self._exactly(binding, files)
        if self.keep is not None:
            names = [port.name for port in self.interface.inputs]
            every = {"reference": self.exact, "keras": self.native, **files}
            self.keep(replay(judged, names, self.case.sets, every))
        return replace(
            judged,
            warnings=tuple(dict.fromkeys([*judged.warnings, *failed])),
            fidelity=tuple(self._fidelity(files)),
            format=binding.file.format,
            precision=binding.file.precision.name,
            paired=tuple(binding.said),
            is_user_data=self.is_user_data,
            differences=(*judged.differences, *self._exchanged(judged, files)),
        )

    def _exchanged(self, judged: Verification, files: Mapping[str, Arrays]) -> Iterator[str]:
        """Sentences on outputs that hold what MODEL computes as another one."""
        wrong = {one.name for one in judged.comparisons if not one.passed}
        found = next(iter(files.values()))
        for value in self.case.values:
            for other in self.case.values:
                if value.name not in wrong or other is value:
                    continue
                pairs = zip(self.exact[other], found[value], strict=True)
                if all(one.shape == two.shape and _is_near(one, two) for one, two in pairs):
                    yield f"output {value.name!r} of the file is what MODEL has as {other.name!r}"

    def _exactly(self, binding: Binding, files: Mapping[str, Arrays]) -> Verification:
        found = self._conclude(binding, files, self.noise)
        if found.verdict is Verdict.DIFFERENT and self.case.folded is not self.case.original:
            # A right fold may be noisier than the original, which is measured only where it counts.
            found = self._conclude(binding, files, self._noise_of_fold)
        return found

    def _approximately(self, binding: Binding, files: Mapping[str, Arrays]) -> Verification | None:
        """The verdict on files of reduced precision; None on others."""
        if self.expected is None:
            return None
        steps = [binding.file.outputs[slot.at].scale or 0.0 for slot in binding.outputs]
        judged = approximate.judge(
            self.case, self.expected, files, steps, self.precision, is_user_data=self.is_user_data
        )
        doubts = [*self._doubts, *judged.doubts]
        verdict = Verdict.UNDECIDED if doubts else Verdict.APPROXIMATE
        return Verification(
            verdict=Verdict.DIFFERENT if judged.differences else verdict,
            basis=_BASES[binding.file.runtime],
            differences=judged.differences,
            warnings=tuple(dict.fromkeys([*self.warnings, *doubts, *judged.notes])),
            seed=self.case.seed,
            library=self.case.original.library,
            rule=approximate.text(self.precision),
            comparisons=judged.comparisons,
            reference=self.reference,
            sample_count=sum(one.count for one in self.case.sets),
            sample_kinds=tuple(one.kind for one in self.case.sets),
        )

    def _fidelity(self, files: Mapping[str, Arrays]) -> Iterator[Fidelity]:
        """The figures of every output in every runtime."""
        ends = taps.find(self.case.original.model)
        counts_all = self.case.counts_all and not any(ends)
        for name, found in files.items():
            for value, end in zip(self.case.values, ends, strict=True):
                told = fidelity.measured(
                    value.name,
                    name,
                    self.exact[value],
                    found[value],
                    decides=fidelity.decides(
                        None if end is None else end.activation, counts_all=counts_all
                    ),
                )
                if told is not None:
                    yield told

    def _evaluate(self, binding: Binding, name: str, *, optimised: bool) -> Arrays:
        run = functools.partial(binding.evaluate, optimised=optimised)
        return Runner(name, self.case.values, run, self.case.folded).evaluate(self.case.sets)

    def _forgiven(self, found: Arrays) -> Arrays:
        """The same without what no runtime can help, near zero."""
        return {
            value: [
                _without_noise(exact, one, self._floors[value])
                for exact, one in zip(self.exact[value], column, strict=True)
            ]
            for value, column in found.items()
        }

    @functools.cached_property
    def _floors(self) -> dict[Value, float]:
        """What counts as zero in each output: one rounding of its largest magnitude.

        A softmax in float32 has its smallest values as precisely as its largest, and so the classes
        that no sample is of can be told from one another.
        """
        ends = taps.find(self.case.original.model)
        found = {}
        for (value, column), unit, tap in zip(
            self.exact.items(), _units(self.case), ends, strict=True
        ):
            if tap is not None and tap.activation == "softmax" and unit <= UNIT:
                found[value] = _SMALLEST
            else:
                sizes = [Truth(one).max_abs for one in column]
                found[value] = unit * max(sizes + [1.0] * (tap is not None))
        return found

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
        self, binding: Binding, files: Mapping[str, Arrays], noise_of_fold: Sequence[Table]
    ) -> Verification:
        measures = references(self.exact, _units(self.case), self.noise, noise_of_fold)
        is_native = self.exact is self.native
        own = None if is_native else table(self.exact, self.native)
        where = self.case.comparable(self.native)
        # 16 bits end where exact numbers do not.
        forgive = is_native and max(_steps(self.case), default=0.0) > 2 * UNIT
        names = ("Keras", NAMED[binding.file.format])
        runs = [
            Run(
                name=name,
                references=measures,
                original=own,
                folded=table(self.exact, self._forgiven(found), where),
                problems=problems(
                    self.exact, found, forgive_overflow=forgive, where=where, names=names
                ),
            )
            for name, found in files.items()
        ]
        evidence = Evidence(
            runs=runs,
            reference=self.reference,
            runtimes={"keras", binding.file.runtime},
            warnings=list(self.warnings),
            doubts=self._doubts,
        )
        found, _ = conclude(self.case, replace(self.rule, slack=SLACK), evidence)
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
    precision: Precision = FULL,
    is_user_data: bool = False,
) -> Trial:
    """Run MODEL with Keras, as it is and in float64, also with its weights perturbed.

    They are perturbed by the rounding to `precision`, which files to be judged have.

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
        reference = double.name
    except CannotRunError as error:
        warnings = [
            *warnings,
            f"no float64 reference, so that an error of both is not seen: {error}",
        ]
        noise = _noise(case, subject, native, steps)
        reference, exact = subject.name, native
    trial = Trial(
        case=case,
        rule=rule,
        reference=reference,
        exact=exact,
        native=native,
        noise=noise,
        warnings=warnings,
        is_user_data=is_user_data,
    )
    return trial.at(precision)


def _is_reduced(precision: Precision, steps: Sequence[float]) -> bool:
    """Whether files are less precise than MODEL, whose weights rounding moves by these steps."""
    own = max(steps, default=2 * UNIT) / 2
    return precision.is_quantized or ROUNDINGS[precision.float_dtype] > own


def _rounded(
    case: Compared, subject: Runner[Value], steps: Sequence[float], precision: Precision
) -> list[Arrays]:
    """What MODEL computes when it is rounded to a precision, each time that this is drawn."""
    least = ROUNDINGS[precision.float_dtype]
    moved = [max(step / 2, least) if step else 0.0 for step in steps]
    of_largest = 0.0 if precision.weight_bits is None else 2.0**-precision.weight_bits
    of_range = 2.0 ** -(precision.value_bits + 1) if precision.value_bits else least / 2
    # One kind of samples at a time: ranges are those of the values that are there.
    generator = np.random.default_rng(case.seed)
    alone = [
        replace(
            one,
            alone=True,
            inputs=tuple(_rounded_input(each, of_range, generator) for each in one.inputs),
        )
        for one in case.sets
    ]
    with keras_runner.quantized(subject.loaded, of_range, case.seed):
        perturbed = subject.perturbed(alone, moved, _REPETITIONS, case.seed, of_largest=of_largest)
        with contextlib.closing(perturbed):
            return list(perturbed)


def _rounded_input(array: Array, of_range: float, generator: np.random.Generator) -> Array:
    """Samples as a file of reduced precision takes them, which has its inputs rounded too."""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array[:0]
    if not finite.size:
        return array
    length = float(max(finite.max(), 0) - min(finite.min(), 0))
    off = of_range * length * generator.uniform(-1, 1, array.shape)
    return np.asarray(array + off, array.dtype)


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
    """What a runtime computes, put to the reference where both are below the floor."""
    if exact.shape != value.shape or value.dtype.kind != "f":
        return value
    with np.errstate(invalid="ignore"):
        return np.where(np.maximum(np.abs(value), np.abs(exact)) <= floor, exact, value)


def _is_near(exact: Array, value: Array) -> bool:
    """Whether two arrays are the same but for what a low precision does."""
    if exact.dtype.kind != "f" or value.dtype.kind != "f":
        return bool(np.array_equal(exact, value))
    size = exact.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = value - size
    known = np.isfinite(size)
    return bool(np.sum(np.square(off[known])) <= 0.01 * np.sum(np.square(size[known])))


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
