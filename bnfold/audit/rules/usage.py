"""Rules on how a BatchNormalization is called: with which mode, on which axis, how often."""

from collections.abc import Mapping, Sequence

from bnfold.audit.axes import normalized_axis, producer
from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.neighbours import input_shape
from bnfold.audit.registry import Needs, rule
from bnfold.audit.subject import Subject
from bnfold.folding.plan import Blocked
from bnfold.folding.sentences import NO_SOURCE
from bnfold.model.graph import LayerPath, show
from bnfold.model.modes import CallModes, modes_of
from bnfold.model.program import Region
from bnfold.model.training import TrainingRule, named_versions


@rule("BN006", "axis-mismatch", Severity.WARNING, needs=Needs.SETTINGS)
def axis_mismatch(subject: Subject) -> Diagnosis | None:
    """It does not normalize the channel axis of the layer before it."""
    if subject.place is None:
        return None
    for call in subject.place.calls:
        axis, shape = normalized_axis(subject.batchnorm, call), input_shape(call)
        found = producer(call, subject.place.memo)
        if axis is None or found is None or axis == found.axis:
            continue
        rank = 0 if shape is None else len(shape)  # counted from the front where that is known
        return Diagnosis(
            Severity.WARNING,
            f"it normalizes axis {axis + rank}, but {found.call.title} has its channels on axis "
            f"{found.axis + rank}",
            f"build it with axis={found.axis if found.axis == -1 else found.axis + rank}, and "
            "retrain",
            figures={"axis": axis + rank, "channel_axis": found.axis + rank},
        )
    return None


@rule("BN007", "batch-statistics-at-inference", Severity.ERROR, needs=Needs.SETTINGS)
def batch_statistics_at_inference(subject: Subject) -> Diagnosis | None:
    """A call of the layer, or of a model or wrapper around it, passes training=True."""
    decision = subject.decision
    if not (isinstance(decision, Blocked) and decision.batch_statistics):
        return None
    calls = "in model(x) and in an export"
    if subject.place is not None and _trains_in_predict(subject.place.region, subject):
        calls = "in model(x), in predict and in an export"
    return Diagnosis(
        Severity.ERROR,
        f"{decision.reason}: {calls}, its output depends on what else is in the batch",
        "; or ".join(decision.remedies) or "freeze the layer (trainable=False)",
    )


def _trains_in_predict(region: Region, subject: Subject) -> bool:
    path, modes = subject.batchnorm.path, modes_of(region)
    return any(modes.in_version(path, rule).off for rule in modes.rules)


@rule("BN012", "version-dependent", Severity.WARNING, needs=Needs.SETTINGS)
def version_dependent(subject: Subject) -> Diagnosis | None:
    """Versions of Keras run it, or other layers of the model, in different modes."""
    if subject.place is None:
        return None
    modes = modes_of(subject.place.region)
    own = modes.varying.get(subject.batchnorm.path)
    said = [] if own is None else [f"it runs in training mode {_where(own)}"]
    if subject.speaks_for_model:
        alike: dict[str, list[LayerPath]] = {}
        for path, found in modes.varying.items():
            if path not in modes.batchnorms:
                alike.setdefault(_where(found), []).append(path)
        said += [_others(paths, where) for where, paths in alike.items()]
    if not said:
        return None
    return Diagnosis(
        Severity.WARNING,
        f"{'; '.join(said)}: the model computes something else after a change of version",
        "run it with the versions that it was tested with; or "
        f"{_BY_DEFAULT if modes.vary_by_default_only else NO_SOURCE}; then all versions agree",
    )


_BY_DEFAULT = (
    "fold it with --inference if it is called for inference only, or build it with training=False "
    "in the calls of layers that take training=True by default, and call set_weights"
)


def _where(found: Mapping[TrainingRule, CallModes]) -> str:
    """In which calls of the model under which versions, such as "in model(x) under Keras 2"."""
    alike: dict[str, list[TrainingRule]] = {}
    for version, one in found.items():
        calls = " and ".join(_CALLS[name] for name, is_on in one._asdict().items() if is_on)
        alike.setdefault(calls or "in none", []).append(version)
    return ", ".join(f"{calls} under {named_versions(rules)}" for calls, rules in alike.items())


_CALLS = {"plain": "in model(x)", "off": "in predict"}


def _others(paths: Sequence[LayerPath], where: str) -> str:
    names = ", ".join(repr(show(path)) for path in paths[:_MOST_NAMES])
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    verb = "runs" if len(paths) == 1 else "run"
    return f"{names}{more} {verb} in training mode {where}"


_MOST_NAMES = 5


@rule("BN009", "shared", Severity.INFO, needs=Needs.SETTINGS)
def shared(subject: Subject) -> Diagnosis | None:
    """The layer is called more than once, so different inputs share its statistics."""
    place = subject.place
    if place is None:
        return None
    times = place.updates_per_step or 0
    if place.count > 1:
        how = f"is called {place.count} times"
    elif place.stands_elsewhere:
        how = "stands in several places"
    elif times > 1:
        how = f"is called for each of {times} time steps"
    else:
        return None
    return Diagnosis(
        Severity.INFO,
        f"it {how}: all calls share its statistics",
        "nothing to do if the inputs are alike; otherwise give each call a layer of its own",
        figures={"calls": max(place.count, times)},
    )
