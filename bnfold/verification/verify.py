"""The order of a verification: refuse, load, compare the interface, run, judge, sum up.

Every runtime is first tried on the original. What cannot run the original, or computes something
else than Keras does, says nothing about the folded model and is left out with a warning.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import VerificationImpossibleError
from bnfold.verification import findings, runtime, safety, samples, sites, tensors
from bnfold.verification.compare import (
    Array,
    ByAxis,
    Errors,
    Rule,
    Yardstick,
    agrees,
    compare,
    errors,
    failed,
    largest_of,
    not_finite,
    pooled,
)
from bnfold.verification.result import (
    Accuracy,
    Agreement,
    Basis,
    Comparison,
    Site,
    SiteStatus,
    Verdict,
    Verification,
)
from bnfold.verification.runtime import CannotRunError, LoadedModel, Moves
from bnfold.verification.samples import SampleSet

Progress = Callable[[str], None]
Values = list[list[Array]]
"""What a model computes: by sample set, then by output and place."""
Yardsticks = list[list[Yardstick]]

_REPETITIONS = 4
_REPETITIONS_LARGE = 2
_LARGE = 4_000_000  # weights; values in large models average over so many that one run is enough
_ROUGH = 64  # how many roundings of 16 bits a runtime may be off and still count as the same


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
    rule = Rule(rtol, atol)
    try:
        pair = runtime.load_pair(files[0], files[1], imports, classes or {}, trust=trust)
    except CannotRunError as error:
        difference = f"Keras loads the original but not the other model: {error}"
        return _without_runs([difference], seed, rule, "keras")
    differences = tensors.differences(*(tensors.interface(loaded.model) for loaded in pair))
    if differences:
        return _without_runs(differences, seed, rule, pair[0].library)
    case = _prepare(*pair, data, seed)
    exports = (_Exports(case.original), _Exports(case.folded))
    found = _Trial(case, rule, report, exports).run()
    if case.is_quick and found.verdict is Verdict.DIFFERENT:
        report("looking closer")
        found = _Trial(_closer(case, data), rule, report, exports).run()
    return found


def _closer(case: _Case, data: Path | None) -> _Case:
    """The same with more samples and more roundings, of which few may happen to be small."""
    sets = case.sets if data is not None else samples.generate(*case.specs, few=False)
    return replace(case, sets=sets, is_quick=False)


def _silent(_: str) -> None:
    """Report progress to nobody."""


def _without_runs(differences: Sequence[str], seed: int, rule: Rule, library: str) -> Verification:
    return Verification(
        Verdict.DIFFERENT, Basis.INTERFACE, tuple(differences), (), seed, library, rule.text()
    )


# --- before the runs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Label:
    """What is compared at one position of what the runners put out."""

    name: str
    is_output: bool
    tapped: str | None = None
    axis: int = -1


@dataclass(frozen=True)
class _Case:
    """Two loaded models, what they are compared at, and the samples."""

    original: LoadedModel
    folded: LoadedModel
    labels: tuple[_Label, ...]
    pairing: sites.Pairing | None
    sets: list[SampleSet]
    steps: tuple[Moves, Moves]
    seed: int
    warnings: tuple[str, ...]
    specs: tuple[Any, ...]
    is_quick: bool

    @property
    def outputs(self) -> int:
        """How many of the values are outputs; they come first."""
        return sum(label.is_output for label in self.labels)

    @property
    def repetitions(self) -> int:
        """How often weights are moved."""
        return _REPETITIONS_LARGE if self.is_quick else _REPETITIONS


def _prepare(original: LoadedModel, folded: LoadedModel, data: Path | None, seed: int) -> _Case:
    interfaces = tensors.interface(original.model), tensors.interface(folded.model)
    names = [port.name for port in interfaces[0].outputs]
    specs = tensors.input_specs(original.model)
    warnings, sets = tensors.renamed(*interfaces), []
    if data is not None:
        user_set, warning = samples.load(data, specs)
        sets, warnings = [user_set], warnings + ([warning] if warning else [])
    prepared = runtime.prepare_pair(original, folded)
    if prepared.problem is not None:
        warnings.append(f"only outputs are compared: {prepared.problem}")
    wanted = (specs, seed, runtime.free_sizes(original, specs))
    if data is None:
        sets = samples.generate(*wanted)
    labels = [
        _Label(name, True, tap.activation if tap else None)
        for name, tap in zip(names, prepared.taps, strict=True)
    ]
    places = prepared.pairing.places if prepared.pairing is not None else []
    labels += [_Label(place.name, False, axis=place.axis) for place in places]
    steps = (runtime.moves(original), runtime.moves(folded))
    return _Case(
        original=original,
        folded=folded,
        labels=tuple(labels),
        pairing=prepared.pairing,
        sets=sets,
        steps=steps,
        seed=seed,
        warnings=tuple(warnings),
        specs=wanted,
        is_quick=bool(original.model.count_params() > _LARGE),
    )


# --- the runs ------------------------------------------------------------------------------------


class _Exports:
    """The exports of one model, the fastest first, each made when it is asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.reason = ""
        self._coming = self._make(loaded)
        self._made: list[runtime.OnnxModel] = []

    def _make(self, loaded: LoadedModel) -> Iterator[runtime.OnnxModel]:
        for _, export in runtime.exports(loaded):
            try:
                yield export()
            except CannotRunError as error:
                self.reason = self.reason or str(error)
            finally:
                runtime.release()  # an export leaves several copies of the weights behind

    def prepare(self) -> None:
        """Make the first one that can be made."""
        if not self._made:
            self._made += itertools.islice(self._coming, 1)

    def __iter__(self) -> Iterator[runtime.OnnxModel]:
        """All of them, those made before first."""
        yield from list(self._made)
        for exported in self._coming:
            self._made.append(exported)
            yield exported


@dataclass
class _Trial:
    """The runs of one case, and what they found out so far."""

    case: _Case
    rule: Rule
    report: Progress
    exports: tuple[_Exports, _Exports]
    training: bool | None = None
    yardstick: str | None = None
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)
    problems: dict[str, dict[int, str]] = field(default_factory=dict)
    heard: dict[int, Array] = field(default_factory=dict)
    taken_in: set[int] = field(default_factory=set)
    agreements: list[Agreement] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    runtimes: set[str] = field(default_factory=set)
    merged: tuple[str, ...] | None = None

    @property
    def rough(self) -> float:
        """How far off, relative to its magnitude, what is computed otherwise still is the same."""
        return max(1e-3, _ROUGH * max(self.case.steps[0].computed, default=0.0) / 2)

    def run(self) -> Verification:
        """Judge in every arithmetic that can run the original; the verdict."""
        self.warnings += self.case.warnings
        # Exports take the most memory: they come while little else is there.
        self.report("exporting the original")
        self.exports[0].prepare()
        self.report("exporting the folded model")
        self.exports[1].prepare()
        self.report("running both models with Keras")
        try:
            self._choose_mode()
            original = self._evaluate(self.case.original)
        except CannotRunError as error:
            self._run_onnx_alone(error)
            return self.conclude()
        try:
            folded = self._evaluate(self.case.folded)
        except CannotRunError as error:
            self.differences.append(f"Keras runs the original but not the folded model: {error}")
            return self.conclude()
        self.runtimes.add("keras")
        yardsticks = self._judge_by_yardstick(original, folded)
        self._judge("keras", yardsticks, original, folded)
        self._note_agreement(yardsticks, folded)
        self._run_onnx(yardsticks, original, folded)
        return self.conclude()

    def _evaluate(self, loaded: LoadedModel) -> Values:
        return runtime.evaluate(loaded, self.case.sets, training=self.training)

    def _choose_mode(self) -> None:
        """Choose None, as users call a model, unless that is random: then training=False.

        The two differ only where the file itself calls a layer with training=True.
        """
        case = self.case
        if not self._modes_differ(case.original):
            return
        if not runtime.is_repeatable(case.original, case.sets[-1], case.steps[0].computed, 0):
            self.warnings.append(
                "random layers that are called with training=True were switched off"
            )
            self.training = False

    def _modes_differ(self, loaded: LoadedModel) -> bool:
        """Whether a model computes something else with training=False than without."""
        if not tensors.sets_training(loaded.model):
            return False
        last = self.case.sets[-1:]
        plain, off = (runtime.evaluate(loaded, last, training=mode) for mode in (None, False))
        return not all(_same(*pair) for pair in zip(plain[0], off[0], strict=True))

    # --- the yardstick ---

    def _judge_by_yardstick(self, original: Values, folded: Values) -> Yardsticks:
        """The original in float64 where that can be had, else as it is; judged against it."""
        self.report("running both models in float64")
        try:
            yardsticks, double, found, problems = self._in_float64(original)
        except CannotRunError as error:
            self.warnings.append(f"no float64, a weaker claim: {error}")
            self.yardstick = "keras"
            return self._as_it_is(original, folded)
        finally:
            runtime.release()  # Keras models are reference cycles; the copies are large
        self.yardstick = "keras float64"
        self._record("keras float64", yardsticks, None, found, problems)
        self._note_taken_in("keras float64", yardsticks, double)
        return self._in_own_arithmetic(yardsticks)

    def _in_own_arithmetic(self, yardsticks: Yardsticks) -> Yardsticks:
        """The same with the noise of weights that are rounded to what the models compute in.

        In 32 bits that is the noise measured already, twice as far; 16 bits round otherwise.
        """
        case = self.case
        if all(moves.computed == tuple(2 * step for step in moves.stored) for moves in case.steps):
            return [[one.twice_as_noisy() for one in row] for row in yardsticks]
        exact = [[one.value for one in row] for row in yardsticks]
        noise = []
        for loaded, moves in zip((case.original, case.folded), case.steps, strict=True):
            double = runtime.float64_copy(loaded)
            values = runtime.evaluate(double, case.sets, training=self.training)
            noise.append(self._moved(double, values, moves.computed))
        units = runtime.output_units(case.original, case.steps[0].computed)
        return _yardsticks(exact, noise[0], noise[1], units)

    def _in_float64(
        self, native: Values
    ) -> tuple[Yardsticks, Values, list[list[Errors]], dict[int, str]]:
        """The yardsticks, the folded model in float64, how far it is off, and its problems."""
        case = self.case
        double = runtime.float64_copy(case.original)
        exact = runtime.evaluate(double, case.sets, training=self.training)
        noise = self._moved(double, exact, case.steps[0].stored)
        units = runtime.output_units(case.original, case.steps[0].stored)
        if not _all_agree(_yardsticks(exact, noise, noise, units), native, self.rough):
            raise CannotRunError("the copy in float64 computes something else")
        double = runtime.float64_copy(case.folded)
        folded = runtime.evaluate(double, case.sets, training=self.training)
        found, problems = _errors(exact, folded), _problems(exact, folded, forgive_overflow=False)
        yardsticks = _yardsticks(exact, noise, noise, units)
        if case.is_quick and _all_pass(yardsticks, found, self.rule):
            return yardsticks, folded, found, problems  # it asks for no noise of its own
        other = self._moved(double, folded, case.steps[1].stored)
        return _yardsticks(exact, noise, other, units), folded, found, problems

    def _moved(
        self, loaded: LoadedModel, values: Values, steps: Sequence[float]
    ) -> list[list[list[Errors]]]:
        case = self.case
        return runtime.movement(
            loaded,
            case.sets,
            values,
            steps=steps,
            repetitions=case.repetitions,
            seed=case.seed,
            training=self.training,
        )

    def _as_it_is(self, original: Values, folded: Values) -> Yardsticks:
        case = self.case
        noise = [
            self._moved(loaded, values, moves.computed)
            for loaded, moves, values in zip(
                (case.original, case.folded), case.steps, (original, folded), strict=True
            )
        ]
        units = runtime.output_units(case.original, case.steps[0].computed)
        return _yardsticks(original, noise[0], noise[1], units)

    # --- ONNX Runtime ---

    def _run_onnx(self, yardsticks: Yardsticks, original: Values, folded: Values) -> None:
        """Judge what ONNX Runtime computes, without its optimisations and with its defaults."""
        if self.training is None and self._modes_differ(self.case.original):
            self.training = False  # which is what the exporter traces
            original, folded = map(self._evaluate, (self.case.original, self.case.folded))
            yardsticks = self._again(original, folded)
        self.report("running both exports")
        first = self._export(self.exports[0], yardsticks)
        if isinstance(first, str):
            self.warnings.append(f"ONNX Runtime cannot judge this model: {first}")
            return
        own = [[Yardstick(value) for value in row] for row in folded]
        second = self._export(self.exports[1], own)
        if isinstance(second, str):
            self.doubts.append(f"ONNX Runtime runs the original but not the folded model: {second}")
            return
        self.runtimes.add("onnxruntime")
        self._note_merged(first[0])
        self._judge("onnxruntime", yardsticks, first[1], second[1])
        self._run_defaults(yardsticks, first[0], second[0])

    def _again(self, original: Values, folded: Values) -> Yardsticks:
        try:
            return self._in_own_arithmetic(self._in_float64(original)[0])
        except CannotRunError:
            return self._as_it_is(original, folded)

    def _export(
        self, exports: _Exports, expected: Yardsticks
    ) -> tuple[runtime.OnnxModel, Values] | str:
        """The first export that computes what Keras does, and its values; or why there is none."""
        for exported in exports:
            call = functools.partial(runtime.run_onnx, exported)
            try:
                values = samples.run_all(call, self.case.sets)
            except CannotRunError as error:
                exports.reason = exports.reason or str(error)
                continue
            if _all_agree(expected, values, self.rough):
                return exported, values
            exports.reason = "it computes something else than Keras does"
        return exports.reason

    def _run_defaults(
        self, yardsticks: Yardsticks, original: runtime.OnnxModel, folded: runtime.OnnxModel
    ) -> None:
        count = self.case.outputs
        self.report("running both exports as ONNX Runtime optimises them")
        try:
            found = [
                samples.run_all(
                    functools.partial(runtime.run_onnx, runtime.optimised(one, count)),
                    self.case.sets,
                )
                for one in (original, folded)
            ]
        except CannotRunError as error:
            self.warnings.append(f"ONNX Runtime's optimisations could not be judged: {error}")
            return
        shortened = [row[:count] for row in yardsticks]
        if not _all_agree(shortened, found[0], 1e-3):
            self.warnings.append(
                "ONNX Runtime's optimisations make the original compute something else"
            )
            return
        self._judge("onnxruntime optimised", shortened, *found)

    def _note_merged(self, exported: runtime.OnnxModel) -> None:
        if self.case.pairing is not None:
            names = [site.name for site in self.case.pairing.sites]
            self.merged = runtime.merged(exported, list(dict.fromkeys(names)))

    def _run_onnx_alone(self, cause: CannotRunError) -> None:
        """Judge by ONNX Runtime when Keras cannot run the original on this machine."""
        case = self.case
        self.report("exporting both models")
        values, noise = [], []
        for loaded, moves in zip((case.original, case.folded), case.steps, strict=True):
            try:
                found = runtime.evaluate_onnx(loaded, case.sets)
                moved = runtime.movement_onnx(
                    loaded,
                    case.sets,
                    found,
                    steps=moves.computed,
                    repetitions=_REPETITIONS_LARGE,
                    seed=case.seed,
                )
            except CannotRunError as error:
                raise VerificationImpossibleError(
                    f"neither Keras ({cause}) nor ONNX Runtime ({error}) can run {loaded.label}"
                ) from error
            values.append(found)
            noise.append(moved)
        self.runtimes.add("onnxruntime")
        self.yardstick = "onnxruntime"
        self.warnings.append(f"Keras cannot run the original: {cause}")
        units = runtime.output_units(case.original, case.steps[0].computed)
        yardsticks = _yardsticks(values[0], noise[0], noise[1], units)
        self._judge("onnxruntime", yardsticks, values[0], values[1])

    # --- the judgement ---

    def _judge(self, name: str, yardsticks: Yardsticks, original: Values, folded: Values) -> None:
        """Compare both models in one arithmetic with the yardstick."""
        forgive = self.yardstick == "keras float64"
        problems = _problems(original, folded, forgive_overflow=forgive)
        exact = [[one.value for one in row] for row in yardsticks]
        own = None if self.yardstick == name else _errors(exact, original)
        where = [
            [np.isfinite(one) if one.dtype.kind in "fc" else None for one in row]
            for row in original
        ]
        self._record(name, yardsticks, own, _errors(exact, folded, where), problems)
        if self.yardstick == name:
            self._note_taken_in(name, yardsticks, folded)

    def _note_taken_in(self, name: str, yardsticks: Yardsticks, folded: Values) -> None:
        """Note where neither what a layer that is gone made nor what it read stands in its place.

        There nothing was left for a layer behind to take in.
        """
        pairing, first = self.case.pairing, self.case.outputs
        if pairing is None:
            return
        for site in filter(pairing.stands_alone, pairing.sites):
            for at in (first + p for one in site.call.outputs for p in pairing.places_of(one)):
                pairs = zip(yardsticks, folded, strict=True)
                column = [(row[at], other[at]) for row, other in pairs]
                if not self.comparisons[name][at].passed and not self._was_left(site, column):
                    self.taken_in.add(at)

    def _was_left(self, site: sites.Site, column: Sequence[tuple[Yardstick, Array]]) -> bool:
        """Whether a layer that is gone makes the original's values of those of the other model."""
        try:
            return all(
                agrees(truth, runtime.apply(site.call.layer, value), self.rough)
                for truth, value in column
            )
        except CannotRunError:
            return True

    def _record(
        self,
        name: str,
        yardsticks: Yardsticks,
        original: list[list[Errors]] | None,
        folded: list[list[Errors]],
        problems: Mapping[int, str],
    ) -> None:
        """Keep the worst kind of samples of each value."""
        rows = []
        for at, label in enumerate(self.case.labels[: len(folded[0])]):
            truths = [row[at] for row in yardsticks]
            found = [row[at] for row in folded]
            own = [None] * len(found) if original is None else [row[at] for row in original]
            judged, typical = pooled(truths, own)
            outcomes = [
                failed(problems[at]) if at in problems else compare(truth, mine, theirs, self.rule)
                for truth, mine, theirs in zip(judged, typical, found, strict=True)
            ]
            worst = max(range(len(outcomes)), key=lambda i: outcomes[i].excess)
            heard = _heard([outcome.heard for outcome in outcomes], label.axis)
            self.heard[at] = _either(self.heard.get(at), heard)
            rows.append(
                Comparison(
                    name=label.name,
                    is_output=label.is_output,
                    tapped_before=label.tapped,
                    runtime=name,
                    samples=self.case.sets[worst].kind,
                    original=_accuracy(own, truths),
                    folded=_accuracy(found, truths) or Accuracy(math.inf, math.inf, None),
                    error=outcomes[worst].error,
                    tolerance=outcomes[worst].tolerance,
                    excess=outcomes[worst].excess,
                    passed=all(outcome.passed for outcome in outcomes),
                    channels=len(heard),
                    exercised=int(np.count_nonzero(heard)),
                )
            )
            if outcomes[worst].problem is not None:
                self.problems.setdefault(name, {})[at] = outcomes[worst].problem or ""
            if label.is_output and not all(one.finite for one in found):
                self.warnings.append(
                    f"{name}: output {label.name!r} has values that are not finite"
                )
        self.comparisons[name] = rows

    def _note_agreement(self, yardsticks: Yardsticks, folded: Values) -> None:
        """Of each classifier's output, how many samples changed their class."""
        for at, label in enumerate(self.case.labels):
            value = yardsticks[0][at].value
            if label.tapped != "softmax" or value.ndim < 2 or value.shape[-1] < 2:
                continue
            exact = [row[at].value.reshape(-1, value.shape[-1]) for row in yardsticks]
            found = [row[at].reshape(-1, value.shape[-1]) for row in folded]
            changed = sum(
                int(np.count_nonzero(one.argmax(-1) != two.argmax(-1)))
                for one, two in zip(exact, found, strict=True)
            )
            ordered = [np.sort(one, axis=-1) for one in exact]
            margin = min(float((one[:, -1] - one[:, -2]).min()) for one in ordered)
            count = sum(len(one) for one in exact)
            self.agreements.append(Agreement(label.name, count, changed, margin))

    # --- the end ---

    def conclude(self) -> Verification:
        """Return the verdict over everything that was found."""
        found = {name: self._findings(rows) for name, rows in self.comparisons.items()}
        culprits = self._culprits(found)
        used = {at for told in found.values() for one in told.sites for at in one.places}
        blamed = [one for told in found.values() for one in told.changed if one.name in culprits]
        used |= {at for one in blamed for at in one.places}
        self._say_what_differs(culprits, used)
        return Verification(
            verdict=self._verdict(),
            basis=self._basis(),
            differences=tuple(self.differences),
            warnings=tuple(dict.fromkeys(self.warnings + self.doubts)),
            seed=self.case.seed,
            library=self.case.original.library,
            rule=self.rule.text(),
            comparisons=tuple(self._shown(used)),
            sites=self._sites(found),
            culprits=culprits,
            agreements=tuple(self.agreements),
            yardstick=self.yardstick,
            merged_by_exporter=self.merged,
            sample_count=sum(one.count for one in self.case.sets),
            sample_kinds=tuple(one.kind for one in self.case.sets),
        )

    def _findings(self, rows: Sequence[Comparison]) -> findings.Findings:
        """What one arithmetic says of the sites; nothing where it saw outputs only."""
        pairing, first = self.case.pairing, self.case.outputs
        if pairing is None or len(rows) < len(self.case.labels):
            return findings.Findings()
        return findings.judge(
            pairing,
            lambda place: rows[first + place].passed,
            lambda place: first + place not in self.taken_in,
        ).moved(first)

    def _culprits(self, found: Mapping[str, findings.Findings]) -> tuple[str, ...]:
        """Those of the sharpest arithmetic that finds any; a wrong output alone has none."""
        is_wrong = any(
            row.is_output and not row.passed for rows in self.comparisons.values() for row in rows
        )
        for told in found.values():
            wrong = any(one.status == "different" for one in told.sites)
            if self.case.pairing is not None and (wrong or (is_wrong and told.changed)):
                return findings.culprits(self.case.pairing, told)
        return ()

    def _say_what_differs(self, culprits: Sequence[str], used: set[int]) -> None:
        gone = {site.name for site in self.case.pairing.sites} if self.case.pairing else set()
        for name in culprits:
            self.differences.append(
                f"BatchNormalization {name!r} was not folded rightly"
                if name in gone
                else f"layer {name!r} does not compute what it computes in the original"
            )
        for runtime_name, rows in self.comparisons.items():
            for at, row in enumerate(rows):
                wrong = not row.passed and (row.is_output or (at in used and row.name in culprits))
                if wrong:
                    self.differences.append(
                        _sentence(row, self.problems.get(runtime_name, {}).get(at))
                    )

    def _shown(self, used: set[int]) -> list[Comparison]:
        """The comparisons of outputs, and of the places that told something of a site."""
        return [
            row
            for rows in self.comparisons.values()
            for at, row in enumerate(rows)
            if row.is_output or at in used
        ]

    def _sites(self, found: Mapping[str, findings.Findings]) -> tuple[Site, ...]:
        if self.case.pairing is None:
            return ()
        return tuple(
            self._site(
                number,
                site,
                {name: told.sites[number] for name, told in found.items() if told.sites},
            )
            for number, site in enumerate(self.case.pairing.sites)
        )

    def _site(self, number: int, site: sites.Site, found: Mapping[str, findings.Finding]) -> Site:
        """One site over all arithmetics: wrong in one is wrong."""
        wrong = [one for one in found.values() if one.status == "different"]
        told = wrong or [one for one in found.values() if one.status == "matched"]
        places = tuple(dict.fromkeys(at for one in told for at in one.places))
        rows = [
            self.comparisons[name][at]
            for name, one in found.items()
            for at in one.places
            if at in places
        ]
        heard = [self.heard[at] for at in places]
        status = SiteStatus(told[0].status) if told else SiteStatus.UNPAIRED
        if status is SiteStatus.MATCHED and not any(one.any() for one in heard):
            status = SiteStatus.NOT_EXERCISED
        return Site(
            name=site.name,
            call=site.call.key[-1][1],
            status=status,
            compared_at=tuple(dict.fromkeys(self.case.labels[at].name for at in places)),
            excess=max((row.excess for row in rows), default=0.0),
            channels=sum(len(one) for one in heard),
            exercised=sum(int(np.count_nonzero(one)) for one in heard),
        )

    def _verdict(self) -> Verdict:
        if self.differences:
            return Verdict.DIFFERENT
        for at, label in enumerate(self.case.labels[: self.case.outputs]):
            if not self.heard.get(at, np.zeros(1, bool)).any():
                self.doubts.append(
                    f"output {label.name!r} was not exercised: it never changed, "
                    "or noise drowned it"
                )
        return Verdict.UNDECIDED if self.doubts else Verdict.EQUIVALENT

    def _basis(self) -> Basis:
        names = {
            frozenset({"keras", "onnxruntime"}): Basis.BOTH,
            frozenset({"keras"}): Basis.KERAS,
            frozenset({"onnxruntime"}): Basis.ONNXRUNTIME,
        }
        return names.get(frozenset(self.runtimes), Basis.INTERFACE)


# --- values --------------------------------------------------------------------------------------


def _errors(
    exact: Values, found: Values, where: Sequence[Sequence[Array | None]] | None = None
) -> list[list[Errors]]:
    return [
        [
            errors(truth, value, where=None if where is None else where[row][at])
            for at, (truth, value) in enumerate(zip(truths, values, strict=True))
        ]
        for row, (truths, values) in enumerate(zip(exact, found, strict=True))
    ]


def _finite(value: Array) -> Array | None:
    return np.isfinite(value) if value.dtype.kind in "fc" else None


def _problems(original: Values, folded: Values, *, forgive_overflow: bool) -> dict[int, str]:
    """What is wrong with numbers that are not finite, by position."""
    found = {}
    for row, other in zip(original, folded, strict=True):
        for at, (one, two) in enumerate(zip(row, other, strict=True)):
            problem = not_finite(one, two, forgive_overflow=forgive_overflow)
            if problem is not None:
                found[at] = problem
    return found


def _all_pass(yardsticks: Yardsticks, found: Sequence[Sequence[Errors]], rule: Rule) -> bool:
    return all(
        compare(truth, None, one, rule).passed
        for truths, row in zip(yardsticks, found, strict=True)
        for truth, one in zip(truths, row, strict=True)
    )


def _yardsticks(
    exact: Values,
    original: Sequence[Sequence[Sequence[Errors]]],
    folded: Sequence[Sequence[Sequence[Errors]]],
    units: Sequence[float],
) -> Yardsticks:
    return [
        [
            Yardstick(
                value,
                units[at],
                largest_of(original[row][at]),
                largest_of(folded[row][at]),
                max((one.share or 0.0 for one in original[row][at]), default=0.0),
            )
            for at, value in enumerate(values)
        ]
        for row, values in enumerate(exact)
    ]


def _same(one: Array, other: Array) -> bool:
    """Equal bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _all_agree(expected: Yardsticks, values: Values, rough: float) -> bool:
    return all(
        len(row) == len(found)
        and all(agrees(one, value, rough) for one, value in zip(row, found, strict=True))
        for row, found in zip(expected, values, strict=True)
    )


def _heard(parts: Sequence[ByAxis], axis: int) -> Array:
    """Which channels any kind of samples made vary, along the axis that the layer has them on."""
    found: Array | None = None
    for part in parts:
        keys = [key for key in part if key is not None]
        if part:
            key = axis if axis in part else (max(keys) if keys else next(iter(part)))
            found = _either(found, part[key])
    return np.zeros(0, bool) if found is None else found


def _either(one: Array | None, other: Array) -> Array:
    if one is None or one.shape != other.shape:
        return other
    return np.asarray(one | other)


def _accuracy(parts: Sequence[Errors | None], truths: Sequence[Yardstick]) -> Accuracy | None:
    """The worst of several kinds of samples."""
    found = [(part, truth) for part, truth in zip(parts, truths, strict=True) if part is not None]
    if not found or any(part.problem for part, _ in found):
        return None
    ratios = [part.sqnr for part, _ in found if part.sqnr is not None]
    return Accuracy(
        max(part.max_abs for part, _ in found),
        max(part.max_abs / truth.max_abs if truth.max_abs else 0.0 for part, truth in found),
        min(ratios, default=None),
    )


def _sentence(row: Comparison, problem: str | None) -> str:
    place = f"output {row.name!r}" if row.is_output else f"the value of {row.name!r}"
    if row.tapped_before:
        place += f" before its {row.tapped_before}"
    if problem:
        return f"{row.runtime}: {place}: {problem}"
    return (
        f"{row.runtime}: {place} is off by {row.error:.3g}, {row.excess:.3g} times"
        f" the tolerance of {row.tolerance:.3g} ({row.samples})"
    )
