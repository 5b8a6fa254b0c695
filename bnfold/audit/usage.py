"""Rules on how a BatchNormalization is called: with which mode, on which axis, how often."""

from bnfold.audit.axes import normalized_axis, producers
from bnfold.audit.finding import Severity
from bnfold.audit.subject import Subject, Verdict
from bnfold.folding.plan import Blocked


def axis_mismatch(subject: Subject) -> Verdict | None:
    """The axis is not the one on which the layer before it has its channels."""
    if subject.place is None:
        return None
    for node in subject.place.nodes:
        axis, shape = normalized_axis(subject.batchnorm, node), node.input_shape()
        found = producers(node)
        if axis is None or not found or axis in found.values():
            continue
        producer, channels = next(iter(found.items()))
        counted = "" if shape is None else f" of {len(shape)}"
        return Verdict(
            Severity.WARNING,
            f"it normalizes axis {axis}{counted}, but {producer.title} has its channels on axis "
            f"{channels}",
            f"build it with axis={channels}, and train again",
            figures={"axis": axis, "channel_axis": channels},
        )
    return None


def batch_statistics_at_inference(subject: Subject) -> Verdict | None:
    """A call of the layer, or of a model or wrapper around it, passes training=True."""
    decision = subject.decision
    if not (isinstance(decision, Blocked) and decision.batch_statistics):
        return None
    return Verdict(
        Severity.ERROR,
        f"{decision.reason}: its output depends on what else is in the batch",
        "; or ".join(decision.remedies) or "freeze the layer (trainable=False)",
    )


def shared(subject: Subject) -> Verdict | None:
    """The layer is called more than once, so different inputs share its statistics."""
    place = subject.place
    if place is None or not (place.count > 1 or place.stands_elsewhere):
        return None
    how = f"is called {place.count} times" if place.count > 1 else "stands in several places"
    return Verdict(
        Severity.INFO,
        f"it {how}: its statistics are those of all calls together",
        "nothing to do if the inputs are alike; else give each call a layer of its own",
        figures={"calls": place.count},
    )
