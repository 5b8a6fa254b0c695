"""The rows of `bnfold.model.layers`: what they say holds for Keras' layers, and is asked for."""

import ast
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import chain, keras, outputs, randomize, samples

from bnfold.folding.plan import apply, plan
from bnfold.folding.rule import single
from bnfold.folding.rules import LAYERS
from bnfold.model import layers, shape_rules
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Layer
from bnfold.model.layers import OPERATIONS, ROWS, UNKNOWN, Facts, LinearOutput, Slot

L = keras.layers
PACKAGE = Path(layers.__file__).parents[1]

# --- every question is asked ---------------------------------------------------------------------


def asked(tree: ast.AST) -> Iterator[str]:
    """The fields that a module reads of a row, of its output or of its variables."""
    held = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target, value in assigned(node)
        if is_row(value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value
            if is_row(of) or (isinstance(of, ast.Name) and of.id in held):
                yield node.attr


def assigned(node: ast.Assign) -> Iterator[tuple[ast.Name, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=True)
            yield from ((one, value) for one, value in pairs if isinstance(one, ast.Name))
        elif isinstance(target, ast.Name):
            yield target, node.value


def is_row(node: ast.expr) -> bool:
    """Whether an expression is `facts(...)`, `layers.facts(...)` or `ROWS.get(...)`."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr == "get":
        return isinstance(called.value, ast.Name) and called.value.id == "ROWS"
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
    return name == "facts"


def test_no_field_of_a_row_stands_there_for_nothing() -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    assert set(Facts._fields) - {one for t in trees for one in asked(t)} == set()


@pytest.mark.parametrize("kind", [Slot, LinearOutput])
def test_no_field_of_a_variable_or_output_stands_there_for_nothing(kind: Any) -> None:
    texts = [path.read_text() for path in PACKAGE.rglob("*.py")]
    names = list(kind._fields)
    assert [name for name in names if not any(f".{name}" in text for text in texts)] == []


def test_a_class_without_a_row_has_the_safe_answers() -> None:
    for layer in (Layer("l", "Unheard", {}, {}), Layer("l", "Dense", {}, {}, builtin=False)):
        assert layers.facts(layer) is UNKNOWN
        assert layers.slots(layer) is None
        assert layers.may_make_mask(layer)
        assert not layers.drops_mask(layer)
    operation = Layer("l", "Dense", {}, {}, is_operation=True)
    assert layers.facts(operation) is UNKNOWN
    assert {row.trained and row.variables is None for row in OPERATIONS.values()} == {True}


# --- what they say holds -------------------------------------------------------------------------

ARGUMENTS: dict[str, dict[str, Any]] = {
    "Dense": {"units": 3},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (None, 3), "bias_axes": "d"},
    "Embedding": {"input_dim": 9, "output_dim": 3},
    "Rescaling": {"scale": 2.5},
    "GaussianNoise": {"stddev": 0.5},
    "Activation": {"activation": "tanh"},
    "Reshape": {"target_shape": (5, -1)},
    "Permute": {"dims": (2, 1)},
    "RepeatVector": {"n": 2},
    "CenterCrop": {"height": 3, "width": 2},
    "Resizing": {"height": 3, "width": 2},
    "GroupNormalization": {"groups": 1},
    "CategoryEncoding": {"num_tokens": 4},
    "Dot": {"axes": -1},
    "Hashing": {"num_bins": 3},
    "HashedCrossing": {"num_bins": 3},
    **{name: {"units": 3, "return_sequences": True} for name in ("SimpleRNN", "LSTM", "GRU")},
    "Attention": {"use_scale": True},
    "Bidirectional": {"layer": L.LSTM(3, return_sequences=True)},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3},
    "GroupQueryAttention": {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "DepthwiseConv": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "ConvLSTM": {"filters": 4, "kernel_size": 3, "return_sequences": True},
    "Conv": {"filters": 4, "kernel_size": 3, "padding": "valid"},
    "SeparableConv": {"filters": 4, "kernel_size": 3},
    "Adaptive": {"output_size": 2},
    "AveragePooling": {"pool_size": 2},
    "MaxPooling": {"pool_size": 2},
    "Spatial": {"rate": 0.5},
}
RANKS = {
    "RepeatVector": 2,
    "CenterCrop": 4,
    "Resizing": 4,
    "Embedding": 2,
    "SpatialDropout2D": 4,
    "SpatialDropout3D": 5,
    "ConvLSTM1D": 4,
    "ConvLSTM2D": 5,
    "ConvLSTM3D": 6,
}


def build(name: str) -> Any:
    arguments = ARGUMENTS.get(name)
    if arguments is None:
        found = [given for start, given in FAMILIES.items() if name.startswith(start)]
        arguments = found[0] if found else {"rate": 0.5} if "Dropout" in name else {}
    try:
        return getattr(L, name)(**arguments)
    except TypeError as error:
        raise AssertionError(f"name in ARGUMENTS what {name} is made with: {error}") from error


def sample(name: str, rows: int = 2) -> Any:
    """What a layer can read: numbers, and of tensors of several where it joins them."""
    rank = ROWS[name].rank or RANKS.get(name, 3)
    shape = (rows, 7, 6, 8, 5)[:rank] if rank < 3 else (rows, *(7, 6, 8, 4)[: rank - 2], 5)
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=shape).astype("float32")
    return generator.integers(0, 9, shape) if name == "Embedding" else numbers


def call(layer: Any, name: str, tensor: Any, **arguments: Any) -> Any:
    if name in TWICE:
        return layer(tensor, tensor, **arguments)
    return layer([tensor, tensor] if joins(name) else tensor, **arguments)


JOINING = (shape_rules.broadcast, shape_rules.concatenated)
TWICE = ("MultiHeadAttention", "GroupQueryAttention")


def joins(name: str) -> bool:
    """Whether a layer is called with a list of tensors."""
    return ROWS[name].shape in JOINING or name in ("Attention", "AdditiveAttention")


SHAPED = sorted(name for name, row in ROWS.items() if row.shape is not None and hasattr(L, name))


@pytest.mark.parametrize("name", SHAPED)
def test_a_row_says_what_keras_does(name: str) -> None:
    row, made, tensor = ROWS[name], build(name), keras.ops.convert_to_tensor(sample(name))
    output = call(made, name, tensor)
    layer = Layer(name, name, json.loads(json.dumps(made.get_config())), {})
    count = 2 if joins(name) or name in TWICE else 1
    found = row.shape(layer, [tuple(tensor.shape)] * count, 0) if row.shape else None
    assert found is not None
    assert len(found) == len(output.shape)
    assert [n for n, m in zip(found, output.shape, strict=True) if n not in (None, m)] == []
    slots = layers.slots(layer)
    if slots is not None:
        assert len(slots) == len(made.weights)
        known = zip(slots, made.weights, strict=True)
        assert [s.name for s, w in known if s.rank not in (None, len(w.shape))] == []
        assert [s.trainable for s in slots] == [w.trainable for w in made.weights]
    assert row.trained == bool(made.trainable_weights)
    if row.dtype is not None:
        assert keras.backend.standardize_dtype(output.dtype) == "float32"
    if row.dtype == "made" and name not in INTEGERS_REFUSED:
        counted = keras.ops.convert_to_tensor(np.ones(tensor.shape, "int32"))
        assert keras.backend.standardize_dtype(call(made, name, counted).dtype) == "float32"
    if row.at_inference == "nothing":
        np.testing.assert_array_equal(output, tensor)
    if row.training == "same" and made._call_has_training_arg:
        np.testing.assert_array_equal(call(made, name, tensor, training=True), output)


INTEGERS_REFUSED = {name for name in ROWS if "Conv" in name}
MASKED = [name for name in SHAPED if ROWS[name].mask in ("passes", "drops") and name != "Embedding"]


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_does_what_a_row_says(name: str) -> None:
    made, numbers = build(name), sample(name)
    numbers[:, 1:3] = 0
    output = call(made, name, keras.ops.convert_to_tensor(numbers))
    masked = call(made, name, L.Masking()(numbers))
    np.testing.assert_array_equal(masked, output)
    if ROWS[name].mask == "drops":
        assert getattr(masked, "_keras_mask", None) is None


GAINS = [name for name in SHAPED if ROWS[name].gain is not None]


@pytest.mark.parametrize("name", GAINS)
def test_differences_grow_no_more_than_a_row_says(name: str) -> None:
    made, numbers = build(name), sample(name)
    settings = [abs(float(made.get_config().get(one, 0))) for one in ROWS[name].gain or ()]
    for size in (0.1, 10.0):
        other = numbers + size * np.random.default_rng(1).uniform(-1, 1, numbers.shape)
        is_joined = joins(name)  # of which only one input differs
        first = made([numbers, numbers] if is_joined else numbers)
        second = made([other.astype("float32"), numbers] if is_joined else other.astype("float32"))
        grown = float(np.abs(np.asarray(second) - np.asarray(first)).max())
        assert grown <= max([1.0, *settings]) * np.abs(other - numbers).max() * (1 + 1e-5)


# --- a layer that nobody has heard of ------------------------------------------------------------

ROW = Facts(
    variables=(),
    trained=False,
    shape=shape_rules.same,
    channels="kept",
    training="same",
    mask="passes",
    dtype="floats",
    at_inference="nothing",
    gain=(),
)


def renamed(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a file in which the layers of one class of Keras have the name of another."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            if name == "config.json":
                names = [f'"class_name": "{one}"'.encode() for one in (old, new)]
                content = content.replace(*names)
            elif name == "model.weights.h5":
                content = with_group_renamed(content, old.lower(), new.lower())
            written.writestr(name, content)
    return target


def with_group_renamed(content: bytes, old: str, new: str) -> bytes:
    """Keras calls the group of a layer's variables after the layer's class."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        if old in file["layers"]:
            file.move(f"layers/{old}", f"layers/{new}")
    return buffer.getvalue()


def masked_and_named() -> Any:
    """A mask goes in, and on behind the layer to one that names it."""
    first, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    normal = L.BatchNormalization()(L.Identity()(L.Dense(4)(first)), mask=mask)
    return keras.Model([first, mask], L.LSTM(2)(L.Identity()(normal)))


def fold(source: Path, target: Path) -> int:
    """Fold a file, and count what stays."""
    with open_model(source) as file:
        planned = plan(file.graph)
        file.write(apply(file.graph, planned), target, {})
    return len(planned.blocked)


def agrees(path: Path, model: Any) -> None:
    """Whether Keras computes the same from a file as with the model that it was made of."""
    inputs = samples(model)
    found, wanted = outputs(keras.models.load_model(path), inputs), outputs(model, inputs)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_layer_that_a_map_crosses_needs_one_row_and_its_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomize(masked_and_named())
    model.save(tmp_path / "model.keras")
    source = renamed(tmp_path / "model.keras", tmp_path / "unheard.keras", "Identity", "Unheard")
    target = tmp_path / "folded.keras"
    assert fold(source, target) == 1
    monkeypatch.setitem(ROWS, "Unheard", ROW)  # type: ignore[arg-type]
    assert fold(source, target) == 1
    monkeypatch.setitem(LAYERS, "Unheard", single())
    assert fold(source, target) == 0
    agrees(renamed(target, tmp_path / "known.keras", "Unheard", "Identity"), model)
    for row in (ROW._replace(mask="reads"), ROW._replace(training_default=True)):
        monkeypatch.setitem(ROWS, "Unheard", row)  # type: ignore[arg-type]
        assert fold(source, target) == 1


def test_a_layer_that_absorbs_a_map_after_it_needs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomize(chain((4,), L.Dense(3, use_bias=False), L.BatchNormalization(), L.ReLU()))
    model.save(tmp_path / "model.keras")
    source = renamed(tmp_path / "model.keras", tmp_path / "unheard.keras", "Dense", "Unheard")
    target = tmp_path / "folded.keras"
    assert fold(source, target) == 1
    row = Facts(
        variables=(Slot("kernel", 2), Slot("bias", 1, "use_bias")),
        output=LinearOutput("kernel", (-1,)),
        channels=lambda layer: -1,
        dtype="made",
    )
    monkeypatch.setitem(ROWS, "Unheard", row)  # type: ignore[arg-type]
    assert fold(source, target) == 0
    agrees(renamed(target, tmp_path / "known.keras", "Unheard", "Dense"), model)
