"""Rules on what is around a BatchNormalization: biases, Dropout, and what keeps it from folding."""

from bnfold.audit.axes import normalized_axis, producers
from bnfold.audit.finding import Severity
from bnfold.audit.neighbours import Node, upstream
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.usage import axis_mismatch
from bnfold.folding.affine import Affine, from_batchnorm
from bnfold.folding.plan import Blocked
from bnfold.folding.training import is_off
from bnfold.model import catalog
from bnfold.model.graph import finite_number

_SHIFTS_VARIANCE = frozenset(
    {"Dropout", "GaussianDropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}
)
_NORMALIZES = catalog.BATCHNORM_CLASSES | {
    "GroupNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization",
}  # fmt: skip


def redundant_bias(subject: Subject) -> Verdict | None:
    """The layer right before it has a bias, which the subtraction of the mean takes out again."""
    if subject.place is None:
        return None
    found = [_biased(subject, node) for node in subject.place.nodes]
    producer = found[0] if found else None
    if producer is None or None in found:
        return None
    size = catalog.weights(producer.layer)
    count = size["bias"].shape[0] if size is not None and "bias" in size else 0
    return Verdict(
        Severity.INFO,
        f"{producer.title} before it has a bias, {count} numbers, which it subtracts again",
        "build that layer with use_bias=False; a fold merges the two anyway",
        figures={"parameters": count},
    )


def _biased(subject: Subject, node: Node) -> Node | None:
    """The layer whose output a call reads, if it has a bias that nothing else sees."""
    sources = node.sources()
    if len(sources) != 1:
        return None
    (source,) = sources
    axes, layer = producers(node), source.layer
    known = catalog.facts(layer)
    if list(axes) != [source] or normalized_axis(subject.batchnorm, node) != axes[source]:
        return None
    if known is None or known.output is None or known.output.bias is None:
        return None
    linear = layer.config.get("activation") in (None, "linear")
    if not linear or not catalog.setting(layer, "use_bias"):
        return None
    return source if all(_goes_into_batchnorms(source, n) for n in _calls(source)) else None


def _calls(node: Node) -> range:
    return range(len(node.scope.graph.layers[node.name].calls))


def _goes_into_batchnorms(node: Node, number: int) -> bool:
    readers = Node(node.scope, node.name, number).readers()
    return bool(readers) and all(
        reader is not None and catalog.is_batchnorm(reader.layer) for reader in readers
    )


def dropout_before_batchnorm(subject: Subject) -> Verdict | None:
    """A Dropout stands upstream, with no other normalization between."""
    if subject.place is None or subject.is_frozen:
        return None
    nearest = next(
        (
            node
            for start in subject.place.nodes
            for node in upstream(start, _hands_variance_on)
            if node is not None and _drops(node)
        ),
        None,
    )
    if nearest is None:
        return None
    rate = finite_number(nearest.layer.config.get("rate")) or 0.0
    return Verdict(
        Severity.INFO,
        f"{nearest.title} (rate {rate:g}) before it makes the variance larger in training than at "
        "inference, and the statistics are those of training",
        "put Dropout behind the last BatchNormalization, or estimate the statistics again without "
        "it",
        figures={"rate": rate},
    )


def _hands_variance_on(node: Node) -> bool:
    return node.is_known and node.layer.class_name not in _NORMALIZES


def _drops(node: Node) -> bool:
    """Whether a call drops in training and not at inference."""
    drops = node.is_known and node.layer.class_name in _SHIFTS_VARIANCE
    said = node.call.training
    if not drops or is_off(said) or node.trains_always:
        return False
    rate = finite_number(node.layer.config.get("rate"))
    return rate is not None and rate > 0


def unfoldable(subject: Subject) -> Verdict | None:
    """The layer can be folded in neither direction; the message is the reason of the plan."""
    decision = subject.decision
    if not isinstance(decision, Blocked) or decision.batch_statistics:
        return None  # BN007 says that
    known = subject.batchnorm.vectors is not None and subject.batchnorm.is_configured
    if known and not isinstance(from_batchnorm(subject.batchnorm), Affine):
        return None  # BN001, BN104 and BN105 say that
    if axis_mismatch(subject) is not None:
        return None  # BN006 says that
    keeps = "nothing to do: a fold leaves it as it is"
    if decision.may_be_replaced:
        keeps += ", or makes a depthwise convolution of it (--standalone depthwise)"
    return Verdict(Severity.INFO, decision.reason, "; or ".join(decision.remedies) or keeps)
