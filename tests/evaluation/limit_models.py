"""Models of which the file alone does not tell the truth: what the audit says of them is wrong.

What is planted here is what is said, not what ought to be.
"""

from typing import Any

import architectures as nets
from specimens import Specimen, specimen
from support import chain, keras
from training import Trained, digits, fit, flat_digits, loop

layers = keras.layers
LIMITS: dict[str, Specimen] = {}


def said(*planted: str, **options: Any) -> Any:
    """Register a function that trains a model of which so much is said."""
    return specimen(LIMITS, *planted, **options)


@said()
def own_loop_one_epoch() -> Trained:
    """Broken: 44 steps of a custom training loop, which the file does not count."""
    return loop(nets.cnn(), digits(), epochs=1, training=True)


@said()
def lagging_statistics() -> Trained:
    """Broken: 675 steps are enough, but L2 0.01 changes the weights faster than momentum 0.99."""
    decay = keras.regularizers.L2(0.01)
    rate = keras.optimizers.Adam(1e-3)
    return fit(nets.xception(kernel_regularizer=decay), digits(), optimizer=rate)


@said()
def unfrozen_network_new_head() -> Trained:
    """Broken: 23 steps of a new head, but the old network's statistics have more of them."""
    body = fit(nets.cnn(classes=5), digits().only(digits().labels < 5), epochs=20).model
    x = layers.Dense(32)(body.layers[-2].output)
    x = layers.ReLU()(layers.BatchNormalization(name="head_norm")(x))
    head = keras.Model(body.input, layers.Dense(5)(x))
    return fit(head, digits().only(digits().labels >= 5), epochs=1)


@said("BN103 warning norm_1")
def continued_with_large_variances() -> Trained:
    """Healthy: trained on for 45 steps, and the only norm's variances are all far above 1."""
    stack = (layers.Dense(64), layers.BatchNormalization(name="norm_1"), layers.ReLU())
    data = flat_digits().map(lambda pixels: pixels * 255)
    before = fit(chain((64,), *stack, layers.Dense(10)), data)
    after = fit(before.model, data, epochs=1, optimizer=keras.optimizers.Adam(1e-4))
    return Trained(after.model, before.steps + after.steps, after.data)
