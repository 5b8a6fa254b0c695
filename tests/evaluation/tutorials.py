"""Networks as tutorials have them, drawn at random with the settings that people vary.

Each comes with the data that it is trained on, all of which are made here or come with
scikit-learn. Their accuracy with the statistics that training left behind, and after `recalibrate`,
says what a level of BN103 is worth: `convergence.py` measures it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import architectures as nets
from architectures import Norm, norms
from support import chain, keras, np
from training import Data, digits, flat_digits, sequences, table

layers = keras.layers

Build = Callable[[Norm, float], Any]
"""A network from what makes its norms and the rate of its Dropout, 0 for none."""

EPOCHS = (1, 3, 8, 20, 40)
"""After how many a network is looked at."""

MOST_STEPS = 1000


@cache
def textures() -> Data:
    """Coloured stripes in noise, (1500, 16, 16, 3) in 0..1: six directions, so six classes."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 6, 1500)
    rows, columns = np.mgrid[:16, :16]
    angle = (labels * np.pi / 6 + generator.normal(0, 0.08, 1500))[:, None, None]
    along = rows * np.cos(angle) + columns * np.sin(angle)
    phase = generator.uniform(0, 2 * np.pi, (1500, 1, 1))
    wave = np.sin(2 * np.pi * along / generator.uniform(4, 7, (1500, 1, 1)) + phase)
    colour = generator.uniform(0.05, 0.25, (1500, 1, 1, 3))
    images = 0.5 + wave[..., None] * colour + generator.normal(0, 0.12, (1500, 16, 16, 3))
    return Data(np.clip(images, 0, 1).astype("float32"), labels)


@cache
def cancer() -> Data:
    """Thirty measurements of cells in their own units, up to thousands, (569, 30); two classes."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return Data(bunch.data.astype("float32"), bunch.target)


@cache
def wine() -> Data:
    """Thirteen measurements of wines, brought to mean 0 and variance 1, (178, 13); three classes.

    The samples are shuffled, for they come by class.
    """
    from sklearn.datasets import load_wine

    bunch = load_wine()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    samples = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    return Data(samples[order].astype("float32"), bunch.target[order])


def dropped(rate: float) -> tuple[Any, ...]:
    """A Dropout, or nothing."""
    return (layers.Dropout(rate),) if rate else ()


def perceptron(inputs: int, classes: int, widths: Sequence[int]) -> Build:
    """Dense, norm, ReLU, Dropout for each width."""

    def build(norm: Norm, rate: float) -> Any:
        blocks = ((layers.Dense(width), norm(), layers.ReLU(), *dropped(rate)) for width in widths)
        return chain((inputs,), *itertools.chain(*blocks), layers.Dense(classes))

    return build


def pooled(shape: tuple[int, ...], classes: int) -> Build:
    """Conv2D, norm, ReLU, max pooling, Dropout twice, then Dense with a norm: the usual one."""

    def build(norm: Norm, rate: float) -> Any:
        blocks = (
            (
                layers.Conv2D(filters, 3, padding="same"),
                norm(),
                layers.ReLU(),
                layers.MaxPooling2D(),
                *dropped(rate),
            )
            for filters in (16, 32)
        )
        return chain(
            shape,
            *itertools.chain(*blocks),
            layers.Flatten(),
            *(layers.Dense(64), norm(), layers.ReLU(), *dropped(rate)),
            layers.Dense(classes),
        )

    return build


def paired(shape: tuple[int, ...], classes: int) -> Build:
    """Two convolutions of 3x3 before each pooling, the norm behind their ReLU: after VGG."""

    def build(norm: Norm, rate: float) -> Any:
        blocks = (
            (
                layers.Conv2D(filters, 3, padding="same", activation="relu"),
                norm(),
                layers.Conv2D(filters, 3, padding="same", activation="relu"),
                norm(),
                layers.MaxPooling2D(),
                *dropped(rate),
            )
            for filters in (12, 24)
        )
        return chain(
            shape,
            *itertools.chain(*blocks),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        )

    return build


def with_rate(make: Callable[[Norm], Any]) -> Build:
    """A network of the calibration, with a Dropout before its last layer."""

    def build(norm: Norm, rate: float) -> Any:
        model = make(norm)
        if not rate:
            return model
        last = model.layers[-1]
        dropped_out = layers.Dropout(rate)(model.layers[-2].output)
        return keras.Model(model.inputs, layers.Dense(last.units)(dropped_out))

    return build


def scaled(data: Callable[[], Data], factor: float) -> Callable[[], Data]:
    """Data whose samples are multiplied, as pixels are that nobody divided by 255."""
    return lambda: data().map(lambda samples: (samples * factor).astype("float32"))


NETWORKS: dict[str, tuple[Build, Callable[[], Data], bool]] = {
    "mlp": (perceptron(64, 10, (64, 32)), flat_digits, True),
    "mlp, three layers": (perceptron(64, 10, (96, 64, 32)), flat_digits, True),
    "mlp, cells": (perceptron(30, 2, (32, 16)), cancer, False),
    "mlp, wine": (perceptron(13, 3, (24, 12)), wine, False),
    "mlp, columns": (perceptron(8, 2, (32, 16)), table, False),
    "pooled": (pooled((8, 8, 1), 10), digits, True),
    "pooled, textures": (pooled((16, 16, 3), 6), textures, True),
    "pairs": (paired((8, 8, 1), 10), digits, True),
    "pairs, textures": (paired((16, 16, 3), 6), textures, True),
    "cnn": (with_rate(nets.cnn), digits, True),
    "depthwise": (with_rate(nets.mobilenet), digits, True),
    "xception": (with_rate(nets.xception), digits, True),
    "residual": (with_rate(nets.resnet), digits, True),
    "dense blocks": (with_rate(nets.densenet), digits, True),
    "conv1d": (with_rate(nets.conv1d), sequences, False),
    "temporal": (with_rate(nets.temporal), sequences, False),
    "lstm": (with_rate(lambda norm: nets.recurrent(layers.LSTM, norm)), sequences, False),
    "gru": (with_rate(lambda norm: nets.recurrent(layers.GRU, norm)), sequences, False),
}
"""How each is built, its data, and whether those are pixels, which come in several scales."""

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam 1e-3": lambda: keras.optimizers.Adam(1e-3),
    "Adam 3e-3": lambda: keras.optimizers.Adam(3e-3),
    "RMSprop 1e-3": lambda: keras.optimizers.RMSprop(1e-3),
    "SGD 0.05": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
}


@dataclass(frozen=True)
class Tutorial:
    """One network with all its settings.

    Attributes:
        number: its place among those that were drawn.
        kind: a key of NETWORKS.
        scale: what its samples are multiplied by.
        momentum: that of its norms.
        batch: the samples of a step.
        optimizer: a key of OPTIMIZERS.
        dropout: a rate, 0 for none.
        epochs: how many it is trained for.
    """

    number: int
    kind: str
    scale: float
    momentum: float
    batch: int
    optimizer: str
    dropout: float
    epochs: int

    @property
    def data(self) -> Data:
        """What it is trained on, and tested with."""
        return scaled(NETWORKS[self.kind][1], self.scale)()

    def build(self) -> Any:
        """The network, untrained and not compiled."""
        return NETWORKS[self.kind][0](norms(momentum=self.momentum), self.dropout)

    @property
    def stops(self) -> list[int]:
        """After how many epochs it is looked at."""
        per_epoch = -(-len(self.data.train[1]) // self.batch)
        return [
            epochs for epochs in EPOCHS if epochs <= self.epochs and epochs * per_epoch < MOST_STEPS
        ]


def drawn(count: int, seed: int = 0) -> list[Tutorial]:
    """So many networks, each kind as often as any other."""
    generator = np.random.default_rng(seed)
    kinds = itertools.islice(itertools.cycle(NETWORKS), count)
    return [_draw(number, kind, generator) for number, kind in enumerate(kinds)]


def _draw(number: int, kind: str, generator: Any) -> Tutorial:
    def one_of(*options: Any) -> Any:
        return options[int(generator.integers(len(options)))]

    scale = one_of(1.0, 1.0, 16.0, 255.0)
    return Tutorial(
        number=number,
        kind=kind,
        scale=scale if NETWORKS[kind][2] else 1.0,
        momentum=one_of(0.9, 0.99, 0.99, 0.99, 0.999),
        batch=one_of(16, 32, 32, 64, 128, 256),
        optimizer=one_of(*OPTIMIZERS),
        dropout=one_of(0.0, 0.0, 0.25, 0.5),
        epochs=one_of(*EPOCHS[1:]),
    )
