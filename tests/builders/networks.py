"""Networks of keras.applications with random statistics."""

from typing import Any

from support import keras, np, numbers

SIZES = {"Xception": 71, "InceptionV3": 75, "NASNetMobile": 224}


def network(name: str) -> Any:
    """The network without its head, with telling statistics and few enough pixels."""
    keras.utils.set_random_seed(0)
    size = SIZES.get(name, 64)
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg")
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                values = numbers(weight.name, tuple(weight.shape), generator)
                # Near 1, or a hundred layers in a row would blow up every rounding error.
                if weight.name == "moving_variance":
                    values = values**0.125
                weight.assign(values)
    return model
