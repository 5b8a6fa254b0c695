"""The runs: what both models compute in every arithmetic that can run the original.

Every runtime is first tried on the original. What cannot run the original, or computes something
else than Keras does, says nothing about the folded model and is left out with a warning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.errors import VerificationImpossibleError
from bnfold.running import float64, keras_graph, keras_runner, libraries, onnx_runner
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.onnx_runner import Export, Exports
from bnfold.running.runner import Runner
from bnfold.running.samples import run_all
from bnfold.verification import fidelity
from bnfold.verification.case import Case
from bnfold.verification.pairing import Site
from bnfold.verification.result import Agreement, Fidelity
from bnfold.verification.tolerance import Reference, Rule, Truth, agrees, compare, rough
from bnfold.verification.values import (
    Arrays,
    Masks,
    References,
    Table,
    Value,
    all_agree,
    exact_of,
    movement,
    problems,
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
        fidelity: how near the outputs are to the reference, by runtime.
        computed: the outputs themselves, by what computed them, the reference first.
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
    fidelity: list[Fidelity] = field(default_factory=list)
    computed: dict[str, Arrays] = field(default_factory=dict)


@dataclass
class Gathering:
    """The runs of one case, in turn; what they find is put into `found`."""

    case: Case
    rule: Rule
    report: Callable[[str], None]
    exports: tuple[Exports, Exports]
    found: Evidence = field(init=False)

    def __post_init__(self) -> None:
        """Begin with what is known of the case itself."""
        self.models = (self.case.original, self.case.folded)
        self.steps = [keras_runner.rounding_steps(loaded) for loaded in self.models]
        self.found = Evidence(warnings=list(self.case.warnings), doubts=list(self.case.doubts))

    def run(self) -> Evidence:
        """Run both models in every arithmetic that can run the original.

        Raises VerificationImpossibleError when none can.
        """
        # Exports take the most memory: they come while little else is there.
        for name, exports in zip(("original", "folded model"), self.exports, strict=True):
            self.report(f"exporting the {name}")
            exports.prepare()
        self.report("running both models with Keras")
        original, folded = map(self.case.in_keras, self.models)
        try:
            found = original.evaluate(self.case.sets)
        except CannotRunError as error:
            self._run_onnx_alone(error)
            return self.found
        try:
            other = folded.evaluate(self.case.sets)
        except CannotRunError as error:
            self.found.differences.append(
                f"Keras runs the original but not the folded model: {error}"
            )
            return self.found
        self.found.runtimes.add("keras")
        measures = self._run_keras(found, other)
        del found  # all values of a model, of which nothing is asked any more
        self._run_as_called()
        self._run_onnx(measures, other)
        return self.found

    def _moved(
        self,
        runner: Runner[Value],
        exact: Arrays,
        steps: Sequence[float],
        repetitions: int | None = None,
    ) -> Generator[Table]:
        """How far the values of a model move, each time that its weights are perturbed."""
        drawn = _REPETITIONS_QUICK if self.case.is_quick else _REPETITIONS
        perturbed = runner.perturbed(self.case.sets, steps, repetitions or drawn, self.case.seed)
        return movement(exact, perturbed)

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
            self.found.warnings.append(
                f"no float64 reference, so that an error of both models is not seen: {error}"
            )
            self.found.reference = "keras"
            measures = self._as_it_is(original, folded)
        libraries.release()  # Keras models are reference cycles; the copies are large
        self._note("keras", measures, original, folded)
        self._note_agreement(measures, folded, self.case.comparable(original))
        return measures

    def _in_float64(self, native: Arrays) -> Run:
        """Both models in float64, with how far the rounding of their weights moves them."""
        case, stored = self.case, [one.stored for one in self.steps]
        folded = self._copy(case.folded).evaluate(case.sets)
        libraries.release()  # or the copies would both be there
        double = self._copy(case.original)
        exact = double.evaluate(case.sets)
        found = table(exact, folded)
        broken = problems(exact, folded, forgive_overflow=False)
        del folded  # which takes as much memory, and only few cases need it once more
        known = case.comparable(native)
        # Nothing is rounded to 16 bits here but weights that are stored in 16 bits.
        units = keras_runner.output_units(double.loaded, [2 * step for step in stored[0]])
        noise: list[Table] = []
        with closing(self._moved(double, exact, stored[0])) as moved:
            for one in moved:
                noise.append(one)
                measures = references(exact, units, noise, noise)
                if not all_agree(measures, native, self._rough, known):
                    raise CannotRunError("the copy in float64 computes something else")
                if case.is_quick and _all_pass(measures, found, self.rule):
                    return Run(double.name, measures, None, found, broken)
        del double, moved
        libraries.release()  # once more
        double = self._copy(case.folded)
        folded = double.evaluate(case.sets)
        other = list(self._moved(double, folded, stored[1]))
        measures = references(exact, units, noise, other)
        self._note_absorbed(measures, found, folded)
        return Run(double.name, measures, None, found, broken)

    def _copy(self, loaded: LoadedModel) -> Runner[Value]:
        return self.case.in_keras(float64.float64_copy(loaded), "keras float64")

    @property
    def _rough(self) -> float:
        return rough(self.steps[0].computed)

    def _in_own_arithmetic(self, measures: References) -> References:
        """The same with the noise of weights that are rounded to what the models compute in.

        In 32 bits that is the noise measured already, twice as far; 16 bits round otherwise.
        """
        if all(one.computed == tuple(2 * step for step in one.stored) for one in self.steps):
            return {
                value: [one.twice_as_noisy() for one in column]
                for value, column in measures.items()
            }
        noise = []
        for loaded, steps in zip(self.models, self.steps, strict=True):
            double = self._copy(loaded)
            values = double.evaluate(self.case.sets)
            noise.append(list(self._moved(double, values, steps.computed)))
        return self._references(exact_of(measures), noise)

    def _as_it_is(self, *values: Arrays) -> References:
        runners = map(self.case.in_keras, self.models)
        noise = [
            list(self._moved(runner, found, steps.computed))
            for runner, found, steps in zip(runners, values, self.steps, strict=True)
        ]
        return self._references(values[0], noise)

    def _references(self, exact: Arrays, noise: Sequence[Sequence[Table]]) -> References:
        units = keras_runner.output_units(self.case.original, self.steps[0].computed)
        return references(exact, units, *noise)

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
        sets, pair = self.case.sets, self.case.as_called
        if not any(keras_graph.sets_training(loaded.model) for loaded in pair):
            return
        self.found.lost = self._lost_in_training()
        runners = [self.case.in_keras(one, "keras as called", training=None) for one in pair]
        steps = [keras_runner.rounding_steps(loaded).computed for loaded in pair]
        try:
            if not any(map(self._modes_differ, runners)):
                return
            if not keras_runner.is_repeatable(pair[0], sets[0], steps[0], 0):
                self.found.warnings.append(
                    "random layers that are on in model(x) were switched off"
                )
                return
            exact, found = (runner.evaluate(sets) for runner in runners)
            noise = [
                list(self._moved(*each))
                for each in zip(runners, (exact, found), steps, strict=True)
            ]
        except CannotRunError as error:
            self.found.doubts.append(f"Keras cannot run both models as model(x): {error}")
            return
        measures = references(exact, keras_runner.output_units(pair[0], steps[0]), *noise)
        broken = problems(exact, found, forgive_overflow=False)
        run = Run(runners[0].name, measures, None, table(exact, found), broken)
        self.found.runs.append(run)

    def _modes_differ(self, plain: Runner[Value]) -> bool:
        """Whether a model computes something else with training=False than without."""
        off = self.case.in_keras(plain.loaded)
        one, other = (runner.evaluate(self.case.sets[:1]) for runner in (plain, off))
        return not all(_same(*one[value], *other[value]) for value in one)

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
        made = [first[0], second[0]]
        del own, first, second  # the values take as much memory as what comes
        self._run_defaults(measures, made)

    def _export(self, exports: Exports, expected: References) -> tuple[Export, Arrays] | str:
        """The first export that computes what Keras does, and its values; or why there is none."""
        for exported in exports:
            try:
                values = self._in_onnx(exported.load()).evaluate(self.case.sets)
            except CannotRunError as error:
                exports.reason = exports.reason or str(error)
                continue
            where = self.case.comparable(values, exact_of(expected))
            if all_agree(expected, values, self._rough, where):
                return exported, values
            exports.reason = "it computes something else than Keras does"
        return exports.reason

    def _in_onnx(self, loaded: onnx_runner.OnnxModel) -> Runner[Value]:
        run = functools.partial(run_all, functools.partial(onnx_runner.run_onnx, loaded))
        return Runner("onnxruntime", self.case.values, run, self.case.original)

    def _run_defaults(self, measures: References, exports: Sequence[Export]) -> None:
        outputs = self.case.outputs
        self.report("running both exports as ONNX Runtime optimises them")
        try:
            found = [
                self._in_onnx(one.optimised(len(outputs))).evaluate(self.case.sets)
                for one in exports
            ]
        except CannotRunError as error:
            self.found.warnings.append(f"ONNX Runtime's optimisations could not be judged: {error}")
            return
        seen = {value: measures[value] for value in outputs}
        if not all_agree(seen, found[0], 1e-3, self.case.comparable(found[0])):
            self.found.warnings.append(
                "ONNX Runtime's optimisations make the original compute something else"
            )
            return
        self._note("onnxruntime optimised", seen, *found)

    def _run_onnx_alone(self, cause: CannotRunError) -> None:
        """Judge by ONNX Runtime when Keras cannot run the original on this machine."""
        self.report("exporting both models")
        values, noise = [], []
        for loaded, steps in zip(self.models, self.steps, strict=True):
            run = functools.partial(onnx_runner.evaluate_onnx, loaded)
            exported = Runner("onnxruntime", self.case.values, run, loaded)
            try:
                values.append(exported.evaluate(self.case.sets))
                moved = self._moved(exported, values[-1], steps.computed, _REPETITIONS_QUICK)
                noise.append(list(moved))
            except CannotRunError as error:
                raise VerificationImpossibleError(
                    f"neither Keras ({cause}) nor ONNX Runtime ({error}) can run {loaded.label}"
                ) from error
        self.found.runtimes.add("onnxruntime")
        self.found.reference = "onnxruntime"
        self.found.warnings.append(f"Keras cannot run the original: {cause}")
        self._note("onnxruntime", self._references(values[0], noise), *values)

    # --- what they found ---

    def _note(self, name: str, measures: References, original: Arrays, folded: Arrays) -> None:
        """Keep how far both models are from the references in one arithmetic."""
        forgive = self.found.reference == "keras float64"
        is_reference = self.found.reference == name
        exact = exact_of(measures)
        where = self.case.comparable(original)
        seen = where if forgive else None
        run = Run(
            name=name,
            references=measures,
            original=None if is_reference else table(exact, original),
            folded=table(exact, folded, where),
            problems=problems(original, folded, forgive_overflow=forgive, where=seen),
            unseen=_unseen(exact, where),
        )
        self.found.runs.append(run)
        outputs = self.case.outputs
        self.found.computed.setdefault("reference", {one: exact[one] for one in outputs})
        self.found.computed[name] = {one: folded[one] for one in outputs}
        counts_all = self.case.counts_all and not any(one.tapped for one in outputs)
        for value in outputs:
            decides = fidelity.decides(value.tapped, counts_all=counts_all, is_tapped=True)
            told = fidelity.measured(value.name, name, exact[value], folded[value], decides=decides)
            self.found.fidelity += [] if told is None else [told]
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
