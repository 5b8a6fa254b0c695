"""Data to train on that comes with the tests' own libraries, and the ways to train.

Digits are scikit-learn's 1,797 of 8x8 pixels, sequences are drawn. Every fifth sample is held out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import tensorflow as tf
from support import keras, np

Arrays = Any
"""An array, or a list of arrays for a model with several inputs."""


@dataclass(frozen=True)
class Data:
    """Samples and their labels; every fifth is held out."""

    samples: Arrays
    labels: Any

    @property
    def train(self) -> tuple[Arrays, Any]:
        """What a model sees."""
        return self._where(np.arange(len(self.labels)) % 5 != 0)

    @property
    def test(self) -> tuple[Arrays, Any]:
        """What it does not see."""
        return self._where(np.arange(len(self.labels)) % 5 == 0)

    def _where(self, mask: Any) -> tuple[Arrays, Any]:
        return keras.tree.map_structure(lambda array: array[mask], self.samples), self.labels[mask]

    def map(self, change: Callable[[Any], Arrays]) -> "Data":
        """The same labels with other samples."""
        return replace(self, samples=change(self.samples))

    def only(self, mask: Any) -> "Data":
        """Some of the samples, their labels counted from 0."""
        chosen, labels = self._where(mask)
        return Data(chosen, np.unique(labels, return_inverse=True)[1])


@cache
def digits() -> Data:
    """Images, (1797, 8, 8, 1) in 0..1, of ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Data((bunch.images[..., None] / 16).astype("float32"), bunch.target)


def flat_digits() -> Data:
    """The digits as vectors, (1797, 64); three pixels of the border are always 0."""
    return digits().map(lambda images: images.reshape(len(images), -1))


STEPS, SENSORS = 24, 3


@cache
def sequences() -> Data:
    """Noisy waves, (1500, 24, 3): slow or fast, swelling or fading, so four classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 1500)
    time = np.linspace(0, 1, STEPS)[None, :, None]
    cycles = np.where(labels % 2, 5.0, 2.0)[:, None, None]
    phase = generator.uniform(0, 2 * np.pi, (1500, 1, SENSORS))
    envelope = np.where(labels[:, None, None] // 2, 0.4 + time, 1.4 - time)
    waves = envelope * np.sin(2 * np.pi * cycles * time + phase)
    noise = generator.normal(0, 0.3, waves.shape)
    return Data((waves + noise + [0.0, 0.5, -1.0]).astype("float32"), labels)


@cache
def sentences() -> Data:
    """Words 1..29 in rows of up to 24, padded with 0: which of three groups of words prevails?"""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 1500)
    groups = np.where(
        generator.random((1500, STEPS)) < 0.6,
        labels[:, None],
        generator.integers(0, 3, (1500, STEPS)),
    )
    words = 1 + 3 * generator.integers(0, 9, (1500, STEPS)) + groups
    words[np.arange(STEPS)[None] >= generator.integers(10, STEPS + 1, (1500, 1))] = 0
    return Data(words.astype("int32"), labels)


@cache
def table() -> Data:
    """Eight columns: a share, years, a calendar year, an income, flags, a count; two classes."""
    generator = np.random.default_rng(0)
    share = generator.beta(2, 5, 2000)
    age = generator.normal(45, 15, 2000)
    year = generator.integers(1990, 2024, 2000)
    income = generator.lognormal(10.5, 0.8, 2000)
    flags = generator.random((2000, 3)) < (0.5, 0.05, 0.005)
    count = generator.poisson(3, 2000)
    merit = 4 * share + np.log(income) - 10.5 + (age - 45) / 20 + flags[:, 0] - count / 3
    columns = np.column_stack([share, age, year, income, flags, count])
    return Data(columns.astype("float32"), (merit > np.median(merit)).astype("int64"))


@dataclass(frozen=True)
class Trained:
    """A model, the optimizer steps it had, and its data."""

    model: Any
    steps: int
    data: Data

    @property
    def score(self) -> float:
        """What it makes of the samples that were held out."""
        return score(self.model, self.data)


def compiled(model: Any, optimizer: Any = None, loss: Any = None) -> Any:
    """Compile for classification from logits, with Adam at 0.003 unless told otherwise."""
    model.compile(
        optimizer=optimizer or keras.optimizers.Adam(3e-3),
        loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def fit(
    model: Any,
    data: Data,
    *,
    epochs: int = 15,
    batch: int = 32,
    optimizer: Any = None,
    loss: Any = None,
    **options: Any,
) -> Trained:
    """Train with `fit`."""
    compiled(model, optimizer, loss)
    samples, targets = data.train
    history = model.fit(
        samples, targets, epochs=epochs, batch_size=batch, verbose=0, **options
    ).params
    return Trained(model, history["epochs"] * history["steps"], data)


def score(model: Any, data: Data) -> float:
    """The accuracy on what was held out, or the share of its variance that is predicted."""
    samples, targets = data.test
    predicted = model.predict(samples, batch_size=256, verbose=0).astype("float64")
    if targets.ndim == 1:
        return float(np.mean(predicted.argmax(axis=-1) == targets))
    return float(
        1 - np.mean((predicted - targets) ** 2) / np.mean((targets - targets.mean(0)) ** 2)
    )


def loop(model: Any, data: Data, *, epochs: int = 10, batch: int = 32, **call: Any) -> Trained:
    """Train in a loop of one's own, which calls the model with `call`; it is left uncompiled."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(samples: Any, targets: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(targets, model(samples, **call))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    steps = 0
    for _ in range(epochs):
        for samples, targets in _batches(data, batch):
            step(samples, targets)
            steps += 1
    return Trained(model, steps, data)


def _batches(data: Data, batch: int) -> Iterator[tuple[Any, Any]]:
    samples, targets = data.train
    for start in range(0, len(targets) - batch + 1, batch):
        yield samples[start : start + batch], targets[start : start + batch]


def untrained(model: Any, data: Data) -> Trained:
    """Leave a compiled model as it was created."""
    return Trained(compiled(model), 0, data)


@contextmanager
def policy(name: str) -> Iterator[None]:
    """Layers made inside have a dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
