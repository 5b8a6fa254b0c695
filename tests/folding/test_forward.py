"""Paths in both directions, through structure of all kinds, and what must stay, on real models.

A row is a model. Plain Keras loads what the fold made of it, and it computes the same; in float64
wherever TensorFlow has kernels, so that an error has nowhere to hide.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maps import BN, TD, Build, L, inner, ops
from support import BOTH, KERAS, chain, examine, keras, randomize, samples
from tiers import by_turns

pytestmark = pytest.mark.usefixtures("double")


# --- structure -----------------------------------------------------------------------------------


def nested_forward() -> Any:
    return chain((4,), BN(), inner(L.Dense(3), L.ReLU()))


def nested_backward() -> Any:
    return chain((4,), inner(L.ReLU(), L.Dense(3)), BN())


def out_of_a_nested_model() -> Any:
    return chain((4,), inner(L.ReLU(), BN()), L.Dense(3))


def into_a_nested_model_from_inside() -> Any:
    return chain((4,), L.Dense(4), inner(BN(), L.ReLU()), L.Dense(3))


def nested_deep() -> Any:
    lowest = inner(L.Dropout(0.1), L.Dense(4), name="lowest")
    return chain((4,), BN(), inner(inner(lowest, name="middle"), name="upper"), BN())


def nested_only_batchnorm() -> Any:
    return chain((4,), L.Dense(4), inner(BN()), L.ReLU(), inner(BN(), name="again"), L.Dense(2))


def nested_sequential() -> Any:
    block = keras.Sequential([keras.Input((4,)), BN(), L.Dense(3), L.ReLU(), BN()], name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dropout(0.1), L.Dense(2)])


def nested_only_batchnorm_sequential() -> Any:
    block = keras.Sequential([keras.Input((4,)), BN()], name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dense(2)])


def nested_wrapped() -> Any:
    block = inner(L.ReLU(), L.Dense(3), shape=(4,))
    return chain((2, 4), BN(), L.Dense(4), TD(block), BN())


def nested_wrapped_inside() -> Any:
    block = keras.Sequential([keras.Input((4,)), L.ReLU(), BN()])
    return chain((2, 4), TD(block), L.Dense(3))


def nested_twice() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    block = inner(L.ReLU(), BN(), L.Dropout(0.1), L.Dense(4))
    return keras.Model([left, right], L.Subtract()([block(left), block(L.ReLU()(block(right)))]))


def nested_several_inputs() -> Any:
    inside = [keras.Input((4,)), keras.Input((3,))]
    block = keras.Model(inside, L.Dense(2)(L.Concatenate()(inside)), name="block")
    left, right = keras.Input((4,)), keras.Input((3,))
    return keras.Model([left, right], block([BN()(left), BN()(right)]))


def nested_several_outputs() -> Any:
    inside = keras.Input((4,))
    block = keras.Model(inside, [L.Dense(3)(inside), L.Dense(2)(inside)], name="block")
    first = keras.Input((4,))
    one, two = block(first)
    return keras.Model(first, [BN()(one), L.ReLU()(BN()(two))])


def shared_producer() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    dense, norm = L.Dense(3), BN()
    parts = [norm(dense(left)), norm(dense(right))]
    return keras.Model([left, right], L.Concatenate()(parts))


def shared_consumer() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    dense, norm = L.Dense(3), BN()
    parts = [dense(norm(left)), dense(norm(right))]
    return keras.Model([left, right], L.Multiply()(parts))


def shared_batchnorm_alone() -> Any:
    left, right, norm = keras.Input((4,)), keras.Input((4,)), BN()
    parts = [norm(L.Dense(3)(left)), norm(L.Dense(3, use_bias=False)(right))]
    return keras.Model([left, right], L.Subtract()(parts))


def shared_activation() -> Any:
    left, right, drop = keras.Input((4,)), keras.Input((4,)), L.Dropout(0.1)
    parts = [L.Dense(3)(drop(BN()(left))), L.Dense(3)(drop(right))]
    return keras.Model([left, right], L.Subtract()(parts))


def shared_in_an_add() -> Any:
    """The shift must go to the third branch: the shared layer's calls must ask for the same."""
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    parts = [dense(left), dense(right), L.Dense(3)(left)]
    return keras.Model([left, right], BN()(L.Add()(parts)))


def shared_in_an_average() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], BN()(L.Average()([dense(left), dense(right)])))


def tutorial() -> Any:
    """What every tutorial does, with average pooling."""
    layers = [
        *(L.Conv2D(4, 3, activation="relu"), BN(), L.AveragePooling2D(2), L.Dropout(0.2)),
        *(L.Conv2D(5, 2, activation="relu"), BN(), L.Flatten(), L.Dense(6, activation="relu")),
        *(BN(), L.Dropout(0.5), L.Dense(3, activation="softmax")),
    ]
    return keras.Sequential([keras.Input((10, 9, 1)), *layers])


def dcgan() -> Any:
    layers = [
        *(L.Dense(2 * 3 * 4, use_bias=False), L.Reshape((2, 3, 4)), BN(), L.ReLU()),
        *(L.Conv2DTranspose(3, 3, strides=2, padding="same", use_bias=False), BN(), L.LeakyReLU()),
    ]
    return keras.Sequential([keras.Input((5,)), *layers])


def branches() -> Any:
    first = keras.Input((6, 5, 3))
    parts = [L.Conv2D(2, 1)(first), L.Conv2D(3, 3, padding="same")(first)]
    parts.append(L.Conv2D(2, 1)(L.MaxPooling2D(3, strides=1, padding="same")(first)))
    top = BN()(L.Dropout(0.2)(L.Concatenate()(parts)))
    return keras.Model(first, L.ReLU()(BN()(L.Add()([top, L.Conv2D(7, 1)(first)]))))


def into_both_sides() -> Any:
    first = keras.Input((6, 5, 3))
    middle = L.Conv2D(4, 2)(BN()(first))
    return keras.Model(first, L.Dense(2)(BN()(L.ReLU()(BN()(middle)))))


def axes_in_a_row() -> Any:
    """One layer takes in maps on two of its axes, one behind the other."""
    layer = L.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="e")
    return chain((3, 4), layer, BN(axis=2), BN(axis=3))


def wrapped_rows() -> Any:
    return chain((3, 4), TD(BN()), BN(), L.Dropout(0.1), TD(BN()), TD(L.Dense(3)))


def ops_and_layers() -> Any:
    first = keras.Input((4,))
    tensor = L.Dense(4)(first) * 0.5
    tensor = BN()(tensor + L.Dense(4)(first))
    return keras.Model(first, L.Dense(2)(BN()(ops.tanh(tensor)) / 3 - 1))


STRUCTURE: dict[str, tuple[Build, tuple[str, ...]]] = {
    build.__name__: (build, forms)
    for build, forms in [
        (nested_forward, BOTH),
        (nested_backward, BOTH),
        (out_of_a_nested_model, BOTH),
        (into_a_nested_model_from_inside, BOTH),
        (nested_deep, BOTH),
        (nested_only_batchnorm, BOTH),
        (nested_sequential, BOTH),
        (nested_only_batchnorm_sequential, BOTH),
        (nested_wrapped, KERAS),
        (nested_wrapped_inside, KERAS),
        (nested_twice, BOTH),
        (nested_several_inputs, BOTH),
        (nested_several_outputs, BOTH),
        (shared_producer, BOTH),
        (shared_consumer, BOTH),
        (shared_batchnorm_alone, BOTH),
        (shared_activation, BOTH),
        (shared_in_an_add, BOTH),
        (shared_in_an_average, BOTH),
        (tutorial, BOTH),
        (dcgan, BOTH),
        (branches, BOTH),
        (into_both_sides, BOTH),
        (axes_in_a_row, BOTH),
        (wrapped_rows, KERAS),
        (ops_and_layers, KERAS),
    ]
}


@pytest.mark.parametrize("name", STRUCTURE)
@pytest.mark.few(5)
def test_structure(name: str, tmp_path: Path) -> None:
    build, forms = STRUCTURE[name]
    examine(randomize(build()), tmp_path, forms=by_turns(forms))


# --- what must stay ------------------------------------------------------------------------------


def added_twice() -> Any:
    first = keras.Input((4,))
    hidden = L.Dense(4)(first)
    return keras.Model(first, BN()(L.Add()([hidden, hidden])))


def siamese_subtract() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], BN()(L.Subtract()([dense(left), dense(right)])))


def one_of_two_calls() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], L.Concatenate()([BN()(dense(left)), dense(right)]))


def one_consumer_of_two() -> Any:
    first = keras.Input((4,))
    normal = BN()(first)
    return keras.Model(first, [L.Dense(2)(normal), ops.tanh(normal)])


def output_in_the_middle() -> Any:
    first = keras.Input((4,))
    normal = L.Dropout(0.1)(BN()(first))
    return keras.Model(first, [L.Dense(2)(normal), normal])


def branch_read_elsewhere() -> Any:
    first = keras.Input((4,))
    one, two = L.Dense(3)(first), L.Dense(3)(first)
    return keras.Model(first, [BN()(L.Add()([one, two])), L.ReLU()(two)])


def spread_branch() -> Any:
    first = keras.Input((3, 5))
    return keras.Model(first, BN()(L.Add()([L.Dense(4)(first), L.Dense(1)(first)])))


def spread_branch_ops() -> Any:
    first, second = keras.Input((3, 5)), keras.Input((2,))
    return keras.Model([first, second], BN(axis=1)(L.Conv1D(4, 1)(first) + L.Dense(4)(second)))


def ranks_that_differ() -> Any:
    first, second = keras.Input((3, 5)), keras.Input((2,))
    return keras.Model([first, second], BN()(L.Add()([L.Dense(4)(first), L.Dense(4)(second)])))


def initial_state() -> Any:
    first, state = keras.Input((4, 3)), keras.Input((2,))
    return keras.Model([first, state], L.GRU(2)(first, initial_state=BN()(state)))


def live_dropout() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, L.Dense(3)(L.Dropout(0.0)(BN()(first), training=True)))


def live_lstm() -> Any:
    first = keras.Input((3, 4))
    return keras.Model(first, L.LSTM(3, dropout=0.2)(BN()(first), training=True))


def live_nested_dropout() -> Any:
    first = keras.Input((4,))
    block = inner(L.Dropout(0.0), L.Dense(3))
    return keras.Model(first, block(BN()(first), training=True))


def integers() -> Any:
    first = keras.Input((6, 4), dtype="int32")
    return keras.Model(first, L.Conv1D(3, 2)(BN()(first)))


def integers_handed_on() -> Any:
    layers = [keras.Input((4, 1), dtype="int32"), L.Flatten(), BN(), L.Dense(3)]
    return keras.Sequential(layers)


def other_dtype() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, L.Dense(3, dtype="float32")(BN()(first)))


def other_dtype_between() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(L.Dropout(0.1, dtype="float32")(L.Dense(4)(first))))


def nested_called_twice_outside() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    block = inner(L.Dense(4))
    return keras.Model([left, right], L.Subtract()([block(BN()(left)), block(right)]))


def nested_output_used_twice() -> Any:
    inside = keras.Input((4,))
    hidden = L.Dense(4)(inside)
    block = keras.Model(inside, [hidden, L.ReLU()(hidden)])
    first = keras.Input((4,))
    one, two = block(first)
    return keras.Model(first, [BN()(one), two])


def time_axis_around() -> Any:
    return chain((4, 4), TD(L.Dense(4)), BN(axis=1))


def bidirectional_axis() -> Any:
    return chain((4, 4), BN(axis=1), L.Bidirectional(L.LSTM(3)))


def custom_between() -> Any:
    return chain((4,), L.Dense(4), L.Lambda(lambda x: x), BN())


def batch_axis() -> Any:
    return chain((4,), L.Dense(4), BN(axis=0), batch_size=3)


def feeds_itself() -> Any:
    first, norm = keras.Input((4,)), BN()
    return keras.Model(first, norm(norm(first)))


def divided_by() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(1.0 / L.Dense(4)(first)))


def maximum_with_a_number() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(ops.maximum(L.Dense(4)(first), 0.0)))


STAY: dict[str, tuple[Build, str]] = {
    build.__name__: (build, reason)
    for build, reason in [
        (added_twice, "would need two maps"),
        (siamese_subtract, "called 2 times"),
        (one_of_two_calls, "called 2 times"),
        (one_consumer_of_two, "is an operation that cannot"),
        (output_in_the_middle, "is an output of the model"),
        (branch_read_elsewhere, "is also read by"),
        (spread_branch, "spreads one of its inputs"),
        (spread_branch_ops, "joins tensors of different ranks"),
        (ranks_that_differ, "different ranks"),
        (initial_state, "another place than its input"),
        (live_dropout, "training=True"),
        (live_lstm, "training=True"),
        (live_nested_dropout, "training=True"),
        (integers, "would read int32 instead of float64"),
        (integers_handed_on, "is not known"),
        (other_dtype, "another dtype"),
        (other_dtype_between, "another dtype"),
        (nested_called_twice_outside, "called 2 times"),
        (nested_output_used_twice, "also an output of Functional"),
        (time_axis_around, "axis"),
        (bidirectional_axis, "not the channel axis"),
        (custom_between, "can neither absorb"),
        (batch_axis, "the batch"),
        (feeds_itself, "first layer"),
        (divided_by, "multiplies with zero"),
        (maximum_with_a_number, "multiplies with zero"),
    ]
}


@pytest.mark.parametrize("name", STAY)
@pytest.mark.few(4)
def test_what_must_stay_says_why(name: str, tmp_path: Path) -> None:
    build, reason = STAY[name]
    plan = examine(randomize(build()), tmp_path, left=1, reason=reason, forms=KERAS)
    said = plan.blocked[0].reason
    tells_both = said.startswith("backward: ") and "; forward: " in said
    assert tells_both != (name == "batch_axis")  # which is the same in both directions


def test_both_directions_name_their_obstacle(tmp_path: Path) -> None:
    layers = [L.Conv2D(4, 3, activation="relu", name="c1"), BN()]
    model = chain((8, 8, 3), *layers, L.Conv2D(2, 3, padding="same", name="c2"))
    plan = examine(randomize(model), tmp_path, left=1, forms=KERAS)
    assert plan.blocked[0].reason == (
        "backward: Conv2D 'c1' before it applies relu; forward: Conv2D 'c2' after it pads with "
        "zeros and the shift of 4 of 4 channels is not zero"
    )
    assert plan.blocked[0].named == (("c1",), ("c2",))


def test_kept_layers_are_neither_folded_nor_edited(tmp_path: Path) -> None:
    from support import fold_file

    model = randomize(chain((4,), BN(name="a"), BN(name="b"), L.Dense(3, name="d"), BN(name="c")))
    model.save(tmp_path / "m.keras")
    for keep, folded in ((["a"], ["b", "c"]), (["b"], ["c"]), (["d"], ["b"]), (["c"], ["a", "b"])):
        plan = fold_file(tmp_path / "m.keras", tmp_path / f"{keep[0]}.keras", keep=keep)
        assert [fold.batchnorm.path[-1] for fold in plan.folds] == folded, keep


def test_masks_do_not_matter_to_a_map(tmp_path: Path) -> None:
    layers = [L.Embedding(6, 4, mask_zero=True), L.ReLU(), BN(), L.LSTM(3)]
    model = randomize(chain((5,), *layers, dtype="int32"))
    inputs = samples(model)
    inputs[:, ::2] = 0
    examine(model, tmp_path, inputs=inputs, forms=KERAS)


CHANNELS_FIRST: dict[str, Build] = {
    "conv2d-forward": lambda: chain((3, 6, 7), BN(axis=1), L.Conv2D(4, 3)),
    "depthwise-forward": lambda: chain((3, 6, 7), BN(axis=1), L.DepthwiseConv2D(3)),
    "conv1d-forward": lambda: chain((3, 7), BN(axis=1), L.Conv1D(4, 2, groups=1)),
    "pooling": lambda: chain((3, 6, 7), L.Conv2D(4, 3), L.AveragePooling2D(2), BN(axis=1)),
    "global": lambda: chain((3, 6, 7), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), BN()),
    "global-keepdims": lambda: chain(
        (3, 6, 7), L.Conv2D(4, 3), L.GlobalAveragePooling2D(keepdims=True), BN(axis=1)
    ),
    "global-forward": lambda: chain(
        (3, 6, 7), L.ReLU(), BN(axis=1), L.GlobalAveragePooling2D(), L.Dense(2)
    ),
    "flatten-forward": lambda: chain((3, 2, 5), L.ReLU(), BN(axis=1), L.Flatten(), L.Dense(2)),
    "concatenate": lambda: _channels_first_concatenate(),
}


def _channels_first_concatenate() -> Any:
    first = keras.Input((3, 6, 7))
    parts = [L.Conv2D(4, 1)(first), L.Conv2D(3, 1)(first)]
    return keras.Model(first, BN(axis=1)(L.Concatenate(axis=1)(parts)))


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name: str, tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_first")
    try:
        examine(randomize(CHANNELS_FIRST[name]()), tmp_path)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("form", BOTH)
def test_folding_again_changes_nothing(form: str, tmp_path: Path) -> None:
    from support import fold_file, load

    first, second, third = (tmp_path / f"{name}{form}" for name in ("first", "second", "third"))
    randomize(nested_sequential()).save(first)
    assert fold_file(first, second).folds
    assert not fold_file(second, third).decisions
    for old, new in zip(load(second).get_weights(), load(third).get_weights(), strict=True):
        assert np.array_equal(old, new)


# --- advice --------------------------------------------------------------------------------------


def advice(model: Any, folder: Path) -> list[tuple[str, ...]]:
    plan = examine(randomize(model), folder, left=None, forms=KERAS)
    return [blocked.remedies for blocked in plan.blocked]


ADVICE: dict[str, tuple[Build, Build, str]] = {
    "activation": (
        lambda: chain(
            (8, 3), L.Conv1D(4, 3, activation="relu"), BN(), L.Conv1D(4, 3, padding="same")
        ),
        lambda: chain((8, 3), L.Conv1D(4, 3), BN(), L.ReLU(), L.Conv1D(4, 3, padding="same")),
        "between Conv1D 'conv1d' and its activation",
    ),
    "relu": (
        lambda: chain((8, 3), L.Conv1D(4, 3), L.ReLU(), BN(), L.Softmax()),
        lambda: chain((8, 3), L.Conv1D(4, 3), BN(), L.ReLU(), L.Softmax()),
        "on the other side of ReLU 're_lu'",
    ),
    "padding": (
        lambda: chain((8, 3), BN(), L.Conv1D(4, 3, padding="same"), L.Softmax()),
        lambda: chain((8, 3), L.Conv1D(4, 3, padding="same"), BN(), L.Softmax()),
        "on the other side of Conv1D 'conv1d'",
    ),
    "training mode": (
        lambda: dropping(training=True),
        lambda: dropping(),
        "call Dropout 'dropout' without training=True",
    ),
}


@keras.saving.register_keras_serializable("carry")
class Opaque(L.Layer):  # type: ignore[misc]
    """A layer behind which no shape is known, where the file notes none."""

    def call(self, inputs: Any) -> Any:
        return inputs


def dropping(**arguments: Any) -> Any:
    inputs = keras.Input((5,))
    dropped = L.Dropout(0.5)(L.Dense(4)(inputs), **arguments)
    return keras.Model(inputs, L.Softmax()(BN(trainable=False)(dropped)))


@pytest.mark.parametrize("name", ADVICE)
def test_who_follows_the_advice_gets_a_model_that_folds(name: str, tmp_path: Path) -> None:
    before_it, after_it, sentence = ADVICE[name]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert [
        sentence in "; ".join(remedies) for remedies in advice(before_it(), tmp_path / "a")
    ] == [True]
    assert advice(after_it(), tmp_path / "b") == []


NO_ADVICE: dict[str, Build] = {
    # On the other side of the activation it would stand behind a layer that applies one itself.
    "activations": lambda: chain(
        (8, 3), L.Conv1D(4, 3, activation="tanh"), L.ReLU(), BN(), L.Softmax()
    ),
    # On the other side of the convolution it would stand behind an activation.
    "padding": lambda: chain((8, 3), BN(), L.Conv1D(4, 3, padding="same", activation="relu")),
}


@pytest.mark.parametrize("name", NO_ADVICE)
def test_there_is_no_advice_that_does_not_help(name: str, tmp_path: Path) -> None:
    assert advice(NO_ADVICE[name](), tmp_path) == [()]


UNKNOWN_RANK: dict[str, tuple[Callable[[], Sequence[Any]], bool]] = {
    "Dense": (lambda: [L.Dense(4)], True),
    "Dense with an activation": (lambda: [L.Dense(4, activation="relu")], False),
    "nothing": (list, False),
}


@pytest.mark.parametrize("name", UNKNOWN_RANK)
def test_an_axis_counts_from_the_end_where_no_rank_is_known(name: str, tmp_path: Path) -> None:
    """A legacy Sequential notes no shapes behind a layer that is not known."""
    between, folds = UNKNOWN_RANK[name]
    found = []
    for axis in (2, -1):
        parts = [keras.Input((5, 3)), Opaque(), *between(), BN(axis=axis), L.Softmax()]
        model = randomize(keras.Sequential(parts))
        found.append(examine(model, tmp_path, left=None, forms=[".h5"]))
    (before,) = found[0].blocked
    assert "the rank is unknown" in before.reason
    assert bool(found[1].folds) == folds
