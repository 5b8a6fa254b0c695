"""The runs: what both models compute in every arithmetic that can run the original.

Every runtime is first tried on the original. What cannot run the original, or computes something
else than Keras does, says nothing about the folded model and is left out with a warning.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.errors import VerificationImpossibleError
from bnfold.running import float64, keras_graph, keras_runner, libraries, onnx_runner, samples
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.verification.case import Case
from bnfold.verification.exercise import Gap
from bnfold.verification.pairing import Site
from bnfold.verification.result import Agreement
from bnfold.verification.tolerance import Reference, Rule, Truth, agrees, compare, not_finite, rough
from bnfold.verification.values import (
    Arrays,
    Masks,
    References,
    Table,
    Value,
    by_value,
    exact_of,
    movement,
    references,
    table,
)

_REPETITIONS = 4
_REPETITIONS_QUICK = 2


@dataclass(frozen=True)
class Run:
    """Both models in one arithmetic, against the references.

    `original` is None where the original's own error does not count: in float64, and where it is
    the reference itself. `problems` tells what is wrong with numbers that are not finite, `unseen`
    are the values of which no number could be compared. Not every run has all values.
    """

    name: str
    references: References
    original: Table | None
    folded: Table
    problems: dict[Value, str]
    unseen: frozenset[Value] = frozenset()


@dataclass
class Evidence:
    """What was found out about a case.

    Attributes:
        runs: the sharpest arithmetic first.
        reference: what all others are compared with; None where nothing could be run.
        runtimes: those that ran both models.
        agreements: of each classifier, whether its decisions changed.
        differences: sentences on what is certainly wrong, beside the numbers.
        warnings: sentences on what limits the claim.
        doubts: sentences on what forbids it.
        merged: layers that the exporter folds itself; None where nothing was exported.
        absorbed: values at sites where neither what the layer that is gone made stands, by the
            reference, nor what it read: nothing was left for a layer downstream.
        lost: layers that must not be gone, whatever the numbers say.
        gaps: layers that a fold may have crossed, and that the samples did not exercise.
    """

    runs: list[Run] = field(default_factory=list)
    reference: str | None = None
    runtimes: set[str] = field(default_factory=set)
    agreements: list[Agreement] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    merged: tuple[str, ...] | None = None
    absorbed: set[Value] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


class Exports:
    """The exports of one model, the fastest first, each made when it is asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.reason = ""
        self._coming = self._make(loaded)
        self._made: list[onnx_runner.OnnxModel] = []

    def _make(self, loaded: LoadedModel) -> Iterator[onnx_runner.OnnxModel]:
        for _, export in onnx_runner.exports(loaded):
            try:
                exported = export()
            except CannotRunError as error:
                self.reason = self.reason or str(error)
                continue
            finally:
                libraries.release()  # an export leaves several copies of the weights behind
            yield exported

    def prepare(self) -> None:
        """Make the first one that can be made."""
        if not self._made:
            self._made += itertools.islice(self._coming, 1)

    def __iter__(self) -> Iterator[onnx_runner.OnnxModel]:
        """All of them, those made before first."""
        yield from list(self._made)
        for exported in self._coming:
            self._made.append(exported)
            yield exported


def gather(
    case: Case, rule: Rule, report: Callable[[str], None], exports: tuple[Exports, Exports]
) -> Evidence:
    """Run both models in every arithmetic that can run the original.

    Raises VerificationImpossibleError when none can.
    """
    return _Gathering(case, rule, report, exports).run()


class _Gathering:
    """The runs of one case, in turn; what they find is put into `found`."""

    def __init__(
        self,
        case: Case,
        rule: Rule,
        report: Callable[[str], None],
        exports: tuple[Exports, Exports],
    ) -> None:
        self.case = case
        self.rule = rule
        self.report = report
        self.exports = exports
        self.found = Evidence(warnings=list(case.warnings), doubts=list(case.doubts))

    def run(self) -> Evidence:
        # Exports take the most memory: they come while little else is there.
        self.report("exporting the original")
        self.exports[0].prepare()
        self.report("exporting the folded model")
        self.exports[1].prepare()
        self.report("running both models with Keras")
        try:
            original = self._evaluate(self.case.original)
        except CannotRunError as error:
            self._run_onnx_alone(error)
            return self.found
        try:
            folded = self._evaluate(self.case.folded)
        except CannotRunError as error:
            self.found.differences.append(
                f"Keras runs the original but not the folded model: {error}"
            )
            return self.found
        self.found.runtimes.add("keras")
        measures = self._run_keras(original, folded)
        self._run_as_called()
        self._run_onnx(measures, folded)
        return self.found

    def _evaluate(self, loaded: LoadedModel, *, training: bool | None = False) -> Arrays:
        case = self.case
        return by_value(case.values, keras_runner.evaluate(loaded, case.sets, training=training))

    # --- Keras ---

    def _run_keras(self, original: Arrays, folded: Arrays) -> References:
        """The original in float64 where that can be had, else as it is; both against it."""
        self.report("running both models in float64")
        try:
            run = self._in_float64(original)
            self.found.runs.append(run)
            self.found.reference = run.name
            measures = self._in_own_arithmetic(run.references)
        except CannotRunError as error:
            self.found.warnings.append(f"no float64, a weaker claim: {error}")
            self.found.reference = "keras"
            measures = self._as_it_is(original, folded)
        libraries.release()  # Keras models are reference cycles; the copies are large
        self._note("keras", measures, original, folded)
        self._note_agreement(measures, folded, self._comparable(original))
        return measures

    def _in_float64(self, native: Arrays) -> Run:
        """Both models in float64, with how far the rounding of their weights moves them."""
        case = self.case
        double = float64.float64_copy(case.folded)
        folded = self._evaluate(double)
        double = float64.float64_copy(case.original)
        exact = self._evaluate(double)
        found = table(exact, folded)
        problems = _problems(exact, folded, forgive_overflow=False)
        known = self._comparable(native)
        # Nothing is rounded to 16 bits here but weights that are stored in 16 bits.
        units = keras_runner.output_units(double, [2 * step for step in case.steps[0].stored])
        noise: list[Table] = []
        with closing(self._perturbed(double, exact, case.steps[0].stored)) as perturbed:
            for moved in perturbed:
                noise.append(moved)
                measures = references(exact, units, noise, noise)
                if not _all_agree(measures, native, self._rough, known):
                    raise CannotRunError("the copy in float64 computes something else")
                if case.is_quick and _all_pass(measures, found, self.rule):
                    return Run("keras float64", measures, None, found, problems)
        double = float64.float64_copy(case.folded)
        other = list(self._perturbed(double, folded, case.steps[1].stored))
        measures = references(exact, units, noise, other)
        self._note_absorbed(measures, found, folded)
        return Run("keras float64", measures, None, found, problems)

    @property
    def _rough(self) -> float:
        return rough(self.case.steps[0].computed)

    def _perturbed(
        self,
        loaded: LoadedModel,
        exact: Arrays,
        steps: Sequence[float],
        *,
        training: bool | None = False,
    ) -> Generator[Table]:
        """How far the values of a model move, each time that its weights are perturbed."""
        case = self.case
        perturbed = keras_runner.perturbed(
            loaded,
            case.sets,
            steps=steps,
            repetitions=_REPETITIONS_QUICK if case.is_quick else _REPETITIONS,
            seed=case.seed,
            training=training,
        )
        return movement(exact, perturbed)

    def _comparable(self, *evaluations: Arrays) -> Masks:
        """Where numbers of a model can be compared, in all of these evaluations of it.

        In 16 bits a model may overflow by itself. What it computes from infinity is no measure for
        another model, even where that is finite again: a whole sample of every value downstream.
        """
        masks: Masks = {
            value: [np.isfinite(one) if one.dtype.kind in "fc" else None for one in column]
            for value, column in evaluations[0].items()
        }
        for value, column in (item for arrays in evaluations for item in arrays.items()):
            for kind, (one, drawn) in enumerate(zip(column, self.case.sets, strict=True)):
                lost = _broken_samples(one, drawn.count)
                if lost is None:
                    continue
                for other in self._downstream(value) & masks.keys():
                    if (mask := masks[other][kind]) is not None:
                        mask[lost if len(mask) == len(lost) else slice(None)] = False
        return masks

    def _downstream(self, value: Value) -> set[Value]:
        """The values that the original computes from one of them."""
        pairing = self.case.pairing
        if pairing is None:
            return set()
        reached = pairing.depends_on(value.tensor) - {id(value.tensor)}
        return {other for other in self.case.values if id(other.tensor) in reached}

    def _in_own_arithmetic(self, measures: References) -> References:
        """The same with the noise of weights that are rounded to what the models compute in.

        In 32 bits that is the noise measured already, twice as far; 16 bits round otherwise.
        """
        case = self.case
        if all(one.computed == tuple(2 * step for step in one.stored) for one in case.steps):
            return {
                value: [one.twice_as_noisy() for one in column]
                for value, column in measures.items()
            }
        noise = []
        for loaded, steps in zip((case.original, case.folded), case.steps, strict=True):
            double = float64.float64_copy(loaded)
            values = self._evaluate(double)
            noise.append(list(self._perturbed(double, values, steps.computed)))
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        return references(exact_of(measures), units, *noise)

    def _as_it_is(self, original: Arrays, folded: Arrays) -> References:
        case = self.case
        noise = [
            list(self._perturbed(loaded, values, steps.computed))
            for loaded, steps, values in zip(
                (case.original, case.folded), case.steps, (original, folded), strict=True
            )
        ]
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        return references(original, units, *noise)

    def _note_agreement(self, measures: References, folded: Arrays, where: Masks) -> None:
        """Of each classifier's output, how many samples changed their class."""
        for value in (one for one in self.case.outputs if one.tapped == "softmax"):
            shape = measures[value][0].value.shape
            if len(shape) < 2 or shape[-1] < 2:
                continue
            exact, found = [], []
            columns = (measures[value], folded[value], where[value])
            for one, other, mask in zip(*columns, strict=True):
                known = np.isfinite(other) & (True if mask is None else mask)
                rows = known.reshape(-1, shape[-1]).all(-1)
                exact.append(one.value.reshape(-1, shape[-1])[rows])
                found.append(other.reshape(-1, shape[-1])[rows])
            counted = np.concatenate(exact)
            if not len(counted):
                continue
            changed = np.count_nonzero(counted.argmax(-1) != np.concatenate(found).argmax(-1))
            ordered = np.sort(counted, axis=-1)
            margin = float((ordered[:, -1] - ordered[:, -2]).min())
            self.found.agreements.append(Agreement(value.name, len(counted), int(changed), margin))

    # --- with training=True ---

    def _run_as_called(self) -> None:
        """Run both models once more as `model(x)`, where that is not what inference is.

        That is where the file itself calls a layer with training=True. Keras 3 hands that on to
        layers that run later, so the models run as they are, and only outputs are compared.
        """
        case, pair = self.case, self.case.as_called
        if not any(keras_graph.sets_training(loaded.model) for loaded in pair):
            return
        self.found.lost = self._lost_in_training()
        steps = [keras_runner.rounding_steps(loaded).computed for loaded in pair]
        try:
            if not any(map(self._modes_differ, pair)):
                return
            if not keras_runner.is_repeatable(pair[0], case.sets[0], steps[0], 0):
                self.found.warnings.append(
                    "random layers that are on in model(x) were switched off"
                )
                return
            values = [self._evaluate(loaded, training=None) for loaded in pair]
            noise = [
                list(self._perturbed(loaded, found, own, training=None))
                for loaded, found, own in zip(pair, values, steps, strict=True)
            ]
        except CannotRunError as error:
            self.found.doubts.append(f"Keras cannot run both models as model(x): {error}")
            return
        units = keras_runner.output_units(pair[0], steps[0])
        measures = references(values[0], units, *noise)
        self.found.runs.append(
            Run(
                name="keras as called",
                references=measures,
                original=None,
                folded=table(values[0], values[1]),
                problems=_problems(*values, forgive_overflow=False),
            )
        )

    def _modes_differ(self, loaded: LoadedModel) -> bool:
        """Whether a model computes something else with training=False than without."""
        first = self.case.sets[:1]
        plain, off = (keras_runner.evaluate(loaded, first, training=mode) for mode in (None, False))
        return not all(_same(*pair) for pair in zip(plain[0], off[0], strict=True))

    def _lost_in_training(self) -> list[str]:
        """The layers that are gone though they use the batch, which training=False turns off."""
        before, after = (
            keras_graph.batch_normalizations_in_training(loaded.model)
            for loaded in self.case.as_called
        )
        gone = [name for name in before if name not in after]
        return list(dict.fromkeys(gone)) if len(after) < len(before) else []

    # --- ONNX Runtime ---

    def _run_onnx(self, measures: References, folded: Arrays) -> None:
        """Run both exports, without ONNX Runtime's optimisations and with its defaults."""
        self.report("running both exports")
        first = self._export(self.exports[0], measures)
        if isinstance(first, str):
            self.found.warnings.append(f"ONNX Runtime cannot judge this model: {first}")
            return
        own = {
            value: [
                replace(one, truth=Truth(made, value.axes))
                for one, made in zip(column, folded[value], strict=True)
            ]
            for value, column in measures.items()
        }
        second = self._export(self.exports[1], own)
        if isinstance(second, str):
            self.found.doubts.append(
                f"ONNX Runtime runs the original but not the folded model: {second}"
            )
            return
        self.found.runtimes.add("onnxruntime")
        if self.case.pairing is not None:
            names = dict.fromkeys(site.name for site in self.case.pairing.sites)
            self.found.merged = onnx_runner.merged(first[0], list(names))
        self._note("onnxruntime", measures, first[1], second[1])
        self._run_defaults(measures, first[0], second[0])

    def _export(
        self, exports: Exports, expected: References
    ) -> tuple[onnx_runner.OnnxModel, Arrays] | str:
        """The first export that computes what Keras does, and its values; or why there is none."""
        for exported in exports:
            call = functools.partial(onnx_runner.run_onnx, exported)
            try:
                values = by_value(self.case.values, samples.run_all(call, self.case.sets))
            except CannotRunError as error:
                exports.reason = exports.reason or str(error)
                continue
            where = self._comparable(values, exact_of(expected))
            if _all_agree(expected, values, self._rough, where):
                return exported, values
            exports.reason = "it computes something else than Keras does"
        return exports.reason

    def _run_defaults(
        self, measures: References, original: onnx_runner.OnnxModel, folded: onnx_runner.OnnxModel
    ) -> None:
        outputs = self.case.outputs
        self.report("running both exports as ONNX Runtime optimises them")
        try:
            found = []
            for one in (original, folded):
                optimised = onnx_runner.optimised(one, len(outputs))
                call = functools.partial(onnx_runner.run_onnx, optimised)
                found.append(by_value(outputs, samples.run_all(call, self.case.sets)))
        except CannotRunError as error:
            self.found.warnings.append(f"ONNX Runtime's optimisations could not be judged: {error}")
            return
        seen = {value: measures[value] for value in outputs}
        if not _all_agree(seen, found[0], 1e-3, self._comparable(found[0])):
            self.found.warnings.append(
                "ONNX Runtime's optimisations make the original compute something else"
            )
            return
        self._note("onnxruntime optimised", seen, *found)

    def _run_onnx_alone(self, cause: CannotRunError) -> None:
        """Judge by ONNX Runtime when Keras cannot run the original on this machine."""
        case = self.case
        self.report("exporting both models")
        values, noise = [], []
        for loaded, steps in zip((case.original, case.folded), case.steps, strict=True):
            try:
                found = by_value(case.values, onnx_runner.evaluate_onnx(loaded, case.sets))
                perturbed = onnx_runner.perturbed_onnx(
                    loaded,
                    case.sets,
                    steps=steps.computed,
                    repetitions=_REPETITIONS_QUICK,
                    seed=case.seed,
                )
                noise.append(list(movement(found, perturbed)))
            except CannotRunError as error:
                raise VerificationImpossibleError(
                    f"neither Keras ({cause}) nor ONNX Runtime ({error}) can run {loaded.label}"
                ) from error
            values.append(found)
        self.found.runtimes.add("onnxruntime")
        self.found.reference = "onnxruntime"
        self.found.warnings.append(f"Keras cannot run the original: {cause}")
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        self._note("onnxruntime", references(values[0], units, *noise), *values)

    # --- what they found ---

    def _note(self, name: str, measures: References, original: Arrays, folded: Arrays) -> None:
        """Keep how far both models are from the references in one arithmetic."""
        forgive = self.found.reference == "keras float64"
        is_reference = self.found.reference == name
        exact = exact_of(measures)
        where = self._comparable(original)
        run = Run(
            name=name,
            references=measures,
            original=None if is_reference else table(exact, original),
            folded=table(exact, folded, where),
            problems=_problems(
                original, folded, forgive_overflow=forgive, where=where if forgive else None
            ),
            unseen=_unseen(exact, where),
        )
        self.found.runs.append(run)
        if forgive:
            self._note_overflow(run, exact, original)
        if is_reference:
            self._note_absorbed(measures, run.folded, folded)

    def _note_overflow(self, run: Run, exact: Arrays, original: Arrays) -> None:
        """Say where the original overflows by itself, which is no fault of the fold."""
        broken = [
            value
            for value, column in original.items()
            if any(
                np.any(np.isfinite(truth) & ~np.isfinite(one))
                for truth, one in zip(exact[value], column, strict=True)
                if one.dtype.kind in "fc"
            )
        ]
        if not broken:
            return
        broken.sort(key=lambda value: value.is_output)  # where it begins, if that was seen
        text = f"{run.name}: the original itself overflows at {broken[0].name!r}"
        if run.unseen:
            unseen = (value for value in original if value in run.unseen)
            names = ", ".join(dict.fromkeys(repr(value.name) for value in unseen))
            self.found.doubts.append(f"{text}: nothing is left to compare of {names}")
        else:
            self.found.warnings.append(f"{text}: what depends on it was left out")

    def _note_absorbed(self, measures: References, found: Table, folded: Arrays) -> None:
        """Note the values at sites where what stands was neither made nor read by the layer."""
        pairing, inside = self.case.pairing, self.case.inside
        if pairing is None:
            return
        for site in filter(pairing.stands_alone, pairing.sites):
            for value in (inside[p] for one in site.call.outputs for p in pairing.places_of(one)):
                pairs = zip(measures[value], found[value], strict=True)
                right = all(compare(one, None, off, self.rule).passed for one, off in pairs)
                if not right and not self._was_left(site, measures[value], folded[value]):
                    self.found.absorbed.add(value)

    def _was_left(self, site: Site, made: Sequence[Reference], read: Sequence[Array]) -> bool:
        """Whether a layer that is gone makes the original's values of what stands there now."""
        try:
            return all(
                agrees(one, keras_runner.apply(site.call.layer, other), self._rough)
                for one, other in zip(made, read, strict=True)
            )
        except CannotRunError:
            return True


def _broken_samples(array: Array, count: int) -> Array | None:
    """Which samples have a number that is not finite; None where no sample has.

    An array that does not count samples along its first axis is one sample.
    """
    if array.dtype.kind not in "fc" or np.isfinite(array).all():
        return None
    rows = len(array) if len(array) == count else 1
    return np.asarray(np.any(~np.isfinite(array.reshape(rows, -1)), axis=1))


def _problems(
    original: Arrays, folded: Arrays, *, forgive_overflow: bool, where: Masks | None = None
) -> dict[Value, str]:
    """What is wrong with numbers that are not finite."""
    found = {}
    for value, column in original.items():
        masks = [None] * len(column) if where is None else where[value]
        for one, two, mask in zip(column, folded[value], masks, strict=True):
            problem = not_finite(one, two, forgive_overflow=forgive_overflow, where=mask)
            if problem is not None:
                found[value] = problem
    return found


def _unseen(exact: Arrays, where: Masks) -> frozenset[Value]:
    """The values of which there are numbers, and none of them can be compared."""
    found = []
    for value, column in exact.items():
        pairs = zip(column, where[value], strict=True)
        known = [(one, mask) for one, mask in pairs if mask is not None]
        there = any(np.isfinite(one).any() for one, _ in known)
        if there and not any(mask.any() for _, mask in known):
            found.append(value)
    return frozenset(found)


def _all_pass(measures: References, found: Table, rule: Rule) -> bool:
    return all(
        compare(one, None, off, rule).passed
        for value, column in measures.items()
        for one, off in zip(column, found[value], strict=True)
    )


def _same(one: Array, other: Array) -> bool:
    """Equal bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _all_agree(expected: References, found: Arrays, allowed: float, where: Masks) -> bool:
    return expected.keys() == found.keys() and all(
        agrees(one, other, allowed, where=mask)
        for value, column in expected.items()
        for one, other, mask in zip(column, found[value], where[value], strict=True)
    )
