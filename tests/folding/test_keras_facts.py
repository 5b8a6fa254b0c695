"""What Keras does without saying so in the file, and a plan has to know.

A model of which a fact was overlooked folds, loads and computes something else; or it makes a plan
crash, or take for ever.
"""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import KERAS, chain, examine, fold_file, keras, randomize, samples

from bnfold.model.layers import ROWS

L = keras.layers
BN = L.BatchNormalization
TD = L.TimeDistributed
Input = keras.Input
Sequential = keras.Sequential
Build = Callable[[], Any]


pytestmark = pytest.mark.usefixtures("double")


def built(layer: Any, shape: tuple[int | None, ...]) -> Any:
    """A layer that was built for another model first, which its build config remembers."""
    layer.build((None, *shape))
    return layer


def model(first: Any, last: Any, name: str | None = None) -> Any:
    return keras.Model(first, last, name=name)


def nested_of_rank(declared: tuple[int, ...], given: tuple[int, ...], *layers: Any) -> Any:
    """A model called with a tensor to which Keras adds a last axis, or from which it takes one."""
    inside = chain(declared, *layers, L.Flatten(), L.Dense(3))
    return chain(given, L.Dense(given[-1], activation="tanh"), BN(), inside)


def padded(n: int = 2) -> Any:
    return L.Conv2D(4, n, strides=n, padding="same")


# --- sizes ---------------------------------------------------------------------------------------

STAYS: dict[str, Build] = {
    "built-for-another-size": lambda: Sequential(
        [Input((7, 7, 3)), BN(), built(padded(), (8, 8, 3))]
    ),
    "built-for-a-size-but-dynamic": lambda: Sequential(
        [Input((None, None, 3)), BN(), built(padded(), (8, 8, 3))]
    ),
    "sizes-noted-in-reverse": lambda: chain(
        (5, 4, 3),
        L.EinsumDense("...c,cd->...d", (4,), activation="relu"),
        BN(),
        L.Conv2D(4, (2, 1), strides=(2, 1), padding="same"),
    ),
    "sizes-noted-in-reverse-inside": lambda: chain(
        (5, 4, 3),
        Sequential([Input((5, 4, 3)), L.EinsumDense("...c,cd->...d", (4,)), L.ReLU()]),
        BN(),
        L.Conv2D(4, (2, 1), strides=(2, 1), padding="same"),
    ),
    "rank-raised": lambda: nested_of_rank((5, 1), (5,)),
    "rank-lowered": lambda: nested_of_rank((5,), (5, 1)),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_size_that_is_not_sure_blocks(name: str, tmp_path: Path) -> None:
    examine(randomize(STAYS[name]()), tmp_path, left=1, forms=KERAS)


def test_a_sum_counts_the_sizes_of_this_model(tmp_path: Path) -> None:
    layer = built(L.EinsumDense("abc,cd->ad", 5), (6, 3))
    examine(randomize(Sequential([Input((9, 3)), BN(), layer])), tmp_path, forms=KERAS)


# --- training mode -------------------------------------------------------------------------------


def test_every_class_that_trains_by_default_is_known() -> None:
    classes = (getattr(L, name) for name in dir(L))
    kinds = {c for c in classes if inspect.isclass(c) and issubclass(c, L.Layer)}
    training = {c: inspect.signature(c.call).parameters.get("training") for c in kinds}
    for default in (True, False):
        found = {c.__name__ for c, p in training.items() if p is not None and p.default is default}
        assert {ROWS[name].training_default for name in found} == {default}


def behind_augmentation(**arguments: Any) -> Any:
    augment = Sequential([Input((6, 6, 3)), L.CenterCrop(5, 5)])
    first = Input((6, 6, 3))
    tensor = L.Conv2D(4, 3)(augment(first))
    return model(first, L.Dense(2)(L.ReLU()(BN()(tensor, **arguments))))


def base_behind_augmentation(**arguments: Any) -> Any:
    base = chain((5, 5, 3), L.Conv2D(4, 3), BN(), L.ReLU(), name=None)
    first = Input((6, 6, 3))
    return model(first, L.Dense(2)(base(L.CenterCrop(5, 5)(first), **arguments)))


def base_in_training_mode() -> Any:
    first = tensor = Input((5, 5, 3))
    base = model(first, BN()(L.Conv2D(4, 3)(tensor), training=False))
    outer = Input((6, 6, 3))
    return model(outer, L.Dense(2)(base(L.CenterCrop(5, 5)(outer))))


TRAINING: dict[str, tuple[Build, int]] = {
    "in-a-sequential": (
        lambda: Sequential([Input((6, 6, 3)), L.CenterCrop(5, 5), L.Conv2D(4, 3), BN()]),
        1,
    ),
    "in-a-sequential-before": (behind_augmentation, 1),
    "switched-off-for-the-layer": (lambda: behind_augmentation(training=False), 0),
    "handed-on-to-a-model": (base_behind_augmentation, 1),
    "switched-off-for-the-model": (lambda: base_behind_augmentation(training=False), 0),
    "switched-off-in-a-model-that-is-in-training-mode": (base_in_training_mode, 1),
    "switched-off-around-the-source": (
        lambda: chain(
            (6, 6, 3),
            lambda x: Sequential([Input((6, 6, 3)), L.CenterCrop(5, 5)])(x, training=False),
            L.Conv2D(4, 3),
            BN(),
        ),
        0,
    ),
    "switched-off-at-the-source": (
        lambda: chain(
            (6, 6, 3), lambda x: L.CenterCrop(5, 5)(x, training=False), L.Conv2D(4, 3), BN()
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.few(4)
def test_training_mode_that_a_default_sets_is_handed_on(name: str, tmp_path: Path) -> None:
    build, left = TRAINING[name]
    examine(randomize(build()), tmp_path, left=left, forms=KERAS, bare=True)


# --- integers ------------------------------------------------------------------------------------

KEEP_INTEGERS: dict[str, Build] = {
    "dropout": lambda: L.Dropout(0.1),
    "linear": lambda: L.Activation("linear"),
    "relu": L.ReLU,
    "cropping": lambda: L.Cropping1D(1),
    "max-pooling": lambda: L.MaxPooling1D(2),
    "wrapped": lambda: TD(L.Dropout(0.1)),
    "nested": lambda: Sequential([Input((6, 5), dtype="int32"), L.Dropout(0.1)]),
}


@pytest.mark.parametrize("name", KEEP_INTEGERS)
def test_a_layer_may_hand_on_integers_that_a_convolution_refuses(name: str, tmp_path: Path) -> None:
    layers = [KEEP_INTEGERS[name](), BN(), L.Conv1D(3, 1)]
    examine(randomize(chain((6, 5), *layers, dtype="int32")), tmp_path, left=1, forms=KERAS)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "float16"])
@pytest.mark.parametrize("name", ["dense", "lstm", "einsum"])
@pytest.mark.few(6)
def test_layers_that_cast_their_input_take_in_what_is_before_them(
    name: str, dtype: str, tmp_path: Path
) -> None:
    layers = {
        "dense": lambda: L.Dense(3),
        "lstm": lambda: L.LSTM(3),
        "einsum": lambda: L.EinsumDense("abc,cd->abd", (6, 3), bias_axes="d"),
    }
    # Keras normalizes integers in float32, whatever the layer's own dtype.
    allowed = 1e-6 if "int" in dtype else None
    found = randomize(chain((6, 5), BN(), layers[name](), dtype=dtype))
    examine(found, tmp_path, forms=KERAS, allowed=allowed)


def test_an_operation_does_not_cast(tmp_path: Path) -> None:
    layers = [BN(), lambda x: x * 0.5, L.Dense(3)]
    examine(randomize(chain((5,), *layers, dtype="float32")), tmp_path, left=1, forms=KERAS)


def test_integers_that_are_rescaled_are_none(tmp_path: Path) -> None:
    layers = [Input((6, 6, 3), dtype="uint8"), L.Rescaling(1 / 255), BN(), L.Conv2D(4, 3)]
    examine(randomize(Sequential(layers)), tmp_path, forms=KERAS)


def test_a_bidirectional_layer_makes_numbers_in_a_sequential_too(tmp_path: Path) -> None:
    layers = [Input((4, 3)), L.Bidirectional(L.LSTM(3)), BN(), L.Dense(2)]
    examine(randomize(Sequential(layers)), tmp_path, forms=KERAS)


# --- what a file says in its own way -------------------------------------------------------------


def test_a_dictionary_of_no_masks_is_no_mask(tmp_path: Path) -> None:
    first = Input((5,), name="zz")
    inside, outer = keras.Model({"zz": first}, L.Dense(3)(first)), Input((5,))
    examine(randomize(model(outer, inside({"zz": BN()(outer)}))), tmp_path, forms=KERAS)


def test_dictionaries_of_the_same_keys_belong_together(tmp_path: Path) -> None:
    inputs = {"zz": Input((5,), name="zz"), "aa": Input((5,), name="aa")}
    parts = [L.Dense(3)(inputs["zz"]), L.Dense(3)(inputs["aa"])]
    inside, outer = keras.Model(inputs, L.Subtract()(parts)), [Input((5,)), Input((5,))]
    made = inside({"aa": outer[1], "zz": BN()(outer[0])})
    examine(randomize(model(outer, made)), tmp_path, forms=KERAS)


def test_a_map_that_a_wrapped_model_sees_enters_it(tmp_path: Path) -> None:
    inside = [Input((3, 7, 6)), L.Permute((2, 3, 1)), L.Conv2D(4, 3), L.ReLU(), L.Flatten()]
    layers = [Input((2, 3, 7, 6)), BN(axis=2), TD(Sequential(inside))]
    examine(randomize(Sequential(layers)), tmp_path, forms=KERAS)


@pytest.mark.parametrize("join", ["Average", "Maximum", "Concatenate"])
def test_a_tensor_that_fills_both_slots_counts_once_for_each(join: str, tmp_path: Path) -> None:
    def both(tensor: Any) -> Any:
        joined = getattr(L, join)(**({"axis": 1} if join == "Concatenate" else {}))
        return joined([tensor, tensor])

    found = randomize(chain((6, 5), L.Dense(4), both, BN()))
    found.layers[-1].gamma.assign(abs(found.layers[-1].gamma))
    examine(found, tmp_path)


def test_a_shift_cannot_be_put_on_a_tensor_that_fills_both_slots(tmp_path: Path) -> None:
    found = randomize(chain((6, 5), L.Dense(4), lambda x: L.Add()([x, x]), BN()))
    examine(found, tmp_path, left=1, reason="would need two maps")


def merge_of_masked(join: str) -> Any:
    words, other = Input((4,), dtype="int32"), Input((4, 4))
    embedded = L.Embedding(5, 4, mask_zero=True)(words)
    joined = BN(name="norm")(getattr(L, join)()([embedded, L.Dense(4)(other)]))
    found = randomize(keras.Model([words, other], joined))
    norm = found.get_layer("norm")
    norm.gamma.assign(abs(norm.gamma) + 0.1)
    norm.beta.assign(0 * norm.beta)
    norm.moving_mean.assign(0 * norm.moving_mean)
    return found


@pytest.mark.parametrize("join", ["Multiply", "Maximum", "Minimum"])
def test_a_merge_that_puts_out_one_tensor_where_the_other_is_masked(
    join: str, tmp_path: Path
) -> None:
    examine(merge_of_masked(join), tmp_path, left=1, reason="may be masked", forms=KERAS)


@pytest.mark.parametrize("join", ["Add", "Subtract", "Average"])
def test_a_merge_that_only_hands_masks_on(join: str, tmp_path: Path) -> None:
    model = merge_of_masked(join)
    inputs = samples(model)
    inputs[0][:, ::2] = 0
    examine(model, tmp_path, inputs=inputs, forms=KERAS)


GIVEN_MASKS: dict[str, Build] = {
    "wrapper": lambda: TD(L.Dense(4)),
    "model": lambda: Sequential([Input((4, 4)), L.Dense(4)]),
}


@pytest.mark.parametrize("place", ["upstream", "upstream in a nested model", "inside"])
@pytest.mark.parametrize("name", GIVEN_MASKS)
@pytest.mark.few(3)
def test_a_mask_that_a_call_is_given_is_handed_on(name: str, place: str, tmp_path: Path) -> None:
    inputs = [Input((4, 4)), Input((4, 4)), Input((4,), dtype="bool")]
    one, other = [Input((4, 4)), Input((4, 4))] if place == "inside" else inputs[:2]
    given = {} if place == "inside" else {"mask": inputs[2]}
    if place == "upstream in a nested model":
        masked = [Input((4, 4)), Input((4,), dtype="bool")]
        called = GIVEN_MASKS[name]()(L.Dense(4)(masked[0]), mask=masked[1])
        parts = [keras.Model(masked, called)([one, inputs[2]]), L.Dense(4)(other)]
    else:
        parts = [GIVEN_MASKS[name]()(L.Dense(4)(one), **given), L.Dense(4)(other)]
    made = BN(center=False)(L.Multiply()(parts))
    if place == "inside":
        made = keras.Model([one, other], made)(inputs[:2], mask=inputs[2:] * 2)
    found = randomize(keras.Model(inputs, made))
    for layer in found._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(0 * layer.moving_mean)
    examine(found, tmp_path, left=1, reason="mask", forms=KERAS)


def test_a_layer_of_somebodys_own_may_make_a_mask(tmp_path: Path) -> None:
    own = type("Embedding", (L.Embedding,), {"__module__": "__main__"})
    words, other = Input((4,), dtype="int32"), Input((4, 4))
    joined = L.Maximum()([own(5, 4, mask_zero=True)(words), L.Dense(4)(other)])
    found = randomize(keras.Model([words, other], BN(center=False)(joined)))
    found.layers[-1].gamma.assign(abs(found.layers[-1].gamma) + 0.1)
    customs = {"Embedding": own}
    examine(found, tmp_path, left=1, reason="may be masked", forms=KERAS, customs=customs)


# --- size of the graph ---------------------------------------------------------------------------


def masked_residual_net(depth: int) -> Any:
    first = Input((6,), dtype="int32")
    tensor = BN()(L.Activation("tanh")(L.Embedding(9, 4, mask_zero=True)(first)))
    for _ in range(depth):
        tensor = L.Add()([tensor, L.Dense(4, activation="relu")(tensor)])
    return model(first, tensor)


def doll(depth: int) -> Any:
    found = Sequential([Input((3,)), L.Dense(3), BN()])
    for _ in range(depth):
        found = Sequential([Input((3,)), found])
    return found


def row_of_joins(depth: int) -> Any:
    first = Input((3,))
    tensor = L.Dense(3)(first)
    for _ in range(depth):
        tensor = L.Add()([tensor, L.Dense(3)(first)])
    return model(first, BN()(tensor))


def many_choices() -> Any:
    first = Input((3,))
    products = [L.Multiply()([L.Dense(3)(first), L.Dense(3)(first)]) for _ in range(16)]
    return model(first, BN(center=False)(L.Add()([*products, L.Softmax()(first)])))


LARGE: dict[str, Build] = {
    "a-row-of-dense": lambda: Sequential([Input((3,)), *[L.Dense(3) for _ in range(300)], BN()]),
    "a-masked-residual-net": lambda: masked_residual_net(28),
    "models-in-models": lambda: doll(20),
    "a-row-of-joins": lambda: row_of_joins(350),
    "a-wide-join": lambda: model(
        first := Input((3,)), BN()(L.Concatenate()([L.Dense(1)(first) for _ in range(600)]))
    ),
    "many-choices": many_choices,
}


TO_BUILD = ("a-row-of-joins", "a-wide-join", "a-row-of-dense")
"""What Keras takes long to build, not we to plan."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in TO_BUILD)) for name in LARGE],
)
def test_a_plan_takes_no_time_to_speak_of(name: str, tmp_path: Path) -> None:
    LARGE[name]().save(tmp_path / "model.keras")
    start = time.process_time()
    fold_file(tmp_path / "model.keras", tmp_path / "folded.keras")
    assert time.process_time() - start < 5


# --- arithmetic ----------------------------------------------------------------------------------


def of_batch(*layers: Any) -> Any:
    return chain((2, 3), *layers, batch_size=3)


def both_orders(operation: Callable[[Any], Any]) -> dict[str, Build]:
    return {
        "backward": lambda: of_batch(L.Dense(4), operation, BN()),
        "forward": lambda: of_batch(L.Dense(3, activation="tanh"), BN(), operation, L.Dense(2)),
    }


def beside(join: Any) -> Callable[[Any], Any]:
    """A join with a constant in its list."""
    return lambda x: join([x, keras.ops.convert_to_tensor(2 * np.ones((3, *x.shape[1:])))])


BESIDE = {
    "concatenate": lambda x: keras.ops.concatenate([x, np.ones((3, 1, x.shape[-1]))], axis=1),
    **{name: beside(getattr(L, name)()) for name in ("Add", "Subtract", "Average", "Maximum")},
}


@pytest.mark.parametrize("order", ["backward", "forward"])
@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.few(5)
def test_a_constant_in_a_list_is_a_branch_too(name: str, order: str, tmp_path: Path) -> None:
    found = randomize(both_orders(BESIDE[name])[order]())
    examine(found, tmp_path, left=1, forms=KERAS, inputs=np.ones((3, 2, 3)) * np.arange(3.0))


BIASES: dict[str, Build] = {
    "backward": lambda: chain(
        (3,), L.Dense(16), L.Reshape((4, 4)), lambda x: x + np.arange(4.0).reshape(4, 1), BN()
    ),
    "forward": lambda: chain(
        (4, 4), BN(), lambda x: x + np.arange(4.0).reshape(4, 1), L.Flatten(), L.Dense(2)
    ),
    "dynamic": lambda: chain(
        (None, 4, 3), BN(), lambda x: x + np.arange(4.0).reshape(4, 1), L.Conv2D(2, 1)
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_constant_that_keras_takes_for_a_bias_blocks(name: str, tmp_path: Path) -> None:
    examine(randomize(BIASES[name]()), tmp_path, left=1, forms=KERAS)


def test_pooling_of_volumes_mixes_three_axes(tmp_path: Path) -> None:
    def pooled(tensor: Any) -> Any:
        return keras.ops.average_pool(tensor, (2, 1, 1), strides=1, padding="same")

    keras.config.set_floatx("float32")
    layers = [BN(axis=1), pooled, L.Flatten(), L.Dense(2)]
    examine(randomize(chain((2, 3, 2, 3), *layers)), tmp_path, left=1, forms=KERAS)


def test_calls_that_sum_up_different_sizes_do_not_agree(tmp_path: Path) -> None:
    inputs, norm = [Input((3, 4)), Input((5, 4))], BN()
    sums = L.EinsumDense("abc,cd->ad", output_shape=(2,), bias_axes="d")
    found = keras.Model(inputs, [sums(norm(tensor)) for tensor in inputs])
    examine(randomize(found), tmp_path, left=1, reason="different weights", forms=KERAS)


def test_a_constant_of_a_wider_dtype_would_show_at_the_output(tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    layers = [L.Dense(4), lambda x: x + np.ones(4), BN(), lambda x: -x]
    examine(randomize(chain((3,), *layers)), tmp_path, left=1, forms=KERAS)


@pytest.mark.parametrize("layer", ["add", "multiply"])
def test_a_constant_that_makes_the_tensor_larger_blocks(layer: str, tmp_path: Path) -> None:
    operation = getattr(keras.ops, layer)
    layers = [L.Dense(8), L.Reshape((1, 8)), lambda x: operation(x, np.full((5, 8), 2.0))]
    examine(randomize(chain((3,), *layers, BN(axis=1))), tmp_path, left=1, forms=KERAS)


# --- the order of calls in training mode ---------------------------------------------------------


def live(tensor: Any) -> Any:
    return L.Dropout(0.0)(tensor, training=True)


def shielded() -> Any:
    tensor = first = Input((4,))
    tensor = BN()(L.Dense(4)(live(tensor)), training=False)
    return model(first, L.Activation("tanh")(BN()(L.Activation("tanh")(tensor))))


def reset_beside() -> Any:
    first, other = Input((4,)), Input((4,))
    left = L.Activation("tanh")(BN()(L.Activation("tanh")(L.Activation("tanh")(live(other)))))
    right = L.Dropout(0.3)(L.Activation("tanh")(first))
    for _ in range(3):
        right = BN(trainable=False)(right)
    return keras.Model([first, other], [L.Activation("tanh")(L.ReLU()(left)), L.Dense(3)(right)])


def loses_training_mode() -> Any:
    first, other = Input((4,)), Input((4,))
    left = L.Dense(3)(live(other))
    left = L.Dense(3)(BN(trainable=False)(BN(trainable=False)(left)))
    right = L.Activation("tanh")(L.ReLU()(BN()(L.Activation("tanh")(first))))
    return keras.Model([first, other], [left, right])


@pytest.mark.parametrize("build", [shielded, reset_beside, loses_training_mode])
def test_no_fold_changes_who_runs_in_training_mode(build: Build, tmp_path: Path) -> None:
    examine(randomize(build()), tmp_path, left=None, forms=KERAS, bare=True)
