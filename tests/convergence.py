"""What unconverged statistics cost: the accuracy with them, and with those of all training data.

    python tests/convergence.py

prints the table of docs/calibration.md. r is the weight that the initial values have left, m^n.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import architectures as nets
import tensorflow as tf
from calibration import table
from support import keras, np
from training import Data, compiled, digits, flat_digits, score, sequences

WEIGHTS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
SEEDS = 3
MOMENTUM = 0.99
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], Data]]] = {
    "MLP": (nets.mlp, flat_digits),
    "MLP, pixels in 0..255": (nets.mlp, lambda: flat_digits().map(lambda x: x * 255)),
    "CNN": (nets.cnn, digits),
    "ResNet": (nets.resnet, digits),
    "Conv1D": (nets.conv1d, sequences),
}


def trained_for(model: Any, data: Data, steps: int, seed: int) -> None:
    """Train for so many steps of 32 samples."""
    samples, targets = data.train
    generator = np.random.default_rng(seed)
    epochs = math.ceil(steps * 32 / len(targets))
    order = np.concatenate([generator.permutation(len(targets)) for _ in range(epochs)])
    chosen = order[: steps * 32]
    compiled(model).fit(samples[chosen], targets[chosen], batch_size=32, shuffle=False, verbose=0)


def with_statistics_of(model: Any, data: Data) -> None:
    """Give each norm the mean and variance of all training data, one layer after the other."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = keras.Model(model.inputs, layer.input)
            values = before.predict(data.train[0], batch_size=256, verbose=0).astype("float64")
            axes = tuple(range(values.ndim - 1))
            layer.moving_mean.assign(values.mean(axes))
            layer.moving_variance.assign(values.var(axes))


def losses(make: Callable[[], Any], data: Data, weight: float) -> list[float]:
    """How much accuracy the moving statistics lose, for each seed, in percent of all samples."""
    steps = round(math.log(weight) / math.log(MOMENTUM))
    found = []
    for seed in range(SEEDS):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = make()
        trained_for(model, data, steps, seed)
        moving = score(model, data)
        with_statistics_of(model, data)
        found.append(100 * (score(model, data) - moving))
    return found


def rows() -> list[Sequence[object]]:
    found: list[Sequence[object]] = []
    for weight in WEIGHTS:
        steps = round(math.log(weight) / math.log(MOMENTUM))
        cells = [losses(make, data(), weight) for make, data in NETWORKS.values()]
        found.append((weight, steps, *(" ".join(str(round(x)) for x in cell) for cell in cells)))
    return found


def main() -> None:
    tf.config.experimental.enable_op_determinism()
    print("\n".join(table(("r", "steps", *NETWORKS), rows())))


if __name__ == "__main__":
    main()
