"""Models whose calls say something of `training`, and in which mode their layers really run.

It is also a program, for a Keras that cannot be imported beside the installed one:
`python training_modes.py write DIR` and `python training_modes.py measure DIR`, which writes
DIR/modes.json.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Build = Callable[[Any], Any]
Found = dict[str, dict[str, list[bool]]]
"""For each way to call the model, by nested name, the modes of the calls of each layer."""


def table(keras: Any) -> dict[str, Build]:
    """What the documentation lists, each with one layer after the other."""
    layers = keras.layers

    def norm(x: Any, **said: Any) -> Any:
        return layers.BatchNormalization(name="bn")(x, **said)

    def drop(x: Any, name: str, **said: Any) -> Any:
        return layers.Dropout(0.5, name=name)(x, **said)

    def nested(*inside: Callable[[Any], Any]) -> Any:
        first = keras.Input((6, 6, 3))
        x = first
        for one in inside:
            x = one(x)
        return keras.Model(first, x, name="nested")

    def flip(x: Any, **said: Any) -> Any:
        return layers.RandomFlip(name="flip")(x, **said)

    return {
        "norm": lambda x: norm(x, training=True),
        "norm off": lambda x: norm(x, training=False),
        "dropout": lambda x: norm(drop(x, "mc", training=True)),
        "plain dropout between": lambda x: norm(drop(drop(x, "mc", training=True), "plain")),
        "norm off after dropout": lambda x: norm(drop(x, "mc", training=True), training=False),
        "nested": lambda x: nested(norm)(x, training=True),
        "nested off inside": lambda x: nested(lambda y: norm(y, training=False))(x, training=True),
        "nested leaks": lambda x: norm(nested(lambda y: drop(y, "mc", training=True))(x)),
        "nested off leaks": lambda x: norm(
            nested(lambda y: drop(y, "mc", training=True))(x, training=False)
        ),
        "flip": lambda x: norm(flip(x)),
        "flip off": lambda x: norm(flip(x, training=False)),
        "resizing": lambda x: norm(layers.Resizing(6, 6, name="resizing")(x)),
        "nested flip": lambda x: norm(nested(flip)(x)),
        "nested flip off": lambda x: norm(nested(flip)(x, training=False)),
        "flip and plain dropout": lambda x: norm(drop(flip(x), "plain")),
        "dropout and flip": lambda x: norm(flip(drop(x, "mc", training=True))),
        "distributed": lambda x: layers.TimeDistributed(
            layers.BatchNormalization(name="bn"), name="steps"
        )(drop(x, "mc", training=True)),
        "none": lambda x: norm(x, training=None),
        "none after dropout": lambda x: norm(drop(x, "mc", training=True), training=None),
    }


def drawn(keras: Any, seed: int) -> Build:
    """A random model: some layers in a row, some of them in nested models, some of them called."""
    layers, choose = keras.layers, random.Random(seed)
    count = iter(range(100))

    def layer() -> Any:
        name = f"layer{next(count)}"
        kinds = ("BatchNormalization", "Dropout", "RandomFlip", "Conv2D", "ReLU", "GaussianNoise")
        kind = choose.choice(kinds)
        arguments: dict[str, tuple[Any, ...]] = {
            "Dropout": (0.5,),
            "GaussianNoise": (1.0,),
            "Conv2D": (3, 1),
        }
        return getattr(layers, kind)(*arguments.get(kind, ()), name=name)

    def said() -> dict[str, Any]:
        return choose.choice([{}, {}, {}, {"training": True}, {"training": False}])

    def takes(one: Any) -> bool:
        return type(one).__name__ not in {"Conv2D", "ReLU"}

    def row(x: Any, depth: int) -> Any:
        for _ in range(choose.randint(1, 4)):
            if depth and choose.random() < 0.3:
                first = keras.Input((6, 6, 3))
                inside = keras.Model(first, row(first, depth - 1), name=f"model{next(count)}")
                x = inside(x, **said())
            else:
                one = layer()
                x = one(x, **(said() if takes(one) else {}))
        return x

    return lambda x: layers.BatchNormalization(name="bn")(row(x, 2))


def models(keras: Any, draws: int) -> dict[str, Any]:
    """All of them, built."""
    builds = table(keras) | {f"drawn {n}": drawn(keras, n) for n in range(draws)}
    found = {}
    for name, build in builds.items():
        first = keras.Input((6, 6, 3))
        found[name] = keras.Model(first, build(first))
    layers = keras.layers
    for one in (layers.RandomFlip(), layers.Resizing(6, 6), layers.Dropout(0.5)):
        rows = [keras.Input((6, 6, 3)), one, layers.BatchNormalization(name="bn")]
        found[f"sequential {type(one).__name__}"] = keras.Sequential(rows)
    return found


def measured(keras: Any, model: Any, shape: tuple[int, ...] = (6, 6, 3)) -> Found:
    """Run a model in three ways on inputs of a shape, and note the mode of each layer."""
    import numpy as np

    kinds = ("BatchNormalization", "Dropout", "RandomFlip", "GaussianNoise")
    classes = [getattr(keras.layers, kind) for kind in kinds]
    originals = {one: one.call for one in classes}
    seen: dict[str, list[bool]] = {}

    def spy(kind: Any) -> Any:
        import inspect

        default = inspect.signature(originals[kind]).parameters["training"].default

        def call(self: Any, inputs: Any, *args: Any, training: Any = default, **kwargs: Any) -> Any:
            seen.setdefault(names[id(self)], []).append(bool(training))
            return originals[kind](self, inputs, *args, training=training, **kwargs)

        return call

    names: dict[int, str] = {}

    def walk(one: Any, around: str) -> None:
        for layer in one.layers:
            names[id(layer)] = around + layer.name
            if hasattr(layer, "layers"):
                walk(layer, f"{around}{layer.name}/")
            elif hasattr(layer, "layer"):
                names[id(layer.layer)] = f"{around}{layer.name}/{layer.layer.name}"

    walk(model, "")
    data = np.zeros((2, *shape), "float32")
    found: Found = {}
    for one in classes:
        one.call = spy(one)
    try:
        model.run_eagerly = True
        for way, run in {
            "plain": lambda: model(data),
            "off": lambda: model(data, training=False),
            "predict": lambda: model.predict_on_batch(data),
        }.items():
            seen.clear()
            run()
            found[way] = {name: list(modes) for name, modes in seen.items()}
    finally:
        for one in classes:
            one.call = originals[one]
    return found


def write(keras: Any, folder: Path, draws: int, suffix: str = ".keras") -> None:
    """Save all models."""
    for name, model in models(keras, draws).items():
        model.save(folder / f"{name}{suffix}")


def measure(keras: Any, folder: Path) -> dict[str, Found]:
    """Load all models of a folder that this Keras can load, and run them."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in {".keras", ".h5"}:
            try:
                model = keras.models.load_model(path, compile=False)
            except Exception:
                continue
            found[path.name] = measured(keras, model)
    return found


if __name__ == "__main__":
    import keras as library

    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        write(library, where, int(sys.argv[3]))
    else:
        modes = {"keras": library.__version__, "models": measure(library, where)}
        (where / "modes.json").write_text(json.dumps(modes))
