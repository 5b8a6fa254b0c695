"""Small networks of the usual kinds, whose norms are called norm_1, norm_2, ... in their order.

All end in logits. What a norm is made with is the caller's, so that one layer of a network can be
given a defect and all others be left alone.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from support import chain, keras

layers = keras.layers
Norm = Callable[..., Any]
"""Makes the next norm; a call's own options win."""


def norms(first: Mapping[str, Any] | None = None, **every: Any) -> Norm:
    """Norms with options for all of them, and some for the first one alone."""
    numbers = itertools.count(1)

    def make(**own: Any) -> Any:
        number = next(numbers)
        only = dict(first or {}) if number == 1 else {}
        return layers.BatchNormalization(name=f"norm_{number}", **{**every, **only, **own})

    return make


def mlp(
    norm: Norm | None = None,
    *,
    widths: Sequence[int] = (64, 32),
    inputs: int = 64,
    classes: int = 10,
    activation: str = "relu",
    **dense: Any,
) -> Any:
    """Dense, norm, activation for each width."""
    norm = norm or norms()
    blocks = [
        (layers.Dense(width, **dense), norm(), layers.Activation(activation)) for width in widths
    ]
    return chain((inputs,), *itertools.chain(*blocks), layers.Dense(classes))


def cnn(
    norm: Norm | None = None,
    *,
    filters: Sequence[int] = (12, 16, 24),
    activation: Callable[[], Any] = layers.ReLU,
    classes: int = 10,
    **conv: Any,
) -> Any:
    """Conv2D, norm, ReLU for each number of filters, the second one with stride 2."""
    norm = norm or norms()
    options = {"padding": "same", "use_bias": False, **conv}
    blocks = [
        (layers.Conv2D(count, 3, strides=1 + (place == 1), **options), norm(), activation())
        for place, count in enumerate(filters)
    ]
    return chain(
        (8, 8, 1),
        *itertools.chain(*blocks),
        layers.GlobalAveragePooling2D(),
        layers.Dense(classes),
    )


def mobilenet(norm: Norm | None = None, *, classes: int = 10) -> Any:
    """Conv2D, then depthwise and pointwise convolutions in turn, as in MobileNet."""
    norm = norm or norms()
    image = keras.Input((8, 8, 1))
    x = layers.ReLU(6.0)(norm()(layers.Conv2D(12, 3, padding="same", use_bias=False)(image)))
    for filters, strides in ((16, 1), (24, 2), (32, 1)):
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(norm()(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.ReLU(6.0)(norm()(x))
    return keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def inverted_residual(norm: Norm | None = None) -> Any:
    """Expand, depthwise, project without activation, add: MobileNetV2."""
    norm = norm or norms()
    image = keras.Input((8, 8, 1))
    x = layers.ReLU(6.0)(norm()(layers.Conv2D(12, 3, padding="same", use_bias=False)(image)))
    for strides in (1, 2, 1):
        entry = x
        x = layers.ReLU(6.0)(norm()(layers.Conv2D(48, 1, use_bias=False)(x)))
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(norm()(x))
        x = norm()(layers.Conv2D(12, 1, use_bias=False)(x))
        x = layers.Add()([entry, x]) if strides == 1 else x
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def xception(norm: Norm | None = None, **conv: Any) -> Any:
    """Separable convolutions with shortcuts and max pooling, as the small Xceptions of 2017.

    `conv` goes to all convolutions but those of the shortcuts.
    """
    norm = norm or norms()
    options = {"padding": "same", "use_bias": False, **conv}
    image = x = keras.Input((8, 8, 1))
    for _ in range(2):
        x = layers.Activation("relu")(norm()(layers.Conv2D(8, 3, **options)(x)))
    for filters in (16, 32, 64):
        entry = norm()(layers.Conv2D(filters, 1, strides=2, padding="same", use_bias=False)(x))
        x = layers.Activation("relu")(norm()(separable(filters, **options)(x)))
        x = norm()(separable(filters, **options)(x))
        x = layers.Add()([layers.MaxPooling2D(3, strides=2, padding="same")(x), entry])
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def separable(filters: int, kernel_regularizer: Any = None, **conv: Any) -> Any:
    """A SeparableConv2D whose two kernels have the same regularizer."""
    return layers.SeparableConv2D(
        filters,
        3,
        depthwise_regularizer=kernel_regularizer,
        pointwise_regularizer=kernel_regularizer,
        **conv,
    )


def resnet(norm: Norm | None = None, *, last_gamma: str = "ones") -> Any:
    """Blocks of two convolutions with a shortcut, the ReLU behind the sum."""
    norm = norm or norms()
    image = keras.Input((8, 8, 1))
    x = layers.ReLU()(norm()(layers.Conv2D(16, 3, padding="same", use_bias=False)(image)))
    for filters, strides in ((16, 1), (32, 2)):
        entry = x
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(norm()(x))
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = norm(gamma_initializer=last_gamma)(x)
        if strides > 1:
            entry = norm()(layers.Conv2D(filters, 1, strides=strides, use_bias=False)(entry))
        x = layers.ReLU()(layers.Add()([x, entry]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def preactivation(norm: Norm | None = None) -> Any:
    """Norm and ReLU before each convolution, nothing behind the sum: ResNetV2."""
    norm = norm or norms()
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(image)
    for _ in range(2):
        entry = x
        for _ in range(2):
            x = layers.Activation("relu")(norm()(x))
            x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
        x = layers.Add()([x, entry])
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(norm()(x)))
    return keras.Model(image, layers.Dense(10)(x))


def densenet(norm: Norm | None = None) -> Any:
    """Every convolution reads all that came before it."""
    norm = norm or norms()
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(12, 3, padding="same", use_bias=False)(image)
    for _ in range(4):
        grown = layers.Conv2D(8, 3, padding="same", use_bias=False)(layers.ReLU()(norm()(x)))
        x = layers.Concatenate()([x, grown])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm()(x)))
    return keras.Model(image, layers.Dense(10)(x))


def conv1d(norm: Norm | None = None, **options: Any) -> Any:
    """Conv1D, norm, ReLU twice, over a sequence."""
    norm = norm or norms()
    return chain(
        (24, 3),
        layers.Conv1D(16, 5, **options),
        norm(),
        layers.ReLU(),
        layers.Conv1D(24, 3, strides=2, **options),
        norm(),
        layers.ReLU(),
        layers.GlobalAveragePooling1D(),
        layers.Dense(4),
    )


def temporal(norm: Norm | None = None) -> Any:
    """Causal convolutions that skip, each with a shortcut: a temporal convolutional network."""
    norm = norm or norms()
    series = keras.Input((24, 3))
    x = layers.Conv1D(16, 1)(series)
    for rate in (1, 2, 4):
        entry = x
        x = layers.Conv1D(16, 3, padding="causal", dilation_rate=rate)(x)
        x = layers.SpatialDropout1D(0.05)(layers.ReLU()(norm()(x)))
        x = layers.Add()([x, entry])
    return keras.Model(series, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def recurrent(cell: Callable[..., Any], norm: Norm | None = None) -> Any:
    """A norm on the sequence, a recurrent layer, a norm on its last state."""
    norm = norm or norms()
    return chain(
        (24, 3),
        norm(),
        cell(24),
        norm(),
        layers.Dense(16, activation="relu"),
        layers.Dense(4),
    )
