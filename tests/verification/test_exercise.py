"""What samples must reach before a model counts as verified: ranges, breakpoints, every axis."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from keras import layers, ops

import bnfold
from bnfold.running import inputs
from bnfold.running.samples import PLAIN, InputSpec, Range, enlarged, generate
from bnfold.running.unrolled import unroll
from bnfold.verification import Basis, Verdict
from bnfold.verification.breakpoints import watched
from bnfold.verification.pairing import channel_axes
from bnfold.verification.tolerance import Reference, Truth, compare, errors, exercised_by_any, keys
from bnfold.verification.tolerance import Rule as ToleranceRule
from bnfold.verification.unchanged import unchanged

pytestmark = pytest.mark.usefixtures("keras_alone")  # and by ONNX Runtime in a run of all tests

# --- the range that a model is made for -----------------------------------------------------------


def normalized(**settings):
    return layers.Normalization(mean=[110.0, 120, 130], variance=[100.0, 400, 900], **settings)


def nested(layer):
    inside = keras.Input((8, 6, 3))
    return keras.Model(inside, layer(inside))


def discretized(x):
    return ops.cast(layers.Discretization(bin_boundaries=[0.0, 500.0, 1000.0])(x), "float32")


def normed(x):
    layer = layers.BatchNormalization()
    x = layer(x)
    layer.moving_mean.assign([50.0, 60, 70])
    layer.moving_variance.assign([100.0, 100, 100])
    return x


RANGES = {
    "nothing": (lambda x: x, 0, 1),
    "Rescaling": (layers.Rescaling(1 / 255), 0, 255),
    "Rescaling with an offset": (layers.Rescaling(1 / 127.5, offset=-1), 127.5, 127.5),
    "two of them": (lambda x: layers.Rescaling(2.0)(layers.Rescaling(1 / 510)(x)), 0, 255),
    "Normalization": (lambda x: normalized()(x), (110, 120, 130), (10, 20, 30)),
    "after a Permute": (
        lambda x: layers.Permute((2, 1, 3))(normalized()(layers.Permute((2, 1, 3))(x))),
        (110, 120, 130),
        (10, 20, 30),
    ),
    "channels first": (
        lambda x: layers.Permute((2, 3, 1))(normalized(axis=1)(layers.Permute((3, 1, 2))(x))),
        (110, 120, 130),
        (10, 20, 30),
    ),
    "after a Resizing": (lambda x: normalized()(layers.Resizing(5, 4)(x)), (110, 120, 130), 20),
    "operations": (lambda x: x / 255.0 - 0.5, 127.5, 255),
    "taken from a number": (lambda x: 1.0 - x / 100.0, 100, 100),
    "only moved": (lambda x: x - 127.5, 127.5, 127.5 / 2),
    "a cast": (lambda x: layers.Rescaling(0.01)(ops.cast(x, "float32")), 0, 100),
    "in a nested model": (lambda x: nested(layers.Rescaling(1 / 255))(x), 0, 255),
    "in a TimeDistributed": (
        lambda x: layers.TimeDistributed(layers.Rescaling(1 / 255))(x),
        0,
        255,
    ),
    "Discretization": (discretized, 500, 500),
    "moving statistics": (normed, (50, 60, 70), 10),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_first_layers_tell_the_range(name):
    make, center, spread = RANGES[name]
    given = keras.Input((8, 6, 3))
    model = keras.Model(given, layers.Conv2D(2, 3)(make(given)))
    (spec,) = inputs.input_specs(model)
    (found,) = spec.ranges
    assert np.allclose(
        np.broadcast_to(found.center, (1, 8, 6, 3)).mean((0, 1, 2)), center, rtol=0.2
    )
    assert np.allclose(
        np.broadcast_to(found.spread, (1, 8, 6, 3)).mean((0, 1, 2)), spread, rtol=0.6
    )


def test_each_way_from_an_input_has_its_range():
    one, two = keras.Input((4,)), keras.Input((4,))
    joined = layers.Concatenate()([layers.Dense(2)(one), layers.Dense(2)(one / 255.0)])
    other = layers.Dense(2)(layers.Rescaling(1 / 1000)(two))
    model = keras.Model([one, two], layers.Concatenate()([joined, other]))
    ranges = [sorted(float(a.spread) for a in b.ranges) for b in inputs.input_specs(model)]
    assert ranges == [[1, 255], [pytest.approx(1000)]]


def test_functions_of_tensorflow_tell_the_range_too():
    tf_keras = pytest.importorskip("tf_keras")
    given = tf_keras.Input((4, 4, 3))
    model = tf_keras.Model(given, tf_keras.layers.Conv2D(2, 3)((given - 127.5) / 127.5))
    ((found,),) = (spec.ranges for spec in inputs.input_specs(model))
    assert (found.center, found.spread) == (pytest.approx(127.5), pytest.approx(127.5))


@pytest.mark.parametrize(("budget", "count"), [(1 << 20, 33), (1 << 10, 2)])
@pytest.mark.few(1)
def test_large_activations_get_few_samples(budget, count, tmp_path, monkeypatch):
    """However small the input: the work goes by what the layers make of it, 3 kB for each here."""
    monkeypatch.setattr("bnfold.verification.case._VALUES_BUDGET", budget)
    given = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(4)(given))
    x = layers.UpSampling2D(8)(layers.Reshape((1, 1, 4))(x))
    keras.Model(given, layers.GlobalAveragePooling2D()(layers.ReLU()(x))).save(tmp_path / "a.keras")
    done = bnfold.fold(tmp_path / "a.keras", tmp_path / "b.keras").verification
    assert (done.verdict, done.sample_count) == (Verdict.EQUIVALENT, count)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8"])
def test_samples_cover_the_range(dtype):
    spec = InputSpec("x", (None, 50), dtype, ranges=(Range(np.array(128.0), np.array(128.0)),))
    drawn = np.concatenate([one.inputs[0] for one in generate([spec], 0, [32])])
    assert drawn.dtype == dtype
    assert drawn.min() <= 1
    assert drawn.max() >= 254


def test_plain_samples_can_be_drawn_larger():
    spec = InputSpec("x", (None, 50), "float32", ranges=(PLAIN,))
    plain, large = generate([spec], 0, [32])[0], enlarged([spec], 0, [32], 8, times=64.0)[0]
    assert np.ptp(large.inputs[0]) > 50 * np.ptp(plain.inputs[0])


# --- breakpoints ----------------------------------------------------------------------------------

BREAKPOINTS = {
    "ReLU": (layers.ReLU(max_value=4, negative_slope=0.1, threshold=1), [1, 4]),
    "LeakyReLU": (layers.LeakyReLU(), [0]),
    "PReLU": (layers.PReLU(), [0]),
    "Activation": (layers.Activation("hard_swish"), [-3, 3]),
    "relu6": (ops.relu6, [0, 6]),
    "clip": (lambda x: ops.clip(x, -2, 5), [-2, 5]),
    "clip on one side": (lambda x: ops.clip(x, -2, np.inf), [-2]),
    "maximum": (lambda x: ops.maximum(x, 0.5), [0.5]),
    "minimum": (lambda x: ops.minimum(2.0, x), [2]),
    "comparison": (lambda x: ops.greater(x, 2.0), [2]),
    "hard_shrink": (lambda x: ops.hard_shrink(x, 0.7), [-0.7, 0.7]),
    "hard_tanh": (layers.Activation("hard_tanh"), [-1, 1]),
    "Dense(relu6)": (layers.Dense(3, activation="relu6"), [0, 6]),
    "Dense(hard_sigmoid)": (layers.Dense(3, activation="hard_sigmoid"), [-3, 3]),
    "Dense(ReLU(2))": (layers.Dense(3, activation=layers.ReLU(max_value=2)), [0, 2]),
    "TimeDistributed": (layers.TimeDistributed(layers.ReLU(max_value=4)), [0, 4]),
}


@pytest.mark.parametrize("name", BREAKPOINTS)
def test_both_sides_of_each_breakpoint_are_told_apart(name):
    make, expected = BREAKPOINTS[name]
    given = keras.Input((7, 3))
    flat = unroll(keras.Model(given, make(given)))
    (call,) = flat.calls.values()
    found = watched(call)
    assert len(found.breakpoints) == len(expected)
    for point, at in zip(found.breakpoints, expected, strict=True):
        for number, sides in ((at - 0.01, (True, False)), (at + 0.01, (False, True))):
            value = np.full((1, 7, 3), number, "float32")
            if found.tensor is call.outputs[0]:
                value = np.asarray(call.layer.activation(value))
            assert point.sides(value) == sides


def test_smooth_layers_have_none():
    given = keras.Input((3,))
    flat = unroll(keras.Model(given, layers.Dense(2, activation="gelu")(ops.tanh(given))))
    assert all(watched(call) is None for call in flat.calls.values())


def clipped(folder, *, has_norm, scale, clip):
    """Dense, a clip at 6 and a BatchNormalization, or a wrong fold of it through the clip."""
    given = keras.Input((4,))
    x = layers.Dense(3, name="dense")(given)
    x = layers.ReLU(max_value=clip, negative_slope=1.0, name="clip")(x)
    if has_norm:
        x = layers.BatchNormalization(name="norm", center=False, epsilon=1e-3)(x)
    model = keras.Model(given, layers.Dense(2, name="out")(x))
    generator = np.random.default_rng(1)
    factor = np.array([0.5, 2, 4.0]) if has_norm else np.ones(3)
    kernel = generator.normal(size=(4, 3)) * (1 if has_norm else scale)
    model.get_layer("dense").set_weights([kernel, np.zeros(3)])
    if has_norm:
        model.get_layer("norm").set_weights([factor, np.zeros(3), np.full(3, 1 - 1e-3)])
    model.get_layer("out").set_weights([generator.normal(size=(3, 2)), np.zeros(2)])
    path = folder / f"{has_norm}.keras"
    model.save(path)
    return path


@pytest.fixture
def through_a_clip(tmp_path):
    original = clipped(tmp_path, has_norm=True, scale=1.0, clip=6.0)
    return original, clipped(tmp_path, has_norm=False, scale=np.array([0.5, 2, 4.0]), clip=None)


def test_data_that_never_reach_a_clip_leave_a_fold_through_it_undecided(through_a_clip, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 4)).astype("float32") / 9)
    found = bnfold.verify(*through_a_clip, data=tmp_path / "x.npy")
    assert found.verdict is Verdict.UNDECIDED
    assert any("'clip' was not exercised: no sample is above 6" in w for w in found.warnings)
    ((site),) = found.sites
    assert (site.status, site.excess) == ("not exercised", None)
    assert not found.accepted(strict=True)


def test_a_fold_through_a_clip_is_found(through_a_clip):
    found = bnfold.verify(*through_a_clip)
    assert found.verdict is Verdict.DIFFERENT
    assert "norm" in found.culprits


@keras.saving.register_keras_serializable("exercise")
def capped(x):
    return ops.clip(x, -5000.0, 5000.0)


@keras.saving.register_keras_serializable("exercise")
class Capped(layers.Layer):
    def call(self, x):
        return capped(x)


def folded(folder, across, *, has_norm, scales=(0.5, 2, 4.0), kernel_scales=(1, 1, 1.0)):
    """Dense, something, and a BatchNormalization that is folded into the Dense layer."""
    given = keras.Input((4,), name="given")
    x = across(given)
    if has_norm:
        x = layers.BatchNormalization(name="norm", center=False, epsilon=1e-3)(x)
    model = keras.Model(given, layers.Dense(2, name="out")(x))
    generator = np.random.default_rng(1)
    kernel = generator.normal(size=(4, 3)) * kernel_scales * (1 if has_norm else np.array(scales))
    model.get_layer("dense").set_weights([kernel, np.zeros(3)])
    if has_norm:
        model.get_layer("norm").set_weights([np.array(scales), np.zeros(3), np.full(3, 1 - 1e-3)])
    model.get_layer("out").set_weights([generator.normal(size=(3, 2)), np.zeros(2)])
    path = folder / f"{has_norm}.keras"
    model.save(path)
    return path


OPAQUE = {
    "layer": lambda x: Capped(name="own")(layers.Dense(3, name="dense")(x)),
    "function": lambda x: layers.Activation(capped, name="own")(layers.Dense(3, name="dense")(x)),
    "activation": lambda x: layers.Dense(3, activation=capped, name="dense")(x),
}


@pytest.mark.parametrize("kind", OPAQUE)
@pytest.mark.few(1)
def test_no_samples_prove_a_fold_across_custom_code(kind, tmp_path):
    across = OPAQUE[kind]
    original = folded(tmp_path, across, has_norm=True)
    found = bnfold.verify(original, folded(tmp_path, across, has_norm=False))
    assert found.verdict is Verdict.UNDECIDED
    assert any("breakpoints of its function are unknown" in warning for warning in found.warnings)
    assert [site.status for site in found.sites] == ["not exercised"]


def test_a_fold_in_front_of_a_custom_activation_crosses_nothing(tmp_path):
    given = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(3, activation="relu")(given))
    x = layers.Dense(3, activation=capped)(x)
    model = keras.Model(given, layers.Dense(3, activation="relu6")(x))
    model.save(tmp_path / "a.keras")
    data = np.random.default_rng(0).normal(size=(8, 4)) / 9  # which never reach 6
    done = bnfold.fold(tmp_path / "a.keras", tmp_path / "b.keras", data=data)
    assert (len(done.plan.folds), done.verification.verdict) == (1, Verdict.EQUIVALENT)


def test_each_channel_must_reach_a_clip(tmp_path):
    def across(x):
        x = layers.Dense(3, name="dense")(x)
        return layers.ReLU(max_value=6, negative_slope=1.0, name="clip")(x)

    small = {"scales": (1, 1, 4.0), "kernel_scales": (1, 1, 0.03)}
    original = folded(tmp_path, across, has_norm=True, **small)
    found = bnfold.verify(original, folded(tmp_path, across, has_norm=False, **small))
    assert (found.verdict, found.culprits) == (Verdict.DIFFERENT, ("norm",))


# --- what one sample and one axis cannot tell -----------------------------------------------------


def exercised(*values, counts=None):
    truths = [Truth(np.asarray(one, "float64")) for one in values]
    outcomes = [
        compare(Reference(one), None, errors(one.value, one.value), ToleranceRule())
        for one in truths
    ]
    found = exercised_by_any(truths, outcomes, counts or [len(one) for one in values])
    return {axis: one.tolist() for axis, one in found.items()}


def test_one_sample_is_not_told_from_a_constant():
    picture = np.arange(24.0).reshape(1, 2, 4, 3)
    assert exercised(picture) == {1: [False] * 2, 3: [False] * 3}
    assert exercised(np.repeat(picture, 2, axis=0))[3] == [False] * 3
    other = picture + np.array([0, 1, 0])
    assert exercised(picture, other) == {1: [True] * 2, 3: [False, True, False]}


def test_what_all_samples_come_to_together_counts_once():
    assert exercised([1.0, 2.0, 3.0], counts=[8])[None] == [False]
    assert exercised([1.0, 2.0, 3.0], [1.0, 2.5, 3.0], counts=[8, 8])[None] == [True]


def test_one_sample_of_data_says_nothing(through_a_clip, tmp_path):
    original, _ = through_a_clip
    np.save(tmp_path / "x.npy", 99 * np.ones((1, 4), "float32"))
    found = bnfold.verify(original, original, data=tmp_path / "x.npy")
    assert found.verdict is Verdict.UNDECIDED
    assert any("one sample" in warning for warning in found.warnings)


def test_channels_are_counted_along_the_axes_that_are_named():
    assert keys(4, [(2,)]) == [1, 3, 2]
    assert keys(4, [(-1,)]) == [1, 3]
    assert keys(4, [(2, 1)]) == [1, 3, (1, 2)]
    value = np.ones((2, 3, 5, 4))
    value[:, :, 1] = 1e-9
    off = value.copy()
    off[:, :, 1] = 0
    assert compare(Reference(Truth(value)), None, errors(value, off), ToleranceRule()).passed
    for axes in ([(2,)], [(2, 1)]):
        truth, error = Truth(value, axes), errors(value, off, axes=axes)
        assert not compare(Reference(truth), None, error, ToleranceRule()).passed


def test_layers_without_weights_leave_the_channels_where_they_are():
    one, two = keras.Input((3, 4, 5)), keras.Input((3, 4, 5))
    x = layers.BatchNormalization(axis=2)(one)
    x = layers.Concatenate(axis=1)([layers.ReLU()(x), two])
    y = layers.Permute((3, 1, 2))(layers.BatchNormalization()(two))
    z = layers.Conv2D(2, 1)(x)
    flat = unroll(keras.Model([one, two], [x, y, z]))
    axes = [channel_axes(flat, output) for output in flat.outputs]
    assert axes == [((1,), (2,)), ((1,), (2,), (3,)), ()]


def turned(*, has_norm, scale, wrapped):
    """A Dense layer along an axis that a Permute then puts into the middle."""
    given = keras.Input((5, 3, 4) if wrapped else (3, 4))
    dims = (1, 3, 2) if wrapped else (2, 1)
    x = layers.Dense(4, name="dense")(given)
    x = layers.Permute(dims, name="there")(x)
    if has_norm:
        norm = layers.BatchNormalization(axis=1, name="norm")
        x = layers.TimeDistributed(norm, name="norm")(x) if wrapped else norm(x)
    x = layers.Permute(dims, name="back")(x)
    model = keras.Model(given, x)
    kernel = np.random.default_rng(0).normal(size=(4, 4)) * (1 if has_norm else scale)
    model.get_layer("dense").set_weights([kernel, np.zeros(4)])
    if has_norm:
        gamma = np.array([1, 1e-9, 1, 1])
        model.get_layer("norm").set_weights([gamma, np.zeros(4), np.zeros(4), np.full(4, 1 - 1e-3)])
    return model


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.few(1)
def test_a_channel_that_was_zeroed_on_an_axis_in_the_middle_is_seen(tmp_path, wrapped):
    one, two = tmp_path / "original.keras", tmp_path / "folded.keras"
    turned(has_norm=True, scale=None, wrapped=wrapped).save(one)
    turned(has_norm=False, scale=np.array([1, 0, 1, 1]), wrapped=wrapped).save(two)
    found = bnfold.verify(one, two)
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("norm",)


# --- 16 bits --------------------------------------------------------------------------------------


def half(*, has_norm, gamma):
    given = keras.Input((4,))
    x = layers.Dense(3, name="dense", dtype="float16")(given)
    if has_norm:
        x = layers.BatchNormalization(name="norm", dtype="float16", epsilon=1e-3)(x)
    x = layers.ReLU(max_value=8, name="clip", dtype="float16")(x)
    model = keras.Model(given, layers.Dense(2, name="out", dtype="float32")(x))
    kernel = np.random.default_rng(0).normal(size=(4, 3)) * (1 if has_norm else gamma)
    model.get_layer("dense").set_weights([kernel, np.zeros(3)])
    if has_norm:
        ones = np.full(3, 1 - 1e-3)
        model.get_layer("norm").set_weights([gamma, np.zeros(3), np.zeros(3), ones])
    model.get_layer("out").set_weights([np.ones((3, 2)), np.zeros(2)])
    return model


def test_what_overflows_in_the_original_is_no_fault_of_the_fold(tmp_path):
    one, two = tmp_path / "original.keras", tmp_path / "folded.keras"
    gamma = np.array([1.0, 2.0, 9e3])
    half(has_norm=True, gamma=gamma).save(one)
    half(has_norm=False, gamma=gamma).save(two)
    found = bnfold.verify(one, two)
    assert found.verdict is not Verdict.DIFFERENT
    assert any("the original itself overflows" in warning for warning in found.warnings)
    half(has_norm=False, gamma=gamma * [1, 1.5, 1]).save(two)
    assert bnfold.verify(one, two).culprits == ("norm",)


# --- nothing to prove -----------------------------------------------------------------------------


def test_where_nothing_was_folded_the_files_are_compared(tmp_path, monkeypatch):
    given = keras.Input((4,))
    keras.Sequential([given, layers.Dense(3), layers.Dense(2)]).save(tmp_path / "model.keras")
    monkeypatch.setattr("bnfold.jobs.verify.verify", None)
    found = bnfold.fold(tmp_path / "model.keras", tmp_path / "out.keras").verification
    assert (found.verdict, found.basis) == (Verdict.EQUIVALENT, Basis.FILES)
    assert found.accepted(strict=True)


def test_files_that_differ_in_one_number_are_not_the_same(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("adam", "mse")
    model.save(tmp_path / "one.keras")
    model.compile("sgd", "mse")
    model.save(tmp_path / "two.keras")
    assert unchanged(tmp_path / "one.keras", tmp_path / "two.keras", 0) is not None
    kernel, bias = model.get_weights()
    model.set_weights([kernel, bias + np.eye(3)[1]])
    model.save(tmp_path / "two.keras")
    assert unchanged(tmp_path / "one.keras", tmp_path / "two.keras", 0) is None
