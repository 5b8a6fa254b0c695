"""Backward folds, proved on real models: plain Keras loads the folded file and computes the same.

A row is a model and what must become of its BatchNormalization layers. Models compute in float64
wherever TensorFlow has kernels for it, so that an error has nowhere to hide: what a correct fold
changes there is rounding, some 1e-15.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maps import BN, TD, Build, L
from support import (
    BOTH,
    KERAS,
    LEGACY,
    batchnorms,
    chain,
    examine,
    fold_file,
    keras,
    load,
    numbers,
    randomize,
    samples,
)
from tiers import by_turns

from bnfold.folding.plan import plan
from bnfold.model.container.model_file import open_model

pytestmark = pytest.mark.usefixtures("double")


# --- one layer after another, and who else reads it ---------------------------------------------


def sequential(shape: tuple[int, ...], *layers: Any, **options: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers], **options)


def skip_connection() -> Any:
    first = keras.Input((4,))
    hidden = L.Dense(4)(first)
    return keras.Model(first, L.Add()([hidden, BN()(hidden)]))


def producer_is_an_output() -> Any:
    first = keras.Input((4,))
    hidden = L.Dense(4)(first)
    return keras.Model(first, [BN()(hidden), hidden])


def one_producer_two_batchnorms() -> Any:
    first = keras.Input((5, 4))
    hidden = L.Conv1D(4, 3)(first)
    return keras.Model(first, L.Concatenate()([BN()(hidden), BN()(hidden)]))


def producer_called_twice() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    shared = L.Dense(3)
    return keras.Model([left, right], L.Concatenate()([BN()(shared(left)), shared(right)]))


def batchnorm_read_twice_by_one_layer() -> Any:
    first = keras.Input((4,))
    normal = BN()(L.Dense(3)(first))
    return keras.Model(first, L.Subtract()([normal, L.ReLU()(normal)]))


def read_by_several() -> Any:
    first = keras.Input((6, 5, 3))
    normal = BN()(L.Conv2D(4, 3)(first))
    parts = [L.ReLU()(normal), L.Activation("tanh")(normal), L.Conv2D(4, 1)(normal)]
    return keras.Model(first, [L.Concatenate()(parts), L.GlobalMaxPooling2D()(normal)])


def producer_read_twice_by_the_batchnorm() -> Any:
    first = keras.Input((4,))
    hidden = L.Dense(4)(first)
    return keras.Model(first, L.Multiply()([BN()(hidden), keras.ops.tanh(hidden)]))


def joined(join: Any) -> Build:
    def build() -> Any:
        first = keras.Input((6, 5, 3))
        return keras.Model(first, BN()(join()([L.Conv2D(4, 3)(first), L.Conv2D(4, 3)(first)])))

    return build


NOT_FOLDED: dict[str, tuple[Build, str]] = {
    "activation-inside": (lambda: chain((5,), L.Dense(4, activation="relu"), BN()), "applies relu"),
    "activation-inside-conv": (
        lambda: chain((6, 5, 3), L.Conv2D(4, 3, activation="swish"), BN()),
        "applies silu",
    ),
    "activation-inside-einsum": (
        lambda: chain((5,), L.EinsumDense("ab,bc->ac", 4, activation="tanh"), BN()),
        "applies tanh",
    ),
    "activation-inside-wrapper": (
        lambda: chain((3, 5), TD(L.Dense(4, activation="relu")), BN()),
        "applies relu",
    ),
    "activation-between": (lambda: chain((5,), L.Dense(4), L.ReLU(), BN()), "ReLU 're_lu'"),
    "pooling-between": (
        lambda: chain((6, 5, 3), L.Conv2D(4, 3), L.MaxPooling2D(2), BN()),
        "MaxPooling2D 'max_pooling2d'",
    ),
    "first": (lambda: chain((4,), BN()), "first layer"),
    "first-then-conv-same": (
        lambda: chain((6, 5, 3), BN(), L.Conv2D(4, 3, padding="same")),
        "first layer",
    ),
    "first-then-padding": (
        lambda: chain((6, 5, 3), BN(), L.ZeroPadding2D(1), L.Conv2D(4, 3)),
        "first layer",
    ),
    "multiply-before": (joined(L.Multiply), "Multiply 'multiply'"),
    "layer-norm-before": (lambda: chain((4,), L.LayerNormalization(), BN()), "LayerNormalization"),
    "lstm-before": (lambda: chain((3, 4), L.LSTM(4), BN()), "LSTM"),
    "prelu-before": (lambda: chain((4,), L.PReLU(), BN()), "PReLU"),
    "spectral-normalization": (
        lambda: chain((6, 5, 3), L.SpectralNormalization(L.Conv2D(4, 3)), BN()),
        "SpectralNormalization",
    ),
    "skip-connection": (skip_connection, "is also read by 'add'"),
    "skip-connection-operation": (producer_read_twice_by_the_batchnorm, "is also read by 'tanh'"),
    "producer-is-an-output": (producer_is_an_output, "also an output of the model"),
    "producer-called-twice": (producer_called_twice, "called 2 times"),
    "axis-not-channels-conv": (
        lambda: chain((6, 6, 3), L.Conv2D(4, 3), BN(axis=1)),
        "not the channel axis",
    ),
    "axis-not-channels-conv-negative": (
        lambda: chain((6, 6, 3), L.Conv2D(4, 3), BN(axis=-2)),
        "not the channel axis",
    ),
    "axis-not-channels-dense": (
        lambda: chain((4, 5), L.Dense(4), BN(axis=1)),
        "not the channel axis",
    ),
    "axis-not-channels-embedding": (
        lambda: chain((4,), L.Embedding(5, 4), BN(axis=1), dtype="int32"),
        "not the channel axis",
    ),
    "axis-not-channels-depthwise": (
        lambda: chain((5, 3), L.DepthwiseConv1D(3), BN(axis=1)),
        "not the channel axis",
    ),
    "axis-not-channels-transpose": (
        lambda: chain((2, 4), L.Conv1DTranspose(4, 3), BN(axis=-2)),
        "not the channel axis",
    ),
    "axis-not-channels-wrapped": (
        lambda: chain((4, 5), TD(L.Dense(4)), BN(axis=1)),
        "not the channel axis",
    ),
    "axis-not-channels-wrapped-twice": (
        lambda: chain((2, 4, 5), L.Dense(4), TD(BN(axis=1))),
        "not the channel axis",
    ),
    "axis-not-channels-einsum": (
        lambda: chain((5, 3), L.EinsumDense("abc,cd->abd", (5, 5)), BN(axis=1)),
        "no axis of the kernel of",
    ),
    "axis-in-the-ellipsis": (
        lambda: chain((5, 3), L.EinsumDense("...c,cd->...d", 5), BN(axis=1)),
        "no axis of the kernel of",
    ),
    "axis-in-the-ellipsis-right": (
        lambda: chain((3, 5), L.EinsumDense("ab...,bd->ad...", 5), BN(axis=-1)),
        "no axis of the kernel of",
    ),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
@pytest.mark.few(6)
def test_what_cannot_fold_stays(name: str, tmp_path: Path) -> None:
    build, reason = NOT_FOLDED[name]
    left = 1
    forms = LEGACY if list(NOT_FOLDED).index(name) % 4 == 0 else KERAS
    examine(randomize(build()), tmp_path, left=left, reason=reason, forms=forms)


def outputs_head_and_batchnorm() -> Any:
    first = keras.Input((6, 5, 3))
    normal = BN(name="features")(L.Conv2D(4, 3)(first))
    return keras.Model(first, [L.Dense(2, name="head")(L.Flatten()(normal)), normal])


def outputs_in_a_dictionary() -> Any:
    first = {"b": keras.Input((4,), name="b"), "a": keras.Input((3,), name="a")}
    left, right = L.Dense(4)(first["b"]), L.Dense(4, use_bias=False)(first["a"])
    left, right = BN(name="z")(left), BN(name="y")(right)
    return keras.Model(first, {"second": left, "first": [right, L.Subtract()([left, right])]})


def outputs_twice_the_same() -> Any:
    first = keras.Input((4,))
    normal = BN(name="normal")(L.Dense(3)(first))
    return keras.Model(first, [normal, L.ReLU()(normal), normal])


def outputs_of_a_row_of_batchnorms() -> Any:
    first = keras.Input((4,))
    one = BN(name="one")(L.Dense(3)(first))
    two = BN(name="two")(one)
    return keras.Model(first, [one, two])


def inputs_in_a_list() -> Any:
    first = [keras.Input((4,), name="q"), [keras.Input((3,), name="p"), keras.Input((2,))]]
    tensors = [BN()(L.Dense(3, use_bias=False)(part)) for part in keras.tree.flatten(first)]
    return keras.Model(first, [L.Subtract()(tensors[:2]), tensors[2]])


def unequal_branches() -> Any:
    """Removing the layers changes which branch is deeper, and with it the order of the file."""
    first = keras.Input((4,))
    left = BN()(L.Dense(4)(BN()(L.Dense(4)(first))))
    right = L.Dense(4)(L.ReLU()(L.Dense(4)(first)))
    return keras.Model(first, L.Subtract()([L.Dense(4)(right), L.Dense(4)(left)]))


def named(*names: str) -> Build:
    def build() -> Any:
        layers = [L.Dense(4, name=names[0], use_bias=False), BN(name=names[1])]
        return chain((5,), *layers, L.ReLU(), L.Dense(4, name=names[2]), BN(name=names[3]))

    return build


def batchnorm_feeds_an_initial_state() -> Any:
    first, state = keras.Input((4, 3)), keras.Input((5,))
    normal = BN()(L.Dense(2)(state))
    return keras.Model([first, state], L.GRU(2)(first, initial_state=normal))


GRAPHS: dict[str, tuple[Build, Any]] = {
    "row-of-three": (lambda: chain((5,), L.Dense(4), BN(), BN(center=False), BN(scale=False)), 0),
    "row-of-three-alone": (lambda: chain((5,), BN(name="a"), BN(name="b"), BN(name="c")), ["a"]),
    "row-behind-an-obstacle": (
        lambda: chain((5,), L.Dense(4, activation="relu"), BN(name="a", scale=False), BN()),
        ["a"],
    ),
    "row-with-other-axes": (lambda: chain((4, 4), L.Dense(4), BN(), BN(axis=1), BN()), 2),
    "row-on-another-axis": (
        lambda: chain((4, 5), L.Dense(4), BN(axis=1, name="t"), BN(axis=1)),
        ["t"],
    ),
    "two-deep": (lambda: chain((5,), L.Dense(4), BN(), L.ReLU(), L.Dense(3), BN()), 0),
    "output": (lambda: chain((5,), L.Dense(4), BN(name="scores")), 0),
    "output-with-head": (outputs_head_and_batchnorm, 0),
    "outputs-in-a-dictionary": (outputs_in_a_dictionary, 0),
    "outputs-twice-the-same": (outputs_twice_the_same, 0),
    "outputs-of-a-row": (outputs_of_a_row_of_batchnorms, ["two"]),
    "output-wrapped": (lambda: chain((3, 5), L.Dense(4), TD(BN(), name="scores")), 0),
    "inputs-in-a-list": (inputs_in_a_list, 0),
    "read-by-several": (read_by_several, 0),
    "read-twice": (batchnorm_read_twice_by_one_layer, 0),
    "one-producer-two-batchnorms": (one_producer_two_batchnorms, 2),
    "unequal-branches": (unequal_branches, 0),
    "feeds-an-initial-state": (batchnorm_feeds_an_initial_state, 0),
    "names-spaces": (named("a b", " ", "c  d", "e.f"), 0),
    "names-unicode": (named("größe", "正規化", "ein-s", "é"), 0),
    "names-of-classes": (named("BatchNormalization", "Dense", "batch_normalization", "dense"), 0),
    "names-of-variables": (named("kernel", "bias", "gamma", "layers"), 0),
    "names-of-the-file": (named("vars", "layer", "model_weights", "optimizer"), 0),
    "names-prefixes": (named("a", "ab", "abc", "abcd"), 0),
    "sequential": (lambda: sequential((5,), L.Dense(4), BN(), L.ReLU(), L.Dense(3), BN()), 0),
    "sequential-ends-with-it": (lambda: sequential((5,), L.Dense(4), BN(name="last")), 0),
    "sequential-starts-with-it": (lambda: sequential((5,), BN(name="b"), BN(), L.Dense(2)), 0),
    "sequential-only-two": (lambda: sequential((5,), L.Dense(3, use_bias=False), BN()), 0),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.few(4)
def test_graphs(name: str, tmp_path: Path) -> None:
    build, left = GRAPHS[name]
    examine(randomize(build()), tmp_path, left=left)


# --- models inside models ------------------------------------------------------------------------


def functional(*layers: Any, shape: tuple[int, ...] = (4,), name: str = "inner") -> Any:
    first = tensor = keras.Input(shape)
    for layer in layers:
        tensor = layer(tensor)
    return keras.Model(first, tensor, name=name)


def nested_twice() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    inner = functional(L.Dense(4, use_bias=False), BN())
    return keras.Model([left, right], L.Subtract()([inner(left), inner(L.ReLU()(inner(right)))]))


def nested_outputs_producer_and_batchnorm() -> Any:
    inside = keras.Input((4,))
    hidden = L.Dense(4)(inside)
    inner = keras.Model(inside, [hidden, BN()(hidden)])
    first = keras.Input((4,))
    return keras.Model(first, inner(first))


def nested_with_several_outputs() -> Any:
    inside = keras.Input((4,))
    one = BN()(L.Dense(4)(inside))
    two = BN()(L.Dense(3, use_bias=False)(L.ReLU()(one)))
    inner = keras.Model(inside, [two, one, L.Dense(2)(two)], name="inner")
    first = keras.Input((4,))
    tensors = inner(first)
    return keras.Model(first, [L.ReLU()(tensors[1]), tensors[0], BN()(L.Dense(3)(tensors[2]))])


def nested_with_several_inputs() -> Any:
    inside = [keras.Input((4,)), keras.Input((3,))]
    normal = BN()(L.Dense(4)(L.Concatenate()(inside)))
    inner = keras.Model(inside, normal)
    first, second = keras.Input((3,)), keras.Input((4,))
    return keras.Model([first, second], inner([second, first]))


def three_deep() -> Any:
    lowest = sequential((4,), L.Dense(4, use_bias=False), BN(), name="lowest")
    middle = functional(L.Dense(4), BN(), lowest, L.ReLU(), name="middle")
    upper = sequential((4,), middle, L.Dense(4, use_bias=False), BN(), name="upper")
    return chain((4,), L.Dense(4), BN(), upper, L.Dense(2), BN())


def same_names_at_every_depth() -> Any:
    inner = functional(L.Dense(4, name="d"), BN(name="b"), name="m")
    middle = functional(L.Dense(4, name="d"), BN(name="b"), inner, name="n")
    return chain((4,), L.Dense(4, name="d"), BN(name="b"), middle)


def nested_frozen_part() -> Any:
    """In a legacy file the frozen variables stand behind all others."""
    layers = [L.Dense(4), L.Dense(4, trainable=False), BN(), L.ReLU(), L.Dense(3)]
    return chain((4,), functional(*layers))


def nested_frozen() -> Any:
    inner = functional(L.Dense(4), BN(), L.ReLU(), L.Dense(4), BN(), L.Dense(3))
    inner.trainable = False
    return chain((4,), inner, L.Dense(2))


NESTED = [
    pytest.param(lambda: chain((4,), functional(L.Dense(4), BN())), 0, id="functional"),
    pytest.param(lambda: chain((4,), sequential((4,), L.Dense(4), BN())), 0, id="sequential"),
    pytest.param(
        lambda: sequential((4,), functional(L.Dense(4), BN()), L.Dense(3), BN()),
        0,
        id="in-a-sequential",
    ),
    pytest.param(
        lambda: chain((4,), functional(L.Dense(4), BN()), L.Dense(3), BN()), 0, id="both-levels"
    ),
    pytest.param(
        lambda: chain(
            (4,), functional(L.Dense(4), BN(), L.ReLU(), L.Dense(3), BN()), L.Dense(2), BN()
        ),
        0,
        id="two-inside",
    ),
    pytest.param(
        lambda: chain(
            (4,),
            functional(L.Dense(4, use_bias=False), BN(), L.Dense(4, use_bias=False), BN()),
        ),
        0,
        id="two-inside-no-bias",
    ),
    pytest.param(three_deep, 0, id="three-deep"),
    pytest.param(same_names_at_every_depth, 0, id="same-names"),
    pytest.param(nested_twice, 0, id="called-twice"),
    pytest.param(nested_frozen, 0, id="frozen"),
    pytest.param(nested_frozen_part, 0, id="frozen-part"),
    pytest.param(nested_with_several_outputs, 0, id="several-outputs"),
    pytest.param(nested_with_several_inputs, 0, id="several-inputs"),
    pytest.param(nested_outputs_producer_and_batchnorm, 1, id="producer-is-an-output"),
    pytest.param(
        lambda: chain((4,), L.Dense(4), functional(BN(), L.Dense(3))), 0, id="producer-outside"
    ),
    pytest.param(lambda: chain((4,), functional(L.Dense(4)), BN()), 0, id="batchnorm-outside"),
    pytest.param(
        lambda: chain((2, 6, 5, 3), TD(sequential((6, 5, 3), L.Conv2D(4, 3), BN()))),
        0,
        id="time-distributed-sequential",
    ),
    pytest.param(
        lambda: chain((2, 4), TD(functional(L.Dense(4), BN())), L.Dense(3), TD(BN())),
        0,
        id="time-distributed-functional",
    ),
    pytest.param(
        lambda: chain(
            (2, 3, 4),
            TD(
                sequential(
                    (3, 4), TD(L.Dense(3)), TD(BN()), TD(functional(L.Dense(3), BN(), shape=(3,)))
                )
            ),
        ),
        0,
        id="time-distributed-nested",
    ),
]


@pytest.mark.parametrize(("build", "left"), NESTED)
@pytest.mark.few(5)
def test_models_inside_models(build: Build, left: int, tmp_path: Path) -> None:
    # Keras itself cannot save variables of the same name in a legacy file.
    forms = KERAS if build is same_names_at_every_depth else BOTH
    examine(randomize(build()), tmp_path, left=left, forms=by_turns(forms))


# --- one layer object in several places ----------------------------------------------------------


def dense_inside_spectral_normalization() -> Any:
    first, shared = keras.Input((4,)), L.Dense(4, use_bias=False)
    return keras.Model(first, L.SpectralNormalization(shared)(BN()(shared(first))))


def dense_called_and_wrapped() -> Any:
    first, shared = keras.Input((3, 4)), L.Dense(4)
    return keras.Model(first, BN()(TD(shared)(L.ReLU()(shared(first)))))


def dense_wrapped_and_called() -> Any:
    first, shared = keras.Input((3, 4)), L.Dense(4)
    return keras.Model(first, TD(shared)(L.ReLU()(BN()(shared(first)))))


def dense_in_both_models() -> Any:
    first, inside, shared = keras.Input((4,)), keras.Input((4,)), L.Dense(4)
    inner = keras.Model(inside, BN()(shared(inside)))
    return keras.Model(first, [inner(first), shared(first)])


def model_in_two_places() -> Any:
    inner = sequential((4,), L.Dense(4), BN())
    left, right = keras.Input((3, 4)), keras.Input((4,))
    return keras.Model([left, right], [TD(inner)(left), inner(right)])


def dense_wrapped_twice() -> Any:
    first, shared = keras.Input((3, 4)), L.Dense(4)
    return keras.Model(first, TD(shared)(L.ReLU()(BN()(TD(shared)(first)))))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(dense_inside_spectral_normalization, id="spectral"),
        pytest.param(dense_called_and_wrapped, id="called-and-wrapped"),
        pytest.param(dense_wrapped_and_called, id="wrapped-and-called"),
    ],
)
def test_a_shared_layer_object_absorbs_nothing(build: Build, tmp_path: Path) -> None:
    examine(randomize(build()), tmp_path, left=1, reason="several places", forms=KERAS)


def test_a_dense_of_both_models_absorbs_nothing(tmp_path: Path) -> None:
    """Keras 3.15 cannot load what it writes for such a model, so the file is put together here."""
    inner = functional(L.Dense(4, name="d"), BN())
    chain((4,), L.Dense(4, name="d"), inner).save(tmp_path / "model.keras")

    def share(entry: dict[str, Any]) -> None:
        if entry["class_name"] == "Dense":
            entry["shared_object_id"] = 7

    edit_layers(tmp_path / "model.keras", share)
    with open_model(tmp_path / "model.keras") as file:
        (decision,) = plan(file.graph).decisions
    assert "Dense 'inner/d' before it stands in several places of the model" in decision.reason


@pytest.mark.parametrize(
    "build",
    [
        dense_inside_spectral_normalization,
        dense_called_and_wrapped,
        dense_in_both_models,
        model_in_two_places,
        dense_wrapped_twice,
    ],
)
def test_a_legacy_file_holds_a_shared_object_as_several(build: Build, tmp_path: Path) -> None:
    examine(randomize(build()), tmp_path, forms=[".h5"])


# --- axes that only a wrapper has ----------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(
            lambda: chain(
                (3, 4, 3), TD(TD(L.EinsumDense("ab,bc->ac", 3, bias_axes="c"))), BN(axis=1)
            ),
            id="outer-time",
        ),
        pytest.param(
            lambda: chain(
                (3, 4),
                L.EinsumDense("btc,tcd->btd", (3, 5)),
                TD(BN(axis=0)),
                batch_size=3,
            ),
            id="inner-batch",
        ),
        pytest.param(
            lambda: chain((5, 3), TD(L.EinsumDense("bc,cd->bd", 4)), BN(axis=0), batch_size=4),
            id="outer-batch",
        ),
    ],
)
def test_an_axis_of_the_wrapper_is_none_of_the_layer(build: Build, tmp_path: Path) -> None:
    examine(randomize(build()), tmp_path, left=1, reason="axis", forms=KERAS)


# --- training ------------------------------------------------------------------------------------


def live(*layers: Any, shape: tuple[int, ...] = (4,), **arguments: Any) -> Any:
    """A chain whose last layer alone is called with arguments."""
    first = tensor = keras.Input(shape)
    for layer in layers[:-1]:
        tensor = layer(tensor)
    return keras.Model(first, layers[-1](tensor, **arguments))


def nested_once_live() -> Any:
    first = keras.Input((4,))
    inner = functional(L.Dense(4), BN())
    return keras.Model(first, L.Subtract()([inner(first), inner(L.ReLU()(first), training=True)]))


def live_two_levels_up() -> Any:
    first = keras.Input((4,))
    middle = sequential((4,), functional(L.Dense(4), BN()), L.ReLU())
    return keras.Model(first, middle(first, training=True))


LIVE: dict[str, tuple[Build, int, str]] = {
    "layer": (lambda: live(L.Dense(4), BN(), training=True), 1, "called with training=True"),
    "layer-one": (lambda: live(L.Dense(4), BN(), training=1), 1, "called with training=True"),
    "layer-false": (lambda: live(L.Dense(4), BN(), training=False), 0, ""),
    "wrapper": (
        lambda: live(L.Dense(4), TD(BN()), shape=(3, 4), training=True),
        1,
        "called with training=True",
    ),
    "functional": (
        lambda: live(functional(L.Dense(4), BN()), training=True),
        1,
        "Functional 'inner' around it",
    ),
    "sequential": (
        lambda: live(sequential((4,), L.Dense(4), BN(), name="s"), training=True),
        1,
        "Sequential 's' around it",
    ),
    "wrapped-sequential": (
        lambda: live(TD(sequential((4,), L.Dense(4), BN())), shape=(3, 4), training=True),
        1,
        "TimeDistributed 'time_distributed' around it",
    ),
    "once-of-twice": (nested_once_live, 1, "Functional 'inner' around it"),
    "two-levels-up": (live_two_levels_up, 1, "around it"),
    "frozen": (lambda: live(L.Dense(4), BN(trainable=False), training=True), 0, ""),
    "frozen-in-a-sequential": (
        lambda: live(sequential((4,), L.Dense(4), BN(trainable=False)), training=True),
        0,
        "",
    ),
    "frozen-wrapped": (
        lambda: live(L.Dense(4), TD(BN(trainable=False)), shape=(3, 4), training=True),
        0,
        "",
    ),
    "only-the-wrapper-frozen": (
        lambda: live(L.Dense(4), TD(BN(), trainable=False), shape=(3, 4), training=True),
        1,
        "called with training=True",
    ),
    "dropout-behind": (
        lambda: live(L.Dense(4), BN(), L.Dropout(0.0), training=True),
        0,
        "",
    ),
    "renorm": (lambda: live(L.Dense(4), BN(renorm=True), training=True), 1, "training=True"),
}


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.few(5)
def test_training_mode(name: str, tmp_path: Path) -> None:
    build, left, reason = LIVE[name]
    examine(randomize(build()), tmp_path, left=left, reason=reason or None, bare=True)


def numbers_and_tensors_by_position() -> Any:
    """A number or a tensor behind the first argument is no training mode."""
    first = keras.Input((3, 4))
    attended = L.MultiHeadAttention(2, 3)(first, first * 2.0)
    return keras.Model(first, BN()(L.Dense(4)(keras.ops.add(attended, 1.0))))


def test_what_stands_by_position_is_no_training_mode(tmp_path: Path) -> None:
    examine(randomize(numbers_and_tensors_by_position()), tmp_path, forms=KERAS)


def dropout_before() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(L.Dense(4)(L.Dropout(0.0)(first, training=True))))


def dropout_beside() -> Any:
    first = keras.Input((4,))
    normal = BN()(L.Dense(4)(L.Dense(4)(first)))
    return keras.Model(first, L.Add()([L.Dropout(0.0)(first, training=True), normal]))


def live_batchnorm_before() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(L.Dense(4)(BN()(first, training=True))))


def live_batchnorm_takes_one_in() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(BN()(first, training=True)))


def live_model_before() -> Any:
    first = keras.Input((4,))
    inner = functional(L.Dropout(0.0))
    return keras.Model(first, BN()(L.Dense(4)(inner(first, training=True))))


@pytest.mark.parametrize(
    "build",
    [
        dropout_before,
        dropout_beside,
        live_batchnorm_before,
        live_batchnorm_takes_one_in,
        live_model_before,
    ],
)
def test_training_mode_of_another_layer(build: Build, tmp_path: Path) -> None:
    model = randomize(build())
    examine(model, tmp_path, left=batchnorms(model), bare=True, forms=KERAS)


# --- masks ---------------------------------------------------------------------------------------


def given_a_mask() -> Any:
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    return keras.Model([first, mask], L.LSTM(2)(BN()(L.Dense(4)(first), mask=mask)))


def masked_embedding() -> Any:
    return chain((5,), L.Embedding(5, 3, mask_zero=True), BN(), L.LSTM(2), dtype="int32")


def masking() -> Any:
    return chain((5, 3), L.Masking(), L.Dense(3), BN(), L.LSTM(2))


def masked_attention() -> Any:
    """Attention takes the mask from its input, so the call does not name it."""
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    normal = BN()(L.Dense(4)(first), mask=mask)
    return keras.Model([first, mask], L.MultiHeadAttention(2, 3)(normal, normal))


def mask_passed_on_to_one_that_names_it() -> Any:
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    normal = BN()(L.Dense(4)(first), mask=mask)
    return keras.Model([first, mask], L.LSTM(2)(L.ReLU()(L.Dense(4)(normal))))


def mask_dropped_before() -> Any:
    layers = [L.Embedding(5, 3, mask_zero=True), L.EinsumDense("abc,cd->abd", (5, 3))]
    return chain((5,), *layers, BN(), L.LSTM(2), dtype="int32")


def mask_before_a_join(join: str) -> Build:
    def build() -> Any:
        first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
        normal = BN()(L.Dense(4)(first), mask=mask)
        joined = getattr(L, join)()([L.ReLU()(normal), L.Dense(4)(first)])
        return keras.Model([first, mask], joined)

    return build


def mask_through_a_cast() -> Any:
    """A cast to the dtype that a tensor has is that tensor, with its mask."""
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    normal = keras.ops.cast(BN()(L.Dense(4)(first), mask=mask), "float64")
    return keras.Model([first, mask], L.Maximum()([normal, L.Dense(4)(first)]))


def mask_into_a_nested_join() -> Any:
    inner = [keras.Input((3, 4)), keras.Input((3, 4))]
    nested = keras.Model(inner, L.Minimum()(inner))
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    normal = BN()(L.Dense(4)(first), mask=mask)
    return keras.Model([first, mask], nested([normal, L.Dense(4)(first)]))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        *((mask_before_a_join(join), 1) for join in ("Maximum", "Minimum", "Multiply")),
        *((mask_before_a_join(join), 0) for join in ("Add", "Average", "Subtract", "Concatenate")),
        (mask_through_a_cast, 1),
        (mask_into_a_nested_join, 0),  # the call of the nested model names the mask
        (given_a_mask, 0),
        (masked_embedding, 0),
        (masking, 0),
        (mask_passed_on_to_one_that_names_it, 0),
        (masked_attention, 1),
        (mask_dropped_before, 0),
    ],
)
@pytest.mark.few(5)
def test_masks_reach_those_downstream(build: Build, left: int, tmp_path: Path) -> None:
    """Keras cannot load a legacy file with a mask: it has no operation NotEqual there."""
    model = randomize(build())
    inputs = samples(model)
    if isinstance(inputs, list):
        inputs[1] = np.array([[True, False, True], [False, True, False], [True, True, False]])
    else:
        inputs[:, ::2] = 0
    reason = "mask" if left else None
    examine(model, tmp_path, left=left, reason=reason, inputs=inputs, forms=KERAS)


# --- dtypes --------------------------------------------------------------------------------------


def in_dtypes(dense: str, batchnorm: str) -> Build:
    return lambda: chain((5,), L.Dense(4, dtype=dense), BN(dtype=batchnorm))


DTYPES: dict[str, tuple[Build, int, str]] = {
    **{
        name: (in_dtypes(name, name), 0, "")
        for name in ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16", "float32")
    },
    "mixed-then-half": (in_dtypes("mixed_float16", "float16"), 0, ""),
    "half-then-mixed": (in_dtypes("float16", "mixed_float16"), 0, ""),
    "mixed-then-single": (in_dtypes("mixed_float16", "float32"), 1, "another dtype"),
    "single-then-mixed": (in_dtypes("float32", "mixed_bfloat16"), 1, "another dtype"),
    "single-then-double": (in_dtypes("float32", "float64"), 1, "another dtype"),
    "half-then-brain": (in_dtypes("mixed_float16", "mixed_bfloat16"), 1, "another dtype"),
    "wrapper-in-another": (
        lambda: chain((3, 5), TD(L.Dense(4, dtype="float32"), dtype="float64"), BN()),
        1,
        "another dtype",
    ),
    "row-of-two": (
        lambda: chain((5,), L.Dense(4), BN(), BN(dtype="float32", name="other")),
        1,
        "another dtype",
    ),
}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.few(6)
def test_dtypes(name: str, tmp_path: Path) -> None:
    build, left, reason = DTYPES[name]
    forms = KERAS if "bfloat16" in name or "brain" in name else BOTH  # Keras has no bfloat16 in .h5
    examine(randomize(build()), tmp_path, left=left, reason=reason or None, forms=by_turns(forms))


def test_quantized_layers_stay(tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    model = randomize(chain((8,), L.Dense(4), BN()))
    model.quantize("int8")
    examine(model, tmp_path, left=1, reason="quantized or has a dtype policy", forms=KERAS)


@pytest.mark.parametrize("use_bias", [True, False])
def test_lora_is_merged_in_the_file(use_bias: bool, tmp_path: Path) -> None:
    model = randomize(chain((5,), L.Dense(4, use_bias=use_bias), BN()))
    model.layers[1].enable_lora(2)
    randomize(model, seed=3)
    examine(model, tmp_path, forms=KERAS)


def test_lora_in_a_legacy_file_stays(tmp_path: Path) -> None:
    model = chain((5,), L.Dense(4), BN())
    model.layers[1].enable_lora(2)
    randomize(model).save(tmp_path / "model.h5")
    planned = fold_file(tmp_path / "model.h5", tmp_path / "folded.h5")
    (blocked,) = planned.blocked
    assert "other variables in the file than those of its class" in blocked.reason


# --- numbers that cannot be folded ---------------------------------------------------------------


def changed(dtype: str = "float64", **variables: Any) -> Any:
    """Dense and BatchNormalization with the first number of some variables put in."""
    model = randomize(chain((5,), L.Dense(4, dtype=dtype), BN(dtype=dtype)))
    for variable in model.weights:
        if variable.name in variables:
            values = np.array(keras.ops.convert_to_numpy(variable))
            values.flat[0] = variables[variable.name]
            variable.assign(values)
    return model


NUMBERS: dict[str, tuple[Build, int, str]] = {
    "nan-mean": (lambda: changed(moving_mean=np.nan), 1, "moving_mean has values"),
    "infinite-variance": (lambda: changed(moving_variance=np.inf), 1, "moving_variance has"),
    "nan-gamma-and-beta": (lambda: changed(gamma=np.nan, beta=-np.inf), 1, "gamma and beta have"),
    "negative-variance": (lambda: changed(moving_variance=-1.0), 1, "not positive in 1 of 4"),
    "variance-that-cancels-epsilon": (
        lambda: changed(moving_variance=-1e-3),
        1,
        "not positive in 1 of 4",
    ),
    "negative-variance-above-epsilon": (lambda: changed(moving_variance=-5e-4), 0, ""),
    "zero-variance": (lambda: changed(moving_variance=0.0), 0, ""),
    "nan-in-the-kernel": (lambda: changed(kernel=np.nan), 1, "folded kernel would not be finite"),
    "infinite-bias": (lambda: changed(bias=np.inf), 1, "folded bias would not be finite"),
    "overflow-half-kernel": (
        lambda: changed("float16", kernel=6e4, moving_variance=1e-4),
        1,
        "not be finite in float16",
    ),
    "overflow-mixed-kernel": (
        lambda: changed("mixed_float16", kernel=6e4, moving_variance=1e-4),
        1,
        "1 value of its folded kernel would not be finite in float16",
    ),
    "overflow-mixed-bias": (
        lambda: changed("mixed_float16", moving_mean=6e4, moving_variance=1e-4),
        1,
        "folded bias would not be finite in float16",
    ),
    "overflow-single": (
        lambda: changed("float32", kernel=1e38, gamma=9e9),
        1,
        "not be finite in float32",
    ),
    "no-overflow-double": (lambda: changed("float64", kernel=1e38, gamma=9e9), 0, ""),
    "overflow-double": (lambda: changed(kernel=1e300, gamma=1e200), 1, "not be finite in float64"),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.few(8)
def test_numbers(name: str, tmp_path: Path) -> None:
    build, left, reason = NUMBERS[name]
    examine(build(), tmp_path, left=left, reason=reason or None, forms=KERAS)


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "float32"])
def test_numbers_that_would_vanish(dtype: str, tmp_path: Path) -> None:
    """Below the smallest normal number a kernel loses digits, and in the end becomes zero."""
    model = changed(dtype)
    dense, normal = model.layers[1:]
    small, large = (1e-30, 1e20) if dtype == "float32" else (1e-3, 6e4)
    dense.kernel.assign(numbers("kernel", (5, 4), np.random.default_rng(5)) * small)
    normal.moving_variance.assign(np.full(4, large))
    for variable in (dense.bias, normal.moving_mean, normal.beta):
        variable.assign(np.zeros(4))
    inputs = samples(model) * (1e30 if dtype == "float32" else 1e4)
    allowed = 1e-6 if dtype == "float32" else 2e-3  # what the dtype itself makes of such a model
    examine(model, tmp_path, left=1, inputs=inputs, allowed=allowed, forms=KERAS)


def test_overflow_of_a_row_is_that_of_all_together(tmp_path: Path) -> None:
    """The second layer alone would fit; behind the first it does not."""
    keras.config.set_floatx("float32")
    model = randomize(chain((5,), L.Dense(4), BN(), BN(name="stays")))
    for layer in model.layers[2:]:
        layer.gamma.assign(np.full(4, 1e25))
    examine(model, tmp_path, left=["stays"], reason="float32", forms=KERAS)


# --- classes that are not Keras' own -------------------------------------------------------------


class _Loud(L.Layer):
    def call(self, inputs: Any) -> Any:
        return keras.ops.square(inputs)


CustomBatchNormalization = type("BatchNormalization", (_Loud,), {})
CustomDense = type(
    "Dense", (L.Dense,), {"call": lambda self, x: keras.ops.tanh(super(CustomDense, self).call(x))}
)
CustomModel = type("Model", (keras.Model,), {})
Unregistered = type("BatchNormalization", (L.BatchNormalization,), {"__module__": "somewhere"})

for custom in (CustomBatchNormalization, CustomDense, CustomModel):
    keras.saving.register_keras_serializable("tests")(custom)


def custom_model() -> Any:
    first = keras.Input((4,))
    return CustomModel(first, BN()(L.Dense(4)(first)))


def custom_model_inside() -> Any:
    inside = keras.Input((4,))
    first = keras.Input((4,))
    return keras.Model(first, CustomModel(inside, BN()(L.Dense(4)(inside)))(first))


CUSTOM: dict[str, tuple[Build, int, str | None]] = {
    "batchnormalization": (lambda: chain((5,), L.Dense(4), CustomBatchNormalization()), 0, None),
    "batchnormalization-between": (
        lambda: chain((5,), L.Dense(4), CustomBatchNormalization(), BN()),
        1,
        "not Keras' own",
    ),
    "dense": (lambda: chain((5,), CustomDense(4), BN()), 1, "not Keras' own"),
    "model": (custom_model, 1, "class is not Keras' own"),
    "model-inside": (custom_model_inside, 1, "class is not Keras' own"),
    "lambda-behind": (
        lambda: chain((5,), L.Dense(4), BN(), L.Lambda(lambda x: x * 2)),
        0,
        None,
    ),
    "lambda-between": (
        lambda: chain((5,), L.Dense(4), L.Lambda(lambda x: x * 2), BN()),
        1,
        "Lambda 'lambda'",
    ),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_other_classes(name: str, tmp_path: Path) -> None:
    build, left, reason = CUSTOM[name]
    examine(randomize(build()), tmp_path, left=left, reason=reason, forms=KERAS)


def test_an_unregistered_class_of_the_same_name_is_nobody_we_know(tmp_path: Path) -> None:
    chain((5,), L.Dense(4), Unregistered()).save(tmp_path / "model.keras")
    with open_model(tmp_path / "model.keras") as file:
        assert plan(file.graph).decisions == ()


@pytest.mark.parametrize(
    ("module", "registered", "ours"),
    [
        ("keras.layers", None, True),
        ("keras.src.layers.normalization.batch_normalization", "BatchNormalization", True),
        (None, None, True),
        (None, "mine>BatchNormalization", False),
        ("keras.layers", "mine>BatchNormalization", False),
        ("mine.layers", "BatchNormalization", False),
        ("keras_mine.layers", None, False),
    ],
)
def test_a_class_is_told_by_more_than_its_name(
    module: str | None, registered: str | None, ours: bool, tmp_path: Path
) -> None:
    chain((5,), L.Dense(4), BN()).save(tmp_path / "model.keras")

    def change(entry: dict[str, Any]) -> None:
        if entry["class_name"] == "BatchNormalization":
            entry.update(module=module, registered_name=registered)

    edit_layers(tmp_path / "model.keras", change)
    with open_model(tmp_path / "model.keras") as file:
        assert len(plan(file.graph).decisions) == ours


# --- what stays as it was ------------------------------------------------------------------------


def _layers(path: Path) -> dict[str, Any]:
    config = json.loads(zipfile.ZipFile(path).read("config.json"))
    return {layer["config"]["name"]: layer for layer in config["config"]["layers"]}


def test_settings_of_the_layer_before_stay(tmp_path: Path) -> None:
    dense = L.Dense(
        4,
        use_bias=False,
        name="d",
        kernel_regularizer=keras.regularizers.L1L2(1e-3, 2e-3),
        bias_constraint="max_norm",
        kernel_initializer="he_uniform",
        bias_initializer=keras.initializers.Constant(3),
        activity_regularizer="l1",
    )
    examine(randomize(chain((5,), dense, BN(), name="m")), tmp_path, forms=KERAS)
    before = _layers(tmp_path / "original.keras")["d"]
    after = _layers(tmp_path / "folded.keras")["d"]
    before["config"]["use_bias"] = True
    assert after == before


def test_a_channel_that_was_as_small_before_stops_nothing(tmp_path: Path) -> None:
    """Weight decay leaves dead channels below the smallest normal number."""
    model = randomize(chain((5,), L.Dense(4), BN()))
    kernel = model.layers[1].kernel.numpy()
    kernel[:, 2] = 1e-310 if kernel.dtype == np.float64 else 1e-40
    model.layers[1].kernel.assign(kernel)
    examine(model, tmp_path, forms=KERAS)


def test_layers_that_have_no_part_in_it_keep_their_bytes(tmp_path: Path) -> None:
    model = randomize(chain((5,), L.Dense(4, name="far"), L.ReLU(), L.Dense(3), BN()))
    examine(model, tmp_path, forms=KERAS)
    folded = load(tmp_path / "folded.keras")
    for before, after in zip(
        model.get_layer("far").get_weights(),
        folded.get_layer("far").get_weights(),
        strict=True,
    ):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("form", BOTH)
def test_the_same_file_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    source, first, second = (tmp_path / f"{name}{form}" for name in ("source", "a", "b"))
    randomize(three_deep()).save(source)
    fold_file(source, first)
    fold_file(source, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.few(1)
def test_folding_again_changes_nothing(form: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}{form}" for name in ("first", "second", "third"))
    randomize(three_deep()).save(first)
    assert fold_file(first, second).folds
    assert not fold_file(second, third).decisions
    before, after = load(second), load(third)
    assert before.get_config() == after.get_config()
    for old, new in zip(before.get_weights(), after.get_weights(), strict=True):
        assert old.tobytes() == new.tobytes()


def test_kept_layers_stay(tmp_path: Path) -> None:
    model = randomize(
        chain((5,), L.Dense(4), BN(name="one"), L.ReLU(), L.Dense(4, name="d"), BN(name="two"))
    )
    model.save(tmp_path / "model.keras")
    for keep, left in ((["one"], ["one"]), (["*"], ["one", "two"]), (["d"], ["two"])):
        target = tmp_path / f"{left}.keras"
        planned = fold_file(tmp_path / "model.keras", target, keep=keep)
        assert all("kept on request" in blocked.reason for blocked in planned.blocked)
        assert batchnorms(load(target)) == left


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        ([-1], None),
        ([2], None),
        ([1], "axis 1"),
        ([0], "it normalizes axis 0, the batch"),
        ([9], "it normalizes axis 9, and its input has 3 axes"),
        ([1, 2], "several axes"),
        ("1", "several axes"),
    ],
)
def test_an_axis_may_be_a_list(axis: Any, reason: str | None, tmp_path: Path) -> None:
    """Keras 2 wrote it so; Keras 3 no longer reads that."""
    chain((4, 5), L.Dense(4), BN(axis=2)).save(tmp_path / "model.keras")

    def change(entry: dict[str, Any]) -> None:
        if entry["class_name"] == "BatchNormalization":
            entry["config"]["axis"] = axis

    edit_layers(tmp_path / "model.keras", change)
    with open_model(tmp_path / "model.keras") as file:
        planned = plan(file.graph)
    assert bool(planned.folds) == (reason is None)
    if reason is not None:
        told = planned.blocked[0].reason
        assert reason in told
        assert ("backward" in told) == (axis == [1]), "the same for both directions, told once"


@pytest.mark.parametrize("arguments", [[True], [1], [{"class_name": "__numpy__", "config": {}}]])
def test_training_mode_given_by_position(arguments: list[Any], tmp_path: Path) -> None:
    """No Keras 3 writes this, and older ones did."""
    chain((4,), functional(L.Dense(4), BN())).save(tmp_path / "model.keras")

    def change(entry: dict[str, Any]) -> None:
        if entry["class_name"] == "Functional":
            entry["inbound_nodes"][0]["args"] += arguments

    edit_layers(tmp_path / "model.keras", change)
    with open_model(tmp_path / "model.keras") as file:
        (decision,) = plan(file.graph).decisions
    assert "Functional 'inner' around it is called with training=True" in decision.reason


def edit_layers(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Call `change` with every layer's entry in a file's config, nested ones too, and write it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"], object_hook=lambda entry: _edited(entry, change))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, content)


def _edited(entry: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    if "inbound_nodes" in entry:
        change(entry)
    return entry


# --- many models nobody thought of ---------------------------------------------------------------


class Draw:
    """A random model of 4 x 4 tensors, and which of its BatchNormalization layers may stay.

    Every axis has four numbers, so that a fold along the wrong one does not show in a shape. Who
    may stay follows from how the model was drawn, by the rule alone: the layer before is linear,
    has its channels on the same axis, and nothing else reads it. One that stays takes in the next.
    What folds besides, forward or through other layers, is not foreseen here.
    """

    def __init__(self, seed: int, depth: int = 0) -> None:
        self.random = np.random.default_rng([seed, depth])
        self.seed, self.depth = seed, depth
        self.tensors: list[Any] = []
        self.readers: dict[int, int] = {}
        self.taking: dict[int, int] = {}  # the axis on which who made a tensor takes a map in
        self.norms: list[tuple[str, int, int, int]] = []
        self.staying: list[str] = []
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.depth}_{self.seed}_{self.count}"

    def build(self, name: str) -> Any:
        self.tensors = [keras.Input((4, 4), name=self.name("input"))]
        for _ in range(int(self.random.integers(4, 11))):
            self.tensors.append(self.step())
        ends = [tensor for tensor in self.tensors if not self.readers.get(id(tensor))]
        if self.random.random() < 0.3:
            ends.append(self.tensors[-2])
        self.random.shuffle(ends)
        while self.depth and len(ends) > 1:
            ends = [L.Subtract(name=self.name("end"))(self.read(ends[:2])), *ends[2:]]
        self.judge({id(tensor) for tensor in ends})
        return keras.Model(self.tensors[0], ends if len(ends) > 1 else ends[0], name=name)

    def judge(self, ends: set[int]) -> None:
        for name, source, tensor, axis in self.norms:
            alone = self.readers[source] == 1 and source not in ends
            if self.taking.get(source) != axis or not alone:
                self.staying.append(name)
            self.taking[tensor] = axis

    def read(self, tensors: list[Any]) -> list[Any]:
        for tensor in tensors:
            self.readers[id(tensor)] = self.readers.get(id(tensor), 0) + 1
        return tensors

    def pick(self) -> Any:
        recent = self.random.random() < 0.75
        return self.tensors[-1 if recent else int(self.random.integers(len(self.tensors)))]

    def step(self) -> Any:
        steps = [self.linear, self.norm, self.plain, self.join, self.model]
        return self.random.choice(steps, p=[0.38, 0.38, 0.08, 0.1, 0.06])()

    def linear(self) -> Any:
        name, use_bias = self.name("linear"), bool(self.random.integers(2))
        activation = "sigmoid" if self.random.random() < 0.12 else None
        options: Any = {"name": name, "use_bias": use_bias, "activation": activation}
        einsum: Any = {"name": name, "bias_axes": [None, "d"][use_bias], "activation": activation}
        layers: list[Build] = [
            lambda: L.Dense(4, **options),
            lambda: L.Conv1D(4, 3, padding="same", **options),
            lambda: L.Conv1D(4, 2, padding="causal", **options),
            lambda: L.DepthwiseConv1D(3, padding="same", **options),
            lambda: L.SeparableConv1D(4, 2, padding="same", depth_multiplier=2, **options),
            lambda: L.Conv1DTranspose(4, 3, padding="same", **options),
            lambda: TD(L.Dense(4, **{**options, "name": f"{name}_inside"}), name=name),
            lambda: L.EinsumDense("abc,cd->abd", (4, 4), **einsum),
            lambda: L.EinsumDense("abc,bd->acd", (4, 4), **einsum),
        ]
        tensor = layers[int(self.random.integers(len(layers)))]()(*self.read([self.pick()]))
        if activation is None:
            self.taking[id(tensor)] = 2
        return tensor

    def norm(self) -> Any:
        axis = int(self.random.choice([-1, 2, 1, -2], p=[0.6, 0.2, 0.1, 0.1]))
        center, scale = (bool(self.random.integers(4)) for _ in "ab")
        epsilon = float(10 ** self.random.uniform(-6, 0))
        name = self.name("norm")
        layer = BN(axis=axis, center=center, scale=scale, epsilon=epsilon, name=name)
        if axis == -1 and self.random.random() < 0.15:
            layer = TD(layer)
        source = self.pick()
        tensor = layer(*self.read([source]))
        self.norms.append((name, id(source), id(tensor), axis % 3))
        return tensor

    def plain(self) -> Any:
        kind = [L.ReLU, L.Softmax, L.Dropout][int(self.random.integers(3))]
        options = {"rate": 0.5} if kind is L.Dropout else {}
        return kind(name=self.name("plain"), **options)(*self.read([self.pick()]))

    def join(self) -> Any:
        kind = [L.Subtract, L.Multiply, L.Maximum][int(self.random.integers(3))]
        return kind(name=self.name("join"))(self.read([self.pick(), self.pick()]))

    def model(self) -> Any:
        if self.depth == 2:
            return self.linear()
        inside = Draw(self.seed * 31 + self.count, self.depth + 1)
        tensor = inside.build(self.name("model"))(*self.read([self.pick()]))
        self.staying += inside.staying
        return tensor


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(600))
def test_drawn_models(seed: int, tmp_path: Path) -> None:
    drawn = Draw(seed)
    model = randomize(drawn.build("drawn"), seed)
    form = BOTH[seed % 2]
    planned = examine(model, tmp_path, left=None, forms=[form], allowed=1e-9)
    assert {blocked.batchnorm.layer.name for blocked in planned.blocked} <= set(drawn.staying)
    with open_model(tmp_path / f"folded{form}") as file:
        assert not plan(file.graph).folds


def test_drawn_models_in_small(tmp_path: Path) -> None:
    for seed in range(1000, 1008):
        drawn = Draw(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        model = randomize(drawn.build("drawn"), seed)
        planned = examine(model, folder, left=None, forms=KERAS, allowed=1e-9)
        assert {blocked.batchnorm.layer.name for blocked in planned.blocked} <= set(drawn.staying)
