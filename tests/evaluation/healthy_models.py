"""Models as people train and save them, with nothing wrong: the audit must not warn of any."""

from collections.abc import Callable
from typing import Any

import architectures as nets
from architectures import norms
from specimens import Specimen, specimen
from support import chain, keras, np
from training import (
    Data,
    Trained,
    compiled,
    digits,
    fit,
    flat_digits,
    loop,
    policy,
    sentences,
    sequences,
    table,
)

layers = keras.layers
HEALTHY: dict[str, Specimen] = {}


def healthy(**options: Any) -> Callable[[Callable[[], Trained]], Callable[[], Trained]]:
    """Register a function that trains a healthy model."""
    return specimen(HEALTHY, **options)


@healthy()
def mlp() -> Trained:
    """Dense, norm, ReLU; 15 epochs of Adam, everything as Keras has it."""
    return fit(nets.mlp(), flat_digits())


@healthy()
def mlp_momentum_9_two_epochs() -> Trained:
    """Momentum 0.9, so that two epochs are enough for the statistics."""
    return fit(
        nets.mlp(norms(momentum=0.9)),
        flat_digits(),
        epochs=2,
        optimizer=keras.optimizers.Adam(1e-2),
    )


@healthy()
def mlp_momentum_999() -> Trained:
    """Momentum 0.999 and the steps that it needs."""
    return fit(nets.mlp(norms(momentum=0.999)), flat_digits(), epochs=45, batch=16)


@healthy()
def mlp_momentum_5() -> Trained:
    """Momentum 0.5, unusual but sound."""
    return fit(nets.mlp(norms(momentum=0.5)), flat_digits(), batch=128)


@healthy()
def mlp_big_batches() -> Trained:
    """Batches of 512 with momentum 0.9."""
    return fit(nets.mlp(norms(momentum=0.9)), flat_digits(), epochs=60, batch=512)


@healthy()
def mlp_small_batches() -> Trained:
    """Batches of 4."""
    return fit(nets.mlp(), flat_digits(), epochs=10, batch=4, optimizer=keras.optimizers.Adam(1e-3))


@healthy()
def mlp_no_scale() -> Trained:
    """Without gamma."""
    return fit(nets.mlp(norms(scale=False)), flat_digits())


@healthy()
def mlp_no_center() -> Trained:
    """Without beta, the bias kept."""
    return fit(nets.mlp(norms(center=False)), flat_digits())


@healthy()
def mlp_epsilon_of_pytorch() -> Trained:
    """Epsilon 1e-5 and momentum 0.9, PyTorch's choices."""
    return fit(nets.mlp(norms(epsilon=1e-5, momentum=0.9)), flat_digits())


@healthy()
def mlp_norm_after_relu() -> Trained:
    """The norm after the activation, not before it."""
    blocks = [
        (layers.Dense(width, activation="relu"), layers.BatchNormalization(name=f"norm_{width}"))
        for width in (64, 32)
    ]
    return fit(chain((64,), *blocks[0], *blocks[1], layers.Dense(10)), flat_digits())


@healthy()
def mlp_norm_on_pixels() -> Trained:
    """A norm on the input, three of whose pixels never change."""
    return fit(
        chain(
            (64,),
            layers.BatchNormalization(name="norm_1"),
            layers.Dense(48, activation="relu"),
            layers.Dense(10),
        ),
        flat_digits(),
    )


@healthy()
def mlp_norm_on_raw_pixels() -> Trained:
    """A norm on the input in 0..255, momentum 0.9: the constant pixels' variance is 0."""
    return fit(
        chain(
            (64,),
            layers.BatchNormalization(name="norm_1", momentum=0.9),
            layers.Dense(48, activation="relu"),
            layers.Dense(10),
        ),
        flat_digits().map(lambda pixels: pixels * 255),
    )


@healthy()
def mlp_stuck_sensor() -> Trained:
    """A norm with epsilon 1e-8 on the input, one feature of which never changes."""

    def stick(pixels: Any) -> Any:
        return np.concatenate([pixels[:, 16:48], np.full((len(pixels), 1), 0.7)], axis=1)

    stack = (
        layers.BatchNormalization(name="norm_1", epsilon=1e-8, momentum=0.9),
        layers.Dense(48, activation="relu"),
        layers.Dense(10),
    )
    return fit(chain((33,), *stack), flat_digits().map(stick))


@healthy()
def tabular() -> Trained:
    """Columns in their own units (shares, years, incomes) and rare flags under a norm."""
    stack = (
        layers.BatchNormalization(name="norm_1"),
        layers.Dense(32),
        layers.BatchNormalization(name="norm_2"),
        layers.ReLU(),
        layers.Dense(2),
    )
    return fit(chain((8,), *stack), table(), epochs=20)


@healthy()
def mlp_raw_pixels() -> Trained:
    """Pixels in 0..255 straight into Dense; the norm after it corrects the scale."""
    return fit(nets.mlp(), flat_digits().map(lambda pixels: pixels * 255))


@healthy()
def mlp_norm_last() -> Trained:
    """A norm as the last layer."""
    return fit(
        chain(
            (64,),
            layers.Dense(48, activation="relu"),
            layers.Dense(10),
            layers.BatchNormalization(name="norm_1"),
        ),
        flat_digits(),
    )


@healthy()
def mlp_dropout() -> Trained:
    """Dropout after each ReLU, so before the next norm."""
    blocks = [
        layers.Dense(96),
        layers.BatchNormalization(name="norm_1"),
        layers.ReLU(),
        layers.Dropout(0.3),
        layers.Dense(48),
        layers.BatchNormalization(name="norm_2"),
        layers.ReLU(),
        layers.Dropout(0.3),
        layers.Dense(10),
    ]
    return fit(chain((64,), *blocks), flat_digits(), epochs=20)


@healthy()
def mlp_swish() -> Trained:
    """Swish instead of ReLU."""
    return fit(nets.mlp(activation="swish"), flat_digits())


@healthy()
def mlp_regularized() -> Trained:
    """Weight decay on all, gamma and beta too."""
    decay = keras.regularizers.L2(1e-4)
    return fit(
        nets.mlp(norms(gamma_regularizer=decay, beta_regularizer=decay), kernel_regularizer=decay),
        flat_digits(),
        epochs=25,
    )


@healthy()
def mlp_deep() -> Trained:
    """Twenty-four narrow layers, one norm each, a shortcut around every second one."""
    norm = norms()
    pixels = keras.Input((64,))
    x = layers.Dense(24)(pixels)
    for _ in range(12):
        entry = x
        for _ in range(2):
            x = layers.Dense(24)(layers.ReLU()(norm()(x)))
        x = layers.Add()([x, entry])
    return fit(keras.Model(pixels, layers.Dense(10)(x)), flat_digits())


@healthy()
def mlp_renorm() -> Trained:
    """Batch renormalization."""
    return fit(nets.mlp(norms(renorm=True)), flat_digits(), epochs=20)


@healthy()
def mlp_sgd_schedule() -> Trained:
    """SGD with momentum, weight decay, a decaying rate and a moving average of the weights."""
    rate = keras.optimizers.schedules.CosineDecay(0.1, 900)
    optimizer = keras.optimizers.SGD(
        rate, momentum=0.9, nesterov=True, weight_decay=1e-4, use_ema=True
    )
    return fit(nets.mlp(), flat_digits(), epochs=20, optimizer=optimizer)


@healthy()
def mlp_accumulated() -> Trained:
    """Gradients of four batches added up for one step."""
    optimizer = keras.optimizers.Adam(5e-3, gradient_accumulation_steps=4)
    return fit(nets.mlp(), flat_digits(), epochs=20, optimizer=optimizer)


@healthy()
def mlp_own_loop() -> Trained:
    """A training loop of one's own that passes training=True; the file knows no steps."""
    return loop(nets.mlp(), flat_digits(), training=True)


@healthy()
def mlp_compiled_again() -> Trained:
    """Compiled again after training, so that the file counts 0 steps."""
    trained = fit(nets.mlp(), flat_digits())
    compiled(trained.model)
    return trained


@healthy()
def mlp_raw_pixels_compiled_again() -> Trained:
    """The same where every variance is far above 1, so that none of them tells."""
    data = flat_digits().map(lambda pixels: pixels * 255)
    trained = fit(nets.mlp(), data)
    compiled(trained.model)
    return trained


@healthy()
def mlp_raw_pixels_continued() -> Trained:
    """The same, trained on for one epoch, which is all that the file counts."""
    data = flat_digits().map(lambda pixels: pixels * 255)
    before = fit(nets.mlp(), data)
    after = fit(before.model, data, epochs=1, optimizer=keras.optimizers.Adam(1e-4))
    return Trained(after.model, before.steps + after.steps, after.data)


@healthy()
def sequential() -> Trained:
    """A Sequential."""
    model = keras.Sequential([keras.Input((64,)), *nets.mlp().layers[1:]])
    return fit(model, flat_digits())


@healthy(form=".h5")
def mlp_legacy_file() -> Trained:
    """Saved in the HDF5 format of Keras 2."""
    return fit(nets.mlp(), flat_digits())


@healthy()
def cnn() -> Trained:
    """Conv2D, norm, ReLU."""
    return fit(nets.cnn(), digits())


@healthy()
def cnn_with_biases() -> Trained:
    """The same with the biases that the norms make superfluous."""
    return fit(nets.cnn(use_bias=True), digits())


@healthy()
def cnn_norm_after_relu() -> Trained:
    """Conv2D with its ReLU built in, then the norm."""
    blocks: list[Any] = []
    for number, filters in enumerate((12, 16, 24), start=1):
        blocks += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.BatchNormalization(name=f"norm_{number}"),
        ]
    head = (layers.GlobalAveragePooling2D(), layers.Dense(10))
    return fit(chain((8, 8, 1), *blocks, *head), digits())


@healthy()
def cnn_pooled() -> Trained:
    """Norm, ReLU, max pooling, dropout, flatten: the tutorials' network."""
    blocks: list[Any] = []
    for number, filters in enumerate((16, 32), start=1):
        blocks += [
            layers.Conv2D(filters, 3, padding="same"),
            layers.BatchNormalization(name=f"norm_{number}"),
            layers.Activation("relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
        ]
    head = (
        layers.Flatten(),
        layers.Dense(32),
        layers.BatchNormalization(name="norm_3"),
        layers.Activation("relu"),
        layers.Dropout(0.5),
        layers.Dense(10),
    )
    return fit(chain((8, 8, 1), *blocks, *head), digits())


@healthy()
def cnn_depthwise() -> Trained:
    """MobileNet's blocks with ReLU6."""
    return fit(nets.mobilenet(), digits(), epochs=20)


@healthy()
def cnn_inverted_residual() -> Trained:
    """MobileNetV2's blocks, momentum 0.9."""
    return fit(nets.inverted_residual(norms(momentum=0.9)), digits(), epochs=20)


@healthy()
def cnn_separable() -> Trained:
    """SeparableConv2D, as in Xception, with L2 on the kernels."""
    norm = norms()
    decay = keras.regularizers.L2(1e-4)
    image = keras.Input((8, 8, 1))
    x = layers.ReLU()(norm()(layers.Conv2D(8, 3, padding="same", use_bias=False)(image)))
    for filters in (16, 32):
        x = layers.SeparableConv2D(
            filters, 3, padding="same", use_bias=False, pointwise_regularizer=decay
        )(x)
        x = layers.MaxPooling2D()(layers.ReLU()(norm()(x)))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return fit(keras.Model(image, x), digits())


@healthy()
def cnn_faded_filters() -> Trained:
    """A small Xception with L2 0.01 on its kernels, as in 2017, which lets filters fade away."""
    decay = keras.regularizers.L2(0.01)
    return fit(
        nets.xception(kernel_regularizer=decay), digits(), epochs=60, optimizer=_slowing(2700)
    )


@healthy()
def cnn_decayed() -> Trained:
    """Conv2D, norm, ReLU with L2 0.003 on the kernels, trained for long."""
    decay = keras.regularizers.L2(0.003)
    model = nets.cnn(filters=(24, 32, 48), kernel_regularizer=decay)
    return fit(model, digits(), epochs=60, optimizer=_slowing(2700))


def _slowing(steps: int) -> Any:
    """Adam with a rate that falls to 0, so that the statistics catch up with the weights."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps))


@healthy()
def cnn_residual() -> Trained:
    """Residual blocks."""
    return fit(nets.resnet(), digits())


@healthy()
def cnn_residual_zero_gamma() -> Trained:
    """Residual blocks whose last gamma starts at 0, as is usual for deep ones."""
    return fit(nets.resnet(norms(momentum=0.9), last_gamma="zeros"), digits())


@healthy()
def cnn_preactivation() -> Trained:
    """Norms before the convolutions; those on the sums cannot be folded."""
    return fit(nets.preactivation(), digits())


@healthy()
def cnn_dense_blocks() -> Trained:
    """Concatenations of all layers before, each with a norm of its own."""
    return fit(nets.densenet(), digits())


@healthy(form="")
def cnn_directory() -> Trained:
    """Saved as a directory, LeakyReLU for activation."""
    return fit(nets.cnn(activation=layers.LeakyReLU), digits())


@healthy()
def cnn_mixed_float16() -> Trained:
    """Mixed precision, whose steps a LossScaleOptimizer counts."""
    with policy("mixed_float16"):
        return fit(nets.cnn(), digits())


@healthy(target_dtype="float16")
def cnn_for_float16() -> Trained:
    """An ordinary network that is going to run in float16."""
    return fit(nets.cnn(), digits())


@healthy()
def cnn_mixed_bfloat16() -> Trained:
    """Mixed precision in bfloat16."""
    with policy("mixed_bfloat16"):
        return fit(nets.cnn(), digits())


@healthy()
def transfer_frozen() -> Trained:
    """A network for the digits 0 to 4, frozen, with a new head for 5 to 9."""
    backbone = _backbone()
    backbone.trainable = False
    image = keras.Input((8, 8, 1))
    x = layers.Dense(32)(layers.Flatten()(backbone(image, training=False)))
    x = layers.ReLU()(layers.BatchNormalization(name="head_norm", momentum=0.9)(x))
    return fit(keras.Model(image, layers.Dense(5)(x)), _upper(), epochs=20)


@healthy()
def transfer_fine_tuned() -> Trained:
    """The same with a plain head, then all of it trained on for an epoch with a small rate."""
    backbone = _backbone()
    backbone.trainable = False
    image = keras.Input((8, 8, 1))
    x = layers.Flatten()(backbone(image))
    model = keras.Model(image, layers.Dense(5)(layers.Dense(32, activation="relu")(x)))
    before = fit(model, _upper(), epochs=20)
    backbone.trainable = True
    after = fit(model, _upper(), epochs=1, optimizer=keras.optimizers.Adam(1e-3))
    return Trained(model, before.steps + after.steps, after.data)


@healthy()
def transfer_two_phases() -> Trained:
    """A head with a norm of its own on the frozen network, then all trained on for an epoch."""
    backbone = _backbone()
    backbone.trainable = False
    image = keras.Input((8, 8, 1))
    x = layers.Dense(32)(layers.Flatten()(backbone(image, training=False)))
    x = layers.ReLU()(layers.BatchNormalization(name="head_norm")(x))
    model = keras.Model(image, layers.Dense(5)(x))
    before = fit(model, _upper(), epochs=20)
    backbone.trainable = True
    after = fit(model, _upper(), epochs=1, optimizer=keras.optimizers.Adam(1e-4))
    return Trained(model, before.steps + after.steps, after.data)


@healthy()
def transfer_flat() -> Trained:
    """The frozen network's own layers, with a new head after them, in one graph."""
    backbone = _backbone()
    backbone.trainable = False
    x = layers.Dense(32)(layers.Flatten()(backbone.output))
    x = layers.ReLU()(layers.BatchNormalization(name="head_norm")(x))
    return fit(keras.Model(backbone.input, layers.Dense(5)(x)), _upper(), epochs=20)


def _backbone() -> Any:
    """A network trained on the lower digits, without its head, with 450 steps of statistics."""
    trained = fit(nets.cnn(classes=5), digits().only(digits().labels < 5), epochs=20).model
    return keras.Model(trained.input, trained.layers[-3].output, name="backbone")


def _upper() -> Data:
    return digits().only(digits().labels >= 5)


@healthy()
def lstm() -> Trained:
    """A norm on the sequence and one on the last state of an LSTM."""
    return fit(nets.recurrent(layers.LSTM), sequences())


@healthy()
def gru() -> Trained:
    """The same with a GRU, momentum 0.9."""
    return fit(nets.recurrent(layers.GRU, norms(momentum=0.9)), sequences())


@healthy()
def bidirectional() -> Trained:
    """Two bidirectional LSTM layers with a norm between them."""
    stack = (
        layers.Bidirectional(layers.LSTM(12, return_sequences=True)),
        layers.BatchNormalization(name="norm_1"),
        layers.Bidirectional(layers.LSTM(12)),
        layers.BatchNormalization(name="norm_2"),
        layers.Dense(4),
    )
    return fit(chain((24, 3), *stack), sequences())


@healthy()
def conv1d() -> Trained:
    """Conv1D over a sequence."""
    return fit(nets.conv1d(), sequences(), epochs=20)


@healthy()
def temporal() -> Trained:
    """Causal dilated convolutions with shortcuts and dropout."""
    return fit(nets.temporal(), sequences(), epochs=20)


@healthy()
def time_distributed() -> Trained:
    """Dense and norm for each step inside TimeDistributed, an LSTM after them."""
    stack = (
        layers.TimeDistributed(layers.Dense(16)),
        layers.TimeDistributed(layers.BatchNormalization(), name="norm_1"),
        layers.TimeDistributed(layers.Activation("relu")),
        layers.LSTM(16),
        layers.Dense(4),
    )
    return fit(chain((24, 3), *stack), sequences())


@healthy()
def masked_words() -> Trained:
    """Words of unequal number, their mask handed through the norm to a GRU."""
    stack = (
        layers.Embedding(30, 12, mask_zero=True),
        layers.BatchNormalization(name="norm_1"),
        layers.GRU(16),
        layers.Dense(3),
    )
    return fit(chain((24,), *stack, dtype="int32"), sentences())


@healthy()
def two_inputs() -> Trained:
    """An image and its row and column sums, each with a norm, then joined."""
    norm = norms()
    image, sums = keras.Input((8, 8, 1), name="image"), keras.Input((16,), name="sums")
    x = layers.ReLU()(norm()(layers.Conv2D(12, 3, use_bias=False)(image)))
    x = layers.GlobalAveragePooling2D()(x)
    y = layers.ReLU()(norm()(layers.Dense(16)(sums)))
    z = layers.ReLU()(norm()(layers.Dense(32)(layers.Concatenate()([x, y]))))
    data = digits().map(
        lambda images: [images, np.concatenate([images.sum((1, 3)), images.sum((2, 3))], axis=1)]
    )
    return fit(keras.Model([image, sums], layers.Dense(10)(z)), data)


@healthy()
def nested() -> Trained:
    """Networks in networks, two levels deep."""
    inner = nets.mlp(norms(), inputs=64, widths=(32,), classes=24)
    middle = keras.Sequential(
        [keras.Input((64,)), inner, layers.BatchNormalization(name="middle_norm"), layers.ReLU()]
    )
    outer = chain(
        (64,),
        middle,
        layers.Dense(16),
        layers.BatchNormalization(name="outer_norm"),
        layers.Dense(10),
    )
    return fit(outer, flat_digits())


@healthy()
def siamese() -> Trained:
    """One encoder called for both images of a pair: is it the same digit?"""
    encoder = nets.cnn(norms(momentum=0.95), classes=16)
    left, right = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    gap = layers.Subtract()([encoder(left), encoder(right)])
    gap = layers.Multiply()([gap, gap])
    joined = layers.Dense(2)(layers.Dense(16, activation="relu")(gap))
    return fit(keras.Model([left, right], joined), _pairs(), epochs=25)


def _pairs() -> Data:
    """Each digit with another one, every second time of the same class."""
    generator = np.random.default_rng(0)
    images, labels = digits().samples, digits().labels
    order = np.arange(len(labels))
    same = order % 2 == 0
    partners = np.array(
        [
            generator.choice(np.flatnonzero((labels == label) == alike))
            for label, alike in zip(labels, same, strict=True)
        ]
    )
    return Data([images, images[partners]], same.astype("int64"))


@healthy()
def decoder() -> Trained:
    """Dense, reshape and transposed convolutions that draw a digit from noisy pixels."""
    norm = norms()
    noisy = keras.Input((64,))
    x = layers.Reshape((2, 2, 32))(layers.ReLU()(norm()(layers.Dense(128)(noisy))))
    for filters in (24, 16):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.LeakyReLU(0.2)(norm()(x))
    image = layers.Conv2D(1, 3, padding="same")(x)
    pixels = digits().samples
    noise = np.random.default_rng(0).normal(0, 0.1, (len(pixels), 64))
    data = Data(pixels.reshape(-1, 64) + noise.astype("float32"), pixels)
    return fit(keras.Model(noisy, image), data, epochs=40, loss="mse")


@healthy()
def no_norm() -> Trained:
    """No BatchNormalization at all."""
    return fit(chain((64,), layers.Dense(48, activation="relu"), layers.Dense(10)), flat_digits())
