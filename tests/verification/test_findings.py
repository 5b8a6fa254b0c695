"""Which layer the judge blames, and that it blames none where a fold is right.

The folds are those of `wrong_folds`; what is wrong with one is changed here, weight by weight.
"""

from dataclasses import replace

import keras
import numpy as np
import pytest
from wrong_folds import Fold, folded, forward, line, model, save, with_paths, with_weights

from bnfold.verification import Verdict
from bnfold.verification.verify import verify

pytestmark = pytest.mark.usefixtures("keras_alone")  # and by ONNX Runtime in a run of all tests


def drawn(net):
    """The net with random weights."""
    keras.utils.set_random_seed(3)
    net = with_weights(net, model(net))
    generator = np.random.default_rng(7)
    return replace(net, weights={path: random(w, generator) for path, w in net.weights.items()})


def random(weights, generator):
    if "gamma" not in weights:
        biases = {name: one for name, one in weights.items() if name == "bias"}
        return weights | {
            name: 0.3 * generator.normal(size=one.shape) for name, one in biases.items()
        }
    size = weights["gamma"].size
    return {
        "gamma": generator.uniform(0.5, 1.5, size),
        "beta": generator.normal(size=size),
        "moving_mean": generator.normal(size=size),
        "moving_variance": generator.uniform(0.5, 2, size),
    }


def judge(folder, original, other):
    one, two = save(original, folder / "original.keras"), save(other, folder / "folded.keras")
    return verify(one, two)


def assign(net, path, **variables):
    """The net with other values in some variables of a layer."""
    return replace(net, weights={**net.weights, path: {**net.weights[path], **variables}})


def change(net, path, by=0.01, *, of="bias", channel=2):
    """The net with another number in one channel of one variable of a layer."""
    value = net.weights[path][of]
    return assign(net, path, **{of: value + by * (np.arange(value.shape[-1]) == channel)})


def statuses(found):
    return {site.name: site.status.value for site in found.sites}


def row(name, kind, **options):
    return name, kind, options


def dense(name, units, **options):
    return row(name, "Dense", units=units, **options)


def norm(name):
    return row(name, "BatchNormalization", epsilon=1e-3)


def relu(name):
    return row(name, "ReLU")


# --- forward folds one after the other ------------------------------------------------------------

FORWARD = {
    "dense": ("Dense", {"units": 8, "activation": "relu"}, (6,)),
    "convolution": ("Conv1D", {"filters": 8, "kernel_size": 2, "activation": "tanh"}, (9, 6)),
    "recurrent": ("LSTM", {"units": 8, "return_sequences": True}, (3, 6)),
}


def two_forward(kind):
    *layer, shape = FORWARD[kind]
    rows = [("one", *layer), norm("norm1"), ("two", *layer), norm("norm2"), ("out", *layer)]
    original = drawn(line(shape, *rows))
    folds = [Fold("norm1", ("two",), forward), Fold("norm2", ("out",), forward)]
    return original, folded(original, folds)


@pytest.mark.parametrize("kind", FORWARD)
@pytest.mark.few(1)
def test_a_fold_forward_may_follow_another(tmp_path, kind):
    found = judge(tmp_path, *two_forward(kind))
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert statuses(found) == {"norm1": "matched", "norm2": "matched"}


@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize(("layer", "culprit"), [("two", "norm1"), ("out", "norm2")])
@pytest.mark.few(1)
def test_the_wrong_one_of_two_forward_folds_is_named(tmp_path, kind, layer, culprit):
    original, right = two_forward(kind)
    found = judge(tmp_path, original, change(right, layer, of="kernel"))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == (culprit,)


def test_a_fold_may_be_carried_back_across_another_and_a_prelu(tmp_path):
    slopes = row("slopes", "PReLU", alpha_initializer=keras.initializers.Constant(0.3))
    rows = [dense("linear", 8), norm("norm1"), slopes, norm("norm2"), dense("out", 3)]
    original = drawn(line((6,), *rows))
    original = assign(original, "norm2", beta=np.zeros(8), moving_mean=np.zeros(8))
    right = folded(original, [Fold("norm1", ("linear",)), Fold("norm2", ("linear",))])
    found = judge(tmp_path, original, right)
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert statuses(found) == {"norm1": "matched", "norm2": "matched"}


# --- what layers downstream hide ------------------------------------------------------------------

TWO = line(
    (6,),
    *(dense("one", 8), norm("norm1"), relu("relu1")),
    *(dense("two", 7), norm("norm2"), relu("relu2"), dense("out", 3)),
)
BACKWARD = [Fold("norm1", ("one",)), Fold("norm2", ("two",))]


@pytest.mark.slow
def test_an_error_in_a_channel_that_a_relu_closes_is_seen(tmp_path):
    original = change(drawn(TWO), "norm1", -100, of="beta")
    right = folded(original, BACKWARD)
    assert judge(tmp_path, original, right).verdict is Verdict.EQUIVALENT
    found = judge(tmp_path, original, change(right, "one", 5))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm1",)


@pytest.mark.slow
def test_noisy_channels_buy_no_tolerance_for_the_others(tmp_path):
    """Half of the channels have means of a hundred thousand deviations, which make them noisy."""
    original, noisy = drawn(TWO), np.arange(8) < 4
    mean = np.where(noisy, 1e5, original.weights["norm1"]["moving_mean"])
    original = assign(original, "norm1", moving_mean=mean)
    original = assign(original, "one", bias=np.where(noisy, 1e5, 0))
    right = folded(original, BACKWARD)
    found = judge(tmp_path, original, right)
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    assert found.reference == "keras float64"
    found = judge(tmp_path, original, change(right, "one", 0.001, channel=6))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm1",)


# --- layers that are no fold sites ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "of"), [("one", "kernel"), ("norm1", "gamma"), ("out", "kernel")]
)
@pytest.mark.few(1)
def test_a_layer_that_was_kept_but_changed_is_named(tmp_path, layer, of):
    original = drawn(TWO)
    right = folded(original, BACKWARD[1:])
    assert judge(tmp_path, original, right).verdict is Verdict.EQUIVALENT
    found = judge(tmp_path, original, change(right, layer, of=of))
    assert found.culprits == (layer,)
    sentence = f"layer {layer!r} does not compute what it computes in the original"
    assert found.differences[0] == sentence


KEPT = line(
    (6,),
    *(dense("one", 8), norm("norm1"), relu("relu")),
    *(dense("two", 7), norm("norm2"), dense("out", 3)),
)


def test_a_layer_that_was_changed_is_named_where_no_norm_is_gone(tmp_path):
    original = drawn(KEPT)
    found = judge(tmp_path, original, change(original, "norm2", of="gamma"))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm2",)


@pytest.mark.parametrize("wrong", [None, "two"])
@pytest.mark.few(1)
def test_a_norm_may_stay_as_one_that_does_nothing(tmp_path, wrong):
    original = drawn(KEPT)
    other = replace(original, weights=original.weights | folded(original, BACKWARD).weights)
    for name, size in (("norm1", 8), ("norm2", 7)):
        zeros, ones = np.zeros(size), np.ones(size)
        nothing = {"gamma": ones, "beta": zeros, "moving_mean": zeros}
        other = assign(other, name, **nothing, moving_variance=ones - 1e-3)
    if wrong is not None:
        other = change(other, wrong)
    found = judge(tmp_path, original, other)
    assert found.verdict is (Verdict.EQUIVALENT if wrong is None else Verdict.DIFFERENT)
    assert found.culprits == (() if wrong is None else (wrong,))


@pytest.mark.slow
def test_an_activation_that_was_changed_is_named(tmp_path):
    """And not the BatchNormalization after it, whose fold is right."""

    def rows(activation):
        first = dense("one", 8), norm("norm1"), row("activation", "Activation", **activation)
        return *first, dense("two", 7), norm("norm2"), dense("out", 3)

    original = drawn(line((6,), *rows({"activation": "relu"})))
    linear = line((6,), *rows({"activation": "linear"}))
    wrong = folded(replace(linear, weights=original.weights), BACKWARD)
    found = judge(tmp_path, original, wrong)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("activation",)
    assert statuses(found)["norm1"] == "matched"


# --- what other tools make of a model -------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("wrong", [None, "one", "two"])
@pytest.mark.few(1)
def test_activations_may_be_fused_or_called_otherwise(tmp_path, fused, wrong):
    original = drawn(TWO)
    rows = []
    for name, units, other in (("one", 8, "other1"), ("two", 7, "other2")):
        if fused:
            rows += [dense(name, units, activation="relu")]
        else:
            rows += [dense(name, units), relu(other)]
    other = line((6,), *rows, dense("out", 3))
    other = replace(other, weights=folded(original, BACKWARD).weights)
    if wrong is not None:
        other = change(other, wrong)
    found = judge(tmp_path, original, other)
    assert found.culprits == (() if wrong is None else ({"one": "norm1", "two": "norm2"}[wrong],))
    assert found.verdict is (Verdict.EQUIVALENT if wrong is None else Verdict.DIFFERENT)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.few(1)
def test_what_a_forward_fold_crosses_may_be_called_otherwise(tmp_path, wrong):
    rows = [row("one", "Conv1D", filters=8, kernel_size=2, activation="relu"), norm("norm1")]
    rows += [row("flat", "Flatten"), dense("two", 7), dense("out", 3)]
    original = drawn(line((5, 6), *rows))
    other = folded(original, [Fold("norm1", ("two",), forward)])
    other = with_paths(other, lambda path: {"flat": "flat_1"}.get(path, path))
    if wrong:
        other = change(other, "two", of="kernel")
    found = judge(tmp_path, original, other)
    assert found.verdict is (Verdict.DIFFERENT if wrong else Verdict.EQUIVALENT)
    assert found.culprits == (("norm1",) if wrong else ())


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.few(1)
def test_an_output_that_was_a_norm_may_be_called_as_what_took_it_in(tmp_path, wrong):
    rows = dense("one", 8), norm("norm1"), dense("two", 7), norm("norm2")
    original = drawn(line((6,), *rows))
    other = folded(original, BACKWARD)
    assert other.steps[-1].path == "norm2"  # an Activation that keeps the name
    other = replace(other, steps=other.steps[:-1])
    if wrong:
        other = change(other, "two")
    found = judge(tmp_path, original, other)
    assert found.verdict is (Verdict.DIFFERENT if wrong else Verdict.EQUIVALENT)
    assert found.culprits == (("norm2",) if wrong else ())
    sentence = "is called 'two' instead of 'norm2', the name of a BatchNormalization that is gone"
    assert f"output 0 {sentence}" in found.warnings


# --- names that mislead ---------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.few(1)
def test_names_that_stand_for_other_layers_are_not_believed(tmp_path, shift):
    """The layers of the other model are numbered from `shift`, as Keras may number them."""
    rows = [
        one
        for n in range(3)
        for one in (dense(f"dense_{n}", 6), norm(f"norm_{n}"), relu(f"re_lu_{n}"))
    ]
    original = drawn(line((6,), *rows, dense("out", 3)))

    def later(path):
        name, _, number = path.rpartition("_")
        return f"{name}_{int(number) + shift}" if name else path

    other = folded(original, [Fold(f"norm_{n}", (f"dense_{n}",)) for n in range(3)])
    other = with_paths(other, later)
    found = judge(tmp_path, original, other)
    assert found.verdict is Verdict.EQUIVALENT, found.differences
    wrong = change(other, f"dense_{shift}")
    assert judge(tmp_path, original, wrong).verdict is Verdict.DIFFERENT
