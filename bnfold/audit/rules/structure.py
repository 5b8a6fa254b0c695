"""Rules on what is around a BatchNormalization: biases, Dropout, and what keeps it from folding."""

import numpy as np

from bnfold.audit.axes import normalized_axis, producer
from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.flow import Flow, Memo
from bnfold.audit.neighbours import Place, stays_out_of_training
from bnfold.audit.registry import Needs, rule
from bnfold.audit.rules.folding import fold_overflows
from bnfold.audit.rules.settings import invalid_hyperparameter
from bnfold.audit.rules.usage import axis_mismatch, batch_statistics_at_inference
from bnfold.audit.subject import Subject
from bnfold.folding.plan import Blocked
from bnfold.model import layers
from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Layer, finite_number
from bnfold.model.modes import trains
from bnfold.model.program import Call


@rule("BN301", "redundant-bias", Severity.INFO, needs=Needs.SETTINGS)
def redundant_bias(subject: Subject) -> Diagnosis | None:
    """The layer right before it has a bias, which subtracting the mean cancels."""
    if subject.place is None:
        return None
    found = [_biased(subject, subject.place, call) for call in subject.place.calls]
    maker = found[0] if found else None
    if maker is None or None in found:
        return None
    size = layers.weights(maker.layer)
    count = size["bias"].shape[0] if size is not None and "bias" in size else 0
    return Diagnosis(
        Severity.INFO,
        f"{maker.title} before it has a bias ({count} numbers), which subtracting the mean cancels",
        "build that layer with use_bias=False; a fold merges the two anyway",
        figures={"parameters": count},
    )


def _biased(subject: Subject, place: Place, call: Call) -> Call | None:
    """The producer of a call's input, if it has a bias that only BatchNormalizations see."""
    sources = call.producers()
    if len(sources) != 1:
        return None
    (source,) = sources
    channels, layer = producer(call, place.memo), source.layer
    if channels is None or channels.call != source:
        return None
    if normalized_axis(subject.batchnorm, call) != channels.axis:
        return None
    linear = layer.config.get("activation") in (None, "linear")
    if not linear or not _has_bias_of_channels(layer):
        return None
    if subject.is_frozen and layer.config.get("trainable", True) is not False:
        return None  # a frozen layer subtracts a fixed mean, so training can still use the bias
    return source if _only_batchnorms_read(source, place.memo) else None


def _has_bias_of_channels(layer: Layer) -> bool:
    """Whether a layer adds one number to each channel."""
    if layer.class_name == "EinsumDense":
        equation = parse_equation(layer.config.get("equation"))
        letter = None if equation is None else equation.channels
        return letter is not None and layer.config.get("bias_axes") == letter
    output = layers.facts(layer).output
    has_slot = output is not None and output.bias is not None
    return has_slot and bool(layers.setting(layer, "use_bias"))


def _only_batchnorms_read(call: Call, memo: Memo) -> bool:
    """Whether all that reads what any call of a layer makes is a BatchNormalization."""
    calls = call.region.calls_of(call.name)
    known = memo.setdefault(_only_batchnorms_read, {})
    if calls[0] not in known:
        readers = [one.uses() for one in calls]
        known[calls[0]] = all(readers) and all(
            one is not None and layers.is_batchnorm(one.layer) for found in readers for one in found
        )
    found: bool = known[calls[0]]
    return found


@rule("BN302", "dropout-before-batchnorm", Severity.INFO, needs=Needs.SETTINGS)
def dropout_before_batchnorm(subject: Subject) -> Diagnosis | None:
    """A Dropout is upstream, with no other normalization between."""
    if subject.place is None or subject.is_frozen or subject.estimated_from is not None:
        return None
    found = (_DROPOUT.beside(call, subject.place.memo) for call in subject.place.calls)
    nearest = next(filter(None, found), None)
    if nearest is None:
        return None
    rate = finite_number(nearest.layer.config.get("rate")) or 0.0
    return Diagnosis(
        Severity.INFO,
        f"{nearest.title} (rate {rate:g}) before it makes the variance larger in training than at "
        "inference, and the statistics are those of training",
        f"move Dropout after the last BatchNormalization, or {subject.estimate_again}",
        figures={"rate": rate},
    )


def _drops(call: Call) -> bool:
    """Whether a call drops in training and not at inference."""
    drops = call.is_known and layers.facts(call.layer).training == "drops"
    if not drops or stays_out_of_training(call) or trains(call):
        return False
    rate = finite_number(call.layer.config.get("rate"))
    return rate is not None and rate > 0


_DROPOUT = Flow[Call](
    neighbours=Call.producers,
    passes=lambda call: (
        call.is_known and layers.facts(call.layer).at_inference != "normalizes" and not _drops(call)
    ),
    own=lambda call: call if _drops(call) else None,
    join=lambda found: next(filter(None, found), None),
)
"""The nearest Dropout."""


@rule("BN303", "unfoldable", Severity.INFO, needs=Needs.SETTINGS)
def unfoldable(subject: Subject) -> Diagnosis | None:
    """The layer can be folded in neither direction; the message gives the reason."""
    decision = subject.decision
    if not isinstance(decision, Blocked) or any(says(subject) for says in _SAY_WHY):
        return None
    if subject.vectors and not _is_a_map(subject):
        return None  # BN104 or BN105 says that
    keeps = "nothing to do: a fold leaves it as it is"
    if decision.may_be_replaced:
        keeps += ", or makes a depthwise convolution of it (--standalone depthwise)"
    return Diagnosis(Severity.INFO, decision.reason, "; or ".join(decision.remedies) or keeps)


_SAY_WHY = (invalid_hyperparameter, axis_mismatch, batch_statistics_at_inference, fold_overflows)


def _is_a_map(subject: Subject) -> bool:
    """Whether the numbers are finite and the variances, with epsilon added, positive."""
    finite = all(np.isfinite(vector).all() for vector in subject.vectors.values())
    epsilon = subject.epsilon
    return finite and (epsilon is None or bool(np.all(subject.variance + epsilon > 0)))
