"""Rules on how a BatchNormalization is called: with which mode, on which axis, how often."""

from bnfold.audit.axes import normalized_axis, producer
from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.neighbours import input_shape
from bnfold.audit.registry import Needs, rule
from bnfold.audit.subject import Subject
from bnfold.folding.plan import Blocked


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
    return Diagnosis(
        Severity.ERROR,
        f"{decision.reason}: in model(x) and in an export, its output depends on what else is in "
        "the batch",
        "; or ".join(decision.remedies) or "freeze the layer (trainable=False)",
    )


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
