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
from bnfold.verification.tolerance import (
    Errors,
    Rule,
    Truth,
    Yardstick,
    agrees,
    compare,
    errors,
    movement,
    not_finite,
    yardsticks,
)

Values = list[list[Array]]
"""What a model computes: by sample set, then by output and place."""
Table = list[list[Errors]]
Masks = list[list[Array | None]]
"""Where values can be compared, like `Values`; None for what is no number."""
Yardsticks = list[list[Yardstick]]

_REPETITIONS = 4
_REPETITIONS_LARGE = 2
_ROUGH = 64  # how many roundings of 16 bits a runtime may be off and still count as the same


@dataclass(frozen=True)
class Run:
    """Both models in one arithmetic, against the yardsticks, by sample set and value.

    `original` is None where the original's own error does not count: in float64, and where it is
    the yardstick itself. `problems` tells, by value, what is wrong with numbers that are not
    finite, `unseen` are the values of which no number could be compared. A run may end before the
    last values.
    """

    name: str
    yardsticks: Yardsticks
    original: Table | None
    folded: Table
    problems: dict[int, str]
    unseen: frozenset[int] = frozenset()


@dataclass
class Evidence:
    """What was found out about a case.

    Attributes:
        runs: the sharpest arithmetic first.
        yardstick: what all others are compared with; None where nothing could be run.
        runtimes: those that ran both models.
        agreements: of each classifier, whether its decisions changed.
        differences: sentences on what is certainly wrong, beside the numbers.
        warnings: sentences on what limits the claim.
        doubts: sentences on what forbids it.
        merged: layers that the exporter folds itself; None where nothing was exported.
        taken_in: places of sites at which neither what the layer that is gone made stands, by the
            yardstick, nor what it read: nothing was left for a layer behind.
        lost: layers that must not be gone, whatever the numbers say.
        gaps: layers that a fold may have crossed, and that the samples did not exercise.
    """

    runs: list[Run] = field(default_factory=list)
    yardstick: str | None = None
    runtimes: set[str] = field(default_factory=set)
    agreements: list[Agreement] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    merged: tuple[str, ...] | None = None
    taken_in: set[int] = field(default_factory=set)
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
        self.found = Evidence(warnings=list(case.warnings))

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

    def _evaluate(self, loaded: LoadedModel) -> Values:
        return keras_runner.evaluate(loaded, self.case.sets, training=False)

    # --- Keras ---

    def _run_keras(self, original: Values, folded: Values) -> Yardsticks:
        """The original in float64 where that can be had, else as it is; both against it."""
        self.report("running both models in float64")
        try:
            run = self._in_float64(original)
            self.found.runs.append(run)
            self.found.yardstick = run.name
            measures = self._in_own_arithmetic(run.yardsticks)
        except CannotRunError as error:
            self.found.warnings.append(f"no float64, a weaker claim: {error}")
            self.found.yardstick = "keras"
            measures = self._as_it_is(original, folded)
        libraries.release()  # Keras models are reference cycles; the copies are large
        self._note("keras", measures, original, folded)
        self._note_agreement(measures, folded, self._comparable(original))
        return measures

    def _in_float64(self, native: Values) -> Run:
        """Both models in float64, with how far the rounding of their weights moves them."""
        case = self.case
        double = float64.float64_copy(case.folded)
        folded = self._evaluate(double)
        double = float64.float64_copy(case.original)
        exact = self._evaluate(double)
        found = self._errors(exact, folded)
        problems = _problems(exact, folded, forgive_overflow=False)
        known = self._comparable(native)
        # Nothing is rounded to 16 bits here but weights that are stored in 16 bits.
        units = keras_runner.output_units(double, [2 * step for step in case.steps[0].stored])
        noise: list[Table] = []
        with closing(self._moved(double, exact, case.steps[0].stored)) as moves:
            for moved in moves:
                noise.append(moved)
                measures = self._yardsticks(exact, units, noise, noise)
                if not _all_agree(measures, native, self._rough, known):
                    raise CannotRunError("the copy in float64 computes something else")
                if case.is_quick and _all_pass(measures, found, self.rule):
                    return Run("keras float64", measures, None, found, problems)
        double = float64.float64_copy(case.folded)
        other = list(self._moved(double, folded, case.steps[1].stored))
        measures = self._yardsticks(exact, units, noise, other)
        self._note_taken_in(measures, found, folded)
        return Run("keras float64", measures, None, found, problems)

    @property
    def _rough(self) -> float:
        return max(1e-3, _ROUGH * max(self.case.steps[0].computed, default=0.0) / 2)

    def _moved(
        self,
        loaded: LoadedModel,
        values: Values,
        steps: Sequence[float],
        *,
        training: bool | None = False,
    ) -> Generator[Table]:
        case = self.case
        perturbed = keras_runner.perturbed(
            loaded,
            case.sets,
            steps=steps,
            repetitions=_REPETITIONS_LARGE if case.is_quick else _REPETITIONS,
            seed=case.seed,
            training=training,
        )
        return movement(values, perturbed, case.axes[: len(values[0])])

    def _yardsticks(
        self,
        values: Values,
        units: Sequence[float],
        original: Sequence[Table],
        folded: Sequence[Table],
    ) -> Yardsticks:
        return yardsticks(values, units, original, folded, self.case.axes[: len(values[0])])

    def _errors(self, exact: Values, found: Values, where: Masks | None = None) -> Table:
        return [
            [
                errors(truth, value, where=None if where is None else where[row][at], axes=axes)
                for at, (truth, value, axes) in enumerate(
                    zip(truths, values, self.case.axes, strict=False)
                )
            ]
            for row, (truths, values) in enumerate(zip(exact, found, strict=True))
        ]

    def _comparable(self, *evaluations: Values) -> Masks:
        """Where numbers of a model can be compared, in all of these evaluations of it.

        In 16 bits a model may overflow by itself. What it computes from infinity is no measure for
        another model, even where that is finite again: a whole sample of every value downstream.
        """
        masks = [
            [np.isfinite(one) if one.dtype.kind in "fc" else None for one in row]
            for row in evaluations[0]
        ]
        for values in evaluations:
            for found, row, drawn in zip(masks, values, self.case.sets, strict=True):
                self._clear_downstream(found, row, drawn.count)
        return masks

    def _clear_downstream(self, masks: list[Array | None], row: list[Array], count: int) -> None:
        lost = [one.dtype.kind in "fc" and not np.isfinite(one).all() for one in row]
        for at in np.flatnonzero(lost):
            broken: Array = np.asarray(np.isinf(row[at]) | np.isnan(row[at]))
            if len(broken) != count:
                broken = broken.reshape(1, -1)
            samples_lost: Array = np.asarray(broken.reshape(len(broken), -1).any(1))
            for other in self._downstream(int(at)):
                mask = masks[other] if other < len(masks) else None
                if mask is not None:
                    mask[samples_lost if len(mask) == len(samples_lost) else slice(None)] = False

    def _downstream(self, at: int) -> set[int]:
        """The positions of the values that the original computes from one of them."""
        pairing = self.case.pairing
        if pairing is None:
            return set()
        every = [*pairing.original.outputs, *(place.original for place in pairing.places)]
        reached = pairing.depends_on(every[at]) - {id(every[at])}
        return {other for other, tensor in enumerate(every) if id(tensor) in reached}

    def _in_own_arithmetic(self, measures: Yardsticks) -> Yardsticks:
        """The same with the noise of weights that are rounded to what the models compute in.

        In 32 bits that is the noise measured already, twice as far; 16 bits round otherwise.
        """
        case = self.case
        if all(moves.computed == tuple(2 * step for step in moves.stored) for moves in case.steps):
            return [[one.twice_as_noisy() for one in row] for row in measures]
        noise = []
        for loaded, moves in zip((case.original, case.folded), case.steps, strict=True):
            double = float64.float64_copy(loaded)
            values = self._evaluate(double)
            noise.append(list(self._moved(double, values, moves.computed)))
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        return self._yardsticks([[one.value for one in row] for row in measures], units, *noise)

    def _as_it_is(self, original: Values, folded: Values) -> Yardsticks:
        case = self.case
        noise = [
            list(self._moved(loaded, values, moves.computed))
            for loaded, moves, values in zip(
                (case.original, case.folded), case.steps, (original, folded), strict=True
            )
        ]
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        return self._yardsticks(original, units, *noise)

    def _note_agreement(self, measures: Yardsticks, folded: Values, where: Masks) -> None:
        """Of each classifier's output, how many samples changed their class."""
        for at, label in enumerate(self.case.labels):
            value = measures[0][at].value
            if label.tapped != "softmax" or value.ndim < 2 or value.shape[-1] < 2:
                continue
            exact, found = [], []
            for row, other, masks in zip(measures, folded, where, strict=True):
                known = np.isfinite(other[at]) & (masks[at] if masks[at] is not None else True)
                rows = known.reshape(-1, value.shape[-1]).all(-1)
                exact.append(row[at].value.reshape(-1, value.shape[-1])[rows])
                found.append(other[at].reshape(-1, value.shape[-1])[rows])
            counted = np.concatenate(exact)
            if not len(counted):
                continue
            changed = np.count_nonzero(counted.argmax(-1) != np.concatenate(found).argmax(-1))
            ordered = np.sort(counted, axis=-1)
            margin = float((ordered[:, -1] - ordered[:, -2]).min())
            self.found.agreements.append(Agreement(label.name, len(counted), int(changed), margin))

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
        moves = [keras_runner.moves(loaded).computed for loaded in pair]
        try:
            if not any(map(self._modes_differ, pair)):
                return
            if not keras_runner.is_repeatable(pair[0], case.sets[0], moves[0], 0):
                self.found.warnings.append(
                    "random layers that are on in model(x) were switched off"
                )
                return
            values = [keras_runner.evaluate(loaded, case.sets, training=None) for loaded in pair]
            noise = [
                list(self._moved(loaded, found, steps, training=None))
                for loaded, found, steps in zip(pair, values, moves, strict=True)
            ]
        except CannotRunError as error:
            self.found.doubts.append(f"Keras cannot run both models as model(x): {error}")
            return
        units = keras_runner.output_units(pair[0], moves[0])
        measures = self._yardsticks(values[0], units, *noise)
        self.found.runs.append(
            Run(
                name="keras as called",
                yardsticks=measures,
                original=None,
                folded=self._errors(values[0], values[1]),
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

    def _run_onnx(self, measures: Yardsticks, folded: Values) -> None:
        """Run both exports, without ONNX Runtime's optimisations and with its defaults."""
        self.report("running both exports")
        first = self._export(self.exports[0], measures)
        if isinstance(first, str):
            self.found.warnings.append(f"ONNX Runtime cannot judge this model: {first}")
            return
        own = [
            [
                replace(one, truth=Truth(value, one.truth.axes))
                for one, value in zip(row, values, strict=True)
            ]
            for row, values in zip(measures, folded, strict=True)
        ]
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
        self, exports: Exports, expected: Yardsticks
    ) -> tuple[onnx_runner.OnnxModel, Values] | str:
        """The first export that computes what Keras does, and its values; or why there is none."""
        for exported in exports:
            call = functools.partial(onnx_runner.run_onnx, exported)
            try:
                values = samples.run_all(call, self.case.sets)
            except CannotRunError as error:
                exports.reason = exports.reason or str(error)
                continue
            exact = [[one.value for one in row] for row in expected]
            if _all_agree(expected, values, self._rough, self._comparable(values, exact)):
                return exported, values
            exports.reason = "it computes something else than Keras does"
        return exports.reason

    def _run_defaults(
        self, measures: Yardsticks, original: onnx_runner.OnnxModel, folded: onnx_runner.OnnxModel
    ) -> None:
        count = self.case.outputs
        self.report("running both exports as ONNX Runtime optimises them")
        try:
            found = [
                samples.run_all(
                    functools.partial(onnx_runner.run_onnx, onnx_runner.optimised(one, count)),
                    self.case.sets,
                )
                for one in (original, folded)
            ]
        except CannotRunError as error:
            self.found.warnings.append(f"ONNX Runtime's optimisations could not be judged: {error}")
            return
        shortened = [row[:count] for row in measures]
        if not _all_agree(shortened, found[0], 1e-3, self._comparable(found[0])):
            self.found.warnings.append(
                "ONNX Runtime's optimisations make the original compute something else"
            )
            return
        self._note("onnxruntime optimised", shortened, *found)

    def _run_onnx_alone(self, cause: CannotRunError) -> None:
        """Judge by ONNX Runtime when Keras cannot run the original on this machine."""
        case = self.case
        self.report("exporting both models")
        values, noise = [], []
        for loaded, moves in zip((case.original, case.folded), case.steps, strict=True):
            try:
                found = onnx_runner.evaluate_onnx(loaded, case.sets)
                perturbed = onnx_runner.perturbed_onnx(
                    loaded,
                    case.sets,
                    steps=moves.computed,
                    repetitions=_REPETITIONS_LARGE,
                    seed=case.seed,
                )
                noise.append(list(movement(found, perturbed, case.axes)))
            except CannotRunError as error:
                raise VerificationImpossibleError(
                    f"neither Keras ({cause}) nor ONNX Runtime ({error}) can run {loaded.label}"
                ) from error
            values.append(found)
        self.found.runtimes.add("onnxruntime")
        self.found.yardstick = "onnxruntime"
        self.found.warnings.append(f"Keras cannot run the original: {cause}")
        units = keras_runner.output_units(case.original, case.steps[0].computed)
        self._note("onnxruntime", self._yardsticks(values[0], units, *noise), *values)

    # --- what they found ---

    def _note(self, name: str, measures: Yardsticks, original: Values, folded: Values) -> None:
        """Keep how far both models are from the yardsticks in one arithmetic."""
        forgive = self.found.yardstick == "keras float64"
        is_yardstick = self.found.yardstick == name
        exact = [[one.value for one in row] for row in measures]
        where = self._comparable(original)
        run = Run(
            name=name,
            yardsticks=measures,
            original=None if is_yardstick else self._errors(exact, original),
            folded=self._errors(exact, folded, where),
            problems=_problems(
                original, folded, forgive_overflow=forgive, where=where if forgive else None
            ),
            unseen=_unseen(exact, where),
        )
        self.found.runs.append(run)
        if forgive:
            self._note_overflow(run, exact, original)
        if is_yardstick:
            self._note_taken_in(measures, run.folded, folded)

    def _note_overflow(self, run: Run, exact: Values, original: Values) -> None:
        """Say where the original overflows by itself, which is no fault of the fold."""
        labels, broken = (
            self.case.labels,
            [
                at
                for at in range(len(exact[0]))
                if any(
                    np.any(np.isfinite(truth[at]) & ~np.isfinite(row[at]))
                    for truth, row in zip(exact, original, strict=True)
                    if row[at].dtype.kind in "fc"
                )
            ],
        )
        if not broken:
            return
        broken.sort(key=lambda at: labels[at].is_output)  # where it begins, if that was seen
        text = f"{run.name}: the original itself overflows at {labels[broken[0]].name!r}"
        if run.unseen:
            names = ", ".join(dict.fromkeys(repr(labels[at].name) for at in sorted(run.unseen)))
            self.found.doubts.append(f"{text}: nothing is left to compare of {names}")
        else:
            self.found.warnings.append(f"{text}: what depends on it was left out")

    def _note_taken_in(self, measures: Yardsticks, found: Table, folded: Values) -> None:
        """Note the places of sites where what stands was neither made nor read by the layer."""
        pairing, first = self.case.pairing, self.case.outputs
        if pairing is None:
            return
        for site in filter(pairing.stands_alone, pairing.sites):
            for at in (first + p for one in site.call.outputs for p in pairing.places_of(one)):
                column = [(row[at], off[at]) for row, off in zip(measures, found, strict=True)]
                right = all(compare(one, None, off, self.rule).passed for one, off in column)
                if not right and not self._was_left(site, at, measures, folded):
                    self.found.taken_in.add(at)

    def _was_left(self, site: Site, at: int, measures: Yardsticks, folded: Values) -> bool:
        """Whether a layer that is gone makes the original's values of what stands there now."""
        try:
            return all(
                agrees(row[at], keras_runner.apply(site.call.layer, values[at]), self._rough)
                for row, values in zip(measures, folded, strict=True)
            )
        except CannotRunError:
            return True


def _problems(
    original: Values, folded: Values, *, forgive_overflow: bool, where: Masks | None = None
) -> dict[int, str]:
    """What is wrong with numbers that are not finite, by position."""
    found = {}
    for number, (row, other) in enumerate(zip(original, folded, strict=True)):
        for at, (one, two) in enumerate(zip(row, other, strict=True)):
            mask = None if where is None else where[number][at]
            problem = not_finite(one, two, forgive_overflow=forgive_overflow, where=mask)
            if problem is not None:
                found[at] = problem
    return found


def _unseen(exact: Values, where: Masks) -> frozenset[int]:
    """The values of which there are numbers, and none of them can be compared."""
    found = []
    for at in range(len(exact[0])):
        pairs = [(row[at], masks[at]) for row, masks in zip(exact, where, strict=True)]
        there = any(mask is not None and np.isfinite(one).any() for one, mask in pairs)
        if there and not any(mask is not None and mask.any() for _, mask in pairs):
            found.append(at)
    return frozenset(found)


def _all_pass(measures: Yardsticks, found: Table, rule: Rule) -> bool:
    return all(
        compare(truth, None, one, rule).passed
        for truths, row in zip(measures, found, strict=True)
        for truth, one in zip(truths, row, strict=True)
    )


def _same(one: Array, other: Array) -> bool:
    """Equal bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _all_agree(expected: Yardsticks, values: Values, rough: float, where: Masks) -> bool:
    return all(
        len(row) == len(found)
        and all(
            agrees(one, value, rough, where=mask)
            for one, value, mask in zip(row, found, masks, strict=True)
        )
        for row, found, masks in zip(expected, values, where, strict=True)
    )
