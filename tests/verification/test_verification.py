"""The judge is judged: right folds must pass, planted mistakes must be caught, doubts be admitted.

The folds are those of `wrong_folds`, apart from the code that bnfold folds with.
All models have unequal sizes in every direction, so that no mix-up of axes goes unseen.
"""

import errno
import importlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
import weakref
import zipfile
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops
from rich.console import Console
from support import Settled
from tiers import some
from wrong_folds import (
    Fold,
    affine,
    default_epsilon,
    exchange,
    folded,
    line,
    mean_added,
    model,
    no_epsilon,
    one_scale_off,
    save,
    swapped_gamma_and_beta,
    variance_for_deviation,
    with_weights,
)

from bnfold import verify
from bnfold.errors import (
    BnfoldError,
    UnreadableModelError,
    UnsafeModelError,
    VerificationImpossibleError,
)
from bnfold.reports.text import fold as fold_text
from bnfold.running import keras_runner, libraries, loading, onnx_runner, safety
from bnfold.running.data import load
from bnfold.running.options import Loading
from bnfold.running.precision import in_float64
from bnfold.running.samples import InputSpec, Mask, SampleSet, generate
from bnfold.verification import Basis, Verdict, Verification
from bnfold.verification.runs import Evidence, Run
from bnfold.verification.tolerance import (
    UNIT,
    Reference,
    Rule,
    Truth,
    compare,
    errors,
    not_finite,
)
from bnfold.verification.values import Value, references, table
from bnfold.verification.verdict import conclude

# --- models and their folds -----------------------------------------------------------------------


def normal(generator, size):
    return generator.normal(size=size)


def near_one(generator, size):
    return generator.uniform(0.5, 2, size)


@dataclass(frozen=True)
class Case:
    """A chain of (layer, BatchNormalization, activation), made twice: with and without the BN."""

    layer: str
    arguments: dict
    shape: tuple
    depth: int = 2
    axis: int = -1
    epsilon: float = 1e-3
    policy: str = "float32"
    mean: object = field(default=normal)
    variance: object = field(default=near_one)
    activation: str = "relu"
    centred: bool = False  # the layer really puts out the mean that is then subtracted
    calibrated: bool = False  # statistics of real activations, without which deep chains go dead


def conv(**changes):
    return replace(Case("Conv2D", {"filters": 6, "kernel_size": 3}, (12, 10, 6)), **changes)


def dense(units=16, **changes):
    return replace(Case("Dense", {"units": units}, (units,)), **changes)


CASES = {
    "conv2d": conv(),
    "conv2d same": conv(arguments={"filters": 6, "kernel_size": 3, "padding": "same"}),
    "conv2d grouped": conv(arguments={"filters": 6, "kernel_size": 3, "groups": 2}, depth=1),
    "conv2d channels first": conv(
        arguments={"filters": 6, "kernel_size": 3, "data_format": "channels_first"},
        shape=(6, 15, 17),
        axis=1,
    ),
    "conv1d causal": Case(
        "Conv1D",
        {"filters": 6, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (20, 6),
    ),
    "conv3d": Case("Conv3D", {"filters": 4, "kernel_size": 2}, (7, 6, 5, 4)),
    "depthwise": Case("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}, (12, 10, 4)),
    "depthwise1d": Case("DepthwiseConv1D", {"kernel_size": 3}, (20, 4), depth=3),
    "separable": Case("SeparableConv2D", {"filters": 8, "kernel_size": 3}, (12, 10, 8)),
    "separable1d": Case("SeparableConv1D", {"filters": 8, "kernel_size": 3}, (20, 8)),
    "transpose1d": Case("Conv1DTranspose", {"filters": 6, "kernel_size": 3, "strides": 2}, (8, 6)),
    "transpose2d": Case(
        "Conv2DTranspose", {"filters": 6, "kernel_size": 3, "strides": 2}, (5, 4, 6)
    ),
    "transpose2d dilated": Case(
        "Conv2DTranspose", {"filters": 6, "kernel_size": 3, "dilation_rate": 2}, (5, 4, 6)
    ),
    "transpose3d": Case(
        "Conv3DTranspose", {"filters": 4, "kernel_size": 2, "strides": 2}, (2, 3, 2, 4)
    ),
    "dense": dense(depth=4),
    "dense wide": dense(512, depth=3),
    "deep": conv(
        arguments={"filters": 6, "kernel_size": 3, "padding": "same"}, depth=20, calibrated=True
    ),
    "deep dense": dense(32, depth=25, calibrated=True),
    "deep tanh": dense(32, depth=20, activation="tanh", calibrated=True),
    "epsilon 1e-5": conv(epsilon=1e-5),
    "epsilon 1e-5 deep": dense(32, depth=12, epsilon=1e-5, calibrated=True),
    "mean 1000 sigma": conv(
        centred=True, mean=lambda generator, size: 1000 * generator.normal(size=size)
    ),
    "mean 1000 sigma dense": dense(
        centred=True, mean=lambda generator, size: 1000 * generator.normal(size=size)
    ),
    "tiny variance": dense(variance=lambda generator, size: 1e-8 * near_one(generator, size)),
    "wide variance": conv(variance=lambda generator, size: 10.0 ** generator.uniform(-8, 4, size)),
    "mixed_float16": conv(policy="mixed_float16"),
    "mixed_float16 dense": dense(policy="mixed_float16"),
    "float16": conv(policy="float16"),
    "float16 dense": dense(policy="float16"),
    "mixed_bfloat16": conv(policy="mixed_bfloat16"),
    "bfloat16 dense": dense(policy="bfloat16"),
    "float64": dense(policy="float64"),
}

IN_ALL = {
    "epsilon forgotten": no_epsilon,
    "epsilon 1e-3 for 1e-5": default_epsilon,
    "variance for deviation": variance_for_deviation,
    "gamma and beta swapped": swapped_gamma_and_beta,
}
IN_THE_FIRST = {"one channel off by 1e-3": one_scale_off, "wrong bias": mean_added}
MISTAKES = (*IN_ALL, *IN_THE_FIRST, "two layers swapped")


def chain(case):
    """The net of a case, still without weights."""
    rows = []
    for index in range(case.depth):
        norm = {"axis": case.axis, "epsilon": case.epsilon}
        rows += [
            (f"linear{index}", case.layer, case.arguments),
            (f"norm{index}", "BatchNormalization", norm),
            (f"act{index}", "Activation", {"activation": case.activation}),
        ]
    head = {"units": 100, "activation": "softmax", "dtype": "float32"}
    rows += [("flatten", "Flatten", {}), ("head", "Dense", head)]
    return line(case.shape, *rows, policy=case.policy)


def drawn(case):
    """The net of a case with its weights."""
    keras.utils.set_random_seed(4)
    made = model(chain(case))
    randomize(made, case)
    return with_weights(chain(case), made)


def randomize(model, case):
    generator = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            variance = case.variance(generator, size)
            sign = generator.choice([-1, 1], size)
            layer.gamma.assign(generator.uniform(0.5, 1.5, size) * sign)
            layer.beta.assign(generator.normal(size=size))
            layer.moving_mean.assign(case.mean(generator, size) * np.sqrt(variance))
            layer.moving_variance.assign(variance)
        elif layer.name.startswith("linear"):
            layer.bias.assign(generator.normal(size=layer.bias.shape) * 0.3)

    if case.centred:
        for index in range(case.depth):
            norm = model.get_layer(f"norm{index}")
            model.get_layer(f"linear{index}").bias.assign(norm.moving_mean)
    if case.calibrated:
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.0
        model(generator.normal(size=(64, *case.shape)), training=True)


def fold(case, original, mistake=None):
    """The net without its BatchNormalizations, and with a mistake."""
    wrong = dict.fromkeys(range(case.depth), IN_ALL.get(mistake, affine))
    wrong[0] = IN_THE_FIRST.get(mistake, wrong[0])
    folds = [Fold(f"norm{index}", (f"linear{index}",), affine=how) for index, how in wrong.items()]
    net = folded(original, folds)
    if mistake != "two layers swapped":
        return net
    return replace(net, weights=exchange("linear0", "linear1")(net.weights))


def is_possible(case, mistake):
    if mistake == "epsilon 1e-3 for 1e-5":
        return case.epsilon == 1e-5
    if mistake in {"epsilon forgotten", "one channel off by 1e-3"}:
        # Weights stored in 16 bits cannot even hold so small a change.
        return case.policy not in {"float16", "bfloat16"}
    return mistake != "two layers swapped" or (case.depth > 1 and case.layer != "DepthwiseConv2D")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Files of a case, with a right or a wrong fold; every original is made once."""
    directory = tmp_path_factory.mktemp("pairs")
    made = {}

    def files(name, mistake=None):
        case, original = CASES[name], directory / f"{name}.keras"
        if name not in made:
            made[name] = drawn(case)
            save(made[name], original)
        other = directory / f"{name} {mistake}.keras"
        return original, save(fold(case, made[name], mistake), other)

    return files


def save_pair(directory, make):
    """One original and its exact copy made by `make()`."""
    keras.utils.set_random_seed(3)
    model = make()
    generator = np.random.default_rng(5)
    model.set_weights([w + 0.1 * abs(generator.normal(size=w.shape)) for w in model.get_weights()])
    original, folded = directory / "original.keras", directory / "folded.keras"
    model.save(original)
    model.save(folded)
    return original, folded


def small_net(*tail, units=5, size=6):
    inputs = hidden = keras.Input((size,), name="inputs")
    for layer in (layers.Dense(units), layers.BatchNormalization(), *tail):
        hidden = layer(hidden)
    return keras.Model(inputs, hidden)


# --- right and wrong folds ------------------------------------------------------------------------

# Means of a thousand deviations have a default test in test_judge.py.
QUICK = ("conv2d grouped", "transpose2d dilated", "mixed_float16")


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.few(1)
def test_right_folds_are_equivalent(pair, name):
    found = verify(*pair(name))
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert found.basis is Basis.BOTH
    assert max(one.excess for one in found.comparisons) < 0.7


@pytest.mark.parametrize(
    "mistake", some(["one channel off by 1e-3", "epsilon forgotten", "two layers swapped"], 3)
)
@pytest.mark.slow
def test_mistakes_are_caught_before_a_softmax_of_a_hundred(pair, mistake):
    found = verify(*pair("epsilon 1e-5", mistake))
    assert found.verdict is Verdict.DIFFERENT
    assert "was folded wrongly" in found.differences[0]
    assert any("output 'head' before its softmax is off by" in one for one in found.differences)
    assert {one.runtime for one in found.comparisons if not one.passed} == {
        "keras",
        "keras float64",
        "onnxruntime",
        "onnxruntime optimised",
    }


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_float64_is_as_sharp_for_a_model_that_computes_in_16_bits(pair):
    found = verify(*pair("mixed_float16", "one channel off by 1e-3"))
    assert found.culprits == ("norm0",)
    off = {one.runtime for one in found.comparisons if one.name == "norm0" and not one.passed}
    assert off == {"keras float64"}


def test_a_fixed_tolerance_on_the_softmax_would_have_seen_nothing(pair):
    original, wrong = (
        keras.models.load_model(path) for path in pair("epsilon 1e-5", "epsilon forgotten")
    )
    data = np.random.default_rng(0).normal(size=(8, *CASES["epsilon 1e-5"].shape))
    one, other = original.predict_on_batch(data), wrong.predict_on_batch(data)
    assert np.allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_every_right_fold_is_equivalent(pair, name):
    found = verify(*pair(name))
    assert found.verdict is Verdict.EQUIVALENT, (found.differences, found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        (name, mistake)
        for name, case in CASES.items()
        for mistake in MISTAKES
        if is_possible(case, mistake)
    ],
)
def test_every_mistake_is_caught(pair, name, mistake):
    assert verify(*pair(name, mistake)).verdict is Verdict.DIFFERENT


@pytest.mark.usefixtures("keras_alone")
def test_the_same_seed_gives_the_same_report(pair):
    files = pair("conv2d")
    assert verify(*files, seed=3).to_dict() == verify(*files, seed=3).to_dict()


@pytest.mark.usefixtures("keras_alone")
def test_tolerances_of_the_user_replace_the_measured_ones(pair):
    files = pair("epsilon 1e-5", "epsilon forgotten")
    assert verify(*files, rtol=1e-2).verdict is Verdict.EQUIVALENT
    found = verify(*pair("conv2d"), rtol=0.0, atol=1e-12)
    assert found.verdict is Verdict.DIFFERENT
    assert "1e-12" in found.rule


@pytest.mark.usefixtures("keras_alone")
def test_unrelated_models_are_different(tmp_path):
    one, _ = save_pair(tmp_path, lambda: small_net(layers.Dense(3, name="out")))
    other = tmp_path / "other.keras"
    keras.utils.set_random_seed(9)
    small_net(layers.Dense(7, activation="tanh"), layers.Dense(3, name="out")).save(other)
    assert verify(one, other).verdict is Verdict.DIFFERENT


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_a_layer_called_with_training_true_is_not_folded_unseen(tmp_path):
    inputs = keras.Input((6,), name="inputs")
    linear, norm = layers.Dense(5), layers.BatchNormalization(name="norm")
    out = layers.Dense(3, name="out")
    keras.Model(inputs, out(norm(linear(inputs), training=True))).save(tmp_path / "one.keras")
    keras.Model(inputs, out(norm(linear(inputs)))).save(tmp_path / "two.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.DIFFERENT
    assert {one.runtime for one in found.comparisons if not one.passed} == {"keras as called"}
    assert found.culprits == ("norm",)
    assert verify(tmp_path / "one.keras", tmp_path / "one.keras").verdict is Verdict.EQUIVALENT


def map_of(norm):
    """Scale and shift of a live BatchNormalization."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return affine(dict(zip(names, norm.get_weights(), strict=True)), norm.epsilon)


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_training_that_reaches_other_layers_by_their_order_is_no_fault_of_a_fold(tmp_path):
    """Keras 3 hands training=True on to what runs later, and nested models run as one piece."""

    def make(*, normalized):
        inputs = keras.Input((4,), name="inputs")
        hidden = layers.Add(name="sum")([inputs, inputs])
        hidden = layers.BatchNormalization(name="norm")(hidden) if normalized else hidden
        inside = keras.Input((4,))
        parts = [layers.BatchNormalization(name=name)(inside) for name in ("one", "two")]
        one, two = keras.Model(inside, parts, name="block")(hidden)
        other = layers.BatchNormalization(name="other")(inputs, training=True)
        return keras.Model(inputs, [one, other, layers.BatchNormalization(name="last")(two)])

    keras.utils.set_random_seed(3)
    original, folded = make(normalized=True), make(normalized=False)
    generator = np.random.default_rng(5)
    original.set_weights([generator.uniform(0.5, 2, w.shape) for w in original.get_weights()])
    for layer in folded.layers:
        layer.set_weights(original.get_layer(layer.name).get_weights())
    scale, shift = map_of(original.get_layer("norm"))
    for layer in folded.get_layer("block").layers[1:]:
        gamma, beta, mean, variance = layer.get_weights()
        layer.set_weights([gamma * scale, beta, (mean - shift) / scale, variance])
    original.save(tmp_path / "one.keras")
    folded.save(tmp_path / "two.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert [site.status for site in found.sites] == ["matched"]
    assert any(one.runtime == "keras as called" for one in found.comparisons)


def random_and_normalized(kind, *, normalized, training=True):
    """A random layer that is on, and a BatchNormalization in a nested model, also in training."""
    inputs = keras.Input((8, 8, 3), name="inputs")
    if kind == "augmented":
        hidden = layers.RandomFlip("horizontal")(inputs)
    else:
        hidden = layers.Dropout(0.3)(inputs, training=True)
    inside = keras.Input((8, 8, 3))
    last = layers.Conv2D(5, 3, name="linear")(inside)
    last = layers.BatchNormalization(name="norm")(last) if normalized else last
    hidden = keras.Model(inside, last, name="block")(hidden, training=training)
    hidden = layers.Flatten()(hidden)
    return keras.Model(inputs, layers.Dense(3, name="out")(hidden))


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("kind", some(["dropout", "augmented"]))
@pytest.mark.slow
def test_random_layers_do_not_hide_a_layer_called_with_training_true(tmp_path, kind):
    def files(training):
        keras.utils.set_random_seed(2)
        model = random_and_normalized(kind, normalized=True, training=training)
        folded = random_and_normalized(kind, normalized=False, training=training)
        norm, linear = (model.get_layer("block").get_layer(name) for name in ("norm", "linear"))
        kernel, bias = linear.get_weights()
        scale, shift = map_of(norm)
        folded.get_layer("block").set_weights([kernel * scale, bias * scale + shift])
        folded.get_layer("out").set_weights(model.get_layer("out").get_weights())
        model.save(tmp_path / "one.keras")
        folded.save(tmp_path / "two.keras")
        return tmp_path / "one.keras", tmp_path / "two.keras"

    found = verify(*files(training=None))
    assert found.verdict is Verdict.EQUIVALENT
    assert "random layers that are on in model(x) were switched off" in found.warnings
    found = verify(*files(training=True))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("block/norm",)
    assert found.differences[0] == (
        "BatchNormalization 'block/norm' is no longer called with training=True"
    )
    assert verify(tmp_path / "one.keras", tmp_path / "one.keras").verdict is Verdict.EQUIVALENT


@pytest.mark.slow
def test_layers_that_keep_a_state_start_anew_with_each_sample(tmp_path):
    def make():
        inputs = keras.Input(batch_shape=(2, 3, 6), name="inputs")
        hidden = layers.LSTM(5, stateful=True, name="state")(inputs)
        return keras.Model(inputs, layers.Dense(3, name="out")(hidden))

    original, folded = save_pair(tmp_path, make)
    found = verify(original, folded)
    assert found.verdict is Verdict.EQUIVALENT
    assert found.basis is Basis.BOTH
    model = keras.models.load_model(folded)
    model.get_layer("out").bias.assign(1.001 * model.get_layer("out").bias)
    model.save(folded)
    assert verify(original, folded).verdict is Verdict.DIFFERENT


# --- structures of models -------------------------------------------------------------------------


def sequential():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5),
            layers.BatchNormalization(),
            layers.Dense(3, "softmax"),
        ]
    )


def nested():
    inputs = keras.Input((6,))
    return keras.Model(inputs, sequential()(inputs))


def dictionaries():
    numbers = keras.Input((6,), name="numbers")
    indices = keras.Input((4,), name="indices", dtype="int32")
    looked_up = layers.Flatten()(layers.Embedding(7, 2)(indices))
    hidden = layers.Concatenate()([layers.BatchNormalization()(numbers), looked_up])
    outputs = {"q": layers.Dense(3, "softmax")(hidden), "p": layers.Dense(1, "sigmoid")(hidden)}
    return keras.Model({"numbers": numbers, "indices": indices}, outputs)


def softmax_operation():
    inputs = keras.Input((6,))
    return keras.Model(inputs, ops.softmax(layers.Dense(5)(inputs)))


def free_sizes():
    inputs = keras.Input((None, None, 3))
    hidden = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(hidden)))


def recurrent():
    inputs = keras.Input((3, 5))
    return keras.Model(inputs, layers.GRU(4)(layers.BatchNormalization()(inputs)))


def softmax_used_inside():
    inputs = keras.Input((6,))
    weights = layers.Dense(6, "softmax")(inputs)
    return keras.Model(inputs, [layers.Multiply()([inputs, weights]), weights])


@pytest.mark.parametrize(
    ("make", "taps"),
    # Half by default, of each kind of last layer one; each is exported and judged as a whole.
    some(
        [
            (sequential, ["softmax"]),
            (nested, ["softmax"]),
            (dictionaries, ["sigmoid", "softmax"]),
            (softmax_operation, ["softmax"]),
            (lambda: small_net(layers.Softmax()), ["softmax"]),
            (lambda: small_net(layers.Activation("sigmoid"), layers.Reshape((5, 1))), ["sigmoid"]),
            (free_sizes, [None]),
            (recurrent, [None]),
            (softmax_used_inside, [None, None]),
        ]
    ),
)
@pytest.mark.few(1)
def test_structures_and_taps(tmp_path, make, taps):
    found = verify(*save_pair(tmp_path, make))
    assert found.verdict is Verdict.EQUIVALENT
    assert found.basis is Basis.BOTH
    assert [one.tapped_before for one in found.comparisons[: len(taps)]] == taps
    assert len([one for one in found.comparisons if one.is_output]) == 4 * len(taps)


def renamed(model_input="inputs", output="out", size=6, dtype="float32", structure="list"):
    inputs = keras.Input((size,), name=model_input, dtype=dtype)
    out = layers.Dense(3, name=output)(inputs)
    return keras.Model(inputs, {"list": [out], "dict": {"out": out}, "two": [out, out]}[structure])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_input": "other"}, "the name changed from 'inputs' to 'other'"),
        ({"output": "other"}, "the name changed from 'out' to 'other'"),
        ({"size": 7}, "the shape changed"),
        ({"dtype": "float16"}, "the dtype changed from 'float32' to 'float16'"),
        ({"structure": "dict"}, "the outputs are structured differently"),
        ({"structure": "two"}, "outputs: 1 in the original, 2 in the other model"),
    ],
)
def test_a_change_of_the_interface_is_a_difference(tmp_path, changes, sentence):
    renamed().save(tmp_path / "one.keras")
    renamed(**changes).save(tmp_path / "two.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.DIFFERENT
    assert found.basis is Basis.INTERFACE
    assert sentence in found.differences[0]


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("tail", [(), (layers.BatchNormalization,)])
@pytest.mark.few(1)
def test_names_that_keras_made_up_are_no_promise(tmp_path, tail):
    def build(name=None):
        inputs = hidden = keras.Input((6,), name=name)
        for make in (lambda: layers.Dense(3), *tail):
            hidden = make()(hidden)
        return keras.Model(inputs, hidden)

    keras.utils.clear_session()
    original, other = build(), build()
    other.set_weights(original.get_weights())
    original.save(tmp_path / "one.keras")
    other.save(tmp_path / "two.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.EQUIVALENT
    assert found.warnings[0] == (
        "input 0 is called 'input_layer_1' instead of 'input_layer', a name that Keras made up"
    )
    build("image").save(tmp_path / "named.keras")
    found = verify(tmp_path / "named.keras", tmp_path / "one.keras")
    assert found.differences == (
        "input 0 ('image'): the name changed from 'image' to 'input_layer'",
    )


@pytest.mark.usefixtures("keras_alone")
def test_the_names_of_a_part_of_a_model_are_made_up_too(tmp_path):
    keras.utils.clear_session()
    for name in ("one", "two"):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        middle = layers.Dense(5)(inputs)
        keras.Model(middle, layers.Dense(3, name="out")(middle)).save(tmp_path / f"{name}.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert "is called 'keras_tensor_" in found.warnings[0]


def softmax_along(axis, *, operation):
    inputs = keras.Input((5, 7), name="inputs")
    hidden = layers.Dense(7, name="linear")(inputs)
    last = ops.softmax(hidden, axis) if operation else layers.Softmax(axis)(hidden)
    return keras.Model(inputs, layers.Identity(name="out")(last) if operation else last)


def softmax_of_parts(*, whole):
    inputs = keras.Input((6,), name="inputs")
    linear, parts = layers.Dense(8, name="linear"), layers.Reshape((2, 4))
    shares = layers.Activation("softmax")
    last = parts(shares(linear(inputs))) if whole else shares(parts(linear(inputs)))
    return keras.Model(inputs, layers.Identity(name="out")(last))


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: softmax_along(1, operation=False), lambda: softmax_along(2, operation=False)),
        (lambda: softmax_along(1, operation=True), lambda: softmax_along(2, operation=True)),
        (lambda: softmax_of_parts(whole=True), lambda: softmax_of_parts(whole=False)),
    ],
)
@pytest.mark.few(1)
def test_a_softmax_along_another_axis_is_not_taken_away(tmp_path, one, other):
    for make, name in ((one, "one.keras"), (other, "two.keras")):
        keras.utils.set_random_seed(2)
        make().save(tmp_path / name)
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.DIFFERENT
    assert found.comparisons[0].tapped_before is None


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("reduced", [ops.mean, lambda value: ops.sum(value, axis=0)])
@pytest.mark.few(1)
def test_outputs_without_a_batch(tmp_path, reduced):
    def make():
        inputs = keras.Input((6,), name="inputs")
        hidden = layers.Dense(5, name="linear")(inputs)
        return keras.Model(inputs, [reduced(hidden), layers.Dense(2, name="out")(hidden)])

    original, folded = save_pair(tmp_path, make)
    assert verify(original, folded).verdict is Verdict.EQUIVALENT
    model = keras.models.load_model(folded)
    model.get_layer("linear").bias.assign(1.001 * model.get_layer("linear").bias)
    model.save(folded)
    found = verify(original, folded)
    assert {one.name for one in found.comparisons if not one.passed} == {
        one.name for one in found.comparisons
    }


@pytest.mark.usefixtures("keras_alone")
def test_whole_numbers_are_counted(tmp_path):
    def make():
        inputs = keras.Input((6,), name="inputs")
        hidden = layers.Dense(5, name="linear")(inputs)
        return keras.Model(inputs, layers.Identity(name="out")(ops.argmax(hidden, -1)))

    original, folded = save_pair(tmp_path, make)
    assert verify(original, folded).verdict is Verdict.EQUIVALENT
    model = keras.models.load_model(folded)
    model.get_layer("linear").bias.assign(np.arange(5))
    model.save(folded)
    found = verify(original, folded)
    assert found.culprits == ("linear",)
    sentence = found.differences[1]
    assert re.search(r"'out' differs in [0-9.]+% of its numbers, rounding explains 0", sentence)


@pytest.mark.usefixtures("keras_alone")
def test_texts_are_compared_too(tmp_path):
    def make():
        inputs = keras.Input((6,), name="inputs")
        hidden = ops.argmax(layers.Dense(3, name="linear")(inputs), -1)
        words = layers.StringLookup(vocabulary=["a", "b"], invert=True, name="words")
        return keras.Model(inputs, words(hidden))

    keras.utils.set_random_seed(3)
    model = make()
    model.save(tmp_path / "one.keras")
    assert verify(*[tmp_path / "one.keras"] * 2).verdict is Verdict.EQUIVALENT
    model.get_layer("linear").bias.assign([0, 9, 0])
    model.save(tmp_path / "two.keras")
    found = verify(tmp_path / "one.keras", tmp_path / "two.keras")
    assert found.verdict is Verdict.DIFFERENT
    assert "output 'words' differs in" in found.differences[1]


@pytest.mark.usefixtures("keras_alone")
def test_whole_numbers_that_never_change_prove_nothing(tmp_path):
    def make():
        inputs = keras.Input((6,), name="inputs")
        hidden = layers.Dense(3, bias_initializer=keras.initializers.Constant(1e5))(inputs)
        return keras.Model(inputs, layers.Identity(name="out")(hidden > 0))

    found = verify(*save_pair(tmp_path, make))
    assert found.verdict is Verdict.UNDECIDED


@pytest.mark.usefixtures("keras_alone")
def test_what_must_be_exact_is_not_said_to_be_a_multiple_of_nothing(tmp_path):
    def make():
        off = layers.Dense(5, "relu", bias_initializer=keras.initializers.Constant(-1e5))
        inputs = keras.Input((6,), name="inputs")
        return keras.Model(inputs, [off(inputs), layers.Dense(3, name="out")(inputs)])

    original, folded = save_pair(tmp_path, make)
    model = keras.models.load_model(folded)
    model.layers[1].bias.assign([1, -1e5, -1e5, -1e5, -1e5])
    model.save(folded)
    assert "where rounding changes nothing" in verify(original, folded).differences[1]


@pytest.mark.usefixtures("keras_alone")
def test_classes_of_pixels_are_not_called_samples(tmp_path):
    def make():
        inputs = keras.Input((4, 4, 3), name="inputs")
        return keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(inputs))

    found = verify(*save_pair(tmp_path, make))
    (decisions,) = found.agreements
    assert decisions.samples == 16 * found.sample_count
    said = f"0 of {decisions.samples} positions changed their class"
    console = Console(width=400, file=io.StringIO())
    console.print(fold_text.verification(found))
    assert said in console.file.getvalue()


# --- the third verdict, and what a runtime cannot do ----------------------------------------------


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("always", [-1e5, 1e15])
@pytest.mark.few(1)
def test_an_output_that_never_changes_says_nothing(tmp_path, always):
    dead = layers.Dense(4, "relu6", bias_initializer=keras.initializers.Constant(always))
    found = verify(*save_pair(tmp_path, lambda: small_net(dead)))
    assert found.verdict is Verdict.UNDECIDED
    assert "was not exercised" in found.warnings[-1]


def unexportable():
    inputs = keras.Input((5, 6, 3))
    return keras.Model(inputs, layers.UpSampling2D(2, interpolation="lanczos3")(inputs))


def test_what_onnx_cannot_express_is_judged_by_keras_alone(tmp_path):
    found = verify(*save_pair(tmp_path, unexportable))
    assert found.verdict is Verdict.EQUIVALENT
    assert found.basis is Basis.KERAS
    assert "ONNX Runtime cannot judge this model" in found.warnings[0]


@pytest.mark.slow
def test_an_export_that_computes_something_else_is_not_believed(pair, monkeypatch):
    honest = onnx_runner.run_onnx
    monkeypatch.setattr(
        onnx_runner,
        "run_onnx",
        lambda exported, inputs: [value + 1 for value in honest(exported, inputs)],
    )
    found = verify(*pair("conv2d"))
    assert found.verdict is Verdict.EQUIVALENT
    assert found.basis is Basis.KERAS
    assert "something else than Keras does" in found.warnings[0]


def test_an_export_that_only_the_original_survives_leaves_it_undecided(pair, monkeypatch):
    honest = onnx_runner.exports
    folded = pair("conv2d")[1].name
    monkeypatch.setattr(
        onnx_runner, "exports", lambda model: honest(model) if model.label != folded else []
    )
    assert verify(*pair("conv2d")).verdict is Verdict.UNDECIDED


def test_an_export_that_onnx_runtime_cannot_load_gives_way_to_the_next(pair, monkeypatch):
    honest, loaded = onnx_runner.session, []

    def session(content, **settings):
        loaded.append(content)
        if len(loaded) == 1:
            raise libraries.CannotRunError("an invalid graph")
        return honest(content, **settings)

    monkeypatch.setattr(onnx_runner, "session", session)
    found = verify(*pair("conv2d"))
    assert (found.verdict, found.basis) == (Verdict.EQUIVALENT, Basis.BOTH)
    assert loaded[0] != loaded[1]


def test_exports_are_loaded_one_at_a_time(pair, monkeypatch):
    # Each takes the size of the model several times, beside the values of all runs.
    honest, alive = onnx_runner.session, weakref.WeakSet()

    def session(content, **settings):
        made = honest(content, **settings)
        assert not alive
        alive.add(made.session)
        return made

    monkeypatch.setattr(onnx_runner, "session", session)
    assert verify(*pair("conv2d")).basis is Basis.BOTH


def test_exports_for_which_a_disk_has_no_room_are_run_all_the_same(pair, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_runner, "tempfile", SimpleNamespace(TemporaryFile=Full))
    found = verify(*pair("conv2d"))
    assert (found.basis, found.warnings) == (Basis.BOTH, ())


def keras_cannot(*_, **__):
    raise libraries.CannotRunError("no kernel")


def test_without_keras_onnx_runtime_judges_alone(pair, monkeypatch):
    monkeypatch.setattr(keras_runner, "evaluate", keras_cannot)
    found = verify(*pair("conv2d"))
    assert (found.verdict, found.basis) == (Verdict.EQUIVALENT, Basis.ONNXRUNTIME)
    found = verify(*pair("conv2d", "epsilon forgotten"))
    assert (found.verdict, found.basis) == (Verdict.DIFFERENT, Basis.ONNXRUNTIME)


def test_with_no_runtime_at_all_there_is_an_error(pair, monkeypatch):
    monkeypatch.setattr(keras_runner, "evaluate", keras_cannot)
    monkeypatch.setattr(onnx_runner, "evaluate_onnx", keras_cannot)
    with pytest.raises(VerificationImpossibleError, match=r"neither Keras .no kernel. nor ONNX"):
        verify(*pair("conv2d"))


# --- files ----------------------------------------------------------------------------------------


# The name decides nothing, so one that lies is enough by default.
@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("name", some(["model.h5", "model.bin", "model.keras.backup"], 3))
def test_the_container_is_told_by_its_bytes(tmp_path, name):
    original, folded = save_pair(tmp_path, small_net)
    assert verify(original.rename(tmp_path / name), folded).verdict is Verdict.EQUIVALENT


# The other names are told apart by the same bytes: by default the one that lies most.
@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("name", some(["model.keras", "model.h5", "model.hdf5", "model"], 4))
def test_legacy_hdf5_under_any_name(tmp_path, name):
    small_net().save(tmp_path / "saved.h5")
    path = (tmp_path / "saved.h5").rename(tmp_path / name)
    assert verify(path, path).verdict is Verdict.EQUIVALENT


@pytest.mark.usefixtures("keras_alone")
def test_an_unzipped_model(tmp_path):
    original, folded = save_pair(tmp_path, small_net)
    with zipfile.ZipFile(folded) as archive:
        archive.extractall(tmp_path / "unzipped")
    assert verify(original, tmp_path / "unzipped").verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x89HDF\r\n\x1a\n no", b"hello"])
def test_broken_files_are_one_line(tmp_path, content):
    path = tmp_path / "broken.keras"
    path.write_bytes(content)
    with pytest.raises(UnreadableModelError, match=r"broken\.keras") as caught:
        verify(path, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UnreadableModelError, match="no such file"):
        verify(tmp_path / "none.keras", tmp_path / "none.keras")


def test_a_file_that_lost_its_weights_is_one_line(tmp_path):
    original, folded = save_pair(tmp_path, small_net)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(folded, "w") as target:
        target.writestr("config.json", source.read("config.json"))
        target.writestr("metadata.json", source.read("metadata.json"))
        target.writestr("model.weights.h5", b"nothing")
    with pytest.raises(UnreadableModelError, match=r"model\.weights\.h5 is damaged") as caught:
        verify(original, folded)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("keras_alone")
def test_a_fold_that_keras_cannot_load_is_a_difference(tmp_path):
    original, folded = save_pair(tmp_path, small_net)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(folded, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = content.replace(b'"units": ', b'"units": 1')
            target.writestr(name, content)
    result = verify(original, folded)
    assert result.verdict is Verdict.DIFFERENT
    assert "Keras loads the original but not the other model" in result.differences[0]


# --- code in files --------------------------------------------------------------------------------


def with_lambda():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Lambda(lambda x: 2 * x, name="evil")(layers.Dense(5)(inputs)))


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_is_refused_unless_trusted(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    with_lambda().save(path)
    with pytest.raises(UnsafeModelError, match=r"'evil' \('Lambda'\) runs code.*trust=True"):
        verify(path, path)
    assert verify(path, path, trust=True).verdict is Verdict.EQUIVALENT


def edited(source, target, edit):
    """The archive again with another config."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "config.json":
                config = json.loads(data)
                edit(config)
                data = json.dumps(config)
            copy.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"class_name": "TFSMLayer", "module": "keras.layers"}, "loads another SavedModel"),
        ({"class_name": "TorchModuleWrapper", "module": "keras.layers"}, "unpickles"),
        ({"class_name": "function", "module": "keras.utils", "config": "get_file"}, "not a part"),
        ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "io.write_file"),
        ({"class_name": "run", "module": "os", "registered_name": "run"}, "imports=.*MODULE"),
    ],
)
def test_other_ways_to_run_code_are_refused(tmp_path, entry, reason):
    original, _ = save_pair(tmp_path, small_net)
    hide = {"config": {}, **entry}
    path = edited(
        original,
        tmp_path / "bad.keras",
        lambda config: config["config"]["layers"][1]["config"].update(kernel_initializer=hide),
    )
    with pytest.raises(UnsafeModelError, match=reason):
        verify(path, original)


CUSTOM = """
import keras

@keras.saving.register_keras_serializable("verification_tests")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2
"""


SCRIPT = """
import keras

class Tripled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 3

if __name__ == "__main__":
    from custom_module_of_tests import Doubled

    x = keras.Input((6,))
    model = keras.Model(x, Tripled()(keras.layers.Dense(3)(x)))
    model.save("m.keras")
    model.save("m.h5")
    keras.Model(x, keras.layers.Dense(3)(Doubled()(x))).save("custom.keras")
"""


@pytest.fixture(scope="module")
def saved_by_a_script(tmp_path_factory):
    """Models of classes that this process does not know, and the modules that have them.

    One class is registered; for the other, which the script defines itself, Keras notes no module.
    """
    folder = tmp_path_factory.mktemp("script")
    (folder / "custom_module_of_tests.py").write_text(CUSTOM)
    (folder / "script_of_tests.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "script_of_tests.py"], cwd=folder, check=True, capture_output=True
    )
    return folder


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_a_custom_layer_needs_its_module(saved_by_a_script, monkeypatch):
    monkeypatch.syspath_prepend(saved_by_a_script)
    path = saved_by_a_script / "custom.keras"
    with pytest.raises(UnsafeModelError, match=r"verification_tests>Doubled.*imports=.*MODULE"):
        verify(path, path)
    found = verify(path, path, imports=["custom_module_of_tests"])
    assert found.verdict is Verdict.EQUIVALENT
    with pytest.raises(BnfoldError, match="imports no_such_module"):
        verify(path, path, imports=["no_such_module"])
    for name in ("custom_module_of_tests.py", "./custom_module_of_tests.py"):
        with pytest.raises(BnfoldError, match="say custom_module_of_tests: a module goes by its"):
            verify(path, path, imports=[name])


@pytest.mark.usefixtures("keras_alone")
def test_what_cannot_be_paired_is_not_called_verified(tmp_path):
    """Nothing inside the models was compared, so all that is known is said of the outputs."""

    def nested():
        inner = keras.Sequential([keras.Input((5,)), Settled(), layers.Dense(4)])
        inputs = keras.Input((6,))
        hidden = layers.BatchNormalization()(layers.Dense(5)(inputs))
        return keras.Model(inputs, inner(hidden))

    found = verify(*save_pair(tmp_path, nested))
    assert found.verdict is Verdict.UNDECIDED
    assert found.differences == ()
    assert any("only outputs are compared: this layer is settled" in one for one in found.warnings)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_that_nobody_registered_is_one_line(saved_by_a_script, suffix, trust):
    path = saved_by_a_script / f"m{suffix}"
    with pytest.raises(UnsafeModelError, match=r"needs 'Tripled', .* imports=.*MODULE"):
        verify(path, path, trust=trust)


@pytest.mark.usefixtures("keras_alone")
def test_a_layer_of_the_script_that_saved_the_model_is_found(saved_by_a_script, monkeypatch):
    monkeypatch.syspath_prepend(saved_by_a_script)
    path = saved_by_a_script / "m.keras"
    assert verify(path, path, imports=["script_of_tests"]).verdict is Verdict.EQUIVALENT


def test_a_file_calls_no_function_that_a_named_module_happens_to_have(
    saved_by_a_script, monkeypatch, tmp_path
):
    script = SCRIPT.replace("import keras", "import keras\nfrom subprocess import run", 1)
    (tmp_path / "module_with_a_function.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "m.h5"
    path.write_bytes((saved_by_a_script / "m.h5").read_bytes())
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        dense = next(one for one in config["config"]["layers"] if one["class_name"] == "Dense")
        dense["config"]["kernel_initializer"] = {"class_name": "run", "config": {"args": "x"}}
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(UnsafeModelError, match="needs 'run'"):
        verify(path, path, imports=["module_with_a_function"])


def test_a_layer_that_only_the_other_model_needs_is_no_difference(saved_by_a_script):
    inputs = keras.Input((6,))
    keras.Model(inputs, layers.Dense(3)(inputs)).save(saved_by_a_script / "plain.keras")
    with pytest.raises(UnsafeModelError, match="needs 'Tripled'"):
        verify(saved_by_a_script / "plain.keras", saved_by_a_script / "m.keras", trust=True)


PACKAGE = """
import {keras} as keras

class Dense(keras.layers.Layer):
    '''Called what one of Keras' own is called, and something else: no kernel, a shift of 3.'''
    def __init__(self, units=1, **settings):
        super().__init__(**settings)
        self.units = units
    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), initializer=own_start, name="shift")
        super().build(shape)
    def call(self, inputs):
        return inputs + self.shift
    def get_config(self):
        return dict(super().get_config(), units=self.units)

class Starting(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None, **_):
        return 0 * keras.initializers.Ones()(shape) + 2
    def get_config(self):
        return {{}}

class OwnModel(keras.Model):
    pass

def own_start(shape, dtype=None, **_):
    return 0 * keras.initializers.Ones()(shape) + 3

def own_activation(x):
    return 2 * x + 1

def own_loss(expected, found):
    return keras.losses.mean_squared_error(expected, found)

@keras.{saving}register_keras_serializable("a_package")
class Registered(keras.layers.Layer):
    def call(self, inputs):
        return -inputs
"""


@pytest.fixture(params=["keras", "tf_keras"])
def own_package(request, tmp_path, monkeypatch):
    """A package whose submodule defines all kinds of own things, imported, and its Keras."""
    library = pytest.importorskip(request.param)
    name = f"own_package_{request.param}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(f"import {name}.parts\n")
    saving = "saving." if request.param == "keras" else "utils."
    source = PACKAGE.format(keras=request.param, saving=saving)
    (tmp_path / name / "parts.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(name)
    yield library, package.parts, name
    for one in (name, f"{name}.parts"):
        sys.modules.pop(one)


def as_before_2_12(path):
    """A function's name where later versions write an object, which they cannot read themselves."""
    written = (
        '{"module": "builtins", "class_name": "function", "config": "own_activation", '
        '"registered_name": "function"}'
    )
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        assert written in config
        file.attrs["model_config"] = config.replace(written, '"own_activation"')


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_own_parts_are_found_in_what_the_user_names(own_package, suffix, tmp_path):
    """Own layers, also one called Dense, in a nested model; functions, initializers, a model."""
    library, own, name = own_package
    inner = library.Input((4,))
    nested = library.Model(inner, own.Registered()(own.Dense(7)(inner)), name="nested")
    inputs = library.Input((5,))
    start = own.Starting()
    # An .h5 does not tell Keras' own Dense from theirs.
    body = library.layers.EinsumDense("ab,bc->ac", 4, kernel_initializer=start)
    if suffix == ".keras":
        body = library.layers.Dense(4, kernel_initializer=start, name="theirs")
    body = library.layers.Activation(own.own_activation)(body(inputs))
    model = own.OwnModel(inputs, nested(body))
    model.compile("adam", own.own_loss, [own.own_loss])
    model.save(tmp_path / f"model{suffix}")
    if library.__name__ == "tf_keras" and suffix == ".h5":
        as_before_2_12(tmp_path / "model.h5")
    facts = safety.read_facts(tmp_path / f"model{suffix}")
    with pytest.raises(UnsafeModelError, match="--import MODULE"):
        loading.load_all([facts], Loading())
    (loaded,) = loading.load_all([facts], Loading(imports=[name]))
    assert loaded.library == library.__name__
    samples = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    np.testing.assert_array_equal(loaded.model(samples), model(samples))
    assert isinstance(loaded.model.get_layer("nested").layers[1], own.Dense)


# --- Keras 2 --------------------------------------------------------------------------------------


@pytest.fixture
def keras_2_file(tmp_path):
    """A file of the dialect that Keras 2.13 to 2.15 wrote, which Keras 3 cannot load."""
    tf_keras = pytest.importorskip("tf_keras")
    inputs = tf_keras.Input((6,), name="inputs")
    hidden = tf_keras.layers.BatchNormalization()(tf_keras.layers.Dense(5)(inputs))
    outputs = tf_keras.layers.Dense(3, activation="softmax")(hidden)
    tf_keras.Model(inputs, outputs).save(tmp_path / "saved.keras")

    def as_in_2_15(config):
        config["module"] = "keras.src.engine.functional"
        for layer in config["config"]["layers"]:
            layer["module"] = layer["module"].replace("tf_keras", "keras")

    return edited(tmp_path / "saved.keras", tmp_path / "two.keras", as_in_2_15)


def test_files_of_keras_2_go_through_tf_keras(keras_2_file):
    found = verify(keras_2_file, keras_2_file)
    assert found.verdict is Verdict.EQUIVALENT
    assert (found.library, found.basis) == ("tf_keras", Basis.BOTH)
    assert found.comparisons[0].tapped_before == "softmax"


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_a_file_that_tf_keras_cannot_load_is_one_line(keras_2_file, tmp_path):
    """tf_keras leaves its weights open then, which must not crash the process when it ends."""
    broken = tmp_path / "broken.keras"
    with zipfile.ZipFile(keras_2_file) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            content = io.BytesIO(old.read(name))
            if name == "model.weights.h5":
                with h5py.File(content, "r+") as weights:
                    del weights["layers/dense/vars/1"]
            new.writestr(name, content.getvalue())
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "verify", str(broken), str(broken)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "tf_keras cannot load it" in done.stderr.splitlines()[-1]


def test_without_tf_keras_the_extra_is_named(keras_2_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(VerificationImpossibleError, match=r'pip install "bnfold\[keras2\]"'):
        verify(keras_2_file, keras_2_file)


# --- the user's data ------------------------------------------------------------------------------


@pytest.mark.usefixtures("keras_alone")
def test_data_for_one_input(tmp_path):
    files = save_pair(tmp_path, small_net)
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(11, 6)))
    found = verify(*files, data=tmp_path / "data.npy")
    assert found.verdict is Verdict.EQUIVALENT
    assert (found.sample_count, found.sample_kinds) == (11, ("data from data.npy",))


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("names", [("numbers", "indices"), ("input_1", "input_0")])
@pytest.mark.few(1)
def test_data_for_several_inputs(tmp_path, names):
    files = save_pair(tmp_path, dictionaries)
    generator = np.random.default_rng(0)
    arrays = (generator.normal(size=(5, 6)), generator.integers(0, 7, (5, 4)))
    np.savez(tmp_path / "data.npz", **dict(zip(names, arrays, strict=True)))
    assert verify(*files, data=tmp_path / "data.npz").verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((4, 7))}, r"takes shape \(any, 6\), the array has \(4, 7\)"),
        ({"inputs": np.zeros((0, 6))}, "the same number of samples, at least 1"),
        (
            {"a": np.zeros((4, 6)), "b": np.zeros((4, 6))},
            r"data\.npz holds 2 arrays \('a', 'b'\), the model takes 1: 'inputs'",
        ),
        ({}, "data.npz holds 0 arrays, the model takes 1: 'inputs'"),
        ({"inputs": np.array([{}], dtype=object)}, "plain arrays"),
        ({"inputs": np.array([["x"] * 6])}, "takes numbers"),
        ({"inputs": np.array(["x", "y"])}, "takes numbers"),
    ],
)
def test_data_that_does_not_fit(tmp_path, arrays, message):
    files = save_pair(tmp_path, small_net)
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(BnfoldError, match=message):
        verify(*files, data=tmp_path / "data.npz")


@pytest.mark.parametrize(("number", "odd"), [(2.5, "2.5"), (np.nan, "nan"), (2**31, "2147483648")])
def test_whole_numbers_are_not_made_of_what_they_cannot_hold(number, odd):
    spec = InputSpec("words", (None, 2), "int32")
    with pytest.raises(BnfoldError, match=f"'words' takes int32, which cannot hold {odd}"):
        load(np.array([[1, 2], [3, number]]), [spec])
    (found,) = load(np.array([[1.0, 2.0]]), [spec])[0].inputs
    assert found.dtype == np.int32


@pytest.mark.usefixtures("keras_alone")
def test_data_that_is_not_finite_is_a_warning(tmp_path):
    spec = InputSpec("inputs", (None, 6), "float32")
    for value, warning in (
        (np.nan, "data.npy: input 'inputs' has numbers that are not finite"),
        (0.0, None),
    ):
        np.save(tmp_path / "data.npy", np.full((4, 6), value))
        assert load(tmp_path / "data.npy", [spec])[1] == warning


def test_samples_keep_to_the_range_of_the_embedding():
    spec = InputSpec("indices", (None, 4), "int32", bound=7)
    drawn = np.concatenate([one.inputs[0] for one in generate([spec], 0, [32])])
    assert (drawn.min(), drawn.max()) == (0, 6)


def masked_numbers(*, mask):
    inputs = keras.Input((9, 6), name="inputs")
    hidden = layers.Masking(-1.0)(inputs) if mask else inputs
    return keras.Model(inputs, layers.SimpleRNN(3, name="out")(layers.Identity()(hidden)))


def masked_words(*, mask):
    inputs = keras.Input((9,), name="inputs", dtype="int32")
    hidden = layers.Embedding(5000, 4, mask_zero=mask, name="words")(inputs)
    return keras.Model(inputs, layers.SimpleRNN(3, name="out")(hidden))


def masked_inside(*, mask):
    inputs = keras.Input((9, 6), name="inputs")
    return keras.Model(inputs, masked_numbers(mask=mask)(layers.Identity()(inputs)))


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(masked_numbers, marks=pytest.mark.slow),
        pytest.param(masked_words, marks=pytest.mark.slow),
        masked_inside,
    ],
)
@pytest.mark.slow
def test_a_mask_that_was_lost_is_seen(tmp_path, make):
    for mask, name in ((True, "one.keras"), (False, "two.keras")):
        keras.utils.set_random_seed(2)
        make(mask=mask).save(tmp_path / name)
    found = verify(tmp_path / "one.keras", tmp_path / "one.keras")
    assert found.verdict is Verdict.EQUIVALENT
    assert any(kind.endswith("with masked steps") for kind in found.sample_kinds)
    assert verify(tmp_path / "one.keras", tmp_path / "two.keras").verdict is Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (InputSpec("numbers", (None, 9, 6), "float32", mask=Mask(-1, is_whole_step=True)), 9),
        (InputSpec("words", (None, 9), "int32", 5000, Mask(0, is_whole_step=False)), 9),
        (InputSpec("large", (None, 999, 999), "float32", mask=Mask(7, is_whole_step=True)), 999),
        (InputSpec("number", (None, 6), "float32", mask=Mask(-1, is_whole_step=True)), 1),
    ],
)
def test_one_kind_of_samples_has_masked_steps(spec, steps):
    (found,) = [one for one in generate([spec], 0, [32]) if one.kind.endswith("masked steps")]
    hidden = found.inputs[0] == spec.mask.value
    per_step = hidden.all(-1) if spec.mask.is_whole_step else hidden
    assert 0.2 < per_step.mean() < 0.8
    assert not np.any(per_step.reshape(-1, steps)[:1, :1])


def test_large_inputs_get_few_samples():
    spec = InputSpec("image", (None, 224, 224, 3), "float32")
    for few, count in ((True, 2), (False, 5)):
        assert sum(one.count for one in generate([spec], 0, [32], few=few)) == count


def test_free_sizes_are_drawn_in_two_sizes():
    sets = generate([InputSpec("text", (None, None, 3), "float32")], 0, [32, 40])
    assert {one.inputs[0].shape[1] for one in sets} == {32, 40}


# --- the rule -------------------------------------------------------------------------------------


def judged(original, folded, *, moved=(), folded_moved=(), rule=None):
    """What the rule says of an exact value of the original and one of the folded model."""
    exact, found = np.asarray(original), np.asarray(folded)
    value = Value("dense", is_output=True)
    noise = [{value: [errors(exact, one)]} for one in moved]
    noise_of_fold = [{value: [errors(found, one)]} for one in folded_moved]
    (reference,) = references({value: [exact]}, [UNIT], noise, noise_of_fold)[value]
    return compare(reference, None, errors(exact, found), rule or Rule())


def test_what_overflows_in_the_judge_itself_says_nothing():
    huge = np.array([[1e200]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert errors(huge, 2 * huge).sqnr is None


def test_a_value_that_became_nan_fails():
    finite, broken = np.array([[1.0]]), np.array([[np.nan]])
    assert "not finite" in not_finite(finite, broken, forgive_overflow=True)
    assert "are finite" in not_finite(broken, finite, forgive_overflow=False)
    assert not_finite(broken, finite, forgive_overflow=True) is None
    assert not_finite(broken, broken, forgive_overflow=False) is None


def test_nan_in_both_is_only_not_finite():
    value = np.array([[np.nan, 1.0]])
    assert judged(value, value).passed
    assert not errors(value, value).finite


def test_the_tolerance_follows_each_channel():
    value = np.array([[1e6, 1.0], [2e6, 2.0]])
    off = value + np.array([[0.0, 1e-3], [0.0, 0.0]])
    assert not judged(value, off, moved=[value + np.array([1.0, 1e-7])]).passed
    assert judged(value, value, moved=[value]).passed


def test_a_wrong_fold_cannot_buy_tolerance_with_its_own_noise():
    value, off = np.array([[1.0], [2.0]]), np.array([[1.1], [2.0]])
    assert not judged(value, off, moved=[value * (1 + 1e-7)], folded_moved=[off + 1.0]).passed


def test_the_folded_model_may_be_as_far_off_as_the_original_but_not_further():
    exact = np.array([[1.0, 5.0], [2.0, 7.0]])
    own = errors(exact, exact + 1e-3)
    for off, passes in ((2e-3, True), (1e-2, False)):
        outcome = compare(Reference(Truth(exact)), own, errors(exact, exact + off), Rule())
        assert outcome.passed is passes


def test_noise_is_told_in_decibels():
    exact = np.array([[3.0, 4.0]])
    assert errors(exact, exact).sqnr is None
    assert errors(exact, exact + np.array([[0.03, 0.04]])).sqnr == pytest.approx(40)


def test_a_channel_that_never_changes_is_not_exercised():
    value = np.array([[1.0, 1.0], [1.0, 2.0]])
    assert judged(value, value).exercised[1].tolist() == [False, True]


def test_a_shape_that_changed_fails():
    assert judged([[1.0]], [[1.0, 2.0]]).problem == "shape (1, 1) became (1, 2)"


def test_integers_must_agree():
    assert not judged([[1, 2]], [[1, 3]]).passed
    assert judged([[1, 2]], [[1, 2]]).passed


@pytest.mark.usefixtures("keras_alone")
def test_the_report_is_plain_json(pair):
    found = verify(*pair("conv2d"))
    broken = replace(found, comparisons=(replace(found.comparisons[0], error=float("nan")),))
    assert (
        json.loads(json.dumps(broken.to_dict(), allow_nan=False))["comparisons"][0]["error"] is None
    )


def test_every_dtype_of_a_config_becomes_float64():
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    config = {"dtype": policy, "inner": [{"dtype": "float32"}, {"dtype": "int32"}], "units": 3}
    expected = {"dtype": "float64", "inner": [{"dtype": "float64"}, {"dtype": "int32"}], "units": 3}
    assert in_float64(config) == expected
    with pytest.raises(ValueError, match="quantized"):
        in_float64({"dtype": {"class_name": "QuantizedDTypePolicy", "config": {}}})


def test_importing_the_package_imports_no_runtime():
    heavy = "{'tensorflow', 'keras', 'tf_keras', 'onnx', 'onnxruntime', 'tf2onnx'}"
    script = f"import sys, bnfold.verification; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_progress_is_told_and_the_libraries_are_silent(pair, capfd):
    stages = []
    verify(*pair("conv2d"), progress=stages.append)
    assert stages[0] == "loading the models"  # TensorFlow is there already
    assert "exporting the folded model" in stages
    assert capfd.readouterr().err == ""


# --- the conclusion -------------------------------------------------------------------------------


def concluded(
    *, sharp: float | None, off: float, dominated: bool, runtimes: tuple[str, ...] = ("keras",)
) -> Verification:
    """The verdict on two outputs, of which rounding may dominate one and the other is off by `off`.

    `sharp` is how far it is off in float64; without it there is no float64.
    """
    blown, downstream = Value("blown up", True), Value("after it", True)
    exact = {blown: [np.array([[1.0], [2.0]])], downstream: [np.array([[3.0], [5.0]])]}
    moved = {value: [column[0].copy()] for value, column in exact.items()}
    moved[blown][0] += 9.0 if dominated else 0.0
    noise = [table(exact, moved)]
    measures = references(exact, [UNIT, UNIT], noise, noise)
    right = table(exact, exact)

    def run(name: str, original: Any, by: float) -> Run:
        found = {**exact, downstream: [exact[downstream][0] + by]}
        return Run(name, measures, original, table(exact, found), {})

    runs = [] if sharp is None else [run("keras float64", None, sharp)]
    case = SimpleNamespace(
        values=(blown, downstream),
        outputs=(blown, downstream),
        inside=(),
        pairing=None,
        sets=[SampleSet("drawn", (np.zeros((2, 1)),))],
        seed=0,
        original=SimpleNamespace(library="keras"),
    )
    evidence = Evidence([*runs, run("keras", right, off)], "keras float64", set(runtimes))
    found, _ = conclude(case, Rule(), evidence)
    return found


def test_what_rounding_dominates_is_no_difference():
    found = concluded(sharp=0.0, off=1.0, dominated=True)
    assert found.verdict is Verdict.UNDECIDED
    assert "keras cannot judge: rounding error dominates the value of 'blown up'" in found.warnings


@pytest.mark.parametrize(
    "given",
    [
        {"sharp": 1.0, "off": 1.0, "dominated": True},
        {"sharp": None, "off": 1.0, "dominated": True},
        {"sharp": 0.0, "off": 1.0, "dominated": False},
    ],
    ids=["wrong in float64", "no float64", "nothing dominated"],
)
def test_any_other_error_is_a_difference(given):
    assert concluded(**given).verdict is Verdict.DIFFERENT


def test_a_runtime_that_no_basis_names_is_not_taken_for_none():
    with pytest.raises(KeyError, match="another"):
        concluded(sharp=0.0, off=0.0, dominated=False, runtimes=("keras", "another"))


# --- a backbone that is called for inference ------------------------------------------------------

NORM = [
    np.linspace(-1.5, 2, 6),
    np.linspace(-1, 1, 6),
    np.linspace(0, 3, 6),
    np.geomspace(0.1, 9, 6),
]


def transfer(*, has_norm):
    """A backbone called with training=False, which Keras lets win over the True of its Dropout."""
    inputs = keras.Input((5,))
    x = layers.Dense(6, name="dense")(inputs)
    x = layers.BatchNormalization(name="norm")(x) if has_norm else x
    x = layers.Dropout(0.5, name="drop")(x, training=True)
    x = layers.Dense(4, activation="tanh", name="top")(x)
    backbone = keras.Model(inputs, x, name="base")
    inputs = keras.Input((5,), name="features")
    return keras.Model(inputs, layers.Dense(2, name="head")(backbone(inputs, training=False)))


def transfer_pair(folder, *, off):
    """The original and its fold, in which one weight is `off`."""
    keras.utils.set_random_seed(3)
    original, folded = transfer(has_norm=True), transfer(has_norm=False)
    inside, others = original.get_layer("base"), folded.get_layer("base")
    inside.get_layer("norm").set_weights(NORM)
    kernel, bias = (np.array(one, dtype=np.float64) for one in inside.get_layer("dense").weights)
    named = zip(("gamma", "beta", "moving_mean", "moving_variance"), NORM, strict=True)
    scale, shift = affine(dict(named), 1e-3)
    others.get_layer("dense").set_weights([kernel * scale + off, bias * scale + shift])
    others.get_layer("top").set_weights(inside.get_layer("top").get_weights())
    folded.get_layer("head").set_weights(original.get_layer("head").get_weights())
    original.save(folder / "original.keras")
    folded.save(folder / "folded.keras")
    return folder / "original.keras", folder / "folded.keras"


def test_a_backbone_called_for_inference_is_verified_inside(tmp_path):
    found = verify(*transfer_pair(tmp_path, off=0.0))
    assert found.verdict is Verdict.EQUIVALENT
    assert not found.warnings
    assert [(site.name, site.status) for site in found.sites] == [("base/norm", "matched")]


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.slow
def test_a_mistake_in_a_backbone_called_for_inference_is_named(tmp_path):
    found = verify(*transfer_pair(tmp_path, off=np.eye(5, 6)[2] * 1e-3))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("base/norm",)
