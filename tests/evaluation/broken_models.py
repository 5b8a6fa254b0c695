"""Models with one defect each, made as it is made in practice, and what the audit must say of it.

Where a defect is rare in training it is written into the weights of a trained model (`edited`).
Rules that only state a fact (shared, frozen, a superfluous bias) have models that show it, too.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import architectures as nets
from architectures import norms
from specimens import Make, Specimen, specimen
from support import chain, keras, np
from training import (
    Data,
    Trained,
    digits,
    fit,
    flat_digits,
    loop,
    policy,
    sequences,
    untrained,
)

layers = keras.layers
Constant = keras.initializers.Constant
BROKEN: dict[str, Specimen] = {}


def broken(*planted: str, also: Sequence[str] = (), **options: Any) -> Callable[[Make], Make]:
    """Register a function that trains a model in which `BN103 error norm_*` must be found."""
    return specimen(BROKEN, *planted, also=also, **options)


def variables(trained: Trained, layer: str) -> dict[str, Any]:
    """The variables of a layer by name."""
    return {variable.name: variable for variable in trained.model.get_layer(layer).weights}


def edited(trained: Trained, data: Data, layer: str, **changes: Callable[[Any], Any]) -> Trained:
    """The model with some of a layer's vectors changed, and what it is worth then."""
    for name, change in changes.items():
        variable = variables(trained, layer)[name]
        variable.assign(change(np.array(variable)))
    return Trained(trained.model, trained.steps, data)


def put(value: float, *channels: int) -> Callable[[Any], Any]:
    """Some channels of a vector replaced by a value."""

    def change(vector: Any) -> Any:
        vector[list(channels)] = value
        return vector

    return change


# Settings


@broken("BN001 error norm_1")
def epsilon_zero() -> Trained:
    """Epsilon 0."""
    return fit(nets.mlp(norms(first={"epsilon": 0.0})), flat_digits())


@broken("BN001 error norm_1")
def epsilon_negative() -> Trained:
    """Epsilon -0.001, a sign too many."""
    return fit(nets.cnn(norms(first={"epsilon": -1e-3})), digits())


@broken("BN001 error norm_1", also=["BN105"])
def momentum_above_one() -> Trained:
    """Momentum 1.001 instead of 0.999."""
    return fit(nets.mlp(norms(first={"momentum": 1.001})), flat_digits())


@broken("BN001 error norm_1", "BN104 error norm_1")
def momentum_in_percent() -> Trained:
    """Momentum 99 instead of 0.99: the statistics grow beyond all numbers."""
    return fit(nets.cnn(norms(first={"momentum": 99.0})), digits())


@broken("BN002 warning norm_1", also=["BN101"])
def momentum_one() -> Trained:
    """Momentum 1, which keeps the first values for ever."""
    return fit(nets.mlp(norms(first={"momentum": 1.0})), flat_digits())


@broken("BN002 warning norm_1")
def momentum_one_continued() -> Trained:
    """Trained, then trained on with momentum 1 to hold the statistics."""
    trained = fit(nets.cnn(), digits())
    trained.model.get_layer("norm_1").momentum = 1.0
    return fit(trained.model, digits(), epochs=5)


@broken("BN002 warning norm_1")
def momentum_zero() -> Trained:
    """Momentum 0: the statistics are those of the last batch."""
    return fit(nets.mlp(norms(first={"momentum": 0.0})), flat_digits())


@broken("BN002 warning norm_*")
def momentum_zero_everywhere() -> Trained:
    """Momentum 0 in all layers of a residual network, as once in keras.applications."""
    return fit(nets.resnet(norms(momentum=0.0)), digits(), epochs=10)


@broken("BN003 warning norm_1")
def momentum_inverted() -> Trained:
    """Momentum 0.01, meant as the share of the new batch."""
    return fit(nets.mlp(norms(first={"momentum": 0.01})), flat_digits())


@broken("BN003 warning norm_*")
def momentum_of_pytorch() -> Trained:
    """Momentum 0.1 in all layers, PyTorch's default."""
    return fit(nets.cnn(norms(momentum=0.1)), digits())


@broken("BN004 info norm_1")
def epsilon_of_pytorch() -> Trained:
    """Epsilon 1e-5."""
    return fit(nets.cnn(norms(first={"epsilon": 1e-5})), digits())


@broken("BN004 info norm_1")
def epsilon_tiny() -> Trained:
    """Epsilon 1e-8."""
    return fit(nets.mlp(norms(first={"epsilon": 1e-8})), flat_digits())


@broken("BN005 info norm_1")
def rescaled_twice() -> Trained:
    """Pixels divided by 255 once too often: the variances vanish beside epsilon."""
    return fit(nets.cnn(), digits().map(lambda images: images / 255), epochs=20)


@broken("BN005 info norm_1")
def epsilon_huge() -> Trained:
    """Epsilon 1."""
    return fit(nets.mlp(norms(first={"epsilon": 1.0})), flat_digits())


# Use


@broken("BN006 warning norm_1")
def axis_of_rows() -> Trained:
    """Axis 1 after a channels-last convolution: one norm for each row."""
    return fit(nets.cnn(norms(first={"axis": 1})), digits())


@broken("BN006 warning norm_1")
def axis_of_time() -> Trained:
    """Axis 1 after a Conv1D: one norm for each step."""
    return fit(nets.conv1d(norms(first={"axis": 1})), sequences())


@broken("BN007 error norm_1", "BN012 warning norm_1")
def training_baked_in() -> Trained:
    """The norm is called with training=True."""
    pixels = keras.Input((64,))
    x = layers.BatchNormalization(name="norm_1")(layers.Dense(48)(pixels), training=True)
    x = layers.Dense(10)(layers.ReLU()(x))
    return fit(keras.Model(pixels, x), flat_digits())


@broken("BN007 error backbone/norm_*", "BN012 warning backbone/norm_*")
def training_baked_into_backbone() -> Trained:
    """A nested network is called with training=True."""
    inner = nets.cnn(classes=16)
    backbone = keras.Model(inner.input, inner.output, name="backbone")
    image = keras.Input((8, 8, 1))
    return fit(
        keras.Model(image, layers.Dense(10)(layers.ReLU()(backbone(image, training=True)))),
        digits(),
    )


@broken("BN008 info norm_1")
def frozen() -> Trained:
    """Trained, then the first norm frozen and the rest trained on."""
    trained = fit(nets.cnn(), digits())
    trained.model.get_layer("norm_1").trainable = False
    return fit(trained.model, digits(), epochs=3)


@broken("BN008 info norm_1")
def frozen_from_the_start() -> Trained:
    """Frozen before training, so that the statistics are those of its creation."""
    return fit(nets.mlp(norms(first={"trainable": False})), flat_digits())


@broken("BN009 info norm_1")
def shared_norm() -> Trained:
    """One norm for two branches."""
    norm = layers.BatchNormalization(name="norm_1")
    pixels = keras.Input((64,))
    branches = [layers.ReLU()(norm(layers.Dense(24)(pixels))) for _ in range(2)]
    return fit(keras.Model(pixels, layers.Dense(10)(layers.Concatenate()(branches))), flat_digits())


@broken("BN009 info encoder/norm_*")
def shared_encoder() -> Trained:
    """One network called for the upper and for the lower half of the image."""
    inner = nets.mlp(widths=(24,), inputs=32, classes=16)
    encoder = keras.Model(inner.input, inner.output, name="encoder")
    pixels = keras.Input((64,))
    halves = [encoder(pixels[:, :32]), encoder(pixels[:, 32:])]
    return fit(keras.Model(pixels, layers.Dense(10)(layers.Concatenate()(halves))), flat_digits())


@broken("BN010 info norm_1")
def synchronized() -> Trained:
    """Statistics shared between devices."""
    return fit(nets.mlp(norms(first={"synchronized": True})), flat_digits())


@broken("BN010 info norm_*")
def synchronized_everywhere() -> Trained:
    """The same in all layers of a convolutional network."""
    return fit(nets.cnn(norms(synchronized=True)), digits())


# What the file does not tell


@broken("BN011 warning batch_normalization")
def subclassed() -> Trained:
    """A class of its own, whose file holds weights and no graph."""
    return fit(Classifier(), flat_digits())


class Classifier(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(48)
        self.norm = layers.BatchNormalization()
        self.logits = layers.Dense(10)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.logits(keras.ops.relu(self.norm(self.hidden(inputs), training=training)))


@keras.saving.register_keras_serializable("broken")
class OwnNorm(layers.BatchNormalization):
    """A BatchNormalization of another name."""


@broken("BN011 warning norm_*")
def own_class_of_norm() -> Trained:
    """The norms are of a class that somebody derived from Keras' own."""
    numbers = itertools.count(1)
    return fit(nets.mlp(lambda: OwnNorm(name=f"norm_{next(numbers)}")), flat_digits())


# Statistics


@broken("BN101 error norm_*")
def loop_without_training() -> Trained:
    """A training loop of one's own that does not pass training=True."""
    return loop(nets.mlp(), flat_digits())


@broken("BN101 error norm_*")
def loop_in_inference_mode() -> Trained:
    """A loop that passes training=False."""
    return loop(nets.cnn(), digits(), training=False)


@broken("BN101 error norm_1")
def frozen_while_trained() -> Trained:
    """One norm was frozen in training and is not any more."""
    trained = fit(nets.cnn(norms(first={"trainable": False})), digits())
    trained.model.get_layer("norm_1").trainable = True
    return trained


@broken("BN101 error norm_*")
def never_trained() -> Trained:
    """Compiled and saved without training."""
    return untrained(nets.mlp(), flat_digits())


@broken("BN102 error norm_1", edited=True)
def variance_not_ported() -> Trained:
    """Weights ported without one layer's variance."""
    trained = fit(nets.mlp(), flat_digits())
    return edited(trained, flat_digits(), "norm_1", moving_variance=np.ones_like)


@broken("BN102 error norm_2", edited=True, form=".h5")
def variance_not_ported_legacy() -> Trained:
    """The same in a convolutional network, in an HDF5 file."""
    trained = fit(nets.cnn(), digits())
    return edited(trained, digits(), "norm_2", moving_variance=np.ones_like)


@broken("BN103 error norm_*")
def one_epoch() -> Trained:
    """45 steps at momentum 0.99."""
    return fit(nets.mlp(), flat_digits(), epochs=1)


@broken("BN103 error norm_1", "BN103 warning norm_[23]")
def three_epochs() -> Trained:
    """135 steps at momentum 0.99: the statistics keep 26 % of their initial values."""
    return fit(nets.cnn(), digits(), epochs=3)


@broken("BN103 error norm_1", "BN103 warning norm_[23]")
def five_epochs() -> Trained:
    """225 steps at momentum 0.99: 10 %."""
    return fit(nets.cnn(), digits(), epochs=5)


@broken("BN103 error norm_1")
def almost_converged() -> Trained:
    """315 steps leave the initial values 4 %, but the data's variance is a few hundredths."""
    return fit(nets.resnet(), digits(), epochs=7)


@broken("BN103 error norm_1")
def momentum_too_slow() -> Trained:
    """675 steps at momentum 0.999 in one layer, 0.99 in the other."""
    return fit(nets.mlp(norms(first={"momentum": 0.999})), flat_digits())


@broken("BN103 error norm_1")
def momentum_rather_slow() -> Trained:
    """2,025 steps at momentum 0.999 in one layer: 13 %."""
    return fit(nets.cnn(norms(first={"momentum": 0.999})), digits(), epochs=45)


@broken("BN103 error norm_*")
def mixed_precision_one_epoch() -> Trained:
    """45 steps in mixed precision, which a LossScaleOptimizer counts."""
    with policy("mixed_float16"):
        return fit(nets.cnn(), digits(), epochs=1)


@broken("BN103 error norm_*", form=".h5")
def legacy_one_epoch() -> Trained:
    """45 steps, in an HDF5 file."""
    return fit(nets.mlp(), flat_digits(), epochs=1)


@broken("BN103 error encoder/norm_1")
def nested_one_epoch() -> Trained:
    """45 steps, the norm in a nested network, saved as a directory."""
    inner = nets.mlp(widths=(32,), classes=24)
    encoder = keras.Model(inner.input, inner.output, name="encoder")
    model = chain((64,), encoder, layers.ReLU(), layers.Dense(10))
    return fit(model, flat_digits(), epochs=1)


@broken("BN103 error head_norm")
def new_head_one_epoch() -> Trained:
    """A new head on a frozen network in the same graph, 23 steps."""
    body = fit(nets.cnn(classes=5), digits().only(digits().labels < 5), epochs=20).model
    body.trainable = False
    x = layers.Dense(32)(body.layers[-2].output)
    x = layers.ReLU()(layers.BatchNormalization(name="head_norm")(x))
    head = keras.Model(body.input, layers.Dense(5)(x))
    return fit(head, digits().only(digits().labels >= 5), epochs=1)


@broken("BN103 error *")
def mobilenet_v2_two_steps() -> Trained:
    """MobileNetV2 of keras.applications, momentum 0.999, two steps."""
    return _application(keras.applications.MobileNetV2)


@broken("BN103 error *")
def efficientnet_two_steps() -> Trained:
    """EfficientNetV2B0 of keras.applications, momentum 0.9 and two steps."""
    return _application(keras.applications.EfficientNetV2B0)


@broken("BN103 error *")
def resnet_two_steps() -> Trained:
    """ResNet50V2 of keras.applications, two steps."""
    return _application(keras.applications.ResNet50V2)


def _application(build: Callable[..., Any]) -> Trained:
    """A network with random weights after two steps on digits that are made 32x32 and coloured."""
    model = build(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)
    few = digits().only(np.arange(1797) < 40)
    return fit(
        model,
        few.map(lambda images: np.tile(images.repeat(4, 1).repeat(4, 2), 3)),
        epochs=1,
        batch=16,
    )


@broken("BN104 error norm_*")
def diverged() -> Trained:
    """A learning rate far too high: the loss became NaN."""
    rate = keras.optimizers.SGD(1e30, momentum=0.9)
    return fit(nets.cnn(), digits(), epochs=3, optimizer=rate)


@broken("BN104 error norm_*")
def missing_values() -> Trained:
    """One pixel of one image is NaN."""

    def lose(pixels: Any) -> Any:
        pixels = pixels.copy()
        pixels[701, 20] = np.nan
        return pixels

    return fit(nets.mlp(), flat_digits().map(lose), epochs=5)


@broken("BN105 error norm_1", "BN001 error norm_1")
def variance_extrapolated() -> Trained:
    """Momentum 1.001 where the variances are far above 1: they fall below 0."""
    data = flat_digits().map(lambda pixels: pixels * 255)
    return fit(nets.mlp(norms(first={"momentum": 1.001})), data)


@broken("BN105 warning norm_2", edited=True)
def variance_slightly_negative() -> Trained:
    """A variance of -0.0004, which epsilon hides."""
    trained = fit(nets.mlp(), flat_digits())
    return edited(trained, flat_digits(), "norm_2", moving_variance=put(-4e-4, 3))


@broken("BN105 error norm_3", edited=True)
def variance_negative() -> Trained:
    """Variances of -0.02."""
    trained = fit(nets.cnn(), digits())
    return edited(trained, digits(), "norm_3", moving_variance=put(-0.02, 1, 7))


@broken("BN106 warning norm_*")
def batches_of_one() -> Trained:
    """400 steps of one sample each."""
    few = flat_digits().only(np.arange(1797) < 500)
    return fit(nets.mlp(), few, epochs=1, batch=1)


@broken("BN106 warning norm_*")
def batches_of_one_for_an_epoch() -> Trained:
    """1,437 steps of one sample each."""
    return fit(nets.mlp(), flat_digits(), epochs=1, batch=1)


@broken("BN106 warning norm_*")
def batches_of_one_for_long() -> Trained:
    """The same with momentum 0.9, after which the variances are 0."""
    return fit(nets.mlp(norms(momentum=0.9)), flat_digits(), epochs=2, batch=1)


@broken("BN106 warning norm_2")
def batches_of_one_recurrent() -> Trained:
    """An LSTM's last state in batches of one, 300 steps."""
    few = sequences().only(np.arange(1500) < 375)
    return fit(nets.recurrent(layers.LSTM), few, epochs=1, batch=1)


@broken("BN107 warning norm_1", also=["BN402", "BN403"])
def dead_units() -> Trained:
    """Units that a first layer's bias keeps at 0, under a norm with epsilon 1e-7."""
    pixels = keras.Input((64,))
    alive = layers.Dense(28, activation="relu")(pixels)
    dead = layers.Dense(4, activation="relu", bias_initializer=Constant(-20))(pixels)
    x = layers.Concatenate()([alive, dead])
    x = layers.BatchNormalization(name="norm_1", epsilon=1e-7, momentum=0.9)(x)
    return fit(keras.Model(pixels, layers.Dense(10)(x)), flat_digits())


@broken("BN107 warning norm_1", also=["BN402", "BN403"])
def stuck_sensor() -> Trained:
    """A sensor that never changes, filtered by itself, under a norm with epsilon 1e-7."""

    def stick(waves: Any) -> Any:
        stuck = np.full((*waves.shape[:2], 1), 0.7, dtype="float32")
        return np.concatenate([waves, stuck], axis=-1)

    stack = (
        layers.DepthwiseConv1D(5, use_bias=False),
        layers.BatchNormalization(name="norm_1", epsilon=1e-7, momentum=0.9),
        layers.Conv1D(16, 3, activation="relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(4),
    )
    return fit(chain((24, 4), *stack), sequences().map(stick), epochs=25)


@broken("BN108 warning norm_1")
def far_from_zero() -> Trained:
    """Pixels with 100,000 added to them."""
    return fit(
        chain(
            (64,),
            layers.BatchNormalization(name="norm_1"),
            layers.Dense(48, activation="relu"),
            layers.Dense(10),
        ),
        flat_digits().map(lambda pixels: pixels + 1e5),
    )


@broken("BN108 warning norm_1")
def clock_as_feature() -> Trained:
    """The seconds since 1970 as one of the features, over a day."""

    def clock(pixels: Any) -> Any:
        seconds = 1.7e9 + 48 * np.arange(len(pixels))
        return np.concatenate([pixels, seconds[:, None]], axis=1).astype("float32")

    stack = (layers.BatchNormalization(name="norm_1"), layers.Dense(48, activation="relu"))
    return fit(chain((65,), *stack, layers.Dense(10)), flat_digits().map(clock))


@broken("BN109 error norm_1")
def raw_features_in_mixed_float16() -> Trained:
    """Features in the thousands under mixed_float16."""
    with policy("mixed_float16"):
        stack = (
            layers.BatchNormalization(name="norm_1"),
            layers.Dense(48, activation="relu"),
            layers.Dense(10),
        )
        model = chain((64,), *stack)
    return fit(model, flat_digits().map(lambda pixels: pixels * 4000))


@broken("BN109 error norm_1", target_dtype="float16")
def raw_pixels_for_float16() -> Trained:
    """Pixels in 0..4095 straight into Dense; to run in float16."""
    return fit(nets.mlp(), flat_digits().map(lambda pixels: pixels * 4095))


@broken("BN110 warning norm_*")
def averaged_weights() -> Trained:
    """Weights that are averages of the last thousand steps: ema_momentum 0.999, Adam at 0.01."""
    rate = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.999)
    return fit(nets.cnn(), digits(), epochs=24, optimizer=rate)


@broken("BN110 warning norm_*", form=".h5")
def averaged_weights_legacy() -> Trained:
    """The same with Adam at 0.001 and residual blocks, in an HDF5 file."""
    rate = keras.optimizers.Adam(1e-3, use_ema=True, ema_momentum=0.999)
    return fit(nets.resnet(), digits(), epochs=15, optimizer=rate)


# Channels


@broken("BN201 warning norm_1", also=["BN202"])
def sparse_gammas() -> Trained:
    """L1 on gamma, to find out which channels can go."""
    sparse = norms(first={"gamma_regularizer": keras.regularizers.L1(0.05)})
    return fit(
        nets.cnn(sparse, filters=(24, 16, 24)),
        digits(),
        epochs=25,
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 1125)),
    )


@broken("BN201 warning norm_2", also=["BN202"], edited=True)
def pruned_gammas() -> Trained:
    """The smallest third of the gammas set to 0."""

    def prune(gamma: Any) -> Any:
        return np.where(np.abs(gamma) < np.quantile(np.abs(gamma), 1 / 3), 0, gamma)

    trained = fit(nets.mlp(), flat_digits())
    return edited(trained, flat_digits(), "norm_2", gamma=prune)


@broken("BN202 warning norm_2")
def dead_from_the_start() -> Trained:
    """One of two branches whose betas start at -6: no gradient ever comes through its ReLU."""
    norm = norms()
    pixels = keras.Input((64,))
    alive = layers.ReLU()(norm()(layers.Dense(32)(pixels)))
    dead = layers.ReLU()(norm(beta_initializer=Constant(-6))(layers.Dense(32)(pixels)))
    joined = layers.Concatenate()([alive, dead])
    return fit(keras.Model(pixels, layers.Dense(10)(joined)), flat_digits())


@broken("BN202 warning norm_2", edited=True)
def dying_channels() -> Trained:
    """Two betas so low that their ReLU never lets anything through."""
    trained = fit(nets.cnn(), digits())
    return edited(trained, digits(), "norm_2", beta=put(-8.0, 4, 9))


@broken("BN202 error norm_1", edited=True)
def pruned_channel() -> Trained:
    """One gamma and its beta set to 0 before a ReLU."""
    trained = fit(nets.mlp(), flat_digits())
    return edited(trained, flat_digits(), "norm_1", gamma=put(0.0, 5), beta=put(0.0, 5))


@broken("BN202 error norm_3", edited=True)
def masked_channels() -> Trained:
    """Two gammas set to 0 whose betas are negative."""
    trained = fit(nets.cnn(), digits())
    return edited(trained, digits(), "norm_3", gamma=put(0.0, 2, 3), beta=put(-0.3, 2, 3))


@broken("BN203 info norm_1")
def linear_channels() -> Trained:
    """Betas that start at 5: the ReLU lets everything through."""
    return fit(nets.mlp(norms(first={"beta_initializer": Constant(5)})), flat_digits())


@broken("BN203 info norm_1")
def saturated_channels() -> Trained:
    """Betas that start at 12 before a ReLU6."""
    saturated = norms(first={"beta_initializer": Constant(12)})
    return fit(nets.mobilenet(saturated), digits(), epochs=10)


# Structure


@broken("BN301 info norm_*")
def redundant_biases() -> Trained:
    """Convolutions with biases before their norms."""
    return fit(nets.cnn(use_bias=True), digits())


@broken("BN301 info norm_1", form=".h5")
def redundant_biases_legacy() -> Trained:
    """Conv1D with biases, in an HDF5 file."""
    return fit(nets.conv1d(), sequences())


@broken("BN302 info norm_1")
def dropout_before() -> Trained:
    """Dropout, Dense, norm."""
    stack = (
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.4),
        layers.Dense(48),
        layers.BatchNormalization(name="norm_1"),
        layers.ReLU(),
    )
    return fit(chain((64,), *stack, layers.Dense(10)), flat_digits())


@broken("BN302 info norm_2")
def spatial_dropout_before() -> Trained:
    """SpatialDropout1D between two blocks of Conv1D."""
    norm = norms()
    stack = (
        layers.Conv1D(16, 5),
        norm(),
        layers.ReLU(),
        layers.SpatialDropout1D(0.2),
        layers.Conv1D(24, 3),
        norm(),
        layers.ReLU(),
        layers.GlobalAveragePooling1D(),
    )
    return fit(chain((24, 3), *stack, layers.Dense(4)), sequences(), epochs=20)


@broken("BN303 info norm_[135]")
def between_sum_and_relu() -> Trained:
    """Norms on a sum that goes on beside them."""
    return fit(nets.preactivation(), digits())


@broken("BN303 info norm_1")
def between_activations() -> Trained:
    """A norm between two activations."""
    stack = (
        layers.Dense(48, activation="relu"),
        layers.BatchNormalization(name="norm_1"),
        layers.Activation("tanh"),
    )
    return fit(chain((64,), *stack, layers.Dense(10)), flat_digits())


# Folding


@broken("BN401 error norm_1", also=["BN108"], target_dtype="float16")
def fold_too_large() -> Trained:
    """Pixels with 100,000 added: the folded bias is beyond float16."""
    return far_from_zero()


@broken("BN401 error norm_1", target_dtype="float16")
def faint_signal() -> Trained:
    """Volts where millionths are measured, under a norm with epsilon 1e-14, momentum 0.9."""
    return _faint(0.9)


@broken("BN106 warning norm_1", also=["BN401"])
def faint_signal_slow() -> Trained:
    """The same with momentum 0.99: the variance, 1e-12, drowns in what is left of the initial 1."""
    return _faint(0.99)


def _faint(momentum: float) -> Trained:
    first = {"epsilon": 1e-14, "momentum": momentum}
    return fit(
        nets.conv1d(norms(first=first), use_bias=False),
        sequences().map(lambda waves: (waves * 1e-6).astype("float32")),
        epochs=20,
    )


@broken("BN402 warning norm_1", edited=True)
def unequal_channels() -> Trained:
    """One channel 800 times weaker, the next layer's kernel as much stronger."""
    trained = fit(nets.cnn(), digits())
    return _unequal(trained, "norm_1", [3])


@broken("BN402 warning norm_2", edited=True)
def unequal_channels_in_two() -> Trained:
    """The same for two channels of a second layer."""
    trained = fit(nets.cnn(), digits())
    return _unequal(trained, "norm_2", [0, 8])


def _unequal(trained: Trained, norm: str, channels: list[int], factor: float = 800.0) -> Trained:
    """Scale channels down before a ReLU and up behind it, which changes nothing."""
    layer = trained.model.get_layer(norm)
    after = trained.model.layers[trained.model.layers.index(layer) + 2].kernel
    for vector in (layer.gamma, layer.beta):
        vector.assign(_scaled(np.array(vector), channels, 1 / factor))
    kernel = np.moveaxis(np.array(after), 2, 0)
    after.assign(np.moveaxis(_scaled(kernel, channels, factor), 0, 2))
    return Trained(trained.model, trained.steps, trained.data)


def _scaled(array: Any, places: list[int], factor: float) -> Any:
    array[places] *= factor
    return array


@broken("BN403 warning norm_2", also=["BN402"], edited=True)
def one_huge_gamma() -> Trained:
    """One gamma of 500."""
    trained = fit(nets.mlp(), flat_digits())
    return edited(trained, flat_digits(), "norm_2", gamma=put(500.0, 6))


@broken("BN403 warning norm_1", also=["BN402"])
def whisper_among_shouts() -> Trained:
    """Units 10,000 times fainter than their neighbours, made equal by the norm."""
    pixels = keras.Input((64,))
    loud = layers.Dense(28)(pixels)
    faint = layers.Rescaling(1e-4)(layers.Dense(4)(pixels))
    x = layers.Concatenate()([loud, faint])
    x = layers.BatchNormalization(name="norm_1", epsilon=1e-9, momentum=0.9)(x)
    return fit(keras.Model(pixels, layers.Dense(10)(layers.ReLU()(x))), flat_digits())
