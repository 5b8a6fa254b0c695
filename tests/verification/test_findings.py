"""Which layer the judge blames, and that it blames none where a fold is right.

The folds are made by hand, layer by layer: `fold(build, folds)` builds a model with and without its
BatchNormalizations, copies the weights and moves each of them into the layer that is named.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from keras import layers

from bnfold.verification import Verdict, verify


def norms(model):
    return [one for one in model.layers if isinstance(one, layers.BatchNormalization)]


def randomize(model):
    generator = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            layer.gamma.assign(generator.uniform(0.5, 1.5, size))
            layer.beta.assign(generator.normal(size=size))
            layer.moving_mean.assign(generator.normal(size=size))
            layer.moving_variance.assign(generator.uniform(0.5, 2, size))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(0.3 * generator.normal(size=layer.bias.shape))


def affine(norm):
    gamma, beta, mean, variance = (value.astype("float64") for value in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def backward(layer, scale, shift):
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * scale, bias * scale + shift])


def forward(layer, scale, shift):
    kernel, *others = layer.get_weights()
    added = np.tensordot(shift, kernel.reshape(-1, *kernel.shape[-2:]).sum(0), 1)
    layer.set_weights([kernel * scale[:, None], *others[:-1], others[-1] + added])


def fold(build, folds, prepare=None):
    """The original and its fold; `folds` are (name of the norm, name of the layer, how)."""
    keras.utils.set_random_seed(3)
    original, folded = build(normalized=True), build(normalized=False)
    randomize(original)
    if prepare is not None:
        prepare(original)
    for layer in folded.layers:
        if layer.weights:
            layer.set_weights(original.get_layer(layer.name).get_weights())
    for norm, name, how in folds:
        how(folded.get_layer(name), *affine(original.get_layer(norm)))
    return original, folded


def judge(folder, original, folded):
    original.save(folder / "original.keras")
    folded.save(folder / "folded.keras")
    return verify(folder / "original.keras", folder / "folded.keras")


def change(model, name, by=0.01, *, at=-1, channel=2):
    """Change one channel of one weight of a layer."""
    weights = model.get_layer(name).get_weights()
    weights[at][..., channel] += by
    model.get_layer(name).set_weights(weights)


def statuses(found):
    return {site.name: site.status.value for site in found.sites}


def chain(*steps, shape=(6,)):
    """A builder of a chain of layers; each step is a name and how to make the layer."""

    def build(*, normalized):
        inputs = hidden = keras.Input(shape, name="inputs")
        for name, make in steps:
            if normalized or make is not layers.BatchNormalization:
                hidden = make(name=name)(hidden)
        return keras.Model(inputs, hidden)

    return build


def step(kind, *arguments, **options):
    return lambda name: getattr(layers, kind)(*arguments, name=name, **options)


NORM = layers.BatchNormalization
RELU = step("ReLU")

# --- forward folds one after the other ------------------------------------------------------------

FORWARD = {
    "dense": (step("Dense", 8, activation="relu"), (6,)),
    "convolution": (step("Conv1D", 8, 2, activation="tanh"), (9, 6)),
    "recurrent": (step("LSTM", 8, return_sequences=True), (3, 6)),
}


def two_forward(kind):
    make, shape = FORWARD[kind]
    steps = [("one", make), ("norm1", NORM), ("two", make), ("norm2", NORM), ("out", make)]
    folds = [("norm1", "two", forward), ("norm2", "out", forward)]
    return fold(chain(*steps, shape=shape), folds)


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("kind", FORWARD)
def test_a_fold_forward_may_follow_another(tmp_path, kind):
    found = judge(tmp_path, *two_forward(kind))
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert statuses(found) == {"norm1": "matched", "norm2": "matched"}


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize(("layer", "culprit"), [("two", "norm1"), ("out", "norm2")])
def test_the_wrong_one_of_two_forward_folds_is_named(tmp_path, kind, layer, culprit):
    original, folded = two_forward(kind)
    change(folded, layer, at=0)
    found = judge(tmp_path, original, folded)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == (culprit,)


def test_a_fold_may_be_carried_back_across_another_and_a_prelu(tmp_path):
    slopes = step("PReLU", alpha_initializer=keras.initializers.Constant(0.3))
    steps = [("linear", step("Dense", 8)), ("norm1", NORM), ("slopes", slopes), ("norm2", NORM)]
    build = chain(*steps, ("out", step("Dense", 3)))

    def without_shift(model):
        model.get_layer("norm2").beta.assign(np.zeros(8))
        model.get_layer("norm2").moving_mean.assign(np.zeros(8))

    folds = [("norm1", "linear", backward), ("norm2", "linear", backward)]
    found = judge(tmp_path, *fold(build, folds, without_shift))
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert statuses(found) == {"norm1": "matched", "norm2": "matched"}


# --- what layers behind hide ----------------------------------------------------------------------

TWO = chain(
    *(("one", step("Dense", 8)), ("norm1", NORM), ("relu1", RELU)),
    *(("two", step("Dense", 7)), ("norm2", NORM), ("relu2", RELU), ("out", step("Dense", 3))),
)
BACKWARD = [("norm1", "one", backward), ("norm2", "two", backward)]


def test_an_error_in_a_channel_that_a_relu_closes_is_seen(tmp_path):
    def closed(model):
        beta = model.get_layer("norm1").beta
        beta.assign(np.where(np.arange(8) == 2, -100, beta))

    original, folded = fold(TWO, BACKWARD, closed)
    assert judge(tmp_path, original, folded).verdict is Verdict.EQUIVALENT
    change(folded, "one", 5)
    found = judge(tmp_path, original, folded)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm1",)


def ill_conditioned(model):
    """Half of the channels have means of a hundred thousand deviations, which make them noisy."""
    mean = model.get_layer("norm1").moving_mean
    mean.assign(np.where(np.arange(8) < 4, 1e5, mean))
    model.get_layer("one").bias.assign(np.where(np.arange(8) < 4, 1e5, 0))


def test_noisy_channels_buy_no_tolerance_for_the_others(tmp_path):
    original, folded = fold(TWO, BACKWARD, ill_conditioned)
    found = judge(tmp_path, original, folded)
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert found.yardstick == "keras float64"
    change(folded, "one", 0.001, channel=6)
    found = judge(tmp_path, original, folded)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm1",)


# --- layers that are no fold sites ----------------------------------------------------------------


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("layer", ["one", "norm1", "out"])
def test_a_layer_that_was_kept_but_changed_is_named(tmp_path, layer):
    def kept(*, normalized):
        steps = (("one", step("Dense", 8)), ("norm1", lambda name: NORM(name=name)))
        rest = (("relu", RELU), ("two", step("Dense", 7)), ("norm2", NORM), ("relu2", RELU))
        return chain(*steps, *rest, ("out", step("Dense", 3)))(normalized=normalized)

    original, folded = fold(kept, [("norm2", "two", backward)])
    assert judge(tmp_path, original, folded).verdict is Verdict.EQUIVALENT
    change(folded, layer, at=0)
    found = judge(tmp_path, original, folded)
    assert found.culprits == (layer,)
    sentence = f"layer {layer!r} does not compute what it computes in the original"
    assert found.differences[0] == sentence


KEPT = chain(
    *(("one", step("Dense", 8)), ("norm1", step("BatchNormalization")), ("relu", RELU)),
    *(("two", step("Dense", 7)), ("norm2", step("BatchNormalization")), ("out", step("Dense", 3))),
)


def test_a_layer_that_was_changed_is_named_where_no_norm_is_gone(tmp_path):
    original, other = fold(KEPT, [])
    change(other, "norm2", at=0)
    found = judge(tmp_path, original, other)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm2",)


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("wrong", [None, "two"])
def test_a_norm_may_stay_as_one_that_does_nothing(tmp_path, wrong):
    original, other = fold(KEPT, [("norm1", "one", backward), ("norm2", "two", backward)])
    for norm in norms(other):
        nothing = np.zeros(norm.moving_mean.shape)
        norm.set_weights([nothing + 1, nothing, nothing, nothing + 1 - norm.epsilon])
    if wrong is not None:
        change(other, wrong)
    found = judge(tmp_path, original, other)
    assert found.verdict is (Verdict.EQUIVALENT if wrong is None else Verdict.DIFFERENT)
    assert found.culprits == (() if wrong is None else (wrong,))


def test_an_activation_that_was_changed_is_named(tmp_path):
    """And not the BatchNormalization behind it, whose fold is right."""

    def build(*, normalized):
        activation = step("Activation", "relu" if normalized else "linear")
        steps = [("one", step("Dense", 8)), ("norm1", NORM), ("activation", activation)]
        steps += [("two", step("Dense", 7)), ("norm2", NORM), ("out", step("Dense", 3))]
        return chain(*steps)(normalized=normalized)

    found = judge(tmp_path, *fold(build, BACKWARD))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("activation",)
    assert statuses(found)["norm1"] == "matched"


# --- what other tools make of a model -------------------------------------------------------------


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("names", [("relu1", "relu2"), ("other1", "other2")])
@pytest.mark.parametrize("wrong", [None, "one", "two"])
def test_activations_may_be_fused_or_called_otherwise(tmp_path, names, wrong):
    original, folded = fold(TWO, BACKWARD)
    inputs = hidden = keras.Input((6,), name="inputs")
    for name, units, relu in (("one", 8, names[0]), ("two", 7, names[1])):
        fused = relu.startswith("relu")
        hidden = layers.Dense(units, "relu" if fused else None, name=name)(hidden)
        hidden = hidden if fused else layers.ReLU(name=relu)(hidden)
    other = keras.Model(inputs, layers.Dense(3, name="out")(hidden))
    other.set_weights(folded.get_weights())
    if wrong is not None:
        change(other, wrong)
    found = judge(tmp_path, original, other)
    assert found.culprits == (() if wrong is None else ({"one": "norm1", "two": "norm2"}[wrong],))
    assert found.verdict is (Verdict.EQUIVALENT if wrong is None else Verdict.DIFFERENT)


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("wrong", [False, True])
def test_what_a_forward_fold_crosses_may_be_called_otherwise(tmp_path, wrong):
    def build(*, normalized):
        flat = "flat" if normalized else "flat_1"
        steps = [("one", step("Conv1D", 8, 2, activation="relu")), ("norm1", NORM)]
        steps += [(flat, step("Flatten")), ("two", step("Dense", 7)), ("out", step("Dense", 3))]
        return chain(*steps, shape=(5, 6))(normalized=normalized)

    def into_all_steps(layer, scale, shift):
        forward(layer, np.tile(scale, 4), np.tile(shift, 4))

    original, folded = fold(build, [("norm1", "two", into_all_steps)])
    if wrong:
        change(folded, "two", at=0)
    found = judge(tmp_path, original, folded)
    assert found.verdict is (Verdict.DIFFERENT if wrong else Verdict.EQUIVALENT)
    assert found.culprits == (("norm1",) if wrong else ())


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("wrong", [False, True])
def test_an_output_that_was_a_norm_may_be_called_as_what_took_it_in(tmp_path, wrong):
    steps = [("one", step("Dense", 8)), ("norm1", NORM), ("two", step("Dense", 7)), ("norm2", NORM)]
    original, folded = fold(chain(*steps), BACKWARD)
    if wrong:
        change(folded, "two")
    found = judge(tmp_path, original, folded)
    assert found.verdict is (Verdict.DIFFERENT if wrong else Verdict.EQUIVALENT)
    assert found.culprits == (("norm2",) if wrong else ())
    sentence = "is called 'two' instead of 'norm2', the name of a BatchNormalization that is gone"
    assert f"output 0 {sentence}" in found.warnings


# --- names that mislead ---------------------------------------------------------------------------


def counted(first):
    """A builder whose layers are numbered from `first`, as Keras numbers them."""

    def build(*, normalized):
        steps = []
        for number in range(3):
            steps += [
                (f"dense_{first + number}", step("Dense", 6)),
                (f"norm_{number}", NORM),
                (f"re_lu_{first + number}", RELU),
            ]
        return chain(*steps, ("out", step("Dense", 3)))(normalized=normalized)

    return build


@pytest.mark.usefixtures("keras_alone")
@pytest.mark.parametrize("shift", [1, 2])
def test_names_that_stand_for_other_layers_are_not_believed(tmp_path, shift):
    folds = [(f"norm_{number}", f"dense_{number}", backward) for number in range(3)]
    original, folded = fold(counted(0), folds)
    other = counted(shift)(normalized=False)
    other.set_weights(folded.get_weights())
    found = judge(tmp_path, original, other)
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    change(other, f"dense_{shift}")
    assert judge(tmp_path, original, other).verdict is Verdict.DIFFERENT
