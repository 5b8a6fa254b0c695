"""Verifying a deployed model that any tool made: opened, paired with MODEL, judged, explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bnfold.errors import VerificationImpossibleError
from bnfold.model.container.model_file import open_model
from bnfold.model.container.printing import printable
from bnfold.model.container.record import recalibration, records
from bnfold.running import borrowing, inputs, keras_runner, ports, session
from bnfold.running import data as user_data
from bnfold.running import samples as drawing
from bnfold.running.deployed.binding import Binding, bind
from bnfold.running.deployed.model import Deployed, Precision
from bnfold.running.deployed.opening import open_deployed
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.options import (
    MEASURED,
    RANDOM,
    SAFELY,
    UNBOUNDED,
    Bounds,
    Loading,
    Samples,
    Tolerance,
)
from bnfold.running.session import Opening
from bnfold.supervision import link
from bnfold.verification import layers
from bnfold.verification.bounds import held_to
from bnfold.verification.replay import Keep, Replay
from bnfold.verification.result import Basis, Verdict, Verification
from bnfold.verification.tolerance import Rule
from bnfold.verification.trial import NAMED, SLACK, Trial, expect


@borrowing.guest()
def verify_deployed(
    original: Path,
    other: Path,
    *,
    loading: Loading = SAFELY,
    samples: Samples = RANDOM,
    tolerance: Tolerance = MEASURED,
    progress: Callable[[str], None] | None = None,
    bounds: Bounds = UNBOUNDED,
    keep: Keep | None = None,
) -> Verification:
    """Judge whether a deployed model computes what the Keras model `original` computes.

    The arguments are those of `verify`. Raises UnreadableModelError, UnsafeModelError,
    VerificationImpossibleError where one of the two cannot be run, and BnfoldError for data that
    does not fit.
    """
    report = link.told(progress)
    opening = session.look([Path(original)], loading, samples)
    opening.start(report)
    file = open_deployed(Path(other), trust=loading.trust)
    try:
        (loaded,) = opening.load(report)
    except CannotRunError as error:
        raise VerificationImpossibleError(str(error)) from error
    keras_runner.prepare_alone(loaded)
    interface = ports.interface(loaded.model)
    bindings, differences = bind(interface, file)
    for one in file.others:
        bindings += bind(interface, one)[0]
    rule = Rule(tolerance)
    if not bindings:
        found = _different(file, differences, rule, samples.seed, loaded.library)
        return held_to(_explained(found, file, original), bounds)
    first, reasons = None, []
    replays: list[Replay] = []
    for binding in bindings:
        report("running the model with Keras")
        trial = _expected(loaded, binding, opening, samples, rule)
        case = replace(trial.case, counts_all=bounds.max_changed is not None)
        trial = replace(trial, case=case, keep=replays.append)
        report(f"running {NAMED[file.format]}")
        try:
            judged = trial.judge(binding)
        except CannotRunError as error:
            reasons.append(str(error))
            continue
        if judged.verdict is not Verdict.DIFFERENT:
            if keep is not None:
                keep(replays[-1])
            return held_to(_noted(judged, binding.file), bounds)
        first = first or (binding, trial, judged, replays[-1])
    if first is None:
        raise VerificationImpossibleError(f"{printable(str(other))}: {reasons[0]}")
    if keep is not None:
        keep(first[-1])
    report("looking for the first layer that differs")
    return held_to(_explained(_blamed(*first), file, original), bounds)


def _blamed(binding: Binding, trial: Trial, found: Verification, showed: Replay) -> Verification:
    """The same with what the difference comes of, as far as names of tensors tell."""
    file, case = binding.file, trial.case
    failed = {one.name for one in found.comparisons if not one.passed}
    located = layers.locate(
        case.original,
        binding,
        list(showed.inputs.values()),
        [value.name in failed for value in case.values],
        _agreeing(file.precision),
    )
    said = [] if located is None else [located.sentence]
    culprits = () if located is None else located.layers
    said_of_all = replace(found, differences=(*found.differences, *said), culprits=culprits)
    return _noted(said_of_all, file)


def _noted(found: Verification, file: Deployed) -> Verification:
    return replace(found, warnings=(*file.notes, *found.warnings))


def _explained(found: Verification, file: Deployed, original: Path) -> Verification:
    """The same with what the file says of the model that it was made of, if that is another one."""
    made = file.origin
    if found.verdict is not Verdict.DIFFERENT or made is None:
        return found
    source = printable(made.source)
    with open_model(original) as model:
        earlier = [one.get("source_sha256") for one in records(model.metadata)]
        is_known = made.sha256 in [model.sha256(), *earlier]
        is_recalibrated = recalibration(model.metadata) is not None
    if not is_known:
        hint = (
            f"the file says that bnfold made it of another model, {source!r} with the SHA-256"
            f" {printable(made.sha256[:12])}...: compare it with that one"
        )
    elif made.is_recalibrated and not is_recalibrated:
        hint = (
            f"the file says that the statistics of {source!r} were estimated again before it was"
            " made: compare it with the recalibrated model, as 'bnfold prepare' puts it beside it"
        )
    else:
        return found
    return replace(found, warnings=(hint, *found.warnings))


def _agreeing(precision: Precision) -> float:
    """How far a value inside may be off, as a share of its size, and still count as the same."""
    if precision.is_quantized:
        return 0.1
    return 1e-2 if precision.float_dtype != "float32" else 1e-4


def _expected(
    loaded: LoadedModel, binding: Binding, opening: Opening, samples: Samples, rule: Rule
) -> Trial:
    """What MODEL computes from samples that the file takes too."""
    specs = binding.narrowed(inputs.input_specs(loaded.model))
    warnings = list(loaded.notes)
    if opening.data is not None:
        given, warning = user_data.load(opening.data, specs)
        sets, warnings = [given], [*warnings, *([warning] if warning else [])]
    else:
        sizes = keras_runner.free_sizes(loaded, specs)
        sets = binding.fitted(drawing.generate(specs, samples.seed, sizes), samples.seed)
    try:
        return expect(
            loaded,
            loaded,
            sets,
            seed=samples.seed,
            rule=rule,
            warnings=warnings,
            precision=binding.file.precision,
            is_user_data=opening.data is not None,
        )
    except CannotRunError as error:
        raise VerificationImpossibleError(
            f"{loaded.label}: Keras cannot run it, so there is nothing to compare: {error}"
        ) from error


def _different(
    file: Deployed, differences: Sequence[str], rule: Rule, seed: int, library: str
) -> Verification:
    """The verdict where the interfaces differ."""
    return Verification(
        Verdict.DIFFERENT,
        Basis.INTERFACE,
        tuple(differences),
        file.notes,
        seed,
        library,
        replace(rule, slack=SLACK).text(),
        format=file.format,
        precision=file.precision.name,
    )
