"""Rules on what is around a BatchNormalization: biases, Dropout, and what keeps it from folding."""

import numpy as np

from bnfold.audit.axes import einsum_channels, normalized_axis, producer
from bnfold.audit.configuration import invalid_hyperparameter
from bnfold.audit.finding import Severity
from bnfold.audit.flow import Flow
from bnfold.audit.folded import fold_overflows
from bnfold.audit.neighbours import Node, Place, stays_out_of_training
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.usage import axis_mismatch, batch_statistics_at_inference
from bnfold.folding.plan import Blocked
from bnfold.model import layers
from bnfold.model.graph import Layer, finite_number

_SHIFTS_VARIANCE = frozenset(
    {"Dropout", "GaussianDropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}
)
_NORMALIZES = layers.BATCHNORM_CLASSES | {
    "GroupNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization",
}  # fmt: skip


def redundant_bias(subject: Subject) -> Verdict | None:
    """The layer right before it has a bias, which the subtraction of the mean takes out again.

    What it finds:
        A layer with `use_bias=True` and no activation, whose output goes into
        BatchNormalization layers only, which normalize its channel axis. Where the
        BatchNormalization is frozen and the layer before it is not, the bias is of use.

    Why it matters:
        The bias shifts the mean of the batch by as much, and the layer subtracts that. In
        training it has no effect and no gradient: it is memory for a number that does not
        matter. beta takes its part.

    Formula:
            (x + bias) - mean(x + bias) = x - mean(x)

    Example:
            import keras

            dense = keras.layers.Dense(4, name="dense")
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), dense, norm])

        > info: Dense 'dense' before it has a bias, 4 numbers, which it subtracts again

    What to do:
        Build the layer with `use_bias=False` the next time. Nothing is wrong with the model,
        and a fold merges bias and beta into one.

    References:
        - Ioffe and Szegedy, Batch Normalization, section 3.2: <https://arxiv.org/abs/1502.03167>
    """
    if subject.place is None:
        return None
    found = [_biased(subject, subject.place, node) for node in subject.place.nodes]
    maker = found[0] if found else None
    if maker is None or None in found:
        return None
    size = layers.weights(maker.layer)
    count = size["bias"].shape[0] if size is not None and "bias" in size else 0
    return Verdict(
        Severity.INFO,
        f"{maker.title} before it has a bias, {count} numbers, which it subtracts again",
        "build that layer with use_bias=False; a fold merges the two anyway",
        figures={"parameters": count},
    )


def _biased(subject: Subject, place: Place, node: Node) -> Node | None:
    """The layer whose output a call reads, if it has a bias that nothing else sees."""
    sources = node.sources()
    if len(sources) != 1:
        return None
    (source,) = sources
    channels, layer = producer(node, place.memo), source.layer
    if channels is None or channels.node != source:
        return None
    if normalized_axis(subject.batchnorm, node) != channels.axis:
        return None
    linear = layer.config.get("activation") in (None, "linear")
    if not linear or not _has_bias_of_channels(layer):
        return None
    if subject.is_frozen and layer.config.get("trainable", True) is not False:
        return None  # the frozen layer takes none of it out in training: it can still be learnt
    return source if all(_goes_into_batchnorms(source, n) for n in _calls(source)) else None


def _has_bias_of_channels(layer: Layer) -> bool:
    """Whether a layer adds one number to each channel."""
    if layer.class_name == "EinsumDense":
        letter = einsum_channels(layer)
        return letter is not None and layer.config.get("bias_axes") == letter
    known = layers.facts(layer)
    has_slot = known is not None and known.output is not None and known.output.bias is not None
    return has_slot and bool(layers.setting(layer, "use_bias"))


def _calls(node: Node) -> range:
    return range(len(node.scope.graph.layers[node.name].calls))


def _goes_into_batchnorms(node: Node, number: int) -> bool:
    readers = Node(node.scope, node.name, number).readers()
    return bool(readers) and all(
        reader is not None and layers.is_batchnorm(reader.layer) for reader in readers
    )


def dropout_before_batchnorm(subject: Subject) -> Verdict | None:
    """A Dropout stands upstream, with no other normalization between.

    What it finds:
        A Dropout, SpatialDropout or GaussianDropout of a rate above 0 anywhere before the
        layer, on a way without another BatchNormalization, LayerNormalization,
        GroupNormalization, RMSNormalization or UnitNormalization. Frozen layers are left out,
        those with statistics from `bnfold recalibrate`, and Dropout layers that are called with
        `training=True`, or in Keras 2 with `training=False`.

    Why it matters:
        Dropout keeps the mean of a value and raises its variance in training. The statistics
        are those of training; at inference the variance is smaller, and the layer scales by the
        wrong number. How much it costs depends on the model: models of 98 % accuracy have it,
        so this is a hint and no more.

    Formula:
            E[y] = E[x],  E[y^2] = E[x^2] / (1 - rate)   for y = Dropout(x) in training

    Example:
            import keras

            drop = keras.layers.Dropout(0.5, name="drop")
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), drop, keras.layers.Dense(4), norm])

        > info: Dropout 'drop' (rate 0.5) before it makes the variance larger in training than
        > at inference, and the statistics are those of training

    What to do:
        Put Dropout behind the last BatchNormalization, or estimate the statistics again in
        inference mode, as `bnfold recalibrate` does, which takes the shift away.

    References:
        - Li et al., Understanding the Disharmony between Dropout and Batch Normalization by
          Variance Shift:
          <https://arxiv.org/abs/1801.05134>
    """
    if subject.place is None or subject.is_frozen or subject.estimated_from is not None:
        return None
    found = (_DROPOUT.beside(node, subject.place.memo) for node in subject.place.nodes)
    nearest = next(filter(None, found), None)
    if nearest is None:
        return None
    rate = finite_number(nearest.layer.config.get("rate")) or 0.0
    return Verdict(
        Severity.INFO,
        f"{nearest.title} (rate {rate:g}) before it makes the variance larger in training than at "
        "inference, and the statistics are those of training",
        f"put Dropout behind the last BatchNormalization, or {subject.estimate_again}",
        figures={"rate": rate},
    )


def _drops(node: Node) -> bool:
    """Whether a call drops in training and not at inference."""
    drops = node.is_known and node.layer.class_name in _SHIFTS_VARIANCE
    if not drops or stays_out_of_training(node.call) or node.trains_always:
        return False
    rate = finite_number(node.layer.config.get("rate"))
    return rate is not None and rate > 0


_DROPOUT = Flow[Node](
    neighbours=Node.sources,
    passes=lambda node: (
        node.is_known and node.layer.class_name not in _NORMALIZES and not _drops(node)
    ),
    own=lambda node: node if _drops(node) else None,
    join=lambda found: next(filter(None, found), None),
)
"""The nearest Dropout."""


def unfoldable(subject: Subject) -> Verdict | None:
    """The layer can be folded in neither direction; the message is the reason of the plan.

    What it finds:
        A layer that `bnfold fold` leaves as it is. The reason names the first obstacle
        backward, to the layers before it, and forward, to those behind it. What BN001, BN006,
        BN007, BN104, BN105 and BN401 have said already is not said again. The text report shows
        the reason below its table.

    Why it matters:
        The layer costs a multiplication and an addition for each number at inference, and
        targets without BatchNormalization cannot run it.

    Formula:
        None: the plan walks the graph. [What folds, and why what does not](../folding.md) has
        the rules.

    Example:
            import keras

            inputs = keras.Input((4,))
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Model(inputs, norm(inputs))

        > info: backward: it is the first layer, so there is none before it that could take it
        > in; forward: it is an output of the model

    What to do:
        Where the finding names a change to the model, it would clear the way, if the model is
        built with it and trained again. `bnfold fold --standalone depthwise` makes a 1x1
        depthwise convolution of most layers that stay.

    References:
        - Jacob et al., Quantization and Training of Neural Networks, section 3.2, on folding:
          <https://arxiv.org/abs/1712.05877>
    """
    decision = subject.decision
    if not isinstance(decision, Blocked) or any(rule(subject) for rule in _SAY_WHY):
        return None
    if subject.vectors and not _is_a_map(subject):
        return None  # BN104 or BN105 says that
    keeps = "nothing to do: a fold leaves it as it is"
    if decision.may_be_replaced:
        keeps += ", or makes a depthwise convolution of it (--standalone depthwise)"
    return Verdict(Severity.INFO, decision.reason, "; or ".join(decision.remedies) or keeps)


_SAY_WHY = (invalid_hyperparameter, axis_mismatch, batch_statistics_at_inference, fold_overflows)


def _is_a_map(subject: Subject) -> bool:
    """Whether the numbers are finite and the variances, with epsilon added, positive."""
    finite = all(np.isfinite(vector).all() for vector in subject.vectors.values())
    epsilon = subject.epsilon
    return finite and (epsilon is None or bool(np.all(subject.variance + epsilon > 0)))
