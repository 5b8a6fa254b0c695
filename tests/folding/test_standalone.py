"""What cannot be folded becomes a depthwise convolution, if it is asked for and is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    batchnorms,
    chain,
    difference,
    interface,
    keras,
    load,
    outputs,
    randomize,
    samples,
)

from bnfold.jobs.fold import fold_file

L = keras.layers
BN = L.BatchNormalization


def called_twice() -> Any:
    left, right, norm = keras.Input((5, 3)), keras.Input((5, 3)), BN()
    return keras.Model([left, right], [norm(left), L.ReLU()(norm(right))])


def nested() -> Any:
    return chain((5, 4, 3), L.ReLU(), chain((5, 4, 3), BN(name="b"), L.ReLU()), L.Dense(2))


REPLACED: dict[str, Callable[[], Any]] = {
    "rank-3": lambda: chain((5, 3), L.ReLU(), BN(), L.ReLU()),
    "rank-4": lambda: chain((None, None, 3), L.ReLU(), BN(axis=3), L.ReLU()),
    "output": lambda: chain((5, 4, 3), L.ReLU(), BN(name="out")),
    "takes-another-in": lambda: chain((5, 3), L.ReLU(), BN(), L.Dropout(0.1), BN(), L.ReLU()),
    "several-of-both": lambda: chain((5, 3), L.Dense(4), BN(), L.ELU(), BN(scale=False), L.ELU()),
    "called-twice": called_twice,
    "nested": nested,
    "wrapped": lambda: chain((2, 5, 4), L.TimeDistributed(chain((5, 4), L.ReLU(), BN(), L.ReLU()))),
    "sequential": lambda: keras.Sequential([keras.Input((5, 3)), L.ReLU(), BN(), L.ReLU()]),
}


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.few(8)
def test_leftovers_become_depthwise_convolutions(name: str, form: str, tmp_path: Path) -> None:
    keras.backend.clear_session(free_memory=False)
    model = randomize(REPLACED[name]())
    source, target = tmp_path / f"m{form}", tmp_path / f"f{form}"
    model.save(source)
    report = fold_file(source, target, standalone="depthwise", proof=None)
    folded = load(target)
    assert batchnorms(folded) == []
    assert interface(folded) == interface(model)
    assert len(report.replaced) == 1
    assert folded.count_params() > 0
    inputs = samples(model)
    assert difference(outputs(model, inputs), outputs(folded, inputs)) < 1e-5


STAYS: dict[str, Callable[[], Any]] = {
    "rank-2": lambda: chain((5,), L.ReLU(), BN(), L.ReLU()),
    "another-axis": lambda: chain((5, 3), L.ReLU(), BN(axis=1), L.ReLU()),
    "masked": lambda: chain((5, 3), L.Masking(), L.ReLU(), BN(), L.LSTM(2, activation="relu")),
    "training": lambda: _in_training(),
    "integers": lambda: chain((5, 3), BN(), L.ReLU(), dtype="int32"),
    "half": lambda: chain((5, 3), L.ReLU(dtype="float16"), BN(dtype="mixed_float16"), L.ReLU()),
}


def _in_training() -> Any:
    first = keras.Input((5, 3))
    return keras.Model(first, BN()(L.ReLU()(first), training=True))


@pytest.mark.parametrize("name", STAYS)
def test_what_a_convolution_does_not_do_stays(name: str, tmp_path: Path) -> None:
    model = randomize(STAYS[name]())
    model.save(tmp_path / "m.keras")
    options: Any = {"standalone": "depthwise", "proof": None}
    report = fold_file(tmp_path / "m.keras", tmp_path / "f.keras", **options)
    assert report.replaced == ()


def test_kept_layers_and_the_default_stay(tmp_path: Path) -> None:
    model = randomize(REPLACED["rank-3"]())
    model.save(tmp_path / "m.keras")
    for number, options in enumerate(({"standalone": "depthwise", "keep": ["*"]}, {})):
        chosen: Any = options
        report = fold_file(tmp_path / "m.keras", tmp_path / f"{number}.keras", proof=None, **chosen)
        assert report.replaced == ()


LOST: dict[str, tuple[str, dict[str, float], str]] = {
    # An infinite kernel where the original is finite: 8 / sqrt(0 + 1e-10) is 8e5.
    "kernel": ("float16", {"gamma": 8, "moving_variance": 0}, "depthwise_kernel would not be"),
    "bias": ("float16", {"gamma": 4, "moving_mean": 6e4}, "bias would not be finite in float16"),
    "too-small": ("float16", {"gamma": 1e-4, "moving_variance": 4e4}, "would underflow float16"),
    "float32": ("float32", {"gamma": 3e38, "moving_variance": 0}, "finite in float32"),
    "bfloat16": ("bfloat16", {"gamma": 3e38, "moving_variance": 0}, "finite in bfloat16"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_does_not_fit_the_dtype_stays_and_says_so(name: str, tmp_path: Path) -> None:
    dtype, numbers, said = LOST[name]
    norm = BN(dtype=dtype, epsilon=1e-10)
    model = chain((5, 3), L.ELU(dtype=dtype), norm, L.ELU(dtype=dtype), dtype=dtype)
    for variable in norm.weights:
        if variable.name in numbers:
            variable.assign([1.0, numbers[variable.name], 1.0])
    model.save(tmp_path / "m.keras")
    options: Any = {"standalone": "depthwise", "proof": None}
    report = fold_file(tmp_path / "m.keras", tmp_path / "f.keras", **options)
    assert report.replaced == ()
    (kept,) = report.to_dict()["kept"]
    assert "as a depthwise convolution: 1 " in kept["reason"]
    assert said in kept["reason"]
    assert batchnorms(load(tmp_path / "f.keras")) == [norm.name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_those_that_are_nearest(dtype: str, tmp_path: Path) -> None:
    model = chain((5, 2), L.ELU(dtype=dtype), BN(dtype=dtype, name="b", epsilon=1.0), dtype=dtype)
    model.layers[-1].gamma.assign([3.0, 0.3])
    model.layers[-1].moving_variance.assign([1.0, 6.0])
    model.save(tmp_path / "m.keras")
    options: Any = {"standalone": "depthwise", "proof": None}
    report = fold_file(tmp_path / "m.keras", tmp_path / "f.keras", **options)
    assert report.replaced == (("b",),)
    kernel = load(tmp_path / "f.keras").layers[-1].weights[0]
    stored = keras.ops.convert_to_numpy(model.layers[-1].gamma).astype("float64")
    wanted = keras.ops.cast((stored / [2.0**0.5, 7.0**0.5]).reshape(1, 2, 1), dtype)
    assert bool(keras.ops.all(kernel == wanted))


def test_only_a_mask_on_the_way_matters(tmp_path: Path) -> None:
    words, first = keras.Input((5,), dtype="int32"), keras.Input((5, 3))
    masked = L.LSTM(2)(L.Embedding(5, 3, mask_zero=True)(words))
    model = randomize(keras.Model([words, first], [masked, L.ELU()(BN(name="b")(L.ELU()(first)))]))
    model.save(tmp_path / "m.keras")
    options: Any = {"standalone": "depthwise", "proof": None}
    report = fold_file(tmp_path / "m.keras", tmp_path / "f.keras", **options)
    assert report.replaced == (("b",),)
    inputs = samples(model)
    assert difference(outputs(model, inputs), outputs(load(tmp_path / "f.keras"), inputs)) < 1e-5


def test_a_mask_that_somebodys_own_layer_may_make_stays(tmp_path: Path) -> None:
    own = type("Identity", (L.Identity,), {"__module__": "__main__"})
    randomize(chain((5, 3), own(), L.ELU(), BN(), L.ELU())).save(tmp_path / "m.keras")
    options: Any = {"standalone": "depthwise", "proof": None}
    report = fold_file(tmp_path / "m.keras", tmp_path / "f.keras", **options)
    assert report.replaced == ()
    assert "its input may have a mask" in report.to_dict()["kept"][0]["reason"]
