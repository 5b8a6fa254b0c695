"""What bnfold reads against what Keras reads, on mutants that both accept.

    python tests/fuzz/differential.py --minutes 30 --seed 1

Of each mutant, layers and weights must be the same in both, and after a fold Keras must compute the
same outputs. Prints how many there were of each kind, and keeps those on which the two disagree in
build/fuzz.
"""

import argparse
import faulthandler
import io
import json
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))

import corpus
import h5py
import mutators
import numpy as np
import reading
from corpus import Parts
from places import ROOT
from support import chain, keras, outputs, randomize, samples

import bnfold
from bnfold.errors import BnfoldError
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Graph, Layer, walk_all
from bnfold.model.keras_json import is_named

layers = keras.layers

KEPT = ROOT / "build" / "fuzz"
LARGEST = 10_000
"""The largest number in a config, as Keras allocates whatever it is told to."""
SLACK = 16
"""How many times the effect of rounding each weight once is allowed, which is random itself."""

FIXTURES = (
    "branches_keras30.keras.xz",
    "branches_keras315.keras.xz",
    "digits_cnn_keras36.keras.xz",
    "digits_cnn_keras315.keras",
    "digits_cnn_keras315.h5",
    "digits_cnn_keras315_dir",
    "textbook_mlp_keras215.h5.xz",
)
"""One of each kind that Keras 3.15 loads."""


class DisagreementError(AssertionError):
    """Keras reads something else than bnfold does."""


# --- the models ----------------------------------------------------------------------------------


def _dense() -> Any:
    return chain((5,), layers.Dense(4), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3))


def _sequential() -> Any:
    inside = (
        layers.Dense(4, use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
    )
    return keras.Sequential([layers.Input((5,)), *inside, layers.BatchNormalization()])


def _convolutions() -> Any:
    return chain(
        (6, 6, 2),
        layers.Conv2D(3, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(2, depth_multiplier=2),
        layers.BatchNormalization(scale=False),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    )


def _forward() -> Any:
    return chain(
        (6, 6, 2),
        layers.BatchNormalization(),
        layers.Conv2D(3, 2, activation="relu"),
        layers.BatchNormalization(center=False),
        layers.AveragePooling2D(2),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    )


def _branches() -> Any:
    first = keras.Input((6, 6, 2))
    left = layers.BatchNormalization()(layers.Conv2D(3, 1)(first))
    right = layers.Conv2D(3, 3, padding="same")(first)
    right = layers.BatchNormalization()(layers.Conv2D(3, 1)(layers.ReLU()(right)))
    joined = layers.Concatenate()([layers.Add()([left, right]), right])
    return keras.Model(first, [layers.BatchNormalization()(joined), left])


def _nested() -> Any:
    block = chain((4,), layers.Dense(4), layers.BatchNormalization(), layers.Dense(4))
    row = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    first = keras.Input((4,))
    middle = layers.BatchNormalization()(block(first))
    return keras.Model(first, {"twice": row(block(middle)), "once": middle})


def _shared() -> Any:
    one, other = keras.Input((4,)), keras.Input((4,))
    dense, norm = layers.Dense(3), layers.BatchNormalization()
    apart = layers.Subtract()([norm(dense(one)), norm(dense(other))])
    return keras.Model([one, other], layers.Dense(2)(layers.BatchNormalization()(apart)))


def _recurrent() -> Any:
    return chain(
        (4, 3),
        layers.TimeDistributed(layers.Dense(3)),
        layers.BatchNormalization(),
        layers.LSTM(2),
        layers.BatchNormalization(),
        layers.Dense(2),
    )


SMALL = (_dense, _sequential, _convolutions, _forward, _branches, _nested, _shared, _recurrent)


@cache
def small(number: int, suffix: str) -> Parts:
    """A small model as Keras saves it: most of the time goes into loading models."""
    keras.backend.clear_session(free_memory=False)
    model = randomize(SMALL[number](), number)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / f"{SMALL[number].__name__}{suffix}"
        model.save(path)
        return corpus.taken_apart(path.name, path.read_bytes())


def seed_of(choose: random.Random) -> Parts:
    """What becomes a mutant: mostly a small model, else a fixture."""
    if choose.random() < 0.05:
        return corpus.parts(choose.choice(FIXTURES))
    return small(choose.randrange(len(SMALL)), choose.choice((".keras", ".keras", ".h5")))


# --- the comparison ------------------------------------------------------------------------------


def compare(path: Path) -> str:
    """How reading a file with both ended: "folded 2" where both accept it and two norms are folded.

    Raises:
        DisagreementError: they read different models, or the fold computes something else.
    """
    try:
        return _compared(path)
    except DisagreementError:
        _MODELS.clear()
        return _compared(path)  # without models that had other weights before


def _compared(path: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"folded{path.suffix}"
        try:
            read = dict(read_layers(path))
            with open_model(path) as file:
                graph = file.graph
            folded = len(bnfold.fold(path, target, verify=False).to_dict()["folded"])
        except BnfoldError:
            return "refused by bnfold"
        if _has_large_number(path):
            return "not tried: a large number"
        try:
            model = _load(path)
        except Exception:
            return "refused by Keras"
        _compare_layers(read, dict(_loaded(model, graph)))
        try:
            inputs = samples(model)
            before = outputs(model, inputs, training=False)
        except Exception:
            return "not run by Keras"
        try:
            after = outputs(_load(target), inputs, training=False)
        except Exception as error:
            raise DisagreementError(f"Keras cannot run the fold: {error}") from error
        _compare_outputs(before, after, lambda: _rounded(_load(path), inputs))
    return f"folded {folded}"


_MODELS: dict[bytes, Any] = {}
"""Models by their configs. To load weights into one costs a fraction of making it."""


def _load(path: Path) -> Any:
    """The model of a file as Keras loads it, by the same functions as `load_model`."""
    config = _config_of(path)
    model = _MODELS.get(config)
    if model is None:
        if len(_MODELS) >= 100:
            _MODELS.clear()
            keras.backend.clear_session(free_memory=False)
        model = keras.models.load_model(path, compile=False)
        if config:
            _MODELS[config] = model
        return model
    for variable in model.weights:
        variable.assign(np.full(variable.shape, 77, variable.dtype))  # were one not to be loaded
    model.load_weights(path)
    return model


def forget() -> None:
    """Let go of all models."""
    _MODELS.clear()
    small.cache_clear()


def _config_of(path: Path) -> bytes:
    """The config as it stands in a file; empty for a directory, which has no loader of weights."""
    if path.is_dir():
        return b""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return b"legacy " + str(file.attrs["model_config"]).encode()
    with zipfile.ZipFile(path) as archive:
        return archive.read(corpus.CONFIG)


def _has_large_number(path: Path) -> bool:
    with open_model(path) as file:
        text = json.dumps(file.graph.entry)
    numbers = (word for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    return any(
        len(word) > 4 and word.lstrip("-").isdigit() and abs(int(word)) > LARGEST
        for word in numbers
    )


def read_layers(path: Path) -> Iterator[tuple[str, Any]]:
    """The layers that bnfold reads, by path: the class, and the weights where it knows those."""
    with open_model(path) as file:
        if file.graph.kind == "subclassed":
            return
        left_out = _unreached(file.graph)
        for where, layer in walk_all(file.graph):
            if any(where[: len(one)] == one for one in left_out):
                continue
            weights = None
            if layer.weights is not None and layer.graph is None and layer.inner is None:
                weights = [weight.read() for weight in layer.weights]
            yield "/".join(where), (layer.class_name, weights)


def _unreached(graph: Graph) -> set[tuple[str, ...]]:
    """The layers at any depth that no output depends on: Keras leaves them out."""
    found: set[tuple[str, ...]] = set()
    waiting: list[tuple[tuple[str, ...], Graph]] = [((), graph)]
    while waiting:
        path, inside = waiting.pop()
        reached = {ref.layer for ref in inside.outputs}
        following = list(reached)
        while following:
            calls = inside.layers[following.pop()].calls
            new = {ref.layer for call in calls for ref in call.reads} - reached
            reached |= new
            following += new
        found |= {(*path, name) for name in inside.layers.keys() - reached}
        nested = ((layer.name, layer.graph) for layer in inside.layers.values())
        waiting += [((*path, name), deeper) for name, deeper in nested if deeper is not None]
    return found


def _loaded(model: Any, read: Graph | None, above: str = "") -> Iterator[tuple[str, Any]]:
    """The same as Keras loads it; `read` is what bnfold reads, of which only names are taken."""
    graph = getattr(model, "_functional", None) or model
    every = getattr(graph, "operations", None) or model.layers
    for one, layer in zip(every, _counterparts(every, read), strict=True):
        yield from _loaded_layer(one, layer, f"{above}{_name(one, layer)}")


def _counterparts(every: Sequence[Any], read: Graph | None) -> list[Layer | None]:
    """What bnfold reads for each layer: by place in a Sequential, where names may be missing."""
    if read is None or read.kind != "sequential":
        return [None if read is None else read.layers.get(one.name) for one in every]
    remaining = iter([one for one in read.layers.values() if one.class_name != "InputLayer"])
    return [None if isinstance(one, layers.InputLayer) else next(remaining, None) for one in every]


def _name(one: Any, read: Layer | None) -> str:
    """A layer's name: bnfold's where the file has none, as Keras numbers such layers anew."""
    return str(one.name) if read is None or is_named(read.entry) else read.name


def _loaded_layer(one: Any, read: Layer | None, path: str) -> Iterator[tuple[str, Any]]:
    weights = None
    if isinstance(one, keras.Model):
        yield from _loaded(one, None if read is None else read.graph, f"{path}/")
    elif isinstance(one, layers.TimeDistributed):
        inner = None if read is None else read.inner
        yield from _loaded_layer(one.layer, inner, f"{path}/{_name(one.layer, inner)}")
    else:
        # The state of a random generator, which a layer needs for training only, stands last.
        whole = [weight for weight in getattr(one, "weights", ()) if "seed" not in weight.path]
        weights = [keras.ops.convert_to_numpy(weight) for weight in whole]
    yield path, (type(one).__name__, weights)


def _compare_layers(read: dict[str, Any], loaded: dict[str, Any]) -> None:
    read, loaded = (
        {path: one for path, one in every.items() if one[0] != "InputLayer"}
        for every in (read, loaded)
    )
    if read and read.keys() != loaded.keys():
        raise DisagreementError(f"layers: {sorted(read.keys() ^ loaded.keys())}")
    for path, (class_name, weights) in read.items():
        if class_name != loaded[path][0] and "Functional" not in (class_name, loaded[path][0]):
            raise DisagreementError(f"{path}: {class_name} is a {loaded[path][0]}")
        if weights is not None and loaded[path][1] is not None:
            _compare_weights(path, weights, loaded[path][1])


def _compare_weights(path: str, read: Sequence[Any], loaded: Sequence[Any]) -> None:
    if [one.shape for one in read] != [one.shape for one in loaded]:
        raise DisagreementError(f"{path}: shapes of the weights")
    for one, other in zip(read, loaded, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            stored = one.astype(other.dtype)
        if not np.array_equal(stored, other, equal_nan=other.dtype.kind == "f"):
            raise DisagreementError(f"{path}: numbers of the weights")


def _rounded(model: Any, inputs: Any, times: int = 3) -> list[list[Any]]:
    """What the model computes with each weight rounded once in another way."""
    generator, found = np.random.default_rng(0), []
    whole = [variable for variable in model.weights if "float" in variable.dtype]
    numbers = [keras.ops.convert_to_numpy(variable) for variable in whole]
    for _ in range(times):
        for variable, values in zip(whole, numbers, strict=True):
            step = float(np.finfo(np.float32).eps)
            if variable.dtype in ("float16", "bfloat16"):
                step = 2.0**-8
            variable.assign(values * (1 + step * generator.uniform(-1, 1, values.shape)))
        found.append(outputs(model, inputs, training=False))
    for variable, values in zip(whole, numbers, strict=True):
        variable.assign(values)
    return found


def _compare_outputs(
    before: Sequence[Any], after: Sequence[Any], rounded: Callable[[], list[list[Any]]]
) -> None:
    if [one.shape for one in before] != [one.shape for one in after]:
        raise DisagreementError("shapes of the outputs")
    units = [float(np.finfo(np.float32).eps) * _largest(one) for one in before]
    errors = [_error(*pair) for pair in zip(before, after, strict=True)]
    if all(error <= SLACK * unit for error, unit in zip(errors, units, strict=True)):
        return
    others = rounded()
    for number, error in enumerate(errors):
        effect = max(_error(before[number], one[number]) for one in others)
        if not error <= SLACK * (effect + units[number]):
            raise DisagreementError(f"output {number}: {error:.3g}, rounding makes {effect:.3g}")


def _largest(values: Any) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _error(old: Any, new: Any) -> float:
    """The largest difference; infinite where one is finite and the other is not."""
    if not np.array_equal(np.isfinite(old), np.isfinite(new)):
        return np.inf
    return _largest(new[np.isfinite(old)] - old[np.isfinite(old)])


def one(choose: random.Random) -> str:
    """Make a mutant, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = mutators.mutant(seed_of(choose), choose, Path(folder), mutators.PLAUSIBLE)
        try:
            return compare(path)
        except BaseException:
            print("failed:", reading.keep(path, KEPT, f"differs_{time.time_ns()}"), flush=True)
            raise


def accepted(endings: Counter[str]) -> int:
    """How many mutants both read and ran."""
    return sum(count for ending, count in endings.items() if ending.startswith("folded"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faulthandler.enable()
    endings: Counter[str] = Counter()
    end, number = time.monotonic() + 60 * given.minutes, 0
    while time.monotonic() < end:
        number += 1
        try:
            endings[one(random.Random(f"{given.seed} {number}"))] += 1
        except Exception as error:
            print(number)
            traceback.print_exc()
            endings[f"FAILED {type(error).__name__}"] += 1
        if number % 100 == 0:
            print(number, accepted(endings), dict(endings.most_common()), flush=True)
    print(number, "mutants,", accepted(endings), "accepted by both:", dict(endings.most_common()))
    sys.exit(any(ending.startswith("FAILED") for ending in endings))


if __name__ == "__main__":
    main()
