"""The order of a verification: refuse, load, compare the interface, run, judge, sum up.

Every runtime is first tried on the original. What cannot run the original, or computes something
else than Keras does, says nothing about the folded model and is left out with a warning.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import VerificationImpossibleError
from bnfold.verification import runtime, safety, samples, tensors
from bnfold.verification.compare import Array, Measurement, Outcome, Rule, agrees, compare, varies
from bnfold.verification.result import Basis, Comparison, Verdict, Verification
from bnfold.verification.runtime import CannotRunError, LoadedModel, Moves
from bnfold.verification.samples import SampleSet

Progress = Callable[[str], None]
Measured = list[list[Measurement]]  # by sample set, then by output

_REPETITIONS = 4
_REPETITIONS_LARGE = 2
_LARGE = (
    4_000_000  # weights; the outputs of large models average over so many that two runs are enough
)


def verify(
    original: Path,
    folded: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    classes: Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Judge whether `folded` computes what `original` computes.

    `data` is a .npz or .npy file with samples instead of generated ones; `trust` allows code from
    the files (Lambda layers and the like); `imports` are modules to import first because they
    register custom layers, `classes` such layers themselves by name; `rtol` and `atol` (relative to
    each channel's magnitude, absolute) replace the measured tolerance. `progress` is called with
    the name of each stage.

    Raises UnreadableModelError, UnsafeModelError, VerificationImpossibleError when neither Keras
    nor ONNX Runtime can run the models, and BnfoldError for data that does not fit.
    """
    report = progress or _silent
    files = [safety.read_facts(Path(path)) for path in (original, folded)]
    if not trust:
        for facts in files:
            safety.refuse_code(facts)
    report("loading TensorFlow")
    runtime.start()
    report("loading the models")
    try:
        pair = runtime.load_pair(files[0], files[1], imports, classes or {}, trust=trust)
    except CannotRunError as error:
        return _unloadable(error, seed, Rule(rtol, atol))
    trial = _Trial(*pair, seed=seed, rule=Rule(rtol, atol), report=report)
    trial.differences.extend(_interface_differences(*pair))
    if not trial.differences:
        trial.prepare(data)
        trial.run()
    return trial.conclude()


def _unloadable(error: CannotRunError, seed: int, rule: Rule) -> Verification:
    """The outcome when Keras loads the original and not the other file."""
    difference = f"Keras loads the original but not the other model: {error}"
    return Verification(
        Verdict.DIFFERENT, Basis.INTERFACE, (), (difference,), (), 0, (), seed, "keras", rule.text()
    )


def _silent(_: str) -> None:
    """Report progress to nobody."""


def _interface_differences(original: LoadedModel, folded: LoadedModel) -> list[str]:
    return tensors.differences(tensors.interface(original.model), tensors.interface(folded.model))


@dataclass
class _Trial:
    """Two loaded models and what has been found out about them so far."""

    original: LoadedModel
    folded: LoadedModel
    seed: int
    rule: Rule
    report: Progress
    sets: list[SampleSet] = field(default_factory=list)
    labels: list[tuple[str, str | None]] = field(default_factory=list)
    training: bool | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    runtimes: set[str] = field(default_factory=set)

    # --- before the runs ---

    def prepare(self, data: Path | None) -> None:
        """Tap the outputs and make the samples."""
        names = [port.name for port in tensors.interface(self.original.model).outputs]
        specs = tensors.input_specs(self.original.model)
        if data is not None:
            user_set, warning = samples.load(data, specs)
            self.sets = [user_set]
            self.warnings.extend([warning] if warning else [])
        taps = runtime.prepare_pair(self.original, self.folded)
        self.labels = [
            (name, tap.activation if tap else None) for name, tap in zip(names, taps, strict=True)
        ]
        if data is None:
            size = runtime.free_size(self.original, specs)
            self.sets = samples.generate(specs, self.seed, size)

    # --- the runs ---

    def run(self) -> None:
        """Judge in every arithmetic that can run the original."""
        self.report("running both models with Keras")
        steps = [runtime.moves(loaded) for loaded in (self.original, self.folded)]
        try:
            self.training = self._choose_mode(steps[0].computed)
            reference = self._measure(self.original, steps[0].computed)
        except CannotRunError as error:
            self._run_onnx_alone(steps, error)
            return
        candidate = self._candidate(steps[1].computed)
        if candidate is None:
            return
        self.runtimes.add("keras")
        exported = self._run_onnx(reference, candidate)
        has_float64 = self._run_float64(steps, reference)
        self._judge("keras", reference, candidate, forgive_overflow=has_float64)
        if exported is not None:
            self.runtimes.add("onnxruntime")
            self._judge("onnxruntime", *exported, forgive_overflow=has_float64)

    def _choose_mode(self, steps: Sequence[float]) -> bool | None:
        """Choose None, as users call a model, unless that is random: then training=False.

        The two differ only where the file itself calls a layer with training=True.
        """
        if runtime.is_repeatable(self.original, self.sets[0], steps, self.seed):
            return None
        self.warnings.append("random layers that are called with training=True were switched off")
        return False

    def _measure(self, loaded: LoadedModel, steps: Sequence[float]) -> Measured:
        return runtime.measure(
            loaded, self.sets, steps, _repetitions(loaded), self.seed, training=self.training
        )

    def _candidate(self, steps: Sequence[float]) -> Measured | None:
        try:
            return self._measure(self.folded, steps)
        except CannotRunError as error:
            self.differences.append(f"Keras runs the original but not the folded model: {error}")
            return None

    def _run_float64(self, steps: Sequence[Moves], reference: Measured) -> bool:
        """Judge in float64; whether that was possible."""
        self.report("running both models in float64")
        try:
            truth = self._measure(runtime.float64_copy(self.original), steps[0].stored)
            if not all(
                agrees(native, exact.value)
                for natives, exacts in zip(reference, truth, strict=True)
                for native, exact in zip(natives, exacts, strict=True)
                if _is_all_finite(native.value)
            ):
                raise CannotRunError("the copy in float64 does not compute what the original does")
            candidate = self._measure(runtime.float64_copy(self.folded), steps[1].stored)
        except CannotRunError as error:
            self.warnings.append(f"no comparison in float64: {error}")
            return False
        finally:
            gc.collect()  # Keras models are reference cycles; the copies are large
        self._judge("keras float64", truth, candidate)
        return True

    def _run_onnx(
        self, reference: Measured, candidate: Measured
    ) -> tuple[Measured, Measured] | None:
        """Return what ONNX Runtime computes for both, or None with the reason on record."""
        self.report("exporting the original")
        expected = self._as_exported(self.original, reference)
        found, reason = self._first_export(self.original, expected)
        if found is None:
            self.warnings.append(f"ONNX Runtime cannot judge this model: {reason}")
            return None
        gc.collect()
        self.report("exporting the folded model")
        candidate = self._as_exported(self.folded, candidate)
        other, reason = self._first_export(self.folded, candidate)
        if other is None:
            self.doubts.append(f"ONNX Runtime runs the original but not the folded model: {reason}")
            return None
        gc.collect()  # an export leaves several copies of the weights behind
        return _with_values(expected, found), _with_values(candidate, other)

    def _as_exported(self, loaded: LoadedModel, measured: Measured) -> Measured:
        """Return what Keras computes with training=False, which is what the exporter traces."""
        call = functools.partial(runtime.run, loaded, training=False)
        sets = self.sets[-1:]
        if all(
            _same(one.value, new)
            for one, new in zip(measured[-1], call(sets[0].inputs), strict=True)
        ):
            return measured
        return _around(measured, samples.run_all(call, self.sets))

    def _first_export(
        self, loaded: LoadedModel, expected: Measured
    ) -> tuple[list[list[Array]] | None, str]:
        """Return the outputs of the first export that computes what Keras does, or a reason."""
        reason = ""
        for _, export in runtime.exports(loaded):
            try:
                exported = export()
                call = functools.partial(runtime.run_onnx, exported)
                values = samples.run_all(call, self.sets)
            except CannotRunError as error:
                reason = reason or str(error)
                continue
            if _all_agree(expected, values):
                return values, ""
            reason = "it computes something else than Keras does"
        return None, reason

    def _run_onnx_alone(self, steps: Sequence[Moves], cause: CannotRunError) -> None:
        """Judge by ONNX Runtime when Keras cannot run the original on this machine."""
        self.report("exporting both models")
        measured = []
        for loaded, step in zip((self.original, self.folded), steps, strict=True):
            try:
                measured.append(
                    runtime.measure_onnx(
                        loaded, self.sets, step.computed, _REPETITIONS_LARGE, self.seed
                    )
                )
            except CannotRunError as error:
                raise VerificationImpossibleError(
                    f"neither Keras ({cause}) nor ONNX Runtime ({error}) can run {loaded.label}"
                ) from error
        self.runtimes.add("onnxruntime")
        self.warnings.append(f"Keras cannot run the original: {cause}")
        self._judge("onnxruntime", *measured)

    # --- the judgement ---

    def _judge(
        self,
        name: str,
        reference: Measured,
        candidate: Measured,
        *,
        forgive_overflow: bool = False,
    ) -> None:
        for index, (output, tapped) in enumerate(self.labels):
            rows = [row[index] for row in reference]
            outcomes = [
                compare(row, other[index], self.rule, forgive_overflow=forgive_overflow)
                for row, other in zip(rows, candidate, strict=True)
            ]
            self._record(name, output, tapped, rows, outcomes)

    def _record(
        self,
        name: str,
        output: str,
        tapped: str | None,
        rows: Sequence[Measurement],
        outcomes: Sequence[Outcome],
    ) -> None:
        """Keep the worst kind of samples, and say what needs a sentence."""
        worst = max(range(len(outcomes)), key=lambda at: outcomes[at].excess)
        outcome = outcomes[worst]
        comparison = Comparison(
            output=output,
            tapped_before=tapped,
            runtime=name,
            samples=self.sets[worst].kind,
            max_abs_error=outcome.max_abs_error,
            relative_error=outcome.max_abs_error / outcome.scale if outcome.scale else 0.0,
            error=outcome.error,
            tolerance=outcome.tolerance,
            excess=outcome.excess,
            passed=all(one.passed for one in outcomes),
            conclusive=varies([row.value for row in rows])
            and not all(one.blind for one in outcomes),
        )
        self.comparisons.append(comparison)
        if not comparison.passed:
            self.differences.append(_sentence(comparison, outcome))
        elif not all(one.finite for one in outcomes):
            self.warnings.append(f"{name}: output {output!r} has values that are not finite")

    def conclude(self) -> Verification:
        """Return the verdict over everything that was found."""
        return Verification(
            verdict=self._verdict(),
            basis=self._basis(),
            comparisons=tuple(self.comparisons),
            differences=tuple(self.differences),
            warnings=tuple(self.warnings + self.doubts),
            sample_count=sum(one.count for one in self.sets),
            sample_kinds=tuple(one.kind for one in self.sets),
            seed=self.seed,
            library=self.original.library,
            rule=self.rule.text(),
        )

    def _verdict(self) -> Verdict:
        if self.differences:
            return Verdict.DIFFERENT
        for index, (output, _) in enumerate(self.labels):
            mine = self.comparisons[index :: len(self.labels)]
            if not any(one.conclusive for one in mine):
                self.doubts.append(
                    f"output {output!r} was not exercised: it never changed, or noise drowned it"
                )
        return Verdict.UNDECIDED if self.doubts else Verdict.EQUIVALENT

    def _basis(self) -> Basis:
        names = {
            frozenset({"keras", "onnxruntime"}): Basis.BOTH,
            frozenset({"keras"}): Basis.KERAS,
            frozenset({"onnxruntime"}): Basis.ONNXRUNTIME,
        }
        return names.get(frozenset(self.runtimes), Basis.INTERFACE)


def _repetitions(loaded: LoadedModel) -> int:
    return _REPETITIONS_LARGE if loaded.model.count_params() > _LARGE else _REPETITIONS


def _same(one: Array, other: Array) -> bool:
    """Equal bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _is_all_finite(value: Array) -> bool:
    return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())


def _shifted(measurement: Measurement, value: Array) -> tuple[Array, ...]:
    """Return the movements of a measurement, applied to another value of the same output."""
    if value.shape != measurement.value.shape or value.dtype.kind not in "fc":
        return measurement.moved
    return tuple(moved - measurement.value + value for moved in measurement.moved)


def _around(measured: Measured, values: Sequence[Sequence[Array]]) -> Measured:
    """Return the same movements around other values of the same outputs."""
    return [
        [
            Measurement(value, _shifted(one, value), one.unit)
            for one, value in zip(row, outputs, strict=True)
        ]
        for row, outputs in zip(measured, values, strict=True)
    ]


def _with_values(measured: Measured, values: Sequence[Sequence[Array]]) -> Measured:
    """Return the same movements around the values of another runtime.

    The distance between the two runtimes is one more measurement of what rounding does to this
    model.
    """
    return [
        [
            Measurement(value, (*_shifted(one, value), one.value), one.unit)
            for one, value in zip(row, outputs, strict=True)
        ]
        for row, outputs in zip(measured, values, strict=True)
    ]


def _all_agree(expected: Measured, values: Sequence[Sequence[Array]]) -> bool:
    return all(
        len(row) == len(outputs)
        and all(agrees(one, value) for one, value in zip(row, outputs, strict=True))
        for row, outputs in zip(expected, values, strict=True)
    )


def _sentence(comparison: Comparison, outcome: Outcome) -> str:
    place = f"output {comparison.output!r}"
    if comparison.tapped_before:
        place += f" before its {comparison.tapped_before}"
    if outcome.problem is not None:
        return f"{comparison.runtime}: {place}: {outcome.problem}"
    return (
        f"{comparison.runtime}: {place} is off by {outcome.error:.3g}, {outcome.excess:.3g} times"
        f" the tolerance of {outcome.tolerance:.3g} ({comparison.samples})"
    )
