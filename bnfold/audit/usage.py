"""Rules on how a BatchNormalization is called: with which mode, on which axis, how often."""

from bnfold.audit.axes import normalized_axis, producer
from bnfold.audit.finding import Severity
from bnfold.audit.subject import Subject, Verdict
from bnfold.folding.plan import Blocked


def axis_mismatch(subject: Subject) -> Verdict | None:
    """The axis is not the one on which the layer before it has its channels.

    What it finds:
        A BatchNormalization whose `axis` is another one than the channel axis of the layers
        that made its input: a convolution (by its `data_format`), a Dense, EinsumDense (by its
        equation), recurrent, attention or Embedding layer. It looks through activations,
        Dropout, pooling and merging layers, which keep their axes. Where something may move
        axes (Reshape, Flatten, Permute), where the layer normalizes the model's input, or where
        layers before it disagree, it says nothing.

    Why it matters:
        The default, -1, is wrong behind a convolution in `channels_first`, and a 1 copied from
        such a model is wrong everywhere else. The layer then normalizes rows of the image: it
        has as many parameters as the image has rows, works for that size of image only, and
        draws stripes. No fold backward can take it in.

    Formula:
            warning if axis != channel axis of the producer, both counted from the end

    Example:
            import keras

            conv = keras.layers.Conv2D(8, 3, name="conv")
            norm = keras.layers.BatchNormalization(axis=1, name="norm")
            model = keras.Sequential([keras.Input((9, 9, 3)), conv, norm])

        > warning: it normalizes axis 1, but Conv2D 'conv' has its channels on axis 3

    What to do:
        Build the layer with the axis of the channels, and train again: the statistics of the
        wrong axis are of no use. If another axis is meant, such as the frequency of a
        spectrogram, ignore the rule for this layer.

    References:
        - keras-team/keras 1921: <https://github.com/keras-team/keras/issues/1921>
    """
    if subject.place is None:
        return None
    for node in subject.place.nodes:
        axis, shape = normalized_axis(subject.batchnorm, node), node.input_shape()
        found = producer(node, subject.place.memo)
        if axis is None or found is None or axis == found.axis:
            continue
        rank = 0 if shape is None else len(shape)  # counted from the front where that is known
        return Verdict(
            Severity.WARNING,
            f"it normalizes axis {axis + rank}, but {found.node.title} has its channels on axis "
            f"{found.axis + rank}",
            f"build it with axis={found.axis if found.axis == -1 else found.axis + rank}, and "
            "train again",
            figures={"axis": axis + rank, "channel_axis": found.axis + rank},
        )
    return None


def batch_statistics_at_inference(subject: Subject) -> Verdict | None:
    """A call of the layer, or of a model or wrapper around it, passes training=True.

    What it finds:
        A layer that is not frozen and that runs in training mode whatever the model is called
        with: its own call passes `training=True`, or that of a nested model or wrapper around
        it, or one of a layer that runs before it, from which Keras 3 hands the mode on (layers
        of augmentation take it by default) until a layer ends it whose own default is
        training=False, such as Dropout or LSTM.

    Why it matters:
        The output for one sample depends on the others in the batch, and for a batch of one it
        is useless. `predict` of Keras 3 hides it, because its `training=False` overrides the
        calls inside; a bare `model(x)`, an export, and all of Keras 2 do not. The layer cannot
        be folded.

    Formula:
            error if some call around or before it has training=True, and trainable is true

    Example:
            import keras

            inputs = keras.Input((4,))
            hidden = keras.layers.Dense(4)(inputs)
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Model(inputs, norm(hidden, training=True))

        > error: it is called with training=True, so it normalizes with the batch's
        > statistics: in model(x) and in an export, its output depends on what else is in the
        > batch

    What to do:
        No new training is needed: `predict` of Keras 3 uses the moving statistics already (that of
        Keras 2 does not: compare the accuracy). Behind layers of
        augmentation, Resizing or CenterCrop, which take `training=True` by default, save a
        model that calls the trained one with `training=False`; it predicts the same:

            trained = keras.models.load_model("model.keras")
            model = keras.Model(trained.inputs[0], trained(trained.inputs[0], training=False))
            model.save("inference.keras")

        (With several inputs, `trained.input` in place of `trained.inputs[0]`.) Whatever the cause,
        a model that is frozen as a whole runs with its moving statistics; so do its norms
        behind a Dropout that is to drop at inference:

            model = keras.models.load_model("model.keras")
            model.trainable = False
            model.save("inference.keras")

        Where the model can be built anew, give the calls of those layers `training=False`, leave
        `training=True` out of the others, and take the weights over with
        `model.set_weights(trained.get_weights())`; `fit` then chooses the mode, and Keras 3
        augments in it all the same.

    References:
        - qubvel/segmentation_models 223, norms in training mode in an export:
          <https://github.com/qubvel/segmentation_models/issues/223>
        - tensorflow/tensorflow 32544, outputs that depend on the batch:
          <https://github.com/tensorflow/tensorflow/issues/32544>
        - Keras, transfer learning, on the mode of BatchNormalization:
          <https://keras.io/guides/transfer_learning/>
    """
    decision = subject.decision
    if not (isinstance(decision, Blocked) and decision.batch_statistics):
        return None
    return Verdict(
        Severity.ERROR,
        f"{decision.reason}: in model(x) and in an export, its output depends on what else is in "
        "the batch",
        "; or ".join(decision.remedies) or "freeze the layer (trainable=False)",
    )


def shared(subject: Subject) -> Verdict | None:
    """The layer is called more than once, so different inputs share its statistics.

    What it finds:
        A layer with several calls, one inside a nested model that is called several times, or
        one whose object stands in several places of the model. A TimeDistributed calls what is
        in it once for each time step in Keras 3, if the number of steps is fixed.

    Why it matters:
        Each call updates the same moving mean and variance. If the inputs are alike, as in a
        siamese network, that is what one wants. If they are not, the statistics are a mixture
        that fits none of them, while in training each call normalized with its own batch.

    Formula:
            info if the number of calls > 1

    Example:
            import keras

            left, right = keras.Input((4,)), keras.Input((4,))
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Model([left, right], [norm(left), norm(right)])

        > info: it is called 2 times: its statistics are those of all calls together

    What to do:
        Nothing, if the inputs have the same distribution. Otherwise give each call a layer of
        its own and share the convolutions only.

    References:
        - Chang et al., Domain-Specific Batch Normalization: <https://arxiv.org/abs/1906.03950>
    """
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
    return Verdict(
        Severity.INFO,
        f"it {how}: its statistics are those of all calls together",
        "nothing to do if the inputs are alike; else give each call a layer of its own",
        figures={"calls": max(place.count, times)},
    )
